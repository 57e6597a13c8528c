"""Questions to a server that one statement answers: its sessions, slots, archive, vacuum, transaction ids.

Everything is asked through a session that several of these share.  Counts of sessions leave out ours
(``application_name`` ``backfill/…``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.model import TableName
from engine.pace.law import SignalPolicy
from engine.sql.identifiers import qualified
from engine.watch.probe import Measured, ProbeFailed
from engine.watch.session import Session

SOON_S: Final = 1.0
"""Between two looks at what changes by the second and costs little to look at."""

SLOWLY_S: Final = 5.0
"""Between two looks at what changes slowly, or costs more."""

SEE_STATISTICS: Final = "grant pg_read_all_stats"
MAY_READ_ARCHIVE: Final = "has_function_privilege('pg_catalog.pg_ls_archive_statusdir()', 'EXECUTE')"


@dataclass(frozen=True, slots=True)
class Question:
    """A statement, and what its rows mean."""

    sql: str
    read: Callable[[Sequence[Any]], Measured]
    every_s: float
    arguments: tuple[object, ...] = ()


class ServerProbe:
    """Asks one ``Question`` again and again."""

    def __init__(self, policy: SignalPolicy, session: Session, question: Question) -> None:
        self.policy = policy
        self.every_s = self.quiet_every_s = question.every_s
        self.asked_at: float | None = None
        self._session = session
        self._question = question

    async def read(self) -> Measured:
        """In the unit of the policy."""
        return self._question.read(await self._session.ask(self._question.sql, *self._question.arguments))

    async def close(self) -> None:
        """End the session, if another of its users has not done so."""
        await self._session.close()


# -- sessions ---------------------------------------------------------------------------------------------------------


def _active(rows: Sequence[Any]) -> Measured:
    if rows[0]["hidden"]:
        raise ProbeFailed(f"the state of {rows[0]['hidden']} sessions is hidden from us: {SEE_STATISTICS}")
    return Measured(float(rows[0]["active"]))


ACTIVE_SESSIONS: Final = Question(
    """\
SELECT count(*) FILTER (WHERE state IN ('active', 'fastpath function call')) AS active,
       count(*) FILTER (WHERE state = 'disabled' OR backend_type IS NULL) AS hidden
  FROM pg_stat_activity
 WHERE (backend_type = 'client backend' OR (backend_type IS NULL AND usesysid IS NOT NULL))
   AND pid <> pg_backend_pid() AND application_name NOT LIKE 'backfill/%'""",
    _active,
    SOON_S,
)
"""How many client sessions of others run a statement, in all databases of the server."""


# -- write-ahead log that cannot go -----------------------------------------------------------------------------------


def _retained(rows: Sequence[Any]) -> Measured:
    for row in rows:
        if row["lost"]:
            raise ProbeFailed(f"slot {row['name']} has lost WAL that it needs")
    worst = max(rows, key=lambda row: row["behind"] or 0, default=None)
    if worst is None or worst["behind"] is None:
        return Measured(0.0)
    return Measured(max(0.0, worst["behind"]), detail=f"slot {worst['name']}")


SLOT_RETENTION: Final = Question(
    """\
SELECT slot_name::text AS name, wal_status = 'lost' AS lost,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8 AS behind
  FROM pg_replication_slots""",
    _retained,
    SOON_S,
)
"""How many bytes of WAL the most demanding replication slot keeps from being removed."""

WAL_ARCHIVE: Final = Question(
    "SELECT count(*) AS waiting FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'",
    lambda rows: Measured(float(rows[0]["waiting"])),
    SLOWLY_S,
)
"""How many segments of WAL wait for the archiver."""


# -- vacuum -----------------------------------------------------------------------------------------------------------

_LEAVES: Final = """\
WITH leaves AS (
  SELECT c.oid FROM pg_class c WHERE c.oid = to_regclass($1) AND c.relkind <> 'p'
  UNION ALL
  SELECT relid FROM pg_partition_tree(to_regclass($1)) WHERE isleaf AND relid <> to_regclass($1)
)"""


def _debt(rows: Sequence[Any]) -> Measured:
    live, dead = rows[0]["live"], rows[0]["dead"]
    if live is None:
        raise ProbeFailed("the table is gone")
    return Measured(dead / (live + dead) if dead else 0.0)


def vacuum_debt(table: TableName) -> Question:
    """The share of dead rows among all rows of the table, over its partitions, as the server's statistics count."""
    sql = f"""{_LEAVES}
SELECT sum(pg_stat_get_live_tuples(oid))::float8 AS live, sum(pg_stat_get_dead_tuples(oid))::float8 AS dead
  FROM leaves"""
    return Question(sql, _debt, SLOWLY_S, (qualified(table),))


def _vacuums(rows: Sequence[Any]) -> Measured:
    if rows[0]["hidden"]:
        raise ProbeFailed(f"a vacuum is at work, hidden from us: {SEE_STATISTICS}")
    pid = rows[0]["pid"]
    return Measured(0.0) if pid is None else Measured(1.0, detail=f"pid {pid}")


def autovacuum(table: TableName) -> Question:
    """1 while a vacuum that is not ours works on the table, a partition of it or what it keeps out of line; else 0."""
    sql = f"""{_LEAVES}, theirs AS (
  SELECT oid FROM leaves UNION ALL SELECT c.reltoastrelid FROM pg_class c JOIN leaves USING (oid)
)
SELECT min(v.pid) FILTER (WHERE v.relid IN (SELECT oid FROM theirs)) AS pid,
       count(*) FILTER (WHERE v.relid IS NULL) AS hidden
  FROM pg_stat_progress_vacuum v
  LEFT JOIN pg_stat_activity a USING (pid)
 WHERE (v.relid IS NULL OR v.datname = current_database())
   AND coalesce(a.application_name, '') NOT LIKE 'backfill/%'"""
    return Question(sql, _vacuums, SOON_S, (qualified(table),))


XID_AGE: Final = Question(
    "SELECT datname::text AS name, age(datfrozenxid) AS age FROM pg_database ORDER BY 2 DESC LIMIT 1",
    lambda rows: Measured(float(rows[0]["age"]), detail=f"database {rows[0]['name']}"),
    SLOWLY_S,
)
"""How many transactions ago the oldest not yet frozen row of any database may have been written."""
