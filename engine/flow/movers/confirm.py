"""The second look at rows that seemed to differ, and their repair.

A difference counts only if both rows are the same versions at two looks, a while apart, still differ, and everybody has
ended who had written something by the first of the two: he may have been between his commits.  Rows that agree at any
look are all right, and rows that change at every look are reported as unsettled.  A repair replaces what
was looked at and nothing else (compare and swap on both rows), and deletes nothing that only the target holds unless
that was asked for, too; what it did is recorded in the same transaction, and looked at once more in a phase of its own,
because repaired is not verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from engine.clock import Clock
from engine.crashpoint import crashpoint
from engine.flow import barrier
from engine.flow.bounds import Bound
from engine.flow.comparing import AnyComparer, comparer_of
from engine.flow.movers import Unfinished
from engine.flow.movers.both import BothSides
from engine.flow.phases import LOOKED_AT
from engine.flow.prepare import Prepared
from engine.flow.shared import SETTLE_S, Sides, Stop
from engine.ledger.proof import Judged, Numbered
from engine.ledger.records import JobRecord
from engine.ledger.store import Ledger
from engine.model import Observation, Phase, Side, Span
from engine.sql.statements import advance_call
from engine.verify import Look

LOOKS: Final = 6
"""Times that a row which changes again and again is looked at."""

TOUCHED: Final = "UPDATE backfill.job SET moved_at = clock_timestamp() WHERE id = {job:d}; "
"""Sent together with the fence and COMMIT: whoever stands still in mid-repair must not hold a lock on the job, which
all the others want, his successor first.
"""

AGREED: Final = "agreed"
CONFIRMED: Final = "confirmed"
UNSETTLED: Final = "unsettled"
REPAIRED: Final = "repaired"


class ConfirmMover(BothSides):
    """Looks again at the suspects of one worker (``confirm``), or at what was repaired (``recheck``)."""

    def __init__(
        self, prepared: Prepared, job: JobRecord, phase: Phase, purpose: str, clock: Clock, stop: Stop
    ) -> None:
        endpoints = prepared.endpoints
        super().__init__(None if endpoints.is_one else endpoints.source, endpoints.target, purpose, job.id, clock)
        assert job.verification_id is not None
        self._verification = job.verification_id
        self._prepared = prepared
        self._phase = phase
        self._stop = stop
        self._comparer: AnyComparer | None = None
        self._settle_s = SETTLE_S
        self._repairs = False
        self._deletes_extra = False

    async def open(self) -> None:
        """Connect, and read how the verification was asked for."""
        await super().open()
        self._comparer = comparer_of(self._prepared, self._there or self.connection, self.connection)
        await self._comparer.agree_on_hashes()
        asked = await Ledger(self.connection).verification(self._verification)
        self._settle_s = asked.settle_s
        self._repairs = asked.repair and self._phase is Phase.CONFIRM
        self._deletes_extra = self._repairs and asked.delete_extra

    async def move(self, span: Span, bound: Bound) -> Observation:
        """One chunk: look again, repair if that was asked for, record, advance."""
        began = self._clock.now()
        suspects = await Ledger(self.connection).suspects_between(
            self._verification,
            None if bound.after is None else int(bound.after[0]),
            int(bound.to[0]),
            LOOKED_AT[self._phase],
        )
        judged, differing = await self._judge(suspects)
        crashpoint("write.before")
        judged = await self._record(span, bound, judged, differing)
        crashpoint("commit.after")
        return Observation(
            rows=len(suspects),
            scanned=bound.scanned,
            bytes=0,
            server_s=self._clock.now() - began,
            differing=self._found(suspects, judged),
        )

    def _found(self, suspects: Sequence[Numbered], judged: Sequence[Judged]) -> int:
        """How many rows were recorded as differing that were not before.  One that is looked at a second time counts
        only if the first time did not settle it.
        """
        if self._phase is Phase.CONFIRM:
            return sum(j.state in (CONFIRMED, REPAIRED) for j in judged)
        open_until_now = {s.id for s in suspects if s.state == UNSETTLED}
        return sum(j.state == CONFIRMED and j.id in open_until_now for j in judged)

    async def _judge(self, suspects: Sequence[Numbered]) -> tuple[list[Judged], dict[int, Look]]:
        """What became of the suspects, and the last look at those that differ for good."""
        assert self._comparer is not None, "open() first"
        judged: list[Judged] = []
        differing: dict[int, Look] = {}
        # A recheck has nothing to compare with yet: the marks are of before the repair.
        first = suspects if self._phase is Phase.CONFIRM else ()
        marks = {s.id: (s.seen.source_mark, s.seen.target_mark) for s in first}
        left = list(suspects)
        wait_s = max((self._settle_s - s.age_s for s in suspects), default=0.0)
        writers: str | None = None  # at the last look; those of the first one are behind the phase's barrier
        for _ in range(LOOKS):
            if not left:
                break
            if await self._stop.pause(self._clock, max(0.0, wait_s)):
                raise Unfinished
            wait_s = self._settle_s
            again: list[Numbered] = []
            have_ended = not await barrier.still_running(writers, self._sides)
            looks = await self._comparer.look([s.seen.key for s in left])
            for suspect, look in zip(left, looks, strict=True):
                seen = (look.source_mark, look.target_mark)
                if look.kind is None:
                    judged.append(Judged(suspect.id, REPAIRED if suspect.state == REPAIRED else AGREED, None))
                elif have_ended and marks.get(suspect.id) == seen:
                    differing[suspect.id] = look
                    judged.append(Judged(suspect.id, CONFIRMED, look.kind, look.columns))
                else:
                    marks[suspect.id] = seen
                    again.append(suspect)
            left = again
            writers = await barrier.freeze(self._sides, only_writers=True) if left else None
        judged += [Judged(s.id, UNSETTLED, None) for s in left]
        return judged, differing

    @property
    def _sides(self) -> Sides:
        here = {Side.TARGET: self.connection}
        return here if self._there is None else here | {Side.SOURCE: self._there}

    async def _record(self, span: Span, bound: Bound, judged: list[Judged], differing: dict[int, Look]) -> list[Judged]:
        """Repairs, what became of each row, cursor and fence in one transaction.  Returns what became of each."""
        assert self._comparer is not None
        here = self.connection
        touched = ""
        await here.execute("BEGIN")
        try:
            if wanted := self._to_be_repaired(differing):
                judged = await self._mend(judged, wanted)
                touched = TOUCHED.format(job=self._job_id)
            if judged:
                await Ledger(here).judge(judged)
            crashpoint("write.after")
            fence = advance_call(
                self._job_id,
                span.id,
                span.epoch,
                span.cursor,
                span.hi,
                bound.to,
                len(judged),
                bound.scanned,
                0,
                remember=False,
            )
            crashpoint("commit.before")
            await here.execute(f"{touched}{fence}; COMMIT")
        except BaseException:
            await here.roll_back()
            raise
        finally:
            await self._comparer.release()
        return judged

    def _to_be_repaired(self, differing: dict[int, Look]) -> dict[int, Look]:
        """A row that only the target holds may be another job's, or older than the job: it goes only if that was asked
        for.
        """
        if not self._repairs:
            return {}
        return {n: look for n, look in differing.items() if self._deletes_extra or look.kind != "extra"}

    async def _mend(self, judged: list[Judged], wanted: dict[int, Look]) -> list[Judged]:
        """Repair what differs, in the transaction that is open; what became of each row."""
        assert self._comparer is not None
        done = await self._comparer.repair(list(wanted.values()), delete_extra=self._deletes_extra)
        written = dict(zip(wanted, done, strict=True))
        # One that was not written has been changed by somebody else in between, or cannot be: to be looked at again.
        return [replace(j, state=REPAIRED if written[j.id] else UNSETTLED) if j.id in wanted else j for j in judged]
