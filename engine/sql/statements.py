"""The statements of the movers and of the sweep, as text.

A **chunk statement** is one statement that changes rows and advances the cursor behind the fence: one round trip, one
transaction.  All of them take the same eight parameters::

    $1 job   $2 span   $3 epoch   $4 cursor   $5 hi   $6 to   $7 rows scanned   $8 bytes per row

(``$4`` to ``$6`` are ``text[]`` keys; rows in ``(cursor, to]`` are the chunk) and return one row ``(rows, server_s)``.
``backfill.advance`` is called with the count of changed rows, so it can only run after the change; when its fence
finds another epoch, cursor or hi than the chunk was cut from, it raises ``BF001`` and the rows go back with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.model import ConflictPolicy, Key, KeyColumn, KeyValue, TableName
from engine.sql.identifiers import ident, idents, qualified
from engine.sql.literals import text_array
from engine.sql.predicates import Bound, columns, equal, parameter, texts, value, within

CURSOR = parameter(4)
TO = parameter(6)


@dataclass(frozen=True, slots=True)
class MappedColumn:
    """One column of the target and the SQL expression over the source that fills it."""

    name: str
    expression: str  # SQL, checked to be exactly one expression; a plain column is its quoted name
    base_type: str  # the target column's type without modifiers: a cast to it never truncates
    needs_cast: bool
    by_transform: bool = False  # computed by a transform: ``expression`` means nothing


@dataclass(frozen=True, slots=True)
class TargetShape:
    """Everything that the statements writing to another table need to know of it."""

    table: TableName
    key: tuple[KeyColumn, ...]  # the target's columns that hold the source's key, in the source's key order
    columns: tuple[MappedColumn, ...]
    overriding: bool  # an identity column GENERATED ALWAYS is among the columns
    policy: ConflictPolicy
    newest: str | None  # the column that decides under ConflictPolicy.NEWEST
    same_order: bool  # the target sorts the key as the source does: key ranges mean the same rows on both
    remember: bool  # note the transaction in backfill.written, for the sweep


@dataclass(frozen=True, slots=True)
class SourceShape:
    """Where rows come from."""

    table: TableName
    key: Key
    where: str | None


def _advance(remember: bool, *, fence: bool = True) -> str:
    if not fence:
        return "SELECT n AS rows FROM counted"
    return (
        "SELECT n AS rows, backfill.advance($1::bigint, $2::int, $3::bigint, $4::text[], $5::text[], $6::text[], "
        f"n, $7::bigint, (n * $8::double precision)::bigint, {str(remember).lower()}) AS server_s FROM counted"
    )


def advance_call(
    job_id: int,
    span_id: int,
    epoch: int,
    cursor: KeyValue | None,
    hi: KeyValue,
    to: KeyValue,
    rows: int,
    scanned: int,
    size_bytes: int,
    remember: bool,
) -> str:
    """The fence as a statement of its own, with literals: it travels with COMMIT in one message."""
    at = "NULL" if cursor is None else text_array(cursor)
    return (
        f"SELECT backfill.advance({job_id}, {span_id}, {epoch}, {at}, {text_array(hi)}, {text_array(to)}, "
        f"{rows}, {scanned}, {size_bytes}, {str(remember).lower()})"
    )


def _place(*, fence: bool) -> tuple[Bound, Bound]:
    """Where the chunk's bounds stand among the parameters: cursor and to."""
    return (CURSOR, TO) if fence else (parameter(1), parameter(2))


def update_chunk(
    source: SourceShape, assignments: Mapping[str, str], done: str, *, first: bool, fence: bool = True
) -> str:
    """In place: fill the columns of every row of the chunk that is not done.

    ``fence=False`` is for a rehearsal, which has no ledger: ``$1`` cursor, ``$2`` to, and only ``rows`` is returned.
    """
    lo, to = _place(fence=fence)
    unused = "" if fence else _unused(1, first)
    sets = ", ".join(f"{ident(name)} = ({expression})" for name, expression in assignments.items())
    where = f" AND ({source.where})" if source.where else ""
    return (
        f"WITH moved AS (UPDATE {qualified(source.table)} SET {sets} "
        f"WHERE {within(source.key.columns, None if first else lo, to)} AND ({done}) IS NOT TRUE{where}{unused} "
        f"RETURNING 1), counted AS (SELECT count(*) AS n FROM moved) {_advance(False, fence=fence)}"
    )


def default_done(assignments: Iterable[str]) -> str:
    """A row is done when every column that the job sets holds a value."""
    return " AND ".join(f"{ident(name)} IS NOT NULL" for name in assignments)


