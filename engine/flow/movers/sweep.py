"""``deletes: guarded``: takes out again what was deleted at the source while we copied it.

Runs when the last chunk is in and every transaction older than it has ended (``flow.barrier``), in chunks of the
*target's* keys, under the same leases, bounds and fence as any mover.  A chunk looks for rows that **our own
transactions wrote** and that the source does not hold.  Usually there are none and the cursor moves on.  Otherwise it
locks the suspect rows, looks at the source again *in a later statement* (whoever brings a key back now waits for our
lock, or has been seen), and deletes those that are still missing and still as we wrote them.
"""

from __future__ import annotations

import asyncio

from engine.clock import Clock
from engine.crashpoint import crashpoint
from engine.db import Connection, Database
from engine.flow.bounds import Bound
from engine.flow.movers.server_side import CHUNK_DEADLINE_S, open_for_chunks
from engine.model import Backend, KeyValue, Observation, Side, Span
from engine.sql import statements
from engine.sql.statements import SourceShape, TargetShape, advance_call, key_list


class SweepMover:
    """Sweeps chunks of the target for one worker.  ``source_db`` is None when both tables are in one database."""

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
        self._source_db = source_db
        self._target_db = target_db
        self._purpose = purpose
        self._job_id = job_id
        self._clock = clock
        self._source = source
        self._target = target
        self._there: Connection | None = None  # the source, when it is another database
        self._here: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The connection to the target, which holds the ledger too."""
        assert self._here is not None, "open() first"
        return self._here

    def session(self, side: Side) -> Connection:
        """The connection to that side's server."""
        return self.connection if side is Side.TARGET or self._there is None else self._there

    @property
    def backends(self) -> tuple[Backend, ...]:
        """One process on each side that there is."""
        there = () if self._there is None else (self._there.backend,)
        return (*there, self.connection.backend)

    async def open(self) -> None:
        """Connect, and force the lookups onto the indexes."""
        await self.close()
        self._here = await open_for_chunks(self._target_db, self._purpose)
        if self._source_db is not None:
            self._there = await open_for_chunks(self._source_db, self._purpose)

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
        rows = await (self._there or self.connection).fetch(
            statements.present(self._source.table, self._source.key.columns), key_list(keys)
        )
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

    def abort(self) -> None:
        """Drop the sockets."""
        for connection in (self._there, self._here):
            if connection is not None:
                connection.abort()

    async def close(self) -> None:
        """Close the connections."""
        there, self._there = self._there, None
        here, self._here = self._here, None
        for connection in (there, here):
            if connection is not None:
                await connection.close()
