"""The sweep by tombstones: what our own triggers have buried is all that it looks at, as long as they never blinked."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from engine.flow import endpoints_of, inspect
from engine.flow.dual_write_change import install, prepared_for_change
from engine.model import JobState
from engine.spec import ChunkLimits, JobSpec
from engine.spec.pacing import Pace
from engine.spec.signals import ALL_OFF
from tests.support.databases import FreshDatabase, on_each_major
from tests.support.jobs import UNPACED, Running, differing, into, run_to_done, start

pytestmark = pytest.mark.usefixtures("under_its_rights")

ROWS = 2_000
SLOWLY = Pace(signals=ALL_OFF, max_rows_per_s=1_500)
CHUNK = ChunkLimits(min_rows=50, max_rows=100)


@pytest.fixture
def tables(database: FreshDatabase) -> FreshDatabase:
    database.sql(
        "CREATE TABLE src (id bigint PRIMARY KEY, n int NOT NULL, kept boolean NOT NULL DEFAULT true);"
        "CREATE TABLE dst (id bigint PRIMARY KEY, n int NOT NULL, kept boolean NOT NULL);"
        f"INSERT INTO src SELECT g, g, true FROM generate_series(1, {ROWS}) g; ANALYZE src"
    )
    return database


async def put_triggers(spec: JobSpec) -> None:
    """As the superuser: whoever moves rows may not change the source."""
    prepared = (await inspect(spec, endpoints_of(spec))).prepared()
    session = await prepared.endpoints.source.connect("dualwrite")
    await install(session, prepared)
    await session.close()


def job(database: FreshDatabase, **settings: Any) -> JobSpec:
    return into(database, "src", database, "dst", **({"pace": SLOWLY, "chunk": CHUNK} | settings))


async def old_snapshot(database: FreshDatabase) -> asyncpg.Connection[Any]:
    """A transaction that will not see what is copied from now on."""
    connection = await database.connect()
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await connection.fetchval("SELECT count(*) FROM src")
    return connection


async def copied(running: Running, database: FreshDatabase, key: int) -> None:
    await running.until(lambda: database.sql(f"SELECT count(*) FROM dst WHERE id = {key}").strip() == "1")


async def leave_a_ghost(running: Running, database: FreshDatabase) -> int:
    """Delete at the source by a snapshot that does not show our copy, which therefore stays in the target."""
    await running.until(lambda: database.sql("SELECT count(*) FROM dst").strip() != "0")
    deleter = await old_snapshot(database)
    ghost = int(database.sql("SELECT max(id) FROM dst")) + 300  # of another chunk, whatever worker copies it
    await copied(running, database, ghost)
    await deleter.execute(f"DELETE FROM src WHERE id = {ghost}")
    await deleter.execute("COMMIT")
    assert database.sql(f"SELECT count(*) FROM dst WHERE id = {ghost}").strip() == "1", "it was no ghost"
    return ghost


def swept(database: FreshDatabase) -> tuple[str, int, int]:
    """How the sweep found its suspects, how many rows it took out, and how many it looked at."""
    by, rows, scanned = (
        database.sql(
            "SELECT j.sweep_by, coalesce(sum(s.rows), 0), coalesce(sum(s.scanned), 0) FROM backfill.job j"
            " LEFT JOIN backfill.span s ON s.job_id = j.id AND s.phase = 'sweep' GROUP BY j.sweep_by"
        )
        .strip()
        .split("|")
    )
    return by, int(rows), int(scanned)


@on_each_major
async def test_a_row_deleted_by_an_old_snapshot_is_taken_out_by_its_tombstone(tables: FreshDatabase) -> None:
    spec = job(tables)
    await put_triggers(spec)
    running = await start(spec)
    ghost = await leave_a_ghost(running, tables)
    await running.done()
    by, rows, scanned = swept(tables)
    assert (by, rows) == ("tombstones", 1)
    assert scanned < 10, "it looked at more than what was deleted"
    assert tables.sql(f"SELECT count(*) FROM dst WHERE id = {ghost}").strip() == "0"
    assert differing(tables, "SELECT * FROM src", "SELECT * FROM dst") == 0
    assert tables.sql("SELECT count(*) FROM backfill.tombstone").strip() == "0", "tombstones outlive the job"


async def test_without_deletes_there_is_nothing_to_look_at(tables: FreshDatabase) -> None:
    spec = job(tables)
    await put_triggers(spec)
    running = await start(spec)
    await running.done()
    assert swept(tables) == ("tombstones", 0, 0)


@pytest.mark.parametrize(
    "blink",
    [
        (
            "ALTER TABLE src DISABLE TRIGGER USER; ALTER TABLE src ENABLE ALWAYS TRIGGER {0};"
            " ALTER TABLE src ENABLE ALWAYS TRIGGER {1}"
        ),
        "BEGIN; TRUNCATE src; ROLLBACK; BEGIN; TRUNCATE src; COMMIT",
    ],
    ids=["disabled and enabled again", "truncated"],
)
async def test_a_job_whose_triggers_blinked_looks_at_every_key(tables: FreshDatabase, blink: str) -> None:
    spec = job(tables)
    await put_triggers(spec)
    triggers = tables.sql("SELECT tgname FROM pg_trigger WHERE tgrelid = 'src'::regclass ORDER BY 1").split()
    running = await start(spec)
    await leave_a_ghost(running, tables)
    tables.sql(blink.format(*triggers))
    result = await running.ended()
    if result.state is JobState.FAILED:  # told of another definition of the trigger: a person has to say go on
        tables.sql("SELECT backfill.resume('job')")
        running = await start(spec)
        await running.done()
    assert swept(tables)[0] == "keys"
    assert differing(tables, "SELECT * FROM src", "SELECT * FROM dst") == 0


async def test_a_row_that_leaves_the_where_is_taken_out_like_one_that_is_deleted(tables: FreshDatabase) -> None:
    spec = job(tables, where="kept")
    await put_triggers(spec)
    running = await start(spec)
    await running.until(lambda: tables.sql("SELECT count(*) FROM dst").strip() != "0")
    writer = await old_snapshot(tables)
    ghost = int(tables.sql("SELECT max(id) FROM dst")) + 300
    await copied(running, tables, ghost)
    await writer.execute(f"UPDATE src SET kept = false WHERE id = {ghost}")
    await writer.execute("COMMIT")
    await running.done()
    assert swept(tables)[:2] == ("tombstones", 1)
    assert differing(tables, "SELECT * FROM src WHERE kept", "SELECT * FROM dst") == 0


async def test_a_row_that_is_deleted_with_what_its_where_reads_is_taken_out(database: FreshDatabase) -> None:
    """ON DELETE CASCADE: when our trigger fires, the row that ``where`` looked at is gone, too."""
    database.sql(
        "CREATE TABLE customer (id int PRIMARY KEY, pro boolean NOT NULL); GRANT SELECT ON customer TO PUBLIC;"
        "INSERT INTO customer SELECT g, true FROM generate_series(1, 20) g;"
        "CREATE TABLE src (id bigint PRIMARY KEY, c int NOT NULL REFERENCES customer ON DELETE CASCADE);"
        "CREATE INDEX ON src (c); CREATE TABLE dst (id bigint PRIMARY KEY, c int NOT NULL);"
        f"INSERT INTO src SELECT g, g % 20 + 1 FROM generate_series(1, {ROWS}) g; ANALYZE src"
    )
    spec = job(database, where="EXISTS (SELECT FROM public.customer k WHERE k.id = src.c AND k.pro)")
    await put_triggers(spec)
    running = await start(spec)
    await running.until(lambda: int(database.sql("SELECT count(*) FROM dst")) > 500)
    database.sql("DELETE FROM customer WHERE id = 7")
    await running.done()
    assert swept(database)[0] == "tombstones"
    assert differing(database, "SELECT * FROM src", "SELECT * FROM dst") == 0


async def test_a_partition_that_was_attached_copied_and_truncated_leaves_nothing(database: FreshDatabase) -> None:
    database.sql(
        "CREATE TABLE src (id bigint PRIMARY KEY, n int NOT NULL) PARTITION BY RANGE (id);"
        "CREATE TABLE src1 PARTITION OF src FOR VALUES FROM (0) TO (3000);"
        "CREATE TABLE src3 PARTITION OF src FOR VALUES FROM (5000) TO (9000);"
        "CREATE TABLE src2 (id bigint PRIMARY KEY, n int NOT NULL);"
        "CREATE TABLE dst (id bigint PRIMARY KEY, n int NOT NULL);"
        "INSERT INTO src SELECT g, g FROM generate_series(1, 1500) g;"
        "INSERT INTO src2 SELECT g, g FROM generate_series(3001, 3200) g;"
        "INSERT INTO src SELECT g, g FROM generate_series(6000, 8000) g; ANALYZE src"
    )
    spec = job(database)
    await put_triggers(spec)
    running = await start(spec)
    await running.until(lambda: int(database.sql("SELECT count(*) FROM dst")) > 50)
    database.sql("ALTER TABLE src ATTACH PARTITION src2 FOR VALUES FROM (3000) TO (5000)")
    await running.until(lambda: int(database.sql("SELECT count(*) FROM dst WHERE id BETWEEN 3000 AND 4000")) == 200)
    database.sql("TRUNCATE src2")
    await running.done()
    assert swept(database)[0] == "keys"
    assert differing(database, "SELECT * FROM src", "SELECT * FROM dst") == 0


async def test_the_same_holds_without_our_triggers(tables: FreshDatabase) -> None:
    """The application's dual-write does not know of ``where``: the sweep looks at every key, under it."""
    spec = job(tables, where="kept")
    running = await start(spec)
    await running.until(lambda: int(tables.sql("SELECT count(*) FROM dst")) > 500)
    gone = int(tables.sql("UPDATE src SET kept = false WHERE id IN (SELECT min(id) FROM dst) RETURNING id").split()[0])
    await running.done()
    assert swept(tables)[:2] == ("keys", 1)
    assert tables.sql(f"SELECT count(*) FROM dst WHERE id = {gone}").strip() == "0"


