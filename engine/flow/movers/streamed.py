"""The mover between two databases: ``COPY … TO STDOUT`` of the source streamed straight into ``COPY … FROM STDIN``.

No chunk is ever in memory as a whole: pieces pass through a short queue, whose fullness is the backpressure, and
through the native frame scanner, which counts rows and checks the frames.  Rows, cursor and fence commit in one
transaction of the target; the source is only read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Protocol

from engine._native.copybin import FrameScanner, TextScanner
from engine.clock import Clock
from engine.crashpoint import crashpoint
from engine.db import Connection, Database
from engine.db.failures import Action, classify
from engine.errors import BackfillError
from engine.flow.bounds import Bound
from engine.flow.movers.both import BothSides
from engine.flow.movers.server_side import CHUNK_DEADLINE_S
from engine.model import ConflictPolicy, Observation, Span
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

ABANDON_S: Final = 5.0
"""How long the rest of a chunk that is not wanted any more may take to run out."""

QUEUE_PIECES: Final = 16
"""Pieces (some tens of kilobytes each) between the two servers: enough to keep both busy."""


Scanner = FrameScanner | TextScanner


class Passing(Protocol):
    """A running COPY OUT, on its way to COPY IN: as it is (``Stream``), or through a transform."""

    @property
    def read_rows(self) -> int:
        """Rows that the source has sent."""
        ...

    @property
    def passed_rows(self) -> int:
        """Of these, rows that have been handed on to the target."""
        ...

    @property
    def size_bytes(self) -> int:
        """What the source has sent."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """What COPY IN is fed with.  Raises what went wrong on the way, so that the target is told to forget it all."""
        ...

    async def abandon(self) -> None:
        """Nobody wants the rest."""
        ...


class Stream:
    """One running COPY OUT: pieces pass the scanner into a short queue; full, it holds the source back."""

    def __init__(self, reader: Connection, query: str, scanner: Scanner, *, binary: bool) -> None:
        self.scanner = scanner
        self._reader = reader
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_PIECES)
        self._wanted = True
        self._reading = asyncio.ensure_future(self._read(query, binary=binary))

    @property
    def read_rows(self) -> int:
        """Rows that have passed the scanner."""
        return self.scanner.rows

    @property
    def passed_rows(self) -> int:
        """The same: nothing is left out."""
        return self.scanner.rows

    @property
    def size_bytes(self) -> int:
        """Bytes that have passed the scanner."""
        return self.scanner.bytes

    async def _read(self, query: str, *, binary: bool) -> int:
        try:
            return await self._reader.copy_out(query, self._take, binary=binary)
        finally:
            if self._wanted:
                await self._queue.put(None)

    async def _take(self, piece: bytes) -> None:
        if self._wanted:
            self.scanner.feed(piece)
            await self._queue.put(piece)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The stream's bytes.  A reader that failed ends it by raising, so that the target is told to forget it all."""
        piece = await self._queue.get()
        crashpoint("read.first")
        while piece is not None:
            yield piece
            crashpoint("write.middle")
            piece = await self._queue.get()
        if await self._reading != self.scanner.rows:
            raise BackfillError(f"the source sent {self.scanner.rows} rows and counted {self._reading.result()}")
        self.scanner.finish()

    async def abandon(self) -> None:
        """The target failed: let the source run out into nothing, so that its session stays usable, or drop it."""
        self._wanted = False
        while not self._queue.empty():
            self._queue.get_nowait()
        done, _ = await asyncio.wait((self._reading,), timeout=ABANDON_S)
        if not done:
            self._reading.cancel()
            self._reader.abort()
        await asyncio.gather(self._reading, return_exceptions=True)  # the target's error is the one that counts


