"""Our dual-write triggers on real servers: whatever an application does to the source, the target holds it too."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from engine.db import Connection, Database
from engine.db.database import application_name
from engine.errors import Busy, UsageError
from engine.flow import Prepared, dual_write, dual_write_change, endpoints_of, inspect
from engine.flow.dual_write import same_triggers, still_holds
from engine.flow.dual_write_change import patience
from engine.ledger.store import Ledger
from engine.model import Side
from engine.spec import JobSpec, OnConflict
from engine.sql import dual_write as text
from tests.support.databases import FreshDatabase, TwoDatabases, on_each_major
from tests.support.jobs import differing, in_place, into, prepare, run_to_done

_serial = itertools.count()
QUICK_S = 0.45
"""What a statement may take that must not be held up: the queue is left after 150 ms."""


@dataclass
class Dual:
    """A job, and a session that may change its triggers."""

    database: FreshDatabase
    prepared: Prepared
    connection: Connection

    async def install(self, patience_s: float = 5.0, said: list[str] | None = None) -> dual_write_change.Outcome:
        by = patience(patience_s, said.append if said is not None else lambda _: None)
        return await dual_write_change.install(self.connection, self.prepared, by=by)

    async def remove(self, patience_s: float = 5.0, **options: Any) -> dual_write_change.Outcome:
        return await dual_write_change.remove(
            self.connection, self.prepared.spec.name, by=patience(patience_s), **options
        )

    async def look(self) -> dual_write.DualWrite:
        return await dual_write.look(self.connection, self.prepared)

    async def script(self) -> str:
        return await dual_write_change.script(self.connection, self.prepared)


Made = Callable[[JobSpec], Any]


@pytest.fixture
async def dual(database: FreshDatabase) -> AsyncIterator[Made]:
    """``await dual(spec)``: the job prepared, with a session of its own."""
    opened: list[Connection] = []

    async def make(spec: JobSpec) -> Dual:
        prepared = dual_write_change.prepared_for_change(await inspect(spec, endpoints_of(spec)))
        opened.append(await prepared.endpoints.source.connect("dualwrite"))
        return Dual(database, prepared, opened[-1])

    yield make
    for connection in opened:
        await connection.close()


@pytest.fixture
async def shop(database: FreshDatabase, dual: Made) -> Dual:
    """Table src with three rows, an empty dst, and the triggers between them."""
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int, note text);"
        "CREATE TABLE dst (id int PRIMARY KEY, doubled int, note text);"
        "INSERT INTO src VALUES (1, 10, 'one'), (2, 20, 'two'), (3, 30, 'three')"
    )
    made: Dual = await dual(spec_of(database))
    await made.install()
    return made


def spec_of(database: FreshDatabase, **settings: Any) -> JobSpec:
    columns = {"id": "id", "doubled": "n * 2", "note": "upper(note)"}
    return into(database, "src", database, "dst", **{"columns": columns} | settings)


MAPPED = "SELECT id, n * 2, upper(note) FROM src"


def touched_alike(database: FreshDatabase, mapped: str = MAPPED, target: str = "TABLE dst") -> bool:
    """The target holds nothing but what the source holds: rows that nobody has touched yet are the job's business."""
    return database.sql(f"SELECT count(*) FROM (({target}) EXCEPT ALL ({mapped})) d") == "0"


def buried(database: FreshDatabase) -> list[str]:
    return database.sql("SELECT coalesce(key::text, 'all') FROM backfill.tombstone ORDER BY id").splitlines()


