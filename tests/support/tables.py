"""A table in memory that answers the planner's questions, for tests that need no server."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from engine.model import Key, KeyColumn, KeyValue
from engine.plan.questions import (
    Answer,
    ColumnStatistics,
    EstimateRows,
    ExistingKeys,
    FirstKey,
    LastKey,
    Question,
    Sample,
    Samples,
    Statistics,
)

HISTOGRAM_BUCKETS = 100


def key_of(*kinds: str, labels: Sequence[str] = ()) -> Key:
    """A key of columns a, b, c … of these kinds."""
    return Key(
        tuple(
            KeyColumn(name, kind, 0, kind, enum_labels=tuple(labels)) for name, kind in zip("abcd", kinds, strict=False)
        ),
        "pkey",
    )


class TableInMemory:
    """Rows are keys of typed values; ``read`` turns one column's text into something that sorts as the server does."""

    def __init__(
        self,
        keys: Sequence[KeyValue],
        read: Callable[[str], Any] = int,
        *,
        statistics: ColumnStatistics | None = None,
        rows: float | None = None,
    ) -> None:
        self._read = read
        self.keys = sorted(set(keys), key=self.sort_key)
        self._sorted = [self.sort_key(key) for key in self.keys]
        self.statistics = statistics
        self.rows = float(len(self.keys)) if rows is None else rows
        self.asked: list[Question] = []

    def analyse(self, common: int = 0) -> TableInMemory:
        """Give the table exact statistics of its leading column, with so many most common values."""
        counts = Counter(key[0] for key in self.keys)
        often = [(value, count / len(self.keys)) for value, count in counts.most_common(common) if count > 1]
        skipped = {value for value, _ in often}
        rest = [key[0] for key in self.keys if key[0] not in skipped]
        buckets = min(HISTOGRAM_BUCKETS, len(rest) - 1)
        bounds = [rest[i * (len(rest) - 1) // buckets] for i in range(buckets + 1)] if buckets > 0 else []
        self.statistics = ColumnStatistics(histogram=tuple(bounds), common=tuple(often), rows=float(len(self.keys)))
        return self

    def sort_key(self, key: KeyValue) -> tuple[Any, ...]:
        """What orders a key or a prefix of one."""
        return tuple(self._read(value) for value in key)

    def rows_between(self, lo: KeyValue | None, hi: KeyValue) -> int:
        """The true number of rows in (lo, hi]."""
        start = 0 if lo is None else bisect.bisect_right(self._sorted, self.sort_key(lo))
        return bisect.bisect_right(self._sorted, self.sort_key(hi)) - start

    def answer(self, question: Question) -> Answer:
        """The answer of a server that holds these rows."""
        self.asked.append(question)
        match question:
            case EstimateRows():
                return self.rows
            case Statistics():
                return self.statistics
            case FirstKey(prefix):
                return next((key for key in self.keys if key[: len(prefix)] == prefix), None)
            case LastKey(prefix):
                return next((key for key in reversed(self.keys) if key[: len(prefix)] == prefix), None)
            case ExistingKeys(guesses, end):
                stop = bisect.bisect_left(self._sorted, self.sort_key(end))
                return tuple(self.keys[i] for i in sorted({self._at_or_after(guess) for guess in guesses}) if i < stop)
            case Samples(guesses, stride):
                return tuple(self._sample(guess, stride) for guess in guesses)

    def _at_or_after(self, guess: KeyValue) -> int:
        return bisect.bisect_left(self._sorted, self.sort_key(guess))

    def _sample(self, guess: KeyValue, stride: int) -> Sample:
        at = self._at_or_after(guess)
        before, here, after = (self.keys[i] if 0 <= i < len(self.keys) else None for i in (at - 1, at, at + stride))
        return Sample(before, here, after)
