"""Rows that others change while a transform has them: nothing stale is written, and no row is left out."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import tests.support.hashing
from engine.embedded.server import EmbeddedError
from engine.events import ChunkCommitted, PhaseChanged
from engine.model import Mode
from engine.transform import Batch
from tests.support.databases import FreshDatabase, TwoDatabases, on_each_major
from tests.support.hashed import SMALL, Stage
from tests.support.hashing import named
from tests.support.jobs import SLOT_S, Running, in_place, start

pytestmark = pytest.mark.usefixtures("under_its_rights")


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
