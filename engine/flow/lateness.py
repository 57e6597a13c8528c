"""``finish_by``: whether the job will be there in time at the pace that it is allowed, told once when it will not."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from engine.clock import Clock
from engine.events import DeadlineLate, Emit
from engine.ledger.records import JobStatus
from engine.pace.deadline import Forecast, forecast
from engine.pace.law import Decision, Stage
from engine.spec.pacing import Pace

FORECAST_EVERY_S: Final = 10.0
FORECAST_MARGIN: Final = 2.0
"""Working time is counted up to so many times what is needed: further on it changes nothing."""

FURTHEST_FORECAST: Final = timedelta(days=400)
"""Nobody's windows are counted beyond."""


class Lateness:
    """Looks ahead now and then, and emits ``DeadlineLate`` when the deadline gets out of reach."""

    def __init__(self, *, clock: Clock, wall: Callable[[], datetime], emit: Emit) -> None:
        self._clock = clock
        self._wall = wall
        self._emit = emit
        self._forecast: Forecast | None = None
        self._forecast_at = float("-inf")
        self._last_pace_per_s: float | None = None  # as last allowed while it moved
        self._was_late = False

    @property
    def late_by_s(self) -> float | None:
        """Seconds after the deadline at which the job will end, by the last forecast; None when it will be in time."""
        return self._forecast.late_by_s if self._forecast is not None and self._forecast.is_late else None

    def look(self, pace: Pace, status: JobStatus | None, decision: Decision, capacity_per_s: float | None) -> None:
        """Take in what was decided; every ten seconds, look ahead.  ``capacity_per_s``: what all workers would do
        without ever waiting, None before the first chunk.
        """
        finish_by, now = pace.finish_by, self._clock.now()
        if finish_by is None or status is None or now - self._forecast_at < FORECAST_EVERY_S:
            return
        wall = self._wall()
        expected = self._expected_per_s(status, decision, capacity_per_s)
        if expected is None and wall < finish_by:
            return  # it has not moved yet, and there is still time
        self._forecast_at = now
        left = max(0.0, status.rows_estimated * (1 - status.progress))
        enough_s = left / expected * FORECAST_MARGIN if expected else 0.0
        self._forecast = forecast(
            wall,
            min(finish_by, wall + FURTHEST_FORECAST),
            left,
            expected or 0.0,
            partial(pace.open_windows.open_s, enough_s=enough_s),
        )
        if self._forecast.is_late and not self._was_late:
            self._emit(DeadlineLate(job=status.job, reason=_reason(finish_by, self._forecast)))
        self._was_late = self._forecast.is_late

    def _expected_per_s(self, status: JobStatus, decision: Decision, capacity_per_s: float | None) -> float | None:
        """Rows a second that the job can be expected to do from now on: while it moves, what it may; while it is held,
        what it did before.  None as long as nobody knows.
        """
        if not decision.held and decision.stage is not Stage.SLOW_START:
            allowed = decision.rate_per_s if decision.rate_per_s is not None else capacity_per_s
            if allowed is not None:
                self._last_pace_per_s = max(status.rows_per_s, allowed)
        return self._last_pace_per_s


def _reason(finish_by: datetime, seen: Forecast) -> str:
    needed = seen.needed_per_s
    return f"finish_by {finish_by:%Y-%m-%d %H:%M %Z} cannot be met at the allowed pace" + (
        f": {math.ceil(needed):,} rows/s are needed" if math.isfinite(needed) else ": the time is up"
    )
