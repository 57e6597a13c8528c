"""Batches of rows made by hand, for transforms that run without a server."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine._native.rows import HEADER, TRAILER, RowBatches, Rows
from engine.transform.declare import Transform
from engine.transform.running import Runner
from engine.transform.types import ColumnType, Kind

INT8 = "bigint"


def int8(name: str) -> ColumnType:
    """A bigint column."""
    return ColumnType(name, Kind.INT8, INT8, 20)


def text(name: str) -> ColumnType:
    """A text column."""
    return ColumnType(name, Kind.TEXT, "text", 25)


def wire(value: Any) -> bytes | None:
    """An int as bigint, a str as text, bytes as they are."""
    if isinstance(value, int):
        return struct.pack(">q", value)
    return value.encode() if isinstance(value, str) else value


def stream(rows: Sequence[Sequence[Any]]) -> bytes:
    """A binary COPY stream."""
    return HEADER + b"".join(row_bytes(row) for row in rows) + TRAILER


def row_bytes(row: Sequence[Any]) -> bytes:
    """One row of it."""
    fields = [wire(value) for value in row]
    words = [b"\xff\xff\xff\xff" if field is None else struct.pack(">i", len(field)) + field for field in fields]
    return struct.pack(">h", len(fields)) + b"".join(words)


def batches_of(copied: bytes, fields: int) -> list[Rows]:
    """What a stream holds: at most one batch."""
    batches = RowBatches(fields, max_rows=1 << 24, max_bytes=1 << 29)
    return [made for made in (*batches.feed(copied), batches.finish()) if made is not None]


def rows_of(rows: Sequence[Sequence[Any]]) -> Rows:
    """All of them as one batch."""
    (made,) = batches_of(stream(rows), len(rows[0]))
    return made


def numbers(*values: int | None) -> Rows:
    """Rows of two bigint fields: their place, from 0, and a value."""
    return rows_of([(place, value) for place, value in enumerate(values)])


def counting(count: int) -> Rows:
    """Rows of two bigint fields that both hold the row's number."""
    number = np.arange(count, dtype=">i8")
    table = np.zeros(count, [("f", ">i2"), ("l", ">i4"), ("k", ">i8"), ("m", ">i4"), ("v", ">i8")])
    table["f"], table["l"], table["m"], table["k"], table["v"] = 2, 8, 8, number, number
    (made,) = batches_of(HEADER + table.tobytes() + TRAILER, 2)
    return made


def runner_of(transform: Transform, *, most_rejected: int = 0) -> Runner:
    """For rows of a key and ``a``: what goes out is the key and ``b``, all of them bigint."""
    reads = [(1, int8(name)) for name, _ in transform.declaration.reads]
    writes = [int8(name) for name in transform.declaration.writes]
    return Runner(transform, reads, writes, [0, *(-1 - k for k in range(len(writes)))], most_rejected=most_rejected)


def written(piece: bytes, fields: int = 2) -> list[tuple[int | None, ...]]:
    """The rows of a piece whose fields are all bigint."""
    found: list[tuple[int | None, ...]] = []
    for rows in batches_of(HEADER + piece + TRAILER, fields):
        for row in range(rows.count):
            values = [rows.value(row, field) for field in range(fields)]
            found.append(tuple(None if value is None else struct.unpack(">q", value)[0] for value in values))
    return found
