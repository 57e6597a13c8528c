"""The signals of a spec: what a job listens to, and what of it holds it back.

In a file they are a list, each entry a mapping of one kind: ``- replication_lag: {target: 5s, max: 30s}``.  What comes
out is one shape for all kinds, ``SignalSpec``, with numbers in seconds, bytes, bytes per second, ratios or counts.  A
plain name in the list means a signal that the operator of a daemon has written into its configuration: an
``OperatorSignal`` until somebody says what it is.
Rooms above read these values; how a signal is measured, and how it steers, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from engine.model import Side
from engine.spec import units
from engine.spec.misfit import Misfit


class SignalKind(StrEnum):
    """What is measured; the value is the key of the file."""

    READ_LATENCY = "read_latency"
    COMMIT_LATENCY = "commit_latency"
    REPLICATION_LAG = "replication_lag"
    SLOT_RETENTION = "slot_retention"
    ACTIVE_SESSIONS = "active_sessions"
    LOCK_WAITS = "lock_waits"
    WAL_RATE = "wal_rate"
    WAL_ARCHIVE = "wal_archive"
    VACUUM_DEBT = "vacuum_debt"
    AUTOVACUUM = "autovacuum"
    XID_AGE = "xid_age"
    SQL = "sql"
    PROMETHEUS = "prometheus"
    HTTP = "http"


class SignalUnit(StrEnum):
    """What a signal's numbers mean: the values of ``engine.pace.law.Unit``, which is above this room."""

    SECONDS = "s"
    BYTES = "bytes"
    BYTES_PER_S = "bytes/s"
    RATIO = "ratio"
    COUNT = "count"


NAMED: Final = frozenset({SignalKind.SQL, SignalKind.PROMETHEUS, SignalKind.HTTP})
"""Kinds of which a job may have several, each with a name of its own; the others are built in, and come once."""

SIDE: Final = "@"
"""Between a signal's name and the database that it is read from, where a job has two."""

NAME_PATTERN: Final = r"^[a-z][a-z0-9_]{0,39}$"
_NAME: Final = re.compile(NAME_PATTERN.rstrip("$") + r"\Z")

DEFAULT_LIMITS: Final[Mapping[SignalKind, tuple[float | None, float]]] = {
    SignalKind.LOCK_WAITS: (None, 1.0),
    SignalKind.REPLICATION_LAG: (5.0, 30.0),
    SignalKind.WAL_ARCHIVE: (None, 40.0),
    SignalKind.AUTOVACUUM: (None, 0.0),  # says only go (0) or stop (1)
    SignalKind.HTTP: (None, 0.0),
}
"""Target and maximum of an entry that says neither.  What fits the other kinds only their users know."""

_UNITS: Final = {
    SignalKind.READ_LATENCY: SignalUnit.SECONDS,
    SignalKind.COMMIT_LATENCY: SignalUnit.SECONDS,
    SignalKind.REPLICATION_LAG: SignalUnit.SECONDS,  # or bytes, as the entry says
    SignalKind.SLOT_RETENTION: SignalUnit.BYTES,
    SignalKind.LOCK_WAITS: SignalUnit.SECONDS,
    SignalKind.WAL_RATE: SignalUnit.BYTES_PER_S,
    SignalKind.VACUUM_DEBT: SignalUnit.RATIO,
}


LEARNING: Final = frozenset({SignalKind.READ_LATENCY, SignalKind.COMMIT_LATENCY})
"""Kinds that make themselves a target."""

NEEDS_NUMBER: Final = frozenset(SignalKind) - LEARNING - DEFAULT_LIMITS.keys()
"""Kinds that must say a target or a maximum."""


def at_side(name: str, side: Side) -> str:
    """``read_latency@source``: a signal as it is called where a job has two databases."""
    return f"{name}{SIDE}{side}"


def without_side(name: str) -> str:
    """``read_latency`` for ``read_latency@source``: the name in the spec."""
    return name.partition(SIDE)[0]


def kind_of(name: str) -> SignalKind | None:
    """The kind of a built-in signal of that name, with or without a side; None for a signal of the user's."""
    name = without_side(name)
    return SignalKind(name) if name in list(SignalKind) and name not in NAMED else None


def is_signal_name(name: str) -> bool:
    """True when a signal of the user may have that name."""
    return _NAME.match(name) is not None and name not in list(SignalKind)


