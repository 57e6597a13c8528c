"""Makes the target's rows equal to the source's, without ever writing what is not true any more.

Compare and swap on both versions: the target's rows are locked, and those that somebody has written since they were
looked at are left alone; the source is read in a later statement, so in a snapshot that is younger than the lock, and
what has changed there is left alone too.  From then on whoever writes such a row waits for us and writes after us.

A missing row has nothing that could be locked at the target.  So it is inserted first, which makes everybody wait who
wants to insert it too, and then its source row is locked in passing (``SKIP LOCKED``: nobody waits for us while we wait
for him).  A row that somebody is writing at that moment is taken out again: his UPDATE of the target may have found
nothing to write, a moment before.

What remains are writers of a missing row who only UPDATE it, and have done so in vain: at the target first, or with a
snapshot that is older than our commit (REPEATABLE READ), or where we may not lock the source.  Their transactions end
after ours, and what they leave differs.  Hence: repaired is not verified; the caller looks again, once they have ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.db import Connection, classify
from engine.sql import compare
from engine.sql import repair as statements
from engine.sql.compare import ComparedColumn
from engine.sql.statements import key_list
from engine.verify.findings import READ_DEADLINE_S, Look

if TYPE_CHECKING:
    from engine.verify.comparer import Comparer


class _KeyChanged(Exception):
    """The target holds a row of ours under another key than it was given, where nobody would look at it again."""


async def repair(comparer: Comparer, looks: Sequence[Look], *, delete_extra: bool = False) -> list[bool]:
    """Make the target's rows equal to the source's, as far as both are as they were when looked at.

    In the transaction (READ COMMITTED) that the caller has begun at the target: he records what was done, and commits
    both together.  At most some hundreds of rows, since all of them stay locked until then.  Where the source is
    another database, a transaction may be left open there: ``Comparer.release`` ends it, after the target's.
    ``delete_extra``: rows that only the target holds are deleted.  They may be somebody else's, so it is not done
    unasked.

    Returns for each look whether its row was written; False too where the target refuses the row, or gives it another
    key, and for looks that found no difference.
    """
    await comparer.release()
    kinds = ("changed", "missing", "extra") if delete_extra else ("changed", "missing")
    wanted = [n for n, look in enumerate(looks) if look.kind in kinds]
    written = [False] * len(looks)
    if not wanted:
        return written
    if not comparer.is_one:
        await comparer.source.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        comparer.holds_source = True
    try:
        for n in await _in_halves(comparer, [looks[n] for n in wanted]):
            written[wanted[n]] = True
    except BaseException:
        if not comparer.is_one:
            comparer.holds_source = False
            await comparer.source.roll_back()
        raise
    return written


async def _in_halves(comparer: Comparer, looks: Sequence[Look]) -> set[int]:
    """Which of them were written.  A row that cannot be written does not keep the others from it."""
    attempt = _Repair(comparer, looks)
    written = await _unless_a_row_fails(comparer, attempt.run)
    if written is not None:
        return written
    if len(looks) == 1:
        if looks[0].kind != "extra" or await _unless_a_row_fails(comparer, attempt.seek_keys) is not None:
            return set()
        # A key that the source's type cannot hold: it cannot be looked up there, and need not be.
        return await _unless_a_row_fails(comparer, attempt.delete_unseen) or set()
    middle = len(looks) // 2
    left = await _in_halves(comparer, looks[:middle])
    return left | {middle + n for n in await _in_halves(comparer, looks[middle:])}


async def _unless_a_row_fails(comparer: Comparer, work: Callable[[], Awaitable[set[int]]]) -> set[int] | None:
    """The work's result; None, and nothing done, when a row is to blame that it failed."""
    sessions = (comparer.target,) if comparer.is_one else (comparer.target, comparer.source)
    for session in sessions:
        await session.execute("SAVEPOINT backfill_repair")
    try:
        written = await work()
    except Exception as error:
        if not isinstance(error, _KeyChanged):
            failure = classify(error)
            if failure.lost or not failure.is_of_row:
                raise
        for session in sessions:
            await session.execute("ROLLBACK TO backfill_repair; RELEASE backfill_repair")
        return None
    for session in sessions:
        await session.execute("RELEASE backfill_repair")
    return written


