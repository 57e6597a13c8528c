"""The watcher: every probe at its own times, lateness that shows, failures that are readings."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from engine.clock import ManualClock
from engine.pace.law import Reading, SignalPolicy, Unit
from engine.watch import Measured, ProbeFailed, Watcher


@dataclass
class Fake:
    """Answers what it is told to; ``hold`` keeps it waiting."""

    name: str
    clock: ManualClock
    every_s: float = 0.1
    quiet_every_s: float = 0.5
    value: float = 1.0
    error: Exception | None = None
    times_itself: bool = False
    asked_at: float | None = None
    asked: int = 0
    running: int = 0
    closed: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.policy = SignalPolicy(name=self.name, unit=Unit.SECONDS)
        self.gate.set()

    async def read(self) -> Measured:
        assert self.running == 0, "asked while a former question is open"
        self.asked += 1
        self.running += 1
        started = self.clock.now()
        self.asked_at = started if self.times_itself else None
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            return Measured(self.clock.now() - started if self.times_itself else self.value)
        finally:
            self.running -= 1
            self.asked_at = None

    async def close(self) -> None:
        assert self.running == 0, "closed while it is asked"
        self.closed = True


async def watching(clock: ManualClock, *probes: Fake) -> Watcher:
    watcher = Watcher(probes, clock=clock, rng=random.Random(1))
    await watcher.start()
    return watcher


def of(readings: tuple[Reading, ...], name: str) -> list[Reading]:
    return [reading for reading in readings if reading.signal == name]


async def test_each_probe_has_its_own_pace() -> None:
    clock = ManualClock()
    fast, slow = Fake("fast", clock, every_s=0.1), Fake("slow", clock, every_s=1.0)
    watcher = await watching(clock, fast, slow)
    await clock.advance(10.0)
    readings = watcher.take()
    assert len(of(readings, "fast")) in (99, 100, 101)
    assert len(of(readings, "slow")) in (9, 10)
    assert all(reading.value == 1.0 for reading in readings)
    assert [reading.at for reading in readings] == sorted(reading.at for reading in readings)
    assert watcher.take() == ()
    await watcher.close()


async def test_a_probe_that_hangs_delays_no_other_and_is_not_asked_twice() -> None:
    clock = ManualClock()
    hung, other = Fake("hung", clock), Fake("other", clock)
    hung.gate.clear()
    watcher = await watching(clock, hung, other)
    await clock.advance(5.0)
    assert hung.asked == 1
    assert other.asked in (49, 50, 51)
    assert of(watcher.take(), "hung") == []
    await watcher.close()
    assert hung.closed and other.closed


async def test_a_standstill_is_as_many_slow_readings_as_there_would_have_been_questions() -> None:
    clock = ManualClock()
    probe = Fake("latency", clock, times_itself=True)
    watcher = await watching(clock, probe)
    await clock.advance(1.05)
    assert all(reading.value == 0 for reading in watcher.take())
    probe.gate.clear()
    await clock.advance(1.0)
    probe.gate.set()
    await clock.advance(0.01)
    late = [reading for reading in watcher.take() if reading.value]
    assert len(late) in (9, 10, 11)
    values = [reading.value or 0.0 for reading in late]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.1)
    assert values[-1] == pytest.approx(0.95, abs=0.06)
    assert late[0].detail == "not answered yet"
    assert late[-1].detail == ""
    await watcher.close()


async def test_time_so_far_says_nothing_before_it_exceeds_the_last_answer() -> None:
    """A link whose round trip is longer than the interval would look faster than it is."""
    clock = ManualClock()
    probe = Fake("latency", clock, times_itself=True)
    probe.gate.clear()
    watcher = await watching(clock, probe)
    await clock.advance(0.35)
    probe.gate.set()
    await clock.advance(0.0)
    probe.gate.clear()
    (*_, answered) = watcher.take()
    assert answered.detail == ""
    await clock.advance((answered.value or 0.0) - 0.02)
    assert watcher.take() == ()
    await clock.advance(0.3)
    assert all((reading.value or 0) > (answered.value or 0) for reading in watcher.take())
    await watcher.close()


async def test_a_failure_is_a_reading_without_a_value() -> None:
    clock = ManualClock()
    mute, broken = Fake("mute", clock), Fake("broken", clock)
    mute.error = ProbeFailed("standby x is gone")
    broken.error = ValueError("row (secret) is odd")
    watcher = await watching(clock, mute, broken)
    await clock.advance(1.0)
    readings = watcher.take()
    assert {(r.signal, r.value, r.error) for r in readings} == {
        ("mute", None, "standby x is gone"),
        ("broken", None, "unexpected ValueError"),
    }
    mute.error = None
    await clock.advance(0.2)
    assert of(watcher.take(), "mute")[-1].value == 1.0
    await watcher.close()


async def test_it_asks_less_while_it_is_quiet() -> None:
    clock = ManualClock()
    probe = Fake("latency", clock)
    watcher = await watching(clock, probe)
    watcher.set_quiet(True)
    await clock.advance(10.0)
    assert 19 <= len(watcher.take()) <= 22
    watcher.set_quiet(False)
    await clock.advance(10.0)
    assert len(watcher.take()) > 90
    await watcher.close()


async def test_nothing_outlives_close() -> None:
    clock = ManualClock()
    hung, other = Fake("hung", clock), Fake("other", clock)
    hung.gate.clear()
    watcher = await watching(clock, hung, other)
    await clock.advance(0.5)
    await watcher.close()
    assert hung.running == 0
    assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []


async def test_without_anybody_to_ask_nobody_is_known_to_be_alone() -> None:
    watcher = Watcher([], clock=ManualClock(), rng=random.Random(1))
    await watcher.start()
    assert not watcher.alone
    await watcher.close()
