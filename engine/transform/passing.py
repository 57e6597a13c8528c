"""One batch of rows through a function: decoded, called, encoded, assembled."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine._native.rows import Encoded, Rows, assemble
from engine.errors import TransformFailed
from engine.transform.batch import Batch, Misused
from engine.transform.columns import Column, ListColumn
from engine.transform.declare import Transform
from engine.transform.decoding import Bad, decode
from engine.transform.encoding import WrongResult, encode
from engine.transform.failures import (
    IsOwn,
    Place,
    class_of,
    close_unawaited,
    definition_of,
    innermost,
    of_file,
)
from engine.transform.types import ColumnType

REJECTED: Final = "BF010"
RAISED: Final = "BF011"
BAD_VALUE: Final = "BF012"

GO_ON: Final = "then backfill resume, and run again"
"""What to do once a function is mended: the end of hints."""

TIME_LIMIT_HINT: Final = (
    f"time_limit_s of @transform is what one call may take: mend the function, or lower batch_rows; {GO_ON}"
)

MOST_BY_CHANCE: Final = 1
"""Of a batch whose values are all of a wrong type, so many may be bad rows; more are the function's mistake."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is not written: its place in the batch, and why, without values.

    ``sqlstate``: ``BF010`` the function rejected it, ``BF011`` the function raises on it, ``BF012`` a value that cannot
    be decoded or encoded.
    """

    row: int
    reason: str
    sqlstate: str


@dataclass(eq=False, slots=True)
class Call:
    """A call of the author's code, as whoever watches it sees it.  Times are of ``time.monotonic``."""

    what: str  # transform shop.transforms:cents
    limit_s: float
    is_own: IsOwn
    definition: Place | None
    entered: float | None = None
    awaits: Any = None  # what is awaited, of an async function
    unseen_s: float = 0.0  # since it was entered, in which nobody could watch: the process may have stood still

    @classmethod
    def of(cls, what: str, limit_s: float, function: Any) -> Call:
        """Of that function."""
        is_own, definition = own_frames(function)
        return cls(what, limit_s, is_own, definition)

    def overdue_s(self) -> float | None:
        """By how much it is over its time; negative: what it has left.  None while it is not running."""
        entered = self.entered  # another thread may end it now
        return None if entered is None else time.monotonic() - entered - self.unseen_s - self.limit_s

    def forgive(self, since: float) -> None:
        """The time from ``since`` until now does not count."""
        entered = self.entered
        if entered is not None:
            self.unseen_s += time.monotonic() - max(entered, since)


class TookTooLong(TransformFailed):
    """A call has come back at last, after having used a processor for longer than it may take in all."""


@dataclass(frozen=True, slots=True)
class Raised:
    """The function raised ``Exception``: which may be a row's fault."""

    kind: str
    place: Place | None

    @property
    def reason(self) -> str:
        """Short, for the quarantine."""
        return self.kind if self.place is None else f"{self.kind} at {self.place}"

    @property
    def shown(self) -> str:
        """With the text of the line."""
        return self.kind if self.place is None else f"{self.kind} at {self.place.shown}"


@dataclass(frozen=True, slots=True)
class Done:
    """What became of some rows."""

    piece: bytes
    rows: int
    dropped: int
    rejected: list[Rejected] = field(default_factory=list)


