"""A rehearsal: some chunks of the job in transactions that roll back, and what each of them cost.

The movers' own statements run, as the job's role, with its time-outs, on real rows; only the fence and the COMMIT are
left out.  No ledger is needed or made.  Every chunk is one transaction, which ends in ROLLBACK whatever happens; where
ROLLBACK itself fails the session is dropped, which comes to the same.  An error of a chunk is a finding of the
rehearsal and not raised; only a session that was lost ends it.

What a rollback cannot take back: dead row versions, files that grew, values of sequences, and whatever a trigger or
function did outside the transaction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from engine.clock import Clock, SystemClock
from engine.db import Connection
from engine.db.failures import Action, Failure, classify
from engine.flow.answer import answer
from engine.flow.bounds import Bound, Prober
from engine.flow.movers.server_side import open_for_chunks
from engine.flow.prepare import Prepared
from engine.flow.rehearsed import PURPOSE, RELATIONS, Witness, one_row, rehearser_of
from engine.flow.shared import LIMITED_CHUNK_S
from engine.model import KeyValue, Observation, SpanBounds
from engine.pace.sizer import START_ROWS, ChunkSizer
from engine.plan.rehearsal import (
    WARM_UP_ROWS,
    Outlook,
    Sample,
    Settings,
    look_ahead,
    most_rows,
    pick_spread,
    wanted_places,
)
from engine.plan.spans import plan_spans
from engine.sql import qualified, read_expression
from engine.sql.predicates import parameter, within

_STAND: Final = f"""\
SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint AS wal,
       coalesce(sum(pg_relation_size(c.oid)
                + CASE WHEN c.reltoastrelid <> 0 THEN pg_relation_size(c.reltoastrelid) ELSE 0 END), 0)::bigint AS heap,
       coalesce(sum(pg_indexes_size(c.oid)), 0)::bigint AS indexes
  FROM pg_class c WHERE c.oid IN {RELATIONS}"""

# Columns that are not written take the next value of a sequence: by a default, or as an identity.
_SEQUENCES: Final = """\
SELECT count(DISTINCT a.attnum)::int FROM pg_attribute a
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  LEFT JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
                       AND p.refclassid = 'pg_class'::regclass
  LEFT JOIN pg_class s ON s.oid = p.refobjid AND s.relkind = 'S'
 WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> ALL ($2::text[])
   AND (s.oid IS NOT NULL OR a.attidentity <> '')"""


class Consequence(StrEnum):
    """What the job would do where a rehearsed chunk has failed."""

    RETRY = "retry"  # try it again
    SPLIT = "split"  # cut it smaller
    SET_ASIDE = "set aside"  # find the row, set it aside and go on
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class FailedChunk:
    """A chunk that could not be written; no key, no value."""

    span: int  # which of the sampled spans, from 0
    failure: Failure
    consequence: Consequence

    @property
    def stops(self) -> bool:
        """True when the job would stop here."""
        return self.consequence is Consequence.STOP


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was seen, and what follows from it for the whole job (``outlook``; None when no chunk went through)."""

    spans: int  # places of the key space that were sampled
    samples: tuple[Sample, ...]
    failed: tuple[FailedChunk, ...]
    outlook: Outlook | None
    wal_is_shared: bool  # taken from the server's position: what others wrote meanwhile is in it
    dead_rows: int  # row versions that the rollbacks leave to VACUUM, at most
    sequence_values: int  # taken from sequences and not given back, about
    kept_waiting_s: float  # the longest that somebody was seen to wait for a chunk

    @property
    def stops(self) -> bool:
        """True when a chunk failed in a way that would stop the job."""
        return any(failed.stops for failed in self.failed)


async def rehearse(
    prepared: Prepared, *, chunks: int = 3, within_s: float | None = None, clock: Clock | None = None
) -> Rehearsal:
    """Rehearse ``chunks`` chunks (beside a small first one, which does not count) in each of some places of the key
    space; after ``within_s`` no further ones.  Raises what opening a session raises, and the error that ended one.
    """
    play = _Play(prepared, chunks, clock or SystemClock(), within_s)
    try:
        return await play.run()
    finally:
        await play.close()


