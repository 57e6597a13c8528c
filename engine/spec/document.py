"""The text of a spec as plain data, with the line and column of every key and value.

YAML is read event by event into dicts, lists and scalars.  What a spec never needs is refused as it is met: anchors
and aliases (a few lines of them grow to gigabytes), tags, a second document, a key given twice, deep nesting, huge
texts.  Scalars follow YAML 1.2: ``on`` and ``2026-12-01`` are text, only ``true`` and ``false`` are booleans.  JSON is
read by the same reader, so that it has lines and columns too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from engine.errors import Problem

MAX_BYTES: Final = 2**20
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 20_000
MAX_POINTER_LENGTH: Final = 500

Path = tuple[str | int, ...]
Place = tuple[int, int]
"""Line and column, both from 1."""

_NULL: Final = re.compile(r"(?:~|null|Null|NULL)?\Z")
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}\Z")
_NUMBER: Final = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?\Z")
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# YAML 1.1 folds these into a space inside of strings, JSON and YAML 1.2 keep them: neither is guessed.
_SEPARATOR: Final = re.compile("[\x85\u2028\u2029]")
IMPOSSIBLE: Final = re.compile("[\0\ud800-\udfff]")
IMPOSSIBLE_TEXT: Final = ("holds a NUL or half a character", "no database takes it")
_ECHOED_KEY: Final = re.compile(r"[^\W\d][\w .-]{0,62}\Z")


@dataclass(slots=True)
class Document:
    """Plain data and where it stood.  ``data`` is None when the text holds none; ``problems`` say why."""

    data: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _reported: set[str] = field(default_factory=set)

    def place_of(self, path: Path, *, key: bool = False) -> Place:
        """Where the value (or its key) at ``path`` stands, or the nearest thing around it; (0, 0) without a text."""
        places = self.keys if key else self.values
        while path not in places and path:
            path = path[:-1]
            places = self.values
        return places.get(path, (0, 0))

    def has_problem(self, path: Path) -> bool:
        """True when something was reported at exactly ``path``: one mistake is one problem."""
        return path_text(path) in self._reported

    def add(self, problem: Problem) -> None:
        """Add a problem whose place is known."""
        self.problems.append(problem)
        self._reported.add(problem.path)

    def report(self, path: Path, message: str, hint: str = "", *, key: bool = False) -> None:
        """Add a problem at ``path``: at its value, or at its ``key``."""
        line, column = self.place_of(path, key=key)
        self.add(Problem(path_text(path), message, hint, line, column, pointer_text(path)))


def path_text(path: Path) -> str:
    """``chunk.max_rows``, ``key[1]``.  A key that does not look like a name is not shown: it may be a secret."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _ECHOED_KEY.match(part) else "(key not shown)")
    return text


def pointer_text(path: Path) -> str:
    """The path as a JSON pointer (RFC 6901), for whoever sent the document.  One that would be very long, or that no
    answer could hold, ends early, at what holds the rest.
    """
    text = ""
    for part in path:
        if isinstance(part, str) and IMPOSSIBLE.search(part):
            break
        longer = f"{text}/{str(part).replace('~', '~0').replace('/', '~1')}"
        if len(longer) > MAX_POINTER_LENGTH:
            break
        text = longer
    return text


def read_document(text: str) -> Document:
    """Parse YAML or JSON.  Never raises: what cannot be read is in ``problems``."""
    document = Document()
    reader = _Reader(document)
    if separator := _SEPARATOR.search(text):
        hint = f'write it as "\\u{ord(separator[0]):04x}" in double quotes'
        document.add(Problem("", "holds an invisible line separator", hint, *_place_at(text, separator.start())))
        return document
    try:
        events = yaml.parse(_tabs_as_spaces(text), Loader=yaml.SafeLoader)
        document.data = reader.read(events)
    except _Refused:
        document.data = None
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark or error.context_mark)
        # The parser's own words name at most one character; its context would quote a line of the text.
        what = re.sub(r"['\"].*['\"]", "(…)", error.problem or "unreadable", flags=re.DOTALL)
        document.add(
            Problem("", f"is not valid YAML or JSON: {what}", "check quotes, brackets and indentation here", *place)
        )
    except yaml.reader.ReaderError as error:
        place = _place_at(text, error.position)
        document.add(Problem("", "holds a control character", "remove it", *place))
    except (ValueError, OverflowError, yaml.YAMLError):
        # PyYAML lets some of these through, e.g. for "\U00110000".
        line, column = reader.last_place
        document.add(Problem("", "is not valid YAML or JSON after this place", "", line, column))
    return document


