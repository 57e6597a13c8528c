"""Other control laws, on the same seam as ours: what people use today, and what congestion control would do.

Each takes the policies of the job's gauges, as ``Controller`` does, and one number that is its own.  Those that steer
by pressure measure a baseline for five seconds first, as ours does, so that no law wins or loses by its target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine.pace.law import Decision, Law, SignalPolicy, Situation, Stage
from engine.pace.signals import Signal

BASELINE_S: Final = 5.0
START_SHARE: Final = 0.03
"""All that grow begin where ours begins."""

FIRST_RATE_PER_S: Final = 1_000.0


@dataclass(frozen=True, slots=True)
class Moment:
    """What a comparator decides by."""

    now: float
    binding: bool
    pressure: float | None  # the largest of all gauges: 0 at the baseline, 1 at the target
    ratio: float | None  # the largest value as a share of its target
    worst: float | None  # the largest value, in its unit


class Comparator(ABC):
    """What they have in common: signals, a baseline, a ceiling, and no opinion on chunks and workers."""

    def __init__(
        self, policies: Sequence[SignalPolicy], *, min_rate_per_s: float = 1.0, **_of_the_controller: object
    ) -> None:
        self.signals = {policy.name: Signal(policy) for policy in policies}
        self.least = min_rate_per_s
        self.rate = 0.0
        self.fastest = 0.0
        self._began: float | None = None
        self._learnt = False

    @property
    def baselines(self) -> dict[str, tuple[float, float]]:
        """As of ``Controller``."""
        known = ((name, signal.baseline, signal.deviation) for name, signal in self.signals.items())
        return {name: (value, deviation) for name, value, deviation in known if value is not None}

    def change(self, policies: Sequence[SignalPolicy], _workers: int) -> None:
        """Other targets; signals that were not there from the start are not followed."""
        for policy in policies:
            if policy.name in self.signals:
                self.signals[policy.name].replace(policy)

    def step(self, situation: Situation) -> Decision:
        """Hold for gates and for the baseline, else decide by the law."""
        now = situation.now
        self._began = now if self._began is None else self._began
        for reading in situation.readings:
            if reading.signal in self.signals:
                self.signals[reading.signal].add(reading)
        self.fastest = situation.capacity_per_s or self.fastest
        steering = [signal for signal in self.signals.values() if signal.policy.steers]
        closed = dict(situation.closed)
        closed.update((name, reason) for name, s in self.signals.items() if (reason := s.gate(now)) is not None)
        if not self._learnt and now - self._began < BASELINE_S and steering:
            closed["baseline"] = "measuring latency without us"
        elif not self._learnt:
            self._learnt = all(signal.learn(now, self._began) for signal in steering)
        views = tuple(signal.view(now) for signal in self.signals.values())
        for key, reason in closed.items():
            return Decision(rate_per_s=self.least, held=True, leads=key, reason=reason, stage=Stage.HELD, signals=views)
        if self.rate <= 0:
            self.rate = START_SHARE * self.fastest or FIRST_RATE_PER_S
        values = [(v, s.target) for s in steering if (v := s.value(now)) is not None]
        moment = Moment(
            now=now,
            binding=situation.binding,
            pressure=max((p for s in steering if (p := s.pressure(now)) is not None), default=None),
            ratio=max((value / target for value, target in values if target), default=None),
            worst=max((value for value, _ in values), default=None),
        )
        rate = self.decide(moment)
        ceiling = situation.ceiling_per_s
        if ceiling is not None:
            rate = ceiling if rate is None else min(rate, ceiling)
        held = rate is not None and rate <= 0
        rate = None if rate is None else max(self.least, rate)
        return Decision(rate_per_s=rate, held=held, leads="law", pressure=moment.pressure, signals=views)

    @abstractmethod
    def decide(self, moment: Moment) -> float | None:
        """Rows per second until the next step; None for no limit, 0 to hold."""


class Unlimited(Comparator):
    """No pacing at all."""

    def decide(self, _moment: Moment) -> float | None:
        """No limit."""
        return None


class FixedRate(Comparator):
    """A fixed rate, chosen once: pgroll's ``--backfill-batch-delay``, pt-archiver's ``--sleep``."""

    share = 0.2
    _fixed: float | None = None

    def decide(self, _moment: Moment) -> float | None:
        """A share of what the job could do when it began."""
        if self._fixed is None and self.fastest:
            self._fixed = self.share * self.fastest
        return self._fixed or FIRST_RATE_PER_S


class StopGo(Comparator):
    """Full speed under a threshold, nothing over it: gh-ost's ``--max-load`` and lag throttle, freno's checks."""

    def decide(self, moment: Moment) -> float | None:
        """All or nothing."""
        return 0.0 if moment.ratio is None or moment.ratio > 1 else None


class NiceRatio(Comparator):
    """Sleeps as long as a chunk took, times a number: gh-ost's ``--nice-ratio``."""

    nice = 1.0

    def decide(self, _moment: Moment) -> float | None:
        """The present speed, diluted."""
        return self.fastest / (1 + self.nice) if self.fastest else FIRST_RATE_PER_S


