"""Every type that a transform can read and write: how its values are written in SQL, and what a decoded one must be.

The judgement here is independent of the codec: it compares with the server's own text, and does its own calendar.
"""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import strategies as st

from engine._native.rows import RowBatches, Rows
from engine.db import Connection, Database
from engine.db.inspect import inspect_table
from engine.model import Side, TableName
from engine.spec import TableRef
from engine.transform.columns import INFINITY
from engine.transform.types import ColumnType, column_type

GREGORIAN_CYCLE_DAYS = 146_097  # 400 years
DAYS_TO_1970 = date(1970, 1, 1).toordinal() - 1
DAY_MICROSECONDS = 86_400 * 10**6
DATES = (-2_451_545 + 10_957, 2_145_031_948 + 10_957)  # days from 1970 that PostgreSQL has
TIMESTAMPS = (-211_813_488_000_000_000 + 10_957 * DAY_MICROSECONDS, 2**63 - 2)  # what PostgreSQL and numpy both have


def day_text(days: int) -> tuple[str, str]:
    """The date that many days from 1970-01-01 as PostgreSQL writes it, and `` BC`` where that follows."""
    cycles, rest = divmod(days + DAYS_TO_1970, GREGORIAN_CYCLE_DAYS)
    day = date.fromordinal(rest + 1)
    year = day.year + 400 * cycles
    return f"{year if year > 0 else 1 - year:04d}-{day.month:02d}-{day.day:02d}", "" if year > 0 else " BC"


def date_text(days: int) -> str:
    if abs(days) == INFINITY:
        return "infinity" if days > 0 else "-infinity"
    return "".join(day_text(days))


def timestamp_text(microseconds: int, zone: str = "") -> str:
    if abs(microseconds) == INFINITY:
        return "infinity" if microseconds > 0 else "-infinity"
    days, rest = divmod(microseconds, DAY_MICROSECONDS)
    seconds, fraction = divmod(rest, 10**6)
    day, era = day_text(days)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{day} {clock}{f'.{fraction:06d}'.rstrip('0') if fraction else ''}{zone}{era}"


def scaled_text(value: int, scale: int) -> str:
    digits = str(abs(value)).rjust(scale + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-scale]}.{digits[-scale:]}" if scale else digits)


def decimal_text(value: Decimal) -> str:
    if not value.is_finite():
        return "NaN" if value.is_nan() else "Infinity" if value > 0 else "-Infinity"
    return format(abs(value) if value == 0 else value, "f")


def bits(form: str, value: float) -> bytes:
    return struct.pack(form, value)


Judge = Callable[[Any, int | None, str], bool]
"""Value as decoded (of numpy, or an object), its scale, the server's text: true when they are the same."""

JUDGES: dict[str, Judge] = {
    "bool": lambda value, _, text: value.dtype == np.bool_ and text == ("true" if value else "false"),
    "int2": lambda value, _, text: value.dtype == np.int16 and text == str(int(value)),
    "int4": lambda value, _, text: value.dtype == np.int32 and text == str(int(value)),
    "int8": lambda value, _, text: value.dtype == np.int64 and text == str(int(value)),
    "float4": lambda value, _, text: (
        value.dtype == np.float32
        and (text == "NaN" if np.isnan(value) else bits(">f", value) == bits(">f", float(text)))
    ),
    "float8": lambda value, _, text: (
        value.dtype == np.float64
        and (text == "NaN" if np.isnan(value) else bits(">d", value) == bits(">d", float(text)))
    ),
    "date": lambda value, _, text: date_text(int(value.view(np.int64))) == text,
    "timestamp": lambda value, _, text: timestamp_text(int(value.view(np.int64))) == text.replace("+00", ""),
    "uuid": lambda value, _, text: str(uuid.UUID(bytes=value.tobytes())) == text,
    "text": lambda value, _, text: value == text,
    "padded": lambda value, _, text: len(value) == 6 and value.rstrip(" ") == text,
    "bytea": lambda value, _, text: "\\x" + value.hex() == text,
    "json": lambda value, _, text: value == text,
    "jsonb": lambda value, _, text: value == text,
    "scaled": lambda value, scale, text: scale is not None and scaled_text(int(value), scale) == text,
    "decimal": lambda value, _, text: decimal_text(value) == text,
}


@dataclass(frozen=True)
class Type:
    """A type, as a column declares it."""

    values: st.SearchStrategy[str]  # in SQL's text form
    edges: tuple[str, ...]
    judge: str = ""  # instead of the kind's
    decimals_only: tuple[str, ...] = ()  # values that scaled integers do not have
    has_array: bool = True


