"""The planner on real tables: its questions as statements, its spans counted by the server."""

from __future__ import annotations

import json
import re

import pytest

from engine.model import Key, KeyColumn, TableName
from engine.plan import plan_spans
from engine.plan.questions import EstimateRows, ExistingKeys, FirstKey, LastKey, Samples, Statistics
from engine.sql.identifiers import ident, qualified
from engine.sql.questions import read, statement
from tests.support.databases import on_each_major

TABLE = TableName("public", "Rows")
PINNED = {
    "DateStyle": "ISO, YMD",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "search_path": "pg_catalog",
    "plan_cache_mode": "force_custom_plan",
}


def key_of(**columns):
    """``name=(kind, type)`` for each key column; ``(kind, type, labels)`` for an enum."""
    return Key(
        tuple(
            KeyColumn(name, spec[1], 0, spec[0], enum_labels=spec[2] if len(spec) > 2 else ())
            for name, spec in columns.items()
        ),
        "Rows_pkey",
    )


class Source:
    """Answers questions over a driver's connection, and keeps the statements."""

    def __init__(self, connection, key, table=TABLE):
        self.connection = connection
        self.key = key
        self.table = table
        self.statements = []

    async def answer(self, question):
        asked = statement(question, self.table, self.key)
        self.statements.append(asked)
        return read(question, await self.connection.fetch(asked.sql, *asked.args))

    async def plan(self, **options):
        steps = plan_spans(self.key, **options)
        try:
            question = next(steps)
            while True:
                question = steps.send(await self.answer(question))
        except StopIteration as end:
            return end.value

    async def rows_of(self, spans):
        """The true number of rows of each span, counted by the server."""
        names = ", ".join(ident(c.name) for c in self.key.columns)
        casts = ", ".join(f"($1::text[])[{i}]::{c.type_name}" for i, c in enumerate(self.key.columns, start=1))
        ends = []
        for span in spans:
            sql = f"SELECT count(*) FROM {qualified(self.table)} WHERE ({names}) <= ({casts})"
            ends.append(await self.connection.fetchval(sql, list(span.hi)))
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@pytest.fixture
async def connection(database):
    return await database.connect(server_settings=PINNED)


TYPES = {
    "bigint with wide gaps": (
        key_of(id=("int", "bigint")),
        "id bigint",
        "SELECT i + (i / 100) * 1000000000000 FROM generate_series(-1000, 1000) i",
    ),
    "smallint": (key_of(id=("int", "smallint")), "id smallint", "SELECT i FROM generate_series(-900, 900) i"),
    "uuid": (key_of(id=("uuid", "uuid")), "id uuid", "SELECT gen_random_uuid() FROM generate_series(1, 2000)"),
    "text, uuid": (
        key_of(name=("text", "text"), id=("uuid", "uuid")),
        'name text COLLATE "C", id uuid',
        """SELECT (ARRAY['', 'Abel', 'adam', 'bo-ris', $$it's \\ "x"$$, 'Éric'])[1 + i % 6], gen_random_uuid()
        FROM generate_series(1, 2000) i""",
    ),
    "char(n)": (
        key_of(id=("text", "bpchar")),
        "id char(8)",
        "SELECT md5(i::text)::char(8) FROM generate_series(1, 2000) i",
    ),
    "numeric with NaN": (
        key_of(id=("numeric", "numeric")),
        "id numeric",
        """SELECT i::numeric ^ 5 / 7 FROM generate_series(-1000, 1000) i
        UNION ALL VALUES ('NaN'::numeric), ('-Infinity')""",
    ),
    "double with NaN": (
        key_of(id=("float", "double precision")),
        "id double precision",
        "SELECT i::float8 ^ 9 FROM generate_series(-1000, 1000) i UNION ALL VALUES ('NaN'::float8), ('Infinity')",
    ),
    "timestamptz with infinities": (
        key_of(at=("timestamptz", "timestamp with time zone")),
        "at timestamptz",
        """SELECT '2024-01-01'::timestamptz + i * i * interval '1 second' FROM generate_series(0, 2000) i
        UNION ALL VALUES ('-infinity'::timestamptz), ('infinity'), ('0044-03-15 12:00:00 BC'), ('50000-01-01')""",
    ),
    "date": (
        key_of(day=("date", "date")),
        "day date",
        "SELECT '0001-01-01 BC'::date + i FROM generate_series(1, 2000) i UNION ALL VALUES ('infinity'::date)",
    ),
    "bytea": (
        key_of(id=("bytea", "bytea")),
        "id bytea",
        "SELECT sha256(i::text::bytea) FROM generate_series(1, 2000) i",
    ),
    "enum, bigint": (
        key_of(size=("enum", "public.size", ("small", "big", "Large")), id=("int", "bigint")),
        "size public.size, id bigint",
        "SELECT (ARRAY['small', 'big', 'Large']::public.size[])[1 + (i % 7) / 3], i FROM generate_series(1, 2000) i",
    ),
    "boolean, int": (
        key_of(old=("bool", "boolean"), id=("int", "integer")),
        "old boolean, id integer",
        "SELECT i % 5 = 0, i FROM generate_series(1, 2000) i",
    ),
    "opaque inet": (
        key_of(ip=("opaque", "inet")),
        "ip inet",
        "SELECT '10.0.0.0'::inet + i FROM generate_series(1, 2000) i",
    ),
    "quoted name of a domain": (
        key_of(**{'odd "Name"': ("int", "integer")}),
        '"odd ""Name""" public.positive',
        "SELECT i FROM generate_series(1, 2000) i",
    ),
}


