"""The jobs of a ledger, worked in this process by whoever created them: so many at once, the oldest first.

::

    look ──▶ a job that can be worked here, and room ──▶ a task with a supervisor ──▶ done, failed, paused, drained
      ▲                                                                                        │
      └──────────── a notification, a task's end, or POLL_S ◀──────────────────────────────────┘

A job that is paused gives its place away, and gets one again when it is resumed.  A job that cannot be worked here is
left to other hosts, said so once, and tried again later.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

from aiolimiter import AsyncLimiter

from engine.clock import Clock, SystemClock
from engine.db import Action, Connection, Database, classify
from engine.errors import BackfillError, CannotConnect, UnknownJob
from engine.events import Draining, Emit, Event, ignore
from engine.fleet.lent import DEFAULT_VARIABLES, Lender, Lent
from engine.fleet.signals import NAMES, TwoSignals
from engine.flow.dual_write_change import prepared_for_change
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import inspect
from engine.flow.result import RunResult
from engine.flow.supervisor import Supervisor
from engine.flow.transforming import require_allowed
from engine.ledger.records import JobRecord
from engine.ledger.store import Ledger
from engine.model import JobState, Side
from engine.spec import JobSpec
from engine.telemetry import finished_event
from engine.telemetry.entries import Entry, Weight

__all__ = ["DEFAULT_VARIABLES", "JobLeftAside", "Lender", "Lent", "Pool", "left_aside"]

POLL_S: Final = 5.0
"""Between two looks for work when nobody notifies."""

ASIDE_S: Final = 60.0
"""How long a job that cannot be worked here is left aside before it is tried again; ``POLL_S`` when it was heard of."""

LOOK_S: Final = 10.0
"""What one look may take, where somebody waits to hear that the ledger can be reached."""

ABORT_S: Final = 3.0
LOOKS_PER_S: Final = 5
"""A storm of notifications must not become a storm of looks."""

BUG: Final = "this is a bug: please report it"
_AWAY: Final = (Action.RECONNECT, Action.WAIT, Action.PAUSE)
_WORKABLE: Final = (JobState.PLANNED, JobState.RUNNING, JobState.VERIFYING)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLeftAside(Event):
    """This host does not work that job (now), and why."""

    name = "job.aside"
    reason: str


def left_aside(event: JobLeftAside) -> Entry:
    """How it is told."""
    return Entry(
        event=event.name,
        message=f"{event.job} is left aside: {event.reason}",
        weight=Weight.WARNING,
        fields={"job": event.job, "reason": event.reason},
    )


@dataclass(slots=True)
class _Hand:
    """One job in work."""

    task: asyncio.Task[None]
    supervisor: Supervisor | None = None  # once the job is prepared


@dataclass(frozen=True, slots=True)
class _Aside:
    """A job that is left to others: since when, until when, and why."""

    since: float
    until: float
    reason: str


class Pool:
    """Works the jobs of one ledger until drained; with ``once``, until no job is left to work.

    ``only``: names of jobs, empty for all.  ``workers`` None: as many as each job's spec says.  ``jobs``: so many at
    once.  ``patient``: nothing that a ledger or a job does ends the run, not even at its start; ``trouble`` tells.
    ``looked`` is called after each look at the ledger, with the trouble that there was, or None.
    """

    def __init__(
        self,
        lender: Lender,
        *,
        workers: int | None = None,
        only: Sequence[str] = (),
        once: bool = False,
        jobs: int = 1,
        patient: bool = False,
        emit: Emit = ignore,
        looked: Callable[[str | None], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self.errors: dict[str, BackfillError] = {}  # jobs that could not be worked here, or that failed
        self.seen_at: float | None = None  # when the ledger was last looked at, by the clock
        self.trouble: str | None = None  # why the last look failed
        self._lender = lender
        self._workers = workers
        self._only = frozenset(only)
        self._once = once
        self._room = jobs
        self._patient = patient
        self._emit = emit
        self._looked = looked
        self._clock = clock or SystemClock()
        self._signals = TwoSignals(lambda number: self.drain(NAMES[number]), self.abort)
        self._stop = asyncio.Event()
        self._news = asyncio.Event()
        self._hands: dict[str, _Hand] = {}
        self._aside: dict[str, _Aside] = {}
        self._looks = AsyncLimiter(LOOKS_PER_S, 1)
        self._task: asyncio.Task[Any] | None = None
        self._connection: Connection | None = None
        self._is_cut_off = False

    # -- from outside -------------------------------------------------------------------------------------------------

    @property
    def interrupted(self) -> signal.Signals | None:
        """The first signal that came, if one did."""
        return self._signals.first

    @property
    def supervisors(self) -> tuple[Supervisor, ...]:
        """Those of the jobs in work, the longest at work first."""
        return tuple(hand.supervisor for hand in self._hands.values() if hand.supervisor is not None)

    @property
    def supervisor(self) -> Supervisor | None:
        """The one of the job that has been in work for longest, or None."""
        return next(iter(self.supervisors), None)

    @property
    def working(self) -> tuple[str, ...]:
        """Names of the jobs in work."""
        return tuple(self._hands)

    @property
    def aside(self) -> Mapping[str, str]:
        """The jobs that nobody here works, and why."""
        return {job: aside.reason for job, aside in self._aside.items()}

    def drain(self, reason: str) -> None:
        """Take no more jobs, finish or roll back the chunks in hand, and return from ``run``."""
        if self._stop.is_set():
            return
        self._stop.set()
        for supervisor in self.supervisors:
            supervisor.drain(reason)
        if not self._hands:
            self._emit(Draining(job="", reason=reason))

    def abort(self) -> None:
        """Drop all connections now; what does not end by that is cut off soon after."""
        self.drain("abort")
        for supervisor in self.supervisors:
            supervisor.abort()
        if self._task is not None:
            asyncio.get_running_loop().call_later(ABORT_S, self._cut_off)

    def _cut_off(self) -> None:
        if self._task is not None and not self._task.done():
            self._is_cut_off = True
            self._task.cancel()

    # -- the life of a pool -------------------------------------------------------------------------------------------

    async def run(self, *, signals: bool = True) -> None:
        """Work until told to stop, or with ``once`` until nothing is left.  Unless ``patient``, raises
        ``BackfillError`` for what keeps the ledger itself out of reach at the start.
        """
        self._task = asyncio.current_task()
        with self._signals.watched() if signals else nullcontext():
            try:
                if not self._patient:
                    await self._connect()
                await self._loop()
            except asyncio.CancelledError:
                if not self._is_cut_off:
                    raise
            finally:
                self._task = None
                await self._let_go()

    async def _loop(self) -> None:
        while not self._stop.is_set():
            self._reap()
            job = await self._next()
            if job is not None:
                self._begin(job)
            elif self._once and not self._hands:
                return
            else:
                await self._for_news()
        while self._hands:
            await asyncio.wait([hand.task for hand in self._hands.values()], return_when=asyncio.FIRST_COMPLETED)
            self._reap()

    async def _let_go(self) -> None:
        """Nothing is left behind, whatever ended the run."""
        tasks = [hand.task for hand in self._hands.values()]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._hands.clear()
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()

    # -- looking for work ---------------------------------------------------------------------------------------------

    async def _connect(self) -> Ledger:
        if self._connection is None or self._connection.is_closed:
            self._connection = await Database(self._lender.target, side=Side.TARGET).connect("pool")
            if self._connection.server.capabilities.listen_notify:
                await self._connection.add_listener("backfill", self._heard)
        return Ledger(self._connection)

    def _heard(self, job: str) -> None:
        """Something happened to a job: it is worth another look, though not at once if it was tried just now."""
        aside = self._aside.get(job)
        if aside is not None:
            self._aside[job] = _Aside(aside.since, min(aside.until, aside.since + POLL_S), aside.reason)
        self._news.set()

    async def _next(self) -> JobRecord | None:
        """The oldest job that can be worked here, or None."""
        has_room = len(self._hands) < self._room
        if not has_room and not self._patient:
            return None  # nobody asks when the ledger was seen last
        try:
            async with asyncio.timeout(LOOK_S if self._patient else None):
                return await self._look(has_room=has_room)
        except Exception as error:
            if not self._patient and (self._once or classify(error).action not in _AWAY):
                raise
            self._note(classify(error).message)
            if self._connection is not None:
                self._connection.abort()
        return None

    async def _look(self, *, has_room: bool) -> JobRecord | None:
        async with self._looks:
            ledger = await self._connect()
        names = await ledger.workable() if await ledger.installed_version() else ()
        now = self.seen_at = self._clock.now()
        self._note(None)
        self._aside = {name: aside for name, aside in self._aside.items() if name in names}
        if self._patient:
            self.errors = {name: error for name, error in self.errors.items() if name in names}
        for name in names:
            is_mine = name not in self._hands and (not self._only or name in self._only)
            if has_room and is_mine and (name not in self._aside or self._aside[name].until <= now):
                return await ledger.find(name)
        return None

    def _note(self, trouble: str | None) -> None:
        self.trouble = trouble
        self._looked(trouble)

    async def _for_news(self) -> None:
        """Wait until somebody notifies, a job in work has ended, the poll is due, or we are to stop."""
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(e.wait()) for e in (self._news, self._stop)]
        waiting.append(asyncio.ensure_future(self._clock.sleep(POLL_S)))
        try:
            hands = [hand.task for hand in self._hands.values()]
            await asyncio.wait([*waiting, *hands], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        self._news.clear()

    # -- working ------------------------------------------------------------------------------------------------------

    def _begin(self, job: JobRecord) -> None:
        self._hands[job.name] = _Hand(asyncio.create_task(self._work(job), name=f"job {job.name}"))

    def _reap(self) -> None:
        """Give the places of ended jobs away.  Raises what nobody expected one to die of."""
        for name, hand in list(self._hands.items()):
            if hand.task.done():
                del self._hands[name]
                if not hand.task.cancelled():
                    hand.task.result()

    async def _work(self, job: JobRecord) -> None:
        try:
            result = await self._run(job)
        except UnknownJob as error:
            self._emit(JobLeftAside(job=job.name, reason=error.message))  # removed from the ledger: nobody's any more
        except BackfillError as error:
            self._set_aside(job.name, error)
        except Exception as error:
            failure = classify(error)
            if failure.action in _AWAY:
                self._set_aside(job.name, CannotConnect(failure.message, hint=failure.hint, sqlstate=failure.sqlstate))
            elif self._patient:  # a bug, and no reason to take the other jobs down with it
                self._set_aside(job.name, BackfillError(f"unexpected {type(error).__name__}", hint=BUG))
            else:
                raise
        else:
            if result is not None:
                self._ended(result)

    async def _run(self, job: JobRecord) -> RunResult | None:
        spec = self._lender.spec_of(job)
        if job.state is not JobState.VERIFYING:  # to compare takes no transform
            require_allowed(spec)
        seen = await inspect(spec, endpoints_of(spec), runs=job.state is not JobState.VERIFYING)
        # What has become of triggers since the rows were moved is the gate's business.
        prepared = prepared_for_change(seen) if job.state is JobState.VERIFYING else seen.prepared()
        supervisor = Supervisor(prepared, workers=self._workers_of(spec), emit=self._emit, wait=False, known=job.id)
        if self._stop.is_set():
            return None
        self._hands[job.name].supervisor = supervisor
        return await supervisor.run()

    def _workers_of(self, spec: JobSpec) -> int:
        wanted, most = self._workers or spec.workers, self._lender.max_workers
        return wanted if most is None else min(wanted, most)

    def _ended(self, result: RunResult) -> None:
        self._aside.pop(result.job, None)
        self.errors.pop(result.job, None)
        self._emit(finished_event(result))
        if result.error is not None:
            if result.state.is_final:  # how it ended is told already, and nobody is to work it
                self.errors[result.job] = result.error
            else:
                self._set_aside(result.job, result.error, for_s=ASIDE_S if result.state in _WORKABLE else 0.0)
        elif not result.state.is_final and not result.drained:
            now = self._clock.now()  # it changed while we left: look again later, and at others until then
            self._aside[result.job] = _Aside(now, now + POLL_S, result.state.value)

    def _set_aside(self, job: str, error: BackfillError, for_s: float = ASIDE_S) -> None:
        self.errors[job] = error
        reason = error.message + (f" ({error.hint})" if error.hint else "")
        before = self._aside.get(job)
        now = self._clock.now()
        self._aside[job] = _Aside(now, now + for_s, reason)
        if before is None or before.reason != reason:
            self._emit(JobLeftAside(job=job, reason=reason))
