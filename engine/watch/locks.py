"""Whom we keep waiting for a lock, and for how long.

A chunk that somebody waits for longer than the signal's maximum is cancelled: it rolls back, is halved and tried again
(SQLSTATE 57014), and whoever waited goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.db.activity import is_of_job
from engine.pace.law import SignalPolicy
from engine.watch.probe import Measured
from engine.watch.session import Session

EVERY_S: Final = 0.5

# Cheap, for it is asked twice a second and nearly always finds nothing.  What another role's session waits for may be
# hidden from us; pg_locks, which is not, then says whether it waits.
_LOOK: Final = """\
SELECT pid, application_name::text AS name, backend_start::text AS started,
       application_name LIKE 'backfill/%' AS ours
  FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
   AND (application_name LIKE 'backfill/%' OR wait_event_type = 'Lock'
        OR (backend_type IS NULL AND usesysid IS NOT NULL))"""

_WAITS: Final = """\
SELECT waiting.pid, extract(epoch FROM clock_timestamp() - waiting.since)::float8 AS waited_s,
       ARRAY(SELECT blocker FROM unnest(pg_blocking_pids(waiting.pid)) AS blocker
              WHERE blocker = ANY ($2::int4[])) AS blockers
  FROM (SELECT pid, min(waitstart) AS since FROM pg_locks
         WHERE NOT granted AND pid = ANY ($1::int4[]) GROUP BY pid) AS waiting
 WHERE waiting.since IS NOT NULL"""

# The start time, because a process id alone may be somebody else's by now.
_CANCEL: Final = """\
SELECT coalesce(bool_or(pg_cancel_backend(a.pid)), false) AS cancelled
  FROM pg_stat_activity a
  JOIN unnest($1::int4[], $2::text[]) AS blocker (pid, started)
    ON a.pid = blocker.pid AND a.backend_start::text = blocker.started"""


@dataclass(frozen=True, slots=True)
class Blocked:
    """Somebody waits for us.  Server process ids of the job's sessions in front of him are in ``blockers``."""

    waiting: int  # his process id
    waited_s: float
    blockers: tuple[int, ...]


class LockWaits:
    """Seconds that somebody has been waiting for a lock which a session of this job holds, or waits for before him.

    ``on_cancel`` is told, in words, whenever a session of ours was cancelled.  ``policy.maximum`` says when; see
    ``cancel_after_s`` to change it.
    """

    every_s = quiet_every_s = EVERY_S

    def __init__(self, policy: SignalPolicy, session: Session, job: str, on_cancel: Callable[[str], None]) -> None:
        self.policy = policy
        self.asked_at: float | None = None
        self.cancel_after_s = policy.maximum
        self._session = session
        self._job = job
        self._on_cancel = on_cancel

    async def read(self) -> Measured:
        """Seconds; 0 while nobody waits."""
        sessions = await self._session.ask(_LOOK)
        ours = {row["pid"]: row["started"] for row in sessions if row["ours"] and is_of_job(row["name"], self._job)}
        others = {row["pid"]: row["name"] for row in sessions if not row["ours"]}
        if not ours or not others:
            return Measured(0.0)
        worst = _worst(await self._session.ask(_WAITS, list(others), list(ours)))
        if worst is None:
            return Measured(0.0)
        who = f"pid {worst.waiting} {others[worst.waiting]}".rstrip()
        if self.cancel_after_s is not None and worst.waited_s > self.cancel_after_s:
            await self._cancel(worst, who, {pid: ours[pid] or "" for pid in worst.blockers})
        return Measured(worst.waited_s, detail=f"{who} waits for us")

    async def _cancel(self, worst: Blocked, who: str, blockers: dict[int, str]) -> None:
        rows = await self._session.ask(_CANCEL, list(blockers), list(blockers.values()))
        if rows[0]["cancelled"]:
            self._on_cancel(f"{who} waited {worst.waited_s:.1f}s for a lock of ours")

    async def close(self) -> None:
        """End the session, if another of its users has not done so."""
        await self._session.close()


def _worst(rows: Sequence[Any]) -> Blocked | None:
    blocked = [Blocked(row["pid"], max(0.0, row["waited_s"]), tuple(row["blockers"])) for row in rows]
    return max((b for b in blocked if b.blockers), key=lambda b: b.waited_s, default=None)
