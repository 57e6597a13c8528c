"""What happens to one host's transform, or to a service that it asks, is not the whole job's fate."""

from __future__ import annotations

import asyncio
import time

import pytest

import engine.db.database
from engine.events import ChunkRetried, LeaseLost
from engine.model import JobState
from engine.spec import ChunkLimits
from engine.spec.models import Errors
from tests.support import functions
from tests.support.databases import FreshDatabase
from tests.support.functions import named
from tests.support.jobs import in_place, run, start
from tests.support.runner import Nursery

SMALL = ChunkLimits(min_rows=10, max_rows=400)


def table(database: FreshDatabase, rows: int) -> None:
    database.sql(
        "CREATE TABLE src (id bigint PRIMARY KEY, n int, h bigint);"
        f"INSERT INTO src SELECT g, g FROM generate_series(1, {rows}) g; ANALYZE src"
    )


async def test_an_outage_is_told_from_bad_rows_by_small_batches_too(database: FreshDatabase) -> None:
    table(database, 2000)
    spec = in_place(
        database, "src", {}, transform=named("has_an_outage"), chunk=SMALL, errors=Errors(max_quarantined=5000)
    )
    ran = await run(spec)
    assert ran.result.error is not None and "so it is not the rows" in ran.result.error.message
    assert "then backfill resume, and run again" in ran.result.error.hint
    assert int(database.sql("SELECT count(*) FROM backfill.quarantine")) <= 64


async def test_a_set_up_that_takes_long_is_not_waited_for_by_who_drains(database: FreshDatabase) -> None:
    table(database, 100)
    running = await start(in_place(database, "src", {}, transform=named("slow_to_begin")))
    await running.until(lambda: len(running.supervisor.workers) > 0)
    await asyncio.sleep(0.3)  # by now it is being set up
    began = time.monotonic()
    running.supervisor.drain("told to")
    result = await running.ended()
    assert time.monotonic() - began < 10.0
    assert result.drained and result.state is JobState.RUNNING and result.error is None


async def test_a_host_that_cannot_set_it_up_leaves_the_job_to_others(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(database, 12_000)
    spec = in_place(database, "src", {}, transform=named("needs_a_file"), chunk=SMALL)
    async with Nursery() as nursery:
        sound = await nursery.run(spec, workers=1)
        await sound.speaks()
        broken = await nursery.run(spec, workers=1, environment={"BROKEN_HOST": "1"})
        assert await broken.ended() != 0
        assert "TransformNotReady" in broken.complaint()
        assert await sound.ended() == 0, sound.complaint() or sound.lines()[-2:]
    assert database.sql("SELECT state, (SELECT count(*) FROM src WHERE h IS NULL) FROM backfill.job") == "done|0"
    monkeypatch.setenv("BROKEN_HOST", "1")
    database.sql("UPDATE src SET h = NULL")
    alone = await run(spec.model_copy(update={"name": "alone"}))
    assert alone.result.state is JobState.FAILED, "there is nobody else"
    assert "the set-up's line" in alone.result.error.message  # type: ignore[union-attr]


async def test_what_a_transform_raises_after_its_span_was_lost_does_not_stop_the_job(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a standstill: the lease cannot be trusted any more, and somebody else has the span."""

    def loses_its_span(rows: int) -> None:
        if not lost and running.supervisor.workers[0].rows:
            lost.append(rows)
            running.supervisor.workers[0].confirmed_at = float("-inf")
            database.sql(
                "UPDATE backfill.span SET epoch = epoch + 1, worker = gen_random_uuid(),"
                " lease_until = clock_timestamp() + interval '0.2 s' WHERE worker IS NOT NULL"
            )
            raise ConnectionError

    lost: list[int] = []
    monkeypatch.setattr(functions, "meanwhile", loses_its_span)
    table(database, 2000)
    running = await start(in_place(database, "src", {}, transform=named("looks_away"), chunk=SMALL))
    result = await running.ended()
    assert result.state is JobState.DONE, result.error
    assert lost and running.count(LeaseLost) == 1


async def test_a_transaction_may_stand_idle_for_as_long_as_a_call_may_take(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_when_it_comes_again(rows: int) -> None:
        if rows > 1:
            database.sql("UPDATE src SET n = n + 1 WHERE id = 50")
        else:
            time.sleep(1.5)

    monkeypatch.setattr(engine.db.database, "IDLE_IN_TRANSACTION_TIMEOUT_S", 0.5)
    monkeypatch.setattr(functions, "meanwhile", slow_when_it_comes_again)
    table(database, 400)
    running = await start(in_place(database, "src", {}, transform=named("looks_away")))
    result = await running.ended()
    assert result.state is JobState.DONE, result.error
    assert running.count(ChunkRetried) == 0
    assert database.sql("SELECT count(*) FROM src WHERE h IS DISTINCT FROM n") == "0"
