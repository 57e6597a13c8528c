"""Whose WAL it is: exact where the server counts per process, else estimated from rows."""

from __future__ import annotations

import random

import pytest

from engine.watch.wal import OwnWal

MB = 1e6


def test_two_observations_are_needed() -> None:
    wal = OwnWal(exact=True)
    assert (wal.total_per_s, wal.bytes_per_s, wal.others_per_s, wal.bytes_per_row) == (None, None, None, None)
    wal.observe(0.0, 0.0, 0.0, {})
    assert wal.others_per_s is None
    wal.observe(1.0, 5 * MB, 0.0, {})
    assert (wal.total_per_s, wal.bytes_per_s, wal.others_per_s, wal.bytes_per_row) == (5 * MB, 0.0, 5 * MB, None)


def test_exact_figures_come_from_the_processes() -> None:
    wal = OwnWal(exact=True)
    for second in range(6):
        # Worker 1 was there before us with 100 MB; worker 2 begins later; others write 3 MB a second.
        backends: dict[object, float] = {1: 100 * MB + second * MB}
        if second >= 2:
            backends[2] = (second - 1) * MB
        own = second * MB + max(0, second - 1) * MB
        wal.observe(float(second), own + second * 3 * MB, second * 10_000.0, backends)
    assert wal.bytes_per_s == pytest.approx(9 * MB / 5)
    assert wal.others_per_s == pytest.approx(3 * MB)
    assert wal.bytes_per_row == pytest.approx(9 * MB / 50_000)


def test_a_process_that_ended_takes_nothing_back() -> None:
    wal = OwnWal(exact=True)
    wal.observe(0.0, 0.0, 0.0, {1: 0.0})
    wal.observe(1.0, 4 * MB, 1000.0, {1: 4 * MB})
    wal.observe(2.0, 4 * MB, 1000.0, {})
    assert wal.bytes_per_s == pytest.approx(2 * MB)
    assert wal.others_per_s == 0


def test_a_process_that_reports_late_does_not_make_others_negative() -> None:
    wal = OwnWal(exact=True)
    wal.observe(0.0, 0.0, 0.0, {1: 0.0})
    wal.observe(1.0, 1 * MB, 1000.0, {1: 3 * MB})
    assert (wal.bytes_per_s, wal.others_per_s) == (1 * MB, 0.0)


def test_the_estimate_is_near_the_truth_when_others_pause_now_and_then() -> None:
    rng = random.Random(3)
    wal = OwnWal(exact=False)
    position = rows = 0.0
    for second in range(60):
        wal.observe(float(second), position, rows)
        step = rng.uniform(5_000, 15_000)
        rows += step
        position += step * 200 * rng.uniform(0.95, 1.05) + (0 if second % 5 == 0 else rng.uniform(1, 9) * MB)
    assert wal.bytes_per_row == pytest.approx(200, rel=0.1)
    assert wal.bytes_per_s == pytest.approx(2 * MB, rel=0.3)
    assert wal.others_per_s is not None
    assert wal.total_per_s == pytest.approx(wal.bytes_per_s + wal.others_per_s)


def test_an_estimate_is_never_below_what_all_wal_allows() -> None:
    """It is an upper bound of a row's cost as long as nobody else wrote less than nothing."""
    wal = OwnWal(exact=False)
    for second in range(10):
        wal.observe(float(second), second * 10 * MB, second * 10_000.0)
    assert wal.bytes_per_row == pytest.approx(1000)


def test_idle_seconds_of_ours_say_nothing_about_a_row() -> None:
    wal = OwnWal(exact=False)
    for second in range(5):
        wal.observe(float(second), second * 10 * MB, second * 1.0)
    assert wal.bytes_per_row is None
    assert wal.bytes_per_s == 0.0
    assert wal.others_per_s == pytest.approx(10 * MB)


@pytest.mark.parametrize("exact", [True, False])
def test_what_a_row_costs_is_known_until_something_newer_is(exact: bool) -> None:
    wal = OwnWal(exact=exact)
    for second in range(5):
        wal.observe(float(second), second * MB, second * 1000.0, {1: second * MB})
    assert wal.bytes_per_row == pytest.approx(1000)
    # Others write a lot while we pause: that is not the price of our rows.
    for second in range(5, 600):
        wal.observe(float(second), 4 * MB + (second - 4) * 100 * MB, 4000.0, {1: 4 * MB})
        assert wal.bytes_per_row == pytest.approx(1000)
    assert wal.bytes_per_s == 0.0
    wal.observe(600.0, 60_000 * MB, 4200.0, {1: 4.2 * MB})
    assert wal.bytes_per_row == pytest.approx(1000), "one bad interval after a pause"
    here = 60_000 * MB
    for second in range(601, 621):
        rows, own = (second - 600) * 1000.0, (second - 600) * 2 * MB
        wal.observe(float(second), here + own, 4200.0 + rows, {1: 4.2 * MB + own})
    assert wal.bytes_per_row == pytest.approx(2000)


