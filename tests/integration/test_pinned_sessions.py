"""What a role, a database or a connection string sets changes neither rows nor findings; nor do encodings, nor row
security.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from engine.db import Database, classify
from engine.db.database import PINNED
from engine.db.inspect import inspect_table
from engine.errors import CannotConnect, PreflightRefused, SchemaDrift, Stopped
from engine.events import ChunkCommitted
from engine.fleet import LocalVerification
from engine.flow import endpoints_of, inspect
from engine.ledger import Ledger
from engine.model import JobState, Side
from engine.spec import ChunkLimits, JobSpec, Pace, TableRef
from engine.spec.signals import ALL_OFF
from tests.support.databases import FreshDatabase, TlsServer, TwoDatabases, on_each_major
from tests.support.jobs import in_place, into, rows_of, run, run_to_done, start

SMALL = ChunkLimits(min_rows=10, max_rows=200)
ROWS = 1500

HOSTILE = {
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kolkata",
    "timezone_abbreviations": "India",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "xmlbinary": "hex",
    "xmloption": "document",
    "lc_numeric": "C.utf8",
    "lc_time": "C.utf8",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "default_transaction_isolation": "serializable",
    "row_security": "on",
    "gin_fuzzy_search_limit": "1",
    "default_table_access_method": "other",
    "default_tablespace": "pg_default",
    "idle_session_timeout": "30",
    "exit_on_error": "on",
    "plan_cache_mode": "force_generic_plan",
    "jit": "on",
    "max_parallel_workers_per_gather": "4",
    "enable_bitmapscan": "off",
    "enable_hashagg": "off",
    "enable_hashjoin": "off",
    "enable_incremental_sort": "off",
    "enable_indexonlyscan": "off",
    "enable_indexscan": "off",
    "enable_material": "off",
    "enable_memoize": "off",
    "enable_mergejoin": "off",
    "enable_nestloop": "off",
    "enable_partition_pruning": "off",
    "enable_seqscan": "off",
    "enable_sort": "off",
    "enable_tidscan": "off",
}
"""Another value for everything that is pinned."""

LATER = {"session_replication_role": "replica", "zero_damaged_pages": "on", "lc_monetary": "C.utf8"}
"""The same for what is pinned after the start."""

NUISANCES = {
    "client_encoding": "LATIN1",
    "search_path": "evil,pg_catalog,public",
    "statement_timeout": "2",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "2",
    "client_min_messages": "debug2",
    "parallel_setup_cost": "0",
    "min_parallel_table_scan_size": "0",
    "jit_above_cost": "0",
    "debug_print_plan": "on",
    "synchronous_commit": "off",
    "default_transaction_deferrable": "on",
}
"""What is set for each session, or does no harm."""

COSTS = {"work_mem": "64", "random_page_cost": "1000000", "cpu_index_tuple_cost": "10", "effective_cache_size": "1"}
"""These describe the machine: plans may follow them, rows may not."""

EVERYTHING = {**HOSTILE, **LATER, **NUISANCES}

OPERATORS = ("=", "<>", "<", "<=", ">", ">=")
EVIL = (
    "CREATE SCHEMA evil; CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler;"
    + "".join(
        f"CREATE FUNCTION evil.lie({kind}, {kind}) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT false';"
        + "".join(
            f"CREATE OPERATOR evil.{operator} (LEFTARG = {kind}, RIGHTARG = {kind}, FUNCTION = evil.lie);"
            for operator in OPERATORS
        )
        for kind in ("bigint", "int", "oid", '"char"', "name", "text", "timestamptz", "float8", "bytea")
    )
    + """
