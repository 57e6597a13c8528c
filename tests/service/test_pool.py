"""The pool of a daemon: several jobs of a ledger at once, whoever began them, and what happens to them meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.events import Event, JobFinished
from engine.fleet import pool as pool_module
from engine.fleet.lent import Lent
from engine.fleet.pool import JobLeftAside, Pool
from engine.ledger.store import Ledger
from engine.model import JobState
from engine.spec import Dsn, JobSpec
from engine.spec.pacing import Pace
from engine.spec.signals import ALL_OFF
from tests.support.daemon import put_job
from tests.support.databases import FreshDatabase
from tests.support.jobs import in_place, into, run_to_done
from tests.support.waiting import PATIENCE_S, until

SLOW = Pace(signals=ALL_OFF, max_rows_per_s=40)
"""So slow that no test sees the end of it."""


@pytest.fixture
def shop(database: FreshDatabase) -> FreshDatabase:
    """8 tables of 2,000 orders."""
    for n in range(8):
        database.sql(
            f"CREATE TABLE orders_{n} (id bigint PRIMARY KEY, amount numeric NOT NULL, cents bigint);"
            f"INSERT INTO orders_{n} SELECT g, g / 7.0 FROM generate_series(1, 2000) g;"
        )
    return database


def job(database: FreshDatabase, n: int, **settings: Any) -> JobSpec:
    """The job ``job-N``, of a table of its own."""
    settings = {"name": f"job-{n}", "chunk": {"max_rows": 100}, "workers": 1} | settings
    return in_place(database, f"orders_{n}", {"cents": "(amount * 100)::bigint"}, **settings)


@dataclass(slots=True)
class Running:
    """A pool in this loop, and its events."""

    pool: Pool
    events: list[Event] = field(default_factory=list)

    async def until(self, condition: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
        """Wait until it holds."""
        await until(condition, lambda: (self.pool.working, self.pool.aside, self.events[-5:]), within_s=within_s)

    def finished(self) -> list[str]:
        """The jobs whose work here is over, in order."""
        return [event.job for event in self.events if isinstance(event, JobFinished)]

    async def until_done(self, *jobs: str, within_s: float = PATIENCE_S) -> None:
        """Wait for the good end of those jobs."""
        await self.until(lambda: set(jobs) <= set(self.finished()) - set(self.pool.working), within_s=within_s)
        states = {event.job: event.state for event in self.events if isinstance(event, JobFinished)}
        assert {states[job] for job in jobs} == {JobState.DONE}, self.events[-5:]


@asynccontextmanager
async def running(database: FreshDatabase, **options: Any) -> AsyncIterator[Running]:
    """A pool of four at work on that database while the block runs."""
    events: list[Event] = []
    options = {"jobs": 4, "patient": True, "emit": events.append} | options
    one = Running(Pool(Lent(target=Dsn(database.dsn)), **options), events)
    task = asyncio.create_task(one.pool.run(signals=False))
    try:
        yield one
    finally:
        one.pool.drain("the test is through with it")
        await asyncio.wait_for(task, PATIENCE_S)


async def order(database: FreshDatabase, what: str, name: str) -> None:
    """An order from a terminal."""
    await asyncio.to_thread(database.sql, f"SELECT backfill.{what}('{name}')")


# -- several at once --------------------------------------------------------------------------------------------------


async def test_as_many_jobs_are_worked_at_once_as_there_is_room_for_and_the_oldest_first(shop: FreshDatabase) -> None:
    for n in range(6):
        await put_job(job(shop, n, pace=SLOW))
    async with running(shop) as one:
        await one.until(lambda: len(one.pool.supervisors) == 4)
        assert sorted(one.pool.working) == ["job-0", "job-1", "job-2", "job-3"]
        await asyncio.sleep(0.5)
        assert len(one.pool.working) == 4
        shop.sql("SELECT backfill.pace('job-2', 1000000)")
        await one.until(lambda: "job-4" in one.pool.working)
        assert "job-2" in one.finished()
        assert "job-5" not in one.pool.working


async def test_all_jobs_come_to_their_end_whatever_the_room(shop: FreshDatabase) -> None:
    for n in range(8):
        await put_job(job(shop, n))
    async with running(shop, jobs=3) as one:
        await one.until_done(*(f"job-{n}" for n in range(8)))
        assert one.pool.working == ()
    for n in range(8):
        assert shop.sql(f"SELECT count(*) FROM orders_{n} WHERE cents IS DISTINCT FROM (amount*100)::bigint") == "0"


async def test_a_job_that_comes_later_is_taken_up_at_once(shop: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "POLL_S", 60.0)
    await put_job(job(shop, 0))
    async with running(shop) as one:
        await one.until_done("job-0")
        await put_job(job(shop, 1))
        await one.until_done(
            "job-1",
        )


async def test_a_paused_job_gives_its_place_away_and_comes_back_when_it_is_resumed(
    shop: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "POLL_S", 60.0)
    await put_job(job(shop, 0, pace=SLOW))
    await put_job(job(shop, 1, pace=SLOW))
    async with running(shop, jobs=1) as one:
        await one.until(lambda: one.pool.working == ("job-0",) and one.pool.supervisor is not None)
        await order(shop, "pause", "job-0")
        await one.until(lambda: one.pool.working == ("job-1",))
        await order(shop, "resume", "job-0")
        await asyncio.sleep(0.3)
        assert one.pool.working == ("job-1",)  # who is at work is not driven away
        await order(shop, "cancel", "job-1")
        await one.until(lambda: one.pool.working == ("job-0",))
        shop.sql("SELECT backfill.pace('job-0', 1000000)")
        await one.until_done("job-0")
    assert shop.sql("SELECT state FROM backfill.job WHERE name = 'job-1'") == "cancelled"


async def test_a_job_that_was_removed_meanwhile_is_let_go_without_harm_to_the_others(shop: FreshDatabase) -> None:
    for n in range(2):
        await put_job(job(shop, n, pace=SLOW))
    async with running(shop) as one:
        await one.until(lambda: len(one.pool.supervisors) == 2)
        ledger = await ledger_of(shop)
        await ledger.forget("job-0")
        await one.until(lambda: one.pool.working == ("job-1",))
        shop.sql("SELECT backfill.pace('job-1', 1000000)")
        await one.until_done("job-1")
        assert one.pool.aside == {}
        await ledger.connection.close()


async def test_a_job_that_is_removed_while_it_is_looked_at_does_not_come_back(
    shop: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, ledger = pool_module.inspect, await ledger_of(shop)

    async def inspect(spec: JobSpec, endpoints: Any, **how: Any) -> Any:
        seen = await honest(spec, endpoints, **how)
        await ledger.forget("job-0")
        return seen

    monkeypatch.setattr(pool_module, "inspect", inspect)
    await put_job(job(shop, 0))
    async with running(shop) as one:
        await one.until(lambda: any(isinstance(event, JobLeftAside) for event in one.events))
        assert one.pool.aside == {}
    assert shop.sql("SELECT count(*) FROM backfill.job") == "0"
    assert shop.sql("SELECT count(cents) FROM orders_0") == "0"
    await ledger.connection.close()


async def test_a_job_begun_anew_with_another_meaning_is_never_worked_as_it_was_before(shop: FreshDatabase) -> None:
    """Its name is the same, and what the workers have prepared is not for it."""
    await put_job(job(shop, 0, pace=SLOW))
    async with running(shop) as one:
        await one.until(lambda: len(one.pool.supervisors) == 1)
        ledger = await ledger_of(shop)
        await ledger.forget("job-0")
        shop.sql("UPDATE orders_0 SET cents = NULL")
        await put_job(in_place(shop, "orders_0", {"cents": "-id"}, name="job-0"))
        await one.until(lambda: shop.sql("SELECT state FROM backfill.job") == "done")
        await ledger.connection.close()
    assert shop.sql("SELECT count(*) FROM orders_0 WHERE cents IS DISTINCT FROM -id") == "0"


async def ledger_of(database: FreshDatabase) -> Ledger:
    """A session with the ledger."""
    from engine.db import Database
    from engine.model import Side

    return Ledger(await Database(Dsn(database.dsn), side=Side.TARGET).connect("test"))


# -- left aside -------------------------------------------------------------------------------------------------------


async def test_a_job_that_cannot_be_worked_here_is_left_aside_with_the_reason_and_the_others_go_on(
    shop: FreshDatabase, make_database: Callable[[], FreshDatabase]
) -> None:
    elsewhere = make_database()
    elsewhere.sql("CREATE TABLE orders_0 (id bigint PRIMARY KEY, amount numeric, cents bigint)")
    elsewhere.sql("INSERT INTO orders_0 SELECT g, g FROM generate_series(1, 100) g")
    shop.sql("CREATE TABLE copied (id bigint PRIMARY KEY, amount numeric, cents bigint)")
    await put_job(into(elsewhere, "orders_0", shop, "copied", name="from-elsewhere"))
    await put_job(job(shop, 1))
    async with running(shop) as one:
        await one.until_done("job-1")
        await one.until(lambda: "from-elsewhere" in one.pool.aside)
        assert "source's connection is not known here" in one.pool.aside["from-elsewhere"]
        told = [event for event in one.events if isinstance(event, JobLeftAside)]
        assert [event.job for event in told] == ["from-elsewhere"]


async def test_what_is_left_aside_is_tried_again_soon_when_somebody_does_something_about_it(
    shop: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "POLL_S", 0.2)
    monkeypatch.setattr(pool_module, "ASIDE_S", 3600.0)
    await put_job(job(shop, 0))
    shop.sql("ALTER TABLE orders_0 RENAME TO hidden")
    async with running(shop) as one:
        await one.until(lambda: "job-0" in one.pool.aside)
        shop.sql("ALTER TABLE hidden RENAME TO orders_0")
        await asyncio.sleep(0.5)
        assert "job-0" in one.pool.aside
        await order(shop, "pause", "job-0")
        await order(shop, "resume", "job-0")
        await one.until_done("job-0")
        assert one.pool.aside == {}


async def test_a_bug_in_one_job_takes_no_other_down(shop: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pool_module.inspect

    async def inspect(spec: JobSpec, endpoints: Any, **how: Any) -> Any:
        if spec.name == "job-0":
            raise KeyError("a value of a row")
        return await honest(spec, endpoints, **how)

    monkeypatch.setattr(pool_module, "inspect", inspect)
    for n in range(2):
        await put_job(job(shop, n))
    async with running(shop) as one:
        await one.until_done("job-1")
        assert one.pool.aside["job-0"] == "unexpected KeyError (this is a bug: please report it)"


# -- verification -----------------------------------------------------------------------------------------------------


async def test_a_verification_that_was_begun_elsewhere_is_brought_to_its_end(shop: FreshDatabase) -> None:
    spec = job(shop, 0)
    await run_to_done(spec)
    shop.sql("UPDATE orders_0 SET cents = NULL WHERE id = 7")
    ledger = await ledger_of(shop)
    known = await ledger.job("job-0")
    begun = await ledger.begin_verification(
        known.id, repair=True, delete_extra=False, settle_s=0.1, not_compared=[], target_mark={}
    )
    assert begun is not None
    async with running(shop) as one:
        await one.until_done("job-0")
    assert shop.sql("SELECT state FROM backfill.job") == "done"
    found = await ledger.verification(begun)
    assert (found.mismatched + found.missing, found.repaired) == (1, 1)
    assert shop.sql("SELECT cents FROM orders_0 WHERE id = 7") == "100"
    await ledger.connection.close()


# -- the end ----------------------------------------------------------------------------------------------------------


async def test_an_abort_waits_for_nobody(shop: FreshDatabase) -> None:
    await put_job(job(shop, 0, lock_timeout=60.0, pace=SLOW))
    async with running(shop) as one:
        await one.until(lambda: shop.sql("SELECT count(cents) FROM orders_0") != "0")
        holder = await shop.connect()
        await holder.execute("BEGIN; UPDATE orders_0 SET amount = amount WHERE id > 1000")
        shop.sql("SELECT backfill.pace('job-0', 1000000)")
        await one.until(lambda: shop.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") != "0")
        one.pool.abort()
        began = time.monotonic()
    assert time.monotonic() - began < pool_module.ABORT_S + 10
    await holder.execute("ROLLBACK")


@pytest.mark.timeout(240)
async def test_nothing_is_left_of_two_dozen_jobs(shop: FreshDatabase) -> None:
    """Neither sessions nor tasks; the long form of this is the soak."""
    names = [f"small-{n}" for n in range(24)]
    before = asyncio.all_tasks()
    for n, name in enumerate(names):
        await put_job(job(shop, n % 8, name=name, where=f"id <= {100 * (n // 8 + 1)}"))
    async with running(shop) as one:
        await one.until_done(*names, within_s=150)
        await one.until(lambda: one.pool.working == ())
        sessions = "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        await one.until(lambda: shop.sql(sessions).split() == ["backfill/pool"])
    assert asyncio.all_tasks() == before
