"""The words of the project as types: what every room may pass to another.

Plain frozen values without behaviour that needs a database, a clock or a loop.  The glossary is in
``docs/architecture.md``; the names here are the ones used in code, logs and the ledger alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

KeyValue = tuple[str, ...]
"""One key: each key column's value in the server's own text form (``value::text`` under the pinned session
settings of ``engine.db``), in key order.  Never compared in Python: only the source server orders keys."""


class Mode(StrEnum):
    """How rows move: which mover does the work."""

    UPDATE = "update"  # in place: columns of the source table are filled
    INSERT = "insert"  # into another table of the same database, server side
    COPY = "copy"  # into another database, streamed through this process


class JobState(StrEnum):
    """A job's state, as users see it (``docs/architecture.md`` draws the transitions)."""

    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when no worker has anything left to do unless a person intervenes."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)

    @property
    def is_at_work(self) -> bool:
        """True while workers claim spans."""
        return self in (JobState.RUNNING, JobState.VERIFYING)


class Phase(StrEnum):
    """What the spans of a job are for.  Each phase tiles what it pages through with spans of its own: the keys of the
    source, those of the target, or numbered rows of a table of the ledger.
    """

    MOVE = "move"  # rows are written
    SWEEP = "sweep"  # rows that were deleted at the source meanwhile are taken out again (``deletes: guarded``)
    VERIFY = "verify"  # both sides are compared, chunk by chunk of the source's keys
    EXTRA = "extra"  # where the target sorts in another order: its keys are looked for at the source
    CONFIRM = "confirm"  # rows that seemed to differ are looked at again, and repaired if that was asked for
    RECHECK = "recheck"  # rows that were repaired are compared once more

    @property
    def state(self) -> JobState:
        """The state of a job that works on this phase."""
        return JobState.RUNNING if self in (Phase.MOVE, Phase.SWEEP) else JobState.VERIFYING


class Order(StrEnum):
    """The order in which a job pages through its source."""

    KEY = "key"
    PHYSICAL = "physical"


class Deletes(StrEnum):
    """What the job promises about rows deleted at the source while it runs."""

    GUARDED = "guarded"
    NONE = "none"


class Verify(StrEnum):
    """Whether a job compares source and target at its end."""

    NONE = "none"
    AFTER = "after"


class ConflictPolicy(StrEnum):
    """What happens to a source row whose key the target has already."""

    KEEP = "keep"
    REPLACE = "replace"
    NEWEST = "newest"
    FAIL = "fail"


class Side(StrEnum):
    """Which of a job's two databases a connection belongs to (in place and same-database jobs: both are one)."""

    SOURCE = "source"
    TARGET = "target"


class Severity(StrEnum):
    """How much a preflight finding matters."""

    REFUSE = "refuse"  # the job cannot be right: not started
    WARN = "warn"  # the job can be right, if what the finding says is taken care of
    ADVISE = "advise"  # the job will be right, and could be cheaper


