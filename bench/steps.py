"""The foreground trebles for a minute and comes down again: how soon is it well, and how soon is the backfill back?"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any, Final

from bench import judge, pictures, works
from bench.beside import MILLISECONDS, Beside, Step, run_step
from bench.report import AT_MOST, Target, say
from bench.sitting import Sitting
from bench.strategies import OURS, make_strategy, probe_target_for

FACTOR: Final = 3.0
MOST_BACK_UNDER_S: Final = 15.0
MOST_REGAINED_S: Final = 60.0
REGAINED_SHARE: Final = 0.9
ROOM: Final = 1.1
"""After a step, a pressure of 1.1 is what the criteria call back under the target."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one run made of the step.  Never longer than there was to see: that much, then, means *not at all*."""

    back_under_s: float
    regained_s: float
    spare_per_s: float  # rows per second before the step, or at the end: the better of them
    over_before: float  # share of the windows before the step that were over the target
    over_inside: float  # of those in it, from when the foreground was back under the target


def measure_step(sitting: Sitting) -> None:
    """The foreground alone, then rounds of it beside ours; figures, and the picture."""
    options, times, report = sitting.options, sitting.times, sitting.report
    work = works.update(sitting.stage, works.DEAR)
    step = Step((FACTOR - 1) * options.rate, times.step_before_s, times.step_s)
    seconds = times.step_before_s + times.step_s + times.step_after_s
    scene = replace(sitting.scene(), settle_s=times.learn_s, seconds=seconds)

    say("step: the foreground alone")
    work.begin()
    alone = run_step(scene, step, None)
    limit_s = _declare(sitting, alone, step)
    probe_target = options.probe_target or probe_target_for(limit_s)
    ours = make_strategy(OURS, fixed_per_s=None, probe_target=probe_target)
    contender = report.contender(f"step to {FACTOR:g} x {options.rate:g}/s", OURS, ours.detail)
    answers: list[Answer] = []
    first: Beside | None = None
    for number in range(options.repeat):
        say(f"step: round {number + 1} of {options.repeat}: ours")
        run = run_step(scene, step, ours.spec(work.begin()), ours.law)
        sitting.trace(run, f"step, round {number + 1}")
        first = first or run
        if run.moved is not None and run.moved.finished:
            report.skip(f"step, round {number + 1}", "the job came to its end before the run did: more --rows")
            continue
        answer = judge_step(run, step, limit_s)
        answers.append(answer)
        contender.samples.append(_sample(run, answer, limit_s))
        say(f"    back under the target after {answer.back_under_s:.0f} s, regained after {answer.regained_s:.0f} s")
    _report(sitting, answers)
    path = sitting.picture("step")
    if path is not None:
        lines = [pictures.Line("the foreground alone", alone, pictures.ALONE)]
        lines += [] if first is None else [pictures.Line(OURS, first, pictures.OURS)]
        title = f"The foreground steps from {options.rate:g} to {FACTOR * options.rate:g} transactions/s and back"
        pictures.draw_step(path, lines, step, limit_s, title)


def judge_step(run: Beside, step: Step, limit_s: float) -> Answer:
    """Read one run."""
    ends, found = judge.tails(run.answers, run.start, run.end)
    up_at = run.start + step.up_s
    down_at = up_at + step.lasts_s
    inside = ends <= down_at
    back_s = min(judge.back_under_s(ends[inside], found[inside], ROOM * limit_s, up_at), step.lasts_s)
    rates = run.rates()
    before, after = rates[: int(step.up_s)], rates[int(step.up_s + step.lasts_s) :]
    # A law that was too timid before the step must not be back soon at next to nothing.
    spare_per_s = max(statistics.median(part.tolist() or [0.0]) for part in (before, after[-len(before) :]))
    return Answer(
        back_s,
        min(judge.regained_s(after, REGAINED_SHARE * spare_per_s), float(len(after))),
        spare_per_s,
        1 - judge.share_within(run.answers, run.start, up_at, ROOM * limit_s),
        1 - judge.share_within(run.answers, up_at + back_s, down_at, ROOM * limit_s),
    )


def _declare(sitting: Sitting, alone: Beside, step: Step) -> float:
    """The target, by what the foreground feels of its own step: a backfill cannot make that better."""
    up_at = alone.start + step.up_s
    low_s = alone.answers.between(alone.start, up_at).quantile_s(judge.TAIL)
    high_s = alone.answers.between(up_at, up_at + step.lasts_s).quantile_s(judge.TAIL)
    given_ms = sitting.options.target
    limit_s: float = judge.declared_target_s(max(low_s, high_s)) if given_ms is None else given_ms / MILLISECONDS
    sitting.figure(
        "step: declared target of the foreground's p99",
        limit_s * MILLISECONDS,
        "ms",
        note=f"alone {low_s * MILLISECONDS:.1f} ms, alone in the step {high_s * MILLISECONDS:.1f} ms",
    )
    return limit_s


def _sample(run: Beside, answer: Answer, limit_s: float) -> Any:
    """The run with what is in the picture, so that it can be drawn again."""
    sample = run.sample(limit_s)
    _, found = judge.tails(run.answers, run.start, run.end)
    series = {
        "p99_ms": [round(p99_s * MILLISECONDS, 2) for p99_s in found.tolist()],
        "rows_per_s": [round(rate) for rate in run.rates().tolist()],
    }
    seen = {"back_under_s": answer.back_under_s, "regained_s": answer.regained_s}
    return replace(sample, notes={**sample.notes, **seen, "series": series})


def _report(sitting: Sitting, answers: list[Answer]) -> None:
    def figure(what: str, values: list[float], unit: str, target: Target | None = None) -> None:
        rounds = ", ".join(f"{value:.3g}" for value in values)
        sitting.figure(f"step: {what}", max(values, default=math.nan), unit, target, f"the worst of {rounds}")

    under, again = Target(MOST_BACK_UNDER_S, AT_MOST), Target(MOST_REGAINED_S, AT_MOST)
    figure("back under the target after", [a.back_under_s for a in answers], "s", under)
    figure(f"{REGAINED_SHARE:.0%} of the spare capacity again after", [a.regained_s for a in answers], "s", again)
    rates = [a.spare_per_s for a in answers]
    note = "rounds " + ", ".join(f"{rate:,.0f}" for rate in rates)
    sitting.figure("step: spare capacity as used", statistics.median(rates or [math.nan]), "rows/s", note=note)
    figure("windows over the target before it", [a.over_before for a in answers], "")
    figure("windows over the target in it, once back", [a.over_inside for a in answers], "")
