"""Trying again what was set aside: ``backfill quarantine retry``.

Each row by itself, by the statement that moves the job's chunks, over a source of that one key.  The row leaves the
quarantine in the transaction that writes it, so it is written once, however often somebody tries and whoever is killed.

A row that the application deletes at the source meanwhile must not survive in the target (``deletes: guarded``).  While
the job's own sweep is still to come, noting the transaction is enough.  Behind it we do as it does: wait for everybody
who may not have seen what we wrote, look at the source again, and take out what is gone there and still ours here.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from engine.clock import Clock, SystemClock, jittered
from engine.db import Connection
from engine.db.failures import Action, Failure, Fault, classify
from engine.errors import BackfillError, CannotConnect, UsageError
from engine.flow import barrier, opening
from engine.flow.control import DATABASE_IS_AWAY, as_stop
from engine.flow.movers.alone import Alone, RowRejected
from engine.flow.movers.confirm import TOUCHED
from engine.flow.movers.server_side import CHUNK_DEADLINE_S, open_for_chunks
from engine.flow.movers.transformed import writable
from engine.flow.prepare import Prepared
from engine.flow.shared import Sides, of_side
from engine.ledger.records import JobRecord
from engine.ledger.store import Ledger
from engine.model import KeyValue, Mode, Side
from engine.sql import read_expression, statements
from engine.sql.predicates import compare, value
from engine.sql.statements import STAGING, SourceShape, key_list

ATTEMPTS: Final = 5
"""How often one row is tried while others hold what it needs."""

PAUSE_S: Final = 0.05
HORIZON_POLL_S: Final = 0.5
LOOK_AT_ONCE: Final = 500
"""Rows that are looked for at the source in one statement, and locked in one transaction."""


class Outcome(StrEnum):
    """What became of one row."""

    WRITTEN = "written"
    NOT_NEEDED = "not_needed"  # done already, or the target has its key, or `where` leaves it out
    GONE = "gone"  # the source holds it no more
    FAILED = "failed"  # it cannot be written now either
    BUSY = "busy"  # somebody held what it needs, all the time
    TAKEN = "taken"  # somebody else has just dealt with it


@dataclass(slots=True)
class Retried:
    """What became of the rows that were tried.  ``failed`` by SQLSTATE; ``taken_back``: written, but then deleted again
    because the source had lost them meanwhile.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    taken_back: int = 0

    @property
    def left(self) -> int:
        """Rows that were tried and are still set aside."""
        return self.outcomes[Outcome.FAILED] + self.outcomes[Outcome.BUSY]

    def as_json(self) -> dict[str, Any]:
        """Counts of rows, under the names of the outcomes."""
        counts: dict[str, Any] = {outcome.value: self.outcomes[outcome] for outcome in Outcome}
        return counts | {"taken_back": self.taken_back, "by_sqlstate": dict(self.failed.most_common())}


