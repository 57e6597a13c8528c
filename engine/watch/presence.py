"""Is anybody else using this server?  While nobody is, there is nobody to be polite to.

A sign of somebody is a client of the server, in whatever database, that is not one of ours (``application_name``
``backfill/…``) and runs a statement, or has begun or ended one since the last look; or more new sessions a second than
ours account for, since a client that connects for every statement is seldom met.  A sign counts for ``MEMORY_S``.  An
open transaction that does nothing is no sign.  Where other sessions' state is hidden from us, somebody is there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from engine.clock import Clock
from engine.watch.session import Session

EVERY_S: Final = 0.5
MEMORY_S: Final = 10.0
"""For how long after its last sign somebody counts as present.  Longer than the pauses of a steady trickle of work."""

STALE_S: Final = 3.0
"""Without an answer for so long nobody knows, so somebody may be there."""

RECENTLY_S: Final = 1.0
"""At the first look there is no earlier one to compare with: what happened so recently counts as happening."""

SESSIONS_WINDOW_S: Final = 10.0
SESSIONS_PER_S: Final = 1.0
"""New sessions of others, on average over the window, that count as a sign."""

# One row, whatever the number of sessions.  ``hidden``: without pg_read_all_stats state and type of other roles'
# sessions are NULL; with track_activities off the state is "disabled".
_LOOK: Final = """\
WITH clients AS (
  SELECT state, backend_start, greatest(state_change, backend_start) AS changed,
         application_name LIKE 'backfill/%' AS ours,
         state = 'disabled' OR (backend_type IS NULL AND usesysid IS NOT NULL) AS hidden
    FROM pg_stat_activity
   WHERE (backend_type = 'client backend' OR (backend_type IS NULL AND usesysid IS NOT NULL))
     AND pid <> pg_backend_pid()
)
SELECT count(*) FILTER (WHERE NOT ours AND hidden) AS hidden,
       count(*) FILTER (WHERE NOT ours AND state IN ('active', 'fastpath function call')) AS active,
       coalesce(extract(epoch FROM max(changed) FILTER (WHERE NOT ours)), 0)::float8 AS changed,
       extract(epoch FROM clock_timestamp())::float8 AS server_now,
       count(*) FILTER (WHERE ours AND backend_start > clock_timestamp() - make_interval(secs => $1::float8)) AS begun,
       (SELECT coalesce(sum(sessions), 0)::int8 FROM pg_stat_database) AS sessions
  FROM clients"""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a server's sessions saw."""

    hidden: int  # others whose state we may not see
    active: int  # others that run a statement at this moment
    changed: float  # when one of the others last began or ended something: the server's clock, seconds
    server_now: float
    sessions: int  # begun since the server's statistics began, over all its databases
    begun_by_us: int  # of ours, those that began within the window and still live


class Memory:
    """Turns looks into an answer.  Pure; local times are the monotonic clock's, passed in."""

    def __init__(self) -> None:
        self._changed: float | None = None
        self._last_sign: float | None = None
        self._last_look: float | None = None
        self._sessions: deque[tuple[float, int]] = deque()

    def add(self, now: float, look: Look) -> None:
        """One look at the sessions, taken at ``now``."""
        before = self._changed if self._changed is not None else look.server_now - RECENTLY_S
        if look.hidden or look.active or look.changed > before or self._many_sessions(now, look):
            self._last_sign = now
        self._changed = max(before, look.changed)
        self._last_look = now

    def remember_somebody(self, now: float) -> None:
        """Somebody was there at ``now``, as another memory knows."""
        self._last_sign = now

    def alone(self, now: float) -> bool:
        """True when nobody else has shown a sign for ``MEMORY_S``, or ever, and that is known."""
        if self._last_look is None or now - self._last_look > STALE_S:
            return False
        return self._last_sign is None or now - self._last_sign > MEMORY_S

    def _many_sessions(self, now: float, look: Look) -> bool:
        history = self._sessions
        if history and look.sessions < history[-1][1]:
            history.clear()  # the statistics were reset
        history.append((now, look.sessions))
        while now - history[0][0] > SESSIONS_WINDOW_S:
            history.popleft()
        grown = look.sessions - history[0][1] - look.begun_by_us
        return grown > SESSIONS_PER_S * SESSIONS_WINDOW_S


class Presence:
    """Looks at one server, by a session to any of its databases."""

    every_s = EVERY_S

    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._memory = Memory()

    async def look(self) -> None:
        """Look once.  Raises what the session raised; until it succeeds again nobody is known to be away."""
        (row,) = await self._session.ask(_LOOK, SESSIONS_WINDOW_S)
        look = Look(row["hidden"], row["active"], row["changed"], row["server_now"], row["sessions"], row["begun"])
        self._memory.add(self._clock.now(), look)

    def remember_somebody(self) -> None:
        """Somebody was there a moment ago, whatever the first look will see."""
        self._memory.remember_somebody(self._clock.now())

    def alone(self) -> bool:
        """True when nobody else uses the server, as far as the last looks tell."""
        return self._memory.alone(self._clock.now())

    async def close(self) -> None:
        """Let go of the session."""
        await self._session.close()
