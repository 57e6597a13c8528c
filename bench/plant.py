"""A database to try laws on, without one: a queue whose latency explodes, seen late and through noise.

::

    load    = foreground + gain * rate * 1e-5          latency = 2 ms / (1 - load) * noise

Noise is log-normal, with spikes if asked for; readings show the load of ``delay_s`` ago, ten of them a second.  Where
the load exceeds what there is, a queue builds up, and the latency grows with it up to some seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from engine.pace.baseline import TARGET_DEVIATIONS, TARGET_MARGIN, TARGET_RATIO
from engine.pace.law import Law, Reading, Situation, Unit

SERVICE_S: Final = 0.002
LOAD_PER_ROW: Final = 1e-5
BUSIEST: Final = 0.98
"""Load up to which the queue's formula holds; beyond, the queue itself is counted."""

LONGEST_S: Final = 3.0
READINGS_PER_S: Final = 10
QUANTILE: Final = 0.9
"""What is judged is what the probes' windows show: the 90th percentile."""

CAPACITY_PER_S: Final = 100_000.0
CAPACITY_NOISE: Final = 0.1
BINDING_AT: Final = 0.98
"""A limit above this share of what the job can do holds nobody back."""

SIGNAL: Final = "read_latency"

Schedule = Callable[[float], float]
"""Time in seconds to the foreground's share of the database, 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What one run is like."""

    foreground: Schedule = lambda _at: 0.3
    gain: float = 1.0
    delay_s: float = 2.0
    noise: float = 0.1  # standard deviation of the logarithm
    spikes: float = 0.0  # share of readings ...
    spike_factor: float = 10.0  # ... that take so many times longer
    spoil: Callable[[float, Reading], Reading | None] | None = None  # what becomes of a reading

    def noise_factors(self) -> tuple[float, float]:
        """90th percentile and median absolute deviation of the noise."""
        sample = _noise(self, np.random.default_rng(0), 200_000)
        return float(np.quantile(sample, QUANTILE)), float(np.median(np.abs(sample - np.median(sample))))


@dataclass(frozen=True, slots=True)
class Goal:
    """What the run is judged by: a baseline and a target, as 90th percentiles in seconds."""

    baseline_s: float
    target_s: float

    def pressure(self, latency_s: float) -> float:
        """0 at the baseline, 1 at the target."""
        return (latency_s - self.baseline_s) / (self.target_s - self.baseline_s)


def goal_of(conditions: Conditions, foreground: float) -> Goal:
    """The target that the law's own rule makes of a baseline measured perfectly at this foreground."""
    high, deviation = conditions.noise_factors()
    alone_s = SERVICE_S / (1 - foreground)
    baseline_s = alone_s * high
    margin_s = TARGET_MARGIN[Unit.SECONDS]
    target_s = max(
        TARGET_RATIO * baseline_s, baseline_s + TARGET_DEVIATIONS * deviation * alone_s, baseline_s + margin_s
    )
    return Goal(baseline_s, target_s)


def spare_per_s(conditions: Conditions, goal: Goal, foreground: float) -> float:
    """Rows/s at which the latency would stand exactly at the target, 0 when the foreground alone exceeds it."""
    high, _ = conditions.noise_factors()
    load = 1 - high * SERVICE_S / goal.target_s
    return min(CAPACITY_PER_S, max(0.0, (load - foreground) / (conditions.gain * LOAD_PER_ROW)))


@dataclass(slots=True)
class Trace:
    """What happened, second by second."""

    conditions: Conditions
    at: list[float]
    rates: list[list[float]]  # per job: rows/s really used
    latencies_s: list[float]  # true 90th percentile, without delay
    reasons: list[list[str]]  # per job: what led

    def pressures(self, goal: Goal) -> np.ndarray:
        """True pressure, second by second."""
        return np.array([goal.pressure(latency_s) for latency_s in self.latencies_s])


