"""VACUUMs beside an in-place job, on real servers: the table stays in its budget, and whoever is in the way is named."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engine.clock import SystemClock
from engine.db import Database
from engine.db.vacuum import Look, look, vacuum
from engine.events import Event
from engine.flow.vacuum import VacuumKeeper
from engine.model import Side, TableName
from tests.support.databases import FreshDatabase, on_each_major, on_the_newest_and_long_on_others

ROWS = 300_000
CHUNK = 1_000
TABLE = TableName("public", "t")
SLOT_S = 20.0
BUDGET = 0.2


def make_table(database: FreshDatabase, *, options: str = "", rows: int = ROWS) -> int:
    """A table of 100-byte rows with two indexes; gives the bytes of its heap."""
    database.sql(f"""
        CREATE TABLE t (id int PRIMARY KEY, c int, filled int, note text) WITH (autovacuum_enabled = off{options});
        INSERT INTO t SELECT g, g % 1000, NULL, repeat('x', 64) FROM generate_series(1, {rows}) g;
        CREATE INDEX ON t (c);
        VACUUM (FREEZE, ANALYZE) t""")
    return heap_bytes(database)


def heap_bytes(database: FreshDatabase) -> int:
    return int(database.sql("SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree('t')") or 0) or int(
        database.sql("SELECT pg_relation_size('t')")
    )


def endpoint(database: FreshDatabase, role: str | None = None) -> Database:
    return Database(database.dsn, side=Side.TARGET, job="job", role=role)


class Work:
    """A job in miniature: two workers that update chunk by chunk, and wait while the keeper's gate is closed."""

    def __init__(self, database: FreshDatabase, start_bytes: int, *, rows: int = ROWS, role: str | None = None) -> None:
        self.database = database
        self.rows = rows
        self.written = 0
        self.held: set[str] = set()
        self.events: list[Event] = []
        self.keeper = VacuumKeeper(
            endpoint(database, role),
            TABLE,
            start_bytes=start_bytes,
            max_growth=BUDGET,
            rows_total=rows,
            rows_written=lambda: self.written,
            clock=SystemClock(),
            emit=self.events.append,
            job="job",
        )

    async def run(self, *, pause_s: float = 0.0) -> None:
        half = self.rows // 2
        await asyncio.gather(self._worker(0, half, pause_s), self._worker(half, self.rows, pause_s))

    async def _worker(self, first: int, last: int, pause_s: float) -> None:
        connection = await self.database.connect()
        await connection.execute("SET synchronous_commit = off; SET enable_seqscan = off")
        update = await connection.prepare("UPDATE t SET filled = c * 2 WHERE id > $1 AND id <= $2")
        for after in range(first, last, CHUNK):
            while self.keeper.closed:
                self.held |= set(self.keeper.closed.values())
                await asyncio.sleep(0.01)
            await update.fetch(after, min(after + CHUNK, last))
            self.written += CHUNK
            await asyncio.sleep(pause_s)

    @property
    def warnings(self) -> list[str]:
        return [str(event.as_json()["message"]) for event in self.events]


@asynccontextmanager
async def kept(work: Work) -> AsyncIterator[VacuumKeeper]:
    running = asyncio.create_task(work.keeper.run())
    try:
        await until(lambda: work.keeper._policies or running.done())
        yield work.keeper
        assert not running.done(), "the keeper goes on until it is stopped"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SLOT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def sessions(database: FreshDatabase) -> list[str]:
    return database.sql(
        "SELECT application_name FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'backfill/%'"
    ).splitlines()


@on_the_newest_and_long_on_others
async def test_a_table_updated_in_place_stays_within_its_budget(database: FreshDatabase) -> None:
    before = make_table(database)
    work = Work(database, before)
    async with kept(work) as keeper:
        await work.run(pause_s=0.015)
        vacuums = keeper.growth.vacuums
    assert heap_bytes(database) <= (1 + BUDGET) * before
    assert 3 <= vacuums <= 20
    assert work.warnings == []
    assert int(database.sql("SELECT count(*) FROM t WHERE filled = c * 2")) == ROWS
    assert sessions(database) == []


