"""How to cut a table into spans.

``plan_spans`` is a routine that asks (``engine.plan.questions``) and in the end returns a ``SpanPlan``.  It looks at
statistics, probes the index where they say nothing, guesses a key for each boundary, and takes the existing keys that
the source finds at these guesses as bounds, in the order in which the source lists them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.model import Key, KeyValue, SpanBounds
from engine.plan.keyspace import KeySpace, Point
from engine.plan.questions import ColumnStatistics, Steps, ask_ends, ask_keys, ask_rows, ask_samples, ask_statistics
from engine.plan.survey import HEAVY_VALUES, PROBES_OF_PART, survey, survey_value

ROWS_PER_SPAN: Final = 2_000_000
"""Of a large table: some ten seconds of work, so that a lost lease or a drain leaves little, and a claim costs nothing
beside it."""

SPANS_PER_WORKER: Final = 16
"""At least so many where rows allow: workers then differ at the end by a sixteenth of their share before stealing even
starts, whatever the estimates were worth."""

FEWEST_ROWS_PER_SPAN: Final = 50_000
"""A chunk of the default limits: less is not worth a lease of its own."""

MOST_SPANS: Final = 4096
"""Each boundary is a probe while planning and each span a row of the ledger; stealing cuts finer where it matters."""

LOOKS_FOR_HOLES: Final = 6
"""Rounds of probing around the boundaries.  A bucket of the histogram does not say that all its rows lie at one end of
it; neighbouring keys do.  On keys with power-law gaps the largest of 32 spans was 1.5 to 2.1 times the smallest without
looking, 1.2 after six rounds, and not much better after twelve (1.1 is what the sampling of ANALYZE leaves)."""

MOST_SPANS_TO_LOOK_AT: Final = 256  # with more of them, one that is twice its size is still a small one

_MISLEADING_SHARE: Final = 0.1  # of rows, spread without a histogram, from which on the index is probed instead


@dataclass(frozen=True, slots=True)
class SpanPlan:
    """Spans that tile the key space in the source's order, and the key space they were cut by.

    An empty table has none.  The bound of the last is the last key there was; rows that come after it are not the
    job's.  ``basis`` says where the estimates come from: ``statistics``, ``probes``, or only the two ``ends``.
    """

    spans: tuple[SpanBounds, ...]
    space: KeySpace
    rows: float
    first: KeyValue | None
    last: KeyValue | None
    basis: str


def wanted_spans(rows: float, workers: int) -> int:
    """How many spans a table of so many rows gets: 1 to ``MOST_SPANS``."""
    by_size = max(math.ceil(rows / ROWS_PER_SPAN), SPANS_PER_WORKER * workers)
    return max(1, min(by_size, int(rows / FEWEST_ROWS_PER_SPAN), MOST_SPANS))


def plan_spans(key: Key, *, workers: int = 1, spans: int | None = None) -> Steps[SpanPlan]:
    """Plan the spans of a table paged by ``key``; ``spans`` asks for so many instead of ``wanted_spans``."""
    ends = yield from ask_ends()
    if ends is None:
        return SpanPlan((), KeySpace(key, rows=0, low=None, high=None), 0.0, None, None, "ends")
    first, last = ends
    rows = yield from ask_rows()
    count = spans or wanted_spans(rows, workers)
    if count == 1 or first == last:
        space = KeySpace(key, rows=1.0 if first == last else rows, low=first, high=last)
        return SpanPlan((SpanBounds(None, last, space.rows),), space, space.rows, first, last, "ends")
    space, basis = yield from _key_space(key, rows, first, last, count)
    if count <= MOST_SPANS_TO_LOOK_AT and basis == "statistics":  # probes have seen the holes already
        yield from _look_for_holes(space, count)
    found = yield from ask_keys(space.boundaries(count), last)
    bounds = [bound for bound in found if bound not in (first, last)]
    return SpanPlan(_tile(space, [*bounds, last]), space, space.rows, first, last, basis)


def _tile(space: KeySpace, bounds: Sequence[KeyValue]) -> tuple[SpanBounds, ...]:
    starts = [None, *bounds[:-1]]
    return tuple(SpanBounds(lo, hi, space.rows_between(lo, hi)) for lo, hi in zip(starts, bounds, strict=True))


def _key_space(key: Key, rows: float, first: KeyValue, last: KeyValue, spans: int) -> Steps[tuple[KeySpace, str]]:
    statistics = (yield from ask_statistics(key.columns[0].name)) or ColumnStatistics()
    spread = 1.0 - sum(fraction for _, fraction in statistics.common)
    if len(statistics.histogram) < 2 and spread > _MISLEADING_SHARE:
        points = yield from survey(key, first, last)
        return KeySpace(key, rows=rows, low=first, high=last, points=points), "probes"
    tail = yield from _tail(key, statistics, first, last)
    space = KeySpace(
        key, rows=rows, low=first, high=last, histogram=statistics.histogram, common=statistics.common, tail=tail
    )
    if len(key.columns) > 1:
        yield from _look_into_heavy_values(space, statistics, rows / spans / 2)
    return space, "statistics"


def _tail(key: Key, statistics: ColumnStatistics, first: KeyValue, last: KeyValue) -> Steps[Sequence[Point]]:
    """Points after the histogram's last bound, where the keys go on for more than a bucket's width behind it."""
    histogram = statistics.histogram
    if len(histogram) < 2 or key.columns[0].kind in ("text", "opaque", "enum", "bool"):
        return ()
    space = KeySpace(key, rows=1, low=first, high=last, histogram=histogram)
    width = space.code_width((histogram[-1],), last)
    if width <= space.code_width((histogram[0],), (histogram[-1],)) / (len(histogram) - 1):
        return ()
    found = yield from ask_keys([(histogram[-1],)], last)
    return (yield from survey(key, found[0], last, probes=PROBES_OF_PART)) if found else ()


def _look_for_holes(space: KeySpace, spans: int) -> Steps[None]:
    """Exclude from the key space the holes around its boundaries: those they fall into, and wide ones near by."""
    looked_at: set[KeyValue] = set()
    for _ in range(LOOKS_FOR_HOLES):
        cuts = space.boundaries(spans)
        guesses = [guess for guess in cuts + space.open_middles(cuts) if guess not in looked_at]
        looked_at.update(guesses)
        samples = (yield from ask_samples(guesses, 1)) if guesses else ()
        space.exclude([(s.before, s.at) for s in samples if s.before is not None and s.at is not None])


def _look_into_heavy_values(space: KeySpace, statistics: ColumnStatistics, rows: float) -> Steps[None]:
    """Refine the key space inside leading values that have more than so many rows."""
    known = {value: space.rows_with(value) for value, _ in statistics.common}
    heavy = sorted((value for value in known if known[value] > rows), key=lambda value: known[value], reverse=True)
    for value in heavy[:HEAVY_VALUES]:
        points = yield from survey_value(space.key, value)
        if len(points) > 1:
            rest = Key(space.key.columns[1:], space.key.index)
            low, high = points[0][0], points[-1][0]
            space.refine(value, KeySpace(rest, rows=points[-1][1], low=low, high=high, points=points))
