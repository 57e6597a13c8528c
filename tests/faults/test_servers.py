"""What servers, administrators and other sessions do to a job, and what the job makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from engine.db import Connection
from engine.embedded import EmbeddedServer
from engine.events import ChunkCommitted, ChunkRetried, StateChanged, Waiting
from engine.model import JobState
from engine.spec import ChunkLimits, JobSpec
from tests.support.databases import QUIET, FreshDatabase, TwoDatabases, create_database
from tests.support.jobs import Running, in_place, into, rows_of, start

pytestmark = pytest.mark.faults

ROWS = 5000
CHUNK = ChunkLimits(min_rows=10, max_rows=250)
SLOW_CHUNKS = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.id % 100 = 0 THEN PERFORM pg_sleep(0.02); END IF; RETURN NEW; END $$;
CREATE TRIGGER wait BEFORE UPDATE ON src FOR EACH ROW EXECUTE FUNCTION wait();
"""
ACTIVE = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'WITH moved%' AND state = 'active' AND datname = current_database()"


def counting_job(database: FreshDatabase, **settings: Any) -> JobSpec:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, counter int NOT NULL DEFAULT 0, app int NOT NULL DEFAULT 0)")
    database.sql(f"INSERT INTO src SELECT g FROM generate_series(1, {ROWS}) g; ANALYZE src")
    database.sql(SLOW_CHUNKS)
    settings = {"chunk": CHUNK, "accept": ("TRIGGERS_ON_SOURCE",)} | settings
    return in_place(database, "src", {"counter": "counter + 1"}, done="false", **settings)


def counted_once(database: FreshDatabase) -> bool:
    return database.sql("SELECT min(counter), max(counter), count(*) FROM src") == f"1|1|{ROWS}"


async def to_a_chunk(running: Running, database: FreshDatabase, act: str) -> None:
    """Run ``act`` (a function of the server) on the session of a chunk that is running now.

    The chunk waits for a lock meanwhile: on a busy machine it would be over before it is told, and to be ended between
    two chunks is something else.
    """
    application = await database.connect()
    await application.execute("BEGIN; LOCK TABLE src IN EXCLUSIVE MODE")
    waits = f"{ACTIVE} AND wait_event_type = 'Lock'"
    await running.until(lambda: database.sql(f"SELECT {act}(pid) FROM ({waits} LIMIT 1) a") == "t")
    await application.execute("ROLLBACK")


