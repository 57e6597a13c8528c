"""Watches the servers of the job that this process paces, for people who look at metrics: every ``EVERY_S``, and only
while it paces.  Nothing here steers the job.

Each side is asked by a task of its own, so that a server that is away leaves the other one seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from engine.clock import Clock, SystemClock
from engine.db import Database
from engine.flow.prepare import Prepared
from engine.flow.supervisor import Supervisor
from engine.model import Side, TableName
from engine.watch.session import Session
from engine.watch.standbys import Notes
from engine.watch.vitals import Vitals, read_vitals

EVERY_S: Final = 5.0
LOOK_S: Final = 1.0
"""Between two looks at who paces: what this process says of the servers ends as soon as that is another one."""

DEADLINE_S: Final = 3.0

Show = Callable[[str, Side, Vitals | None], None]


class VitalsWatch:
    """Shows the vitals of the servers of ``supervisor()``'s job while it paces; forgets the job when it does no longer.

    ``show`` is called with the job, the side and what was seen, None where nothing could be seen.  In place, and within
    one database, there is the target alone.
    """

    def __init__(
        self,
        supervisor: Callable[[], Supervisor | None],
        show: Show,
        forget: Callable[[str], None],
        clock: Clock | None = None,
        *,
        every_s: float = EVERY_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._supervisor = supervisor
        self._show = show
        self._forget = forget
        self._clock = clock or SystemClock()
        self._every_s = every_s
        self._look_s = look_s
        self._watched: Supervisor | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Watch until cancelled.  A server that does not answer is asked again, for as long as that takes."""
        try:
            while True:
                await self._follow()
                await self._clock.sleep(self._look_s)
        finally:
            await self._end()

    async def _follow(self) -> None:
        supervisor = self._supervisor()
        leading = supervisor if supervisor is not None and supervisor.leads else None
        if leading is not self._watched:
            await self._end()
            if leading is not None:
                self._begin(leading)
        for task in self._tasks:
            if task.done():
                task.result()  # whatever it died of is a bug

    def _begin(self, supervisor: Supervisor) -> None:
        self._watched = supervisor
        job = supervisor.prepared.spec.name
        self._tasks = [
            asyncio.create_task(self._watch(job, side, database, table))
            for side, database, table in _places(supervisor.prepared)
        ]

    async def _end(self) -> None:
        watched, self._watched = self._watched, None
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            if watched is not None:
                self._forget(watched.prepared.spec.name)

    async def _watch(self, job: str, side: Side, database: Database, table: TableName) -> None:
        session = Session(database, "vitals", clock=self._clock, deadline_s=DEADLINE_S)
        lag = StandbyLag(self._every_s)
        try:
            while True:
                try:
                    seen = await session.use(lambda connection: read_vitals(connection, table))
                except Exception:  # noqa: BLE001 - there is nothing to see then, and nothing else to do
                    self._show(job, side, None)
                else:
                    self._show(job, side, lag.judged(self._clock.now(), seen))
                await self._clock.sleep(self._every_s)
        finally:
            await session.close()


def _places(prepared: Prepared) -> list[tuple[Side, Database, TableName]]:
    endpoints = prepared.endpoints
    places = [(Side.TARGET, endpoints.target, prepared.written_table.name)]
    if not endpoints.is_one:
        places.insert(0, (Side.SOURCE, endpoints.source, prepared.source_table.name))
    return places


class StandbyLag:
    """How many seconds the slowest standby is behind.  Pure.

    The server's own figure stands still when a standby hangs.  So where the WAL stood at each look is noted: what the
    standby has replayed by now says between which two looks it is, and the server's figure is believed in between.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._notes = Notes()

    def judged(self, now: float, seen: Vitals) -> Vitals:
        """The same look, with a lag that is true."""
        here, behind, told = seen.wal_bytes, seen.replication_lag_bytes, seen.replication_lag_s
        if here is None:
            return seen
        self._notes.add(now, here)
        if behind is None:
            return seen
        most = self._notes.age(now, here - behind)
        if most is None:  # behind since before we looked
            lag = max(self._notes.watched_s(now), told or 0.0)
        else:
            lag = min(most, max(most - self._every_s, told or 0.0))
        return replace(seen, replication_lag_s=lag)
