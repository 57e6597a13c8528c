"""How the rate moves: additive increase, multiplicative decrease, slow start, and what keeps the loop stable.

Rules 1 to 5 of pacing.md, with two changes that its simulator asked for:

- **Slow start knows where it is going.**  It does not double until a fixed pressure; every feedback delay it goes a
  part of the way to the rate that the signals predict for pressure 1 (``Signal.room``), at most doubling.  A latency
  that explodes late is not overshot, and one that rises early does not leave the rest to the additive increase.
- **Noise is no pressure.**  A pressure counts as far as it is certain: each decision is taken with the standard error
  of the statistic on the careful side, and a decrease needs the pressure to be over 1 in the median of three.

Additive increase and multiplicative decrease are what lets jobs that know nothing of each other come to equal shares
(Chiu and Jain, 1989); the step is a share of what the job could do, not of what it does.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Final

START_SHARE: Final = 0.03
"""The first rate, as a share of the fastest."""

STEP_SHARE: Final = 0.02
"""Additive increase per second at pressure 0, as a share of the fastest rate."""

STABLE_GAIN: Final = 0.5
"""Bound of ``step * delay * dP/dR``: half of what makes the loop swing."""

SLOW_START_PART: Final = 0.6
"""Of the way to the predicted rate; the rest is for noise and for predictions that are wrong."""

SLOW_START_ENDS: Final = 0.8
"""Pressure from which there is nothing left to hurry for."""

SLOW_START_AGAIN: Final = 0.25
"""Pressure below which, for some time after the last jump has shown, so much is free that slow start is due again."""

EASY_DELAYS: Final = 1.5
"""How long that is, in delays.  The draft says two; readings that are unsteady make a delay long as it is."""

FASTEST_GROWTH: Final = 2.0
UNSURE_GROWTH: Final = 1.4
"""Of a slow start that does not know: the standard error of the pressure alone could be a pressure of 1."""

DEEPEST_CUT: Final = 0.5
HEADROOM: Final = 1.25
"""A limit that holds nobody back is kept at this many times what is used ..."""

IDLE_DECAY_S: Final = 60.0
"""... and comes down to it with this time constant."""

WINDOWS: Final = 3

USUAL_DELAY_S: Final = 4.0

JUMP: Final = 1.25
"""A change by this factor makes earlier readings useless; smaller ones are averaged over."""

RETRY_SHARE: Final = 0.5
"""After an overshoot, slow start ends at this share of the rate at which it happened."""

USUAL_DEVIATION: Final = 0.22
"""How far the pressure strays from 1 when all is well: what differs more is signal, what is less certain is noise."""

LONG_RAMP: Final = 1.5
"""A slow start that multiplied the rate by this much shows dP/dR."""

STEEPER: Final = 2.0
"""A latency's dP/dR at the target is about this many times the mean of the way there."""

LEAST_PRESSURE: Final = 0.1
"""Pressures below are noise: a slope is not taken to be smaller than what such a one would show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What moves the rate, once a second or so."""

    now: float
    elapsed_s: float
    pressure: float  # over as many windows as it takes to be certain
    error: float = 0.0  # its standard error
    certain: float = 0.0  # of the last window alone, less two standard errors
    room: float = math.inf  # how many times the present rate would reach pressure 1
    sure_room: float = math.inf  # the same, with the standard error on the careful side
    delay_s: float = 4.0  # until a change of the rate shows in the pressure
    fastest_per_s: float | None = None  # what the job could do without a limit; None: not known yet
    binding: bool = False
    used_per_s: float = 0.0
    frozen: bool = False  # a signal that counts has no usable reading: no increase


