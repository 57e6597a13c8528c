"""What is made of a foreground's latencies and a backfill's commits: windows, recovery, capacity.  Pure."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from bench.openloop import Answers, Floats

WINDOW_S: Final = 3.0
"""The same window that a latency target is for."""

SLIDE_S: Final = 1.0
TAIL: Final = 0.99
CALM_WINDOWS: Final = 5
"""So many windows in a row within the limit count as being back under it: one may be luck."""

ONSET_S: Final = 10.0
"""Trouble that begins within this time of a step is the step's."""

RATE_WINDOW_S: Final = 5
"""Seconds over which a backfill's rate is averaged: chunks commit in lumps."""


def tails(answers: Answers, start: float, end: float) -> tuple[Floats, Floats]:
    """The p99 of every window of ``WINDOW_S`` within ``[start, end]``, one a second: (their ends, p99 in seconds).

    An interval shorter than a window is one window.  A window in which nothing was due has no p99 and is left out.
    """
    width = min(WINDOW_S, end - start)
    ends: list[float] = []
    found: list[float] = []
    if width <= 0:
        return np.empty(0), np.empty(0)
    for number in range(1 + int((end - start - width) / SLIDE_S + 1e-9)):
        window_end = start + width + number * SLIDE_S
        low, high = np.searchsorted(answers.due_at, (window_end - width, window_end))
        if high > low:
            ends.append(window_end)
            found.append(float(np.quantile(answers.latency_s[low:high], TAIL, method="higher")))
    return np.array(ends), np.array(found)


def share_within(answers: Answers, start: float, end: float, limit_s: float) -> float:
    """The share of the windows whose p99 is within the limit; NaN without a window."""
    _, found = tails(answers, start, end)
    return float(np.mean(found <= limit_s)) if len(found) else math.nan


def back_under_s(ends: Floats, found: Floats, limit_s: float, after: float) -> float:
    """Seconds from ``after`` until the p99 is within the limit and stays there for ``CALM_WINDOWS`` windows.

    A window counts when it ends, so the slowest transactions are ``WINDOW_S`` old by then.  0 when it did not leave
    within ``ONSET_S``; infinite when it did not come back as far as can be seen.
    """
    when, calm = ends[ends > after] - after, found[ends > after] <= limit_s
    left = np.flatnonzero(~calm & (when <= ONSET_S))
    if len(left) == 0:
        return 0.0
    for index in range(int(left[0]), len(calm) - CALM_WINDOWS + 1):
        if calm[index : index + CALM_WINDOWS].all():
            return float(when[index])
    return math.inf


def rate_per_second(at: Floats, rows: Floats, start: float, end: float) -> Floats:
    """Rows committed in each whole second of ``[start, end)``."""
    seconds = max(0, int(end - start + 1e-9))
    counted, _ = np.histogram(at, bins=seconds, range=(start, start + seconds), weights=rows) if seconds else ([], None)
    return np.asarray(counted, dtype=np.float64)


def regained_s(rates: Floats, wanted_per_s: float) -> float:
    """Seconds until the average rate of ``RATE_WINDOW_S`` reaches what is wanted; ``rates`` begins at the moment from
    which time counts.  Infinite when it does not.
    """
    if wanted_per_s <= 0:
        return 0.0
    for end in range(RATE_WINDOW_S, len(rates) + 1):
        if rates[end - RATE_WINDOW_S : end].mean() >= wanted_per_s:
            return float(end)
    return math.inf


def declared_target_s(baseline_p99_s: float) -> float:
    """What the foreground's p99 may be beside a backfill, made of what it is without one, before anything else runs."""
    return max(3 * baseline_p99_s, baseline_p99_s + 0.010)
