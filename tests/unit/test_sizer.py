"""The chunk sizer: how it finds the size that takes the target time, and what it does not fall for."""

from __future__ import annotations

import asyncio
import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import ManualClock
from engine.model import Observation
from engine.pace.bucket import TokenBucket
from engine.pace.sizer import ChunkSizer

MIB = 1024 * 1024


def chunk(scanned: int, server_s: float, *, rows: int | None = None, row_bytes: float = 0) -> Observation:
    return Observation(
        rows=scanned if rows is None else rows, scanned=scanned, bytes=int(scanned * row_bytes), server_s=server_s
    )


def run(sizer: ChunkSizer, chunks: int, row_s: float, *, fixed_s: float = 0.002, noise: float = 0.0) -> list[int]:
    """Full chunks on a server with a linear cost; the sizes asked for."""
    rng = random.Random(11)
    sizes = []
    for _ in range(chunks):
        sizes.append(sizer.rows)
        sizer.observe(chunk(sizer.rows, (fixed_s + sizer.rows * row_s) * rng.lognormvariate(0, noise)))
    return sizes


observations = st.builds(
    Observation,
    rows=st.integers(0, 100_000),
    scanned=st.integers(0, 100_000),
    bytes=st.integers(0, 2**31),
    server_s=st.one_of(st.floats(0, 100), st.sampled_from([math.nan, math.inf, -1.0])),
)


@given(
    bounds=st.tuples(st.integers(1, 500), st.integers(0, 50_000)),
    script=st.lists(st.one_of(observations, st.just("failed"), st.just("lost"), st.floats(0.001, 2)), max_size=60),
)
def test_the_size_is_always_within_its_bounds(bounds: tuple[int, int], script: list[object]) -> None:
    least, most = bounds[0], sum(bounds)
    sizer = ChunkSizer(min_rows=least, max_rows=most, max_bytes=MIB)
    may_be_less = False
    for step in script:
        if isinstance(step, Observation):
            sizer.observe(step)
            may_be_less |= step.bytes > 0  # bytes go before rows
        elif isinstance(step, float):
            sizer.target_s = step
        else:
            sizer.failed(split=step == "failed")
            may_be_less |= step == "failed"
        assert (1 if may_be_less else least) <= sizer.rows <= most


@pytest.mark.parametrize("row_s", [3e-6, 20e-6, 500e-6])
def test_reaches_the_target_time_within_a_dozen_chunks(row_s: float) -> None:
    sizer = ChunkSizer()
    sizes = run(sizer, 12, row_s)
    assert sizer.rows == pytest.approx(min(50_000, (0.25 - 0.002) / row_s), rel=0.1)
    growth = [after / before for before, after in itertools.pairwise(sizes)]
    assert max(growth) <= 1.5 + 1e-3


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_noise_leaves_nine_chunks_of_ten_within_the_target(noise: float) -> None:
    sizer = ChunkSizer()
    run(sizer, 15, 20e-6, noise=noise)
    sizes = run(sizer, 300, 20e-6, noise=noise)
    late = sum((0.002 + rows * 20e-6) > 0.25 for rows in sizes)
    assert late / len(sizes) < 0.1  # sizes whose *typical* time is over the target
    assert sum(sizes) / len(sizes) > 0.5 * 0.25 / 20e-6


@pytest.mark.parametrize("factor", [2, 4, 6, 40, 1000])
@pytest.mark.parametrize("settled_after", [3, 6, 40])
def test_one_outlier_costs_at_most_half_the_size(factor: float, settled_after: int) -> None:
    sizer = ChunkSizer(start_rows=10_000)
    run(sizer, settled_after, 20e-6)
    before = sizer.rows
    sizer.observe(chunk(before, 0.25 * factor))
    lowest = sizer.rows
    for _ in range(10):
        sizer.observe(chunk(sizer.rows, 0.002 + sizer.rows * 20e-6))
        lowest = min(lowest, sizer.rows)
    assert lowest >= before // 2
    assert sizer.rows >= 0.9 * before


def test_a_server_that_became_slow_is_believed_at_the_second_chunk() -> None:
    sizer = ChunkSizer(start_rows=10_000)
    run(sizer, 30, 20e-6)
    before = sizer.rows
    run(sizer, 2, 2000e-6)  # a hundred times slower
    assert sizer.rows <= before * 0.06
    sizes = run(sizer, 10, 2000e-6)
    assert sizes == sorted(sizes, reverse=True), "what was measured before the change is forgotten"
    assert sizer.rows == pytest.approx(0.25 / 2000e-6, rel=0.1)


def test_a_first_chunk_that_is_far_too_slow_is_believed_at_once() -> None:
    sizer = ChunkSizer()
    sizer.observe(chunk(1000, 2.0))
    assert sizer.rows == 100


def test_chunk_sizing_does_not_measure_its_own_queueing() -> None:
    """block/spirit#1072: the wait for admission was taken for the chunk's own time, so throttling shrank the chunk,
    which made it wait the more, down to the floor."""
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)  # a chunk of 10,000 rows waits 100 s
    sizer = ChunkSizer(start_rows=10_000)

    async def work() -> None:
        for _ in range(20):
            admission = await bucket.acquire(sizer.rows)
            started = clock.now()
            await clock.sleep(sizer.rows * 25e-6)
            admission.settle(sizer.rows)
            sizer.observe(chunk(sizer.rows, clock.now() - started))

    async def play() -> None:
        working = asyncio.create_task(work())
        await clock.advance(3000)
        await working

    asyncio.run(play())
    assert bucket.waits["rate limit"] > 1000
    assert sizer.rows == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize("scanned", [1, 3, 200, 2000])