class Rate:
    """The rate of one job, in rows per second.  ``least_per_s`` is what it never falls below."""

    def __init__(self, least_per_s: float) -> None:
        self._least = least_per_s
        self.per_s = least_per_s
        self.slow_start = True
        self.jumped_at = -math.inf  # last change that shows: what was read before says little about now
        self._ramp: tuple[float, float] | None = None  # rate and pressure at the beginning of a slow start
        self._slope = 0.0  # dP/dR at the target, as far as a ramp has shown
        self._recent: deque[float] = deque(maxlen=WINDOWS)
        self._cut_at = -math.inf
        self._cut_factor = 1.0
        self._easy_s = 0.0
        self._threshold = math.inf  # above, slow start has overshot before

    def restart(self, rate_per_s: float, now: float) -> None:
        """Begin a slow start from ``rate_per_s``."""
        self.per_s = max(self._least, rate_per_s)
        self.slow_start = True
        self.jumped_at = now
        self._ramp = None
        self._recent.clear()
        self._easy_s = 0.0

    def cut(self, factor: float, now: float, delay_s: float) -> None:
        """Multiply the rate by ``factor``, unless it was cut as deeply, or more, less than a delay ago."""
        if now - self._cut_at < delay_s and factor >= self._cut_factor:
            return
        if self.slow_start:
            self._threshold = RETRY_SHARE * self.per_s
        self.per_s = max(self._least, self.per_s * factor)
        self._cut_at, self._cut_factor = now, factor
        if factor < 1 / JUMP:
            self.jumped_at = now

    def move(self, tick: Tick) -> None:
        """One tick of rules 2 to 5."""
        self._recent.append(max(tick.pressure, tick.certain))
        over = statistics.median_low(self._recent)
        if over > 1 and len(self._recent) == WINDOWS:
            excess = max((over - 1) * _trust(tick.error), tick.certain - 1)
            self._end_ramp(over)
            if tick.now - self._cut_at >= tick.delay_s:
                self.cut(max(DEEPEST_CUT, 1 - excess), tick.now, tick.delay_s)
            self.slow_start = False
            self._easy_s = max(0.0, self._easy_s - tick.elapsed_s)
        elif tick.frozen:
            return
        elif not tick.binding:
            self._decay(tick)
        elif tick.now - self._cut_at >= tick.delay_s and self._recent[-1] <= 1:
            self._increase(tick, self._recent[-1])

    def _decay(self, tick: Tick) -> None:
        floor = max(self._least, START_SHARE * (tick.fastest_per_s or 0.0), HEADROOM * tick.used_per_s)
        if self.per_s > floor:
            self.per_s = floor + (self.per_s - floor) * math.exp(-tick.elapsed_s / IDLE_DECAY_S)

    def _increase(self, tick: Tick, pressure: float) -> None:
        self._consider_slow_start(tick, pressure)
        if self.slow_start and tick.now - self.jumped_at >= tick.delay_s:
            growth = min(self._growth(tick), self._threshold / self.per_s)
            self.slow_start = pressure < SLOW_START_ENDS and growth > 1
            if self.slow_start:
                self._ramp = self._ramp or (self.per_s, pressure)
                self.per_s *= growth
                self.jumped_at = tick.now
            else:
                self._end_ramp(pressure)
        if not self.slow_start and tick.fastest_per_s is not None:
            step = STEP_SHARE * tick.fastest_per_s * min(1.0, USUAL_DELAY_S / tick.delay_s)
            if (slope := self._present_slope(tick, pressure)) > 0:
                step = min(step, STABLE_GAIN / (slope * tick.delay_s))
            self.per_s += step * max(0.0, 1 - pressure) * _trust(tick.error) * tick.elapsed_s

    @staticmethod
    def _growth(tick: Tick) -> float:
        """How many times the rate a slow start dares next.  Readings too unsteady to say are no reason to end it."""
        sure = 1 + SLOW_START_PART * (tick.sure_room - 1)
        hopeful = 1 + SLOW_START_PART * (tick.room - 1)
        return min(FASTEST_GROWTH, hopeful, max(sure, UNSURE_GROWTH))

    def _end_ramp(self, pressure: float) -> None:
        """Learn dP/dR from a slow start.  Not from steady times: there other jobs move along, each would take the
        others' moves for its own, and the smallest would become the most timid.
        """
        if self._ramp is not None and self.per_s >= LONG_RAMP * self._ramp[0]:
            self._slope = STEEPER * max(0.0, pressure - self._ramp[1]) / (self.per_s - self._ramp[0])
        self._ramp = None

    def _present_slope(self, tick: Tick, pressure: float) -> float:
        """dP/dR as the last ramp showed it, or less: the whole rate cannot have caused more pressure than there is.  A
        ramp that a stall of the disk has ended shows a slope that is not there.
        """
        most = STEEPER * max(pressure + tick.error, LEAST_PRESSURE) / self.per_s
        return min(self._slope, most)

    def _consider_slow_start(self, tick: Tick, pressure: float) -> None:
        """Seconds in which it was easy count for a slow start, others against it: a stall now and then delays it, and
        does not prevent it.
        """
        if self.slow_start or tick.now - self.jumped_at < tick.delay_s:
            self._easy_s = 0.0
        elif pressure < SLOW_START_AGAIN:
            self._easy_s += tick.elapsed_s
        else:
            self._easy_s = max(0.0, self._easy_s - tick.elapsed_s)
        if self._easy_s >= EASY_DELAYS * tick.delay_s:
            self.restart(max(self.per_s, START_SHARE * (tick.fastest_per_s or 0.0)), tick.now)
            self._threshold = math.inf


def _trust(error: float) -> float:
    """Share of a deviation of the pressure that is believed, given its standard error."""
    return USUAL_DEVIATION**2 / (USUAL_DEVIATION**2 + error**2)