@on_each_major
@pytest.mark.parametrize("name", TYPES)
async def test_spans_of_every_key_type_tile_the_table(database, connection, name):
    key, columns, rows = TYPES[name]
    database.sql(
        f"""CREATE TYPE public.size AS ENUM ('small', 'big', 'Large');
        CREATE DOMAIN public.positive AS integer CHECK (value > 0);
        CREATE TABLE {qualified(TABLE)} ({columns}, PRIMARY KEY ({", ".join(ident(c.name) for c in key.columns)}))
            WITH (autovacuum_enabled = off);
        INSERT INTO {qualified(TABLE)} {rows}"""
    )
    source = Source(connection, key)
    total = await connection.fetchval(f"SELECT count(*) FROM {qualified(TABLE)}")
    for basis in ("probes", "statistics"):
        plan = await source.plan(spans=8)
        sizes = await source.rows_of(plan.spans)
        assert plan.basis == basis
        assert plan.spans[-1].hi == plan.last
        assert min(sizes) > 0  # bounds rise strictly, by the server's own comparison
        assert sum(sizes) == total
        if name != "opaque inet" or basis == "statistics":  # else there is nothing to guess from: stealing will cut
            assert len(plan.spans) > 4
            assert max(sizes) < total / 2
        await connection.execute(f"ANALYZE {qualified(TABLE)}")


@pytest.mark.parametrize(
    ("server", "locale"), [(16, "C"), (18, "pg_c_utf8"), (15, "en-US-x-icu"), (15, "sv-x-icu")], indirect=["server"]
)
async def test_text_is_cut_under_any_collation(database, connection, locale):
    database.sql(
        f"""CREATE TABLE {qualified(TABLE)} (name text COLLATE "{locale}" PRIMARY KEY);
        INSERT INTO {qualified(TABLE)} SELECT (ARRAY['Ada-', 'ada ', 'Émil', 'zoe', 'Zoë_'])[1 + i % 5] || md5(i::text)
            FROM generate_series(1, 5000) i;
        ANALYZE {qualified(TABLE)}"""
    )
    source = Source(connection, key_of(name=("text", "text")))
    plan = await source.plan(spans=10)
    sizes = await source.rows_of(plan.spans)
    assert min(sizes) > 0
    assert sum(sizes) == 5000
    assert max(sizes) < 2 * 5000 / 10


@on_each_major
async def test_a_skewed_gappy_key_gives_spans_of_like_size(database, connection):
    rows = 200_000
    database.sql(
        f"""CREATE TABLE {qualified(TABLE)} (id bigint PRIMARY KEY, filler text DEFAULT 'x');
        SELECT setseed(0.25);
        INSERT INTO {qualified(TABLE)} (id)
        SELECT sum(least(power(random() + 1e-9, -1.2), 1e7)::bigint
                   + CASE WHEN random() < 0.0002 THEN 1000000000000 ELSE 0 END) OVER (ORDER BY i)
        FROM generate_series(1, {rows}) i;
        ANALYZE {qualified(TABLE)}"""
    )
    source = Source(connection, key_of(id=("int", "bigint")))
    plan = await source.plan(spans=32)
    sizes = await source.rows_of(plan.spans)
    assert plan.basis == "statistics"
    assert plan.rows == pytest.approx(rows, rel=0.02)
    assert len(sizes) == 32
    assert max(sizes) < 1.5 * min(sizes)
    for span, size in zip(plan.spans, sizes, strict=True):
        assert span.rows == pytest.approx(size, rel=0.5)


