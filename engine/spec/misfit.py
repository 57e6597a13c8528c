"""The one exception of the room's small parsers, and the did-you-mean of its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

MAX_GUESSED_LENGTH: Final = 80  # nothing longer is a slip of the pen, and comparing it would take long


class Misfit(ValueError):
    """A value that does not fit its key.

    ``message`` says what is expected, ``hint`` what to do.  Neither quotes the value: it might be a secret that
    stands in the wrong place, and line and column say where it is.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` was probably meant to be, or None."""
    if len(word) > MAX_GUESSED_LENGTH:
        return None
    matches = difflib.get_close_matches(word.lower(), list(known), n=1)
    return matches[0] if matches else None
