"""The part of the ledger that is about proof: tombstones, verifications and what they found, rows set aside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.errors import UnknownJob
from engine.ledger.queries import queries
from engine.ledger.records import Difference, Quarantined, Tombstones, Verification
from engine.ledger.statements import Statements
from engine.model import JobState, KeyValue, Phase, Span

MOST_SUSPECTS: Final = 100_000
"""Rows of one verification that are written down: with more, something is wrong that no list of rows can tell."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A row that seems to differ; the marks say which versions of it were looked at (None: there was none)."""

    key: KeyValue
    kind: str  # changed | missing | extra
    source_mark: str | None
    target_mark: str | None


@dataclass(frozen=True, slots=True)
class Numbered:
    """The same as the ledger holds it."""

    id: int
    state: str  # suspect | agreed | confirmed | unsettled | repaired
    seen: Seen
    age_s: float  # since it was seen


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of it: agreed, confirmed, unsettled or repaired."""

    id: int
    state: str
    kind: str | None
    columns: tuple[str, ...] = ()


class Proof(Statements):
    """Tombstones of a job, its verifications, and its quarantine."""

    async def tombstones(self, job: str) -> Tombstones:
        """Which tombstones of the job there are now."""
        row = await self._row("tombstones", job)
        return Tombstones(first=row["first"], last=row["last"], rows=row["rows"], truncated=row["truncated"])

    async def begin_verification(
        self,
        job_id: int,
        *,
        repair: bool,
        settle_s: float,
        not_compared: Sequence[str],
        target_mark: dict[str, Any] | None,
        delete_extra: bool = False,
    ) -> int | None:
        """Begin to verify a job that is done.  Returns the verification's number; None when the job is not done (any
        more): another process may have begun one, which can be joined.
        """
        async with self._transaction():
            state = await self.connection.fetchrow(queries()["lock_job"], job_id)
            if state is None or state["state"] != JobState.DONE:
                return None
            return await self._begin_verification(
                job_id,
                repair=repair,
                settle_s=settle_s,
                not_compared=not_compared,
                target_mark=target_mark,
                delete_extra=delete_extra,
            )

    async def _begin_verification(
        self,
        job_id: int,
        *,
        repair: bool,
        settle_s: float,
        not_compared: Sequence[str],
        target_mark: dict[str, Any] | None,
        delete_extra: bool = False,
    ) -> int:
        mark = None if target_mark is None else json.dumps(target_mark, ensure_ascii=False)
        asked = {"repair": repair, "delete_extra": delete_extra, "settle_s": settle_s}
        await self.connection.fetchrow(queries()["record_of"], job_id, "verify", json.dumps(asked))
        found = await self.connection.fetchval(
            queries()["begin_verification"], job_id, repair, settle_s, list(not_compared), mark, delete_extra
        )
        return int(found)

    async def finish_verification(self, job_id: int, name: str, last: Phase) -> bool:
        """Every span of the verification's last phase is at its bound: count what was found, and be done.  False when
        that is not so (any more).
        """
        async with self._transaction():
            state = await self.connection.fetchrow(queries()["lock_job"], job_id)
            if state is None or state["state"] != JobState.VERIFYING or state["phase"] != last or state["is_waiting"]:
                return False
            if await self.connection.fetchval(queries()["unfinished"], job_id, last.value):
                return False
            await self.connection.execute("SET LOCAL synchronous_commit = on")
            number = await self.connection.fetchval("SELECT verification_id FROM backfill.job WHERE id = $1", job_id)
            await self.connection.fetchrow(queries()["end_verification"], job_id, number)
            found = _verification(await self.connection.fetchrow(queries()["verification"], number))
            await self.connection.fetchrow(
                queries()["record"], name, "verified", json.dumps(found.as_json(), ensure_ascii=False)
            )
            await self.connection.fetchrow(queries()["finish"], job_id)
        return True

    async def verification(self, number: int) -> Verification:
        """One verification by its number; raises ``UnknownJob`` when it is gone with its job."""
        row = await self._row("verification", number)
        if row is None:
            raise UnknownJob(f"no verification {number}", hint="its job may have been removed or begun anew")
        return _verification(row)

    async def last_passed(self, job_id: int) -> Verification | None:
        """The newest verification of the job that passed, or None."""
        number = await self._value("last_passed", job_id)
        return None if number is None else await self.verification(number)

    async def suspects(self, number: int, states: Sequence[str]) -> Tombstones:
        """Which rows of the verification are in one of these states."""
        row = await self._row("suspects", number, list(states))
        return Tombstones(first=row["first"], last=row["last"], rows=row["rows"], truncated=False)

    async def record_suspects(
        self, number: int, seen: Sequence[Seen], job_id: int, span: Span, to: KeyValue, *, rows: int, scanned: int
    ) -> None:
        """Write down rows that differ at the first look (past ``MOST_SUSPECTS`` of a verification only how many), and
        advance the span behind the fence, as a chunk does.
        """
        await self._row(
            "record_suspects",
            number,
            [json.dumps(one.key, ensure_ascii=False) for one in seen],
            [one.kind for one in seen],
            [one.source_mark for one in seen],
            [one.target_mark for one in seen],
            MOST_SUSPECTS,
            job_id,
            span.id,
            span.epoch,
            None if span.cursor is None else list(span.cursor),
            list(span.hi),
            list(to),
            rows,
            scanned,
        )

    async def suspects_between(
        self, number: int, after: int | None, to: int, states: Sequence[str]
    ) -> tuple[Numbered, ...]:
        """Rows of the verification that are in one of these states, of the numbers ``(after, to]``."""
        return tuple(
            Numbered(
                id=row["id"],
                state=row["state"],
                seen=Seen(tuple(row["key"]), row["kind"], row["source_mark"], row["target_mark"]),
                age_s=row["age_s"],
            )
            for row in await self._rows("suspects_between", number, after, to, list(states))
        )

    async def judge(self, judged: Sequence[Judged]) -> None:
        """Write down what became of rows that were looked at again."""
        await self._row(
            "judge",
            [one.id for one in judged],
            [one.state for one in judged],
            [one.kind for one in judged],
            [json.dumps(one.columns, ensure_ascii=False) for one in judged],
        )

    async def differences(self, number: int, limit: int) -> tuple[Difference, ...]:
        """The rows that differ, at most ``limit``, in the order in which they were found."""
        return tuple(
            Difference(key=tuple(r["key"]), kind=r["kind"], state=r["state"], columns=tuple(r["columns"]))
            for r in await self._rows("differences", number, limit)
        )

    async def quarantined(self, job_id: int, limit: int, *, after: int = 0) -> tuple[Quarantined, ...]:
        """Rows that were set aside, oldest first, at most ``limit`` of those numbered above ``after``."""
        return tuple(
            Quarantined(
                id=r["id"],
                key=tuple(r["key"]),
                error_class=r["error_class"],
                sqlstate=r["sqlstate"],
                attempts=r["attempts"],
                first_at=r["first_at"],
                last_at=r["last_at"],
            )
            for r in await self._rows("quarantined", job_id, limit, after)
        )

    async def set_aside(
        self, job_id: int, span: Span, key: KeyValue, *, error_class: str, sqlstate: str, allowed: int
    ) -> int:
        """Set the row of ``key`` aside and step over it, behind the same fence as a chunk.  Returns how many rows of
        the job are set aside now.  The server raises ``BF002``, with nothing changed, when that would be more than
        ``allowed``, and ``BF001`` when the span is not where the caller thinks.
        """
        cursor = None if span.cursor is None else list(span.cursor)
        there = await self._value(
            "set_aside",
            job_id,
            span.id,
            span.epoch,
            cursor,
            list(span.hi),
            list(key),
            error_class,
            sqlstate,
            allowed,
        )
        return int(there)

    async def quarantined_by_sqlstate(self, job_id: int) -> dict[str, int]:
        """How many rows of the job are set aside, by what was wrong with them; the most frequent first."""
        return {row["sqlstate"]: row["rows"] for row in await self._rows("quarantined_by_sqlstate", job_id)}

    async def quarantined_ids(self, job_id: int) -> tuple[int, ...]:
        """The numbers of all rows of the job that are set aside, oldest first."""
        return tuple(row["id"] for row in await self._rows("quarantined_ids", job_id))

    async def take_quarantined(self, job_id: int, number: int) -> KeyValue | None:
        """The key of a row that is set aside, locked for the caller's transaction; None when it is there no more."""
        key = await self._value("take_quarantined", job_id, number)
        return None if key is None else tuple(key)

    async def note_written(self, job_id: int) -> int:
        """Note the caller's transaction among those that wrote for the job; gives its number."""
        return int(await self._value("note_written", job_id))

    async def note_written_again(self, job_id: int, xids: Sequence[int]) -> None:
        """Note transactions that the job may have forgotten at its end."""
        await self._row("note_written_again", job_id, list(xids))

    async def forget_written(self, job_id: int, xids: Sequence[int]) -> None:
        """Forget these transactions, unless the job's own sweep may still ask for them."""
        await self._row("forget_some_written", job_id, list(xids))

    async def will_sweep(self, job_id: int) -> bool:
        """True while everything written until now is still to be swept by the job itself."""
        return bool(await self._value("will_sweep", job_id))

    async def quarantined_count(self, job_id: int) -> int:
        """How many rows of the job are set aside."""
        return int(await self._value("quarantined_count", job_id))

    async def let_go(self, job_id: int, ids: Sequence[int]) -> int:
        """Take rows out of quarantine: they are written now, or a person said so.  Returns how many were there."""
        return int(await self._value("let_go", job_id, list(ids)))

    async def failed_again(self, job_id: int, number: int, error_class: str, sqlstate: str) -> None:
        """A row in quarantine was tried again, in vain."""
        await self._row("failed_again", job_id, number, error_class, sqlstate)


def _verification(row: Any) -> Verification:
    values = dict(row)
    values["columns"] = json.loads(values["columns"])
    values["not_compared"] = tuple(values["not_compared"])
    values["target_mark"] = None if values["target_mark"] is None else json.loads(values["target_mark"])
    return Verification(**values)
