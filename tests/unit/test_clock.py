"""Time as a parameter: what the clocks promise to everything that waits."""

from __future__ import annotations

import asyncio
import random

import pytest

from engine.clock import ManualClock, SystemClock, jittered


async def test_sleepers_wake_in_the_order_of_their_deadlines_and_at_them() -> None:
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now()))

    tasks = [asyncio.create_task(sleeper(name, s)) for name, s in [("late", 5.0), ("early", 1.0), ("middle", 3.0)]]
    await clock.advance(4.0)
    assert woken == [("early", 1.0), ("middle", 3.0)]
    await clock.advance(1.0)
    assert woken[-1] == ("late", 5.0)
    await asyncio.gather(*tasks)


async def test_a_sleep_that_starts_inside_an_advance_still_ends_in_it() -> None:
    clock = ManualClock(100.0)
    woken: list[float] = []

    async def twice() -> None:
        for _ in range(2):
            await clock.sleep(1.0)
            woken.append(clock.now())

    task = asyncio.create_task(twice())
    await clock.advance(2.5)
    await task
    assert woken == [101.0, 102.0]
    assert clock.now() == 102.5


async def test_a_cancelled_sleeper_does_not_hold_up_the_others() -> None:
    clock = ManualClock()
    cancelled = asyncio.create_task(clock.sleep(1.0))
    other = asyncio.create_task(clock.sleep(1.0))
    await asyncio.sleep(0)
    cancelled.cancel()
    await clock.advance(1.0)
    assert cancelled.cancelled()
    assert other.done()


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_no_time_is_no_wait_on_either_clock(seconds: float) -> None:
    manual = ManualClock(7.0)
    await asyncio.wait_for(manual.sleep(seconds), timeout=1)
    await asyncio.wait_for(SystemClock().sleep(seconds), timeout=1)
    assert manual.now() == 7.0


async def test_the_system_clock_goes_forward_while_it_sleeps() -> None:
    clock = SystemClock()
    before = clock.now()
    await clock.sleep(0.01)
    assert clock.now() - before >= 0.009


def test_jitter_stays_within_its_spread_and_is_the_same_for_the_same_seed() -> None:
    draws = [jittered(10.0, random.Random(seed), spread=0.2) for seed in range(200)]
    assert all(8.0 <= d <= 12.0 for d in draws)
    assert max(draws) - min(draws) > 2.0
    assert jittered(10.0, random.Random(1)) == jittered(10.0, random.Random(1))
