"""What preflight is told.  The caller asks the databases; everything here is an answer, and nothing asks again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from engine.model import Mode, Side, Table, Trigger
from engine.spec import JobSpec, TableRef


class ServerFacts(Protocol):
    """What matters of a server; ``engine.db.Server`` has it all."""

    @property
    def version_num(self) -> int:
        """``server_version_num``: 160004 is 16.4."""
        ...

    @property
    def in_recovery(self) -> bool:
        """True on a standby."""
        ...

    @property
    def is_superuser(self) -> bool:
        """True when the role that we log in as may do anything."""
        ...

    @property
    def user(self) -> str:
        """The role that we log in as."""
        ...


def passes_through(mode: Mode, *, transformed: bool) -> bool:
    """True when rows of a job pass through this process, over a session for reading and one for writing."""
    return mode is Mode.COPY or transformed


def filled_by(spec: JobSpec, computed: Iterable[str]) -> tuple[str, ...]:
    """In place: the columns that a job writes, by SQL and by a transform (``computed``)."""
    return tuple(dict.fromkeys((*spec.set, *computed)))


OUR_TRIGGERS: Final = "zz_backfill_"
"""What the names of our own dual-write triggers begin with, of whichever job."""

MOMENTARY: Final = frozenset(
    {
        "clock_timestamp",
        "current_date",
        "current_role",
        "current_time",
        "current_timestamp",
        "current_user",
        "localtime",
        "localtimestamp",
        "now",
        "pg_backend_pid",
        "pg_current_xact_id",
        "session_user",
        "statement_timestamp",
        "transaction_timestamp",
        "txid_current",
    }
)
"""What PostgreSQL calls stable, and is another value in the next transaction or session all the same."""

KEYWORDS: Final = frozenset(
    {
        "current_date",
        "current_role",
        "current_time",
        "current_timestamp",
        "current_user",
        "localtime",
        "localtimestamp",
        "session_user",
    }
)
"""Those of them that are written without brackets."""


def in_sql(table: Table) -> str:
    """The table's name as a person may paste it into SQL: quoted where it must be."""
    return str(TableRef(table.name.schema, table.name.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpressionFacts:
    """One SQL expression of the spec, as the server understands it.

    ``clause`` is ``set``, ``columns``, ``where`` or ``done``; ``column`` is what it fills, for the first two.
    ``identifiers`` and ``functions`` come from ``engine.sql.expressions.read_expression``, the classes of functions
    from ``pg_proc``, the type and the error from preparing (not running) the expression against the source table.
    """

    clause: str
    text: str
    column: str | None = None
    identifiers: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    volatile: frozenset[str] = frozenset()  # functions with provolatile = 'v'
    not_scalar: frozenset[str] = frozenset()  # aggregates, window functions, functions that return sets
    type_name: str = ""  # format_type of the result; empty when unknown
    error: str = ""  # what the server, or the lexer, says is wrong with it

    @property
    def passing(self) -> frozenset[str]:
        """What in it gives another value when it is computed again later: volatile functions, and the time of day."""
        # Keywords such as CURRENT_DATE are among the names, and no column can be called so without quotes.
        return self.volatile | (self.functions & MOMENTARY) | (self.identifiers & (MOMENTARY & KEYWORDS))

    @property
    def place(self) -> str:
        """Where the spec holds it: ``set.amount_cents``, ``where``."""
        return f"{self.clause}.{self.column}" if self.column is not None else self.clause


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCheck:
    """What EXPLAIN says of one of the job's queries."""

    query: str  # for people: "the chunk query", "the boundary probe"
    node_types: tuple[str, ...]
    index: str | None  # the index it would read, if any
    scans_table: bool  # it would read the whole table, or sort it
    forced: bool = False  # it would scan, and no longer does with the index forced upon it


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPacing:
    """What the session that watches one of the job's servers may see there, and what there is to see."""

    can_read_stats: bool  # member of pg_read_all_stats: what other roles' sessions do is visible
    can_read_archive: bool  # may call pg_ls_archive_statusdir() (pg_monitor)
    standbys: tuple[str, ...] = ()  # application names of the standbys that are connected
    slots: int = 0  # replication slots
    archive_mode: str = "off"
    autovacuum: bool = True  # switched on for the server
    can_vacuum: bool = True  # owner of the written table, or MAINTAIN on it (PostgreSQL 17 on)
    oldest_xmin_holder: str | None = None  # who keeps dead rows from being vacuumed: "pid 12 psql since 10:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class PacingFacts:
    """What matters of pacing.  ``servers`` has the target's side only where it is another server or database."""

    servers: Mapping[Side, ServerPacing]
    now: datetime  # knows its offset; by the ledger's clock
    rows: float | None = None  # to be looked at from now on; None: unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A replication slot of one of the job's servers."""

    name: str
    active: bool
    retained_bytes: int  # WAL that is kept for it now


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What one of the job's servers has room for, and who is at work in the database, at this moment."""

    encoding: str = "UTF8"
    max_wal_bytes: int = 1 << 30  # max_wal_size: a checkpoint is forced whenever so much was written
    slot_keep_bytes: int | None = None  # max_slot_wal_keep_size; None: slots keep all
    slots: tuple[Slot, ...] = ()
    database_bytes: int | None = None
    sessions_free: int | None = None  # that we may still open; None: nobody looked
    sessions_limit: str = ""  # which limit that is: "max_connections (100)"
    long_transactions: tuple[str, ...] = ()  # who has been in a transaction of this database for a minute and more
    rights_missing: tuple[str, ...] = ()  # besides those on tables: "worker lacks CREATE on database shop (…)"


@dataclass(frozen=True, slots=True, kw_only=True)
class DualWriteFacts:
    """What was found of the dual-write triggers that this program installs for this job."""

    installed: bool
    intact: bool  # they are, to the letter, those that the spec asks for now, and enabled
    problems: tuple[str, ...] = ()  # what is missing or different


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFacts:
    """What became of the rows of the source that the transform was tried on; ``untried``: why it was not, where it
    was meant to be.
    """

    rows: int = 0
    rejected: int = 0
    dropped: int = 0
    reason: str = ""  # of one rejected row
    failure: str = ""  # why the transform gave nothing: with its own line, without values
    untried: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformFacts:
    """The job's transform: what it declares, and which of its columns it could not be given.

    ``reads`` are columns of the source with the form that each is wanted in (``""``: the usual one), ``writes`` columns
    of the written table.  ``unreadable`` and ``unwritable``: those of them whose type has no Python form.
    """

    reference: str
    reads: tuple[tuple[str, str], ...]
    writes: tuple[str, ...]
    drops: bool = False
    unreadable: tuple[str, ...] = ()
    unwritable: tuple[str, ...] = ()
    sample: SampleFacts | None = None  # None: it was not tried


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightFacts:
    """Everything that preflight judges.

    ``target`` is None in place, and where the target table does not exist.  ``target_has_rows`` is None when nobody
    looked.  ``states`` has the target's side only where it is another database, and no side that nobody looked at.
    """

    spec: JobSpec
    mode: Mode
    source: Table
    source_server: ServerFacts
    target: Table | None = None
    target_server: ServerFacts | None = None
    expressions: tuple[ExpressionFacts, ...] = ()
    plans: tuple[PlanCheck, ...] = ()
    target_has_rows: bool | None = None
    pacing: PacingFacts | None = None  # None: nobody looked
    rows: float | None = None  # of the source, as planned; None: nobody knows
    states: Mapping[Side, ServerState] = field(default_factory=dict)
    dual_write: DualWriteFacts | None = None  # None: nobody looked, or triggers cannot do it (another database)
    transform: TransformFacts | None = None  # None: the job has none

    @property
    def is_dual_written(self) -> bool:
        """True when our own triggers carry every change of the source over, in whatever order it happens."""
        return self.dual_write is not None and self.dual_write.installed and self.dual_write.intact

    @property
    def computed(self) -> tuple[str, ...]:
        """The columns that a transform writes."""
        return self.transform.writes if self.transform is not None else ()

    @property
    def filled(self) -> tuple[str, ...]:
        """In place: the columns that the job writes, by SQL or by a transform."""
        return filled_by(self.spec, self.computed)

    @property
    def streams(self) -> bool:
        """True when rows pass through this process, over a session for reading and one for writing."""
        return passes_through(self.mode, transformed=self.transform is not None)

    @property
    def strangers(self) -> tuple[Trigger, ...]:
        """The source's triggers without our own."""
        return tuple(t for t in self.source.triggers if not t.name.startswith(OUR_TRIGGERS))

    @property
    def written_state(self) -> ServerState | None:
        """The state of the server that the job writes; None when nobody looked."""
        return self.states.get(Side.TARGET) or self.states.get(Side.SOURCE)

    @property
    def in_place(self) -> bool:
        """True when the source table itself is written."""
        return self.mode is Mode.UPDATE

    @property
    def written(self) -> Table | None:
        """The table that the job writes; None when the target does not exist."""
        return self.source if self.in_place else self.target
