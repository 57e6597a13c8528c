"""Requests and answers of the daemon, as pydantic models: one source for checks, the OpenAPI document and the client.

Durations are numbers of seconds where a name ends in ``_s``, and texts with a unit (``30s``) elsewhere, as in a spec.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.model import JobState, Mode

MAX_REASON: int = 500
MAX_PAGE: int = 200


class Answer(BaseModel):
    """What the daemon says.  Clients of an older release read past what they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Request(BaseModel):
    """What a client asks.  A key that nobody knows is a mistake, and is told."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Reason = Annotated[str, Field(max_length=MAX_REASON)]


# -- answers: jobs ----------------------------------------------------------------------------------------------------


class Spans(Answer):
    """How many intervals of the key there are."""

    total: int
    done: int
    running: int


class Pace(Answer):
    """How fast the job may go now, and why."""

    limit_rows_per_s: float | None
    pressure: float | None
    held_by: str | None
    reason: str | None = Field(description="Why nothing moves, else why it is not faster.")
    waiting: str | None = Field(default=None, description="Why nothing moves.")
    because: str | None = Field(default=None, description="What decides the pace.")
    leads: str | None = None
    since: datetime | None = Field(default=None, description="Since when `held_by` and `leads` have been as they are.")
    stage: str | None = None
    max_rows_per_s: float | None = None
    chunk_target_s: float | None = None
    workers: int | None = None
    orders: dict[str, Any] = {}
    pacer: str | None = None
    valid: bool | None = None
    age_s: float | None = None
    deadline: dict[str, Any] | None = None
    growth: dict[str, Any] | None = None


class Signal(Answer):
    """A health value of a database as the pacer saw it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    value: float | None = None
    target: float | None = None
    max: float | None = None
    age_s: float | None = None
    unit: str | None = None


class JobError(Answer):
    """Why a job failed, and what to do."""

    code: str
    message: str | None
    hint: str | None
    resumable: bool


class Job(Answer):
    """One job: the object of ``backfill status --json``, with the connection whose ledger holds it and its revision."""

    job: str
    connection: str = Field(description="The operator's name of the database whose ledger holds the job.")
    revision: str = Field(description="Changes with every change of state, orders or settings; the ETag holds it.")
    state: JobState
    mode: Mode
    phase: str
    source: str
    target: str
    rows_done: int
    rows_estimated: float
    progress: Annotated[float, Field(ge=0, le=1)]
    rows_per_s: float
    eta_s: float | None
    workers: int
    spans: Spans
    pace: Pace
    signals: list[Signal]
    waits: dict[str, float]
    bytes_done: int = 0
    chunks: int = 0
    retries: int
    quarantined: int
    verified: bool | None
    verification: dict[str, Any] | None
    created_at: datetime | None = None
    started_at: datetime | None
    finished_at: datetime | None
    error: JobError | None
    aside: str | None = Field(default=None, description="Why this daemon does not work the job; null: it does, or may.")


class JobPage(Answer):
    """Jobs, the newest first.  ``next``: the cursor of the next page; null on the last one."""

    jobs: list[Job]
    next: str | None
    unreachable: list[str] = Field(default=[], description="Connections whose jobs are missing here: they are away.")


class HistoryEntry(Answer):
    """One line of what happened to a job."""

    id: int
    at: datetime
    who: str
    what: str
    detail: dict[str, Any]


class HistoryPage(Answer):
    """What happened, oldest first.  ``next``: the cursor of what came after; null when there is nothing yet."""

    entries: list[HistoryEntry]
    next: str | None


class Reading(Answer):
    """How long readers or writers of a database waited, in seconds, and how long they were to wait at most."""

    name: str
    value: float | None
    target: float | None


class Moment(Answer):
    """How fast a job went at some moment, and how fast it was allowed to."""

    at: datetime
    rows_per_s: float
    limit_rows_per_s: float | None
    held_by: str | None
    signals: list[Reading]


class Recent(Answer):
    """The last ten minutes of a job, oldest first; empty where another daemon works it."""

    job: str
    now: datetime = Field(description="By the clock that `at` is by.")
    moments: list[Moment]


class Trouble(Answer):
    """In a stream of events: what keeps news away for now.  The stream goes on behind it."""

    message: str


class SetAside(Answer):
    """One row in quarantine.  ``key`` only where it was asked for and the operator allows it."""

    id: int
    sqlstate: str
    error: str
    attempts: int
    first_at: datetime
    last_at: datetime
    key: list[str] | None = None


class Quarantine(Answer):
    """The rows that a job has set aside, oldest first."""

    job: str
    quarantined: int
    by_sqlstate: dict[str, int]
    rows: list[SetAside]
    next: str | None = None


class Retried(Answer):
    """What became of rows that were tried again: counts by outcome."""

    model_config = ConfigDict(frozen=True, extra="allow")

    job: str
    quarantined: int = Field(description="Rows set aside now.")


class Dropped(Answer):
    """How many rows were forgotten, and how many are set aside now."""

    job: str
    dropped: int
    quarantined: int


