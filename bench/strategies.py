"""How a backfill may go beside a foreground: not held back at all, at a fixed rate, by other laws, by ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bench.laws import NiceRatio, StopGo
from engine.flow.pacer import MakeLaw
from engine.pace.controller import Controller

BASELINE: Final = "baseline"
UNTHROTTLED: Final = "unthrottled"
FIXED: Final = "fixed"
STOP_GO: Final = "stop-go"
NICE: Final = "nice"
OURS: Final = "ours"
NAMES: Final = (BASELINE, UNTHROTTLED, FIXED, STOP_GO, NICE, OURS)

FIXED_SHARE: Final = 0.5
"""Of the rate of a backfill that nothing holds back: what a careful person writes down."""

SIGNALS_OFF: Final[dict[str, Any]] = {"signals": "off"}


@dataclass(frozen=True, slots=True)
class Strategy:
    """One of them.  ``pace`` is that part of the spec; None: there is no backfill."""

    name: str
    detail: str
    pace: dict[str, Any] | None
    law: MakeLaw = Controller

    def spec(self, base: dict[str, Any]) -> dict[str, Any] | None:
        """The job's spec."""
        return None if self.pace is None else base | ({"pace": self.pace} if self.pace else {})


def make_strategy(name: str, *, fixed_per_s: float | None, probe_target: str | None) -> Strategy:
    """The strategy of that name.  ``fixed_per_s``: the limit of the fixed one.  ``probe_target``: of both latency
    probes, as a spec writes it; None: learnt.
    """
    signals = _signals(probe_target)
    match name:
        case "baseline":
            return Strategy(name, "the foreground alone", None)
        case "unthrottled":
            return Strategy(name, "default chunks and workers, all signals off", SIGNALS_OFF)
        case "fixed":
            assert fixed_per_s is not None
            detail = f"signals off, max_rows_per_s {fixed_per_s:,.0f}: {FIXED_SHARE:.0%} of the unthrottled rate"
            return Strategy(name, detail, {**SIGNALS_OFF, "max_rows_per_s": round(fixed_per_s)})
        case "stop-go":
            return Strategy(name, "on or off by a threshold on the probes (gh-ost, freno)", signals, StopGo)
        case "nice":
            return Strategy(name, "a pause in proportion to the time that chunks took", signals, NiceRatio)
        case "ours":
            targets = "learnt targets" if probe_target is None else f"both probes' target {probe_target}"
            return Strategy(name, f"default settings, {targets}", signals)
    raise ValueError(f"no strategy {name!r}")


def _signals(probe_target: str | None) -> dict[str, Any]:
    if probe_target is None:
        return {}
    return {"signals": [{name: {"target": probe_target}} for name in ("read_latency", "commit_latency")]}
