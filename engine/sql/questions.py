"""The planner's questions as statements, and the rows that come back as its answers.

``statement(question, table, key)`` gives one statement with its parameters; ``read(question, rows)`` makes the answer
of ``engine.plan.questions`` from the rows it returns.  Keys go in as text and come out as text; all comparing and
ordering is the server's.

Every statement is an index walk of a few rows for each key asked for.  Three rules keep it so: the lower bound of a
walk is *one* condition (of two, an index scan may start at the wrong one and filter its way to the other), bounds are
row comparisons over leading key columns, and each walk ends by ``LIMIT 1`` in key order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.model import Key, KeyColumn, KeyValue, TableName
from engine.plan.questions import (
    Answer,
    ColumnStatistics,
    EstimateRows,
    ExistingKeys,
    FirstKey,
    LastKey,
    Question,
    Sample,
    Samples,
    Statistics,
)
from engine.sql.identifiers import ident, qualified


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL text and its parameters: ``text``, ``text[]`` or ``int``."""

    sql: str
    args: tuple[object, ...] = ()


Rows = Sequence[Sequence[Any]]
"""Rows as a driver returns them: fields by position."""

_STATISTICS = """\
SELECT s.histogram_bounds::text::text[], s.most_common_vals::text::text[], s.most_common_freqs::float8[],
       s.n_distinct::float8, s.correlation::float8, c.reltuples::float8
FROM pg_catalog.pg_stats AS s
JOIN pg_catalog.pg_namespace AS n ON n.nspname = s.schemaname
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = s.tablename
WHERE s.schemaname = $1 AND s.tablename = $2 AND s.attname = $3
ORDER BY s.inherited DESC
LIMIT 1"""


def statement(question: Question, table: TableName, key: Key) -> Statement:
    """The one statement that answers ``question`` about ``table``, paged by ``key``."""
    match question:
        case EstimateRows():
            return Statement(f"EXPLAIN (FORMAT JSON) SELECT 1 FROM {qualified(table)}")
        case Statistics(column):
            return Statement(_STATISTICS, (table.schema, table.name, column))
        case FirstKey(prefix):
            return _end_of_table(table, key, prefix, descending=False)
        case LastKey(prefix):
            return _end_of_table(table, key, prefix, descending=True)
        case ExistingKeys(guesses, end):
            return _existing_keys(table, key, guesses, end)
        case Samples(guesses, stride):
            return _samples(table, key, guesses, stride)


def read(question: Question, rows: Rows) -> Answer:
    """The answer that the planner expects, from the rows of the question's statement."""
    match question:
        case EstimateRows():
            plan = rows[0][0]
            document = json.loads(plan) if isinstance(plan, str) else plan
            return float(document[0]["Plan"]["Plan Rows"])
        case Statistics():
            return _column_statistics(rows[0]) if rows else None
        case FirstKey() | LastKey():
            return tuple(rows[0]) if rows else None
        case ExistingKeys():
            return tuple(tuple(row) for row in rows)
        case Samples(guesses, _):
            found: list[Sample] = [Sample(None, None, None)] * len(guesses)
            for row in rows:
                width = (len(row) - 1) // 3
                before, at, after = (_key_or_none(row[1 + i * width : 1 + (i + 1) * width]) for i in range(3))
                found[int(row[0])] = Sample(before, at, after)
            return tuple(found)


def _column_statistics(row: Sequence[Any]) -> ColumnStatistics:
    histogram, values, fractions, distinct, correlation, rows = row
    return ColumnStatistics(
        histogram=tuple(histogram or ()),
        common=tuple(zip(values or (), fractions or (), strict=True)),
        distinct=distinct or 0.0,
        correlation=correlation,
        rows=rows,
    )


def _key_or_none(fields: Sequence[str | None]) -> KeyValue | None:
    key = tuple(field for field in fields if field is not None)
    return key if len(key) == len(fields) else None


def _end_of_table(table: TableName, key: Key, prefix: KeyValue, *, descending: bool) -> Statement:
    fixed = [
        f"t.{ident(column.name)} = ($1::text[])[{i}]::{column.type_name}"
        for i, column in enumerate(key.columns[: len(prefix)], start=1)
    ]
    # A unique index of the target may hold NULLs, which sort at one end and are nobody's key.
    fixed += [f"t.{ident(column.name)} IS NOT NULL" for column in key.columns[len(prefix) :]]
    where = f"\nWHERE {' AND '.join(fixed)}"
    sql = (
        f"SELECT {_as_text('t', key.columns)}\nFROM {qualified(table)} AS t{where}"
        f"\nORDER BY {_order('t', key.columns, descending=descending)}\nLIMIT 1"
    )
    return Statement(sql, (list(prefix),) if prefix else ())