class GateCheck(Answer):
    """One condition of the gate."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


class Gate(Answer):
    """Whether the old side may be given up: the evidence that a contract step needs."""

    job: str
    ready: bool
    mismatch: bool = Field(default=False, description="The last verification found rows that differ.")
    checks: list[GateCheck]


class Removed(Answer):
    """A job that the ledger no longer holds."""

    job: str
    removed: bool
    triggers: list[str] = []


class Grants(Answer):
    """The GRANT script with which a role can run a job, for a superuser or the tables' owner to run."""

    job: str
    role: str
    login: str | None
    repair: bool
    script: str


class DualWrite(Answer):
    """Our own triggers on a job's source: whether they are there, and do what the job asks for."""

    job: str
    table: str
    installed: bool
    intact: bool
    problems: list[str]
    evidence: dict[str, Any] | None = None
    script: str | None = Field(default=None, description="Where it was asked for: all that installing would do.")


class DualWriteChanged(Answer):
    """What became of our triggers; ``changed`` is false where there was nothing to do."""

    job: str
    changed: bool
    triggers: list[str]
    tables: list[str]


# -- answers: before a job --------------------------------------------------------------------------------------------


class FindingShape(Answer):
    """One finding of preflight."""

    code: str
    severity: Literal["refuse", "warn", "advise"]
    message: str
    remedy: str


class Plan(Answer):
    """What a job would do: the object of ``backfill plan --json``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    job: str
    mode: Mode
    rows_estimated: int | None
    spans: int | None
    workers: int
    findings: list[FindingShape]
    refused: bool


class Rehearsal(Answer):
    """What a few chunks cost that were rolled back: the object of ``backfill rehearse --json``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    job: str
    mode: Mode
    findings: list[FindingShape]
    refused: bool
    rehearsal: dict[str, Any] | None
    forecast: dict[str, Any] | None


class Examination(Answer):
    """A database as ``backfill doctor --json`` shows it; ``error`` where it cannot be reached."""

    model_config = ConfigDict(frozen=True, extra="allow")

    label: str
    error: dict[str, Any] | None = None


# -- answers: the daemon ----------------------------------------------------------------------------------------------


class Connection(Answer):
    """A database that requests may name."""

    name: str
    work: bool
    tables: list[str]
    role: str | None
    max_rows_per_s: float | None
    reachable: bool | None = Field(description="As the daemon last saw it; null: it has not looked yet.")
    trouble: str | None = None
    jobs_running: list[str] = []


class Connections(Answer):
    """All that the caller may name."""

    connections: list[Connection]


class Me(Answer):
    """Who the caller is to the daemon, and what that allows."""

    name: str
    kind: Literal["peer", "token", "certificate", "loopback"]
    scopes: list[str]
    connections: list[str]


class Health(Answer):
    """Of the process (``/livez``) or of what it needs (``/readyz``)."""

    status: Literal["ok", "starting", "draining", "failing"]
    checks: dict[str, str] = {}


# -- problems ---------------------------------------------------------------------------------------------------------


class Detail(Answer):
    """One thing wrong with a request: where (a JSON pointer, or a parameter's name), what, and what to do."""

    pointer: str | None = None
    parameter: str | None = None
    message: str
    hint: str = ""
    before: str | None = Field(default=None, description="Of spec_changed: what the job's ledger says there.")
    after: str | None = Field(default=None, description="Of spec_changed: what the new spec says there.")


class ProblemDetails(Answer):
    """An error, by RFC 9457.  ``code`` is stable."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    hint: str = ""
    sqlstate: str | None = None
    errors: list[Detail] = []
    findings: list[FindingShape] = []
    job: str | None = Field(default=None, description="The job that it is about, where the code needs it.")
    state: str | None = Field(default=None, description="Of held_by_operator: the state that keeps the job there.")


# -- requests ---------------------------------------------------------------------------------------------------------


class Order(Request):
    """Pause, resume or cancel, and why."""

    reason: Reason | None = None


class SignalChange(Request):
    """What is changed about one signal; null forgets the order.  Numbers are in the signal's own unit."""

    target: float | None = None
    max: Annotated[float, Field(ge=0)] | None = None
    off: bool | None = None


class PaceChange(Request):
    """A JSON merge patch of the orders on a job's pace: null forgets an order, what is not named stays."""

    max_rows_per_s: Annotated[float, Field(gt=0, le=1e12, strict=False)] | None = None
    max_wal_bytes_per_s: Annotated[float, Field(ge=65536, le=2**40, strict=False)] | None = None
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    signals: dict[str, SignalChange | None] | None = None
    reason: Reason | None = None


class Verify(Request):
    """Compare both sides of a job that is done.  Rows are changed only with ``repair``, deleted only with both."""

    repair: bool = False
    delete_extra: bool = False
    settle: str | None = Field(default=None, description="Between two looks at a row that differs, such as 2s.")


class Rows(Request):
    """Rows of the quarantine by number; ``all`` in place of numbers."""

    ids: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=10_000)] | None = None
    all: bool = False


class Restart(Request):
    """Forget a job's progress and begin it anew.  ``force``: even while workers are alive."""

    force: bool = False
    reason: Reason | None = None


class DualWriteChange(Request):
    """Put our triggers on the source, or take them away.  ``force``: even while the job needs them."""

    action: Literal["install", "remove"]
    force: bool = False
    patience: str | None = Field(default=None, description="How long to try for the table, such as 30s.")
    spec: dict[str, Any] | None = Field(
        default=None,
        description="Of a job that is not begun yet, which is when triggers are to be installed: its spec.",
    )
