"""Rows arrive, all of them, once, whatever the key and whatever the types."""

from __future__ import annotations

import pytest

from engine.errors import PreflightRefused
from engine.events import ChunkCommitted, PhaseChanged
from engine.flow import Supervisor
from engine.model import ConflictPolicy, JobState
from engine.spec import ChunkLimits, OnConflict
from tests.support.databases import FreshDatabase, TwoDatabases, on_each_major
from tests.support.jobs import differing, in_place, into, knows_no_job, prepare, rows_of, run, run_to_done
from tests.support.rights import Rights

pytestmark = pytest.mark.usefixtures("under_its_rights")

SMALL = ChunkLimits(min_rows=10, max_rows=400)

# key type, expression for row number g (unique, in no particular order), column definition
KEYS = {
    "bigint with gaps of 10^12": ("bigint", "g::bigint * 1000000000000 - 4000000000000000"),
    "smallint": ("smallint", "(g - 2000)::smallint"),
    "uuid": ("uuid", "md5(g::text)::uuid"),
    "text": ("text", "'k''\\' || md5(g::text) || chr(233)"),
    "char(n), padded": ("char(12)", "to_hex(g * 7919)"),
    "varchar": ("varchar(40)", "'Ä' || g"),
    "bytea": ("bytea", "decode(md5(g::text), 'hex')"),
    "numeric with NaN and infinity": (
        "numeric",
        "CASE g WHEN 1 THEN 'NaN' WHEN 2 THEN 'Infinity' WHEN 3 THEN '-Infinity' ELSE (g * 1.001)::numeric END",
    ),
    "double with NaN and infinity": (
        "float8",
        "CASE g WHEN 1 THEN 'NaN' WHEN 2 THEN 'Infinity' WHEN 3 THEN '-Infinity' ELSE g / 7.0 END",
    ),
    "timestamptz with infinity": (
        "timestamptz",
        (
            "CASE g WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' WHEN 3 THEN '0044-03-15 12:00 BC'"
            " ELSE timestamptz '2024-01-01' + g * interval '1.000001 s' END"
        ),
    ),
    "timestamp": ("timestamp", "timestamp '1999-12-31 23:59:59.999999' + g * interval '1 hour'"),
    "date with infinity": ("date", "CASE g WHEN 1 THEN 'infinity'::date ELSE date '2020-02-29' + g END"),
    "boolean": ("boolean", "g % 2 = 0"),
    "enum": ("mood", "(enum_range(NULL::mood))[g]"),
    "domain": ("positive", "g"),
}
ROWS = {"boolean": 2, "enum": 4}


def create(database: FreshDatabase, kind: str, *, rows: int = 3000) -> None:
    """Table ``src`` with a key of that kind and some payload."""
    type_name, expression = KEYS[kind]
    database.sql("CREATE TYPE mood AS ENUM ('sad', 'ok', 'Happy', 'a b')")
    database.sql("CREATE DOMAIN positive AS int CHECK (value > 0)")
    database.sql(f"CREATE TABLE src (k {type_name} PRIMARY KEY, n int, note text, filled int)")
    count = ROWS.get(kind, rows)
    database.sql(f"INSERT INTO src SELECT {expression}, g, 'note ' || g FROM generate_series(1, {count}) g")
    database.sql("ANALYZE src")


@pytest.mark.parametrize("kind", KEYS)
async def test_a_table_with_this_key_is_filled_in_place(database: FreshDatabase, kind: str) -> None:
    create(database, kind)
    await run_to_done(in_place(database, "src", {"filled": "n * 2"}, chunk=SMALL))
    assert database.sql("SELECT count(*) FROM src WHERE filled IS DISTINCT FROM n * 2") == "0"


@pytest.mark.parametrize("kind", KEYS)
async def test_a_table_with_this_key_goes_to_another_table(database: FreshDatabase, kind: str) -> None:
    create(database, kind)
    database.sql("CREATE TABLE dst (LIKE src INCLUDING ALL)")
    ran = await run_to_done(into(database, "src", database, "dst", chunk=SMALL))
    assert differing(database, "SELECT * FROM src", "SELECT * FROM dst") == 0
    assert ran.result.rows == int(database.sql("SELECT count(*) FROM src"))


