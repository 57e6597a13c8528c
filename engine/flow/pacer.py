"""The pace of one process's workers: decided here, or by whichever process of the fleet holds the pacer's lease.

Once a second every process asks the ledger who paces the job.  The holder of the lease reads the signals, lets the law
decide, and publishes the decision with an expiry; the others follow what they read there.  A decision that has expired
(its author dead, or the ledger out of reach) counts as the minimum rate, never as no limit.

A decision reaches the workers in three ways that do not mix: the bucket's rate (*when*), the sizers' target time (*how
long one chunk can hurt*), and how many workers are at work (*how many at once*).  Leases are renewed elsewhere, so a
job may be held for as long as it takes.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from engine.clock import Clock
from engine.db import Connection
from engine.db.failures import classify
from engine.errors import SpecError
from engine.events import ChunkCancelled, Emit, PaceChanged, SignalRead, WalWritten, Warned
from engine.flow.control import Control
from engine.flow.lateness import Lateness
from engine.flow.prepare import Prepared
from engine.flow.shared import Shared
from engine.flow.vacuum import VacuumKeeper
from engine.flow.wishes import Limit, asked, limits, may_ask, signals_in_force
from engine.flow.worker import Worker
from engine.ledger.orders import PaceOrders
from engine.ledger.records import JobRecord, JobStatus
from engine.model import KeyValue, Mode, Phase
from engine.pace.bucket import RATE_LIMIT, TokenBucket
from engine.pace.controller import FRESH_S, Controller
from engine.pace.law import Decision, Law, SignalPolicy, Situation
from engine.pace.published import from_json, to_json
from engine.spec import JobSpec
from engine.spec.pacing import Bloat, Pace
from engine.spec.signals import SignalKind, SignalSpec
from engine.watch.build import Place, Watched
from engine.watch.watch import WAL_LOOK_S, Sight, Watch

TICK_S: Final = 1.0
LEASE_S: Final = 5.0
"""How long the pacer's lease holds without renewal: somebody else takes over a dead one's job within that time."""

VALID_S: Final = 4.0
"""How long a published decision counts: several ticks, so that one slow statement does not stop a fleet."""

ASK_DEADLINE_S: Final = 3.0
BINDING_SHARE: Final = 0.8
"""Chunks waited for tokens in this share of the time, or nearly all tokens were used: then the limit is what counts."""

USED_SHARE: Final = 0.9
MINIMUM_CHUNK_EVERY_S: Final = 60.0
"""Against gauges, one smallest chunk in that time is always let through."""

MOST_STANDBYS: Final = 100

WINDOW: Final = "window"
NO_PACER: Final = "no pacer"

MakeLaw = Callable[..., Law]
"""``(policies, *, workers, min_rate_per_s, chunk_target_s, rng, baselines) -> Law``: ``Controller``, or another one."""


def utc_now() -> datetime:
    """The wall clock: windows and deadlines are people's times."""
    return datetime.now(UTC)


