"""The statements of a repair of another table.  ``$1`` is a flat list of keys (``statements.key_list``), or of values.

Values travel as text, so that one way serves one database and two.  They are read back as the column's base type, and
the assignment does the rest: a value that does not fit is refused, never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.sql import images
from engine.sql.compare import Compared, ComparedColumn, Rows, at, listing
from engine.sql.identifiers import ident, idents, qualified
from engine.sql.predicates import columns

# Locking takes the right to write, which a worker may well not have on its source; nor can a standby lock.
MAY_LOCK: Final = (
    "SELECT has_any_column_privilege(format('%I.%I', $1::text, $2::text)::regclass, 'UPDATE') "
    "AND current_setting('transaction_read_only') = 'off'"
)


def lock(side: Rows, strength: str) -> str:
    """Lock those of the listed rows that there are, in key order: ``(n)``.  ``strength`` as in ``FOR UPDATE``."""
    where = f" WHERE EXISTS (SELECT FROM {at(side, '1')} AS kept)" if side.where else ""
    return (
        f"SELECT backfill_listed.n FROM {_keys(side)} AS backfill_listed "
        f"JOIN {qualified(side.table)} AS d ON {_same(side)}{where} "
        f"ORDER BY {columns(side.key, 'd')} {strength}"
    )


def values(side: Rows, written: Sequence[ComparedColumn]) -> str:
    """``(n, key, values, mark)`` of the listed keys that the source holds: the texts of what is to be written."""
    texts = ", ".join(images.text(column.type_oid, column.source_value) for column in written)
    selected = f"{side.written_key} AS key, ARRAY[{texts}]::text[] AS values"
    return (
        f"SELECT backfill_listed.n, d.key, d.values, d.mark FROM {listing(len(side.key))} "
        f"CROSS JOIN LATERAL {at(side, selected)} AS d"
    )


def update(side: Rows, written: Sequence[ComparedColumn]) -> str:
    """Write the listed rows: ``$2`` the values, row after row, in the order of ``written``.  Gives ``(n)``."""
    width = len(written)
    sets = ", ".join(f"{ident(c.name)} = {_value(c, 2, width, i)}" for i, c in enumerate(written))
    return (
        f"UPDATE {qualified(side.table)} AS d SET {sets} FROM {_keys(side)} AS backfill_listed "
        f"WHERE {_same(side)} RETURNING backfill_listed.n"
    )


def insert(side: Rows, both: Compared, written: Sequence[ComparedColumn]) -> str:
    """Insert rows unless somebody else has: ``$1`` the values, row after row.  Gives their keys as ``(key)``."""
    width = len(written)
    picked = ", ".join(_value(c, 1, width, i) for i, c in enumerate(written))
    overriding = " OVERRIDING SYSTEM VALUE" if both.target.overriding else ""
    return (
        f"INSERT INTO {qualified(side.table)} ({idents(c.name for c in written)}){overriding} "
        f"SELECT {picked} FROM {listing(width)} ON CONFLICT ({columns(side.key)}) DO NOTHING "
        f"RETURNING {side.written_key} AS key"
    )


def delete(side: Rows) -> str:
    """Delete the listed rows: ``(n)``."""
    return (
        f"DELETE FROM {qualified(side.table)} AS d USING {_keys(side)} AS backfill_listed "
        f"WHERE {_same(side)} RETURNING backfill_listed.n"
    )


def _keys(side: Rows) -> str:
    """The listed keys as rows ``(n, k0, k1 …)``."""
    width = len(side.key)
    picked = ", ".join(
        f"($1::text[])[{width} * backfill_listed.n + {i + 1}]::{kind} AS k{i}" for i, kind in enumerate(side.key_types)
    )
    return f"(SELECT backfill_listed.n, {picked} FROM {listing(width)})"


def _same(side: Rows) -> str:
    return " AND ".join(f"d.{ident(c.name)} = backfill_listed.k{i}" for i, c in enumerate(side.key))


def _value(column: ComparedColumn, number: int, width: int, place: int) -> str:
    text = f"(${number}::text[])[{width} * backfill_listed.n + {place + 1}]"
    return images.from_text(column.type_oid, column.base_type, text)