@pytest.fixture
def make_role(request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    made: list[tuple[FreshDatabase, str]] = []

    def make(database: FreshDatabase, options: str = "LOGIN") -> str:
        made.append((database, f"role_dw_{os.getpid()}_{next(_serial)}"))
        database.sql(f"CREATE ROLE {made[-1][1]} {options}")
        return made[-1][1]

    yield make
    for database, name in reversed(made):
        database.sql(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


# -- what an application does -----------------------------------------------------------------------------------------

STEPS = {
    "insert": "INSERT INTO src VALUES (4, 40, 'four'), (5, 50, NULL)",
    "insert or update": "INSERT INTO src VALUES (3, 31, 'x'), (6, 60, 'six') ON CONFLICT (id) DO UPDATE SET n = 32",
    "update many": "UPDATE src SET n = n + 1",
    "update to the same": "UPDATE src SET n = n",
    "change keys": "UPDATE src SET id = id + 100",
    "change keys in a chain": "UPDATE src SET id = id - 1",
    "change a key to one that was deleted": "DELETE FROM src WHERE id = 2; UPDATE src SET id = 2 WHERE id = 1",
    "delete": "DELETE FROM src WHERE id = 2",
    "delete all": "DELETE FROM src",
    "delete and insert again": "DELETE FROM src WHERE id = 2; INSERT INTO src VALUES (2, 21, 'again')",
    "several in one statement": (
        "WITH gone AS (DELETE FROM src WHERE id = 1 RETURNING *) INSERT INTO src SELECT id + 50, n, note FROM gone"
    ),
    "merge": (
        "MERGE INTO src USING (VALUES (1, 11), (7, 70)) v (id, n) ON src.id = v.id"
        " WHEN MATCHED AND v.n > 10 THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.n, 'new')"
    ),
    "copy": "COPY src FROM STDIN;\n8\t80\teight\n9\t90\tnine\n\\.\n",
    "rollback": "BEGIN; UPDATE src SET n = 0; DELETE FROM src WHERE id = 1; ROLLBACK",
    "savepoint": (
        "BEGIN; UPDATE src SET n = 1; SAVEPOINT s; DELETE FROM src; UPDATE src SET id = 77;"
        " ROLLBACK TO s; UPDATE src SET note = 'kept'; COMMIT"
    ),
    "truncate": "TRUNCATE src",
    "truncate and insert": "BEGIN; TRUNCATE src; INSERT INTO src VALUES (3, 33, 'new'); COMMIT",
}


@on_each_major
@pytest.mark.parametrize("copied", [False, True], ids=["before the copy", "after the copy"])
async def test_whatever_is_done_reaches_the_target(shop: Dual, copied: bool) -> None:
    database = shop.database
    for step, statements in STEPS.items():
        database.sql(
            "DELETE FROM src; INSERT INTO src VALUES (1, 10, 'one'), (2, 20, 'two'), (3, 30, 'three');"
            "TRUNCATE dst, backfill.tombstone" + (f"; INSERT INTO dst {MAPPED}" if copied else "")
        )
        database.sql(statements)
        assert touched_alike(database), step
        assert not copied or differing(database, MAPPED, "TABLE dst") == 0, step


@pytest.mark.parametrize(
    "step", ["change keys in a chain", "delete and insert again", "truncate and insert", "savepoint"]
)
async def test_the_job_brings_what_nobody_has_touched(shop: Dual, step: str) -> None:
    shop.database.sql(STEPS[step])
    await run_to_done(shop.prepared.spec)
    assert differing(shop.database, MAPPED, "TABLE dst") == 0


async def test_every_deleted_and_left_key_is_buried_once(shop: Dual) -> None:
    shop.database.sql("DELETE FROM src WHERE id = 1; UPDATE src SET id = 20 WHERE id = 2; UPDATE src SET n = 0")
    assert buried(shop.database) == ["{1}", "{2}"]


async def test_a_truncation_is_buried_as_one(shop: Dual) -> None:
    shop.database.sql("INSERT INTO dst VALUES (99, 0, 'of somebody else'); TRUNCATE src")
    assert buried(shop.database) == ["all"]
    assert shop.database.sql("SELECT id FROM dst") == "99"


async def test_a_truncation_by_an_old_snapshot_is_refused(shop: Dual) -> None:
    connection = await shop.database.connect()
    for isolation in ("REPEATABLE READ", "SERIALIZABLE"):
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="READ COMMITTED"):
            await connection.execute(f"BEGIN ISOLATION LEVEL {isolation}; TRUNCATE src")
        await connection.execute("ROLLBACK")
    assert shop.database.sql("SELECT count(*) FROM src") == "3"


async def test_a_truncation_beside_a_running_chunk_waits_and_does_not_deadlock(shop: Dual) -> None:
    chunk, other = await shop.database.connect(), await shop.database.connect()
    await chunk.execute(f"BEGIN; INSERT INTO dst {MAPPED}")
    truncation = asyncio.create_task(other.execute("TRUNCATE src"))
    while shop.database.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "0":
        await asyncio.sleep(0.01)
    # The next chunk of another worker: it has the target's lock, and waits for the source behind the truncation.
    second = await shop.database.connect()
    next_chunk = asyncio.create_task(second.execute(f"INSERT INTO dst {MAPPED} ON CONFLICT DO NOTHING"))
    while shop.database.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") != "2":
        await asyncio.sleep(0.01)
    await chunk.execute("COMMIT")
    assert await asyncio.wait_for(truncation, 10) == "TRUNCATE TABLE"
    assert await asyncio.wait_for(next_chunk, 10) == "INSERT 0 0"
    assert shop.database.sql("SELECT count(*) FROM dst") == "0"


async def test_an_old_snapshot_that_would_lose_an_update_is_told_so(shop: Dual) -> None:
    older = await shop.database.connect()
    await older.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM src")
    shop.database.sql(f"INSERT INTO dst {MAPPED}")
    with pytest.raises(asyncpg.SerializationError):
        await older.execute("UPDATE src SET n = 999 WHERE id = 1")


# -- where, other triggers, other sessions -----------------------------------------------------------------------------


@on_each_major
async def test_rows_that_enter_and_leave_the_job(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int, note text, gone boolean NOT NULL DEFAULT false);"
        "CREATE TABLE dst (id int PRIMARY KEY, doubled int, note text)"
    )
    made = await dual(spec_of(database, where="NOT gone AND n <> 0"))
    await made.install()
    database.sql(
        "INSERT INTO src VALUES (1, 1, 'in', false), (2, 2, 'out', true), (3, 3, 'leaves', false), (4, 0, 'out', false);"
        "UPDATE src SET gone = true WHERE id = 3; UPDATE src SET gone = false WHERE id = 2;"
        "UPDATE src SET note = 'still out' WHERE id = 4; DELETE FROM src WHERE id = 4;"
        "UPDATE src SET id = 10 WHERE id = 1"
    )
    assert differing(database, f"{MAPPED} WHERE NOT gone", "TABLE dst") == 0
    assert buried(database) == ["{3}", "{1}"]
    database.sql("INSERT INTO src VALUES (5, 5, 'never', true); INSERT INTO dst VALUES (5, 0, 'of somebody else')")
    database.sql("UPDATE src SET note = 'x' WHERE id = 5; DELETE FROM src WHERE id = 5; TRUNCATE src")
    assert database.sql("SELECT id FROM dst") == "5"


CHANGING = {
    "the clock": "until > now()",
    "the clock, without a function": "until > current_timestamp",
    "the clock, in a literal": "until > 'now'",
    "the clock, in a cast": "until > label::timestamptz",
    "another table": "EXISTS (SELECT FROM public.customer WHERE customer.id = src.n AND pro)",
    "another row of the same table": "NOT EXISTS (SELECT FROM public.src s WHERE s.id = src.id + 1)",
    "a function": "public.is_on(n)",
}


@pytest.mark.parametrize("what", CHANGING)
@pytest.mark.parametrize(
    "statement", ["DELETE FROM src WHERE id = 1", "TRUNCATE src", "UPDATE src SET id = 7 WHERE id = 1"]
)
async def test_a_row_that_the_job_brought_goes_though_its_where_says_something_else_by_now(
    database: FreshDatabase, dual: Made, what: str, statement: str
) -> None:
    """A ``where`` that looks at more than the row: what it says of a deleted row is not what it said of the copied one."""
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int, until timestamptz, label text);"
        "CREATE TABLE dst (LIKE src INCLUDING ALL); CREATE TABLE customer (id int PRIMARY KEY, pro boolean);"
        "CREATE FUNCTION is_on(int) RETURNS boolean LANGUAGE sql STABLE"
        " AS 'SELECT EXISTS (SELECT FROM public.customer WHERE id = $1 AND pro)';"
        "INSERT INTO src VALUES (1, 1, '2001-01-01', 'now'), (2, 2, '2001-01-01', 'now')"
    )
    made = await dual(into(database, "src", database, "dst", where=CHANGING[what]))
    await made.install()
    database.sql("INSERT INTO dst TABLE src")  # brought while it held
    database.sql(statement)
    assert database.sql("SELECT count(*) FROM dst WHERE id = 1") == "0"
    assert ("all" if "TRUNCATE" in statement else "{1}") in buried(database)


PURE = (
    "kept",
    "src.kept AND (n > 0 OR n IN (-1, -2))",
    "n BETWEEN -5 AND 5 AND \"Known\" IS NOT DISTINCT FROM 'known' AND coalesce(n, 0) <> 7",
    "CASE WHEN kept THEN n = ANY ('{1,2}') ELSE \"Known\" LIKE 'x%' END",
)


@pytest.mark.parametrize("where", PURE)
async def test_a_where_of_the_row_alone_leaves_other_rows_of_the_target_alone(
    database: FreshDatabase, dual: Made, where: str
) -> None:
    database.sql(
        'CREATE TABLE src (id int PRIMARY KEY, n int, kept boolean, "Known" text);'
        "CREATE TABLE dst (LIKE src INCLUDING ALL); INSERT INTO src VALUES (1, 7, false, 'no');"
        "INSERT INTO dst VALUES (1, 0, true, 'of somebody else')"
    )
    made = await dual(into(database, "src", database, "dst", where=where))
    await made.install()
    database.sql("DELETE FROM src WHERE id = 1; INSERT INTO src VALUES (1, 7, false, 'no'); TRUNCATE src")
    assert database.sql("SELECT n FROM dst") == "0"


