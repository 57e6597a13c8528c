"""Which tables submitted jobs may touch: patterns of the operator, matched against names as the catalogue spells them.

``schema.table``, each part a name as SQL spells it (folded to lower case unless quoted); in a part without quotes ``*``
stands for any characters.  System schemas and the ledger's own are never matched: a job that could write them could
write itself rights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from engine.spec.misfit import Misfit

_NEVER: Final = re.compile(r"pg_.*|information_schema|backfill", re.DOTALL)
_PART: Final = r'(?:"(?:[^"]|"")+"|[A-Za-z_*\x80-\U0010ffff][A-Za-z0-9_$*\x80-\U0010ffff]*)'
_PATTERN: Final = re.compile(rf"({_PART})\.({_PART})")
_FOLD: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_MAX_LENGTH: Final = 300
_HINT: Final = 'write "public.orders", "public.*" or "sales.order_*"; a name with capitals or signs in double quotes'


@dataclass(frozen=True, slots=True)
class TablePattern:
    """One entry of a connection's ``tables``."""

    text: str
    _schema: re.Pattern[str]
    _name: re.Pattern[str]

    @classmethod
    def parse(cls, text: object) -> TablePattern:
        """The pattern that ``text`` means.  Raises ``Misfit``."""
        if isinstance(text, TablePattern):
            return text
        if not isinstance(text, str):
            raise Misfit("must be text", _HINT)
        found = _PATTERN.fullmatch(text.strip()) if len(text) <= _MAX_LENGTH else None
        if found is None:
            raise Misfit("is not a pattern of schema.table", _HINT)
        return cls(text.strip(), _compiled(found[1]), _compiled(found[2]))

    def __str__(self) -> str:
        return self.text

    def matches(self, schema: str, name: str) -> bool:
        """True for a table of that name, as the catalogue spells it."""
        if _NEVER.fullmatch(schema):
            return False
        return self._schema.fullmatch(schema) is not None and self._name.fullmatch(name) is not None


def _compiled(part: str) -> re.Pattern[str]:
    if part.startswith('"'):
        return re.compile(re.escape(part[1:-1].replace('""', '"')), re.DOTALL)
    # Runs of * mean one: several in a row would only take time.
    pieces = re.split(r"\*+", part.translate(_FOLD))
    return re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
