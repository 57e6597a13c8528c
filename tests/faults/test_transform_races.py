"""An application writes the very rows that a transform is working on: what is written in the end belongs to what its row
holds, whoever was first.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import pytest

from engine.events import ChunkCommitted
from engine.flow import Leases
from engine.spec import ChunkLimits, JobSpec
from tests.support.databases import FreshDatabase
from tests.support.hashing import HASHED_SQL, named
from tests.support.jobs import differing, in_place, into, run_to_done

pytestmark = pytest.mark.faults

ROWS: Final = 4000
CLIENTS: Final = 6
NEAR: Final = 300
"""Rows ahead of the first unfinished one: what chunks are about to read, have read, and are writing."""

OTHERS: Final = ("READ COMMITTED", "REPEATABLE READ")
BEATEN: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError)

TABLE: Final = "(id bigint PRIMARY KEY, n int NOT NULL, v text, h bigint, other int NOT NULL DEFAULT 0)"
FILL: Final = f"INSERT INTO t SELECT g, g, 'v' || g FROM generate_series(1, {ROWS}) g; ANALYZE t"

KEEPS_UP: Final = """
CREATE FUNCTION keep_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A row that nobody has filled is the job's, whatever is changed in it; a row that comes, or gets another key, may be
    -- where the job has been already.
    IF current_setting('application_name') NOT LIKE 'backfill/%' THEN
        IF TG_OP = 'INSERT' THEN
            NEW.h := NEW.n::bigint * 31 + coalesce(length(NEW.v), -1);
        ELSIF NEW.id <> OLD.id OR OLD.h IS NOT NULL THEN
            NEW.h := NEW.n::bigint * 31 + coalesce(length(NEW.v), -1);
        END IF;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep_up BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION keep_up()
"""

WRITES_BOTH: Final = """
CREATE FUNCTION write_both() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.id <> NEW.id) THEN
        DELETE FROM public.d WHERE id = OLD.id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO public.d (id, v, h) VALUES (NEW.id, NEW.v, NEW.n::bigint * 31 + coalesce(length(NEW.v), -1))
        ON CONFLICT (id) DO UPDATE SET v = excluded.v, h = excluded.h;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER write_both AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION write_both()
"""

CHANGES: Final = {
    "read": "UPDATE t SET n = n + 1000 WHERE id = $1",
    "read, to null and back": "UPDATE t SET v = CASE WHEN v IS NULL THEN repeat('w', 9) END WHERE id = $1",
    "other": "UPDATE t SET other = other + 1 WHERE id = $1",
    "written": f"UPDATE t SET h = {HASHED_SQL} WHERE id = $1",
    "delete": "DELETE FROM t WHERE id = $1",
    "key": f"UPDATE t SET id = id + {10 * ROWS} WHERE id = $1",
    "insert": "INSERT INTO t (id, n, v) VALUES (-$1::bigint * 1000 - floor(random() * 1000)::int, 7, 'new')",
}


class Application:
    """Clients that change rows just ahead of the job, in transactions that stay open for a moment."""

    def __init__(self, database: FreshDatabase, *, ahead: str) -> None:
        self._database = database
        self._ahead = ahead
        self._kinds = tuple(CHANGES)
        self.done: Counter[str] = Counter()

    @asynccontextmanager
    async def at_work(self, seed: int) -> AsyncIterator[None]:
        clients = [asyncio.create_task(self._client(random.Random(seed + n), OTHERS[n % 2])) for n in range(CLIENTS)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            outcomes = await asyncio.gather(*clients, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes

    async def _client(self, rng: random.Random, isolation: str) -> None:
        connection = await self._database.connect(server_settings={"application_name": "shop"})
        while True:
            first = await connection.fetchval(self._ahead)
            try:
                async with connection.transaction(isolation=isolation.lower().replace(" ", "_")):
                    await connection.fetchval("SELECT count(*) FROM t WHERE id < 0")  # the snapshot
                    kind = rng.choices(self._kinds, [8, 4, 4, 2, 1, 1, 1])[0]
                    for row in sorted(rng.sample(range(NEAR), rng.randint(1, 4))):
                        await connection.execute(CHANGES[kind], (first or 0) + row)
                    await asyncio.sleep(rng.choice((0.0, 0.0, 0.02)))
                self.done[f"{kind}, {isolation}"] += 1
            except BEATEN:
                self.done["beaten"] += 1
            await asyncio.sleep(0.002)


def changed_meanwhile(events: list[Any]) -> int:
    return sum(event.observation.changed for event in events if isinstance(event, ChunkCommitted))


def slow(**settings: Any) -> dict[str, Any]:
    return {"transform": named("hashed_slowly"), "chunk": ChunkLimits(min_rows=64, max_rows=128)} | settings


async def raced(database: FreshDatabase, spec: JobSpec, *, ahead: str, seed: int) -> tuple[Application, list[Any]]:
    """Run the job beside an application that has begun before it and goes on after it."""
    application = Application(database, ahead=ahead)
    async with application.at_work(seed):
        ran = await run_to_done(spec, workers=2, leases=Leases(lease_s=10.0))
    kinds = {said.partition(", ")[0] for said in application.done}
    assert {kind.partition(",")[0] for kind in CHANGES} <= kinds, application.done
    return application, ran.events


async def test_in_place_no_row_holds_what_belongs_to_values_that_it_held_before(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE t {TABLE}; {FILL}; {KEEPS_UP}")
    spec = in_place(database, "t", {}, accept=("TRIGGERS_ON_SOURCE", "DUAL_WRITE_MISSING"), **slow())
    _, events = await raced(database, spec, ahead="SELECT min(id) FROM t WHERE h IS NULL AND id > 0", seed=1)
    stale = f"SELECT count(*) FILTER (WHERE h IS NULL), count(*) FROM t WHERE h IS DISTINCT FROM {HASHED_SQL}"
    assert database.sql(stale) == "0|0", "left out, and wrong"
    assert changed_meanwhile(events) > 20, "hardly a race: this run proves nothing"


async def test_into_a_table_no_row_holds_what_belongs_to_values_that_it_held_before(database: FreshDatabase) -> None:
    database.sql(
        f"CREATE TABLE t {TABLE}; {FILL}; CREATE TABLE d (id bigint PRIMARY KEY, v text, h bigint); {WRITES_BOTH}"
    )
    spec = into(database, "t", database, "d", accept=("TRIGGERS_ON_SOURCE", "DUAL_WRITE_MISSING"), **slow())
    await raced(database, spec, ahead="SELECT count(*) FROM d", seed=2)
    assert differing(database, f"SELECT id, v, {HASHED_SQL} FROM t", "SELECT id, v, h FROM d") == 0
