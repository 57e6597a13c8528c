"""Time and randomness as parameters, so that everything that waits can be tested without waiting.

No other module calls ``time.monotonic``, ``asyncio.sleep`` or ``random`` directly.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic time in seconds, and a way to let it pass."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; the zero is arbitrary."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` (at once when zero or negative)."""
        ...


class SystemClock:
    """The real clock."""

    def now(self) -> float:
        """Seconds of ``time.monotonic``."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """``asyncio.sleep``, never negative."""
        await asyncio.sleep(max(0.0, seconds))


class ManualClock:
    """A clock that a test moves by hand; sleepers wake in the order of their deadlines."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._serial = 0

    def now(self) -> float:
        """The time that ``advance`` has reached."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until ``advance`` passes the deadline."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._serial += 1
        self._sleepers.append((self._now + seconds, self._serial, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move time by ``seconds``, waking each sleeper at its own deadline and letting it run."""
        end = self._now + seconds
        while True:
            await _settle()
            self._sleepers = [s for s in self._sleepers if not s[2].done()]
            due = min((s for s in self._sleepers if s[0] <= end), default=None)
            if due is None:
                break
            self._sleepers.remove(due)
            self._now = max(self._now, due[0])
            due[2].set_result(None)
        self._now = end
        await _settle()


async def _settle(rounds: int = 10) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0)


def jittered(seconds: float, rng: random.Random, spread: float = 0.3) -> float:
    """``seconds`` times a factor drawn evenly from ``1 ± spread``, so that workers do not march in step."""
    return seconds * rng.uniform(1 - spread, 1 + spread)
