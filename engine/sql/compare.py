"""The statements of a verification, as text: hash both sides of a range, list what differs, look at rows by key.

Each **side** of a comparison is a table, the key it is paged and looked up by, and the compared columns as values of
one common type.  The source's values are converted as an assignment to the target would convert them
(``images.converts_to``).  A user's expression stands in a query whose only table is the source, named as itself, so
that its names mean what they mean in the movers' statements.

A row's hash starts from its key: two rows that swapped values would otherwise cancel each other in the XOR of a range
more often than chance allows.

A **mark** identifies a version of a row: ``xmin`` and ``ctid``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from engine.model import Column, KeyColumn, TableName
from engine.sql import images
from engine.sql.identifiers import ident, qualified
from engine.sql.predicates import Bound, columns, parameter, within
from engine.sql.statements import CURSOR, TO, SourceShape, TargetShape

FIRST_USER_OID: Final = 16384
"""Types below are the same on every server."""

BUCKETS: Final = 64
SEALED_BYTES: Final = 200
"""A longer text is looked at as its SHA-256, so that a list of rows has a size that can be foretold."""

# A key of the other side may be beyond the type of this one, and is then not here: no reason to fail, or to round it
# into a key that is.
_WIDE: Final = {"smallint": "bigint", "integer": "bigint", "real": "double precision"}

MARK: Final = "xmin::text || ' ' || ctid::text"


class Form(Enum):
    """What stands for a row's values."""

    RECORD = "record"  # a hash of the values' images
    TEXT = "text"  # a hash of their texts, for servers that disagree on the other
    VALUES = "values"  # the (sealed) texts themselves, for servers that agree on no hash


@dataclass(frozen=True, slots=True)
class ComparedColumn:
    """A column of the target, and the expression over a source row that it is compared with."""

    name: str
    expression: str
    type_oid: int  # of the type it is compared as: the column's own without domains, or text
    base_type: str  # the column's type without modifiers
    cast: str  # what the expression is converted to
    may_be_set: bool  # false for GENERATED ALWAYS AS IDENTITY: only an INSERT can give it a value

    @property
    def source_value(self) -> str:
        """The source's value, over a row of the source alone."""
        return f"({self.expression})::{self.cast}"

    @property
    def target_value(self) -> str:
        """The target's value, over a row of the target alone."""
        cast = "text" if self.type_oid == images.TEXT else self.base_type
        return f"({ident(self.name)})::{cast}"


@dataclass(frozen=True, slots=True)
class Compared:
    """What two tables are compared by: their shapes, and every compared column, those of the key included."""

    source: SourceShape
    target: TargetShape
    columns: tuple[ComparedColumn, ...]
    unsteady: tuple[ComparedColumn, ...]  # written by the job too, but with another value each time

    @property
    def not_compared(self) -> tuple[str, ...]:
        """The columns that no verification can compare."""
        return tuple(column.name for column in self.unsteady)

    @property
    def key(self) -> tuple[ComparedColumn, ...]:
        """The columns that hold the key, in the source's key order."""
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[place.name] for place in self.target.key)

    @property
    def written(self) -> tuple[ComparedColumn, ...]:
        """Every column that the job writes."""
        return self.columns + self.unsteady


def compared(
    source: SourceShape, target: TargetShape, target_columns: Mapping[str, Column], *, volatile: frozenset[str]
) -> Compared:
    """What the job's rows are compared by.  ``volatile`` names columns whose expression gives another value each time.

    A type of the user's may not exist at the source: such a column is compared by its text, until somebody who can ask
    knows better (``engine.verify``).
    """
    keys = {place.name for place in target.key}
    unsteady = volatile - keys
    every = [compared_column(target_columns[c.name], c.expression) for c in target.columns]
    return Compared(
        source,
        target,
        columns=tuple(c for c in every if c.name not in unsteady),
        unsteady=tuple(c for c in every if c.name in unsteady),
    )


def compared_column(column: Column, expression: str) -> ComparedColumn:
    """One column as it is compared."""
    built_in = column.category_oid < FIRST_USER_OID
    return ComparedColumn(
        name=column.name,
        expression=expression,
        type_oid=column.category_oid if built_in else images.TEXT,
        base_type=column.base_type,
        cast=images.converts_to(
            column.category_oid, column.base_type, column.base_type if column.type_kind == "d" else column.type_name
        )
        if built_in
        else "text",
        may_be_set=column.identity != "always",
    )


