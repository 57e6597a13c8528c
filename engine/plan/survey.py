"""Where rows are, found out by probing the index: for tables without statistics, and for what statistics leave out.

A probe at a guessed key finds the last key before it, the first key after it, and the key a stride of rows further on.
The first two show gaps, however wide, at the price of one probe; the third shows how dense the keys lie.  Stretches of
the key space that seem to hold the most rows are probed again in their middle, a few rounds over: that spends probes
where rows are, and none on the same gap twice.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from engine.model import Key, KeyValue
from engine.plan.codes import is_endless
from engine.plan.keyspace import KeySpace, Point
from engine.plan.questions import Sample, Steps, ask_ends, ask_samples

PROBES: Final = 256  # guesses for a whole table: enough for 128 stretches, each about 1 % of it
PROBES_OF_PART: Final = 48  # for the rows of one heavy leading value, or those that came after the statistics
PROBES_PER_ROUND: Final = 16
STRIDE: Final = 32  # rows: densities are then right within 1/sqrt(32), 18 %, where keys come at random
_MOST_ENDLESS: Final = 3  # -infinity or infinity and NaN, and one in reserve
HEAVY_VALUES: Final = 64  # so many leading values at most are looked into


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Rows between two existing keys, both included."""

    start: KeyValue
    end: KeyValue
    window: tuple[KeyValue, KeyValue] | None = None  # two keys a stride of rows apart, the nearest ones known
    few: float | None = None  # the number of rows, where it was found to be a stride or less


def survey(
    key: Key, low: KeyValue, high: KeyValue, *, prefix: KeyValue = (), probes: int = PROBES
) -> Steps[list[Point]]:
    """Points of the curve from ``low`` to ``high``, which exist, among the rows that begin with ``prefix``.

    ``key`` describes the columns after the prefix; so do ``low``, ``high`` and the keys of the points.  Row counts are
    absolute, as far as the densities found go; they begin with 1 at ``low``.
    """
    # Infinities at the ends say nothing of where the other rows are: step over them first.
    lows: list[KeyValue] = []
    highs: list[KeyValue] = []
    while low != high and len(lows) < _MOST_ENDLESS and is_endless(key.columns[0], low[0]):
        lows.append(low)
        sample = yield from _ask(prefix, low)
        low = sample.after or high
    while low != high and len(highs) < _MOST_ENDLESS and is_endless(key.columns[0], high[0]):
        highs.insert(0, high)
        sample = yield from _ask(prefix, high)
        high = sample.before or low
    points = yield from _survey_finite(key, low, high, prefix, probes)
    last = len(lows) + points[-1][1]
    return [
        *((end, i + 1.0) for i, end in enumerate(lows)),
        *((between, len(lows) + count) for between, count in points),
        *((end, last + i + 1.0) for i, end in enumerate(highs)),
    ]


def _ask(prefix: KeyValue, key: KeyValue) -> Steps[Sample]:
    """The neighbours of one key."""
    samples = yield from ask_samples([prefix + key], 1)
    return _without(prefix, samples[0])


def _survey_finite(key: Key, low: KeyValue, high: KeyValue, prefix: KeyValue, probes: int) -> Steps[list[Point]]:
    """What ``survey`` does, between two finite keys."""
    stretches = [_Stretch(low, high)]
    heavy: dict[str, None] = {}
    spent = 0
    while spent < probes:
        space = _space(key, stretches)
        wanted = _wanted(space, stretches, first=not spent, limit=min(PROBES_PER_ROUND, probes - spent))
        guesses = list(itertools.chain.from_iterable(wanted.values()))
        if not guesses:
            break
        answers = yield from ask_samples([prefix + guess for guess in guesses], STRIDE)
        samples = iter([_without(prefix, answer) for answer in answers])
        spent += len(guesses)
        after: list[_Stretch] = []
        for i, stretch in enumerate(stretches):
            here = list(itertools.islice(samples, len(wanted.get(i, ()))))
            heavy.update((s.at[0], None) for s in here if s.at and s.after and s.at[0] == s.after[0])
            after.extend(_cut(space, stretch, here))
        stretches = after
    points = _points(_space(key, stretches), stretches)
    if len(key.columns) > 1:
        for value in itertools.islice(heavy, HEAVY_VALUES):
            inside = yield from survey_value(key, value, prefix=prefix)
            points = _with_step(points, value, inside)
    return points


def survey_value(key: Key, value: str, *, prefix: KeyValue = ()) -> Steps[list[Point]]:
    """Points among the rows with one value in the leading column of ``key``; keys without that column.

    Empty when there is no such row.
    """
    within = (*prefix, value)
    ends = yield from ask_ends(within)
    if ends is None:
        return []
    rest = Key(key.columns[1:], key.index)
    low, high = (end[len(within) :] for end in ends)
    return (yield from survey(rest, low, high, prefix=within, probes=PROBES_OF_PART))


def _without(prefix: KeyValue, sample: Sample) -> Sample:
    """The sample's keys after the prefix; keys with another prefix do not belong to the part that is surveyed."""

    def cut(key: KeyValue | None) -> KeyValue | None:
        return key[len(prefix) :] if key and key[: len(prefix)] == prefix else None

    return Sample(cut(sample.before), cut(sample.at), cut(sample.after))


