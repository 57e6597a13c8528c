"""Rows that pass through a Python transform arrive once, all of them, and as it made them of what they hold."""

from __future__ import annotations

import pytest

import engine.flow.movers.streamed
from engine.events import ChunkCommitted, ChunkRetried, Warned
from engine.flow.rehearse import rehearse
from engine.model import ConflictPolicy, Mode
from engine.spec import ChunkLimits, OnConflict
from engine.sql.statements import TargetShape
from tests.support.databases import FreshDatabase, TwoDatabases, on_each_major
from tests.support.hashed import SMALL, Stage
from tests.support.hashing import CANARY, HASHED_SQL, named
from tests.support.jobs import in_place, prepare, rows_of, run_to_done, start

pytestmark = pytest.mark.usefixtures("under_its_rights")

MODES = pytest.mark.parametrize("mode", list(Mode), ids=[mode.value for mode in Mode])


@on_each_major
@MODES
async def test_every_row_arrives_as_the_transform_made_it(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    ran = await run_to_done(stage.spec())
    assert (stage.wrong, stage.passed, ran.result.rows) == (0, True, 3000)
    chunks = [event.observation for event in ran.of(ChunkCommitted)]
    assert len(chunks) > 5
    assert all(chunk.transform_s > 0 for chunk in chunks if chunk.rows)
    assert sum(chunk.rows for chunk in chunks) == 3000


async def test_batches_that_overtake_each_other_stay_in_order(databases: TwoDatabases) -> None:
    stage = Stage(Mode.COPY, databases)
    await run_to_done(stage.spec("hashed_later", chunk=ChunkLimits(min_rows=500, max_rows=1000)))
    assert (stage.wrong, stage.passed) == (0, True)


@pytest.mark.parametrize("mode", [Mode.COPY, Mode.UPDATE], ids=["copy", "update"])
async def test_a_transform_takes_no_longer_than_its_chunk_however_many_batches_overlap(
    databases: TwoDatabases, mode: Mode
) -> None:
    stage = Stage(mode, databases)
    ran = await run_to_done(stage.spec("hashed_beside_each_other", chunk=ChunkLimits(min_rows=500, max_rows=1000)))
    chunks = [event.observation for event in ran.of(ChunkCommitted) if event.observation.rows]
    assert all(0.1 <= chunk.transform_s <= chunk.server_s for chunk in chunks)


async def test_an_expression_and_a_transform_fill_one_row_together(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases)
    stage.source.sql("ALTER TABLE src ADD filled int, ADD backfill_k0 int")  # a name that the staging table likes, too
    await run_to_done(stage.spec(set={"filled": "id::int + 1", "backfill_k0": "n"}, where="id > 10"))
    assert stage.source.sql(
        "SELECT count(*) FROM src WHERE filled = id + 1 AND h IS NOT DISTINCT FROM " + HASHED_SQL
    ) == ("2990")
    assert stage.source.sql("SELECT count(*) FROM src WHERE id <= 10 AND h IS NOT NULL") == "0"


@pytest.mark.parametrize("policy", list(ConflictPolicy), ids=[policy.value for policy in ConflictPolicy])
async def test_a_row_that_the_target_holds_is_dealt_with_as_the_job_says(
    databases: TwoDatabases, policy: ConflictPolicy
) -> None:
    stage = Stage(Mode.INSERT, databases)
    if policy is not ConflictPolicy.FAIL:
        stage.target.sql("INSERT INTO dst (id, n, v, h) VALUES (5, 100, 'theirs', -1), (2000, -1, 'theirs', -1)")
    column = "n" if policy is ConflictPolicy.NEWEST else None
    await run_to_done(stage.spec(on_conflict=OnConflict(policy=policy, column=column)))
    expected = {
        ConflictPolicy.KEEP: "5|theirs\n2000|theirs",
        ConflictPolicy.NEWEST: "5|theirs",
    }
    assert stage.target.sql("SELECT id, v FROM dst WHERE v = 'theirs' ORDER BY id") == expected.get(policy, "")
    assert stage.target.sql(f"SELECT count(*) FROM dst WHERE h IS DISTINCT FROM {HASHED_SQL} AND v <> 'theirs'") == "0"
    assert stage.target.sql("SELECT count(*) FROM dst") == "3000"


async def test_a_partitioned_table_is_filled_through_a_transform(database: FreshDatabase) -> None:
    database.sql(
        "CREATE TABLE src (id bigint, n int, v text, h bigint, PRIMARY KEY (id)) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF src FOR VALUES FROM (0) TO (1000);"
        "CREATE TABLE high PARTITION OF src FOR VALUES FROM (1000) TO (9999);"
        "INSERT INTO src SELECT g, g, 'v' FROM generate_series(1, 2000) g; ANALYZE src"
    )
    await run_to_done(in_place(database, "src", {}, transform=named("hashed"), chunk=SMALL))
    assert database.sql(f"SELECT count(*) FROM src WHERE h IS DISTINCT FROM {HASHED_SQL}") == "0"


@MODES
async def test_dropped_rows_stay_out(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    ran = await run_to_done(stage.spec("hashed_but_thirteen", accept=("TRANSFORM_DROPS",)))
    done = stage.target.sql(f"SELECT count(*), count(*) FILTER (WHERE n = 13) FROM {stage.table} WHERE h IS NOT NULL")
    assert done == "2994|0"  # three rows are thirteen, three have no number
    assert ran.result.rows == 2997


# -- beside the rows --------------------------------------------------------------------------------------------------


@MODES
async def test_a_rehearsal_runs_the_transform_and_leaves_nothing(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    before = rows_of(stage.target, f"SELECT * FROM {stage.table}")
    rehearsed = await rehearse(await prepare(stage.spec()), chunks=2)
    assert rehearsed.failed == ()
    assert sum(sample.rows for sample in rehearsed.samples) > 0
    assert rows_of(stage.target, f"SELECT * FROM {stage.table}") == before


async def test_a_tear_down_that_fails_is_told_and_changes_nothing(databases: TwoDatabases) -> None:
    stage = Stage(Mode.COPY, databases)
    ran = await run_to_done(stage.spec("hashed_but_untidy"), workers=1)
    assert (stage.wrong, stage.passed) == (0, True)
    (told,) = [event.message for event in ran.of(Warned)]
    assert "tear-down" in told
    assert "hashing.py" in told
    assert CANARY not in told, "what an exception says may be a value"


@MODES
async def test_a_job_that_was_stopped_goes_on_where_it_was(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    running = await start(stage.spec(chunk=ChunkLimits(min_rows=50, max_rows=50)))
    await running.until(lambda: running.count(ChunkCommitted) > 3)
    await running.drained()
    moved = sum(e.observation.rows for e in running.events if isinstance(e, ChunkCommitted))
    ran = await run_to_done(stage.spec())
    assert (stage.wrong, stage.passed) == (0, True)
    assert ran.result.resumed
    assert moved + sum(event.observation.rows for event in ran.of(ChunkCommitted)) == 3000


async def test_a_transaction_that_fails_at_its_staging_table_is_over(
    databases: TwoDatabases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left open, it would refuse whatever comes next on that session."""
    stage = Stage(Mode.COPY, databases)
    stage.target.sql("INSERT INTO dst (id) VALUES (5)")  # a chunk that meets a row goes by staging
    real = engine.flow.movers.streamed.create_staging
    calls: list[TargetShape] = []

    def fail_once(target: TargetShape) -> str:
        calls.append(target)
        return real(target) if len(calls) > 1 else "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"

    monkeypatch.setattr(engine.flow.movers.streamed, "create_staging", fail_once)
    ran = await run_to_done(stage.spec(), workers=1)
    assert [event.sqlstate for event in ran.of(ChunkRetried)] == ["40001"]
