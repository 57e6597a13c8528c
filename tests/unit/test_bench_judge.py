"""What the foreground benchmark makes of latencies and commits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.judge import back_under_s, declared_target_s, rate_per_second, regained_s, share_within, tails
from bench.openloop import Answers, ForegroundFailed, read_log, together

LIMIT_S = 0.010


def answers(*, until: float, slow: tuple[float, float] = (0.0, 0.0), start: float = 1_000.0) -> Answers:
    """A hundred transactions a second of 1 ms; of 50 ms between two moments."""
    due_at = start + np.arange(0, until, 0.01)
    inside = (due_at >= start + slow[0]) & (due_at < start + slow[1])
    return Answers(due_at, np.where(inside, 0.050, 0.001))


def test_a_transaction_belongs_to_the_moment_when_it_was_due() -> None:
    found = read_log(["0 1 2500000 0 1700000010 500000 2400000", "1 1 1000 0 1700000009 0 20"])
    assert found.due_at.tolist() == pytest.approx([1700000008.0, 1700000008.999])
    assert found.latency_s.tolist() == pytest.approx([2.5, 0.001])


def test_a_failed_transaction_is_no_latency() -> None:
    with pytest.raises(ForegroundFailed, match="failed"):
        read_log(["0 1 1000 0 1700000010 5 0", "0 2 failed 0 1700000010 6 0"])


def test_two_foregrounds_are_one_in_order() -> None:
    found = together([Answers(np.array([3.0, 5.0]), np.array([0.3, 0.5])), Answers(np.array([4.0]), np.array([0.4]))])
    assert found.latency_s.tolist() == [0.3, 0.4, 0.5]
    assert len(together([])) == 0


def test_a_percentile_is_a_latency_that_somebody_saw() -> None:
    latencies = Answers(np.zeros(100), np.linspace(0.001, 0.1, 100))
    assert latencies.quantile_s(0.99) in latencies.latency_s
    assert math.isnan(Answers.none().quantile_s(0.99))


def test_windows_slide_by_a_second_and_lie_within_the_interval() -> None:
    ends, found = tails(answers(until=10), 1_000.0, 1_010.0)
    assert ends.tolist() == pytest.approx([1_003.0 + n for n in range(8)])
    assert (found == 0.001).all()


def test_an_interval_shorter_than_a_window_is_one() -> None:
    ends, _ = tails(answers(until=10), 1_001.0, 1_002.5)
    assert ends.tolist() == [1_002.5]
    assert len(tails(answers(until=10), 1_002.0, 1_002.0)[0]) == 0


def test_one_slow_moment_costs_the_windows_that_see_it() -> None:
    seen = answers(until=10, slow=(5.2, 5.4))
    # Windows that end at 6, 7 and 8 s hold it: 20 of 300 transactions are more than one in a hundred.
    assert share_within(seen, 1_000.0, 1_010.0, LIMIT_S) == pytest.approx(5 / 8)
    assert math.isnan(share_within(Answers.none(), 1_000.0, 1_010.0, LIMIT_S))


@pytest.mark.parametrize(
    ("slow", "expected"),
    [
        ((0.0, 0.0), 0.0),  # never left
        ((20.0, 27.0), 10.0),  # 7 s of it, and 3 s until a window holds none of it
        ((25.0, 27.0), 10.0),  # it counts from the step, not from when the trouble began
        ((40.0, 41.0), 0.0),  # long after the step: no answer to it
        ((20.0, 60.0), math.inf),
    ],
)
def test_back_under_the_limit_counts_from_the_step(slow: tuple[float, float], expected: float) -> None:
    ends, found = tails(answers(until=60, slow=slow), 1_000.0, 1_060.0)
    assert back_under_s(ends, found, LIMIT_S, 1_020.0) == pytest.approx(expected)


def test_a_moment_of_calm_is_not_back_under_the_limit() -> None:
    ends = np.arange(1.0, 21.0)
    found = np.full(20, 0.001)
    found[[0, 1, 2, 7, 8]] = 0.050  # over until 3 s, under for four windows, over until 9 s
    assert back_under_s(ends, found, LIMIT_S, 0.0) == 10.0


def test_rates_are_rows_of_whole_seconds() -> None:
    at = np.array([0.1, 0.9, 1.5, 3.2])
    assert rate_per_second(at, np.array([10.0, 5.0, 7.0, 100.0]), 0.0, 3.0).tolist() == [15.0, 7.0, 0.0]
    assert rate_per_second(at, np.ones(4), 0.0, 0.5).tolist() == []


def test_regained_when_the_average_is_and_not_when_one_lump_is() -> None:
    rates = np.array([0.0] * 10 + [500.0] + [0.0] * 9 + [100.0] * 20)
    assert regained_s(rates, 90.0) == 11.0  # a lump as large as five seconds' work is five seconds' work
    assert regained_s(np.array([0.0, 200.0, 0.0, 0.0] + [100.0] * 10), 90.0) == 9.0
    assert regained_s(np.zeros(30), 90.0) == math.inf
    assert regained_s(np.zeros(30), 0.0) == 0.0


def test_the_target_leaves_room_however_fast_the_foreground_is_alone() -> None:
    assert declared_target_s(0.001) == pytest.approx(0.011)
    assert declared_target_s(0.020) == pytest.approx(0.060)
