"""Who is in the middle of a transaction: what the start barrier and the sweep's horizon wait for.

Every transaction holds a lock on its own virtual id until it ends, visible to any role in ``pg_locks``; this is what
``CREATE INDEX CONCURRENTLY`` waits for too.  Ids with a permanent xid (``pg_current_snapshot()``) would not do: a
REPEATABLE READ transaction that has only read so far has none, and may still write by what its old snapshot shows.
Prepared transactions have no virtual id and are named by their gid.
"""

from __future__ import annotations

from engine.db.connection import Connection
from engine.db.database import MAX_APPLICATION_NAME_BYTES

_RUNNING = """\
SELECT l.virtualtransaction AS id,
       'pid ' || a.pid || ' ' || coalesce(nullif(a.application_name, ''), a.usename)
           || coalesce(' since ' || to_char(a.xact_start, 'HH24:MI:SS'), '') AS who
  FROM pg_catalog.pg_locks l
  JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 CROSS JOIN LATERAL (SELECT split_part(a.application_name, '/', 2) AS theirs,
                            split_part(current_setting('application_name'), '/', 2) AS mine) job
 -- The job's part of a long name is cut where the server would cut the whole.
 CROSS JOIN LATERAL (SELECT a.application_name LIKE 'backfill/%/%'
                            AND (job.theirs = job.mine
                                 OR octet_length(a.application_name) >= 63 AND starts_with(job.mine, job.theirs)
                                 OR octet_length(current_setting('application_name')) >= 63
                                    AND starts_with(job.theirs, job.mine)) AS is_ours) ours
 WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.granted
   AND a.datname = current_database() AND a.usename IS NOT NULL
   AND a.pid <> pg_backend_pid() AND NOT ours.is_ours
   AND (NOT $1::boolean
        OR EXISTS (SELECT FROM pg_catalog.pg_locks x
                    WHERE x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND x.granted
                      AND x.virtualtransaction = l.virtualtransaction))
UNION ALL
SELECT 'prepared ' || gid, 'prepared transaction of ' || owner || ' since ' || to_char(prepared, 'HH24:MI:SS')
  FROM pg_catalog.pg_prepared_xacts
 WHERE database = current_database()"""


async def running_transactions(connection: Connection, *, only_writers: bool = False) -> dict[str, str]:
    """Id -> who it is, for people, of every client transaction of this database except those of the job whose session
    asks.  Other jobs' count: one may write what another reads.

    ``only_writers``: those that have written already, which is when a transaction gets a permanent xid.
    """
    return {row["id"]: row["who"] for row in await connection.fetch(_RUNNING, only_writers)}


def is_of_job(application_name: str, job: str) -> bool:
    """True when a session of that name was opened for ``job``: see ``engine.db.database.application_name``."""
    parts = application_name.split("/", 2)
    if len(parts) < 3 or parts[0] != "backfill":
        return False
    whole = len(application_name.encode()) < MAX_APPLICATION_NAME_BYTES
    return parts[1] == job if whole else job.startswith(parts[1])
