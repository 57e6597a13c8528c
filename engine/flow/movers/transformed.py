"""Rows that pass through a Python transform between COPY OUT and COPY IN; and the mover into another table.

A chunk is still one stream and one transaction: pieces of COPY OUT are cut into batches of rows, each goes to the
worker's ``Runner`` (a thread of its own, so that neither a busy nor a hanging function holds up leases), and what it
gives back goes to COPY IN in the order of the source.  A few batches are under way at once, never a whole chunk.

Rows that the transform could not do are set aside in the chunk's own transaction, so that each of them is either
written or in the quarantine, exactly once.  That takes their keys as text, which most jobs never need: the first batch
that rejects a row makes its worker begin the chunk anew with keys, and from then on it always asks for them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from engine._native.rows import HEADER, TRAILER, RowBatches, Rows
from engine.clock import Clock
from engine.crashpoint import crashpoint
from engine.db import Connection, ConnectionLost
from engine.db.failures import FENCE_SQLSTATE, TOO_MANY_SQLSTATE, Action, Judged, classify
from engine.errors import BackfillError, TooManyBadRows, TransformFailed
from engine.flow.bounds import Bound
from engine.flow.movers.both import BothSides
from engine.flow.movers.server_side import CHUNK_DEADLINE_S
from engine.flow.movers.streamed import ABANDON_S, CopyMover, Passing
from engine.flow.prepare import Prepared
from engine.flow.transforming import PreparedTransform, TransformNotReady
from engine.ledger.store import Ledger
from engine.model import KeyValue, Observation, Span
from engine.sql.statements import create_staging
from engine.sql.transformed import Passage, passage, passing_query, set_aside_call

if TYPE_CHECKING:
    from engine.transform.running import Applied, Runner

BATCH_BYTES: Final = 1 << 20
"""A batch ends here, however few rows it has; narrow rows end at ``batch_rows`` before.  A worker holds
``concurrency + 2`` of them at most, each in several forms: those that the function has, one that waits so that it never
has to, and one that COPY IN takes.
"""

MOST_COLLECTED_BYTES: Final = 1 << 20
"""What others change of a chunk while the transform has it waits in memory.  Where that is more, the chunk comes again
with fewer rows.
"""


class KeysWanted(Exception):
    """A batch has rejected rows, and the stream does not say which: begin again with keys."""


class Aside:
    """Rows of one chunk that the transform could not do, by key: why, and the SQLSTATE of that."""

    def __init__(self) -> None:
        self._rows: dict[KeyValue, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, key: KeyValue, reason: str, sqlstate: str) -> None:
        """One more; a key that is there already has been looked at again."""
        self._rows[key] = (reason, sqlstate)

    @property
    def counts(self) -> tuple[tuple[str, int], ...]:
        """How many of each SQLSTATE."""
        return tuple(sorted(Counter(sqlstate for _, sqlstate in self._rows.values()).items()))

    @property
    def first(self) -> tuple[str, str]:
        """Reason and SQLSTATE of the first of them."""
        return next(iter(self._rows.values()))

    def call(self, job_id: int, allowed: int, encoding: str) -> str:
        """The statement that sets them aside, with its semicolon; empty where there are none.  ``encoding``: of the
        ledger's database.
        """
        if not self._rows:
            return ""
        reasons = [writable(reason, encoding) for reason, _ in self._rows.values()]
        sqlstates = [sqlstate for _, sqlstate in self._rows.values()]
        return f"{set_aside_call(job_id, list(self._rows), reasons, sqlstates, allowed)}; "


class TransformedStream:
    """One running COPY OUT whose rows pass the transform, batch by batch and in order.

    ``fields``: of the query; its last ``key_width`` ones are the key as text (0: it has none).
    """

    def __init__(
        self,
        reader: Connection,
        query: str,
        runner: Runner,
        *,
        fields: int,
        key_width: int,
        batch_rows: int,
        concurrency: int,
        aside: Aside,
    ) -> None:
        self.aside = aside
        self.transform_s = 0.0  # wall time with a batch at work or more
        self.passed_rows = 0
        self._at_work = 0
        self._at_work_since = 0.0
        self._reader = reader
        self._runner = runner
        self._key_fields = range(fields - key_width, fields)
        self._batches = RowBatches(fields, max_rows=batch_rows, max_bytes=BATCH_BYTES)
        self._queue: asyncio.Queue[asyncio.Task[Applied] | None] = asyncio.Queue(concurrency)
        self._tasks: set[asyncio.Task[Applied]] = set()  # not consumed yet
        self._wanted = True
        self._reading = asyncio.ensure_future(self._read(query))

    @property
    def read_rows(self) -> int:
        """Rows that the source has sent."""
        return self._batches.rows

    @property
    def size_bytes(self) -> int:
        """Bytes that the source has sent."""
        return self._batches.bytes

    async def _read(self, query: str) -> int:
        try:
            count = await self._reader.copy_out(query, self._take)
            last = self._batches.finish() if self._wanted else None
            if last is not None:
                await self._give(last)
        finally:
            if self._wanted:
                await self._queue.put(None)
        return count

    async def _take(self, piece: bytes) -> None:
        if self._wanted:
            for rows in self._batches.feed(piece):
                await self._give(rows)

    async def _give(self, rows: Rows) -> None:
        if self._wanted:
            task = asyncio.ensure_future(self._apply(rows))
            self._tasks.add(task)
            await self._queue.put(task)

    async def _apply(self, rows: Rows) -> Applied:
        crashpoint("transform.before")
        with self._working():
            applied = await self._runner.apply(rows)
        if applied.rejected and not self._key_fields:
            raise KeysWanted
        for rejected in applied.rejected:
            key = tuple([_text(rows.value(rejected.row, field)) for field in self._key_fields])
            self.aside.add(key, rejected.reason, rejected.sqlstate)
        return applied

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Batches overlap: their own times add up to more than the chunk took."""
        if not self._at_work:
            self._at_work_since = time.perf_counter()
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            if not self._at_work:
                self.transform_s += time.perf_counter() - self._at_work_since

    async def pieces(self) -> AsyncIterator[bytes]:
        """The stream's bytes.  Whatever failed ends it by raising, so that the target is told to forget it all."""
        yield HEADER
        task = await self._queue.get()
        crashpoint("read.first")
        while task is not None:
            if not (task.done() or self._reading.done()):
                await asyncio.wait((task, self._reading), return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and self._reading.done():
                self._reading.result()  # the source has failed: nobody waits for a slow function then
            applied = await task
            self._tasks.discard(task)
            crashpoint("transform.after")
            self.passed_rows += applied.rows
            if applied.rows:
                yield applied.piece
            crashpoint("write.middle")
            del applied, task  # neither is held while the next one is waited for
            task = await self._queue.get()
        if await self._reading != self.read_rows:
            raise BackfillError(f"the source sent {self.read_rows} rows and counted {self._reading.result()}")
        yield TRAILER

    async def collected(self) -> list[bytes]:
        """All its pieces at once.  Raises ``ConnectionLost`` as soon as the session ends, whoever is at work then; and,
        as if the server had found the chunk too large, when several rows come to more than ``MOST_COLLECTED_BYTES``.
        """
        collecting = asyncio.ensure_future(self._collect())
        lost = asyncio.ensure_future(self._reader.wait_closed())
        try:
            await asyncio.wait((collecting, lost), return_when=asyncio.FIRST_COMPLETED)
            if collecting.done():
                return collecting.result()
            raise ConnectionLost("the session ended while the transform had rows of it")
        finally:
            collecting.cancel()
            lost.cancel()
            await asyncio.gather(collecting, lost, return_exceptions=True)
            del collecting, lost  # the error, whose traceback has this frame, would keep itself and the stream alive

    async def _collect(self) -> list[bytes]:
        pieces: list[bytes] = []
        size = 0
        async for piece in self.pieces():
            pieces.append(piece)
            size += len(piece)
            if self.passed_rows > 1:
                keep_in_memory(size)
        return pieces

    async def abandon(self) -> None:
        """Nobody wants the rest: let the source run out into nothing, so that its session stays usable, or drop it."""
        self._wanted = False
        while not self._queue.empty():
            self._queue.get_nowait()
        for task in self._tasks:
            task.cancel()
        done, _ = await asyncio.wait((self._reading,), timeout=ABANDON_S)
        if not done:
            self._reading.cancel()
            self._reader.abort()
        # What failed first is what counts, and is known already.
        await asyncio.gather(self._reading, *self._tasks, return_exceptions=True)
        self._tasks.clear()  # what they have made is held by nobody else


def keep_in_memory(size: int) -> None:
    """Raises, as if the server had found the chunk too large, when that many bytes of several rows are too many."""
    if size > MOST_COLLECTED_BYTES:
        raise Judged(Action.SPLIT, "", "others have changed more of the chunk than is kept in memory")


def writable(reason: str, encoding: str) -> str:
    """The reason as a database of that encoding takes it: an author may give reasons in any language."""
    if encoding.upper() == "UTF8":
        return reason
    return reason.replace("…", "...").encode("ascii", "backslashreplace").decode()


def _text(value: bytes | None) -> str:
    assert value is not None, "a key column is never null"
    return value.decode()


class Transforming:
    """A worker's runner and what its streams have in common.  ``most_rejected``: rows of the job that may be set aside;
    with 0 the transform's first complaint stops the job.  Raises ``TransformNotAllowed`` where it may not be loaded.
    """

    def __init__(self, prepared: PreparedTransform, through: Passage, most_rejected: int) -> None:
        self._transform = prepared.loaded
        self._prepared = prepared
        self._through = through
        self._runner: Runner | None = None
        self._starting: asyncio.Future[None] | None = None
        self.most_rejected = most_rejected
        self.with_keys = False  # a row was rejected before: chunks bring their keys along

    @property
    def deadline_s(self) -> float:
        """How long a chunk may take by our clock.  The server's own time-out makes it smaller before, but that shows
        only when the function comes back.
        """
        return CHUNK_DEADLINE_S + self._transform.time_limit_s

    async def open(self) -> None:
        """Begin its thread, with the transform's own set-up, unless that is done.  Raises ``TransformNotReady``."""
        if self._runner is None:
            from engine.transform.running import Runner

            runner = Runner(
                self._transform,
                list(zip(self._through.reads, self._prepared.reads, strict=True)),
                self._prepared.writes,
                self._through.layout,
                most_rejected=self.most_rejected,
            )
            self._starting = asyncio.ensure_future(runner.start())
            try:
                await asyncio.wait((self._starting,))
                if self._starting.cancelled():
                    raise ConnectionLost("told to end while the transform was being set up")
                self._starting.result()
            except TransformFailed as error:
                raise TransformNotReady(error.message, hint=error.hint, sqlstate=error.sqlstate) from None
            finally:
                self._starting.cancel()
                self._starting = None
            self._runner = runner

    def abort(self) -> None:
        """Wait no longer for a set-up."""
        if self._starting is not None:
            self._starting.cancel()

    async def close(self) -> str:
        """The transform's own tear-down, and the end of its thread.  What was wrong with it: the rows are in."""
        runner, self._runner = self._runner, None
        failed = None if runner is None else await runner.close()
        return "" if failed is None else failed.message

    def stream(self, reader: Connection, query: str, aside: Aside) -> TransformedStream:
        """Have ``reader`` send: a query of the passage, with keys where ``with_keys`` says so."""
        assert self._runner is not None, "open() first"
        through, declared = self._through, self._transform
        return TransformedStream(
            reader,
            query,
            self._runner,
            fields=through.count(keys=self.with_keys),
            key_width=len(through.key_texts) if self.with_keys else 0,
            batch_rows=declared.batch_rows,
            concurrency=declared.concurrency,
            aside=aside,
        )


async def too_many(
    error: Exception, connection: Connection, job_id: int, span: Span, aside: Aside, allowed: int
) -> Exception:
    """The error to raise for one of a chunk's transaction: what the ledger refused, told with its counts.  A chunk
    whose span has gone on without it counts rows that are set aside already: that is for the fence, which comes later.
    """
    if classify(error).sqlstate != TOO_MANY_SQLSTATE or not len(aside):
        return error
    try:
        is_ours = await Ledger(connection).stands_as(job_id, span)
    except Exception as lost:
        return lost
    if not is_ours:
        return Judged(Action.FENCED, FENCE_SQLSTATE, "the chunk's span has another owner, epoch, cursor or end by now")
    counts: Counter[str] = Counter()
    with suppress(Exception):  # the counts are for people: without them the error stays the same
        counts.update(await Ledger(connection).quarantined_by_sqlstate(job_id))
    counts.update(dict(aside.counts))
    shown = ", ".join(f"{rows:,} of {state}" for state, rows in counts.most_common())
    reason, sqlstate = aside.first
    return TooManyBadRows(
        f"{counts.total():,} rows cannot be written ({shown}); errors.max_quarantined allows {allowed:,};"
        f" the first of this chunk: {reason}",
        hint="mend the rows or the transform, or raise errors.max_quarantined; then backfill resume, and run again",
        sqlstate=sqlstate,
    )


def passage_of(prepared: Prepared) -> Passage:
    """How the rows of a job into another table pass its transform."""
    assert prepared.target is not None
    assert prepared.transform is not None
    declaration = prepared.transform.declaration
    reads = [name for name, _ in declaration.reads]
    return passage(prepared.source, prepared.target, reads, declaration.writes)


class WithTransform(BothSides):
    """A mover whose sessions and whose transform come and go together."""

    _transforming: Transforming

    async def open(self) -> None:
        """Connect, and see that the transform is ready."""
        await super().open()
        await self._transforming.open()

    def abort(self) -> None:
        """Drop the sockets, and wait for no set-up."""
        super().abort()
        self._transforming.abort()

    async def close(self) -> str:
        """Close the connections, and end the transform's thread."""
        await super().close()
        return await self._transforming.close()


class TransformedCopyMover(WithTransform, CopyMover):
    """Moves chunks of one worker into another table, through the transform.  Two sessions, also within one database.

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
        assert prepared.target is not None
        assert prepared.transform is not None
        transform, source, target = prepared.transform, prepared.source, prepared.target
        self._through = passage_of(prepared)
        super().__init__(
            prepared.endpoints.source,
            prepared.endpoints.target,
            purpose,
            job_id,
            clock,
            source=source,
            target=target,
            arbiters=prepared.arbiters,
            binary=True,
        )
        self._columns = list(self._through.columns)
        self._transforming = transforming or Transforming(transform, self._through, most_rejected)
        self._deadline_s = self._transforming.deadline_s
        self._aside = Aside()  # of the present chunk
        self._stream: TransformedStream | None = None

    async def move(self, span: Span, bound: Bound) -> Observation:
        """One transaction on the target: rows, rows set aside, fence, COMMIT."""
        try:
            try:
                seen = await super().move(span, bound)
            except KeysWanted:
                self._transforming.with_keys = True
                seen = await super().move(span, bound)
        except Exception as error:
            allowed = self._transforming.most_rejected
            told = await too_many(error, self.connection, self._job_id, span, self._aside, allowed)
            if told is error:
                del told  # a frame of the traceback that names its own error stays until it is collected
                raise
            raise told from None
        assert self._stream is not None
        return replace(seen, transform_s=self._stream.transform_s, set_aside=self._aside.counts)

    def _start(self, bound: Bound) -> Passing:
        assert self._there is not None
        keys = self._transforming.with_keys
        query = passing_query(self._source, self._through, bound.after, bound.to, keys=keys)
        crashpoint("read.before")
        self._aside = Aside()
        self._stream = self._transforming.stream(self._there, query, self._aside)
        return self._stream

    async def write_alone(self, bound: Bound) -> tuple[int, Aside]:
        """The rows of a chunk in the caller's transaction, by staging: how many were written, and which the transform
        could not do.
        """
        stream = self._start(bound)
        try:
            await self.connection.execute(create_staging(self._target))
            return await self._fill(bound, stream, staged=True), self._aside
        except BaseException:
            await stream.abandon()
            raise

    def _beside(self, stream: Passing) -> str:
        del stream
        self.aside = self._aside.counts
        return self._aside.call(self._job_id, self._transforming.most_rejected, self.connection.encoding)