class Pacer:
    """Paces the workers of one process, and all of the job's while it holds the lease."""

    def __init__(
        self,
        prepared: Prepared,
        control: Control,
        bucket: TokenBucket,
        *,
        clock: Clock,
        rng: random.Random,
        emit: Emit,
        make_law: MakeLaw = Controller,
        wall: Callable[[], datetime] = utc_now,
    ) -> None:
        self.decision: Decision | None = None  # the one in force here
        self._id = str(uuid.uuid4())
        self._prepared = prepared
        self._control = control
        self._bucket = bucket
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._make_law = make_law
        self._wall = wall
        self._pace: Pace = prepared.spec.pace
        self._may_ask = may_ask(prepared.spec)
        self._bloat: Bloat = prepared.spec.bloat
        self._job: JobRecord | None = None
        self._status: JobStatus | None = None
        self._shared: Shared | None = None
        self._workers: Sequence[Worker] = ()
        self._law: Law | None = None
        self._policies: tuple[SignalPolicy, ...] = ()
        self._baselines: Mapping[str, tuple[float, float]] = {}
        self._standbys: frozenset[str] = frozenset()  # that were there; one that is gone closes its gate
        self._watch: Watch | None = None
        self._watched: tuple[SignalSpec, ...] = ()  # what the watch was made for
        self._keeper: VacuumKeeper | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._wal_told = 0.0  # bytes of WAL of which this watch's were told
        self._ours_then = 0  # rows written by our workers, at the last look at the status
        self._rows_least = 0.0  # rows of the job that were counted before the last look at the status
        self._valid_until = 0.0
        self._lateness = Lateness(clock=clock, wall=wall, emit=emit)
        self._said: tuple[object, ...] = ()
        self._warned = ""
        self._news = asyncio.Event()

    @property
    def leads(self) -> bool:
        """True while this process decides the pace."""
        return self._law is not None

    # -- from the supervisor ----------------------------------------------------------------------------------------

    def hear(self, job: JobRecord, status: JobStatus | None) -> None:
        """The job and its status as last looked at.  New orders are followed at once."""
        if self._job is not None and (self._job.orders != job.orders or self._job.spec != job.spec):
            self._news.set()
        if self._job is None or self._job.spec != job.spec:
            self._follow_settings(job)
        self._rows_least = self._rows_done() if _goes_on(self._status, status) else 0.0
        self._job, self._status = job, status
        self._ours_then = self._ours()

    def _follow_settings(self, job: JobRecord) -> None:
        """The newest run's settings count, on whatever host it was.  The ledger is untrusted: an address that this
        process was not told of is not asked, and then its own signals go on.
        """
        own = self._prepared.spec
        try:
            newest = JobSpec.from_ledger(
                job.spec,
                source_dsn=own.source.dsn,
                target_dsn=own.target.dsn if own.target is not None else None,
                signals=own.operator_signals,
            )
        except SpecError:
            return
        pace = newest.pace
        if pace.unknown_signals or asked(own, pace.effective_signals()) - self._may_ask:
            pace = pace.model_copy(update={"listed": own.pace.listed})
            message = "the newest run's signals ask what this process does not know: its own signals go on"
            self._emit(Warned(job=job.name, message=message))
        self._pace, self._bloat = pace, newest.bloat

    async def begin(self, shared: Shared, workers: Sequence[Worker]) -> None:
        """A phase begins: have a pace in force before its first chunk."""
        self._shared, self._workers = shared, workers
        self._bucket.take_usage()
        self.decision = None
        await self._tick()

    async def run(self) -> None:
        """Pace until cancelled.  Whatever fails, the workers are never faster than the last decision that is valid."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._news.wait()
            self._news.clear()
            try:
                await self._tick()
            except Exception as error:
                self._fall_back()
                await self._bear(error)

    async def watch_expiry(self) -> None:
        """Obey no decision that has expired, whatever ``run`` is waiting for.  Waits for the clock only."""
        while True:
            await self._clock.sleep(TICK_S / 2)
            self._fall_back()

    async def see_off(self, connection: Connection) -> None:
        """A worker is about to close its session, with which the server forgets what it has written."""
        if self._watch is not None and connection.server.capabilities.own_wal_exact:
            with suppress(Exception):
                async with asyncio.timeout(WAL_LOOK_S):
                    await connection.fetchval("SELECT pg_stat_force_next_flush()")
        await self._tell_last_wal()

    async def rest(self) -> None:
        """Nothing moves for a while: ask nobody anything, and let others pace."""
        await self._tell_last_wal()
        await self._retire()
        self._shared, self._workers = None, ()
        if self._job is not None:
            with suppress(Exception):
                await self._control.ledger.leave_pacer(self._job.id, self._id)

    async def _bear(self, error: Exception) -> None:
        """A tick failed.  The job is no worse off than without a pacer: it goes at the minimum until one succeeds."""
        try:
            await self._control.mend(error)
        except Exception as surprise:
            message = f"pacing failed: {classify(surprise).message}; the job goes at the minimum meanwhile"
            if message != self._warned and self._job is not None:
                self._warned = message
                self._emit(Warned(job=self._job.name, message=message))

    # -- a tick -----------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        assert self._job is not None, "hear() first"
        async with asyncio.timeout(ASK_DEADLINE_S):
            look = await self._control.ledger.pacer(self._job.id, self._id, socket.gethostname(), os.getpid(), LEASE_S)
        now = self._clock.now()
        if look.is_mine:
            if self._law is None:
                self._adopt(look.decision, look.age_s)
            decision = await self._lead()
            async with asyncio.timeout(ASK_DEADLINE_S):
                ours = await self._control.ledger.publish_pace(
                    self._job.id, self._id, self._published(decision), VALID_S
                )
            if ours:
                self._valid_until = self._clock.now() + VALID_S
                self._apply(decision)
        else:
            await self._retire()
            followed = from_json(look.decision) if look.valid_for_s is not None else None
            if followed is not None:
                self._valid_until = now + min(look.valid_for_s or 0.0, VALID_S)
                self._apply(followed)
        self._fall_back()

    def _fall_back(self) -> None:
        """Nobody's decision counts any more: go at the minimum until somebody's does.  What was held stays held."""
        if self._clock.now() < self._valid_until:
            return
        before = self.decision
        was = f"; was held: {before.reason}" if before is not None and before.held and before.leads != NO_PACER else ""
        if before is not None and before.leads == NO_PACER:
            return
        self._apply(
            Decision(
                rate_per_s=self._minimum_per_s,
                held=bool(was),
                leads=NO_PACER,
                reason=f"{NO_PACER}: {'nothing starts' if was else 'at the minimum'}{was}",
            )
        )

    # -- leading ----------------------------------------------------------------------------------------------------

    async def _lead(self) -> Decision:
        """Read the signals, and decide."""
        await self._attend()
        now = self._clock.now()
        assert self._law is not None
        sight = Sight()
        if self._watch is not None:
            sight = await self._watch.take()
            self._watch.set_quiet(sight.alone)
            self._standbys |= self._watch.standbys
        used, binding = self._usage()
        ceiling = self._ceiling(sight)
        capacity = self._capacity()
        self._measure(sight)
        situation = Situation(
            now=now,
            readings=sight.readings,
            used_per_s=used,
            binding=binding,
            capacity_per_s=capacity,
            alone=sight.alone,
            closed=self._closed(),
            ceiling_per_s=ceiling.rows_per_s if ceiling is not None else None,
            ceiling_reason=ceiling.name if ceiling is not None else "",
            ceiling_words=ceiling.words if ceiling is not None else "",
        )
        decision = self._law.step(situation)
        allowed = self._orders.workers
        if allowed is not None:
            decision = replace(decision, workers=min(allowed, decision.workers or allowed))
        self._lateness.look(self._pace, self._status, decision, capacity)
        return decision

    async def _attend(self) -> None:
        """Have the probes and the law that the spec and the orders ask for."""
        wanted = signals_in_force(self._pace.effective_signals(), self._orders)
        if not any(signal.kind is SignalKind.REPLICATION_LAG for signal in wanted):
            self._standbys = frozenset()  # turned off: those that are gone are meant to be
        has_use = bool(wanted) or self._pace.max_wal_bytes_per_s is not None
        has_use = has_use or self._orders.max_wal_bytes_per_s is not None
        if not has_use:
            await self._tell_last_wal()
            await self._close_watch()  # signals: off means that nobody is asked anything
            self._policies = ()
        elif self._watch is None or wanted != self._watched:
            somebody_was_there = self._watch is not None and not self._watch.alone
            await self._tell_last_wal()
            await self._close_watch()
            self._watch = await Watch.open(
                self._places(wanted),
                clock=self._clock,
                rng=self._rng,
                on_cancel=self._cancelled,
                rows_committed=self._rows_done,
                somebody_was_there=somebody_was_there,
            )
            self._watched = wanted
            self._policies = self._watch.policies
        if self._law is None:
            self._law = self._make_law(
                self._policies,
                workers=self._total,
                min_rate_per_s=self._minimum_per_s,
                chunk_target_s=self._prepared.spec.chunk.target_s,
                rng=self._rng,
                baselines=self._baselines,
            )
        self._law.change(self._policies, self._total)
        self._keep()

    def _adopt(self, published: Mapping[str, Any] | None, age_s: float | None) -> None:
        """What another pacer (or this one, before a rest) learnt of these databases, unless it is of another time."""
        found = published if isinstance(published, Mapping) else {}
        standbys = found.get("standbys")
        if isinstance(standbys, list):
            self._standbys |= {name for name in standbys[:MOST_STANDBYS] if isinstance(name, str)}
        baselines = found.get("baselines")
        if isinstance(baselines, Mapping) and age_s is not None and age_s <= FRESH_S:
            self._baselines = {
                str(name): (float(pair[0]), float(pair[1]))
                for name, pair in baselines.items()
                if isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, int | float) for x in pair)
            }

    def _keep(self) -> None:
        """In place with a budget for growth, somebody vacuums behind the workers: whoever paces."""
        job, max_growth = self._job, self._bloat.max_growth
        if self._keeping is not None and self._keeping.done():
            self._keeper = self._keeping = None  # whatever it died of: a new one looks again
        if self._keeper is not None or max_growth is None or job is None:
            return
        if self._prepared.mode is not Mode.UPDATE or self._is_sweeping:
            return
        self._keeper = VacuumKeeper(
            self._prepared.endpoints.target,
            self._prepared.source.table,
            # A ledger from before this was measured: the growth from now on.
            start_bytes=self._prepared.source_table.heap_bytes if job.heap_bytes is None else job.heap_bytes,
            max_growth=max_growth,
            rows_total=job.rows_estimated,
            rows_written=self._rows_done,
            clock=self._clock,
            emit=self._emit,
            job=job.name,
            on_change=self._growth_changed,
        )
        self._keeping = asyncio.create_task(self._keeper.run(), name="vacuum")

    def _growth_changed(self) -> None:
        """At a hundred thousand rows a second, a table grows by a percent until the next tick has done its round."""
        if self._keeper is not None and self._keeper.closed:
            self._bucket.hold(next(iter(self._keeper.closed)))
        self._news.set()

    def _closed(self) -> dict[str, str]:
        closed: dict[str, str] = {}
        if outside := self._pace.open_windows.reason(self._wall()):
            closed[WINDOW] = outside
        if self._keeper is not None:
            closed.update(self._keeper.closed)
        return closed

    def _measure(self, sight: Sight) -> None:
        """Tell what was read, for metrics."""
        assert self._job is not None
        units = {policy.name: policy.unit for policy in self._policies}
        for reading in sight.readings:
            if (unit := units.get(reading.signal)) is not None:
                self._emit(
                    SignalRead(
                        job=self._job.name,
                        signal=reading.signal,
                        unit=unit.value,
                        value=reading.value,
                        error=reading.error,
                    )
                )
        self._tell_wal(sight)

    def _tell_wal(self, sight: Sight) -> None:
        written = sight.own_wal_bytes
        if self._job is not None and written is not None and written > self._wal_told:
            size, self._wal_told = written - self._wal_told, written
            self._emit(WalWritten(job=self._job.name, bytes=size, is_exact=sight.own_wal_is_exact))

    async def _tell_last_wal(self) -> None:
        """What is not seen now, nobody will see.  Not where another process may lead by now, which counts itself."""
        if self._watch is not None:
            sight = await self._watch.look_at_wal()
            if self._clock.now() < self._valid_until:
                self._tell_wal(sight)

    def _usage(self) -> tuple[float, bool]:
        """Rows a second that the whole job was granted since the last tick, and whether the limit was what counted."""
        usage = self._bucket.take_usage()
        used = usage.granted_per_s / self._share
        if self._status is not None and self._share < 1:
            used = max(used, self._status.rows_per_s)
        limit = self._bucket.rate
        binding = usage.limited_fraction >= BINDING_SHARE or (
            limit is not None and usage.granted_per_s >= limit * USED_SHARE
        )
        return used, binding

    def _capacity(self) -> float | None:
        """Rows a second of all workers that never waited: as many times one's as there are."""
        speeds = [speed for worker in self._workers if (speed := worker.speed_per_s) is not None]
        if not speeds:
            return None
        return sum(speeds) / len(speeds) * self._total

    def _ceiling(self, sight: Sight) -> Limit | None:
        """The lowest of the user's limits."""
        assert self._job is not None
        growth = self._bloat.max_growth if self._keeper is not None else None
        found = limits(
            self._orders,
            self._pace,
            None if growth is None else max(1.0, self._job.rows_estimated) * growth,
            wal_bytes_per_row=sight.own_wal_bytes_per_row or self._prepared.row_bytes,  # until it is measured
            wal_is_exact=sight.own_wal_is_exact,
        )
        return min(found, key=lambda limit: limit.rows_per_s, default=None)

    def _places(self, signals: tuple[SignalSpec, ...]) -> Watched:
        """What the watch must know: where foreground reads and writes are felt."""
        prepared = self._prepared
        endpoints, plan = prepared.endpoints, prepared.plan

        def random_key() -> KeyValue | None:
            return plan.space.guess(self._rng.random() * plan.rows) if plan.spans else None

        target = None
        if not endpoints.is_one:
            assert prepared.sweep_key is not None
            assert prepared.sweep_source is not None
            # The target's own index may have the key's columns in another order.
            order = [prepared.key.names.index(name) for name in prepared.sweep_source.key.names]

            def their_key() -> KeyValue | None:
                key = random_key()
                return None if key is None or len(key) < len(order) else tuple(key[i] for i in order)

            target = Place(
                database=endpoints.target,
                table=prepared.written_table.name,
                key=prepared.sweep_key.columns,
                random_key=their_key,
            )
        return Watched(
            job=prepared.spec.name,
            signals=signals,
            source=Place(
                database=endpoints.source,
                table=prepared.source.table,
                key=prepared.key.columns,
                random_key=random_key,
            ),
            target=target,
            written=prepared.written_table.name,
            standbys=self._standbys,
        )

    def _rows_done(self) -> float:
        """Rows written by the whole job: as of the last look at the ledger, and ours since.  Those that we committed
        while the ledger was looked at may be missing in both: what was counted stays.
        """
        then = self._status.rows_done if self._status is not None else 0
        return max(self._rows_least, float(then + max(0, self._ours() - self._ours_then)))

    def _ours(self) -> int:
        return sum(worker.rows for worker in self._workers)

    # -- applying ---------------------------------------------------------------------------------------------------

    def _apply(self, decision: Decision) -> None:
        """Bring a decision to this process's workers."""
        self.decision = decision
        share = self._share
        rate = None if decision.rate_per_s is None else decision.rate_per_s * share
        reason = decision.leads or RATE_LIMIT
        if rate != self._bucket.rate or reason != self._bucket.limited_by:
            self._bucket.set_rate(rate, reason)
        if decision.held:
            self._bucket.hold(reason)
        elif self._bucket.is_held:
            self._bucket.release()
        target_s = decision.chunk_target_s or self._prepared.spec.chunk.target_s
        for worker in self._workers:
            if worker.sizer.target_s != target_s:
                worker.sizer.target_s = target_s
        if self._shared is not None:
            active = self._total if decision.workers is None else decision.workers
            self._shared.allow(-(-active * len(self._workers) // self._total))
        self._tell(decision)

    def _tell(self, decision: Decision) -> None:
        said = (decision.stage, decision.held, decision.leads)
        if said != self._said and self._job is not None:
            self._said = said
            self._emit(
                PaceChanged(
                    job=self._job.name,
                    stage=decision.stage.value,
                    leads=decision.leads,
                    reason=decision.reason,
                    limit_rows_per_s=decision.rate_per_s,
                )
            )

    def _cancelled(self, reason: str) -> None:
        assert self._job is not None
        self._emit(ChunkCancelled(job=self._job.name, reason=reason))

    def _published(self, decision: Decision) -> dict[str, Any]:
        late_by_s = self._lateness.late_by_s
        growth = self._keeper.growth if self._keeper is not None else None
        return to_json(decision) | {
            "standbys": sorted(self._standbys),
            "baselines": {name: list(pair) for name, pair in (self._law.baselines if self._law else {}).items()},
            "deadline": None if late_by_s is None else {"late_by_s": late_by_s},
            "growth": None if growth is None else {"ratio": growth.ratio, "max": growth.maximum},
        }

    # -- plumbing ---------------------------------------------------------------------------------------------------

    @property
    def _orders(self) -> PaceOrders:
        return self._job.orders if self._job is not None else PaceOrders()

    @property
    def _total(self) -> int:
        """Workers of the job, wherever they are."""
        return max(1, len(self._workers), self._status.workers if self._status is not None else 0)

    @property
    def _share(self) -> float:
        """This process's part of the job's rate."""
        return max(1, len(self._workers)) / self._total

    @property
    def _minimum_per_s(self) -> float:
        return self._prepared.spec.chunk.min_rows / MINIMUM_CHUNK_EVERY_S

    @property
    def _is_sweeping(self) -> bool:
        return self._shared is not None and self._shared.phase is Phase.SWEEP

    async def _retire(self) -> None:
        """Somebody else decides: probe and vacuum no longer."""
        await self._close_watch()
        self._law, self._baselines = None, {}
        keeping, self._keeping, self._keeper = self._keeping, None, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _close_watch(self) -> None:
        watch, self._watch, self._wal_told = self._watch, None, 0.0
        if watch is not None:
            self._standbys |= watch.standbys
            await asyncio.shield(watch.close())


def _goes_on(before: JobStatus | None, now: JobStatus | None) -> bool:
    """True when the same rows are still counted: not another job of that name, or the same one begun anew."""
    return before is not None and now is not None and before.rows_done <= now.rows_done