class Plant:
    """The database.  One tick is one second."""

    def __init__(self, conditions: Conditions, seed: int) -> None:
        self.conditions = conditions
        self._rng = np.random.default_rng(seed)
        self._high, _ = conditions.noise_factors()
        self._times: list[float] = []
        self._latencies_s: list[float] = []
        self._queue_s = 0.0

    def run(self, now: float, rate_per_s: float) -> float:
        """Let the second from ``now`` on pass at this rate; returns the true 90th percentile in it."""
        load = self.conditions.foreground(now) + self.conditions.gain * rate_per_s * LOAD_PER_ROW
        self._queue_s = max(0.0, self._queue_s + load - 1)
        latency_s = min(SERVICE_S / (1 - min(load, BUSIEST)) + self._queue_s, LONGEST_S)
        self._times.append(now)
        self._latencies_s.append(latency_s)
        return latency_s * self._high

    def readings(self, now: float) -> tuple[Reading, ...]:
        """What the probe found in the second that ends at ``now``."""
        conditions = self.conditions
        factors = _noise(conditions, self._rng, READINGS_PER_S)
        found: list[Reading] = []
        for number, factor in enumerate(factors):
            at = now - 1 + (number + 1) / READINGS_PER_S
            value = self._seen(at - conditions.delay_s) * float(factor)
            reading: Reading | None = Reading(SIGNAL, at, value)
            if conditions.spoil is not None and reading is not None:
                reading = conditions.spoil(at, reading)
            if reading is not None:
                found.append(reading)
        return tuple(found)

    def capacity(self, now: float) -> float:
        """What one job could do by itself: what the foreground leaves, estimated with noise."""
        free = 1 - self.conditions.foreground(now)
        return CAPACITY_PER_S * free * math.exp(CAPACITY_NOISE * self._rng.standard_normal())

    def _seen(self, at: float) -> float:
        index = bisect_right(self._times, at + 1e-9) - 1
        if index < 0:
            return SERVICE_S / (1 - self.conditions.foreground(at))
        return self._latencies_s[index]


def simulate(
    laws: Sequence[Law], conditions: Conditions, *, seconds: int, seed: int, starts_s: Sequence[float] = (0.0,)
) -> Trace:
    """Run ``laws``, one job each, beside each other; job ``i`` begins at ``starts_s[i]``."""
    plant = Plant(conditions, seed)
    trace = Trace(conditions, [], [[] for _ in laws], [], [[] for _ in laws])
    used = [0.0] * len(laws)
    binding = [False] * len(laws)
    for second in range(seconds):
        now = float(second)
        readings = plant.readings(now) if second else ()
        for index, law in enumerate(laws):
            if now < starts_s[index]:
                trace.reasons[index].append("")
                continue
            capacity = plant.capacity(now)
            decision = law.step(
                Situation(
                    now=now,
                    readings=readings,
                    used_per_s=used[index],
                    binding=binding[index],
                    capacity_per_s=capacity,
                )
            )
            limit = 0.0 if decision.held else math.inf if decision.rate_per_s is None else decision.rate_per_s
            used[index] = min(limit, capacity)
            binding[index] = limit < BINDING_AT * capacity
            trace.reasons[index].append(decision.reason)
        for index in range(len(laws)):
            trace.rates[index].append(used[index])
        trace.at.append(now)
        trace.latencies_s.append(plant.run(now, sum(used)))
    return trace


def step(before: float, after: float, at_s: float, until_s: float = math.inf) -> Schedule:
    """A foreground that steps from ``before`` to ``after`` at ``at_s``, and back at ``until_s``."""
    return lambda now: after if at_s <= now < until_s else before


def _noise(conditions: Conditions, rng: np.random.Generator, count: int) -> np.ndarray:
    factors = np.exp(conditions.noise * rng.standard_normal(count))
    if conditions.spikes:
        factors *= np.where(rng.random(count) < conditions.spikes, conditions.spike_factor, 1.0)
    return factors
