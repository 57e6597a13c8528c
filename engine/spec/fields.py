"""The field types of the spec models: how one value of a file becomes a Python value, and its JSON Schema.

Every check raises ``Misfit``, which never quotes the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    ValidationInfo,
    WithJsonSchema,
)

from engine.model import ConflictPolicy
from engine.spec import units
from engine.spec.dsn import Dsn
from engine.spec.misfit import Misfit, nearest
from engine.spec.names import TableRef, check_name, parse_names, quote_where_needed
from engine.spec.signals import SignalSpec
from engine.spec.transforms import TransformRights
from engine.spec.windows import WINDOW_PATTERN, TimeWindow, find_zone
from engine.transform.reference import TRANSFORM_PATTERN, split


@dataclass(frozen=True, slots=True)
class Reading:
    """What validating plain data (a file, the flags, the ledger) knows besides the data."""

    env: Mapping[str, str]
    signals: Mapping[str, SignalSpec] | None = None  # a daemon's operator's, by name; None by hand
    transforms: TransformRights | None = None  # what this host may load; None: nothing


@dataclass(frozen=True, slots=True)
class OnConflict:
    """What happens to a source row whose key the target has already.

    ``column`` is the target column that tells the newer row: given with ``newest`` and with nothing else.
    ``str()`` writes the text of the spec: ``keep`` or ``newest(updated_at)``.
    """

    policy: ConflictPolicy = ConflictPolicy.KEEP
    column: str | None = None

    @classmethod
    def parse(cls, text: str) -> OnConflict:
        """The policy that ``text`` names.  Raises ``Misfit``."""
        match = re.fullmatch(r"([A-Za-z_]+)\s*(?:\((.*)\))?", text.strip(), re.DOTALL)
        if match is None or match[1] not in list(ConflictPolicy):
            known = [f"{p}(column)" if p is ConflictPolicy.NEWEST else str(p) for p in ConflictPolicy]
            raise _not_one_of(known, text)
        policy, inside = ConflictPolicy(match[1]), match[2]
        if policy is not ConflictPolicy.NEWEST:
            if inside is not None:
                raise Misfit("takes no column", f"write on_conflict: {policy}")
            return cls(policy)
        names = parse_names(inside) if inside is not None else None
        if names is None or len(names) != 1:
            raise Misfit("newest names the one column that tells the newer row", "write newest(updated_at)")
        return cls(policy, check_name(names[0]))

    def __str__(self) -> str:
        return self.policy.value if self.column is None else f"{self.policy}({quote_where_needed(self.column)})"


def _with_unit(parse: Callable[[object], float]) -> BeforeValidator:
    """Text with a unit always; a bare number only from Python code, where the field's name tells the unit."""

    def convert(value: object, info: ValidationInfo) -> object:
        return parse(value) if isinstance(value, str) or isinstance(info.context, Reading) else value

    return BeforeValidator(convert)


def choice(kind: type[StrEnum]) -> BeforeValidator:
    """One of the enum's texts, with a did-you-mean."""

    def convert(value: object) -> object:
        if isinstance(value, str) and value not in list(kind):
            raise _not_one_of(list(kind), value)
        return value

    return BeforeValidator(convert)


def _not_one_of(known: list[Any], value: str) -> Misfit:
    guess = nearest(value, known)
    return Misfit(f"must be one of: {', '.join(known)}", f"did you mean {guess}?" if guess else "write one of them")


def _read_dsn(value: object, info: ValidationInfo) -> Dsn:
    if isinstance(value, Dsn):
        return value
    if not isinstance(value, str):
        raise Misfit("must be text", 'write dsn: "${SOURCE_DSN}"')
    if not isinstance(info.context, Reading):
        raise Misfit("must be a Dsn", "Dsn.resolve(text, os.environ)")
    return Dsn.resolve(value, info.context.env)


def _read_connection(value: object) -> str:
    if not isinstance(value, str):
        raise Misfit("must be text", "write connection: main")
    if not _CONNECTION.match(value):
        raise Misfit("is not a connection's name", "write the name that the daemon's operator gave it: main")
    return value


def _read_table(value: object) -> TableRef:
    if isinstance(value, TableRef):
        return value
    if not isinstance(value, str):
        raise Misfit("must be text", "write schema.table")
    return TableRef.parse(value)


def freeze(value: Mapping[str, str]) -> Mapping[str, str]:
    """A read-only copy in the same order."""
    return MappingProxyType(dict(value))


_Item = TypeVar("_Item", bound=Hashable)


def distinct(values: tuple[_Item, ...]) -> tuple[_Item, ...]:
    """``values`` themselves when none comes twice.  Raises ``Misfit``."""
    if len(set(values)) != len(values):
        raise Misfit("lists the same thing twice", "remove one")
    return values


def within(low: float, high: float) -> Any:
    """Both ends included."""
    return Field(ge=low, le=high)


def _read_on_conflict(value: object) -> OnConflict:
    if isinstance(value, OnConflict):
        return value
    if not isinstance(value, str):
        raise Misfit("must be text", "write on_conflict: keep")
    return OnConflict.parse(value)


