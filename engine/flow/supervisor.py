"""One process's part in one job: opens it, holds the barrier, runs workers phase by phase, and knows when it is over.

::

    planned ── barrier passed ──▶ running ── moved and swept ──▶ verifying (if asked for) ──▶ done
                                   │    ▲                         │    ▲
                                  paused: only resume goes on     paused        failed, cancelled: nobody works

``running`` and ``verifying`` go through phases (``flow.phases``), each with a barrier before it and spans of its own.

Beside the workers run three small loops on the control connection: one renews the leases, one follows the job's state
(told by NOTIFY, else by polling) and tells the ledger how the workers are doing, one paces (``flow.pacer``).  None of
them waits for a chunk, so a lease never depends on how long a chunk or a hold takes.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from aiolimiter import AsyncLimiter

from engine.clock import Clock, SystemClock, jittered
from engine.crashpoint import crashpoint
from engine.db.failures import classify
from engine.errors import BackfillError, CannotConnect, HeldByOperator, Stopped, UnknownJob
from engine.events import Draining, Emit, JobOpened, PhaseChanged, StateChanged, Waiting, WorkersWaited
from engine.flow import barrier, opening, phases
from engine.flow.bounds import Prober
from engine.flow.control import DATABASE_IS_AWAY, TRY_AGAIN, Control, as_stop
from engine.flow.keeping import renew_leases, standstill, watch_leases
from engine.flow.movers.build import build_mover
from engine.flow.pacer import MakeLaw, Pacer
from engine.flow.prepare import Prepared
from engine.flow.result import RunResult
from engine.flow.shared import SETTLE_S, Leases, Shared, Sides, Stop
from engine.flow.transforming import TransformNotReady
from engine.flow.worker import Worker
from engine.ledger.records import Heartbeat, JobRecord, JobStatus
from engine.ledger.store import Ledger
from engine.model import JobState, Phase, Side, Verify
from engine.pace.bucket import TokenBucket
from engine.pace.controller import Controller
from engine.pace.law import Decision
from engine.spec.models import MAX_WORKERS

FOLLOW_S: Final = 1.0
"""Between two looks at the job's state when nobody notifies: an order reaches every worker within twice this."""

SCHEMA_NEWS_S: Final = 1.5
BARRIER_POLL_S: Final = 0.5
CONTROL_PATIENCE_S: Final = 300.0
"""How long the ledger may be out of reach before this process gives up; its leases have long run out by then."""

WORKERS_PER_PROBER: Final = 2


