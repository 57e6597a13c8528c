"""One signal: from readings to a pressure and a gate.

A gauge's pressure is ``(x - b) / (T - b)``: 0 at the baseline, 1 at the target.  ``x`` is the window's statistic.  When
few or noisy readings make it uncertain by more than a tenth of ``T - b``, ``steady_pressure`` looks back over up to
four windows; the longer it looks, the slower the law may act (``delay_s``).

What accumulates (``SignalPolicy.accumulates``: a lag that the job causes) is led by its growth,
``max(L, L + 10 dL/dt)``, since at the moment it reaches its target the next ten seconds of it are already under way.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Final

from engine.pace.baseline import Baseline
from engine.pace.law import OnFailure, Reading, SignalPolicy, SignalView, Statistic, Unit
from engine.pace.quantity import format_comparison, format_value

QUANTILE: Final = {Statistic.P90: 0.9, Statistic.MEDIAN: 0.5}
LOOK_BACK: Final = 6
"""Windows that ``steady_pressure`` looks back at most."""

CERTAIN: Final = 0.04
"""A value known to this share of the target needs no longer look.  Of the target, not of its distance from the
baseline: two jobs with different baselines must see the same overstepping at the same time, or one gives way more.
"""

NORMAL_ERROR: Final = {Statistic.P90: 2.5, Statistic.MEDIAN: 1.9}
"""Standard error of the quantile of n normal readings, times sqrt(n), in median absolute deviations."""

FEWEST: Final = 5
"""Readings from which order statistics say anything about the uncertainty of a quantile."""

LOOK_AHEAD_S: Final = 10.0
"""Seconds of its own growth that are added to a lag (pacing.md)."""

LEAST_SPAN: Final = 0.2
"""``T - b`` is at least this share of T.  A target below 1.25 times the baseline leaves less than noise to steer by;
taken literally, a job that starts beside another one, which holds the latency at that target, would never start.
"""

REOPENS_AT: Final = 0.9
"""A budget that was breached is open again below this share of its maximum."""

KEPT_S: Final = 20.0
"""Readings are kept at least this long: a baseline is made of the last seconds of a hold."""


class Signal:
    """Window, baseline, target, pressure and gate of one signal.  Pure: it is told the time, in seconds of one
    monotonic clock, and each method may be called at any time that is not before the last one.
    """

    def __init__(self, policy: SignalPolicy) -> None:
        self.policy = policy
        self._readings: deque[tuple[float, float]] = deque()
        self._last_good: tuple[float, float] | None = None
        self._failure = ""  # what the last reading failed with, "" when it was good
        self._detail = ""
        self._breached = False
        self._memory = Baseline(policy.unit)

    def replace(self, policy: SignalPolicy) -> None:
        """Change target or maximum while the job runs.  Window and baseline stay."""
        self.policy = policy

    # ------------------------------------------------------------------------------------------------- readings

    def add(self, reading: Reading) -> None:
        """Take one reading.  A value that is no finite number >= 0 is a failure, whoever sent it; one from before the
        last one is late and ignored.
        """
        value = reading.value
        if value is None or not (math.isfinite(value) and value >= 0):
            self._failure = reading.error or f"not a number that can be: {value}"
            return
        if not math.isfinite(reading.at) or (self._last_good is not None and reading.at < self._last_good[0]):
            return
        self._failure = ""
        self._detail = reading.detail
        self._last_good = (reading.at, value)
        self._readings.append(self._last_good)
        kept_s = max(KEPT_S, LOOK_BACK * self.policy.window_s)
        while self._readings[0][0] < reading.at - kept_s:
            self._readings.popleft()

    def age(self, now: float) -> float | None:
        """Seconds since the last good reading, None before the first."""
        return None if self._last_good is None else max(0.0, now - self._last_good[0])

    def is_stale(self, now: float) -> bool:
        """True when the last good reading is too old to say anything, or there is none."""
        age_s = self.age(now)
        return age_s is None or age_s > self.policy.stale_after_s

    def trouble(self, now: float) -> str:
        """Why the signal cannot be used, for people; "" when it can."""
        if self._failure:
            return f"{self.policy.name}: failed ({self._failure})"
        age_s = self.age(now)
        if age_s is None:
            return f"{self.policy.name}: no reading yet"
        if age_s > self.policy.stale_after_s:
            return f"{self.policy.name}: no reading for {format_value(age_s, Unit.SECONDS)}"
        return ""

    def value(self, now: float) -> float | None:
        """The window's statistic; the last good reading if the window is empty; None when that is stale."""
        if self._last_good is None or self.is_stale(now):
            return None
        values = self._within(now, self.policy.window_s)
        return self._statistic(values) if values else self._last_good[1]

    # ------------------------------------------------------------------------------------------ baseline, target

    @property
    def needs_baseline(self) -> bool:
        """True for a gauge that steers by its distance from a baseline and has none yet."""
        return self.policy.steers and not self.policy.accumulates and self._memory.value is None

    @property
    def baseline(self) -> float | None:
        """What the signal reads without us, None when not known."""
        return self._memory.value

    @property
    def deviation(self) -> float:
        """Median absolute deviation of single readings at the baseline."""
        return self._memory.deviation

    @property
    def baseline_taken_at(self) -> float | None:
        """When the baseline was measured."""
        return self._memory.taken_at

    def learn(self, now: float, since: float, *, anew: bool = False, starved: bool = False) -> bool:
        """Measure the baseline from the readings after ``since``; False, and no change, without any.  ``anew`` and
        ``starved`` as in ``Baseline.take``.
        """
        values = [value for at, value in reversed(self._readings) if since < at <= now]
        if not values or not self.policy.steers or self.policy.accumulates:
            return False
        middle = statistics.median(values)
        deviation = statistics.median(abs(value - middle) for value in values)
        self._memory.take(self._statistic(values), deviation, now, anew=anew, starved=starved)
        return True

    def adopt(self, value: float, deviation: float, now: float) -> None:
        """Take over a baseline that another process measured a moment ago."""
        if math.isfinite(value) and math.isfinite(deviation) and min(value, deviation) >= 0:
            self._memory.take(value, deviation, now, anew=True)

    def count_since(self, since: float) -> int:
        """Good readings after ``since``."""
        return sum(at > since for at, _ in self._readings)

    @property
    def target(self) -> float | None:
        """The target in force: given, or learnt; None for a budget and before the baseline."""
        if self.policy.target is not None:
            return self.policy.target
        return self._memory.target if self.policy.learns else None

    @property
    def misfit(self) -> str:
        """Why the user's target cannot be steered by, for people; "" when it can."""
        target, baseline = self.policy.target, self._memory.value
        if target is None or baseline is None or self.policy.accumulates or target >= baseline / (1 - LEAST_SPAN):
            return ""
        unit, factor = self.policy.unit, 1 / (1 - LEAST_SPAN)
        wanted, found = format_value(target, unit), format_value(baseline, unit)
        return f"{self.policy.name}: target {wanted} is below {factor:g} x the baseline {found}"

    # ----------------------------------------------------------------------------------------------- pressure

    def pressure(self, now: float) -> float | None:
        """Pressure of the last window: 0 at the baseline, 1 at the target.  None when it does not steer, or without
        value or target.
        """
        value = self.value(now)
        return None if value is None else self._pressure_of(self._led(value, now))

    def steady_pressure(self, now: float, since: float) -> tuple[float, float, float] | None:
        """Pressure, its standard error, and the seconds looked back at: one window, or as many as it takes, but not
        beyond ``since``, when the rate was another one.
        """
        if self.pressure(now) is None:
            return None
        window_s = self.policy.window_s
        looked_s, value, error = window_s, self.value(now) or 0.0, 0.0
        for windows in range(1, LOOK_BACK + 1):
            back_s = max(window_s, min(windows * window_s, now - since))
            values = self._within(now, back_s)
            if not values:
                break
            looked_s, value = back_s, self._statistic(values)
            error = max(self._error_of(values), self._error_at_baseline(value, len(values)))
            if error <= CERTAIN * (self.target or 0.0) or back_s < windows * window_s:
                break
        pressure = self._pressure_of(self._led(value, now))
        return None if pressure is None else (pressure, error / self._span(), looked_s)

    def error(self, now: float) -> float:
        """Standard error of ``pressure``; 0 when there are too few readings to say."""
        return self._error_of(self._within(now, self.policy.window_s)) / self._span()

    def room(self, pressure: float) -> float:
        """How many times the present rate would bring ``pressure`` to 1: at least 1, infinite at pressure 0.

        A latency grows like a queue's, ``s / (1 - load)``: its reciprocal falls linearly with the rate.  Anything
        else is taken to grow linearly.
        """
        if pressure >= 1:
            return 1.0
        if pressure <= 0:
            return math.inf
        target, span = self.target or 0.0, self._span()
        if self.policy.unit is not Unit.SECONDS or self.policy.accumulates or target <= span:
            return 1 / pressure
        ratio = target / (target - span)
        return (1 + pressure * (ratio - 1)) / (pressure * ratio)

    def _pressure_of(self, value: float) -> float | None:
        target = self.target
        if target is None:
            return None
        span = self._span()
        return max(0.0, (value - (target - span)) / span)

    def _span(self) -> float:
        target = self.target or 0.0
        baseline = 0.0 if self.policy.accumulates or self._memory.value is None else self._memory.value
        return max(target - baseline, LEAST_SPAN * target) or 1.0

    # -------------------------------------------------------------------------------------------------- gate

    def gate(self, now: float) -> str | None:
        """Why nothing may be admitted, for people; None when this signal lets chunks pass."""
        trouble = self.trouble(now)
        if trouble and self.policy.on_failure is OnFailure.HOLD:
            return trouble
        maximum, value = self.policy.maximum, self.value(now)
        if maximum is None or (value is None and self.policy.on_failure is OnFailure.IGNORE):
            self._breached = False
        elif value is not None:
            self._breached = value > (REOPENS_AT * maximum if self._breached else maximum)
        if not self._breached or maximum is None:
            return None
        if value is None:
            return trouble
        sign = ">" if value > maximum else "not yet below"
        threshold = maximum if value > maximum else REOPENS_AT * maximum
        return f"{self.policy.name} {format_comparison(value, sign, threshold, self.policy.unit)}"

    def view(self, now: float, *, counts: bool = True) -> SignalView:
        """The signal as people see it; without pressure when it does not count now."""
        policy = self.policy
        return SignalView(
            name=policy.name,
            unit=policy.unit,
            value=self.value(now),
            target=self.target,
            maximum=policy.maximum,
            baseline=self._memory.value,
            age_s=self.age(now),
            pressure=self.pressure(now) if counts else None,
            detail=self._detail,
            error=self.trouble(now) or self.misfit,
        )

    # ------------------------------------------------------------------------------------------------ helpers

    def _led(self, value: float, now: float) -> float:
        if not self.policy.accumulates:
            return value
        recent = [(at, v) for at, v in self._readings if at > now - LOOK_AHEAD_S]
        if len(recent) < 2 or recent[-1][0] - recent[0][0] < 1.0:
            return value
        growth_per_s = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
        return max(value, value + LOOK_AHEAD_S * growth_per_s)

    def _within(self, now: float, seconds: float) -> list[float]:
        values: list[float] = []
        for at, value in reversed(self._readings):
            if at <= now - seconds:
                break
            values.append(value)
        return values

    def _statistic(self, values: Sequence[float]) -> float:
        """Of values, the newest first."""
        if self.policy.statistic is Statistic.LAST:
            return values[0]
        quantile = QUANTILE[self.policy.statistic]
        ordered = sorted(values)
        return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]

    def _error_of(self, values: Sequence[float]) -> float:
        """Standard error of the statistic, from the readings that are one standard error of the rank away."""
        quantile = QUANTILE.get(self.policy.statistic)
        if quantile is None or len(values) < FEWEST:
            return 0.0
        ordered = sorted(values)
        last, rank = len(ordered) - 1, quantile * len(ordered) - 0.5
        spread = math.sqrt(quantile * (1 - quantile) * len(ordered))
        return (_at_rank(ordered, min(rank + spread, last)) - _at_rank(ordered, max(rank - spread, 0.0))) / 2

    def _error_at_baseline(self, value: float, count: int) -> float:
        """Standard error from the deviation at the baseline: few readings may look alike by chance."""
        baseline, quantile = self._memory.value, QUANTILE.get(self.policy.statistic)
        if not baseline or quantile is None:
            return 0.0
        return NORMAL_ERROR[self.policy.statistic] * self._memory.deviation * (value / baseline) / math.sqrt(count)


def _at_rank(ordered: Sequence[float], rank: float) -> float:
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)
