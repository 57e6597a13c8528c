"""What a session may see and do on a server, and what there is to see and to reckon with: asked before a job starts."""

from __future__ import annotations

from typing import Final

from engine.db import Connection
from engine.model import TableName
from engine.plan.preflight import ServerPacing, ServerState, Slot
from engine.watch.server import MAY_READ_ARCHIVE

HELD_FOR_S: Final = 60.0
"""An old snapshot is worth a word when it has been held for so long; a query of a second is not."""

# VACUUM asks the owner of the table or of the database, a superuser, or (from 17 on) MAINTAIN.
_RIGHTS: Final = """\
SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS stats,
       {archive} AS archive,
       -- Who may not read the statistics sees that there is one, and not its name.
       (SELECT coalesce(array_agg(coalesce(application_name, '?') ORDER BY application_name), '{{}}')
          FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup') AS standbys,
       (SELECT count(*) FROM pg_replication_slots) AS slots,
       current_setting('archive_mode') AS archive_mode,
       current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on' AS autovacuum,
       coalesce((SELECT pg_has_role(current_user, c.relowner, 'USAGE') OR {maintain}
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname = $1 AND c.relname = $2), false)
         OR (SELECT pg_has_role(current_user, d.datdba, 'USAGE')
               FROM pg_database d WHERE d.datname = current_database()) AS vacuum"""

# Snapshots of sessions elsewhere count for this database's rows only if they are connected to it (a standby's feedback
# counts everywhere); a slot's xmin comes from a standby that was told to hold rows back.
_HOLDER: Final = """\
SELECT who FROM (
  SELECT age(backend_xmin) AS age,
         'pid ' || pid || ' ' || coalesce(nullif(application_name, ''), usename, backend_type)
             || ' since ' || to_char(coalesce(xact_start, backend_start), 'HH24:MI:SS') AS who
    FROM pg_stat_activity
   WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND application_name NOT LIKE 'backfill/%'
     AND (datname = current_database() OR backend_type = 'walsender')
     AND coalesce(xact_start, backend_start) < clock_timestamp() - make_interval(secs => $1::float8)
  UNION ALL
  SELECT age(transaction), 'prepared transaction of ' || owner || ' since ' || to_char(prepared, 'HH24:MI:SS')
    FROM pg_prepared_xacts
   WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => $1::float8)
  UNION ALL
  SELECT age(xmin), 'replication slot ' || slot_name FROM pg_replication_slots WHERE xmin IS NOT NULL AND NOT active
) AS holders ORDER BY age DESC LIMIT 1"""


async def look_at_rights(connection: Connection, table: TableName) -> ServerPacing:
    """Ask about the server behind ``connection``, and about ``table`` there: the one that would be vacuumed.

    ``connection`` is logged in as the watching sessions are.  Raises what the driver raises.
    """
    maintain = "false"
    if connection.server.capabilities.maintain_privilege:
        maintain = "has_table_privilege(c.oid, 'MAINTAIN')"
    # By the catalogue alone: to_regclass() fails for a schema that the role may not use.
    rights_sql = _RIGHTS.format(archive=MAY_READ_ARCHIVE, maintain=maintain)
    (rights,) = await connection.fetch(rights_sql, table.schema, table.name)
    return ServerPacing(
        can_read_stats=rights["stats"],
        can_read_archive=rights["archive"],
        standbys=tuple(rights["standbys"]),
        slots=rights["slots"],
        archive_mode=rights["archive_mode"],
        autovacuum=rights["autovacuum"],
        can_vacuum=rights["vacuum"],
        oldest_xmin_holder=await connection.fetchval(_HOLDER, HELD_FOR_S),
    )


_STATE: Final = """\
SELECT pg_encoding_to_char(d.encoding)::text AS encoding,
       pg_size_bytes(current_setting('max_wal_size')) AS max_wal,
       nullif(pg_size_bytes(current_setting('max_slot_wal_keep_size')), -1) AS slot_keep,
       CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) END AS size,
       current_setting('max_connections')::int8
         - CASE WHEN r.rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::int8
                + coalesce(nullif(current_setting('reserved_connections', true), ''), '0')::int8 END
         - (SELECT sum(numbackends) FROM pg_stat_database)::int8 AS server_free,
       current_setting('max_connections') AS server_limit,
       CASE WHEN d.datconnlimit >= 0 AND NOT r.rolsuper
            THEN d.datconnlimit - (SELECT numbackends FROM pg_stat_database s WHERE s.datid = d.oid) END::int8
         AS database_free,
       d.datconnlimit::int8 AS database_limit,
       CASE WHEN r.rolconnlimit >= 0 AND NOT r.rolsuper
            THEN r.rolconnlimit - (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = r.oid) END::int8
         AS role_free,
       r.rolconnlimit::int8 AS role_limit,
       r.rolname::text AS role, d.datname::text AS database,
       -- Sessions that are there only while we look.
       (SELECT count(*) FROM pg_stat_activity a
         WHERE a.datid = d.oid AND a.application_name = current_setting('application_name')) AS passing
  FROM pg_database d, pg_roles r
 WHERE d.datname = current_database() AND r.rolname = session_user"""

