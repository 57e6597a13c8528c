"""How a server beside a job is doing, for people: numbers that steer nothing and hold nothing back.

Two statements.  The first one takes no lock that anybody's DDL could be in the way of, so that a queue of locks is seen
while it lasts.  The second one asks for sizes of files, which takes the weakest lock on the table; where somebody keeps
the table to himself it gives up at once, and the sizes are missing that time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from engine.db import Action, Connection, classify
from engine.db.server import Capabilities
from engine.model import TableName

LOCK_PATIENCE_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One look at one server, and at the job's table there.  None: that server, or our role, does not tell.

    Counts only grow, unless somebody resets the statistics.  WAL, reads, writes, checkpoints, standbys and sessions are
    those of the whole server; transactions and lock waiters those of the database.  Ours are not among the sessions,
    transactions' ages and waiters.
    """

    wal_bytes: float | None = None  # the position in the WAL: bytes written since the server was made
    read_bytes: float | None = None  # of tables and indexes, not of WAL
    written_bytes: float | None = None
    checkpoints: dict[str, float] = field(default_factory=dict)  # timed, requested
    transactions: dict[str, float] = field(default_factory=dict)  # committed, rolled_back
    sessions: dict[str, float] = field(default_factory=dict)  # others': active, idle, idle_in_transaction
    oldest_transaction_s: float | None = None  # 0: there is none
    lock_waiters: float | None = None
    longest_lock_wait_s: float | None = None  # 0: nobody waits
    standbys: float | None = None
    replication_lag_s: float | None = None  # None: there is no standby either
    replication_lag_bytes: float | None = None
    table_bytes: float | None = None  # of the heap, over all partitions
    index_bytes: float | None = None
    dead_rows: float | None = None
    live_rows: float | None = None
    vacuums_running: float | None = None


# Partitions by the catalogue: pg_partition_tree() would take a lock on each of them.
_LEAVES: Final = """\
WITH RECURSIVE tree AS (
  SELECT c.oid, c.relkind, c.reltoastrelid
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname = $1 AND c.relname = $2
  UNION ALL
  SELECT c.oid, c.relkind, c.reltoastrelid
    FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid
   WHERE t.relkind = 'p'
), leaves AS (
  SELECT oid, reltoastrelid FROM tree WHERE relkind <> 'p'
)"""

# Whoever may not see the state of a session sees NULL there (pg_read_all_stats lifts that); its name, and who waits for
# a lock, everybody may see.  A lock's transaction id belongs to no database, its waiter does.
_SERVER: Final = """\
{leaves}, others AS (
  SELECT pid, datname = current_database() AS is_here, xact_start,
         coalesce(backend_type, 'client backend') = 'client backend' AS is_client,
         CASE state WHEN 'fastpath function call' THEN 'active'
                    WHEN 'idle in transaction (aborted)' THEN 'idle in transaction' ELSE state END AS state,
         state = 'disabled' OR backend_type IS NULL AS is_hidden
    FROM pg_stat_activity
   WHERE pid <> pg_backend_pid() AND application_name NOT LIKE 'backfill/%'
     AND (backend_type IS NOT NULL OR usesysid IS NOT NULL) AND backend_type IS DISTINCT FROM 'autovacuum worker'
), replaying AS (
  SELECT state, replay_lsn, extract(epoch FROM replay_lag)::float8 AS lag_s FROM pg_stat_replication
   WHERE state IS DISTINCT FROM 'backup' AND coalesce(application_name, '') !~ '^pg_[0-9]+_sync_[0-9]+_'
), vacuums AS (
  SELECT relid, relid IN (SELECT oid FROM leaves UNION SELECT reltoastrelid FROM leaves) AS is_of_table
    FROM pg_stat_progress_vacuum WHERE relid IS NULL OR datname = current_database()
)
SELECT set_config('lock_timeout', $3, false),
       here.wal AS wal_bytes, {io},
       {checkpoints},
       (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database())::float8 AS committed,
       (SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database())::float8 AS rolled_back,
       sessions.*,
       greatest(0, sessions.age_s, (SELECT max(extract(epoch FROM clock_timestamp() - prepared))
                                      FROM pg_prepared_xacts WHERE database = current_database()))::float8
         AS oldest_transaction_s,
       waiting.*,
       standbys.*,
       here.wal - standbys.replayed AS replication_lag_bytes,
       (SELECT sum(pg_stat_get_dead_tuples(oid)) FROM leaves)::float8 AS dead_rows,
       (SELECT sum(pg_stat_get_live_tuples(oid)) FROM leaves)::float8 AS live_rows,
       (SELECT CASE WHEN count(*) FILTER (WHERE relid IS NULL) = 0 THEN count(*) FILTER (WHERE is_of_table) END
          FROM vacuums)::float8 AS vacuums_running
  FROM (SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') END::float8 AS wal)
       AS here,
       (SELECT count(*) FILTER (WHERE is_client AND state = 'active')::float8 AS active,
               count(*) FILTER (WHERE is_client AND state = 'idle')::float8 AS idle,
               count(*) FILTER (WHERE is_client AND state = 'idle in transaction')::float8 AS idle_in_transaction,
               count(*) FILTER (WHERE is_hidden) AS hidden,
               count(*) FILTER (WHERE is_hidden AND is_here) AS hidden_here,
               max(extract(epoch FROM clock_timestamp() - xact_start)) FILTER (WHERE is_here) AS age_s
          FROM others) AS sessions,
       (SELECT count(DISTINCT l.pid)::float8 AS lock_waiters,
               coalesce(greatest(0, max(extract(epoch FROM clock_timestamp() - l.waitstart))), 0)::float8
                 AS longest_lock_wait_s
          FROM pg_locks l JOIN others o ON o.pid = l.pid AND o.is_here
         WHERE NOT l.granted) AS waiting,
       (SELECT count(*)::float8 AS standbys, count(*) FILTER (WHERE state IS NULL) AS hidden_standbys,
               pg_wal_lsn_diff(min(replay_lsn), '0/0')::float8 AS replayed, max(lag_s) AS replication_lag_s
          FROM replaying) AS standbys"""

