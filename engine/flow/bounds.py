"""Where the next chunk ends: fixed before anything of it is read.

Two ways.  An index walk finds the key that stands ``n`` rows ahead, on a connection of its own and one chunk ahead of
the mover, so that it costs no time.  A single integer key whose values are dense needs no walk: ``cursor + n`` holds at
most ``n`` rows whatever happens, and a chunk that turns out half empty sends the next one back to the walk, which
steps over a gap of 10¹² ids as if it were one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any, Final

from engine.clock import Clock
from engine.db import Connection, Database
from engine.db.failures import Action, classify
from engine.model import Key, KeyValue, TableName
from engine.plan.keyspace import KeySpace
from engine.plan.questions import ExistingKeys
from engine.sql.questions import read, statement
from engine.sql.statements import TargetShape, chunk_bound, disordered, key_list, range_is_empty

DENSE: Final = 0.8
"""Rows per id from which arithmetic is used."""

SPARSE: Final = 0.5
"""Share of a chunk's ids that must have been rows for arithmetic to go on."""

PROBE_DEADLINE_S: Final = 60.0
"""A walk that takes longer is not on its way any more: the server's own time-out has ended it."""

_RECONNECT_S: Final = 0.2
_ATTEMPTS: Final = 5
_LOST: Final = (Action.RECONNECT, Action.WAIT, Action.PAUSE)


@dataclass(frozen=True, slots=True)
class Bound:
    """A chunk: everything after the cursor up to and including ``to``.  ``scanned``: at most so many rows."""

    after: KeyValue | None
    to: KeyValue
    asked: int  # the chunk size that was asked for
    scanned: int
    by_arithmetic: bool
    occupied: bool = True  # False: the target held no row of this range a moment ago


class Prober:
    """A connection that walks the key's index, one walk at a time; some workers of a process share it."""

    def __init__(self, database: Database, table: TableName, key: Key, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._table = table
        self._key = key
        self._first = chunk_bound(table, key.columns, first=True)
        self._next = chunk_bound(table, key.columns, first=False)
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    async def walk(self, after: KeyValue | None, hi: KeyValue, rows: int) -> KeyValue | None:
        """The last key of a chunk of ``rows`` rows; None when fewer are left up to ``hi``."""
        sql = self._first if after is None else self._next
        found = await self._fetch(sql, None if after is None else list(after), list(hi), rows - 1)
        return tuple(found[0]["key"]) if found else None

    async def _fetch(self, sql: str, *args: object) -> list[Any]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._turn:
                    return await (await self._open()).fetch(sql, *args, timeout_s=PROBE_DEADLINE_S)
            except Exception as error:
                if classify(error).action not in _LOST or attempt == _ATTEMPTS:
                    raise
                await self._drop()
                await self._clock.sleep(_RECONNECT_S * attempt)
        raise AssertionError("the loop returns or raises")

    async def first_from(self, guess: KeyValue, end: KeyValue) -> KeyValue | None:
        """The first existing key at or after ``guess`` (a key, or its leading columns) and before ``end``."""
        question = ExistingKeys((guess,), end)
        asked = statement(question, self._table, self._key)
        rows = await self._fetch(asked.sql, *asked.args)
        keys = read(question, rows)
        assert isinstance(keys, tuple)
        return keys[0] if keys else None  # type: ignore[return-value]  # the answer to ExistingKeys is a tuple of keys

    async def is_between(self, lo: KeyValue | None, key: KeyValue, hi: KeyValue) -> bool:
        """True when ``lo < key < hi`` in the order of the server that owns it."""
        left = [key] if lo is None else [lo, key]
        right = [hi] if lo is None else [key, hi]
        wrong = await self._fetch(disordered(self._key.columns), key_list(left), key_list(right), [False] * len(left))
        return not wrong

    async def is_empty(self, target: TargetShape, after: KeyValue | None, to: KeyValue) -> bool:
        """True when ``target``, a table of the same database, holds no row of ``(after, to]`` now."""
        sql = range_is_empty(target, first=after is None)
        return bool((await self._fetch(sql, None if after is None else list(after), list(to)))[0][0])

    async def close(self) -> None:
        """Let go of the connection."""
        await self._drop()

    async def _open(self) -> Connection:
        if self._connection is None:
            connection = await self._database.connect("bounds", data=True)
            # The order must come from the index: a sort would read the whole rest of the table for one key.
            await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off")
            self._connection = connection
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class Bounds:
    """Cuts one worker's span into chunks, one chunk ahead."""

    def __init__(self, prober: Prober, space: KeySpace, key: Key, target: TargetShape | None = None) -> None:
        self._prober = prober
        self._target = target
        self._space = space
        self._can_count = len(key.columns) == 1 and key.columns[0].kind == "int"
        self._dense = False
        self._ahead: asyncio.Task[Bound] | None = None
        self._ahead_of: tuple[KeyValue | None, KeyValue] | None = None

    async def begin(self, lo: KeyValue | None, hi: KeyValue) -> None:
        """A new span."""
        await self.forget()
        density = self._space.density(lo, hi) if self._can_count and lo is not None else None
        self._dense = density is not None and density >= DENSE

    async def next(self, after: KeyValue | None, hi: KeyValue, rows: int) -> Bound:
        """The end of the next chunk of about ``rows`` rows; ``hi`` at the latest."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if self._ahead_of == (after, hi):
                bound = await ahead
                # Sized for a chunk before the last news: a little off is fine, far too large is not.
                if bound.asked <= 2 * rows:
                    return bound
            else:
                await _cancel(ahead)
        return await self._cut(after, hi, rows)

    def look_ahead(self, after: KeyValue, hi: KeyValue, rows: int) -> None:
        """Start looking for the end of the chunk behind the one that is about to move."""
        if after != hi and (self._target is not None or not self._dense):
            self._ahead_of = (after, hi)
            self._ahead = asyncio.ensure_future(self._cut(after, hi, rows))

    async def forget(self) -> None:
        """What was looked up ahead is of no use any more."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await _cancel(ahead)

    def moved(self, bound: Bound, rows: int) -> None:
        """A chunk is done: arithmetic goes on only where its ids were rows."""
        if bound.by_arithmetic and rows < SPARSE * bound.scanned:
            self._dense = False

    async def _cut(self, after: KeyValue | None, hi: KeyValue, rows: int) -> Bound:
        bound = await self._end(after, hi, rows)
        if self._target is None:
            return bound
        return replace(bound, occupied=not await self._prober.is_empty(self._target, after, bound.to))

    async def _end(self, after: KeyValue | None, hi: KeyValue, rows: int) -> Bound:
        if self._dense and after is not None:
            start, end = int(after[0]), int(hi[0])
            to = min(start + rows, end)
            return Bound(after, (str(to),), rows, to - start, by_arithmetic=True)
        found = await self._prober.walk(after, hi, rows)
        to_key = hi if found is None else found
        scanned = rows if found is not None else min(rows, max(1, round(self._space.rows_between(after, hi))))
        if self._can_count and found is not None and after is not None:
            self._dense = rows >= DENSE * (int(found[0]) - int(after[0]))
        return Bound(after, to_key, rows, scanned, by_arithmetic=False)


async def _cancel(task: asyncio.Task[Bound]) -> None:
    task.cancel()
    try:
        await task
    except (asyncio.CancelledError, Exception):
        return