def _read_window(value: object) -> TimeWindow:
    if isinstance(value, TimeWindow):
        return value
    if not isinstance(value, str):
        raise Misfit("must be text", 'write "22:00-06:00 Asia/Kolkata"')
    return TimeWindow.parse(value)


def _read_moment(value: object) -> datetime:
    """A moment with a fixed offset from UTC, from text or from a datetime that knows its own."""
    if isinstance(value, datetime) and value.utcoffset() is not None:
        moment = value
    elif isinstance(value, str) and (match := _MOMENT.fullmatch(value)):
        try:
            moment = datetime.fromisoformat(match["local"] + (match["offset"] or ""))
        except ValueError:
            raise Misfit("is not a date and time that exist", _MOMENT_HINT) from None
        if match["zone"] is not None:
            moment = _in_zone(moment, match["zone"])
        elif match["offset"] is None:
            raise Misfit("names no time zone", f"add its offset or its name: {_MOMENT_HINT}")
    else:
        raise Misfit("is not a date and time", _MOMENT_HINT)
    offset = moment.utcoffset()
    assert offset is not None, "each way above has made sure of it"
    return moment.replace(tzinfo=timezone(offset), fold=0)


def _in_zone(local: datetime, zone: str) -> datetime:
    first, second = (local.replace(tzinfo=find_zone(zone), fold=fold) for fold in (0, 1))
    if first.utcoffset() != second.utcoffset():
        raise Misfit("comes twice or not at all, for the clock is put back or forward", "write it with its offset")
    return first


_MOMENT: Final = re.compile(
    r"(?P<local>2[0-9]{3}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)"
    r"(?:(?P<offset>Z|[+-][0-9]{2}:[0-9]{2}(?::[0-9]{2})?)| (?P<zone>[A-Za-z][A-Za-z0-9_+/-]*))?"
)
_MOMENT_PATTERN: Final = (
    r"^2[0-9]{3}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
    r"(Z|[+-][0-9]{2}:[0-9]{2}(:[0-9]{2})?| [A-Za-z][A-Za-z0-9_+/-]*)$"
)
_MOMENT_HINT: Final = 'write "2026-12-01T06:00:00+05:30" or "2026-12-01 06:00 Asia/Kolkata"'


def _read_transform(value: object) -> str:
    if not isinstance(value, str):
        raise Misfit("must be text", "write transform: shop.transforms:cents")
    if split(value) is None:
        raise Misfit("is not a transform's name", "write module.path:function, such as shop.transforms:cents")
    return value


CONNECTION_PATTERN: Final = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
_CONNECTION: Final = re.compile(CONNECTION_PATTERN.rstrip("$") + r"\Z")

Seconds = Annotated[
    float, _with_unit(units.parse_duration), WithJsonSchema({"type": "string", "pattern": units.DURATION_PATTERN})
]
Bytes = Annotated[
    int, _with_unit(units.parse_size), Strict(), WithJsonSchema({"type": "string", "pattern": units.SIZE_PATTERN})
]
Share = Annotated[
    float, _with_unit(units.parse_percent), WithJsonSchema({"type": "string", "pattern": units.PERCENT_PATTERN})
]
WholeNumber = Annotated[int, Strict()]
Name = Annotated[str, Field(min_length=1), AfterValidator(check_name)]
Sql = Annotated[str, Field(min_length=1, pattern=r"\S")]
# Serializers, so that pydantic's own JSON of a spec (in a log, say) is as silent about secrets as `for_ledger` is.
DsnField = Annotated[
    Dsn, PlainValidator(_read_dsn), PlainSerializer(repr), WithJsonSchema({"type": "string", "minLength": 1})
]
ConnectionField = Annotated[
    str, PlainValidator(_read_connection), WithJsonSchema({"type": "string", "pattern": CONNECTION_PATTERN})
]
TransformField = Annotated[
    str, PlainValidator(_read_transform), WithJsonSchema({"type": "string", "pattern": TRANSFORM_PATTERN})
]
TableField = Annotated[
    TableRef, PlainValidator(_read_table), PlainSerializer(str), WithJsonSchema({"type": "string", "minLength": 1})
]
ColumnExpressions = Annotated[Mapping[Name, Sql], AfterValidator(freeze), PlainSerializer(dict)]
Names = Annotated[tuple[Name, ...], AfterValidator(distinct)]
WindowField = Annotated[
    TimeWindow,
    PlainValidator(_read_window),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": WINDOW_PATTERN}),
]
Moment = Annotated[
    datetime,
    PlainValidator(_read_moment),
    PlainSerializer(datetime.isoformat),
    WithJsonSchema({"type": "string", "pattern": _MOMENT_PATTERN}),
]
AcceptedCode = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
OnConflictField = Annotated[
    OnConflict,
    PlainValidator(_read_on_conflict),
    PlainSerializer(str),
    WithJsonSchema(
        {"type": "string", "anyOf": [{"enum": ["keep", "replace", "fail"]}, {"pattern": r"^newest\(.+\)$"}]}
    ),
]