class Retry:
    """Tries rows of one job again, over sessions of its own.

    ``say`` hears for whom it waits, for people; ``by``: who asked for it, for the history.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        clock: Clock | None = None,
        say: Callable[[str], None] = lambda _: None,
        by: str = "",
    ) -> None:
        self._prepared = prepared
        self._clock = clock or SystemClock()
        self._say = say
        self._by = by
        self._rng = random.Random()
        self._sides: Sides = {}
        self._alone: Alone | None = None  # rows of a job with a transform pass it again
        self._written: dict[KeyValue, int] = {}  # key -> the transaction that wrote it, where rows may become ghosts

    async def run(self, ids: Sequence[int] | None = None) -> Retried:
        """Try the rows of these numbers, or all.  Rows that fail stay set aside, with one attempt more.

        Raises ``BackfillError`` when the job is another one than the spec means, a server goes away, or the statement
        itself fails: what was written until then is written.
        """
        endpoints = self._prepared.endpoints
        tried = Retried()
        try:
            self._sides[Side.TARGET] = await open_for_chunks(endpoints.target, "retry")
            if self._prepared.streams:
                self._sides[Side.SOURCE] = await open_for_chunks(endpoints.source, "retry")
            if self._prepared.transform is not None:
                self._alone = Alone(self._prepared, self._there, self._here, self._clock)
                await self._alone.open()
            ledger = Ledger(self._here)
            await ledger.act_as(self._by)
            job = await ledger.job(self._prepared.spec.name)
            opening.check_identity(job, self._prepared)
            try:
                for number in await ledger.quarantined_ids(job.id) if ids is None else ids:
                    await self._attend(ledger, job, number, tried)
            finally:
                if not self._here.is_closed:
                    await self._conclude(ledger, job, tried)
            return tried
        except Exception as error:
            raise _for_people(error) from error
        finally:
            if self._alone is not None:
                await self._alone.close()
            for session in self._sides.values():
                await session.close()

    async def _conclude(self, ledger: Ledger, job: JobRecord, tried: Retried) -> None:
        if self._written:
            tried.taken_back = await self._take_back(ledger, job)
        if tried.outcomes:
            await ledger.record(job.name, "quarantine", {"retried": tried.as_json()})

    @property
    def _here(self) -> Connection:
        return self._sides[Side.TARGET]

    @property
    def _there(self) -> Connection:
        return of_side(self._sides, Side.SOURCE)

    # -- one row ----------------------------------------------------------------------------------------------------

    async def _attend(self, ledger: Ledger, job: JobRecord, number: int, tried: Retried) -> None:
        """Try one row until it is written, or seen to fail, or nobody lets us."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                outcome = await self._try(ledger, job, number)
            except RowRejected as error:
                reason = writable(error.reason, self._here.encoding)
                await ledger.failed_again(job.id, number, reason, error.sqlstate)
                tried.outcomes[Outcome.FAILED] += 1
                tried.failed[error.sqlstate] += 1
                return
            except Exception as error:
                failure = classify(error)
                if failure.lost or failure.action in DATABASE_IS_AWAY:
                    raise
                if failure.action is not Action.RETRY:
                    await self._note_failure(ledger, job, number, failure, error)
                    tried.outcomes[Outcome.FAILED] += 1
                    tried.failed[failure.sqlstate] += 1
                    return
                if attempt < ATTEMPTS:
                    await self._clock.sleep(jittered(PAUSE_S * 2**attempt, self._rng))
            else:
                tried.outcomes[outcome] += 1
                return
        tried.outcomes[Outcome.BUSY] += 1

    async def _note_failure(
        self, ledger: Ledger, job: JobRecord, number: int, failure: Failure, error: Exception
    ) -> None:
        if failure.fault is Fault.NONE:
            raise error  # the statement itself, or a bug: no row is to blame
        await ledger.failed_again(job.id, number, failure.message, failure.sqlstate)

    async def _try(self, ledger: Ledger, job: JobRecord, number: int) -> Outcome:
        here = self._here
        xid = None
        await here.execute("BEGIN")
        try:
            key = await ledger.take_quarantined(job.id, number)
            if key is None:
                await here.roll_back()
                return Outcome.TAKEN
            rows = await self._write(key)
            if rows and self._guards:
                xid = await ledger.note_written(job.id)
            await ledger.let_go(job.id, [number])
            touched = TOUCHED.format(job=job.id) if rows else ""
            await here.execute(f"{touched}COMMIT", timeout_s=CHUNK_DEADLINE_S)
        except BaseException:
            await here.roll_back()
            raise
        if xid is not None:
            self._written[key] = xid
        if rows:
            return Outcome.WRITTEN
        return Outcome.NOT_NEEDED if await self._alive([key]) else Outcome.GONE

    @property
    def _guards(self) -> bool:
        target = self._prepared.target
        return target is not None and target.remember

    async def _write(self, key: KeyValue) -> int:
        """Write the row of that key as a chunk would; gives the number of rows written, 0 or 1."""
        prepared = self._prepared
        alone = _only(prepared.source, key)
        if self._alone is not None:
            async with asyncio.timeout(CHUNK_DEADLINE_S):
                return await self._alone.write(alone, key)
        if prepared.mode is Mode.UPDATE:
            sets = {name: read_expression(text).sql for name, text in prepared.spec.set.items()}
            return await self._change(statements.update_chunk(alone, sets, prepared.done, first=True, fence=False), key)
        assert prepared.target is not None
        if prepared.mode is Mode.INSERT:
            sql = statements.insert_chunk(
                alone, prepared.target, first=True, occupied=False, collided=True, fence=False
            )
            return await self._change(sql, key)
        return await self._copy(alone, key)

    async def _change(self, sql: str, key: KeyValue) -> int:
        return int(await self._here.fetchval(sql, None, list(key), timeout_s=CHUNK_DEADLINE_S))

    async def _copy(self, alone: SourceShape, key: KeyValue) -> int:
        prepared, here = self._prepared, self._here
        target = prepared.target
        assert target is not None
        pieces: list[bytes] = []

        async def keep(piece: bytes) -> None:
            pieces.append(piece)

        async def kept() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        async with asyncio.timeout(CHUNK_DEADLINE_S):
            query = statements.copy_query(alone, target, None, key)
            if await self._there.copy_out(query, keep, binary=prepared.binary) == 0:
                return 0
            await here.execute(statements.create_staging(target))
            names = [column.name for column in target.columns]
            await here.copy_in(None, names, kept(), binary=prepared.binary, temp_name=STAGING)
            tag = await here.execute(statements.insert_staged(target, None, key))
        return int(tag.rpartition(" ")[2])

    # -- rows that are deleted meanwhile ----------------------------------------------------------------------------

    async def _alive(self, keys: Sequence[KeyValue]) -> set[int]:
        """Which of the keys, by position, the source holds now."""
        found = await self._there.fetch(
            statements.present(self._prepared.source), key_list(keys), timeout_s=CHUNK_DEADLINE_S
        )
        return {row["n"] for row in found}

    async def _take_back(self, ledger: Ledger, job: JobRecord) -> int:
        """Delete what we wrote and the source does not hold any more, unless the job's own sweep will."""
        if await ledger.will_sweep(job.id):
            return 0
        await self._pass_horizon()
        taken = 0
        keys = [*self._written]
        for start in range(0, len(keys), LOOK_AT_ONCE):
            some = keys[start : start + LOOK_AT_ONCE]
            alive = await self._alive(some)
            gone = [key for n, key in enumerate(some) if n not in alive]
            if gone:
                taken += await self._delete(ledger, job, gone)
        await ledger.forget_written(job.id, [*self._written.values()])
        return taken

    async def _pass_horizon(self) -> None:
        """Wait until everybody in a transaction now has ended: all others see what we wrote."""
        frozen = await barrier.freeze(self._sides)
        said = ""
        while left := await barrier.still_running(frozen, self._sides):
            reason = f"older transactions to end, which may delete a row that was just written: {', '.join(left[:3])}"
            if reason != said:
                said = reason
                self._say(reason)
            await self._clock.sleep(HORIZON_POLL_S)

    async def _delete(self, ledger: Ledger, job: JobRecord, keys: Sequence[KeyValue]) -> int:
        """As the sweep does: lock what is still ours, look once more in a later statement, delete."""
        here, target = self._here, self._prepared.target
        assert target is not None
        await here.execute("BEGIN")
        try:
            await ledger.note_written_again(job.id, [self._written[key] for key in keys])
            locked = [
                tuple(row["key"]) for row in await here.fetch(statements.lock_ours(target), job.id, key_list(keys))
            ]
            alive = await self._alive(locked) if locked else set()
            gone = [key for n, key in enumerate(locked) if n not in alive]
            deleted = await here.fetch(statements.delete_keys(target), job.id, key_list(gone)) if gone else []
            touched = TOUCHED.format(job=job.id) if deleted else ""
            await here.execute(f"{touched}COMMIT")
        except BaseException:
            await here.roll_back()
            raise
        return len(deleted)


async def check_ids(ledger: Ledger, job: str, ids: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers of the rows that are meant.  Raises ``UsageError`` for numbers that are not there."""
    there = await ledger.quarantined_ids((await ledger.job(job)).id)
    if ids is None:
        return there
    if unknown := sorted({*ids} - {*there}):
        raise UsageError(
            f"not set aside (any more): {', '.join(map(str, unknown))}",
            hint=f"backfill quarantine list {job} shows the numbers",
        )
    return tuple(ids)


def _only(source: SourceShape, key: KeyValue) -> SourceShape:
    """The source as if it held nothing but that row."""
    this = compare(source.key.columns, "=", value(key))
    return replace(source, where=f"({source.where}) AND {this}" if source.where else this)


def _for_people(error: Exception) -> BackfillError:
    """What ended a retry, without values.  Raises ``error`` itself when it is a mistake of ours."""
    if isinstance(error, BackfillError):
        return error
    failure = classify(error)
    if failure.lost or failure.action in DATABASE_IS_AWAY:
        hint = "what was written is out of the quarantine: run the same command again for the rest"
        return CannotConnect(failure.message, hint=failure.hint or hint, sqlstate=failure.sqlstate or None)
    return as_stop(error)
