"""Rows that pass through a Python transform arrive once, all of them, and as it made them of what they hold."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

import tests.support.hashing
from engine.embedded.server import EmbeddedError
from engine.events import ChunkCommitted, PhaseChanged, Warned
from engine.flow.rehearse import rehearse
from engine.model import ConflictPolicy, Mode
from engine.spec import ChunkLimits, JobSpec, OnConflict
from engine.transform import Batch
from tests.support.databases import FreshDatabase, TwoDatabases, on_each_major
from tests.support.hashing import CANARY, HASHED_SQL, named
from tests.support.jobs import SLOT_S, Running, in_place, into, prepare, rows_of, run_to_done, start

pytestmark = pytest.mark.usefixtures("under_its_rights")

SMALL = ChunkLimits(min_rows=10, max_rows=400)
MODES = pytest.mark.parametrize("mode", list(Mode), ids=[mode.value for mode in Mode])
SOURCE = "id bigint PRIMARY KEY, n int, v text, tags int4range, doc tsvector, h bigint"


class Stage:
    """A table of numbers and texts, and a job that hashes them: in place, or into a table called ``dst``."""

    def __init__(self, mode: Mode, databases: TwoDatabases, rows: int = 3000) -> None:
        self.mode = mode
        self.source = databases.source
        self.target = databases.target if mode is Mode.COPY else databases.source
        self.table = "src" if mode is Mode.UPDATE else "dst"
        self.source.sql(
            f"CREATE TABLE src ({SOURCE});"
            "INSERT INTO src SELECT g, nullif(g % 1000, 7), CASE WHEN g % 10 > 0 THEN repeat('x', g % 50) END,"
            f" int4range(g, g + 3), to_tsvector('simple', 'word ' || g) FROM generate_series(1, {rows}) g;"
            "ANALYZE src"
        )
        if mode is not Mode.UPDATE:
            self.target.sql(f"CREATE TABLE dst ({SOURCE})")

    def spec(self, function: str = "hashed", **settings: Any) -> JobSpec:
        settings = {"chunk": SMALL, "transform": named(function)} | settings
        if self.mode is Mode.UPDATE:
            return in_place(self.source, "src", settings.pop("set", {}), **settings)
        return into(self.source, "src", self.target, "dst", **settings)

    @property
    def wrong(self) -> int:
        """Rows of the written table whose hash is not that of what they hold."""
        return int(self.target.sql(f"SELECT count(*) FROM {self.table} WHERE h IS DISTINCT FROM {HASHED_SQL}"))

    @property
    def passed(self) -> bool:
        """Every row is there, and what the transform does not write is as it was."""
        columns = "id, n, v, tags, doc"
        return rows_of(self.source, f"SELECT {columns} FROM src") == rows_of(
            self.target, f"SELECT {columns} FROM {self.table}"
        )


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


@MODES
async def test_batches_that_overtake_each_other_stay_in_order(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    await run_to_done(stage.spec("hashed_later", chunk=ChunkLimits(min_rows=500, max_rows=1000)))
    assert (stage.wrong, stage.passed) == (0, True)


async def test_an_expression_and_a_transform_fill_one_row_together(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases)
    stage.source.sql("ALTER TABLE src ADD filled int, ADD backfill_k0 int")  # a name that the staging table likes, too
    await run_to_done(stage.spec(set={"filled": "id::int + 1", "backfill_k0": "n"}, where="id > 10"))
    assert stage.source.sql(
        "SELECT count(*) FROM src WHERE filled = id + 1 AND h IS NOT DISTINCT FROM " + HASHED_SQL
    ) == ("2990")
    assert stage.source.sql("SELECT count(*) FROM src WHERE id <= 10 AND h IS NOT NULL") == "0"


@pytest.mark.parametrize("policy", list(ConflictPolicy), ids=[policy.value for policy in ConflictPolicy])
@pytest.mark.parametrize("mode", [Mode.INSERT, Mode.COPY], ids=["insert", "copy"])
async def test_a_row_that_the_target_holds_is_dealt_with_as_the_job_says(
    databases: TwoDatabases, mode: Mode, policy: ConflictPolicy
) -> None:
    stage = Stage(mode, databases)
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


# -- rows that change while the transform has them --------------------------------------------------------------------


class Others:
    """What somebody else does each time that the transform is given the row with ``v = 'watched'``."""

    def __init__(self, database: FreshDatabase, monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
        self.seen = 0
        self.refused: list[str] = []
        self._database = database
        self._statements = statements
        monkeypatch.setattr(tests.support.hashing, "meanwhile", self)

    def __call__(self, batch: Batch) -> None:
        if "watched" not in batch["v"].values:
            return
        self.seen += 1
        if self.seen <= len(self._statements):
            try:
                self._database.sql(f"SET lock_timeout = '100ms'; {self._statements[self.seen - 1]}")
            except EmbeddedError as error:
                self.refused.append(str(error))


@pytest.fixture
def watched(databases: TwoDatabases) -> Stage:
    stage = Stage(Mode.UPDATE, databases)
    stage.source.sql("UPDATE src SET v = 'watched' WHERE id = 50")
    return stage


def changed_in(running: Running) -> int:
    return sum(event.observation.changed for event in running.events if isinstance(event, ChunkCommitted))


CHANGE = "UPDATE src SET n = n + 1 WHERE id = 50"


@on_each_major
async def test_a_row_that_changed_meanwhile_is_transformed_again(
    watched: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start(watched.spec("hashed_meanwhile"))
    others = Others(watched.source, monkeypatch, CHANGE)
    await running.done()
    assert (watched.wrong, changed_in(running), others.seen) == (0, 1, 2)
    assert watched.source.sql("SELECT n FROM src WHERE id = 50") == "51"


async def test_a_row_that_changes_each_time_is_locked_at_last(watched: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await start(watched.spec("hashed_meanwhile"))
    others = Others(watched.source, monkeypatch, CHANGE, CHANGE, CHANGE, CHANGE)
    await running.done()
    assert (watched.wrong, changed_in(running), others.seen) == (0, 3, 4)
    assert len(others.refused) == 1
    assert "lock timeout" in others.refused[0]


NOT_NEEDED = {
    "deleted": ("DELETE FROM src WHERE id = 50", 2999),
    "filled by somebody else": (f"UPDATE src SET n = -1, h = -31 + {len('watched')} WHERE id = 50", 2999),
    "changed in what is not read": ("UPDATE src SET tags = '[1,2)' WHERE id = 50", 3000),
}


@pytest.mark.parametrize(("statement", "rows"), NOT_NEEDED.values(), ids=NOT_NEEDED.keys())
async def test_a_row_that_needs_nothing_any_more_is_not_read_again(
    watched: Stage, monkeypatch: pytest.MonkeyPatch, statement: str, rows: int
) -> None:
    running = await start(watched.spec("hashed_meanwhile"))
    others = Others(watched.source, monkeypatch, statement)
    result = await running.ended()
    assert (watched.wrong, changed_in(running), others.seen, result.rows) == (0, 0, 1, rows)


async def test_a_column_that_is_read_and_written_passes_once(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written looks like a row that somebody else has changed, and nothing but that."""
    database.sql(
        "CREATE TABLE src (id bigint PRIMARY KEY, n int, v text);"
        "INSERT INTO src (id, n) SELECT g, 0 FROM generate_series(1, 1000) g; ANALYZE src"
    )
    touched: list[int] = []

    def touch(batch: Batch) -> None:
        if not touched:
            touched.append(batch.rows)
            database.sql("UPDATE src SET n = 100 WHERE id = 7")

    spec = in_place(database, "src", {"v": "'done'"}, done="v IS NOT NULL", transform=named("one_more"), chunk=SMALL)
    running = await start(spec)
    monkeypatch.setattr(tests.support.hashing, "meanwhile", touch)
    await running.done()
    assert database.sql("SELECT n, count(*) FROM src GROUP BY n ORDER BY n") == "1|999\n101|1"
    assert changed_in(running) == 1


