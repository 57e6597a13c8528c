"""Signals, and orders on them, as a person at a terminal reads and writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from engine.errors import UsageError
from engine.flow.pace_orders import GO_OR_STOP, built_in, check_thresholds, signal_named
from engine.ledger.orders import ROWS, WAL, WORKERS, PaceOrders
from engine.ledger.records import JobStatus
from engine.pace.law import Unit
from engine.pace.quantity import format_value
from engine.spec import units
from engine.spec.misfit import Misfit
from engine.spec.signals import NAMED, SignalKind, SignalSpec, SignalUnit, without_side
from engine.telemetry import numbers

EXACT: Final = 6
"""Digits of a number that a person gave: all that it may have had."""

MEASURED: Final = 3

NOTHING: Final = "-"

_READERS: Final[Mapping[SignalUnit, Callable[[str], float]]] = {
    SignalUnit.SECONDS: units.parse_duration,
    SignalUnit.BYTES: units.parse_size,
    SignalUnit.BYTES_PER_S: lambda text: units.parse_size(text.removesuffix("/s")),
    SignalUnit.RATIO: units.parse_percent,
}

# -- reading ----------------------------------------------------------------------------------------------------------


def signal_name(text: str, known: Mapping[str, SignalSpec], flag: str) -> str:
    """The signal that a flag names: one of the job's, or a built-in kind.  Raises ``UsageError``."""
    try:
        return signal_named(text, known).name
    except Misfit as error:
        raise UsageError(f"{flag}: {error.message}", hint=error.hint) from None


def threshold(text: str, signal: SignalSpec, flag: str, *, is_target: bool) -> float:
    """The number of ``VALUE`` in ``SIGNAL=VALUE``, in the signal's unit.  Raises ``UsageError``."""
    place = f"{flag} {signal.name}"
    try:
        check_thresholds(signal, target=is_target, maximum=not is_target)
    except Misfit as error:
        said = f"--off {signal.name} and --on {signal.name} work" if signal.kind in GO_OR_STOP else ""
        raise UsageError(f"{place}: {error.message}", hint=said or f"give --max {signal.name}=…") from None
    reader = _READERS.get(signal.unit, _count) if signal.kind not in NAMED else _count
    try:
        value = float(reader(text))
    except Misfit as error:
        raise UsageError(f"{place} {error.message}", hint=error.hint) from None
    if value < 0 or (is_target and value == 0):
        raise UsageError(f"{place} must be positive")
    return value


def _count(text: str) -> float:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        raise Misfit("is not a number", "write a plain number: 40") from None
    if not 0 <= value < float("inf"):
        raise Misfit("is out of range", "write a number of 0 or more")
    return value


# -- writing ----------------------------------------------------------------------------------------------------------


def amount(value: float | None, unit: Any, digits: int = EXACT) -> str:
    """``5ms``, ``16MiB``, ``20%``: a value in the unit of a published signal; ``-`` for none."""
    if value is None:
        return NOTHING
    known = Unit(unit) if unit in list(Unit) else Unit.COUNT
    if known is Unit.COUNT and float(value).is_integer():
        return f"{value:,.0f}"
    return format_value(value, known, digits)


def orders_text(orders: PaceOrders, unit_of: Callable[[str], Any]) -> str:
    """``max_rows_per_s 5,000, workers 2, read_latency target 5ms max 20ms, wal_rate off``; empty without any."""
    parts = []
    if orders.max_rows_per_s is not None:
        parts.append(f"{ROWS} {numbers.count(orders.max_rows_per_s)}")
    if orders.max_wal_bytes_per_s is not None:
        parts.append(f"{WAL} {amount(orders.max_wal_bytes_per_s, Unit.BYTES_PER_S)}")
    if orders.workers is not None:
        parts.append(f"{WORKERS} {orders.workers:,}")
    for name, order in sorted(orders.signals.items()):
        said = [] if order.off is None else ["off" if order.off else "on"]
        if not order.off:
            given = (("target", order.target), ("max", order.maximum))
            said = [f"{what} {amount(value, unit_of(name))}" for what, value in given if value is not None] or said
        parts.append(" ".join([name, *said]))
    return ", ".join(parts)


def unit_of(status: JobStatus, known: Mapping[str, SignalSpec] | None = None) -> Callable[[str], str | None]:
    """Name -> unit of the job's signals: as published, else as the job's own signals say, else as for every job."""
    said = {name: signal.unit.value for name, signal in (known or {}).items()}
    for signal in status.signals:
        said[without_side(str(signal.get("name")))] = str(signal.get("unit"))
    return lambda name: said.get(name) or _fixed_unit(name)


def _fixed_unit(name: str) -> str | None:
    """The unit that a built-in signal has in every job; None where it depends on the job."""
    kind = built_in(name)
    if kind is None or kind is SignalKind.REPLICATION_LAG:
        return None
    return SignalSpec(kind=kind, off=True).unit.value


def changes_text(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """An order in the history: ``max_rows_per_s: 5,000 -> none, read_latency target: none -> 5ms``."""
    return ", ".join(
        f"{path.removeprefix('signals.').replace('.', ' ')}: {_told(path, before.get(path))}"
        f" -> {_told(path, after.get(path))}"
        for path in sorted({*before, *after})
    )


def _told(path: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower()
    if path == WAL:
        return amount(value, Unit.BYTES_PER_S)
    return amount(value, _fixed_unit(path.split(".")[1]) if path.count(".") > 1 else Unit.COUNT)


TABLE_HEAD: Final = ("signal", "value", "target", "max", "baseline", "age", "")


def signal_lines(status: JobStatus) -> list[str]:
    """A table of what the signals say, head first; its last column tells which one decides, and what is wrong with one.
    Empty where nobody listens to any.
    """
    rows = [_signal_row(signal, status) for signal in status.as_json()["signals"]]
    return [f"  {line}" for line in _aligned([TABLE_HEAD, *rows])] if rows else []


def _signal_row(signal: Mapping[str, Any], status: JobStatus) -> tuple[str, ...]:
    unit, name = signal.get("unit"), str(signal.get("name", ""))
    role = "" if name != status.leads else "holds" if status.held_by else "leads"
    notes = (role, signal.get("error"), signal.get("detail"))
    return (
        name,
        amount(signal.get("value"), unit, MEASURED),
        amount(signal.get("target"), unit, MEASURED if signal.get("baseline") else EXACT),
        amount(signal.get("max"), unit),
        amount(signal.get("baseline"), unit, MEASURED),
        amount(signal.get("age_s"), Unit.SECONDS, MEASURED),
        "; ".join(str(note) for note in notes if note),
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines: the first and the last column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            text.ljust(width) if place in (0, last) else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
