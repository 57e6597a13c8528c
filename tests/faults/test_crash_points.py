"""A process dies at every named point; the next run goes on, and every row is right and written once."""

from __future__ import annotations

import signal

import pytest

from engine.crashpoint import POINTS
from tests.support.databases import TwoDatabases
from tests.support.runner import Nursery
from tests.support.victims import Job

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

LEASE_S = 1.0

# Point -> kind of job in which it is reached, and the turn at which the process dies.
DEATHS = {
    "claim.before": [("count", 1), ("count", 2)],
    "claim.after": [("count", 1)],
    "boundary.before": [("count", 1), ("count", 5)],
    "boundary.after": [("count", 6)],
    "read.before": [("copy", 3)],
    "read.first": [("copy", 3)],
    "transform.before": [("transformed copy", 3)],
    "transform.after": [("transformed count", 3)],
    "write.before": [("count", 1), ("count", 7), ("copy", 4)],
    "write.middle": [("copy", 4)],
    "write.after": [("copy", 3)],
    "commit.before": [("copy", 1), ("copy", 5)],
    "commit.after": [("count", 1), ("count", 4), ("copy", 3), ("insert", 3)],
    "quarantine.before": [("bad count", 1)],
    "quarantine.after": [("bad count", 1)],
    "release.before": [("count", 1)],
    "release.after": [("count", 1)],
    "steal.before": [("long count", 1)],
    "steal.after": [("long count", 1)],
    "phase.before": [("insert", 1), ("copy", 1)],
    "phase.after": [("insert", 1), ("copy", 1)],
    "finish.before": [("count", 1), ("insert", 1)],
    "finish.after": [("count", 1)],
}


async def test_every_declared_point_has_its_death() -> None:
    assert set(DEATHS) == set(POINTS)


@pytest.mark.parametrize(
    ("point", "kind", "turn"), [(point, *death) for point, deaths in DEATHS.items() for death in deaths]
)
async def test_a_process_dies_here_and_the_next_run_goes_on(
    nursery: Nursery, databases: TwoDatabases, point: str, kind: str, turn: int
) -> None:
    job = Job(kind, databases)
    armed = {"BACKFILL_CRASH_AT": f"{point}#{turn}"}
    victim = await nursery.run(job.spec, lease_s=LEASE_S, environment=armed)
    assert await victim.ended() == -signal.SIGKILL, victim.complaint() or victim.lines()[-2:]
    heir = await nursery.run(job.spec, lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    job.check()


@pytest.mark.parametrize("kind", ["insert", "copy"])
@pytest.mark.parametrize("point", ["write.before", "write.after", "commit.before", "commit.after"])
async def test_a_process_dies_in_the_sweep_and_the_next_run_goes_on(
    nursery: Nursery, databases: TwoDatabases, point: str, kind: str
) -> None:
    job = Job(kind, databases)
    moved = await nursery.run(job.spec, lease_s=LEASE_S, environment={"BACKFILL_CRASH_AT": "phase.after"})
    assert await moved.ended() == -signal.SIGKILL
    job.source.sql("DELETE FROM src WHERE id % 10 = 0")
    victim = await nursery.run(job.spec, lease_s=LEASE_S, environment={"BACKFILL_CRASH_AT": f"{point}#2"})
    assert await victim.ended() == -signal.SIGKILL, victim.complaint() or victim.lines()[-2:]
    heir = await nursery.run(job.spec, lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    job.check()


async def test_two_deaths_in_a_row_at_the_same_point(nursery: Nursery, databases: TwoDatabases) -> None:
    job = Job("count", databases)
    for _ in range(3):
        victim = await nursery.run(job.spec, lease_s=LEASE_S, environment={"BACKFILL_CRASH_AT": "commit.after#2"})
        assert await victim.ended() == -signal.SIGKILL
    heir = await nursery.run(job.spec, lease_s=LEASE_S)
    assert await heir.ended() == 0
    job.check()
