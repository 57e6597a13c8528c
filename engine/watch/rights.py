"""What a session that watches a server may see there, and what there is to see: asked once, before a job starts."""

from __future__ import annotations

from typing import Final

from engine.db import Connection
from engine.model import TableName
from engine.plan.preflight import ServerPacing
from engine.sql.identifiers import qualified
from engine.watch.server import MAY_READ_ARCHIVE

HELD_FOR_S: Final = 60.0
"""An old snapshot is worth a word when it has been held for so long; a query of a second is not."""

# VACUUM asks the owner of the table or of the database, a superuser, or (from 17 on) MAINTAIN.
_RIGHTS: Final = """\
SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS stats,
       {archive} AS archive,
       (SELECT coalesce(array_agg(application_name::text ORDER BY application_name), '{{}}')
          FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup') AS standbys,
       (SELECT count(*) FROM pg_replication_slots) AS slots,
       current_setting('archive_mode') AS archive_mode,
       current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on' AS autovacuum,
       coalesce((SELECT pg_has_role(current_user, c.relowner, 'USAGE') OR {maintain}
                   FROM pg_class c WHERE c.oid = to_regclass($1)), false)
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
    (rights,) = await connection.fetch(_RIGHTS.format(archive=MAY_READ_ARCHIVE, maintain=maintain), qualified(table))
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