CREATE FUNCTION evil.to_regclass(text) RETURNS regclass STABLE LANGUAGE sql AS 'SELECT NULL::regclass';
CREATE FUNCTION evil.current_setting(text) RETURNS text STABLE LANGUAGE sql AS $$SELECT 'lie'$$;
CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text STABLE LANGUAGE sql AS $$SELECT 'lie'$$;
CREATE FUNCTION evil.hashint8extended(bigint, bigint) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT 7::bigint';
CREATE FUNCTION evil.format_type(oid, int) RETURNS text STABLE LANGUAGE sql AS $$SELECT 'lie'$$;
CREATE FUNCTION evil.concat_ws(text, VARIADIC text[]) RETURNS text STABLE LANGUAGE sql AS $$SELECT 'lie'$$;
CREATE FUNCTION evil.plus(bigint, bigint) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT $1 + $2';
CREATE AGGREGATE evil.count(bigint) (SFUNC = evil.plus, STYPE = bigint, INITCOND = '41');
"""
)

COLUMNS = (
    "happened timestamptz, ratio float8, raw bytea, day date, span interval, price money, note text, words text,"
    " PRIMARY KEY (happened, ratio, raw)"
)
PLAIN = ("happened", "ratio", "raw", "day", "span", "price", "note")
FILL = f"""
INSERT INTO src
SELECT timestamptz '2024-03-30 20:00+00' + g / 5 * interval '17.000001 min', (g % 5) / 7.0, sha256(g::text::bytea),
       date '2024-01-31' + g, g * interval '-1 day 3 hours 0.5 s', (g * 1.07)::numeric::money,
       CASE WHEN g % 3 > 0 THEN 'it''s \' || g END
  FROM generate_series(1, {ROWS}) g;
ANALYZE src;
"""
WORDS = r"""
concat_ws('|', happened, happened::date, to_char(happened, 'TMMonth HH24'), extract(dow FROM happened), ratio, raw, day,
    day::text::date, span, price, to_char(price::numeric, 'L999G999D99'), note, note = NULL, 'a\b', E'it\'s',
    ('{NULL}'::text[])[1] IS NULL, '2024-01-01 12:00 IST'::timestamptz, '-1 day 2:03'::interval, '\x00ff'::bytea,
    (ratio * 3)::text::float8 = ratio * 3, 'public.src'::regclass::text)
"""
WAYS = ("update", "insert", "copy")
PLACES = ("database", "role", "connection string")


@contextmanager
def hostile(database: FreshDatabase, settings: dict[str, str], *places: str) -> Iterator[str]:
    """The database's connection string while each of these places sets all that; psql would suffer from it as well."""
    owners = {"role": f'ROLE postgres IN DATABASE "{database.name}"', "database": f'DATABASE "{database.name}"'}
    owned = [owners[place] for place in places if place in owners]
    values = {name: "'" + value.replace(",", "', '") + "'" for name, value in settings.items()}
    for owner in owned:
        database.server.sql("".join(f"ALTER {owner} SET {name} = {value};" for name, value in values.items()))
    switches = " ".join(f"-c {name}={value}" for name, value in settings.items())
    try:
        yield database.dsn + (f"?options={quote(switches)}" if "connection string" in places else "")
    finally:
        for owner in owned:
            database.server.sql(f"ALTER {owner} RESET ALL")


def each(databases: TwoDatabases) -> list[FreshDatabase]:
    """The databases of a job, each once."""
    return list({database.name: database for database in (databases.source, databases.target)}.values())


def make_tables(source: FreshDatabase, target: FreshDatabase) -> None:
    """``src`` with rows of everything that a setting formats, ``dst`` without, and a schema that lies in each."""
    for database in {source.name: source, target.name: target}.values():
        database.sql(EVIL)
    source.sql(f"CREATE TABLE src ({COLUMNS})")
    source.sql(FILL)
    target.sql(f"CREATE TABLE dst ({COLUMNS})")


def job(way: str, source: str, target: str, **settings: Any) -> JobSpec:
    """A job that writes ``words``, by that mover."""
    settings = {"chunk": SMALL} | settings
    if way == "update":
        return in_place(source, "src", {"words": WORDS}, **settings)
    columns = {**{name: name for name in PLAIN}, "words": WORDS}
    return into(source, "src", source if way == "insert" else target, "dst", columns=columns, **settings)


def written(way: str, databases: TwoDatabases) -> list[str]:
    """What the job wrote."""
    database = databases.target if way == "copy" else databases.source
    return rows_of(database, f"SELECT * FROM {'src' if way == 'update' else 'dst'}")


@pytest.fixture
def pair(make_database: Callable[..., FreshDatabase]) -> Callable[[str], TwoDatabases]:
    """``pair(way)``: databases with the tables of a job; the same one twice where it needs only one."""

    def make(way: str) -> TwoDatabases:
        source = make_database()
        target = make_database() if way == "copy" else source
        make_tables(source, target)
        return TwoDatabases(source, target)

    return make