class _Refused(Exception):
    """Reading further makes no sense (or no end); the reason is among the problems."""


@dataclass(slots=True)
class _Open:
    """A mapping or sequence whose end has not come yet."""

    path: Path
    container: dict[str, Any] | list[Any]
    key: str | None = None


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.last_place: Place = (1, 1)
        self._open: list[_Open] = []
        self._root: Any = None
        self._documents = 0
        self._values = 0

    def read(self, events: Iterator[Any]) -> Any:
        for event in events:
            self.last_place = _place(event.start_mark)
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    raise self._refuse("holds a second document", "one file describes one job: remove ---")
            elif isinstance(event, yaml.AliasEvent):
                raise self._refuse("holds an alias (*name)", "aliases are not allowed in a spec: write the value out")
            elif isinstance(event, (yaml.ScalarEvent, yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                self._start(event)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                self._open.pop()
        return self._root

    def _start(self, event: Any) -> None:
        if event.anchor is not None:
            raise self._refuse("holds an anchor (&name)", "anchors are not allowed in a spec: write the value out")
        if event.tag is not None and event.tag != "!":
            raise self._refuse("holds a tag (!name)", "tags are not allowed in a spec: remove it")
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._refuse(f"holds more than {MAX_VALUES} values", "a spec describes one job")
        if isinstance(event, yaml.ScalarEvent):
            self._add(event, None)
            return
        container: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        if len(self._open) == MAX_DEPTH:
            raise self._refuse(f"is nested more than {MAX_DEPTH} deep", "check the brackets")
        path = self._add(event, container)
        self._open.append(_Open(path, container))

    def _add(self, event: Any, container: dict[str, Any] | list[Any] | None) -> Path:
        """Put a scalar (``container`` None) or a new container where it belongs, and return its path."""
        if not self._open:
            self.document.values[()] = self.last_place
            self._root = self._scalar(event, ()) if container is None else container
            return ()
        parent = self._open[-1]
        if isinstance(parent.container, list):
            path = (*parent.path, len(parent.container))
            self.document.values[path] = self.last_place
            parent.container.append(self._scalar(event, path) if container is None else container)
            return path
        if parent.key is None:
            if container is not None:
                raise self._refuse("has a list or mapping as a key", "keys are plain text")
            self._set_key(parent, event)
            return parent.path
        path = (*parent.path, parent.key)
        self.document.values[path] = self.last_place
        parent.container[parent.key] = self._scalar(event, path) if container is None else container
        parent.key = None
        return path

    def _set_key(self, parent: _Open, event: Any) -> None:
        key = parent.key = self._well_formed(event.value, parent.path)
        path = (*parent.path, key)
        if key in parent.container:
            line, _ = self.document.keys[path]
            hint = f"first given in line {line}"
            problem = Problem(path_text(path), "is given twice", hint, *self.last_place, pointer_text(path))
            self.document.add(problem)
        else:
            self.document.keys[path] = self.last_place

    def _scalar(self, event: Any, path: Path) -> Any:
        text = self._well_formed(event.value, path)
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if _NULL.match(text):
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if _INTEGER.match(text):
            return int(text)
        if _NUMBER.match(text):
            number = float(text)
            return number if math.isfinite(number) else text
        return text

    def _well_formed(self, text: str, path: Path) -> str:
        """JSON writes characters beyond the basic plane as two halves; a half alone, or a NUL, no server takes."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if IMPOSSIBLE.search(text):
            self.document.add(
                Problem(path_text(path), *IMPOSSIBLE_TEXT, *self.last_place, pointer_text(path)),
            )
            return IMPOSSIBLE.sub("", text)
        return text

    def _refuse(self, message: str, hint: str) -> _Refused:
        path = self._open[-1].path if self._open else ()
        self.document.add(Problem(path_text(path), message, hint, *self.last_place, pointer_text(path)))
        return _Refused()


def _place(mark: Any) -> Place:
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _place_at(text: str, position: int) -> Place:
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def _tabs_as_spaces(text: str) -> str:
    """JSON may be indented by tabs, YAML may not.  Inside JSON strings there are no bare tabs, so none is changed."""
    if "\t" in text and text.lstrip().startswith("{"):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return text
        return text.replace("\t", " ")
    return text