def test_a_short_last_chunk_neither_blows_the_size_up_nor_shrinks_it(scanned: int) -> None:
    sizer = ChunkSizer(start_rows=10_000)
    run(sizer, 30, 24e-6)
    before = sizer.rows
    for _ in range(30):
        sizer.observe(chunk(scanned, 0.002 + scanned * 24e-6))
    assert sizer.rows == before
    run(sizer, 1, 24e-6)  # nor do they make the next full chunk look cheap
    assert sizer.rows == pytest.approx(before, rel=0.01)


def test_short_chunks_that_are_too_slow_are_heard_all_the_same() -> None:
    sizer = ChunkSizer(start_rows=10_000)
    run(sizer, 30, 20e-6)
    before = sizer.rows
    for _ in range(5):
        sizer.observe(chunk(before // 10, 1.0))
    assert sizer.rows < before / 2


def test_an_empty_chunk_teaches_nothing() -> None:
    sizer = ChunkSizer()
    for server_s in (0.0, 0.001, 100.0):
        sizer.observe(chunk(0, server_s))
    assert sizer.rows == 1000


def test_rows_scanned_count_not_rows_written() -> None:
    sizer = ChunkSizer()
    sizer.observe(chunk(1000, 0.05, rows=0))
    assert sizer.rows == 1500


def test_chunks_started_before_a_step_do_not_make_further_steps() -> None:
    sizer = ChunkSizer()
    for _ in range(8):  # eight workers' chunks of the first size come in together
        sizer.observe(chunk(1000, 0.005))
    assert sizer.rows == 1500


def test_a_lower_target_shrinks_at_once_and_old_chunks_in_flight_are_no_accidents() -> None:
    sizer = ChunkSizer(start_rows=10_000)
    run(sizer, 30, 25e-6, fixed_s=0)
    before = sizer.rows
    sizer.target_s = 0.0125
    assert sizer.rows == pytest.approx(before / 20, rel=0.02)
    for _ in range(2):
        sizer.observe(chunk(before, before * 25e-6))
    assert sizer.rows == pytest.approx(before / 20, rel=0.02)


def test_a_higher_target_grows_by_the_usual_steps() -> None:
    sizer = ChunkSizer(target_s=0.01)
    run(sizer, 30, 25e-6, fixed_s=0)
    before = sizer.rows
    sizer.target_s = 1.0
    assert sizer.rows == before
    run(sizer, 1, 25e-6, fixed_s=0)
    assert sizer.rows == pytest.approx(before * 1.5, rel=0.01)


def test_a_large_chunk_still_in_flight_is_no_licence_to_jump() -> None:
    sizer = ChunkSizer(start_rows=10_000)
    run(sizer, 30, 25e-6, fixed_s=0)
    sizer.target_s = 0.01
    small = sizer.rows
    sizer.target_s = 1.0
    sizer.observe(chunk(10_000, 10_000 * 25e-6))
    assert sizer.rows == pytest.approx(small * 1.5, rel=0.01)


@pytest.mark.parametrize("row_bytes", [100, 10_000, 1_000_000])
def test_a_chunk_holds_no_more_than_its_bytes(row_bytes: int) -> None:
    sizer = ChunkSizer(max_bytes=16 * MIB)
    for _ in range(30):
        sizer.observe(chunk(sizer.rows, 0.001, row_bytes=row_bytes))
    assert sizer.rows == min(50_000, 16 * MIB // row_bytes)


def test_a_row_larger_than_a_chunk_may_be_is_a_chunk() -> None:
    sizer = ChunkSizer()
    sizer.observe(chunk(1, 0.1, row_bytes=1 << 30))
    assert sizer.rows == 1


def test_the_way_back_from_wide_rows_is_taken_in_steps() -> None:
    sizer = ChunkSizer(max_rows=40_000)
    for _ in range(20):
        sizer.observe(chunk(sizer.rows, 0.001, row_bytes=1_000_000))
    sizes = []
    for _ in range(40):
        sizer.observe(chunk(sizer.rows, 0.001, row_bytes=10))
        sizes.append(sizer.rows)
    steps = [after / before for before, after in itertools.pairwise(sizes) if after > 50]
    assert max(steps[1:]) <= 1.51
    assert sizer.rows == 40_000


def test_a_failed_chunk_is_halved_at_once_below_the_minimum_if_need_be() -> None:
    sizer = ChunkSizer(min_rows=50)
    sizes = []
    for _ in range(12):
        sizer.failed()
        sizes.append(sizer.rows)
    assert sizes == [500, 250, 125, 62, 31, 15, 7, 3, 1, 1, 1, 1]
    for _ in range(12):
        sizer.observe(chunk(sizer.rows, 0.001))
    assert sizer.rows >= 50


def test_a_chunk_lost_with_its_connection_says_nothing_of_its_size() -> None:
    sizer = ChunkSizer()
    sizer.failed(split=False)
    assert sizer.rows == 1000


@pytest.mark.parametrize(
    "bad",
    [{"min_rows": 0}, {"min_rows": 10, "max_rows": 9}, {"max_bytes": 0}, {"target_s": 0.0}, {"target_s": math.nan}],
)
def test_bounds_that_contradict_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ChunkSizer(**bad)
