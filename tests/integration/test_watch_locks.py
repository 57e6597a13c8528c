"""Whoever waits for us longer than allowed goes first."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from engine.clock import SystemClock
from engine.db import Connection, Database
from engine.model import Side
from engine.pace.law import SignalPolicy, Unit
from engine.watch import Measured
from engine.watch.locks import LockWaits
from engine.watch.session import Session
from tests.support.databases import FreshDatabase, on_each_major

pytestmark = on_each_major

CLOCK = SystemClock()


class Scene:
    """One table, a session of the job in the middle of a chunk, and probes."""

    def __init__(self, database: FreshDatabase, job: str = "job") -> None:
        database.sql("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1), (2, 2)")
        self.database = database
        self.job = job
        self.said: list[str] = []
        self.chunk: asyncio.Future[str] | None = None
        self.ours: Connection | None = None

    def at(self, user: str = "postgres", job: str | None = None) -> Database:
        dsn = self.database.dsn.replace("postgres@", f"{user}@")
        return Database(dsn, side=Side.TARGET, job=self.job if job is None else job)

    def probe(self, maximum: float | None, user: str = "postgres", job: str | None = None) -> LockWaits:
        policy = SignalPolicy(name="lock_waits", unit=Unit.SECONDS, maximum=maximum)
        session = Session(self.at(user, job), "watch", clock=CLOCK, deadline_s=2.0)
        return LockWaits(policy, session, self.job if job is None else job, self.said.append)

    async def begin_chunk(self) -> None:
        """Locks row 1 and works on."""
        self.ours = await self.at().connect("worker 1")
        await self.ours.execute("BEGIN; UPDATE t SET v = 0 WHERE id = 1".replace(" t ", " public.t "))
        self.chunk = asyncio.ensure_future(self.ours.fetch("SELECT pg_sleep(60)"))

    async def somebody_waits(self) -> asyncio.Future[str]:
        connection = await self.database.connect(server_settings={"application_name": "shop"})
        waiting = asyncio.ensure_future(connection.execute("UPDATE t SET v = 7 WHERE id = 1"))
        async with asyncio.timeout(10):
            while self.database.sql("SELECT count(*) FROM pg_locks WHERE NOT granted AND waitstart IS NOT NULL") != "1":
                await asyncio.sleep(0.02)
        return waiting

    async def end(self) -> None:
        if self.ours is not None and self.chunk is not None:
            self.ours.abort()
            await asyncio.gather(self.chunk, return_exceptions=True)


async def beyond(probe: LockWaits, value: float) -> Measured:
    for _ in range(200):
        measured = await probe.read()
        if measured.value > value:
            return measured
        await asyncio.sleep(0.02)
    raise AssertionError("nobody waits")


async def test_a_chunk_that_somebody_waits_for_too_long_is_cancelled(database: FreshDatabase) -> None:
    scene = Scene(database)
    patient, strict = scene.probe(maximum=60.0), scene.probe(maximum=0.3)
    assert (await strict.read()).value == 0
    await scene.begin_chunk()
    assert (await strict.read()).value == 0
    waiting = await scene.somebody_waits()
    measured = await beyond(patient, 0.3)
    assert measured.detail.endswith("shop waits for us")
    assert scene.chunk is not None and not scene.chunk.done() and scene.said == []
    await beyond(strict, 0.3)
    with pytest.raises(asyncpg.QueryCanceledError):
        await scene.chunk
    assert len(scene.said) == 1
    assert "shop waited" in scene.said[0]
    assert scene.ours is not None
    await scene.ours.roll_back()
    assert await waiting == "UPDATE 1"
    assert (await strict.read()).value == 0
    await scene.ours.close()
    for probe in (patient, strict):
        await probe.close()


async def test_another_jobs_chunk_is_not_ours_to_cancel(database: FreshDatabase) -> None:
    scene = Scene(database)
    await scene.begin_chunk()
    waiting = await scene.somebody_waits()
    for job in ("jo", "job2", "other"):
        probe = scene.probe(maximum=0.0, job=job)
        assert (await probe.read()).value == 0
        await probe.close()
    assert scene.said == []
    await scene.end()
    assert await waiting == "UPDATE 1"


async def test_those_who_wait_for_others_are_none_of_our_business(database: FreshDatabase) -> None:
    scene = Scene(database)
    holder = await database.connect()
    await holder.execute("BEGIN; UPDATE t SET v = 0 WHERE id = 1")
    idle = await scene.at().connect("worker 1")
    waiting = await scene.somebody_waits()
    probe = scene.probe(maximum=0.0)
    assert (await probe.read()).value == 0
    await holder.execute("COMMIT")
    await waiting
    await probe.close()
    await idle.close()


async def test_our_own_worker_that_waits_for_another_is_nobody(database: FreshDatabase) -> None:
    scene = Scene(database)
    await scene.begin_chunk()
    second = await scene.at().connect("worker 2")
    waiting = asyncio.ensure_future(second.execute("UPDATE public.t SET v = 7 WHERE id = 1"))
    async with asyncio.timeout(10):
        while database.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") != "1":
            await asyncio.sleep(0.02)
    probe = scene.probe(maximum=0.0)
    assert (await probe.read()).value == 0
    await scene.end()
    await waiting
    await second.close()
    await probe.close()


async def test_a_role_that_sees_nobodys_state_still_sees_who_waits(database: FreshDatabase) -> None:
    """What another role's session waits for is hidden in pg_stat_activity; the locks are not."""
    name = f"plain_{database.name}"
    scene = Scene(database)
    database.sql(f'CREATE ROLE "{name}" LOGIN')
    try:
        await scene.begin_chunk()
        waiting = await scene.somebody_waits()
        probe = scene.probe(maximum=60.0, user=name)
        await beyond(probe, 0.1)
        await probe.close()
        await scene.end()
        await waiting
    finally:
        database.sql(f'DROP ROLE "{name}"')


async def test_a_long_name_is_cut_and_still_ours(database: FreshDatabase) -> None:
    scene = Scene(database, job="a" * 63)
    await scene.begin_chunk()
    waiting = await scene.somebody_waits()
    probe = scene.probe(maximum=60.0)
    await beyond(probe, 0.1)
    await scene.end()
    await waiting
    await probe.close()