# Those that hold WAL back; physical ones of standbys too.
_SLOTS: Final = """\
SELECT slot_name::text AS name, active,
       greatest(0, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn))::int8 AS retained
  FROM pg_replication_slots
 WHERE restart_lsn IS NOT NULL AND coalesce(wal_status, '') <> 'lost'
 ORDER BY 1"""

# Whom the start barrier will wait for (``engine.db.activity``), as far as it is long ago that they began.  Whose age
# we may not read is left out: he may have begun a moment ago.
_LONG: Final = """\
SELECT 'pid ' || a.pid || ' ' || coalesce(nullif(a.application_name, ''), a.usename)
           || ' since ' || to_char(a.xact_start, 'HH24:MI:SS') AS who, a.xact_start AS began
  FROM pg_stat_activity a
 WHERE a.datname = current_database() AND a.usename IS NOT NULL AND a.pid <> pg_backend_pid()
   AND a.application_name NOT LIKE 'backfill/%'
   AND a.xact_start < clock_timestamp() - make_interval(secs => $1::float8)
   AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'virtualxid' AND l.granted
                  AND l.mode = 'ExclusiveLock')
UNION ALL
SELECT 'prepared transaction of ' || owner || ' since ' || to_char(prepared, 'HH24:MI:SS'), prepared
  FROM pg_prepared_xacts
 WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => $1::float8)
 ORDER BY began"""

_LEDGER_RIGHTS: Final = """\
SELECT current_user::text AS role, current_database()::text AS database,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       pg_has_role(current_user, session_user, 'USAGE') AS inherits,
       has_database_privilege(current_database(), 'TEMPORARY') AS may_stage,
       n.oid IS NOT NULL AS exists,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS may_use,
       ARRAY(SELECT c.relname::text FROM pg_class c
              WHERE c.relnamespace = n.oid AND c.relname IN ('job', 'span')
                AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'UPDATE'))
              ORDER BY 1) AS closed
  FROM (SELECT 1) one LEFT JOIN pg_namespace n ON n.nspname = 'backfill'"""


async def look_at_server(watcher: Connection, worker: Connection, *, is_written: bool, stages: bool) -> ServerState:
    """Ask about the server behind two sessions of the same database: one that logs in as the watching sessions do, and
    one that moves rows.  ``is_written``: the ledger is there.  ``stages``: chunks may go through a temporary table.
    """
    state = await watcher.fetchrow(_STATE)
    assert state is not None
    free: list[tuple[int, str]] = [(state["server_free"], f"max_connections ({state['server_limit']})")]
    if state["database_free"] is not None:
        free.append((state["database_free"], f"database {state['database']}'s limit ({state['database_limit']})"))
    if state["role_free"] is not None:
        free.append((state["role_free"], f"role {state['role']}'s limit ({state['role_limit']})"))
    sessions_free, sessions_limit = min(free)
    slots = [] if watcher.server.in_recovery else await watcher.fetch(_SLOTS)
    return ServerState(
        encoding=state["encoding"],
        max_wal_bytes=state["max_wal"],
        slot_keep_bytes=state["slot_keep"],
        slots=tuple(Slot(name=s["name"], active=s["active"], retained_bytes=s["retained"]) for s in slots),
        database_bytes=state["size"],
        sessions_free=max(0, sessions_free + state["passing"]),
        sessions_limit=sessions_limit,
        long_transactions=tuple(row["who"] for row in await watcher.fetch(_LONG, HELD_FOR_S)),
        rights_missing=await _missing_rights(watcher, worker, is_written=is_written, stages=stages),
    )


async def _missing_rights(
    watcher: Connection, worker: Connection, *, is_written: bool, stages: bool
) -> tuple[str, ...]:
    """Rights of both roles that no table privilege gives."""
    missing: list[str] = []
    for session, moves_rows in ((watcher, False), (worker, True)):
        rights = await session.fetchrow(_LEDGER_RIGHTS)
        assert rights is not None
        role, database = rights["role"], rights["database"]
        if moves_rows and stages and not rights["may_stage"]:
            missing.append(f"{role} lacks TEMPORARY on database {database}")
        if not is_written:
            continue
        if not rights["exists"]:
            # Whoever connects makes the ledger, and it is closed to the other role unless that one inherits his rights.
            if not moves_rows and not rights["may_create"]:
                missing.append(f"{role} lacks CREATE on database {database}, for the ledger that is not there yet")
            elif moves_rows and not rights["inherits"]:
                missing.append(f"{role} lacks the ledger's rights, since it is not there yet")
        elif not rights["may_use"]:
            missing.append(f"{role} lacks USAGE on schema backfill")
        elif rights["closed"]:
            tables = ", ".join(f"backfill.{name}" for name in rights["closed"])
            missing.append(f"{role} lacks SELECT, UPDATE on {tables}")
    return tuple(dict.fromkeys(missing))
