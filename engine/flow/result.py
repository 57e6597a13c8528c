"""How a run ended, for its caller."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import BackfillError
from engine.model import JobState


@dataclass(frozen=True, slots=True)
class RunResult:
    """The job as this process left it.  ``rows``, ``bytes`` and ``chunks`` are the whole job's, over all its runs and
    workers; ``seconds`` is this run's.  ``error`` is set when the job failed or could not be run.
    """

    job: str
    state: JobState
    rows: int
    bytes: int
    chunks: int
    seconds: float
    retries: int
    resumed: bool
    drained: bool  # this process was asked to stop; the job may be running elsewhere
    error: BackfillError | None = None
    quarantined: int = 0
    verified: bool | None = None  # None: no verification has come to an end

    @property
    def rows_per_s(self) -> float:
        """Rows per second of this run; meaningful for a run that was alone and from start to end."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0
