"""Finding the function that a job names, where that is allowed.

A name in a spec, or in a ledger that others write, is no permission: importing a module runs it.  So what the operator
of this process allows is looked at first, and nothing is imported for what is not on that list.

A module is imported once for each process: a daemon that has loaded one goes on with it until it is started again.
It is imported in a thread of its own, which nobody joins: one that hangs there is left behind, and keeps neither others
from being loaded nor the process from ending.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Final

from engine.errors import TransformNotAllowed, TransformNotLoaded
from engine.transform.failures import IsOwn, Place, at_work, class_of, innermost, shown_file, source_line
from engine.transform.reference import ANY_FUNCTION, split

if TYPE_CHECKING:  # numpy is loaded only where something is allowed
    from engine.transform.declare import Transform

_NAME: Final = r"[^\W\d]\w*"
_NOT_IN_MODULE: Final = re.compile(rf"cannot import name '{_NAME}' from '{_NAME}(?:\.{_NAME})*'")  # its path follows

IMPORT_LIMIT_S: Final = 60.0
"""What importing one module may take, all that it imports included."""

_importing: Final = threading.Lock()
"""``sys.path`` and ``sys.stdout`` are the process's: one at a time changes them."""


def allows(reference: str, patterns: Collection[str]) -> bool:
    """True when one of ``patterns`` (``module:function`` or ``module:*``) names ``reference``."""
    _no_single(patterns)
    named = split(reference)
    return named is not None and (reference in patterns or f"{named[0]}:{ANY_FUNCTION}" in patterns)


def load(reference: str, allowed: Collection[str], *, search: Path | None = None) -> Transform:
    """The transform called ``reference`` (``module.path:function``).  Imports its module, so it may take seconds.

    ``allowed``: patterns.  ``module:*`` is for the functions that the module defines; one that it has from elsewhere
    takes a pattern of its own.  ``search``: a folder where modules are looked for that are found nowhere else, while
    this one is imported.  Raises ``TransformNotAllowed`` before anything is imported, and ``TransformNotLoaded`` with
    the author's own line.
    """
    named = split(reference)
    if named is None:
        raise TransformNotLoaded(f"{_cut(reference)!r} names no function", hint="transform: package.module:function")
    if not allows(reference, allowed):
        raise TransformNotAllowed(
            f"transform {reference} is not allowed here",
            hint="whoever runs this process allows it: --allow-transform on the command line, [allow] transforms in a"
            " daemon's configuration",
        )
    name, function = named
    module = _import(reference, name, search)
    transform = _function(module, reference, function, search)
    home = getattr(transform.function, "__module__", None)
    if reference not in allowed and home != module.__name__:
        raise TransformNotAllowed(
            f"transform {reference} is not allowed here: {name}:{ANY_FUNCTION} is for functions that the"
            f" module defines, and it has this one from {_cut(str(home))}",
            hint=f"allow {reference} by its name, or name it where it is defined",
        )
    return transform


def _no_single(patterns: Collection[str]) -> None:
    if isinstance(patterns, str):  # `in` would look for a part of the text
        raise TypeError("patterns are a collection of str, not one str")


# -- importing --------------------------------------------------------------------------------------------------------