async def test_what_other_triggers_do_to_the_row_meanwhile_is_what_counts(shop: Dual) -> None:
    """A trigger that fires before ours and writes the row again: the newer write must not be overwritten by the older."""
    shop.database.sql(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF pg_trigger_depth() = 1 THEN"
        "   IF NEW.n = 666 THEN DELETE FROM src WHERE id = NEW.id;"
        "   ELSE UPDATE src SET n = n + 1000, id = id + 100 WHERE id = NEW.id; END IF;"
        " END IF; RETURN NULL; END $$;"
        "CREATE TRIGGER aaa AFTER INSERT OR UPDATE ON src FOR EACH ROW EXECUTE FUNCTION again();"
        f"INSERT INTO dst {MAPPED}"
    )
    shop.database.sql(
        "UPDATE src SET note = 'x'; INSERT INTO src VALUES (5, 5, 'y'); UPDATE src SET n = 666 WHERE id = 101"
    )
    assert differing(shop.database, MAPPED, "TABLE dst") == 0
    assert int(shop.database.sql("SELECT count(*) FROM dst")) == 3


HOSTILE = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Pacific/Chatham",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "xmlbinary": "hex",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "search_path": "evil, pg_catalog, public",
    "session_replication_role": "replica",
    "row_security": "on",
    "check_function_bodies": "off",
    "plpgsql.variable_conflict": "error",
    "lock_timeout": "5s",
}


@on_each_major
async def test_the_applications_session_changes_nothing(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE SCHEMA evil;"
        "CREATE FUNCTION evil.never(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT false';"
        "CREATE OPERATOR evil.= (FUNCTION = evil.never, LEFTARG = int, RIGHTARG = int);"
        "CREATE FUNCTION evil.upper(text) RETURNS text LANGUAGE sql AS $$SELECT 'evil'$$;"
        "CREATE TABLE src (id timestamptz, k interval, f float8, b bytea, n int, t text, PRIMARY KEY (id, k, f, b));"
        "CREATE TABLE dst (id timestamptz, k interval, f float8, b bytea, as_text text, u text, PRIMARY KEY (id, k, f, b))"
    )
    expressions = {
        "id": "id", "k": "k", "f": "f", "b": "b",
        "as_text": r"concat_ws('|', id::text, k::text, f::text, b::text, 'a\b', n = NULL, '{NULL}'::text[]::text)",
        "u": "upper(t)",
    }  # fmt: skip
    made = await dual(into(database, "src", database, "dst", columns=expressions))
    await made.install()
    connection = await database.connect()
    for name, value in HOSTILE.items():
        await connection.execute("SELECT pg_catalog.set_config($1, $2, false)", name, value)
    await connection.execute(
        "INSERT INTO public.src VALUES ('2024-03-01 12:00+00', '1 day 2 hours', 0.1::float8 + 0.2::float8, $1, 1, 'a'),"
        " ('2024-03-02 12:00+00', '1', 2, '', 1, 'b')",
        b"x\x01\xff",
    )
    await connection.execute("DELETE FROM public.src WHERE t = 'b'")
    assert database.sql("SELECT as_text, u FROM dst") == (
        r"2024-03-01 12:00:00+00|1 day 02:00:00|0.30000000000000004|\x7801ff|a\b|{NULL}|A"
    )
    # The key in a tombstone reads as the job itself reads it.
    key = "ARRAY[id::text, k::text, f::text, b::text]"
    await made.connection.execute("INSERT INTO public.src VALUES ('2024-03-02 12:00+00', '00:00:01', 2, '', 1, 'b')")
    assert buried(database) == [await made.connection.fetchval(f"SELECT ({key})::text FROM public.src WHERE t = 'b'")]


@on_each_major
async def test_an_application_without_any_right_on_the_target(
    database: FreshDatabase, dual: Made, make_role: Callable[..., str]
) -> None:
    owner, application = make_role(database, "NOLOGIN"), make_role(database)
    database.sql(
        "CREATE SCHEMA hidden;"
        "CREATE TABLE src (id int PRIMARY KEY, n int); CREATE TABLE hidden.dst (id int PRIMARY KEY, n int);"
        f"ALTER TABLE src OWNER TO {owner}; GRANT USAGE ON SCHEMA hidden TO {owner};"
        f"GRANT ALL ON hidden.dst TO {owner}; GRANT INSERT, UPDATE, DELETE, SELECT, TRUNCATE ON src TO {application}"
    )
    made = await dual(into(database, "src", database, "hidden.dst"))
    await made.install()
    assert database.sql("SELECT DISTINCT proowner::regrole FROM pg_proc WHERE proname LIKE 'dual_write%'") == owner
    connection = await asyncpg.connect(database.server.dsn(database.name, user=application))
    try:
        await connection.execute(
            "INSERT INTO src VALUES (1, 1), (2, 2), (3, 3); UPDATE src SET id = 20 WHERE id = 2; DELETE FROM src WHERE id = 3"
        )
        assert differing(database, "TABLE src", "TABLE hidden.dst") == 0
        assert buried(database) == ["{2}", "{3}"]
        await connection.execute("TRUNCATE src")
        assert database.sql("SELECT count(*) FROM hidden.dst") == "0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("TABLE hidden.dst")
        # Nor can he make a trigger of his own of the function, which would write as its owner.
        database.sql(f"GRANT USAGE ON SCHEMA backfill TO {application}")
        await connection.execute("CREATE TEMPORARY TABLE mine (id int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            name = text.function_names("job")[0]
            await connection.execute(
                f"CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION backfill.{name}()"
            )
    finally:
        await connection.close()


# -- tables of all kinds ----------------------------------------------------------------------------------------------

KEYS = {
    "smallint": ("smallint", ["1", "2", "3"]),
    "uuid": ("uuid", ["'00000000-0000-0000-0000-00000000000a'", "gen_random_uuid()", "gen_random_uuid()"]),
    "text": ("text", ["'it''s'", "E'back\\\\slash'", "'Ä \"quoted\" {,}'"]),
    "char(n)": ("char(5)", ["'ab'", "'abc'", "''"]),
    "bytea": ("bytea", [r"'\x00ff'", r"''", r"'\x27'"]),
    "numeric": ("numeric", ["'NaN'", "1.50", "'Infinity'"]),
    "double": ("float8", ["'NaN'", "0.1", "'-Infinity'"]),
    "timestamptz": ("timestamptz", ["'infinity'", "'2024-03-31 01:59+01'", "'0044-03-15 BC'"]),
    "interval": ("interval", ["'1 mon'", "'-1 day'", "'00:00:00.000001'"]),
    "enum": ("mood", ["'sad'", "'Happy'", "'a b'"]),
    "domain": ("positive", ["1", "2", "3"]),
    "array": ("int[]", ["'{1,2}'", "'{}'", "'{NULL}'"]),
    "range": ("int4range", ["'[1,2)'", "'empty'", "'[,5)'"]),
    "boolean": ("boolean", ["true", "false", None]),
    "case-insensitive text": ('text COLLATE "ci"', ["'a'", "'b'", "'c'"]),
}


def icu(database: FreshDatabase) -> bool:
    try:
        database.sql("CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    except Exception as error:
        if "ICU is not supported" in str(error):
            return False
        raise
    return True


@pytest.mark.parametrize("kind", KEYS)
async def test_a_key_of_this_type(database: FreshDatabase, dual: Made, kind: str) -> None:
    type_name, values = KEYS[kind]
    if "ci" in type_name and not icu(database):
        type_name = "text"
    database.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'Happy', 'a b'); CREATE DOMAIN positive AS int CHECK (value > 0);"
        f'CREATE TABLE src (n int, "Key" {type_name}, PRIMARY KEY ("Key")); CREATE TABLE dst (LIKE src INCLUDING ALL)'
    )
    made = await dual(into(database, "src", database, "dst"))
    await made.install()
    there = [value for value in values if value is not None]
    for n, value in enumerate(there[:2]):
        database.sql(f"INSERT INTO src VALUES ({n}, {value})")
    database.sql("UPDATE src SET n = n + 10")
    assert differing(database, 'SELECT n, "Key"::text FROM src', 'SELECT n, "Key"::text FROM dst') == 0
    if len(there) > 2:
        database.sql(f'UPDATE src SET "Key" = {there[2]} WHERE n = 11')
    database.sql("DELETE FROM src WHERE n = 10")
    assert differing(database, 'SELECT n, "Key"::text FROM src', 'SELECT n, "Key"::text FROM dst') == 0
    assert len(buried(database)) == len(there) - 1


