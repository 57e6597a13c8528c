"""What a value is compared by: its text, and a cheaper image with the same power to tell values apart.

Two values are equal when their **texts** are, under the session settings that ``engine.db`` pins.  Equality as SQL
knows it is weaker: 1.0 = 1.00, -0 = 0, '1 day' = '24 hours', 'a' = 'A' under some collations.

An **image** is what the server hashes.  Different texts must have different images; different images of equal texts
cost a second look and nothing else.  A type stands for itself only if its hash function sees all of its value, and
few do: that of bigint folds 64 bits into 32, and so do those of the date and time types that are such integers inside;
that of numeric sees neither sign nor scale; that of an enum sees the OID of a label; that of an array no dimensions.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = 25
"""The OID of ``text``, which also stands for every type that is compared by nothing but its text."""

_CHARACTER: Final = 1042  # bpchar
_CHARACTERS: Final = 1014  # bpchar[]
_MONEY: Final = 790

# bool, "char", smallint, integer, oid, date, uuid, bytea, inet, cidr, macaddr, macaddr8
_SELVES: Final = frozenset([16, 18, 21, 23, 26, 1082, 2950, 17, 869, 650, 829, 774])
# Text and varchar: their bytes, whatever the collation finds equal.
_STRINGS: Final = frozenset([TEXT, 1043])
# The form in which a value is sent is all of it, and costs less than its text.
_SENDERS: Final = {
    20: "int8send",
    700: "float4send",
    701: "float8send",
    _MONEY: "cash_send",
    1083: "time_send",
    1114: "timestamp_send",
    1184: "timestamptz_send",
    1186: "interval_send",
    1266: "timetz_send",
    1700: "numeric_send",
}
# Their "=" tells apart whatever their text does: bigint, money, time, timestamp, timestamptz, timetz besides.
_EXACT_EQUALITY: Final = _SELVES | {20, _MONEY, 1083, 1114, 1184, 1266}
# numeric, interval, and date and time types, and their arrays: an assignment rounds to the declared modifier.
_ROUNDED: Final = frozenset([1700, 1231, 1114, 1115, 1184, 1185, 1083, 1183, 1266, 1270, 1186, 1187])
_FLOATS: Final = frozenset([700, 701])
_INTEGERS: Final = frozenset([20, 21, 23])
_UUID: Final = 2950

# Values whose hashes two servers compare before they trust each other's, as the types' texts.
SAMPLES: Final[dict[int, tuple[str, ...]]] = {
    16: ("true", "false"),
    17: (r"\x", r"\x00ff10", r"\x000102030405060708090a0b0c0d0e0f101112"),
    18: ("a",),
    20: ("0", "-1", "4294967297", "9223372036854775807", "-9223372036854775808"),
    21: ("0", "-32768", "32767"),
    23: ("0", "-2147483648", "2147483647"),
    TEXT: ("", "a", "twelve bytes", "a text of more than one block of the hash function"),
    26: ("0", "4294967295"),
    650: ("10.0.0.0/8", "2001:db8::/32"),
    700: ("0", "-0", "1.5", "NaN", "-Infinity"),
    701: ("0", "-0", "0.1", "NaN", "Infinity"),
    774: ("08:00:2b:01:02:03:04:05",),
    _MONEY: ("0", "12"),
    829: ("08:00:2b:01:02:03",),
    869: ("10.0.0.1", "10.0.0.1/8", "2001:db8::1"),
    1082: ("2000-01-01", "1066-10-14", "infinity"),
    1083: ("00:00:00", "23:59:59.999999"),
    1114: ("2000-01-01 00:00:00", "1066-10-14 12:00:00.000001", "infinity"),
    1184: ("2000-01-01 00:00:00+00", "1066-10-14 12:00:00.000001+00", "-infinity"),
    1186: ("1 day", "24 hours", "-3 mons 2 days 00:00:00.5"),
    1266: ("00:00:00+00", "23:59:59.999999-11"),
    1700: ("0", "0.00", "-1.50", "1.5", "NaN", "123456789012345678901234567890.123456789"),
    _UUID: ("00000000-0000-0000-0000-000000000000", "6f1c2a34-9d1e-4c5b-8a7f-0123456789ab"),
}

SAMPLE_TYPES: Final[dict[int, str]] = {
    16: "boolean",
    17: "bytea",
    18: '"char"',
    20: "bigint",
    21: "smallint",
    23: "integer",
    TEXT: "text",
    26: "oid",
    650: "cidr",
    700: "real",
    701: "double precision",
    774: "macaddr8",
    _MONEY: "money",
    829: "macaddr",
    869: "inet",
    1082: "date",
    1083: "time without time zone",
    1114: "timestamp without time zone",
    1184: "timestamp with time zone",
    1186: "interval",
    1266: "time with time zone",
    1700: "numeric",
    _UUID: "uuid",
}


def image(type_oid: int, value: str) -> str:
    """The image of ``value``, an SQL expression of that type: what ``hash_record_extended`` may see of it."""
    if type_oid in _SELVES:
        return value
    if type_oid in _STRINGS:
        return f'({value}) COLLATE "C"'
    sender = _SENDERS.get(type_oid)
    return f"{sender}({value})" if sender else f'({text(type_oid, value)}) COLLATE "C"'


def text(type_oid: int, value: str) -> str:
    """The text of ``value``, which reads back as the same value of its type."""
    if type_oid == _MONEY:
        return f"({value})::numeric::text"  # as itself it would be printed as each server's lc_monetary has it
    if type_oid == _CHARACTERS:
        return f"({value})::text[]::text"  # without padding, as a single char(n) shows itself
    return f"({value})::text"


def from_text(type_oid: int, base_type: str, value: str) -> str:
    """The inverse of ``text``: ``value`` is an SQL expression of type text."""
    return f"({value})::numeric::money" if type_oid == _MONEY else f"({value})::{base_type}"


def differ(type_oid: int, left: str, right: str) -> str:
    """A condition: two values of one type do not have the same text, of which NULL has none."""
    if type_oid in _EXACT_EQUALITY:
        return f"({left}) IS DISTINCT FROM ({right})"
    images_do = f"{image(type_oid, left)} IS DISTINCT FROM {image(type_oid, right)}"
    if type_oid in _FLOATS:  # there are many NaN, and one text
        return f"({images_do} AND {text(type_oid, left)} IS DISTINCT FROM {text(type_oid, right)})"
    return images_do


def as_bigint(type_oid: int, value: str) -> str:
    """A value of a key as one ``bigint``: what rows are hashed with, and told into buckets by."""
    if type_oid in _INTEGERS:
        return f"({value})::bigint"
    if type_oid == _UUID:
        return f"uuid_hash_extended({value}, 0)"
    return f'hashtextextended(({text(type_oid, value)}) COLLATE "C", 0)'


def converts_to(type_oid: int, base_type: str, declared: str) -> str:
    """The type to cast to so that a value becomes what an assignment would make of it.

    To the declared type where an assignment rounds.  Not where it would refuse: an explicit cast to ``varchar(3)`` or
    ``bit(3)`` cuts silently, and would hide that the two sides differ.
    """
    return declared if type_oid in _ROUNDED else base_type