@dataclass(frozen=True, slots=True)
class TableName:
    """A table's name as the catalogue spells it (never quoted; ``engine.sql`` quotes)."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Column:
    """One live column of a table, from ``pg_attribute`` and ``pg_type``."""

    name: str
    number: int  # attnum
    type_oid: int
    type_name: str  # format_type(oid, typmod): what the column is declared as
    base_type: str  # format_type(oid, -1): safe to cast to, since it never truncates
    type_kind: str  # pg_type.typtype of the type: b base, c composite, d domain, e enum, r range, m multirange
    category_oid: int  # the base type's OID when the type is a domain, else ``type_oid``
    not_null: bool
    identity: str  # "" | "always" | "default"
    generated: str  # "" | "stored" | "virtual"
    has_default: bool
    collation: str | None  # quoted, schema-qualified name; None when the type has none
    collation_id: str | None  # provider, locale and version as one comparable text; None when the type has none
    collation_is_c: bool  # byte order: comparable on any server
    enum_labels: tuple[str, ...]  # in enum order; empty for other types
    binary_io: bool  # the type has both send and receive functions
    binary_portable: bool  # its binary form carries no OIDs of this database
    declared_base: str = ""  # format_type(oid, typmod) of what a domain is over, below all its domains; "" for others


@dataclass(frozen=True, slots=True)
class Index:
    """One index of a table."""

    name: str
    oid: int
    columns: tuple[str, ...]  # key columns; "" stands for an expression
    unique: bool
    primary: bool
    immediate: bool  # not deferrable
    partial: bool
    valid: bool
    method: str  # btree, hash, gin …
    descending: tuple[bool, ...]
    default_opclass: bool  # every key column uses its type's default operator class and the column's collation
    size_bytes: int
    reads: tuple[str, ...] = ()  # every column it depends on: keys, INCLUDE, expressions, predicate
    exclusion: bool = False  # of an exclusion constraint, WITHOUT OVERLAPS included: it decides by other than equality

    @property
    def orders_rows(self) -> bool:
        """True when the index gives every row one place in an order that ``ORDER BY`` can use in one direction."""
        return (
            self.unique
            and self.immediate
            and self.valid
            and not self.partial
            and self.method == "btree"
            and self.default_opclass
            and "" not in self.columns
            and len(set(self.descending)) == 1
        )


@dataclass(frozen=True, slots=True)
class Trigger:
    """One user trigger of a table."""

    name: str
    enabled: bool
    row_level: bool
    before: bool
    on_insert: bool
    on_update: bool
    on_delete: bool
    on_truncate: bool
    of_columns: tuple[str, ...] = ()  # UPDATE OF these: it fires only where one of them is set; empty: any


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key that leaves this table (``outgoing``) or points at it."""

    name: str
    outgoing: bool
    columns: tuple[str, ...]
    other_table: TableName
    indexed: bool = True  # an index of the referencing table finds the rows that point at one key


@dataclass(frozen=True, slots=True)
class Check:
    """Something by name, and the columns of a table that it is about: a constraint, a sequence."""

    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication that sends changes of a table to subscribers, and which."""

    name: str
    insert: bool
    update: bool
    delete: bool


@dataclass(frozen=True, slots=True)
class Table:
    """What the catalogue says of one table.  ``rows`` and sizes are estimates of the statistics, not counts."""

    oid: int
    name: TableName
    kind: str  # pg_class.relkind: r table, p partitioned, v view, m materialized view, f foreign …
    persistence: str  # p permanent, u unlogged, t temporary
    relfilenode: int
    rows: float  # reltuples (sum over partitions); -1 when never analysed
    heap_bytes: int  # main fork, over all partitions
    toast_bytes: int
    index_bytes: int
    fillfactor: int
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...]
    triggers: tuple[Trigger, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    rules: tuple[str, ...] = ()
    row_security: bool = False  # enabled and it applies to the current role
    inheritance_children: int = 0  # children by INHERITS (not partitions)
    is_inheritance_child: bool = False
    partitions: int = 0  # leaf partitions
    owner: str = ""
    privileges: frozenset[str] = field(default_factory=frozenset)  # SELECT INSERT UPDATE DELETE MAINTAIN, of our role
    closed_sequences: tuple[Check, ...] = ()  # that number columns by default, and that our role may not ask
    schema_usage: bool = True  # our role may name the things of the table's schema
    foreign_partitions: tuple[str, ...] = ()  # leaf partitions that are foreign tables
    partitioned_by: str = ""  # list, range or hash; empty where it is not partitioned
    has_default_partition: bool = False
    checks_not_valid: tuple[Check, ...] = ()  # CHECK and NOT NULL constraints that rows already there may break
    publications: tuple[Publication, ...] = ()  # logical replication that the table, or a part of it, is sent by
    without_identity: tuple[str, ...] = ()  # it, or partitions, that have no replica identity to send updates with
    subscriptions: tuple[str, ...] = ()  # logical replication that fills the table, or a part of it
    autovacuum_off: tuple[str, ...] = ()  # it, or partitions, with autovacuum_enabled = off
    outdated_collations: tuple[str, ...] = ()  # columns that were indexed by another version of their collation
    tablespace: str = ""  # where new pages go; empty where the server does not say (partitioned tables)

    def column(self, name: str) -> Column | None:
        """The column of that exact name, or None."""
        return next((c for c in self.columns if c.name == name), None)


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """One column of the key a job pages through."""

    name: str
    type_name: str  # the column's base type: text is cast to it
    type_oid: int
    kind: str  # a kind of ``engine.plan.keyspace``: int, uuid, text, bytea, numeric, date, timestamp, enum, bool, float
    collation: str | None = None  # the column's collation, quoted; None when the type has none
    collation_id: str | None = None
    enum_labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """The ordered, unique, not-null columns a job pages through, and the index that serves them."""

    columns: tuple[KeyColumn, ...]
    index: str

    @property
    def names(self) -> tuple[str, ...]:
        """The column names, in key order."""
        return tuple(c.name for c in self.columns)


@dataclass(frozen=True, slots=True)
class SpanBounds:
    """A span as planned: ``(lo, hi]`` in the source's key order; ``lo`` None means from the first key on."""

    lo: KeyValue | None
    hi: KeyValue
    rows: float  # estimate


