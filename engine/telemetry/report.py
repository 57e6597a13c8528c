"""What one process per ledger reports of a job, for everybody who looks at metrics."""

from __future__ import annotations

from dataclasses import dataclass

from engine.ledger.records import JobStatus


@dataclass(frozen=True, slots=True)
class JobReport:
    """A job as the ledger has it now."""

    status: JobStatus
    since_progress_s: float  # since the ledger last showed that something was committed