async def test_without_a_keeper_it_doubles(database: FreshDatabase) -> None:
    before = make_table(database)
    await Work(database, before).run()
    assert heap_bytes(database) >= 1.9 * before


@on_each_major
async def test_hot_updates_need_no_vacuum(database: FreshDatabase) -> None:
    before = make_table(database, options=", fillfactor = 45")
    work = Work(database, before)
    async with kept(work) as keeper:
        await work.run()
        await asyncio.sleep(0.2)
        assert keeper.growth.vacuums == 0
        assert keeper.growth.running_since is None
    assert heap_bytes(database) <= 1.02 * before
    assert work.held == set()


@on_the_newest_and_long_on_others
async def test_an_old_snapshot_holds_the_job_by_name_until_it_ends(database: FreshDatabase) -> None:
    before = make_table(database)
    other = await database.connect(server_settings={"application_name": "nightly_dump"})
    snapshot = other.transaction(isolation="repeatable_read")
    await snapshot.start()
    await other.fetchval("SELECT 1 FROM t LIMIT 1")
    work = Work(database, before)
    async with kept(work) as keeper:
        working = asyncio.create_task(work.run(pause_s=0.01))
        await until(lambda: "can remove nothing" in keeper.closed.get("table_growth", ""))
        reason = keeper.closed["table_growth"]
        assert f"pid {other.get_server_pid()} nightly_dump since" in reason
        grown = r"(1[0-9.]+% nears|2[0-9.]+% >|has reached) 20%"
        assert re.match(rf"table_growth {grown}; VACUUM can remove nothing for pid", reason)
        assert keeper.growth.held_reason == reason
        await until(lambda: work.warnings)
        assert "nightly_dump" in work.warnings[0]
        # Looks that come late hold the job early, and let it go again once they come in time: the budget is the bound.
        assert work.written <= 1.25 * BUDGET * ROWS, "the gate is closed at the budget"
        assert keeper.growth.vacuums == 0, "no VACUUM that could remove nothing"
        assert keeper.growth.ratio < 1.5 * BUDGET
        await snapshot.rollback()
        await asyncio.wait_for(working, SLOT_S)
        assert keeper.growth.vacuums > 0
    assert heap_bytes(database) <= (1 + 1.5 * BUDGET) * before
    assert len(work.warnings) == 1


async def test_a_prepared_transaction_and_a_slot_are_named_as_well(database: FreshDatabase) -> None:
    make_table(database, rows=10)
    connection = await endpoint(database).connect("growth")

    async def seen() -> Look:
        return await look(connection, TABLE, timeout_s=5)

    free = await seen()
    assert (free.holder, free.horizon_xid) == ("", free.next_xid)
    database.sql("BEGIN; UPDATE t SET c = 0; PREPARE TRANSACTION 'forgotten'")
    database.sql("UPDATE pg_description SET objoid = 0 WHERE false; SELECT txid_current()")
    held = await seen()
    assert held.holder.startswith("prepared transaction forgotten since")
    assert held.horizon_xid < held.next_xid
    database.sql("ROLLBACK PREPARED 'forgotten'")
    assert (await seen()).holder == ""
    await connection.close()


async def test_without_the_right_the_gate_closes_and_says_so(database: FreshDatabase) -> None:
    before = make_table(database)
    database.sql("CREATE ROLE filler; GRANT SELECT, UPDATE ON t TO filler")
    work = Work(database, before, role="filler")
    try:
        async with kept(work) as keeper:
            working = asyncio.create_task(work.run(pause_s=0.002))
            await until(lambda: keeper.closed)
            assert "no right to VACUUM" in keeper.closed["table_growth"]
            assert ["no right to VACUUM public.t" in warning for warning in work.warnings] == [True]
            database.sql("ALTER TABLE t OWNER TO filler")
            await asyncio.wait_for(working, SLOT_S)
            assert keeper.growth.vacuums > 0
    finally:
        database.sql("DROP OWNED BY filler; DROP ROLE filler")


async def test_a_table_that_cannot_be_measured_closes_the_gate(database: FreshDatabase) -> None:
    work = Work(database, make_table(database), rows=10)
    async with kept(work) as keeper:
        assert keeper.closed == {}
        assert keeper._looked_at is not None
        keeper._looked_at -= 3600
        assert keeper.closed == {"table_growth": "table_growth unknown: not measured for 10s"}, "nothing has failed"
        keeper._look_failed = "timed out after 5 s"
        assert keeper.closed == {"table_growth": "table_growth unknown: timed out after 5 s"}


