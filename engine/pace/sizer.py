"""The chunk sizer: how many rows the next chunk takes, so that no chunk hurts for long.

The law, per committed chunk (T is the target time)::

    rows *= min(1.5, T / p90(server time of recent chunks, each scaled to the present size))
    more than 5 T:             rows / 10 if the last one was as slow (or there is none to compare with), else rows / 2
    a chunk that failed:       rows / 2, at once

and never more rows than ``max_bytes`` holds at the widest recent average row.  Since samples are scaled to the
present size, a correction is never applied twice.  Growth counts from rows really moved: a short last chunk of a span
teaches nothing about a full one and cannot blow the size up.

Only server time is looked at.  A sizer that also saw the wait for admission would shrink the chunk because the chunk
was made to wait, wait the more, and end at its floor (the issue that made this a rule is block/spirit#1072).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from engine.model import Observation

START_ROWS: Final = 1_000
"""First chunk of an unknown table: some milliseconds on anything but very wide rows, and ten chunks from 50,000."""

RECENT: Final = 10
"""Chunks remembered: the fewest of which a 90th percentile leaves one outlier out."""

PERCENTILE: Final = 0.9
GROW_AT_MOST: Final = 1.5
HALVE: Final = 0.5
FAR_TOO_SLOW: Final = 5.0
"""Times the target from which a chunk counts as an accident rather than as a measurement."""

COLLAPSE: Final = 0.1
COMPARABLE: Final = 0.5
"""A chunk of less than this share of the asked size is short: its fixed cost would be scaled up to nonsense."""


class ChunkSizer:
    """Decides the size of one job's chunks (or of one worker's).

    ``target_s``: server seconds a chunk should take.  ``min_rows``, ``max_rows``: bounds of the law.  ``max_bytes``:
    hard limit, which wins over ``min_rows``: of rows of 10 MB a chunk holds one.  ValueError when bounds contradict.
    """

    def __init__(
        self,
        *,
        target_s: float = 0.25,
        min_rows: int = 50,
        max_rows: int = 50_000,
        max_bytes: int = 16 * 1024 * 1024,
        start_rows: int = START_ROWS,
    ) -> None:
        if not 1 <= min_rows <= max_rows:
            raise ValueError(f"rows of a chunk must satisfy 1 <= min <= max, not {min_rows} and {max_rows}")
        if max_bytes < 1:
            raise ValueError(f"bytes of a chunk must be positive, not {max_bytes}")
        self._target_s = _checked_target(target_s)
        self._min_rows = min_rows
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._floor = float(min_rows)  # lower for a while after failures
        self._size = float(min(max(start_rows, min_rows), max_rows))
        self._seconds_per_row: deque[float] = deque(maxlen=RECENT)
        self._bytes_per_row: deque[float] = deque(maxlen=RECENT)
        self._last_was_far_too_slow = False

    @property
    def rows(self) -> int:
        """Rows to ask for: 1..``max_rows``, and not below ``min_rows`` unless bytes or failures demand it."""
        return max(1, int(self._size))

    @property
    def target_s(self) -> float:
        """Server seconds a chunk should take.  Lowering it shrinks the size at once; raising it lets it grow by the
        usual steps.  ValueError unless positive and finite.
        """
        return self._target_s

    @target_s.setter
    def target_s(self, target_s: float) -> None:
        self._target_s = _checked_target(target_s)
        if self._seconds_per_row:
            self._resize(min(self._size, self._fitting()))

    def observe(self, observation: Observation) -> None:
        """Learn from one committed chunk.  Chunks that scanned nothing, and impossible times, teach nothing."""
        scanned, server_s = observation.scanned, observation.server_s
        if scanned <= 0 or not 0 <= server_s < math.inf:
            return
        if observation.bytes > 0:
            self._bytes_per_row.append(observation.bytes / scanned)
        self._floor = min(self._floor * GROW_AT_MOST, self._min_rows)

        # What a full chunk of the present size takes; a short one only says that it takes no less.  A chunk started
        # before the size shrank is scaled down, or it would be taken for an accident.
        comparable = scanned >= COMPARABLE * self._size
        at_this_size_s = server_s * self._size / scanned if comparable else server_s

        if at_this_size_s > FAR_TOO_SLOW * self._target_s:
            self._answer_accident()
            return
        self._last_was_far_too_slow = False
        if not comparable and server_s <= self._target_s:
            self._resize(self._size)
            return
        self._seconds_per_row.append(at_this_size_s / self._size)
        # Several workers may share a sizer: what they started before the last step must not make further steps.
        largest = max(self._size, GROW_AT_MOST * scanned)
        self._resize(min(self._fitting(), self._size * GROW_AT_MOST, largest))

    def failed(self, *, split: bool = True) -> None:
        """A chunk was rolled back.  ``split``: it was too big (timeout, 40001, 40P01, out of memory), so half of it
        is tried next, below ``min_rows`` if need be, or a chunk that never fits would be tried for ever.  Not
        ``split``: it failed for reasons that have nothing to do with its size (connection lost); nothing changes.
        """
        if split:
            half = max(1.0, self._size * HALVE)
            self._floor = min(self._floor, half)
            self._resize(half)

    def _answer_accident(self) -> None:
        # One accident (a checkpoint, a lock) says little about the size; two in a row, or the very first chunk, do.
        # It stays out of the samples: it has been answered, and must not be answered again at the next chunk.
        if self._last_was_far_too_slow or not self._seconds_per_row:
            self._seconds_per_row.clear()
            self._resize(self._size * COLLAPSE)
        else:
            self._resize(self._size * HALVE)
        self._last_was_far_too_slow = True

    def _fitting(self) -> float:
        """Rows that fit into the target at the 90th percentile of recent cost per row; infinite if that is nothing."""
        # Rounded down: of few samples the slowest is left out too, or one outlier would rule the first ten chunks.
        ordered = sorted(self._seconds_per_row)
        slow = ordered[int(PERCENTILE * (len(ordered) - 1))]
        return self._target_s / slow if slow > 0 else math.inf

    def _resize(self, size: float) -> None:
        widest = max(self._bytes_per_row, default=0.0)
        bytes_allow = self._max_bytes / widest if widest > 0 else math.inf
        self._size = max(1.0, min(max(size, self._floor), bytes_allow, float(self._max_rows)))


def _checked_target(target_s: float) -> float:
    if not 0 < target_s < math.inf:
        raise ValueError(f"the target time of a chunk must be positive and finite, not {target_s!r}")
    return target_s
