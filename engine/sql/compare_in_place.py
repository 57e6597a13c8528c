"""The statements that verify, and mend, a job that fills columns of its own table.

Source and target are one row here, so there is nothing to hash: the server compares each column with what its
expression gives now, and the expression's value is converted as the job's own UPDATE converts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.model import Column
from engine.sql import images
from engine.sql.compare import ADVANCE, MARK, ComparedColumn, compared_column, key_at, listing
from engine.sql.identifiers import ident, qualified
from engine.sql.literals import literal
from engine.sql.predicates import columns, parameter, texts, within
from engine.sql.statements import CURSOR, TO, SourceShape


@dataclass(frozen=True, slots=True)
class InPlace:
    """What a job in place is verified by.

    ``done``: the predicate of a job whose expressions cannot be evaluated a second time; all that can be said of its
    rows is whether they are done.
    """

    source: SourceShape
    columns: tuple[ComparedColumn, ...]
    done: str | None

    @property
    def differs(self) -> str:
        """A condition: the row is not as the job leaves it."""
        if self.done is not None:
            return f"({self.done}) IS NOT TRUE"
        return "(" + " OR ".join(_differs(column) for column in self.columns) + ")"


def in_place(
    source: SourceShape, assignments: Mapping[str, str], table_columns: Mapping[str, Column], *, done: str | None = None
) -> InPlace:
    """``assignments``: column -> expression; ``done``: only where the spec names it because it has to."""
    chosen = tuple(compared_column(table_columns[name], expression) for name, expression in assignments.items())
    return InPlace(source, chosen, done)


def in_place_chunk(shape: InPlace, *, first: bool) -> str:
    """A chunk statement: ``(rows, differing, server_s)``; advances when no row differs, else ``server_s`` is null."""
    return (
        f"WITH counted AS (SELECT count(*) AS n, count(*) FILTER (WHERE {shape.differs}) AS differing "
        f"FROM {qualified(shape.source.table)} WHERE {_within(shape, first=first)}) "
        f"SELECT n AS rows, differing, CASE WHEN differing = 0 THEN {ADVANCE.format(rows='n')} END AS server_s "
        "FROM counted"
    )


def in_place_digest(shape: InPlace, *, first: bool) -> str:
    """``(rows, differing)`` of a range: ``$1`` cursor, ``$2`` to."""
    return (
        f"SELECT count(*) AS rows, count(*) FILTER (WHERE {shape.differs}) AS differing "
        f"FROM {qualified(shape.source.table)} WHERE {_within(shape, first=first, lo=1, hi=2)}{_unused(first)}"
    )


def in_place_count(shape: InPlace, *, first: bool) -> str:
    """``n`` of a range, with no expression evaluated."""
    return (
        f"SELECT count(*) AS n FROM {qualified(shape.source.table)} "
        f"WHERE {_within(shape, first=first, lo=1, hi=2)}{_unused(first)}"
    )


def in_place_suspects(shape: InPlace, *, first: bool) -> str:
    """``(key, mark)`` of the rows of a range that differ: ``$1`` cursor, ``$2`` to."""
    return f"{in_place_keys(shape, first=first)} AND {shape.differs}"


def in_place_keys(shape: InPlace, *, first: bool) -> str:
    """``(key, mark)`` of all rows of a range, with no expression evaluated: ``$1`` cursor, ``$2`` to."""
    return (
        f"SELECT {texts(shape.source.key.columns)} AS key, {MARK} AS mark FROM {qualified(shape.source.table)} "
        f"WHERE {_within(shape, first=first, lo=1, hi=2)}{_unused(first)}"
    )


def in_place_look(shape: InPlace) -> str:
    """``(n, mark, differs, columns)`` of the listed keys that there are: which of the columns differ."""
    if shape.done is not None:
        named = "'{}'::text[]"
    else:
        cases = ", ".join(f"CASE WHEN {_differs(c)} THEN {literal(c.name)} END" for c in shape.columns)
        named = f"array_remove(ARRAY[{cases}]::text[], NULL)"
    return _looked(shape, f"{MARK} AS mark, {shape.differs} AS differs, {named} AS columns")


def in_place_marks(shape: InPlace) -> str:
    """``(n, mark)`` of the listed keys that there are, with no expression evaluated."""
    return _looked(shape, f"{MARK} AS mark")


def _looked(shape: InPlace, selected: str) -> str:
    key = shape.source.key.columns
    where = f" AND ({shape.source.where})" if shape.source.where else ""
    return (
        f"SELECT backfill_listed.n, d.* FROM {listing(len(key))} CROSS JOIN LATERAL (SELECT {selected} "
        f"FROM {qualified(shape.source.table)} WHERE {key_at(_types(shape), key)}{where} OFFSET 0) AS d"
    )


# -- repair ---------------------------------------------------------------------------------------------------------


def in_place_lock(shape: InPlace) -> str:
    """Lock the listed rows, in key order: ``(n)``."""
    key = shape.source.key.columns
    same = " AND ".join(f"d.{ident(c.name)} = backfill_listed.k{i}" for i, c in enumerate(key))
    return (
        f"SELECT backfill_listed.n FROM {_keys(shape)} AS backfill_listed "
        f"JOIN {qualified(shape.source.table)} AS d ON {same} "
        f"ORDER BY {columns(key, 'd')} FOR NO KEY UPDATE OF d"
    )


def in_place_repair(shape: InPlace) -> str:
    """Fill the columns of the listed rows that differ: ``(key)`` of those that were written."""
    table = qualified(shape.source.table)
    key = shape.source.key.columns
    sets = ", ".join(f"{ident(c.name)} = ({c.expression})" for c in shape.columns)
    where = f" AND ({shape.source.where})" if shape.source.where else ""
    # No alias and no join: the user's expressions name the table's columns.
    listed = (
        f"SELECT {', '.join(f'backfill_listed.k{i}' for i in range(len(key)))} FROM {_keys(shape)} AS backfill_listed"
    )
    return (
        f"UPDATE {table} SET {sets} WHERE ({columns(key)}) IN ({listed}) AND {shape.differs}{where} "
        f"RETURNING {texts(key)} AS key"
    )


def _keys(shape: InPlace) -> str:
    """The listed keys as rows ``(n, k0, k1 …)``."""
    width = len(shape.source.key.columns)
    picked = ", ".join(
        f"($1::text[])[{width} * backfill_listed.n + {i + 1}]::{kind} AS k{i}" for i, kind in enumerate(_types(shape))
    )
    return f"(SELECT backfill_listed.n, {picked} FROM {listing(width)})"


def _types(shape: InPlace) -> tuple[str, ...]:
    return tuple(column.type_name for column in shape.source.key.columns)


def _differs(column: ComparedColumn) -> str:
    return images.differ(column.type_oid, column.source_value, column.target_value)


def _within(shape: InPlace, *, first: bool, lo: int = 4, hi: int = 6) -> str:
    cursor, to = (CURSOR, TO) if (lo, hi) == (4, 6) else (parameter(lo), parameter(hi))
    where = f" AND ({shape.source.where})" if shape.source.where else ""
    return f"{within(shape.source.key.columns, None if first else cursor, to)}{where}"


def _unused(first: bool) -> str:
    return " AND ($1::text[] IS NULL OR true)" if first else ""
