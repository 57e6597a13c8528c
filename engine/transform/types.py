"""Which types of PostgreSQL a transform can read and write, and as what."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import numpy as np

from engine.model import Column

FORMS: Final = ("", "decimal")
"""How a column may be asked for: ``""`` as ``docs/transforms.md`` lists it, ``"decimal"`` a ``numeric`` as exact
``decimal.Decimal`` objects where it would be scaled integers."""

MAX_SCALED_DIGITS: Final = 18
"""``numeric(p, s)`` up to this p is held as int64 scaled by ``10**-s``: each of its values fits."""


class Kind(StrEnum):
    """How the values of a column are held and encoded."""

    BOOL = "bool"
    INT2 = "int2"
    INT4 = "int4"
    INT8 = "int8"
    FLOAT4 = "float4"
    FLOAT8 = "float8"
    DATE = "date"
    TIMESTAMP = "timestamp"  # with time zone too: the wire and numpy know neither
    UUID = "uuid"
    TEXT = "text"
    BYTEA = "bytea"
    JSON = "json"
    JSONB = "jsonb"
    SCALED = "scaled"  # numeric as int64 times 10**-scale
    DECIMAL = "decimal"  # numeric as decimal.Decimal
    ARRAY = "array"


_DTYPES: Final[dict[Kind, np.dtype[Any]]] = {
    Kind.BOOL: np.dtype(np.bool_),
    Kind.INT2: np.dtype(np.int16),
    Kind.INT4: np.dtype(np.int32),
    Kind.INT8: np.dtype(np.int64),
    Kind.FLOAT4: np.dtype(np.float32),
    Kind.FLOAT8: np.dtype(np.float64),
    Kind.DATE: np.dtype("datetime64[D]"),
    Kind.TIMESTAMP: np.dtype("datetime64[us]"),
    Kind.UUID: np.dtype("V16"),
    Kind.TEXT: np.dtype(object),
    Kind.BYTEA: np.dtype(object),
    Kind.JSON: np.dtype(object),
    Kind.JSONB: np.dtype(object),
    Kind.SCALED: np.dtype(np.int64),
    Kind.DECIMAL: np.dtype(object),
}

_OBJECTS: Final = {
    Kind.TEXT: "str",
    Kind.BYTEA: "bytes",
    Kind.JSON: "str (the JSON text)",
    Kind.JSONB: "str (the JSON text)",
    Kind.DECIMAL: "decimal.Decimal",
}

# By OID (pg_type.dat), since names of types can be anybody's: kind, and the OID of the array of them.
_NUMERIC: Final = 1700
_SCALARS: Final[dict[int, tuple[Kind, int]]] = {
    16: (Kind.BOOL, 1000),
    17: (Kind.BYTEA, 1001),
    19: (Kind.TEXT, 1003),  # name
    20: (Kind.INT8, 1016),
    21: (Kind.INT2, 1005),
    23: (Kind.INT4, 1007),
    25: (Kind.TEXT, 1009),
    114: (Kind.JSON, 199),
    700: (Kind.FLOAT4, 1021),
    701: (Kind.FLOAT8, 1022),
    1042: (Kind.TEXT, 1014),  # character(n): padded with spaces, as the server sends it
    1043: (Kind.TEXT, 1015),  # character varying
    1082: (Kind.DATE, 1182),
    1114: (Kind.TIMESTAMP, 1115),
    1184: (Kind.TIMESTAMP, 1185),
    _NUMERIC: (Kind.DECIMAL, 1231),
    2950: (Kind.UUID, 2951),
    3802: (Kind.JSONB, 3807),
}
_ARRAYS: Final = {array: element for element, (_kind, array) in _SCALARS.items()}

_NUMERIC_MODIFIER: Final = re.compile(r"numeric\((\d+),(-?\d+)\)(\[\])*")
_MODIFIER: Final = re.compile(r"(\[\])+$")


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A column that a transform reads or writes, and how its values are held."""

    name: str  # the column's
    kind: Kind
    type_name: str  # as declared, a domain by its own name
    oid: int  # pg_type.oid of the type, below its domains
    scale: int | None = None  # of Kind.SCALED, and of Kind.DECIMAL where the column declares one
    precision: int | None = None  # of a numeric that declares one
    element: ColumnType | None = None  # of Kind.ARRAY

    @property
    def is_numeric(self) -> bool:
        """True for ``numeric``, however its values are held."""
        return self.kind in (Kind.SCALED, Kind.DECIMAL)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values, or of the elements' values."""
        return _DTYPES[self.element.kind if self.element is not None else self.kind]

    @property
    def described(self) -> str:
        """What a transform is given, as messages say it: ``int64, times 10**-2``."""
        if self.element is not None:
            return f"lists of {self.element.described}"
        if self.kind is Kind.SCALED:
            return f"int64, times 10**-{self.scale}" if self.scale else "int64"
        if self.kind in _OBJECTS:
            return f"objects of {_OBJECTS[self.kind]}"
        return "V16 (16 bytes each)" if self.kind is Kind.UUID else str(self.dtype)


def column_type(column: Column, form: str = "") -> ColumnType | None:
    """How a transform reads or writes ``column``, asked for in one of ``FORMS``.

    None: not supported; the column's type is none of those that ``docs/transforms.md`` lists, or does not have that
    form.  Domains count as their base type with the modifier that they give it.
    """
    element = _ARRAYS.get(column.category_oid)
    found = _scalar(column, column.category_oid if element is None else element)
    if found is None or (form and form != "decimal") or (form and not found.is_numeric):
        return None
    if form == "decimal":
        found = replace(found, kind=Kind.DECIMAL)
    if element is None:
        return found
    return ColumnType(
        name=column.name,
        kind=Kind.ARRAY,
        type_name=column.type_name,
        oid=column.category_oid,
        scale=found.scale,
        precision=found.precision,
        element=replace(found, type_name=_MODIFIER.sub("", column.type_name)),
    )


def _scalar(column: Column, oid: int) -> ColumnType | None:
    if oid not in _SCALARS:
        return None
    kind, _array = _SCALARS[oid]
    precision = scale = None
    if oid == _NUMERIC and (declared := _NUMERIC_MODIFIER.fullmatch(column.declared_base or column.type_name)):
        precision, scale = int(declared[1]), int(declared[2])
        if precision <= MAX_SCALED_DIGITS and 0 <= scale <= MAX_SCALED_DIGITS:
            kind = Kind.SCALED
    return ColumnType(column.name, kind, column.type_name, oid, scale, precision)