@pytest.mark.parametrize("kind", KEYS)
async def test_a_table_with_this_key_goes_to_another_database(databases: TwoDatabases, kind: str) -> None:
    create(databases.source, kind)
    databases.target.sql("CREATE TYPE filler AS ENUM ('x')")  # so that the same type has another OID there
    databases.target.sql("CREATE TYPE mood AS ENUM ('sad', 'ok', 'Happy', 'a b')")
    databases.target.sql("CREATE DOMAIN positive AS int CHECK (value > 0)")
    databases.target.sql(f"CREATE TABLE dst (k {KEYS[kind][0]} PRIMARY KEY, n int, note text, filled int)")
    await run_to_done(into(databases.source, "src", databases.target, "dst", chunk=SMALL))
    assert rows_of(databases.source, "SELECT * FROM src") == rows_of(databases.target, "SELECT * FROM dst")


@on_each_major
async def test_a_composite_key_is_paged_in_its_own_order(databases: TwoDatabases) -> None:
    table = "(tenant text, id uuid, v int, PRIMARY KEY (tenant, id))"
    databases.source.sql(f"CREATE TABLE src {table}")
    databases.source.sql(
        "INSERT INTO src SELECT 'tenant ' || (g % 3), md5(g::text)::uuid, g FROM generate_series(1, 5000) g; ANALYZE src"
    )
    databases.target.sql(f"CREATE TABLE dst {table}")
    ran = await run_to_done(into(databases.source, "src", databases.target, "dst", chunk=SMALL))
    assert rows_of(databases.source, "SELECT * FROM src") == rows_of(databases.target, "SELECT * FROM dst")
    assert len(ran.of(ChunkCommitted)) > 10


@on_each_major
async def test_all_this_is_done_by_roles_that_are_nobody_special(
    databases: TwoDatabases, under_its_rights: Rights
) -> None:
    """What the history says of who it was, and what a trigger sees of who writes."""
    databases.source.sql("CREATE TABLE src (id int PRIMARY KEY); INSERT INTO src VALUES (1), (2)")
    databases.target.sql(
        "CREATE TABLE dst (id int PRIMARY KEY, who text);"
        "CREATE FUNCTION sign() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.who = current_user; RETURN NEW; END $$;"
        "CREATE TRIGGER sign BEFORE INSERT ON dst FOR EACH ROW EXECUTE FUNCTION sign()"
    )
    spec = into(databases.source, "src", databases.target, "dst", columns={"id": "id"}, accept=("TRIGGERS_ON_TARGET",))
    await run_to_done(spec)
    to = under_its_rights.to
    assert databases.target.sql("SELECT DISTINCT who FROM dst") == to.rows
    who = databases.target.sql("SELECT DISTINCT regexp_replace(who, ' \\(.*', '') FROM backfill.event")
    assert who == to.login
    kinds = databases.target.sql(
        "SELECT rolname, rolsuper, rolinherit, pg_has_role(rolname, 'pg_database_owner', 'MEMBER') FROM pg_roles"
        f" WHERE rolname IN ('{to.rows}', '{to.login}') ORDER BY 1"
    )
    assert kinds.splitlines() == [f"{to.login}|f|f|f", f"{to.rows}|f|t|f"]


async def test_an_empty_table_is_done_at_once(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, v int)")
    ran = await run_to_done(in_place(database, "src", {"v": "id"}))
    assert ran.result.rows == 0


async def test_a_table_of_one_row_is_one_chunk(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, v int); INSERT INTO src VALUES (7)")
    ran = await run_to_done(in_place(database, "src", {"v": "id"}))
    assert database.sql("SELECT v FROM src") == "7"
    assert len(ran.of(ChunkCommitted)) == 1


