"""Whether a job will be done by the time its owner promised: told early, while there is something to be done about it.

A deadline never drives the job faster than its signals allow.  It compares what is left with what the present pace
moves in the time that is left, counting only the hours in which the job may run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

TOLERANCE: Final = 0.05
"""Lateness below this share of the time that is left is noise of the forecast."""

OpenSeconds = Callable[[datetime, datetime], float]
"""Seconds between two moments in which the job may run."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """How a job stands to its deadline."""

    late_by_s: float  # working time that is missing at the present pace; 0 in time, infinite when nothing moves
    needed_per_s: float  # rows a second that would still make it; infinite when the time is up

    @property
    def is_late(self) -> bool:
        """True when the deadline cannot be met at the present pace."""
        return self.late_by_s > 0


def always_open(start: datetime, end: datetime) -> float:
    """No windows: every second counts."""
    return max(0.0, (end - start).total_seconds())


def forecast(
    now: datetime, finish_by: datetime, rows_left: float, rows_per_s: float, open_seconds: OpenSeconds = always_open
) -> Forecast:
    """Compare the work that is left with the time that is left.  Datetimes are aware; ``rows_per_s`` is the pace that
    the job has, or may have at most.
    """
    if rows_left <= 0:
        return Forecast(0.0, 0.0)
    left_s = open_seconds(now, finish_by) if finish_by > now else 0.0
    needed_per_s = rows_left / left_s if left_s > 0 else math.inf
    if rows_per_s <= 0:
        return Forecast(math.inf, needed_per_s)
    late_by_s = rows_left / rows_per_s - left_s
    return Forecast(late_by_s if late_by_s > left_s * TOLERANCE else 0.0, needed_per_s)
