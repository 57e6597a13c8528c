"""The token bucket: how exact the rate is over a minute, and what one admission costs.

The minute is simulated (a clock moved by hand), with four workers whose chunks cost something else than estimated.
The costs are real: processor time of this process per chunk, each chunk settled to another cost than its estimate.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence

from bench.report import AT_MOST, Figure, Report, Target
from engine.clock import Clock, ManualClock, SystemClock
from engine.pace.bucket import TokenBucket

WARM_UP_S = 5.0
MEASURED_S = 60.0
WORKERS = 4
RATES_PER_S = (10.0, 1_000.0, 50_000.0, 1_000_000.0)

MAX_RATE_ERROR = Target(0.01, AT_MOST)
MAX_COST_US = Target(20, AT_MOST)
CHUNK_ROWS = 1000.0  # half of each chunk is given back


class InstantClock:
    """Sleeps by moving its own time: what remains is the bucket's work, the queue and the timer's task included."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Seconds slept by anybody."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """One turn of the loop."""
        self._now += seconds
        await asyncio.sleep(0)


async def rate_error(rate_per_s: float, seed: int) -> float:
    """Relative error of what was granted in a simulated minute, against ``rate_per_s``."""
    clock = ManualClock()
    bucket = TokenBucket(rate_per_s, clock)
    rng = random.Random(seed)

    async def work() -> None:
        while True:
            estimate = rate_per_s * rng.uniform(0.01, 0.3)
            admission = await bucket.acquire(estimate)
            await clock.sleep(rng.uniform(0.001, 0.05))
            admission.settle(estimate * rng.uniform(0.5, 1.2))

    workers = [asyncio.create_task(work()) for _ in range(WORKERS)]
    await clock.advance(WARM_UP_S)
    bucket.take_usage()
    await clock.advance(MEASURED_S)
    granted_per_s = bucket.take_usage().granted_per_s
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return abs(granted_per_s / rate_per_s - 1)


async def cost_us(rate_per_s: float | None, clock: Clock, chunks: int, workers: int = 1) -> float:
    """Microseconds of processor time per chunk admitted and settled."""
    bucket = TokenBucket(rate_per_s, clock)

    async def work() -> None:
        for _ in range(chunks // workers):
            (await bucket.acquire(CHUNK_ROWS)).settle(CHUNK_ROWS / 2)

    start = time.process_time()
    await asyncio.gather(*(work() for _ in range(workers)))
    return (time.process_time() - start) / chunks * 1e6


def measure(report: Report, *, smoke: bool) -> None:
    """Fill the report."""
    for rate in RATES_PER_S[:1] if smoke else RATES_PER_S:
        error = max(asyncio.run(rate_error(rate, seed)) for seed in range(1 if smoke else 3))
        report.figures.append(Figure(f"rate error over 60 s at {rate:,.0f} rows/s", error, "of 1", MAX_RATE_ERROR))

    repeats = 1 if smoke else 3
    chunks = 1_000 if smoke else 50_000
    clock = SystemClock()
    ways: list[tuple[str, float | None]] = [("no limit", None), ("limit not reached", CHUNK_ROWS * 1e9)]
    for name, rate_per_s in ways:
        cost = min(asyncio.run(cost_us(rate_per_s, clock, chunks)) for _ in range(repeats))
        report.figures.append(Figure(f"cost per chunk: {name}", cost, "µs", MAX_COST_US))

    rate_per_s = CHUNK_ROWS
    for workers in (1, WORKERS):
        cost = min(asyncio.run(cost_us(rate_per_s, InstantClock(), chunks, workers)) for _ in range(repeats))
        name = f"cost per chunk: each one waits, {workers} worker{'s' if workers > 1 else ''}"
        report.figures.append(Figure(name, cost, "µs", MAX_COST_US, "without the event loop's own timer"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.bucket", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the report there; - is standard output")
    parser.add_argument("--smoke", action="store_true", help="once and small: that it runs, not how fast")
    parsed = parser.parse_args(arguments)
    report = Report("bucket", "Token bucket", parsed.smoke, {"workers": WORKERS, "measured_s": MEASURED_S})
    measure(report, smoke=parsed.smoke)
    report.finish(parsed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
