"""From what a transform gives back to the values of a binary COPY stream: exactly, or refused.

Nothing is rounded, cut or guessed.  What is wrong with a column as a whole (its dtype, its shape) is the transform's
mistake and raises ``WrongResult``; a value that the column's type cannot hold makes a bad row.  What only the server
knows stays the server's business, as with every write: the length of ``varchar(n)``, the padding of ``char(n)``, the
fraction of a second that ``timestamp(p)`` rounds to, whether a text is JSON, constraints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from engine._native import encode as native
from engine._native.rows import Encoded
from engine.transform.columns import INFINITY, Column, ListColumn
from engine.transform.decoding import Bad, BadValues
from engine.transform.types import MAX_SCALED_DIGITS, ColumnType, Kind

INT64_MAX: Final = 2**63 - 1
NOT_A_TIME: Final = -(2**63)
UUID_BYTES: Final = 16
OF_ANOTHER_TYPE: Final = " instead of "
"""In the reason of an object that is refused for its type, here and in the native encoders, and in no other."""
JSONB_VERSION: Final = b"\x01"

# PostgreSQL counts from 2000-01-01, numpy from 1970-01-01 (datetime_timestamp.h, date.h).
EPOCH_DAYS: Final = 10_957
EPOCH_MICROSECONDS: Final = EPOCH_DAYS * 86_400_000_000
FIRST_DAY: Final = -2_451_545 + EPOCH_DAYS  # 4713-11-24 BC
LAST_DAY: Final = 2_145_031_948 + EPOCH_DAYS  # 5874897-12-31
FIRST_MICROSECOND: Final = -211_813_488_000_000_000 + EPOCH_MICROSECONDS  # datetime64 ends before timestamp does
# What numpy's astype makes of INFINITY and -INFINITY in microseconds: the last two ticks that any coarser unit has
# before microseconds end.  Real values there (January 294247) are refused too: better than an infinity gone unseen.
TICKS_OF_INFINITY: Final = 2
DATE_INFINITY: Final = 2**31 - 1
DATE_MINUS_INFINITY: Final = -(2**31)
TIMESTAMP_MINUS_INFINITY: Final = -(2**63)
MICROSECONDS: Final = {"us": 1, "ms": 10**3, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "D": 86_400 * 10**6}

WAS_INFINITY: Final = "what .astype makes of infinity (January of the year 294247): .dates() and .timestamps() keep it"
_KEEPING_INFINITY: Final = "Column(values, null).{}() makes it of any datetime64, and keeps infinity, unlike .astype"

_INT_BYTES: Final = {Kind.INT2: 2, Kind.INT4: 4, Kind.INT8: 8}
_WORDS: Final[dict[int, Any]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class WrongResult(Exception):
    """A column that a transform gave back is not what its type can be made of: ``column`` names it, ``message`` says
    what was given, what is expected and how to get there.  No value is shown.
    """

    def __init__(self, column: str, message: str) -> None:
        super().__init__(f"column {column!r}: {message}")
        self.column = column
        self.message = message


@dataclass(frozen=True, slots=True)
class _Given:
    """A column as it was given, taken apart."""

    values: NDArray[Any]
    null: NDArray[np.bool_]  # shape (n,); not to be written to
    scale: int | None


def encode(value: object, column: ColumnType, count: int) -> tuple[Encoded, list[Bad]]:
    """The ``count`` values that a transform gave back for ``column``, and the rows whose value it cannot hold.

    ``value``: ``Column``, ``ListColumn``, an array (``None`` and ``NaT`` are NULL) or a masked array.  At most one
    ``Bad`` per row, ascending; what stands in ``Encoded`` for those rows means nothing.  Raises ``WrongResult``.
    """
    if column.element is not None:
        encoded, bad = _lists(value, column, column.element, count)
    else:
        encoded, bad = _scalars(_taken(value, column, count), column)
    return encoded, [Bad(row, f"{column.name}: {reason}", OF_ANOTHER_TYPE in reason) for row, reason in bad]


def _taken(value: object, column: ColumnType, count: int) -> _Given:
    if isinstance(value, Column):
        given = _Given(value.values, value.null, value.scale)
    elif isinstance(value, np.ma.MaskedArray):
        given = _Given(np.ma.getdata(value), np.ma.getmaskarray(value), None)
    elif isinstance(value, np.ndarray):
        given = _Given(value, np.zeros(len(value) if value.ndim else 0, np.bool_), None)
    else:
        raise _wrong(column, f"{_named(value)} was given", "a numpy array, or Column(values, null)")
    return _checked(given, column, count)


def _checked(given: _Given, column: ColumnType, count: int) -> _Given:
    """The parts as they are now: what is looked at is what is written, whoever still holds the arrays."""
    given = _Given(
        given.values.copy() if given.values.dtype.kind in "iuM" else given.values,  # all others are read only once
        given.null.copy(),
        given.scale,
    )
    _check_shape(given, column, count)
    return given


def _check_shape(given: _Given, column: ColumnType, count: int) -> None:
    expected: tuple[int, ...] = (count,)
    if column.kind is Kind.UUID and given.values.ndim == 2:
        expected = (count, UUID_BYTES)
    if given.values.shape != expected:
        raise _wrong(column, f"an array of shape {given.values.shape} was given", f"shape {expected}, one per row")
    if given.null.shape != (count,):
        raise _wrong(column, f"a null mask of shape {given.null.shape} was given", f"shape {(count,)}, one per row")


def _lists(value: object, column: ColumnType, element: ColumnType, count: int) -> tuple[Encoded, BadValues]:
    if not isinstance(value, ListColumn):
        raise _wrong(column, f"{_named(value)} was given", "a ListColumn(values, offsets, null, element_null)")
    if len(value) != count:
        raise _wrong(column, f"{len(value)} lists were given", f"{count}, one per row")
    given = _checked(_Given(value.values, value.element_null, value.scale), element, len(value.values))
    offsets = value.offsets.astype(np.int64)  # a copy: nobody else may change them once they are checked
    elements, bad_elements = _scalars(given, element)
    try:
        encoded, bad = native.encode_lists(
            elements,
            offsets,
            _mask(value.null.copy()),
            value.lower.copy(),
            element.oid,
        )
    except ValueError as error:  # offsets that were written over after the ListColumn was made
        raise WrongResult(column.name, str(error)) from None
    if bad_elements:
        reasons = dict(bad)
        rows = np.searchsorted(offsets, [place for place, _ in bad_elements], side="right") - 1
        for row, (_, reason) in zip(rows.tolist(), bad_elements, strict=True):
            reasons.setdefault(row, f"an element: {reason}")
        bad = sorted(reasons.items())
    return encoded, bad


def _scalars(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    if given.scale is not None and given.scale != 0 and not column.is_numeric:
        raise _wrong(
            column,
            f"a Column with scale {given.scale} was given",
            "no scale: Column(values, null) writes the integers as they are",
        )
    return _ENCODERS[column.kind](given, column)


def _bools(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    if given.values.dtype.kind != "b":
        raise _wrong_dtype(given, column, "say .astype(np.bool_)")
    return _words(given.values, given.null), []


def _integers(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    null, bad = given.null, BadValues()
    width = _INT_BYTES[column.kind]
    if given.values.dtype.kind == "O":
        values, null, bad = _int_objects(given)
    elif given.values.dtype.kind in "iu":
        values = given.values
    else:
        raise _wrong_dtype(given, column, "say .astype(np.int64), floats rounded first")
    if values.dtype.kind == "u" or values.dtype.itemsize > width:
        most = 2 ** (8 * width - 1) - 1
        outside = (values > most) | (values < -most - 1) if values.dtype.kind == "i" else values > most
        bad, null = _with(bad, null, outside, f"a number that {column.kind} cannot hold")
    return _words(values.astype(f"i{width}", copy=False), null), bad


def _int_objects(given: _Given) -> tuple[NDArray[Any], NDArray[np.bool_], BadValues]:
    """Python's ints as int64; None is null."""
    values = np.zeros(len(given.values), np.int64)
    null = given.null.copy()
    bad: BadValues = []
    for place, value in enumerate(given.values.tolist()):
        if value is None or null[place]:
            null[place] = True
        elif isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            bad.append((place, f"{type(value).__name__} instead of int"))
        elif not -INT64_MAX - 1 <= value <= INT64_MAX:
            bad.append((place, "a number that int8 cannot hold"))
        else:
            values[place] = value
    return values, null, bad


