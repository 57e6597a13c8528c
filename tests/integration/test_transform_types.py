"""Every type that a transform can read and write, to real servers and back: decoded as the server shows it, encoded
to the very bytes it came as; and columns that nobody touches, of whatever type, unchanged byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native.rows import HEADER, TRAILER, RowBatches, Rows, assemble
from engine.db import Connection, Database
from engine.db.inspect import inspect_table
from engine.model import Side, TableName
from engine.spec import TableRef
from engine.sql import literal
from engine.transform.columns import Column, ListColumn
from engine.transform.decoding import decode
from engine.transform.encoding import encode
from engine.transform.types import FORMS, ColumnType, column_type
from tests.support.databases import MAJORS, Servers, create_database, drop_database
from tests.support.transformed import DOMAINS, JUDGES, TYPES, array_text

few = settings(max_examples=max(6, settings.default.max_examples // 8) if settings.default else 6)


class Session:
    """A session for tests that Hypothesis repeats: its own loop, one call at a time."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        self._connection: Connection = self._runner.run(Database(dsn, side=Side.SOURCE).connect("test"))
        self.execute("SET search_path = public")

    def execute(self, sql: str) -> None:
        self._runner.run(self._connection.execute(sql))

    def fetch(self, sql: str, *args: object) -> list[Any]:
        return self._runner.run(self._connection.fetch(sql, *args))

    def copied(self, query: str) -> bytes:
        pieces: list[bytes] = []

        async def sink(piece: bytes) -> None:
            pieces.append(piece)

        self._runner.run(self._connection.copy_out(query, sink))
        return b"".join(pieces)

    def copy_in(self, table: str, columns: list[str], stream: bytes) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield stream

        self._runner.run(self._connection.copy_in(TableName("public", table), columns, pieces()))

    def column_type(self, table: str, column: str, form: str = "") -> ColumnType | None:
        found = self._runner.run(inspect_table(self._connection, TableRef("public", table)))
        return column_type(found.column(column), form)

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


class Tables:
    """Of each declared type: table ``origin_<n>`` and its twin ``arrived_<n>``, with columns n and v; and the same
    pair with arrays of it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._found: dict[str, list[ColumnType]] = {}
        session.execute(DOMAINS)
        for number, declared in enumerate(TYPES):
            for suffix in ("", "_array") if TYPES[declared].has_array else ("",):
                columns = f"(n bigint, v {declared}{'[]' if suffix else ''})"
                session.execute(f"CREATE TABLE origin_{number}{suffix} {columns}")
                session.execute(f"CREATE TABLE arrived_{number}{suffix} {columns}")

    def of(self, declared: str, *, array: bool) -> tuple[str, list[ColumnType]]:
        """The suffix of its tables, and the column v in each form that a transform may ask for."""
        name = f"{list(TYPES).index(declared)}{'_array' if array else ''}"
        if name not in self._found:
            forms = [self.session.column_type(f"origin_{name}", "v", form) for form in FORMS]
            assert forms[0] is not None
            self._found[name] = [form for form in forms if form is not None]
        return name, self._found[name]


@pytest.fixture(scope="module", params=MAJORS, ids=lambda major: f"pg{major}")
def tables(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Tables]:
    database = create_database(servers.get(request.param))
    session = Session(database.dsn)
    try:
        yield Tables(session)
    finally:
        session.close()
        drop_database(database)


def rows_of(stream: bytes, fields: int) -> Rows:
    """All rows of a stream, as one batch."""
    batches = RowBatches(fields, max_rows=10**6, max_bytes=2**28)
    given = [*batches.feed(stream), batches.finish()]
    [rows] = [batch for batch in given if batch is not None]
    return rows


def piece_of(rows: Rows, layout: list[int], columns: list[Any]) -> bytes:
    return HEADER + assemble(rows, layout, columns) + TRAILER


def round_trip(tables: Tables, declared: str, texts: list[str | None], *, array: bool = False) -> None:
    """Put the texts into a column, read it, compare with the server's own text, write it, and read it again."""
    session = tables.session
    name, forms = tables.of(declared, array=array)
    session.execute("BEGIN")
    try:
        sql_type = f"{declared}{'[]' if array else ''}"
        session.fetch(
            f"INSERT INTO origin_{name} SELECT n, t::{sql_type} FROM unnest($1::text[]) WITH ORDINALITY u(t, n)", texts
        )
        stream = session.copied(f"SELECT n, v FROM origin_{name} ORDER BY n")
        if array:
            shown = session.fetch(
                f"SELECT v IS NULL, coalesce(array_lower(v, 1), 1), ARRAY(SELECT e::text FROM unnest(v) WITH ORDINALITY u(e, i)"
                f" ORDER BY i) FROM origin_{name} ORDER BY n"
            )
        else:
            shown = session.fetch(f"SELECT v::text FROM origin_{name} ORDER BY n")
        rows = rows_of(stream, 2)
        assert rows.count == len(texts)
        for form in forms:
            column, bad = decode(rows, 1, form)
            assert bad == []
            if array:
                assert isinstance(column, ListColumn)
                check_lists(declared, form, column, shown)
            else:
                assert isinstance(column, Column)
                check_values(declared, form, column, [text for (text,) in shown])
            encoded, bad = encode(column, form, rows.count)
            assert bad == []
            written = piece_of(rows, [0, -1], [encoded])
            assert written == stream
        session.copy_in(f"arrived_{name}", ["n", "v"], written)
        assert session.copied(f"SELECT n, v FROM arrived_{name} ORDER BY n") == stream
    finally:
        session.execute("ROLLBACK")


