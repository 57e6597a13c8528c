"""Columns that nobody touches pass beside a transformed one unchanged byte for byte, whatever their type."""

from __future__ import annotations

import asyncpg
import pytest

from engine._native.rows import HEADER, TRAILER, RowBatches, assemble
from engine.sql import literal
from engine.transform.columns import Column
from engine.transform.decoding import decode
from engine.transform.encoding import encode
from tests.support.databases import MAJORS, Servers, create_database, drop_database
from tests.support.transformed import Session

# Types of which the codec knows nothing: name -> values.  NULL belongs to each.  An empty tsquery and an empty
# oidvector are not among them: the server itself cannot read in binary what it sent.
STRANGERS: dict[str, tuple[str, ...]] = {
    "int4range": ("empty", "[1,2)", "(,)", "[5,)", "(,7)"),
    "numrange": ("[1.0,2]", "(1,1.50)", "empty"),
    "tstzrange": ("[2000-01-01 00:00:00+00,infinity)", "(-infinity,)"),
    "int8multirange": ("{}", "{[1,2),[5,7)}", "{(,)}"),
    "moods": ("[sad,happy]", "empty"),
    "mood": ("sad", "happy", "odd'one"),
    "pair": ('(1.50,"a,b")', "(,)", '(0,"")'),
    "whole_pair": ("(1,x)", "(2,)"),
    "shout": ("", "loud", "LOUDER"),
    "vector": ("[1,2,3]", "[0.5]", "[-0,1e-30]"),
    "point": ("(0,0)", "(-0,1e300)", "(NaN,Infinity)"),
    "line": ("{1,-1,0}", "{0,-1,5.5}"),
    "lseg": ("[(0,0),(1,1)]",),
    "box": ("(1,1),(0,0)",),
    "path": ("[(0,0),(1,1)]", "((0,0),(1,1),(2,0))"),
    "polygon": ("((0,0),(1,1),(2,0))",),
    "circle": ("<(0,0),1.5>",),
    "tsvector": ("", "'a' 'b'", "'a':1A,2B 'it''s':3"),
    "tsquery": ("'a' & !'b'", "'a' <-> 'b':*AB"),
    "bit(5)": ("00000", "10101"),
    "bit varying": ("", "0", "111111111"),
    "inet": ("10.0.0.1", "10.0.0.1/24", "::1", "fe80::1/64"),
    "cidr": ("10.0.0.0/8", "::/0"),
    "macaddr": ("08:00:2b:01:02:03",),
    "macaddr8": ("08:00:2b:01:02:03:04:05",),
    "interval": ("0", "1 mon -30 days 00:00:00.000001", "-178000000 years", "1 year 2 mons"),
    "interval day to second(2)": ("3 days 04:05:06.78",),
    "time": ("00:00:00", "24:00:00", "23:59:59.999999"),
    "timetz": ("12:00:00+00", "12:00:00.5-11:30"),
    "money": ("0", "-92233720368547758.08", "0.01"),
    "pg_lsn": ("0/0", "FFFFFFFF/FFFFFFFF"),
    "jsonpath": ("$", '$."a"[*] ? (@ > 1)', "strict $.b"),
    "oid": ("0", "4294967295"),
    "regclass": ("pg_class",),
    "regtype": ("integer",),
    "xid": ("0", "4294967295"),
    "xid8": ("0", "18446744073709551615"),
    "tid": ("(0,0)", "(4294967295,65535)"),
    "pg_snapshot": ("10:20:10,14,15",),
    '"char"': ("", "a"),
    "oidvector": ("1 2 3",),
    "int2vector": ("1 -2",),
    "int[]": ("{{1,2},{3,NULL}}", "[2:3][-1:0]={{1,2},{3,4}}", "{{{1}}}"),
    "text[]": ('{{"a,b",NULL},{"","\\\\"}}',),
    "mood[]": ("{sad,NULL}", "[0:0]={happy}"),
    "pair[]": ('{"(1,a)",NULL}',),
    "int4range[]": ('{"[1,2)",empty}',),
    "price[]": ("{1.50,NULL}",),
    "point[]": ('{"(1,2)"}',),
    "interval[]": ("{{1 day},{2 days}}",),
    "xml": ("<a>b</a>", "text only"),
}
STRANGE_TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'happy', 'odd''one');
CREATE TYPE moods AS RANGE (subtype = mood);
CREATE TYPE pair AS (n numeric, t text);
CREATE TYPE pair_inside AS (n int, t text);
CREATE DOMAIN whole_pair AS pair_inside CHECK ((VALUE).n > 0);
CREATE DOMAIN price AS numeric(10,2);
CREATE TYPE shout;
CREATE FUNCTION shout_in(cstring) RETURNS shout LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION shout_out(shout) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE FUNCTION shout_receive(internal) RETURNS shout LANGUAGE internal IMMUTABLE STRICT AS 'textrecv';
CREATE FUNCTION shout_send(shout) RETURNS bytea LANGUAGE internal IMMUTABLE STRICT AS 'textsend';
CREATE TYPE shout (INPUT = shout_in, OUTPUT = shout_out, RECEIVE = shout_receive, SEND = shout_send, STORAGE = extended);
"""
ROWS_OF_STRANGERS = 60


@pytest.mark.parametrize("major", [*MAJORS, pytest.param(15, marks=pytest.mark.debian)])
def test_columns_that_nobody_touches_arrive_unchanged_whatever_their_type(servers: Servers, major: int) -> None:
    database = create_database(servers.get(major))
    session = Session(database.dsn)
    try:
        session.execute(STRANGE_TYPES)
        strangers = dict(STRANGERS)
        if not session.fetch("SELECT FROM pg_available_extensions WHERE name = 'vector'"):
            del strangers["vector"]
        else:
            session.execute("CREATE EXTENSION vector")
        if not supports_xml(session):
            del strangers["xml"]
        assert len(strangers) >= len(STRANGERS) - 1  # no server of ours lacks both
        columns = [f"c{i} {declared}" for i, declared in enumerate(strangers)]
        middle = len(columns) // 2
        columns = ["id bigint PRIMARY KEY", *columns[:middle], "amount numeric(12,2)", *columns[middle:]]
        for table in ("origin", "arrived"):
            session.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        names = [column.split(" ", 1)[0] for column in columns]
        values = {"id": "i", "amount": "i * 1.01"}
        strange = [name for name in names if name not in values]
        for name, (declared, texts) in zip(strange, strangers.items(), strict=True):
            listed = ", ".join([*map(literal, texts), "NULL"])
            values[name] = f"(ARRAY[{listed}]::text[])[i % {len(texts) + 1} + 1]::{declared}"
        session.execute(
            f"INSERT INTO origin SELECT {', '.join(values[name] for name in names)} FROM generate_series(1, {ROWS_OF_STRANGERS}) i"
        )

        stream = session.copied(f"SELECT {', '.join(names)} FROM origin ORDER BY id")
        batches = RowBatches(len(names), max_rows=7, max_bytes=10_000)
        written = bytearray(HEADER)
        amount = session.column_type("origin", "amount")
        assert amount is not None
        field = names.index("amount")
        layout = [-1 if number == field else number for number in range(len(names))]
        rows = [batch for cut in range(0, len(stream), 1013) for batch in batches.feed(stream[cut : cut + 1013])]
        for batch in [*rows, batches.finish()]:
            if batch is None:
                continue
            column, bad = decode(batch, field, amount)
            encoded, worse = encode(Column(column.values + 1, column.null, column.scale), amount, batch.count)
            assert (bad, worse) == ([], [])
            written += assemble(batch, layout, [encoded])
        session.copy_in("arrived", names, bytes(written + TRAILER))

        shown_as = [("id", "bigint"), *zip(strange, strangers, strict=True)]
        # What the server keeps of a tsquery differs with the way it came in, even from COPY to COPY.
        image = ", ".join(f"{n}::text" if declared == "tsquery" else n for n, declared in shown_as)
        [(same, changed, total)] = session.fetch(
            f"SELECT count(*) FILTER (WHERE record_image_eq(o, a)), (SELECT count(*) FROM origin o JOIN arrived a "
            f"USING (id) WHERE a.amount = o.amount + 0.01), count(*) "
            f"FROM (SELECT {image} FROM origin) o FULL JOIN (SELECT {image} FROM arrived) a USING (id)"
        )
        assert (same, changed, total) == (ROWS_OF_STRANGERS,) * 3
        others = f"SELECT id, {', '.join(strange)} FROM"
        assert session.copied(f"{others} arrived ORDER BY id") == session.copied(f"{others} origin ORDER BY id")
    finally:
        session.close()
        drop_database(database)


def supports_xml(session: Session) -> bool:
    try:
        session.execute("SELECT '<a/>'::xml")
    except asyncpg.FeatureNotSupportedError:
        return False
    return True
