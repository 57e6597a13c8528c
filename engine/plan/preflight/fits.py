"""Whether every value of one type can become a value of another.

Types are told by the names that ``format_type`` gives them, modifiers included, because OIDs of the user's own types
differ between databases.  A rule that is missing here counts as "narrows": the worst that follows is a warning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from engine.model import Column

_TYPE: Final = re.compile(r'(?P<head>(?:"[^"]*"|[^("])+)(?:\((?P<modifiers>[^)]*)\))?(?P<tail>.*)')

_ARRAY: Final = "[]"
_STRINGS: Final = frozenset({"text", "character varying", "character", "name"})
_FREE_STRINGS: Final = frozenset({"text", "character varying"})  # without a length, they take any text

# To a wider type of the same family, with nothing lost for any value.
_WIDENS: Final = frozenset(
    {
        ("smallint", "integer"),
        ("smallint", "bigint"),
        ("smallint", "real"),
        ("smallint", "double precision"),
        ("integer", "bigint"),
        ("integer", "double precision"),
        ("real", "double precision"),
        ("date", "timestamp without time zone"),
        ("bit", "bit varying"),
        ("cidr", "inet"),
        ("jsonb", "json"),
    }
)
# The names that pg_type has for what format_type spells as SQL does: drivers report these.
_SQL_NAMES: Final = {
    "int2": "smallint",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "bool": "boolean",
    "varchar": "character varying",
    "bpchar": "character",
    "varbit": "bit varying",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
    "time": "time without time zone",
    "timetz": "time with time zone",
}
_INTEGER_DIGITS: Final = {"smallint": 5, "integer": 10, "bigint": 19}
# The precision that a modifier-less fractional-second type has.
_SUBSECOND_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class _Type:
    base: str  # without modifiers: "character varying", "timestamp without time zone", "integer[]"
    modifiers: tuple[int, ...] | None

    @classmethod
    def read(cls, name: str) -> _Type:
        match = _TYPE.fullmatch(name)
        if match is None or match["modifiers"] is None:
            return cls(sql_name(name), None)
        base = match["head"].strip() + match["tail"]
        numbers = match["modifiers"].split(",")
        # Modifiers that are no numbers (PostGIS: geometry(Point,4326)) make the whole name one opaque type.
        if not all(n.strip().lstrip("-").isdigit() for n in numbers):
            return cls(name, None)
        return cls(sql_name(base), tuple(int(n) for n in numbers))

    def element(self) -> _Type:
        """What an array of this type holds: its elements convert one by one."""
        return _Type(self.base.removesuffix(_ARRAY), self.modifiers)


def loses(source: Column, target: Column) -> str | None:
    """What ``target`` cannot hold of the values of ``source``, in words; None when it can hold all of them."""
    if target.type_kind == "d" and target.type_name != source.type_name:
        return f"the domain {target.type_name} may refuse values of {source.type_name}"
    if source.type_kind == "d" and source.category_oid == target.type_oid and target.type_name == target.base_type:
        return None  # a domain becomes what it is made of
    if source.enum_labels and target.enum_labels:
        absent = [label for label in source.enum_labels if label not in target.enum_labels]
        if absent:
            return f"{target.type_name} lacks the labels {', '.join(absent)}"
        same = source.base_type == target.base_type
        return None if same else f"{target.type_name} is another enum, which takes the values through text only"
    return type_loses(source.type_name, target.type_name)


def type_loses(source: str, target: str) -> str | None:
    """As ``loses``, for two type names as ``format_type`` gives them."""
    ours, theirs = _Type.read(source), _Type.read(target)
    if ours.base.endswith(_ARRAY) and theirs.base.endswith(_ARRAY):
        ours, theirs = ours.element(), theirs.element()
    if theirs.modifiers is None and theirs.base in _FREE_STRINGS:
        return None
    if ours.base == theirs.base:
        return None if _modifiers_fit(ours, theirs) else f"{target} is narrower than {source}"
    if theirs.base == "numeric" and ours.base in _INTEGER_DIGITS and _integer_fits(ours, theirs):
        return None
    if ours.base in _STRINGS and theirs.base in _STRINGS:
        return None if _length(ours) <= _length(theirs) else f"{target} may be too short for {source}"
    if theirs.modifiers is None and (ours.base, theirs.base) in _WIDENS:
        return None
    return f"not every {source} may fit into {target}"


def sql_name(name: str) -> str:
    """A type's name as ``format_type`` spells it, from that or from the name in ``pg_type``."""
    return _SQL_NAMES.get(name, name)


def _length(text: _Type) -> float:
    if text.base == "name":
        return 63
    return float("inf") if text.modifiers is None else text.modifiers[0]


def _integer_fits(ours: _Type, theirs: _Type) -> bool:
    if theirs.modifiers is None:
        return True
    precision, scale = (*theirs.modifiers, 0)[:2]
    return precision - scale >= _INTEGER_DIGITS[ours.base]


def _modifiers_fit(ours: _Type, theirs: _Type) -> bool:
    """Both are the same type; do the modifiers leave as much room?"""
    if theirs.modifiers in (None, ours.modifiers):
        return True
    if theirs.base.startswith(("timestamp", "time ", "interval")):
        mine = _SUBSECOND_DIGITS if ours.modifiers is None else ours.modifiers[0]
        return theirs.modifiers[0] >= mine
    if ours.modifiers is None:
        return False
    if theirs.base == "numeric":
        precision, scale = (*ours.modifiers, 0)[:2]
        their_precision, their_scale = (*theirs.modifiers, 0)[:2]
        return their_scale >= scale and their_precision - their_scale >= precision - scale
    if theirs.base == "bit":  # exactly that many
        return False
    return theirs.modifiers[0] >= ours.modifiers[0]
