"""What must be known of both servers before hashes are compared: do they hash alike, and what do types convert to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from engine.db import Connection, classify
from engine.model import TableName
from engine.sql import images
from engine.sql.compare import FIRST_USER_OID, Compared, ComparedColumn, Form
from engine.sql.literals import literal
from engine.verify.findings import READ_DEADLINE_S

SEED: Final = 4611686018427387905  # both halves count

MOST_FIELDS: Final = 1600
"""A record has at most 1,664 columns."""

# A domain's own modifier, where its base type is rounded on assignment: numeric(10,2) behind a domain.
_DOMAINS: Final = """
WITH RECURSIVE down AS (
  SELECT a.attname AS name, t.typtype, t.typbasetype, t.typtypmod
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
   WHERE a.attrelid = format('%I.%I', $1::text, $2::text)::regclass AND a.attnum > 0 AND NOT a.attisdropped
     AND t.typtype = 'd'
  UNION ALL
  SELECT down.name, t.typtype, t.typbasetype, t.typtypmod
    FROM down JOIN pg_type t ON t.oid = down.typbasetype WHERE t.typtype = 'd'
)
SELECT down.name::text AS name, format_type(down.typbasetype, down.typtypmod) AS declared
  FROM down JOIN pg_type t ON t.oid = down.typbasetype
 WHERE t.typtype <> 'd' AND down.typtypmod >= 0
"""

_USER_TYPES: Final = """
SELECT a.attname::text AS name
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = format('%I.%I', $1::text, $2::text)::regclass AND a.attnum > 0 AND NOT a.attisdropped
   AND t.oid >= $3::int8 AND t.typtype NOT IN ('d', 'e')
"""


async def resolve_casts(
    table: TableName, columns: Sequence[ComparedColumn], connection: Connection, *, one_database: bool
) -> tuple[ComparedColumn, ...]:
    """The columns of the target with conversions that only its catalogue knows.

    A domain rounds as the type that it is made of is declared.  A type of the user's is compared by its text in any
    case; within one database the source's value is first made one of it, since a value may have several spellings.
    """
    found = await connection.fetch(_DOMAINS, table.schema, table.name, timeout_s=READ_DEADLINE_S)
    declared: dict[str, str] = {row["name"]: row["declared"] for row in found}
    theirs: set[str] = set()
    if one_database:
        rows = await connection.fetch(_USER_TYPES, table.schema, table.name, FIRST_USER_OID, timeout_s=READ_DEADLINE_S)
        theirs = {row["name"] for row in rows}

    def resolved(column: ComparedColumn) -> ComparedColumn:
        if column.name in theirs:
            return replace(column, cast=f"{column.base_type}::text")
        if column.name in declared and column.cast == column.base_type:
            cast = images.converts_to(column.type_oid, column.base_type, declared[column.name])
            return replace(column, cast=cast)
        return column

    return tuple(map(resolved, columns))


async def common_form(both: Compared, source: Connection, target: Connection) -> Form:
    """The cheapest form in which both servers are known to say the same of the same rows."""
    types = {column.type_oid for column in both.columns}
    samples = [(oid, sample) for oid in sorted(types | {images.TEXT}) for sample in images.SAMPLES.get(oid, ())]
    fits = len(both.columns) <= MOST_FIELDS
    if source is target:
        return Form.RECORD if fits else Form.TEXT
    ours, theirs = await _hashes(samples, target), await _hashes(samples, source)
    if ours is None or theirs is None or ours[2] != theirs[2]:
        return Form.VALUES
    if fits and ours[0] == theirs[0]:
        return Form.RECORD
    return Form.TEXT if ours[1] == theirs[1] else Form.VALUES


async def _hashes(samples: list[tuple[int, str]], connection: Connection) -> tuple[object, object, object] | None:
    """The server's hashes of the samples, as images and as texts, and its encoding; None when it cannot."""
    by_image = ", ".join(
        f"hash_record_extended(ROW({images.image(oid, _typed(oid, s))}), {SEED})" for oid, s in samples
    )
    by_text = ", ".join(
        f'hashtextextended(({images.text(oid, _typed(oid, s))}) COLLATE "C", {SEED})' for oid, s in samples
    )
    sql = (
        f"SELECT ARRAY[{by_image}] AS by_image, ARRAY[{by_text}] AS by_text, "
        "current_setting('server_encoding') AS encoding"
    )
    try:
        row = await connection.fetchrow(sql, timeout_s=READ_DEADLINE_S)
    except Exception as error:
        if classify(error).lost:
            raise
        return None
    assert row is not None
    return row["by_image"], row["by_text"], row["encoding"]


def _typed(oid: int, sample: str) -> str:
    return images.from_text(oid, images.SAMPLE_TYPES[oid], literal(sample))
