"""What people want of a job's pace: the spec, changed by what operators ordered since.

Orders come from the ledger, so they may change targets and limits, and turn signals on and off; they never bring a
query or a URL of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from engine.ledger.orders import PaceOrders, SignalOrder
from engine.spec.misfit import Misfit
from engine.spec.signals import NAMED, SignalKind, SignalSpec

MAX_ROWS: Final = "max_rows_per_s"
MAX_WAL: Final = "max_wal_bytes_per_s"


def signals_in_force(signals: Iterable[SignalSpec], orders: PaceOrders) -> tuple[SignalSpec, ...]:
    """The signals that count now.  An order names a signal as the spec does, or as status shows it (with ``@side``: it
    counts for both).  One that contradicts itself leaves its signal as the spec has it.
    """
    ordered = {name.partition("@")[0]: order for name, order in orders.signals.items()}
    found = [
        changed
        for signal in signals
        if (changed := _changed(signal, ordered.pop(signal.name, SignalOrder()))) is not None
    ]
    return (*found, *_turned_on(ordered))


def _changed(signal: SignalSpec, order: SignalOrder) -> SignalSpec | None:
    if order.off:
        return None
    try:
        return replace(
            signal,
            target=signal.target if order.target is None else order.target,
            maximum=signal.maximum if order.maximum is None else order.maximum,
        )
    except Misfit:
        return signal


def _turned_on(ordered: Mapping[str, SignalOrder]) -> Iterable[SignalSpec]:
    """Built-in signals that the spec does not have, and an operator wants."""
    built_in = {kind.value for kind in SignalKind if kind not in NAMED}
    for name, order in ordered.items():
        if name in built_in and not order.off:
            try:
                yield SignalSpec(kind=SignalKind(name), target=order.target, maximum=order.maximum)
            except Misfit:
                continue


def row_limit(
    orders: PaceOrders, spec: Mapping[str, Any], wal_bytes_per_s: float | None, wal_bytes_per_row: float
) -> tuple[float | None, str]:
    """The lower one of the limits on rows and on WAL, in rows a second, and which of them it is.  ``spec`` is the
    ledger's copy, which is the newest run's, on whatever host.
    """
    rows = orders.max_rows_per_s or spec.get("pace", {}).get(MAX_ROWS)
    wal = orders.max_wal_bytes_per_s or wal_bytes_per_s
    limits: list[tuple[float, str]] = []
    if rows is not None:
        limits.append((float(rows), MAX_ROWS))
    if wal is not None:
        limits.append((wal / max(wal_bytes_per_row, 1.0), MAX_WAL))
    return min(limits, default=(None, MAX_ROWS))