# -- settings --------------------------------------------------------------------------------------------------------


@on_each_major
@pytest.mark.parametrize("place", PLACES)
async def test_no_setting_from_elsewhere_reaches_a_session(database: FreshDatabase, place: str) -> None:
    assert set(HOSTILE) == set(PINNED)
    database.sql(EVIL)
    rest = {"session_replication_role": "origin", "zero_damaged_pages": "off", "lc_monetary": "C"}
    newer = {"transaction_timeout": "20s"} if database.server.major >= 17 else {}
    expected = {**PINNED, **rest, **dict.fromkeys(newer, "0"), "client_encoding": "UTF8", "search_path": "pg_catalog"}
    with hostile(database, {**EVERYTHING, **newer}, place) as dsn:
        for data in (False, True):
            connection = await Database(dsn, side=Side.SOURCE).connect("test", data=data)
            rows = await connection.fetch(
                "SELECT name, current_setting(name) AS value FROM unnest($1::text[]) AS names (name)", list(expected)
            )
            assert {row["name"]: row["value"] for row in rows} == expected
            assert connection.user_search_path.replace(" ", "") == NUISANCES["search_path"]
            await connection.close()


@on_each_major
async def test_a_bare_name_is_found_along_a_search_path_whose_operators_lie(database: FreshDatabase) -> None:
    make_tables(database, database)
    with hostile(database, EVERYTHING, "role"):
        session = await Database(database.dsn, side=Side.SOURCE).connect("test")
        table = await inspect_table(session, TableRef(None, "src"))
        await session.close()
    assert str(table.name) == "public.src"
    assert [column.name for column in table.columns] == [*PLAIN, "words"]


MEANINGS = {
    "DateStyle": "date '2024-05-06'",
    "IntervalStyle": "interval '1 day -2:03'",
    "TimeZone": "timestamptz '2024-05-06 20:00+00'",
    "timezone_abbreviations": "timestamptz '2024-01-01 12:00 IST' AT TIME ZONE 'UTC'",
    "extra_float_digits": "1 / 3::float8",
    "bytea_output": "'abc'::bytea",
    "standard_conforming_strings": r"'a\b'",
    "backslash_quote": r"E'it\'s'",
    "array_nulls": "('{NULL}'::text[])[1] IS NULL",
    "transform_null_equals": "1 = NULL",
    "quote_all_identifiers": "quote_ident('tagged')",
    "default_transaction_isolation": "current_setting('transaction_isolation')",
    "gin_fuzzy_search_limit": "(SELECT count(*) FROM public.tagged WHERE tags @> ARRAY[0])",
    "session_replication_role": "current_setting('session_replication_role')",
    "search_path": "5::bigint = 5::bigint",
}
"""What an expression gives by default, and does not under the hostile setting."""


async def value_of(connection: asyncpg.Connection[Any], expression: str) -> str | None:
    """The expression as text, or the SQLSTATE of its error."""
    await connection.execute("SET enable_seqscan = off")
    try:
        value: str | None = await connection.fetchval(f"SELECT ({expression})::text")
    except asyncpg.PostgresError as error:
        return error.sqlstate
    return value


@pytest.mark.parametrize("setting", MEANINGS)
async def test_an_expression_means_the_same_whatever_is_set(database: FreshDatabase, setting: str) -> None:
    database.sql(EVIL)
    database.sql("CREATE TABLE tagged AS SELECT ARRAY[0, g] AS tags FROM generate_series(1, 3000) g")
    database.sql("CREATE INDEX ON tagged USING gin (tags)")
    expression = MEANINGS[setting]
    expected = await value_of(await database.connect(server_settings={"TimeZone": "UTC"}), expression)
    with hostile(database, {setting: EVERYTHING[setting]}, "database"):
        assert await value_of(await database.connect(), expression) != expected
        ours = await Database(database.dsn, side=Side.SOURCE).connect("test", data=True)
        assert await value_of(ours.raw, expression) == expected
        await ours.close()


