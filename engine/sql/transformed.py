"""The statements of jobs whose rows pass through a Python transform on their way.

Two shapes.  *To another table*: the chunk's query gives the columns that pass as they are, and behind them what the
transform reads beside; COPY IN takes the passed and the written columns.  *In place*: the query gives key and what is
read; a staging table takes the keys, the **wire bytes of what was read**, and what is to be written; one UPDATE brings
it home where the row's bytes are still those.  The same bytes mean the same input, so nothing stale is ever written,
and no column of a version is needed for it.

Either query may end with the key as text, for rows that have to be named (quarantine).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engine.model import KeyValue
from engine.sql.identifiers import ident, qualified
from engine.sql.literals import literal, text_array
from engine.sql.predicates import columns, parameter, value, within
from engine.sql.statements import STAGING, SourceShape, TargetShape, and_where, field_expression

_SEND: Final = {
    16: "boolsend",
    17: "byteasend",
    19: "namesend",
    20: "int8send",
    21: "int2send",
    23: "int4send",
    25: "textsend",
    114: "json_send",
    700: "float4send",
    701: "float8send",
    1042: "bpcharsend",
    1043: "varcharsend",
    1082: "date_send",
    1114: "timestamp_send",
    1184: "timestamptz_send",
    1700: "numeric_send",
    2950: "uuid_send",
    3802: "jsonb_send",
}
"""What makes a value's bytes for the wire, by pg_type.oid; for every other type that a transform reads: an array's."""


@dataclass(frozen=True, slots=True)
class Passage:
    """How the rows of a chunk pass: what the query selects, and what becomes of it."""

    fields: tuple[str, ...]  # the query's, as SQL
    key_texts: tuple[str, ...]  # the key as text, which stands behind them where rows have to be named
    reads: tuple[int, ...]  # the fields that the transform reads, in its order
    layout: tuple[int, ...]  # of each column of the output: a field's number as it is, or -1-k: the k-th written column
    columns: tuple[str, ...]  # of the output

    def selected(self, *, keys: bool) -> str:
        """The query's list; with ``keys`` the key as text behind the rest."""
        return ", ".join((*self.fields, *self.key_texts) if keys else self.fields)

    def count(self, *, keys: bool) -> int:
        """How many fields the query has."""
        return len(self.fields) + (len(self.key_texts) if keys else 0)


def _key_texts(source: SourceShape) -> tuple[str, ...]:
    return tuple(f"{ident(column.name)}::text" for column in source.key.columns)


def _in_order(source: SourceShape) -> str:
    """The key with its table's name: a bare name would mean a field of the query that is called the same."""
    return columns(source.key.columns, qualified(source.table))


def set_aside_call(
    job_id: int, keys: Sequence[KeyValue], classes: Sequence[str], sqlstates: Sequence[str], allowed: int
) -> str:
    """Rows of a chunk set aside, with literals: it travels with the fence and COMMIT in one message, so that the lock
    on the job, which it takes, is never held across a round trip.
    """
    flat = text_array([text for key in keys for text in key])
    return (
        f"SELECT backfill.set_aside_all({job_id:d}, {flat}, {len(keys[0]):d}, {text_array(classes)}, "
        f"{text_array(sqlstates)}, {allowed:d})"
    )


# -- to another table -------------------------------------------------------------------------------------------------


def passage(source: SourceShape, target: TargetShape, reads: Sequence[str], writes: Sequence[str]) -> Passage:
    """How a chunk passes to another table: ``reads`` are columns of the source, ``writes`` of the target."""
    passed = [column for column in target.columns if not column.by_transform]
    fields = [field_expression(column) for column in passed]
    places = []
    for name in reads:
        if ident(name) not in fields:  # a plain column, uncast, that passes anyway is read where it stands
            fields.append(ident(name))
        places.append(fields.index(ident(name)))
    return Passage(
        fields=tuple(fields),
        key_texts=_key_texts(source),
        reads=tuple(places),
        layout=(*range(len(passed)), *(-1 - k for k in range(len(writes)))),
        columns=(*(column.name for column in passed), *writes),
    )


