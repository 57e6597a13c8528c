"""The field types of signals: latencies, lags, counts, queries, addresses, names, with their units and ranges."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainValidator, Strict, WithJsonSchema

from engine.model import Side
from engine.spec import units
from engine.spec.fields import Bytes, Seconds, Share, Sql, choice, within
from engine.spec.misfit import Misfit
from engine.spec.signals import NAME_PATTERN, SignalUnit, check_signal_name

MAX_URL_LENGTH: Final = 2048
MAX_QUERY_LENGTH: Final = 10_000
MAX_COUNT: Final = 1e15
LATENCY_RANGE_S: Final = (0.0001, 60.0)
LAG_RANGE_S: Final = (0.1, 86_400.0)
LOCK_WAIT_RANGE_S: Final = (0.1, 3600.0)
EVERY_RANGE_S: Final = (0.2, 3600.0)
SIZE_RANGE: Final = (1024.0, 2.0**50)
_URL_PATTERN: Final = r"^https?://[^\s@]+$"
_URL_HINT: Final = "write http://host:port/path or https://…"
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")


class OnFailure(StrEnum):
    """What a signal without a usable answer does."""

    HOLD = "hold"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind: seconds, or bytes of WAL."""

    amount: float
    in_bytes: bool


def _read_lag(value: object) -> Lag:
    if isinstance(value, str) and re.match(units.SIZE_PATTERN, value):
        amount, limits, in_bytes = float(units.parse_size(value)), SIZE_RANGE, True
    elif isinstance(value, str) and re.match(units.DURATION_PATTERN, value):
        amount, limits, in_bytes = units.parse_duration(value), LAG_RANGE_S, False
    else:
        raise Misfit("is neither a duration nor a size", "write 30s, or 100MiB")
    if not limits[0] <= amount <= limits[1]:
        raise Misfit("is out of range", "100ms to 1d, or 1KiB to 1048576GiB")
    return Lag(amount, in_bytes)


def _one_statement(text: str) -> str:
    """``text`` without a semicolon at its end.  What a literal holds is looked past; whether it is SQL, the server
    says.
    """
    statement = text.strip().removesuffix(";").rstrip()
    if not statement:
        raise Misfit("is empty", "write one SELECT")
    if ";" in _LITERAL.sub("", statement):
        raise Misfit("holds more than one statement", "write one SELECT, without ;")
    return statement


def _url(text: str) -> str:
    """A URL that may be shown: http or https, and nobody's password in it."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise Misfit("is not a URL", _URL_HINT) from None
    if not usable or not text.isprintable() or " " in text or len(text) > MAX_URL_LENGTH:
        raise Misfit("is not a URL", _URL_HINT)
    if "@" in parts.netloc:
        raise Misfit(
            "holds a user name or a password", "let the address be open to this host, or put a proxy before it"
        )
    return text


Latency = Annotated[Seconds, within(*LATENCY_RANGE_S)]
Size = Annotated[Bytes, within(*SIZE_RANGE)]
Count = Annotated[float, Strict(), Field(ge=0, le=MAX_COUNT)]
CountTarget = Annotated[float, Strict(), Field(gt=0, le=MAX_COUNT)]
LagField = Annotated[
    Lag,
    PlainValidator(_read_lag),
    WithJsonSchema({"type": "string", "anyOf": [{"pattern": units.DURATION_PATTERN}, {"pattern": units.SIZE_PATTERN}]}),
]
Query = Annotated[Sql, Field(max_length=MAX_QUERY_LENGTH), AfterValidator(_one_statement)]
Url = Annotated[str, AfterValidator(_url), Field(json_schema_extra={"pattern": _URL_PATTERN})]
SignalName = Annotated[str, AfterValidator(check_signal_name), Field(json_schema_extra={"pattern": NAME_PATTERN})]
Every = Annotated[Seconds, within(*EVERY_RANGE_S)]
ShareOfOne = Annotated[Share, within(0.0, 1.0)]
UnitField = Annotated[SignalUnit, choice(SignalUnit)]
OnFailureField = Annotated[OnFailure, choice(OnFailure)]
SideField = Annotated[Side, choice(Side)]
LockWait = Annotated[Seconds, within(*LOCK_WAIT_RANGE_S)]
PromQuery = Annotated[Sql, Field(max_length=MAX_QUERY_LENGTH)]