# What is written is counted when it is: a page that a table grew by is empty, and written once more later.
_IO: Final = """\
       (SELECT sum({read}) FROM pg_stat_io WHERE object <> 'wal')::float8 AS read_bytes,
       (SELECT sum({written}) FROM pg_stat_io WHERE object <> 'wal')::float8 AS written_bytes"""
_NO_IO: Final = "NULL::float8 AS read_bytes, NULL::float8 AS written_bytes"
_CHECKPOINTS: Final = """\
(SELECT {timed} FROM {view})::float8 AS checkpoints_timed,
       (SELECT {requested} FROM {view})::float8 AS checkpoints_requested"""

_SIZES: Final = f"""\
{_LEAVES}
SELECT sum(pg_relation_size(oid))::float8 AS heap, sum(pg_indexes_size(oid))::float8 AS indexes FROM leaves"""


async def read_vitals(connection: Connection, table: TableName) -> Vitals:
    """Ask the server behind ``connection``, whose lock time-out is short from then on.  Raises what the driver raises.

    How long an answer may take is the connection's statement time-out.
    """
    statement = _statement(connection.server.capabilities)
    row = await connection.fetchrow(statement, table.schema, table.name, f"{round(LOCK_PATIENCE_S * 1000)}ms")
    assert row is not None
    vitals = _vitals(row)
    try:
        sizes = await connection.fetchrow(_SIZES, table.schema, table.name)
    except Exception as error:
        if connection.is_closed or classify(error).action not in (Action.RETRY, Action.SPLIT):
            raise
        return vitals
    assert sizes is not None
    return replace(vitals, table_bytes=sizes["heap"], index_bytes=sizes["indexes"])


def _statement(capabilities: Capabilities) -> str:
    """The first statement, as that server understands it."""
    if not capabilities.io_statistics:
        io = _NO_IO
    elif capabilities.io_statistics_in_bytes:
        io = _IO.format(read="read_bytes", written="write_bytes")
    else:
        io = _IO.format(read="reads * op_bytes", written="writes * op_bytes")
    if capabilities.checkpointer_statistics:
        checkpoints = _CHECKPOINTS.format(timed="num_timed", requested="num_requested", view="pg_stat_checkpointer")
    else:
        checkpoints = _CHECKPOINTS.format(
            timed="checkpoints_timed", requested="checkpoints_req", view="pg_stat_bgwriter"
        )
    return _SERVER.format(leaves=_LEAVES, io=io.lstrip(), checkpoints=checkpoints)


def _vitals(row: Any) -> Vitals:
    sees_standbys = row["hidden_standbys"] == 0
    sees_here = row["hidden_here"] == 0
    behind = row["replication_lag_bytes"]
    return Vitals(
        wal_bytes=row["wal_bytes"],
        read_bytes=row["read_bytes"],
        written_bytes=row["written_bytes"],
        checkpoints={"timed": row["checkpoints_timed"], "requested": row["checkpoints_requested"]},
        transactions={"committed": row["committed"], "rolled_back": row["rolled_back"]},
        sessions={} if row["hidden"] else {state: row[state] for state in ("active", "idle", "idle_in_transaction")},
        oldest_transaction_s=row["oldest_transaction_s"] if sees_here else None,
        lock_waiters=row["lock_waiters"],
        longest_lock_wait_s=row["longest_lock_wait_s"],
        standbys=row["standbys"] if sees_standbys else None,
        replication_lag_s=row["replication_lag_s"] if sees_standbys else None,
        replication_lag_bytes=None if not sees_standbys or behind is None else max(0.0, behind),
        dead_rows=row["dead_rows"],
        live_rows=row["live_rows"],
        vacuums_running=row["vacuums_running"],
    )
