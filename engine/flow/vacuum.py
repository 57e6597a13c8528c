"""``bloat.max_growth``: VACUUMs beside an in-place job, by one process of it, so that the table stays in its budget.

When to run one, and when to hold the job, is decided by ``pace.growth``; here is what it takes to know and to do it:
a session that looks, and while one is needed a second one that runs the VACUUM.  Nothing of it outlives ``run``: a
VACUUM in hand is cancelled, and a server that does not hear that ends it when the socket is gone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from engine.clock import Clock
from engine.db import Connection, Database, classify
from engine.db.vacuum import Heap, Look, is_alive, look, vacuum
from engine.events import Emit, Warned
from engine.model import TableName
from engine.pace.growth import GrowthPolicy, Sight, Verdict
from engine.pace.law import Unit
from engine.pace.partitions import Apportioner, Partition
from engine.pace.quantity import format_comparison, format_value
from engine.watch.session import Session

GATE: Final = "table_growth"

VACUUM_TIMEOUT_S: Final = 24 * 3600.0
LOOK_DEADLINE_S: Final = 5.0
LOOK_SHARE: Final = 0.05
"""Looks take at most this share of the time, unless that would leave more than ``LONGEST_PAUSE_S`` between two."""

LONGEST_PAUSE_S: Final = 2.0
"""Between two looks, however many partitions there are; well below ``STALE_S`` even where a look takes its time."""

WAITING_LOOK_S: Final = 0.5
"""At most between two looks while the job is held, or the server does not answer; the end of a VACUUM is noticed at
once."""

ALLOWANCE_LOOK_S: Final = 0.02
"""So often it is compared what has been written with what may be before the next look, without asking anybody."""

STALE_S: Final = 10.0
"""A growth that has not been measured for so long is unknown, and closes the gate."""

BLOCKED_PATIENCE_S: Final = 5.0
"""Who has been in the way for so long is named in a warning."""


@dataclass(frozen=True, slots=True)
class GrowthView:
    """How the table is doing, for people."""

    ratio: float  # growth since the job began: 0.2 for 20 %
    maximum: float
    vacuums: int  # that this process has finished
    running_since: float | None  # by the local monotonic clock
    held_reason: str | None


class VacuumKeeper:
    """Keeps ``table`` within ``max_growth`` (0.2 for 20 %) of the ``start_bytes`` its heap had when the job began.

    ``rows_total``: rows the job writes in all, an estimate; not positive when unknown.  ``rows_written``: how many of
    them by now, wherever the workers are, as up to date as possible.  ``on_change`` is called when ``closed`` changes;
    it must not raise.
    """

    def __init__(
        self,
        database: Database,
        table: TableName,
        *,
        start_bytes: int,
        max_growth: float,
        rows_total: float,
        rows_written: Callable[[], float],
        clock: Clock,
        emit: Emit,
        job: str,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._database = database
        self._table = table
        self._start_bytes = start_bytes
        self._max_growth = max_growth
        self._rows_total = rows_total
        self._rows_written = rows_written
        self._clock = clock
        self._emit = emit
        self._job = job
        self._on_change = on_change
        self._looking = Session(database, "growth", clock=clock, deadline_s=LOOK_DEADLINE_S, data=True)
        self._policies: dict[int, GrowthPolicy] = {}
        self._apportioner = Apportioner()
        self._news = asyncio.Event()
        self._looked_at: float | None = None  # None: not running yet, so nothing can be late
        self._look_took_s = 0.0
        self._look_failed = ""
        self._written_when_looked = 0.0
        self._allowance_rows = math.inf  # from then until the next look
        self._told: Mapping[str, str] = {}
        self._ratio = 0.0
        self._vacuums = 0
        self._working: asyncio.Task[None] | None = None
        self._working_on: int | None = None
        self._working_since: float | None = None
        self._session: Connection | None = None
        self._held = ""
        self._trouble = ""  # why the last VACUUM failed
        self._blocked_since: float | None = None
        self._warned: set[str] = set()

    # -- from outside -----------------------------------------------------------------------------------------------

    @property
    def growth(self) -> GrowthView:
        """The last measurement."""
        return GrowthView(
            self._ratio,
            self._max_growth,
            self._vacuums,
            self._working_since,
            self.closed.get(GATE),
        )

    @property
    def closed(self) -> Mapping[str, str]:
        """The gate, while it is closed, and why: ``{"table_growth": "table_growth 21% > 20%; …"}``."""
        if self._looked_at is not None and self._clock.now() - self._looked_at > STALE_S:
            return {GATE: f"{GATE} unknown: {self._look_failed or f'not measured for {STALE_S:g}s'}"}
        if self._held:
            return {GATE: self._held}
        if self._rows_written() - self._written_when_looked > self._allowance_rows:
            return {GATE: f"{GATE} may exceed {format_value(self._max_growth, Unit.RATIO)} before it is measured again"}
        return {}

    async def run(self) -> None:
        """Look and act until cancelled; ends by nothing else.  A look that fails, whatever with, is tried again, and
        closes the gate when that lasts: a keeper that gave up would let the table grow.
        """
        self._looked_at = self._clock.now()  # nothing is stale before there was time to look
        watching = asyncio.create_task(self._watch_closed(), name="growth gate")
        try:
            while True:
                seconds = await self._turn()
                self._notice()
                await self._pause(seconds)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self.close()

    async def _watch_closed(self) -> None:
        """Between two looks, see the gate close because more was written than they allowed."""
        while True:
            await self._clock.sleep(ALLOWANCE_LOOK_S)
            self._notice()

    def _notice(self) -> None:
        told, self._told = self._told, self.closed
        if self._told != told and self._on_change is not None:
            self._on_change()

    async def close(self) -> None:
        """End the VACUUM in hand, and both sessions.  Doing it twice does no harm."""
        working, self._working = self._working, None
        if working is not None:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        await self._looking.close()

    # -- a turn -----------------------------------------------------------------------------------------------------

    async def _turn(self) -> float:
        """Look once, decide, act; gives the seconds until the next look.  Raises nothing."""
        try:
            self._forget_ended()
            rows_written = self._rows_written()
            seen = await self._looking.use(self._look)
            verdicts = self._decide(seen, rows_written)
            self._act(seen, verdicts)
            self._written_when_looked, self._allowance_rows = rows_written, self._allowance()
        except Exception as error:
            self._look_failed = classify(error).message
            return WAITING_LOOK_S
        self._looked_at, self._look_failed = self._clock.now(), ""
        next_s = [policy.next_look_s for policy in self._policies.values()]
        if not next_s or any(verdict.hold for verdict in verdicts.values()):
            next_s.append(WAITING_LOOK_S)
        return min(LONGEST_PAUSE_S, max(self._look_took_s / LOOK_SHARE, min(next_s)))

    def _forget_ended(self) -> None:
        if self._working is None or not self._working.done():
            return
        working, self._working = self._working, None
        error = None if working.cancelled() else working.exception()
        if error is not None:
            self._trouble = classify(error).message
            self._warn(f"a VACUUM ended badly: {self._trouble}")

    async def _look(self, connection: Connection) -> Look:
        began = self._clock.now()
        seen = await look(connection, self._table, timeout_s=LOOK_DEADLINE_S)
        session = self._session
        if session is not None and not await is_alive(connection, session, timeout_s=LOOK_DEADLINE_S):
            session.abort()  # it would wait for an answer for as long as a VACUUM may take
        self._look_took_s = self._clock.now() - began
        return seen

    def _decide(self, seen: Look, rows_written: float) -> dict[int, Verdict]:
        """Tell each heap's policy what was seen, and ask it."""
        total = sum(heap.bytes for heap in seen.heaps)
        self._ratio = max(0.0, total / self._start_bytes - 1) if self._start_bytes > 0 else 0.0
        alone = len(seen.heaps) == 1
        for oid in self._policies.keys() - {heap.oid for heap in seen.heaps}:
            del self._policies[oid]
        partitions = {heap.oid: Partition(heap.updates, heap.bytes, heap.rows) for heap in seen.heaps}
        written = self._apportioner.divide(self._clock.now(), partitions, rows_written)
        verdicts = {}
        for heap in seen.heaps:
            policy = self._policies.get(heap.oid)
            if policy is None:
                policy = self._policies[heap.oid] = self._new_policy(heap, total, alone=alone)
            policy.look(
                Sight(
                    now=self._clock.now(),
                    bytes=heap.bytes,
                    index_bytes=heap.index_bytes,
                    updates=heap.updates,
                    hot_updates=heap.hot_updates,
                    deletes=heap.deletes,
                    dead_rows=heap.dead_rows,
                    vacuums=heap.vacuums,
                    next_xid=seen.next_xid,
                    horizon_xid=seen.horizon_xid,
                    rows_written=written[heap.oid],
                    rows_left=self._rows_total - rows_written if alone and self._rows_total > 0 else None,
                )
            )
            verdicts[heap.oid] = policy.decide()
        return verdicts

    def _allowance(self) -> float:
        """Rows until some heap could exceed its budget, if they go on being divided as lately."""
        rows = [
            policy.allowance_rows / share
            for oid, policy in self._policies.items()
            if (share := self._apportioner.shares.get(oid, 0.0)) > 0
        ]
        return min(rows, default=math.inf)

    def _new_policy(self, heap: Heap, total: int, *, alone: bool) -> GrowthPolicy:
        """Of a partition only its size now is known: it is taken to have grown as the whole table has."""
        grown = max(1.0, total / self._start_bytes) if self._start_bytes > 0 else 1.0
        start_bytes = self._start_bytes if alone else round(heap.bytes / grown)
        return GrowthPolicy(self._max_growth, start_bytes=start_bytes, rows=heap.rows)

    # -- acting -----------------------------------------------------------------------------------------------------

    def _act(self, seen: Look, verdicts: Mapping[int, Verdict]) -> None:
        heaps = {heap.oid: heap for heap in seen.heaps}
        held = [heaps[oid] for oid, verdict in verdicts.items() if verdict.hold]
        blocked = [heaps[oid] for oid, verdict in verdicts.items() if verdict.blocked]
        wanted = [heaps[oid] for oid, verdict in verdicts.items() if verdict.start or verdict.blocked]
        forbidden = [heap for heap in wanted if not heap.may_vacuum]
        if forbidden:
            self._warn(
                f"no right to VACUUM {forbidden[0].name}: the job's role must own it, or have MAINTAIN on it"
                " (PostgreSQL 17 and newer); when the table has grown by its budget the job will wait"
            )
        self._warn_of_blocker(seen, blocked)
        if self._working is None:
            self._begin([heap for heap in wanted if verdicts[heap.oid].start and heap.may_vacuum], verdicts)
        worst = max(held, key=lambda heap: self._policies[heap.oid].ratio, default=None)
        self._held = "" if worst is None else self._reason(worst, seen, is_blocked=worst in blocked)

    def _begin(self, candidates: list[Heap], verdicts: Mapping[int, Verdict]) -> None:
        # Somebody else's VACUUM, most likely an autovacuum, is left alone until the job would have to wait for it.
        candidates = [heap for heap in candidates if heap.vacuum_pid is None or verdicts[heap.oid].hold]
        if not candidates:
            return
        heap = max(candidates, key=lambda heap: self._policies[heap.oid].dead_bytes)
        verdict = verdicts[heap.oid]
        self._policies[heap.oid].started(self._clock.now(), verdict)
        self._working_on, self._working_since = heap.oid, self._clock.now()
        self._working = asyncio.create_task(
            self._vacuum(self._policies[heap.oid], heap.name, verdict), name=f"vacuum {heap.name}"
        )

    async def _vacuum(self, policy: GrowthPolicy, table: TableName, verdict: Verdict) -> None:
        """One VACUUM on a session of its own."""
        failed = True
        try:
            self._session = await self._database.connect("vacuum", data=True, statement_timeout_s=VACUUM_TIMEOUT_S)
            await vacuum(
                self._session,
                table,
                clean_indexes=verdict.whole,
                cost_delay_ms=verdict.gear.cost_delay_ms,
                cost_limit=verdict.gear.cost_limit,
            )
            failed = False
            self._vacuums += 1
            self._trouble = ""
        except Exception as error:
            self._trouble = classify(error).message
            self._warn(f"VACUUM of {table} failed: {self._trouble}; it is tried again")
        finally:
            policy.ended(self._clock.now(), failed=failed)
            self._working_on = self._working_since = None
            session, self._session = self._session, None
            self._news.set()
            if session is not None:
                await session.close()

    # -- telling ----------------------------------------------------------------------------------------------------

    def _reason(self, heap: Heap, seen: Look, *, is_blocked: bool) -> str:
        policy = self._policies[heap.oid]
        grown, allowed = (format_value(value, Unit.RATIO) for value in (policy.ratio, self._max_growth))
        if policy.ratio > self._max_growth:
            measured = format_comparison(policy.ratio, ">", self._max_growth, Unit.RATIO)
        else:
            measured = f"{grown} nears {allowed}" if grown != allowed else f"has reached {allowed}"
        where = f" ({heap.name})" if len(seen.heaps) > 1 else ""
        if not heap.may_vacuum:
            why = "no right to VACUUM"
        elif policy.is_running:
            why = "VACUUM is at work"
        elif is_blocked:
            why = f"VACUUM can remove nothing for {seen.holder or 'an old snapshot'}"
        elif self._trouble:
            why = f"VACUUM failed: {self._trouble}"
        else:
            why = "VACUUM is due"
        return f"{GATE} {measured}{where}; {why}"

    def _warn_of_blocker(self, seen: Look, blocked: list[Heap]) -> None:
        if not blocked:
            self._blocked_since = None
            return
        if self._blocked_since is None:
            self._blocked_since = self._clock.now()
        if self._clock.now() - self._blocked_since >= BLOCKED_PATIENCE_S:
            self._warn(
                f"VACUUM of {blocked[0].name} would remove nothing: {seen.holder or 'somebody'} may still look at the"
                " dead rows; the job will wait once the table has grown by its budget"
            )

    def _warn(self, message: str) -> None:
        """Once per message."""
        if message not in self._warned:
            self._warned.add(message)
            self._emit(Warned(job=self._job, message=message))

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not longer than until a VACUUM has ended."""
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._news.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in waits:
                waiting.cancel()
        self._news.clear()