def _floats(width: int) -> st.SearchStrategy[str]:
    return st.floats(width=width).map(lambda number: str(number).replace("inf", "Infinity"))


def _numerics(precision: int, scale: int) -> st.SearchStrategy[str]:
    whole = st.integers(-(10**precision) + 1, 10**precision - 1)
    if scale < 0:
        return whole.map(lambda value: f"{value}{'0' * -scale}")
    return whole.map(lambda value: scaled_text(value, scale))


characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
odd = st.sampled_from("\x01\t\n\r\\\"'{},\x7f\x85\xa0\u00ad\u0300\u200d\u2028\u202e\ufeff\uffff\U0001f9d1\U0010ffff ")
texts = st.text(st.one_of(characters, odd), max_size=25)
digits = st.text("0123456789", max_size=45)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
json_texts = st.tuples(json_values, st.booleans(), st.sampled_from([None, 0, 3])).map(
    lambda drawn: json.dumps(drawn[0], ensure_ascii=drawn[1], indent=drawn[2])
)
LONG = "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(60_000))  # some 180 kB that hardly compress
TEXT_EDGES = ("", " ", "NULL", "null", "\\", '"', "{}", "a\u0308\u0300", "\ufeff\uffff\U0010ffff", "\u202eא", LONG)
JSON_EDGES = ("null", "0", "-0", '""', "{}", "[]", " [1 , 2]", '{"a": 1.0, "a": 2}', json.dumps(LONG), '"\\u00e4\\n"')
WITH_ZONES = st.tuples(
    st.integers(TIMESTAMPS[0] + 10**15, TIMESTAMPS[1] - 10**15), st.sampled_from(["+00", "-11:30", "+14"])
)
TIMESTAMP_EDGES = (
    *("infinity", "-infinity", "4714-11-24 00:00:00 BC", "294247-01-10 04:00:54.775806", "2000-01-01 00:00:00"),
    *("1970-01-01 00:00:00", "1969-12-31 23:59:59.999999", "2016-12-31 23:59:60", "0001-12-31 24:00:00 BC"),
    *("1999-12-31 23:59:59.999999", "2000-02-29 12:00:00.5", "0044-03-15 12:00:00.000001 BC", "10000-01-01 00:00:00"),
)

