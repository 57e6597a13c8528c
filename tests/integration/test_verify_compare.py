"""Comparing two tables: exact, nothing overlooked, nothing invented, on every kind of value and pair of servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.db import Connection, Database
from engine.db.inspect import inspect_table
from engine.errors import UsageError
from engine.model import ConflictPolicy, Key, KeyColumn, KeyValue, Side, TableName
from engine.plan.keyspace import kind_of
from engine.sql import ident
from engine.sql.compare import Form, compared
from engine.sql.compare_in_place import in_place
from engine.sql.statements import MappedColumn, SourceShape, TargetShape
from engine.verify import Comparer, InPlaceComparer, Look
from tests.support.databases import FreshDatabase, Servers, TlsServer, TwoDatabases, on_each_major
from tests.support.jobs import into, prepare
from tests.support.values import POOLS, types

EVERYTHING = """
    id bigint PRIMARY KEY, b boolean, i2 smallint, i4 integer, i8 bigint, n numeric, n2 numeric(12,2), f4 real,
    f8 double precision, t text, v varchar(40), c char(8), by bytea, d date, ts timestamp, tz timestamptz, ti time,
    tt timetz, iv interval, u uuid, j json, jb jsonb, ia integer[], ta text[], fa float8[], na numeric[], ca char(4)[],
    r int4range, nr numrange, mr int4multirange, ip inet, ci cidr, ma macaddr, m8 macaddr8, mo money, o oid, q "char",
    bi bit(4), vb varbit, p point, l pg_lsn, tv tsvector, na_ name
"""

ROW = """
    true, 1, 2, 3, 1.50, 2.25, 1.5, 0.1, 'text', 'varchar', 'char', '\\x00ff', '2024-02-29', '2024-02-29 12:00:00.000001',
    '2024-02-29 12:00:00+00', '12:00', '12:00+02', '1 day', '6f1c2a34-9d1e-4c5b-8a7f-0123456789ab', '{"a": 1}',
    '{"a": 1.0}', '{1,NULL,3}', '{a,NULL,"NULL"}', '{0,1}', '{1.0}', '{a}', '[1,5)', '[1.0,2]', '{[1,3),[5,7)}',
    '10.0.0.1', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', 12.34::numeric::money, 7, 'q', B'1010',
    B'101', '(1,2)', '0/1', 'a b', 'name'