class Passage:
    """What a transform does with rows of one shape."""

    def __init__(
        self,
        transform: Transform,
        reads: Sequence[tuple[int, ColumnType]],
        writes: Sequence[ColumnType],
        layout: Sequence[int],
    ) -> None:
        self.transform = transform
        self.state: Any = None
        self._reads = tuple(reads)
        self._writes = tuple(writes)
        self._layout = tuple(layout)
        self._call = Call.of(f"transform {transform.reference}", transform.time_limit_s, transform.function)

    def call(self) -> Call:
        """A call of the function that has yet to begin."""
        return replace(self._call)

    def bad_rows(self, rows: Rows) -> tuple[dict[str, Column | ListColumn], dict[int, str]]:
        """The columns that the function reads, and the rows with a value that cannot be decoded."""
        columns: dict[str, Column | ListColumn] = {}
        bad: dict[int, str] = {}
        for number, column in self._reads:
            columns[column.name], found = decode(rows, number, column)
            for one in found:
                bad.setdefault(one.row, one.reason)
        return columns, bad

    async def attempt(
        self, call: Call, rows: Rows, columns: dict[str, Column | ListColumn] | None = None
    ) -> Done | Raised:
        """Rows without bad values through the function.  Raises ``TransformFailed`` for what is no row's fault."""
        if columns is None:
            columns, _ = self.bad_rows(rows)
        batch = Batch(columns, rows.count, state=self.state, drops=self.transform.declaration.drops)
        given = await called(call, lambda: self.transform.function(batch))
        return given if isinstance(given, Raised) else self._finish(rows, batch, given)

    def _finish(self, rows: Rows, batch: Batch, given: Any) -> Done:
        encoded, rejected = self._encoded(batch, given)
        dropped = batch.dropped
        keep: NDArray[np.bool_] | None = None
        if rejected or dropped.any():
            keep = ~dropped
            keep[list(rejected)] = False
        kept = rows.count if keep is None else int(keep.sum())
        piece = assemble(rows, self._layout, encoded, keep) if kept else b""
        return Done(piece, kept, rows.count - kept - len(rejected), [rejected[row] for row in sorted(rejected)])

    def _encoded(self, batch: Batch, given: Any) -> tuple[list[Encoded], dict[int, Rejected]]:
        if not isinstance(given, Mapping):
            raise self._wrong(f"gave back {_kind_of(given)}, where a dict with {self._expected} is expected")
        wanted = {column.name for column in self._writes}
        missing = [column.name for column in self._writes if column.name not in given]
        surplus = [name for name in given if name not in wanted]
        if missing or surplus:
            # A key may be a row's value, unless it stands in the function's own text.
            written = texts_in(self.transform.function)
            named = sorted(name for name in surplus if name in written)
            other = len(surplus) - len(named)
            wrong = [f"{name!r} is missing" for name in missing] + [f"{name!r} is not among them" for name in named]
            wrong += [f"{other} others"] if other else []
            raise self._wrong(f"gave back a dict with other columns than {self._expected}: {', '.join(wrong)}")
        rejected = {row: Rejected(row, reason, REJECTED) for row, reason in batch.rejected.items()}
        dropped = batch.dropped
        encoded: list[Encoded] = []
        for column in self._writes:
            values, bad = self._encoded_column(given[column.name], column, batch.rows)
            encoded.append(values)
            bad = [one for one in bad if not dropped[one.row] and one.row not in rejected]
            if len(bad) > MOST_BY_CHANCE and all(one.by_type for one in bad):
                self._see_that_some_fit(values, bad, lambda row: bool(dropped[row]) or row in rejected)
            for one in bad:
                rejected[one.row] = Rejected(one.row, one.reason, BAD_VALUE)
        return encoded, rejected

    def _encoded_column(self, given: Any, column: ColumnType, rows: int) -> tuple[Encoded, list[Bad]]:
        if inspect.iscoroutine(given):
            raise self._wrong(f"gave back a column that cannot be written: column {column.name!r}: {_kind_of(given)}")
        try:
            return encode(given, column, rows)
        except WrongResult as error:
            wrong = str(error)
        except Exception as error:  # noqa: BLE001 - objects are asked for their number and their text: code of others
            wrong = f"column {column.name!r}: it cannot be encoded: {class_of(error)}"
        raise self._wrong(f"gave back a column that cannot be written: {wrong}")

    def _see_that_some_fit(self, values: Encoded, bad: Sequence[Bad], is_passed_by: Callable[[int], bool]) -> None:
        """Refuse a column of which every object is of a wrong type: that is the function's mistake, and no row's."""
        wrong = {one.row for one in bad}
        if all(row in wrong or is_passed_by(row) or values.value(row) is None for row in range(len(values))):
            raise self._wrong(f"gave back a column that cannot be written, by the type of every value: {bad[0].reason}")

    @property
    def _expected(self) -> str:
        return ", ".join(repr(column.name) for column in self._writes)

    def _wrong(self, what: str) -> TransformFailed:
        at = f"; it stands at {self._call.definition.shown}" if self._call.definition is not None else ""
        return TransformFailed(f"{self._call.what} {what}{at}", hint=f"mend the function; {GO_ON}")