@dataclass(frozen=True, slots=True)
class Span:
    """A span as held under a lease: the cursor is the last key moved, None before the first."""

    id: int
    phase: Phase
    lo: KeyValue | None
    hi: KeyValue
    cursor: KeyValue | None
    epoch: int
    rows: int

    @property
    def is_finished(self) -> bool:
        """A span ends when its cursor stands at its frozen upper bound, and in no other way."""
        return self.cursor == self.hi


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a Python transform says of itself: which columns it reads and writes.  Part of what makes a job that job, so
    that who may not load the function still knows what it touches.
    """

    reference: str  # module.path:function
    reads: tuple[tuple[str, str], ...]  # columns of the source, each with the form it is read in ("" is the default)
    writes: tuple[str, ...]  # columns of the written table
    drops: bool = False  # it may leave rows out

    def as_json(self) -> dict[str, Any]:
        """Values that JSON can carry; ``from_json`` reads them."""
        return {
            "reference": self.reference,
            "reads": [list(read) for read in self.reads],
            "writes": list(self.writes),
            "drops": self.drops,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Declaration:
        """The inverse of ``as_json``.  Raises ``ValueError`` for anything else: it may come from a table that others
        can write.
        """
        reads, writes = value.get("reads"), value.get("writes")
        reference, drops = value.get("reference"), value.get("drops")
        if (
            isinstance(reference, str)
            and isinstance(drops, bool)
            and isinstance(reads, list)
            and isinstance(writes, list)
            and all(isinstance(read, list) and len(read) == 2 for read in reads)
            and all(isinstance(text, str) for text in (*writes, *(text for read in reads for text in read)))
        ):
            return cls(reference, tuple((name, form) for name, form in reads), tuple(writes), drops)
        raise ValueError("no declaration of a transform")


@dataclass(frozen=True, slots=True)
class Backend:
    """One server process of ours: ended by a successor, identified so that no other process is ever hit."""

    side: Side
    pid: int
    started: str  # pg_stat_activity.backend_start as text


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing preflight saw."""

    code: str
    severity: Severity
    message: str  # what was seen, with names and numbers
    remedy: str  # what to do about it


@dataclass(frozen=True, slots=True)
class Observation:
    """What one committed chunk cost; the sizer, the bucket and telemetry learn from it."""

    rows: int  # rows written (or deleted, by a sweep)
    scanned: int  # rows of the key range that were looked at: the bucket's token
    bytes: int  # bytes that passed through or are estimated to have been written
    server_s: float  # time the chunk's statements ran, without waiting for admission
    commit_s: float = 0.0  # of the round trip that only committed; 0 where one statement moves and commits
    differing: int = 0  # rows that a verification has found to differ for good
    transform_s: float = 0.0  # a part of ``server_s``: with batches in a transform, de- and encoding included
    changed: int = 0  # in place: rows that somebody had changed between our reading and our writing them
    refused: int = 0  # in place: rows whose update a trigger of the table has taken back
    set_aside: tuple[tuple[str, int], ...] = ()  # rows of it that a transform could not do: SQLSTATE, how many
