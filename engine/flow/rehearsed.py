"""One rehearsed chunk: the mover's own statement in a transaction that rolls back, and who waits for whom meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from engine.clock import Clock
from engine.db import Connection
from engine.db.failures import Action, classify
from engine.flow.bounds import Bound
from engine.flow.movers.filled import Filled, FillMover
from engine.flow.movers.server_side import CHUNK_DEADLINE_S, SETTING_DEADLINE_S, open_for_chunks
from engine.flow.movers.streamed import CopyMover, Passing
from engine.flow.movers.transformed import TransformedCopyMover
from engine.flow.prepare import Prepared
from engine.model import Mode, Observation, Phase, Span
from engine.sql import read_expression
from engine.sql.statements import (
    create_staging,
    insert_chunk,
    update_chunk,
)

PURPOSE: Final = "rehearse"
"""What the sessions of a rehearsal are called."""

WATCH_EVERY_S: Final = 0.05

_EXPLAIN: Final = "EXPLAIN (ANALYZE, WAL, TIMING OFF, BUFFERS OFF, FORMAT JSON) "
_AT_ONCE: Final = "SET CONSTRAINTS ALL IMMEDIATE"
"""What waits for COMMIT would never be checked in a transaction that has none."""

RELATIONS: Final = "(SELECT $1::oid UNION SELECT relid::oid FROM pg_partition_tree($1::oid::regclass))"
"""A table and its partitions."""

# Of this transaction and of earlier ones of this session that were not reported yet: only a difference means something.
_COUNTERS: Final = f"""\
SELECT coalesce(sum(pg_stat_get_xact_tuples_updated(r.oid)), 0)::bigint AS updated,
       coalesce(sum(pg_stat_get_xact_tuples_hot_updated(r.oid)), 0)::bigint AS hot
  FROM {RELATIONS} AS r (oid)"""

_LOCKS: Final = """\
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)) FILTER (WHERE pid = $1::int), 0)::float8 AS ours,
       coalesce(max(extract(epoch FROM clock_timestamp() - waitstart))
                FILTER (WHERE pid <> $1::int AND $1::int = ANY (pg_blocking_pids(pid))), 0)::float8 AS theirs
  FROM pg_locks WHERE NOT granted"""


@dataclass(slots=True)
class Cost:
    """What the transaction of one chunk cost, as far as its rehearser knows."""

    rows: int = 0
    wasted: int = 0  # row versions of an attempt before this one, at most
    scanned: int = 0
    bytes: int = 0
    server_s: float = 0.0
    elapsed_s: float = 0.0
    held_s: float = 0.0
    wal_bytes: int | None = None
    page_images: int | None = None
    hot_rows: int | None = None


class StatementRehearser:
    """Chunks of the movers whose rows never leave the server: their statements under EXPLAIN, which runs them and says
    what they cost.
    """

    def __init__(self, prepared: Prepared, clock: Clock) -> None:
        self._prepared = prepared
        self._clock = clock
        self._written = prepared.written_table
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The open session."""
        assert self._connection is not None, "open() first"
        return self._connection

    async def open(self) -> None:
        """Connect as the movers do."""
        self._connection = await open_for_chunks(self._prepared.endpoints.target, PURPOSE)

    async def close(self) -> None:
        """Let go of the session; a transaction that is still open rolls back."""
        if self._connection is not None:
            await self._connection.close()

    async def play(self, bound: Bound) -> Cost:
        """One chunk, or, as the mover does, the same again for one that met a row on the arbiter."""
        try:
            return await self._transaction(bound, collided=False)
        except Exception as error:
            failure = classify(error)
            is_mine = failure.action is Action.CONFLICT and failure.constraint in self._prepared.arbiters
            if not is_mine or self._prepared.mode is not Mode.INSERT:
                raise
        cost = await self._transaction(bound, collided=True)
        cost.wasted = bound.scanned
        return cost

    async def _transaction(self, bound: Bound, *, collided: bool) -> Cost:
        here, clock = self.connection, self._clock
        args = (None if bound.after is None else list(bound.after), list(bound.to))
        sql = _EXPLAIN + self._sql(bound, collided=collided)
        cost = Cost(scanned=bound.scanned)
        try:
            await here.execute("BEGIN", timeout_s=SETTING_DEADLINE_S)
            before = await one_row(here, _COUNTERS, self._written.oid)
            began = clock.now()
            report = json.loads(await here.fetchval(sql, *args, timeout_s=CHUNK_DEADLINE_S))[0]
            ran = clock.now()
            await here.execute(_AT_ONCE, timeout_s=CHUNK_DEADLINE_S)
            checked_s = clock.now() - ran
            after = await one_row(here, _COUNTERS, self._written.oid)
        finally:
            await here.roll_back()
        cost.held_s = clock.now() - began
        nodes = list(_nodes(report["Plan"]))
        cost.rows = sum(round(node["Actual Rows"]) for node in nodes if node["Node Type"] == "ModifyTable")
        cost.wal_bytes = max(int(node.get("WAL Bytes", 0)) for node in nodes)
        cost.page_images = max(int(node.get("WAL FPI", 0)) for node in nodes)
        cost.server_s = (report["Planning Time"] + report["Execution Time"]) / 1000 + checked_s
        cost.elapsed_s = ran - began + checked_s
        cost.bytes = round(cost.rows * self._prepared.row_bytes)
        if after["updated"] > before["updated"]:
            cost.hot_rows = after["hot"] - before["hot"]
        return cost

    def _sql(self, bound: Bound, *, collided: bool) -> str:
        """The mover's statement without its fence."""
        prepared, first = self._prepared, bound.after is None
        if prepared.mode is Mode.UPDATE:
            sets = {name: read_expression(text).sql for name, text in prepared.spec.set.items()}
            return update_chunk(prepared.source, sets, prepared.done, first=first, fence=False)
        assert prepared.target is not None
        return insert_chunk(
            prepared.source,
            prepared.target,
            first=first,
            occupied=bound.occupied or collided,
            collided=collided,
            fence=False,
        )


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


