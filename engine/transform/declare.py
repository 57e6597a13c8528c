"""The decorator: what a function reads and writes, and how it is run."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from engine.model import Declaration
from engine.transform.types import FORMS

if TYPE_CHECKING:
    from engine.transform.batch import Batch

Results = Mapping[str, Any]
"""What a function gives back: a column (``Column``, ``ListColumn`` or an array) by the name of each it writes."""

Function = Callable[["Batch"], "Results | Awaitable[Results]"]

BATCH_ROWS: Final = 8192
TIME_LIMIT_S: Final = 30.0
MAX_BATCH_ROWS: Final = 1_000_000
MAX_TIME_LIMIT_S: Final = 45.0
"""While a function works the servers wait, in the middle of a statement, which they end after 60 s."""


MAX_CONCURRENCY: Final = 64
"""Each batch in flight may hold 1 MiB of rows as they came, and what they became."""

_USAGE: Final = "@transform(reads=[…], writes=[…])"

MAX_NAME_BYTES: Final = 63
"""PostgreSQL's NAMEDATALEN - 1: no column has a longer name."""


class DeclarationError(ValueError):
    """``@transform`` was given something that makes no sense.  Raised where the function is defined."""


class Transform:
    """A function over numpy columns and what was declared of it; ``@transform`` makes these.

    Callable as the function is, so that a test hands it a ``Batch.of(…)`` and looks at what comes back.
    """

    def __init__(
        self,
        function: Function,
        *,
        reads: Iterable[str] | Mapping[str, str],
        writes: Iterable[str],
        setup: Callable[[], Any] | None = None,
        teardown: Callable[[Any], Any] | None = None,
        drops: bool = False,
        batch_rows: int = BATCH_ROWS,
        time_limit_s: float = TIME_LIMIT_S,
        concurrency: int = 1,
    ) -> None:
        if not callable(function):
            raise DeclarationError(f"@transform stands before a function: {_USAGE}")
        if isinstance(function, Transform):
            raise DeclarationError(f"{function.reference} is a transform already: one @transform for each function")
        _takes(function, 1, "a transform takes the batch, and nothing else: def cents(batch)")
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.setup = _function_or_none(setup, "setup", 0, "setup takes nothing: what it returns is batch.state")
        self.teardown = _function_or_none(teardown, "teardown", 1, "teardown takes what setup returned")
        self.batch_rows = _number(batch_rows, "batch_rows", 1, MAX_BATCH_ROWS)
        self.time_limit_s = _seconds(time_limit_s)
        self.concurrency = _number(concurrency, "concurrency", 1, MAX_CONCURRENCY)
        if self.concurrency > 1 and not self.is_async:
            raise DeclarationError("concurrency is for `async def`: a plain function does one batch after the other")
        if not isinstance(drops, bool):
            raise DeclarationError(f"drops is True or False, not {type(drops).__name__}")
        self.declaration = Declaration(
            reference=f"{getattr(function, '__module__', '?')}:{getattr(function, '__name__', '?')}",
            reads=_reads(reads),
            writes=_writes(writes),
            drops=drops,
        )
        functools.update_wrapper(self, function, updated=())

    @property
    def reference(self) -> str:
        """``module.path:function``."""
        return self.declaration.reference

    def called(self, reference: str) -> Transform:
        """The same under the name that it was asked for by."""
        named = copy.copy(self)
        d = self.declaration
        named.declaration = Declaration(reference, d.reads, d.writes, d.drops)
        return named

    def __call__(self, batch: Batch) -> Any:
        """What the function gives back for these rows, which it sees as it would in a job: only the columns that it
        declares.  Of an ``async def``: what is to be awaited.
        """
        return self.function(batch.narrow(self.declaration))

    def __repr__(self) -> str:
        return f"<transform {self.reference}>"


