"""The short form of the stress run; ``make faults`` runs the long one (``python -m tests.faults.stress``)."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from engine.model import Deletes, Mode
from tests.support.databases import TwoDatabases
from tests.support.stress import Plan, stress

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 12
SEED = int(os.environ.get("BACKFILL_FAULT_SEED", "1"))


CASES = {
    "in place": Plan(Mode.UPDATE, rows=60_000, kills=KILLS),
    "in place, our triggers": Plan(Mode.UPDATE, rows=60_000, kills=KILLS, ours=True),
    "insert": Plan(Mode.INSERT, rows=60_000, kills=KILLS),
    "insert, our triggers": Plan(Mode.INSERT, rows=60_000, kills=KILLS, ours=True),
    "copy": Plan(Mode.COPY, rows=60_000, kills=KILLS),
}


@pytest.mark.parametrize("plan", CASES.values(), ids=CASES.keys())
async def test_killed_again_and_again_under_live_traffic_a_job_ends_with_exactly_the_right_rows(
    databases: TwoDatabases, plan: Plan
) -> None:
    report = await stress(replace(plan, seed=SEED, row_delay_s=300e-6), databases)
    assert (report.lost, report.ghosts) == (0, 0)
    assert report.verified is True, report.found
    assert report.kills == KILLS
    assert report.inside >= 0.8  # of twelve; the long form asks for 90 % of fifty
    assert report.near >= 0.3
    assert report.application["races"] > 0
    assert report.claims > KILLS
    if plan.mode is not Mode.UPDATE:
        assert report.swept_by == ("tombstones" if plan.ours else "keys")


async def test_without_the_guard_rows_come_back_and_verification_finds_each_of_them(databases: TwoDatabases) -> None:
    """The same traffic with ``deletes: none``, which is a lie here: what the guard is for, and what proof is for."""
    plan = Plan(Mode.INSERT, rows=60_000, kills=2, writers=2, seed=SEED, row_delay_s=300e-6, deletes=Deletes.NONE)
    report = await stress(plan, databases)
    assert report.lost == 0
    assert report.ghosts > 0, "nothing came back: this run proves nothing"
    assert report.verified is False
    # The application went on for a moment after the verification had seen a row, and may have taken out a ghost.
    assert 0 < report.ghosts <= report.found["extra"]
    assert report.found["mismatched"] == report.found["missing"] == report.found["unsettled"] == 0
