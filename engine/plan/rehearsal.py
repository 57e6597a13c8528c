"""From a few chunks that were rolled back to a forecast of the whole job, with intervals.

The chunks are a sample: what they cost per row looked at is multiplied by the rows of the plan.  Each figure comes with
an **interval**: the middle 80 % of what the same figure would be if the chunks were drawn again from those that were
seen (bootstrap, percentile method, fixed seed).  That is what the sample leaves open and nothing else: a cache that
cools, other load, or a part of the table that is unlike every sampled one can still surprise.  Where a figure has a
second source of doubt, the interval says so by reaching from the one bound to the other:

* time: from all workers at the full speed of one, to one worker alone;
* growth: from what the files grew by, to what the new row versions take that did not stay on their page, at the width
  of the source's rows and index entries.  The first counts on free space that soon runs out, the second on none.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from engine.model import Mode

SAMPLED_SPANS: Final = 8
"""Places of the key space that are looked at: enough to meet old and new, wide and narrow rows."""

WARM_UP_ROWS: Final = 100
"""Of each span's first chunk, which pays for plans, catalogue caches and cold index pages and does not count."""

START_ROWS: Final = 1_000
"""Chunks of a small table have so many rows, as the first ones of a real job; with fewer, the round trip is all that is
measured."""

REHEARSED_SHARE: Final = 0.05
"""Of a table's rows: each one rehearsed in place leaves a dead row version, for VACUUM to clear."""

SAME_SPEED_WORKERS: Final = 8
"""Workers beyond this are not expected to add speed."""

FURTHER_WORKER: Final = 0.5
"""What each worker after the first is expected to add: two make 1.5 times the speed of one on two busy cores."""

OPENING_S: Final = 1.0
"""What a job spends before its first and after its last chunk, at most, where nobody makes it wait."""

RESAMPLES: Final = 1_000
LEVEL: Final = 0.8
SEED: Final = 4
_SLOW: Final = 0.9  # the percentile by which the chunk sizer goes

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one rehearsed chunk cost."""

    span: int  # which of the sampled spans, from 0
    scanned: int  # rows of the key range that were looked at; at least 1
    rows: int  # rows written
    dead_rows: int  # row versions that the rollback left, at most
    server_s: float  # the server's own time; of a copy, ours
    elapsed_s: float  # the same with the way there and back
    held_s: float  # from the first row lock it may have taken to the end of ROLLBACK
    waited_s: float  # for locks of others
    wal_bytes: int
    page_images: int | None  # full images of pages in that WAL; None: not known
    hot_rows: int | None  # new row versions that stayed on their page; None: not known, or none was made
    heap_bytes: int  # by which the written table's files grew, without indexes
    index_bytes: int
    bytes: int  # that passed through, or what the rows take as stored: what chunk.max_bytes is about


@dataclass(frozen=True, slots=True)
class Settings:
    """What of the job decides the forecast, beside the chunks."""

    mode: Mode
    rows: float  # of the plan: how many the job will look at
    workers: int
    target_s: float
    min_rows: int
    max_rows: int
    max_bytes: int
    max_rows_per_s: float | None = None
    max_wal_bytes_per_s: float | None = None
    version_bytes: float = 0.0  # of one row version, as the source's rows are
    entry_bytes: float = 0.0  # of one row's entries in all indexes of the written table, as the source's are
    wal_is_shared: bool = False  # WAL was taken from the server's position: others' is in it


@dataclass(frozen=True, slots=True)
class Estimate:
    """One figure: ``low <= expected <= high``."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the whole job is expected to cost."""

    chunks: int  # samples behind it
    chunk_rows: int  # of one chunk of the job, once its size has settled
    rows_written: Estimate
    seconds: Estimate
    wal_bytes: Estimate
    heap_bytes: Estimate
    index_bytes: Estimate
    longest_lock_s: Estimate