async def test_keys_that_are_equal_and_not_the_same(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE TABLE src (a numeric, b float8, n int, PRIMARY KEY (a, b)); CREATE TABLE dst (LIKE src INCLUDING ALL)"
    )
    made = await dual(into(database, "src", database, "dst"))
    await made.install()
    database.sql("INSERT INTO src VALUES (1.0, 0, 1); UPDATE src SET a = 1.000, b = '-0'")
    assert database.sql("SELECT a::text, b::text FROM dst") == "1.000|-0"
    assert buried(database) == []


@on_each_major
async def test_names_with_capitals_spaces_and_keywords_and_composite_keys(database: FreshDatabase, dual: Made) -> None:
    """The source is called as plpgsql calls a trigger's row, and its columns as plpgsql's own variables."""
    database.sql(
        'CREATE SCHEMA "Odd ""one"; CREATE TABLE "Odd ""one"."new" ("Tenant Id" int, "old" text, "found" int, key_0 int,'
        ' "turn" int, tg_op text, PRIMARY KEY ("old", "Tenant Id"));'
        'CREATE TABLE "Odd ""one"."Ta rget" ("select" int, "Old" text, "sum" int, tg_op text, UNIQUE ("select", "Old"))'
    )
    columns = {
        "select": '"Tenant Id"',
        "Old": '"old"',
        "sum": '"new"."found" + key_0 + turn',
        "tg_op": "tg_op",
    }
    made = await dual(
        into(database, 'Odd "one.new', database, 'Odd "one.Ta rget', columns=columns, where="found > 0 AND turn > 0")
    )
    await made.install()
    table = '"Odd ""one"."new"'
    database.sql(
        f"INSERT INTO {table} VALUES (1, 'a', 1, 2, 3, 'x'), (1, 'b', 1, 2, 3, 'y'), (2, 'a', 1, 2, 3, 'z'), (3, 'a', 0, 2, 3, '');"
        f"""UPDATE {table} SET "old" = 'c' WHERE tg_op = 'y'; UPDATE {table} SET key_0 = 7; DELETE FROM {table} WHERE tg_op = 'z'"""
    )
    mapped = f'SELECT "Tenant Id", "old", found + key_0 + turn, tg_op FROM {table} WHERE found > 0'
    assert differing(database, mapped, 'TABLE "Odd ""one"."Ta rget"') == 0
    assert buried(database) == ["{b,1}", "{a,2}"]
    assert (await made.look()).intact


@on_each_major
async def test_identity_generated_and_defaulted_columns(database: FreshDatabase, dual: Made) -> None:
    virtual = "VIRTUAL" if database.server.major >= 18 else "STORED"
    database.sql(
        "CREATE TABLE src (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int,"
        f" twice int GENERATED ALWAYS AS (n * 2) STORED, thrice int GENERATED ALWAYS AS (n * 3) {virtual});"
        "CREATE TABLE dst (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, twice int, thrice int,"
        " four int GENERATED ALWAYS AS (twice * 2) STORED, token uuid)"
    )
    columns = {"id": "id", "twice": "twice", "thrice": "thrice", "token": "gen_random_uuid()"}
    made = await dual(into(database, "src", database, "dst", columns=columns, where="thrice > 0"))
    await made.install()
    database.sql("INSERT INTO src (n) VALUES (1), (2), (0), (4)")
    before = database.sql("SELECT token FROM dst WHERE id = 1")
    database.sql("UPDATE src SET n = n + 1; UPDATE src SET n = 0 WHERE id = 4; DELETE FROM src WHERE id = 2")
    assert database.sql("SELECT id, twice, thrice, four FROM dst ORDER BY id") == "1|4|6|8\n3|2|3|4"
    assert database.sql("SELECT token FROM dst WHERE id = 1") == before  # a volatile expression is not computed again


@on_each_major
async def test_a_partitioned_source_with_rows_that_move_between_partitions(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE TABLE src (region text, id int, n int, PRIMARY KEY (region, id)) PARTITION BY LIST (region);"
        "CREATE TABLE src_eu PARTITION OF src FOR VALUES IN ('eu') PARTITION BY RANGE (id);"
        "CREATE TABLE src_eu_1 PARTITION OF src_eu FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE src_eu_2 PARTITION OF src_eu DEFAULT; CREATE TABLE src_us PARTITION OF src FOR VALUES IN ('us');"
        "CREATE TABLE dst (region text, id int, n int, PRIMARY KEY (region, id))"
    )
    made = await dual(into(database, "src", database, "dst"))
    await made.install()
    seen = await made.look()
    assert seen.intact, seen.problems
    database.sql(
        "INSERT INTO src VALUES ('eu', 1, 1), ('eu', 200, 2), ('us', 3, 3);"
        "UPDATE src SET id = 300 WHERE n = 1; UPDATE src SET region = 'us' WHERE n = 2; UPDATE src SET n = n + 1;"
        "INSERT INTO src_us VALUES ('us', 9, 9); DELETE FROM src_us WHERE id = 3"
    )
    assert differing(database, "TABLE src", "TABLE dst") == 0
    assert sorted(buried(database)) == ["{eu,1}", "{eu,200}", "{us,3}"]
    database.sql("CREATE TABLE src_cn PARTITION OF src FOR VALUES IN ('cn'); INSERT INTO src VALUES ('cn', 1, 1)")
    assert differing(database, "TABLE src", "TABLE dst") == 0
    after = await made.look()
    assert after.intact, after.problems
    assert still_holds(after.evidence, (await made.look()).evidence)
    database.sql("TRUNCATE src_us")
    assert differing(database, "TABLE src", "TABLE dst") > 0  # which no trigger has seen …
    assert not still_holds(after.evidence, (await made.look()).evidence)  # … and the evidence tells
    database.sql("ALTER TABLE src_cn DISABLE TRIGGER ALL")
    assert any("src_cn is disabled" in problem for problem in (await made.look()).problems)
    await made.remove()
    assert not (await made.look()).installed