class Supervisor:
    """Runs ``workers`` workers on one prepared job until the job ends, the process is drained, or it fails.

    ``attach``: watch only.  ``wait``: False raises instead of waiting for a paused job.  ``known``: the number of the
    job that is meant; none is created then.  ``make_law``: another law of the pace than ours, for benchmarks.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        workers: int,
        emit: Emit,
        wait: bool = True,
        attach: bool = False,
        known: int | None = None,
        clock: Clock | None = None,
        leases: Leases | None = None,
        seed: int | None = None,
        make_law: MakeLaw = Controller,
    ) -> None:
        self._prepared = prepared
        self._workers_wanted = 0 if attach else workers
        self._emit = emit
        self._wait, self._known = wait, known
        self._clock = clock or SystemClock()
        self._leases = leases or Leases()
        self._rng = random.Random(seed)
        self._drain = Stop()
        self._bucket = TokenBucket(prepared.spec.pace.max_rows_per_s, self._clock)
        self._control = Control(prepared.endpoints, prepared.spec.name, emit, self._hear)
        self._pacer = Pacer(
            prepared,
            self._control,
            self._bucket,
            clock=self._clock,
            rng=self._rng,
            emit=emit,
            make_law=make_law,
        )
        self._job: JobRecord | None = None  # as last looked at
        self._shared: Shared | None = None
        self._workers: list[Worker] = []
        self._waits_before: dict[str, float] = {}  # what the bucket had counted when this phase's workers were made
        self._waits_told: dict[str, float] = {}  # seconds by reason of this phase's workers, as last told
        self._everybody: list[str] = []  # ids of all workers that this process has had
        self._news = asyncio.Event()
        self._state: JobState | None = None
        self._waiting = ""
        self._schema_turn = asyncio.Lock()
        self._schema_checked_at = -math.inf
        self._seen_schema: dict[str, Any] | None = None  # when this process began to verify
        self._looks = AsyncLimiter(5, 1)  # a storm of notifications must not become a storm of queries
        self._status: JobStatus | None = None

    # -- from outside -----------------------------------------------------------------------------------------------

    def drain(self, reason: str) -> None:
        """Finish or roll back the chunks in hand, release the leases, and return from ``run``."""
        if not self._drain.is_set:
            self._emit(Draining(job=self._prepared.spec.name, reason=reason))
            self._drain.set(reason)
            self._news.set()
            if self._shared is not None:
                self._shared.stop.set(reason)

    def abort(self) -> None:
        """Drop all connections now; what was running rolls back and the leases run out."""
        self.drain("abort")
        for worker in self._workers:
            worker.abort()

    @property
    def status(self) -> JobStatus | None:
        """The job's status at the last look, for live progress."""
        return self._status

    @property
    def pace(self) -> Decision | None:
        """The decision in force in this process, for live progress."""
        return self._pacer.decision

    @property
    def prepared(self) -> Prepared:
        """The job as it is run here."""
        return self._prepared

    @property
    def leads(self) -> bool:
        """True while this process decides the pace of the job."""
        return self._pacer.leads

    @property
    def workers(self) -> Sequence[Worker]:
        """This process's workers, for live progress."""
        return self._workers

    async def run(self) -> RunResult:
        """Work the job.  Raises ``BackfillError`` for what keeps it from being opened; everything later is in the
        result.
        """
        began = self._clock.now()
        name = self._prepared.spec.name
        try:
            await self._control.open()
            opened = await self._open()
            self._emit(
                JobOpened(
                    job=name,
                    mode=self._prepared.mode,
                    source=self._prepared.source_label,
                    target=self._prepared.target_label,
                    resumed=opened.resumed,
                    rows_estimated=opened.job.rows_estimated,
                    spans=len(self._prepared.plan.spans),
                    attached=self._workers_wanted == 0,
                )
            )
            error = await self._work(opened.job)
            return await self._result(began, opened.resumed, error)
        finally:
            await self._close()

    # -- opening ----------------------------------------------------------------------------------------------------

    async def _open(self) -> opening.Opened:
        ledger = self._control.ledger
        await ledger.ensure()
        try:
            return await opening.open_job(ledger, self._prepared, self._control.sides, known=self._known)
        except Stopped as error:
            job = await ledger.find(self._prepared.spec.name)
            if job is not None:
                await ledger.fail(job.id, error, resumable=error.resumable)
            raise

    # -- the job's life ---------------------------------------------------------------------------------------------

    async def _work(self, job: JobRecord) -> BackfillError | None:
        """Follow the job through its states until it ends or we are to stop."""
        lost_since: float | None = None
        while not self._drain.is_set:
            self._note_state(job)
            try:
                ended, error = await self._live(job)
                if ended:
                    return error
                job = await self._look(job)
                lost_since = None
            except (HeldByOperator, UnknownJob):
                raise
            except Exception as trouble:
                away = classify(trouble).action in DATABASE_IS_AWAY
                workers_gave_up = self._shared is not None and self._shared.failure is trouble
                if isinstance(trouble, CannotConnect) and (workers_gave_up or not away):
                    raise
                if not away and classify(trouble).action not in TRY_AGAIN:
                    await self._record_failure(job, as_stop(trouble))
                    job = await self._look(job)
                    continue
                lost_since = self._clock.now() if lost_since is None else lost_since
                await self._bear(trouble, lost_since)
        return None

    async def _live(self, job: JobRecord) -> tuple[bool, BackfillError | None]:
        """What the job's state asks of this process.  True with the error, if any, when there is nothing more to do."""
        match job.state:
            case JobState.DONE:
                return True, None
            case JobState.FAILED:
                # Our own failure says more than what the ledger keeps of it.
                return True, (self._shared.failure if self._shared is not None else None) or _recorded(job)
            case JobState.CANCELLED:
                return True, HeldByOperator(
                    f"job {job.name} was cancelled" + (f": {job.reason}" if job.reason else ""),
                    state=job.state,
                    hint="backfill restart begins it anew",
                )
            case JobState.PAUSED if not self._wait:
                return True, HeldByOperator(
                    f"job {job.name} is paused" + (f": {job.reason}" if job.reason else ""),
                    state=job.state,
                    hint="backfill resume lets it go on",
                )
            case JobState.PAUSED:
                await self._pacer.rest()
                self._say("paused" + (f": {job.reason}" if job.reason else ""))
                await self._for_news()
            case JobState.PLANNED:
                await self._pass_start_barrier(job)
            case _:
                await self._run_phase(job)
        return False, None

    async def _bear(self, trouble: Exception, since: float) -> None:
        """A database is away, or somebody holds what we need.  Wait, but not for ever."""
        failure = classify(trouble)
        if self._clock.now() - since > CONTROL_PATIENCE_S:
            raise CannotConnect(
                f"no way on for {CONTROL_PATIENCE_S / 60:.0f} minutes: {failure.message}",
                hint="run the same command again when that is over: the job goes on where it was",
                sqlstate=failure.sqlstate or None,
            ) from trouble
        self._say(f"a database of the job: {failure.message}")
        await self._drain.pause(self._clock, jittered(FOLLOW_S, self._rng))
        await self._control.reconnect()

    def _hear(self) -> None:
        """Somebody has notified: look soon."""
        self._news.set()

    def _note_state(self, job: JobRecord) -> None:
        if job.state is not self._state:
            self._state = job.state
            self._emit(StateChanged(job=job.name, state=job.state, reason=job.reason or job.error_message or ""))

    async def _look(self, job: JobRecord) -> JobRecord:
        async with self._looks:
            now = await self._control.ledger.job(job.name)
        if now.id != job.id:  # what we have prepared is not for that
            raise UnknownJob(f"job {job.name} was begun anew meanwhile")
        return now

    async def _for_news(self) -> None:
        """Wait until somebody notifies, the poll is due, or we are to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FOLLOW_S):
                await self._news.wait()
        self._news.clear()

    def _say(self, reason: str) -> None:
        """Nothing moves, and why; said once per reason."""
        if reason != self._waiting:
            self._waiting = reason
            self._emit(Waiting(job=self._prepared.spec.name, reason=reason))

    async def _pass_start_barrier(self, job: JobRecord) -> None:
        """Wait until nobody is left who may write behind the frozen bounds without dual-write; then open the job."""
        ledger = self._control.ledger
        if self._workers_wanted == 0:
            await self._for_news()
            return
        if not await self._barrier_has_passed(job):
            return
        async with self._control.data_session(
            Side.TARGET if self._prepared.endpoints.is_one else Side.SOURCE
        ) as session:
            more = await opening.rows_behind(job, ledger, self._prepared, session)
        await ledger.start(job.id, more)

    async def _barrier_has_passed(self, job: JobRecord) -> bool:
        """True once everybody named by the job's barrier is gone; else after telling whom it waits for, and a pause."""
        ledger = self._control.ledger
        left = await barrier.still_running(job.barrier_snapshot, self._control.sides)
        if not left:
            self._say("")
            return True
        shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        reason = f"older transactions to end: {shown}"
        self._say(reason)
        await ledger.waits_for(job.id, reason)
        await self._drain.pause(self._clock, BARRIER_POLL_S)
        return False

    # -- a phase ----------------------------------------------------------------------------------------------------

    async def _run_phase(self, job: JobRecord) -> None:
        """Run the workers until the phase is exhausted, the job changes its state, or we are to stop."""
        phase = job.phase
        if phase is None or self._workers_wanted == 0:
            await self._refresh_status()
            await self._for_news()
            return
        if job.barrier_snapshot is not None:
            if not await self._barrier_has_passed(job):
                await self._pacer.rest()
                return
            await self._open_phase(job, phase)
            return
        self._say("")
        self._job = job
        if await self._control.ledger.unfinished(job.id, phase) == 0:
            await self._end_phase(job, phase)
            return
        shared = await self._share(job, phase)
        self._shared = shared
        probers = self._probers(shared, phases.paged(self._prepared, job, phase).side)
        self._workers = [
            Worker(
                n + 1,
                shared,
                build_mover(self._prepared, job, phase, f"w{n + 1}", self._clock, shared.stop),
                probers[n // WORKERS_PER_PROBER],
                start_rows=phases.START_ROWS.get(phase),
                see_off=self._pacer.see_off,
            )
            for n in range(self._workers_wanted)
        ]
        self._waits_before, self._waits_told = self._bucket.waits, {}
        self._everybody += [w.id for w in self._workers]
        await self._beat(shared)  # others see at once that somebody works on it, and share the limit
        await self._refresh_status()
        self._pacer.hear(job, self._status)
        await self._pacer.begin(shared, self._workers)
        helpers = [
            asyncio.create_task(self._guarded(self._pacer.run(), shared), name="pace"),
            asyncio.create_task(self._guarded(self._pacer.watch_expiry(), shared), name="pace expiry"),
            asyncio.create_task(
                self._guarded(renew_leases(shared, self._workers, self._control), shared), name="leases"
            ),
            asyncio.create_task(self._guarded(watch_leases(shared, self._workers), shared), name="watch"),
            asyncio.create_task(self._guarded(self._follow(shared, phase), shared), name="follow"),
        ]
        working = [asyncio.create_task(w.run(), name=w.name) for w in self._workers]
        try:
            await asyncio.gather(*working)
        except BaseException:
            shared.stop.set("a worker died")
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            raise
        finally:
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            with suppress(Exception):
                await self._beat(shared)
                # The next phase has workers of its own: these must not count as theirs beside them.
                await self._control.ledger.leave([w.id for w in self._workers])
            for prober in probers:
                await prober.close()
        if shared.failure is not None:
            await self._record_failure(job, shared.failure)
        elif not shared.stop.is_set:
            self._say("")  # the workers got to the end before anybody looked at them again
            await self._end_phase(job, phase)

    async def _share(self, job: JobRecord, phase: Phase) -> Shared:
        prepared = self._prepared
        ledger = self._control.ledger
        through = phases.paged(prepared, job, phase)
        stop = Stop()
        if self._drain.is_set:
            stop.set(self._drain.reason)
        return Shared(
            job=job.name,
            job_id=job.id,
            phase=phase,
            table=through.table,
            key=through.key,
            space=await opening.key_space(ledger, job, prepared, phase),
            bucket=self._bucket,
            limits=phases.chunk_limits(prepared.spec, job, phase, workers=self._workers_wanted),
            leases=self._leases,
            clock=self._clock,
            rng=self._rng,
            emit=self._emit,
            target=prepared.target if phase is Phase.MOVE and prepared.asks_ahead else None,
            check_schema=self._check_schema,
            end_backends=self._control.end_backends,
            verification_id=job.verification_id,
            max_quarantined=prepared.spec.errors.max_quarantined,
            arbiters=prepared.arbiters,
            stop=stop,
        )

    def _probers(self, shared: Shared, side: Side) -> list[Prober]:
        """Enough index walkers that workers do not queue for them."""
        endpoints = self._prepared.endpoints
        database = endpoints.target if side is Side.TARGET else endpoints.source
        count = -(-self._workers_wanted // WORKERS_PER_PROBER)
        return [Prober(database, shared.table, shared.key, self._clock) for _ in range(count)]

    async def _check_schema(self, sides: Sides) -> None:
        """Before every claim and before the end: is the job still about the tables it was planned for?"""
        assert self._job is not None
        async with self._schema_turn:
            if self._clock.now() - self._schema_checked_at < SCHEMA_NEWS_S:
                return  # workers that claim at the same moment share one look
            if self._job.state is JobState.VERIFYING:
                now = await opening.take_fingerprint(self._prepared, sides)
                self._seen_schema = self._seen_schema or now
                opening.check_unchanged(self._seen_schema, now, self._prepared)
            else:
                await opening.check_schema(Ledger(sides[Side.TARGET]), self._job, self._prepared, sides)
            self._schema_checked_at = self._clock.now()

    async def _end_phase(self, job: JobRecord, phase: Phase) -> None:
        """No worker of ours found anything left.  The ledger decides whether the phase is over; one process acts."""
        ledger = self._control.ledger
        self._schema_checked_at = -math.inf
        await self._check_schema(self._control.sides)
        await opening.check_spans(ledger, await ledger.job(job.name), self._prepared, self._control.sides)
        after = await phases.following(self._prepared, ledger, job, phase)
        if after is not None:
            crashpoint("phase.before")
            # Taken after the last chunk committed: whoever may not have seen it is among these.
            frozen = await phases.freeze(ledger, job, after, self._control.sides)
            if await ledger.change_phase(job.id, phase, after, frozen):
                crashpoint("phase.after")
                self._emit(PhaseChanged(job=job.name, phase=after))
            return
        crashpoint("finish.before")
        if phase.state is JobState.VERIFYING:
            finished = await ledger.finish_verification(job.id, job.name, phase)
        elif self._prepared.spec.verify is Verify.AFTER:
            finished = await ledger.begin_own_verification(
                job.id,
                phase,
                settle_s=SETTLE_S,
                not_compared=self._prepared.not_compared,
                target_mark=await opening.mark_of(self._prepared, self._control.sides),
            )
        else:
            finished = await ledger.finish(job.id, phase)
        if finished:
            crashpoint("finish.after")

    async def _open_phase(self, job: JobRecord, phase: Phase) -> None:
        """The barrier has passed: plan the phase's spans, unless another process was faster."""
        async with self._control.data_sides() as sides:
            planned = await phases.plan(
                self._prepared, self._control.ledger, job, phase, sides, workers=self._workers_wanted
            )
        await self._control.ledger.open_phase(job.id, phase, planned.spans, sweep_by=planned.sweep_by)

    async def _record_failure(self, job: JobRecord, error: BackfillError) -> None:
        """A guard of the job's stops it for everybody; what keeps only this process from work does not."""
        others = isinstance(error, TransformNotReady) and (await self._control.ledger.status(job.name)).workers > 0
        if others or isinstance(error, CannotConnect):
            raise error
        resumable = error.resumable if isinstance(error, Stopped) else True
        await self._control.ledger.fail(job.id, error, resumable=resumable)

    # -- beside the workers -----------------------------------------------------------------------------------------

    async def _guarded(self, loop: Coroutine[Any, Any, None], shared: Shared) -> None:
        """Workers must not go on when one of the loops beside them has died."""
        try:
            await loop
        except Exception as error:
            failure = classify(error)
            shared.fail(
                error if isinstance(error, BackfillError) else BackfillError(failure.message, hint=failure.hint)
            )

    async def _beat(self, shared: Shared) -> None:
        beats = [w.heartbeat() for w in self._workers]
        if beats:
            beats[0].waits.update(
                {
                    reason: seconds - before
                    for reason, seconds in shared.bucket.waits.items()
                    if seconds > (before := self._waits_before.get(reason, 0.0))
                }
            )
        self._tell_waits(shared, beats)
        await self._control.ledger.heartbeat(shared.job_id, socket.gethostname(), os.getpid(), beats)

    def _tell_waits(self, shared: Shared, beats: Sequence[Heartbeat]) -> None:
        sums: Counter[str] = Counter()
        for beat in beats:
            sums.update(beat.waits)
        fresh = {why: s - before for why, s in sums.items() if s > (before := self._waits_told.get(why, 0.0))}
        self._waits_told = dict(sums)
        if fresh:
            shared.emit(WorkersWaited(job=shared.job, seconds=fresh))

    async def _follow(self, shared: Shared, phase: Phase) -> None:
        """Watch the job's state and limit, where an order from anywhere reaches our workers; tell the others how they
        are doing.
        """
        while True:
            try:
                async with self._looks:
                    job = self._job = await self._control.ledger.job(shared.job)
                here = (shared.job_id, phase, shared.verification_id)
                if not job.state.is_at_work or (job.id, job.phase, job.verification_id) != here:
                    shared.stop.set(job.state.value)
                await self._beat(shared)
                await self._refresh_status()
                self._pacer.hear(job, self._status)  # last: a limit is divided among as many workers as there are now
                self._follow_order(job, shared)
                self._say(standstill(self._workers))
            except Exception as error:
                self._say(f"a database of the job: {classify(error).message}")
                await self._control.mend(error)
            await self._for_news()

    def _follow_order(self, job: JobRecord, shared: Shared) -> None:
        """More workers than there are were ordered: begin the phase anew with as many.  Fewer are a matter of pace."""
        ordered = job.orders.workers
        if ordered is None or self._status is None:
            return
        elsewhere = max(0, self._status.workers - len(self._workers))
        wanted = min(MAX_WORKERS, ordered - elsewhere)
        if wanted > self._workers_wanted:
            self._workers_wanted = wanted
            shared.stop.set("more workers were ordered")

    async def _refresh_status(self) -> None:
        self._status = await self._control.ledger.status(self._prepared.spec.name)

    # -- the end ----------------------------------------------------------------------------------------------------

    async def _result(self, began: float, resumed: bool, error: BackfillError | None) -> RunResult:
        name = self._prepared.spec.name
        status = await self._control.ledger.status(name)
        self._status = status
        return RunResult(
            job=name,
            state=status.state,
            rows=status.rows_done,
            bytes=status.bytes_done,
            chunks=status.chunks,
            seconds=self._clock.now() - began,
            retries=status.retries,
            resumed=resumed,
            drained=self._drain.is_set,
            error=error,
            quarantined=status.quarantined,
            verified=status.verified,
        )

    async def _close(self) -> None:
        with suppress(Exception):
            await self._pacer.rest()
            if self._everybody:
                await self._control.ledger.leave(self._everybody)
        await self._control.close()


def _recorded(job: JobRecord) -> BackfillError:
    """The failure that the ledger tells of, as an error again."""
    return Stopped(job.error_message or "the job failed", hint=job.error_hint or "")
