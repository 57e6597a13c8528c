"""What the ledger says, as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from engine.errors import LedgerDamaged
from engine.ledger.orders import PaceOrders
from engine.model import Backend, JobState, KeyValue, Mode, Phase, Side, Span


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One row of ``backfill.job``.  ``identity``, ``spec`` and ``fingerprint`` are JSON objects."""

    id: int
    name: str
    mode: Mode
    state: JobState
    phase: Phase | None  # None: past the last phase
    source: str
    target: str
    identity: dict[str, Any]
    spec: dict[str, Any]
    fingerprint: dict[str, Any]
    key_types: tuple[str, ...]
    rows_estimated: float
    barrier_snapshot: str | None
    waits_for: str | None
    limit_rows_per_s: float | None
    error_code: str | None
    error_message: str | None
    error_hint: str | None
    resumable: bool
    reason: str | None
    refreeze: bool
    started_at: datetime | None
    move_end: KeyValue | None  # the frozen last key of the source; None: it was empty
    sweep_end: KeyValue | None
    orders: PaceOrders
    heap_bytes: int | None  # of the table in place, when the job was created
    ends: dict[str, KeyValue] = field(default_factory=dict)  # of the phases after the move
    dual_write: dict[str, Any] | None = None  # our own triggers when the job was created; None: there were none
    sweep_by: str | None = None  # keys | tombstones; None: not decided yet
    target_mark: dict[str, Any] | None = None  # the target's server when the job was created
    moved_at: datetime | None = None  # when the job last wrote to its tables; None: it still does
    verification_id: int | None = None  # the verification that runs, or the last one

    @property
    def document(self) -> dict[str, Any]:
        """The spec, as what it has to be.  Raises ``LedgerDamaged``: whoever can write there may have made it another.

        The row itself is read whatever it holds, so that such a job can be seen, cancelled and removed.
        """
        spec: object = self.spec
        if not isinstance(spec, dict):
            raise LedgerDamaged(
                f"the ledger's spec of {self.name} is none",
                hint="remove the job: backfill cleanup JOB; and begin it anew",
            )
        return spec

    def end_of(self, phase: Phase) -> KeyValue | None:
        """Where the chain of that phase's spans must end."""
        if phase is Phase.MOVE:
            return self.move_end
        before_003 = self.sweep_end if phase is Phase.SWEEP else None
        return self.ends.get(phase.value, before_003)