async def test_detaching_a_partition_ends_the_evidence(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE one PARTITION OF src FOR VALUES FROM (0) TO (10); CREATE TABLE two PARTITION OF src DEFAULT;"
        "CREATE TABLE dst (id int PRIMARY KEY)"
    )
    made = await dual(into(database, "src", database, "dst"))
    await made.install()
    before = (await made.look()).evidence
    database.sql("ALTER TABLE src DETACH PARTITION one")
    after = await made.look()
    assert after.intact
    assert not still_holds(before, after.evidence)
    assert same_triggers(before, after.evidence)  # whether its rows agree is the verification's business


COMES = {
    "attached": "CREATE TABLE new (id int PRIMARY KEY); INSERT INTO new VALUES (20);"
    " ALTER TABLE src ATTACH PARTITION new FOR VALUES FROM (20) TO (30)",
    "attached and truncated": "CREATE TABLE new (id int PRIMARY KEY); INSERT INTO new VALUES (20);"
    " ALTER TABLE src ATTACH PARTITION new FOR VALUES FROM (20) TO (30); TRUNCATE new",
    "created": "CREATE TABLE new PARTITION OF src FOR VALUES FROM (20) TO (30)",
    "a branch whose leaf is gone again": "CREATE TABLE new PARTITION OF src FOR VALUES FROM (20) TO (30)"
    " PARTITION BY RANGE (id); CREATE TABLE leaf (id int PRIMARY KEY); INSERT INTO leaf VALUES (20);"
    " ALTER TABLE new ATTACH PARTITION leaf DEFAULT; DROP TABLE leaf",
}


@pytest.mark.parametrize("how", COMES)
async def test_a_partition_that_came_since_ends_the_evidence_of_the_sweep_and_not_that_of_the_gate(
    database: FreshDatabase, dual: Made, how: str
) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE one PARTITION OF src FOR VALUES FROM (0) TO (10); CREATE TABLE dst (id int PRIMARY KEY)"
    )
    made = await dual(into(database, "src", database, "dst"))
    await made.install()
    before = (await made.look()).evidence
    database.sql(COMES[how])
    after = await made.look()
    assert after.intact, after.problems
    assert not still_holds(before, after.evidence)
    assert same_triggers(before, after.evidence)
    assert same_triggers(json.loads(json.dumps(before)), after.evidence)  # as the ledger keeps it
    assert not same_triggers(before, None)
    assert not same_triggers({}, after.evidence)
    database.sql(f"ALTER TABLE src DISABLE TRIGGER {text.trigger_names('job')[0]}")
    assert not same_triggers(before, (await made.look()).evidence)


async def test_a_session_that_saw_the_table_small_does_not_scan_it_when_it_is_large(shop: Dual) -> None:
    shop.database.sql("VACUUM ANALYZE src")  # one page: to read all of it is the cheapest way
    connection = await shop.database.connect()
    for n in range(10):  # long enough for a generic plan
        await connection.execute("UPDATE src SET n = $1 WHERE id = 1", n)
    await connection.execute(
        "SET work_mem = '64MB'; INSERT INTO src SELECT g, g, 'x' FROM generate_series(10, 20000) g"
    )
    await connection.execute("SELECT pg_stat_force_next_flush()")
    before = int(await connection.fetchval("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'src'"))
    await connection.execute("INSERT INTO src SELECT g, g, 'x' FROM generate_series(20001, 20100) g")
    await connection.execute("SELECT pg_stat_force_next_flush()")
    after = int(await connection.fetchval("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'src'"))
    assert after == before


@pytest.mark.parametrize("columns", [{"id": "id"}, {"id": "id", "token": "gen_random_uuid()"}])
async def test_a_row_of_which_nothing_is_to_be_written_again_stays(
    database: FreshDatabase, dual: Made, columns: dict[str, str]
) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, n int); CREATE TABLE dst (id int PRIMARY KEY, token uuid)")
    made = await dual(into(database, "src", database, "dst", columns=columns))
    await made.install()
    database.sql("INSERT INTO src VALUES (1, 1)")
    before = database.sql("TABLE dst")
    database.sql("UPDATE src SET n = 2")
    assert database.sql("TABLE dst") == before
    assert before.startswith("1|")
    assert buried(database) == []


# -- in place ---------------------------------------------------------------------------------------------------------


@on_each_major
async def test_columns_in_place_follow_what_they_are_computed_from(database: FreshDatabase, dual: Made) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, amount numeric, cents bigint, label text, kind text)")
    database.sql("INSERT INTO src SELECT g, g / 100.0, NULL, NULL, 'x' FROM generate_series(1, 100) g")
    made = await dual(
        in_place(
            database,
            "src",
            {"cents": "(amount * 100)::bigint", "label": "src.kind || ':' || id"},
            where="kind <> 'skip'",
        )
    )
    await made.install()
    database.sql(
        "INSERT INTO src VALUES (200, 2, NULL, NULL, 'new'), (201, 2, 7, 'mine', 'skip');"
        "UPDATE src SET amount = 9 WHERE id = 1; UPDATE src SET kind = 'skip', amount = 9 WHERE id = 2"
    )
    assert database.sql("SELECT cents, label FROM src WHERE id IN (1, 2, 200, 201) ORDER BY id") == (
        "900|x:1\n|\n200|new:200\n7|mine"
    )
    ran = await run_to_done(made.prepared.spec)
    assert ran.result.rows == 98  # one was done by the trigger, one is left out
    assert database.sql("SELECT count(*) FROM src WHERE kind <> 'skip' AND cents IS DISTINCT FROM amount * 100") == "0"
    database.sql("UPDATE src SET amount = 1, cents = 5 WHERE id = 3")
    assert database.sql("SELECT cents FROM src WHERE id = 3") == "100"


@on_each_major
async def test_what_may_be_computed_once_only_is_computed_once(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int NOT NULL, plain int, marked boolean);"
        "INSERT INTO src SELECT g, 0, NULL, NULL FROM generate_series(1, 50) g"
    )
    spec = in_place(database, "src", {"n": "n + 1", "marked": "true", "plain": "id * 2"}, done="marked")
    made = await dual(spec)
    await made.install()
    database.sql(
        "UPDATE src SET n = 10 WHERE id = 1; UPDATE src SET n = n WHERE id = 1;"
        "INSERT INTO src VALUES (100, 5, NULL, NULL), (101, 5, NULL, true)"
    )
    assert (
        database.sql("SELECT n, marked, plain FROM src WHERE id IN (1, 100, 101) ORDER BY id")
        == "11|t|2\n6|t|200\n5|t|202"
    )
    await run_to_done(spec)
    assert database.sql("SELECT count(*) FROM src WHERE n <> 1 AND id BETWEEN 2 AND 50") == "0"
    assert database.sql("SELECT n FROM src WHERE id IN (1, 100, 101) ORDER BY id") == "11\n6\n5"


