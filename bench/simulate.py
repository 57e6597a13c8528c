"""Our control law and what others use, on a simulated database: every criterion that a simulator can judge.

``--plot FILE.png`` draws latency and rate while the foreground steps up and down; it needs matplotlib
(``pip install matplotlib``).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.laws import COMPARATORS, MakeLaw
from bench.plant import SIGNAL, Conditions, Goal, Trace, goal_of, simulate, spare_per_s, step
from bench.report import AT_LEAST, AT_MOST, FILE_WIDTH, Figure, Report, Target, say, write
from engine.pace.controller import Controller
from engine.pace.law import Law, OnFailure, Reading, SignalPolicy, Statistic, Unit

OURS: Final = "ours"
LEARNT: Final = "ours, learnt"
"""The same law without a declared target: it makes its own, and slows down now and then to check it."""

FOREGROUND: Final = 0.3
STEPPED_UP: Final = 0.6
STEP_UP_S, STEP_DOWN_S = 200, 500
STEP_TARGET: Final = 1.2
"""The target of the step, as a share of the baseline at its top: reachable, and low enough to matter."""

LASTING_S: Final = 15
SETTLED_S: Final = 120
SECOND_STARTS_S: Final = 600
SMOOTHED_S: Final = 30
TOLERANCE: Final = 1.1
ENOUGH: Final = 0.9
NEVER_S: Final = 9999.0
LEAST_SWING: Final = 0.05
"""A ripple below this is steady, whatever it was before."""

BAD_S: Final = ((150, 180), (220, 250), (290, 320), (360, 390))
"""When readings are missing, NaN, negative, failed."""

STALE_AFTER_S: Final = 5


@dataclass(frozen=True, slots=True)
class Criterion:
    """One row of the table."""

    name: str
    unit: str
    target: Target | None


CRITERIA: Final = {
    "cold": Criterion("cold start to 90 % of the spare capacity", "s", Target(30, AT_MOST)),
    "overshoot": Criterion("... largest pressure meanwhile", "", Target(1.1, AT_MOST)),
    "used": Criterion("spare capacity used, steady", "", Target(0.9, AT_LEAST)),
    "ripple": Criterion("... ripple (CV)", "", Target(0.05, AT_MOST)),
    "over": Criterion("... time over 1.1 target", "", Target(0.02, AT_MOST)),
    "back": Criterion("foreground up: back under 1.1 target", "s", Target(15, AT_MOST)),
    "stop": Criterion("... admission stops", "s", Target(4, AT_MOST)),
    "down": Criterion("foreground down: 90 % of the spare capacity", "s", Target(60, AT_MOST)),
    "jain": Criterion("two jobs: Jain index 300 s after the second", "", Target(0.98, AT_LEAST)),
    "noisy": Criterion("noise x5, 5 % spikes: used", "", Target(0.75, AT_LEAST)),
    "noisy over": Criterion("noise x5, 5 % spikes: time over 1.1 target", "", Target(0.02, AT_MOST)),
    "stale": Criterion("bad readings: largest increase meanwhile", "", Target(0, AT_MOST)),
    "delay 2": Criterion("delay x2: swing grows by", "x", Target(1.25, AT_MOST)),
    "delay 4": Criterion("delay x4: swing grows by", "x", Target(1.25, AT_MOST)),
    "gain 1/4": Criterion("gain x1/4: swing grows by", "x", Target(1.25, AT_MOST)),
    "gain 1/2": Criterion("gain x1/2: swing grows by", "x", Target(1.25, AT_MOST)),
    "gain 2": Criterion("gain x2: swing grows by", "x", Target(1.25, AT_MOST)),
    "gain 4": Criterion("gain x4: swing grows by", "x", Target(1.25, AT_MOST)),
    "delay 4 over": Criterion("delay x4: time over 1.1 target, steady", "", None),
    "gain 4 over": Criterion("gain x4: time over 1.1 target, steady", "", None),
}


def make(name: str, target_s: float, seed: int) -> Law:
    """The law of that name, steering by one latency probe."""
    law: MakeLaw = COMPARATORS.get(name, Controller)
    learns = name == LEARNT
    policy = SignalPolicy(
        name=SIGNAL,
        unit=Unit.SECONDS,
        target=None if learns else target_s,
        learns=learns,
        foreground=True,
        statistic=Statistic.P90,
        on_failure=OnFailure.FREEZE,
    )
    return law([policy], workers=4, min_rate_per_s=1.0, chunk_target_s=0.25, rng=random.Random(seed))


def steady(name: str, seed: int) -> dict[str, float]:
    """A constant foreground, from the start."""
    conditions = Conditions(foreground=lambda _at: FOREGROUND)
    goal, spare, trace = _run(name, conditions, seed, seconds=600)
    rates = np.array(trace.rates[0])
    cold = _first(rates >= ENOUGH * spare)
    late = rates[SETTLED_S:]
    held = late < ENOUGH * ENOUGH * spare if name == LEARNT else np.zeros(len(late), bool)
    even = late[~held] if (~held).any() else late
    return {
        "cold": cold - _first(rates > 0) if cold < NEVER_S else NEVER_S,
        "overshoot": float(trace.pressures(goal)[:SETTLED_S].max()),
        "used": float(late.mean()) / spare,
        "ripple": float(even.std() / even.mean()),
        "over": _over(trace, goal),
    }


def stepped(name: str, seed: int) -> dict[str, float]:
    """The foreground doubles for five minutes."""
    conditions = Conditions(foreground=step(FOREGROUND, STEPPED_UP, STEP_UP_S, STEP_DOWN_S))
    goal = step_goal(conditions)
    trace = simulate([make(name, goal.target_s, seed)], conditions, seconds=STEP_DOWN_S + 200, seed=seed)
    rates, latencies_s = np.array(trace.rates[0]), np.array(trace.latencies_s)
    under = latencies_s[STEP_UP_S:STEP_DOWN_S] < TOLERANCE * goal.target_s
    lasting = np.array([under[at : at + LASTING_S].all() for at in range(len(under) - LASTING_S)])
    spare = spare_per_s(conditions, goal, FOREGROUND)
    return {
        "back": _first(lasting),
        "stop": _first(rates[STEP_UP_S:STEP_DOWN_S] <= 0),
        "down": _first(rates[STEP_DOWN_S:] >= ENOUGH * spare),
    }


def step_goal(conditions: Conditions) -> Goal:
    """The declared target of the step."""
    return replace(goal_of(conditions, FOREGROUND), target_s=STEP_TARGET * goal_of(conditions, STEPPED_UP).baseline_s)


def paired(name: str, seed: int) -> dict[str, float]:
    """Two equal jobs; the second comes late and measures its baseline beside the first."""
    conditions = Conditions(foreground=lambda _at: FOREGROUND)
    target_s = goal_of(conditions, FOREGROUND).target_s
    laws = [make(name, target_s, seed), make(name, target_s, seed + 1000)]
    judged_s = SECOND_STARTS_S + 300
    trace = simulate(laws, conditions, seconds=judged_s + SMOOTHED_S, seed=seed, starts_s=(0.0, float(SECOND_STARTS_S)))
    first, second = (float(np.mean(rates[judged_s:])) for rates in trace.rates)
    return {"jain": jain(first, second)}


def jain(first: float, second: float) -> float:
    """Jain's index of two shares: 0.5 when one has all, 1 when they are equal; 0 when nobody has anything."""
    squares = 2 * (first**2 + second**2)
    return (first + second) ** 2 / squares if squares else 0.0


