"""From rehearsed chunks to a forecast: what the sample says, how sure it is, and what limits do to it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Mode
from engine.plan.rehearsal import (
    OPENING_S,
    REHEARSED_SHARE,
    SAMPLED_SPANS,
    START_ROWS,
    WARM_UP_ROWS,
    Estimate,
    Sample,
    Settings,
    look_ahead,
    most_rows,
    pick_spread,
    wanted_places,
)

ONE = Sample(
    span=0,
    scanned=1000,
    rows=1000,
    dead_rows=1000,
    server_s=0.01,
    elapsed_s=0.011,
    held_s=0.012,
    waited_s=0.0,
    wal_bytes=200_000,
    page_images=0,
    hot_rows=0,
    heap_bytes=100_000,
    index_bytes=20_000,
    bytes=100_000,
)
"""Ten microseconds a row, one millisecond on the way, 200 bytes of WAL a row."""

JOB = Settings(
    mode=Mode.UPDATE,
    rows=1_000_000,
    workers=1,
    target_s=0.25,
    min_rows=50,
    max_rows=50_000,
    max_bytes=16 * 2**20,
    version_bytes=100,
    entry_bytes=20,
)


def outlook(samples, settings=JOB):
    found = look_ahead(samples, settings)
    assert found is not None
    return found


def test_chunks_that_are_all_alike_leave_no_doubt() -> None:
    seen = outlook([ONE] * 5)
    assert seen.chunk_rows == pytest.approx(25_000, abs=1), "a quarter of a second at ten microseconds a row"
    assert seen.wal_bytes == Estimate(200e6, 200e6, 200e6)
    assert seen.rows_written.expected == 1_000_000
    assert seen.seconds.low == pytest.approx(10 + 40 * 0.001, rel=1e-3), (
        "rows by the server's time, chunks by the way there"
    )
    assert seen.seconds.high == pytest.approx(seen.seconds.low + OPENING_S)
    assert seen.longest_lock_s.expected == pytest.approx(0.25 + 0.002, rel=1e-3)
    assert seen.chunks == 5


def test_nothing_follows_from_nothing() -> None:
    assert look_ahead([], JOB) is None
    assert look_ahead([replace(ONE, scanned=0)], JOB) is None


def test_chunks_that_differ_widen_the_interval() -> None:
    even = [replace(ONE, wal_bytes=b) for b in (190_000, 200_000, 210_000)] * 4
    uneven = [replace(ONE, wal_bytes=b) for b in (50_000, 200_000, 350_000)] * 4
    narrow, wide = outlook(even).wal_bytes, outlook(uneven).wal_bytes
    assert narrow.low < 200e6 < narrow.high
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(60):
        samples = [replace(ONE, wal_bytes=int(rng.lognormvariate(12, 0.5))) for _ in range(24)]
        wal = outlook(samples, replace(JOB, rows=1000)).wal_bytes
        held += wal.low <= 184_430 <= wal.high  # exp(12 + 0.5² / 2)
    assert 0.65 * 60 <= held <= 0.92 * 60


def test_the_same_chunks_give_the_same_forecast() -> None:
    samples = [replace(ONE, server_s=s / 1000) for s in range(5, 15)]
    assert outlook(samples) == outlook(samples)


def test_more_workers_reach_from_perfect_to_useless() -> None:
    alone = outlook([ONE] * 5).seconds
    four = outlook([ONE] * 5, replace(JOB, workers=4)).seconds
    assert four.low == pytest.approx(alone.low / 4)
    assert four.low < four.expected < alone.expected
    assert four.high == alone.high


def test_a_limit_is_a_lower_bound_of_the_time() -> None:
    by_rows = outlook([ONE] * 5, replace(JOB, max_rows_per_s=1000)).seconds
    assert (by_rows.low, by_rows.expected) == (1000, 1000)
    by_wal = outlook([ONE] * 5, replace(JOB, max_wal_bytes_per_s=1e6)).seconds
    assert (by_wal.low, by_wal.expected) == (200, 200)


def test_the_chunk_stays_within_its_limits() -> None:
    assert outlook([ONE], replace(JOB, max_rows=700)).chunk_rows == 700
    assert outlook([ONE], replace(JOB, max_bytes=2**16)).chunk_rows == 655
    assert outlook([replace(ONE, server_s=100.0)], JOB).chunk_rows == 50
    assert outlook([replace(ONE, server_s=0.0)], replace(JOB, rows=10)).chunk_rows == 10


def test_growth_in_place_reaches_from_what_the_files_say_to_what_the_versions_take() -> None:
    reused = outlook([replace(ONE, heap_bytes=0, index_bytes=0)] * 3)
    assert reused.heap_bytes == Estimate(0, 100e6, 100e6)
    assert reused.index_bytes == Estimate(0, 20e6, 20e6)
    stayed = outlook([replace(ONE, heap_bytes=0, index_bytes=0, hot_rows=1000)] * 3)
    assert stayed.heap_bytes.high == stayed.index_bytes.high == 0


def test_growth_of_a_target_is_what_it_grew_by_unless_that_was_nothing() -> None:
    into = replace(JOB, mode=Mode.INSERT, version_bytes=300)
    assert outlook([ONE] * 3, into).heap_bytes == Estimate(100e6, 100e6, 300e6)
    assert outlook([replace(ONE, heap_bytes=0)] * 3, into).heap_bytes == Estimate(0, 300e6, 300e6)


def test_a_burst_of_somebody_elses_wal_does_not_decide() -> None:
    samples = [*[ONE] * 8, replace(ONE, wal_bytes=10**9)]
    assert outlook(samples, replace(JOB, wal_is_shared=True)).wal_bytes.expected == 200e6
    assert outlook(samples, JOB).wal_bytes.expected > 10**10


def test_the_longest_lock_is_of_the_slowest_chunk() -> None:
    slow = replace(ONE, server_s=0.02, elapsed_s=0.021, held_s=0.022)
    seen = outlook([ONE] * 20 + [slow])
    assert seen.longest_lock_s.expected == pytest.approx(0.5 + 0.002, rel=1e-3)
    assert seen.longest_lock_s.low < seen.longest_lock_s.expected


def test_rows_that_are_left_alone_count_as_looked_at() -> None:
    seen = outlook([replace(ONE, rows=100)])
    assert seen.rows_written.expected == 100_000


@given(
    st.lists(
        st.builds(
            Sample,
            span=st.just(0),
            scanned=st.integers(0, 10**6),
            rows=st.integers(0, 10**6),
            dead_rows=st.just(0),
            server_s=st.floats(0, 100),
            elapsed_s=st.floats(0, 100),
            held_s=st.floats(0, 100),
            waited_s=st.floats(0, 100),
            wal_bytes=st.integers(0, 10**10),
            page_images=st.none() | st.integers(0, 1000),
            hot_rows=st.none() | st.integers(0, 10**6),
            heap_bytes=st.integers(0, 10**9),
            index_bytes=st.integers(0, 10**9),
            bytes=st.integers(0, 10**9),
        ),
        max_size=4,
    ),
    st.sampled_from(list(Mode)),
    st.integers(1, 64),
)
def test_every_figure_lies_in_its_interval(samples, mode: Mode, workers: int) -> None:
    seen = look_ahead(samples, replace(JOB, mode=mode, workers=workers))
    if seen is None:
        assert all(sample.scanned == 0 for sample in samples)
        return
    assert 1 <= seen.chunk_rows <= JOB.max_rows
    figures = (seen.seconds, seen.wal_bytes, seen.heap_bytes, seen.index_bytes, seen.longest_lock_s, seen.rows_written)
    for figure in figures:
        assert 0 <= figure.low <= figure.expected <= figure.high


# -- where, and how much ----------------------------------------------------------------------------------------------


def test_places_are_spread_from_the_first_to_the_last() -> None:
    assert pick_spread(range(100), 8) == [0, 14, 28, 42, 57, 71, 85, 99]
    assert pick_spread(range(3), 8) == [0, 1, 2]
    assert pick_spread(range(9), 1) == [4]
    assert pick_spread([], 8) == []


@given(st.floats(0, 1e12), st.integers(1, 100))
def test_a_large_table_is_rehearsed_to_a_twentieth_at_most(rows: float, chunks: int) -> None:
    places = wanted_places(rows, chunks)
    assert 1 <= places <= SAMPLED_SPANS
    most = most_rows(rows, places, chunks)
    assert most >= START_ROWS
    if most > START_ROWS:
        assert most * places * chunks <= rows * REHEARSED_SHARE
    if places > 1:
        assert places * (WARM_UP_ROWS + chunks * START_ROWS) <= rows