def insert_chunk(
    source: SourceShape,
    target: TargetShape,
    *,
    first: bool,
    occupied: bool = True,
    collided: bool = False,
    fence: bool = True,
) -> str:
    """Into another table of the same database.

    ``occupied``: the target may hold rows of the chunk's range; these are left out by an anti-join that is bounded on
    both sides, because inserting them and being refused costs twice as much.  Without, the join is not paid for.
    ``collided``: this chunk met a unique violation on the arbiter, so a row came in between; the same again with ``ON
    CONFLICT``.  Where the two sides sort differently there is no range to bound the anti-join by, and ``ON CONFLICT``
    does all the work.
    ``fence=False``: as for ``update_chunk``.
    """
    cursor, to = _place(fence=fence)
    lo = None if first else cursor
    unused = "" if fence else _unused(1, first)
    keys = source.key.columns
    selected = (
        f"SELECT {_expressions(target)}, {columns(keys)} FROM {qualified(source.table)} "
        f"WHERE {within(keys, lo, to)}{and_where(source)}{unused}"
    )
    values = [f"v{n}" for n in range(len(target.columns))]
    names = [f"k{n}" for n in range(len(keys))]
    from_source = f"FROM ({selected}) AS s ({', '.join([*values, *names])})"
    if occupied and target.policy is ConflictPolicy.KEEP and target.same_order:
        same = " AND ".join(f"d.{ident(c.name)} = s.{k}" for c, k in zip(target.key, names, strict=True))
        from_source += (
            f" LEFT JOIN {qualified(target.table)} AS d ON {same} AND {within(target.key, lo, to, 'd')}"
            f" WHERE d.{ident(target.key[0].name)} IS NULL"
        )
    # In key order, whatever the join: rows and index entries of neighbours stay neighbours, and locks are taken in an
    # order that all agree on.
    order = ", ".join(f"s.{name}" for name in names)
    return (
        f"WITH moved AS ({_insert_into(target)} SELECT {', '.join(f's.{v}' for v in values)} {from_source} "
        f"ORDER BY {order}{_on_conflict(target, collided)} RETURNING 1), "
        f"counted AS (SELECT count(*) AS n FROM moved) {_advance(target.remember, fence=fence)}"
    )


def _insert_into(target: TargetShape) -> str:
    overriding = " OVERRIDING SYSTEM VALUE" if target.overriding else ""
    return f"INSERT INTO {qualified(target.table)} AS t ({idents(c.name for c in target.columns)}){overriding}"


def _on_conflict(target: TargetShape, collided: bool) -> str:
    arbiter = f" ON CONFLICT ({columns(target.key)}) "
    if target.policy is ConflictPolicy.FAIL:
        return ""
    if target.policy is ConflictPolicy.KEEP:
        return f"{arbiter}DO NOTHING" if collided or not target.same_order else ""
    keys = {column.name for column in target.key}
    others = [c.name for c in target.columns if c.name not in keys]
    if not others:
        return f"{arbiter}DO NOTHING"
    sets = ", ".join(f"{ident(name)} = excluded.{ident(name)}" for name in others)
    newer = ""
    if target.policy is ConflictPolicy.NEWEST:
        column = ident(target.newest or "")
        newer = f" WHERE t.{column} IS NULL OR t.{column} < excluded.{column}"
    return f"{arbiter}DO UPDATE SET {sets}{newer}"


def field_expression(column: MappedColumn) -> str:
    """What fills the column, as a field of a query over the source."""
    return f"({column.expression})::{column.base_type}" if column.needs_cast else column.expression


def _expressions(target: TargetShape) -> str:
    return ", ".join(field_expression(column) for column in target.columns)


def and_where(source: SourceShape) -> str:
    """The job's own condition, behind others; empty without one."""
    return f" AND ({source.where})" if source.where else ""


# -- to another database --------------------------------------------------------------------------------------------


def copy_query(source: SourceShape, target: TargetShape, cursor: KeyValue | None, to: KeyValue) -> str:
    """The query inside ``COPY (…) TO STDOUT``: the chunk's rows as the target's columns, in key order.

    Binary COPY is exact about types, hence the casts.
    """
    lo = None if cursor is None else value(cursor)
    return (
        f"SELECT {_expressions(target)} FROM {qualified(source.table)} "
        f"WHERE {within(source.key.columns, lo, value(to))}{and_where(source)} "
        f"ORDER BY {columns(source.key.columns)}"
    )


def range_is_empty(target: TargetShape, *, first: bool) -> str:
    """True when the target holds no row of ``(cursor, to]``: ``$1`` cursor, ``$2`` to."""
    bounds = within(target.key, None if first else parameter(1), parameter(2))
    return f"SELECT NOT EXISTS (SELECT FROM {qualified(target.table)} WHERE {bounds}{_unused(1, first)})"


STAGING = "backfill_staging"
"""The temporary table that a chunk passes through when it cannot be written directly."""