async def test_in_place_ours_fires_after_the_others_and_for_replicated_rows(
    database: FreshDatabase, dual: Made
) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int, doubled int);"
        "CREATE FUNCTION ten() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.n := 10; RETURN NEW; END';"
        "CREATE TRIGGER zz_a BEFORE INSERT ON src FOR EACH ROW EXECUTE FUNCTION ten()"
    )
    made = await dual(in_place(database, "src", {"doubled": "n * 2"}))
    await made.install()
    database.sql("INSERT INTO src VALUES (1, 1); SET session_replication_role = replica; INSERT INTO src VALUES (2, 2)")
    assert database.sql("TABLE src ORDER BY id") == "1|10|20\n2|2|4"


@on_each_major
async def test_what_another_job_writes_into_the_table_is_filled_too(database: FreshDatabase, dual: Made) -> None:
    """Two jobs in a chain: one copies into the table that the other one's trigger fills."""
    database.sql(
        "CREATE TABLE first (id int PRIMARY KEY, n int); CREATE TABLE src (id int PRIMARY KEY, n int, doubled int);"
        "INSERT INTO first SELECT g, g FROM generate_series(1, 500) g; ANALYZE first"
    )
    filling = await dual(in_place(database, "src", {"doubled": "n * 2"}, name="fill"))
    await filling.install()
    await run_to_done(filling.prepared.spec)
    copying = {"columns": {"id": "id", "n": "n"}, "accept": ["TRIGGERS_ON_TARGET"]}
    await run_to_done(into(database, "first", database, "src", name="fill-2", **copying))
    assert differing(database, "SELECT id, n, n * 2 FROM first", "TABLE src") == 0


@pytest.mark.parametrize("name", ["fill_1", "f" * 63], ids=["short", "cut"])
async def test_in_place_only_the_jobs_own_sessions_are_passed_over(
    database: FreshDatabase, dual: Made, name: str
) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, n int, doubled int)")
    made = await dual(in_place(database, "src", {"doubled": "n * 2"}, name=name))
    await made.install()
    seen = await made.look()
    assert seen.intact, seen.problems
    others = ["psql", f"backfill/{name}x/w1", "backfill/fillx1/w1", "backfill/w1", f"backfill/{name[:-1]}/w1", ""]
    for n, application in enumerate([*others, application_name(name, "w1")]):
        database.sql(f"SET application_name = '{application}'; INSERT INTO src VALUES ({n}, {n + 1})")
    unfilled = database.sql("SELECT id FROM src WHERE doubled IS NULL").split()
    # Of a name that is cut nobody can tell whose it is: rather compute what the job's chunk has computed already.
    assert unfilled == ([str(len(others))] if len(name) < 50 else [])


@pytest.mark.parametrize(
    ("expression", "named"),
    [("twice + 1", "twice"), ("hashtext(src::text)", "twice"), ("(ctid::text = 'x')::int", "ctid")],
)
async def test_in_place_an_expression_that_a_trigger_cannot_see_is_refused(
    database: FreshDatabase, dual: Made, expression: str, named: str
) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED, filled int)"
    )
    made = await dual(in_place(database, "src", {"filled": expression}, done="filled IS NOT NULL"))
    with pytest.raises(UsageError, match=named):
        await made.install()
    fine = await dual(in_place(database, "src", {"filled": "src.n + 1"}))
    await fine.install()


# -- installing -------------------------------------------------------------------------------------------------------


@on_each_major
async def test_installing_is_told_checked_and_idempotent(shop: Dual) -> None:
    first = await shop.look()
    assert first.intact, first.problems
    again = await shop.install()
    assert not again.changed
    assert still_holds(first.evidence, (await shop.look()).evidence)
    history = await Ledger(shop.connection).history("job")
    assert [entry.what for entry in history] == ["dual-write installed"]
    assert (await shop.remove()).changed
    assert not (await shop.remove()).changed
    seen = await shop.look()
    assert (seen.installed, seen.intact, seen.evidence) == (False, False, None)
    assert shop.database.sql("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'zz_backfill%'") == "0"
    assert shop.database.sql("SELECT count(*) FROM pg_proc WHERE proname LIKE 'dual_write%'") == "0"
    assert (await Ledger(shop.connection).history("job"))[-1].what == "dual-write removed"


@on_each_major
async def test_the_printed_script_installs_the_same(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int, note text); CREATE TABLE dst (id int PRIMARY KEY, doubled int, note text)"
    )
    made = await dual(spec_of(database, name="it-s.odd_1", where="note <> 'it''s $dual_write$'"))
    script = await made.script()
    assert database.sql("SELECT to_regnamespace('backfill') IS NULL") == "t"  # nothing was touched
    database.sql("SET search_path = nowhere; SET standard_conforming_strings = off;\n" + script)
    seen = await made.look()
    assert seen.intact, seen.problems
    database.sql(await made.script())  # runs again
    assert (await made.look()).intact


TAMPERED = {
    "dropped": ("DROP TRIGGER {row} ON src", "is missing"),
    "disabled": ("ALTER TABLE src DISABLE TRIGGER {row}", "is disabled"),
    "origin only": ("ALTER TABLE src ENABLE TRIGGER {row}", "does not fire for replicated rows"),
    "replica only": ("ALTER TABLE src ENABLE REPLICA TRIGGER {truncate}", "fires for replicated rows only"),
    "fewer events": (
        (
            "CREATE OR REPLACE TRIGGER {row} AFTER INSERT OR UPDATE ON src FOR EACH ROW EXECUTE FUNCTION backfill.{function}();"
            "ALTER TABLE src ENABLE ALWAYS TRIGGER {row}"
        ),
        "defined in another way",
    ),
    "a condition": (
        (
            "CREATE OR REPLACE TRIGGER {row} AFTER INSERT OR UPDATE OR DELETE ON src FOR EACH ROW WHEN (false)"
            " EXECUTE FUNCTION backfill.{function}(); ALTER TABLE src ENABLE ALWAYS TRIGGER {row}"
        ),
        "defined in another way",
    ),
    "a condition on the row": (
        (
            "CREATE OR REPLACE TRIGGER {row} AFTER UPDATE ON src FOR EACH ROW WHEN (NEW.n > OLD.n)"
            " EXECUTE FUNCTION backfill.{function}(); ALTER TABLE src ENABLE ALWAYS TRIGGER {row}"
        ),
        "defined in another way",
    ),
    "some columns": (
        (
            "CREATE OR REPLACE TRIGGER {row} AFTER INSERT OR UPDATE OF n OR DELETE ON src FOR EACH ROW"
            " EXECUTE FUNCTION backfill.{function}(); ALTER TABLE src ENABLE ALWAYS TRIGGER {row}"
        ),
        "defined in another way",
    ),
    "another function": (
        (
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
            "CREATE OR REPLACE TRIGGER {row} AFTER INSERT OR UPDATE OR DELETE ON src FOR EACH ROW"
            " EXECUTE FUNCTION nothing(); ALTER TABLE src ENABLE ALWAYS TRIGGER {row}"
        ),
        "defined in another way",
    ),
    "another body": (
        "CREATE OR REPLACE FUNCTION backfill.{function}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "does something else",
    ),
    "a setting": ("ALTER FUNCTION backfill.{function}() SET search_path = public", "has other settings"),
    "no setting": ("ALTER FUNCTION backfill.{function}() RESET ALL", "has other settings"),
    "invoker": ("ALTER FUNCTION backfill.{function}() SECURITY INVOKER", "owner's rights"),
}