def _space(key: Key, stretches: Sequence[_Stretch]) -> KeySpace:
    """A key space fitted to all keys found so far; its row counts mean nothing."""
    keys = list(dict.fromkeys(itertools.chain.from_iterable((s.start, s.end) for s in stretches)))
    points = [(known, float(i)) for i, known in enumerate(keys)]
    return KeySpace(
        Key(key.columns[:1], key.index),
        rows=len(keys),
        low=keys[0][:1],
        high=keys[-1][:1],
        points=[(known[:1], count) for known, count in points],
    )


def _wanted(space: KeySpace, stretches: Sequence[_Stretch], *, first: bool, limit: int) -> dict[int, list[KeyValue]]:
    """Guesses for the stretches that seem to hold the most rows."""
    if first:
        whole = stretches[0]
        # The last leading value too: it may be one of those with most of the rows.
        last = [whole.end[:1]] if whole.end[0] != whole.start[0] else []
        shares = [i / limit for i in range(1, limit)]
        return {0: [whole.start, *space.between(whole.start, whole.end, shares), *last]}
    rows = _rows(space, stretches)
    slopes = _slopes(space, stretches)
    open_ones = [i for i, s in enumerate(stretches) if s.few is None and s.start != s.end]
    largest = sorted(open_ones, key=lambda i: rows[i], reverse=True)[:limit]
    return {
        i: space.between(stretches[i].start, stretches[i].end, [_middle_of_rows(*slopes[i])]) for i in sorted(largest)
    }


def _cut(space: KeySpace, stretch: _Stretch, samples: Sequence[Sample]) -> list[_Stretch]:
    """The stretch in pieces, cut at what the samples found; findings that do not fit are left out."""
    pieces: list[_Stretch] = []
    rest = stretch
    for sample in samples:
        if sample.at is None:
            continue
        if sample.at == rest.start:
            rest = _measured(space, rest, sample.after)
        elif (
            sample.before is not None
            and space.rises(rest.start, sample.before)
            and space.rises(sample.before, sample.at)
            and space.rises(sample.at, rest.end)
        ):
            pieces.append(replace(rest, end=sample.before))
            rest = _measured(space, _Stretch(sample.at, rest.end, rest.window), sample.after)
    return [*pieces, rest]


def _measured(space: KeySpace, stretch: _Stretch, after: KeyValue | None) -> _Stretch:
    """The stretch with what the key a stride of rows after its start tells."""
    if stretch.start == stretch.end:
        return replace(stretch, few=1.0)
    if after is None or not space.rises(after, stretch.end):
        return replace(stretch, few=STRIDE / 2)
    return replace(stretch, window=(stretch.start, after))


def _slopes(space: KeySpace, stretches: Sequence[_Stretch]) -> list[tuple[float, float]]:
    """Rows per code at both ends of each stretch; what is found at the next one's start stands for the end.

    Windows are kept as keys, since codes mean something else whenever the space is fitted to more of them.
    """
    densities = []
    for stretch in stretches:
        width = space.code_width(*stretch.window) if stretch.window else 0.0
        densities.append(STRIDE / width if width else None)
    usual = statistics.median([density for density in densities if density] or [1.0])
    starts = [density or usual for density in densities]
    return list(zip(starts, [*starts[1:], starts[-1]], strict=True))


def _mean(start: float, end: float) -> float:
    """The mean of a density that goes from one value to another by equal factors."""
    return start if math.isclose(start, end) else (end - start) / math.log(end / start)


def _middle_of_rows(start: float, end: float) -> float:
    """Where, from 0 to 1, such a density has half of its rows behind it: near its dense end.

    Keys crowd around one value as often as not; halving the distance to it would take a round for each bit.
    """
    if math.isclose(start, end):
        return 0.5
    return math.log((1 + end / start) / 2) / math.log(end / start)


def _rows(space: KeySpace, stretches: Sequence[_Stretch]) -> list[float]:
    """Estimated rows of each stretch, the first key not counted."""
    result = []
    for stretch, slope in zip(stretches, _slopes(space, stretches), strict=True):
        if stretch.start == stretch.end:
            result.append(0.0)
        else:
            result.append(max(1.0, stretch.few or space.code_width(stretch.start, stretch.end) * _mean(*slope)))
    return result


def _points(space: KeySpace, stretches: Sequence[_Stretch]) -> list[Point]:
    points: list[Point] = []
    passed = 0.0
    for stretch, rows in zip(stretches, _rows(space, stretches), strict=True):
        passed += 1.0
        points.append((stretch.start, passed))
        passed += rows
        if stretch.end != stretch.start:
            points.append((stretch.end, passed))
    return points


def _with_step(points: Sequence[Point], value: str, inside: Sequence[Point]) -> list[Point]:
    """The points with those of one heavy leading value put in the place where that value was seen."""
    if not inside:
        return list(points)
    place = next((i for i, (key, _) in enumerate(points) if key[0] == value), None)
    if place is None:
        return list(points)
    base = points[place - 1][1] if place else 0.0
    rows = inside[-1][1]
    others = [(key, count + rows) for key, count in points[place:] if key[0] != value]
    return [*points[:place], *(((value, *key), base + count) for key, count in inside), *others]