TYPES: dict[str, Type] = {
    "boolean": Type(st.sampled_from(["true", "false"]), ("true", "false")),
    "smallint": Type(st.integers(-(2**15), 2**15 - 1).map(str), ("0", "-1", "32767", "-32768")),
    "integer": Type(st.integers(-(2**31), 2**31 - 1).map(str), ("0", "-1", "2147483647", "-2147483648")),
    "bigint": Type(st.integers(-(2**63), 2**63 - 1).map(str), ("0", "-1", str(2**63 - 1), str(-(2**63)))),
    "real": Type(_floats(32), ("0", "-0", "NaN", "Infinity", "-Infinity", "1e-45", "3.4028235e38", "0.1", "16777217")),
    "double precision": Type(
        _floats(64), ("0", "-0", "NaN", "Infinity", "-Infinity", "5e-324", "1.7976931348623157e308", "0.1")
    ),
    "date": Type(
        st.integers(*DATES).map(date_text),
        (
            *("infinity", "-infinity", "4714-11-24 BC", "5874897-12-31", "0001-12-31 BC", "0001-01-01", "1999-12-31"),
            *("2000-01-01", "1970-01-01", "1969-12-31", "2000-02-29", "0044-03-15 BC", "10000-01-01"),
        ),
    ),
    "timestamp": Type(st.integers(*TIMESTAMPS).map(timestamp_text), TIMESTAMP_EDGES),
    "timestamp with time zone": Type(
        WITH_ZONES.map(lambda drawn: timestamp_text(*drawn)),
        (*TIMESTAMP_EDGES, "2016-12-31 23:59:60-08", "0001-01-01 00:00:00+14", "1883-11-18 12:03:58 America/New_York"),
    ),
    "timestamp(3)": Type(st.integers(*TIMESTAMPS).map(lambda us: timestamp_text(us // 10**4 * 10**4)), ("infinity",)),
    "uuid": Type(st.uuids().map(str), ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff")),
    "text": Type(texts, TEXT_EDGES),
    "character varying(40)": Type(texts, ("", " ", "NULL", "é" * 40)),
    "character(6)": Type(st.text(characters, max_size=6), ("", " a", "abcdef", "é"), judge="padded"),
    "name": Type(st.text(characters, max_size=15), ("", "a" * 63)),
    "bytea": Type(
        st.binary(max_size=30).map(lambda value: "\\x" + value.hex()),
        ("\\x", "\\x00", "\\x0000", "\\xff00", "\\x" + LONG.encode().hex()),
    ),
    "json": Type(json_texts, JSON_EDGES),
    "jsonb": Type(json_texts.filter(lambda text: "\\u0000" not in text), JSON_EDGES),
    "numeric": Type(
        st.builds(lambda sign, whole, rest: f"{sign}0{whole}.{rest}", st.sampled_from(["", "-"]), digits, digits),
        (
            *(
                "NaN",
                "Infinity",
                "-Infinity",
                "0",
                "-0",
                "0.000",
                "1.00",
                "-1.0",
                "9999",
                "10000",
                "99999999",
                "100000000",
            ),
            *("0.0001", "0.00010000", "0.00001", "1e131071", "-1e-16383", "12345678901234567890.123456789", "1e50"),
            *("1000000000000000000000000000.0000000000000000000000000001", "10001.0001", "0.10", "5000.50000"),
            f"{'1' * 131_072}.{'1' * 16_383}",
        ),
    ),
    "numeric(12,2)": Type(
        _numerics(12, 2), ("0", "-0.01", "9999999999.99", "-9999999999.99", "100", "0.1"), decimals_only=("NaN",)
    ),
    "numeric(18,0)": Type(_numerics(18, 0), ("0", "-1", "9" * 18, "-" + "9" * 18, "10000", "9999")),
    "numeric(18,18)": Type(_numerics(18, 18), ("0", "-0." + "9" * 18, "0.1", "0.0001", "0." + "0" * 17 + "1")),
    "numeric(15,7)": Type(_numerics(15, 7), ("0", "-0.0000001", "0.0001", "99999999.9999999", "10000")),
    "numeric(30,10)": Type(_numerics(30, 10), ("0", "NaN", "9" * 20 + "." + "9" * 10, "-0.0000000001", "1")),
    "numeric(5,-2)": Type(_numerics(5, -2), ("0", "NaN", "9999900", "-100")),
    "numeric(3,5)": Type(_numerics(3, 5), ("0", "0.00999", "-0.00001")),
    "whole": Type(st.integers(0, 2**31 - 1).map(str), ("0", "7"), has_array=False),
    "price": Type(_numerics(10, 2), ("0", "-0.01"), decimals_only=("NaN",), has_array=False),
    "dear": Type(_numerics(9, 2), ("0", "-99999999", "99999999.99"), decimals_only=("NaN",), has_array=False),
    "code": Type(st.text(characters, max_size=5), ("", "ab"), has_array=False),
}
"""By declaration."""

DOMAINS = """
CREATE DOMAIN whole AS integer CHECK (VALUE >= 0);
CREATE DOMAIN price AS numeric(10,2);
CREATE DOMAIN dear AS price CHECK (VALUE >= -99999999);
CREATE DOMAIN code AS varchar(5) NOT NULL DEFAULT '';
"""


def array_text(lower: int, elements: list[str | None]) -> str:
    """An array in SQL's text form."""
    if not elements:
        return "{}"
    quoted = ["NULL" if e is None else '"' + e.replace("\\", "\\\\").replace('"', '\\"') + '"' for e in elements]
    return f"[{lower}:{lower + len(elements) - 1}]={{{','.join(quoted)}}}"


class Session:
    """A session for tests that Hypothesis repeats: its own loop, one call at a time."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        self._connection: Connection = self._runner.run(Database(dsn, side=Side.SOURCE).connect("test"))
        self.execute("SET search_path = public")

    def execute(self, sql: str) -> None:
        self._runner.run(self._connection.execute(sql))

    def fetch(self, sql: str, *args: object) -> list[Any]:
        return self._runner.run(self._connection.fetch(sql, *args))

    def copied(self, query: str) -> bytes:
        pieces: list[bytes] = []

        async def sink(piece: bytes) -> None:
            pieces.append(piece)

        self._runner.run(self._connection.copy_out(query, sink))
        return b"".join(pieces)

    def copy_in(self, table: str, columns: list[str], stream: bytes) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield stream

        self._runner.run(self._connection.copy_in(TableName("public", table), columns, pieces()))

    def column_type(self, table: str, column: str, form: str = "") -> ColumnType | None:
        found = self._runner.run(inspect_table(self._connection, TableRef("public", table)))
        return column_type(found.column(column), form)

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


def rows_of(stream: bytes, fields: int) -> Rows:
    """All rows of a stream, as one batch."""
    batches = RowBatches(fields, max_rows=10**6, max_bytes=2**28)
    given = [*batches.feed(stream), batches.finish()]
    [rows] = [batch for batch in given if batch is not None]
    return rows
