"""Jobs whose rows pass through Python, under fire: killed anywhere, still exactly once; what a transform rejects is set
aside exactly once.
"""

from __future__ import annotations

import os
import random
import signal
from typing import Final

import pytest

from tests.support.databases import TwoDatabases
from tests.support.runner import Nursery, Process
from tests.support.victims import Job

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

ROUNDS: Final = int(os.environ.get("BACKFILL_FAULT_ROUNDS", "1"))
SEED: Final = int(os.environ.get("BACKFILL_FAULT_SEED", "1"))
LEASE_S: Final = 1.0

WAYS: Final = ("copy", "insert", "count")
EVERYWHERE: Final = (
    "read.before",
    "transform.before",
    "transform.after",
    "write.before",
    "commit.before",
    "commit.after",
)
"""Points that each chunk of each of these jobs passes."""

DEATHS: Final = [
    *((point, f"transformed {way}") for point in ("transform.before", "transform.after") for way in WAYS),
    *((point, "transformed count") for point in ("read.before", "write.before", "commit.before", "commit.after")),
    ("write.middle", "transformed insert"),
    ("transform.after", "transformed later copy"),
    *(("commit.before", f"picky {way}") for way in WAYS),
    ("transform.after", "picky count"),
    ("commit.after", "picky copy"),
]
LONG: Final = [
    *((point, f"transformed {way}") for point in EVERYWHERE for way in WAYS),
    *((point, f"picky {way}") for point in EVERYWHERE for way in WAYS),
    *((point, f"transformed later {way}") for point in EVERYWHERE for way in ("copy", "insert")),
    ("read.first", "transformed copy"),
    ("write.after", "transformed copy"),
    ("boundary.after", "transformed count"),
    ("release.before", "transformed insert"),
]
CASES: Final = [*DEATHS, *(pytest.param(*case, marks=pytest.mark.long) for case in LONG if case not in DEATHS)]


@pytest.mark.parametrize(("point", "kind"), CASES)
async def test_a_process_dies_here_and_the_next_run_goes_on(
    nursery: Nursery, databases: TwoDatabases, point: str, kind: str
) -> None:
    job = Job(kind, databases)
    turn = 1 if point.startswith("release") else 3
    armed = {"BACKFILL_CRASH_AT": f"{point}#{turn}"}
    victim = await nursery.run(job.spec, lease_s=LEASE_S, environment=armed)
    assert await victim.ended() == -signal.SIGKILL, victim.complaint() or victim.lines()[-2:]
    heir = await nursery.run(job.spec, lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    job.check()


@pytest.mark.parametrize("way", WAYS)
async def test_two_processes_die_again_and_again_at_random_turns(
    nursery: Nursery, databases: TwoDatabases, way: str
) -> None:
    job = Job(f"picky {way}", databases)
    rng = random.Random(SEED)
    pairs = 2 * ROUNDS

    async def armed(number: int) -> Process:
        place = f"{rng.choice(EVERYWHERE)}#{rng.randint(1, 4)}"
        return await nursery.run(job.spec, lease_s=LEASE_S, seed=number, environment={"BACKFILL_CRASH_AT": place})

    for number in range(pairs):
        pair = [await armed(2 * number), await armed(2 * number + 1)]
        for process in pair:
            assert await process.ended() in (0, -signal.SIGKILL), process.complaint() or process.lines()[-2:]
    heir = await nursery.run(job.spec, lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    job.check()