def passing_query(source: SourceShape, through: Passage, cursor: KeyValue | None, to: KeyValue, *, keys: bool) -> str:
    """The query inside ``COPY (…) TO STDOUT``: the chunk's rows in key order."""
    lo = None if cursor is None else value(cursor)
    return (
        f"SELECT {through.selected(keys=keys)} FROM {qualified(source.table)} "
        f"WHERE {within(source.key.columns, lo, value(to))}{and_where(source)} "
        f"ORDER BY {_in_order(source)}"
    )


# -- in place ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filling:
    """Everything that the statements in place need to know.  ``reads``: columns and the OIDs of their types below any
    domain; ``assignments``: columns that SQL expressions fill beside; ``prefix`` begins neither the table's name nor
    one of its columns', so that an expression never means the staging table or something of it.
    """

    source: SourceShape
    reads: tuple[tuple[str, int], ...]
    writes: tuple[str, ...]
    assignments: Mapping[str, str]
    done: str
    prefix: str

    @property
    def key_names(self) -> tuple[str, ...]:
        """Of the staging table: the key."""
        return tuple(f"{self.prefix}k{n}" for n in range(len(self.source.key.columns)))

    @property
    def read_names(self) -> tuple[str, ...]:
        """Of the staging table: the bytes of what was read."""
        return tuple(f"{self.prefix}r{n}" for n in range(len(self.reads)))

    @property
    def write_names(self) -> tuple[str, ...]:
        """Of the staging table: what is to be written."""
        return tuple(f"{self.prefix}w{n}" for n in range(len(self.writes)))

    @property
    def place_name(self) -> str:
        """Of the staging table: where a row of it lies.  Beside the table's own ``ctid`` that needs a name."""
        return f"{self.prefix}place"

    @property
    def staged(self) -> str:
        """The staging table as a FROM item, called ``prefix`` + ``new``.  By its columns only: system columns of its
        own would make those of the table ambiguous in the user's expressions.
        """
        names = ", ".join(ident(name) for name in (*self.key_names, *self.read_names, *self.write_names))
        return f"(SELECT {names}, ctid AS {ident(self.place_name)} FROM pg_temp.{STAGING}) AS {ident(self.alias)}"

    @property
    def alias(self) -> str:
        """What the staging table is called beside the table that it is for."""
        return f"{self.prefix}new"

    @property
    def open_rows(self) -> str:
        """The rows that are still to be filled."""
        return f"({self.done}) IS NOT TRUE{and_where(self.source)}"


def free_prefix(taken: Iterable[str]) -> str:
    """A beginning for names that none of ``taken`` has."""
    prefix = "backfill_"
    names = list(taken)
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return prefix


def passage_in_place(filling: Filling) -> Passage:
    """How a chunk passes the transform and comes back to its own table."""
    keys = filling.source.key.columns
    fields = (*(ident(column.name) for column in keys), *(ident(name) for name, _ in filling.reads))
    return Passage(
        fields=fields,
        key_texts=_key_texts(filling.source),
        reads=tuple(range(len(keys), len(fields))),
        layout=(*range(len(fields)), *(-1 - k for k in range(len(filling.writes)))),
        columns=(*filling.key_names, *filling.read_names, *filling.write_names),
    )


def open_query(filling: Filling, through: Passage, cursor: KeyValue | None, to: KeyValue, *, keys: bool) -> str:
    """The query inside ``COPY (…) TO STDOUT``: the chunk's rows that are not done, in key order."""
    key = filling.source.key.columns
    lo = None if cursor is None else value(cursor)
    return (
        f"SELECT {through.selected(keys=keys)} FROM {qualified(filling.source.table)} "
        f"WHERE {within(key, lo, value(to))} AND {filling.open_rows} ORDER BY {_in_order(filling.source)}"
    )


