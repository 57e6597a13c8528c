"""What a comparison finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

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


class Verifier(Protocol):
    """What a verification needs, whatever the job: ``Comparer`` for two tables, ``InPlaceComparer`` for one."""

    async def agree_on_hashes(self) -> None:
        """Ask the servers what they can agree on.  Once, and again after connecting again."""
        ...

    async def digests(self, after: KeyValue | None, to: KeyValue) -> Digests:
        """Both sides of ``(after, to]`` as a whole."""
        ...

    async def narrow(self, after: KeyValue | None, to: KeyValue) -> list[Suspect]:
        """The rows of ``(after, to]`` that seem to differ."""
        ...

    async def look(self, keys: Sequence[KeyValue]) -> list[Look]:
        """These rows, now; one answer for each key, in their order."""
        ...

    async def repair(self, looks: Sequence[Look]) -> list[bool]:
        """Make the target's rows equal to the source's, in the transaction that the caller has begun at the target;
        says for each whether it was written.
        """
        ...

    async def release(self) -> None:
        """To be called when that transaction has ended, in whatever way."""
        ...