def _existing_keys(table: TableName, key: Key, guesses: Sequence[KeyValue], end: KeyValue) -> Statement:
    args: list[object] = [list(end)]
    branches = []
    before_end = _compare("t", key.columns, "<", [f"($1::text[])[{i}]" for i in range(1, len(end) + 1)])
    for width in sorted({len(guess) for guess in guesses}):
        of_this_width = [guess for guess in guesses if len(guess) == width]
        arrays = _arrays(args, of_this_width, width)
        branches.append(
            f"SELECT found.*\nFROM {arrays} AS g({_guess_names(width)})\nCROSS JOIN LATERAL (\n"
            f"    SELECT {_raw('t', key.columns)} FROM {qualified(table)} AS t\n"
            f"    WHERE {_compare('t', key.columns, '>=', _guess_fields(width))} AND {before_end}\n"
            f"    ORDER BY {_order('t', key.columns)} LIMIT 1\n) AS found"
        )
    union = "\nUNION ALL\n".join(branches)
    sql = (
        f"SELECT {_as_text('k', key.columns)}\nFROM (\nSELECT DISTINCT {_raw('u', key.columns)} FROM (\n{union}\n) AS u"
        f"\n) AS k\nORDER BY {_order('k', key.columns)}"
    )
    return Statement(sql, tuple(args))


def _samples(table: TableName, key: Key, guesses: Sequence[KeyValue], stride: int) -> Statement:
    args: list[object] = [stride]
    branches = []
    columns = key.columns
    for width in sorted({len(guess) for guess in guesses}):
        numbered = [(i, guess) for i, guess in enumerate(guesses) if len(guess) == width]
        args.append([i for i, _ in numbered])
        numbers = f"${len(args)}::int[]"
        arrays = _arrays(args, [guess for _, guess in numbered], width, also=numbers)

        def walk(name: str, condition: str, *, descending: bool = False, skip: str = "") -> str:
            order = _order("t", columns, descending=descending)
            return (
                f"LEFT JOIN LATERAL (\n    SELECT {_raw('t', columns)} FROM {qualified(table)} AS t\n"
                f"    WHERE {condition}\n    ORDER BY {order}{skip} LIMIT 1\n) AS {name} ON true"
            )

        at_or_after = _compare("t", columns, ">=", _guess_fields(width))
        earlier = _compare("t", columns, "<", _guess_fields(width))
        branches.append(
            f"SELECT g.i, {', '.join(_as_text(name, columns) for name in ('b', 'a', 'z'))}\n"
            f"FROM {arrays} AS g(i, {_guess_names(width)})\n"
            f"{walk('b', earlier, descending=True)}\n"
            f"{walk('a', at_or_after)}\n"
            f"{walk('z', at_or_after, skip=' OFFSET $1::int')}"
        )
    return Statement("\nUNION ALL\n".join(branches), tuple(args))


def _arrays(args: list[object], guesses: Sequence[KeyValue], width: int, also: str = "") -> str:
    """Add the guesses to ``args``, one array for each column, and give the table function that unrolls them."""
    names = [also] if also else []
    for i in range(width):
        args.append([guess[i] for guess in guesses])
        names.append(f"${len(args)}::text[]")
    return f"unnest({', '.join(names)})"


def _guess_names(width: int) -> str:
    return ", ".join(f"g{i}" for i in range(1, width + 1))


def _guess_fields(width: int) -> list[str]:
    return [f"g.g{i}" for i in range(1, width + 1)]


def _compare(alias: str, columns: Sequence[KeyColumn], operator: str, texts: Sequence[str]) -> str:
    """A comparison of the leading key columns with texts cast to their types."""
    leading = columns[: len(texts)]
    left = ", ".join(f"{alias}.{ident(column.name)}" for column in leading)
    right = ", ".join(f"({text})::{column.type_name}" for text, column in zip(texts, leading, strict=True))
    return f"({left}) {operator} ({right})"


def _raw(alias: str, columns: Sequence[KeyColumn]) -> str:
    return ", ".join(f"{alias}.{ident(column.name)}" for column in columns)


def _as_text(alias: str, columns: Sequence[KeyColumn]) -> str:
    return ", ".join(f"{alias}.{ident(column.name)}::text" for column in columns)


def _order(alias: str, columns: Sequence[KeyColumn], *, descending: bool = False) -> str:
    direction = " DESC" if descending else ""
    return ", ".join(f"{alias}.{ident(column.name)}{direction}" for column in columns)