# -- one side -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows:
    """One side: what to read, and what stands for it."""

    table: TableName
    key: tuple[KeyColumn, ...]
    where: str | None
    key_types: tuple[str, ...]  # what the text of a key is cast to, to be looked up here
    key_values: tuple[tuple[int, str], ...]  # (type, value) of the key's columns as both sides compare them
    values: tuple[tuple[int, str], ...]  # of all compared columns

    @property
    def written_key(self) -> str:
        """The key as both sides write it."""
        return f"ARRAY[{', '.join(images.text(*value) for value in self.key_values)}]"

    @property
    def seed(self) -> str:
        """A number that depends on the key."""
        return images.as_bigint(*self.key_values[-1])

    def row(self, form: Form) -> str:
        """What stands for the row's values."""
        if form is Form.RECORD:
            fields = ", ".join(images.image(*value) for value in self.values)
            return f"hash_record_extended(ROW({fields}), {self.seed})"
        whole = f"ARRAY[{', '.join(images.text(*value) for value in self.values)}]"
        if form is Form.TEXT:
            return f'hashtextextended({whole}::text COLLATE "C", {self.seed})'
        return (
            "ARRAY(SELECT CASE WHEN octet_length(each.value) > "
            f"{SEALED_BYTES} THEN '#' || encode(sha256(convert_to(each.value, 'UTF8')), 'hex') "
            f"ELSE '=' || each.value END FROM unnest({whole}) WITH ORDINALITY AS each (value, place) "
            "ORDER BY each.place)"
        )

    def range(self, lo: Bound | None, hi: Bound, mentioned: str = "") -> str:
        """``FROM … WHERE …`` for the rows in ``(lo, hi]``."""
        where = f" AND ({self.where})" if self.where else ""
        return f"FROM {qualified(self.table)} WHERE {within(self.key, lo, hi)}{where}{mentioned}"


def source_rows(both: Compared) -> Rows:
    """The source's side."""
    return Rows(
        table=both.source.table,
        key=both.source.key.columns,
        where=both.source.where,
        key_types=tuple(_WIDE.get(column.type_name, column.type_name) for column in both.source.key.columns),
        key_values=tuple((c.type_oid, c.source_value) for c in both.key),
        values=tuple((c.type_oid, c.source_value) for c in both.columns),
    )


def target_rows(both: Compared) -> Rows:
    """The target's side."""
    return Rows(
        table=both.target.table,
        key=both.target.key,
        where=None,
        key_types=tuple(_looked_up_as(c, place) for c, place in zip(both.key, both.target.key, strict=True)),
        key_values=tuple((c.type_oid, c.target_value) for c in both.key),
        values=tuple((c.type_oid, c.target_value) for c in both.columns),
    )


def _looked_up_as(column: ComparedColumn, place: KeyColumn) -> str:
    # As declared, where the key is rounded on its way.
    kind = place.type_name if column.type_oid == images.TEXT else column.cast
    return _WIDE.get(kind, kind)


# -- ranges: $1 cursor, $2 to ---------------------------------------------------------------------------------------


def _range(side: Rows, *, first: bool, where: str = "") -> str:
    unused = " AND ($1::text[] IS NULL OR true)" if first else ""
    return side.range(None if first else parameter(1), parameter(2), where + unused)


def digest(side: Rows, form: Form, *, first: bool) -> str:
    """``(n, digest)`` of a range."""
    return f"SELECT count(*) AS n, bit_xor({side.row(form)}) AS digest {_range(side, first=first)}"


def count(side: Rows, *, first: bool) -> str:
    """``n`` of a range, with no expression evaluated."""
    return f"SELECT count(*) AS n {_range(side, first=first)}"


def digests(both: Compared, form: Form, *, first: bool) -> str:
    """Both sides in one snapshot: ``(rows_source, rows_target, equal)``."""
    return (
        f"SELECT s.n AS rows_source, t.n AS rows_target, s.n = t.n AND s.digest IS NOT DISTINCT FROM t.digest AS equal "
        f"FROM ({digest(source_rows(both), form, first=first)}) AS s, "
        f"({digest(target_rows(both), form, first=first)}) AS t"
    )


def buckets(side: Rows, form: Form, *, first: bool) -> str:
    """``(bucket, n, digest)`` of a range, by a hash of the key."""
    return (
        f"SELECT ({side.seed} & {BUCKETS - 1})::int AS bucket, count(*) AS n, bit_xor({side.row(form)}) AS digest "
        f"{_range(side, first=first)} GROUP BY 1"
    )


def listed_rows(side: Rows, form: Form, *, first: bool, some: bool = False) -> str:
    """``(key, row, mark)`` of a range.  ``some``: of the buckets in ``$3`` (``int[]``) alone."""
    chosen = f" AND ({side.seed} & {BUCKETS - 1})::int = ANY ($3::int[])" if some else ""
    return (
        f"SELECT {side.written_key} AS key, {side.row(form)} AS row, {MARK} AS mark "
        f"{_range(side, first=first, where=chosen)}"
    )


def listed_keys(side: Rows, *, first: bool, order: Sequence[KeyColumn] | None = None) -> str:
    """``(key, mark)`` of a range.  ``order``: the key's columns in the order that the range is meant in."""
    if order is not None:
        unused = " AND ($1::text[] IS NULL OR true)" if first else ""
        bounds = within(order, None if first else parameter(1), parameter(2))
        where = f" AND ({side.where})" if side.where else ""
        return (
            f"SELECT {side.written_key} AS key, {MARK} AS mark FROM {qualified(side.table)} "
            f"WHERE {bounds}{where}{unused}"
        )
    return f"SELECT {side.written_key} AS key, {MARK} AS mark {_range(side, first=first)}"