@on_each_major
async def test_stopping_ends_the_vacuum_on_the_server(database: FreshDatabase) -> None:
    before = make_table(database)
    database.sql("UPDATE t SET c = c")
    work = Work(database, before // 2)
    blocker = await database.connect()
    await blocker.execute("BEGIN; DECLARE held CURSOR FOR SELECT 1 FROM t; FETCH 1 FROM held")
    await blocker.execute("COMMIT; BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")  # VACUUM waits for it
    async with kept(work) as keeper:
        await until(lambda: "backfill/job/vacuum" in sessions(database))
        assert keeper.growth.running_since is not None
    assert sessions(database) == []
    assert database.sql("SELECT count(*) FROM pg_stat_progress_vacuum") == "0"


async def test_a_vacuum_in_mid_scan_is_cancelled_too(database: FreshDatabase) -> None:
    make_table(database)
    database.sql("UPDATE t SET c = c")
    connection = await endpoint(database).connect("vacuum", data=True)
    slowly = asyncio.create_task(vacuum(connection, TABLE, clean_indexes=True, cost_delay_ms=100, cost_limit=1))
    await until(lambda: database.sql("SELECT count(*) FROM pg_stat_progress_vacuum") == "1")
    slowly.cancel()
    await asyncio.gather(slowly, return_exceptions=True)
    await connection.close()
    await until(lambda: sessions(database) == [])


async def test_a_vacuum_that_somebody_ends_is_tried_again(database: FreshDatabase) -> None:
    before = make_table(database)
    database.sql("UPDATE t SET c = c")
    blocker = await database.connect()
    await blocker.execute("BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
    work = Work(database, before // 2)
    async with kept(work) as keeper:
        await until(lambda: "backfill/job/vacuum" in sessions(database))
        database.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'backfill/job/vacuum'"
        )
        await until(lambda: work.warnings)
        assert "is tried again" in work.warnings[0]
        await blocker.execute("ROLLBACK")
        await until(lambda: keeper.growth.vacuums == 1)


@on_the_newest_and_long_on_others
async def test_each_partition_is_kept_within_its_budget(database: FreshDatabase) -> None:
    database.sql(f"""
        CREATE TABLE t (id int PRIMARY KEY, c int, filled int, note text) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF t FOR VALUES FROM (1) TO ({ROWS // 2 + 1}) WITH (autovacuum_enabled = off);
        CREATE TABLE p2 PARTITION OF t FOR VALUES FROM ({ROWS // 2 + 1}) TO ({ROWS + 1})
            WITH (autovacuum_enabled = off);
        INSERT INTO t SELECT g, g % 1000, NULL, repeat('x', 64) FROM generate_series(1, {ROWS}) g;
        VACUUM (FREEZE, ANALYZE) t""")
    before = heap_bytes(database)
    work = Work(database, before)
    async with kept(work) as keeper:
        await work.run(pause_s=0.02)
        assert keeper.growth.vacuums >= 4
    assert heap_bytes(database) <= (1 + 1.25 * BUDGET) * before


@pytest.mark.parametrize("clean_indexes", [True, False])
@on_each_major
async def test_the_room_of_the_dead_is_used_again_with_and_without_clean_indexes(
    database: FreshDatabase, clean_indexes: bool
) -> None:
    make_table(database, rows=50_000)
    database.sql("UPDATE t SET c = c WHERE id <= 25000")
    grown = heap_bytes(database)
    connection = await endpoint(database).connect("vacuum", data=True)
    await vacuum(connection, TABLE, clean_indexes=clean_indexes, cost_delay_ms=0, cost_limit=200)
    seen = (await look(connection, TABLE, timeout_s=5)).heaps[0]
    await connection.close()
    assert seen.vacuums == 2  # with the one of make_table
    assert seen.dead_rows < 500
    database.sql("UPDATE t SET c = c WHERE id > 26000")
    assert heap_bytes(database) <= 1.02 * grown
