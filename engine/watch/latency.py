"""What somebody else would feel: how long one read and one commit take, round trip included.

Each on a session of its own, since each must be able to hang alone.  A reading is the time from sending the statement
to its answer, on a connection that has run it before: neither connecting nor parsing is part of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from engine.clock import Clock
from engine.db import Connection, Database
from engine.model import KeyColumn, KeyValue, TableName
from engine.pace.law import SignalPolicy
from engine.sql.identifiers import qualified
from engine.sql.literals import literal
from engine.sql.predicates import columns, compare, parameter, texts
from engine.watch.probe import Measured, ProbeFailed
from engine.watch.session import Session

EVERY_S: Final = 0.1
QUIET_EVERY_S: Final = 0.5

DEADLINE_S: Final = 5.0
"""Until then an unanswered question is a reading that grows; after it the connection is given up."""

HEARTBEAT_ROWS: Final = 8
"""How many rows the commit probes of several jobs and processes share, so that they seldom wait for each other."""

_BEAT: Final = """\
INSERT INTO backfill.heartbeat (id, at) VALUES ($1::smallint, clock_timestamp())
    ON CONFLICT (id) DO UPDATE SET at = excluded.at"""

_A_ROW: Final = "t.xmin::text"
"""No index holds it, so the row itself is read; and unlike a column it is there in every table, and short."""

_PREPARED: Final = "backfill_probe"
_BEGIN: Final = "BEGIN READ ONLY"


class _Latency:
    """What both have in common."""

    every_s = EVERY_S
    quiet_every_s = QUIET_EVERY_S

    def __init__(self, policy: SignalPolicy, clock: Clock) -> None:
        self.policy = policy
        self.asked_at: float | None = None
        self._clock = clock
        self._session: Session

    async def _timed(self, connection: Connection, sql: str, *args: object) -> Measured:
        self.asked_at = started = self._clock.now()
        try:
            await connection.fetch(sql, *args, timeout_s=DEADLINE_S)
            return Measured(self._clock.now() - started)
        finally:
            self.asked_at = None

    async def close(self) -> None:
        """End the session."""
        await self._session.close()


class ReadProbe(_Latency):
    """One indexed read of a random row, heap included.

    ``random_key`` gives a place anywhere in the key space (or None while none is known, which reads the first row); the
    row behind it is read.
    """

    def __init__(
        self,
        policy: SignalPolicy,
        database: Database,
        table: TableName,
        key: Sequence[KeyColumn],
        random_key: Callable[[], KeyValue | None],
        clock: Clock,
    ) -> None:
        super().__init__(policy, clock)
        self._random_key = random_key
        self._anywhere = _next(table, key, _A_ROW)
        self._first = _next(table, key, _A_ROW, first=True)
        self._session = Session(
            database, "read probe", clock=clock, deadline_s=DEADLINE_S, data=True, greet=self._warm_up
        )

    async def read(self) -> Measured:
        """Seconds."""
        return await self._session.use(self._once)

    async def _once(self, connection: Connection) -> Measured:
        key = self._random_key()
        if key is None:
            return await self._timed(connection, self._first)
        return await self._timed(connection, self._anywhere, list(key))

    async def _warm_up(self, connection: Connection) -> None:
        await self._once(connection)


class QueryProbe(_Latency):
    """A query of the user, with the columns of a random existing key as ``$1``, ``$2`` …

    It runs in a read-only transaction, with the search_path of the user's role; what it sets is undone.  The server
    itself finds out the types of its parameters (PREPARE), so that text will do for all of them.
    """

    def __init__(
        self,
        policy: SignalPolicy,
        database: Database,
        query: str,
        table: TableName,
        key: Sequence[KeyColumn],
        random_key: Callable[[], KeyValue | None],
        clock: Clock,
    ) -> None:
        super().__init__(policy, clock)
        self._query = query
        self._random_key = random_key
        self._existing = _next(table, key, texts(key, "t"))
        self._smallest = _next(table, key, texts(key, "t"), first=True)
        self._parameters = 0
        self._session = Session(
            database, "read probe", clock=clock, deadline_s=DEADLINE_S, data=True, greet=self._prepare
        )

    async def read(self) -> Measured:
        """Seconds."""
        return await self._session.use(self._once)

    async def _once(self, connection: Connection) -> Measured:
        arguments = ""
        if self._parameters:
            key = await self._existing_key(connection)
            arguments = f"({', '.join(literal(text) for text in key[: self._parameters])})"
        # One message: a round trip more could hang unseen, and would be measured by nobody.
        call = f"{_BEGIN}; EXECUTE {_PREPARED}{arguments}; ROLLBACK"
        self.asked_at = started = self._clock.now()
        try:
            await connection.execute(call, timeout_s=DEADLINE_S)
            return Measured(self._clock.now() - started)
        except Exception:
            await connection.roll_back()
            raise
        finally:
            self.asked_at = None

    async def _existing_key(self, connection: Connection) -> KeyValue:
        place = self._random_key()
        found = None
        if place is not None:
            found = await connection.fetchval(self._existing, list(place), timeout_s=DEADLINE_S)
        if found is None:  # past the last row, or anywhere is as good
            found = await connection.fetchval(self._smallest, timeout_s=DEADLINE_S)
        if found is None:
            raise ProbeFailed("the table is empty: there is no key for the query's parameters")
        return tuple(found)

    async def _prepare(self, connection: Connection) -> None:
        await make_read_only(connection, DEADLINE_S)
        # Not by execute, which would run whatever follows a semicolon in the query.
        await connection.fetch(f"PREPARE {_PREPARED} AS {self._query}", timeout_s=DEADLINE_S)
        self._parameters = await connection.fetchval(
            "SELECT coalesce(cardinality(parameter_types), 0) FROM pg_prepared_statements WHERE name = $1",
            _PREPARED,
            timeout_s=DEADLINE_S,
        )
        await self._once(connection)


class CommitProbe(_Latency):
    """One row updated and committed, as durably as the server does it for everybody: the application's own commit.

    ``number`` tells processes apart that must not wait for each other's row.
    """

    def __init__(self, policy: SignalPolicy, database: Database, number: int, clock: Clock) -> None:
        super().__init__(policy, clock)
        self._row = number % HEARTBEAT_ROWS
        # A control session: data sessions do not wait for the disk, and would measure nothing.
        self._session = Session(database, "commit probe", clock=clock, deadline_s=DEADLINE_S, greet=self._warm_up)

    async def read(self) -> Measured:
        """Seconds."""
        return await self._session.use(self._once)

    async def _once(self, connection: Connection) -> Measured:
        return await self._timed(connection, _BEAT, self._row)

    async def _warm_up(self, connection: Connection) -> None:
        await self._once(connection)


async def make_read_only(connection: Connection, timeout_s: float) -> None:
    """For queries of the user: nothing is written, and names mean what they mean in the user's own session.

    A default, which a query could change for the next: each query runs in a transaction that says so itself, too.
    """
    await connection.execute("SET default_transaction_read_only = on", timeout_s=timeout_s)
    await connection.fetchval(
        "SELECT set_config('search_path', $1, false)", connection.user_search_path, timeout_s=timeout_s
    )


@asynccontextmanager
async def reading_only(connection: Connection, timeout_s: float) -> AsyncIterator[None]:
    """A transaction that can only read, and whose settings end with it.  After its first query the server refuses to
    let it write, whatever is asked of it.
    """
    await connection.execute(_BEGIN, timeout_s=timeout_s)
    try:
        yield
    finally:
        await connection.roll_back()


def _next(table: TableName, key: Sequence[KeyColumn], wanted: str, *, first: bool = False) -> str:
    """``wanted`` of the row past the key ``$1``; ``first``: of the very first row."""
    where = "" if first else f"WHERE {compare(key, '>', parameter(1), 't')} "
    return f"SELECT {wanted} FROM {qualified(table)} AS t {where}ORDER BY {columns(key, 't')} LIMIT 1"