async def test_a_tombstone_that_means_nothing_does_no_harm(tables: FreshDatabase) -> None:
    spec = job(tables)
    await put_triggers(spec)
    running = await start(spec)
    await running.until(lambda: tables.sql("SELECT count(*) FROM dst").strip() != "0")
    tables.sql(
        "SELECT backfill.bury('job', ARRAY['1']), backfill.bury('job', ARRAY['999999']),"
        " backfill.bury('job', ARRAY['1', '2']), backfill.bury('another job', ARRAY['2'])"
    )
    await running.done()
    assert differing(tables, "SELECT * FROM src", "SELECT * FROM dst") == 0


async def test_key_columns_in_another_order_than_the_arbiters(database: FreshDatabase) -> None:
    database.sql(
        'CREATE TABLE src ("Tenant" text, id bigint, n int, PRIMARY KEY ("Tenant", id));'
        'CREATE TABLE dst (id bigint, "Tenant" text, n int, PRIMARY KEY (id, "Tenant"));'
        "INSERT INTO src SELECT 't' || g % 7, g, g FROM generate_series(1, 2000) g; ANALYZE src"
    )
    spec = job(database)
    await put_triggers(spec)
    running = await start(spec)
    await running.until(lambda: database.sql("SELECT count(*) FROM dst").strip() != "0")
    deleter = await old_snapshot(database)
    await running.until(lambda: int(database.sql("SELECT count(*) FROM dst")) > 1200)
    ghosts = await deleter.fetch(
        "DELETE FROM src WHERE \"Tenant\" = 't0' AND id IN (SELECT id FROM src WHERE \"Tenant\" = 't0'"
        " ORDER BY id DESC LIMIT 5) RETURNING id"
    )
    await deleter.execute("COMMIT")
    assert len(ghosts) == 5
    await asyncio.wait_for(running.done(), 30)
    assert swept(database)[0] == "tombstones"
    assert differing(database, 'SELECT "Tenant", id, n FROM src', 'SELECT "Tenant", id, n FROM dst') == 0


