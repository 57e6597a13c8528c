"""A spec that came as JSON from somebody who is not the operator: plain data, of any shape and size.

What the reader of files refuses on its way (depth, number of values, characters that no database takes) is looked for
here first, without recursion; then the spec is checked as one for a daemon.
"""

from __future__ import annotations

import math
from typing import Any, Final

from engine.errors import Problem, SpecError
from engine.spec.document import IMPOSSIBLE, IMPOSSIBLE_TEXT, MAX_DEPTH, Document, Path
from engine.spec.load import Purpose, build
from engine.spec.models import JobSpec

MAX_COLUMNS: Final = 1_600
"""Of the widest table."""

MAX_ENTRIES: Final = 100
"""Of anything else that may have several: windows, signals, accepted findings."""

MAX_TEXT: Final = 100_000
"""Characters of one text: a long expression has a few thousand."""

MAX_PROBLEMS: Final = 100
_COLUMNS: Final = (("set",), ("columns",))
_NUMBER_LIMIT: Final = 1e18  # no key of a spec takes a larger one


def read_submitted(data: object) -> JobSpec:
    """The spec in plain data as JSON has it.  Raises ``SpecError`` with every problem, each with its pointer."""
    document = Document(data=data)
    _check_shape(document, data)
    spec = None if document.problems else build(document, {}, purpose=Purpose.DAEMON)
    if spec is None:
        raise SpecError(shortened(document.problems))
    return spec


def shortened(problems: list[Problem]) -> list[Problem]:
    """The first problems: an answer has an end."""
    return problems[:MAX_PROBLEMS]


def _check_shape(document: Document, data: object) -> None:
    waiting: list[tuple[Path, object]] = [((), data)]
    while waiting and len(document.problems) < MAX_PROBLEMS:
        path, value = waiting.pop()
        if len(path) > MAX_DEPTH:
            document.report(path[:1], f"is nested more than {MAX_DEPTH} deep", "check the brackets")
            return
        most = MAX_COLUMNS if path in _COLUMNS else MAX_ENTRIES
        if isinstance(value, (dict, list)) and len(value) > most:
            document.report(path, f"has more than {most} entries", "a spec describes one job")
        elif isinstance(value, dict):
            for key in value:
                _check_text(document, (*path, key), key)
            waiting += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, number), item) for number, item in enumerate(value)]
        else:
            _check_scalar(document, path, value)


def _check_scalar(document: Document, path: Path, value: Any) -> None:
    if isinstance(value, str):
        _check_text(document, path, value)
    elif isinstance(value, float) and not math.isfinite(value):
        document.report(path, "must be a finite number", "leave the key out for no limit")
    elif isinstance(value, (int, float)) and abs(value) > _NUMBER_LIMIT:
        document.report(path, "is out of range", "backfill schema shows the range of each key")
    elif not isinstance(value, (int, float, type(None))):
        document.report(path, "is no value of JSON")


def _check_text(document: Document, path: Path, text: str) -> None:
    if len(text) > MAX_TEXT:
        document.report(path, f"is longer than {MAX_TEXT} characters", "a spec is a page of text")
    elif IMPOSSIBLE.search(text):
        document.report(path, *IMPOSSIBLE_TEXT)
