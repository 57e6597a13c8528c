"""The short form of the stress run; ``make faults`` runs the long one (``python -m tests.faults.stress``)."""

from __future__ import annotations

import os

import pytest

from engine.model import Mode
from tests.support.databases import TwoDatabases
from tests.support.stress import Plan, stress

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 12
SEED = int(os.environ.get("BACKFILL_FAULT_SEED", "1"))


@pytest.mark.parametrize("mode", list(Mode))
async def test_killed_again_and_again_under_live_traffic_a_job_ends_with_exactly_the_right_rows(
    databases: TwoDatabases, mode: Mode
) -> None:
    report = await stress(Plan(mode, rows=60_000, kills=KILLS, writers=1, seed=SEED, row_delay_s=300e-6), databases)
    assert (report.lost, report.ghosts) == (0, 0)
    assert report.kills == KILLS
    assert report.inside >= 0.8  # of twelve; the long form asks for 90 % of fifty
    assert report.near >= 0.3
    assert report.application["races"] > 0
    assert report.claims > KILLS
