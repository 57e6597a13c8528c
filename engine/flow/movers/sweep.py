"""``deletes: guarded``: takes out again what was deleted at the source while we copied it.

Runs when the last chunk is in and every transaction older than it has ended (``flow.barrier``), in chunks of the
*target's* keys, under the same leases, bounds and fence as any mover.  A chunk looks for rows that **our own
transactions wrote** and that the source does not hold.  Usually there are none and the cursor moves on.  Otherwise it
locks the suspect rows, looks at the source again *in a later statement* (whoever brings a key back now waits for our
lock, or has been seen), and deletes those that are still missing and still as we wrote them.

Where our own triggers have left a tombstone for every key that was deleted since before the first chunk, only those
keys are suspect: the sweep pages through the tombstones, and costs what the deletes cost, not what the table does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from engine.clock import Clock
from engine.crashpoint import crashpoint
from engine.db import Database
from engine.flow.bounds import Bound
from engine.flow.movers.both import BothSides
from engine.flow.movers.server_side import CHUNK_DEADLINE_S
from engine.model import KeyValue, Observation, Span
from engine.sql import statements
from engine.sql.statements import SourceShape, TargetShape, advance_call, key_list


class SweepMover(BothSides):
    """Sweeps chunks of the target for one worker."""

    def __init__(
        self,
        source_db: Database | None,
        target_db: Database,
        purpose: str,
        job_id: int,
        clock: Clock,
        *,
        source: SourceShape,
        target: TargetShape,
    ) -> None:
        super().__init__(source_db, target_db, purpose, job_id, clock)
        self._source = source
        self._target = target

    async def move(self, span: Span, bound: Bound) -> Observation:
        """One chunk: usually one statement that finds nothing and advances."""
        began = self._clock.now()
        crashpoint("write.before")
        suspects = await self._look(span, bound)
        deleted = 0
        if suspects is not None:
            deleted = await self._clear(span, bound, suspects)
        crashpoint("commit.after")
        return Observation(rows=deleted, scanned=bound.scanned, bytes=0, server_s=self._clock.now() - began)

    async def _look(self, span: Span, bound: Bound) -> list[KeyValue] | None:
        """Keys that may have to go; None when the cursor has been advanced already because there are none."""
        first = bound.after is None
        cursor = None if bound.after is None else list(bound.after)
        to = list(bound.to)
        if self._there is None and self._target.same_order:
            row = await self.connection.fetchrow(
                statements.sweep_chunk(self._source, self._target, first=first),
                self._job_id,
                span.id,
                span.epoch,
                cursor,
                list(span.hi),
                to,
                bound.scanned,
                0.0,
                timeout_s=CHUNK_DEADLINE_S,
            )
            assert row is not None
            if row["server_s"] is not None:
                return None
            found = await self.connection.fetch(
                statements.suspects(self._source, self._target, first=first), self._job_id, cursor, to
            )
            return [tuple(r["key"]) for r in found]
        if self._there is not None and self._target.same_order and await self._digests_agree(bound):
            return []
        ours = await self.connection.fetch(statements.our_keys(self._target, first=first), self._job_id, cursor, to)
        keys = [tuple(r["key"]) for r in ours]
        alive = await self._alive(keys)
        return [key for n, key in enumerate(keys) if n not in alive]

    async def _digests_agree(self, bound: Bound) -> bool:
        """Count and hash of the keys on both sides, at the same time: equal unless something was deleted or added."""
        assert self._there is not None
        first = bound.after is None
        cursor = None if bound.after is None else list(bound.after)
        source, target = self._source, self._target
        theirs = statements.key_digest(source.table, source.key.columns, source.where, first=first)
        ours = statements.key_digest(target.table, target.key, None, first=first)
        there, here = await asyncio.gather(
            self._there.fetchrow(theirs, cursor, list(bound.to)),
            self.connection.fetchrow(ours, cursor, list(bound.to)),
        )
        return there is not None and here is not None and tuple(there) == tuple(here)

    async def _alive(self, keys: list[KeyValue]) -> set[int]:
        """Which of the keys, by position, the source holds now."""
        if not keys:
            return set()
        rows = await (self._there or self.connection).fetch(statements.present(self._source), key_list(keys))
        return {row["n"] for row in rows}

    async def _clear(self, span: Span, bound: Bound, suspects: list[KeyValue]) -> int:
        here = self.connection
        await here.execute("BEGIN")
        try:
            deleted = 0
            if suspects:
                rows = await here.fetch(statements.lock_ours(self._target), self._job_id, key_list(suspects))
                locked = [tuple(row["key"]) for row in rows]
                alive = await self._alive(locked)
                gone = [key for n, key in enumerate(locked) if n not in alive]
                if gone:
                    deleted = len(await here.fetch(statements.delete_keys(self._target), self._job_id, key_list(gone)))
            crashpoint("write.after")
            fence = advance_call(
                self._job_id,
                span.id,
                span.epoch,
                span.cursor,
                span.hi,
                bound.to,
                deleted,
                bound.scanned,
                0,
                remember=False,
            )
            crashpoint("commit.before")
            await here.execute(f"{fence}; COMMIT")
        except BaseException:
            await here.roll_back()
            raise
        return deleted


class TombstoneMover(SweepMover):
    """Sweeps what our triggers have buried: a chunk is a range of numbers of tombstones.

    ``permutation``: for each column of the sweep's key, its place in the job's key.
    """

    def __init__(
        self,
        source_db: Database | None,
        target_db: Database,
        purpose: str,
        job_id: int,
        clock: Clock,
        *,
        source: SourceShape,
        target: TargetShape,
        job: str,
        permutation: Sequence[int],
    ) -> None:
        super().__init__(source_db, target_db, purpose, job_id, clock, source=source, target=target)
        self._job = job
        self._permutation = permutation

    async def _look(self, span: Span, bound: Bound) -> list[KeyValue] | None:  # noqa: ARG002 - as the base class
        first = bound.after is None
        rows = await self.connection.fetch(
            statements.buried(self._permutation, first=first),
            self._job,
            None if bound.after is None else list(bound.after),
            list(bound.to),
        )
        return [tuple(row["key"]) for row in rows]
