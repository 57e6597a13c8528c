"""Names of tables and columns as people write them in SQL: ``public.orders``, ``"Sales"."Order Lines"``.

As in SQL, a bare name is folded to lower case and a quoted one is taken as it stands.  Nothing is looked up here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from engine.spec.misfit import Misfit

MAX_NAME_BYTES: Final = 63  # NAMEDATALEN - 1: the server would silently cut a longer name
_PART: Final = re.compile(r'"((?:[^"]|"")*)"|([A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)')
_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_$]*\Z")
_FOLD: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_TABLE_HINT: Final = 'write schema.table; a name with capitals or signs in double quotes: "Sales"."Order Lines"'


@dataclass(frozen=True, slots=True)
class TableRef:
    """A table as the spec names it, unquoted and folded; ``schema`` None leaves it to the server's search path.

    ``str()`` writes it back, quoted only where it must be, and parses to an equal value.
    """

    schema: str | None
    name: str

    @classmethod
    def parse(cls, text: str) -> TableRef:
        """The table that ``text`` names.  Raises ``Misfit``."""
        parts = parse_names(text)
        if parts is None:
            raise Misfit("is not a table name", _TABLE_HINT)
        if len(parts) > 2:
            raise Misfit("has more than two parts", "write schema.table; the database belongs in the `dsn`")
        for part in parts:
            check_name(part)
        return cls(parts[0] if len(parts) == 2 else None, parts[-1])

    def __str__(self) -> str:
        name = quote_where_needed(self.name)
        return name if self.schema is None else f"{quote_where_needed(self.schema)}.{name}"


def parse_names(text: str) -> list[str] | None:
    """The dot-separated names of ``text``, folded as SQL does, or None when it is not a list of names."""
    names: list[str] = []
    position = 0
    text = text.strip(" ")
    while match := _PART.match(text, position):
        quoted, bare = match.groups()
        names.append(quoted.replace('""', '"') if quoted is not None else bare.translate(_FOLD))
        position = match.end()
        if position == len(text):
            return names
        if text[position] != ".":
            return None
        position += 1
    return None


def check_name(name: str) -> str:
    """``name`` itself when a server could hold it.  Raises ``Misfit``."""
    if not name.strip():
        raise Misfit("is an empty name", "give the name as the database spells it")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise Misfit(f"is longer than the {MAX_NAME_BYTES} bytes a PostgreSQL name can have", "check the spelling")
    return name


def quote_where_needed(name: str) -> str:
    """``name`` in double quotes unless SQL reads it the same without.  For people and parsers of this room;
    statements are composed by ``engine.sql``, which always quotes.
    """
    return name if _PLAIN.match(name) else '"' + name.replace('"', '""') + '"'
