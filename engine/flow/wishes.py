"""What people want of a job's pace: the spec, changed by what operators ordered since.

Orders come from the ledger, so they may change targets and limits, and turn signals on and off; they never bring a
query or a URL of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from engine.errors import UsageError
from engine.ledger.orders import PaceOrders, SignalOrder
from engine.pace.law import Unit
from engine.pace.quantity import format_value
from engine.spec import JobSpec
from engine.spec.misfit import Misfit
from engine.spec.pacing import Pace
from engine.spec.signals import SignalSpec, kind_of, without_side

MAX_ROWS: Final = "max_rows_per_s"
MAX_WAL: Final = "max_wal_bytes_per_s"
MAX_GROWTH: Final = "max_growth"

GROWTH_TAKES_S: Final = 2.0
"""Seconds in which a job may write at most as many rows as ``bloat.max_growth`` lets its table grow by: one whose whole
budget is written between two looks is beyond it before anybody knows.
"""


def may_ask(spec: JobSpec) -> frozenset[str]:
    """What signals of a later run's settings may contact or run in this process: what its own spec, and the operator of
    its host, have named.  Raises ``UsageError`` when the spec refers to a signal of which nobody here has said what it
    is: a job does not move without what is to hold it back.
    """
    if unknown := spec.pace.unknown_signals:
        raise UsageError(
            f"its signal {unknown[0]} is one of a daemon's operator, and not known here",
            hint="work the job by a daemon that has it under [signals]",
        )
    return asked(spec, (*spec.pace.signals, *(spec.operator_signals or {}).values()))


def asked(spec: JobSpec, signals: Iterable[SignalSpec]) -> frozenset[str]:
    """Addresses that the signals contact; and in a daemon, where only the operator writes them, their queries."""
    signals = tuple(signals)
    queries = signals if spec.operator_signals is not None else ()
    return frozenset(
        [signal.url for signal in signals if signal.url is not None]
        + [signal.query for signal in queries if signal.query is not None]
    )


def signals_in_force(signals: Iterable[SignalSpec], orders: PaceOrders) -> tuple[SignalSpec, ...]:
    """The signals that count now.  An order names a signal as the spec does, or as status shows it (with ``@side``: it
    counts for both).  One that contradicts itself leaves its signal as the spec has it.
    """
    ordered = {without_side(name): order for name, order in orders.signals.items()}
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
    for name, order in ordered.items():
        kind = kind_of(name)
        if kind is not None and not order.off:
            try:
                yield SignalSpec(kind=kind, target=order.target, maximum=order.maximum)
            except Misfit:
                continue


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of the user's: rows a second, its name, and what was said, where that is no number of rows."""

    rows_per_s: float
    name: str
    words: str = ""


def limits(
    orders: PaceOrders, pace: Pace, growth_rows: float | None, *, wal_bytes_per_row: float, wal_is_exact: bool
) -> list[Limit]:
    """All limits of the user's; the lowest counts.  ``growth_rows``: as many rows as ``bloat.max_growth`` lets the
    table grow by, None without it.
    """
    found: list[Limit] = []
    if (rows := orders.max_rows_per_s or pace.max_rows_per_s) is not None:
        found.append(Limit(rows, MAX_ROWS))
    if (wal := orders.max_wal_bytes_per_s or pace.max_wal_bytes_per_s) is not None:
        per_s = wal / max(wal_bytes_per_row, 1.0)
        how = "measured" if wal_is_exact else "estimated"
        words = f"{format_value(wal, Unit.BYTES_PER_S)}, {how} as {per_s:,.0f} rows/s"
        found.append(Limit(per_s, MAX_WAL, words))
    if growth_rows is not None:
        per_s = growth_rows / GROWTH_TAKES_S
        found.append(Limit(per_s, MAX_GROWTH, f"leaves {per_s:,.0f} rows/s"))
    return found