def noisy(name: str, seed: int) -> dict[str, float]:
    """Five times the noise, and one reading in twenty ten times too long."""
    conditions = Conditions(foreground=lambda _at: FOREGROUND, noise=0.5, spikes=0.05)
    goal, spare, trace = _run(name, conditions, seed, seconds=900)
    return {"noisy": float(np.mean(trace.rates[0][SETTLED_S:])) / spare, "noisy over": _over(trace, goal)}


def spoiled(name: str, seed: int) -> dict[str, float]:
    """Readings that are missing, NaN, negative, failed; judged from the moment in which they are stale."""
    conditions = Conditions(foreground=step(FOREGROUND, FOREGROUND / 3, 140), spoil=spoil)
    _, _, trace = _run(name, conditions, seed, seconds=400)
    rates = np.array(trace.rates[0])
    worst = 0.0
    for begin, end in BAD_S:
        blind = rates[begin + STALE_AFTER_S + 1 : end]
        before = max(rates[begin + STALE_AFTER_S], 1.0)
        worst = max(worst, float(blind.max() / before) - 1)
    return {"stale": worst}


def spoil(at: float, reading: Reading) -> Reading | None:
    """What becomes of a reading in the bad times."""
    kinds: tuple[Callable[[], Reading | None], ...] = (
        lambda: None,
        lambda: replace(reading, value=float("nan")),
        lambda: replace(reading, value=-1.0),
        lambda: replace(reading, value=None, error="timed out after 1 s"),
    )
    bad = next((index for index, (begin, end) in enumerate(BAD_S) if begin < at <= end), None)
    return reading if bad is None else kinds[bad]()


