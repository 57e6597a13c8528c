"""Where rows are, found out by probing the index: for tables without statistics, and for what statistics leave out.

A probe at a guessed key finds the last key before it, the first key after it, and the key a stride of rows further on.
The first two show gaps, however wide, at the price of one probe; the third shows how dense the keys lie.  Stretches of
the key space that seem to hold the most rows are probed again in their middle, a few rounds over: that spends probes
where rows are, and none on the same gap twice.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from engine.model import Key, KeyValue
from engine.plan.keyspace import KeySpace, Point
from engine.plan.questions import Sample, Steps, ask_ends, ask_samples

PROBES: Final = 256  # guesses for a whole table: enough for 128 stretches, each about 1 % of it
PROBES_OF_PART: Final = 48  # for the rows of one heavy leading value, or those that came after the statistics
PROBES_PER_ROUND: Final = 32
STRIDE: Final = 32  # rows: densities are then right within 1/sqrt(32), 18 %, where keys come at random
HEAVY_VALUES: Final = 64  # so many leading values at most are looked into


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Rows between two existing keys, both included."""

    start: KeyValue
    end: KeyValue
    density: float | None = None  # rows per code of the leading column; None: not known
    few: float | None = None  # the number of rows, where it was found to be a stride or less


def survey(
    key: Key, low: KeyValue, high: KeyValue, *, prefix: KeyValue = (), probes: int = PROBES
) -> Steps[list[Point]]:
    """Points of the curve from ``low`` to ``high``, which exist, among the rows that begin with ``prefix``.

    ``key`` describes the columns after the prefix; so do ``low``, ``high`` and the keys of the points.  Row counts are
    absolute, as far as the densities found go; they begin with 1 at ``low``.
    """
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
        return {0: [whole.start, *space.between(whole.start, whole.end, limit - len(last)), *last]}
    rows = _rows(space, stretches)
    open_ones = [i for i, s in enumerate(stretches) if s.few is None and s.start != s.end]
    largest = sorted(open_ones, key=lambda i: rows[i], reverse=True)[:limit]
    return {i: space.between(stretches[i].start, stretches[i].end, 2) for i in sorted(largest)}


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
            rest = _measured(space, _Stretch(sample.at, rest.end, rest.density), sample.after)
    return [*pieces, rest]


def _measured(space: KeySpace, stretch: _Stretch, after: KeyValue | None) -> _Stretch:
    """The stretch with the density at its start, given the key a stride of rows after it."""
    if stretch.start == stretch.end:
        return replace(stretch, few=1.0)
    if after is None or not space.rises(after, stretch.end):
        return replace(stretch, few=STRIDE / 2)
    width = space.code_width(stretch.start, after)
    return replace(stretch, density=STRIDE / width) if width else stretch


def _rows(space: KeySpace, stretches: Sequence[_Stretch]) -> list[float]:
    """Estimated rows of each stretch, the first key not counted."""
    usual = statistics.median([s.density for s in stretches if s.density] or [1.0])
    result = []
    for stretch in stretches:
        if stretch.start == stretch.end:
            result.append(0.0)
        else:
            width = space.code_width(stretch.start, stretch.end)
            result.append(max(1.0, stretch.few or width * (stretch.density or usual)))
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