def create_staging(target: TargetShape) -> str:
    """The staging table: the target's columns without its constraints, emptied at every commit."""
    return (
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {STAGING} ON COMMIT DELETE ROWS AS "
        f"SELECT {idents(c.name for c in target.columns)} FROM {qualified(target.table)} WITH NO DATA"
    )


def insert_staged(target: TargetShape, cursor: KeyValue | None, to: KeyValue) -> str:
    """From the staging table into the target, by the job's conflict policy."""
    picked = ", ".join(f"s.{ident(c.name)}" for c in target.columns)
    source = f"FROM pg_temp.{STAGING} AS s"
    if target.policy is ConflictPolicy.KEEP and target.same_order:
        lo = None if cursor is None else value(cursor)
        source += (
            f" LEFT JOIN {qualified(target.table)} AS d ON {equal(target.key, 'd', target.key, 's')} "
            f"AND {within(target.key, lo, value(to), 'd')} WHERE d.{ident(target.key[0].name)} IS NULL"
        )
    return f"{_insert_into(target)} SELECT {picked} {source}{_on_conflict(target, collided=True)}"


# -- the sweep ------------------------------------------------------------------------------------------------------

# A row's xmin shows 32 bits of the transaction that wrote it.
_OURS = "EXISTS (SELECT FROM backfill.written AS w WHERE w.job_id = $1 AND w.xid = {row}.xmin::text::bigint)"


def sweep_chunk(source: SourceShape, target: TargetShape, *, first: bool) -> str:
    """Same database, same order: rows of ours in the chunk that have no source row (any more).  Advances when there are
    none, which is the usual case; else returns how many and leaves the cursor alone (``server_s`` null).
    """
    return (
        f"{_missing(source, target, None if first else CURSOR, TO)}, "
        f"suspect AS (SELECT count(*) AS n FROM missing WHERE {_OURS.format(row='missing')}) "
        "SELECT n AS rows, CASE WHEN n = 0 THEN backfill.advance($1::bigint, $2::int, $3::bigint, $4::text[], "
        "$5::text[], $6::text[], 0, $7::bigint, (0 * $8::double precision)::bigint, false) END AS server_s FROM suspect"
    )


def suspects(source: SourceShape, target: TargetShape, *, first: bool) -> str:
    """The keys that ``sweep_chunk`` counted.  ``$1`` job, ``$2`` cursor, ``$3`` to."""
    lo = None if first else parameter(2)
    return (
        f"{_missing(source, target, lo, parameter(3))} SELECT key FROM missing "
        f"WHERE {_OURS.format(row='missing')}{_unused(2, first)}"
    )


def _missing(source: SourceShape, target: TargetShape, lo: Bound | None, hi: Bound) -> str:
    """Rows of the target whose key the source does not hold.  Materialized, so that whose they are is asked of these
    few and not of every row that is looked at.
    """
    keys = source.key.columns
    held = f"SELECT {columns(keys)} FROM {qualified(source.table)} WHERE {within(keys, lo, hi)}{and_where(source)}"
    return (
        f"WITH missing AS MATERIALIZED (SELECT d.xmin, {texts(target.key, 'd')} AS key "
        f"FROM {qualified(target.table)} AS d LEFT JOIN ({held}) AS s "
        f"ON {equal(keys, 's', target.key, 'd')} "
        f"WHERE {within(target.key, lo, hi, 'd')} AND s.{ident(keys[0].name)} IS NULL)"
    )


def _unused(number: int, first: bool) -> str:
    """Mentions a key parameter that the first chunk has no use for: every parameter needs a type."""
    return f" AND (${number}::text[] IS NULL OR true)" if first else ""


def our_keys(target: TargetShape, *, first: bool) -> str:
    """The target's keys in the chunk that our transactions wrote.  ``$1`` job, ``$2`` cursor, ``$3`` to."""
    lo = None if first else parameter(2)
    return (
        f"SELECT {texts(target.key, 'd')} AS key FROM {qualified(target.table)} AS d "
        f"WHERE {within(target.key, lo, parameter(3), 'd')} AND {_OURS.format(row='d')}{_unused(2, first)}"
    )


def lock_ours(target: TargetShape) -> str:
    """Lock those of the given keys that are still as we wrote them.  ``$1`` job, ``$2`` keys (see ``key_list``)."""
    return (
        f"SELECT {texts(target.key, 'd')} AS key FROM {qualified(target.table)} AS d "
        f"WHERE ({columns(target.key, 'd')}) IN ({_listed(target.key, 2)}) AND {_OURS.format(row='d')} "
        f"ORDER BY {columns(target.key, 'd')} FOR UPDATE OF d"
    )