class _Import:
    """One module being imported, in a thread of its own."""

    def __init__(self, reference: str, name: str, search: Path | None) -> None:
        self._reference, self._name, self._search = reference, name, search
        self._began = time.monotonic()
        self._done = threading.Event()
        self._failure: TransformNotLoaded | None = None
        self._module: ModuleType | None = None
        self._thread = threading.Thread(target=self._run, name=f"import of {name}", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """True from when nothing of it runs any more."""
        return self._done.is_set()

    def waited(self, within_s: float) -> ModuleType:
        """The module.  Raises ``TransformNotLoaded``, also where it is not there within that time."""
        if not self._done.wait(within_s):
            raise self.hangs()
        if self._failure is not None:
            raise self._failure
        assert self._module is not None
        return self._module

    def _run(self) -> None:
        _own.is_importing = True
        try:
            self._module = importlib.import_module(self._name)
        except BaseException as error:  # noqa: BLE001 - whatever a module does: a Ctrl-C is the main thread's
            self._failure = _not_imported(self._reference, self._name, error, self._search)
        finally:
            self._done.set()

    def hangs(self) -> TransformNotLoaded:
        """What is wrong with one that is not done in time."""
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 - documented, for just this
        place = at_work(frame, _of_package(self._name))
        at = f"; it is at {place.shown}" if place is not None else ""
        return TransformNotLoaded(
            f"transform {self._reference}: {self._name} has not been imported after"
            f" {time.monotonic() - self._began:,.0f} s{at}",
            hint="what takes long belongs into setup=, which may take 300 s; a process that has begun such an import"
            " is to be started again",
        )


_own: Final = threading.local()
"""``is_importing``: in a thread of ours, where a module may load another."""

_hanging: Final[dict[str, _Import]] = {}


def _import(reference: str, name: str, search: Path | None) -> ModuleType:
    if getattr(_own, "is_importing", False):  # the path and stdout are as they should be
        try:
            return importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever a module does
            failure = _not_imported(reference, name, error, search)
        raise failure  # outside: an error that is kept holds no frames of the module
    if not _importing.acquire(timeout=IMPORT_LIMIT_S):
        raise TransformNotLoaded(
            f"transform {reference}: another module is being imported, for {IMPORT_LIMIT_S:,.0f} s now",
            hint="try again later",
        )
    try:
        before = _hanging.pop(name, None)
        if before is not None and not before.is_done:
            _hanging[name] = before
            raise before.hangs()
        with _searched(name, search), redirect_stdout(sys.stderr):  # stdout is for the command's own data
            begun = _Import(reference, name, search)
            try:
                return begun.waited(IMPORT_LIMIT_S)
            finally:
                if not begun.is_done:
                    _hanging[name] = begun
    finally:
        _importing.release()


@contextmanager
def _searched(name: str, search: Path | None) -> Iterator[None]:
    """Modules are looked for in ``search`` too, last: it can hide nothing that is installed, nor add to it."""
    place = None if search is None else str(search.absolute())
    if place is None or place in sys.path or _is_elsewhere(name.partition(".")[0], place):
        yield
        return
    sys.path.append(place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the module has changed it itself
            sys.path.remove(place)


def _is_elsewhere(top: str, place: str) -> bool:
    """True for a package that is found without ``place``: what it may import is not for that folder to say."""
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):  # it is loaded, and does not say from where
        return True
    if found is None:
        return False
    homes = [found.origin] if found.has_location and found.origin else list(found.submodule_search_locations or ())
    return not any(Path(home).is_relative_to(place) for home in homes)


def _not_imported(reference: str, name: str, error: BaseException, search: Path | None) -> TransformNotLoaded:
    what = class_of(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None and _is_part(error.name, name):
        where = f" and {search.absolute()}" if search is not None else ""
        top = sys.modules.get(name.partition(".")[0])
        return TransformNotLoaded(
            f"transform {reference}: there is no module {error.name!r}",
            hint=(_hidden(top, search) if top is not None else "")
            or f"it is looked for among the installed packages, in PYTHONPATH{where}: install it there, or set"
            " PYTHONPATH to the folder that holds it",
        )
    what += _own_words(error)
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        what += ", which ends a program,"
    if _is_declaration_error(error):
        what = str(error)  # our own words
    place = _syntax_error(error) or innermost(error.__traceback__, _of_package(name))
    at = f" at {place.shown}" if place is not None else ""
    return TransformNotLoaded(f"transform {reference} cannot be imported: {what}{at}")


def _own_words(error: BaseException) -> str:
    """What Python says of a name or a line that is wrong: no row is there yet, and no other text gets through."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f": no module named {_cut(error.name)!r}"
    if isinstance(error, ImportError):
        found = _NOT_IN_MODULE.match(str(error.msg))
        return f": {_cut(found[0])}" if found else f" ({_cut(error.name)})" if error.name else ""
    if isinstance(error, SyntaxError) and error.filename is not None and error.msg:
        return f": {_cut(error.msg)}"
    return ""


def _is_part(missing: str, name: str) -> bool:
    """True for the module that was asked for, or a package on the way to it."""
    return f"{name}.".startswith(f"{missing}.")


def _is_declaration_error(error: BaseException) -> bool:
    from engine.transform.declare import DeclarationError  # numpy comes with it

    return isinstance(error, DeclarationError)


def _syntax_error(error: BaseException) -> Place | None:
    if not isinstance(error, SyntaxError) or error.filename is None:
        return None
    line = error.lineno or 0
    return Place(shown_file(error.filename), line, "its module", source_line(error.filename, line))


def _of_package(name: str) -> IsOwn:
    """The frames of the modules of that package: which stands among others' where it is installed."""
    package = name.partition(".")[0]

    def is_own(frame: FrameType) -> bool:
        return str(frame.f_globals.get("__name__", "")).partition(".")[0] == package

    return is_own


def _function(module: ModuleType, reference: str, name: str, search: Path | None) -> Transform:
    from engine.transform.declare import Transform  # numpy comes with it, and is wanted from here on

    found = module.__dict__.get(name)
    if isinstance(found, Transform):
        return found.called(reference)
    file = shown_file(getattr(module, "__file__", None) or "no file")
    if found is None:
        known = sorted(key for key, value in module.__dict__.items() if isinstance(value, Transform))
        has = f"its transforms: {', '.join(known)}" if known else "it has no transforms"
        raise TransformNotLoaded(
            f"transform {reference}: {module.__name__} ({file}) has no {name!r}; {has}",
            hint=_hidden(module, search),
        )
    raise TransformNotLoaded(
        f"transform {reference}: {name} in {file} is not decorated with @transform",
        hint=_hidden(module, search) or "put @transform(reads=[…], writes=[…]) before the function",
    )


def _hidden(module: ModuleType, search: Path | None) -> str:
    """What to do where the folder that is searched last holds a module of that name too, and another was taken."""
    top = module.__name__.partition(".")[0]
    file = getattr(module, "__file__", None)
    homes = [file] if file is not None else list(getattr(module, "__path__", ()))  # a folder without an __init__.py
    if search is None or any(Path(home).is_relative_to(search.absolute()) for home in homes):
        return ""
    if not (search / f"{top}.py").exists() and not (search / top).is_dir():
        return ""
    whose = "the standard library" if top in sys.stdlib_module_names else "an installed package"
    return f"{search.absolute()} has a {top!r} too, but the name is taken by {whose}: give yours another"


def _cut(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"
