"""Ending exactly those server processes that a former holder of a lease left behind.

A worker that is frozen in the middle of COPY IN is stopped by no time-out of the server and keeps its uncommitted
unique keys; its successor must end it before the first chunk.  A process id alone may belong to somebody else by now,
so the start time decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import asyncpg

from engine.db.connection import Connection
from engine.model import Backend

TERMINATE_TIMEOUT_S: Final = 5.0

_END: Final = """
SELECT a.backend_start IS NULL AS hidden,
       CASE WHEN a.backend_start::text = $2
            THEN pg_terminate_backend(a.pid, $3) END AS ended
  FROM pg_stat_activity a
 WHERE a.pid = $1 AND (a.backend_start IS NULL OR a.backend_start::text = $2)
"""


class Ending(StrEnum):
    """What became of a server process."""

    GONE = "gone"  # it was not there any more
    ENDED = "ended"  # it is gone now
    STAYS = "stays"  # told to go, and still there after the time-out
    FORBIDDEN = "forbidden"  # we may not end it, or not see who it is: pg_signal_backend and pg_read_all_stats help


@dataclass(frozen=True, slots=True)
class Ended:
    """The outcome for one server process."""

    backend: Backend
    ending: Ending

    @property
    def is_gone(self) -> bool:
        """True when the process cannot do anything any more."""
        return self.ending in (Ending.GONE, Ending.ENDED)


async def terminate_backends(
    connection: Connection, backends: Iterable[Backend], *, timeout_s: float = TERMINATE_TIMEOUT_S
) -> list[Ended]:
    """End those processes, waiting at most ``timeout_s`` for each.  ``connection`` leads to their server.

    Never ends a process whose id or start time differs, nor the one behind ``connection``.
    """
    return [Ended(backend, await _terminate(connection, backend, timeout_s)) for backend in backends]


async def _terminate(connection: Connection, backend: Backend, timeout_s: float) -> Ending:
    if (backend.pid, backend.started) == (connection.backend.pid, connection.backend.started):
        raise ValueError("a session does not end itself")
    try:
        row = await connection.fetchrow(_END, backend.pid, backend.started, round(timeout_s * 1000))
    except asyncpg.InsufficientPrivilegeError:
        return Ending.FORBIDDEN
    if row is None:
        return Ending.GONE
    if row["hidden"]:
        return Ending.FORBIDDEN
    return Ending.ENDED if row["ended"] else Ending.STAYS
