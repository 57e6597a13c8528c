"""The part of the ledger that answers requests: pages, what came after, who asks, and nothing done twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from engine.db import classify
from engine.errors import BackfillError, UnknownJob
from engine.ledger.queries import queries
from engine.ledger.records import HistoryEntry, JobStatus
from engine.ledger.reporting import status_of
from engine.ledger.statements import Statements
from engine.model import JobState

REMEMBERED_S: Final = 7 * 86400.0
"""How long a key of a submission is known: longer than anybody tries again."""

_NOT_THERE: Final = ("42P01", "3F000")
"""SQLSTATEs of a ledger that does not exist (any more)."""


class ChangedMeanwhile(BackfillError):
    """The job is not as the caller saw it, and its order was for that."""

    code = "changed_meanwhile"
    exit_code = 75
    http_status = 412


class KeyReused(BackfillError):
    """The key of a submission was used before, for another spec."""

    code = "idempotency_key_reused"
    exit_code = 3
    http_status = 409


@dataclass(frozen=True, slots=True)
class Request:
    """A submission that came with a key of the caller's own."""

    caller: str
    key: str
    spec_hash: str

    @property
    def digest(self) -> str:
        """What the ledger keeps of the key, which may be long, or say something."""
        return hashlib.sha256(self.key.encode("utf-8", "surrogatepass")).hexdigest()


class Requests(Statements):
    """What whoever serves jobs to others asks of a ledger."""

    async def act_as(self, who: str) -> None:
        """From now on the history says that ``who`` did what this session does; empty: the database's role."""
        await self._row("act_as", who)

    # -- looking --------------------------------------------------------------------------------------------------

    async def knows(self, name: str) -> bool:
        """True when there is a job of that name; False, too, without a ledger."""
        return await self._there_is("knows", name)

    async def remembers(self, name: str) -> bool:
        """True when there is, or was, a job of that name; False, too, without a ledger."""
        return await self._there_is("remembers", name)

    async def page(
        self, limit: int, *, before: int | None = None, states: Collection[JobState] | None = None
    ) -> tuple[JobStatus, ...]:
        """Jobs, the newest first: at most ``limit`` of those numbered below ``before``.  Empty without a ledger."""
        wanted = None if states is None else [state.value for state in states]
        try:
            return tuple(status_of(row) for row in await self._rows("page", before, wanted, limit))
        except Exception as error:
            if classify(error).sqlstate in _NOT_THERE:
                return ()
            raise

    async def several(self, names: Sequence[str]) -> dict[str, JobStatus]:
        """These jobs as they are now, as far as there are such."""
        return {row["job"]: status_of(row) for row in await self._rows("several", list(names))}

    async def history_after(self, seen: Mapping[str, int], limit: int) -> tuple[tuple[str, HistoryEntry], ...]:
        """What came after the numbers seen of these jobs, oldest first, at most ``limit`` of each."""
        return tuple(
            (row["job"], HistoryEntry(row["id"], row["at"], row["who"], row["what"], json.loads(row["detail"])))
            for row in await self._rows("history_after", [*seen], [*seen.values()], limit)
        )

    async def _there_is(self, query: str, name: str) -> bool:
        try:
            return bool(await self._value(query, name))
        except Exception as error:
            if classify(error).sqlstate in _NOT_THERE:
                return False
            raise

    # -- changing -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def at_revision(self, name: str, allowed: Collection[int] | None) -> AsyncIterator[None]:
        """Whatever is done inside is done to the job as it was seen, or not at all.  ``allowed`` None: at any revision.

        Raises ``UnknownJob``, and ``ChangedMeanwhile`` when the job's revision is none of ``allowed``.
        """
        async with self._transaction():
            if await self.connection.fetchval(queries()["lock_named"], name) is None:
                raise UnknownJob(f"no job named {name!r}", hint="backfill list shows the jobs of this ledger")
            if allowed is not None:
                now = int(await self.connection.fetchval(queries()["revision"], name))
                if now not in allowed:
                    raise ChangedMeanwhile(
                        f"job {name} has changed since: its revision is {now}",
                        hint="look at it again, and decide anew",
                    )
            yield

    async def job_of(self, request: Request) -> str | None:
        """The job that this request began, or None.  Raises ``KeyReused`` when its key stands for another spec."""
        try:
            row = await self._row("request", request.caller, request.digest)
        except Exception as error:
            if classify(error).sqlstate in _NOT_THERE:  # no ledger yet, or one of an older release
                return None
            raise
        if row is None:
            return None
        if row["spec_hash"] != request.spec_hash:
            raise KeyReused(
                f"this Idempotency-Key was used for another spec: that of job {row['job']}",
                hint="a new submission takes a new key; the same submission, sent again, the same spec",
            )
        return str(row["job"])

    async def note(self, name: str, request: Request) -> None:
        """Note that the request means that job, which was there before.  Raises ``KeyReused``."""
        async with self._transaction():
            job_id = await self.connection.fetchval(queries()["lock_named"], name)
            if job_id is not None and await self.job_of(request) is None:
                await self._note_request(job_id, request)

    async def _note_request(self, job_id: int, request: Request) -> None:
        await self.connection.fetchrow(queries()["forget_requests"], REMEMBERED_S)
        await self.connection.fetchrow(
            queries()["note_request"], request.caller, request.digest, request.spec_hash, job_id
        )
