"""The mover that moves nothing: compares both sides chunk by chunk, and writes down which rows seem to differ.

A chunk that agrees costs one statement on each side (one for both, where they are in one database).  One that does not
is narrowed down to rows; these are suspects only, because in a live table the two sides may just be on their way:
``flow.movers.confirm`` looks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.clock import Clock
from engine.crashpoint import crashpoint
from engine.db.failures import classify
from engine.flow import phases
from engine.flow.bounds import Bound
from engine.flow.comparing import AnyComparer, chunk_statement, comparer_of
from engine.flow.movers.both import BothSides
from engine.flow.movers.server_side import CHUNK_DEADLINE_S
from engine.flow.prepare import Prepared
from engine.ledger.proof import Seen
from engine.ledger.records import JobRecord
from engine.ledger.store import Ledger
from engine.model import Observation, Phase, Span
from engine.verify import Comparer, Suspect

EXTRA: Final = "extra"


class VerifyMover(BothSides):
    """Compares the chunks of one worker in the phases ``verify`` and ``extra``."""

    def __init__(self, prepared: Prepared, job: JobRecord, phase: Phase, purpose: str, clock: Clock) -> None:
        endpoints = prepared.endpoints
        super().__init__(None if endpoints.is_one else endpoints.source, endpoints.target, purpose, job.id, clock)
        assert job.verification_id is not None
        self._verification = job.verification_id
        self._prepared = prepared
        self._phase = phase
        self._leaves_extras = phase is Phase.VERIFY and phases.seeks_extras(prepared)
        self._comparer: AnyComparer | None = None
        self._statements: tuple[str | None, str | None] = (None, None)

    async def open(self) -> None:
        """Connect, and find out by which hashes the two servers agree."""
        await super().open()
        self._comparer = comparer_of(self._prepared, self._there or self.connection, self.connection)
        await self._comparer.agree_on_hashes()
        if self._phase is Phase.VERIFY:
            comparer = self._comparer
            self._statements = (chunk_statement(comparer, first=True), chunk_statement(comparer, first=False))

    async def move(self, span: Span, bound: Bound) -> Observation:
        """One chunk: usually one look that finds both sides equal, and advances."""
        began = self._clock.now()
        crashpoint("write.before")
        rows = await self._compare(span, bound)
        crashpoint("commit.after")
        return Observation(rows=rows, scanned=bound.scanned, bytes=0, server_s=self._clock.now() - began)

    async def _compare(self, span: Span, bound: Bound) -> int:
        comparer = self._comparer
        assert comparer is not None, "open() first"
        if self._phase is Phase.EXTRA:
            assert isinstance(comparer, Comparer)
            assert self._prepared.sweep_key is not None
            order = self._prepared.sweep_key.names
            await self._record(span, bound, 0, await comparer.extras(bound.after, bound.to, order=order))
            return 0
        rows, agree = await self._at_once(span, bound)
        if agree and rows is not None:
            return rows
        if rows is None:
            digests = await comparer.digests(bound.after, bound.to)
            rows, agree = digests.rows_source, digests.equal
        await self._record(span, bound, rows, [] if agree else await comparer.narrow(bound.after, bound.to))
        return rows

    async def _at_once(self, span: Span, bound: Bound) -> tuple[int | None, bool]:
        """Compare both sides and advance, in one statement: rows, and whether they agree.  None where there is no such
        statement, or a row cannot be evaluated.
        """
        sql = self._statements[0 if bound.after is None else 1]
        if sql is None:
            return None, False
        after = None if bound.after is None else list(bound.after)
        try:
            row = await self.connection.fetchrow(
                sql,
                self._job_id,
                span.id,
                span.epoch,
                after,
                list(span.hi),
                list(bound.to),
                bound.scanned,
                0.0,
                timeout_s=CHUNK_DEADLINE_S,
            )
        except Exception as error:
            if not classify(error).is_of_row:
                raise
            return None, False
        assert row is not None
        return int(row["rows"]), row["server_s"] is not None

    async def _record(self, span: Span, bound: Bound, rows: int, suspects: Sequence[Suspect]) -> None:
        """Suspects, cursor and fence in one statement."""
        seen = [
            Seen(s.key, s.kind, s.source_mark, s.target_mark)
            for s in suspects
            if not (self._leaves_extras and s.kind == EXTRA)
        ]
        crashpoint("commit.before")
        await Ledger(self.connection).record_suspects(
            self._verification, seen, self._job_id, span, bound.to, rows=rows, scanned=bound.scanned
        )
