"""Key ranges as SQL: ``(a, b) > (…) AND (a, b) <= (…)``, in the row form that a B-tree index serves directly.

A bound comes either as a ``text[]`` parameter (statements) or as a value (COPY, which takes no parameters).  Each text
is cast to its column's own type by the server, and compared under the column's own collation: a parameter carries no
collation of its own, so the column's wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.model import KeyColumn, KeyValue
from engine.sql.identifiers import ident
from engine.sql.literals import literal

Bound = Callable[[int], str]
"""The SQL text of a bound's n-th element (from 0), of type text or unknown."""


def parameter(number: int) -> Bound:
    """The bound is the ``text[]`` parameter ``$number``."""
    return lambda position: f"(${number}::text[])[{position + 1}]"


def value(key: KeyValue) -> Bound:
    """The bound is this key, rendered as literals."""
    return lambda position: literal(key[position])


def columns(key: Sequence[KeyColumn], alias: str = "") -> str:
    """The key's columns as a list, each behind ``alias.`` when given."""
    prefix = f"{alias}." if alias else ""
    return ", ".join(prefix + ident(column.name) for column in key)


def texts(key: Sequence[KeyColumn], alias: str = "") -> str:
    """The key as one ``text[]``: the form in which it travels."""
    prefix = f"{alias}." if alias else ""
    return "ARRAY[" + ", ".join(f"{prefix}{ident(column.name)}::text" for column in key) + "]"


def compare(key: Sequence[KeyColumn], operator: str, bound: Bound, alias: str = "") -> str:
    """The key against a bound.  A bound may have fewer elements than the key: pass that prefix of the columns."""
    right = ", ".join(f"({bound(n)})::{column.type_name}" for n, column in enumerate(key))
    left = columns(key, alias)
    return f"{left} {operator} {right}" if len(key) == 1 else f"({left}) {operator} ({right})"


def within(key: Sequence[KeyColumn], lo: Bound | None, hi: Bound, alias: str = "") -> str:
    """``lo < key AND key <= hi``; without ``lo``, everything up to ``hi``."""
    upper = compare(key, "<=", hi, alias)
    return upper if lo is None else f"{compare(key, '>', lo, alias)} AND {upper}"


def equal(left: Sequence[KeyColumn], left_alias: str, right: Sequence[KeyColumn], right_alias: str) -> str:
    """Both keys column by column, for a join."""
    return " AND ".join(
        f"{left_alias}.{ident(a.name)} = {right_alias}.{ident(b.name)}" for a, b in zip(left, right, strict=True)
    )
