"""From plain data to a ``JobSpec``, with every problem at once.

A file is checked in three steps whose problems add up: its text (``document``), its keys (known, available, together
allowed), its values (the models).  A later step skips what an earlier one complained about, so that one mistake is one
problem.

Who will read a spec decides how it may name a database: a command of this terminal takes connection strings, a daemon
takes the names that its operator has configured (``Purpose``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from engine.errors import Problem, SpecError, UsageError
from engine.spec.document import MAX_BYTES, Document, Path, read_document
from engine.spec.dsn import Dsn
from engine.spec.fields import Reading
from engine.spec.keys import EMPTY_HINT, checked_keys
from engine.spec.misfit import Misfit
from engine.spec.models import JobSpec
from engine.spec.references import names_of_operators, with_references, without_references, without_variables
from engine.spec.rules import contradictions
from engine.spec.signals import NAMED, SignalSpec
from engine.spec.transforms import TransformRights, by_hand

if TYPE_CHECKING:  # pydantic itself does not offer the type, and we depend on nothing below it
    from pydantic_core import ErrorDetails

_LEDGER: Final = "the ledger"


class Purpose(Enum):
    """Who reads the spec, and so what its names mean."""

    HAND = auto()  # a command of this terminal: connection strings, ${VAR}; no names of an operator's
    DAEMON = auto()  # a daemon: names of its operator's; no connection strings, no ${VAR}
    EITHER = auto()  # only to be checked: a daemon's if it holds any name of an operator's
    LEDGER = auto()  # what the ledger keeps: nothing is resolved or completed


def load_spec(path: str | os.PathLike[str], env: Mapping[str, str], *, purpose: Purpose = Purpose.HAND) -> JobSpec:
    """The spec in a YAML or JSON file; by hand, ``${VAR}`` in a ``dsn`` is taken from ``env``.

    Raises ``SpecError`` with every problem, and ``UsageError`` when the file cannot be read at all.
    """
    try:
        with FilePath(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read the spec {os.fspath(path)}: {error.strerror}",
            hint="check the path; backfill init writes a first spec",
        ) from error
    return parse_spec(content, env, file=os.fspath(path), purpose=purpose)


def parse_spec(
    content: bytes | str, env: Mapping[str, str], *, file: str = "", purpose: Purpose = Purpose.HAND
) -> JobSpec:
    """The spec in the content of a YAML or JSON file (UTF-8).  Raises ``SpecError`` with every problem."""
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    if len(raw) > MAX_BYTES:
        raise SpecError(
            [Problem("", f"is larger than {MAX_BYTES // 2**20} MiB", "a spec is a page of text")], file=file
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError([Problem("", "is not UTF-8 text", "save the file as UTF-8", line, 1)], file=file) from None
    document = read_document(text)
    spec = build(document, env, purpose=purpose)
    if spec is None:
        raise SpecError(sorted(document.problems, key=lambda problem: (problem.line, problem.column)), file=file)
    return spec


def spec_from_ledger(
    data: Mapping[str, Any],
    *,
    source_dsn: Dsn | None,
    target_dsn: Dsn | None,
    signals: Mapping[str, SignalSpec] | None,
    transforms: TransformRights | None,
) -> JobSpec:
    """See ``JobSpec.from_ledger``."""
    if not isinstance(data, Mapping):
        raise SpecError([Problem("", "is not a mapping of keys to values")], file=_LEDGER)
    plain = dict(data)
    for side, dsn in (("source", source_dsn), ("target", target_dsn)):
        endpoint = plain.get(side)
        if isinstance(endpoint, Mapping):
            plain[side] = {key: value for key, value in endpoint.items() if key != "dsn"} | (
                {"dsn": dsn} if dsn else {}
            )
    document = Document(data=plain)
    spec = build(document, {}, purpose=Purpose.LEDGER, signals=signals, transforms=transforms)
    if spec is None:
        raise SpecError(document.problems, file=_LEDGER)
    return spec


def build(
    document: Document,
    env: Mapping[str, str],
    *,
    purpose: Purpose = Purpose.HAND,
    signals: Mapping[str, SignalSpec] | None = None,
    transforms: TransformRights | None = None,
) -> JobSpec | None:
    """The spec that ``document`` holds, or None after adding what is wrong to its problems.

    What a person wrote is completed: by hand a connection string that is missing (the source's from ``env``, the
    target's from the source's), for a daemon the target's connection.  ``signals``: the operator's, where known.
    ``transforms``: those that may be loaded; what a person names by hand may be, and is looked for beside them.
    """
    if not isinstance(document.data, Mapping):
        if not document.problems:
            document.report(
                (),
                "is empty" if document.data is None else "is not a mapping of keys to values",
                "backfill init writes a first spec; backfill schema describes all keys",
            )
        return None
    data = checked_keys(document, document.data, JobSpec, ())
    if purpose is Purpose.EITHER:
        purpose = Purpose.DAEMON if names_of_operators(data) else Purpose.HAND
    if purpose is Purpose.HAND:
        data = without_references(document, without_variables(document, data))
        data = _with_connections(document, data, env)
        named = data.get("transform")
        transforms = by_hand(named, FilePath.cwd()) if isinstance(named, str) else None
    elif purpose is Purpose.DAEMON:
        data = with_references(document, without_variables(document, data, works_in=()))
    for rule in contradictions(document.data.keys()):
        document.report((rule.path,), rule.message, rule.hint, key=True)
    _check_chunk(document, document.data.get("chunk"))
    _check_signals(document, document.data.get("pace"))
    spec: JobSpec | None = None
    try:
        spec = JobSpec.model_validate(data, context=Reading(env, signals, transforms))
    except ValidationError as error:
        _report_values(document, error)
    return None if document.problems else spec


def _with_connections(document: Document, data: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """Resolve both connection strings once: the target's default is the source's."""
    data = dict(data)
    source, target = data.get("source"), data.get("target")
    fallback: Any = None
    if isinstance(source, dict):
        fallback = _resolved(document, source.get("dsn"), ("source", "dsn"), env)
        data["source"] = _with_dsn(source, fallback)
    if isinstance(target, dict):
        own = _resolved(document, target["dsn"], ("target", "dsn"), env) if "dsn" in target else fallback
        data["target"] = _with_dsn(target, own)
    return data


def _check_chunk(document: Document, chunk: Any) -> None:
    """Compare the two limits here, where a mistake elsewhere in ``chunk`` does not hide this one."""
    low, high = (chunk.get("min_rows"), chunk.get("max_rows")) if isinstance(chunk, Mapping) else (None, None)
    if isinstance(low, int) and isinstance(high, int) and low > high:
        document.report(("chunk", "min_rows"), "is larger than max_rows", "lower it, or raise max_rows")


def _check_signals(document: Document, pace: Any) -> None:
    """Look for the second of two signals with one name; like ``_check_chunk``, whatever else is wrong."""
    signals = pace.get("signals") if isinstance(pace, Mapping) else None
    seen: set[str] = set()
    for number, entry in enumerate(signals if isinstance(signals, list) else ()):
        name, path = _name_of(entry)
        if name in seen:
            place, hint = ("pace", "signals", number, *path), "each signal comes once, and has a name of its own"
            document.report(place, "is given twice", hint, key=bool(path))
        elif name is not None:
            seen.add(name)


def _name_of(entry: Any) -> tuple[str | None, Path]:
    """The name of a signal in a list, if it has one, and where in the entry it stands."""
    if isinstance(entry, str):
        return entry, ()
    if not isinstance(entry, Mapping) or len(entry) != 1:
        return None, ()
    kind, body = next(iter(entry.items()))
    if kind not in list(NAMED):
        return kind, (kind,)
    name = body.get("name") if isinstance(body, Mapping) else None
    return (name if isinstance(name, str) else None), (kind, "name")


def _with_dsn(endpoint: dict[str, Any], dsn: Any) -> dict[str, Any]:
    return {key: value for key, value in endpoint.items() if key != "dsn"} | ({} if dsn is None else {"dsn": dsn})


def _resolved(document: Document, text: Any, path: Path, env: Mapping[str, str]) -> Any:
    """A ``Dsn``; None after reporting why there is none; anything but text as it stands, for the models to refuse."""
    if text is not None and not isinstance(text, str):
        return text
    try:
        return Dsn.from_environment(env) if text is None else Dsn.resolve(text, env)
    except Misfit as misfit:
        document.report(path, misfit.message, misfit.hint)
        return None


def _report_values(document: Document, error: ValidationError) -> None:
    for detail in error.errors(include_url=False, include_input=False):
        is_key = detail["loc"][-1:] == ("[key]",)
        path = detail["loc"][:-1] if is_key else detail["loc"]
        if not document.has_problem(path):
            document.report(path, *worded(detail), key=is_key or detail["type"] == "missing")


def worded(detail: ErrorDetails) -> tuple[str, str]:
    """What is wrong and what to do, in the words of this project and without the value."""
    context = detail.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, Misfit):
        return cause.message, cause.hint
    kind = detail["type"]
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(str(detail["loc"][0]), ("is empty", EMPTY_HINT))
    if kind in ("greater_than_equal", "less_than_equal", "greater_than", "less_than"):
        bound = next(iter(context.values()))
        return f"is out of range: must be {_BOUNDS[kind]} {bound:g}", "backfill schema shows the range of each key"
    if kind == "literal_error":
        return f"must be {context['expected']}", "leave the key out"
    return _MESSAGES.get(kind, (str(detail["msg"]).lower(), ""))


_BOUNDS: Final = {
    "greater_than_equal": "at least",
    "less_than_equal": "at most",
    "greater_than": "more than",
    "less_than": "less than",
}
_PATTERNS: Final = {
    "name": (
        "is not a job name",
        "use up to 63 lower-case letters, digits, _ . and -, beginning with a letter or digit",
    ),
    "accept": ("is not the code of a finding", "codes look like TRIGGERS_ON_TARGET; backfill plan lists them"),
}
_WHOLE: Final = ("must be a whole number", "write digits without quotes: 4")
_LIST: Final = ("must be a list", "write [first, second]")
_MAPPING: Final = ("must be a mapping", "write key: value lines below it, or {key: value}")
_MESSAGES: Final = {
    "missing": ("is missing", "add it; backfill schema describes all keys"),
    "string_type": ("must be text", "put it in quotes"),
    "string_too_short": ("is empty", EMPTY_HINT),
    "string_too_long": ("is too long", "backfill schema shows the longest that is allowed"),
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": ("must be a number", "write digits without quotes: 20000"),
    "finite_number": ("must be a finite number", "leave the key out for no limit"),
    "tuple_type": _LIST,
    "mapping_type": _MAPPING,
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "enum": ("is not one of the known words", "backfill schema lists them"),
}
