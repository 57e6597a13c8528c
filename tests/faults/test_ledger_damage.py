"""A ledger that contradicts itself is refused, and tables that changed stop the job with a reason."""

from __future__ import annotations

import pytest

from engine.errors import LedgerDamaged, SchemaDrift
from engine.events import ChunkCommitted
from engine.model import JobState
from engine.spec import ChunkLimits, JobSpec, Pace
from engine.spec.signals import ALL_OFF
from tests.support.databases import FreshDatabase
from tests.support.jobs import differing, in_place, into, run, run_to_done, start

pytestmark = pytest.mark.faults

ROWS = 4000
CHUNK = ChunkLimits(min_rows=10, max_rows=100)
PACE = Pace(max_rows_per_s=3000, signals=ALL_OFF)

DAMAGES = {
    "the last span is gone": "DELETE FROM backfill.span WHERE id = 1002",
    "a span in the middle is gone": "DELETE FROM backfill.span WHERE id = 1001",
    "all spans are gone": "DELETE FROM backfill.span",
    "two spans overlap": "UPDATE backfill.span SET lo = ARRAY['3100'], cursor = ARRAY['3100'] WHERE id = 1002",
    "a span is there twice": "INSERT INTO backfill.span (job_id, id, phase, lo, hi, cursor, rows_estimated)"
    " SELECT job_id, 1003, phase, lo, hi, cursor, rows_estimated FROM backfill.span WHERE id = 1002",
    "a cursor is past its span": "UPDATE backfill.span SET cursor = ARRAY['3900'] WHERE id = 1001",
    "a cursor is before its span": "UPDATE backfill.span SET cursor = ARRAY['5'] WHERE id = 1001",
    "a cursor is lost": "UPDATE backfill.span SET cursor = NULL WHERE id = 1001",
    "a bound has two columns": "UPDATE backfill.span SET hi = ARRAY['3500', 'x'] WHERE id = 1001",
    "a cursor has two columns": "UPDATE backfill.span SET cursor = ARRAY['3100', 'x'] WHERE id = 1001",
    "a span runs backwards": "UPDATE backfill.span SET lo = ARRAY['3500'], hi = ARRAY['3000'], cursor = ARRAY['3500']"
    " WHERE id = 1001",
    "the key has another type": "UPDATE backfill.job SET key_types = ARRAY['uuid']",
}


def job(database: FreshDatabase) -> JobSpec:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, counter int NOT NULL DEFAULT 0, v int)")
    database.sql(f"INSERT INTO src SELECT g FROM generate_series(1, {ROWS}) g; ANALYZE src")
    return in_place(database, "src", {"counter": "counter + 1"}, done="false", chunk=CHUNK, pace=PACE)


async def half_done(database: FreshDatabase, spec: JobSpec) -> None:
    """Run a few chunks and stop; what is left is spans 1 to 3000, 1001 to 3500 and 1002 to the end."""
    running = await start(spec)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    await running.drained()
    assert database.sql("SELECT count(*), max(cursor[1]::int) < 3000 FROM backfill.span") == "1|t"
    database.sql(
        "UPDATE backfill.span SET hi = ARRAY['3000'];"
        "INSERT INTO backfill.span (job_id, id, phase, lo, hi, cursor, rows_estimated)"
        " SELECT job_id, 1001, phase, ARRAY['3000'], ARRAY['3500'], ARRAY['3000'], 500 FROM backfill.span"
        " UNION ALL SELECT job_id, 1002, phase, ARRAY['3500'], ARRAY['4000'], ARRAY['3500'], 500 FROM backfill.span"
    )


async def test_a_sound_ledger_of_three_spans_is_gone_on_with(database: FreshDatabase) -> None:
    spec = job(database)
    await half_done(database, spec)
    await run_to_done(spec)
    assert database.sql("SELECT min(counter), max(counter), count(*) FROM src") == f"1|1|{ROWS}"


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_ledger_is_refused_and_nothing_moves(database: FreshDatabase, damage: str) -> None:
    spec = job(database)
    await half_done(database, spec)
    database.sql(DAMAGES[damage])
    before = database.sql("SELECT * FROM src ORDER BY id")
    spans = database.sql("SELECT * FROM backfill.span ORDER BY id")
    with pytest.raises(LedgerDamaged):
        await run(spec)
    assert database.sql("SELECT * FROM src ORDER BY id") == before
    assert database.sql("SELECT * FROM backfill.span ORDER BY id") == spans
    assert database.sql("SELECT state, error_code, resumable FROM backfill.job") == "failed|ledger_damaged|f"
    database.sql("SELECT backfill.resume('job')")
    ran = await run(spec)
    assert ran.result.state is JobState.FAILED
    assert database.sql("SELECT * FROM src ORDER BY id") == before


