"""Somebody works on a verification that was cancelled meanwhile: whatever he still does changes nothing of the next one."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import Callable

import asyncpg
import pytest

from engine.db import Database
from engine.fleet import LocalVerification
from engine.ledger import Ledger
from engine.ledger.proof import Seen
from engine.model import Phase, Side, SpanBounds
from engine.spec import ChunkLimits, JobSpec
from tests.support.databases import FreshDatabase
from tests.support.jobs import UNPACED, into, prepare, run_to_done
from tests.support.runner import Nursery

pytestmark = [pytest.mark.faults]

ROWS = 4_000
WRONG = 3_000
MAKE = f"""
CREATE TABLE src (id bigint PRIMARY KEY, n int NOT NULL);
CREATE TABLE dst (id bigint PRIMARY KEY, n int NOT NULL);
INSERT INTO src SELECT g, g FROM generate_series(1, {ROWS}) g;
ANALYZE src;
"""
COMPARED = "SELECT coalesce(sum(rows), 0) FROM backfill.span WHERE phase = 'verify'"
OPTIONS = {"repair": False, "settle_s": 0.2}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def spoilt(database: FreshDatabase) -> JobSpec:
    """A job that is done, slow to verify, and wrong in most rows; none of the first thousand."""
    database.sql(MAKE)
    spec = into(database, "src", database, "dst", chunk=ChunkLimits(min_rows=50, max_rows=100))
    await run_to_done(spec)
    database.sql(f"UPDATE dst SET n = -1 WHERE id > {ROWS - WRONG}")
    return spec.model_copy(update={"pace": UNPACED.model_copy(update={"max_rows_per_s": 1000})})


async def test_a_verification_that_nobody_has_begun_to_compare_does_not_pass(database: FreshDatabase) -> None:
    spec = await spoilt(database)
    async with Nursery() as nursery:
        sleeper = await nursery.run(spec, workers=1, verify=OPTIONS)
        await until(lambda: int(database.sql(COMPARED)) > 200)
        sleeper.signal(signal.SIGSTOP)
        await sleeper.stopped()
        database.sql("SELECT backfill.cancel('job')")
        await LocalVerification(spec, settle_s=0.2)._begin(await prepare(spec))  # begun, and nothing more
        sleeper.signal(signal.SIGCONT)
        await sleeper.ended(60)
    assert database.sql("SELECT coalesce(outcome, 'runs') FROM backfill.verification WHERE id = 2").strip() != "passed"


async def test_a_process_of_a_verification_that_is_over_takes_nothing_from_the_next(database: FreshDatabase) -> None:
    spec = await spoilt(database)
    async with Nursery() as nursery:
        sleeper = await nursery.run(spec, workers=1, verify=OPTIONS)
        await until(lambda: int(database.sql(COMPARED)) > 200)
        sleeper.signal(signal.SIGSTOP)
        await sleeper.stopped()
        database.sql("SELECT backfill.cancel('job')")
        task = asyncio.create_task(LocalVerification(spec, settle_s=0.2).run())
        second = " AND (SELECT verification_id FROM backfill.job) = 2"
        await until(lambda: int(database.sql(COMPARED + second)) > 0)
        sleeper.signal(signal.SIGCONT)
        await task
        await sleeper.ended(60)
    found = database.sql("SELECT mismatched, rows, outcome FROM backfill.verification WHERE id = 2").strip()
    assert found == f"{WRONG}|{ROWS}|mismatch"


async def test_fences_of_two_verifications_are_never_alike(database: FreshDatabase) -> None:
    spec = await spoilt(database)
    spec = spec.model_copy(update={"pace": UNPACED})
    seen: set[str] = set()
    for _ in range(2):
        await LocalVerification(spec, settle_s=0.01).run()
        fences = database.sql("SELECT id, epoch, hi FROM backfill.span WHERE phase = 'verify'").splitlines()
        assert seen.isdisjoint(fences)
        seen |= set(fences)


async def test_the_ledger_fences_whoever_records_for_a_verification_that_is_over(database: FreshDatabase) -> None:
    await spoilt(database)
    connection = await Database(database.dsn, side=Side.TARGET, job="job").connect("test")
    ledger = Ledger(connection)
    job = await ledger.job("job")

    async def begin() -> int:
        number = await ledger.begin_verification(job.id, repair=False, settle_s=0, not_compared=(), target_mark=None)
        assert number is not None
        assert not await ledger.finish_verification(job.id, "job", Phase.VERIFY), "nothing was compared"
        assert await ledger.open_phase(job.id, Phase.VERIFY, [SpanBounds(None, (str(ROWS),), ROWS)])
        return number

    old = await begin()
    database.sql("SELECT backfill.cancel('job')")
    new = await begin()
    claim = await ledger.claim(job.id, str(uuid.uuid4()), (), 15.0)
    assert claim is not None
    seen = [Seen(("4000",), "changed", "1", "1")]
    with pytest.raises(asyncpg.PostgresError) as refused:
        await ledger.record_suspects(old, seen, job.id, claim.span, ("4000",), rows=1, scanned=1)
    assert refused.value.sqlstate == "BF001"
    await ledger.record_suspects(new, seen, job.id, claim.span, ("4000",), rows=1, scanned=1)
    assert database.sql("SELECT verification_id FROM backfill.difference").strip() == str(new)
    await connection.close()