@pytest.mark.parametrize("exact", [True, False])
def test_few_rows_a_second_are_counted_together(exact: bool) -> None:
    """A crawling job has a price as well."""
    wal = OwnWal(exact=exact)
    for second in range(150):
        wal.observe(float(second), second * 1000.0, float(second), {1: second * 1000.0})
        assert (wal.bytes_per_row is None) == (second < 100)
    assert wal.bytes_per_row == pytest.approx(1000)


def test_what_others_wrote_long_before_our_rows_is_not_their_price() -> None:
    wal = OwnWal(exact=False)
    for second in range(600):
        wal.observe(float(second), second * MB, 0.0)
    wal.observe(600.0, 600 * MB, 1000.0)
    assert wal.bytes_per_row is not None
    assert wal.bytes_per_row <= 12 * MB / 1000


def test_rows_that_are_committed_by_the_chunk_pay_for_all_its_seconds() -> None:
    wal = OwnWal(exact=False)
    for second in range(31):
        wal.observe(float(second), second * MB, second // 3 * 3000.0)
    assert wal.bytes_per_row == pytest.approx(1000)


def test_another_server_begins_anew() -> None:
    wal = OwnWal(exact=False)
    wal.observe(0.0, 100 * MB, 1000.0)
    wal.observe(1.0, 101 * MB, 2000.0)
    wal.observe(2.0, 5 * MB, 3000.0)
    assert wal.total_per_s is None


def test_what_a_job_has_written_is_what_its_processes_wrote_since_the_first_look() -> None:
    wal = OwnWal(exact=True)
    wal.observe(0.0, 500 * MB, 10.0, {1: 100 * MB})
    assert wal.own_bytes == 0
    wal.observe(1.0, 520 * MB, 10.0, {1: 103 * MB, 2: 4 * MB})
    wal.observe(1.0, 520 * MB, 10.0, {1: 104 * MB, 2: 4 * MB})  # a look at the same moment
    wal.observe(2.0, 540 * MB, 90.0, {2: 5 * MB})
    assert wal.own_bytes == pytest.approx(9 * MB)


def test_rows_that_come_before_there_is_a_price_are_paid_for_when_there_is_one() -> None:
    wal = OwnWal(exact=False)
    for second, rows in enumerate((0.0, 40.0, 80.0, 120.0)):
        wal.observe(float(second), 500 * MB + rows * 1000, rows)
        assert wal.own_bytes == (0 if rows < 100 else 120 * 1000)


def test_what_a_job_has_written_follows_chunks_that_take_longer_than_a_look() -> None:
    wal = OwnWal(exact=False)
    for second in range(31):
        wal.observe(float(second), second * MB, second // 3 * 3000.0)
    assert wal.own_bytes == pytest.approx(30 * MB)


def test_a_job_has_written_no_more_than_the_server() -> None:
    """A price that has fallen is still the old one for a while."""
    wal = OwnWal(exact=False)
    position = 0.0
    for second in range(60):
        position += 2 * MB if second < 30 else MB
        wal.observe(float(second), position, second * 10_000.0)
        assert wal.own_bytes <= position
    assert wal.own_bytes >= 0.9 * (position - 2 * MB)  # the first look's


def test_what_others_write_while_a_job_pauses_is_not_its_own() -> None:
    wal = OwnWal(exact=False)
    for second in range(30):
        wal.observe(float(second), second * MB, second * 1000.0)
    for second in range(30, 45):
        wal.observe(float(second), 29 * MB + min(second - 29, 4) * 100 * MB, 29_000.0)
    assert wal.own_bytes == pytest.approx(29 * MB)
    wal.observe(45.0, 429.2 * MB, 30_000.0)  # rows are cheaper now than they are known to be
    assert wal.own_bytes == pytest.approx(29.2 * MB)


@pytest.mark.parametrize("exact", [True, False])
def test_another_server_takes_nothing_back(exact: bool) -> None:
    wal = OwnWal(exact=exact)
    for second in range(5):
        wal.observe(float(second), 100 * MB + second * MB, second * 1000.0, {1: second * MB})
    wal.observe(5.0, MB, 5000.0, {2: 0.0})
    assert wal.own_bytes == pytest.approx(4 * MB)
    wal.observe(6.0, 2 * MB, 6000.0, {2: MB})
    assert wal.own_bytes == pytest.approx(5 * MB)


def test_the_window_moves() -> None:
    wal = OwnWal(exact=True)
    for second in range(40):
        wal.observe(float(second), min(second, 20) * MB, 0.0, {})
    assert wal.total_per_s == 0