def _span_of(bound: Bound) -> Span:
    """Of no job: one that is the chunk."""
    return Span(id=0, phase=Phase.MOVE, lo=bound.after, hi=bound.to, cursor=bound.after, epoch=0, rows=0)


def _cost(seen: Observation, *, wasted: int, held_s: float) -> Cost:
    """Of a chunk that passed through this process: the server's time is ours."""
    return Cost(
        rows=seen.rows,
        wasted=wasted,
        scanned=max(1, seen.scanned),
        bytes=seen.bytes,
        server_s=seen.server_s,
        elapsed_s=seen.server_s,
        held_s=held_s,
    )


class _StreamRehearser(CopyMover):
    """What the two movers that stream into another table have in common in a rehearsal."""

    _held_s = 0.0
    _wasted = 0

    async def play(self, bound: Bound) -> Cost:
        """One chunk.  WAL is for the caller to find out."""
        self._wasted = 0
        seen = await self.move(_span_of(bound), bound)
        return _cost(seen, wasted=self._wasted, held_s=self._held_s)

    async def _transaction(self, span: Span, bound: Bound, stream: Passing, *, staged: bool) -> int:
        """As the mover's, up to the fence."""
        del span
        writer = self.connection
        began = self._clock.now()
        try:
            await writer.execute(f"BEGIN; {create_staging(self._target)}" if staged else "BEGIN")
            rows = await self._fill(bound, stream, staged=staged)
            await writer.execute(_AT_ONCE)
        except Exception:
            self._wasted += stream.read_rows
            raise
        finally:
            await writer.roll_back()
        self._held_s = self._clock.now() - began
        return rows


class CopyRehearser(_StreamRehearser):
    """Chunks of the mover between two databases: its own streams, directly or by staging, and no COMMIT."""

    def __init__(self, prepared: Prepared, clock: Clock) -> None:
        assert prepared.target is not None
        super().__init__(
            prepared.endpoints.source,
            prepared.endpoints.target,
            PURPOSE,
            0,
            clock,
            source=prepared.source,
            target=prepared.target,
            arbiters=prepared.arbiters,
            binary=prepared.binary,
        )


