"""The mover between two databases: ``COPY … TO STDOUT`` of the source streamed straight into ``COPY … FROM STDIN``.

No chunk is ever in memory as a whole: pieces pass through a short queue, whose fullness is the backpressure, and
through the native frame scanner, which counts rows and checks the frames.  Rows, cursor and fence commit in one
transaction of the target; the source is only read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from engine._native.copybin import FrameScanner, TextScanner
from engine.clock import Clock
from engine.crashpoint import crashpoint
from engine.db import Connection, Database
from engine.db.failures import Action, classify
from engine.errors import BackfillError
from engine.flow.bounds import Bound
from engine.flow.movers.server_side import open_for_chunks
from engine.model import Backend, ConflictPolicy, Observation, Side, Span
from engine.sql.statements import (
    STAGING,
    SourceShape,
    TargetShape,
    advance_call,
    copy_query,
    create_staging,
    insert_staged,
    range_is_empty,
)

QUEUE_PIECES: Final = 16
"""Pieces (some tens of kilobytes each) between the two servers: enough to keep both busy."""


class CopyMover:
    """Moves chunks of one worker from ``source_db`` to ``target_db``.

    ``arbiters``: names of the indexes on which a unique violation means that somebody wrote one of the chunk's keys in
    between.  ``binary``: False where a type has no binary form that another database can read.
    """

    def __init__(
        self,
        source_db: Database,
        target_db: Database,
        purpose: str,
        job_id: int,
        clock: Clock,
        *,
        source: SourceShape,
        target: TargetShape,
        arbiters: frozenset[str],
        binary: bool,
    ) -> None:
        self._source_db = source_db
        self._target_db = target_db
        self._purpose = purpose
        self._job_id = job_id
        self._clock = clock
        self._source = source
        self._target = target
        self._arbiters = arbiters
        self._binary = binary
        self._columns = [c.name for c in target.columns]
        keys = [c.name for c in target.key]
        self._key_fields = [self._columns.index(name) for name in keys]
        self._reader: Connection | None = None
        self._writer: Connection | None = None
        self._met_rows = False  # without ranges on the target: the last chunk found rows there

    @property
    def connection(self) -> Connection:
        """The connection to the target, which holds the ledger too."""
        assert self._writer is not None, "open() first"
        return self._writer

    def session(self, side: Side) -> Connection:
        """The connection to that side's server."""
        return self.connection if side is Side.TARGET or self._reader is None else self._reader

    @property
    def backends(self) -> tuple[Backend, ...]:
        """One process on each side."""
        assert self._reader is not None, "open() first"
        return (self._reader.backend, self.connection.backend)

    async def open(self) -> None:
        """Connect to both sides, and force the chunk's statements onto the indexes."""
        await self.close()
        self._writer = await open_for_chunks(self._target_db, self._purpose)
        self._reader = await open_for_chunks(self._source_db, self._purpose)

    async def move(self, span: Span, bound: Bound) -> Observation:
        """One transaction on the target: COPY, fence, COMMIT."""
        began = self._clock.now()
        staged = not await self._may_go_direct(bound)
        try:
            rows, scanner = await self._transaction(span, bound, staged)
        except Exception as error:
            failure = classify(error)
            if (
                staged
                or self._target.policy is ConflictPolicy.FAIL
                or failure.action is not Action.CONFLICT
                or failure.constraint not in self._arbiters
            ):
                raise
            staged = True
            rows, scanner = await self._transaction(span, bound, staged)
        crashpoint("commit.after")
        self._met_rows = staged and rows < scanner.rows
        scanned = bound.scanned if self._source.where else scanner.rows
        return Observation(rows=rows, scanned=scanned, bytes=scanner.bytes, server_s=self._clock.now() - began)

    async def _may_go_direct(self, bound: Bound) -> bool:
        """True when no row of the chunk's range is in the target, as far as anybody can tell beforehand."""
        if self._target.policy is ConflictPolicy.FAIL:
            return True
        if not self._target.same_order:
            return self._target.policy is ConflictPolicy.KEEP and not self._met_rows
        sql = range_is_empty(self._target, first=bound.after is None)
        after = None if bound.after is None else list(bound.after)
        return bool(await self.connection.fetchval(sql, after, list(bound.to)))

    async def _transaction(self, span: Span, bound: Bound, staged: bool) -> tuple[int, FrameScanner | TextScanner]:
        writer = self.connection
        await writer.execute(f"BEGIN; {create_staging(self._target)}" if staged else "BEGIN")
        try:
            rows, scanner = await self._stream(bound, staged)
            crashpoint("write.after")
            if staged:
                tag = await writer.execute(insert_staged(self._target, bound.after, bound.to))
                rows = int(tag.rpartition(" ")[2])
            fence = advance_call(
                self._job_id,
                span.id,
                span.epoch,
                span.cursor,
                span.hi,
                bound.to,
                rows,
                bound.scanned if self._source.where else scanner.rows,
                scanner.bytes,
                self._target.remember,
            )
            await writer.execute(f"{fence}; COMMIT")
        except BaseException:
            await self._roll_back()
            raise
        return rows, scanner

    async def _stream(self, bound: Bound, staged: bool) -> tuple[int, FrameScanner | TextScanner]:
        """From one server's COPY into the other's.  Returns rows written and what the scanner saw."""
        assert self._reader is not None
        scanner = FrameScanner(len(self._columns), self._key_fields) if self._binary else TextScanner()
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_PIECES)
        wanted = True

        async def take(piece: bytes) -> None:
            scanner.feed(piece)
            if wanted:
                await pieces.put(piece)

        async def read() -> int:
            try:
                return await reader.copy_out(query, take, binary=self._binary)
            finally:
                if wanted:
                    await pieces.put(None)

        async def give() -> AsyncIterator[bytes]:
            piece = await pieces.get()
            crashpoint("read.first")
            while piece is not None:
                yield piece
                crashpoint("write.middle")
                piece = await pieces.get()
            # A reader that failed ends the stream by raising, so that the server is told to forget all of it.
            if await reading != scanner.rows:
                raise BackfillError(f"the source sent {scanner.rows} rows and counted {reading.result()}")
            scanner.finish()

        reader = self._reader
        query = copy_query(self._source, self._target, bound.after, bound.to)
        crashpoint("read.before")
        reading = asyncio.ensure_future(read())
        crashpoint("write.before")
        try:
            rows = await self.connection.copy_in(
                None if staged else self._target.table,
                self._columns,
                give(),
                binary=self._binary,
                temp_name=STAGING if staged else None,
            )
        except BaseException:
            wanted = False
            await self._end_reading(reading, pieces)
            raise
        if rows != scanner.rows:
            raise BackfillError(f"the source sent {scanner.rows} rows and the target took {rows}")
        return rows, scanner

    async def _end_reading(self, reading: asyncio.Task[int], pieces: asyncio.Queue[bytes | None]) -> None:
        """The writer failed: let the reader run out into nothing, so that its connection stays usable."""
        while not pieces.empty():
            pieces.get_nowait()
        done, _ = await asyncio.wait((reading,), timeout=self._drain_s)
        if not done:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if self._reader is not None:
                self._reader.abort()
        elif not reading.cancelled():
            reading.exception()  # seen: the writer's error is the one that counts

    _drain_s: Final = 5.0

    async def _roll_back(self) -> None:
        writer = self._writer
        if writer is None or writer.is_closed:
            return
        try:
            await asyncio.shield(writer.execute("ROLLBACK"))
        except Exception:
            writer.abort()

    def abort(self) -> None:
        """Drop both sockets."""
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.abort()

    async def close(self) -> None:
        """Close both connections."""
        reader, self._reader = self._reader, None
        writer, self._writer = self._writer, None
        for connection in (reader, writer):
            if connection is not None:
                await connection.close()
