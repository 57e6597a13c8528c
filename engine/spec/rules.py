"""Which keys of a spec go together, and which are known but cannot be used yet.

Rules look only at which keys were written, so they hold whatever else is wrong with the values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A key that does not go with the others, or is missing."""

    path: str
    message: str
    hint: str


_IN_PLACE_ONLY: Final = {
    "set": "with a target, write the expressions under `columns`",
    "done": "a copied row is done when the target has its key: leave `done` out",
    "bloat": "a table that is filled row by row does not bloat: leave it out",
}
_WITH_TARGET_ONLY: Final = {
    "columns": "in place, write the expressions under `set`; to fill another table, name the `target`",
    "on_conflict": "in place there is no second row to conflict with: leave it out, or name the `target`",
    "deletes": "in place a deleted row is gone: leave it out, or name the `target`",
}


def contradictions(given: Collection[str]) -> list[Contradiction]:
    """What is wrong with a spec in which exactly these top-level keys were written."""
    if "target" in given:
        found = [
            Contradiction(key, "works in place only, and this job has a target", hint)
            for key, hint in _IN_PLACE_ONLY.items()
            if key in given
        ]
    else:
        found = [
            Contradiction(key, "works only with a target, and this job is in place", hint)
            for key, hint in _WITH_TARGET_ONLY.items()
            if key in given
        ]
        if "set" not in given and "transform" not in given:
            found.append(
                Contradiction(
                    "set",
                    "a job in place must say which columns it fills",
                    "write `set`: {column: SQL expression}, name a `transform`, or a `target` to fill another table",
                )
            )
    return found


def _if_text(text: str) -> Callable[[object], bool]:
    return lambda value: value == text


NOT_AVAILABLE: Final[Mapping[tuple[str, ...], tuple[Callable[[object], bool], str]]] = {
    ("order",): (_if_text("physical"), "leave it at key"),
}
"""Path of each key of the contract whose feature is still to come: for which values, and what to do meanwhile."""