class TransformedCopyRehearser(_StreamRehearser, TransformedCopyMover):
    """The same through a transform, which really runs; what it has set up is torn down when the rehearsal closes."""

    def __init__(self, prepared: Prepared, clock: Clock) -> None:
        TransformedCopyMover.__init__(
            self, prepared, 0, PURPOSE, clock, most_rejected=prepared.spec.errors.max_quarantined
        )


class FillRehearser(FillMover):
    """Chunks of the mover that fills in place through a transform, and no COMMIT."""

    def __init__(self, prepared: Prepared, clock: Clock) -> None:
        super().__init__(prepared, 0, PURPOSE, clock, most_rejected=prepared.spec.errors.max_quarantined)
        self._held_s = 0.0
        self._wasted = 0

    async def play(self, bound: Bound) -> Cost:
        """One chunk.  WAL is for the caller to find out."""
        self._wasted = 0
        seen = await self.move(_span_of(bound), bound)
        return _cost(seen, wasted=self._wasted, held_s=self._held_s)

    async def _transaction(self, span: Span, bound: Bound, filled: Filled) -> None:
        """As the mover's, up to the fence."""
        del span
        writer = self.connection
        began = self._clock.now()
        try:
            await writer.execute("BEGIN")
            await self.fill(bound, filled)
            await writer.execute(_AT_ONCE)
        except Exception:
            self._wasted += filled.rows
            raise
        finally:
            await writer.roll_back()
        self._held_s = self._clock.now() - began


Rehearser = StatementRehearser | CopyRehearser | TransformedCopyRehearser | FillRehearser


def rehearser_of(prepared: Prepared, clock: Clock) -> Rehearser:
    """What plays the chunks of such a job."""
    if prepared.transform is not None:
        kind = FillRehearser if prepared.mode is Mode.UPDATE else TransformedCopyRehearser
        return kind(prepared, clock)
    return CopyRehearser(prepared, clock) if prepared.mode is Mode.COPY else StatementRehearser(prepared, clock)


# -- who waits for whom -----------------------------------------------------------------------------------------------


class Witness:
    """Looks, from a session of its own, how long a chunk waits for locks and how long others wait for the chunk."""

    def __init__(self, prepared: Prepared, clock: Clock) -> None:
        self._database = prepared.endpoints.target
        self._clock = clock
        self._connection: Connection | None = None
        self._pid = 0
        self._turn = asyncio.Lock()  # a look that has begun is never cancelled: that would cost a connection
        self.ours_s = 0.0  # of the last chunk, all its waits together
        self.theirs_s = 0.0  # the longest wait of anybody, over all chunks

    async def open(self, pid: int) -> None:
        """Watch this server process."""
        self._pid = pid
        self._connection = await self._database.connect(PURPOSE)

    async def close(self) -> None:
        """Let go of the session."""
        if self._connection is not None:
            await self._connection.close()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look every ``WATCH_EVERY_S`` as long as a chunk is under way."""
        self.ours_s = 0.0
        looking = asyncio.ensure_future(self._look())
        try:
            yield
        finally:
            async with self._turn:
                looking.cancel()
            with suppress(asyncio.CancelledError, Exception):  # a blind witness is no reason to end the rehearsal
                await looking

    async def _look(self) -> None:
        assert self._connection is not None
        over_s = 0.0  # waits that have ended
        last_s = 0.0
        while True:
            await self._clock.sleep(WATCH_EVERY_S)
            async with self._turn:
                row = await one_row(self._connection, _LOCKS, self._pid)
            self.theirs_s = max(self.theirs_s, row["theirs"])
            if row["ours"] < last_s:
                over_s += last_s
            last_s = max(0.0, row["ours"])
            self.ours_s = over_s + last_s


async def one_row(connection: Connection, sql: str, *args: object) -> Any:
    """The one row of a statement that has one."""
    row = await connection.fetchrow(sql, *args, timeout_s=SETTING_DEADLINE_S)
    assert row is not None
    return row
