"""How a transform is named: ``module.path:function``; and what an operator allows: that, or ``module.path:*``.

Without numpy: specs and command lines are checked by these before anybody knows whether a transform will be loaded.
"""

from __future__ import annotations

import re
from typing import Final

NAME: Final = "[A-Za-z_][A-Za-z0-9_]*"
_MODULE: Final = rf"{NAME}(\.{NAME})*"

ANY_FUNCTION: Final = "*"

TRANSFORM_PATTERN: Final = f"^{_MODULE}:{NAME}$"
"""Of what a spec names: one function of one module.  For JSON Schema, as ``ALLOWED_PATTERN``."""

ALLOWED_PATTERN: Final = rf"^{_MODULE}:(\*|{NAME})$"
"""Of what an operator allows: one function, or every transform of one module."""

# Not the patterns themselves: to Python a text may have a line's end behind what "$" stands for.
_REFERENCE: Final = re.compile(f"({_MODULE}):({NAME})")
_ALLOWED: Final = re.compile(rf"{_MODULE}:(\*|{NAME})")


def split(reference: str) -> tuple[str, str] | None:
    """The module and the function that a reference names; None where it is none."""
    found = _REFERENCE.fullmatch(reference)
    return None if found is None else (found[1], found[3])


def is_allowable(pattern: str) -> bool:
    """True for what an operator may write: ``module.path:function`` or ``module.path:*``."""
    return _ALLOWED.fullmatch(pattern) is not None
