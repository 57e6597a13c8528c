"""What preflight is told.  The caller asks the databases; everything here is an answer, and nothing asks again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from engine.model import Mode, Side, Table
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
class PreflightFacts:
    """Everything that preflight judges.

    ``target`` is None in place, and where the target table does not exist.  ``target_has_rows`` is None when nobody
    looked.
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

    @property
    def in_place(self) -> bool:
        """True when the source table itself is written."""
        return self.mode is Mode.UPDATE

    @property
    def written(self) -> Table | None:
        """The table that the job writes; None when the target does not exist."""
        return self.source if self.in_place else self.target
