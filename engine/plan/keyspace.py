"""The key space: where a key lies among the estimated rows of a table, and which key lies at a row number.

It is a curve through known points, rows spread evenly between them.  Points come from the leading column's histogram
and most common values; or from probes of the index; or there are only the first and the last key.  Where one leading
value holds many rows the curve has a step, and a key space of the remaining columns may be put inside it.

All of it is estimate.  A wrong one costs balance: spans of unequal size, a progress bar that hurries and dawdles.  It
never costs rows, because bounds are existing keys and the source server compares them.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine._native import keyspace as kernel
from engine.model import Key, KeyValue, SpanBounds
from engine.plan.codes import Codes, codec_for, kind_of, to_codes, to_numbers

__all__ = ["KeySpace", "kind_of"]

SAMPLED_ROWS_PER_BUCKET: Final = 300
"""ANALYZE reads 300 rows for each bucket of the histogram; what lies before the first of them and after the last is
one part in as many of the table, on average."""

_EXACT_KINDS: Final = ("int", "uuid", "bool", "enum")  # a code tells all of the value
_MISREAD_KINDS: Final = ("text", "opaque")  # whose order may differ from the server's

Point = tuple[KeyValue, float]
"""A key (or its leading columns) and the estimated number of rows up to and with it."""


class KeySpace:
    """Positions of keys among a table's rows.

    ``rows`` is the estimate for the whole table, ``low`` and ``high`` its first and last key (None: it is empty).
    ``histogram`` and ``common`` are the leading column's, as in ``engine.plan.questions.ColumnStatistics``; ``points``
    are keys in the server's order and take the place of a histogram.  ``tail`` are points after the last bound of the
    histogram, whose row counts start there: rows that came since the histogram was made.
    """

    def __init__(
        self,
        key: Key,
        *,
        rows: float,
        low: KeyValue | None,
        high: KeyValue | None,
        histogram: Sequence[str] = (),
        common: Sequence[tuple[str, float]] = (),
        points: Sequence[Point] = (),
        tail: Sequence[Point] = (),
    ) -> None:
        self.key = key
        self.rows = max(rows, 1.0) if low is not None and high is not None else 0.0
        self.low = low
        self.high = high
        self._inner: dict[int, KeySpace] = {}
        if low is None or high is None:
            return
        marks = [*(key_[0] for key_, _ in points), *histogram, *(key_[0] for key_, _ in tail)]
        values = [value for value, _ in common]
        fractions = [fraction for _, fraction in common]
        self._kind = key.columns[0].kind
        self._codec = codec_for(key.columns[0], [low[0], *marks, high[0]], values)
        self._texts: dict[int, str] = {}
        of_others = self.rows * max(0.0, 1.0 - sum(fractions))
        counts = [count for _, count in points] or _histogram_counts(len(histogram), of_others, tail)
        edge = 0.0 if points or len(histogram) < 2 else of_others / (SAMPLED_ROWS_PER_BUCKET * len(histogram))
        curve, along = self._through(low[0], marks, high[0], counts, edge)
        if values:
            curve, along = self._with_common(curve, along, values, fractions)
        self._curve = curve
        self._along = _scaled(along, self.rows)
        self._marks = to_numbers(curve), self._along.tolist()  # the curve as it is before holes are known
        self._holes: set[tuple[int, int]] = set()
        if points:
            self._put_points_inside(points)
        if low[0] == high[0] and len(key.columns) > 1 and not self._inner:
            self.refine(low[0], KeySpace(self._rest(), rows=self.rows, low=low[1:], high=high[1:]))

    @classmethod
    def from_spans(cls, key: Key, spans: Sequence[SpanBounds], *, first: KeyValue | None = None) -> KeySpace:
        """The key space that a plan's spans describe: what a resumed job knows without asking the source again.

        ``spans`` tile the key space in order; ``first`` is the first key, else the first span's rows are taken to sit
        at its upper bound.
        """
        if not spans:
            return cls(key, rows=0, low=None, high=None)
        low = first or spans[0].lo or spans[0].hi
        ends = itertools.accumulate(span.rows for span in spans)
        points = [(low, 0.0), *((span.hi, end) for span, end in zip(spans, ends, strict=True))]
        return cls(key, rows=points[-1][1], low=low, high=spans[-1].hi, points=points)

    def refine(self, value: str, inner: KeySpace) -> None:
        """Put ``inner``, a key space of the remaining columns, inside the step of one leading value."""
        if inner.rows:
            self._inner[self._number(value)] = inner

    def exclude(self, holes: Sequence[tuple[KeyValue, KeyValue]]) -> None:
        """Take note that no key lies between the two of each pair: the rows around a hole move together.

        Pairs of neighbouring keys; one that is not a hole changes nothing.
        """
        if not self.rows:
            return
        ends = [(self._number(left[0]), self._number(right[0])) for left, right in holes]
        # From the marks anew: rows between two of them move across all holes that are known by now.
        self._holes.update((left, right) for left, right in ends if left < right)
        points = _without_holes(*self._marks, sorted(self._holes))
        self._curve = to_codes([number for number, _ in points])
        self._along = _scaled(np.array([count for _, count in points]), self.rows)

    def open_middles(self, guesses: Sequence[KeyValue]) -> list[KeyValue]:
        """The middle of the widest stretch without a known hole, in the histogram's bucket around each guess."""
        if not self.rows:
            return []
        numbers, along = to_numbers(self._curve), self._along.tolist()
        marks, _ = self._marks
        middles: set[int] = set()
        for place in {bisect.bisect_right(marks, self._number(guess[0])) for guess in guesses}:
            if not 0 < place < len(marks):
                continue
            start = bisect.bisect_left(numbers, marks[place - 1])
            end = bisect.bisect_left(numbers, marks[place])
            widths = [(numbers[i + 1] - numbers[i], i) for i in range(start, end) if along[i + 1] > along[i]]
            width, widest = max(widths, default=(0, 0))
            if width > 1:
                middles.add(numbers[widest] + width // 2)
        return [(value,) for value in self._decode(to_codes(sorted(middles)))] if middles else []

    def rows_with(self, value: str) -> float:
        """Estimated rows that have ``value`` in the leading column; 0 where nothing is known of it."""
        below, upto = self._locate(value)
        return upto - below

    def position(self, key: KeyValue) -> float:
        """Estimated number of rows up to ``key`` (or up to its leading columns, all their rows included)."""
        if not self.rows:
            return 0.0
        below, upto = self._locate(key[0])
        if upto == below or len(key) == 1:
            return upto
        inner = self._inner.get(self._number(key[0]))
        share = inner.position(key[1:]) / inner.rows if inner else 0.5
        return below + share * (upto - below)

    def rows_between(self, lo: KeyValue | None, hi: KeyValue) -> float:
        """Estimated rows in ``(lo, hi]``; ``lo`` None is the beginning of the table."""
        return max(0.0, self.position(hi) - (0.0 if lo is None else self.position(lo)))

    def guess(self, rows: float) -> KeyValue:
        """A key near that row number, or only its leading columns: the first existing key at or after it is meant."""
        return self.guesses(np.array([rows], dtype=np.float64))[0]

    def guesses(self, targets: NDArray[np.float64]) -> list[KeyValue]:
        """A guess for each target, as ``guess`` makes it.  They rise as the targets do."""
        if not self.rows:
            raise ValueError("an empty table has no keys to guess")
        codes = kernel.invert(self._curve, self._along, targets)
        leading = self._decode(codes)
        if not self._inner:
            return [(value,) for value in leading]
        steps = zip(*kernel.locate(self._curve, self._along, codes), strict=True)
        result: list[KeyValue] = []
        for number, value, (below, upto), target in zip(to_numbers(codes), leading, steps, targets, strict=True):
            inner = self._inner.get(number)
            if inner is None:
                result.append((value,))
                continue
            share = (target - below) / (upto - below) if upto > below else 0.0
            result.append((value, *inner.guess(min(max(share, 0.0), 1.0) * inner.rows)))
        return result

    def boundaries(self, spans: int) -> list[KeyValue]:
        """Guesses that cut the rows into so many equal spans: ``spans - 1`` of them, fewer where some coincide."""
        targets = np.arange(1, spans, dtype=np.float64) * (self.rows / spans)
        return list(dict.fromkeys(self.guesses(targets))) if self.rows else []

    def split(self, lo: KeyValue | None, hi: KeyValue) -> KeyValue:
        """A guess for the middle row of ``(lo, hi]``, between the two as far as this side can tell.

        The split point is the first existing key at or after it; when that is not between ``lo`` and ``hi``, there is
        nothing to halve.  ``hi`` itself comes back where no value lies between.
        """
        lo = lo or self.low or hi
        if len(lo) > 1 and len(hi) > 1 and lo[0] == hi[0]:
            inner = self._inner.get(self._number(hi[0])) or KeySpace(self._rest(), rows=2, low=lo[1:], high=hi[1:])
            return (hi[0], *inner.split(lo[1:], hi[1:]))
        if not self.rows:
            return hi
        guess = self.guess((self.position(lo) + self.position(hi)) / 2)
        first, middle, last = (self._number(key[0]) for key in (lo, guess, hi))
        if first < middle < last or (len(guess) > 1 and first <= middle <= last and guess not in (lo, hi)):
            return guess
        if last - first > 1:
            return (self._decode(to_codes([first + (last - first) // 2]))[0],)
        return hi[:1] if len(hi) > 1 else hi

    def density(self, lo: KeyValue | None, hi: KeyValue) -> float | None:
        """Rows per integer in ``(lo, hi]`` of a key that is one integer column; None for any other key."""
        if len(self.key.columns) != 1 or self.key.columns[0].kind != "int" or self.low is None:
            return None
        width = int(hi[0]) - (int(self.low[0]) - 1 if lo is None else int(lo[0]))
        return self.rows_between(lo, hi) / width if width > 0 else None

    def code_width(self, lo: KeyValue, hi: KeyValue) -> float:
        """The distance of two leading values in units of this space's codes: comparable only with another of it."""
        return float(max(0, self._number(hi[0]) - self._number(lo[0])))

    def rises(self, first: KeyValue, second: KeyValue) -> bool:
        """True unless the second key's leading value seems to come before the first's."""
        return self._number(first[0]) <= self._number(second[0])

    def between(self, lo: KeyValue, hi: KeyValue, shares: Sequence[float]) -> list[KeyValue]:
        """Leading values at these shares (0..1) of the way from ``lo`` to ``hi``; rows do not matter."""
        first, last = self._number(lo[0]), self._number(hi[0])
        numbers = sorted({first + int((last - first) * Fraction(share)) for share in shares} - {first, last})
        return [(value,) for value in self._decode(to_codes(numbers))] if numbers else []

    def _rest(self) -> Key:
        return Key(self.key.columns[1:], self.key.index)

    def _number(self, value: str) -> int:
        return to_numbers(self._codec.encode([value]))[0]

    def _decode(self, codes: Codes) -> list[str]:
        texts = self._codec.decode(codes)
        if self._texts:  # decoding loses what the code had no room for: where the value is known, take it whole
            texts = [self._texts.get(number, text) for number, text in zip(to_numbers(codes), texts, strict=True)]
        return texts

    def _locate(self, value: str) -> tuple[float, float]:
        below, upto = kernel.locate(self._curve, self._along, self._codec.encode([value]))
        return float(below[0]), float(upto[0])

    def _through(
        self, low: str, marks: Sequence[str], high: str, counts: Sequence[float], edge: float
    ) -> tuple[Codes, NDArray[np.float64]]:
        """The curve from ``low`` over the marks, which have so many rows up to them, to ``high``; ``edge`` rows lie
        outside the marks at either end.
        """
        first, *placed, last = to_numbers(self._codec.encode([low, *marks, high]))
        last = max(first, last)
        # Marks that seem to lie before earlier ones are misread, or the statistics are: they tell nothing.
        rising = _longest_rising(placed)
        numbers = [placed[i] for i in rising]
        if self._kind not in _EXACT_KINDS:
            self._texts = {last: high, **{placed[i]: marks[i] for i in reversed(rising)}, first: low}
        if not numbers:
            return to_codes([first, last]), np.array([0.0, 1.0])
        if self._kind in _MISREAD_KINDS:
            first, last = min(first, numbers[0]), max(last, numbers[-1])
        along = np.array([counts[i] for i in rising])
        # Ends that the marks do not reach are added; marks outside the ends are of rows deleted since, and are cut off.
        curve = to_codes(numbers)
        (before, _), (_, after) = (kernel.locate(curve, along, to_codes(ends)) for ends in ([first], [last]))
        start = float(before[0]) if first > numbers[0] else counts[0] - edge * (first < placed[0])
        end = float(after[0]) if last < numbers[-1] else counts[-1] + edge * (last > placed[-1])
        kept = [
            (n, c) for n, c in zip(numbers, along.tolist(), strict=True) if first <= n <= last and start <= c <= end
        ]
        points = [(first, start), *kept, (last, end)]
        return to_codes([n for n, _ in points]), np.array([count - start for _, count in points])

    def _with_common(
        self, curve: Codes, along: NDArray[np.float64], values: Sequence[str], fractions: Sequence[float]
    ) -> tuple[Codes, NDArray[np.float64]]:
        """Add a step for each common value to the curve of the others."""
        first, last = to_numbers(curve[[0, -1]])
        steps: dict[int, float] = {}
        for number, text, fraction in zip(to_numbers(self._codec.encode(values)), values, fractions, strict=True):
            if first <= number <= last:
                steps[number] = steps.get(number, 0.0) + fraction
                if self._kind not in _EXACT_KINDS:
                    self._texts.setdefault(number, text)
        of_others = max(0.0, 1.0 - sum(fractions))
        scale = of_others / along[-1] if along[-1] > 0 else 0.0
        numbers = sorted({*to_numbers(curve), *steps})
        below, upto = kernel.locate(np.ascontiguousarray(curve), along * scale, to_codes(numbers))
        points: list[tuple[int, float]] = []
        passed = 0.0
        for number, before, with_it in zip(numbers, below.tolist(), upto.tolist(), strict=True):
            step = steps.get(number, 0.0)
            points.append((number, before + passed))
            if step or with_it > before:
                points.append((number, with_it + passed + step))
            passed += step
        return to_codes([number for number, _ in points]), np.array([count for _, count in points])

    def _put_points_inside(self, points: Sequence[Point]) -> None:
        """Where several points share their leading value, the rest of them describes what is inside its step."""
        if len(self.key.columns) == 1:
            return
        for value, group in itertools.groupby(points, key=lambda point: point[0][0]):
            inside = [(key[1:], count) for key, count in group if len(key) > 1]
            if len(inside) > 1 and inside[-1][1] > inside[0][1]:
                start = inside[0][1]
                shifted = [(rest, count - start) for rest, count in inside]
                rows = shifted[-1][1]
                low, high = shifted[0][0], shifted[-1][0]
                self.refine(value, KeySpace(self._rest(), rows=rows, low=low, high=high, points=shifted))


def _longest_rising(numbers: Sequence[int]) -> list[int]:
    """Indexes of the longest sequence, not necessarily without gaps, that never falls."""
    ends: list[int] = []  # the least number that a sequence of each length can end with
    ends_at: list[int] = []
    before: list[int] = []
    for i, number in enumerate(numbers):
        length = bisect.bisect_right(ends, number)
        before.append(ends_at[length - 1] if length else -1)
        ends[length : length + 1] = [number]
        ends_at[length : length + 1] = [i]
    result: list[int] = []
    i = ends_at[-1] if ends_at else -1
    while i >= 0:
        result.append(i)
        i = before[i]
    return result[::-1]


def _without_holes(
    numbers: Sequence[int], along: Sequence[float], holes: Sequence[tuple[int, int]]
) -> list[tuple[int, float]]:
    """The curve through codes and row counts with each segment's rows spread over what is no hole in it."""
    points = [(numbers[0], along[0])]
    waiting = iter([*holes, (numbers[-1], numbers[-1])])
    left, right = next(waiting)
    for start, end, below, upto in zip(numbers, numbers[1:], along, along[1:], strict=False):
        inside: list[tuple[int, int]] = []
        while left < end:
            from_, to = max(left, inside[-1][1] if inside else start), min(right, end)
            if from_ < to:
                inside.append((from_, to))
            if right > end:  # the rest of this hole lies in the next segment
                break
            left, right = next(waiting)
        settled = end - start - sum(to - from_ for from_, to in inside)
        passed = start
        rows = below
        for from_, to in inside if settled > 0 else []:
            rows += (upto - below) * ((from_ - passed) / settled)
            points += [(from_, rows), (to, rows)]
            passed = to
        points.append((end, upto))
    return points


def _scaled(along: NDArray[np.float64], rows: float) -> NDArray[np.float64]:
    """Row counts in proportion, the last being ``rows``; spread evenly where none of them differs from zero."""
    if along[-1] <= 0:
        return np.linspace(0.0, rows, len(along))
    scaled: NDArray[np.float64] = np.minimum(along * (rows / along[-1]), rows)
    scaled[-1] = rows
    return scaled


def _histogram_counts(bounds: int, rows: float, tail: Sequence[Point]) -> list[float]:
    """Row counts at a histogram's bounds and at the points of the tail, of ``rows`` in all."""
    if not bounds:
        return [count for _, count in tail]
    in_tail = tail[-1][1] if tail else 0.0
    per_bucket = max(rows - in_tail, 0.0) / max(bounds - 1, 1)
    last = per_bucket * (bounds - 1)
    return [*(per_bucket * i for i in range(bounds)), *(last + count for _, count in tail)]
