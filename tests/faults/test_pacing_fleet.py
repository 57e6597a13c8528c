"""Several processes at one job: one limit, whoever decides it, and whatever becomes of him."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest

from engine.ledger.orders import PaceOrders
from tests.support.databases import FreshDatabase
from tests.support.pacing import Onlooker, filling, listening_to, order
from tests.support.runner import Nursery, Process

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

NAP_S = 0.005
"""Per fifty rows: some 8,000 rows a second and worker, at next to no load."""

LIMIT = 3000.0
PACER = """SELECT os_pid FROM backfill.pacer
            WHERE lease_until > clock_timestamp() AND valid_until > clock_timestamp() AND process IS NOT NULL"""


class Fleet:
    """Two processes at one job, whose rows are counted by the ledger."""

    def __init__(self, processes: list[Process], look: Onlooker) -> None:
        self.processes = {process.pid: process for process in processes}
        self.look = look

    async def rows(self) -> int:
        return int(await self.look.value("SELECT coalesce(sum(scanned), 0) FROM backfill.span"))

    async def pacer(self) -> int | None:
        """The process that paces, and whose decision counts."""
        pid = await self.look.value(PACER)
        return None if pid is None else int(pid)

    async def until_paced_by(self, wanted: Callable[[int], bool], seconds: float = 20.0) -> float:
        began = time.monotonic()
        while (pid := await self.pacer()) is None or not wanted(pid):
            assert time.monotonic() - began < seconds, "nobody paces"
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def rate(self, seconds: float) -> float:
        """Rows a second, over that time."""
        before, began = await self.rows(), time.monotonic()
        await asyncio.sleep(seconds)
        return (await self.rows() - before) / (time.monotonic() - began)


async def fleet(database: FreshDatabase, nursery: Nursery) -> Fleet:
    spec = filling(database, listening_to(), rows=400_000, nap_s=NAP_S)
    processes = [await nursery.run(spec, workers=2, seed=n) for n in range(2)]
    look = await Onlooker.at(database)

    async def workers() -> int:
        if await look.value("SELECT to_regclass('backfill.pacer')") is None:
            return 0
        return int(await look.value("SELECT coalesce(max(workers), 0) FROM backfill.status"))

    deadline = time.monotonic() + 30.0
    while await workers() < 4:
        assert time.monotonic() < deadline, "they did not come up"
        await asyncio.sleep(0.05)
    both = Fleet(processes, look)
    await order(database, PaceOrders(max_rows_per_s=LIMIT))
    limited = "SELECT limit_now_rows_per_s FROM backfill.status"
    while await look.value(limited) != LIMIT:
        assert time.monotonic() < deadline, "nobody follows the order"
        await asyncio.sleep(0.05)
    await asyncio.sleep(2.0)  # so long an order may take to reach every worker
    return both


async def test_a_fleet_keeps_to_one_limit_and_outlives_its_pacer(database: FreshDatabase, nursery: Nursery) -> None:
    both = await fleet(database, nursery)
    assert 0.7 * LIMIT <= await both.rate(5.0) <= 1.1 * LIMIT
    pacer = await both.pacer()
    assert pacer in both.processes
    both.processes[pacer].signal(signal.SIGKILL)
    # What the dead one decided still counts for four seconds, and may not be taken for the successor's.
    took_s = await both.until_paced_by(lambda pid: pid != pacer)
    assert took_s < 8.0
    assert await both.rate(5.0) <= 1.1 * LIMIT
    assert await both.rate(3.0) > 0
    (left,) = (process for pid, process in both.processes.items() if pid != pacer)
    left.signal(signal.SIGTERM)
    await left.ended()


async def test_a_pacer_that_was_frozen_follows_its_successor(database: FreshDatabase, nursery: Nursery) -> None:
    both = await fleet(database, nursery)
    pacer = await both.pacer()
    assert pacer is not None
    frozen = both.processes[pacer]
    frozen.signal(signal.SIGSTOP)
    assert await both.until_paced_by(lambda pid: pid != pacer) < 8.0
    frozen.signal(signal.SIGCONT)
    assert await both.rate(5.0) <= 1.3 * LIMIT, "a bucket gives a second's worth at once to who was silent"
    assert await both.pacer() != pacer
    for process in both.processes.values():
        process.signal(signal.SIGTERM)
    for process in both.processes.values():
        await process.ended()