class _Repair:
    """One transaction's work; rows are known by their place among the looks."""

    def __init__(self, comparer: Comparer, looks: Sequence[Look]) -> None:
        self._looks = looks
        self._both = comparer.compared
        self._source = comparer.source
        self._target = comparer.target
        self._there = compare.source_rows(comparer.compared)
        self._here = compare.target_rows(comparer.compared)

    async def run(self) -> set[int]:
        """All of it; which rows were written."""
        same = await self._locked()
        extra = [n for n in same if self._looks[n].kind == "extra"]
        found = await self._ask(
            self._source, statements.values(self._there, self._both.written), [n for n in same if n not in extra]
        )
        rows = {n: row for n, row in found.items() if row["mark"] == self._looks[n].source_mark}
        written = await self._update({n: row for n, row in rows.items() if self._looks[n].kind == "changed"})
        written |= await self._insert({n: row for n, row in rows.items() if self._looks[n].kind == "missing"})
        return written | await self._delete(extra)

    async def seek_keys(self) -> set[int]:
        """Look the keys up at the source, and evaluate nothing else: raises when one is beyond its type."""
        return set(await self._marks(self._source, replace(self._there, where=None), list(range(len(self._looks)))))

    async def delete_unseen(self) -> set[int]:
        """Delete what is at the target as it was, without looking at the source."""
        return set(await self._ask(self._target, statements.delete(self._here), await self._locked()))

    async def _locked(self) -> list[int]:
        """Lock what the target has; those that are as they were when looked at."""
        every = list(range(len(self._looks)))
        await self._ask(self._target, statements.lock(self._here, "FOR UPDATE OF d"), every)
        marks = await self._marks(self._target, self._here, every)
        return [n for n in every if marks.get(n) == self._looks[n].target_mark]

    async def _update(self, rows: dict[int, Any]) -> set[int]:
        """Every column but the key, which is written only where it differs: others may point to it."""
        keys = {column.name for column in self._here.key}
        rekeyed = {n for n in rows if keys.intersection(self._looks[n].columns)}
        written: set[int] = set()
        for some, columns in (
            (sorted(set(rows) - rekeyed), [c for c in self._both.columns if c.may_be_set and c.name not in keys]),
            (sorted(rekeyed), [c for c in self._both.columns if c.may_be_set]),
        ):
            if some and columns:
                sql = statements.update(self._here, columns)
                values = [value for n in some for value in self._values(rows[n], columns)]
                written |= set(await self._ask(self._target, sql, some, values))
        return written

    def _values(self, row: Any, columns: Sequence[ComparedColumn]) -> list[str | None]:
        by_name = dict(zip((c.name for c in self._both.written), row["values"], strict=True))
        return [by_name[column.name] for column in columns]

    async def _insert(self, rows: dict[int, Any]) -> set[int]:
        if not rows:
            return set()
        sql = statements.insert(self._here, self._both, self._both.written)
        values = [value for row in rows.values() for value in row["values"]]
        inserted = await self._target.fetch(sql, values, timeout_s=READ_DEADLINE_S)
        places = {tuple(row["key"]): n for n, row in rows.items()}
        if any(tuple(row["key"]) not in places for row in inserted):
            raise _KeyChanged
        ours = sorted(places[tuple(row["key"])] for row in inserted)
        steady = await self._steady(ours)
        if gone := [n for n in ours if n not in steady]:
            await self._ask(self._target, statements.delete(self._here), gone)
        return steady

    async def _steady(self, numbers: list[int]) -> set[int]:
        """Those whose source row is as it was when looked at, and, as far as can be known, nobody is writing."""
        if not numbers:
            return set()
        table = self._both.source.table
        if await self._source.fetchval(statements.MAY_LOCK, table.schema, table.name, timeout_s=READ_DEADLINE_S):
            free = await self._ask(self._source, statements.lock(self._there, "FOR SHARE OF d SKIP LOCKED"), numbers)
            numbers = sorted(free)
        marks = await self._marks(self._source, self._there, numbers)
        return {n for n in numbers if marks.get(n) == self._looks[n].source_mark}

    async def _delete(self, numbers: list[int]) -> set[int]:
        """Rows that the source still does not hold."""
        alive = await self._marks(self._source, self._there, numbers)
        gone = [n for n in numbers if alive.get(n) is None]
        return set(await self._ask(self._target, statements.delete(self._here), gone))

    async def _marks(self, connection: Connection, side: compare.Rows, numbers: list[int]) -> dict[int, str | None]:
        rows = await self._ask(connection, compare.marks((side,)), numbers)
        return {n: row["mark0"] for n, row in rows.items()}

    async def _ask(self, connection: Connection, sql: str, numbers: list[int], *more: object) -> dict[int, Any]:
        """The rows of a statement over these keys, by place."""
        if not numbers:
            return {}
        keys = key_list([self._looks[n].key for n in numbers])
        rows = await connection.fetch(sql, keys, *more, timeout_s=READ_DEADLINE_S)
        return {numbers[row["n"]]: row for row in rows}
