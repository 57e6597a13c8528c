"""What may be ordered about a job's signals while it runs: the same rules as for a signal that stands in a spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from engine.ledger.orders import SignalOrder
from engine.spec.misfit import Misfit, nearest
from engine.spec.signals import NAMED, SIDE, SignalKind, SignalSpec, kind_of, without_side

STEERING: Final = frozenset(
    {
        SignalKind.READ_LATENCY, SignalKind.COMMIT_LATENCY, SignalKind.REPLICATION_LAG, SignalKind.ACTIVE_SESSIONS,
        SignalKind.WAL_RATE, SignalKind.VACUUM_DEBT, SignalKind.SQL, SignalKind.PROMETHEUS,
    }
)  # fmt: skip
"""Kinds whose value says how much is too much by degrees, so that a job can be steered by it."""

GO_OR_STOP: Final = frozenset({SignalKind.AUTOVACUUM, SignalKind.HTTP})
"""Kinds that have no thresholds."""

_BUILT_IN: Final = tuple(kind.value for kind in SignalKind if kind not in NAMED)


def built_in(name: str) -> SignalKind | None:
    """The kind of a built-in signal of that very name, without a side."""
    return kind_of(name) if SIDE not in name else None


def signal_named(name: str, known: Mapping[str, SignalSpec]) -> SignalSpec:
    """The job's signal of that name, or a built-in one that the job has not had so far.  Raises ``Misfit``."""
    if name in known:
        return known[name]
    kind = built_in(name)
    if kind is not None:
        return SignalSpec(kind=kind, off=True)
    plain = without_side(name)
    if plain != name and (plain in known or built_in(plain) is not None):
        raise Misfit(f"orders on {plain} count for both databases", f"write {plain}")
    candidates = list(dict.fromkeys((*known, *_BUILT_IN)))
    close = nearest(name, candidates)
    raise Misfit(
        f"this job has no signal {name!r}", f"did you mean {close}?" if close else f"there are: {', '.join(candidates)}"
    )


def check_thresholds(signal: SignalSpec, *, target: bool, maximum: bool) -> None:
    """Refuse thresholds that the signal's kind cannot have.  Raises ``Misfit``."""
    if (target or maximum) and signal.kind in GO_OR_STOP:
        raise Misfit("it says only go or stop", "it can be switched off, and on again")
    if target and signal.kind not in STEERING:
        raise Misfit("it does not steer, it only stops", "order a maximum")


def check_order(signal: SignalSpec, order: SignalOrder) -> None:
    """Refuse what would not be a signal: the same rules as for one that stands in a spec.  Raises ``Misfit``."""
    if order.off:
        return
    replace(
        signal,
        target=order.target if order.target is not None else signal.target,
        maximum=order.maximum if order.maximum is not None else signal.maximum,
        off=False,
    )
