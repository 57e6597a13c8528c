"""What a worker has waited for: also while it still waits."""

from __future__ import annotations

from engine.clock import ManualClock
from engine.flow.waiting import Waits


async def test_a_wait_that_goes_on_counts_as_it_grows() -> None:
    clock = ManualClock(5.0)
    waits = Waits(clock)
    assert waits.totals(clock.now()) == {}
    waits.begin("a span")
    for hour in range(1, 4):
        await clock.advance(3600.0)
        assert waits.totals(clock.now()) == {"a span": 3600.0 * hour}
    waits.end()
    await clock.advance(100.0)
    assert waits.totals(clock.now()) == {"a span": 10800.0}


async def test_only_one_thing_is_waited_for_at_a_time() -> None:
    clock = ManualClock()
    waits = Waits(clock)
    waits.begin("claiming")
    await clock.advance(2.0)
    waits.begin("nothing left")
    await clock.advance(3.0)
    waits.begin("nothing left")
    await clock.advance(4.0)
    waits.end()
    waits.end()
    waits.begin("claiming")
    await clock.advance(0.5)
    assert waits.totals(clock.now()) == {"claiming": 2.5, "nothing left": 7.0}


async def test_the_sums_never_shrink() -> None:
    clock = ManualClock(10.0)
    waits = Waits(clock)
    waits.begin("retry")
    await clock.advance(1.0)
    waits.end()
    waits.begin("retry")
    assert waits.totals(clock.now() - 5.0) == {"retry": 1.0}  # by an older reading of the clock