@pytest.mark.debian
async def test_xml_means_the_same_whatever_is_set(
    tls_server: TlsServer, make_database: Callable[..., FreshDatabase]
) -> None:
    database = make_database(on=tls_server.server)
    expression = r"concat(xmlelement(name x, '\x00ff'::bytea), '<a/><b/>'::xml)"
    settings = {"xmlbinary": "hex", "xmloption": "document"}
    with hostile(database, settings, *PLACES) as dsn:
        ours = await Database(f"{dsn}&sslmode=disable", side=Side.SOURCE).connect("test", data=True)
        assert await value_of(ours.raw, expression) == "<x>AP8=</x><a/><b/>"
        await ours.close()


@on_each_major
@pytest.mark.parametrize("way", WAYS)
async def test_a_job_writes_the_same_rows_and_is_verified_whatever_is_set(
    pair: Callable[[str], TwoDatabases], way: str
) -> None:
    usual, odd = pair(way), pair(way)
    await run_to_done(job(way, usual.source.dsn, usual.target.dsn))
    with ExitStack() as stack:
        settings = {**EVERYTHING, **COSTS}
        dsns = [stack.enter_context(hostile(database, settings, *PLACES)) for database in each(odd)]
        ran = await run_to_done(job(way, dsns[0], dsns[-1], verify="after"))
    assert ran.result.verified
    assert len(ran.of(ChunkCommitted)) > 4
    assert written(way, odd) == written(way, usual)
    assert len(written(way, odd)) == ROWS