@dataclass(frozen=True, slots=True)
class Claim:
    """A span under a fresh lease, and the server processes that its former holder may have left behind."""

    span: Span
    left_behind: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One row of ``backfill.span`` as the planner and the checks need it."""

    id: int
    lo: KeyValue | None
    hi: KeyValue
    cursor: KeyValue | None
    epoch: int
    rows: int
    scanned: int
    rows_estimated: float
    leased: bool

    @property
    def is_finished(self) -> bool:
        """The cursor stands at the upper bound."""
        return self.cursor == self.hi


@dataclass(frozen=True, slots=True)
class Tombstones:
    """Numbered rows of a table of the ledger: the first and the last number, None when there are none.

    ``truncated``: one of them stands for every key.
    """

    first: int | None
    last: int | None
    rows: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """One verification of a job; counts of rows.  ``outcome`` is passed, mismatch or cancelled; None while it runs."""

    id: int
    repair: bool
    delete_extra: bool  # a repair may delete rows that only the target holds
    settle_s: float
    who: str
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    rows: int
    suspects: int
    mismatched: int
    missing: int
    extra: int
    unsettled: int
    repaired: int
    columns: dict[str, int]  # column -> rows that differ in it
    not_compared: tuple[str, ...]
    truncated: bool  # there are more differences than were written down
    target_mark: dict[str, Any] | None

    @property
    def verified(self) -> bool | None:
        """True when both sides agree; None while it runs, and where it was cancelled."""
        return {"passed": True, "mismatch": False}.get(self.outcome or "")

    @property
    def seconds(self) -> float:
        """How long it took; 0 while it runs."""
        return 0.0 if self.finished_at is None else (self.finished_at - self.started_at).total_seconds()

    def as_json(self) -> dict[str, Any]:
        """What ``verify --json`` ends with, without event and job: these names are part of the contract."""
        return {
            "rows": self.rows,
            "mismatched": self.mismatched,
            "missing": self.missing,
            "extra": self.extra,
            "unsettled": self.unsettled,
            "repaired": self.repaired,
            "seconds": round(self.seconds, 3),
            "verified": self.verified,
            "columns": self.columns,
            "not_compared": list(self.not_compared),
            "truncated": self.truncated,
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """One row on which the two sides do not agree."""

    key: KeyValue
    kind: str  # changed | missing | extra
    state: str  # confirmed | unsettled | repaired
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One row that was set aside."""

    id: int
    key: KeyValue
    error_class: str
    sqlstate: str
    attempts: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One row of the view ``backfill.status``: everything a person or a dashboard asks of a job."""

    job: str
    state: JobState
    mode: Mode
    phase: str
    source: str
    target: str
    rows_done: int
    rows_estimated: float
    progress: float  # 0..1
    rows_per_s: float
    eta_s: float | None
    workers: int
    spans_total: int
    spans_done: int
    spans_running: int
    bytes_done: int
    chunks: int
    limit_rows_per_s: float | None
    waiting: str | None
    waits: dict[str, float]  # seconds by reason
    retries: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    error_message: str | None
    error_hint: str | None
    resumable: bool
    max_rows_per_s: float | None = None  # as ordered, else as the spec says
    limit_now_rows_per_s: float | None = None  # what the pacer allows; None: no limit, or no pacer
    pressure: float | None = None
    stage: str | None = None
    leads: str | None = None  # what decides now: a signal, or another gate
    held_by: str | None = None  # the same while nothing is admitted
    pace_reason: str | None = None
    chunk_target_s: float | None = None
    workers_allowed: int | None = None
    signals: tuple[dict[str, Any], ...] = ()
    deadline: dict[str, Any] | None = None
    growth: dict[str, Any] | None = None
    pacer: str | None = None  # host:process that decides the pace
    pace_since: str | None = None  # since when it has been what decides, as the ledger says it
    pace_valid: bool | None = None  # None: nothing was published yet
    pace_age_s: float | None = None
    orders: PaceOrders = field(default_factory=PaceOrders)
    quarantined: int = 0
    verified: bool | None = None  # None: no verification has come to an end
    verification: dict[str, Any] | None = None  # the one that runs, or the last one
    # Where they were asked for; not part of how the job is.
    number: int | None = field(default=None, compare=False)  # of the job in its ledger
    revision: int | None = field(default=None, compare=False)  # of the newest line of its history
    transform: str | None = field(default=None, compare=False)  # that the job names: no repair can run it

    def as_json(self) -> dict[str, Any]:
        """The object of ``status --json``: its names are part of the contract."""
        error = None
        if self.error_code:
            error = {
                "code": self.error_code,
                "message": self.error_message,
                "hint": self.error_hint,
                "resumable": self.resumable,
            }
        return {
            "job": self.job,
            "state": self.state.value,
            "mode": self.mode.value,
            "phase": self.phase,
            "source": self.source,
            "target": self.target,
            "rows_done": self.rows_done,
            "rows_estimated": round(self.rows_estimated),
            "progress": round(self.progress, 6),
            "rows_per_s": round(self.rows_per_s, 1),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "workers": self.workers,
            "spans": {"total": self.spans_total, "done": self.spans_done, "running": self.spans_running},
            "pace": {
                "limit_rows_per_s": self.limit_now_rows_per_s,
                "pressure": self.pressure,
                "held_by": self.held_by,
                "reason": self.waiting or self.pace_reason,
                "waiting": self.waiting,
                "because": self.pace_reason,
                "leads": self.leads,
                "since": _iso(_moment_or_none(self.pace_since)),
                "stage": self.stage,
                "max_rows_per_s": self.max_rows_per_s,
                "chunk_target_s": self.chunk_target_s,
                "workers": self.workers_allowed,
                "orders": self.orders.as_json(),
                "pacer": self.pacer,
                "valid": self.pace_valid,
                "age_s": None if self.pace_age_s is None else round(self.pace_age_s, 1),
                "deadline": self.deadline,
                "growth": self.growth,
            },
            "signals": [self._signal(signal) for signal in self.signals],
            "waits": self.waits,
            "bytes_done": self.bytes_done,
            "chunks": self.chunks,
            "retries": self.retries,
            "quarantined": self.quarantined,
            "verified": self.verified,
            "verification": self._verification(),
            "created_at": _iso(self.created_at),
            "started_at": _iso(self.started_at),
            "finished_at": _iso(self.finished_at),
            "error": error,
        }

    @classmethod
    def from_json(cls, shown: Mapping[str, Any]) -> JobStatus:
        """The inverse of ``as_json``, as far as that tells: for whoever shows the job of another process.

        Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what is no such object.
        """
        pace, spans, error = shown["pace"], shown["spans"], shown["error"] or {}
        age_s = pace["age_s"]
        return cls(
            job=shown["job"],
            state=JobState(shown["state"]),
            mode=Mode(shown["mode"]),
            phase=shown["phase"],
            source=shown["source"],
            target=shown["target"],
            rows_done=shown["rows_done"],
            rows_estimated=shown["rows_estimated"],
            progress=shown["progress"],
            rows_per_s=shown["rows_per_s"],
            eta_s=shown["eta_s"],
            workers=shown["workers"],
            spans_total=spans["total"],
            spans_done=spans["done"],
            spans_running=spans["running"],
            bytes_done=shown["bytes_done"],
            chunks=shown["chunks"],
            limit_rows_per_s=pace["max_rows_per_s"],
            waiting=pace["waiting"],
            waits=dict(shown["waits"]),
            retries=shown["retries"],
            created_at=datetime.fromisoformat(shown["created_at"]),
            started_at=_moment(shown["started_at"]),
            finished_at=_moment(shown["finished_at"]),
            error_code=error.get("code"),
            error_message=error.get("message"),
            error_hint=error.get("hint"),
            resumable=bool(error.get("resumable")),
            max_rows_per_s=pace["max_rows_per_s"],
            limit_now_rows_per_s=pace["limit_rows_per_s"],
            pressure=pace["pressure"],
            stage=pace["stage"],
            leads=pace["leads"],
            held_by=pace["held_by"],
            pace_since=pace.get("since"),
            pace_reason=pace["because"],
            chunk_target_s=pace["chunk_target_s"],
            workers_allowed=pace["workers"],
            signals=tuple(_as_published(signal, age_s or 0.0) for signal in shown["signals"]),
            deadline=pace["deadline"],
            growth=pace["growth"],
            pacer=pace["pacer"],
            pace_valid=pace["valid"],
            pace_age_s=age_s,
            orders=PaceOrders.from_json(pace["orders"]),
            quarantined=shown["quarantined"],
            verified=shown["verified"],
            verification=shown["verification"],
        )

    def _verification(self) -> dict[str, Any] | None:
        """What a verification found: what keys differ, and where servers stand, is not for everybody."""
        if self.verification is None:
            return None
        return {name: self.verification.get(name) for name in _OF_VERIFICATION}

    def _signal(self, signal: dict[str, Any]) -> dict[str, Any]:
        """A signal as of now: it was that old when its age was published."""
        age_s = signal.get("age_s")
        return {**signal, "age_s": None if age_s is None else round(age_s + (self.pace_age_s or 0.0), 1)}


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line of a job's history."""

    id: int  # grows with the history of a job; a later line may have a smaller one only in another job
    at: datetime
    who: str
    what: str
    detail: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """As it is shown to many: without what follows the host in a URL, where a token may be."""
        return {
            "id": self.id,
            "at": self.at.isoformat(),
            "who": self.who,
            "what": self.what,
            "detail": discreet(self.detail),
        }


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What one worker tells the others about itself."""

    worker: str
    rows_per_s: float
    retries: int
    waiting: str
    waits: dict[str, float]


_URL: Final = re.compile(r"(https?://[^/?#\s\"',]+)[/?#][^\s\"',]+")

_OF_VERIFICATION: Final = (
    "started_at",
    "finished_at",
    "outcome",
    "repair",
    "delete_extra",
    "rows",
    "suspects",
    "mismatched",
    "missing",
    "extra",
    "unsettled",
    "repaired",
    "columns",
    "not_compared",
    "truncated",
)


def discreet(value: Any) -> Any:
    """The same without what follows the host in any URL: a token may be there, and history is shown to many."""
    match value:
        case str():
            return _URL.sub(r"\1/…", value)
        case Mapping():
            return {name: discreet(item) for name, item in value.items()}
        case list():
            return [discreet(item) for item in value]
        case _:
            return value


def _as_published(signal: Mapping[str, Any], since_s: float) -> dict[str, Any]:
    """A signal as old as it was when it was published: ``as_json`` adds the time since."""
    age_s = signal.get("age_s")
    return dict(signal) | {"age_s": None if age_s is None else age_s - since_s}


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _moment_or_none(text: str | None) -> datetime | None:
    """A moment out of a decision, which anybody who may write there can have written."""
    try:
        return _moment(text)
    except ValueError:
        return None


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def backends_from_json(items: list[dict[str, Any]]) -> tuple[Backend, ...]:
    """Server processes as the ledger stores them: ``[{"side": …, "pid": …, "started": …}]``."""
    return tuple(Backend(side=Side(i["side"]), pid=int(i["pid"]), started=str(i["started"])) for i in items)


def backends_to_json(backends: tuple[Backend, ...]) -> list[dict[str, Any]]:
    """The inverse of ``backends_from_json``."""
    return [{"side": b.side.value, "pid": b.pid, "started": b.started} for b in backends]
