"""Workers join and leave while the job runs; no row is written twice and none is left out."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.support.databases import TwoDatabases
from tests.support.runner import UNFINISHED, Nursery
from tests.support.victims import Job

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]


async def test_one_worker_then_eight_then_one(nursery: Nursery, databases: TwoDatabases) -> None:
    """job-iteration#709: changing the number of workers in mid-run skipped rows."""
    job = Job("long count", databases)
    first = await nursery.run(job.spec, workers=1)
    await asyncio.sleep(0.3)
    others = [await nursery.run(job.spec, workers=n, seed=n) for n in (1, 2, 4)]
    await asyncio.sleep(0.8)
    for runner in (first, *others[:2]):
        await runner.speaks()
        runner.signal(signal.SIGTERM)
    for runner in (first, *others[:2]):
        assert await runner.ended() in (0, UNFINISHED), runner.complaint()
    last = await nursery.run(job.spec, workers=1)
    for runner in (others[2], last):
        assert await runner.ended() == 0, runner.complaint() or runner.lines()[-2:]
    job.check()


async def test_many_processes_open_the_same_new_job_at_once(nursery: Nursery, databases: TwoDatabases) -> None:
    job = Job("count", databases)
    runners = [await nursery.run(job.spec, workers=1, seed=n) for n in range(5)]
    for runner in runners:
        assert await runner.ended() == 0, runner.complaint() or runner.lines()[-2:]
    job.check()


async def test_runners_that_are_told_to_stop_again_and_again(nursery: Nursery, databases: TwoDatabases) -> None:
    job = Job("long count", databases)
    code = UNFINISHED
    for turn in range(30):
        runner = await nursery.run(job.spec, workers=2, seed=turn)
        await asyncio.sleep(0.25 if turn < 5 else 5)
        runner.signal(signal.SIGTERM)
        code = await runner.ended()
        assert code in (0, UNFINISHED, -signal.SIGTERM), runner.complaint()  # the last: before it listened
        if code == 0:
            break
    assert code == 0
    job.check()
