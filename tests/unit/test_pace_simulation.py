"""The law against the simulated database of ``bench.plant``: each criterion of its table, over several seeds."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from bench.laws import COMPARATORS
from bench.plant import SERVICE_S, Conditions, Plant, goal_of, simulate, spare_per_s
from bench.simulate import (
    CRITERIA,
    LEARNT,
    OURS,
    SETTLED_S,
    jain,
    main,
    make,
    noisy,
    paired,
    spoiled,
    steady,
    stepped,
    strange,
)

SEEDS = range(1, 6)


def over_seeds(scenario, name: str = OURS, seeds=SEEDS) -> dict[str, list[float]]:
    runs = [scenario(name, seed) for seed in seeds]
    return {key: [run[key] for run in runs] for key in runs[0]}


def reached(found: dict[str, list[float]]) -> dict[str, bool]:
    """Whether the median of the seeds is within the criterion."""
    targets = {key: CRITERIA[key].target for key in found}
    return {key: t.is_reached_by(statistics.median(found[key])) for key, t in targets.items() if t is not None}


def test_cold_start_and_steady_state() -> None:
    found = over_seeds(steady)
    assert reached(found) == dict.fromkeys(("cold", "overshoot", "used", "ripple", "over"), True), found
    assert max(found["over"]) == 0
    assert max(found["overshoot"]) < 1.2


@pytest.mark.parametrize("foreground", [0.1, 0.5, 0.7])
def test_the_same_at_other_loads(foreground: float) -> None:
    conditions = Conditions(foreground=lambda _at: foreground)
    goal = goal_of(conditions, foreground)
    spare = spare_per_s(conditions, goal, foreground)
    trace = simulate([make(OURS, goal.target_s, 5)], conditions, seconds=400, seed=5)
    rates, pressures = np.array(trace.rates[0]), trace.pressures(goal)
    assert rates[SETTLED_S:].mean() >= 0.9 * spare
    assert int(np.argmax(rates >= 0.9 * spare)) - 5 <= 35
    assert pressures.max() < 1.2


def test_the_foreground_steps_up_and_down() -> None:
    found = over_seeds(stepped)
    assert reached(found) == dict.fromkeys(("back", "stop", "down"), True), found
    assert max(found["stop"]) <= 4  # the delay of two seconds, and two ticks
    assert max(found["back"]) <= 15


def test_two_equal_jobs_come_to_equal_shares() -> None:
    found = over_seeds(paired)
    assert statistics.median(found["jain"]) >= 0.98, found
    assert min(found["jain"]) > 0.95


def test_five_times_the_noise_and_spikes() -> None:
    found = over_seeds(noisy, seeds=range(5))
    assert reached(found) == {"noisy": True, "noisy over": True}, found
    assert min(found["noisy"]) >= 0.75


@pytest.mark.parametrize("name", [OURS, LEARNT])
def test_no_increase_on_missing_impossible_or_failed_readings(name: str) -> None:
    assert max(over_seeds(spoiled, name)["stale"]) <= 0


def test_other_delays_and_gains_make_no_growing_swing() -> None:
    found = over_seeds(strange, seeds=range(2))
    assert all(reached(found).values()), found
    assert max(found["delay 4 over"]) <= 0.02
    assert max(found["gain 4 over"]) <= 0.02


def test_a_learnt_target_does_as_well_alone() -> None:
    found = over_seeds(steady, LEARNT)
    assert statistics.median(found["used"]) >= 0.9, found
    assert max(found["over"]) <= 0.02
    assert statistics.median(found["cold"]) <= 30


def test_a_learnt_target_follows_a_foreground_that_grew() -> None:
    """After a minute of next to nothing the baseline is that of the new foreground: the job goes on."""
    conditions = Conditions(foreground=lambda at: 0.3 if at < 150 else 0.6)
    trace = simulate([make(LEARNT, 0.0, 1)], conditions, seconds=500, seed=1)
    goal = goal_of(conditions, 0.6)
    later = np.array(trace.rates[0][350:])
    assert later.mean() > 0.5 * spare_per_s(conditions, goal, 0.6)
    assert np.mean(np.array(trace.latencies_s[350:]) > 1.1 * goal.target_s) <= 0.02


def test_the_others_do_what_they_are_known_for() -> None:
    """The table would be worth nothing if the comparators were straw men, or the plant forgiving."""
    assert steady("stop/go", 0)["over"] > 0.2
    assert steady("unlimited", 0)["over"] > 0.9
    assert steady("fixed rate", 0)["ripple"] == pytest.approx(0)
    assert 0.6 < steady("halving AIMD", 0)["used"] < 0.9
    assert paired("halving AIMD", 0)["jain"] > 0.98
    assert paired("plain LEDBAT", 0)["jain"] < 0.9
    assert set(COMPARATORS) >= {"Gradient2", "zones", "nice-ratio"}


def test_the_plant_is_the_queue_it_says() -> None:
    conditions = Conditions(foreground=lambda _at: 0.3, noise=0.0, delay_s=2.0)
    plant = Plant(conditions, seed=1)
    for second in range(10):
        plant.run(float(second), 0.0 if second < 5 else 20_000.0)
    early, late = (plant.readings(at)[-1].value for at in (6.0, 9.0))
    assert early == pytest.approx(SERVICE_S / 0.7)  # two seconds ago nothing ran
    assert late == pytest.approx(SERVICE_S / 0.5)
    overloaded = [plant.run(20.0 + second, 150_000.0) for second in range(4)]
    assert overloaded == sorted(overloaded)
    assert overloaded[-1] == pytest.approx(3.0)
    goal = goal_of(conditions, 0.3)
    assert plant.run(30.0, 0.0) > 0
    spare = spare_per_s(conditions, goal, 0.3)
    assert SERVICE_S / (1 - 0.3 - spare * 1e-5) == pytest.approx(goal.target_s)


def test_jains_index() -> None:
    assert jain(1.0, 1.0) == 1.0
    assert jain(1.0, 0.0) == 0.5
    assert jain(0.0, 0.0) == 0.0


def test_the_command_runs_and_writes_its_report(tmp_path, capsys) -> None:
    file = tmp_path / "report.json"
    assert main(["--smoke", "--json", str(file)]) == 0
    text = file.read_text()
    assert '"benchmark": "simulate"' in text
    assert "stop/go" in capsys.readouterr().err
