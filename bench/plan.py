"""How long planning takes: a key space of 10⁹ rows cut into 100,000 spans, by the native planner.

The key is a bigint whose distances follow a power law with holes of 10¹² in between, described as ``pg_stats`` would:
by the default statistics target (100 buckets), and by the largest (10,000).  Timed is everything that depends on no
server: building the key space, cutting it, and writing the boundaries as text.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from bench.report import AT_MOST, Figure, Report, Target
from engine.model import Key, KeyColumn
from engine.plan.keyspace import KeySpace

ROWS = 1e9
SPANS = 100_000
SMOKE_SPANS = 1000
REPEATS = 7
BUCKETS = (100, 10_000)
SEED = 20_240_229
MOST_S = Target(0.100, AT_MOST)
POSITIONS = 1000

Result = TypeVar("Result")


def skewed_histogram(rows: float, buckets: int, rng: np.random.Generator) -> list[str]:
    """Bounds whose distances differ by many orders of magnitude, with a hole of 10¹² in one bucket of fifty."""
    distances = np.minimum(rng.random(buckets) ** -1.2, 1e4)
    steps = distances * rows / buckets + np.where(rng.random(buckets) < 0.02, 1e12, 0)
    return [str(bound) for bound in np.concatenate([[0], np.cumsum(steps)]).astype(np.int64).tolist()]


def timed(work: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """The median time of the work in seconds, and its last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def measure(report: Report, buckets: int, spans: int, repeats: int) -> None:
    """One size of statistics."""
    key = Key((KeyColumn("id", "bigint", 20, "int"),), "pkey")
    histogram = skewed_histogram(ROWS, buckets, np.random.default_rng(SEED))

    def build() -> KeySpace:
        return KeySpace(key, rows=ROWS, low=(histogram[0],), high=(histogram[-1],), histogram=histogram)

    plan_s, cuts = timed(lambda: build().boundaries(spans), repeats)
    build_s, space = timed(build, repeats)
    some = cuts[:POSITIONS]
    position_s, _ = timed(lambda: [space.position(cut) for cut in some], repeats)
    sizes = np.diff([space.position(cut) for cut in cuts])
    assert len(cuts) == spans - 1
    assert float(sizes.max()) <= 1.01 * ROWS / spans
    with_ = f"{buckets:,} buckets"
    report.figures.append(Figure(f"{ROWS:.0e} rows to {spans:,} spans, {with_}", plan_s, "s", MOST_S))
    report.figures.append(Figure(f"of which building the key space, {with_}", build_s, "s"))
    report.figures.append(Figure(f"position of one key, {with_}", position_s / len(some) * 1e6, "µs"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the report there; - is standard output")
    parser.add_argument("--smoke", action="store_true", help="once and small: that it runs, not how fast")
    parsed = parser.parse_args(arguments)
    spans = SMOKE_SPANS if parsed.smoke else SPANS
    report = Report("plan", "Planning", parsed.smoke, {"rows": ROWS, "spans": spans, "seed": SEED})
    for buckets in BUCKETS:
        measure(report, buckets, spans, 1 if parsed.smoke else REPEATS)
    report.finish(parsed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