def check_values(declared: str, form: ColumnType, column: Column, texts: list[str | None]) -> None:
    judge = JUDGES[TYPES[declared].judge or form.kind]
    assert len(column) == len(texts)
    assert column.scale == (form.scale if form.kind == "scaled" else None)
    for value, null, text in zip(column.values, column.null, texts, strict=True):
        assert null == (text is None)
        assert text is None or judge(value, column.scale, text), (value, text)


def check_lists(declared: str, form: ColumnType, column: ListColumn, shown: list[Any]) -> None:
    assert form.element is not None
    assert column.null.tolist() == [null for null, _lower, _elements in shown]
    assert column.lower.tolist() == [lower for _null, lower, _elements in shown]
    assert column.lengths.tolist() == [len(elements) for _null, _lower, elements in shown]
    elements = Column(column.values, column.element_null, column.scale)
    check_values(declared, form.element, elements, [text for _null, _lower, texts in shown for text in texts])


@pytest.mark.parametrize("declared", TYPES)
def test_a_value_is_decoded_as_the_server_shows_it_and_encoded_to_the_bytes_it_came_as(
    tables: Tables, declared: str
) -> None:
    kind = TYPES[declared]
    null = [] if declared == "code" else [None]
    round_trip(tables, declared, [*kind.edges, *null, *reversed(kind.edges)])

    @few
    @given(texts=st.lists(kind.values | st.sampled_from([*kind.edges[:20], *null]), min_size=1, max_size=30))
    def check(texts: list[str | None]) -> None:
        round_trip(tables, declared, texts)

    check()


@pytest.mark.parametrize("declared", [name for name in TYPES if TYPES[name].has_array])
def test_arrays_are_too(tables: Tables, declared: str) -> None:
    kind = TYPES[declared]
    elements = [*kind.edges, None]
    round_trip(
        tables,
        declared,
        [
            *("{}", None, "{NULL}", "{NULL,NULL}", array_text(1, elements), array_text(-(2**31), elements)),
            array_text(2**31 - 1 - len(elements), elements),
            *(array_text(0, [edge]) for edge in kind.edges),
        ],
        array=True,
    )

    some = st.lists(
        kind.values | st.sampled_from([edge for edge in elements if edge is None or len(edge) < 99]), max_size=6
    )
    lower = st.sampled_from([1, 0, -5, 7, 2**31 - 10])
    lists = st.none() | st.builds(array_text, lower, some)

    @few
    @given(texts=st.lists(lists, min_size=1, max_size=12))
    def check(texts: list[str | None]) -> None:
        round_trip(tables, declared, texts, array=True)

    check()


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
