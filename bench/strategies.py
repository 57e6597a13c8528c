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
LEARNT: Final = "learnt"
OURS: Final = "ours"
NAMES: Final = (BASELINE, UNTHROTTLED, FIXED, STOP_GO, NICE, LEARNT, OURS)

TAIL_TO_PROBE: Final = 2.5
"""Probes are steered by their p90, people promise a p99: about this many times it."""

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


def probe_target_for(p99_s: float) -> str:
    """What the spec of somebody says who promised that p99."""
    return f"{p99_s / TAIL_TO_PROBE * 1e3:.1f}ms"


def make_strategy(name: str, *, fixed_per_s: float | None, probe_target: str) -> Strategy:
    """The strategy of that name.  ``fixed_per_s``: the limit of the fixed one.  ``probe_target``: of both latency
    probes, as a spec writes it.
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
        case "learnt":
            return Strategy(name, "our law, default settings: targets are learnt", {})
        case "ours":
            return Strategy(name, f"our law, both probes' target {probe_target}", signals)
    raise ValueError(f"no strategy {name!r}")


def _signals(probe_target: str) -> dict[str, Any]:
    return {"signals": [{name: {"target": probe_target}} for name in ("read_latency", "commit_latency")]}
