"""Times in which nothing, or next to nothing, of ours runs: when a baseline can be measured, and when to make one.

A baseline is taken from the readings of five quiet seconds, two seconds after the last chunk: before the first chunk,
while the job is held for whatever reason, and in a **slowdown**.  A target that was learnt has to be learnt again now
and then, or a foreground that has changed would be held to the latency of another time of day.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from engine.clock import jittered
from engine.pace.signals import Signal

BASELINE_REASON: Final = "measuring latency without us"

DRAIN_S: Final = 2.0
"""After the last chunk, the readings of this long may still feel it; ``drain_s`` when the feedback is slower."""

STARVED_S: Final = 60.0
"""What is still high this long after a stop, or with next to nothing of ours, is not ours."""

BASELINE_S: Final = 5.0
BASELINE_AT_MOST_S: Final = 15.0
"""Signals that have given nothing by then are not waited for."""

BASELINE_READINGS: Final = 5
"""Readings that a learnt target takes; a given one needs a single one."""

AGAIN_S: Final = 60.0
"""In a long hold, a baseline is measured this often."""

FIRST_SLOWDOWN_S: Final = 45.0
"""The first slowdown comes early: a first baseline may have been measured beside another job, which then starves."""

SLOWDOWN_COSTS: Final = 9.0
"""A slowdown comes at the earliest after this many times what one costs: at most a tenth of the time (LEDBAT++)."""

SLOWDOWN_RECOVERY_S: Final = 5.0
"""What a slowdown costs besides its own time, until the rate is back."""

SLOWDOWN_AT_MOST_S: Final = 900.0
"""Slowdowns that confirm the baseline become rarer, up to this."""

CONFIRMED: Final = 0.15
"""A baseline within this share of the last one confirms it."""


class Quiet:
    """Watches for quiet times and has the signals learn in them.  Times are seconds of the law's clock."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._ran = False
        self._measured_at: float | None = None
        self._trusted_from = -float("inf")
        self._given_up = False

    def note(self, now: float, *, quiet: bool) -> None:
        """Say what was decided for the time from ``now`` on."""
        if not quiet:
            self._ran, self._since, self._measured_at = True, None, None
        elif self._since is None:
            # What never ran has nothing to drain.
            self._since = now if self._ran else now - DRAIN_S

    def trust_since(self, when: float) -> None:
        """Baselines from before ``when`` are to be measured again."""
        self._trusted_from = when
        self._given_up = False

    def wants(self, steering: Sequence[Signal], now: float) -> bool:
        """True while the job should be held for a baseline: one is missing, and the signal gives readings, or may
        still begin to.
        """
        lacking = [s for s in steering if self._lacks(s)]
        if not lacking:
            return False
        return not self._given_up or any(_is_ready(s, now, now - BASELINE_S) for s in lacking)

    def measure(self, steering: Sequence[Signal], now: float, delay_s: float, *, starved: bool = False) -> float | None:
        """Learn if it is time.  ``starved``: it is the pressure itself that lets nothing through, so what is read at
        first may be the end of what we did.  Returns the largest relative change of a known baseline (negative: it
        fell), 0.0 when there was none to compare with, and None when nothing was measured.
        """
        if self._since is None:
            return None
        begin = self._since + (STARVED_S if starved else drain_s(delay_s))
        if self._measured_at is not None:
            begin = self._measured_at + AGAIN_S
        if now < begin + BASELINE_S:
            return None
        late = now >= begin + BASELINE_AT_MOST_S
        ready = [s for s in steering if _is_ready(s, now, begin)]
        if not late and len(ready) < len(steering):
            return None
        changes = [0.0]
        for signal in ready:
            before, taken_at = signal.baseline, signal.baseline_taken_at
            anew = taken_at is not None and taken_at < self._trusted_from
            if signal.learn(now, max(begin, now - BASELINE_AT_MOST_S), anew=anew, starved=starved) and before:
                changes.append((signal.baseline or 0.0) / before - 1)
        self._given_up = any(self._lacks(s) for s in steering)
        self._measured_at = now
        return max(changes, key=abs)

    def _lacks(self, signal: Signal) -> bool:
        taken_at = signal.baseline_taken_at
        return signal.needs_baseline or (taken_at is not None and taken_at < self._trusted_from)


class Slowdowns:
    """When to slow down.  ``rng`` jitters, so that jobs beside each other do not measure one another in step."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._since: float | None = None
        self._due_at: float | None = None
        self._every_s = FIRST_SLOWDOWN_S

    @property
    def is_running(self) -> bool:
        """True from the beginning of a slowdown until its measurement."""
        return self._since is not None

    def runs(self, now: float, *, wanted: bool, may_begin: bool) -> bool:
        """True while the rate should be the least one.  ``wanted``: some target is learnt; ``may_begin``: not now."""
        if not wanted:
            self.postpone()
            return False
        if self._since is None:
            if self._due_at is None:
                self._due_at = now + jittered(self._every_s, self._rng)
            if now >= self._due_at and may_begin:
                self._since = now
        elif now - self._since > DRAIN_S + BASELINE_AT_MOST_S + BASELINE_S:
            self.measured(0.0)
        return self._since is not None

    def postpone(self) -> None:
        """The time until the next one begins anew."""
        self._since = self._due_at = None

    def measured(self, change: float) -> None:
        """A baseline was measured, in a slowdown or otherwise; it changed by this share."""
        self.postpone()
        shortest_s = SLOWDOWN_COSTS * (DRAIN_S + BASELINE_S + SLOWDOWN_RECOVERY_S)
        longer_s = min(2 * self._every_s, SLOWDOWN_AT_MOST_S) if abs(change) <= CONFIRMED else 0.0
        self._every_s = max(longer_s, shortest_s)


def drain_s(delay_s: float) -> float:
    """Seconds that readings may still feel the last chunk, given the feedback delay."""
    return max(DRAIN_S, delay_s / 2)


def _is_ready(signal: Signal, now: float, since: float) -> bool:
    if signal.trouble(now):
        return False
    needed = 1 if signal.policy.target is not None else BASELINE_READINGS
    return signal.count_since(since) >= needed