"""

FOLDED = "((extract(epoch FROM {}) * 1000000)::bigint # 4294967297) * interval '1 microsecond'"

CHANGES = [
    ("b", "false"),
    ("i2", "2"),
    ("i4", "-2"),
    ("i8", "4294967298"),
    ("i8", "3 # (4294967296 + 1)"),  # the hash of bigint folds: this one has the hash of 3
    ("n", "1.5"),
    ("n", "-1.50"),
    ("n", "'NaN'"),
    ("n2", "-2.25"),
    ("f4", "-1.5"),
    ("f8", "0.1::float8 + 0.00000000000000002"),
    ("f8", "'NaN'"),
    ("t", "''"),
    ("t", "'Text'"),
    ("t", "'text '"),
    ("t", "NULL"),
    ("v", "'varchar '"),
    ("c", "'chaR'"),
    ("by", "'\\x00ff00'"),
    ("d", "'infinity'"),
    ("ts", "timestamp '2024-02-29 12:00:00.000002'"),
    ("ts", "ts + interval '1 hour'"),
    ("tz", "tz + interval '5 hours 30 minutes'"),
    (
        "tz",
        "timestamptz '2000-01-01' + ((extract(epoch FROM tz - '2000-01-01') * 1000000)::bigint # 4294967297) * interval '1 microsecond'",
    ),
    # The same 64 bits as far as the hash of bigint sees them.
    ("ts", "timestamp '2000-01-01' + " + FOLDED.format("ts - '2000-01-01'")),
    ("ti", "time '00:00' + " + FOLDED.format("ti")),
    ("mo", "(((mo::numeric * 100)::bigint # 4294967297) / 100.0)::numeric::money"),
    ("ti", "'12:00:00.000001'"),
    ("tt", "'11:00+01'"),
    ("iv", "'24 hours'"),
    ("u", "'6f1c2a34-9d1e-4c5b-8a7f-0123456789ac'"),
    ("j", "'{\"a\":1}'"),
    ("jb", "'{\"a\": 1.00}'"),
    ("jb", '\'{"a": "1.0"}\''),
    ("ia", "'{1,3,NULL}'"),
    ("ia", "'[0:2]={1,NULL,3}'"),
    ("ia", "'{{1,NULL,3}}'"),
    ("ta", "'{a,NULL,NULL}'"),
    ("fa", "'{-0,1}'"),
    ("na", "'{1}'"),
    ("ca", "'{b}'"),
    ("r", "'[1,6)'"),
    ("r", "'empty'"),
    ("nr", "'[1,2]'"),
    ("mr", "'{[1,3)}'"),
    ("ip", "'10.0.0.1/24'"),
    ("ci", "'10.0.0.0/9'"),
    ("ma", "'08:00:2b:01:02:04'"),
    ("m8", "'08:00:2b:01:02:03:04:06'"),
    ("mo", "mo + 0.01::numeric::money"),
    ("o", "4294967295"),
    ("q", "'Q'"),
    ("bi", "B'1011'"),
    ("vb", "B'1010'"),
    ("p", "'(1,-2)'"),
    ("l", "'0/2'"),
    ("tv", "'a'"),
    ("na_", "'Name'"),
]


@asynccontextmanager
async def comparing(
    source: FreshDatabase, target: FreshDatabase, *, volatile: frozenset[str] = frozenset(), **settings: Any
) -> AsyncIterator[Comparer]:
    """A comparer of ``src`` and ``dst``, as a job between them would have it."""
    tables = {"table": "src", "target_table": "dst"} | {
        k: settings.pop(k) for k in ("table", "target_table") if k in settings
    }
    spec = into(source, tables["table"], target, tables["target_table"], **settings)
    prepared = await prepare(spec)
    assert prepared.target is not None
    assert prepared.target_table is not None
    columns = {column.name: column for column in prepared.target_table.columns}
    both = compared(prepared.source, prepared.target, columns, volatile=volatile)
    here = await Database(target.dsn, side=Side.TARGET).connect("test", data=True)
    there = here if source is target else await Database(source.dsn, side=Side.SOURCE).connect("test", data=True)
    try:
        comparer = Comparer(both, there, here)
        await comparer.agree_on_hashes()
        yield comparer
    finally:
        await here.close()
        await there.close()


async def differences(comparer: Comparer, to: KeyValue, after: KeyValue | None = None) -> dict[KeyValue, Look]:
    """What a verification finds in a range; its parts must agree with each other."""
    digests = await comparer.digests(after, to)
    suspects = await comparer.narrow(after, to)
    if not comparer.compared.target.same_order:
        suspects += await comparer.extras(None, to)
    looks = await comparer.look([s.key for s in suspects])
    assert [s.key for s in suspects] == [look.key for look in looks]
    if comparer.compared.target.same_order:
        assert digests.equal is not bool(suspects)
    return {look.key: look for look in looks if look.kind is not None}


async def mended(
    comparer: Comparer | InPlaceComparer, looks: Sequence[Look], *, delete_extra: bool = True
) -> list[bool]:
    """Repair in a transaction of its own, as the mover does in one with its fence."""
    here = comparer.target if isinstance(comparer, Comparer) else comparer.connection
    await here.execute("BEGIN")
    try:
        written = await comparer.repair(looks, delete_extra=delete_extra)
        await here.execute("COMMIT")
    except BaseException:
        await here.roll_back()
        raise
    finally:
        await comparer.release()
    return written


@pytest.fixture(params=["one", "two"])
def pair(
    request: pytest.FixtureRequest, make_database: Callable[..., FreshDatabase]
) -> tuple[FreshDatabase, FreshDatabase]:
    """Source and target: one database, or two of one server."""
    one = make_database()
    return (one, one) if request.param == "one" else (one, make_database())


def both(pair: tuple[FreshDatabase, FreshDatabase], create: str, fill: str = "") -> None:
    """The same table as ``src`` and ``dst``, with the same rows."""
    for database, table in zip(pair, ("src", "dst"), strict=True):
        database.sql(f"CREATE TABLE {table} ({create})")
        if fill:
            database.sql(f"INSERT INTO {table} {fill}")


@on_each_major
async def test_every_difference_of_every_type_is_found_and_named(pair):
    source, target = pair
    last = len(CHANGES) + 7
    both(pair, EVERYTHING, f"SELECT g, {ROW} FROM generate_series(1, {last}) g")
    source.sql("UPDATE src SET f8 = 0, f4 = 0, t = NULL, j = NULL WHERE id > 3 AND id <= 6")
    target.sql("UPDATE dst SET f8 = 0, f4 = 0, t = NULL, j = NULL WHERE id > 3 AND id <= 6")
    target.sql("UPDATE dst SET f8 = '-0' WHERE id = 4; UPDATE dst SET f4 = '-0' WHERE id = 5")
    target.sql("UPDATE dst SET t = '' WHERE id = 6; DELETE FROM dst WHERE id = 2; INSERT INTO dst (id) VALUES (-5)")
    for n, (column, value) in enumerate(CHANGES):
        target.sql(f"UPDATE dst SET {column} = {value} WHERE id = {n + 7}")
    async with comparing(source, target) as comparer:
        assert comparer.form is Form.RECORD
        found = await differences(comparer, (str(last),))
    assert found.pop(("2",)).kind == "missing"
    assert found.pop(("-5",)).kind == "extra"
    assert {key[0]: look.columns for key, look in found.items()} == {
        "4": ("f8",),
        "5": ("f4",),
        "6": ("t",),
        **{str(n + 7): (column,) for n, (column, _) in enumerate(CHANGES)},
    }


# -- what is the same, and what is not -------------------------------------------------------------------------------


async def test_a_value_is_converted_as_the_assignment_would_and_no_further(pair):
    source, target = pair
    target.sql("CREATE DOMAIN cents AS numeric(10,2); CREATE DOMAIN lower_cents AS cents")
    source.sql(
        "CREATE TABLE src (id int PRIMARY KEY, a numeric, b numeric, c numeric, t timestamp, s text, i int, f float8, e text, n numeric[]);"
        "INSERT INTO src SELECT g, 1.005, 2.345, 2.995, '2024-01-01 00:00:00.123456', 'abc', 7, 1.5, 'sad', '{1.005}' FROM generate_series(1, 5) g"
    )
    target.sql(
        "CREATE TYPE mood AS ENUM ('happy', 'sad');"
        "CREATE TABLE dst (id bigint PRIMARY KEY, a numeric(10,2), b cents, c lower_cents, t timestamp(3), s varchar(3), i text, f numeric(4,1), e mood, n numeric(10,2)[])"
    )
    row = "1.005, 2.345, 2.995, '2024-01-01 00:00:00.123456', 'abc', '7', 1.5, 'sad', '{1.005}'"
    target.sql(f"INSERT INTO dst SELECT g, {row} FROM generate_series(1, 5) g")
    async with comparing(source, target, accept=["TYPE_NARROWS"]) as comparer:
        assert await differences(comparer, ("5",)) == {}
        source.sql("UPDATE src SET s = 'abcd' WHERE id = 2")  # a cast to varchar(3) would cut it, and call it equal
        target.sql("UPDATE dst SET b = 2.34, c = 2.99, n = '{1.00}' WHERE id = 3")
        found = await differences(comparer, ("5",))
    assert {key: look.columns for key, look in found.items()} == {("2",): ("s",), ("3",): ("b", "c", "n")}


async def test_rows_that_the_job_leaves_out_are_extra_at_the_target(pair):
    source, target = pair
    both(pair, "id int PRIMARY KEY, n int", "SELECT g, g FROM generate_series(1, 10) g")
    async with comparing(source, target, where="n <> 4") as comparer:
        assert {k: look.kind for k, look in (await differences(comparer, ("10",))).items()} == {("4",): "extra"}
        source.sql("UPDATE src SET n = 4 WHERE id = 9")
        assert (await differences(comparer, ("10",), after=("5",)))[("9",)].kind == "extra"
        assert (await comparer.digests(("5",), ("10",))).rows_source == 4


async def test_only_the_rows_after_the_cursor_and_up_to_the_bound_are_compared(pair):
    source, target = pair
    both(
        pair,
        'a text COLLATE "C", "B b" int, v int, PRIMARY KEY (a, "B b")',
        "SELECT 'k' || g / 10, g % 10, g FROM generate_series(0, 99) g",
    )
    target.sql("UPDATE dst SET v = -1 WHERE v IN (20, 21, 45, 46)")
    async with comparing(source, target) as comparer:
        found = await differences(comparer, ("k4", "5"), after=("k2", "0"))
        assert set(found) == {("k2", "1"), ("k4", "5")}
        assert (await comparer.digests(("k2", "0"), ("k4", "5"))).rows_target == 25


async def test_a_row_that_cannot_be_evaluated_is_a_difference_and_hides_no_other(pair):
    source, target = pair
    source.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int); INSERT INTO src SELECT g, g FROM generate_series(1, 50) g"
    )
    target.sql(
        "CREATE TABLE dst (id int PRIMARY KEY, share int); INSERT INTO dst SELECT g, 100 / g FROM generate_series(1, 50) g"
    )
    source.sql("UPDATE src SET n = 0 WHERE id IN (7, 9)")
    target.sql("DELETE FROM dst WHERE id = 9; UPDATE dst SET share = -1 WHERE id = 20; INSERT INTO dst VALUES (-3, 1)")
    async with comparing(source, target, columns={"id": "id", "share": "100 / n"}) as comparer:
        found = await differences(comparer, ("50",))
        digests = await comparer.digests(None, ("50",))
    assert {k: (look.kind, look.columns) for k, look in found.items()} == {
        ("7",): ("changed", ()),
        ("9",): ("missing", ()),
        ("20",): ("changed", ("share",)),
        ("-3",): ("extra", ()),
    }
    assert (digests.rows_source, digests.rows_target) == (50, 50)


@pytest.mark.parametrize("form", Form)
async def test_every_form_of_comparison_finds_the_same(pair, form):
    source, target = pair
    both(
        pair, "id int PRIMARY KEY, t text, n numeric", "SELECT g, repeat('x', g * 10), g FROM generate_series(1, 40) g"
    )
    target.sql(
        "UPDATE dst SET t = t || 'y' WHERE id = 3; UPDATE dst SET n = 4.0 WHERE id = 4; UPDATE dst SET t = overlay(t placing 'z' from 300) WHERE id = 33"
    )
    target.sql("DELETE FROM dst WHERE id = 6; INSERT INTO dst VALUES (-1)")
    async with comparing(source, target) as comparer:
        comparer.form = form
        found = await differences(comparer, ("40",))
        assert {k[0]: (look.kind, *look.columns) for k, look in found.items()} == {
            "3": ("changed", "t"),
            "4": ("changed", "n"),
            "33": ("changed", "t"),
            "6": ("missing",),
            "-1": ("extra",),
        }
        assert (await comparer.digests(("6",), ("30",))).equal


async def test_servers_that_hash_otherwise_are_asked_for_texts(databases: TwoDatabases):
    source, target = databases.source, databases.target
    both((source, target), "id int PRIMARY KEY, n numeric", "VALUES (1, 1.0), (2, 2.0)")
    # A server whose numeric_send is another one: found along the path before pg_catalog's.
    async with comparing(source, target) as comparer:
        target.sql(
            "CREATE SCHEMA odd; CREATE FUNCTION odd.numeric_send(numeric) RETURNS bytea IMMUTABLE LANGUAGE sql AS $$ SELECT textsend($1::text) $$"
        )
        await comparer.target.execute("SET search_path = odd, pg_catalog")
        assert not (await comparer.digests(None, ("2",))).equal
        await comparer.agree_on_hashes()
        assert comparer.form is Form.TEXT
        assert (await comparer.digests(None, ("2",))).equal
        target.sql(
            "CREATE SCHEMA odder; CREATE FUNCTION odder.hashtextextended(text, bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS $$ SELECT 1::bigint $$"
        )
        await comparer.target.execute("SET search_path = odder, odd, pg_catalog")
        await comparer.agree_on_hashes()
        assert comparer.form is Form.VALUES
        assert (await comparer.digests(None, ("2",))).equal


async def test_two_rows_that_swapped_their_values_do_not_cancel_out(pair):
    source, target = pair
    both(pair, "id int PRIMARY KEY, n int", "SELECT g, g FROM generate_series(1, 2) g")
    target.sql("UPDATE dst SET n = 3 - n")
    async with comparing(source, target) as comparer:
        assert set(await differences(comparer, ("2",))) == {("1",), ("2",)}


async def test_columns_that_are_new_each_time_are_left_out(pair):
    source, target = pair
    source.sql("CREATE TABLE src (id int PRIMARY KEY); INSERT INTO src VALUES (1)")
    target.sql("CREATE TABLE dst (id int PRIMARY KEY, r float8); INSERT INTO dst VALUES (1, 2)")
    columns = {"id": "id", "r": "random()"}
    async with comparing(source, target, columns=columns, volatile=frozenset({"r"})) as comparer:
        assert comparer.compared.not_compared == ("r",)
        assert await differences(comparer, ("1",)) == {}
        target.sql("DELETE FROM dst")
        looks = await comparer.look([("1",)])
        assert await mended(comparer, looks) == [True]
        assert target.sql("SELECT r BETWEEN 0 AND 1 FROM dst") == "t"


# -- a target that sorts otherwise ----------------------------------------------------------------------------------


async def test_a_target_in_another_order_is_compared_by_keys(pair):
    source, target = pair
    source.sql(
        "CREATE TABLE src (a int, b text, v int, PRIMARY KEY (a, b)); INSERT INTO src SELECT g / 10, 'k' || g % 10, g FROM generate_series(0, 199) g"
    )
    target.sql(
        "CREATE TABLE dst (b text, a int, v int, PRIMARY KEY (b, a)); INSERT INTO dst SELECT 'k' || g % 10, g / 10, g FROM generate_series(0, 199) g"
    )
    target.sql(
        "UPDATE dst SET v = -1 WHERE v = 25; DELETE FROM dst WHERE v = 37; INSERT INTO dst VALUES ('j', 3), ('k5', 77)"
    )
    async with comparing(source, target) as comparer:
        assert not comparer.compared.target.same_order
        suspects = await comparer.narrow(("2", "k0"), ("9", "k9"))
        assert {(s.key, s.kind) for s in suspects} == {(("2", "k5"), "changed"), (("3", "k7"), "missing")}
        digests = await comparer.digests(("2", "k0"), ("9", "k9"))
        assert (digests.rows_source, digests.rows_target, digests.equal) == (79, 78, False)
        assert (await comparer.digests(("4", "k0"), ("9", "k9"))).equal
        extras = await comparer.extras(None, ("k5", "77"), order=["b", "a"])
        assert {(s.key, s.kind) for s in extras} == {(("3", "j"), "extra"), (("77", "k5"), "extra")}
        assert [s.key for s in await comparer.extras(("k5", "76"), ("k5", "77"), order=["b", "a"])] == [("77", "k5")]
        looks = await comparer.look([s.key for s in (*suspects, *extras)])
        assert await mended(comparer, looks) == [True] * 4
        assert (await comparer.digests(None, ("19", "k9"))).equal
        assert await comparer.extras(None, ("k9", "99"), order=["b", "a"]) == []


@pytest.mark.debian
async def test_keys_that_differ_in_case_alone_are_one_row_that_changed(tls_server: TlsServer, make_database):
    one = make_database("ENCODING 'UTF8'", on=tls_server.server)
    two = make_database("ENCODING 'UTF8'", on=tls_server.server)
    for source, target in ((one, one), (one, two)):
        for database, table in ((source, "src"), (target, "dst")):
            database.sql(
                "CREATE COLLATION IF NOT EXISTS no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
            database.sql(
                f"DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (k text COLLATE no_case PRIMARY KEY, t text COLLATE no_case)"
            )
            database.sql(f"INSERT INTO {table} SELECT 'k' || g, 'a' FROM generate_series(1, 9) g")
        target.sql("UPDATE dst SET k = 'K3' WHERE k = 'k3'; UPDATE dst SET t = 'A' WHERE k = 'k5'")
        async with comparing(source, target) as comparer:
            found = await differences(comparer, ("k9",))
            assert {k: (look.kind, look.columns) for k, look in found.items()} == {
                ("k3",): ("changed", ("k",)),
                ("k5",): ("changed", ("t",)),
            }
            assert await mended(comparer, list(found.values())) == [True, True]
            assert await differences(comparer, ("k9",)) == {}


# -- in place -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def in_its_place(
    database: FreshDatabase, assignments: dict[str, str], *, done: str | None = None, where: str | None = None
) -> AsyncIterator[InPlaceComparer]:
    """A comparer of ``src`` with what its columns should hold."""
    connection = await Database(database.dsn, side=Side.TARGET).connect("test", data=True)
    try:
        table = await inspect_table(connection, TableName("public", "src"))
        column = table.column("id")
        assert column is not None
        key = Key((KeyColumn("id", column.base_type, column.type_oid, kind_of(column)),), "src_pkey")
        shape = in_place(
            SourceShape(table.name, key, where), assignments, {c.name: c for c in table.columns}, done=done
        )
        comparer = InPlaceComparer(shape, connection)
        await comparer.agree_on_hashes()
        yield comparer
    finally:
        await connection.close()


async def differing(comparer: InPlaceComparer, to: str) -> dict[str, tuple[str, ...]]:
    suspects = await comparer.narrow(None, (to,))
    assert (await comparer.digests(None, (to,))).equal is not bool(suspects)
    looks = await comparer.look([s.key for s in suspects])
    assert [look.kind for look in looks] == ["changed"] * len(suspects)
    return {look.key[0]: look.columns for look in looks}


@on_each_major
async def test_a_column_in_place_holds_exactly_what_its_expression_gives(database):
    database.sql(
        "CREATE DOMAIN cents AS numeric(10,2);"
        "CREATE TABLE src (id int PRIMARY KEY, a numeric, n numeric, m cents, f float8, g float8, t text, c char(5), j jsonb);"
        "INSERT INTO src SELECT g, 1.005, 2.010, 1.01, 0, 'NaN', 'a', 'b', '{\"a\": 1.0}' FROM generate_series(1, 20) g"
    )
    expressions = {
        "n": "a * 2",
        "m": "a",
        "f": "a * 0",
        "g": "'Infinity'::float8 - 'Infinity'::float8",  # not the bits of 'NaN'::float8
        "t": "chr(97)",
        "c": "'b'::text",
        "j": "jsonb_build_object('a', 1.0)",
    }
    async with in_its_place(database, expressions, where="id <> 13") as comparer:
        assert await differing(comparer, "20") == {}
        database.sql(
            "UPDATE src SET n = 2.01 WHERE id = 2; UPDATE src SET f = '-0', t = NULL WHERE id = 3; UPDATE src SET j = '{\"a\": 1}' WHERE id = 4"
        )
        database.sql(
            "UPDATE src SET m = 1.00 WHERE id = 5; UPDATE src SET n = NULL WHERE id = 13; UPDATE src SET c = 'c' WHERE id = 6"
        )
        found = await differing(comparer, "20")
        assert found == {"2": ("n",), "3": ("f", "t"), "4": ("j",), "5": ("m",), "6": ("c",)}
        looks = await comparer.look([(n,) for n in ("1", "2", "13", "99")])
        assert [look.kind for look in looks] == [None, "changed", None, None]
        assert await mended(comparer, await comparer.look([(n,) for n in found])) == [True] * 5
        assert await differing(comparer, "20") == {}
        assert database.sql("SELECT count(*) FROM src WHERE n IS NULL") == "1"  # the job has nothing to do with row 13


async def test_in_place_a_row_that_cannot_be_evaluated_is_found_and_left_alone_by_a_repair(database):
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, a int, n int); INSERT INTO src SELECT g, g, 100 / g FROM generate_series(1, 20) g"
    )
    database.sql("UPDATE src SET a = 0 WHERE id = 7; UPDATE src SET n = NULL WHERE id = 8")
    async with in_its_place(database, {"n": "100 / a"}) as comparer:
        assert await differing(comparer, "20") == {"7": (), "8": ("n",)}
        assert not (await comparer.digests(None, ("20",))).equal
        assert await mended(comparer, await comparer.look([("7",), ("8",)])) == [False, True]


async def test_a_job_that_cannot_be_evaluated_twice_is_judged_by_what_is_not_done(database):
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int, ok boolean); INSERT INTO src SELECT g, g, true FROM generate_series(1, 20) g"
    )
    database.sql("UPDATE src SET ok = NULL WHERE id = 7; UPDATE src SET ok = false WHERE id = 8")
    async with in_its_place(database, {"n": "n + 1"}, done="ok") as comparer:
        assert await differing(comparer, "20") == {"7": (), "8": ()}
        with pytest.raises(UsageError):
            await comparer.repair(await comparer.look([("7",)]))


# -- repair ---------------------------------------------------------------------------------------------------------


async def test_what_is_repaired_is_equal_afterwards_whatever_its_types(pair):
    source, target = pair
    both(pair, EVERYTHING, f"SELECT g, {ROW} FROM generate_series(1, {len(CHANGES) + 5}) g")
    for n, (column, value) in enumerate(CHANGES):
        source.sql(f"UPDATE src SET {column} = {value} WHERE id = {n + 3}")
    target.sql("DELETE FROM dst WHERE id % 5 = 0; INSERT INTO dst (id) VALUES (-5), (-6)")
    to = (str(len(CHANGES) + 5),)
    async with comparing(source, target) as comparer:
        found = await differences(comparer, to)
        assert {look.kind for look in found.values()} == {"changed", "missing", "extra"}
        assert await mended(comparer, list(found.values())) == [True] * len(found)
        assert await differences(comparer, to) == {}
        assert (await comparer.digests(None, to)).equal


async def test_nothing_is_deleted_that_nobody_asked_to_be_deleted(pair):
    source, target = pair
    both(pair, "id int PRIMARY KEY, n int", "SELECT g, g FROM generate_series(1, 5) g")
    target.sql("UPDATE dst SET id = -1 WHERE id = 1; UPDATE dst SET n = 0 WHERE id = 2")
    async with comparing(source, target) as comparer:
        looks = await comparer.look([("-1",), ("1",), ("2",)])
        assert [look.kind for look in looks] == ["extra", "missing", "changed"]
        assert await mended(comparer, looks, delete_extra=False) == [False, True, True]
        assert set(await differences(comparer, ("5",))) == {("-1",)}


async def test_a_row_whose_key_the_target_changes_is_not_left_there(pair):
    source, target = pair
    both(pair, "id int PRIMARY KEY, n int", "SELECT g, g FROM generate_series(1, 20) g")
    target.sql(
        "DELETE FROM dst WHERE id IN (3, 7, 8);"
        "CREATE FUNCTION moved() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id := NEW.id + 1000; RETURN NEW; END';"
        "CREATE TRIGGER moved BEFORE INSERT ON dst FOR EACH ROW WHEN (NEW.n = 7) EXECUTE FUNCTION moved()"
    )
    async with comparing(source, target, accept=["TRIGGERS_ON_TARGET"]) as comparer:
        looks = await comparer.look([(str(n),) for n in (3, 7, 8)])
        assert await mended(comparer, looks) == [True, False, True]
        assert set(await differences(comparer, ("20",))) == {("7",)}
    assert target.sql("SELECT count(*) FROM dst WHERE id > 20") == "0"


async def test_a_row_that_the_target_refuses_keeps_no_other_from_being_mended(pair):
    source, target = pair
    both(pair, "id int PRIMARY KEY, n int", "SELECT g, g FROM generate_series(1, 20) g")
    target.sql("UPDATE dst SET n = 0; ALTER TABLE dst ADD CHECK (n <> 7)")
    target.sql("DELETE FROM dst WHERE id = 7; ")
    async with comparing(source, target) as comparer:
        looks = await comparer.look([(str(n),) for n in range(1, 21)])
        assert await mended(comparer, looks) == [n != 7 for n in range(1, 21)]
        assert set(await differences(comparer, ("20",))) == {("7",)}


async def test_an_identity_is_written_where_an_insert_may_and_left_where_no_update_can(pair):
    source, target = pair
    source.sql("CREATE TABLE src (id int PRIMARY KEY, n int); INSERT INTO src VALUES (1, 5), (2, 6)")
    target.sql(
        "CREATE TABLE dst (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int); INSERT INTO dst (n) VALUES (4)"
    )
    async with comparing(source, target, accept=["IDENTITY_ALWAYS"]) as comparer:
        found = await differences(comparer, ("2",))
        assert await mended(comparer, list(found.values())) == [True, True]
        assert await differences(comparer, ("2",)) == {}


async def test_a_column_that_no_update_can_write_does_not_keep_the_others_from_being_mended(pair):
    source, target = pair
    source.sql("CREATE TABLE src (id int PRIMARY KEY, n int, t text); INSERT INTO src VALUES (1, 5, 'a'), (2, 6, 'b')")
    target.sql(
        "CREATE TABLE dst (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY (START 5), t text);"
        "INSERT INTO dst (id, t) VALUES (1, 'x'); INSERT INTO dst OVERRIDING SYSTEM VALUE VALUES (2, 7, 'x')"
    )
    async with comparing(source, target, accept=["IDENTITY_ALWAYS"]) as comparer:
        found = await differences(comparer, ("2",))
        assert await mended(comparer, list(found.values())) == [True, True]
        assert {k: look.columns for k, look in (await differences(comparer, ("2",))).items()} == {("2",): ("n",)}


async def test_a_key_of_the_target_that_the_source_cannot_hold_is_extra_and_can_be_deleted(pair):
    source, target = pair
    target.sql("CREATE TYPE big AS ENUM ('s', 'm', 'l', 'xl')")
    if target is not source:
        source.sql("CREATE TYPE big AS ENUM ('s', 'm', 'l')")
    source.sql("CREATE TABLE src (a big, b int, c real, PRIMARY KEY (a, b, c)); INSERT INTO src VALUES ('m', 1, 0.3)")
    target.sql(
        "CREATE TABLE dst (b bigint, a big, c float8, PRIMARY KEY (b, a, c));"
        "INSERT INTO dst VALUES (1, 'm', 0.3::real), (1, 'm', 0.3), (5, 'xl', 0.5), (99999999999, 'm', 0.5)"
    )
    async with comparing(source, target) as comparer:
        assert (await comparer.digests(None, ("m", "1", "0.30000001192092896"))).equal
        extras = await comparer.extras(None, ("99999999999", "xl", "1"), order=["b", "a", "c"])
        assert [s.key for s in extras] == [("m", "1", "0.3"), ("xl", "5", "0.5"), ("m", "99999999999", "0.5")]
        looks = await comparer.look([s.key for s in extras])
        assert [look.kind for look in looks] == ["extra"] * 3
        assert await mended(comparer, looks) == [True] * 3
        assert target.sql("SELECT count(*) FROM dst") == "1"


async def test_what_has_changed_on_either_side_since_the_look_is_left_alone(pair):
    source, target = pair
    both(pair, "id int PRIMARY KEY, n int", "SELECT g, g FROM generate_series(1, 8) g")
    target.sql("UPDATE dst SET n = 0; DELETE FROM dst WHERE id IN (3, 4); INSERT INTO dst VALUES (-1, 0), (-2, 0)")
    async with comparing(source, target) as comparer:
        keys = ["1", "2", "3", "4", "5", "-1", "-2"]
        looks = await comparer.look([(k,) for k in keys])
        source.sql("UPDATE src SET n = 10 WHERE id IN (1, 3); INSERT INTO src VALUES (-1, 7)")
        target.sql("UPDATE dst SET n = 20 WHERE id IN (2, -2); INSERT INTO dst VALUES (4, 20)")
        written = dict(zip(keys, await mended(comparer, looks), strict=True))
    assert written == {"1": False, "2": False, "3": False, "4": False, "5": True, "-1": False, "-2": False}
    assert (
        target.sql("SELECT string_agg(id || '=' || n, ' ' ORDER BY id) FROM dst")
        == "-2=20 -1=0 1=0 2=20 4=20 5=5 6=0 7=0 8=0"
    )


@pytest.mark.parametrize("first", ["source", "target"])
@pytest.mark.parametrize("kind", ["changed", "missing"])
async def test_a_writer_whose_transaction_is_half_done_has_the_last_word(pair, first, kind):
    source, target = pair
    both(pair, "id int PRIMARY KEY, n int", "SELECT g, g FROM generate_series(1, 3) g")
    target.sql("UPDATE dst SET n = 0" if kind == "changed" else "DELETE FROM dst WHERE id = 2")
    there = await source.connect()
    here = there if source is target else await target.connect()
    upsert = "INSERT INTO dst VALUES (2, 77) ON CONFLICT (id) DO UPDATE SET n = 77"
    writes = [(there, "UPDATE src SET n = 77 WHERE id = 2"), (here, upsert)]
    if first == "target":
        writes.reverse()
    async with comparing(source, target) as comparer:
        looks = await comparer.look([("2",)])
        for session in dict.fromkeys([there, here]):
            await session.execute("BEGIN")
        await writes[0][0].execute(writes[0][1])
        repairing = asyncio.create_task(mended(comparer, looks))
        if first == "target":
            await until_waiting(target)
        else:
            await repairing  # nothing that we want is locked: we write what is committed, or leave it, and he follows
        await writes[1][0].execute(writes[1][1])
        for session in dict.fromkeys([there, here]):
            await session.execute("COMMIT")
        written = await repairing
        assert written == [first == "source" and kind == "changed"]
        assert (await comparer.look([("2",)]))[0].kind is None
    assert target.sql("SELECT n FROM dst WHERE id = 2") == "77"


async def test_a_missing_row_whose_writer_found_nothing_to_update_stays_missing_rather_than_stale(pair):
    source, target = pair
    both(pair, "id int PRIMARY KEY, n int", "SELECT g, g FROM generate_series(1, 3) g")
    target.sql("DELETE FROM dst WHERE id = 2")
    writer = await source.connect()
    async with comparing(source, target) as comparer:
        looks = await comparer.look([("2",)])
        await writer.execute("BEGIN; UPDATE src SET n = 77 WHERE id = 2")
        assert target.sql("UPDATE dst SET n = 77 WHERE id = 2 RETURNING n") == ""
        assert await mended(comparer, looks) == [False]
        await writer.execute("COMMIT")
        assert await mended(comparer, looks) == [False]  # the look is of a row that is another by now
        assert (await comparer.look([("2",)]))[0].kind == "missing"


async def test_a_writer_who_comes_while_a_missing_row_is_mended_waits_and_finds_it(pair):
    source, target = pair
    both(pair, "id int PRIMARY KEY, n int", "SELECT g, g FROM generate_series(1, 3) g")
    target.sql("DELETE FROM dst WHERE id = 2")
    writer = await source.connect()
    async with comparing(source, target) as comparer:
        looks = await comparer.look([("2",)])
        await comparer.target.execute("BEGIN")
        assert await comparer.repair(looks) == [True]
        writing = asyncio.create_task(writer.execute("UPDATE src SET n = 77 WHERE id = 2"))
        await until_waiting(source)
        assert not writing.done()
        await comparer.target.execute("COMMIT")
        await comparer.release()
        await writing
        assert target.sql("UPDATE dst SET n = 77 WHERE id = 2 RETURNING n") == "77"


async def until_waiting(database: FreshDatabase) -> None:
    """Until some session of ours waits for a lock there."""
    async with asyncio.timeout(10):
        while (
            database.sql(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            == "0"
        ):
            await asyncio.sleep(0.01)


# -- against an oracle ----------------------------------------------------------------------------------------------

PAIRS = {
    "one database, 16": (16, None),
    "one database, 18": (18, None),
    "two databases, 16": (16, 16),
    "from 16 to 18": (16, 18),
    "from 18 to 16": (18, 16),
}

KEYS = {
    "number": ("k bigint", "k", lambda n: (str(n - 3),)),
    "text": ('k text COLLATE "C"', "k", lambda n: (f"k{n:02}",)),
    "uuid": ("k uuid", "k", lambda n: (f"00000000-0000-4000-8000-{n:012}",)),
    "two columns": (
        'k text COLLATE "C", "Second key" integer',
        'k, "Second key"',
        lambda n: (f"k{n // 3:02}", str(n % 3)),
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> Any:
    """Columns, a kind of key, rows of the source (one None for each that it lacks), and rows of the target."""
    declared = draw(st.lists(st.sampled_from(sorted(POOLS)), min_size=1, max_size=6))
    key = draw(st.sampled_from(sorted(KEYS)))
    row = st.tuples(*(st.one_of(st.none(), st.sampled_from(POOLS[d])) for d in declared))
    source = draw(st.lists(st.one_of(row, row, row, st.none()), min_size=1, max_size=12))
    target = [draw(st.one_of(st.just(r), st.just(r), row, st.none())) for r in source]
    if draw(st.booleans()):
        target = list(source)  # nothing may be invented, either
    return declared, key, source, target


async def fill(
    connection: asyncpg.Connection[Any], table: str, declared: Sequence[str], key: str, rows: Sequence[Any], step: int
) -> None:
    """Make and fill a table; ``step`` -1 reverses its columns and its rows' places on disk."""
    key_columns, primary, make_key = KEYS[key]
    columns = [f'"column {i}" {kind}' for i, kind in enumerate(declared)]
    mixed = [key_columns, *columns][::step]
    await connection.execute(
        f"DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (gone text, {', '.join(mixed)}, PRIMARY KEY ({primary}));"
        f"ALTER TABLE {table} DROP COLUMN gone"
    )
    names = [*primary.split(", "), *(f'"column {i}"' for i in range(len(declared)))]
    kinds = [column.removesuffix(' COLLATE "C"').rpartition(" ")[2] for column in key_columns.split(", ")]
    values = ", ".join(f"($1::text[])[{i + 1}]::{kind}" for i, kind in enumerate([*kinds, *declared]))
    for n in range(len(rows))[::step]:
        if rows[n] is not None:
            await connection.execute(
                f"INSERT INTO {table} ({', '.join(names)}) SELECT {values}", [*make_key(n), *rows[n]]
            )


