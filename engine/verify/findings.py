"""What a comparison finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from engine.db.database import STATEMENT_TIMEOUT_S
from engine.model import KeyValue

Kind = Literal["changed", "missing", "extra"]
"""``changed``: on both sides, with other values; ``missing``: not at the target; ``extra``: not at the source."""

READ_DEADLINE_S: Final = STATEMENT_TIMEOUT_S + 15.0
"""How long a statement may take by our clock: longer than the server's own time-out, for a server that stays silent."""


@dataclass(frozen=True, slots=True)
class Digests:
    """Both sides of a range as a whole.  ``equal``: the rows are, as far as their hashes can tell (64 bits a row)."""

    rows_source: int
    rows_target: int
    equal: bool


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row that seemed to differ.  ``key`` is in the order of the job's key, its texts those of the target's types.

    A mark identifies the version of a row that was seen; None: there was none.
    """

    key: KeyValue
    kind: Kind
    source_mark: str | None
    target_mark: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """One row as both sides have it now.  ``kind`` None: they agree.

    ``columns`` are those in which a changed row differs; none when its expressions cannot be evaluated at all.
    """

    key: KeyValue
    kind: Kind | None
    columns: tuple[str, ...]
    source_mark: str | None
    target_mark: str | None
