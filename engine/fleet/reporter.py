"""Which process reports on the jobs of a ledger: one of all that could, elected by a lease in the ledger itself.

::

    asks every EVERY_S ──▶ not ours: show(None)
            ▲               │
            │               ▼ ours
            └── show(jobs) ◀── reads the jobs' statuses

The holder believes in its lease for ``TRUST`` of it, counted from when it *sent* the renewal that succeeded, and from
then on, however long it takes to read what is to be shown.  Then it stops showing by itself, whatever a statement is
waiting for, and before anything else when it wakes from a long sleep.  A successor is there within the lease and one
look of the moment when a holder was killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from engine.clock import Clock, SystemClock, jittered
from engine.db import Action, Connection, Database, classify
from engine.events import Emit, Warned, ignore
from engine.ledger.queries import migrations
from engine.ledger.records import JobStatus
from engine.ledger.reporting import Reported
from engine.ledger.store import Ledger
from engine.telemetry.report import JobReport

EVERY_S: Final = 2.0
LEASE_S: Final = 10.0
TRUST: Final = 0.6
"""Share of a lease for which its holder believes in it."""

ASK_S: Final = 4.0
"""What one look may take in all: so much less than a lease is trusted that the next renewal comes in time."""

SHORTEST_PAUSE_S: Final = 0.5
"""Between two looks at a ledger that is slow: the next one is due ``EVERY_S`` after the last one *began*."""

LONGEST_PAUSE_S: Final = 30.0
"""Between two attempts while the database is away, or does not let us."""

LEAVE_S: Final = 2.0

Show = Callable[[Sequence[JobReport] | None], None]


class Reporter:
    """Shows all jobs of the ledger in ``database`` for as long as this process is the one that reports on them.

    ``show`` is called with the jobs every ``every_s`` seconds while it is, and once with None when it is not, or cannot
    tell: nothing is shown then.  ``emit`` hears what keeps it from ever reporting.
    """

    def __init__(
        self,
        database: Database,
        show: Show,
        clock: Clock | None = None,
        *,
        every_s: float = EVERY_S,
        lease_s: float = LEASE_S,
        emit: Emit = ignore,
    ) -> None:
        self._id = str(uuid.uuid4())
        self._database = database
        self._show = show
        self._clock = clock or SystemClock()
        self._every_s = every_s
        self._lease_s = lease_s
        self._emit = emit
        self._rng = random.Random()
        self._ledger: Ledger | None = None
        self._pause_s = every_s
        self._trusted_until: float | None = None  # None: nothing is shown
        self._renewed_until = 0.0  # until when the lease is trusted that was taken last
        self._ages = Ages()
        self._warned = ""

    @property
    def reports(self) -> bool:
        """True while this process may show what it shows."""
        return self._trusted_until is not None and self._clock.now() < self._trusted_until

    async def run(self) -> None:
        """Report whenever it is our turn, until cancelled.  Trouble with the database is waited out."""
        self._show(None)
        expiry = asyncio.create_task(self._watch_expiry())
        try:
            while True:
                pause_s = await self._turn()
                await self._clock.sleep(pause_s)
        finally:
            expiry.cancel()
            try:
                self._stop_showing()
            finally:
                await self._leave()

    async def _turn(self) -> float:
        """One look; gives how long to wait for the next one."""
        self._expire()
        began = self._clock.now()
        try:
            async with asyncio.timeout(ASK_S):
                seen = await self._look()
        except Exception as error:  # noqa: BLE001 - metrics are no reason for anybody to stop
            self._lose(error)
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
            return jittered(pause_s, self._rng)
        self._pause_s, self._warned = self._every_s, ""
        now = self._clock.now()
        if seen is None or now >= self._renewed_until:
            self._stop_showing()
        else:
            self._trusted_until = self._renewed_until
            self._show(self._ages.reports(seen, now))
        return max(min(SHORTEST_PAUSE_S, self._every_s), self._every_s - (now - began))

    async def _look(self) -> tuple[Reported, ...] | None:
        """What is to be shown; None while that is for others to do, or for nobody."""
        ledger = await self._connected()
        # Of an older release's ledger the next run makes one of ours; of a newer one's we know too little.
        if await ledger.installed_version() != migrations()[-1][0]:
            return None
        until = self._clock.now() + TRUST * self._lease_s
        if not await ledger.report(self._id, socket.gethostname(), os.getpid(), self._lease_s):
            return None
        self._renewed_until = until
        if self.reports:
            self._trusted_until = until  # what is shown may be shown on, while the statuses are read
        return await ledger.reported()

    async def _connected(self) -> Ledger:
        if self._ledger is None or self._ledger.connection.is_closed:
            connection = await self._database.connect("report", statement_timeout_s=ASK_S)
            self._ledger = Ledger(connection)
            # A standby that everybody waits for at commit is nothing to go blind for.
            await connection.execute("SET synchronous_commit = off")
        return self._ledger

    # -- not ours -----------------------------------------------------------------------------------------------------

    async def _watch_expiry(self) -> None:
        """Show nothing beyond the lease, whatever ``run`` is waiting for.  Waits for the clock only."""
        while True:
            await self._clock.sleep(min(1.0, self._lease_s / 10))
            self._expire()

    def _expire(self) -> None:
        if self._trusted_until is not None and not self.reports:
            self._stop_showing()

    def _stop_showing(self) -> None:
        if self._trusted_until is not None:
            self._trusted_until = None
            self._show(None)

    def _lose(self, error: Exception) -> None:
        """Something failed, and whether the lease is still ours is not known: show nothing, and begin anew."""
        self._stop_showing()
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.connection.abort()
        failure = classify(error)
        # That a database is away, others say; a right that is missing would go unnoticed.
        if failure.action is Action.STOP and failure.message != self._warned:
            self._warned = failure.message
            self._emit(Warned(job="", message=f"this process cannot report on the ledger's jobs: {failure.message}"))

    async def _leave(self) -> None:
        """Have a successor at once, if the ledger can be told."""
        ledger, self._ledger = self._ledger, None
        if ledger is None:
            return
        connection: Connection = ledger.connection
        try:
            with suppress(Exception):
                async with asyncio.timeout(LEAVE_S):
                    if await ledger.installed_version() == migrations()[-1][0]:
                        await ledger.leave_reporter(self._id)
            await connection.close()
        finally:
            connection.abort()


class Ages:
    """How long ago each job was last seen to get somewhere.  Pure."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[object, ...], float]] = {}  # job -> (how far it was, since when)

    def reports(self, seen: Sequence[Reported], now: float) -> tuple[JobReport, ...]:
        """The jobs as they are to be shown.  A job that is not at work does not age, and a new one begins at 0."""
        before, self._seen = self._seen, {}
        reports = []
        for one in seen:
            status = one.status
            how_far = _how_far(one)
            was, since = before.get(status.job, (None, now))
            if was != how_far or not status.state.is_at_work:
                since = now
            self._seen[status.job] = (how_far, since)
            reports.append(JobReport(status, max(0.0, now - since)))
        return tuple(reports)


def _how_far(one: Reported) -> tuple[object, ...]:
    """What changes when something is committed.  Not the progress: a theft changes estimates, and moves nothing."""
    status: JobStatus = one.status
    return (
        one.steps,
        status.rows_done,
        status.bytes_done,
        status.chunks,
        status.spans_done,
        status.phase,
        status.state,
        status.started_at,
    )
