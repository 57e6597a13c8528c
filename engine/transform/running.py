"""Running one worker's transform: batches of rows in, pieces of a COPY stream out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine._native.rows import Rows
from engine.errors import BackfillError, TooManyBadRows, TransformFailed
from engine.transform.blaming import InARow, without_raising
from engine.transform.declare import Transform
from engine.transform.failures import at_work, class_of, innermost, waiting
from engine.transform.passing import (
    BAD_VALUE,
    GO_ON,
    TIME_LIMIT_HINT,
    Call,
    Done,
    Passage,
    Raised,
    Rejected,
    TookTooLong,
    called,
)
from engine.transform.thread import LoopThread, ThreadEnded
from engine.transform.types import ColumnType

Result = TypeVar("Result")

SET_UP_LIMIT_S: Final = 300.0
"""A set-up may load a model, or a table."""

TEAR_DOWN_LIMIT_S: Final = 10.0
"""The rows are in: whoever waits for the worker to end is not kept."""

THREAD_ENDS_WITHIN_S: Final = 2.0

LOOK_EVERY_S: Final = 5.0
"""How long at most somebody waits before looking whether a function is over its time."""

MARGIN_S: Final = 0.01
"""After a call's time is over, before that is looked at."""

STANDSTILL_S: Final = 1.0
"""Whoever comes so much later than he meant to has not been watching: the process stood still, or its interpreter."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one batch."""

    piece: bytes  # rows in binary COPY form, without header and trailer
    rows: int  # in piece
    dropped: int
    rejected: tuple[Rejected, ...]  # ascending by row


