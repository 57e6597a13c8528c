"""Names as SQL: always quoted, so that case, reserved words and odd characters never matter."""

from __future__ import annotations

from collections.abc import Iterable

from engine.model import TableName


def ident(name: str) -> str:
    """``name``, exactly as the catalogue spells it, as a quoted identifier.

    Raises ``ValueError`` for an empty name or one with a NUL character: neither can exist in a catalogue.  Length is
    left to the server, whose limit is a build option; a name read from the catalogue is never too long.
    """
    if not name:
        raise ValueError("an identifier cannot be empty")
    if "\0" in name:
        raise ValueError("an identifier cannot hold a NUL character")
    return '"' + name.replace('"', '""') + '"'


def idents(names: Iterable[str]) -> str:
    """Quoted identifiers, separated by a comma and a space: a column list."""
    return ", ".join(ident(name) for name in names)


def qualified(name: TableName) -> str:
    """A table's name with its schema, both quoted."""
    return f"{ident(name.schema)}.{ident(name.name)}"