def create_staging_in_place(filling: Filling) -> str:
    """The staging table, emptied at every commit: written columns have the types of those they are for, so that what
    does not fit is refused where it would be.
    """
    columns_of = [
        *(
            f"{ident(column.name)} AS {ident(name)}"
            for column, name in zip(filling.source.key.columns, filling.key_names, strict=True)
        ),
        *(f"NULL::bytea AS {ident(name)}" for name in filling.read_names),
        *(f"{ident(w)} AS {ident(name)}" for w, name in zip(filling.writes, filling.write_names, strict=True)),
    ]
    return (
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {STAGING} ON COMMIT DELETE ROWS AS "
        f"SELECT {', '.join(columns_of)} FROM {qualified(filling.source.table)} WITH NO DATA"
    )


EMPTY_STAGING: Final = f"TRUNCATE pg_temp.{STAGING}"


def update_staged(filling: Filling, *, first: bool) -> str:
    """Write the staged rows that are still as they were read.  ``$1`` cursor, ``$2`` to, ``$3`` how many are staged.

    Gives ``rows``, and ``unwritten``: the places of the staged rows that were not written, null where all were.  The
    conditions are tested again on a row that somebody changes while we wait for it: that is what READ COMMITTED does.
    """
    key = filling.source.key.columns
    table = qualified(filling.source.table)
    new = ident(filling.alias)
    place = ident(filling.place_name)
    sets = [
        *(
            f"{ident(column)} = {new}.{ident(name)}"
            for column, name in zip(filling.writes, filling.write_names, strict=True)
        ),
        *(f"{ident(column)} = ({expression})" for column, expression in filling.assignments.items()),
    ]
    same_key = " AND ".join(
        f"{ident(column.name)} = {new}.{ident(name)}" for column, name in zip(key, filling.key_names, strict=True)
    )
    same_reads = "".join(
        f" AND {_sent(column, oid)} IS NOT DISTINCT FROM {new}.{ident(name)}"
        for (column, oid), name in zip(filling.reads, filling.read_names, strict=True)
    )
    unused = " AND ($1::text[] IS NULL OR true)" if first else ""
    return (
        f"WITH moved AS (UPDATE {table} SET {', '.join(sets)} FROM {filling.staged} "
        f"WHERE {same_key} AND {within(key, None if first else parameter(1), parameter(2))}{same_reads} "
        f"AND {filling.open_rows}{unused} RETURNING {new}.{place} AS place) "
        "SELECT n AS rows, CASE WHEN n < $3::bigint THEN ARRAY(SELECT place::text FROM "
        f"(SELECT ctid AS place FROM pg_temp.{STAGING} EXCEPT SELECT place FROM moved) AS missed) END AS unwritten "
        "FROM (SELECT count(*) AS n FROM moved) AS counted"
    )


def _sent(column: str, oid: int) -> str:
    return f"pg_catalog.{_SEND.get(oid, 'array_send')}({ident(column)})"


def changed_query(
    filling: Filling,
    through: Passage,
    cursor: KeyValue | None,
    to: KeyValue,
    places: Sequence[str],
    *,
    keys: bool,
    lock: bool,
) -> str:
    """The query inside ``COPY (…) TO STDOUT``: of the staged rows at ``places``, those that are there and not done, as
    they are now.  ``lock`` keeps others from changing them until we have written them.
    """
    key = filling.source.key.columns
    lo = None if cursor is None else value(cursor)
    staged = ", ".join(ident(name) for name in filling.key_names)
    listed = literal("{" + ",".join(f'"{place}"' for place in places) + "}")
    return (
        f"SELECT {through.selected(keys=keys)} FROM {qualified(filling.source.table)} "
        f"WHERE ({columns(key)}) IN (SELECT {staged} FROM pg_temp.{STAGING} WHERE ctid = ANY ({listed}::tid[])) "
        f"AND {within(key, lo, value(to))} AND {filling.open_rows} "
        f"ORDER BY {_in_order(filling.source)}{' FOR NO KEY UPDATE' if lock else ''}"
    )
