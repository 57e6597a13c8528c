"""What operators order while a job runs, and what the process that paces it published, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ROWS: Final = "max_rows_per_s"
WAL: Final = "max_wal_bytes_per_s"
WORKERS: Final = "workers"
SIGNALS: Final = "signals"

ALL_ORDERS: Final = (ROWS, WAL, WORKERS, SIGNALS)
"""Every name that may be reset; ``signals.NAME`` resets one signal."""


@dataclass(frozen=True, slots=True)
class SignalOrder:
    """What an operator changed about one signal; None: as the spec says.  Values are in the signal's unit."""

    target: float | None = None
    maximum: float | None = None
    off: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """Only what was ordered, by the names of the spec."""
        named = {"target": self.target, "max": self.maximum, "off": self.off}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def from_json(cls, item: Any) -> SignalOrder:
        """The inverse of ``as_json``; what this release does not understand is left out."""
        found = item if isinstance(item, Mapping) else {}
        off = found.get("off")
        return cls(_number(found.get("target")), _number(found.get("max")), off if isinstance(off, bool) else None)


@dataclass(frozen=True, slots=True)
class PaceOrders:
    """All orders on a job's pace; None: as the spec says.  Rates are of the whole job, wherever its workers are."""

    max_rows_per_s: float | None = None
    max_wal_bytes_per_s: float | None = None
    workers: int | None = None  # at work at a time, over the whole job
    signals: Mapping[str, SignalOrder] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Only what was ordered: the object of ``status --json``."""
        found: dict[str, Any] = {ROWS: self.max_rows_per_s, WAL: self.max_wal_bytes_per_s, WORKERS: self.workers}
        found[SIGNALS] = {name: item for name, order in self.signals.items() if (item := order.as_json())} or None
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> PaceOrders:
        """The inverse of ``as_json``; what this release does not understand is left out."""
        workers = _number(item.get(WORKERS))
        signals = item.get(SIGNALS)
        orders = {name: SignalOrder.from_json(order) for name, order in _mapping(signals).items()}
        return cls(
            max_rows_per_s=_number(item.get(ROWS)),
            max_wal_bytes_per_s=_number(item.get(WAL)),
            workers=None if workers is None else int(workers),
            signals={name: order for name, order in orders.items() if order != SignalOrder()},
        )


def merged(orders: Mapping[str, Any], change: PaceOrders, reset: Sequence[str]) -> dict[str, Any]:
    """``orders`` (as JSON) without what ``reset`` names, then with ``change``.

    On JSON and not on ``PaceOrders``: what a newer release ordered must survive an order by an older one.
    """
    result = {name: value for name, value in orders.items() if name not in reset}
    before = _mapping(result.get(SIGNALS))
    signals = {name: order for name, order in before.items() if f"{SIGNALS}.{name}" not in reset}
    news = change.as_json()
    for name, order in news.pop(SIGNALS, {}).items():
        signals[name] = {**_mapping(signals.get(name)), **order}
    result.update(news)
    result[SIGNALS] = signals
    return {name: value for name, value in result.items() if value not in (None, {})}


@dataclass(frozen=True, slots=True)
class PacerLook:
    """Who paces a job, and what was published last."""

    is_mine: bool  # the asking process holds the lease now
    decision: dict[str, Any] | None  # the last one published by whomever, valid or not; None: there was none
    valid_for_s: float | None  # how long the decision still counts; None: it does not
    age_s: float | None  # since it was published


def _mapping(item: Any) -> Mapping[str, Any]:
    return item if isinstance(item, Mapping) else {}


def _number(item: Any) -> float | None:
    return float(item) if isinstance(item, int | float) and not isinstance(item, bool) else None
