"""From the fields of rows in memory to the columns that a transform is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine._native import decode as native
from engine._native.rows import Rows
from engine.transform.columns import Column, ListColumn
from engine.transform.types import ColumnType, Kind

BadValues = list[tuple[int, str]]
"""Places among the values, ascending, and what is wrong there."""

Decoded = tuple[NDArray[Any], NDArray[np.bool_], BadValues]

_DECODERS: Final[dict[Kind, Callable[[native.Cells], Decoded]]] = {
    Kind.BOOL: native.decode_bool,
    Kind.INT2: native.decode_int2,
    Kind.INT4: native.decode_int4,
    Kind.INT8: native.decode_int8,
    Kind.FLOAT4: native.decode_float4,
    Kind.FLOAT8: native.decode_float8,
    Kind.DATE: native.decode_date,
    Kind.TIMESTAMP: native.decode_timestamp,
    Kind.UUID: native.decode_uuid,
    Kind.TEXT: native.decode_text,
    Kind.BYTEA: native.decode_bytea,
    Kind.JSON: native.decode_text,
    Kind.JSONB: native.decode_jsonb,
    Kind.DECIMAL: native.decode_decimal,
}


@dataclass(frozen=True, slots=True)
class Bad:
    """A row whose value could not be decoded or encoded: its place in the batch, and why, without the value.

    ``by_type``: an object of another Python type than the column's, whatever its value.
    """

    row: int
    reason: str
    by_type: bool = False


def decode(rows: Rows, field: int, column: ColumnType) -> tuple[Column | ListColumn, list[Bad]]:
    """The values of field number ``field``, from 0, and the rows whose value is bad, ascending.

    A bad row is NULL in the column that is returned.  The arrays are new and belong to the caller.
    """
    cells = native.Cells(rows, field)
    if column.element is None:
        values, null, bad = _scalars(cells, column)
        return Column(values, null, _scale(column)), _named(column, bad)
    elements, offsets, null, lower, bad = native.elements(cells, column.element.oid)
    values, element_null, bad_elements = _scalars(elements, column.element)
    if bad_elements:
        reasons = dict(bad)
        for place, reason in bad_elements:
            reasons.setdefault(int(np.searchsorted(offsets, place, side="right")) - 1, f"an element is {reason}")
        bad = sorted(reasons.items())
        values, offsets, element_null = _without(
            np.fromiter(reasons, np.int64, len(reasons)), values, offsets, element_null
        )
        null[list(reasons)] = True
        lower[list(reasons)] = 1
    return ListColumn(values, offsets, null, element_null, lower, _scale(column.element)), _named(column, bad)


def _scalars(cells: native.Cells, column: ColumnType) -> Decoded:
    if column.kind is Kind.SCALED:
        return native.decode_scaled(cells, column.scale or 0)
    return _DECODERS[column.kind](cells)


def _scale(column: ColumnType) -> int | None:
    return column.scale if column.kind is Kind.SCALED else None


def _without(
    rows: NDArray[np.int64], values: NDArray[Any], offsets: NDArray[np.int64], element_null: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
    """The elements of all other rows."""
    lengths = np.diff(offsets)
    kept = np.ones(len(lengths), np.bool_)
    kept[rows] = False
    kept_elements = np.repeat(kept, lengths)
    lengths[rows] = 0
    return values[kept_elements], np.concatenate(([0], np.cumsum(lengths))), element_null[kept_elements]


def _named(column: ColumnType, bad: BadValues) -> list[Bad]:
    return [Bad(row, f"{column.name}: {reason}") for row, reason in bad]
