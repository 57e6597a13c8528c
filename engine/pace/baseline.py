"""What a signal reads without us: measured, corrected, and the target made from it when the user gave none.

A baseline measured beside another backfill is too high, and a target made from it would let two jobs drive each other
up without end (the late-comer of LEDBAT, RFC 6817 section 4.2).  So what is much lower replaces the baseline at once,
what is near it is blended in, and what is much higher counts only when it starves the job, and even then never beyond
twice the lowest.
"""

from __future__ import annotations

from typing import Final

from engine.pace.law import Unit

MUCH_LOWER: Final = 0.8
MUCH_HIGHER: Final = 1.2
"""A measurement beyond these shares of the baseline is no noise."""

BLENDED: Final = 0.3
"""Weight of a measurement that is near the baseline."""

HIGHEST_GROWTH: Final = 2.0
"""A learnt baseline never exceeds this many times the lowest one.  A foreground that really grew more than that
keeps the job slow, and shows as ``read_latency 9ms > 4ms``: the user may then name a target.
"""

TARGET_RATIO: Final = 1.5
TARGET_DEVIATIONS: Final = 4.0
TARGET_MARGIN: Final = {
    Unit.SECONDS: 0.002,
    Unit.BYTES: 16.0 * 1024 * 1024,
    Unit.BYTES_PER_S: 1024.0 * 1024,
    Unit.RATIO: 0.05,
    Unit.COUNT: 2.0,
}
"""The least room between baseline and learnt target.  2 ms is pacing.md's; the others are as little as people notice
of a thing in that unit.
"""


class Baseline:
    """The baseline of one signal.  Values are in the signal's unit; times are seconds of the law's clock."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._lowest = 0.0
        self._value: float | None = None
        self._deviation = 0.0
        self.taken_at: float | None = None

    @property
    def value(self) -> float | None:
        """The baseline in force, None before the first measurement."""
        return self._value

    @property
    def deviation(self) -> float:
        """Median absolute deviation of single readings."""
        return self._deviation

    @property
    def target(self) -> float | None:
        """``max(1.5 b, b + 4 MAD, b + margin)``, None without a baseline."""
        if self._value is None:
            return None
        return max(
            TARGET_RATIO * self._value,
            self._value + TARGET_DEVIATIONS * self._deviation,
            self._value + TARGET_MARGIN[self._unit],
        )

    def take(self, value: float, deviation: float, now: float, *, anew: bool = False, starved: bool = False) -> None:
        """Learn from one measurement: the window's statistic and the median absolute deviation of its readings.
        ``anew``: the former baseline is of another time.  ``starved``: the job has had next to nothing for a minute.
        """
        before, self.taken_at = self._value, now
        if before is None or anew:
            self._value, self._deviation, self._lowest = value, deviation, value
            return
        self._lowest = min(self._lowest, value)
        if value < MUCH_LOWER * before or (starved and value > before):
            self._value = self._capped(value)
            self._deviation = deviation
        elif value <= MUCH_HIGHER * before:
            self._value = self._capped(before + BLENDED * (value - before))
            self._deviation += BLENDED * (deviation - self._deviation)

    def _capped(self, value: float) -> float:
        return min(value, HIGHEST_GROWTH * self._lowest) if self._lowest > 0 else value
