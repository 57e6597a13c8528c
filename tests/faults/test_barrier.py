"""Transactions older than the job are waited for, by name, and what they write is moved."""

from __future__ import annotations

import pytest

from engine.events import ChunkCommitted, Waiting
from engine.spec import ChunkLimits
from tests.support.databases import TwoDatabases
from tests.support.jobs import Running, into, rows_of, start

pytestmark = pytest.mark.faults

ROWS = 2000


def waits(running: Running) -> list[str]:
    return [e.reason for e in running.events if isinstance(e, Waiting) and e.reason]


@pytest.mark.parametrize("same_database", [True, False])
async def test_rows_of_a_transaction_older_than_the_job_are_moved_behind_the_cursor_and_above_the_bound(
    databases: TwoDatabases, same_database: bool
) -> None:
    source = databases.source
    target = source if same_database else databases.target
    source.sql(
        f"CREATE TABLE src (id int PRIMARY KEY); INSERT INTO src SELECT g * 10 FROM generate_series(1, {ROWS}) g"
    )
    target.sql("CREATE TABLE dst (id int PRIMARY KEY)")
    older = await source.connect(server_settings={"application_name": "nightly-report"})
    await older.execute("BEGIN; INSERT INTO src VALUES (15), (999999)")
    running = await start(into(source, "src", target, "dst", chunk=ChunkLimits(min_rows=10, max_rows=100)))
    await running.until(lambda: bool(waits(running)))
    assert "nightly-report" in waits(running)[0]
    # The ledger is told right after the listeners.
    await running.until(lambda: "nightly-report" in target.sql("SELECT waiting FROM backfill.status"))
    assert target.sql("SELECT state FROM backfill.job") == "planned"
    assert running.count(ChunkCommitted) == 0
    await older.execute("COMMIT")
    await running.done()
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")


async def test_a_repeatable_read_transaction_that_has_only_read_so_far_is_waited_for_too(
    databases: TwoDatabases,
) -> None:
    database = databases.source
    database.sql(
        f"CREATE TABLE src (id int PRIMARY KEY); INSERT INTO src SELECT g * 10 FROM generate_series(1, {ROWS}) g"
    )
    database.sql("CREATE TABLE dst (id int PRIMARY KEY)")
    older = await database.connect()
    await older.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM src LIMIT 1")
    running = await start(into(database, "src", database, "dst"))
    await running.until(lambda: bool(waits(running)))
    await older.execute("INSERT INTO src VALUES (15); COMMIT")
    await running.done()
    assert rows_of(database, "SELECT * FROM src") == rows_of(database, "SELECT * FROM dst")


async def test_a_delete_whose_snapshot_is_older_than_our_copy_leaves_no_ghost(databases: TwoDatabases) -> None:
    """The deleter sees no row of ours in the target; the sweep waits for its end, and looks again."""
    database = databases.source
    database.sql(
        f"CREATE TABLE src (id int PRIMARY KEY); INSERT INTO src SELECT g * 10 FROM generate_series(1, {ROWS}) g"
    )
    database.sql("CREATE TABLE dst (id int PRIMARY KEY)")
    spec = into(database, "src", database, "dst", chunk=ChunkLimits(min_rows=10, max_rows=100))
    running = await start(spec)
    await running.until(lambda: running.count(ChunkCommitted) >= 1)
    deleter = await database.connect(server_settings={"application_name": "deleter"})
    await deleter.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM dst LIMIT 1")
    await running.until(lambda: any("deleter" in reason for reason in waits(running)))
    await deleter.execute("DELETE FROM src WHERE id = 20000; DELETE FROM dst WHERE id = 20000; COMMIT")
    await running.done()
    assert rows_of(database, "SELECT * FROM src") == rows_of(database, "SELECT * FROM dst")
    assert database.sql("SELECT count(*) FROM dst") == str(ROWS - 1)


async def test_a_source_with_a_column_of_every_name_that_our_statements_use_keeps_its_rows(
    databases: TwoDatabases,
) -> None:
    """A column called n was once taken for a counter of ours, and the sweep took every row for deleted."""
    names = ("n", "listed", "key", "s", "d", "t", "k0", "v0", "moved", "counted", "suspect", "xid", "job_id", "span")
    table = f"(id int PRIMARY KEY, {', '.join(f'{name} int' for name in names)})"
    fill = f"INSERT INTO src SELECT g, {', '.join('0' for _ in names)} FROM generate_series(1, {ROWS}) g"
    for target in (databases.source, databases.target):
        databases.source.sql(f"DROP TABLE IF EXISTS src; CREATE TABLE src {table}; {fill}")
        target.sql(f"CREATE TABLE dst {table}")
        spec = into(databases.source, "src", target, "dst", chunk=ChunkLimits(min_rows=10, max_rows=100))
        running = await start(spec)
        await running.until(lambda running=running: running.count(ChunkCommitted) >= 1)  # type: ignore[misc]
        databases.source.sql("DELETE FROM src WHERE id % 100 = 0")
        await running.done()
        assert rows_of(databases.source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")