@pytest.mark.parametrize("how", TAMPERED)
async def test_tampering_shows_ends_the_evidence_and_is_mended(shop: Dual, how: str) -> None:
    statement, problem = TAMPERED[how]
    before = await shop.look()
    row, truncate = text.trigger_names("job")
    shop.database.sql(statement.format(row=row, truncate=truncate, function=text.function_names("job")[0]))
    after = await shop.look()
    assert after.installed
    assert not after.intact
    assert any(problem in one for one in after.problems), after.problems
    assert not still_holds(before.evidence, after.evidence)
    assert not same_triggers(before.evidence, after.evidence)
    assert (await shop.install()).changed
    mended = await shop.look()
    assert mended.intact, mended.problems
    assert not still_holds(before.evidence, mended.evidence)
    assert not same_triggers(before.evidence, mended.evidence)
    shop.database.sql(f"INSERT INTO dst {MAPPED}; UPDATE src SET n = 5; DELETE FROM src WHERE id = 1")
    assert differing(shop.database, MAPPED, "TABLE dst") == 0


async def test_triggers_that_were_away_for_a_moment_are_not_the_same(shop: Dual) -> None:
    before = await shop.look()
    row = text.trigger_names("job")[0]
    shop.database.sql(
        f"BEGIN; ALTER TABLE src DISABLE TRIGGER {row}; DELETE FROM src WHERE id = 1;"
        f"ALTER TABLE src ENABLE ALWAYS TRIGGER {row}; COMMIT"
    )
    after = await shop.look()
    assert after.intact
    assert not still_holds(before.evidence, after.evidence)
    assert not still_holds(before.evidence, None)


async def test_a_job_that_means_something_else_now_needs_other_triggers(shop: Dual, dual: Made) -> None:
    other = await dual(spec_of(shop.database, where="n > 15"))
    seen = await other.look()
    assert seen.installed
    assert not seen.intact
    assert (await other.install()).changed
    assert (await other.look()).intact
    assert not (await shop.look()).intact


async def test_two_jobs_on_one_table_have_triggers_of_their_own(shop: Dual, dual: Made) -> None:
    database = shop.database
    database.sql("CREATE TABLE dst2 (id int PRIMARY KEY, n int)")
    other = await dual(into(database, "src", database, "dst2", name="job-2"))
    await other.install()
    database.sql("UPDATE src SET n = 0")
    assert differing(database, MAPPED, "TABLE dst") == 0
    assert differing(database, "SELECT id, n FROM src", "TABLE dst2") == 0
    found = await dual_write_change.find_installed(shop.connection)
    assert {one.job for one in found} == {"job", "job-2"}
    assert len(await dual_write_change.find_installed(shop.connection, "job-2")) == 2
    await shop.remove()
    assert (await other.look()).intact
    database.sql("DELETE FROM src WHERE id = 1")
    assert differing(database, "SELECT id, n FROM src", "TABLE dst2") == 0


async def test_a_second_jobs_triggers_into_the_same_target_are_refused(shop: Dual, dual: Made) -> None:
    database = shop.database
    database.sql("CREATE TABLE other (id int PRIMARY KEY, n int, note text)")
    by_where = await dual(spec_of(database, name="job-2", where="n > 15"))
    from_elsewhere = into(database, "other", database, "dst", name="job-3", columns={"id": "id", "doubled": "n"})
    for second in (by_where, await dual(from_elsewhere)):
        for change in (second.install, second.script):
            with pytest.raises(UsageError, match=r"triggers of job write public\.dst already") as caught:
                await change()
            assert "backfill dualwrite job --remove" in caught.value.hint
        assert not (await second.look()).installed
    assert (await shop.look()).intact
    await shop.remove()
    assert (await by_where.install()).changed
    with pytest.raises(UsageError, match="triggers of job-2 write"):
        await shop.install()


async def test_a_function_that_no_trigger_calls_any_more_is_in_nobodys_way(shop: Dual, dual: Made) -> None:
    database = shop.database
    database.sql("DROP TABLE src; CREATE TABLE src (id int PRIMARY KEY, n int, note text)")
    assert (await (await dual(spec_of(database, name="job-2"))).install()).changed


async def test_a_target_and_its_partition_are_one_target(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY); CREATE TABLE dst (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE part PARTITION OF dst FOR VALUES FROM (0) TO (10)"
    )
    whole = await dual(into(database, "src", database, "dst", name="whole"))
    part = await dual(into(database, "src", database, "part", name="part", where="id < 10"))
    for first, second in ((whole, part), (part, whole)):
        await first.install()
        with pytest.raises(UsageError, match=f"triggers of {first.prepared.spec.name} write"):
            await second.install()
        await first.remove()


async def test_of_two_jobs_that_install_at_once_into_one_target_one_is_refused(shop: Dual, dual: Made) -> None:
    database = shop.database
    await shop.remove()
    jobs = []
    for n in range(4):
        database.sql(f"CREATE TABLE src{n} (id int PRIMARY KEY, n int, note text)")
        jobs.append(await dual(into(database, f"src{n}", database, "dst", name=f"job-{n}", columns={"id": "id"})))
    outcomes = await asyncio.gather(*(job.install(20.0) for job in jobs), return_exceptions=True)
    assert sum(isinstance(one, dual_write_change.Outcome) for one in outcomes) == 1, outcomes
    assert sum(isinstance(one, UsageError) for one in outcomes) == 3, outcomes


# -- beside others ----------------------------------------------------------------------------------------------------


async def quick(connection: Any, statement: str) -> float:
    began = time.monotonic()
    await connection.execute(statement)
    return time.monotonic() - began


@on_each_major
async def test_nobody_waits_while_we_wait_for_an_old_transaction(shop: Dual) -> None:
    await shop.remove()
    old, application = (
        await shop.database.connect(server_settings={"application_name": "nightly"}),
        await shop.database.connect(),
    )
    await old.execute("BEGIN; UPDATE src SET n = 0 WHERE id = 1")
    while float(await application.fetchval(
        "SELECT extract(epoch FROM clock_timestamp() - xact_start)::float8 FROM pg_stat_activity WHERE application_name = 'nightly'"
    )) < 1.1:  # fmt: skip
        await asyncio.sleep(0.05)
    said: list[str] = []
    installing = asyncio.create_task(shop.install(30.0, said))
    slowest = 0.0
    for n in range(60):
        slowest = max(slowest, await quick(application, f"INSERT INTO src VALUES ({100 + n}, 1, 'x')"))
        await asyncio.sleep(0.02)
    assert not installing.done()
    assert len(said) == 1
    assert "nightly" in said[0]
    assert slowest < 0.1, slowest  # nobody stands in line before him
    await old.execute("COMMIT")
    assert (await asyncio.wait_for(installing, 10)).changed
    await application.execute("UPDATE src SET n = 5 WHERE id = 1")
    assert shop.database.sql("SELECT doubled FROM dst WHERE id = 1") == "10"


