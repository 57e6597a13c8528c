"""Values as SQL text, for the statements that take no parameters (COPY, and settings in utility statements).

Under the pinned session setting ``standard_conforming_strings = on`` a plain ``'…'`` gives a backslash no meaning.  A
value with a backslash is still written as ``E'…'`` with the backslash doubled, so that the text means the same
whatever that setting is; this is what the server's ``quote_literal`` does too, and the tests hold us to it.
"""

from __future__ import annotations

from collections.abc import Sequence


def literal(text: str) -> str:
    """``text`` as a string literal of unknown type.

    Raises ``ValueError`` for what no PostgreSQL text can hold: a NUL character, or half of a surrogate pair (which
    UTF-8 cannot carry).
    """
    if "\0" in text:
        raise ValueError("a text value cannot hold a NUL character")
    if not text.isascii():
        _check_encodable(text)
    quoted = text.replace("'", "''")
    if "\\" in quoted:
        # The space keeps the E from joining a preceding word: quote_literal writes it for the same reason.
        return " E'" + quoted.replace("\\", "\\\\") + "'"
    return f"'{quoted}'"


def text_array(values: Sequence[str]) -> str:
    """``values`` as a ``text[]``, in order: ``ARRAY['a', 'b']::text[]``."""
    return f"ARRAY[{', '.join(literal(value) for value in values)}]::text[]"


def _check_encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # The error's own text would show the value.
        raise ValueError(f"character {error.start + 1} of a text value cannot be encoded as UTF-8") from None