def strange(name: str, seed: int) -> dict[str, float]:
    """Another feedback delay, another gain than the law thinks."""
    found: dict[str, float] = {}
    cases = {
        "delay 2": Conditions(delay_s=4.0),
        "delay 4": Conditions(delay_s=8.0),
        "gain 1/4": Conditions(gain=0.25),
        "gain 1/2": Conditions(gain=0.5),
        "gain 2": Conditions(gain=2.0),
        "gain 4": Conditions(gain=4.0),
    }
    for key, conditions in cases.items():
        goal, _, trace = _run(name, conditions, seed, seconds=720)
        rates = np.array(trace.rates[0][SETTLED_S:])
        early, late = np.array_split(rates, 2)
        found[key] = _swing(late) / _swing(early)
        if f"{key} over" in CRITERIA:
            found[f"{key} over"] = _over(trace, goal)
    return found


SCENARIOS: Final[tuple[Callable[[str, int], dict[str, float]], ...]] = (
    steady,
    stepped,
    paired,
    noisy,
    spoiled,
    strange,
)


def _run(name: str, conditions: Conditions, seed: int, *, seconds: int) -> tuple[Goal, float, Trace]:
    goal = goal_of(conditions, FOREGROUND)
    trace = simulate([make(name, goal.target_s, seed)], conditions, seconds=seconds, seed=seed)
    return goal, spare_per_s(conditions, goal, FOREGROUND), trace


def _first(flags: np.ndarray) -> float:
    return float(np.argmax(flags)) if flags.any() else NEVER_S


def _over(trace: Trace, goal: Goal) -> float:
    return float(np.mean(np.array(trace.latencies_s[SETTLED_S:]) > TOLERANCE * goal.target_s))


def _swing(rates: np.ndarray) -> float:
    mean = float(rates.mean())
    return max(float(rates.std()) / mean, LEAST_SWING) if mean > 0 else LEAST_SWING


def measure(report: Report, laws: Sequence[str], seeds: Sequence[int]) -> None:
    """Fill the report: medians over the seeds, for ours with the worst."""
    for name in laws:
        say(f"simulating: {name}")
        runs: dict[str, list[float]] = {key: [] for key in CRITERIA}
        for scenario in SCENARIOS:
            for seed in seeds:
                for key, value in scenario(name, seed).items():
                    runs[key].append(value)
        for key, values in runs.items():
            criterion = CRITERIA[key]
            target = criterion.target if name == OURS else None
            worst = min(values) if target is not None and target.relation == AT_LEAST else max(values)
            text = f"worst of {len(values)}: {worst:.3g}"
            report.figures.append(
                Figure(f"{name}: {criterion.name}", statistics.median(values), criterion.unit, target, text)
            )


