"""The mover that fills columns in place with what a Python transform makes of others.

COPY out of the chunk's open rows, the transform, COPY into a staging table, one UPDATE: over two sessions, since a
session cannot read and write a stream at the same time.  Between reading and writing a row anybody may change it, so
the staging table keeps the very bytes that the transform was given, and a row is written only while these are still its
own (``sql.transformed``).  Rows that have changed meanwhile are read and transformed again, first hoping for the best,
at last under a lock; all within the chunk's one transaction, so that none is left behind its cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from engine.clock import Clock
from engine.crashpoint import crashpoint
from engine.errors import BackfillError
from engine.flow.bounds import Bound
from engine.flow.movers.server_side import CHUNK_DEADLINE_S
from engine.flow.movers.transformed import (
    Aside,
    KeysWanted,
    TransformedStream,
    Transforming,
    WithTransform,
    keep_in_memory,
    too_many,
)
from engine.flow.prepare import Prepared
from engine.model import Observation, Span
from engine.sql import read_expression
from engine.sql.statements import STAGING, advance_call
from engine.sql.transformed import (
    EMPTY_STAGING,
    Filling,
    changed_query,
    create_staging_in_place,
    free_prefix,
    open_query,
    passage_in_place,
    update_staged,
)

HOPEFUL_ROUNDS: Final = 2
"""How often rows that changed meanwhile are read again without a lock; the round after these has one."""


@dataclass(slots=True)
class Filled:
    """What became of a chunk in its transaction, before the fence."""

    aside: Aside
    rows: int = 0
    changed: int = 0  # rows that had changed between reading and writing them, each time
    refused: int = 0  # rows that were as we had read them, locked, and were not written nevertheless
    transform_s: float = 0.0


class FillMover(WithTransform):
    """Fills chunks of one worker in place, through the transform.  Two sessions with the one database.

    ``transforming``: a runner that is shared; without, the mover has one of its own.
    """

    def __init__(
        self,
        prepared: Prepared,
        job_id: int,
        purpose: str,
        clock: Clock,
        *,
        most_rejected: int,
        transforming: Transforming | None = None,
    ) -> None:
        database = prepared.endpoints.target
        super().__init__(database, database, purpose, job_id, clock)
        assert prepared.transform is not None
        self._filling = filling_of(prepared)
        self._through = passage_in_place(self._filling)
        self._row_bytes = prepared.row_bytes
        self._transforming = transforming or Transforming(prepared.transform, self._through, most_rejected)
        self._update_first = update_staged(self._filling, first=True)
        self._update_next = update_staged(self._filling, first=False)
        self._create_staging = create_staging_in_place(self._filling)
        self._commit_s = 0.0

    async def move(self, span: Span, bound: Bound) -> Observation:
        """One transaction: the rows, rows set aside, fence, COMMIT."""
        began = self._clock.now()
        try:
            filled = await self._attempt(span, bound)
        except KeysWanted:
            self._transforming.with_keys = True
            filled = await self._attempt(span, bound)
        crashpoint("commit.after")
        return Observation(
            rows=filled.rows,
            scanned=bound.scanned,
            bytes=round(filled.rows * self._row_bytes),
            server_s=self._clock.now() - began,
            commit_s=self._commit_s,
            transform_s=filled.transform_s,
            changed=filled.changed,
            refused=filled.refused,
            set_aside=filled.aside.counts,
        )

    async def _attempt(self, span: Span, bound: Bound) -> Filled:
        filled = Filled(Aside())
        try:
            async with asyncio.timeout(self._transforming.deadline_s):
                await self._transaction(span, bound, filled)
        except Exception as error:
            allowed = self._transforming.most_rejected
            told = await too_many(error, self.connection, self._job_id, span, filled.aside, allowed)
            if told is error:
                del told  # else its traceback keeps it, and with it the stream
                raise
            raise told from None
        return filled

    async def _transaction(self, span: Span, bound: Bound, filled: Filled) -> None:
        writer = self.connection
        try:
            # It stands idle while a function looks at changed rows again, up to our own deadline.
            idle_ms = round(1000 * self._transforming.deadline_s)
            await writer.execute(f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = {idle_ms}")
            await self.fill(bound, filled)
            fence = advance_call(
                self._job_id,
                span.id,
                span.epoch,
                span.cursor,
                span.hi,
                bound.to,
                filled.rows,
                bound.scanned,
                round(filled.rows * self._row_bytes),
                remember=False,
            )
            aside = filled.aside.call(self._job_id, self._transforming.most_rejected, writer.encoding)
            self.aside = filled.aside.counts
            crashpoint("commit.before")
            sent_at = self._clock.now()
            await writer.execute(f"{aside}{fence}; COMMIT")
            self._commit_s = self._clock.now() - sent_at
        except BaseException:
            await writer.roll_back()
            raise

    async def fill(self, bound: Bound, filled: Filled) -> None:
        """The chunk's rows, in the transaction that is open, added up in ``filled``."""
        assert self._there is not None
        writer = self.connection
        keys = self._transforming.with_keys
        crashpoint("read.before")
        query = open_query(self._filling, self._through, bound.after, bound.to, keys=keys)
        stream = self._transforming.stream(self._there, query, filled.aside)
        try:
            await writer.execute(self._create_staging)
            crashpoint("write.before")
            await self._stage(stream, stream.pieces())
        except BaseException:
            await stream.abandon()
            raise
        unwritten = await self._write(bound, stream, filled)
        if len(unwritten) > 1:
            keep_in_memory(round(stream.size_bytes * len(unwritten) / stream.read_rows))
        del stream  # its buffers are for the next one
        for number in range(HOPEFUL_ROUNDS + 1):
            if not unwritten:
                break
            lock = number == HOPEFUL_ROUNDS
            query = changed_query(self._filling, self._through, bound.after, bound.to, unwritten, keys=keys, lock=lock)
            unwritten = await self._again(bound, query, filled)
        if unwritten:  # nobody could have changed them: a trigger has taken the update back, each time
            filled.refused = len(unwritten)
            filled.changed -= min(filled.changed, filled.refused * (HOPEFUL_ROUNDS + 1))
        crashpoint("write.after")

    async def _stage(self, stream: TransformedStream, pieces: AsyncIterator[bytes]) -> None:
        rows = await self.connection.copy_in(None, self._through.columns, pieces, temp_name=STAGING)
        if rows != stream.passed_rows:
            raise BackfillError(f"{stream.passed_rows} rows were sent to the staging table, which took {rows}")

    async def _write(self, bound: Bound, stream: TransformedStream, filled: Filled) -> Sequence[str]:
        """Bring the staged rows home; the places of those that were not written."""
        filled.transform_s += stream.transform_s
        if stream.passed_rows == 0:
            return ()
        first = bound.after is None
        row = await self.connection.fetchrow(
            self._update_first if first else self._update_next,
            None if bound.after is None else list(bound.after),
            list(bound.to),
            stream.passed_rows,
            timeout_s=CHUNK_DEADLINE_S,
        )
        assert row is not None
        filled.rows += row["rows"]
        return row["unwritten"] or ()

    async def _again(self, bound: Bound, query: str, filled: Filled) -> Sequence[str]:
        """Read once more what has changed, on the writing session: it sees its own rows, and a lock that it takes is
        the chunk's.  What comes of it waits here meanwhile; there are few such rows.
        """
        stream = self._transforming.stream(self.connection, query, filled.aside)
        try:
            pieces = await stream.collected()
        except BaseException:
            await stream.abandon()
            raise
        filled.changed += stream.read_rows
        if stream.passed_rows == 0:
            filled.transform_s += stream.transform_s
            return ()
        await self.connection.execute(EMPTY_STAGING)
        await self._stage(stream, _each(pieces))
        return await self._write(bound, stream, filled)


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def filling_of(prepared: Prepared) -> Filling:
    """What the statements need of a job that is filled in place through a transform."""
    assert prepared.transform is not None
    table = prepared.source_table
    declaration = prepared.transform.declaration
    return Filling(
        source=prepared.source,
        reads=tuple((read.name, read.oid) for read in prepared.transform.reads),
        writes=declaration.writes,
        assignments={name: read_expression(text).sql for name, text in prepared.spec.set.items()},
        done=prepared.done,
        prefix=free_prefix((table.name.name, *(column.name for column in table.columns))),
    )
