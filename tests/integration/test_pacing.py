"""A job and its pace: decisions reach the workers, whoever decides them, and leases outlive every hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from engine.db import Database
from engine.events import ChunkCommitted, LeaseLost, PaceChanged
from engine.ledger.orders import PaceOrders
from engine.ledger.store import Ledger
from engine.model import Side
from engine.pace.law import Decision, SignalPolicy, Situation, Stage
from engine.spec import ChunkLimits
from engine.spec.pacing import Pace
from tests.support.databases import FreshDatabase
from tests.support.jobs import SHORT, Running, in_place, start

ROWS = 60_000


class Scripted:
    """A law that decides what the test says."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.situations: list[Situation] = []
        self.workers = 0

    @property
    def baselines(self) -> Mapping[str, tuple[float, float]]:
        return {}

    def change(self, policies: Sequence[SignalPolicy], workers: int) -> None:
        self.workers = workers

    def step(self, situation: Situation) -> Decision:
        self.situations.append(situation)
        return self.decision

    def make(self, policies: Sequence[SignalPolicy], **_: Any) -> Scripted:
        return self


HELD = Decision(rate_per_s=None, held=True, leads="test", reason="test 2 > 1", stage=Stage.HELD)
FREE = Decision(rate_per_s=None)
SLOW = Decision(rate_per_s=5000.0)


def counting(database: FreshDatabase, rows: int = ROWS, **settings: Any) -> Any:
    database.sql("CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, m int)")
    database.sql(f"INSERT INTO t SELECT g, 0 FROM generate_series(1, {rows}) g; ANALYZE t")
    return in_place(database, "t", {"m": "n + 1"}, **{"chunk": ChunkLimits(min_rows=50, max_rows=200)} | settings)


