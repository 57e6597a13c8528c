"""The law of the job: full speed while nobody else is there, out of the way when somebody is.

::

    alone ──somebody came──> baseline ──> slow start ──> steady <──> slowdown
      ^                                                    |
      └──────────── nobody else for a while ───────────────┘         held: a gate is closed

- **Gates** admit nothing: what the caller closed (pause, window, ...), a budget over its maximum, a signal that fails
  and says ``hold``, and a pressure of 2 in two ticks running.  The last one is about gauges only: one chunk passes
  every minute.
- **Gauges** move the rate (``pace.rate``); the one with the largest pressure leads.
- What measures the foreground (``SignalPolicy.foreground``) does not count while nobody else is there.
- Chunk time and workers follow from rate and pressure (``pace.response``).
- No rate rises while a signal that counts has no usable reading.

The law is "gated LEDBAT++ in the rate domain" (RFC 6817; draft-irtf-iccrg-ledbat-plus-plus).
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from engine.pace.gates import Closed, ceiling_words, counts, first_closed, gauge_words
from engine.pace.gauges import Gauges, look
from engine.pace.law import Decision, SignalPolicy, Situation, Stage
from engine.pace.quiet import BASELINE_REASON, CONFIRMED, Quiet, Slowdowns, drain_s
from engine.pace.rate import DEEPEST_CUT, START_SHARE, Rate, Tick
from engine.pace.response import Response
from engine.pace.signals import Signal

GATE_PRESSURE: Final = 2.0
GATE_TICKS: Final = 2
REOPEN_PRESSURE: Final = 1.0

LONGEST_DELAY_S: Final = 30.0
"""A pressure that outlasts a stop by more is not ours."""

DELAY_DECAY_S: Final = 600.0
"""A feedback delay that was seen once is forgotten with this time constant."""

CRUMB_EVERY_S: Final = 60.0
"""Against gauges, one chunk passes this often."""

FRESH_S: Final = 600.0
"""A baseline or a rate from longer ago is not trusted when somebody comes back, or after a hold."""

FIRST_RATE_PER_S: Final = 1_000.0
"""Rows/s until the first chunk has shown what the job can do."""

LITTLE_SHARE: Final = 0.003
"""A rate of this share of the fastest cannot be felt: as good as a pause to measure in."""

RESUME_SHARE: Final = 0.8
"""After a slowdown, and when somebody comes back soon, the rate is this share of what it was."""

SHORTEST_TICK_S: Final = 0.5
"""Steps may follow each other faster when there is news; a window is not counted twice for that."""

LONGEST_TICK_S: Final = 5.0
"""A step after a longer silence (the process was stopped) counts as this long."""

CAPACITY_WINDOW: Final = 5
CAPACITY_DECAY_S: Final = 300.0
"""The fastest rate is the median of the last readings, and comes down this slowly: small chunks and few workers make
it look smaller for a while, which must not make the law timid as well.
"""


class Controller:
    """The law.  ``min_rate_per_s``: rows/s that gauges never push it below (one minimum chunk a minute).
    ``chunk_target_s``: the job's own, in seconds.  ``baselines``: what a former pacer published, as ``baselines``
    gives it.
    """

    def __init__(
        self,
        policies: Sequence[SignalPolicy],
        *,
        workers: int,
        min_rate_per_s: float,
        chunk_target_s: float,
        rng: random.Random,
        baselines: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self._signals = {policy.name: Signal(policy) for policy in policies}
        self._adopted = dict(baselines or {})
        self._min_rate = min_rate_per_s
        self._rate = Rate(min_rate_per_s)
        self._rate.per_s = max(min_rate_per_s, FIRST_RATE_PER_S)
        self._response = Response(chunk_target_s, workers)
        self._quiet = Quiet()
        self._slowdowns = Slowdowns(rng)
        self._capacities: deque[float] = deque(maxlen=CAPACITY_WINDOW)
        self._fastest: float | None = None
        self._present: float | None = None  # the same with the chunks of now: what workers are counted by
        self._now: float | None = None
        self._moved_at = -math.inf
        self._free = False  # nothing steered at the last step
        self._begun = False  # the rate has had its start value
        self._admitted_at: float | None = None
        self._admitted_per_s = math.inf  # what the last admitting decision allowed
        self._held = False
        self._pressed_tick_at = -math.inf
        self._pressed_ticks = 0
        self._pressed = False
        self._starved = False  # were it quiet, the gauges would be why
        self._pressed_at = 0.0
        self._crumb_at = 0.0
        self._seen_delay_s = 0.0

    def change(self, policies: Sequence[SignalPolicy], workers: int) -> None:
        """Live control: other targets, maxima, signals, workers.  Signals that stay keep window and baseline."""
        kept: dict[str, Signal] = {}
        for policy in policies:
            signal = self._signals.get(policy.name)
            if signal is None or signal.policy.unit is not policy.unit:
                signal = Signal(policy)
            else:
                signal.replace(policy)
            kept[policy.name] = signal
        self._signals = kept
        self._response.workers = workers

    @property
    def baselines(self) -> dict[str, tuple[float, float]]:
        """What a successor may take over: (baseline, deviation) by signal, in the signal's unit."""
        known = ((name, signal.baseline, signal.deviation) for name, signal in self._signals.items())
        return {name: (value, deviation) for name, value, deviation in known if value is not None}

    def step(self, situation: Situation) -> Decision:
        """Decide, once a second or so."""
        now = situation.now
        elapsed_s = 0.0 if self._now is None else min(max(0.0, now - self._now), LONGEST_TICK_S)
        self._now = now
        self._seen_delay_s *= math.exp(-elapsed_s / DELAY_DECAY_S)
        self._listen(situation, elapsed_s)
        counting = [signal for signal in self._signals.values() if counts(signal, situation)]
        steering = [signal for signal in counting if signal.policy.steers]
        gauges = look(steering, now, self._rate.jumped_at + drain_s(self._seen_delay_s), self._seen_delay_s)
        closed = first_closed(situation, counting)
        if steering:
            decision = self._steer(situation, steering, gauges, closed, elapsed_s)
        else:
            decision = self._let_run(situation, closed)
        self._note(decision, now)
        views = tuple(signal.view(now, counts=signal in counting) for signal in self._signals.values())
        return replace(decision, pressure=gauges.pressure, signals=views)

    def _listen(self, situation: Situation, elapsed_s: float) -> None:
        for name, (value, deviation) in self._adopted.items():
            if name in self._signals:
                self._signals[name].adopt(value, deviation, situation.now)
        self._adopted.clear()
        for reading in situation.readings:
            if reading.signal in self._signals:
                self._signals[reading.signal].add(reading)
        capacity = situation.capacity_per_s
        if capacity is not None and 0 < capacity < math.inf:
            self._capacities.append(capacity)
            faded = (self._fastest or 0.0) * math.exp(-elapsed_s / CAPACITY_DECAY_S)
            self._present = statistics.median(self._capacities)
            self._fastest = max(self._present, faded)

    def _note(self, decision: Decision, now: float) -> None:
        if not decision.held:
            self._admitted_at = now
            self._admitted_per_s = math.inf if decision.rate_per_s is None else decision.rate_per_s
        little = max(self._min_rate, LITTLE_SHARE * (self._fastest or 0.0))
        self._quiet.note(now, quiet=decision.held or self._admitted_per_s <= little)
        self._starved = self._pressed or decision.stage in (Stage.STEADY, Stage.SLOW_START)

    # ------------------------------------------------------------------------------------------- without gauges

    def _let_run(self, situation: Situation, closed: Closed | None) -> Decision:
        """Nothing steers: the user's limit alone, and the gates."""
        if not self._free:
            self._free = True
            self._pressed, self._pressed_ticks = False, 0
            self._response.forget()
        if closed is not None:
            return self._hold(situation, closed)
        ceiling = situation.ceiling_per_s
        stage = Stage.ALONE if situation.alone else Stage.STEADY
        if ceiling is None:
            return Decision(rate_per_s=None, stage=stage)
        leads, reason = ceiling_words(situation)
        return Decision(rate_per_s=ceiling, stage=stage, leads=leads, reason=reason)

    def _somebody_came(self, now: float) -> None:
        self._free = False
        self._quiet.trust_since(now - FRESH_S)
        self._slowdowns.postpone()
        # What was right a moment ago is a better guess than a start from nothing.
        self._begun = self._begun and now - self._rate.jumped_at <= FRESH_S
        if self._begun:
            self._rate.restart(RESUME_SHARE * self._rate.per_s, now)

    # ---------------------------------------------------------------------------------------------- with gauges

    def _steer(
        self,
        situation: Situation,
        steering: Sequence[Signal],
        gauges: Gauges,
        closed: Closed | None,
        elapsed_s: float,
    ) -> Decision:
        now = situation.now
        if self._free:
            self._somebody_came(now)
        self._prepare(situation, gauges)
        change = self._quiet.measure(steering, now, gauges.delay_s, starved=self._starved)
        if change is not None:
            self._take_up(change, now)
        self._response.follow(gauges.pressure, elapsed_s)
        if closed is not None:
            if closed.is_budget and not self._held:
                self._rate.cut(DEEPEST_CUT, now, gauges.delay_s)
            self._held = True
            return self._hold(situation, closed)
        if self._quiet.wants(steering, now):
            self._held = True
            return self._hold(situation, Closed("baseline", BASELINE_REASON), Stage.BASELINE)
        self._press(gauges, now)
        if self._pressed:
            return self._hold_by_pressure(situation, gauges)
        self._reopen(now)
        learns = any(signal.policy.target is None for signal in steering)
        if self._slowdowns.runs(now, wanted=learns, may_begin=not self._rate.slow_start and gauges.trouble is None):
            return self._admit(situation, gauges, Stage.SLOWDOWN)
        self._move(situation, gauges)
        return self._admit(situation, gauges, Stage.SLOW_START if self._rate.slow_start else Stage.STEADY)

    def _prepare(self, situation: Situation, gauges: Gauges) -> None:
        """Give the rate its start value, and keep it under the user's limit."""
        ceiling = math.inf if situation.ceiling_per_s is None else situation.ceiling_per_s
        start = FIRST_RATE_PER_S if self._fastest is None else START_SHARE * min(self._fastest, ceiling)
        if not self._begun and gauges.trouble is None:
            self._begun = self._fastest is not None
            self._rate.restart(start, situation.now)
        elif not self._begun:
            self._rate.per_s = min(self._rate.per_s, start)  # blind: not at the rate of another time
        self._rate.per_s = max(self._min_rate, min(self._rate.per_s, ceiling))

    def _take_up(self, change: float, now: float) -> None:
        """A baseline was measured."""
        if self._slowdowns.is_running:
            # Much lower than thought: another job was measured before, and both had better begin anew as equals.
            if change < -CONFIRMED and self._fastest is not None:
                self._rate.restart(START_SHARE * self._fastest, now)
            else:
                self._rate.restart(RESUME_SHARE * self._rate.per_s, now)
        self._slowdowns.measured(change)

    def _press(self, gauges: Gauges, now: float) -> None:
        """Close or open the gate of the gauges."""
        if gauges.pressure is None or now - self._pressed_tick_at < SHORTEST_TICK_S:
            return
        self._pressed_tick_at = now
        over = gauges.pressure >= GATE_PRESSURE and gauges.certain >= REOPEN_PRESSURE
        self._pressed_ticks = self._pressed_ticks + 1 if over else 0
        if self._pressed:
            self._stay_pressed(gauges, gauges.pressure, now)
        elif self._pressed_ticks >= GATE_TICKS:
            self._pressed = True
            self._pressed_at = now
            self._crumb_at = now + CRUMB_EVERY_S
            self._rate.cut(DEEPEST_CUT, now, gauges.delay_s)

    def _stay_pressed(self, gauges: Gauges, pressure: float, now: float) -> None:
        if pressure >= GATE_PRESSURE and self._fastest is not None and self._rate.per_s > START_SHARE * self._fastest:
            self._rate.cut(DEEPEST_CUT, now, gauges.delay_s)
        self._pressed = pressure >= REOPEN_PRESSURE
        held_s = now - self._pressed_at
        if not self._pressed and gauges.leader is not None and held_s <= LONGEST_DELAY_S:
            # How long a full stop took to show is how long anything takes, half of the window being in delay_s.
            self._seen_delay_s = max(self._seen_delay_s, held_s - gauges.leader.policy.window_s / 2)

    def _hold_by_pressure(self, situation: Situation, gauges: Gauges) -> Decision:
        self._held = True
        leads, reason = gauge_words(gauges, situation.now)
        if situation.now < self._crumb_at:
            return self._hold(situation, Closed(leads, reason))
        self._crumb_at = situation.now + CRUMB_EVERY_S
        return replace(self._admit(situation, gauges, Stage.HELD), leads=leads, reason=reason)

    def _reopen(self, now: float) -> None:
        if self._held:
            self._held = False
            long_ago = self._admitted_at is not None and now - self._admitted_at > FRESH_S
            if long_ago:
                self._quiet.trust_since(now - FRESH_S)
            if long_ago and self._fastest is not None:
                self._rate.restart(min(self._rate.per_s, START_SHARE * self._fastest), now)
            else:
                self._rate.restart(self._rate.per_s, now)

    def _move(self, situation: Situation, gauges: Gauges) -> None:
        elapsed_s = situation.now - self._moved_at
        if gauges.steady is None or elapsed_s < SHORTEST_TICK_S:
            return
        self._moved_at = situation.now
        fastest, ceiling = self._fastest, situation.ceiling_per_s
        if fastest is not None and ceiling is not None:
            fastest = min(fastest, ceiling)
        self._rate.move(
            Tick(
                now=situation.now,
                elapsed_s=min(elapsed_s, LONGEST_TICK_S),
                pressure=gauges.steady,
                error=gauges.error,
                certain=gauges.certain,
                room=gauges.room,
                sure_room=gauges.sure_room,
                delay_s=gauges.delay_s,
                fastest_per_s=fastest,
                binding=situation.binding,
                used_per_s=situation.used_per_s,
                frozen=gauges.trouble is not None,
            )
        )

    def _hold(self, situation: Situation, closed: Closed, stage: Stage = Stage.HELD) -> Decision:
        ceiling = situation.ceiling_per_s
        rate = ceiling if self._free else self._rate.per_s if ceiling is None else min(self._rate.per_s, ceiling)
        return Decision(rate_per_s=rate, held=True, leads=closed.key, reason=closed.reason, stage=stage)

    def _admit(self, situation: Situation, gauges: Gauges, stage: Stage) -> Decision:
        rate, ceiling = self._rate.per_s, situation.ceiling_per_s
        if stage in (Stage.SLOWDOWN, Stage.HELD):
            rate = self._min_rate
        if gauges.trouble is not None:
            rate = min(rate, max(self._admitted_per_s, self._min_rate))
        capacity = statistics.median(self._capacities) if self._capacities else None
        leads, reason = gauge_words(gauges, situation.now)
        if stage is Stage.SLOWDOWN:
            leads, reason = "slowdown", BASELINE_REASON
        elif ceiling is not None and rate >= ceiling:
            rate = ceiling
            leads, reason = ceiling_words(situation)
        return Decision(
            rate_per_s=rate,
            chunk_target_s=None if situation.alone else self._response.chunk_s(),
            # What they do now, at the present size of chunks, and not what they could.
            workers=self._response.active(rate, capacity, situation.now),
            leads=leads,
            reason=reason,
            stage=stage,
        )