@on_each_major
@pytest.mark.parametrize("way", WAYS)
async def test_preflight_and_plan_find_the_same_whatever_is_set(
    pair: Callable[[str], TwoDatabases], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.flow.prepare.SMALL_TABLE_ROWS", 100)  # the plan of its chunks is looked at, too
    seen = []
    databases = pair(way)
    for places in ((), PLACES):
        with ExitStack() as stack:
            dsns = [stack.enter_context(hostile(database, EVERYTHING, *places)) for database in each(databases)]
            spec = job(way, dsns[0], dsns[-1])
            inspection = await inspect(spec, endpoints_of(spec))
        assert inspection.plan is not None
        spans = [(span.lo, span.hi) for span in inspection.plan.spans]
        findings = [f"{finding.code}: {finding.message}" for finding in inspection.findings]
        seen.append([findings, spans, inspection.plan.rows, inspection.columns, inspection.key, inspection.checks])
    for usual, odd in zip(*seen, strict=True):
        assert odd == usual


async def test_what_belongs_to_the_data_the_machine_or_the_operator_is_left_alone(database: FreshDatabase) -> None:
    settings = {
        "default_text_search_config": "pg_catalog.simple",
        "default_transaction_read_only": "on",
        "random_page_cost": "1.5",
        "work_mem": "3MB",
        "synchronous_commit": "local",
    }
    with hostile(database, settings, "database"):
        session = await Database(database.dsn, side=Side.TARGET).connect("test")
        assert {name: await session.fetchval(f"SHOW {name}") for name in settings} == settings
        await session.close()


async def test_a_role_whose_triggers_an_administrator_switched_off_is_refused(database: FreshDatabase) -> None:
    name = f"silent_{database.name}"
    database.sql(f"CREATE ROLE {name} LOGIN; ALTER ROLE {name} SET session_replication_role = replica")
    try:
        with pytest.raises(CannotConnect) as caught:
            await Database(database.server.dsn(database.name, user=name), side=Side.TARGET).connect("test")
        assert "session_replication_role" in caught.value.message
        assert "RESET" in caught.value.hint
    finally:
        database.sql(f"DROP ROLE {name}")


async def test_a_database_that_an_operator_made_read_only_is_not_written(database: FreshDatabase) -> None:
    make_tables(database, database)
    with hostile(database, {"default_transaction_read_only": "on"}, "database"):
        with pytest.raises(Exception) as caught:
            await run(job("update", database.dsn, database.dsn))
        assert classify(caught.value).sqlstate == "25006"
    assert database.sql("SELECT count(words) FROM src") == "0"
    assert database.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'backfill'") == "0"


# -- encodings -------------------------------------------------------------------------------------------------------

ENCODINGS = {
    "LATIN1 to UTF8": ("LATIN1", "UTF8"),
    "UTF8 to LATIN1": ("UTF8", "LATIN1"),
    "LATIN1 to LATIN1": ("LATIN1", "LATIN1"),
    "LATIN1 to SQL_ASCII": ("LATIN1", "SQL_ASCII"),
}
NAMED = '(name text PRIMARY KEY, letter "char", kinds text[], document jsonb)'
NAMES = """
INSERT INTO src
SELECT 'Zoë ' || chr(192 + g % 60) || ' Ångström ' || g, 'x', ARRAY['ä', NULL, 'ß' || g], jsonb_build_object('é', 'ü' || g)
  FROM generate_series(1, 1500) g;
ANALYZE src;
"""


def encoded(make_database: Callable[..., FreshDatabase], encoding: str) -> FreshDatabase:
    """An empty database of that encoding."""
    return make_database(f"ENCODING '{encoding}' LOCALE 'C'")


@on_each_major
@pytest.mark.parametrize("encodings", ENCODINGS.values(), ids=ENCODINGS)
async def test_text_arrives_in_the_targets_encoding_keys_included(
    make_database: Callable[..., FreshDatabase], encodings: tuple[str, str]
) -> None:
    source, target = (encoded(make_database, encoding) for encoding in encodings)
    source.sql(f"SET client_encoding = UTF8; CREATE TABLE src {NAMED}; {NAMES}")
    target.sql(f"CREATE TABLE dst {NAMED}")
    ran = await run_to_done(into(source, "src", target, "dst", chunk=SMALL))
    assert len(ran.of(ChunkCommitted)) > 4
    moved = [
        rows_of(database, f"SET client_encoding = UTF8; SELECT * FROM {table}")
        for database, table in ((source, "src"), (target, "dst"))
    ]
    assert moved[0] == moved[1]
    assert len(moved[0]) == 1500


@pytest.mark.parametrize("column", ["k", "v"])
async def test_a_character_that_the_target_cannot_hold_stops_the_job_without_showing_it(
    make_database: Callable[..., FreshDatabase], column: str
) -> None:
    source, target = encoded(make_database, "UTF8"), encoded(make_database, "LATIN1")
    table = "(k text PRIMARY KEY, v text)"
    source.sql(
        f"CREATE TABLE src {table}; INSERT INTO src SELECT 'key ' || g, 'value ' || g FROM generate_series(1, 500) g"
    )
    source.sql(f"UPDATE src SET {column} = '200 € für Zoë' WHERE k = 'key 77'; ANALYZE src")
    target.sql(f"CREATE TABLE dst {table}")
    ran = await run(into(source, "src", target, "dst", chunk=SMALL))
    assert ran.result.state is JobState.FAILED
    error = ran.result.error
    assert isinstance(error, Stopped)
    assert error.sqlstate == "22P05"
    shown = f"{error} {error.hint} {target.sql('SELECT error_message FROM backfill.job')} {ran.events}"
    assert "€" not in shown
    assert "Zoë" not in shown
    assert target.sql("SELECT count(*) FROM dst WHERE k = 'key 77'") == "0"


async def test_bytes_that_are_no_text_of_any_encoding_are_not_guessed_at(
    make_database: Callable[..., FreshDatabase],
) -> None:
    source, target = encoded(make_database, "SQL_ASCII"), encoded(make_database, "UTF8")
    table = "(k int PRIMARY KEY, v text)"
    source.sql(rf"CREATE TABLE src {table}; INSERT INTO src SELECT g, E'ok' FROM generate_series(1, 500) g")
    source.sql(r"UPDATE src SET v = E'caf\xe9' WHERE k = 77; ANALYZE src")
    target.sql(f"CREATE TABLE dst {table}")
    ran = await run(into(source, "src", target, "dst", chunk=SMALL))
    assert isinstance(ran.result.error, Stopped)
    assert ran.result.error.sqlstate == "22021"
    assert "caf" not in str(ran.result.error)


# -- row security ----------------------------------------------------------------------------------------------------

PEOPLE = "(id int PRIMARY KEY, tenant int NOT NULL DEFAULT 1, filled int)"
POLICY = "CREATE POLICY own ON {table} USING (tenant = 1); ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"

BOUND = [("update", "src"), ("insert", "src"), ("insert", "dst"), ("copy", "src"), ("copy", "dst")]
"""Movers, and the tables that row security may hide from them."""


@pytest.fixture
async def worker(database: FreshDatabase) -> AsyncIterator[str]:
    """A role without special rights that may read and write two tables, ``src`` (filled) and ``dst``."""
    name = f"worker_{database.name}"
    owner = await Database(database.dsn, side=Side.TARGET).connect("control")
    await Ledger(owner).ensure()
    await owner.close()
    database.sql(f"CREATE TABLE src {PEOPLE}; CREATE TABLE dst {PEOPLE}")
    database.sql("INSERT INTO src SELECT g, g % 2 FROM generate_series(1, 3000) g; ANALYZE src")
    database.sql(f"CREATE ROLE {name} LOGIN; GRANT USAGE ON SCHEMA backfill TO {name}")
    database.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA backfill TO {name}; GRANT ALL ON src, dst TO {name}")
    database.sql(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA backfill TO {name}")
    yield name
    database.sql(f"REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}; DROP ROLE {name}")


def tenants_job(database: FreshDatabase, way: str, user: str, **settings: Any) -> JobSpec:
    """A job of that user on the tables of ``worker``."""
    settings = {"chunk": SMALL} | settings
    dsn = database.server.dsn(database.name, user=user)
    if way == "update":
        return in_place(dsn, "src", {"filled": "id"}, **settings)
    columns = {"id": "id", "tenant": "tenant", "filled": "id"}
    there = dsn if way == "insert" else database.server.socket_dsn(database.name, user=user)
    return into(dsn, "src", there, "dst", columns=columns, **settings)


@pytest.mark.parametrize("owner", [False, True], ids=["anybody", "owner with FORCE"])
@pytest.mark.parametrize(("way", "table"), BOUND)
async def test_a_table_that_hides_rows_from_the_role_is_refused(
    database: FreshDatabase, worker: str, way: str, owner: bool, table: str
) -> None:
    database.sql(POLICY.format(table=table))
    if owner:
        database.sql(f"ALTER TABLE {table} OWNER TO {worker}; ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    with pytest.raises(PreflightRefused) as caught:
        await run(tenants_job(database, way, worker))
    assert "ROW_SECURITY" in {finding.code for finding in caught.value.findings}
    assert database.sql("SELECT count(filled) FROM src") == "0"
    assert database.sql("SELECT count(*) FROM dst") == "0"


@pytest.mark.parametrize("right", ["bypass", "owner"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_role_that_row_security_does_not_bind_moves_every_row(
    database: FreshDatabase, worker: str, way: str, right: str
) -> None:
    for table in ("src", "dst"):
        database.sql(POLICY.format(table=table))
        if right == "owner":
            database.sql(f"ALTER TABLE {table} OWNER TO {worker}")
    if right == "bypass":
        database.sql(f"ALTER ROLE {worker} BYPASSRLS")
    await run_to_done(tenants_job(database, way, worker))
    assert database.sql(f"SELECT count(filled) FROM {'src' if way == 'update' else 'dst'}") == "3000"


@pytest.mark.parametrize(("way", "table"), BOUND)
async def test_a_policy_that_appears_while_the_job_runs_stops_it_with_the_reason(
    database: FreshDatabase, worker: str, way: str, table: str
) -> None:
    running = await start(tenants_job(database, way, worker, pace=Pace(signals=ALL_OFF, max_rows_per_s=2000)))
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    await asyncio.to_thread(database.sql, POLICY.format(table=table))
    result = await running.ended()
    assert result.state is JobState.FAILED
    assert isinstance(result.error, Stopped)
    assert "row-level security" in str(result.error) or isinstance(result.error, SchemaDrift), result.error
    assert database.sql("SELECT state FROM backfill.job") == "failed"
    assert result.rows < 3000


@pytest.mark.parametrize("table", ["src", "dst"])
async def test_rows_that_a_policy_hides_are_not_verified(database: FreshDatabase, worker: str, table: str) -> None:
    spec = tenants_job(database, "insert", worker)
    await run_to_done(spec)
    database.sql(POLICY.format(table=table))
    with pytest.raises(PreflightRefused) as caught:
        await LocalVerification(spec).run()
    assert "ROW_SECURITY" in {finding.code for finding in caught.value.findings}