def check_signal_name(name: str) -> str:
    """``name`` itself when a signal of the user may have it.  Raises ``Misfit``."""
    if not _NAME.match(name):
        raise Misfit("is not a signal's name", "up to 40 lower-case letters, digits and _, beginning with a letter")
    if name in list(SignalKind):
        raise Misfit("is the name of a built-in signal", "choose another one")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSpec:
    """One signal as the spec wants it.

    ``target`` steers (None for the latencies: one is learnt), ``maximum`` stops; both are in ``unit``.  ``name`` is the
    kind's own for built-in kinds.  ``off`` stands for a built-in signal that is not to be looked at.
    """

    kind: SignalKind
    name: str = ""
    target: float | None = None
    maximum: float | None = None
    in_bytes: bool = False  # replication lag: bytes behind instead of seconds
    query: str | None = None  # read_latency and sql: one SQL statement; prometheus: an expression
    url: str | None = field(default=None, repr=False)  # prometheus: the server; http: what is fetched
    every_s: float | None = None  # None: as the probe does by itself
    ignore_failure: bool = False  # without a usable answer: as if it were not there, instead of holding
    side: Side = Side.SOURCE  # sql: the database that is asked
    given_unit: SignalUnit | None = None  # sql and prometheus: what their numbers are, for people
    off: bool = False
    of_operator: bool = False  # written in a daemon's configuration; a spec, and the ledger, hold its name alone

    def __post_init__(self) -> None:
        """Fill in the defaults of the kind, and refuse what cannot be.  Raises ``Misfit``."""
        if self.kind in NAMED:
            check_signal_name(self.name)
        else:
            object.__setattr__(self, "name", self.kind.value)
        if self.off:
            return
        if self.target is None and self.maximum is None and self.kind not in LEARNING:
            if self.kind in NEEDS_NUMBER:
                raise Misfit("says neither target nor max", "target is where it slows down, max where it stops")
            target, maximum = DEFAULT_LIMITS[self.kind]
            object.__setattr__(self, "target", target)
            object.__setattr__(self, "maximum", maximum)
        if self.target is not None and self.maximum is not None and self.target >= self.maximum:
            raise Misfit("target is not below max", "target is where it slows down, max where it stops")

    @property
    def unit(self) -> SignalUnit:
        """What ``target``, ``maximum`` and the readings are in."""
        if self.given_unit is not None:
            return self.given_unit
        return SignalUnit.BYTES if self.in_bytes else _UNITS.get(self.kind, SignalUnit.COUNT)

    def as_file(self) -> dict[str, Any] | str:
        """The entry of the file that means this signal."""
        if self.of_operator:
            return self.name
        if self.off:
            return {self.kind.value: "off"}
        named = self.kind in NAMED
        gate = self.kind in (SignalKind.HTTP, SignalKind.AUTOVACUUM)
        body = {
            "name": self.name if named else None,
            "url": self.url,
            "query": self.query,
            "side": self.side.value if self.kind is SignalKind.SQL and self.side is not Side.SOURCE else None,
            "target": self._text(self.target),
            "max": None if gate else self._text(self.maximum),
            "unit": self.given_unit.value if self.given_unit is not None else None,
            "every": units.format_duration(self.every_s) if self.every_s is not None else None,
            "on_failure": "ignore" if self.ignore_failure else None,
        }
        return {self.kind.value: {key: value for key, value in body.items() if value is not None}}

    def _text(self, value: float | None) -> Any:
        """``value`` as the file writes it for this kind: with its unit, or as a plain number."""
        if value is None:
            return None
        if self.kind in NAMED:
            return value
        match self.unit:
            case SignalUnit.SECONDS:
                return units.format_duration(value)
            case SignalUnit.BYTES | SignalUnit.BYTES_PER_S:
                return units.format_size(int(value))
            case SignalUnit.RATIO:
                return units.format_percent(value)
            case _:
                return value


@dataclass(frozen=True, slots=True)
class OperatorSignal:
    """A signal that a spec refers to by its name, and that nobody here has said more of."""

    name: str

    def as_file(self) -> str:
        """The entry of the file that means this signal."""
        return self.name


Listed = SignalSpec | OperatorSignal
"""An entry of a spec's list."""


DEFAULT_SIGNALS: Final = (
    SignalSpec(kind=SignalKind.READ_LATENCY),
    SignalSpec(kind=SignalKind.COMMIT_LATENCY),
    SignalSpec(kind=SignalKind.LOCK_WAITS),
)
"""What every job listens to unless its spec turns it off."""

ALL_OFF: Final = tuple(SignalSpec(kind=signal.kind, off=True) for signal in DEFAULT_SIGNALS)
"""What ``signals: off`` means."""


def effective(given: Iterable[SignalSpec]) -> tuple[SignalSpec, ...]:
    """The signals that are on: the defaults, each as the spec changes it, and then the others in the spec's order."""
    given = tuple(given)
    own = {signal.kind: signal for signal in given if signal.kind not in NAMED}
    defaults = {signal.kind for signal in DEFAULT_SIGNALS}
    merged = [own.get(signal.kind, signal) for signal in DEFAULT_SIGNALS]
    merged += [signal for signal in given if signal.kind not in defaults]
    return tuple(signal for signal in merged if not signal.off)


def repeated(given: Iterable[Listed]) -> str | None:
    """The first name that two of the signals share, or None."""
    seen: set[str] = set()
    for signal in given:
        if signal.name in seen:
            return signal.name
        seen.add(signal.name)
    return None
