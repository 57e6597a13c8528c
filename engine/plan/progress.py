"""How far a job is and when it will be done, from where its cursors stand.

Nothing here is counted from the start of a process: a resumed job reports the progress it had, because that follows
from the ledger's cursors and the key space alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from engine.model import KeyValue, Span
from engine.plan.keyspace import KeySpace

SMOOTHING_S: Final = 30.0
"""Rates follow a change to two thirds in this time: slower than a chunk, quicker than patience."""

_PRIOR_SHARE: Final = 0.01  # of the table, by which the first estimate outweighs the first few rows
_ALMOST: Final = 0.9999  # the most that a job with an unfinished span reports
_STANDSTILL_PER_S: Final = 1e-3  # below one row in a quarter of an hour there is no telling when it ends


@dataclass(frozen=True, slots=True)
class Report:
    """Progress as users see it."""

    rows_done: int
    rows_estimated: float  # in all, the done ones included
    progress: float  # 0..1; 1 only when every span is finished
    rows_per_s: float | None  # None before two looks
    eta_s: float | None  # None when done rows do not grow


class Progress:
    """Turns looks at the spans into reports.  ``progress`` never falls from one report of an object to the next.

    ``rows_per_s`` is the rate to begin with, where one is known from before a resume.
    """

    def __init__(self, space: KeySpace, *, rows_per_s: float | None = None, smoothing_s: float = SMOOTHING_S) -> None:
        self._space = space
        self._sizes: dict[tuple[KeyValue | None, KeyValue], float] = {}
        self._done_rate = _Rate(smoothing_s, rows_per_s)
        self._passed_rate = _Rate(smoothing_s, rows_per_s)
        self._progress = 0.0

    def look(self, now_s: float, spans: Iterable[Span], rows_done: int) -> Report:
        """Report on spans that tile the key space, of which ``rows_done`` rows were written, at a monotonic time."""
        total = passed = 0.0
        finished = True
        for span in spans:
            size = self._size(span.lo, span.hi)
            total += size
            if span.is_finished:
                passed += size
                continue
            finished = False
            if span.cursor is not None:
                passed += min(size, self._space.rows_between(span.lo, span.cursor))
        if finished:
            self._progress = 1.0
        elif total > 0:
            self._progress = max(self._progress, min(passed / total, _ALMOST))
        rate = self._done_rate.follow(now_s, rows_done)
        pace = self._passed_rate.follow(now_s, passed)
        remaining = total - passed
        eta = 0.0 if finished else None
        if not finished and pace is not None and pace > _STANDSTILL_PER_S:
            eta = remaining / pace
        # Rows written per row passed, at first taken for one: a selective ``where`` shows as the job goes on.
        prior = _PRIOR_SHARE * total
        share = (rows_done + prior) / (passed + prior) if passed + prior > 0 else 1.0
        estimated = float(rows_done) if finished else rows_done + remaining * share
        return Report(rows_done, estimated, self._progress, rate, eta)

    def _size(self, lo: KeyValue | None, hi: KeyValue) -> float:
        bounds = (lo, hi)
        if bounds not in self._sizes:
            # A span is at least a row, so that progress has a meaning where estimates say "nothing here".
            self._sizes[bounds] = max(1.0, self._space.rows_between(lo, hi))
        return self._sizes[bounds]


class _Rate:
    """An exponentially smoothed rate of a growing count, unbiased from the first interval on."""

    def __init__(self, smoothing_s: float, start_per_s: float | None) -> None:
        self._smoothing_s = smoothing_s
        self._sum = start_per_s or 0.0
        self._weight = 1.0 if start_per_s else 0.0
        self._last: tuple[float, float] | None = None

    def follow(self, now_s: float, count: float) -> float | None:
        """The rate per second after a look at the count; None before there is an interval."""
        if self._last is None:
            self._last = (now_s, count)
        elif now_s > self._last[0]:
            elapsed_s = now_s - self._last[0]
            fade = math.exp(-elapsed_s / self._smoothing_s)
            # A count can step back where a steal moved an estimate; that is no negative work.
            current = max(0.0, count - self._last[1]) / elapsed_s
            self._sum = self._sum * fade + current * (1 - fade)
            self._weight = self._weight * fade + (1 - fade)
            self._last = (now_s, count)
        return self._sum / self._weight if self._weight else None
