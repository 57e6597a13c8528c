"""A worker that stands still past its lease: others finish the job, and what it does when it wakes changes nothing."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from tests.support import functions
from tests.support.databases import TwoDatabases
from tests.support.runner import Nursery
from tests.support.victims import ROWS, Job

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

LEASE_S = 1.0
LONG_LEASE_S = 60.0
POINTS = [
    ("count", "write.before#3"),  # about to send a chunk
    ("count", "commit.after#3"),
    ("count", "boundary.after#3"),
    ("insert", "write.before#3"),
    ("copy", "write.middle#3"),  # in the middle of COPY IN, with its keys uncommitted
    ("copy", "write.after#3"),
    ("copy", "commit.before#3"),
    ("copy", "read.first#2"),
    ("transformed copy", "transform.before#3"),
    ("picky count", "transform.after#3"),
    ("picky insert", "commit.before#3"),
]


@pytest.mark.parametrize(("kind", "point"), POINTS)
async def test_the_successor_finishes_while_it_sleeps_and_it_commits_nothing_when_it_wakes(
    nursery: Nursery, databases: TwoDatabases, kind: str, point: str
) -> None:
    job = Job(kind, databases)
    armed = {"BACKFILL_CRASH_AT": point, "BACKFILL_CRASH_BY": "stop"}
    frozen = await nursery.run(job.spec, workers=1, lease_s=LEASE_S, environment=armed)
    await frozen.stopped()
    heir = await nursery.run(job.spec, lease_s=LEASE_S)
    assert await heir.ended(timeout_s=20) == 0, heir.complaint() or heir.lines()[-2:]
    job.check()
    spans = "SELECT * FROM backfill.span ORDER BY id"
    before = job.target.sql(spans)
    frozen.signal(signal.SIGCONT)
    assert await frozen.ended(timeout_s=20) == 0, frozen.complaint() or frozen.lines()[-2:]
    assert job.target.sql(spans) == before
    job.check()


async def test_it_stops_in_the_middle_of_a_statement_that_the_server_goes_on_with(
    nursery: Nursery, databases: TwoDatabases
) -> None:
    """The chunk commits behind its back; it wakes, reads the reply, and must not count what others moved on from."""
    job = Job("count", databases)
    job.source.sql(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.id % 200 = 0 THEN PERFORM pg_sleep(0.1); END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER wait BEFORE UPDATE ON src FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    spec = job.spec.model_copy(update={"accept": ("TRIGGERS_ON_SOURCE",)})
    frozen = await nursery.run(spec, workers=1, lease_s=LEASE_S)
    deadline = time.monotonic() + 20
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'WITH moved%' AND state = 'active'"
    while job.source.sql(running) != "1":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    frozen.signal(signal.SIGSTOP)
    await frozen.stopped()
    heir = await nursery.run(spec, lease_s=LEASE_S)
    assert await heir.ended(timeout_s=20) == 0, heir.complaint() or heir.lines()[-2:]
    frozen.signal(signal.SIGCONT)
    assert await frozen.ended(timeout_s=20) == 0, frozen.complaint() or frozen.lines()[-2:]
    assert job.source.sql("SELECT min(counter), max(counter), count(*) FROM src") == f"1|1|{ROWS}"


async def test_it_stands_still_inside_a_transform_for_longer_than_a_call_may_take(
    nursery: Nursery, databases: TwoDatabases
) -> None:
    job = Job("transformed count", databases)
    spec = job.spec.model_copy(update={"transform": functions.named("stands_still")})
    frozen = await nursery.run(spec, workers=1, lease_s=LONG_LEASE_S, environment={"STANDS_STILL": "4"})
    await frozen.stopped()
    await asyncio.sleep(3.5)  # the limit, and what may pass between two looks
    frozen.signal(signal.SIGCONT)
    assert await frozen.ended(timeout_s=20) == 0, frozen.complaint() or frozen.lines()[-2:]
    job.check()


async def test_what_a_transform_raises_on_waking_stops_no_job_that_others_have_taken_over(
    nursery: Nursery, databases: TwoDatabases
) -> None:
    job = Job("transformed count", databases)
    spec = job.spec.model_copy(update={"transform": functions.named("stands_still")})
    armed = {"STANDS_STILL": "4", "RAISES_ON_WAKING": "1"}
    frozen = await nursery.run(spec, workers=1, lease_s=LEASE_S, environment=armed)
    await frozen.stopped()
    await asyncio.sleep(3.5)  # longer than what could be taken for a call that is late
    heir = await nursery.run(spec, workers=1, lease_s=LEASE_S, environment={"SLOWLY_S": "0.03"})
    deadline = time.monotonic() + 20
    while not any(line.get("taken_over") for line in heir.lines()):
        assert time.monotonic() < deadline and heir.is_running, heir.lines()[-3:]
        await asyncio.sleep(0.05)
    frozen.signal(signal.SIGCONT)
    assert await frozen.ended(timeout_s=20) == 0, frozen.complaint() or frozen.lines()[-2:]
    assert await heir.ended(timeout_s=20) == 0, heir.complaint() or heir.lines()[-2:]
    job.check()