def show_matrix(data: dict[str, Any], laws: Sequence[str]) -> None:
    """Criteria down, laws across."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("criterion")
    table.add_column("target", justify="right")
    for name in laws:
        table.add_column(name, justify="right", style="bold" if name == OURS else "")
    found = {figure["name"]: figure["value"] for figure in data["figures"]}
    for criterion in CRITERIA.values():
        cells = []
        for name in laws:
            value = found[f"{name}: {criterion.name}"]
            missed = criterion.target is not None and not criterion.target.is_reached_by(value)
            text = "never" if value >= NEVER_S else f"{value:.3g}"
            cells.append(f"[red]{text}[/]" if missed else text)
        target = criterion.target
        goal = "" if target is None else f"{target.relation} {target.value:g} {criterion.unit}".rstrip()
        table.add_row(criterion.name, goal, *cells)
    console.print(f"\n[bold]{data['title']}[/]")
    console.print(table)
    console.print("[dim]red: missed; medians over the seeds; 'never' within the run[/]")


def draw(path: Path, names: Sequence[str], seed: int) -> None:
    """Latency above, rate below, one column per law, while the foreground steps up and down."""
    try:
        import matplotlib as mpl  # an extra, and slow to load: only who draws needs it
    except ImportError as error:
        raise SystemExit("drawing needs matplotlib: pip install matplotlib") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    conditions = Conditions(foreground=step(FOREGROUND, STEPPED_UP, STEP_UP_S, STEP_DOWN_S))
    goal = step_goal(conditions)
    figure, axes = plt.subplots(2, len(names), figsize=(4 * len(names), 6), sharex=True, sharey="row", squeeze=False)
    for column, name in enumerate(names):
        trace = simulate([make(name, goal.target_s, seed)], conditions, seconds=STEP_DOWN_S + 200, seed=seed)
        above, below = axes[0][column], axes[1][column]
        over = float(np.mean(np.array(trace.latencies_s) > TOLERANCE * goal.target_s))
        spare = [spare_per_s(conditions, goal, conditions.foreground(at)) for at in trace.at]
        used = float(np.sum(trace.rates[0]) / np.sum(spare))
        above.set_title(f"{name}\n{over:.0%} of the time over 1.1 target, {used:.0%} of the spare capacity", fontsize=9)
        above.plot(trace.at, [s * 1000 for s in trace.latencies_s], color="tab:blue", linewidth=0.9)
        above.axhline(goal.target_s * 1000, color="tab:red", linewidth=1, linestyle="--")
        above.set_yscale("log")
        below.plot(trace.at, [rate / 1000 for rate in trace.rates[0]], color="tab:green", linewidth=0.9)
        below.plot(trace.at, [rate / 1000 for rate in spare], color="black", linewidth=1, linestyle="--")
        below.set_xlabel("seconds")
        for axis in (above, below):
            axis.axvspan(STEP_UP_S, STEP_DOWN_S, color="0.92", zorder=0)
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("p90 latency of the foreground, ms\n(dashed: target)")
    axes[1][0].set_ylabel("backfill, 1000 rows/s\n(dashed: spare capacity at the target)")
    figure.suptitle(f"Foreground load {FOREGROUND:.0%}, in the grey {STEPPED_UP:.0%} (simulated)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    say(f"drawn: {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulation; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the report there; - is standard output")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the step of the foreground (PNG)")
    parser.add_argument("--seeds", type=int, default=5, help="runs per scenario (default 5; smoke 1)")
    parser.add_argument("--smoke", action="store_true", help="once and few laws: that it runs, not how well")
    parsed = parser.parse_args(arguments)
    laws = [OURS, LEARNT, *COMPARATORS]
    if parsed.smoke:
        laws, parsed.seeds = [OURS, "stop/go"], 1
    report = Report("simulate", "Control laws on a simulated database", parsed.smoke, {"seeds": parsed.seeds})
    report.skip("throughput against the best static setting", "needs a real server: python -m bench.foreground")
    measure(report, laws, range(parsed.seeds))
    data = report.as_json()
    show_matrix(data, laws)
    if parsed.json:
        write(data, parsed.json)
    if parsed.plot:
        draw(parsed.plot, [OURS, "stop/go", "halving AIMD", "plain LEDBAT"], seed=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