class HalvingAimd(Comparator):
    """A small step up each second, half on overload: TCP Reno (RFC 5681), Netflix' ``AIMDLimit``."""

    step_share = 0.01
    patience_s = 4.0
    _cut_at = -1e9

    def decide(self, moment: Moment) -> float | None:
        """Add or halve, and halve at most once per feedback delay."""
        if moment.pressure is None:
            return self.rate
        if moment.pressure > 1:
            if moment.now - self._cut_at >= self.patience_s:
                self.rate, self._cut_at = self.rate / 2, moment.now
        elif moment.binding:
            self.rate += self.step_share * self.fastest
        return self.rate


class Gradient2(Comparator):
    """The rate follows the ratio of long-term to present latency: Netflix concurrency-limits' ``Gradient2Limit``."""

    tolerance = 1.5
    smoothing = 0.2
    long_s = 600.0
    head_share = 0.005
    _long: float | None = None

    def decide(self, moment: Moment) -> float | None:
        """``rate * clamp(tolerance * long / short, 0.5, 1) + headroom``, smoothed."""
        value = moment.worst
        if value is None or value <= 0:
            return self.rate
        self._long = value if self._long is None else self._long + (value - self._long) / self.long_s
        if self._long / value > 2:
            self._long *= 0.95
        gradient = min(1.0, max(0.5, self.tolerance * self._long / value))
        wanted = self.rate * gradient + self.head_share * self.fastest
        if moment.binding or wanted < self.rate:
            self.rate += self.smoothing * (wanted - self.rate)
        return self.rate


class Zones(Comparator):
    """Multiplicative steps by zones of utilisation, as block/spirit's throttlers make them."""

    zones = ((0.5, 1.2), (0.8, 1.05), (1.0, 1.0), (1.25, 0.8))
    beyond = 0.5

    def decide(self, moment: Moment) -> float | None:
        """One step each second."""
        if moment.ratio is not None:
            factor = next((factor for limit, factor in self.zones if moment.ratio <= limit), self.beyond)
            if factor <= 1 or moment.binding:
                self.rate = max(self.least, self.rate * factor)
        return self.rate


class PlainLedbat(Comparator):
    """``rate += gain * (1 - moment.pressure)`` both ways, the delay target as the set point: LEDBAT (RFC 6817)."""

    gain_share = 0.02

    def decide(self, moment: Moment) -> float | None:
        """A linear controller: up and down alike, no more than halving."""
        if moment.pressure is not None:
            change = self.gain_share * self.fastest * max(-5.0, 1 - moment.pressure)
            if change < 0 or moment.binding:
                self.rate = max(self.least, self.rate / 2, self.rate + change)
        return self.rate


MakeLaw = Callable[..., Law]

COMPARATORS: Final[dict[str, MakeLaw]] = {
    "unlimited": Unlimited,
    "fixed rate": FixedRate,
    "stop/go": StopGo,
    "nice-ratio": NiceRatio,
    "halving AIMD": HalvingAimd,
    "Gradient2": Gradient2,
    "zones": Zones,
    "plain LEDBAT": PlainLedbat,
}
"""By the name in the tables; each is called like ``Controller``."""