class CopyMover(BothSides):
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
        super().__init__(source_db, target_db, purpose, job_id, clock)
        self._source = source
        self._target = target
        self._arbiters = arbiters
        self._binary = binary
        self._columns = [c.name for c in target.columns]
        keys = [c.name for c in target.key]
        self._key_fields = [self._columns.index(name) for name in keys]
        self._met_rows = False  # without ranges on the target: the last chunk found rows there
        self._commit_s = 0.0  # of the last transaction
        self._deadline_s = CHUNK_DEADLINE_S

    async def move(self, span: Span, bound: Bound) -> Observation:
        """One transaction on the target: COPY, fence, COMMIT."""
        began = self._clock.now()
        async with asyncio.timeout(self._deadline_s):
            rows, stream, staged = await self._write(span, bound)
        crashpoint("commit.after")
        self._met_rows = staged and rows < stream.passed_rows
        scanned = bound.scanned if self._source.where else stream.read_rows
        return Observation(
            rows=rows,
            scanned=scanned,
            bytes=stream.size_bytes,
            server_s=self._clock.now() - began,
            commit_s=self._commit_s,
        )

    async def _write(self, span: Span, bound: Bound) -> tuple[int, Passing, bool]:
        """Directly if nobody wrote into the chunk's range yet, else (or if somebody does meanwhile) by staging."""
        stream = self._start(bound)
        try:
            staged = not await self._may_go_direct(bound)
            if staged:
                return await self._transaction(span, bound, stream, staged=True), stream, True
            try:
                return await self._transaction(span, bound, stream, staged=False), stream, False
            except Exception as error:
                if not self._met_a_row(error):
                    raise
            await stream.abandon()
            stream = self._start(bound)
            return await self._transaction(span, bound, stream, staged=True), stream, True
        except BaseException:
            await stream.abandon()
            raise

    def _met_a_row(self, error: Exception) -> bool:
        """True for a unique violation on the arbiter: somebody wrote one of the chunk's keys meanwhile."""
        failure = classify(error)
        return (
            self._target.policy is not ConflictPolicy.FAIL
            and failure.action is Action.CONFLICT
            and failure.constraint in self._arbiters
        )

    def _start(self, bound: Bound) -> Passing:
        """Have the source send; what comes first waits in the queue while the target is asked and begins."""
        assert self._there is not None
        scanner = FrameScanner(len(self._columns), self._key_fields) if self._binary else TextScanner()
        query = copy_query(self._source, self._target, bound.after, bound.to)
        crashpoint("read.before")
        return Stream(self._there, query, scanner, binary=self._binary)

    async def _may_go_direct(self, bound: Bound) -> bool:
        """True when no row of the chunk's range is in the target, as far as anybody can tell beforehand."""
        if self._target.policy is ConflictPolicy.FAIL:
            return True
        if not self._target.same_order:
            return self._target.policy is ConflictPolicy.KEEP and not self._met_rows
        sql = range_is_empty(self._target, first=bound.after is None)
        after = None if bound.after is None else list(bound.after)
        return bool(await self.connection.fetchval(sql, after, list(bound.to)))

    async def _transaction(self, span: Span, bound: Bound, stream: Passing, *, staged: bool) -> int:
        writer = self.connection
        try:
            await writer.execute(f"BEGIN; {create_staging(self._target)}" if staged else "BEGIN")
            rows = await self._fill(bound, stream, staged=staged)
            fence = advance_call(
                self._job_id,
                span.id,
                span.epoch,
                span.cursor,
                span.hi,
                bound.to,
                rows,
                bound.scanned if self._source.where else stream.read_rows,
                stream.size_bytes,
                self._target.remember,
            )
            crashpoint("commit.before")
            sent_at = self._clock.now()
            await writer.execute(f"{self._beside(stream)}{fence}; COMMIT")
            self._commit_s = self._clock.now() - sent_at
        except BaseException:
            await writer.roll_back()
            raise
        return rows

    def _beside(self, stream: Passing) -> str:
        """Statements that travel with the fence, each with its semicolon: here none."""
        del stream
        return ""

    async def _fill(self, bound: Bound, stream: Passing, *, staged: bool) -> int:
        """The chunk's rows, in the transaction that is open; how many were written."""
        writer = self.connection
        crashpoint("write.before")
        rows = await writer.copy_in(
            None if staged else self._target.table,
            self._columns,
            stream.pieces(),
            binary=self._binary,
            temp_name=STAGING if staged else None,
        )
        if rows != stream.passed_rows:
            raise BackfillError(f"{stream.passed_rows} rows were sent to the target, which took {rows}")
        crashpoint("write.after")
        if staged:
            tag = await writer.execute(insert_staged(self._target, bound.after, bound.to))
            rows = int(tag.rpartition(" ")[2])
        return rows
