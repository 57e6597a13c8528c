"""What is said of a function that failed: where, and which exception; never the exception's own words.

``str(error)`` may be a row's values (``invalid literal for int() with base 10: '…'``).  An exception's class, the file,
the line and the text of that line are the author's own.
"""

from __future__ import annotations

import asyncio
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

MAX_SOURCE_CHARS: Final = 160
MAX_CLASS_CHARS: Final = 80
MAX_CAUSES: Final = 3
MAX_DECORATOR_LINES: Final = 30

_ASYNCIO_RUN: Final = asyncio.run.__code__.co_filename

IsOwn = Callable[[FrameType], bool]
"""True for a frame that runs the author's own code."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of somebody's code."""

    file: str  # as `shown_file` has it
    line: int
    function: str
    source: str  # the line's text; empty where the file cannot be read

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"

    @property
    def shown(self) -> str:
        """With the line's text, for a message."""
        return f"{self}: {self.source}" if self.source else str(self)


def place_in(code: CodeType, line: int) -> Place:
    """That line of a function."""
    # A comprehension, which is a function of its own before Python 3.12, goes by the name of what it stands in.
    names = [name for name in code.co_qualname.split(".<locals>.") if not name.startswith("<")]
    function = names[-1].rpartition(".")[2] if names and code.co_name.startswith("<") else code.co_name
    return Place(shown_file(code.co_filename), line, function, source_line(code.co_filename, line))


def definition_of(code: CodeType) -> Place:
    """The line with ``def``: code begins at its first decorator."""
    most = code.co_firstlineno + MAX_DECORATOR_LINES
    for line in range(code.co_firstlineno, most):
        if linecache.getline(code.co_filename, line).lstrip().startswith(("def ", "async def ", "class ")):
            return place_in(code, line)
    return place_in(code, code.co_firstlineno)


def innermost(traceback: TracebackType | None, is_own: IsOwn) -> Place | None:
    """The author's line that was being run when it raised; None where there is none."""
    found: tuple[CodeType, int] | None = None
    while traceback is not None:
        if is_own(traceback.tb_frame):
            found = traceback.tb_frame.f_code, traceback.tb_lineno
        traceback = traceback.tb_next
    return None if found is None else place_in(*found)


def at_work(frame: FrameType | None, is_own: IsOwn) -> Place | None:
    """The author's line that a thread is at: the innermost one on the stack that ends with ``frame``."""
    while frame is not None:
        if is_own(frame):
            return place_in(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return None


def waiting(coroutine: Any, is_own: IsOwn) -> Place | None:
    """The author's line at which a coroutine waits: the innermost one of those that await each other."""
    found = None
    while coroutine is not None:
        if isinstance(coroutine, asyncio.Task):
            coroutine = coroutine.get_coro()
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and is_own(frame):
            found = place_in(frame.f_code, frame.f_lineno)
        coroutine = getattr(coroutine, "cr_await", None)
    return found


def close_unawaited(error: BaseException) -> None:
    """Close the coroutine that ``asyncio.run`` was given and would not run, since a loop runs in this thread already.

    Python would warn of it otherwise, some time later, as if it were ours.
    """
    traceback = error.__traceback__ if isinstance(error, RuntimeError) else None
    while traceback is not None:
        code, given = traceback.tb_frame.f_code, traceback.tb_frame.f_locals.get("main")
        if code.co_filename == _ASYNCIO_RUN and inspect.iscoroutine(given):
            if inspect.getcoroutinestate(given) == inspect.CORO_CREATED:
                given.close()
            return
        traceback = traceback.tb_next


def class_of(error: BaseException) -> str:
    """The exception's class, with those it came from: ``ValueError (from KeyError)``."""
    causes = [_name(cause) for cause in _causes(error)]
    return _name(error) + (f" (from {', from '.join(causes)})" if causes else "")


def of_file(code: CodeType) -> IsOwn:
    """The frames of the module that ``code`` stands in."""
    return lambda frame: frame.f_code.co_filename == code.co_filename


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    for _ in range(MAX_CAUSES):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None or id(cause) in seen:
            return
        seen.add(id(cause))
        yield cause
        error = cause


def _name(error: BaseException) -> str:
    name = _class_name(type(error))
    if isinstance(error, BaseExceptionGroup):
        kinds = sorted({_class_name(type(inner)) for inner in error.exceptions})
        return f"{name} of {', '.join(kinds[:MAX_CAUSES])}"
    return name


def _class_name(kind: type) -> str:
    """The class's name, cut to what a name may hold: somebody may have made the class while running."""
    text = kind.__qualname__.replace("<locals>.", "")
    if kind.__module__ not in ("builtins", "__main__"):
        text = f"{kind.__module__}.{text}"
    return "".join(c for c in text if c.isidentifier() or c.isdigit() or c == ".")[:MAX_CLASS_CHARS] or "an exception"


def shown_file(file: str) -> str:
    """The file's name below the folder that Python finds it in, or below the working directory; of any other its last
    two parts.  Where somebody's host keeps its files is nobody else's business.
    """
    path = Path(file)
    if not path.is_absolute():
        return file
    folders = [Path(entry) for entry in sys.path]
    with suppress(OSError):  # the working directory is gone
        folders = [folder.absolute() for folder in (*folders, Path())]
    inside = max((f for f in folders if path.is_relative_to(f)), key=lambda folder: len(folder.parts), default=None)
    if inside is None or inside == Path(inside.anchor):
        return str(Path("…", *path.parts[-2:]))
    return str(path.relative_to(inside))


def source_line(file: str, line: int) -> str:
    """The text of that line, cut to a length; empty where the file cannot be read."""
    text = linecache.getline(file, line).strip()
    return text if len(text) <= MAX_SOURCE_CHARS else text[: MAX_SOURCE_CHARS - 1] + "…"
