"""TOML as plain data with the line of every key, as far as a look at its lines tells."""

from __future__ import annotations

import re
import tomllib
from typing import Final

from engine.errors import Problem, SpecError
from engine.spec.document import Document, Path

_PART: Final = r"(?:[A-Za-z0-9_-]+|\"[^\"\n]*\"|'[^'\n]*')"
_PARTS: Final = re.compile(_PART)
_DOTTED: Final = rf"{_PART}(?:\s*\.\s*{_PART})*"
_TABLE: Final = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]")
_KEY: Final = re.compile(rf"\s*({_DOTTED})\s*=")
_LONG: Final = re.compile(r"\"\"\"|'''")
_WHERE: Final = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)")


def read_toml(text: str, file: str) -> Document:
    """The data of ``text``, with places.  Raises ``SpecError`` when it is not TOML."""
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = _WHERE.search(str(error))
        line, column = (int(found[1] or 0), int(found[2] or 0)) if found else (0, 0)
        # The reader's own words may quote a character or a key of the file, and a password may have become one.
        problem = Problem("", "is not TOML", "check quotes, brackets and = near here", line, column)
        raise SpecError([problem], file=file) from None
    document = Document(data=data)
    for path, place in _places(text).items():
        document.keys.setdefault(path, place)
        document.values.setdefault(path, place)
    return document


def _places(text: str) -> dict[Path, tuple[int, int]]:
    found: dict[Path, tuple[int, int]] = {}
    table: Path = ()
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not inside:
            if header := _TABLE.match(line):
                table = _path(header[1])
                found.setdefault(table, (number, header.start(1) + 1))
            elif key := _KEY.match(line):
                path = _path(key[1])
                for length in range(1, len(path) + 1):
                    found.setdefault((*table, *path[:length]), (number, key.start(1) + 1))
        for quotes in _LONG.findall(line):
            inside = "" if inside == quotes else inside or quotes
    return found


def _path(dotted: str) -> Path:
    return tuple(part[1:-1] if part[0] in "\"'" else part for part in _PARTS.findall(dotted))