def pick_spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of the items, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[len(items) // 2]]
    return [items[round(n * (len(items) - 1) / (count - 1))] for n in range(count)]


def wanted_places(rows: float, chunks: int) -> int:
    """In how many places a table of so many rows is looked at: 1 to ``SAMPLED_SPANS``."""
    of_one = WARM_UP_ROWS + chunks * START_ROWS
    return max(1, min(SAMPLED_SPANS, int(rows / of_one)))


def most_rows(rows: float, places: int, chunks: int) -> int:
    """How many rows a rehearsed chunk may have: of a large table all together stay within ``REHEARSED_SHARE``."""
    return max(START_ROWS, int(rows * REHEARSED_SHARE / max(1, places * chunks)))


def look_ahead(samples: Sequence[Sample], settings: Settings) -> Outlook | None:
    """The forecast; None without a sample.  The same samples always give the same one."""
    counted = [sample for sample in samples if sample.scanned > 0]
    if not counted:
        return None
    rng = random.Random(SEED)
    again = [rng.choices(counted, k=len(counted)) for _ in range(RESAMPLES)]
    rows = settings.rows

    def estimate(figure: Callable[[Sequence[Sample]], float]) -> Estimate:
        return _interval(figure(counted), [figure(drawn) for drawn in again])

    wal = estimate(lambda drawn: rows * _wal_per_row(drawn, settings))
    alone = estimate(lambda drawn: _alone_s(drawn, settings))
    return Outlook(
        chunks=len(counted),
        chunk_rows=_chunk_rows(counted, settings),
        rows_written=estimate(lambda drawn: rows * _per_row(drawn, lambda s: s.rows)),
        seconds=_with_workers(alone, wal, settings),
        wal_bytes=wal,
        heap_bytes=_growth(
            estimate(lambda drawn: rows * _per_row(drawn, lambda s: s.heap_bytes)),
            estimate(lambda drawn: rows * _moved_per_row(drawn) * settings.version_bytes),
            settings,
        ),
        index_bytes=_growth(
            estimate(lambda drawn: rows * _per_row(drawn, lambda s: s.index_bytes)),
            estimate(lambda drawn: rows * _moved_per_row(drawn) * settings.entry_bytes),
            settings,
        ),
        longest_lock_s=estimate(lambda drawn: _longest_lock_s(drawn, settings)),
    )


def _interval(value: float, drawn: Sequence[float]) -> Estimate:
    ordered = sorted(drawn)
    low = ordered[math.floor((1 - LEVEL) / 2 * (len(ordered) - 1))]
    high = ordered[math.ceil((1 + LEVEL) / 2 * (len(ordered) - 1))]
    return Estimate(min(low, value), value, max(high, value))


def _per_row(samples: Sequence[Sample], cost: Callable[[Sample], float]) -> float:
    """Per row looked at: large chunks weigh as much as they have rows."""
    return sum(cost(s) for s in samples) / sum(s.scanned for s in samples)


def _wal_per_row(samples: Sequence[Sample], settings: Settings) -> float:
    if settings.wal_is_shared:  # a burst of somebody else's must not decide
        return statistics.median(s.wal_bytes / s.scanned for s in samples)
    return _per_row(samples, lambda s: s.wal_bytes)


def _moved_per_row(samples: Sequence[Sample]) -> float:
    """New row versions per row looked at that did not stay on their page."""
    return _per_row(samples, lambda s: s.rows - min(s.rows, s.hot_rows or 0))


def _chunk_rows(samples: Sequence[Sample], settings: Settings) -> int:
    """The size at which the job's chunk sizer will settle: its target time at the 90th percentile of the cost."""
    costs = sorted(s.server_s / s.scanned for s in samples)
    slow = costs[int(_SLOW * (len(costs) - 1))]
    fitting = settings.target_s / slow if slow > 0 else math.inf
    widest = max(s.bytes / s.scanned for s in samples)
    allowed = settings.max_bytes / widest if widest > 0 else math.inf
    return max(1, int(min(max(fitting, settings.min_rows), settings.max_rows, allowed, max(1.0, settings.rows))))


def _alone_s(samples: Sequence[Sample], settings: Settings) -> float:
    """What one worker would take: the server's time by rows, the way there and back by chunks."""
    on_the_way_s = statistics.fmean(max(0.0, s.elapsed_s - s.server_s) for s in samples)
    chunks = settings.rows / _chunk_rows(samples, settings)
    return settings.rows * _per_row(samples, lambda s: s.server_s) + chunks * on_the_way_s


def _with_workers(alone: Estimate, wal: Estimate, settings: Settings) -> Estimate:
    workers = max(1, min(settings.workers, SAME_SPEED_WORKERS))
    expected = alone.expected / (1 + FURTHER_WORKER * (workers - 1))

    def limited(seconds: float, wal_bytes: float) -> float:
        by_rows = settings.rows / settings.max_rows_per_s if settings.max_rows_per_s else 0.0
        by_wal = wal_bytes / settings.max_wal_bytes_per_s if settings.max_wal_bytes_per_s else 0.0
        return max(seconds, by_rows, by_wal)

    return Estimate(
        limited(alone.low / workers, wal.low),
        limited(expected, wal.expected),
        limited(alone.high, wal.high) + OPENING_S,
    )


def _growth(measured: Estimate, counted: Estimate, settings: Settings) -> Estimate:
    # A table filled in place uses up its free space early in the job.  A target's rows may be unlike the source's, so
    # that its own growth says more, unless all of it went into free space.
    expected = measured.expected
    if settings.mode is Mode.UPDATE or not expected:
        expected = max(expected, counted.expected)
    return Estimate(min(measured.low, counted.low), expected, max(measured.high, counted.high))


def _longest_lock_s(samples: Sequence[Sample], settings: Settings) -> float:
    """Of a chunk of the job's own size, as slow per row as the slowest that was seen."""
    rows = _chunk_rows(samples, settings)
    return max(s.server_s * rows / s.scanned + max(0.0, s.held_s - s.server_s) for s in samples)