async def test_writers_wait_for_a_moment_only_when_somebody_turns_out_to_stay(shop: Dual) -> None:
    """A transaction that is young when we come, so that we stand in line behind it, and then does not end."""
    await shop.remove()
    young, application = await shop.database.connect(), await shop.database.connect()
    await young.execute("BEGIN; UPDATE src SET n = 0 WHERE id = 1")
    installing = asyncio.create_task(shop.install(30.0))
    waits: list[float] = []
    for n in range(50):
        waits.append(await quick(application, f"INSERT INTO src VALUES ({100 + n}, 1, 'x')"))
        await asyncio.sleep(0.04)
    assert not installing.done()
    assert max(waits) > 0.05, waits  # we did stand in line, or this test says nothing
    assert max(waits) < QUICK_S, waits
    await young.execute("COMMIT")
    assert (await asyncio.wait_for(installing, 10)).changed


@pytest.mark.parametrize("removing", [False, True], ids=["install", "remove"])
async def test_patience_ends_with_the_name_of_who_is_in_the_way_and_nothing_changed(shop: Dual, removing: bool) -> None:
    if not removing:
        await shop.remove()
    before = (await shop.look()).evidence
    old = await shop.database.connect(server_settings={"application_name": "report"})
    # A reader is in the way of those who drop triggers only.
    await old.execute("BEGIN; SELECT FROM src" if removing else "BEGIN; DELETE FROM src")
    began = time.monotonic()
    with pytest.raises(Busy, match="report") as caught:
        await (shop.remove(1.5) if removing else shop.install(1.5))
    assert time.monotonic() - began < 4
    assert caught.value.exit_code == 75
    assert (await shop.look()).evidence == before
    if not removing:
        assert shop.database.sql("SELECT count(*) FROM pg_proc WHERE proname LIKE 'dual_write%'") == "0"


async def test_a_reader_is_not_in_the_way_of_an_installation(shop: Dual) -> None:
    await shop.remove()
    old = await shop.database.connect()
    await old.execute("BEGIN; SELECT FROM src")
    await asyncio.sleep(1.2)
    assert (await shop.install(1.0)).changed


async def test_a_prepared_transaction_is_named(shop: Dual) -> None:
    await shop.remove()
    shop.database.sql("BEGIN; DELETE FROM src WHERE id = 1; PREPARE TRANSACTION 'left behind'")
    try:
        with pytest.raises(Busy, match="left behind"):
            await shop.install(1.5)
    finally:
        shop.database.sql("ROLLBACK PREPARED 'left behind'")


async def test_two_who_install_at_once_do_it_once(shop: Dual, dual: Made) -> None:
    await shop.remove()
    others = [await dual(shop.prepared.spec) for _ in range(4)]
    outcomes = await asyncio.gather(*(one.install(20.0) for one in others))
    assert sum(one.changed for one in outcomes) == 1
    assert (await shop.look()).intact


# -- refusals ---------------------------------------------------------------------------------------------------------


async def test_two_databases_are_refused(databases: TwoDatabases) -> None:
    for database in (databases.source, databases.target):
        database.sql("CREATE TABLE t (id int PRIMARY KEY)")
    prepared = await prepare(into(databases.source, "t", databases.target, "t"))
    with pytest.raises(UsageError, match="different databases"):
        dual_write_change.wanted(prepared)
    assert dual_write.text_of(prepared) is None
    connection = await prepared.endpoints.source.connect("dualwrite")
    assert await dual_write.look(connection, prepared) == dual_write.NOTHING
    await connection.close()


async def test_a_job_that_began_without_triggers_is_refused(shop: Dual) -> None:
    await shop.remove()
    await run_to_done(shop.prepared.spec)
    with pytest.raises(UsageError, match="begun without these triggers") as caught:
        await shop.install()
    assert "restart" in caught.value.hint
    assert not (await shop.look()).installed


async def test_a_job_that_needs_them_keeps_them(shop: Dual) -> None:
    await run_to_done(shop.prepared.spec)
    shop.database.sql("UPDATE backfill.job SET state = 'running', phase = 'move'")
    with pytest.raises(UsageError, match="is running"):
        await shop.remove()
    assert (await shop.look()).intact
    assert (await shop.remove(force=True)).changed


async def test_missing_rights_are_named_all_at_once(database: FreshDatabase, make_role: Callable[..., str]) -> None:
    owner, login = make_role(database, "NOLOGIN"), make_role(database)
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int); CREATE TABLE dst (id int PRIMARY KEY, n int);"
        f"ALTER TABLE src OWNER TO {owner}; GRANT SELECT ON src, dst TO {login}; GRANT INSERT ON dst TO {login};"
        "ALTER TABLE src ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON src USING (true)"
    )
    superuser = await prepare(into(database, "src", database, "dst"))
    connection = await superuser.endpoints.source.connect("dualwrite")
    await Ledger(connection).ensure()
    with pytest.raises(UsageError) as caught:  # the owner of the source may not write the target
        await dual_write_change.install(connection, superuser)
    assert f"{owner}, as whom the triggers write, lacks" in caught.value.message
    await connection.close()
    database.sql(f"GRANT USAGE ON SCHEMA backfill TO {login}; GRANT SELECT ON ALL TABLES IN SCHEMA backfill TO {login}")
    other = await Database(database.server.dsn(database.name, user=login), side=Side.TARGET, job="job").connect(
        "dualwrite"
    )
    with pytest.raises(UsageError) as caught:
        await dual_write_change.install(other, superuser)
    await other.close()
    message = caught.value.message
    for part in (
        "no member of",
        "may not create functions",
        "UPDATE on public.dst",
        "DELETE on public.dst",
        "row security",
    ):
        assert part in message, message


async def test_an_identity_that_no_update_may_write_is_refused(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int);"
        "CREATE TABLE dst (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY)"
    )
    made = await dual(into(database, "src", database, "dst"))
    with pytest.raises(UsageError, match="GENERATED ALWAYS"):
        await made.install()


async def test_other_conflict_policies_do_not_change_what_triggers_do(database: FreshDatabase, dual: Made) -> None:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int, note text); CREATE TABLE dst (id int PRIMARY KEY, doubled int, note text)"
    )
    made = await dual(spec_of(database, on_conflict=OnConflict.parse("fail")))
    await made.install()
    database.sql("INSERT INTO src VALUES (1, 1, 'a'); UPDATE src SET n = 2")
    assert differing(database, MAPPED, "TABLE dst") == 0