def suspects(both: Compared, form: Form, *, first: bool) -> str:
    """One database whose tables sort alike: ``(key, kind, source_mark, target_mark)`` of the rows that differ."""
    names = [f"k{n}" for n in range(len(both.source.key.columns))]

    def side(rows: Rows) -> str:
        return f"(SELECT {columns(rows.key)}, {rows.written_key}, {rows.row(form)}, {MARK} {_range(rows, first=first)})"

    fields = ", ".join([*names, "key", "row", "mark"])
    same = " AND ".join(f"s.{name} = t.{name}" for name in names)
    return (
        "SELECT coalesce(s.key, t.key) AS key, s.mark AS source_mark, t.mark AS target_mark, "
        "CASE WHEN t.mark IS NULL THEN 'missing' WHEN s.mark IS NULL THEN 'extra' ELSE 'changed' END AS kind "
        f"FROM {side(source_rows(both))} AS s ({fields}) FULL JOIN {side(target_rows(both))} AS t ({fields}) ON {same} "
        "WHERE s.row IS DISTINCT FROM t.row OR s.mark IS NULL OR t.mark IS NULL"
    )


def verify_chunk(both: Compared, form: Form = Form.RECORD, *, first: bool) -> str:
    """A chunk statement (see ``engine.sql.statements``): advances when both sides are equal in its one snapshot, else
    leaves the cursor alone (``server_s`` null).  ``rows`` are the source's.  ``form`` is what ``Comparer`` settled on.
    """
    lo = None if first else CURSOR

    def side(rows: Rows) -> str:
        return f"SELECT count(*) AS n, bit_xor({rows.row(form)}) AS digest {rows.range(lo, TO)}"

    return (
        f"WITH s AS ({side(source_rows(both))}), t AS ({side(target_rows(both))}) "
        "SELECT s.n AS rows, CASE WHEN s.n = t.n AND s.digest IS NOT DISTINCT FROM t.digest THEN "
        f"{ADVANCE.format(rows='s.n')} END AS server_s FROM s, t"
    )


ADVANCE: Final = (
    "backfill.advance($1::bigint, $2::int, $3::bigint, $4::text[], $5::text[], $6::text[], "
    "{rows}, $7::bigint, ({rows} * $8::double precision)::bigint, false)"
)


# -- rows by key: $1 a flat list of keys (statements.key_list) ------------------------------------------------------


def key_at(types: Sequence[str], key: Sequence[KeyColumn]) -> str:
    """``key = the n-th listed key``, for the table in whose query this stands."""
    width = len(key)
    return " AND ".join(
        f"{ident(c.name)} = ($1::text[])[{width} * backfill_listed.n + {i + 1}]::{kind}"
        for i, (c, kind) in enumerate(zip(key, types, strict=True))
    )


def listing(width: int) -> str:
    """The numbers of the listed keys, from 0, as ``backfill_listed.n``: a table may be called ``listed``, its column
    ``n``.
    """
    return f"generate_series(0, cardinality($1::text[]) / {width} - 1) AS backfill_listed (n)"


def at(side: Rows, selected: str) -> str:
    """One side's row for a listed key.  OFFSET 0 keeps it a lookup per key: a join could be planned as a scan."""
    where = f" AND ({side.where})" if side.where else ""
    return (
        f"(SELECT {selected}, {MARK} AS mark FROM {qualified(side.table)} "
        f"WHERE {key_at(side.key_types, side.key)}{where} OFFSET 0)"
    )


def lookup(side: Rows, form: Form) -> str:
    """``(n, key, row, mark)`` of the listed keys that this side holds."""
    selected = f"{side.written_key} AS key, {side.row(form)} AS row"
    return (
        f"SELECT backfill_listed.n, d.key, d.row, d.mark FROM {listing(len(side.key))} "
        f"CROSS JOIN LATERAL {at(side, selected)} AS d"
    )


def marks(sides: Sequence[Rows]) -> str:
    """``(n, mark0, mark1 …)`` of every listed key, with no expression evaluated; null where a side has no row."""
    return _both([(at(side, "1 AS here"), "mark") for side in sides], sides)


def look(sides: Sequence[Rows]) -> str:
    """``(n, row0, mark0, row1, mark1 …)`` of every listed key: sealed texts of the compared columns."""
    return _both([(at(side, f"{side.row(Form.VALUES)} AS row"), "row mark") for side in sides], sides)


def _both(laterals: Sequence[tuple[str, str]], sides: Sequence[Rows]) -> str:
    width = len(sides[0].key)
    fields = ", ".join(f"d{i}.{name} AS {name}{i}" for i, (_, names) in enumerate(laterals) for name in names.split())
    joins = " ".join(f"LEFT JOIN LATERAL {sql} AS d{i} ON true" for i, (sql, _) in enumerate(laterals))
    return f"SELECT backfill_listed.n, {fields} FROM {listing(width)} {joins}"
