"""What it costs to decode one value of the binary COPY stream into a numpy column, and to encode it again.

For each kind of column: one batch of the default size, all values there, decoded and encoded again and again in one
thread.  Nanoseconds a value, the best of the rounds: the codec alone, without server, loop or transform.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from bench.report import Figure, Report
from engine._native.rows import HEADER, TRAILER, Encoded, RowBatches, Rows, assemble
from engine.transform.columns import Column, ListColumn
from engine.transform.decoding import decode
from engine.transform.encoding import encode
from engine.transform.types import ColumnType, Kind

BATCH_ROWS = 8192
ROUNDS = 50
SEED = 20_240_229
LIST_ELEMENTS = 4


def columns(rows: int) -> list[tuple[ColumnType, Column | ListColumn]]:
    """One column of each kind, with values as tables have them."""
    rng = np.random.default_rng(SEED)
    whole = rng.integers(-(10**9), 10**9, rows)
    cents = rng.integers(1, 10**7, rows)
    objects: dict[str, list[Any]] = {
        "decimal": [Decimal(int(value)).scaleb(-2) for value in cents],
        "text": [f"someone.{value}@example.org" for value in cents],
        "bytea": [bytes(rng.bytes(32)) for _ in range(rows)],
        "jsonb": [f'{{"id": {value}, "tags": ["a", "b"]}}' for value in cents],
    }
    plain: list[tuple[Kind, str, int, Any]] = [
        (Kind.BOOL, "boolean", 16, whole > 0),
        (Kind.INT4, "integer", 23, whole.astype(np.int32)),
        (Kind.INT8, "bigint", 20, whole),
        (Kind.FLOAT8, "double precision", 701, rng.random(rows)),
        (Kind.DATE, "date", 1082, cents.astype(np.int32).astype("datetime64[D]")),
        (Kind.TIMESTAMP, "timestamp with time zone", 1184, (whole * 10**6).astype("datetime64[us]")),
        (Kind.UUID, "uuid", 2950, np.frombuffer(b"".join(uuid.uuid4().bytes for _ in range(rows)), "V16")),
    ]
    made: list[tuple[ColumnType, Column | ListColumn]] = [
        (ColumnType("value", kind, name, oid), Column(values)) for kind, name, oid, values in plain
    ]
    scaled = ColumnType("value", Kind.SCALED, "numeric(12,2)", 1700, scale=2, precision=12)
    made.append((scaled, Column(cents, scale=2)))
    for kind, name, oid in (
        (Kind.DECIMAL, "numeric", 1700),
        (Kind.TEXT, "text", 25),
        (Kind.BYTEA, "bytea", 17),
        (Kind.JSONB, "jsonb", 3802),
    ):
        values = np.empty(rows, object)
        values[:] = objects[kind]
        made.append((ColumnType("value", kind, name, oid), Column(values)))
    element = ColumnType("value", Kind.INT4, "integer", 23)
    offsets = np.arange(0, LIST_ELEMENTS * rows + 1, LIST_ELEMENTS)
    lists = ListColumn(np.repeat(whole, LIST_ELEMENTS).astype(np.int32), offsets)
    made.append((ColumnType("value", Kind.ARRAY, f"integer[] of {LIST_ELEMENTS}", 1007, element=element), lists))
    return made


def rows_of(encoded: Encoded) -> Rows:
    """Rows of that one field, as a server would have sent them."""

    def read(stream: bytes) -> Rows:
        batches = RowBatches(1, max_rows=encoded.count + 1)
        batches.feed(stream)
        rows = batches.finish()
        assert rows is not None
        return rows

    empty = read(HEADER + b"\0\1\xff\xff\xff\xff" * encoded.count + TRAILER)
    return read(HEADER + assemble(empty, [-1], [encoded]) + TRAILER)


def best_s(work: Callable[[], object], rounds: int) -> float:
    """The fastest of the rounds, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.codec", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the report there; - is standard output")
    parser.add_argument("--smoke", action="store_true", help="once: that it runs, not how fast")
    parsed = parser.parse_args(arguments)
    rounds = 1 if parsed.smoke else ROUNDS
    report = Report("codec", "Decoding and encoding", parsed.smoke, {"batch_rows": BATCH_ROWS, "rounds": rounds})
    for kind, column in columns(BATCH_ROWS):
        encoded, bad = encode(column, kind, BATCH_ROWS)
        assert not bad
        rows = rows_of(encoded)
        found, wrong = decode(rows, 0, kind)
        assert not wrong
        assert np.array_equal(found.values, column.values)
        shown = f"{kind.type_name}, {kind.kind}"
        decode_s = best_s(lambda rows=rows, kind=kind: decode(rows, 0, kind), rounds)
        encode_s = best_s(lambda column=column, kind=kind: encode(column, kind, BATCH_ROWS), rounds)
        report.figures.append(Figure(f"decode {shown}", decode_s / BATCH_ROWS * 1e9, "ns/value"))
        report.figures.append(Figure(f"encode {shown}", encode_s / BATCH_ROWS * 1e9, "ns/value"))
    report.finish(parsed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
