"""What tests of pacing share: jobs that are slow without work, somebody else on the server, looks that nobody notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import asyncpg

from engine.db import Database
from engine.events import ChunkCommitted, LeaseLost, PaceChanged
from engine.ledger.orders import PaceOrders
from engine.ledger.store import Ledger
from engine.model import Side
from engine.spec import ChunkLimits, JobSpec
from engine.spec.pacing import Pace
from engine.spec.signals import ALL_OFF, SignalSpec
from tests.support.databases import FreshDatabase
from tests.support.jobs import SHORT, Running, in_place

PATIENCE_S = 20.0
HOLD_S = 2.2 * SHORT.lease_s
"""Longer than two leases: who does not renew has lost them by then."""

OURS = "backfill/onlooker/look"
"""A session of this name is nobody else's, to the job."""

SMALL = ChunkLimits(min_rows=50, max_rows=200)


def listening_to(*signals: SignalSpec, **settings: Any) -> Pace:
    """A pace with these signals and no others."""
    named = {signal.kind for signal in signals}
    return Pace(signals=(*(off for off in ALL_OFF if off.kind not in named), *signals), **settings)


def filling(
    database: FreshDatabase, pace: Pace, *, rows: int = 60_000, table: str = "t", nap_s: float = 0.0, **settings: Any
) -> JobSpec:
    """Make a table, and a job that fills its column ``m`` with ``n + 1``.  Each fiftieth row takes ``nap_s``, which the
    server sleeps: a job may then be slow on an idle machine.
    """
    database.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, m int)")
    database.sql(f"INSERT INTO {table} SELECT g, 0 FROM generate_series(1, {rows}) g; VACUUM ANALYZE {table}")
    if nap_s:
        database.sql(f"""
            CREATE TABLE {table}_naps AS SELECT {nap_s}::float8 AS seconds;
            CREATE FUNCTION {table}_nap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.id % 50 = 0 THEN PERFORM pg_sleep((SELECT seconds FROM public.{table}_naps)); END IF;
                RETURN NEW; END $$;
            CREATE TRIGGER nap BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_nap()""")
    defaults = {"chunk": SMALL, "pace": pace, "accept": ("TRIGGERS_ON_SOURCE",) if nap_s else ()}
    return in_place(database, table, {"m": "n + 1"}, **defaults | settings)


def wrong(database: FreshDatabase, table: str = "t") -> int:
    """Rows that the job has not filled, or filled with something else."""
    return int(database.sql(f"SELECT count(*) FROM {table} WHERE m IS DISTINCT FROM n + 1"))


async def until(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> float:
    """Wait until it holds; how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never came true"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def held(running: Running, by: str) -> str:
    """Wait until the job is held by ``by`` and nothing is in hand any more; gives the reason."""
    supervisor = running.supervisor

    def is_held() -> bool:
        pace = supervisor.pace
        at_rest = supervisor._shared is not None and not supervisor._shared.in_flight
        return pace is not None and pace.held and pace.leads == by and at_rest

    await running.until(is_held)
    assert supervisor.pace is not None
    return supervisor.pace.reason


async def stays_held(running: Running, look: Onlooker, *, seconds: float = HOLD_S) -> None:
    """Nothing moves for so long; every lease is renewed, and none is taken by anybody."""
    spans = "SELECT sum(epoch) FROM backfill.span"
    leases = "SELECT count(*) FROM backfill.span WHERE worker IS NOT NULL AND lease_until > clock_timestamp()"
    moved, epochs = running.count(ChunkCommitted), await look.value(spans)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert running.supervisor.pace is not None
        assert running.supervisor.pace.held, running.supervisor.pace
        assert await look.value(leases) == len(running.supervisor.workers)
        await asyncio.sleep(0.1)
    assert running.count(ChunkCommitted) == moved
    assert running.count(LeaseLost) == 0
    assert await look.value(spans) == epochs


async def goes_on(running: Running, *, chunks: int = 3, seconds: float = PATIENCE_S) -> float:
    """Wait for more chunks; how long that took."""
    moved = running.count(ChunkCommitted)
    return await until(lambda: running.count(ChunkCommitted) >= moved + chunks, seconds)


async def order(database: FreshDatabase, change: PaceOrders) -> None:
    """Change the job's pace as an operator does."""
    connection = await Database(database.dsn, side=Side.TARGET, job="job").connect("order")
    try:
        await Ledger(connection).order_pace("job", change)
    finally:
        await connection.close()


def stages(running: Running) -> list[str]:
    """What the law was doing, in order."""
    return [event.stage for event in running.events if isinstance(event, PaceChanged)]


class Onlooker:
    """Asks a database without being somebody else to a job there."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection

    @classmethod
    async def at(cls, database: FreshDatabase) -> Self:
        """One more session."""
        return cls(await database.connect(server_settings={"application_name": OURS}))

    async def value(self, query: str) -> Any:
        """The one value that the query gives."""
        return await self._connection.fetchval(query)

    async def row(self, query: str) -> Any:
        """The one row that the query gives."""
        return await self._connection.fetchrow(query)


class Somebody:
    """An application: a statement every ``every_s`` while it is there."""

    def __init__(self, database: FreshDatabase, *, every_s: float = 0.05) -> None:
        self._database = database
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        connection = await self._database.connect(server_settings={"application_name": "shop"})
        await connection.fetchval("SELECT 1")
        self._task = asyncio.create_task(self._work(connection))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _work(self, connection: asyncpg.Connection[Any]) -> None:
        while True:
            await connection.fetchval("SELECT count(*) FROM pg_class")
            await asyncio.sleep(self._every_s)