async def test_a_newer_ledger_is_refused(database: FreshDatabase) -> None:
    spec = job(database)
    await half_done(database, spec)
    database.sql("INSERT INTO backfill.version VALUES (999)")
    with pytest.raises(LedgerDamaged, match="version 999"):
        await run(spec)


async def test_a_job_that_was_removed_and_made_again_begins_from_the_beginning(database: FreshDatabase) -> None:
    """cockroach#77797: a stale checkpoint was reused by the next run."""
    database.sql("CREATE TABLE src (id int PRIMARY KEY); CREATE TABLE dst (id int PRIMARY KEY)")
    database.sql(f"INSERT INTO src SELECT generate_series(1, {ROWS})")
    spec = into(database, "src", database, "dst", chunk=CHUNK)
    await run_to_done(spec)
    database.sql("TRUNCATE dst; DELETE FROM backfill.job")
    ran = await run_to_done(spec)
    assert not ran.result.resumed
    assert ran.result.rows == ROWS
    assert differing(database, "SELECT * FROM src", "SELECT * FROM dst") == 0


async def test_progress_counts_on_after_a_resume(database: FreshDatabase) -> None:
    """spirit#1254: counters were reset on resume."""
    spec = job(database)
    await half_done(database, spec)
    ran = await run_to_done(spec)
    assert ran.result.resumed
    assert ran.result.rows == ROWS


async def test_an_error_right_after_a_resume_leaves_the_cursor_where_it_was(database: FreshDatabase) -> None:
    """maintenance_tasks#1033: it wrote a null cursor."""
    spec = job(database)
    await half_done(database, spec)
    cursors = "SELECT cursor FROM backfill.span ORDER BY id"
    before = database.sql(cursors)
    database.sql("ALTER TABLE src ADD CONSTRAINT never CHECK (counter < 1) NOT VALID")
    ran = await run(spec)
    assert ran.result.state is JobState.FAILED
    assert database.sql(cursors) == before
    database.sql("ALTER TABLE src DROP CONSTRAINT never; SELECT backfill.resume('job')")
    await run_to_done(spec)
    assert database.sql("SELECT min(counter), max(counter), count(*) FROM src") == f"1|1|{ROWS}"


CHANGES = {
    "a column that it reads is dropped": "ALTER TABLE src DROP COLUMN v",
    "a column that it reads is renamed": "ALTER TABLE src RENAME COLUMN v TO w",
    "a column that it writes has another type": "ALTER TABLE dst ALTER v TYPE text",
    "the target is emptied": "TRUNCATE dst",
    "the target is another table": "ALTER TABLE dst RENAME TO old; CREATE TABLE dst (LIKE old INCLUDING ALL)",
    "the key is another": "ALTER TABLE src DROP CONSTRAINT src_pkey; ALTER TABLE src ADD PRIMARY KEY (other)",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_table_that_changes_in_mid_run_stops_the_job_with_a_reason(
    database: FreshDatabase, change: str
) -> None:
    columns = "(id int PRIMARY KEY, v int, other int NOT NULL)"
    database.sql(f"CREATE TABLE src {columns}; CREATE TABLE dst {columns}")
    database.sql(f"INSERT INTO src SELECT g, g, -g FROM generate_series(1, {ROWS}) g; ANALYZE src")
    spec = into(database, "src", database, "dst", chunk=CHUNK, pace=PACE)
    running = await start(spec, workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    database.sql(CHANGES[change])
    result = await running.ended()
    assert result.state is JobState.FAILED
    assert result.error is not None and result.error.message
    assert database.sql("SELECT state, error_code IN ('schema_drift', 'bad_row') FROM backfill.job") == "failed|t"


async def test_a_change_that_somebody_has_looked_at_is_accepted_by_resume(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, v int); CREATE TABLE dst (LIKE src INCLUDING ALL)")
    database.sql(f"INSERT INTO src SELECT g, g FROM generate_series(1, {ROWS}) g; ANALYZE src")
    spec = into(database, "src", database, "dst", chunk=CHUNK, pace=PACE)
    running = await start(spec)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    await running.drained()
    database.sql("ALTER TABLE dst ADD COLUMN more int")
    with pytest.raises(SchemaDrift, match="more"):
        await run(spec)
    database.sql("SELECT backfill.resume('job', 'seen')")
    await run_to_done(spec)
    assert differing(database, "SELECT id, v FROM src", "SELECT id, v FROM dst") == 0