def _floats(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    width = 4 if column.kind is Kind.FLOAT4 else 8
    if given.values.dtype.kind != "f" or given.values.dtype.itemsize > width:
        raise _wrong_dtype(given, column, f"say .astype({'np.float32' if width == 4 else 'np.float64'})")
    return _words(given.values.astype(f"f{width}", copy=False), given.null), []


def _dates(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    if given.values.dtype.kind != "M" or np.datetime_data(given.values.dtype) != ("D", 1):
        raise _wrong_dtype(given, column, _KEEPING_INFINITY.format("dates"))
    days = _native(given.values).view(np.int64)
    null = given.null | (days == NOT_A_TIME)
    endless = np.abs(days) == INFINITY
    outside = ~endless & ((days < FIRST_DAY) | (days > LAST_DAY))
    bad, null = _with([], null, outside, "a date beyond PostgreSQL's (4714 BC to 5874897)")
    last = INT64_MAX // MICROSECONDS["D"]
    bad, null = _with(bad, null, (days > last - TICKS_OF_INFINITY) & (days <= last), WAS_INFINITY)
    counted = np.where(endless | outside | null, 0, days) - EPOCH_DAYS
    counted[days == INFINITY] = DATE_INFINITY
    counted[days == -INFINITY] = DATE_MINUS_INFINITY
    return _words(counted.astype(np.int32), null), bad


def _timestamps(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    unit, step = np.datetime_data(given.values.dtype) if given.values.dtype.kind == "M" else ("", 1)
    if unit not in MICROSECONDS or step != 1:
        raise _wrong_dtype(given, column, _KEEPING_INFINITY.format("timestamps"))
    ticks = _native(given.values).view(np.int64)
    null = given.null | (ticks == NOT_A_TIME)
    size = MICROSECONDS[unit]
    endless = np.abs(ticks) == INFINITY
    first, last = FIRST_MICROSECOND // size, (INT64_MAX - 1) // size  # the first is a midnight
    outside = ~endless & ((ticks < first) | (ticks > last))
    bad, null = _with([], null, outside, "a timestamp beyond PostgreSQL's (from 4714 BC) or numpy's (to 294247)")
    if size > 1:
        bad, null = _with(bad, null, ~endless & ~outside & (ticks > last - TICKS_OF_INFINITY), WAS_INFINITY)
    counted = np.where(endless | outside | null, 0, ticks) * size - EPOCH_MICROSECONDS
    counted[ticks == INFINITY] = INFINITY
    counted[ticks == -INFINITY] = TIMESTAMP_MINUS_INFINITY
    return _words(counted, null), bad


def _uuids(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    values, null, bad = given.values, given.null, BadValues()
    if values.dtype.kind == "O" and values.ndim == 1:
        null = null.copy()
        blocks = bytearray(UUID_BYTES * len(values))
        for place, value in enumerate(values.tolist()):
            if value is None:
                null[place] = True
            elif isinstance(value, UUID):
                blocks[UUID_BYTES * place : UUID_BYTES * (place + 1)] = value.bytes
            elif not null[place]:
                bad.append((place, f"{type(value).__name__} instead of uuid.UUID"))
        content = np.frombuffer(blocks, np.uint8)
    elif (values.dtype.kind, values.dtype.itemsize, values.ndim, values.dtype.names) == ("V", UUID_BYTES, 1, None):
        content = np.ascontiguousarray(values).view(np.uint8)
    elif values.dtype == np.uint8 and values.ndim == 2:
        content = np.ascontiguousarray(values)
    else:
        raise _wrong_dtype(given, column, "give V16, uint8 of shape (n, 16), or objects of uuid.UUID")
    return native.encode_blocks(content.reshape(len(values), UUID_BYTES), _mask(null)), bad


def _texts(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    if given.values.dtype.kind not in "OUT":
        raise _wrong_dtype(given, column, "give str objects (.astype(object)), 'U' or StringDType")
    objects = given.values.tolist()
    missing = getattr(given.values.dtype, "na_object", None)
    if missing is not None and not isinstance(missing, str):  # StringDType's own null, pandas' for instance
        objects = [None if text is missing else text for text in objects]
    prefix = JSONB_VERSION if column.kind is Kind.JSONB else b""
    return native.encode_texts(objects, _mask(given.null), prefix)


def _byte_strings(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    if given.values.dtype.kind != "O":
        # 'S' is refused too: numpy takes zero bytes at the end of each value away.
        raise _wrong_dtype(given, column, "give bytes objects in an array of dtype object")
    return native.encode_bytes(given.values.tolist(), _mask(given.null))


def _numerics(given: _Given, column: ColumnType) -> tuple[Encoded, BadValues]:
    if given.values.dtype.kind == "O":
        if given.scale is not None:
            raise _wrong(column, f"objects with scale {given.scale} were given", "no scale: a Decimal has its own")
        return native.encode_decimals(given.values.tolist(), _mask(given.null), column.precision, column.scale)
    if given.values.dtype.kind not in "iu":
        raise _wrong_dtype(given, column, "give Decimal objects, or scaled integers: Column(values, null, scale)")
    scale = given.scale
    if scale is None:
        if column.scale is not None and column.scale > 0:  # whole numbers, or scaled like those it was given?
            raise _wrong(
                column,
                f"{given.values.dtype} without a scale was given",
                f"Column(values, null, scale={column.scale}) for values times {10**column.scale}, "
                "or scale=0 for whole numbers",
            )
        scale = 0
    if not 0 <= scale <= MAX_SCALED_DIGITS:
        raise _wrong(column, f"scale {scale} was given", f"a scale of 0 to {MAX_SCALED_DIGITS}")
    null, bad = given.null, BadValues()
    if given.values.dtype.kind == "u":
        outside = given.values > INT64_MAX
        bad, null = _with(bad, null, outside, "a number that int64 cannot hold: give Decimal objects")
    values = np.ascontiguousarray(given.values, np.int64)
    encoded, more = native.encode_scaled(values, _mask(null), scale, column.precision, column.scale)
    return encoded, sorted(bad + more)


_ENCODERS: Final[dict[Kind, Callable[[_Given, ColumnType], tuple[Encoded, BadValues]]]] = {
    Kind.BOOL: _bools,
    Kind.INT2: _integers,
    Kind.INT4: _integers,
    Kind.INT8: _integers,
    Kind.FLOAT4: _floats,
    Kind.FLOAT8: _floats,
    Kind.DATE: _dates,
    Kind.TIMESTAMP: _timestamps,
    Kind.UUID: _uuids,
    Kind.TEXT: _texts,
    Kind.BYTEA: _byte_strings,
    Kind.JSON: _texts,
    Kind.JSONB: _texts,
    Kind.SCALED: _numerics,
    Kind.DECIMAL: _numerics,
}


def _words(values: NDArray[Any], null: NDArray[np.bool_]) -> Encoded:
    contiguous = _native(values)
    return native.encode_words(contiguous.view(_WORDS[contiguous.dtype.itemsize]), _mask(null))


def _native(values: NDArray[Any]) -> NDArray[Any]:
    """One after the other, in this machine's byte order."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def _mask(null: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(null).view(np.uint8)


def _with(
    bad: BadValues, null: NDArray[np.bool_], wrong: NDArray[np.bool_], reason: str
) -> tuple[BadValues, NDArray[np.bool_]]:
    """The bad values and those where ``wrong`` and no null is; and the nulls, with both of them."""
    wrong = wrong & ~null
    if not wrong.any():
        return bad, null
    return sorted([*bad, *((int(place), reason) for place in np.flatnonzero(wrong))]), null | wrong


def _named(value: object) -> str:
    """What was given, without its values."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return f"an object of type {type(value).__name__}"


def _wrong_dtype(given: _Given, column: ColumnType, remedy: str) -> WrongResult:
    kind = "objects" if given.values.dtype.kind == "O" else str(given.values.dtype)
    return _wrong(column, f"an array of {kind} was given", f"{column.described}; {remedy}")


def _wrong(column: ColumnType, given: str, expected: str) -> WrongResult:
    return WrongResult(column.name, f"{given} for {column.type_name}; expected {expected}")