class Runner:
    """One worker's transform, with its state and its thread.

    - ``reads``: for each column that the function reads, the number of its field in the rows that come, and its type.
    - ``writes``: the types of the columns it writes.
    - ``layout``: per field of the rows that go out: ``n >= 0`` is field ``n`` as it came, ``-1 - k`` the column
      ``writes[k]``.
    - ``most_rejected``: how many rows of one batch may be rejected; may be changed between batches.  With 0 a row that
      would be raises ``TransformFailed``, with more than that one too many raises ``TooManyBadRows``.

    ``apply`` may be called for several batches at once.  A plain function does one after the other, an ``async def``
    one up to ``transform.concurrency``.  After a ``TransformFailed`` for a call that took too long nothing can be
    applied any more; after any other, and after ``apply`` was cancelled, it can.
    """

    def __init__(
        self,
        transform: Transform,
        reads: Sequence[tuple[int, ColumnType]],
        writes: Sequence[ColumnType],
        layout: Sequence[int],
        *,
        most_rejected: int = 0,
    ) -> None:
        self.most_rejected = most_rejected
        self._transform = transform
        self._passage = Passage(transform, reads, writes, layout)
        self._slots = asyncio.Semaphore(transform.concurrency)  # of the thread's loop
        self._thread: LoopThread | None = None
        self._calls: set[Call] = set()
        self._watched_at = 0.0  # by time.monotonic, when somebody has last come back from a standstill
        self._in_a_row = InARow({number for number, _ in reads} | {field for field in layout if field >= 0})
        self._dead: TransformFailed | None = None
        self._stray: Raised | None = None  # the first error of something that the function left behind
        self._is_set_up = False

    async def start(self) -> None:
        """Start the thread and call the set-up in it.  Raises ``TransformFailed``."""
        assert self._thread is None, "started once"
        self._thread = LoopThread(self._name, self._remember_stray)
        self._thread.start()
        try:
            self._passage.state = await self._in_thread(self._set_up, SET_UP_LIMIT_S)
            self._is_set_up = True
        except BaseException:
            self._thread.end()
            self._thread.force()  # whoever waited for it may have gone
            raise

    async def apply(self, rows: Rows) -> Applied:
        """What becomes of a batch.  Raises ``TransformFailed`` and ``TooManyBadRows``."""
        assert self._is_set_up, "start() comes first"
        if not rows.count:
            return Applied(b"", 0, 0, ())
        most = self.most_rejected
        return await self._in_thread(lambda: self._apply(rows, most), self._transform.time_limit_s)

    async def close(self) -> TransformFailed | None:
        """Call the tear-down and end the thread, both within a deadline.  Never raises for what the function does.

        Returns what was wrong with the tear-down, or with a task that the function has left behind: the rows are in,
        and nothing of that takes them out again.
        """
        thread = self._thread
        if thread is None:
            return None
        failed: TransformFailed | None = None
        try:
            if self._dead is None and self._is_set_up and self._transform.teardown is not None:
                try:
                    await asyncio.wait_for(self._in_thread(self._tear_down, TEAR_DOWN_LIMIT_S), 1.5 * TEAR_DOWN_LIMIT_S)
                except TransformFailed as error:
                    failed = error
                except TimeoutError:
                    failed = TransformFailed(f"the tear-down of {self._name} had no turn: a batch is not done yet")
        finally:
            self._is_set_up = False
            thread.end()
            self._passage.state = None
        if self._dead is None and not await thread.ended(THREAD_ENDS_WITHIN_S):
            thread.force()  # in a batch that nobody waits for any more
        if failed is None and self._stray is not None:
            failed = TransformFailed(f"something that {self._name} left behind raised {self._stray.shown}")
        return failed

    async def _in_thread(self, work: Callable[[], Coroutine[Any, Any, Result]], limit_s: float) -> Result:
        """What comes of ``work`` in the thread, watched meanwhile: nobody else would notice that it hangs."""
        thread = self._thread
        assert thread is not None, "start() comes first"
        failure: BackfillError | None = self._dead
        if failure is not None:
            raise _again(failure)
        errand = thread.submit(work)
        try:
            while failure is None:
                began, within_s = time.monotonic(), self._look_again_in_s(limit_s)
                if await errand.waited(within_s):
                    break
                self._forgive(began, within_s)
                self._look(thread)
                failure = self._dead
            if failure is None:
                return errand.result
        except ThreadEnded:
            how = f": {self._stray.shown}" if self._stray is not None else ""
            failure = self._dead = self._dead or TransformFailed(f"{self._name} has ended its thread{how}")
        except TookTooLong as error:
            failure = self._dead = TransformFailed(error.message, hint=error.hint)
        except BackfillError as error:
            failure = error
        finally:
            thread.drop(errand)
        raise _again(failure)  # without the frames that it was raised in, which hold rows

    def _look_again_in_s(self, limit_s: float) -> float:
        left = [-overdue_s for call in tuple(self._calls) if (overdue_s := call.overdue_s()) is not None]
        return min([max(left_s, 0.0) for left_s in left] + [limit_s, LOOK_EVERY_S]) + MARGIN_S

    def _forgive(self, began: float, within_s: float) -> None:
        """No call is over its time by a standstill of us all: what passed since the last look does not count."""
        now = time.monotonic()
        if now - began > within_s + STANDSTILL_S:
            since, self._watched_at = max(began, self._watched_at), now  # of those that wait each comes late, once
            for call in tuple(self._calls):
                call.forgive(since)

    def _look(self, thread: LoopThread) -> None:
        """Give the thread up if a call in it is over its time."""
        if self._dead is not None:
            return
        for call in tuple(self._calls):
            awaits, overdue_s = call.awaits, call.overdue_s()
            if overdue_s is None or overdue_s <= 0:
                continue
            place = at_work(thread.frame(), call.is_own) or waiting(awaits, call.is_own) or call.definition
            at = f"; it is at {place.shown}" if place is not None else ""
            self._dead = TransformFailed(
                f"{call.what} has not come back after {call.limit_s:,g} s{at}",
                hint=TIME_LIMIT_HINT,
            )
            thread.end()
            thread.force()
            return

    @contextmanager
    def _calling(self, call: Call) -> Iterator[Call]:
        self._calls.add(call)
        try:
            yield call
        finally:
            self._calls.discard(call)

    async def _set_up(self) -> Any:
        setup = self._transform.setup
        if setup is None:
            return None
        with self._calling(Call.of(f"the set-up of {self._name}", SET_UP_LIMIT_S, setup)) as call:
            state = await called(call, setup)
        if isinstance(state, Raised):
            raise TransformFailed(f"{call.what} raised {state.shown}", hint=f"mend it on this host; {GO_ON}")
        return state

    async def _tear_down(self) -> None:
        teardown = self._transform.teardown
        assert teardown is not None, "close() has looked"
        with self._calling(Call.of(f"the tear-down of {self._name}", TEAR_DOWN_LIMIT_S, teardown)) as call:
            ended = await called(call, lambda: teardown(self._passage.state))
        if isinstance(ended, Raised):
            raise TransformFailed(f"{call.what} raised {ended.shown}")

    async def _apply(self, rows: Rows, most: int) -> Applied:
        async with self._slots:
            with self._calling(self._passage.call()) as call:
                pieces, rejected = await self._passed(call, rows, most)
            return Applied(
                piece=b"".join(done.piece for done in pieces),
                rows=sum(done.rows for done in pieces),
                dropped=sum(done.dropped for done in pieces),
                rejected=tuple(sorted(rejected, key=lambda one: one.row)),
            )

    async def _passed(self, call: Call, rows: Rows, most: int) -> tuple[list[Done], list[Rejected]]:
        """The pieces that a batch becomes, in its order, and the rows of it that are rejected."""
        columns, bad = self._passage.bad_rows(rows)
        rejected = [Rejected(row, reason, BAD_VALUE) for row, reason in bad.items()]
        self._check(rejected, most)
        numbers: NDArray[np.int64] | None = None  # of the rows that are left; None: all of them are
        if bad:
            numbers = np.setdiff1d(np.arange(rows.count), list(bad))
            if not len(numbers):
                return [], rejected
            rows = rows.take(numbers)
            columns, _ = self._passage.bad_rows(rows)
        outcome = await self._passage.attempt(call, rows, columns)
        if isinstance(outcome, Done):
            self._in_a_row.end()
            pieces = [(0, outcome)]
        else:
            pieces = await without_raising(
                lambda some: self._passage.attempt(call, some),
                rows,
                outcome,
                self._name,
                most=most,
                found=len(rejected),
                in_a_row=self._in_a_row,
            )
        for first, done in pieces:
            for one in done.rejected:
                row = first + one.row
                rejected.append(replace(one, row=row if numbers is None else int(numbers[row])))
        self._check(rejected, most)
        return [done for _, done in pieces], rejected

    def _check(self, rejected: Sequence[Rejected], most: int) -> None:
        if len(rejected) <= most:
            return
        last = rejected[-1]
        if not most:
            definition = self._passage.call().definition  # a value of the wrong type is a line of the author's
            at = f"; it stands at {definition.shown}" if last.sqlstate == BAD_VALUE and definition is not None else ""
            raise TransformFailed(
                f"{self._name} cannot pass a row: {last.reason}{at}",
                hint="mend the function, or in a spec file errors: {max_quarantined: N} sets up to N such rows aside;"
                f" {GO_ON}",
                sqlstate=last.sqlstate,
            )
        raise TooManyBadRows(
            f"{self._name} cannot pass {len(rejected):,} rows of one batch (one of them: {last.reason}); {most:,} may"
            " be set aside",
            hint=f"mend the rows or the function, or raise errors.max_quarantined; {GO_ON}",
            sqlstate=last.sqlstate,
        )

    def _remember_stray(self, error: BaseException) -> None:
        if self._stray is None:
            self._stray = Raised(class_of(error), innermost(error.__traceback__, self._passage.call().is_own))

    @property
    def _name(self) -> str:
        return f"transform {self._transform.reference}"


def _again(error: BackfillError) -> BackfillError:
    """The same error without frames: of those that wait each raises its own."""
    return type(error)(error.message, hint=error.hint, sqlstate=error.sqlstate)
