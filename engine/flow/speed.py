"""How fast one worker is: as it could be, and as it was just now."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final

SPEED_CHUNKS: Final = 5
"""Chunks of which the median is a worker's speed."""

RATE_WINDOW_S: Final = 3.0
SLOWEST_PER_S: Final = 0.01
"""A rate below is none: the average of one that stands still only fades."""


class Speed:
    """Rows scanned per second, of one worker that began at ``now``."""

    def __init__(self, now: float) -> None:
        self._seconds_per_row: deque[float] = deque(maxlen=SPEED_CHUNKS)  # without waiting for admission
        self._is_warm = False  # the first chunk pays for plans and cold pages
        self._rate = 0.0
        self._rate_at = now
        self._rows_since = 0

    def moved(self, rows: int, busy_s: float = 0.0) -> None:
        """Rows are done.  ``busy_s``: what they took without waiting for admission; 0: it says nothing about speed."""
        if rows and busy_s > 0:
            if not self._is_warm and len(self._seconds_per_row) == 1:
                self._is_warm = True
                self._seconds_per_row.clear()
            self._seconds_per_row.append(busy_s / rows)
        self._rows_since += rows

    @property
    def per_s(self) -> float | None:
        """When it never waits for admission; None before the first chunk."""
        return 1 / statistics.median(self._seconds_per_row) if self._seconds_per_row else None

    def rate(self, now: float) -> float:
        """As it was since the last call, and a little before."""
        elapsed_s = now - self._rate_at
        if elapsed_s > 0:
            fresh = self._rows_since / elapsed_s
            weight = min(1.0, elapsed_s / RATE_WINDOW_S)
            self._rate += (fresh - self._rate) * weight
            self._rate_at, self._rows_since = now, 0
        return self._rate if self._rate >= SLOWEST_PER_S else 0.0
