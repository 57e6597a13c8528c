"""Watches the servers of the jobs that this process paces, for people who look at metrics: every ``EVERY_S``, and only
while it paces.  Nothing here steers a job.

Each side is asked by a task of its own, so that a server that is away leaves the other one seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
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
    """Shows the vitals of the servers of the jobs of ``supervisors()`` while they pace; forgets a job when its one does
    no longer.

    ``show`` is called with the job, the side and what was seen, None where nothing could be seen.  In place, and within
    one database, there is the target alone.
    """

    def __init__(
        self,
        supervisors: Callable[[], Iterable[Supervisor]],
        show: Show,
        forget: Callable[[str], None],
        clock: Clock | None = None,
        *,
        every_s: float = EVERY_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._supervisors = supervisors
        self._show = show
        self._forget = forget
        self._clock = clock or SystemClock()
        self._every_s = every_s
        self._look_s = look_s
        self._watched: dict[Supervisor, list[asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Watch until cancelled.  A server that does not answer is asked again, for as long as that takes."""
        try:
            while True:
                await self._follow()
                await self._clock.sleep(self._look_s)
        finally:
            await self._end(tuple(self._watched))

    async def _follow(self) -> None:
        leading = [supervisor for supervisor in self._supervisors() if supervisor.leads]
        await self._end([watched for watched in self._watched if watched not in leading])
        for supervisor in leading:
            if supervisor not in self._watched:
                self._begin(supervisor)
        for tasks in self._watched.values():
            for task in tasks:
                if task.done():
                    task.result()  # whatever it died of is a bug

    def _begin(self, supervisor: Supervisor) -> None:
        job = supervisor.prepared.spec.name
        self._watched[supervisor] = [
            asyncio.create_task(self._watch(job, side, database, table))
            for side, database, table in _places(supervisor.prepared)
        ]

    async def _end(self, over: Iterable[Supervisor]) -> None:
        ended = {supervisor: self._watched.pop(supervisor) for supervisor in over}
        tasks = [task for those in ended.values() for task in those]
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            for supervisor in ended:
                self._forget(supervisor.prepared.spec.name)

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