async def as_text(connection: asyncpg.Connection[Any], table: str, key: str, width: int) -> dict[KeyValue, Any]:
    """The oracle's view: every row's values as the server prints them."""
    keys = ", ".join(f"{c}::text" for c in KEYS[key][1].split(", "))
    values = ", ".join(f'"column {i}"::text' for i in range(width))
    rows = await connection.fetch(f"SELECT ARRAY[{keys}] AS key, ARRAY[{values}] AS values FROM {table}")
    return {tuple(row["key"]): row["values"] for row in rows}


@dataclass(frozen=True, slots=True)
class Sides:
    """Source and target: a plain session with each, and the sessions that are compared over."""

    there: asyncpg.Connection[Any]
    here: asyncpg.Connection[Any]
    source: Connection
    target: Connection

    async def compare(self) -> Comparer:
        """A comparer of ``src`` and ``dst``, whose columns have the same names."""
        src = await inspect_table(self.source, TableName("public", "src"))
        dst = await inspect_table(self.target, TableName("public", "dst"))
        columns = {column.name: column for column in dst.columns}
        index = next(i for i in src.indexes if i.primary)
        key, ours = (
            tuple(
                KeyColumn(c.name, c.base_type, c.type_oid, kind_of(c), c.collation, c.collation_id)
                for c in (table.column(name) for name in index.columns)
                if c is not None
            )
            for table in (src, dst)
        )
        mapped = tuple(MappedColumn(c.name, ident(c.name), c.base_type, needs_cast=False) for c in dst.columns)
        target = TargetShape(dst.name, ours, mapped, False, ConflictPolicy.KEEP, None, same_order=True, remember=True)
        both = compared(SourceShape(src.name, Key(key, index.name), None), target, columns, volatile=frozenset())
        comparer = Comparer(both, self.source, self.target)
        await comparer.agree_on_hashes()
        return comparer


