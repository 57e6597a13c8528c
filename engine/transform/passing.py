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
from engine.transform.failures import IsOwn, Place, class_of, definition_of, innermost, of_file
from engine.transform.types import ColumnType

REJECTED: Final = "BF010"
RAISED: Final = "BF011"
BAD_VALUE: Final = "BF012"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is not written: its place in the batch, and why, without values.

    ``sqlstate``: ``BF010`` the function rejected it, ``BF011`` the function raises on it, ``BF012`` a value that cannot
    be decoded or encoded.
    """

    row: int
    reason: str
    sqlstate: str


@dataclass(slots=True)
class Spent:
    """Seconds by what they were spent on, summed over a worker's batches."""

    decode_s: float = 0.0
    function_s: float = 0.0
    encode_s: float = 0.0
    assemble_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.decode_s + self.function_s + self.encode_s + self.assemble_s


@dataclass(eq=False, slots=True)
class Call:
    """A call of the author's code, as whoever watches it sees it.  Times are of ``time.monotonic``."""

    what: str  # transform shop.transforms:cents
    limit_s: float
    is_own: IsOwn
    definition: Place | None
    entered: float | None = None
    awaits: Any = None  # what is awaited, of an async function

    @classmethod
    def of(cls, what: str, limit_s: float, function: Any) -> Call:
        """Of that function."""
        is_own, definition = own_frames(function)
        return cls(what, limit_s, is_own, definition)

    def overdue_s(self) -> float | None:
        """By how much it is over its time; negative: what it has left.  None while it is not running."""
        entered = self.entered  # another thread may end it now
        return None if entered is None else time.monotonic() - entered - self.limit_s


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
        self.spent = Spent()
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
        began = time.perf_counter()
        for number, column in self._reads:
            columns[column.name], found = decode(rows, number, column)
            for one in found:
                bad.setdefault(one.row, one.reason)
        self.spent.decode_s += time.perf_counter() - began
        return columns, bad

    async def attempt(
        self, call: Call, rows: Rows, columns: dict[str, Column | ListColumn] | None = None
    ) -> Done | Raised:
        """Rows without bad values through the function.  Raises ``TransformFailed`` for what is no row's fault."""
        if columns is None:
            columns, _ = self.bad_rows(rows)
        batch = Batch(columns, rows.count, state=self.state, drops=self.transform.declaration.drops)
        began = time.perf_counter()
        try:
            given = await called(call, lambda: self.transform.function(batch))
        finally:
            self.spent.function_s += time.perf_counter() - began
        return given if isinstance(given, Raised) else self._finish(rows, batch, given)

    def _finish(self, rows: Rows, batch: Batch, given: Any) -> Done:
        began = time.perf_counter()
        encoded, rejected = self._encoded(batch, given)
        dropped = batch.dropped
        keep: NDArray[np.bool_] | None = None
        if rejected or dropped.any():
            keep = ~dropped
            keep[list(rejected)] = False
        kept = rows.count if keep is None else int(keep.sum())
        assembling = time.perf_counter()
        piece = assemble(rows, self._layout, encoded, keep) if kept else b""
        self.spent.encode_s += assembling - began
        self.spent.assemble_s += time.perf_counter() - assembling
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
            for one in bad:
                if not dropped[one.row]:
                    rejected.setdefault(one.row, Rejected(one.row, one.reason, BAD_VALUE))
        return encoded, rejected

    def _encoded_column(self, given: Any, column: ColumnType, rows: int) -> tuple[Encoded, list[Bad]]:
        try:
            return encode(given, column, rows)
        except WrongResult as error:
            wrong = str(error)
        raise self._wrong(f"gave back a column that cannot be written: {wrong}")

    @property
    def _expected(self) -> str:
        return ", ".join(repr(column.name) for column in self._writes)

    def _wrong(self, what: str) -> TransformFailed:
        at = f"; it stands at {self._call.definition.shown}" if self._call.definition is not None else ""
        return TransformFailed(f"{self._call.what} {what}{at}")


async def called(call: Call, function: Callable[[], Any]) -> Any:
    """What the author's code gives back, awaited if need be; ``Raised`` where it raises an ``Exception``.

    Raises ``TransformFailed`` for misuse, for what would end a program or a task, and for a call that was too long.
    """
    misused = ""
    fatal = False
    raised: Raised | None = None
    given: Any = None
    call.entered = time.monotonic()
    try:
        given = function()
        if inspect.isawaitable(given):
            call.awaits = given
            given = await given
    except Misused as error:
        raised, misused = Raised("", innermost(error.__traceback__, call.is_own)), error.safe
    except BaseException as error:  # noqa: BLE001 - SystemExit and CancelledError too are the function's
        raised = Raised(class_of(error), innermost(error.__traceback__, call.is_own))
        fatal = not isinstance(error, Exception)
    finally:
        overdue_s, call.entered, call.awaits = call.overdue_s(), None, None
    # Outside of the handlers, so that no error holds the frames of the function, and with them its rows.
    if misused:
        at = f" at {raised.place.shown}" if raised is not None and raised.place is not None else ""
        raise TransformFailed(f"{call.what}: {misused}{at}")
    if fatal and raised is not None:
        raise TransformFailed(f"{call.what} raised {raised.shown}")
    if overdue_s is not None and overdue_s > 0:
        took_s = call.limit_s + overdue_s
        raise TransformFailed(f"{call.what} took {took_s:,.1f} s; its time limit is {call.limit_s:,g} s")
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
    return "None" if given is None else f"a {type(given).__name__}"