class _Play:
    """One rehearsal and its sessions."""

    def __init__(self, prepared: Prepared, chunks: int, clock: Clock, within_s: float | None) -> None:
        self._prepared = prepared
        self._chunks = chunks
        self._clock = clock
        self._ends_at = math.inf if within_s is None else clock.now() + within_s
        self._prober = Prober(prepared.endpoints.source, prepared.source_table.name, prepared.key, clock)
        self._rehearser = rehearser_of(prepared, clock)
        self._witness = Witness(prepared, clock)
        self._source: Connection | None = None  # plans and counts
        self._samples: list[Sample] = []
        self._failed: list[FailedChunk] = []
        self._dead_rows = 0
        self._most_rows = START_ROWS
        written = prepared.written_table
        # Triggers and foreign keys write outside the statement's own count.
        self._wal_is_shared = (
            prepared.streams
            or any(trigger.enabled for trigger in written.triggers)
            or any(key.outgoing for key in written.foreign_keys)
        )

    async def close(self) -> None:
        """Let go of every session."""
        await self._rehearser.close()
        await self._witness.close()
        await self._prober.close()
        if self._source is not None:
            await self._source.close()

    async def run(self) -> Rehearsal:
        self._source = await open_for_chunks(self._prepared.endpoints.source, PURPOSE)
        await self._rehearser.open()
        await self._witness.open(self._rehearser.connection.backend.pid)
        spans = await self._spans(self._source)
        self._most_rows = most_rows(self._prepared.plan.rows, len(spans), self._chunks)
        begun = 0
        for number, span in enumerate(spans):
            if self._left_s() <= 0:
                break
            begun += 1
            await self._rehearse_span(number, span)
        return Rehearsal(
            spans=begun,
            samples=tuple(self._samples),
            failed=tuple(self._failed),
            outlook=look_ahead(self._samples, self._settings()),
            wal_is_shared=self._wal_is_shared,
            dead_rows=self._dead_rows,
            sequence_values=self._dead_rows * await self._sequences_per_row(),
            kept_waiting_s=self._witness.theirs_s,
        )

    def _left_s(self) -> float:
        return self._ends_at - self._clock.now()

    async def _spans(self, source: Connection) -> list[SpanBounds]:
        """The places to look at: of the plan's spans, or of finer ones where it has too few."""
        plan = self._prepared.plan
        wanted = wanted_places(plan.rows, self._chunks)
        if 0 < len(plan.spans) < wanted:
            steps = plan_spans(self._prepared.key, workers=self._prepared.spec.workers, spans=wanted)
            plan = await answer(steps, source, self._prepared.source_table.name, self._prepared.key)
        return pick_spread(plan.spans, wanted)

    async def _rehearse_span(self, number: int, span: SpanBounds) -> None:
        limits = self._prepared.spec.chunk
        warm, after = await self._chunk(number, span.lo, span, min(WARM_UP_ROWS, limits.max_rows))
        # Of a cost that is known: the size that meets the target, instead of the first of many steps towards it.
        start = limits.target_s * warm.scanned / warm.server_s if warm and warm.server_s > 0 else START_ROWS
        sizer = ChunkSizer(
            target_s=limits.target_s,
            min_rows=limits.min_rows,
            max_rows=limits.max_rows,
            max_bytes=limits.max_bytes,
            start_rows=max(1, int(min(start, limits.max_rows))),
        )
        if warm:
            sizer.observe(_observation(warm))
        for _ in range(self._chunks):
            if after == span.hi or self._left_s() <= 0:
                break
            sample, after = await self._chunk(number, after, span, self._wanted(sizer), sizer)
            if sample:
                self._samples.append(sample)
                sizer.observe(_observation(sample))

    def _wanted(self, sizer: ChunkSizer) -> int:
        rows = min(sizer.rows, self._most_rows)
        rate = self._prepared.spec.pace.max_rows_per_s
        if rate is not None:
            rows = min(rows, max(self._prepared.spec.chunk.min_rows, int(rate * LIMITED_CHUNK_S)))
        return max(1, rows)

    async def _chunk(
        self, number: int, after: KeyValue | None, span: SpanBounds, rows: int, sizer: ChunkSizer | None = None
    ) -> tuple[Sample | None, KeyValue]:
        """One chunk after a key: what it cost (None: it failed, or there was no row), and where it ended."""
        began = self._clock.now()
        try:
            bound = await self._bound(after, span.hi, rows)
        except Exception as error:
            self._note(number, error, 0)
            return None, span.hi  # where the next chunk would begin is not known
        if bound.scanned == 0:
            return None, bound.to
        sample = None
        try:
            sample = await self._measure(number, bound)
            self._dead_rows += sample.dead_rows
        except Exception as error:
            failure = self._note(number, error, bound.scanned)
            if sizer is not None:
                sizer.failed(split=failure.action is Action.SPLIT)
        rate = self._prepared.spec.pace.max_rows_per_s
        if rate is not None:
            pause_s = bound.scanned / rate - (self._clock.now() - began)
            await self._clock.sleep(min(pause_s, max(0.0, self._left_s())))
        return sample, bound.to

    def _note(self, number: int, error: Exception, scanned: int) -> Failure:
        """Write an error of a chunk down.  Raises it where the session is gone, and where no server spoke: a bug."""
        failure = classify(error)
        if failure.lost or not failure.sqlstate:
            raise error
        self._dead_rows += scanned
        self._failed.append(FailedChunk(number, failure, self._consequence(failure, scanned)))
        return failure

    def _consequence(self, failure: Failure, scanned: int) -> Consequence:
        is_conflict = failure.action is Action.CONFLICT and failure.constraint in self._prepared.arbiters
        if failure.is_of_row and not is_conflict:
            # One row at least; how many there are in the chunk is not looked for.
            bad = 1 + sum(failed.consequence is Consequence.SET_ASIDE for failed in self._failed)
            return Consequence.SET_ASIDE if bad <= self._prepared.spec.errors.max_quarantined else Consequence.STOP
        if failure.action is Action.SPLIT and scanned > 1:
            return Consequence.SPLIT
        return Consequence.RETRY if failure.action is Action.RETRY else Consequence.STOP

    async def _bound(self, after: KeyValue | None, hi: KeyValue, rows: int) -> Bound:
        found = await self._prober.walk(after, hi, rows)
        to = hi if found is None else found
        scanned = rows if found is not None else await self._count(after, hi)
        occupied = True
        if self._prepared.asks_ahead and self._prepared.target is not None:
            occupied = not await self._prober.is_empty(self._prepared.target, after, to)
        return Bound(after, to, rows, scanned, by_arithmetic=False, occupied=occupied)

    async def _count(self, after: KeyValue | None, hi: KeyValue) -> int:
        """How many rows a span's last chunk has."""
        assert self._source is not None
        key, table = self._prepared.key.columns, qualified(self._prepared.source_table.name)
        args = [list(hi)] if after is None else [list(hi), list(after)]
        condition = within(key, None if after is None else parameter(2), parameter(1))
        return int(await self._source.fetchval(f"SELECT count(*) FROM {table} WHERE {condition}", *args))

    async def _measure(self, number: int, bound: Bound) -> Sample:
        written = self._prepared.written_table
        here = self._rehearser.connection
        before = await one_row(here, _STAND, written.oid)
        async with self._witness.watching():
            cost = await self._rehearser.play(bound)
        after = await one_row(here, _STAND, written.oid)
        wal_bytes = after["wal"] - before["wal"]
        if cost.wal_bytes is not None and not self._wal_is_shared:
            wal_bytes = cost.wal_bytes
        return Sample(
            span=number,
            scanned=cost.scanned,
            rows=cost.rows,
            dead_rows=cost.rows + cost.wasted,
            server_s=cost.server_s,
            elapsed_s=cost.elapsed_s,
            held_s=cost.held_s,
            waited_s=self._witness.ours_s,
            wal_bytes=wal_bytes,
            page_images=cost.page_images,
            hot_rows=cost.hot_rows,
            heap_bytes=max(0, after["heap"] - before["heap"]),
            index_bytes=max(0, after["indexes"] - before["indexes"]),
            bytes=cost.bytes,
        )

    def _settings(self) -> Settings:
        prepared, spec, source = self._prepared, self._prepared.spec, self._prepared.source_table
        rows = max(1.0, prepared.plan.rows)
        entries = len(prepared.written_table.indexes) / max(1, len(source.indexes))
        return Settings(
            mode=prepared.mode,
            rows=prepared.plan.rows,
            workers=spec.workers,
            target_s=spec.chunk.target_s,
            min_rows=spec.chunk.min_rows,
            max_rows=spec.chunk.max_rows,
            max_bytes=spec.chunk.max_bytes,
            max_rows_per_s=spec.pace.max_rows_per_s,
            max_wal_bytes_per_s=spec.pace.max_wal_bytes_per_s,
            version_bytes=source.heap_bytes / rows,
            entry_bytes=source.index_bytes / rows * entries,
            wal_is_shared=self._wal_is_shared,
        )

    async def _sequences_per_row(self) -> int:
        """Values that one written row takes from sequences."""
        spec, target = self._prepared.spec, self._prepared.target
        texts = [column.expression for column in target.columns] if target else list(spec.set.values())
        by_expression = sum("nextval" in read_expression(text).functions for text in texts)
        if target is None:
            return by_expression
        filled = [column.name for column in target.columns]
        oid = self._prepared.written_table.oid
        return by_expression + int(await self._rehearser.connection.fetchval(_SEQUENCES, oid, filled))


def _observation(sample: Sample) -> Observation:
    return Observation(rows=sample.rows, scanned=sample.scanned, bytes=sample.bytes, server_s=sample.server_s)
