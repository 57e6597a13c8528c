"""What a table in place may have: names, system columns in expressions, triggers, and neighbours who change all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import asyncpg
import pytest

import engine.flow.movers.transformed
import tests.support.hashing
from engine.db import Database
from engine.db.failures import Action, classify
from engine.errors import TooManyBadRows
from engine.events import ChunkCommitted, ChunkRetried, Warned
from engine.flow.movers.transformed import Aside, too_many
from engine.flow.quarantine import Outcome, Retry
from engine.model import Mode, Phase, Side, Span
from engine.spec import ChunkLimits
from engine.spec.models import Errors
from engine.transform import Batch
from tests.support.databases import FreshDatabase, TwoDatabases, on_each_major
from tests.support.hashed import SMALL, Stage
from tests.support.hashing import HASHED_SQL, named
from tests.support.jobs import in_place, prepare, run, run_to_done, start

pytestmark = pytest.mark.usefixtures("under_its_rights")


def fill(database: FreshDatabase, table: str, rows: int) -> None:
    database.sql(
        f"CREATE TABLE {table} (id bigint PRIMARY KEY, n int, v text, h bigint);"
        f"INSERT INTO {table} SELECT g, g, 'x' FROM generate_series(1, {rows}) g; ANALYZE {table}"
    )


@on_each_major
@pytest.mark.parametrize("column", ["xmin", "ctid", "tableoid"])
async def test_expressions_may_name_system_columns_of_the_table(databases: TwoDatabases, column: str) -> None:
    stage = Stage(Mode.UPDATE, databases)
    named_it = f"{column} IS NOT NULL"
    spec = stage.spec(
        where=named_it, done=f"h IS NOT NULL AND {named_it}", set={"tags": f"CASE WHEN {named_it} THEN tags END"}
    )
    await run_to_done(spec)
    assert stage.wrong == 0


@pytest.mark.parametrize("table", ["backfill_new", "backfill_staging", "backfill_"])
async def test_a_table_may_be_called_as_ours(database: FreshDatabase, table: str) -> None:
    fill(database, table, 300)
    await run_to_done(in_place(database, table, {}, transform=named("hashed"), chunk=SMALL))
    assert database.sql(f"SELECT count(*) FROM {table} WHERE h = {HASHED_SQL}") == "300"


async def test_rows_whose_update_a_trigger_takes_back_are_told_of(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases)
    stage.source.sql(
        "CREATE FUNCTION kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER kept BEFORE UPDATE ON src FOR EACH ROW WHEN (NEW.id IN (77, 78)) EXECUTE FUNCTION kept()"
    )
    ran = await run(stage.spec(accept=("TRIGGERS_ON_SOURCE",)))
    assert ran.result.rows == 2998
    told = [event.message for event in ran.of(Warned)]
    assert [message for message in told if message.startswith("2 rows of a chunk stay as they were: a trigger")], told
    assert sum(event.observation.changed for event in ran.of(ChunkCommitted)) == 0


async def test_a_chunk_that_others_change_whole_comes_again_with_fewer_rows(
    databases: TwoDatabases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what they have changed would be in memory all at once."""
    stage = Stage(Mode.UPDATE, databases)
    monkeypatch.setattr(engine.flow.movers.transformed, "MOST_COLLECTED_BYTES", 3000)
    calls: list[int] = []

    def change_all(batch: Batch) -> None:
        calls.append(batch.rows)
        if len(calls) == 1:
            stage.source.sql("UPDATE src SET n = n + 1")

    running = await start(stage.spec("hashed_meanwhile", chunk=ChunkLimits(min_rows=200, max_rows=400)))
    monkeypatch.setattr(tests.support.hashing, "meanwhile", change_all)
    await running.done()
    split = [event for event in running.events if isinstance(event, ChunkRetried)]
    assert [event.action for event in split] == ["split"]
    assert stage.wrong == 0


async def test_a_reason_that_the_database_cannot_hold_is_spelled_out(
    make_database: Callable[..., FreshDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    fill(database, "src", 300)

    def thirteen(batch: Batch) -> None:
        batch.reject(batch["n"].values == 13, "\N{CYRILLIC SMALL LETTER A}…")

    spec = in_place(
        database, "src", {}, transform=named("hashed_meanwhile"), chunk=SMALL, errors=Errors(max_quarantined=5)
    )
    monkeypatch.setattr(tests.support.hashing, "meanwhile", thirteen)
    ran = await run_to_done(spec)
    aside = "SELECT key[1], sqlstate, error_class, attempts FROM backfill.quarantine"
    assert database.sql(aside) == r"13|BF010|\u0430...|1"
    assert ran.of(ChunkRetried) == []
    tried = await Retry(await prepare(spec)).run()
    assert tried.outcomes == {Outcome.FAILED: 1}
    assert database.sql(aside) == r"13|BF010|\u0430...|2"


async def test_too_many_rows_of_a_chunk_that_is_not_ours_any_more_are_a_matter_of_the_fence(
    databases: TwoDatabases,
) -> None:
    """Whoever has the span now may have set other rows aside: what this chunk adds to them means nothing."""
    stage = Stage(Mode.UPDATE, databases)
    ran = await run_to_done(stage.spec("hashed_or_no", errors=Errors(max_quarantined=3)))
    assert ran.result.quarantined == 3
    connection = await Database(stage.source.dsn, side=Side.TARGET).connect("test")
    try:
        row = await connection.fetchrow("SELECT id, hi, cursor, epoch FROM backfill.span ORDER BY id LIMIT 1")
        assert row is not None
        ours = Span(row["id"], Phase.MOVE, None, tuple(row["hi"]), tuple(row["cursor"]), row["epoch"], 0)
        aside = Aside()
        aside.add(("1",), "one more", "BF010")
        with pytest.raises(asyncpg.PostgresError) as refused:
            await connection.execute(aside.call(1, 3, connection.encoding).rstrip("; "))
        told = await too_many(refused.value, connection, 1, ours, aside, 3)
        assert isinstance(told, TooManyBadRows)
        for moved in ({"epoch": ours.epoch - 1}, {"cursor": None}, {"cursor": ("0",)}, {"hi": ("999999",)}):
            stale = replace(ours, **moved)
            told = await too_many(refused.value, connection, 1, stale, aside, 3)
            assert classify(told).action is Action.FENCED
    finally:
        await connection.close()