async def test_partitions_are_one_key_space(database, connection):
    database.sql(
        f"""CREATE TABLE {qualified(TABLE)} (tenant integer, id bigint, PRIMARY KEY (tenant, id))
            PARTITION BY HASH (tenant);
        CREATE TABLE public.p0 PARTITION OF {qualified(TABLE)} FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE public.p1 PARTITION OF {qualified(TABLE)} FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO {qualified(TABLE)} SELECT i % 3, i FROM generate_series(1, 6000) i;
        ANALYZE {qualified(TABLE)}"""
    )
    source = Source(connection, key_of(tenant=("int", "integer"), id=("int", "bigint")))
    plan = await source.plan(spans=12)
    sizes = await source.rows_of(plan.spans)
    assert plan.basis == "statistics"
    assert sum(sizes) == 6000
    assert max(sizes) < 2 * 6000 / 12


async def test_an_empty_table_has_no_spans(database, connection):
    database.sql(f"CREATE TABLE {qualified(TABLE)} (id bigint PRIMARY KEY)")
    plan = await Source(connection, key_of(id=("int", "bigint"))).plan(workers=4)
    assert plan.spans == ()


@on_each_major
async def test_every_question_is_a_walk_of_the_index(database, connection):
    database.sql(
        f"""CREATE TABLE {qualified(TABLE)} (tenant integer, id bigint, filler text, PRIMARY KEY (tenant, id));
        INSERT INTO {qualified(TABLE)} SELECT i % 40, i, repeat('x', 50) FROM generate_series(1, 60000) i;
        VACUUM ANALYZE {qualified(TABLE)}"""
    )
    key = key_of(tenant=("int", "integer"), id=("int", "bigint"))
    last = ("39", "59999")
    guesses = tuple((str(i % 40), str(i)) for i in range(0, 60000, 600))
    prefixes = tuple((str(i),) for i in range(40))
    for question, walks in (
        (FirstKey(), 1),
        (FirstKey(("7",)), 1),
        (LastKey(), 1),
        (LastKey(("7",)), 1),
        (ExistingKeys(guesses, last), 100),
        (ExistingKeys(guesses + prefixes, last), 140),
        (Samples(guesses + prefixes, 32), 3 * 140),
    ):
        asked = statement(question, TABLE, key)
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON, COSTS OFF, TIMING OFF) {asked.sql}"
        text = await connection.fetchval(explain, *asked.args)
        scans = re.findall(r'"Node Type": "([^"]*Scan)"', text)
        assert set(scans) <= {"Index Only Scan", "Index Scan", "Function Scan", "Subquery Scan"}, question
        visited = sum(_rows_visited(json.loads(text)[0]["Plan"]))
        assert visited <= walks * 34, question


def _rows_visited(node):
    if "Index" in node["Node Type"]:
        yield (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        yield node.get("Rows Removed by Index Recheck", 0)
    for child in node.get("Plans", ()):
        yield from _rows_visited(child)


async def test_answers_are_what_the_table_holds(database, connection):
    database.sql(
        f"""CREATE TABLE {qualified(TABLE)} (id integer PRIMARY KEY);
        INSERT INTO {qualified(TABLE)} SELECT i * 10 FROM generate_series(1, 100) i;
        ANALYZE {qualified(TABLE)}"""
    )
    source = Source(connection, key_of(id=("int", "integer")))
    assert await source.answer(FirstKey()) == ("10",)
    assert await source.answer(LastKey()) == ("1000",)
    assert await source.answer(FirstKey(("11",))) is None
    assert await source.answer(ExistingKeys((("15",), ("11",), ("20",), ("995",), ("2000",)), ("1000",))) == (("20",),)
    samples = await source.answer(Samples((("500",), ("5",), ("995",), ("9999",)), 3))
    assert [(s.before, s.at, s.after) for s in samples] == [
        (("490",), ("500",), ("530",)),
        (None, ("10",), ("40",)),
        (("990",), ("1000",), None),
        (("1000",), None, None),
    ]
    assert await source.answer(EstimateRows()) == pytest.approx(100)
    statistics = await source.answer(Statistics("id"))
    assert statistics.histogram[0] == "10"
    assert statistics.histogram[-1] == "1000"
    assert statistics.common == ()
    assert statistics.distinct == -1
    assert statistics.rows == 100
    assert await source.answer(Statistics("no such column")) is None
