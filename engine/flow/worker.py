"""A worker: claims a span, moves it chunk by chunk, and steals when there is nothing left to claim.

One chunk, in order: bound, admission, move (rows, cursor and fence in one transaction), observation.  Everything that
can go wrong arrives here as an exception of the mover, with nothing written or with the outcome unknown:

* fenced: somebody else advanced, split or took the span.  Read it again; if it is still ours, its bounds have changed
  and the chunk is cut anew, else the lease is lost.
* retry, split, wait: rolled back.  Back off, cut smaller, and try again.
* the connection is gone: the outcome is unknown.  Connect, **claim the span again with the next epoch, and only then
  read the cursor**: until the epoch has moved, the lost connection's COMMIT may still be on its way.
* a row is to blame, and rows may be set aside: the row is looked for (``flow.halving``).  Rows that a transform cannot
  do are no failure: the mover sets them aside with their chunk.
* anything else is no accident and stops the job.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final, NoReturn

from engine.clock import jittered
from engine.crashpoint import crashpoint
from engine.db import Connection
from engine.db.failures import Action, Failure, classify
from engine.errors import CannotConnect, Stopped
from engine.events import ChunkCommitted, ChunkFound, ChunkRetried, LeaseLost, SpanClaimed, SpanReleased, Warned
from engine.flow.bounds import Bound, Bounds, Prober
from engine.flow.control import DATABASE_IS_AWAY, as_stop
from engine.flow.halving import BadRows
from engine.flow.movers import Mover, Unfinished
from engine.flow.shared import Shared, Sides
from engine.flow.speed import Speed
from engine.flow.steal import steal
from engine.flow.waiting import Waits
from engine.ledger.records import Heartbeat
from engine.ledger.store import Ledger
from engine.model import Backend, Observation, Side, Span
from engine.pace.bucket import Admission
from engine.pace.sizer import ChunkSizer

FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 5.0
PATIENCE_S: Final = 900.0
"""How long one chunk may fail, or a server be away, before the worker gives up: the rest is for a person."""

FIRST_IDLE_POLL_S: Final = 0.05
LONGEST_IDLE_POLL_S: Final = 1.0
"""Between two looks for work while others hold all of it; a span let go of in this process is heard of at once."""

FAR_TOO_MANY: Final = 2
"""A chunk that waited for admission is cut anew when it has more than so many times the rows that are wanted by now."""

PARKED_POLL_S: Final = 1.0

NO_SPAN: Final = "no span left to claim"
CLAIMING: Final = "claiming a span"
PARKED: Final = "parked"
AWAY: Final = "server cannot be reached"
RETRY: Final = "retry"


class _Lost(Exception):
    """The span is somebody else's by now."""


