"""The short form of ``make soak``: many small jobs, random orders, and a daemon that is killed in the middle."""

from __future__ import annotations

import pytest

from tests.service.soak import Plan, soak
from tests.support.databases import FreshDatabase


@pytest.mark.timeout(400)
async def test_after_many_jobs_orders_and_a_kill_nothing_is_lost_left_or_grown(database: FreshDatabase) -> None:
    report = await soak(Plan(jobs=40, kills=1, seed=8), database)
    assert report.kills == 1
    assert sum(report.states.values()) == 40
    assert set(report.states) <= {"done", "cancelled"}
    assert set(report.orders) == {"pause", "pace", "cancel", "restart"}
    assert not report.astray  # every job is in the state that the orders say
    assert report.is_right, report