async def called(call: Call, function: Callable[[], Any]) -> Any:
    """What the author's code gives back, awaited if need be; ``Raised`` where it raises an ``Exception``.

    Raises ``TransformFailed`` for misuse and for what would end a program or a task; ``TookTooLong`` for a call that
    nobody could watch, since it kept the interpreter's lock.  Only what it did itself counts then: a clock goes on
    while a process stands still.
    """
    misused = ""
    fatal = False
    raised: Raised | None = None
    given: Any = None
    call.entered, call.unseen_s = time.monotonic(), 0.0
    began, busy_s = time.thread_time(), 0.0
    try:
        try:
            given = function()
        finally:
            busy_s = time.thread_time() - began
        if inspect.isawaitable(given):
            call.awaits = given
            given = await given
    except Misused as error:
        raised, misused = Raised("", innermost(error.__traceback__, call.is_own)), error.safe
    except BaseException as error:  # noqa: BLE001 - SystemExit and CancelledError too are the function's
        close_unawaited(error)
        raised = Raised(class_of(error), innermost(error.__traceback__, call.is_own))
        fatal = not isinstance(error, Exception)
    finally:
        call.entered, call.awaits = None, None
    # Outside of the handlers, so that no error holds the frames of the function, and with them its rows.
    if misused:
        at = f"; at {raised.place.shown}" if raised is not None and raised.place is not None else ""
        raise TransformFailed(f"{call.what}: {misused}{at}", hint=f"mend the function; {GO_ON}")
    if fatal and raised is not None:
        raise TransformFailed(f"{call.what} raised {raised.shown}", hint=f"mend the function; {GO_ON}")
    if busy_s > call.limit_s:
        raise TookTooLong(
            f"{call.what} took {busy_s:,.1f} s; its time limit is {call.limit_s:,g} s", hint=TIME_LIMIT_HINT
        )
    return raised if raised is not None else given


def own_frames(function: Any) -> tuple[IsOwn, Place | None]:
    """Which frames are those of the module that ``function`` stands in, and where it stands there."""
    code = _code(function)
    if code is None:
        return (lambda _frame: False), None
    return of_file(code), definition_of(code)


def texts_in(function: Any) -> frozenset[str]:
    """The texts that stand in a function as it is written."""
    code = _code(function)
    return frozenset() if code is None else frozenset(_texts(code))


def _code(function: Any) -> CodeType | None:
    inner = inspect.unwrap(function)
    inner = getattr(inner, "func", inner)  # functools.partial
    if not hasattr(inner, "__code__") and callable(inner):
        inner = type(inner).__call__
    code = getattr(inner, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _texts(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):
            yield from (part for part in constant if isinstance(part, str))
        elif isinstance(constant, CodeType):
            yield from _texts(constant)


def _kind_of(given: Any) -> str:
    if inspect.isgenerator(given) or inspect.isasyncgen(given):
        return "a generator (yield, where return is expected)"
    if inspect.iscoroutine(given):
        given.close()  # or Python would warn of it, some time later, as if it were ours
        return "a coroutine (await it)"
    kind = type(given).__name__
    return "None" if given is None else f"{'an' if kind == 'ndarray' or kind[0] in 'aeio' else 'a'} {kind}"
