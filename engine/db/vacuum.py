"""VACUUM beside a job: what it would find, what holds it back, and the statement itself.

A dead row version can be removed once no snapshot can see it any more: once the oldest transaction that anybody still
looks from (the *horizon*) is younger than the transaction that made it dead.  ``look`` tells both the horizon and
whose it is, so that nobody starts a VACUUM that can remove nothing.  Who counts is taken from
``ComputeXidHorizons`` in PostgreSQL's ``procarray.c``.

Application names, slot names and prepared transactions' ids are shown; no query texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from engine.db.connection import Connection
from engine.model import TableName
from engine.sql import literal, qualified

LOCK_TIMEOUT_S: Final = 5.0
"""How long VACUUM waits for its lock: longer than ``deadlock_timeout``, after which an autovacuum gives way."""

_HEAPS: Final = """
WITH leaves AS (
  SELECT to_regclass($1)::oid AS oid
  UNION
  SELECT relid::oid FROM pg_partition_tree(to_regclass($1)) WHERE isleaf
)
SELECT c.oid::int8 AS oid, n.nspname::text AS schema, c.relname::text AS name,
       pg_relation_size(c.oid) AS bytes, pg_indexes_size(c.oid) AS index_bytes,
       CASE WHEN c.reltuples > 0 THEN c.reltuples ELSE coalesce(s.n_live_tup, -1) END::float8 AS rows,
       coalesce(s.n_tup_upd, 0) AS updates, coalesce(s.n_tup_hot_upd, 0) AS hot_updates,
       coalesce(s.n_tup_del, 0) AS deletes, coalesce(s.n_dead_tup, 0) AS dead_rows,
       coalesce(s.vacuum_count + s.autovacuum_count, 0) AS vacuums,
       p.pid AS vacuum_pid, {may_vacuum} AS may_vacuum
  FROM leaves
  JOIN pg_class c USING (oid)
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
  LEFT JOIN pg_stat_progress_vacuum p ON p.relid = c.oid AND p.datname = current_database()
 WHERE c.relkind = 'r'
 ORDER BY c.oid
"""

_MAY_VACUUM: Final = """pg_has_role(c.relowner, 'USAGE')
       OR (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database())"""

# Of other databases only walsenders matter (a standby's feedback); a VACUUM holds nobody back.
_HORIZON: Final = """
WITH holders AS (
  SELECT greatest(age(a.backend_xmin), age(a.backend_xid)) AS age,
         CASE WHEN a.backend_type = 'walsender' THEN 'standby ' ELSE '' END || 'pid ' || a.pid
             || ' ' || coalesce(nullif(a.application_name, ''), a.usename::text, a.backend_type, '?')
             || coalesce(' since ' || to_char(a.xact_start, 'HH24:MI:SS'), '') AS who
    FROM pg_stat_activity a
   WHERE a.pid <> pg_backend_pid()
     AND (a.datname = current_database() OR a.backend_type = 'walsender')
     AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum p WHERE p.pid = a.pid)
  UNION ALL
  SELECT age(transaction), 'prepared transaction ' || gid || ' since ' || to_char(prepared, 'HH24:MI:SS')
    FROM pg_prepared_xacts WHERE database = current_database()
  UNION ALL
  SELECT age(xmin), 'replication slot ' || slot_name FROM pg_replication_slots WHERE xmin IS NOT NULL
)
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8 AS next_xid, h.age::int8 AS age, h.who
  FROM (SELECT) AS always
  LEFT JOIN (SELECT age, who FROM holders WHERE age IS NOT NULL ORDER BY age DESC LIMIT 1) AS h ON true
"""

_IS_ALIVE: Final = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2)"


@dataclass(frozen=True, slots=True)
class Heap:
    """One table, or one leaf partition, as the server sees it now.

    Counters run since somebody last reset the statistics, and may be a second old: sessions report that often.
    """

    oid: int
    name: TableName
    bytes: int  # the main fork
    index_bytes: int  # all indexes
    rows: float  # estimate; -1 when nobody knows
    updates: int
    hot_updates: int  # those of the updates whose old version needs no vacuum
    deletes: int
    dead_rows: int  # as the statistics estimate them
    vacuums: int  # that finished, by whomever
    vacuum_pid: int | None  # of the VACUUM that is at work on it, ours or not
    may_vacuum: bool  # our role has the right


@dataclass(frozen=True, slots=True)
class Look:
    """All heaps of a table, and the horizon: versions that died before ``horizon_xid`` can be removed."""

    heaps: tuple[Heap, ...]
    next_xid: int  # everything that has ended is older than this
    horizon_xid: int
    holder: str  # whose horizon it is, for people; empty when nobody is in a transaction


async def look(connection: Connection, table: TableName, *, timeout_s: float) -> Look:
    """Measure ``table``; no heaps when it does not exist.  Takes no lock that an ordinary query would not."""
    may_vacuum = _MAY_VACUUM
    if connection.server.capabilities.maintain_privilege:
        may_vacuum += "\n       OR has_table_privilege(c.oid, 'MAINTAIN')"
    # Counters first: whatever they count has then ended before next_xid.
    rows = await connection.fetch(_HEAPS.format(may_vacuum=may_vacuum), qualified(table), timeout_s=timeout_s)
    seen = await connection.fetchrow(_HORIZON, timeout_s=timeout_s)
    assert seen is not None
    next_xid = int(seen["next_xid"])
    return Look(
        tuple(_heap(row) for row in rows),
        next_xid=next_xid,
        horizon_xid=next_xid - max(0, int(seen["age"] or 0)),
        holder=str(seen["who"] or ""),
    )


def _heap(row: Any) -> Heap:
    values = dict(row)
    return Heap(name=TableName(values.pop("schema"), values.pop("name")), **values)


async def is_alive(asking: Connection, other: Connection, *, timeout_s: float) -> bool:
    """True while the server process behind ``other`` is there; ``asking`` leads to the same server."""
    backend = other.backend
    return bool(await asking.fetchval(_IS_ALIVE, backend.pid, backend.started, timeout_s=timeout_s))


async def vacuum(
    connection: Connection, table: TableName, *, clean_indexes: bool, cost_delay_ms: float, cost_limit: int
) -> None:
    """``VACUUM table``: never truncates (that would lock readers out), and works in one process.

    ``clean_indexes`` False leaves the dead entries in the indexes, and with them a stub of four bytes per dead row in
    the heap; the room is free all the same.  ``cost_delay_ms`` and ``cost_limit`` are the server's settings of these
    names.  Raises what the server says; when its role lacks the right the server only warns, and does nothing.
    """
    await connection.execute(
        f"SET lock_timeout = {round(LOCK_TIMEOUT_S * 1000)}; SET vacuum_cost_delay = {literal(f'{cost_delay_ms:g}ms')};"
        f" SET vacuum_cost_limit = {cost_limit}"
    )
    indexes = "AUTO" if clean_indexes else "OFF"
    await connection.execute(
        f"VACUUM (TRUNCATE false, PARALLEL 0, PROCESS_TOAST false, INDEX_CLEANUP {indexes}) {qualified(table)}"
    )