@pytest.fixture(params=PAIRS.values(), ids=list(PAIRS))
async def sides(
    request: pytest.FixtureRequest, servers: Servers, make_database: Callable[..., FreshDatabase]
) -> AsyncIterator[Sides]:
    """Source and target with the user's own types."""
    theirs, ours = request.param
    source = make_database(on=servers.get(theirs))
    target = source if ours is None else make_database(on=servers.get(ours))
    source.sql(types())
    if target is not source:
        target.sql(types(otherwise=True))
    there, here = [await d.connect(server_settings={"TimeZone": "UTC"}) for d in (source, target)]
    first = await Database(source.dsn, side=Side.SOURCE).connect("test", data=True)
    second = first if source is target else await Database(target.dsn, side=Side.TARGET).connect("test", data=True)
    yield Sides(there, here, first, second)
    await first.close()
    await second.close()


@pytest.mark.slow
@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(case=tables())
async def test_what_differs_is_what_a_plain_comparison_of_all_rows_says(sides: Sides, case: Any) -> None:
    there, here = sides.there, sides.here
    declared, key, theirs, ours = case
    await fill(there, "src", declared, key, theirs, 1)
    await fill(here, "dst", declared, key, ours, -1)
    left = await as_text(there, "src", key, len(declared))
    right = await as_text(here, "dst", key, len(declared))

    def judged(k: KeyValue) -> tuple[str, tuple[str, ...]]:
        if k not in left or k not in right:
            return ("missing" if k in left else "extra"), ()
        named = enumerate(zip(left[k], right[k], strict=True))
        return "changed", tuple(f"column {i}" for i, (one, other) in named if one != other)

    expected = {k: judged(k) for k in left.keys() | right.keys() if left.get(k) != right.get(k)}
    found = await differences(await sides.compare(), KEYS[key][2](len(theirs)))
    assert {k: (look.kind, tuple(sorted(look.columns))) for k, look in found.items()} == expected