class Worker:
    """One of the job's workers in this process; has its own connections, sizer and span."""

    def __init__(
        self,
        number: int,
        shared: Shared,
        mover: Mover,
        prober: Prober,
        *,
        start_rows: int | None = None,
        see_off: Callable[[Connection], Awaitable[None]] | None = None,  # before its connection is closed
    ) -> None:
        self.number = number
        self.id = str(uuid.uuid4())
        self.span: Span | None = None
        self.confirmed_at = 0.0  # when the last renewal that succeeded was sent
        self.waiting = ""
        self.trouble = ""  # what the last attempt failed by, until a chunk is in
        self.waits = Waits(shared.clock)
        self.retries = 0
        self.rows = 0  # written by this worker
        self._shared = shared
        self._mover = mover
        self._prober = prober
        self._see_off = see_off
        self._bounds = Bounds(prober, shared.space, shared.key, shared.target)
        self._bad_rows = BadRows(shared, prober)
        self._attempt: tuple[Bound, float] | None = None  # what the mover was given, and when, while it has it
        limits = shared.limits
        self.sizer = ChunkSizer(
            target_s=limits.target_s,
            min_rows=limits.min_rows,
            max_rows=limits.max_rows,
            max_bytes=limits.max_bytes,
            **({} if start_rows is None else {"start_rows": start_rows}),
        )
        self._connected = False
        self._session = 0  # counts the times we connected
        self._claimed_in = 0  # the session in which the span was claimed
        self._server_started = ""
        self._speed = Speed(shared.clock.now())
        self._failing_since: float | None = None
        self._delay_s = FIRST_DELAY_S

    @property
    def name(self) -> str:
        """For events and the server's list of sessions: w1, w2, …"""
        return f"w{self.number}"

    # -- the worker's life ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until the phase has no span left for us, or until asked to stop.  Never raises for what a job can meet:
        it is in ``shared.failure`` then.
        """
        shared = self._shared
        try:
            while not shared.stop.is_set:
                try:
                    if self.is_parked and not await self._park():
                        break
                    if not await self._connect():
                        break
                    span = self.span or await self._find_span()
                    if span is None and not self.is_parked:
                        break
                    if span is None:
                        continue
                    await self._work(span)
                    await self._hand_back()
                except _Lost:
                    continue
                except Exception as error:
                    await self._between_spans(error)
        finally:
            await self._bounds.forget()
            await self._hand_back()
            if self._see_off is not None and self._connected:
                await self._see_off(self._mover.connection)
            if complaint := await self._mover.close():
                self._shared.emit(Warned(job=self._shared.job, message=f"{self.name}: {complaint}"))

    @property
    def is_parked(self) -> bool:
        """True for a worker that is not needed now."""
        return self.number > self._shared.active

    async def _park(self) -> bool:
        """Wait until needed.  False when there is nothing left to be needed for."""
        shared = self._shared
        self.waiting = PARKED
        try:
            while self.is_parked:
                shared.resized.clear()
                if shared.is_over or await shared.stop.pause(shared.clock, PARKED_POLL_S, also=shared.resized):
                    return False
        finally:
            self.waiting = ""
        return True

    async def _find_span(self) -> Span | None:
        """Claim, else steal, else wait for others to finish; None when the phase is over or we are asked to stop."""
        shared = self._shared
        poll_s = FIRST_IDLE_POLL_S
        self.waits.begin(CLAIMING)
        try:
            while not (shared.stop.is_set or self.is_parked):
                shared.released.clear()
                span = await self._claim()
                if span is None:
                    self.waits.begin(NO_SPAN)
                    shared.scarce = True
                    span = await self._steal()
                if span is not None:
                    return span
                if await self._ledger.unfinished(shared.job_id, shared.phase) == 0:
                    shared.end()
                    return None
                self.waiting = NO_SPAN
                await shared.stop.pause(shared.clock, jittered(poll_s, shared.rng), also=shared.released)
                poll_s = min(poll_s * 2, LONGEST_IDLE_POLL_S)
            return None
        finally:
            self.waiting = ""
            self.waits.end()

    async def _claim(self) -> Span | None:
        shared = self._shared
        await shared.check_schema(self._sides())
        crashpoint("claim.before")
        sent_at = shared.clock.now()
        claim = await self._ledger.claim(shared.job_id, self.id, self._mover.backends, shared.leases.lease_s)
        if claim is None:
            return None
        crashpoint("claim.after")
        self._hold(claim.span, sent_at)
        await self._end(claim.left_behind)
        shared.emit(
            SpanClaimed(
                job=shared.job,
                worker=self.name,
                span=claim.span.id,
                epoch=claim.span.epoch,
                taken_over=bool(claim.left_behind),
            )
        )
        return claim.span

    async def _steal(self) -> Span | None:
        shared = self._shared
        sent_at = shared.clock.now()
        span = await steal(
            shared, self._prober, self._ledger, self.id, self._mover.backends, worth_rows=self.sizer.rows
        )
        if span is None:
            return None
        self._hold(span, sent_at)
        shared.emit(SpanClaimed(job=shared.job, worker=self.name, span=span.id, epoch=span.epoch, stolen=True))
        return span

    def _hold(self, span: Span, sent_at: float) -> None:
        self.span = span
        self.confirmed_at = sent_at
        self._claimed_in = self._session

    def _sides(self) -> Sides:
        source, target = self._mover.session(Side.SOURCE), self._mover.session(Side.TARGET)
        return {Side.TARGET: target} if source is target else {Side.SOURCE: source, Side.TARGET: target}

    async def _end(self, backends: tuple[Backend, ...]) -> None:
        """End what a former holder left behind: a worker frozen inside COPY is stopped by no time-out of the server.

        Not those that work under another lease by now: their worker lost this span and is alive.
        """
        ours = set(self._mover.backends)
        others = tuple(b for b in backends if b not in ours)
        if others:
            alive = await self._ledger.in_use(self._shared.job_id, others)
            await self._shared.end_backends(tuple(b for b in others if b not in alive))

    # -- one span ---------------------------------------------------------------------------------------------------

    async def _work(self, span: Span) -> None:
        """Move the span to its end, or until asked to stop."""
        shared = self._shared
        await self._bounds.begin(span.cursor, span.hi)
        self._bad_rows.forget()
        while not (span.is_finished or shared.stop.is_set or self.is_parked):
            try:
                if not await self._connect():
                    return
                if self._claimed_in != self._session or not self._is_trusted:
                    # Whatever the lost connection was doing may still arrive: first the epoch, then the cursor.
                    span = await self._claim_again(span)
                span = await self._chunk(span)
            except _Lost:
                raise
            except Exception as error:
                span = await self._after_failure(span, error)
            self.span = span

    async def _chunk(self, span: Span) -> Span:
        """One chunk: bound, admission, move, observation.  Returns the span as it stands afterwards."""
        shared = self._shared
        if not self._bad_rows.is_settled:
            return await self._settle(span)
        began = shared.clock.now()
        bound, is_piece = await self._cut(span)
        read_s = shared.clock.now() - began
        admission = shared.bucket.try_acquire(bound.scanned) or await self._admission(bound.scanned)
        if admission is None:
            return span
        try:
            if shared.stop.is_set or not self._is_trusted:
                return span  # the admission took long; whoever reads this loop sees to it
            if admission.waited_s and bound.scanned > FAR_TOO_MANY * self._wanted_rows(span):
                await self._bounds.begin(span.cursor, span.hi)
                return span  # cut before somebody came: what was right then is too much now
            shared.in_flight[span.id] = bound.scanned
            sent_at = shared.clock.now()
            self._attempt = bound, sent_at
            try:
                observation = await self._mover.move(span, bound)
            except Unfinished:
                return span
            self._attempt = None
            move_s = shared.clock.now() - sent_at
            admission.settle(observation.scanned)
        finally:
            shared.in_flight.pop(span.id, None)
            admission.settle(0)  # a refund, unless it was settled
        busy_s = shared.clock.now() - began - admission.waited_s
        self._learn(bound, observation, 0.0 if is_piece else busy_s)
        shared.emit(
            ChunkCommitted(
                job=shared.job,
                worker=self.name,
                span=span.id,
                epoch=span.epoch,
                phase=shared.phase,
                observation=observation,
                admit_s=admission.waited_s,
                read_s=read_s,
                move_s=move_s,
                next_rows=self.sizer.rows,
            )
        )
        self._bad_rows.tell(span, observation.set_aside, self.name)
        if observation.refused:
            message = f"{observation.refused:,} rows of a chunk stay as they were: a trigger takes their update back"
            shared.emit(Warned(job=shared.job, message=message))
        return replace(span, cursor=bound.to, rows=span.rows + observation.rows)

    async def _cut(self, span: Span) -> tuple[Bound, bool]:
        """The next chunk's bound; True when it is a piece of a chunk that failed, which tells nothing about speed."""
        rows = self._wanted_rows(span)
        crashpoint("boundary.before")
        piece = await self._bad_rows.piece(span, rows)
        bound = piece or await self._bounds.next(span.cursor, span.hi, rows)
        crashpoint("boundary.after")
        if piece is None:
            self._bounds.look_ahead(bound.to, span.hi, rows)
        return bound, piece is not None

    async def _settle(self, span: Span) -> Span:
        """A row has failed alone: set it aside, and go on behind it."""
        try:
            key = await self._bad_rows.settle(span, self._ledger, self.name, self.sizer.rows)
        except Stopped as error:
            self._shared.fail(error)
            return span
        if key is None:
            return span
        self._get_on()
        return replace(span, cursor=key)

    def _wanted_rows(self, span: Span) -> int:
        return max(1, self._bad_rows.limit(self._shared.rows_wanted(span, self.sizer.rows)))

    async def _admission(self, cost: int) -> Admission | None:
        """Wait for the bucket, but not longer than until asked to stop (None)."""
        shared = self._shared
        asking = asyncio.ensure_future(shared.bucket.acquire(cost))
        self.waiting = shared.bucket.reason
        try:
            return None if await shared.stop.interrupts(asking) else asking.result()
        finally:
            self.waiting = ""

    def _learn(self, bound: Bound, observation: Observation, busy_s: float) -> None:
        self._speed.moved(observation.scanned, busy_s)
        self._get_on()
        self.sizer.observe(observation)
        self._bounds.moved(bound, observation.rows)
        self._bad_rows.moved(bound, observation.scanned, self.sizer.rows)
        self.rows += observation.rows

    def _get_on(self) -> None:
        """The span has got on: whatever was wrong is over."""
        self._failing_since, self._delay_s, self.trouble = None, FIRST_DELAY_S, ""

    # -- the lease --------------------------------------------------------------------------------------------------

    @property
    def _is_trusted(self) -> bool:
        shared = self._shared
        return shared.clock.now() - self.confirmed_at < shared.leases.trust_s

    def confirm(self, renewed: Mapping[int, tuple[str, int]], sent_at: float) -> None:
        """The lease was renewed by a statement sent at ``sent_at``, if it is among the renewed."""
        span = self.span
        if span is not None and renewed.get(span.id) == (self.id, span.epoch):
            self.confirmed_at = max(self.confirmed_at, sent_at)

    def abort(self) -> None:
        """Drop the connections now."""
        self._mover.abort()

    def abandon_if_expired(self) -> None:
        """The lease can no longer be trusted and a chunk may be running: stop it before the database would let somebody
        else in.
        """
        if self.span is not None and not self._is_trusted:
            self._mover.abort()

    async def _claim_again(self, span: Span) -> Span:
        """The same span under the next epoch: from here on, whatever a lost connection still does is fenced."""
        shared = self._shared
        sent_at = shared.clock.now()
        claim = await self._ledger.reclaim(shared.job_id, span, self.id, self._mover.backends, shared.leases.lease_s)
        if claim is None:
            self._lose(span)
        self._hold(claim.span, sent_at)
        self._find(span, claim.span)
        await self._end(claim.left_behind)
        await self._bounds.begin(claim.span.cursor, claim.span.hi)
        return claim.span

    def _find(self, before: Span, now: Span) -> None:
        """Only we advance our span: it has got on by a chunk of ours, or a row set aside, whose answer was lost."""
        if now.cursor == before.cursor:
            return
        self._get_on()
        if self._bad_rows.found(before, now, self.name, self.sizer.rows):
            return
        shared, rows = self._shared, now.rows - before.rows
        self.rows += rows
        self._speed.moved(rows)
        shared.emit(
            ChunkFound(job=shared.job, worker=self.name, span=now.id, epoch=before.epoch, phase=shared.phase, rows=rows)
        )
        self._bad_rows.tell(before, self._mover.aside, self.name)

    def _lose(self, span: Span) -> NoReturn:
        self.span = None
        self._shared.emit(LeaseLost(job=self._shared.job, worker=self.name, span=span.id, epoch=span.epoch))
        raise _Lost

    async def _hand_back(self) -> None:
        """Let go of the span: finished, or for others to go on with."""
        span, self.span = self.span, None
        if span is None:
            return
        crashpoint("release.before")
        try:
            await self._ledger.release(self._shared.job_id, span, self.id)
        except Exception:
            return  # its lease runs out by itself
        crashpoint("release.after")
        self._shared.released.set()
        self._shared.emit(
            SpanReleased(
                job=self._shared.job, worker=self.name, span=span.id, epoch=span.epoch, finished=span.is_finished
            )
        )

    # -- failures ---------------------------------------------------------------------------------------------------

    async def _after_failure(self, span: Span, error: Exception) -> Span:
        """What to do about a chunk that failed; returns the span to go on with, or raises ``_Lost``."""
        failure = classify(error)
        shared = self._shared
        attempt, self._attempt = self._attempt, None
        if failure.action is Action.FENCED:
            return await self._reread(span)
        is_away = failure.lost or failure.action in DATABASE_IS_AWAY
        if is_away:
            self._connected = False
        await self._bounds.forget()
        if attempt is not None and self._blames_a_row(span, attempt, failure):
            return span
        is_split = failure.action is Action.SPLIT and not is_away
        too_small = self.sizer.rows <= 1 and not self._bad_rows.has_room_for(failure)
        if failure.action in (Action.STOP, Action.CONFLICT) or (is_split and too_small):
            if self._connected and not self._is_trusted:  # it stood still: what it met on waking is no news of the job
                self._connected = False
                span = await self._claim_again(span) if await self._connect() else span
            shared.fail((self._bad_rows.as_stop(failure) if attempt is not None else None) or as_stop(error))
            return span
        if is_split or isinstance(error, TimeoutError) or (not is_away and self.sizer.rows > shared.limits.min_rows):
            self.sizer.failed()
        await self._back_off(failure, span)
        return await self._ask_whose_order(span) if failure.action is Action.PAUSE else span

    def _blames_a_row(self, span: Span, attempt: tuple[Bound, float], failure: Failure) -> bool:
        """True when the chunk's failure was a row's fault, which is then looked for, without waiting."""
        bound, began = attempt
        if not self._bad_rows.blame(span, bound, failure, self._shared.clock.now() - began):
            return False
        self.retries += 1
        self._tell_retry(span, failure.sqlstate, Action.SPLIT, 0.0)
        return True

    def _tell_retry(self, span: Span | None, sqlstate: str, action: Action, delay_s: float) -> None:
        self._shared.emit(
            ChunkRetried(
                job=self._shared.job,
                worker=self.name,
                span=0 if span is None else span.id,
                epoch=0 if span is None else span.epoch,
                sqlstate=sqlstate,
                action=action.value,
                delay_s=delay_s,
            )
        )

    async def _reread(self, span: Span) -> Span:
        """The fence refused a chunk.  A thief may have lowered the upper bound; anything else means that it is lost."""
        await self._bounds.forget()
        again = await self._ledger.reread(self._shared.job_id, span, self.id)
        if again is None:
            self._lose(span)
        return again

    async def _ask_whose_order(self, span: Span) -> Span:
        """Our session was ended.  By a restart, by a successor (then the span is lost), or by an administrator, whom we
        do not fight: the job pauses.
        """
        shared = self._shared
        before = self._server_started
        if not await self._connect() or before != self._server_started:
            return span
        span = await self._claim_again(span)
        await self._ledger.pause_by_administrator(
            shared.job_id, "an administrator ended a session of this job while the server stayed up"
        )
        shared.stop.set("paused")
        return span

    async def _connect(self) -> bool:
        """Connect unless connected; tries again while the server is away.  False when asked to stop."""
        shared = self._shared
        began = shared.clock.now()
        delay_s = FIRST_DELAY_S
        while not (self._connected or shared.stop.is_set):
            try:
                opening = asyncio.ensure_future(self._mover.open())
                if await shared.stop.interrupts(opening):
                    self._mover.abort()
                    break
                opening.result()
            except Exception as error:
                failure = classify(error)
                if failure.action not in DATABASE_IS_AWAY:
                    raise
                if shared.clock.now() - began > PATIENCE_S:
                    shared.fail(CannotConnect(failure.message, hint=failure.hint, sqlstate=failure.sqlstate))
                    break
                self.trouble = AWAY
                self.waits.begin(AWAY)
                if await shared.stop.pause(shared.clock, jittered(delay_s, shared.rng)):
                    break
                delay_s = min(delay_s * 2, LONGEST_DELAY_S)
            else:
                self._session += 1
                self._ledger = Ledger(self._mover.connection)
                self._server_started = self._mover.connection.server.started
                self._connected = True
                self.trouble = ""
        self.waits.end()
        return self._connected

    async def _back_off(self, failure: Failure, span: Span | None) -> None:
        shared = self._shared
        now = shared.clock.now()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since > PATIENCE_S:
            shared.fail(
                Stopped(
                    f"one chunk has been failing for {PATIENCE_S / 60:.0f} minutes: {failure.message}",
                    hint="end what holds it up, then: backfill resume",
                    sqlstate=failure.sqlstate,
                )
            )
            return
        self.retries += 1
        delay_s = jittered(self._delay_s, shared.rng)
        self._delay_s = min(self._delay_s * 2, LONGEST_DELAY_S)
        self._tell_retry(span, failure.sqlstate, failure.action, delay_s)
        self.trouble = f"retry after {failure.sqlstate or 'a lost connection'}"
        self.waits.begin(RETRY)
        await shared.stop.pause(shared.clock, delay_s)
        self.waits.end()

    async def _between_spans(self, error: Exception) -> None:
        """Something failed while we looked for a span, or let go of one."""
        failure = classify(error)
        if failure.action in (Action.STOP, Action.CONFLICT, Action.FENCED):
            self._shared.fail(as_stop(error))
            return
        if failure.lost or failure.action in DATABASE_IS_AWAY:
            self._connected = False
        await self._back_off(failure, self.span)

    # -- what others see --------------------------------------------------------------------------------------------

    @property
    def speed_per_s(self) -> float | None:
        """Rows scanned per second when it never waits for admission; None before the first chunk."""
        return self._speed.per_s

    def heartbeat(self) -> Heartbeat:
        """The state of this worker for the ledger; the rate is over the time since the last call."""
        now = self._shared.clock.now()
        waiting = self.waiting or self.trouble
        return Heartbeat(self.id, self._speed.rate(now), self.retries, waiting, self.waits.totals(now))
