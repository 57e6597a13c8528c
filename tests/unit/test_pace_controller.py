"""The law, step by step: stages, gates, reasons, and what it must never do whatever it is told."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.pace.controller import CRUMB_EVERY_S, FIRST_RATE_PER_S, Controller
from engine.pace.law import Decision, OnFailure, Reading, SignalPolicy, Situation, Stage, Statistic, Unit
from engine.pace.quiet import Slowdowns
from engine.pace.rate import START_SHARE, Rate, Tick
from engine.pace.response import TABLE, Response, at_pressure

LATENCY = SignalPolicy(
    name="read_latency",
    unit=Unit.SECONDS,
    target=0.005,
    foreground=True,
    statistic=Statistic.P90,
    on_failure=OnFailure.FREEZE,
)
LAG = SignalPolicy(name="replication_lag", unit=Unit.SECONDS, target=5.0, maximum=30.0, accumulates=True)
LOCKS = SignalPolicy(name="lock_waits", unit=Unit.SECONDS, maximum=1.0)
BASE = 0.002
FASTEST = 100_000.0
LEAST = 1.0
START = START_SHARE * FASTEST


class Run:
    """A controller, a clock, and signals that read what they are set to; ten readings a second."""

    def __init__(self, *policies: SignalPolicy, baselines: dict[str, tuple[float, float]] | None = None) -> None:
        self.law = Controller(
            policies,
            workers=4,
            min_rate_per_s=LEAST,
            chunk_target_s=0.25,
            rng=random.Random(1),
            baselines=baselines,
        )
        self.now = 100.0
        self.values: dict[str, float | None] = {policy.name: 0.0 for policy in policies}
        self.values["read_latency"] = BASE
        self.silent: set[str] = set()
        self.alone = False
        self.closed: dict[str, str] = {}
        self.ceiling: float | None = None
        self.capacity: float | None = FASTEST
        self.binding = True
        self.used = 0.0

    def step(self, seconds: float = 1.0) -> Decision:
        self.now += seconds
        readings = tuple(
            Reading(name, self.now - seconds + seconds * part / 10, value, error="" if value is not None else "refused")
            for part in range(1, 11)
            for name, value in self.values.items()
            if name not in self.silent
        )
        return self.law.step(
            Situation(
                now=self.now,
                readings=readings,
                used_per_s=self.used,
                binding=self.binding,
                capacity_per_s=self.capacity,
                alone=self.alone,
                closed=self.closed,
                ceiling_per_s=self.ceiling,
            )
        )

    def steps(self, count: int) -> list[Decision]:
        return [self.step() for _ in range(count)]

    def until(self, wanted: Callable[[Decision], bool], at_most: int = 200) -> Decision:
        for _ in range(at_most):
            decision = self.step()
            if wanted(decision):
                return decision
        raise AssertionError(f"not within {at_most} steps; last: {decision}")


def settled(*policies: SignalPolicy) -> Run:
    """With a known baseline, in slow start."""
    run = Run(*(policies or (LATENCY,)), baselines={"read_latency": (BASE, 0.0001)})
    run.until(lambda d: not d.held and (d.rate_per_s or 0) >= START)
    return run


# ------------------------------------------------------------------------------------------------- being alone


def test_alone_it_starts_at_once_at_full_speed() -> None:
    run = Run(LATENCY, LOCKS)
    run.alone, run.capacity = True, None
    decision = run.step()
    assert decision == replace(decision, rate_per_s=None, workers=None, chunk_target_s=None, held=False)
    assert decision.stage is Stage.ALONE
    assert decision.reason == decision.leads == ""


def test_alone_the_users_limit_leads() -> None:
    run = Run(LATENCY)
    run.alone, run.ceiling = True, 20_000.0
    decision = run.step()
    assert (decision.rate_per_s, decision.leads) == (20_000.0, "max_rows_per_s")
    assert decision.reason == "max_rows_per_s 20,000"


def test_alone_a_budget_still_gates() -> None:
    run = Run(LATENCY, LOCKS)
    run.alone = True
    run.values["lock_waits"] = 2.5
    decision = run.step()
    assert (decision.held, decision.leads, decision.reason) == (True, "lock_waits", "lock_waits 2.5s > 1s")


def test_alone_what_is_no_foreground_still_steers() -> None:
    run = Run(LATENCY, LAG)
    run.alone = True
    rates = [d.rate_per_s for d in run.steps(10)]
    assert all(rate is not None for rate in rates)
    assert run.step().chunk_target_s is None


def test_when_somebody_comes_the_baseline_is_measured_first() -> None:
    run = Run(LATENCY)
    run.alone = True
    run.steps(5)
    run.alone = False
    first = run.step()
    assert (first.stage, first.held, first.leads) == (Stage.BASELINE, True, "baseline")
    assert first.reason == "measuring latency without us"
    began = run.now
    decision = run.until(lambda d: not d.held)
    assert run.now - began == pytest.approx(2 + 5)  # what was under way drains first
    assert decision.stage is Stage.SLOW_START
    assert decision.rate_per_s == pytest.approx(START)
    assert run.law.baselines["read_latency"][0] == BASE


def test_before_the_first_chunk_nothing_has_to_drain() -> None:
    run = Run(LATENCY)
    began = run.now
    run.until(lambda d: not d.held)
    assert run.now - began == pytest.approx(5, abs=1)


def test_who_knows_the_baseline_need_not_hold() -> None:
    run = Run(LATENCY, baselines={"read_latency": (BASE, 0.0001)})
    assert not run.step().held


def test_somebody_who_comes_back_soon_finds_a_rate_and_later_a_new_baseline() -> None:
    run = settled()
    before = run.until(lambda d: (d.rate_per_s or 0) > 10 * START).rate_per_s
    assert before is not None
    run.alone = True
    assert run.steps(30)[-1].rate_per_s is None
    run.alone = False
    assert run.step().rate_per_s == pytest.approx(0.8 * before)
    run.alone = True
    run.steps(700)
    run.alone = False
    assert run.step().stage is Stage.BASELINE


# ------------------------------------------------------------------------------------------- the rate's own rules


def test_slow_start_doubles_at_most_every_delay_while_nothing_is_felt() -> None:
    run = settled()
    rates = [d.rate_per_s or 0 for d in run.steps(12)]
    growth = [b / a for a, b in zip(rates, rates[4:], strict=False)]
    assert max(growth) <= 2.0 + 1e-9
    assert rates[-1] > 4 * START


def test_over_the_target_the_rate_comes_down_by_as_much() -> None:
    run = settled()
    run.until(lambda d: (d.rate_per_s or 0) > 20_000)
    run.values["read_latency"] = 0.0053  # pressure 1.1
    rates = [d.rate_per_s or 0 for d in run.steps(20)]
    cuts = [b / a for a, b in itertools.pairwise(rates) if b < a]
    assert len(cuts) >= 3
    assert all(0.85 < cut < 0.95 for cut in cuts)
    assert run.step().stage is Stage.STEADY


def test_a_limit_that_holds_nobody_back_does_not_rise_and_decays_towards_what_is_used() -> None:
    run = settled()
    before = run.until(lambda d: (d.rate_per_s or 0) > 20_000).rate_per_s or 0
    run.binding, run.used = False, 8_000.0
    rates = [d.rate_per_s or 0 for d in run.steps(240)]
    assert all(b <= a for a, b in zip([before, *rates], rates, strict=False))
    assert rates[60] < before - 0.5 * (before - 10_000)
    assert rates[-1] == pytest.approx(1.25 * 8_000, rel=0.05)


def test_the_step_is_smaller_on_a_database_that_answers_strongly() -> None:
    def growth(slope: float) -> float:
        rate = Rate(1.0)
        rate.restart(1000.0, 0.0)
        now = 0.0
        for _ in range(40):
            now += 1.0
            tick = Tick(
                now=now,
                elapsed_s=1.0,
                pressure=slope * rate.per_s,
                room=1 / (slope * rate.per_s),
                delay_s=4.0,
                fastest_per_s=FASTEST,
                binding=True,
            )
            before, slow = rate.per_s, rate.slow_start
            rate.move(tick)
            if not slow and not rate.slow_start and rate.per_s > before:
                return (rate.per_s - before) / (1 - slope * before)
        raise AssertionError

    assert growth(1 / 50_000) == pytest.approx(0.02 * FASTEST, rel=0.01)
    assert growth(1 / 4_000) * 4.0 * (1 / 4_000) < 0.5


def test_a_ceiling_is_never_exceeded_and_says_so() -> None:
    run = settled()
    run.ceiling = 5_000.0
    decision = run.steps(40)[-1]
    assert (decision.rate_per_s, decision.leads, decision.reason) == (
        5_000.0,
        "max_rows_per_s",
        "max_rows_per_s 5,000",
    )


def test_before_the_capacity_is_known_a_first_chunk_can_run() -> None:
    run = Run(LATENCY, baselines={"read_latency": (BASE, 0.0)})
    run.capacity = None
    assert run.steps(3)[-1].rate_per_s == FIRST_RATE_PER_S
    run.capacity = FASTEST
    assert run.step().rate_per_s == pytest.approx(START)


def test_a_capacity_that_looks_smaller_for_a_while_does_not_make_it_timid() -> None:
    run = settled()
    run.until(lambda d: (d.rate_per_s or 0) > 20_000)
    run.values["read_latency"] = 0.0047
    run.steps(10)
    run.capacity = FASTEST / 10
    first, *_, last = run.steps(10)
    assert (last.rate_per_s or 0) - (first.rate_per_s or 0) > 9 * 0.01 * FASTEST * 0.1


def test_quick_steps_do_not_count_a_window_twice() -> None:
    run = settled()
    before = run.until(lambda d: (d.rate_per_s or 0) > 20_000).rate_per_s
    run.values["read_latency"] = 1.0
    run.step()
    assert not run.step(0.1).held
    assert run.step(0.05).rate_per_s == before
    assert run.step(0.9).held


# ------------------------------------------------------------------------------------------------------- gates


def test_what_the_caller_closes_admits_nothing_and_leads() -> None:
    run = settled()
    run.closed = {"window": "outside the windows 22:00-06:00 UTC; opens in 3h"}
    before = run.step()
    assert (before.held, before.leads, before.reason) == (True, "window", run.closed["window"])
    assert all(d.held for d in run.steps(300))
    run.closed = {}
    assert run.step().rate_per_s == pytest.approx(before.rate_per_s)


def test_a_breached_budget_halves_the_rate_once() -> None:
    run = settled(LATENCY, LOCKS)
    before = run.until(lambda d: (d.rate_per_s or 0) > 20_000).rate_per_s or 0
    run.values["lock_waits"], run.binding, run.used = 3.0, False, before
    run.until(lambda d: d.held, at_most=3)
    assert all(d.held for d in run.steps(20))
    run.values["lock_waits"] = 0.0
    after = run.until(lambda d: not d.held, at_most=4).rate_per_s or 0
    assert after == pytest.approx(before / 2, rel=0.01)


def test_a_lag_says_why_and_goes_on_by_itself() -> None:
    run = settled(LATENCY, LAG)
    run.values["replication_lag"] = 45.0
    decision = run.until(lambda d: d.held)
    assert decision.reason == "replication_lag 45s > 30s"
    run.values["replication_lag"] = 1.0
    run.until(lambda d: not d.held, at_most=5)


def test_a_budget_without_readings_is_closed() -> None:
    run = settled(LATENCY, LOCKS)
    run.silent = {"lock_waits"}
    assert [d.held for d in run.steps(5)] == [False] * 5
    assert run.step().reason == "lock_waits: no reading for 6s"


def test_twice_the_pressure_closes_in_two_ticks_and_opens_below_the_target() -> None:
    run = settled()
    before = run.until(lambda d: (d.rate_per_s or 0) > 20_000).rate_per_s or 0
    run.values["read_latency"] = 0.031
    first, second = run.steps(2)
    assert (first.held, second.held) == (False, True)
    assert second.reason == "read_latency 31ms > 5ms"
    assert second.leads == "read_latency"
    assert (second.rate_per_s or 0) == pytest.approx(before / 2)
    run.values["read_latency"] = BASE
    assert run.until(lambda d: not d.held, at_most=4).stage is Stage.SLOW_START


def test_the_gate_halves_even_right_after_a_small_cut() -> None:
    run = settled()
    run.until(lambda d: (d.rate_per_s or 0) > 20_000)
    run.values["read_latency"] = 0.0053
    run.until(lambda d: d.stage is Stage.STEADY)
    before = run.step().rate_per_s or 0
    run.values["read_latency"] = 0.031
    held = run.until(lambda d: d.held, at_most=3)
    assert (held.rate_per_s or 0) < 0.6 * before


def test_against_gauges_one_chunk_a_minute_passes() -> None:
    run = settled()
    run.values["read_latency"] = 1.0
    run.until(lambda d: d.held)
    passed = [d for d in run.steps(3 * int(CRUMB_EVERY_S) + 5) if not d.held]
    assert len(passed) == 3
    assert all(d.rate_per_s == LEAST and d.stage is Stage.HELD for d in passed)


def test_a_silent_gauge_freezes_the_rate_and_says_so() -> None:
    run = settled()
    run.until(lambda d: (d.rate_per_s or 0) > 5_000)
    run.silent = {"read_latency"}
    rates = [d.rate_per_s or 0 for d in run.steps(30)]
    assert rates[10:] == [rates[9]] * 20
    decision = run.step()
    assert (decision.leads, decision.reason) == ("read_latency", "read_latency: no reading for 31s")
    run.silent = set()
    assert (run.steps(10)[-1].rate_per_s or 0) > rates[-1]


def test_what_was_not_allowed_while_frozen_is_not_caught_up_afterwards() -> None:
    commit = replace(LATENCY, name="commit_latency")
    run = Run(LATENCY, commit, baselines={"read_latency": (BASE, 0.0), "commit_latency": (BASE, 0.0)})
    run.values["commit_latency"] = BASE
    run.until(lambda d: (d.rate_per_s or 0) > 5_000)
    run.silent = {"commit_latency"}
    before = run.steps(8)[-1].rate_per_s or 0
    run.steps(60)
    run.silent = set()
    assert (run.step().rate_per_s or 0) <= 2 * before


def test_a_delay_that_was_seen_at_a_gate_slows_the_law_down() -> None:
    def gap_after(held_s: int) -> float:
        run = settled()
        run.until(lambda d: (d.rate_per_s or 0) > 5_000)
        run.values["read_latency"] = 0.031
        run.until(lambda d: d.held)
        run.steps(held_s)
        run.values["read_latency"] = BASE
        opened = run.until(lambda d: not d.held)
        began = run.now
        run.until(lambda d: (d.rate_per_s or 0) > (opened.rate_per_s or 0))
        return run.now - began

    assert gap_after(1) == pytest.approx(4, abs=1)
    assert gap_after(12) > 10


def test_a_gauge_that_never_answered_lets_the_job_creep() -> None:
    run = Run(LATENCY)
    run.values["read_latency"] = None
    decision = run.steps(60)[-1]
    assert not decision.held
    assert decision.rate_per_s == FIRST_RATE_PER_S
    assert decision.reason == "read_latency: failed (refused)"
    run.values["read_latency"] = BASE
    assert run.step().stage is Stage.BASELINE or run.until(lambda d: d.stage is Stage.BASELINE, at_most=5)
    assert (run.until(lambda d: not d.held).rate_per_s or 0) == pytest.approx(START)


def test_a_signal_that_may_be_ignored_is() -> None:
    custom = SignalPolicy(name="queue", unit=Unit.COUNT, maximum=10.0, on_failure=OnFailure.IGNORE)
    run = settled(LATENCY, custom)
    run.values["queue"] = None
    assert not any(d.held for d in run.steps(20))


# ------------------------------------------------------------------------------------- baseline, slowdown, words


def test_a_learnt_target_is_checked_now_and_then_and_a_given_one_is_not() -> None:
    def slowdowns(policy: SignalPolicy) -> list[Decision]:
        run = settled(policy)
        run.until(lambda d: (d.rate_per_s or 0) > 20_000)
        run.values["read_latency"] = 0.0037
        return [d for d in run.steps(300) if d.stage is Stage.SLOWDOWN]

    slow = slowdowns(replace(LATENCY, target=None, learns=True))
    assert 2 * 7 <= len(slow) <= 3 * 8
    assert {d.rate_per_s for d in slow} == {LEAST}
    assert {(d.leads, d.reason) for d in slow} == {("slowdown", "measuring latency without us")}
    assert slowdowns(LATENCY) == []


def test_slowdowns_take_at_most_a_tenth_of_the_time_and_become_rarer() -> None:
    slowdowns = Slowdowns(random.Random(3))
    begun: list[float] = []
    now = 0.0
    while now < 4000:
        now += 1.0
        if slowdowns.runs(now, wanted=True, may_begin=True):
            begun.append(now)
            now += 8.0
            slowdowns.measured(0.0)
    gaps = [b - a for a, b in itertools.pairwise(begun)]
    assert min(gaps) >= 70
    assert gaps[-1] > 600


def test_a_foreground_that_grew_is_learnt_after_a_minute_at_next_to_nothing() -> None:
    run = settled(replace(LATENCY, target=None, learns=True))
    run.values["read_latency"] = 0.0035
    run.steps(20)
    run.values["read_latency"] = 0.0200
    run.until(lambda d: d.held)
    run.steps(55)
    assert run.law.baselines["read_latency"][0] == pytest.approx(BASE, rel=0.3)
    run.steps(20)
    assert run.law.baselines["read_latency"][0] > 1.5 * BASE


def test_the_largest_pressure_leads() -> None:
    commit = replace(LATENCY, name="commit_latency", target=0.020)
    run = Run(LATENCY, commit, baselines={"read_latency": (BASE, 0.0), "commit_latency": (0.002, 0.0)})
    run.values |= {"read_latency": 0.0035, "commit_latency": 0.004}
    decision = run.steps(5)[-1]
    assert (decision.leads, decision.reason) == ("read_latency", "read_latency 3.5ms of 5ms")
    assert decision.pressure == pytest.approx(0.5)
    run.values["commit_latency"] = 0.031
    decision = run.steps(6)[-1]
    assert (decision.leads, decision.reason) == ("commit_latency", "commit_latency 31ms > 20ms")
    view = {v.name: v for v in decision.signals}["commit_latency"]
    assert (view.value, view.target, view.baseline, view.error) == (0.031, 0.020, 0.002, "")


def test_a_target_too_near_the_baseline_is_named() -> None:
    run = Run(replace(LATENCY, target=0.002), baselines={"read_latency": (0.0019, 0.0)})
    run.values["read_latency"] = 0.0021
    decision = run.steps(5)[-1]
    assert decision.reason == "read_latency: target 2ms is below 1.25 x the baseline 1.9ms"
    rates = [d.rate_per_s or 0 for d in run.steps(120)]
    assert rates[-1] < 0.05 * rates[0]


def test_live_changes_keep_the_baseline() -> None:
    run = settled()
    run.law.change([replace(LATENCY, target=0.020), LOCKS], workers=2)
    run.values["lock_waits"] = 0.0
    decision = run.step()
    assert not decision.held
    assert {v.name: v.target for v in decision.signals} == {"read_latency": 0.020, "lock_waits": None}
    run.law.change([], workers=2)
    assert run.step().rate_per_s is None


# ----------------------------------------------------------------------------------------- chunks and workers


def test_chunks_are_short_beside_a_foreground_and_shorter_under_pressure() -> None:
    run = settled()
    assert run.step().chunk_target_s == pytest.approx(0.025)
    run.values["read_latency"] = 0.005
    assert run.steps(5)[-1].chunk_target_s == pytest.approx(0.005)
    run.values["read_latency"] = BASE
    slowly = [d.chunk_target_s or 0 for d in run.steps(40)]
    assert slowly == sorted(slowly)
    assert slowly[4] < 0.02 < slowly[-1]


@given(st.floats(0, 5), st.floats(0, 5))
def test_the_table_only_falls(low: float, high: float) -> None:
    low, high = sorted((low, high))
    calm, pressed = at_pressure(low), at_pressure(high)
    assert TABLE[0].chunk_s >= calm.chunk_s >= pressed.chunk_s >= TABLE[-1].chunk_s
    assert calm.headroom >= pressed.headroom >= 1


def test_workers_come_at_once_and_leave_slowly() -> None:
    response = Response(0.25, 8)
    response.follow(1.0, 1.0)
    assert response.active(1_000.0, 80_000.0, 0.0) == 1
    assert response.active(35_000.0, 80_000.0, 1.0) == 4
    assert response.active(15_000.0, 80_000.0, 2.0) == 4
    assert response.active(15_000.0, 80_000.0, 13.0) == 2
    assert response.active(1e9, 80_000.0, 14.0) == 8
    assert response.active(1_000.0, None, 15.0) is None


def test_a_job_with_shorter_chunks_of_its_own_keeps_them() -> None:
    assert Response(0.010, 1).chunk_s() == 0.010


# ------------------------------------------------------------------------------------- whatever it is told

values = st.one_of(
    st.none(), st.just(math.nan), st.just(-1.0), st.floats(0, 0.02), st.floats(0, 100), st.just(math.inf)
)
moments = st.fixed_dictionaries(
    {
        "passed_s": st.sampled_from([0.01, 0.5, 1.0, 1.0, 1.0, 7.0]),
        "latency": st.one_of(st.just("silent"), values),
        "lag": st.one_of(st.just("silent"), values),
        "alone": st.sampled_from([False, False, False, True]),
        "binding": st.booleans(),
        "used": st.floats(0, 1e5),
        "capacity": st.one_of(st.none(), st.floats(1, 1e6)),
        "ceiling": st.sampled_from([None, 50.0, 20_000.0]),
        "closed": st.sampled_from([{}, {}, {}, {"window": "closed"}]),
        "repeat": st.integers(1, 12),
    }
)
kinds = st.sampled_from(
    [
        (LATENCY, LAG),
        (replace(LATENCY, target=None, learns=True), LAG),
        (LATENCY, replace(LAG, target=None)),
        (LATENCY, replace(LAG, on_failure=OnFailure.FREEZE)),
    ]
)


@settings(max_examples=150, deadline=None)
@given(policies=kinds, script=st.lists(moments, min_size=1, max_size=12))
def test_it_never_rises_blindly_nor_admits_anything_through_a_closed_gate(
    policies: tuple[SignalPolicy, ...], script: list[dict]
) -> None:
    law = Controller(policies, workers=3, min_rate_per_s=LEAST, chunk_target_s=0.25, rng=random.Random(0))
    now = 0.0
    last_good = {policy.name: -math.inf for policy in policies}
    failing = dict.fromkeys(last_good, False)
    admitted: float | None = None  # the rate that was allowed last, None before and without a limit
    for moment in script:
        for _ in range(moment["repeat"]):
            now += moment["passed_s"]
            readings = []
            for name, value in (("read_latency", moment["latency"]), ("replication_lag", moment["lag"])):
                if value == "silent":
                    continue
                readings.append(Reading(name, now, value))
                good = value is not None and math.isfinite(value) and value >= 0
                failing[name] = not good
                if good:
                    last_good[name] = now
            decision = law.step(
                Situation(
                    now=now,
                    readings=tuple(readings),
                    used_per_s=moment["used"],
                    binding=moment["binding"],
                    capacity_per_s=moment["capacity"],
                    alone=moment["alone"],
                    closed=moment["closed"],
                    ceiling_per_s=moment["ceiling"],
                )
            )
            counting = [p for p in policies if not (p.foreground and moment["alone"])]
            blind = [p for p in counting if failing[p.name] or now - last_good[p.name] > p.stale_after_s]
            ceiling, rate = moment["ceiling"], decision.rate_per_s
            assert rate is None or (math.isfinite(rate) and rate >= min(LEAST, ceiling or LEAST))
            assert ceiling is None or (rate is not None and rate <= ceiling)
            if moment["closed"] or any(p.on_failure is OnFailure.HOLD for p in blind):
                assert decision.held
                assert decision.reason
            lag = moment["lag"]
            if isinstance(lag, float) and lag > 30 and math.isfinite(lag) and decision.signals[1].value == lag:
                assert decision.held
            if decision.held:
                continue
            if any(p.steers for p in blind) and admitted is not None and rate is not None:
                assert rate <= admitted or rate <= LEAST
            admitted = rate
