"""One backfill beside one foreground, for some seconds: what both did, on one wall clock.

The engine runs in this process, on the event loop that the product uses, so that a law can be handed to it; pgbench and
the server are processes of their own, and this one does nothing else meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import uvloop

from bench.judge import TAIL, rate_per_second, share_within
from bench.openloop import MARGIN_S, Answers, Floats, Foreground, together
from bench.ours import JobFailed
from bench.report import Sample
from bench.stage import Stage
from engine.events import ChunkCommitted, Event, StateChanged
from engine.flow.endpoints import endpoints_of
from engine.flow.pacer import MakeLaw
from engine.flow.prepare import inspect
from engine.flow.supervisor import Supervisor
from engine.model import JobState
from engine.pace.controller import Controller
from engine.pace.law import Decision, Law, SignalPolicy, Situation
from engine.spec import parse_spec

SHORTEST_S: Final = 0.5
"""A backfill that ends sooner after its settling is judged by all of its time."""

DRAIN_S: Final = 30.0
BEGIN_S: Final = 30.0
"""How much longer than its time a short run may need to begin, on a machine that is loaded with other work."""
MILLISECONDS: Final = 1e3


class Recorded:
    """A law whose decisions are written down.  What a pacer asks of our own law and others lack does nothing."""

    def __init__(self, law: Law, decisions: list[tuple[float, Decision]]) -> None:
        self._law = law
        self._decisions = decisions

    @property
    def baselines(self) -> Mapping[str, tuple[float, float]]:
        """What the law has learnt of the signals."""
        return getattr(self._law, "baselines", {})

    def change(self, policies: Sequence[SignalPolicy], workers: int) -> None:
        """Other signals, or another number of workers."""
        change = getattr(self._law, "change", None)
        if change is not None:
            change(policies, workers)

    def step(self, situation: Situation) -> Decision:
        """Let the law decide."""
        decision = self._law.step(situation)
        self._decisions.append((time.time(), decision))
        return decision


@dataclass(slots=True)
class Moved:
    """What a backfill did.  Times are wall clock, to be laid beside the foreground's."""

    began_at: float = 0.0  # the job was running, its workers about to begin
    ended_at: float = 0.0
    finished: bool = False  # nothing was left to move
    scanned: int = 0  # rows looked at: what a rate counts
    written: int = 0
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    _commits: list[tuple[float, int]] = field(default_factory=list)

    @property
    def commits(self) -> tuple[Floats, Floats]:
        """When each chunk was committed, and how many rows it had looked at."""
        table = np.array(self._commits, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def rows_between(self, start: float, end: float) -> int:
        """Rows committed in ``[start, end)``."""
        at, rows = self.commits
        return int(rows[(at >= start) & (at < end)].sum())

    def leading(self, start: float, end: float) -> dict[str, float]:
        """The share of the law's decisions in ``[start, end)`` by stage and leading signal, the commonest first."""
        inside = [one for at, one in self.decisions if start <= at < end]
        seen = Counter(f"{one.stage.value}: {one.leads or 'nothing'}{' (held)' * one.held}" for one in inside)
        return {what: round(count / len(inside), 3) for what, count in seen.most_common()}

    def trace(self) -> Iterator[dict[str, Any]]:
        """Every decision of the law, JSON-able, in seconds since the job began."""
        for at, decision in self.decisions:
            yield {"second": round(at - self.began_at, 2), **asdict(decision)}

    def hear(self, event: Event) -> None:
        """The engine's events."""
        if isinstance(event, ChunkCommitted):
            self.scanned += event.observation.scanned
            self.written += event.observation.rows
            self._commits.append((time.time(), event.observation.scanned))
        elif isinstance(event, StateChanged) and event.state is JobState.RUNNING and not self.began_at:
            self.began_at = time.time()


@dataclass(frozen=True, slots=True)
class Beside:
    """A foreground and, unless it was alone, the backfill beside it, in the interval that is judged."""

    answers: Answers
    rate_per_s: float  # the foreground's schedule
    start: float
    end: float
    moved: Moved | None = None

    @property
    def seconds(self) -> float:
        """Length of the interval."""
        return self.end - self.start

    @property
    def judged(self) -> Answers:
        """The transactions that were due in the interval."""
        return self.answers.between(self.start, self.end)

    @property
    def p99_s(self) -> float:
        """The foreground's p99 over the interval."""
        return self.judged.quantile_s(TAIL)

    @property
    def rows(self) -> int:
        """Rows that the backfill looked at in the interval."""
        return self.moved.rows_between(self.start, self.end) if self.moved else 0

    @property
    def rows_per_s(self) -> float:
        """The backfill's rate over the interval."""
        return self.rows / self.seconds

    def within(self, limit_s: float) -> float:
        """The share of windows whose p99 is within the limit."""
        return share_within(self.answers, self.start, self.end, limit_s)

    def sample(self, limit_s: float | None = None) -> Sample:
        """The run as the reports want it."""
        judged = self.judged
        notes: dict[str, Any] = {
            "p50_ms": round(judged.quantile_s(0.5) * MILLISECONDS, 3),
            "p95_ms": round(judged.quantile_s(0.95) * MILLISECONDS, 3),
            "p99_ms": round(judged.quantile_s(TAIL) * MILLISECONDS, 3),
            "foreground_of_schedule": round(len(judged) / (self.rate_per_s * self.seconds), 4),
        }
        if limit_s is not None:
            notes["windows_within_target"] = round(self.within(limit_s), 4)
        if self.moved is not None and self.moved.finished:
            notes["job_finished"] = True
        if self.moved is not None and (leading := self.moved.leading(self.start, self.end)):
            notes["leading"] = leading
        return Sample(seconds=self.seconds, rows=self.rows, notes=notes)

    def rates(self) -> Floats:
        """The backfill's rows in each second of the interval."""
        if self.moved is None:
            return np.zeros(int(self.seconds))
        return rate_per_second(*self.moved.commits, self.start, self.end)


@dataclass(frozen=True, slots=True)
class Step:
    """More foreground for a while: from ``up_s`` after the beginning of the judged interval on, for ``lasts_s``."""

    rate_per_s: float  # on top of the scene's
    up_s: float
    lasts_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where and how long: a database with ``orders`` rows in it, and the timetable of a run.

    The foreground is there ``lead_s`` before the backfill, so that it is somebody's database from the first moment;
    the first ``settle_s`` of the backfill are not judged; the next ``seconds`` are.
    """

    stage: Stage
    database: str
    orders: int
    rate_per_s: float
    lead_s: float
    settle_s: float
    seconds: float

    @property
    def whole_s(self) -> float:
        """The time from the foreground's start to its end."""
        return self.lead_s + self.settle_s + self.seconds

    def foreground(self) -> Foreground:
        """The foreground, for the whole time and a little more."""
        return self._foreground(self.rate_per_s, self.whole_s + MARGIN_S)

    def more(self, step: Step) -> Foreground:
        """What comes on top of it in a step."""
        return self._foreground(step.rate_per_s, step.lasts_s)

    def _foreground(self, rate_per_s: float, seconds: float) -> Foreground:
        return Foreground(self.stage, self.database, orders=self.orders, rate_per_s=rate_per_s, seconds=seconds)


def run_beside(scene: Scene, spec: dict[str, Any] | None, law: MakeLaw = Controller) -> Beside:
    """One run; without a spec the foreground is alone.  Raises what the engine raises, and ``ForegroundFailed``."""
    with scene.foreground() as foreground:
        began = time.time()
        end = began + scene.whole_s
        time.sleep(scene.lead_s)
        if spec is None:
            moved, start = None, began + scene.lead_s + scene.settle_s
        else:
            moved = move(spec, until=end, law=law)
            start, end = _interval(moved, scene.settle_s, end)
        return Beside(foreground.answers(), scene.rate_per_s, start, end, moved)


def run_step(scene: Scene, step: Step, spec: dict[str, Any] | None, law: MakeLaw = Controller) -> Beside:
    """One run with a step of the foreground: a second pgbench that comes and goes.

    The judged interval begins ``settle_s`` after the lead, whatever the backfill does until then: steps of several
    runs are at the same place.
    """

    async def beside() -> tuple[Moved | None, Answers]:
        began = time.time()
        moving = asyncio.create_task(_move(spec, began + scene.whole_s, law)) if spec else None
        try:
            await asyncio.sleep(scene.settle_s + step.up_s)
            with scene.more(step) as more:
                added = await asyncio.to_thread(more.answers)
            return (await moving if moving else None), added
        finally:
            if moving and not moving.done():
                moving.cancel()
                await asyncio.gather(moving, return_exceptions=True)

    with scene.foreground() as foreground:
        began = time.time()
        time.sleep(scene.lead_s)
        moved, added = uvloop.run(beside())
        answers = together([foreground.answers(), added])
    start = began + scene.lead_s + scene.settle_s
    return Beside(answers, scene.rate_per_s, start, began + scene.whole_s, moved)


def move(spec: dict[str, Any], *, until: float, law: MakeLaw = Controller) -> Moved:
    """Run a job (or go on with it) until it ends, or until a moment of the wall clock, when it is drained."""
    return uvloop.run(_move(spec, until, law))


async def _move(description: dict[str, Any], until: float, law: MakeLaw) -> Moved:
    moved = Moved()
    spec = parse_spec(json.dumps(description), os.environ)
    prepared = (await inspect(spec, endpoints_of(spec))).prepared()

    def make_law(*given: Any, **named: Any) -> Recorded:
        return Recorded(law(*given, **named), moved.decisions)

    supervisor = Supervisor(prepared, workers=spec.workers, emit=moved.hear, make_law=make_law)
    running = asyncio.create_task(supervisor.run())
    try:
        await asyncio.wait([running], timeout=max(0.0, until - time.time()))
        latest = time.time() + BEGIN_S
        while not (moved.began_at or running.done()) and time.time() < latest:
            await asyncio.wait([running], timeout=SHORTEST_S)
        moved.ended_at = time.time()
        supervisor.drain("the time is over")
        async with asyncio.timeout(DRAIN_S):
            result = await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    if result.error is not None:
        raise result.error
    if result.state not in (JobState.RUNNING, JobState.DONE):
        raise JobFailed(f"ended {result.state}")
    moved.finished = result.state is JobState.DONE
    at, _ = moved.commits
    if moved.finished and len(at):
        moved.ended_at = float(at[-1])  # what came after it was bookkeeping
    moved.began_at = moved.began_at or moved.ended_at
    return moved


def _interval(moved: Moved, settle_s: float, end: float) -> tuple[float, float]:
    """What is judged of a backfill: from when it has settled until the time is over, or there is nothing left."""
    end = min(end, moved.ended_at)
    start = moved.began_at + settle_s
    return (start, end) if end - start >= SHORTEST_S else (min(moved.began_at, end - SHORTEST_S), end)