async def test_what_was_deleted_before_the_job_is_none_of_its_business(database: FreshDatabase) -> None:
    """Triggers of a job that was planned by another key: its tombstones could not even be read."""
    database.sql(
        "CREATE TABLE src (id bigint PRIMARY KEY, name text NOT NULL UNIQUE);"
        "CREATE TABLE dst (id bigint PRIMARY KEY, name text NOT NULL UNIQUE);"
        "INSERT INTO src SELECT g, 'n' || g FROM generate_series(1, 2000) g; ANALYZE src"
    )
    by_name = job(database, key=["name"], pace=UNPACED)
    await put_triggers(by_name)
    database.sql("DELETE FROM src WHERE id < 500")
    by_id = job(database, pace=UNPACED)
    prepared = prepared_for_change(await inspect(by_id, endpoints_of(by_id)))
    session = await prepared.endpoints.source.connect("dualwrite")
    await install(session, prepared)
    await session.close()
    await run_to_done(by_id)
    assert swept(database) == ("tombstones", 0, 0)


async def test_another_job_that_writes_the_source_is_waited_for(tables: FreshDatabase) -> None:
    """Jobs in a chain: what one sweeps out of a table, the other reads from it."""
    spec = job(tables)
    await put_triggers(spec)
    running = await start(spec)
    await running.until(lambda: tables.sql("SELECT count(*) FROM dst").strip() != "0")
    other = await tables.connect()
    await other.execute("SET application_name = 'backfill/other/w1'")
    await other.execute("BEGIN")
    await other.execute(f"DELETE FROM src WHERE id = {ROWS}")
    await running.until(lambda: (tables.sql("SELECT waiting FROM backfill.status") or "").find("backfill/other/w1") > 0)
    await other.execute("COMMIT")
    await running.done()
    assert differing(tables, "SELECT * FROM src", "SELECT * FROM dst") == 0