async def test_an_administrator_who_ends_a_session_pauses_the_job_and_resume_goes_on(database: FreshDatabase) -> None:
    running = await start(counting_job(database), workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    await to_a_chunk(running, database, "pg_terminate_backend")
    await running.until(lambda: database.sql("SELECT state FROM backfill.job") == "paused")
    await running.until(lambda: database.sql(ACTIVE) == "")
    await asyncio.sleep(0.3)
    before = running.count(ChunkCommitted)
    await asyncio.sleep(1.0)
    assert running.count(ChunkCommitted) == before  # sticky
    assert database.sql("SELECT reason FROM backfill.job").startswith("an administrator ended a session")
    database.sql("SELECT backfill.resume('job')")
    await running.done()
    assert counted_once(database)
    assert JobState.PAUSED in [e.state for e in running.events if isinstance(e, StateChanged)]


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(16, settings=QUIET | {"max_connections": 16}, tcp=True, durable=True) as server:
        yield server


@pytest.mark.parametrize("how", ["immediate", "kill", "fast"])
async def test_a_server_that_crashes_or_restarts_is_waited_for(own_server: EmbeddedServer, how: str) -> None:
    database = create_database(own_server)
    running = await start(counting_job(database), workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 4)
    await asyncio.to_thread(own_server.kill if how == "kill" else lambda: own_server.stop(how))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(own_server.start)
    await running.done()
    assert counted_once(database)


async def test_when_there_is_no_connection_left_it_waits_for_one(own_server: EmbeddedServer) -> None:
    database = create_database(own_server)
    running = await start(counting_job(database), workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    others = []
    for worker in running.supervisor.workers:
        worker.abort()
    with pytest.raises((asyncpg.TooManyConnectionsError, asyncpg.CannotConnectNowError)):
        for _ in range(50):
            others.append(await asyncpg.connect(database.dsn))
    await asyncio.sleep(1.0)
    for other in others:
        other.terminate()
    await running.done()
    assert counted_once(database)


async def test_a_row_that_the_application_holds_makes_the_chunk_give_way_and_try_again(database: FreshDatabase) -> None:
    running = await start(counting_job(database, lock_timeout_s=0.2), workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 1)
    application = await database.connect()
    await application.execute("BEGIN; UPDATE src SET app = 1 WHERE id = 4100")
    await running.until(lambda: running.count(ChunkRetried) >= 2)
    assert {e.sqlstate for e in running.events if isinstance(e, ChunkRetried)} == {"55P03"}
    await application.execute("COMMIT")
    await running.done()
    assert counted_once(database)
    assert database.sql("SELECT app, counter FROM src WHERE id = 4100") == "1|1"


async def test_a_deadlock_with_the_application_costs_one_chunk_not_the_job(database: FreshDatabase) -> None:
    running = await start(counting_job(database, lock_timeout_s=5))
    await running.until(lambda: running.count(ChunkCommitted) >= 1)
    application = await database.connect(server_settings={"deadlock_timeout": "20s"})  # the chunk notices first
    await application.execute("BEGIN; UPDATE src SET app = 1 WHERE id = 4100")
    await running.until(lambda: database.sql(f"{ACTIVE} AND wait_event_type = 'Lock'") != "")
    first = database.sql("SELECT cursor[1]::int + 1 FROM backfill.span WHERE cursor IS DISTINCT FROM hi")
    await application.execute(f"UPDATE src SET app = 1 WHERE id = {first}; COMMIT")
    await running.done()
    assert [e.sqlstate for e in running.events if isinstance(e, ChunkRetried)] == ["40P01"]
    assert counted_once(database)
    assert database.sql("SELECT sum(app) FROM src") == "2"


async def test_a_chunk_that_is_cancelled_comes_again_in_halves(database: FreshDatabase) -> None:
    running = await start(counting_job(database))
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    before = [e.next_rows for e in running.events if isinstance(e, ChunkCommitted)][-1]
    await to_a_chunk(running, database, "pg_cancel_backend")
    await running.until(lambda: running.count(ChunkRetried) >= 1)
    (retried,) = [e for e in running.events if isinstance(e, ChunkRetried)]
    assert (retried.sqlstate, retried.action) == ("57014", "split")
    at = running.events.index(retried)
    await running.until(lambda: any(isinstance(e, ChunkCommitted) for e in running.events[at:]))
    after = next(e for e in running.events[at:] if isinstance(e, ChunkCommitted))
    assert after.observation.scanned <= before / 2 + 1
    await running.done()
    assert counted_once(database)


@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_lost_control_session_is_replaced_on_either_side(databases: TwoDatabases, side: str) -> None:
    databases.source.sql(f"CREATE TABLE src (id int PRIMARY KEY); INSERT INTO src SELECT generate_series(1, {ROWS})")
    databases.target.sql("CREATE TABLE dst (id int PRIMARY KEY)")
    spec = into(databases.source, "src", databases.target, "dst", chunk=ChunkLimits(min_rows=10, max_rows=50))
    running = await start(spec, workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    server = databases.source if side == "source" else databases.target
    control = "application_name = 'backfill/job/control' AND datname = current_database()"
    assert server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {control}") == "t"
    await running.done()
    assert rows_of(databases.source, "SELECT * FROM src") == rows_of(databases.target, "SELECT * FROM dst")


async def test_nobody_uses_a_new_control_session_before_it_listens(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg: "another operation is in progress", which no server said and which would end the process."""
    running = await start(counting_job(database))
    await running.until(lambda: running.count(ChunkCommitted) >= 1)
    listen = Connection.add_listener

    async def listen_slowly(self: Connection, channel: str, callback: Any) -> None:
        await self.execute("SELECT pg_sleep(3)")  # the loops beside the workers look every second
        await listen(self, channel, callback)

    monkeypatch.setattr(Connection, "add_listener", listen_slowly)
    control = "application_name = 'backfill/job/control' AND datname = current_database()"
    assert database.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {control}") == "t"
    await running.done()
    assert counted_once(database)


async def test_a_lock_that_stops_all_workers_is_told_for_as_long_as_it_does(database: FreshDatabase) -> None:
    """The status names it at every look, between two attempts and during them; the log has a line, and one at its end."""
    running = await start(counting_job(database, lock_timeout_s=0.2), workers=2)

    def told() -> list[str]:
        return [event.reason for event in running.events if isinstance(event, Waiting)]

    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    other = await database.connect()
    await other.execute("BEGIN; LOCK TABLE src")
    await running.until(lambda: told()[-1:] == ["retry after 55P03"])
    moved = running.count(ChunkCommitted)  # by now also those are told of that were in before the lock
    before = len(told())
    seen = []
    for _ in range(10):
        await asyncio.sleep(0.3)
        seen.append(database.sql("SELECT waiting FROM backfill.status"))
    assert (set(seen[3:]), len(told()), running.count(ChunkCommitted)) == ({"retry after 55P03"}, before, moved)
    await other.execute("ROLLBACK")
    await running.until(lambda: told()[-1:] == [""] or running.task.done())
    await running.done()
    assert counted_once(database)


async def test_one_failed_checkpoint_does_not_stop_the_later_ones(database: FreshDatabase) -> None:
    """cockroach#141714: one failed checkpoint write stopped all later ones, unnoticed."""
    running = await start(counting_job(database))
    await running.until(lambda: running.count(ChunkCommitted) >= 1)
    database.sql(
        "CREATE SEQUENCE failures; CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF OLD.cursor IS DISTINCT FROM NEW.cursor AND nextval('public.failures') <= 2 THEN"
        " RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER fail BEFORE UPDATE ON backfill.span FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    await running.done()
    assert running.count(ChunkRetried) == 2
    assert counted_once(database)
    assert database.sql("SELECT count(*) FROM backfill.span WHERE cursor IS DISTINCT FROM hi") == "0"