async def test_a_change_that_we_wait_for_is_seen_before_we_write(
    watched: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read committed tests a row again that somebody changes while we wait for it; the bytes are part of that."""
    loop = asyncio.get_running_loop()
    other = await asyncpg.connect(watched.source.dsn)
    open_now = asyncio.Event()

    async def change() -> None:
        if not open_now.is_set():
            await other.execute("BEGIN; UPDATE src SET n = 900 WHERE id = 50")
            open_now.set()

    def begin(batch: Batch) -> None:
        if "watched" in batch["v"].values:
            asyncio.run_coroutine_threadsafe(change(), loop).result(SLOT_S)

    try:
        running = await start(watched.spec("hashed_meanwhile", lock_timeout_s=SLOT_S))
        monkeypatch.setattr(tests.support.hashing, "meanwhile", begin)
        await asyncio.wait_for(open_now.wait(), SLOT_S)
        pid = await other.fetchval("SELECT pg_backend_pid()")
        waits = f"SELECT pid FROM pg_stat_activity WHERE {pid} = ANY (pg_blocking_pids(pid))"
        await running.until(lambda: watched.source.sql(waits) != "")
        await other.execute("COMMIT")
        await running.done()
    finally:
        await other.close()
    assert (watched.wrong, changed_in(running)) == (0, 1)
    assert watched.source.sql("SELECT n FROM src WHERE id = 50") == "900"


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


@pytest.mark.parametrize("mode", [Mode.INSERT, Mode.COPY], ids=["insert", "copy"])
async def test_a_row_that_is_deleted_while_the_transform_has_it_is_swept_out(
    databases: TwoDatabases, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    stage = Stage(mode, databases)
    stage.source.sql("UPDATE src SET v = 'watched' WHERE id = 50")
    running = await start(stage.spec("hashed_meanwhile"))
    Others(stage.source, monkeypatch, "DELETE FROM src WHERE id = 50")
    await running.done()
    assert stage.target.sql("SELECT count(*), count(*) FILTER (WHERE id = 50) FROM dst") == "2999|0"
    assert running.count(PhaseChanged) > 0


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
