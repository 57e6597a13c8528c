"""What happened, as values.  Rooms emit; telemetry, the command line and tests listen.

An event never holds a row value, a key or a secret.  ``Emit`` is any callable that takes one: emitting never waits
and never fails the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from engine.model import JobState, Mode, Observation, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events.  ``name`` is the stable name in ``--json`` output.

    ``is_measurement``: comes every second or more often whatever happens; for metrics, and no line of anybody's output.
    """

    name: ClassVar[str] = ""
    is_measurement: ClassVar[bool] = False
    job: str

    def as_json(self) -> dict[str, Any]:
        """The event as one JSON object: ``event`` first, then its fields."""
        return {"event": self.name, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOpened(Event):
    """This process has opened the job: created it, or found it and goes on with it."""

    name = "job.opened"
    mode: Mode
    source: str
    target: str
    resumed: bool
    rows_estimated: float
    spans: int
    attached: bool = False  # it only watches: it has no workers


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged(Event):
    """The job is in another state now."""

    name = "job.state"
    state: JobState
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged(Event):
    """All spans of one phase are finished; the next begins."""

    name = "job.phase"
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Event):
    """Nothing moves, and this is why (``reason`` empty: it moves again).  Emitted on change only."""

    name = "job.waiting"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceChanged(Event):
    """Something else decides the pace now, or the job is held, or held no longer.  Not emitted for rates alone."""

    name = "pace.changed"
    stage: str  # what the law is doing: alone, slow start, steady, held …
    leads: str  # the signal or limit that decides; empty: none
    reason: str  # for people: "commit_latency 31ms > 20ms"
    limit_rows_per_s: float | None  # over all workers of the job; None: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCancelled(Event):
    """A chunk in hand was cancelled because somebody waited for its locks; it will be tried again, smaller."""

    name = "chunk.cancelled"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineLate(Event):
    """``finish_by`` cannot be met at the allowed pace.  Emitted when that becomes so, not again while it stays so."""

    name = "deadline.late"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanClaimed(Event):
    """A worker holds a span now."""

    name = "span.claimed"
    worker: str
    span: int
    epoch: int
    stolen: bool = False  # a part of a span that another worker still moves
    taken_over: bool = False  # its last holder did not let go: it died, froze, or was cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanReleased(Event):
    """A worker let go of a span: finished, or handed back."""

    name = "span.released"
    worker: str
    span: int
    epoch: int
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost(Event):
    """A worker found that somebody else holds its span: whatever it had not committed by then never will be."""

    name = "lease.lost"
    worker: str
    span: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCommitted(Event):
    """One chunk is durable together with its cursor."""

    name = "chunk.committed"
    worker: str
    span: int
    epoch: int
    phase: Phase
    observation: Observation
    admit_s: float  # waited for the token bucket
    read_s: float  # looked for the chunk's bound
    move_s: float  # from the first statement to the acknowledged COMMIT, ``observation.commit_s`` included
    next_rows: int  # what the sizer asks for next


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkFound(Event):
    """A chunk whose COMMIT's reply was lost turned out to be committed."""

    name = "chunk.found"
    worker: str
    span: int
    epoch: int
    phase: Phase
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRetried(Event):
    """A chunk failed and will be tried again.

    It was rolled back, unless the connection was lost: then it is known when the span is held again, and a
    ``ChunkFound`` or ``RowQuarantined`` follows if it was committed.  A chunk that was fenced because a thief lowered
    the span's bound has no event of its own: it is cut anew.
    """

    name = "chunk.retried"
    worker: str
    span: int  # 0: between two spans
    epoch: int
    sqlstate: str
    action: str  # retry | split | reconnect
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowQuarantined(Event):
    """One row could not be written and was set aside; the job went on behind it.

    ``in_chunk``: it is one of ``rows`` that a transform could not do, set aside together with the chunk that they are
    rows of.
    """

    name = "row.quarantined"
    worker: str
    span: int
    epoch: int
    sqlstate: str
    rows: int = 1
    in_chunk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasesRenewed(Event):
    """The leases of this process's workers reach further again."""

    name = "leases.renewed"
    is_measurement = True
    spans: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersWaited(Event):
    """What this process's workers waited for since the last such event: seconds by reason, summed over workers."""

    name = "workers.waited"
    is_measurement = True
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRead(Event):
    """One reading of a signal, by the process that paces the job.  ``value`` None: it failed; ``error`` says how."""

    name = "signal.read"
    is_measurement = True
    signal: str
    unit: str  # s | bytes | bytes/s | ratio | count
    value: float | None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalWritten(Event):
    """What the whole job has added to the WAL since the last such event, as the process that paces it reckons."""

    name = "wal.written"
    is_measurement = True
    bytes: float
    is_exact: bool  # as the server counts it; else estimated from what all sessions wrote: before PostgreSQL 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining(Event):
    """The process was asked to stop and finishes what it has in hand."""

    name = "run.draining"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something that a person may want to mend; the job goes on."""

    name = "job.warning"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationFinished(Event):
    """The last event of ``verify``: counts of rows.  The fields and their names are part of the contract."""

    name = "verify.finished"
    rows: int
    mismatched: int  # on both sides, with other values
    missing: int  # in the source only
    extra: int  # in the target only
    unsettled: int  # changed at every look
    repaired: int
    seconds: float
    verified: bool | None  # None: it was cancelled
    columns: dict[str, int]  # column -> rows that differ in it
    not_compared: tuple[str, ...]
    truncated: bool  # there are more than were written down


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished(Event):
    """The last event of ``run``: the fields and their names are part of the contract."""

    name = "job.finished"
    state: JobState
    rows: int
    bytes: int
    chunks: int
    seconds: float
    rows_per_s: float
    retries: int
    quarantined: int
    resumed: bool
    verified: bool | None


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An ``Emit`` that listens to nothing."""