def done(database: FreshDatabase) -> int:
    return int(database.sql("SELECT count(*) FROM t WHERE m IS NOT NULL"))


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> float:
    """Wait until it holds; how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never came true"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def test_a_held_job_moves_nothing_keeps_its_leases_and_goes_on(database: FreshDatabase) -> None:
    law = Scripted(SLOW)
    running = await start(counting(database), workers=2, make_law=law.make)
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    law.decision = HELD
    await running.until(lambda: any(isinstance(e, PaceChanged) and e.leads == "test" for e in running.events))
    await asyncio.sleep(0.3)  # the chunks in hand
    moved, epochs = running.count(ChunkCommitted), database.sql("SELECT sum(epoch) FROM backfill.span")
    await asyncio.sleep(2 * SHORT.lease_s)
    assert running.count(ChunkCommitted) == moved
    assert database.sql("SELECT sum(epoch) FROM backfill.span") == epochs
    assert running.count(LeaseLost) == 0
    held = database.sql(
        "SELECT count(*) FROM backfill.span WHERE worker IS NOT NULL AND lease_until > clock_timestamp()"
    )
    assert held == "2"
    assert database.sql("SELECT held_by || ': ' || waiting FROM backfill.status") == "test: test 2 > 1"
    law.decision = FREE
    await running.done()
    assert done(database) == ROWS
    assert float(database.sql("SELECT waits->>'test' FROM backfill.status")) > SHORT.lease_s


async def test_workers_are_parked_and_woken(database: FreshDatabase) -> None:
    law = Scripted(Decision(rate_per_s=2000.0, workers=1))
    running = await start(counting(database), workers=3, make_law=law.make)
    await running.until(lambda: running.count(ChunkCommitted) > 20)

    def workers(since: int) -> set[str]:
        return {e.worker for e in running.events[since:] if isinstance(e, ChunkCommitted)}

    assert workers(0) == {"w1"}
    since = len(running.events)
    law.decision = Decision(rate_per_s=2000.0)
    await running.until(lambda: workers(since) == {"w1", "w2", "w3"})
    law.decision = Decision(rate_per_s=2000.0, workers=2)
    await running.until(lambda: running.supervisor.workers[2].waiting == "parked")
    since = len(running.events)
    await asyncio.sleep(1.0)
    assert workers(since) == {"w1", "w2"}
    law.decision = Decision(rate_per_s=None, workers=1)  # parked workers see the end, too
    await running.done()
    assert done(database) == ROWS


async def test_a_target_time_reaches_the_sizers(database: FreshDatabase) -> None:
    law = Scripted(Decision(rate_per_s=1000.0, chunk_target_s=0.005))
    running = await start(counting(database, chunk=ChunkLimits(min_rows=50, max_rows=50_000)), make_law=law.make)
    await running.until(lambda: running.count(ChunkCommitted) > 3)
    assert [w.sizer.target_s for w in running.supervisor.workers] == [0.005]
    law.decision = FREE
    await running.until(lambda: running.supervisor.workers[0].sizer.target_s == 0.25)
    await running.done()


async def order(database: FreshDatabase, change: PaceOrders) -> None:
    connection = await Database(database.dsn, side=Side.TARGET).connect("order")
    try:
        await Ledger(connection).order_pace("job", change)
    finally:
        await connection.close()


async def test_an_order_reaches_every_process_within_two_seconds_and_the_history(database: FreshDatabase) -> None:
    spec = counting(database, rows=400_000)
    await order_and_watch(database, [await start(spec), await start(spec)])


async def order_and_watch(database: FreshDatabase, processes: list[Running]) -> None:
    for running in processes:
        await running.until(lambda running=running: running.count(ChunkCommitted) > 3)
    await order(database, PaceOrders(max_rows_per_s=500.0))
    began = time.monotonic()

    def rates() -> list[float | None]:
        return [p.supervisor._bucket.rate for p in processes]

    await until(lambda: rates() == [250.0, 250.0])
    assert time.monotonic() - began < 2.0
    assert database.sql("SELECT detail->'to'->>'max_rows_per_s' FROM backfill.event WHERE what = 'pace'") == "500"
    assert database.sql("SELECT limit_now_rows_per_s, leads FROM backfill.status") == "500|max_rows_per_s"
    for running in processes:
        await running.drained()


async def test_more_workers_than_there_are_can_be_ordered(database: FreshDatabase) -> None:
    law = Scripted(Decision(rate_per_s=2000.0))
    running = await start(counting(database), workers=1, make_law=law.make)
    await running.until(lambda: running.count(ChunkCommitted) > 3)
    await order(database, PaceOrders(workers=3))
    await running.until(lambda: len(running.supervisor.workers) == 3)
    since = len(running.events)
    await running.until(
        lambda: {e.worker for e in running.events[since:] if isinstance(e, ChunkCommitted)} == {"w1", "w2", "w3"}
    )
    await order(database, PaceOrders(workers=1))
    await running.until(lambda: running.supervisor.workers[2].waiting == "parked")
    law.decision = FREE
    await running.done()
    assert done(database) == ROWS


async def test_a_successor_paces_when_the_pacer_dies(database: FreshDatabase) -> None:
    spec = counting(database, rows=400_000)
    first, second = Scripted(Decision(rate_per_s=1000.0)), Scripted(Decision(rate_per_s=3000.0))
    leader = await start(spec, make_law=first.make)
    await leader.until(lambda: bool(first.situations))
    follower = await start(spec, make_law=second.make)
    await until(lambda: follower.supervisor._bucket.rate == 500.0)
    assert not second.situations
    leader.supervisor.abort()
    leader.task.cancel()
    await asyncio.gather(leader.task, return_exceptions=True)
    # As after SIGKILL: the lease is still there, and nobody renews it.
    database.sql("UPDATE backfill.pacer SET process = gen_random_uuid(), lease_until = clock_timestamp() + '5 seconds'")
    slowest: list[float] = []

    def took_over() -> bool:
        slowest.append(follower.supervisor._bucket.rate or 0.0)
        return bool(second.situations)

    assert await until(took_over, 12.0) < 8.0
    assert min(slowest) < 1.0, "between two pacers nobody's limit counts: the minimum does"
    await until(lambda: (follower.supervisor._bucket.rate or 0.0) >= 1500.0)
    await follower.drained()


async def test_an_expired_decision_is_the_minimum_and_never_no_limit(database: FreshDatabase) -> None:
    running = await start(counting(database, rows=400_000), make_law=Scripted(Decision(rate_per_s=1000.0)).make)
    await running.until(lambda: running.count(ChunkCommitted) > 3)
    other = await database.connect()
    async with other.transaction():
        await other.execute("LOCK backfill.pacer")
        await until(lambda: (running.supervisor._bucket.rate or 1e9) < 1.0, 8.0)
        assert running.supervisor.pace is not None
        assert running.supervisor.pace.reason == "no pacer: at the minimum"
    await until(lambda: running.supervisor._bucket.rate == 1000.0)
    await running.drained()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_job_alone_on_its_server_is_not_limited(database: FreshDatabase, workers: int) -> None:
    running = await start(counting(database, pace=Pace()), workers=workers)
    await running.done()
    stages = {e.stage for e in running.events if isinstance(e, PaceChanged)}
    assert stages == {"alone"}, stages
