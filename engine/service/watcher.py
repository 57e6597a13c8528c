"""Looks at the jobs of one ledger for all who watch them: once a second, however many they are, and never for nobody.

A look is two statements: the jobs that are watched as they are now, and what came to their histories since.  A NOTIFY
of the ledger (every change of state, orders and settings) brings the next one at once.

What a watcher has not fetched yet is kept for him: of the status only the newest, of the history a bounded number of
lines.  Whoever is slower than that gets the rest later, since the ledger keeps it: nothing is lost, and nothing is
there twice.  While the database is away everybody who watches is told so, and it goes on from where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from engine.clock import Clock
from engine.db import Connection, Database, classify
from engine.errors import BackfillError
from engine.ledger.records import HistoryEntry, JobStatus
from engine.ledger.store import Ledger

LOOK_EVERY_S: Final = 1.0
"""Between two looks when nobody notifies: progress is not notified."""

LOOK_SOONEST_S: Final = 0.1
"""Between two looks whatever is notified."""

CONNECT_AGAIN_S: Final = 1.0
LINGER_S: Final = 5.0
"""How long the session is kept after the last one has gone."""

MOST_WAITING: Final = 200
"""Lines of the history that are kept for one who does not fetch them."""


@dataclass(slots=True)
class Sight:
    """A job as one look saw it, for all who watch it.  ``text``: how it is shown, made by the first to need it."""

    status: JobStatus
    text: str | None = None


@dataclass(slots=True)
class News:
    """What came since the last time.  ``gone``: there is no such job any more.  ``is_all``: of the history, for now."""

    entries: list[HistoryEntry] = field(default_factory=list)
    sight: Sight | None = None
    trouble: str | None = None
    gone: bool = False
    is_all: bool = True


class Watch:
    """One who watches one job.  ``seen``: the last line of the history that he has, None: he begins with the next."""

    def __init__(self, job: str, seen: int | None) -> None:
        self.job = job
        self.seen = seen
        self._news = News()
        self._came = asyncio.Event()
        self._last: Any = None  # the status that he was given last, without what only ages
        self._is_troubled = False
        self._was_all = True

    async def next(self) -> News:
        """What came since the last call, as soon as there is something."""
        await self._came.wait()
        self._came.clear()
        news, self._news = self._news, News()
        return news

    # -- for the watcher --------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """True where more of the history may be put aside for him."""
        return len(self._news.entries) < MOST_WAITING

    def tell(self, sight: Sight | None, entries: list[HistoryEntry], *, is_all: bool) -> None:
        """A look is over.  ``sight`` None: there is no such job.  ``is_all``: there are no more lines than these."""
        fresh = [entry for entry in entries if self.seen is not None and entry.id > self.seen]
        if fresh:
            self._news.entries += fresh
            self.seen = fresh[-1].id
        self._is_troubled = False
        self._news.trouble = None
        is_news = bool(fresh) or is_all != self._was_all
        self._was_all = self._news.is_all = is_all
        if sight is None:
            self._news.gone = True
        else:
            shown = _lasting(sight.status)
            if shown == self._last and not is_news:
                return
            self._last, self._news.sight = shown, sight
        self._came.set()

    def tell_trouble(self, trouble: str) -> None:
        """The database did not answer; said once."""
        if not self._is_troubled:
            self._is_troubled, self._last = True, None
            self._news.trouble = trouble
            self._came.set()


def _lasting(status: JobStatus) -> Any:
    """What makes two looks different: not that time has passed."""
    shown = status.as_json()
    shown["pace"] = {name: value for name, value in shown["pace"].items() if name != "age_s"}
    shown["signals"] = [{k: v for k, v in signal.items() if k != "age_s"} for signal in shown["signals"]]
    return shown


class Watcher:
    """Of one ledger.  ``looks`` counts them, for tests and metrics."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.looks = 0
        self._database = database
        self._clock = clock
        self._watches: set[Watch] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None

    @property
    def watched(self) -> int:
        """How many watch now."""
        return len(self._watches)

    @asynccontextmanager
    async def watch(self, job: str, seen: int | None = None) -> AsyncIterator[Watch]:
        """Watch a job.  ``seen``: the last line of its history that is known already."""
        watch = Watch(job, seen)
        self._watches.add(watch)
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="watcher")
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            self._wake.set()

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while self._watches:
            try:
                await self._look_on()
            finally:
                connection, self._connection = self._connection, None
                if connection is not None:
                    await connection.close()

    async def _look_on(self) -> None:
        """Look until nobody has watched for a while: whoever polls comes again soon."""
        while True:
            self._wake.clear()
            pause_s = LINGER_S
            if self._watches:
                try:
                    pause_s = LOOK_EVERY_S - LOOK_SOONEST_S if await self._look() else 0.0
                except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and tried again
                    self._drop()
                    self._tell_trouble(error)
                    pause_s = CONNECT_AGAIN_S
                await self._clock.sleep(LOOK_SOONEST_S)
            try:
                await asyncio.wait_for(self._wake.wait(), pause_s)
            except TimeoutError:
                if not self._watches:
                    return

    async def _look(self) -> bool:
        """False where there is more to be had at once."""
        if self._connection is None or self._connection.is_closed:
            self._connection = await self._database.connect("watch")
            if self._connection.server.capabilities.listen_notify:
                await self._connection.add_listener("backfill", lambda _: self._wake.set())
        ledger = Ledger(self._connection)
        watches = list(self._watches)
        # First the jobs, then the history: whoever sees a job at its end has all that led to it.
        statuses = await ledger.several(sorted({watch.job for watch in watches}))
        seen: dict[str, int] = {}
        for watch in watches:
            if watch.seen is None:
                status = statuses.get(watch.job)
                watch.seen = (status.revision or 0) if status is not None else None
            if watch.seen is not None and watch.has_room:
                seen[watch.job] = min(watch.seen, seen.get(watch.job, watch.seen))
        entries: dict[str, list[HistoryEntry]] = {}
        for job, entry in await ledger.history_after(seen, MOST_WAITING) if seen else ():
            entries.setdefault(job, []).append(entry)
        self.looks += 1
        sights = {job: Sight(status) for job, status in statuses.items()}
        for watch in watches:
            found = entries.get(watch.job, [])
            is_all = watch.has_room and len(found) < MOST_WAITING
            watch.tell(sights.get(watch.job), found if watch.has_room else [], is_all=is_all)
        return all(len(found) < MOST_WAITING for found in entries.values())

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def _tell_trouble(self, error: Exception) -> None:
        words = error.message if isinstance(error, BackfillError) else classify(error).message
        for watch in self._watches:
            watch.tell_trouble(words or "the database did not answer")