def transform(
    function: Function | None = None,
    /,
    *,
    reads: Iterable[str] | Mapping[str, str] | None = None,
    writes: Iterable[str] | None = None,
    setup: Callable[[], Any] | None = None,
    teardown: Callable[[Any], Any] | None = None,
    drops: bool = False,
    batch_rows: int = BATCH_ROWS,
    time_limit_s: float = TIME_LIMIT_S,
    concurrency: int = 1,
) -> Callable[[Function], Transform]:
    """Declare a function over the columns of a batch of rows to be a transform: ``@transform(reads=[…], writes=[…])``.

    - ``reads``: names of columns of the source table; or a mapping of names to forms, where ``"decimal"`` asks for a
      ``numeric`` as ``decimal.Decimal`` objects and ``""`` is the default.  May be empty.
    - ``writes``: names of columns of the written table: at least one.
    - ``setup``: called once per worker, plain or async; what it returns is ``batch.state``.  ``teardown`` is called
      with that at the worker's end.
    - ``drops``: the function may call ``batch.drop``.
    - ``batch_rows``: rows that a batch has at most; a batch of wide rows has fewer.
    - ``time_limit_s``: what one call may take before the job stops, with the line where it hangs.
    - ``concurrency``: batches of one worker that an ``async def`` function may be called with at once.

    The function is called again with the same rows when a chunk is tried again, or when some of them make it raise.
    Raises ``DeclarationError``.
    """
    # Told in a sentence; Python's own TypeError would have none.
    if function is not None:
        raise DeclarationError(f"@transform alone says nothing of columns: {_USAGE}")
    if reads is None or writes is None:
        raise DeclarationError(f"{'reads' if reads is None else 'writes'} is missing: {_USAGE}")

    def declared(decorated: Function) -> Transform:
        return Transform(
            decorated,
            reads=reads,
            writes=writes,
            setup=setup,
            teardown=teardown,
            drops=drops,
            batch_rows=batch_rows,
            time_limit_s=time_limit_s,
            concurrency=concurrency,
        )

    return declared


def _reads(reads: object) -> tuple[tuple[str, str], ...]:
    if isinstance(reads, Mapping):
        for name, form in reads.items():
            if form not in FORMS:
                known = " or ".join(repr(known) for known in FORMS)
                raise DeclarationError(f"reads: {name!r} can be read as {known}, not as {form!r}")
        return tuple((name, reads[name]) for name in _names(list(reads), "reads"))
    return tuple((name, "") for name in _names(reads, "reads"))


def _writes(writes: object) -> tuple[str, ...]:
    if isinstance(writes, Mapping):
        raise DeclarationError('writes is a list of names of columns: writes=["amount_cents"]')
    names = _names(writes, "writes")
    if not names:
        raise DeclarationError("writes is empty: a transform writes at least one column")
    return names


def _names(given: object, what: str) -> tuple[str, ...]:
    if isinstance(given, (str, bytes)):
        raise DeclarationError(f"{what} is a list of names of columns: {what}=[{given!r}]")
    if not isinstance(given, Iterable):
        raise DeclarationError(f"{what} is a list of names of columns, not {type(given).__name__}")
    names = tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise DeclarationError(f"{what}: a column's name is a str, not {type(name).__name__}")
        if not name or "\0" in name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise DeclarationError(f"{what}: {name!r} is no name of a column (1 to {MAX_NAME_BYTES} bytes)")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DeclarationError(f"{what} names {', '.join(map(repr, twice))} twice")
    return names


def _function_or_none(given: Any, what: str, arguments: int, expected: str) -> Any:
    if given is None:
        return None
    if not callable(given):
        raise DeclarationError(f"{what} is a function, not {type(given).__name__}")
    _takes(given, arguments, expected)
    return given


def _takes(function: Callable[..., Any], arguments: int, expected: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some of those written in C do not say
        return
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        raise DeclarationError(expected) from None


def _number(given: object, what: str, least: int, most: int) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or not least <= given <= most:
        raise DeclarationError(f"{what} is a whole number from {least:,} to {most:,}")
    return given


def _seconds(given: object) -> float:
    sound = isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given)
    if not sound or not 0 < given <= MAX_TIME_LIMIT_S:  # type: ignore[operator]  # sound says that it is a number
        raise DeclarationError(
            f"time_limit_s is a number of seconds, more than 0 and at most {MAX_TIME_LIMIT_S:,.0f}: servers wait for"
            " one call in the middle of a statement, and end it after 60 s. A smaller batch_rows makes calls shorter"
        )
    return float(given)  # type: ignore[arg-type]
