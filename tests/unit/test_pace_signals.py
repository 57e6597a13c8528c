"""One signal: its window, baseline, target, pressure and gate, and how all that is said."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pace.baseline import HIGHEST_GROWTH, Baseline
from engine.pace.law import OnFailure, Reading, SignalPolicy, Statistic, Unit
from engine.pace.quantity import format_comparison, format_value
from engine.pace.signals import LEAST_SPAN, Signal

LATENCY = SignalPolicy(
    name="read_latency",
    unit=Unit.SECONDS,
    learns=True,
    foreground=True,
    statistic=Statistic.P90,
    on_failure=OnFailure.FREEZE,
)
LAG = SignalPolicy(name="replication_lag", unit=Unit.SECONDS, target=5.0, maximum=30.0, accumulates=True)
QUEUE = SignalPolicy(name="queue", unit=Unit.COUNT, target=100.0, maximum=1000.0)


def feed(signal: Signal, values: list[float], *, until: float, every_s: float = 0.1) -> None:
    """Readings that end at ``until``."""
    begin = until - every_s * (len(values) - 1)
    for number, value in enumerate(values):
        signal.add(Reading(signal.policy.name, begin + number * every_s, value))


def learnt(policy: SignalPolicy, baseline: float, deviation: float = 0.0) -> Signal:
    signal = Signal(policy)
    signal.adopt(baseline, deviation, 0.0)
    return signal


# ------------------------------------------------------------------------------------------------ values and ages


def test_the_value_is_the_statistic_of_the_last_window() -> None:
    signal = Signal(LATENCY)
    feed(signal, [9.0] * 30, until=5.0)
    feed(signal, [0.001 * n for n in range(1, 31)], until=10.0)
    assert signal.value(10.0) == pytest.approx(0.027)
    assert Signal(replace(LATENCY, statistic=Statistic.MEDIAN)).value(10.0) is None
    last = Signal(replace(LATENCY, statistic=Statistic.LAST))
    feed(last, [3.0, 2.0, 1.0], until=10.0)
    assert last.value(10.0) == 1.0


def test_an_empty_window_keeps_the_last_reading_until_it_is_stale() -> None:
    signal = Signal(LATENCY)
    feed(signal, [0.004, 0.002], until=10.0)
    assert signal.value(14.9) == 0.002
    assert signal.value(15.1) is None
    assert signal.age(15.1) == pytest.approx(5.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, None])
def test_what_is_no_number_that_can_be_is_a_failure(value: float | None) -> None:
    signal = Signal(QUEUE)
    feed(signal, [10.0], until=1.0)
    assert signal.gate(1.0) is None
    signal.add(Reading("queue", 1.5, value, error="permission denied for table jobs"))
    assert signal.gate(1.5) == "queue: failed (permission denied for table jobs)"
    assert signal.value(1.5) == 10.0
    feed(signal, [11.0], until=2.0)
    assert signal.gate(2.0) is None


def test_a_late_answer_does_not_move_time_back() -> None:
    signal = Signal(QUEUE)
    feed(signal, [10.0], until=5.0)
    feed(signal, [90.0], until=4.0)
    assert signal.value(5.0) == 10.0


@given(
    st.lists(
        st.tuples(st.floats(-1, 3), st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))), max_size=40
    )
)
def test_no_reading_whatever_makes_a_value_that_cannot_be(steps: list[tuple[float, float | None]]) -> None:
    signal = learnt(LATENCY, 0.002)
    now = 0.0
    for passed_s, value in steps:
        now += max(0.0, passed_s)
        signal.add(Reading("read_latency", now + min(0.0, passed_s), value))
        found, pressure = signal.value(now), signal.pressure(now)
        assert found is None or (math.isfinite(found) and found >= 0)
        assert pressure is None or (not math.isnan(pressure) and pressure >= 0)
        steady = signal.steady_pressure(now, -math.inf)
        assert (steady is None) is (pressure is None)


# ------------------------------------------------------------------------------------------ baseline and target


@pytest.mark.parametrize(
    ("baseline", "deviation", "target"),
    [(0.010, 0.0001, 0.015), (0.001, 0.0001, 0.003), (0.010, 0.002, 0.018)],
)
def test_a_learnt_target_is_the_largest_of_three(baseline: float, deviation: float, target: float) -> None:
    assert learnt(LATENCY, baseline, deviation).target == pytest.approx(target)


def test_the_baseline_is_measured_like_the_value() -> None:
    signal = Signal(LATENCY)
    rng = random.Random(1)
    feed(signal, [9.0] * 10, until=1.0)
    feed(signal, [rng.uniform(0.001, 0.002) for _ in range(50)], until=10.0)
    assert signal.needs_baseline
    assert signal.learn(10.0, since=5.0)
    assert signal.baseline == pytest.approx(0.0019, rel=0.05)
    assert not signal.needs_baseline
    assert not signal.learn(30.0, since=20.0)


def test_a_given_target_wins_and_can_change_without_forgetting() -> None:
    signal = learnt(LATENCY, 0.002)
    feed(signal, [0.004] * 10, until=10.0)
    signal.replace(replace(LATENCY, target=0.006))
    assert signal.target == 0.006
    assert signal.pressure(10.0) == pytest.approx(0.5)
    signal.replace(LATENCY)
    assert signal.target == pytest.approx(0.004)


def test_a_much_lower_baseline_counts_at_once_and_a_higher_one_only_when_it_starves() -> None:
    baseline = Baseline(Unit.SECONDS)
    baseline.take(0.010, 0.001, 0.0)
    baseline.take(0.020, 0.001, 10.0)
    assert baseline.value == 0.010  # another job was running
    baseline.take(0.011, 0.001, 20.0)
    assert baseline.value == pytest.approx(0.0103)
    baseline.take(0.005, 0.001, 30.0)
    assert baseline.value == 0.005
    baseline.take(0.009, 0.001, 40.0, starved=True)
    assert baseline.value == 0.009
    baseline.take(0.090, 0.001, 50.0, starved=True)
    assert baseline.value == pytest.approx(HIGHEST_GROWTH * 0.005)
    baseline.take(0.090, 0.001, 60.0, anew=True)
    assert baseline.value == 0.090


def test_small_steps_do_not_carry_a_baseline_beyond_twice_the_lowest() -> None:
    baseline = Baseline(Unit.SECONDS)
    baseline.take(0.010, 0.001, 0.0)
    for number in range(100):
        baseline.take(1.19 * (baseline.value or 0.0), 0.001, 10.0 * (number + 1))
    assert baseline.value == pytest.approx(HIGHEST_GROWTH * 0.010)


# ---------------------------------------------------------------------------------------------------- pressure


def test_pressure_is_0_at_the_baseline_and_1_at_the_target() -> None:
    signal = learnt(replace(LATENCY, target=0.006), 0.002)
    for value, pressure in ((0.001, 0.0), (0.002, 0.0), (0.004, 0.5), (0.006, 1.0), (0.010, 2.0)):
        signal = learnt(signal.policy, 0.002)
        feed(signal, [value] * 10, until=5.0)
        assert signal.pressure(5.0) == pytest.approx(pressure)


def test_noise_is_looked_at_for_longer_but_not_beyond_a_jump() -> None:
    rng = random.Random(3)
    signal = learnt(replace(LATENCY, target=0.006), 0.002)
    feed(signal, [0.004 * rng.lognormvariate(0, 0.5) for _ in range(200)], until=20.0)
    found = signal.steady_pressure(20.0, since=0.0)
    assert found is not None
    assert found[2] == pytest.approx(18.0)
    after_jump = signal.steady_pressure(20.0, since=15.0)
    assert after_jump is not None
    assert after_jump[2] == pytest.approx(5.0)
    assert after_jump[1] > found[1] > 0
    calm = learnt(signal.policy, 0.002)
    feed(calm, [0.004 * rng.lognormvariate(0, 0.05) for _ in range(200)], until=20.0)
    found = calm.steady_pressure(20.0, since=0.0)
    assert found is not None
    assert found[2] == LATENCY.window_s


def test_a_target_below_the_baseline_is_said_and_leaves_a_least_span() -> None:
    signal = learnt(replace(LATENCY, target=0.002), 0.0019)
    feed(signal, [0.002] * 10, until=5.0)
    assert signal.misfit == "read_latency: target 2ms is below 1.25 x the baseline 1.9ms"
    assert signal.view(5.0).error == signal.misfit
    assert signal.pressure(5.0) == pytest.approx(1.0)
    feed(signal, [0.002 * (1 + LEAST_SPAN)] * 40, until=10.0)
    assert signal.pressure(10.0) == pytest.approx(2.0)
    assert learnt(replace(LATENCY, target=0.0024), 0.0019).misfit == ""


def test_a_lag_is_led_by_its_growth() -> None:
    standing, growing = Signal(LAG), Signal(LAG)
    feed(standing, [2.0] * 10, until=10.0, every_s=1.0)
    feed(growing, [0.2 * n for n in range(11)], until=10.0, every_s=1.0)
    assert standing.pressure(10.0) == pytest.approx(0.4)
    assert growing.pressure(10.0) == pytest.approx((1.8 + 2.0) / 5)


def test_only_what_is_said_to_accumulate_does() -> None:
    age = replace(LAG, name="oldest_order", accumulates=False)
    signal = Signal(age)
    feed(signal, [0.2 * n for n in range(11)], until=10.0, every_s=1.0)
    assert signal.pressure(10.0) == pytest.approx(1.8 / 5)
    assert signal.needs_baseline
    assert not Signal(LAG).needs_baseline
    assert not Signal(replace(LAG, unit=Unit.BYTES)).needs_baseline


def test_room_is_what_a_queue_would_give() -> None:
    """At 2 ms / (1 - load): from the pressure at any rate to the rate at the target."""
    baseline, target, at_target = 0.002 / 0.7, 0.005, 0.3
    signal = learnt(replace(LATENCY, target=target), baseline)
    for rate in (0.05, 0.1, 0.2, 0.29):
        latency = 0.002 / (1 - 0.3 - rate)
        assert rate * signal.room((latency - baseline) / (target - baseline)) == pytest.approx(at_target)
    assert signal.room(0.0) == math.inf
    assert signal.room(1.0) == signal.room(3.0) == 1.0
    assert learnt(QUEUE, 0.0).room(0.25) == pytest.approx(4.0)


# --------------------------------------------------------------------------------------------------------- gate


def test_a_budget_closes_over_its_maximum_and_opens_again_well_below() -> None:
    signal = Signal(LAG)
    reasons = []
    for second, value in enumerate((29.0, 30.0, 45.0, 29.0, 26.9, 29.0)):
        signal = signal if second else Signal(replace(LAG, target=None, statistic=Statistic.LAST))
        feed(signal, [value], until=float(second))
        reasons.append(signal.gate(float(second)))
    assert reasons == [
        None,
        None,
        "replication_lag 45s > 30s",
        "replication_lag 29s not yet below 27s",
        None,
        None,
    ]


def test_a_budget_of_zero_is_a_switch() -> None:
    check = Signal(SignalPolicy(name="freno", unit=Unit.COUNT, maximum=0.0, statistic=Statistic.LAST))
    feed(check, [0.0], until=1.0)
    assert check.gate(1.0) is None
    feed(check, [1.0], until=2.0)
    assert check.gate(2.0) == "freno 1 > 0"
    feed(check, [0.0], until=3.0)
    assert check.gate(3.0) is None


def test_without_a_reading_it_is_closed_unless_it_says_otherwise() -> None:
    hold, freeze = Signal(LAG), Signal(LATENCY)
    ignore = Signal(replace(QUEUE, on_failure=OnFailure.IGNORE))
    assert hold.gate(0.0) == "replication_lag: no reading yet"
    feed(hold, [1.0], until=0.0)
    assert hold.gate(4.0) is None
    assert hold.gate(12.0) == "replication_lag: no reading for 12s"
    assert freeze.gate(12.0) is None
    assert freeze.trouble(12.0) == "read_latency: no reading yet"
    feed(ignore, [2000.0], until=0.0)
    assert ignore.gate(0.0) == "queue 2,000 > 1,000"
    assert ignore.gate(12.0) is None


def test_a_breach_outlasts_the_readings_of_a_budget_that_only_freezes() -> None:
    signal = Signal(replace(QUEUE, on_failure=OnFailure.FREEZE))
    feed(signal, [2000.0], until=0.0)
    assert signal.gate(0.0) is not None
    assert signal.gate(12.0) == "queue: no reading for 12s"


# -------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.031, Unit.SECONDS, "31ms"),
        (0.0019, Unit.SECONDS, "1.9ms"),
        (0.00025, Unit.SECONDS, "0.25ms"),
        (0.25, Unit.SECONDS, "250ms"),
        (1.5, Unit.SECONDS, "1.5s"),
        (45.2, Unit.SECONDS, "45s"),
        (0.0, Unit.SECONDS, "0s"),
        (1234.0, Unit.SECONDS, "1,234s"),
        (1200.0, Unit.COUNT, "1,200"),
        (0.2, Unit.COUNT, "0.2"),
        (0.2, Unit.RATIO, "20%"),
        (512.0, Unit.BYTES, "512 bytes"),
        (100 * 2**20, Unit.BYTES, "100MiB"),
        (1.5 * 2**30, Unit.BYTES, "1.5GiB"),
        (50 * 2**20, Unit.BYTES_PER_S, "50MiB/s"),
    ],
)
def test_values_read_well(value: float, unit: Unit, text: str) -> None:
    assert format_value(value, unit) == text


def test_a_comparison_shows_that_the_two_differ() -> None:
    assert format_comparison(0.031, ">", 0.020, Unit.SECONDS) == "31ms > 20ms"
    assert format_comparison(0.00203, ">", 0.002, Unit.SECONDS) == "2.03ms > 2ms"
    assert format_comparison(30.2, ">", 30.0, Unit.SECONDS) == "30.2s > 30s"
    assert format_comparison(100.4, ">", 100.0, Unit.COUNT) == "100.4 > 100"
