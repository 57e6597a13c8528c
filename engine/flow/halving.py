"""Finding the row that spoils a chunk, and setting it aside.

A chunk that fails by a row's fault is halved: the first half is tried; if it is good the bad row is in the second, if
not in the first.  Good halves are moved as any chunk, so at the end only the row is left, and it has failed alone.
That costs two short statements for each halving (an index walk and a piece), seventeen halvings for 50,000 rows.  The
pieces are cut at existing keys, never by arithmetic: an id that is not there cannot be blamed.

The row goes into ``backfill.quarantine`` and the cursor past it in one transaction, behind the fence.  The sizer learns
nothing of all this: chunks behind a bad row are as large as those before it, unless bad rows lie close together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.crashpoint import crashpoint
from engine.db.database import STATEMENT_TIMEOUT_S
from engine.db.failures import TOO_MANY_SQLSTATE, Action, Failure, Fault, classify
from engine.errors import BackfillError, BadRow, TooManyBadRows
from engine.events import RowQuarantined
from engine.flow.bounds import Bound, Prober
from engine.flow.shared import Shared
from engine.ledger.store import Ledger
from engine.model import KeyValue, Phase, Span

ATTEMPTS_ALONE: Final = 3
"""How often a row must exceed what the server can give, alone, before it is the row's fault and not the server's."""

TRIES_WITHOUT_ROWS: Final = 2
"""A range may have lost its bad row meanwhile; if it fails empty as well, no row is to blame."""

GROWTH: Final = 4
"""Behind bad rows that lie close together, chunks grow by this factor until one is bad again."""

SHARE_OF_TIMEOUT: Final = 0.9
CANCELLED: Final = "57014"


class Halving:
    """A range ``(cursor, to]`` with a row in it that fails; ``bound`` is the chunk that has just failed."""

    def __init__(self, prober: Prober, span: Span, bound: Bound) -> None:
        self._prober = prober
        self._span_id = span.id
        self._hi = span.hi
        self._to = bound.to
        self._rows = bound.asked  # what it was cut for; how many were found may be an estimate
        self._more = 1

    def is_about(self, span: Span) -> bool:
        """True while something of the range is left, and the span is still the one it was cut from."""
        return span.id == self._span_id and span.hi == self._hi and span.cursor != self._to

    async def next(self, cursor: KeyValue | None, most: int) -> Bound:
        """What to try next: the first half of the range, of at most ``most`` rows, or what cannot be halved."""
        while self._rows > 1:
            half = max(1, min(self._rows // 2, most))
            found = await self._prober.walk(cursor, self._to, half)
            if found is not None and found != self._to:
                return Bound(cursor, found, half, half, by_arithmetic=False)
            # Fewer rows than were thought: the count came from ids, or some have gone.
            self._rows = half if found is not None else half - 1
        return Bound(cursor, self._to, 1, 1, by_arithmetic=False)

    def moved(self, bound: Bound) -> None:
        """A piece was good: the bad row is behind it."""
        self._rows = max(1, self._rows - bound.scanned)

    def failed(self, bound: Bound) -> None:
        """A piece failed too: the bad row is in it."""
        self._to, self._rows = bound.to, bound.scanned

    async def rows_left(self, cursor: KeyValue | None) -> tuple[KeyValue, ...]:
        """The first two rows of what cannot be halved: usually there is one, which is the bad one."""
        first = await self._prober.walk(cursor, self._to, 1)
        if first is None:
            return ()
        second = await self._prober.walk(cursor, self._to, 2)
        if second is None:
            return (first,)
        self._more *= 2  # somebody has put rows in between
        self._rows = self._more
        return (first, second)


class Caution:
    """How many rows to try behind a bad row.  One among many costs no more than itself; where every second row is bad
    it would be a waste to begin with 50,000 of them each time.
    """

    def __init__(self) -> None:
        self._since: int | None = None  # rows moved since the last bad one; None: there was none
        self._most: int | None = None

    def met_bad_row(self, full_chunk: int) -> None:
        """A row was set aside; ``full_chunk`` is what the sizer asks for."""
        close = self._since is not None and self._since < full_chunk
        self._most = max(1, 2 * (self._since or 0)) if close else None
        self._since = 0

    def moved(self, rows: int, full_chunk: int) -> None:
        """A chunk was good."""
        if self._since is not None:
            self._since += rows
        if self._most is not None:
            self._most *= GROWTH
            if self._most >= full_chunk:
                self._most = None

    def limit(self, rows: int) -> int:
        """As many as asked for, or fewer."""
        return rows if self._most is None else min(rows, self._most)


class BadRows:
    """What one worker does about rows that cannot be written."""

    def __init__(self, shared: Shared, prober: Prober) -> None:
        self._shared = shared
        self._prober = prober
        self._halving: Halving | None = None
        self._verdict: Failure | None = None  # of a piece that cannot be halved
        self._leaving: tuple[KeyValue, Failure] | None = None  # what is being set aside, until the answer is there
        self._alone = 0  # attempts of a single row that was too much for the server
        self._without_rows = 0
        self._caution = Caution()

    @property
    def _may_set_aside(self) -> bool:
        return self._shared.phase is Phase.MOVE and self._shared.max_quarantined > 0

    def limit(self, rows: int) -> int:
        """Rows to ask for when ``rows`` are wanted."""
        return self._caution.limit(rows)

    @property
    def is_settled(self) -> bool:
        """False when a row has failed alone, and ``settle`` must decide about it before anything else is tried."""
        return self._verdict is None

    async def piece(self, span: Span, most: int) -> Bound | None:
        """The next piece of a range in which a row has failed; None when there is no such range."""
        self._leaving = None
        if self._halving is not None and not self._halving.is_about(span):
            self._halving = None
        return None if self._halving is None else await self._halving.next(span.cursor, most)

    def moved(self, bound: Bound, rows: int, full_chunk: int) -> None:
        """A chunk, or a piece of one, is in."""
        self._alone = self._without_rows = 0
        self._caution.moved(rows, full_chunk)
        if self._halving is not None:
            self._halving.moved(bound)

    def forget(self) -> None:
        """Another span."""
        self._halving = self._verdict = self._leaving = None
        self._alone = self._without_rows = 0

    def blame(self, span: Span, bound: Bound, failure: Failure, seconds: float) -> bool:
        """A chunk has failed after ``seconds``.  True when a row of it is to blame and will be looked for."""
        if not self._may_set_aside or self._is_conflict(failure):
            return False
        if failure.fault is Fault.LOAD and not self._is_too_much(bound, failure, seconds):
            return False
        if failure.fault is Fault.NONE:
            return False
        if self._halving is None or not self._halving.is_about(span):
            self._halving = Halving(self._prober, span, bound)
        else:
            self._halving.failed(bound)
        if bound.asked == 1:
            self._verdict = failure
        return True

    def _is_conflict(self, failure: Failure) -> bool:
        """``on_conflict: fail`` wants the job to stop at a key that the target holds."""
        return failure.action is Action.CONFLICT and failure.constraint in self._shared.arbiters

    def _is_too_much(self, bound: Bound, failure: Failure, seconds: float) -> bool:
        """True when a single row has asked more of the server than it gives, several times over."""
        by_hand = failure.sqlstate == CANCELLED and seconds < SHARE_OF_TIMEOUT * STATEMENT_TIMEOUT_S
        if bound.asked > 1 or by_hand:
            return False
        self._alone += 1
        return self._alone >= ATTEMPTS_ALONE

    def has_room_for(self, failure: Failure) -> bool:
        """True when what was too much at once may be tried alone and set aside, rather than stop the job."""
        return self._may_set_aside and failure.fault is not Fault.NONE

    async def settle(self, span: Span, ledger: Ledger, worker: str, full_chunk: int) -> KeyValue | None:
        """Something that cannot be halved has failed: set its row aside and return the key, where the cursor stands
        now.  None when the range is to be tried once more.  Raises ``BackfillError`` for what must stop the job.
        """
        failure, self._verdict = self._verdict, None
        assert failure is not None, "is_settled"
        if self._halving is None or not self._halving.is_about(span):
            return None
        rows = await self._halving.rows_left(span.cursor)
        if not rows:
            self._without_rows += 1
            if self._without_rows >= TRIES_WITHOUT_ROWS:
                raise BadRow(failure.message, hint=failure.hint, sqlstate=failure.sqlstate)
        if len(rows) != 1:
            return None
        (key,) = rows
        crashpoint("quarantine.before")
        self._leaving = key, failure
        await self._set_aside(span, key, failure, ledger)
        crashpoint("quarantine.after")
        self._is_aside(span, failure, worker, full_chunk)
        return key

    def found(self, before: Span, now: Span, worker: str, full_chunk: int) -> bool:
        """True when what a span has got on by, as its holder finds it after a lost connection, is a row set aside."""
        leaving, self._leaving = self._leaving, None
        if leaving is None or now.cursor != leaving[0]:
            return False
        self._is_aside(before, leaving[1], worker, full_chunk)
        return True

    def _is_aside(self, span: Span, failure: Failure, worker: str, full_chunk: int) -> None:
        self._halving = self._leaving = None
        self._alone = self._without_rows = 0
        self._caution.met_bad_row(full_chunk)
        self._shared.emit(
            RowQuarantined(
                job=self._shared.job, worker=worker, span=span.id, epoch=span.epoch, sqlstate=failure.sqlstate
            )
        )

    def tell(self, span: Span, aside: Sequence[tuple[str, int]], worker: str) -> None:
        """Tell of rows that a transform could not do: set aside with their chunk, one event for all of a kind."""
        for sqlstate, rows in aside:
            self._shared.emit(
                RowQuarantined(
                    job=self._shared.job,
                    worker=worker,
                    span=span.id,
                    epoch=span.epoch,
                    sqlstate=sqlstate,
                    rows=rows,
                    in_chunk=True,
                )
            )

    async def _set_aside(self, span: Span, key: KeyValue, failure: Failure, ledger: Ledger) -> None:
        shared = self._shared
        try:
            await ledger.set_aside(
                shared.job_id,
                span,
                key,
                error_class=failure.message,
                sqlstate=failure.sqlstate,
                allowed=shared.max_quarantined,
            )
        except Exception as error:
            if classify(error).sqlstate != TOO_MANY_SQLSTATE:
                raise
            counts = await ledger.quarantined_by_sqlstate(shared.job_id)
            raise _too_many(counts, failure.sqlstate, shared.max_quarantined) from None

    def as_stop(self, failure: Failure) -> BackfillError | None:
        """The error to stop with where a row is to blame and may not be set aside; None where none is."""
        if self._shared.phase is not Phase.MOVE or not failure.is_of_row:
            return None
        if self._is_conflict(failure):
            return BadRow(
                failure.message,
                hint="on_conflict: fail stops at the first row whose key the target holds already",
                sqlstate=failure.sqlstate,
            )
        way = "in a spec file, errors: {max_quarantined: N} sets up to N such rows aside"
        hint = f"{failure.hint}; or: {way}" if failure.hint else way
        return BadRow(f"a row cannot be written: {failure.message}", hint=hint, sqlstate=failure.sqlstate)


def _too_many(counts: dict[str, int], sqlstate: str, allowed: int) -> TooManyBadRows:
    """``counts``: rows that are set aside, by SQLSTATE; ``sqlstate``: of the one that is too much."""
    counts = counts | {sqlstate: counts.get(sqlstate, 0) + 1}
    shown = ", ".join(f"{rows:,} of {state}" for state, rows in sorted(counts.items(), key=lambda item: -item[1]))
    return TooManyBadRows(
        f"{sum(counts.values()):,} rows cannot be written ({shown}); errors.max_quarantined allows {allowed:,}",
        hint="mend the rows or the expression, or raise errors.max_quarantined; then backfill resume, and run again",
        sqlstate=sqlstate,
    )
