"""What operators order while a job runs, and what the process that paces it published, as values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ROWS: Final = "max_rows_per_s"
WAL: Final = "max_wal_bytes_per_s"
WORKERS: Final = "workers"
SIGNALS: Final = "signals"

ALL_ORDERS: Final = (ROWS, WAL, WORKERS, SIGNALS)
"""Every name that may be reset; ``signals.NAME`` resets one signal."""

MOST_WORKERS: Final = 1024
"""More at work than this is no order.  Of the whole job: the spec limits those of one process."""


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
        maximum = _number(found.get("max"))
        return cls(
            target=_positive(found.get("target")),
            maximum=maximum if maximum is not None and maximum >= 0 else None,
            off=off if isinstance(off, bool) else None,
        )


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
    def from_json(cls, item: Any) -> PaceOrders:
        """The inverse of ``as_json``; what this release does not understand is left out, and so is what cannot be an
        order: a number that is not finite, a limit of 0, half a worker.  Never raises.
        """
        found = _mapping(item)
        orders = {name: SignalOrder.from_json(order) for name, order in _mapping(found.get(SIGNALS)).items()}
        return cls(
            max_rows_per_s=_positive(found.get(ROWS)),
            max_wal_bytes_per_s=_positive(found.get(WAL)),
            workers=_workers(found.get(WORKERS)),
            signals={name: order for name, order in orders.items() if order != SignalOrder()},
        )


def read_json(text: str) -> Any:
    """What the database holds as JSON; None in place of an integer that is longer than Python reads."""
    return json.loads(text, parse_int=_integer)


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


def _integer(digits: str) -> int | None:
    try:
        return int(digits)
    except ValueError:
        return None


def _number(item: Any) -> float | None:
    if isinstance(item, bool) or not isinstance(item, int | float):
        return None
    try:
        number = float(item)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _positive(item: Any) -> float | None:
    number = _number(item)
    return number if number is not None and number > 0 else None


def _workers(item: Any) -> int | None:
    is_count = isinstance(item, int) and not isinstance(item, bool) and 1 <= item <= MOST_WORKERS
    return item if is_count else None
