"""A decision as the ledger keeps it, for the workers of other processes and for people.

One process leads and publishes; the others read what it wrote.  The ledger is untrusted input: what cannot be a
decision is read as none, and whoever reads none falls back to the minimum.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Final

from engine.pace.law import Decision, SignalView, Stage

_DIGITS: Final = 6
LONGEST_TEXT: Final = 500
LONGEST_LEADS: Final = 60
"""``leads`` is one of a few fixed names, or the name of a signal; it becomes a key of what is counted."""

_LONGEST_CHUNK_S: Final = 3600.0
_MOST_WORKERS: Final = 1 << 16


def to_json(decision: Decision) -> dict[str, Any]:
    """The decision with its signals; numbers rounded, since a row is written every second."""
    return {
        "rate_per_s": _rounded(decision.rate_per_s),
        "held": decision.held,
        "leads": decision.leads,
        "reason": decision.reason[:LONGEST_TEXT],
        "pressure": _rounded(decision.pressure),
        "stage": decision.stage.value,
        "chunk_target_s": _rounded(decision.chunk_target_s),
        "workers": decision.workers,
        "signals": [_signal(view) for view in decision.signals],
    }


def from_json(data: object) -> Decision | None:
    """What a worker of another process must follow: how fast, and why.  None for what is no decision.  Never raises."""
    if not isinstance(data, Mapping) or "rate_per_s" not in data:
        return None
    try:
        rate, target, workers = data["rate_per_s"], data.get("chunk_target_s"), data.get("workers")
        if not (rate is None or _is_number(rate, sys.float_info.max)):
            return None
        if not (target is None or _is_number(target, _LONGEST_CHUNK_S)):
            return None
        if not (workers is None or (isinstance(workers, int) and _is_number(workers, _MOST_WORKERS))):
            return None
        return Decision(
            rate_per_s=rate,
            chunk_target_s=target,
            workers=workers,
            held=bool(data.get("held", False)),
            leads=_text(data.get("leads"), LONGEST_LEADS),
            reason=_text(data.get("reason"), LONGEST_TEXT),
            stage=Stage(data.get("stage", Stage.STEADY)),
        )
    except (TypeError, ValueError):
        return None


def _signal(view: SignalView) -> dict[str, Any]:
    return {
        "name": view.name,
        "value": _rounded(view.value),
        "target": _rounded(view.target),
        "max": _rounded(view.maximum),
        "baseline": _rounded(view.baseline),
        "age_s": None if view.age_s is None else round(view.age_s, 1),
        "unit": view.unit.value,
        "pressure": _rounded(view.pressure),
        "detail": view.detail[:LONGEST_TEXT],
        "error": view.error[:LONGEST_TEXT],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, _DIGITS)


def _is_number(value: object, at_most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= at_most


def _text(value: object, longest: int) -> str:
    return value[:longest] if isinstance(value, str) else ""
