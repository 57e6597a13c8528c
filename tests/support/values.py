"""Values that are easily taken for one another, by type: neighbours under "=", under a hash, under a collation."""

from __future__ import annotations

POOLS: dict[str, tuple[str | None, ...]] = {
    "boolean": ("true", "false"),
    "smallint": ("0", "1", "-1", "-32768"),
    "integer": ("0", "1", "-1", "2147483647"),
    "bigint": ("0", "1", "-1", "4294967297", "4294967296", "-4294967297", "9223372036854775807"),
    "numeric": ("0", "0.0", "0.00", "1", "1.0", "-1", "-1.0", "NaN", "1e20", "100000000000000000000.0", "0.1"),
    "numeric(12,2)": ("0", "1", "-1", "NaN", "1.25"),
    "real": ("0", "-0", "1", "NaN", "Infinity", "-Infinity", "1e-40"),
    "double precision": ("0", "-0", "0.1", "0.30000000000000004", "0.3", "NaN", "-Infinity"),
    "text": (
        "",
        " ",
        "a",
        "A",
        "a ",
        "\u00e4",
        "a\u0308",
        "NULL",
        "null",
        "{}",
        "a,b",
        '"a"',
        "x" * 500,
        "x" * 499 + "y",
    ),
    "character varying(40)": ("", "a", "a ", "A"),
    "character(6)": ("", "a", "A", "a b"),
    "bytea": ("\\x", "\\x00", "\\x0000", "\\xff"),
    "date": ("2000-01-01", "1999-12-31", "infinity", "-infinity", "0044-03-15 BC"),
    "timestamp": ("2000-01-01 00:00:00", "2000-01-01 00:00:00.000001", "2000-01-01 01:00:00", "infinity"),
    "timestamptz": (
        "2000-01-01 00:00:00+00",
        "2000-01-01 00:00:00.000001+00",
        "2000-01-01 00:00:00+05:30",
        "-infinity",
        "2000-01-01 01:11:34.967297+00",
        "1999-12-31 22:48:25.032703+00",
    ),
    "time": ("00:00:00", "24:00:00", "12:00:00.000001"),
    "timetz": ("12:00:00+00", "13:00:00+01", "12:00:00+01"),
    "interval": ("1 day", "24:00:00", "1 mon", "30 days", "12 mons", "-1 day", "1 mon -30 days", "00:00:00"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001"),
    "json": ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"a":1,"b":2}', '{"a": 1, "a": 2}', "null"),
    "jsonb": ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"a": 1.0, "b": 2}', "null", '"null"', "1", "1.0", "-0"),
    "integer[]": ("{}", "{1,2}", "{2,1}", "{{1,2}}", "[0:1]={1,2}", "{1,NULL,2}", "{1,2,NULL}", "{NULL}"),
    "text[]": ("{}", "{a,b}", '{"a,b"}', "{NULL}", '{"NULL"}', '{""}', "{A,b}"),
    "double precision[]": ("{0}", "{-0}", "{NaN}"),
    "numeric[]": ("{1}", "{1.0}", "{NULL}"),
    "character(4)[]": ("{a}", "{A}", "{ab,NULL}"),
    "int4range": ("empty", "[1,2)", "[1,3)", "(,)", "[1,)"),
    "numrange": ("[1,2]", "[1.0,2]", "(1,2]"),
    "inet": ("10.0.0.1", "10.0.0.1/24", "10.0.0.0/24", "::1"),
    "cidr": ("10.0.0.0/8", "10.0.0.0/9", "::/0"),
    "money": ("0", "0.01", "-0.01", "42949672.97", "42949672.96"),
    "oid": ("0", "4294967295"),
    '"char"': ("a", "b", ""),
    "bit(3)": ("000", "001"),
    "bit varying": ("", "0", "00", "1"),
    "point": ("(0,0)", "(-0,0)", "(0,1)"),
    "pg_lsn": ("0/0", "1/1", "0/1"),
    "tsvector": ("a", "'a' 'b'", "'a':1"),
    "xid8": ("0", "4294967297"),
    "name": ("", "a", "A"),
    "public.mood": ("sad", "happy", "Happy"),
    "public.amount": ("0", "1.5", "-1.5"),
    "public.pair": ("(1,a)", "(1,)", '(1,"")', "(,a)"),
    "public.mood[]": ("{sad}", "{happy,NULL}"),
}
"""Declared type -> texts of values.  NULL belongs to every type."""

TYPES = """
CREATE TYPE mood AS ENUM ({moods});
CREATE DOMAIN amount AS numeric(10,2);
CREATE TYPE pair AS (n numeric, t text);
"""


def types(*, otherwise: bool = False) -> str:
    """The user's own types; ``otherwise``: the enum's labels with other OIDs, in another order."""
    moods = ("sad", "happy", "Happy")
    return TYPES.format(moods=", ".join(f"'{m}'" for m in (reversed(moods) if otherwise else moods)))
