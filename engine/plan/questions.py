"""What the planner may ask of the source table, and what it expects to hear.

The planner is pure: it yields questions and is sent answers.  ``engine.sql.questions`` turns each question into one
statement and its rows into the answer; ``engine.flow`` carries them.  Every question is served by the key's index (or
by the catalogue), so that its cost depends on the number of keys asked for and never on the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

from engine.model import KeyValue


@dataclass(frozen=True, slots=True)
class EstimateRows:
    """How many rows has the table now, as the server's planner sees it?

    Answer: ``float`` ≥ 0.  It follows the file's present size, so it is right for a table that grew since its last
    ANALYZE, and for one that never had any.
    """


@dataclass(frozen=True, slots=True)
class Statistics:
    """What does ``pg_stats`` say of this column?

    Answer: ``ColumnStatistics``, or None when the column was never analysed or may not be seen.
    """

    column: str


@dataclass(frozen=True, slots=True)
class FirstKey:
    """Which is the first key, of those that begin with ``prefix``?

    Answer: ``KeyValue``, or None when there is no such row.
    """

    prefix: KeyValue = ()


@dataclass(frozen=True, slots=True)
class LastKey:
    """Which is the last key, of those that begin with ``prefix``?

    Answer: ``KeyValue``, or None when there is no such row.
    """

    prefix: KeyValue = ()


@dataclass(frozen=True, slots=True)
class ExistingKeys:
    """Which existing keys stand at these guesses?

    Each guess is a key or the leading columns of one, and stands for the first existing key at or after it.
    Answer: ``tuple[KeyValue, ...]``: the keys found, distinct, in the server's order, all of them before ``end``.
    """

    guesses: tuple[KeyValue, ...]
    end: KeyValue  # an existing key; it and what follows it is not wanted


@dataclass(frozen=True, slots=True)
class Samples:
    """What surrounds each of these guesses (keys, or leading columns of keys)?

    Answer: ``tuple[Sample, ...]``, one for each guess, in the order of the guesses.
    """

    guesses: tuple[KeyValue, ...]
    stride: int  # how many rows after the first found key the last one lies


Question = EstimateRows | Statistics | FirstKey | LastKey | ExistingKeys | Samples


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """One column's row of ``pg_stats``, values as text.

    ``histogram`` holds bounds of equally filled buckets, in the server's order, over the rows whose value is not
    among ``common``; each of ``common`` is a value and the fraction (0..1) of all rows that have it.
    """

    histogram: tuple[str, ...] = ()
    common: tuple[tuple[str, float], ...] = ()
    distinct: float = 0.0  # n_distinct: a count, or minus the fraction of rows; 0 when unknown
    correlation: float | None = None  # -1..1: how far the heap's order follows the column's
    rows: float = -1.0  # pg_class.reltuples: rows when last analysed; -1 when unknown


@dataclass(frozen=True, slots=True)
class Sample:
    """The keys around one guess; None where the table ends first."""

    before: KeyValue | None  # the last key before the guess
    at: KeyValue | None  # the first key at or after the guess
    after: KeyValue | None  # the key ``stride`` rows after ``at``


Answer = float | ColumnStatistics | KeyValue | tuple[KeyValue, ...] | tuple[Sample, ...] | None
"""What may be sent back; which of them is written at each question."""

Result = TypeVar("Result")
Steps: TypeAlias = Generator[Question, Answer, Result]
"""A planning routine: yields questions, is sent answers, returns its result."""


def ask_rows() -> Steps[float]:
    """Put ``EstimateRows``."""
    return cast("float", (yield EstimateRows()))


def ask_statistics(column: str) -> Steps[ColumnStatistics | None]:
    """Put ``Statistics``."""
    return cast("ColumnStatistics | None", (yield Statistics(column)))


def ask_ends(prefix: KeyValue = ()) -> Steps[tuple[KeyValue, KeyValue] | None]:
    """Put ``FirstKey`` and ``LastKey``; None when there is no row."""
    first = cast("KeyValue | None", (yield FirstKey(prefix)))
    last = cast("KeyValue | None", (yield LastKey(prefix)))
    return None if first is None or last is None else (first, last)


def ask_keys(guesses: Sequence[KeyValue], end: KeyValue) -> Steps[tuple[KeyValue, ...]]:
    """Put ``ExistingKeys``, unless there is nothing to ask."""
    if not guesses:
        return ()
    return cast("tuple[KeyValue, ...]", (yield ExistingKeys(tuple(guesses), end)))


def ask_samples(guesses: Sequence[KeyValue], stride: int) -> Steps[tuple[Sample, ...]]:
    """Put ``Samples``."""
    return cast("tuple[Sample, ...]", (yield Samples(tuple(guesses), stride)))


def drive(steps: Steps[Result], answer: Callable[[Question], Answer]) -> Result:
    """Run a planning routine with a plain function that answers its questions."""
    try:
        question = next(steps)
        while True:
            question = steps.send(answer(question))
    except StopIteration as end:
        return cast("Result", end.value)