def present(source: SourceShape) -> str:
    """Which of the keys in ``$1`` (see ``key_list``) the source holds, as numbers from 0.  A statement of its own,
    hence a later snapshot than the one that found them.
    """
    key = source.key.columns
    width = len(key)
    same = " AND ".join(
        f"{ident(c.name)} = ($1::text[])[{width} * backfill_listed.n + {i + 1}]::{c.type_name}"
        for i, c in enumerate(key)
    )
    # "backfill_listed.n", never a bare name: inside EXISTS a column of the table called "n" would be meant instead.
    return (
        "SELECT backfill_listed.n "
        f"FROM generate_series(0, cardinality($1::text[]) / {width} - 1) AS backfill_listed (n) "
        f"WHERE EXISTS (SELECT FROM {qualified(source.table)} WHERE {same}{and_where(source)})"
    )


def buried(permutation: Sequence[int], *, first: bool) -> str:
    """Keys of the tombstones numbered ``($2, $3]`` of job ``$1`` (its name), in the sweep's order of columns."""
    picked = ", ".join(f"key[{place + 1}]" for place in permutation)
    above = "true OR $2::text[] IS NULL" if first else "id > ($2::text[])[1]::bigint"
    return (
        f"SELECT DISTINCT ARRAY[{picked}] AS key FROM backfill.tombstone "
        f"WHERE job = $1 AND ({above}) AND id <= ($3::text[])[1]::bigint AND cardinality(key) = {len(permutation)}"
    )


def delete_keys(target: TargetShape) -> str:
    """Delete rows by key, only as we wrote them.  ``$1`` job, ``$2`` keys (see ``key_list``)."""
    return (
        f"DELETE FROM {qualified(target.table)} AS d "
        f"WHERE ({columns(target.key, 'd')}) IN ({_listed(target.key, 2)}) AND {_OURS.format(row='d')} RETURNING 1"
    )


def key_digest(table: TableName, key: Sequence[KeyColumn], where: str | None, *, first: bool) -> str:
    """Count and combined hash of the keys in ``($1, $2]``: equal on both sides unless the keys differ."""
    lo = None if first else parameter(1)
    condition = f" AND ({where})" if where else ""
    integers = {"smallint", "integer", "bigint"}
    if len(key) == 1 and key[0].type_name in integers:
        hashed = f"hashint8extended({ident(key[0].name)}::bigint, 0)"
    else:
        # Columns of different collations have none in common; the bytes are what is compared.
        hashed = f'hashtextextended(({texts(key)}::text) COLLATE "C", 0)'
    return (
        f"SELECT count(*) AS n, bit_xor({hashed}) AS digest FROM {qualified(table)} "
        f"WHERE {within(key, lo, parameter(2))}{condition}{_unused(1, first)}"
    )


def _listed(key: Sequence[KeyColumn], number: int) -> str:
    """Keys from a parameter as rows of the key's types.  They travel as one flat ``text[]``, key after key."""
    width = len(key)
    picked = ", ".join(f"(${number}::text[])[{width} * n + {i + 1}]::{c.type_name}" for i, c in enumerate(key))
    return f"SELECT {picked} FROM generate_series(0, cardinality(${number}::text[]) / {width} - 1) AS n"


def key_list(keys: Sequence[KeyValue]) -> list[str]:
    """Keys as the flat list that the statements above take."""
    return [text for key in keys for text in key]


# -- the order of keys, decided by the server that owns it ------------------------------------------------------------


def disordered(key: Sequence[KeyColumn]) -> str:
    """Which pairs of keys are not ``left <= right``: ``$1`` and ``$2`` are flat lists of equal length (``key_list``);
    ``$3`` says for each pair whether equal is allowed.  Returns the pair's number, from 1.
    """
    width = len(key)

    def side(number: int) -> str:
        items = [
            f"(${number}::text[])[{width} * (n - 1) + {i + 1}]::{c.type_name}{_collate(c)}" for i, c in enumerate(key)
        ]
        return ", ".join(items) if width == 1 else f"({', '.join(items)})"

    return (
        "SELECT n FROM generate_series(1, cardinality($3::boolean[])) AS n "
        f"WHERE NOT CASE WHEN ($3::boolean[])[n] THEN {side(1)} <= {side(2)} ELSE {side(1)} < {side(2)} END"
    )


def _collate(column: KeyColumn) -> str:
    return f" COLLATE {column.collation}" if column.collation else ""


def chunk_bound(table: TableName, key: Sequence[KeyColumn], *, first: bool) -> str:
    """The key ``$3`` rows after the first one past ``$1`` and not past ``$2``: where a chunk of ``$3 + 1`` rows ends.
    No row: fewer are left.  An index walk over raw keys, without the job's ``where``, so that a rare predicate cannot
    make it read on for ever.
    """
    lo = None if first else parameter(1)
    return (
        f"SELECT {texts(key)} AS key FROM {qualified(table)} "
        f"WHERE {within(key, lo, parameter(2))}{_unused(1, first)} ORDER BY {columns(key)} OFFSET $3::bigint LIMIT 1"
    )