async def test_a_table_without_a_key_is_refused_before_anything_is_touched(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE src (id int, v int); INSERT INTO src VALUES (7)")
    with pytest.raises(PreflightRefused, match="NO_KEY"):
        await run(in_place(database, "src", {"v": "id"}))
    assert knows_no_job(database)


async def test_values_of_a_megabyte_pass_through(databases: TwoDatabases) -> None:
    for database in (databases.source, databases.target):
        database.sql("CREATE TABLE big (id int PRIMARY KEY, body text, raw bytea)")
        database.sql("ALTER TABLE big ALTER body SET STORAGE EXTERNAL")
    databases.source.sql(
        "INSERT INTO big SELECT g, repeat(md5(g::text), 32768), decode(repeat(md5(g::text), 32768), 'hex')"
        " FROM generate_series(1, 40) g"
    )
    ran = await run_to_done(into(databases.source, "big", databases.target, "big"))
    digest = "SELECT id, md5(body), md5(raw) FROM big"
    assert rows_of(databases.source, digest) == rows_of(databases.target, digest)
    assert ran.result.bytes > 60_000_000


async def test_every_kind_of_column_arrives_unchanged(databases: TwoDatabases) -> None:
    setup = '''
        CREATE TYPE pair AS (a int, b text);
        CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE DOMAIN short AS varchar(5) CHECK (value <> 'bad');
        CREATE TABLE "Odd Table" (
            "Key ID" bigint PRIMARY KEY, "select" text, "with ""quotes""" int, gone int,
            m mood, ms mood[], p pair, ps pair[], d short, j json, jb jsonb, a int[], aa text[][], n numeric(12,2),
            t timestamptz, i interval, r int4range, mr int4multirange, pt point, ts tsvector, c "char", u uuid,
            net inet, b bit(3), vb varbit, mo money, ac aclitem, oid_ oid, f float4
        );
        ALTER TABLE "Odd Table" DROP COLUMN gone;
    '''
    databases.source.sql(setup)
    databases.target.sql("CREATE TYPE shift_oids AS (x int)")
    databases.target.sql(setup)
    databases.source.sql("""
        INSERT INTO "Odd Table" SELECT g, E'tab\\tline\\nback\\\\slash' || g, g, 'ok', '{sad,ok}', (g, 'x,"y'::text)::pair,
            ARRAY[(g, NULL::text)::pair], 'good', '{"a": [1, null]}', '{"b": 1.10}', ARRAY[g, NULL], '{{a,b},{c,NULL}}',
            g / 3.0, '2024-02-29 12:34:56.789012+05:30', '1 mon -3 days 04:05:06.7', int4range(g, g + 5), '{[1,3),[7,9)}',
            point(g, 0.1), 'fat & cat'::text::tsvector, 'x', md5(g::text)::uuid, '10.0.0.1', B'101', B'1',
            '12.34', 'postgres=r/postgres', g, g / 7.0
        FROM generate_series(1, 500) g
    """)
    databases.source.sql("""INSERT INTO "Odd Table" ("Key ID") VALUES (-1)""")
    await run_to_done(into(databases.source, "Odd Table", databases.target, "Odd Table", chunk=SMALL))
    everything = 'SELECT * FROM "Odd Table"'
    assert rows_of(databases.source, everything) == rows_of(databases.target, everything)


async def test_generated_identity_and_default_columns_are_filled_by_their_own_rules(databases: TwoDatabases) -> None:
    databases.source.sql(
        "CREATE TABLE src (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int);"
        "INSERT INTO src (v) SELECT g FROM generate_series(1, 900) g"
    )
    target = """
        CREATE TABLE dst (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int,
                          twice int GENERATED ALWAYS AS (v * 2) STORED, origin text NOT NULL DEFAULT 'backfill');
    """
    databases.target.sql(target)
    databases.source.sql(target)
    await run_to_done(into(databases.source, "src", databases.target, "dst", name="copied"))
    await run_to_done(into(databases.source, "src", databases.source, "dst", name="inserted"))
    for database in (databases.source, databases.target):
        assert (
            database.sql("SELECT count(*), sum(twice - 2 * v), min(origin), max(id) FROM dst") == "900|0|backfill|900"
        )


@on_each_major
async def test_partitioned_tables_are_read_and_written(databases: TwoDatabases) -> None:
    for database in (databases.source, databases.target):
        database.sql(
            "CREATE TABLE parts (id int, day date, v int, w int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)"
        )
        for month in range(1, 5):
            database.sql(
                f"CREATE TABLE parts_{month} PARTITION OF parts"
                f" FOR VALUES FROM ('2024-0{month}-01') TO ('2024-0{month + 1}-01')"
            )
    databases.source.sql(
        "INSERT INTO parts SELECT g, date '2024-01-01' + g % 120, g FROM generate_series(1, 4000) g; ANALYZE parts"
    )
    await run_to_done(into(databases.source, "parts", databases.target, "parts", chunk=SMALL, name="copied"))
    assert rows_of(databases.source, "SELECT * FROM parts") == rows_of(databases.target, "SELECT * FROM parts")
    await run_to_done(in_place(databases.target, "parts", {"w": "v + 1"}, chunk=SMALL, name="filled"))
    assert databases.target.sql("SELECT count(*) FROM parts WHERE w IS DISTINCT FROM v + 1") == "0"


@pytest.mark.parametrize("same_database", [True, False])
@pytest.mark.parametrize(
    ("policy", "expected"),
    [("keep", "target"), ("replace", "source"), ("newest(version)", "newest")],
)
async def test_rows_that_are_there_already_are_treated_by_the_policy(
    databases: TwoDatabases, same_database: bool, policy: str, expected: str
) -> None:
    source = databases.source
    target = source if same_database else databases.target
    table = "(id int PRIMARY KEY, origin text, version int)"
    source.sql(f"CREATE TABLE src {table}; INSERT INTO src SELECT g, 'source', 5 FROM generate_series(1, 2000) g")
    target.sql(f"CREATE TABLE dst {table}")
    target.sql("INSERT INTO dst SELECT g, 'target', g % 10 FROM generate_series(1, 3000, 7) g")
    conflict = OnConflict.parse(policy) if hasattr(OnConflict, "parse") else policy
    await run_to_done(into(source, "src", target, "dst", on_conflict=conflict, chunk=SMALL))
    there = "id <= 2000 AND id % 7 = 1"
    by = {
        "target": f"SELECT count(*) FROM dst WHERE {there} AND origin <> 'target'",
        "source": f"SELECT count(*) FROM dst WHERE {there} AND origin <> 'source'",
        "newest": f"SELECT count(*) FROM dst WHERE {there}"
        " AND origin <> CASE WHEN version > 5 OR (version = 5 AND origin = 'target') THEN 'target' ELSE 'source' END",
    }
    assert target.sql(by[expected]) == "0"
    assert target.sql("SELECT count(*) FROM dst WHERE id <= 2000") == "2000"
    assert target.sql("SELECT count(*) FROM dst WHERE id > 2000 AND origin <> 'target'") == "0"


@pytest.mark.parametrize("same_database", [True, False])
async def test_fail_stops_at_a_row_that_is_there_already_and_says_so(
    databases: TwoDatabases, same_database: bool
) -> None:
    source = databases.source
    target = source if same_database else databases.target
    source.sql(
        "CREATE TABLE src (id int PRIMARY KEY, v text); INSERT INTO src SELECT g FROM generate_series(1, 2000) g"
    )
    target.sql("CREATE TABLE dst (id int PRIMARY KEY, v text); INSERT INTO dst VALUES (1500, 'secret')")
    ran = await run(into(source, "src", target, "dst", on_conflict=OnConflict(ConflictPolicy.FAIL), chunk=SMALL))
    assert ran.result.state is JobState.FAILED
    assert ran.result.error is not None
    assert ran.result.error.exit_code == 7
    assert "secret" not in str(ran.result.error)
    assert "1500" not in str(ran.result.error)


async def test_a_bad_row_stops_the_job_without_losing_the_others(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, v text, n int)")
    database.sql(
        "INSERT INTO src SELECT g, CASE g WHEN 777 THEN 'canary' ELSE g::text END FROM generate_series(1, 1000) g"
    )
    spec = in_place(database, "src", {"n": "v::int"}, chunk=SMALL)
    ran = await run(spec, workers=1)
    assert ran.result.state is JobState.FAILED
    assert "canary" not in str(ran.result.error)
    done = int(database.sql("SELECT count(n) FROM src"))
    assert 0 < done < 777
    database.sql("UPDATE src SET v = '0' WHERE id = 777; SELECT backfill.resume('job')")
    await run_to_done(spec)
    assert database.sql("SELECT count(*) FROM src WHERE n IS DISTINCT FROM v::int") == "0"


async def test_another_unique_index_of_the_target_stops_the_job_instead_of_looping(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, email text); CREATE TABLE dst (LIKE src INCLUDING ALL)")
    database.sql("CREATE UNIQUE INDEX dst_email ON dst (email)")
    database.sql("INSERT INTO src SELECT g, 'e' || g % 500 FROM generate_series(1, 1000) g")
    ran = await run(into(database, "src", database, "dst", chunk=SMALL, accept=("SEVERAL_UNIQUE",)))
    assert ran.result.state is JobState.FAILED
    assert ran.result.error is not None
    assert ran.result.error.sqlstate in ("23505", None)


async def test_only_rows_of_the_where_clause_are_moved(databases: TwoDatabases) -> None:
    for database in (databases.source, databases.target):
        database.sql("CREATE TABLE t (id int PRIMARY KEY, v int)")
    databases.source.sql("INSERT INTO t SELECT g, g % 5 FROM generate_series(1, 3000) g")
    await run_to_done(into(databases.source, "t", databases.target, "t", where="v = 3", chunk=SMALL))
    assert databases.target.sql("SELECT count(*), min(v), max(v) FROM t") == "600|3|3"


@pytest.mark.parametrize("same_database", [True, False])
async def test_rows_deleted_at_the_source_behind_the_cursor_are_swept_out(
    databases: TwoDatabases, same_database: bool
) -> None:
    source = databases.source
    target = source if same_database else databases.target
    source.sql(
        "CREATE TABLE src (id int PRIMARY KEY, v int); INSERT INTO src SELECT g, g FROM generate_series(1, 4000) g"
    )
    target.sql("CREATE TABLE dst (id int PRIMARY KEY, v int); INSERT INTO dst VALUES (-5, 0), (9000, 0)")
    deleted = False

    def delete_behind(event: object) -> None:
        nonlocal deleted
        if isinstance(event, ChunkCommitted) and not deleted:
            deleted = True
            source.sql("DELETE FROM src WHERE id <= 40")

    spec = into(source, "src", target, "dst", chunk=SMALL)
    events: list[object] = []

    def emit(event: object) -> None:
        events.append(event)
        delete_behind(event)

    result = await Supervisor(await prepare(spec), workers=1, emit=emit, seed=1).run()
    assert result.state is JobState.DONE
    assert any(isinstance(event, PhaseChanged) for event in events)
    assert target.sql("SELECT count(*) FROM dst WHERE id BETWEEN 1 AND 40") == "0"
    assert target.sql("SELECT count(*) FROM dst WHERE id IN (-5, 9000)") == "2"  # not ours: not touched
    assert target.sql("SELECT count(*) FROM dst") == str(4000 - 40 + 2)


async def test_a_volatile_or_self_reading_expression_is_applied_once_per_row(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, counter int NOT NULL DEFAULT 0, marked bool)")
    database.sql("INSERT INTO src SELECT g FROM generate_series(1, 3000) g")
    spec = in_place(
        database, "src", {"counter": "counter + 1", "marked": "true"}, done="marked", chunk=SMALL, workers=3
    )
    await run_to_done(spec, workers=3)
    assert database.sql("SELECT min(counter), max(counter), count(*) FROM src WHERE marked") == "1|1|3000"
