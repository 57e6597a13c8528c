"""What a control law is told once a second, and what it decides: the seam between measuring and pacing.

A law is a plain synchronous object: ``step(situation) -> decision``.  The job's own law is ``pace.controller``; the
simulator and the foreground benchmark run others through the same seam (``bench.laws``).

Rates are rows scanned per second, over all workers of the job wherever they are.  Times are seconds of one monotonic
clock.  A signal's value is in its unit: seconds, bytes, bytes per second, a ratio (0.2 for 20 %), or a plain count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Unit(StrEnum):
    """What a signal's numbers mean; the value is the ``unit`` of ``status --json``."""

    SECONDS = "s"
    BYTES = "bytes"
    BYTES_PER_S = "bytes/s"
    RATIO = "ratio"
    COUNT = "count"


class Statistic(StrEnum):
    """How the readings of a window become one value."""

    P90 = "p90"
    MEDIAN = "median"
    LAST = "last"


class OnFailure(StrEnum):
    """What a signal without a usable reading does."""

    HOLD = "hold"  # fail closed: nothing is admitted
    FREEZE = "freeze"  # the rate does not rise (gauges that came by default)
    IGNORE = "ignore"  # as if the signal were not there: only where its job says so


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalPolicy:
    """How one signal steers and gates.  ``target`` steers (a gauge), ``maximum`` gates (a budget); a signal may do
    both.
    """

    name: str
    unit: Unit
    target: float | None = None
    learns: bool = False  # without a target, one is made from the baseline
    maximum: float | None = None
    foreground: bool = False  # measures what somebody else would feel: means nothing while nobody else is there
    accumulates: bool = False  # a lag that the job causes: led by its growth, without a baseline
    statistic: Statistic = Statistic.MEDIAN
    window_s: float = 3.0
    stale_after_s: float = 5.0
    on_failure: OnFailure = OnFailure.HOLD

    @property
    def steers(self) -> bool:
        """True for a gauge."""
        return self.target is not None or self.learns

    @property
    def gates(self) -> bool:
        """True for a budget."""
        return self.maximum is not None


@dataclass(frozen=True, slots=True)
class Reading:
    """One measurement.  ``value`` None: it failed, and ``error`` says how.  NaN, infinities and negative values are
    failures, too, whoever sends them.
    """

    signal: str
    at: float  # when it was taken: the moment the answer came, by the local monotonic clock
    value: float | None
    error: str = ""  # for people: "timed out after 1 s", "permission denied for function pg_ls_archive_statusdir"
    detail: str = ""  # for people: which standby, which query; no row values


@dataclass(frozen=True, slots=True)
class SignalView:
    """One signal as people see it."""

    name: str
    unit: Unit
    value: float | None
    target: float | None  # the one in force: given, or learnt
    maximum: float | None
    baseline: float | None
    age_s: float | None  # since the last good reading
    pressure: float | None  # gauges: 0 at the baseline, 1 at the target
    detail: str = ""
    error: str = ""  # why there is no value, or why it cannot steer


class Stage(StrEnum):
    """What the law is doing."""

    ALONE = "alone"  # nobody else uses the database: no limit but the user's
    BASELINE = "baseline"  # nothing is admitted while the latency without us is measured
    SLOW_START = "slow start"
    STEADY = "steady"
    SLOWDOWN = "slowdown"  # at the minimum for some seconds, to measure the baseline again
    HELD = "held"  # a gate is closed


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a law is told, once a tick."""

    now: float
    readings: tuple[Reading, ...] = ()  # since the last step
    used_per_s: float = 0.0  # rows/s really admitted since the last step
    binding: bool = False  # chunks waited for the limit in at least 80 % of the time since the last step
    capacity_per_s: float | None = None  # what all workers would do without ever waiting; None: no chunk ran yet
    alone: bool = False  # nobody else has used the job's databases lately
    closed: Mapping[str, str] = field(default_factory=dict)  # gates from elsewhere: key -> reason for people
    ceiling_per_s: float | None = None  # the user's limit; None: there is none
    ceiling_reason: str = "max_rows_per_s"  # its fixed name
    ceiling_words: str = ""  # what was said, where that is not a number of rows: "50MiB/s, now 12,000 rows/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How fast the job may go until the next step."""

    rate_per_s: float | None  # None: no limit
    chunk_target_s: float | None = None  # server seconds a chunk may take; None: the job's own target
    workers: int | None = None  # how many may be at work, over the whole job; None: all
    held: bool = False  # nothing is admitted at all
    leads: str = ""  # the signal, or the key of a gate, that decides now; one of a few fixed names
    reason: str = ""  # for people: "commit_latency 31ms > 20ms", "max_rows_per_s 20,000"
    pressure: float | None = None  # the largest of all gauges; None without one
    stage: Stage = Stage.STEADY
    signals: tuple[SignalView, ...] = ()


class Law(Protocol):
    """Decides the pace of one job."""

    @property
    def baselines(self) -> Mapping[str, tuple[float, float]]:
        """What was learnt about the signals, for a successor: name -> (baseline, median absolute deviation)."""
        ...

    def change(self, policies: Sequence[SignalPolicy], workers: int) -> None:
        """Other targets, other signals, more or fewer workers; from the next step on."""
        ...

    def step(self, situation: Situation) -> Decision:
        """Decide, once a second or so."""
        ...
