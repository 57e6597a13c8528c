"""Finding the function that a job names, where that is allowed.

A name in a spec, or in a ledger that others write, is no permission: importing a module runs it.  So what the operator
of this process allows is looked at first, and nothing is imported for what is not on that list.

A module is imported once for each process: a daemon that has loaded one goes on with it until it is started again.
"""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Final

from engine.errors import TransformNotAllowed, TransformNotLoaded
from engine.transform.failures import IsOwn, Place, class_of, innermost, shown_file, source_line

if TYPE_CHECKING:  # numpy is loaded only where something is allowed
    from engine.transform.declare import Transform

_NAME: Final = r"[^\W\d]\w*"
_REFERENCE: Final = re.compile(rf"(?P<module>{_NAME}(?:\.{_NAME})*):(?P<function>{_NAME})", re.ASCII)
ANY_FUNCTION: Final = "*"

_importing: Final = threading.RLock()
"""``sys.path`` is the process's: one at a time changes it.  Again by the same thread: a module may load another."""


def allows(reference: str, patterns: Collection[str]) -> bool:
    """True when one of ``patterns`` (``module:function`` or ``module:*``) names ``reference``."""
    found = _REFERENCE.fullmatch(reference)
    return found is not None and (reference in patterns or f"{found['module']}:{ANY_FUNCTION}" in patterns)


def load(reference: str, allowed: Collection[str], *, search: Path | None = None) -> Transform:
    """The transform called ``reference`` (``module.path:function``).  Imports its module, so it may take seconds.

    ``search``: a folder where modules are looked for after everywhere else, while this one is imported.  Raises
    ``TransformNotAllowed`` before anything is imported, and ``TransformNotLoaded`` with the author's own line.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise TransformNotLoaded(f"{_cut(reference)!r} names no function", hint="transform: package.module:function")
    if not allows(reference, allowed):
        raise TransformNotAllowed(
            f"transform {reference} is not allowed here",
            hint="whoever runs this process allows it: --allow-transform on the command line, [allow] transforms in a"
            " daemon's configuration",
        )
    module = _import(reference, found["module"], search)
    return _function(module, reference, found["function"], search)


def _import(reference: str, name: str, search: Path | None) -> ModuleType:
    with _importing, _searched(search), redirect_stdout(sys.stderr):  # stdout is for the command's own data
        try:
            return importlib.import_module(name)
        except KeyboardInterrupt:
            raise  # somebody's Ctrl-C: the module's own would be one as well
        except BaseException as error:  # noqa: BLE001 - whatever a module does while it is imported
            failure = _not_imported(reference, name, error, search)
    raise failure  # outside: an error that is kept holds no frames of the module


@contextmanager
def _searched(search: Path | None) -> Iterator[None]:
    """Modules are looked for in ``search`` too, last: it can hide nothing that is installed."""
    place = None if search is None else str(search.absolute())
    if place is None or place in sys.path:
        yield
        return
    sys.path.append(place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the module has changed it itself
            sys.path.remove(place)


def _not_imported(reference: str, name: str, error: BaseException, search: Path | None) -> TransformNotLoaded:
    what = class_of(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None and _is_part(error.name, name):
        where = f" and {search.absolute()}" if search is not None else ""
        return TransformNotLoaded(
            f"transform {reference}: there is no module {error.name!r}",
            hint=f"it is looked for among the installed packages, in PYTHONPATH{where}: install it there, or set"
            " PYTHONPATH to the folder that holds it",
        )
    if isinstance(error, ImportError) and error.name:
        what += f" ({_cut(error.name)})"
    if isinstance(error, SystemExit):
        what += ", which ends a program,"
    if _is_declaration_error(error):
        what = str(error)  # our own words
    place = _syntax_error(error) or innermost(error.__traceback__, _of_package(name))
    at = f" at {place.shown}" if place is not None else ""
    return TransformNotLoaded(f"transform {reference} cannot be imported: {what}{at}")


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
    if search is None or (file is not None and Path(file).is_relative_to(search.absolute())):
        return ""
    if not (search / f"{top}.py").exists() and not (search / top).is_dir():
        return ""
    whose = "the standard library" if top in sys.stdlib_module_names else "an installed package"
    return f"{search.absolute()} has a {top!r} too, but the name is taken by {whose}: give yours another"


def _cut(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"
