"""The vitals of servers: each number moves when the server is used so, and only who paces a job asks for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest

from engine.db import Connection, Database
from engine.fleet.vitals import StandbyLag, VitalsWatch
from engine.flow import Supervisor
from engine.model import Side, TableName
from engine.spec.pacing import Pace
from engine.spec.signals import ALL_OFF
from engine.watch.vitals import Vitals, read_vitals
from tests.support.databases import FreshDatabase, TlsServer, TwoDatabases, on_each_major
from tests.support.jobs import in_place, into, start
from tests.support.standby import standby_pair

TABLE = TableName("Odd Schema", "Odd Table")
NAME = '"Odd Schema"."Odd Table"'
SLOT_S = 20.0
SLOW = Pace(max_rows_per_s=20, signals=ALL_OFF)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SLOT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


@dataclass(slots=True)
class Looker:
    """Reads the vitals of one database over a session of its own."""

    connection: Connection

    async def look(self) -> Vitals:
        return await read_vitals(self.connection, TABLE)

    async def reaches(self, condition: Callable[[Vitals], bool]) -> Vitals:
        """The first look of which it holds: statistics come late."""
        deadline = time.monotonic() + SLOT_S
        while True:
            seen = await self.look()
            if condition(seen):
                return seen
            assert time.monotonic() < deadline, seen
            await asyncio.sleep(0.02)


Open = Callable[[str], Awaitable[Looker]]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    lookers: list[Looker] = []

    async def open_one(dsn: str) -> Looker:
        lookers.append(Looker(await Database(dsn, side=Side.TARGET, job="job").connect("vitals")))
        return lookers[-1]

    yield open_one
    for looker in lookers:
        await looker.connection.close()


def make_table(database: FreshDatabase) -> None:
    """Partitioned twice over, one partition in another schema; 3,000 rows."""
    database.sql(
        f'CREATE SCHEMA "Odd Schema"; CREATE TABLE {NAME} (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);'
        f"CREATE TABLE p1 PARTITION OF {NAME} FOR VALUES FROM (0) TO (1000) WITH (autovacuum_enabled = off);"
        f"CREATE TABLE p2 PARTITION OF {NAME} FOR VALUES FROM (1000) TO (9000) PARTITION BY RANGE (id);"
        "CREATE TABLE p3 PARTITION OF p2 FOR VALUES FROM (1000) TO (9000) WITH (autovacuum_enabled = off);"
        f"INSERT INTO {NAME} SELECT n, 'x' FROM generate_series(1, 3000) n"
    )


async def session(database: FreshDatabase, *statements: str, name: str = "psql") -> asyncpg.Connection[Any]:
    connection = await database.connect(server_settings={"application_name": name})
    for statement in statements:
        await connection.execute(statement)
    return connection


# -- each number ------------------------------------------------------------------------------------------------------


@on_each_major
async def test_what_a_server_writes_and_reads_is_counted(database: FreshDatabase, opened: Open) -> None:
    make_table(database)
    looker = await opened(database.dsn)
    first = await looker.reaches(lambda seen: seen.live_rows == 3000)
    sizes = "SELECT sum(pg_relation_size(oid)) || ' ' || sum(pg_indexes_size(oid)) FROM pg_class"
    heap, indexes = database.sql(f"{sizes} WHERE relname IN ('p1', 'p3')").split()
    assert (first.table_bytes, first.index_bytes, first.dead_rows) == (float(heap), float(indexes), 0.0)
    database.sql(f"DELETE FROM {NAME} WHERE id % 3 = 0; UPDATE {NAME} SET t = repeat('y', 400)")
    database.sql("CHECKPOINT")
    undone = await session(database, "BEGIN", "SELECT 1", "ROLLBACK")
    await undone.close()
    assert None not in (first.wal_bytes, first.read_bytes, first.written_bytes, first.table_bytes)
    then = await looker.reaches(
        lambda seen: (
            (seen.live_rows, seen.dead_rows) == (2000, 3000)
            and seen.checkpoints["requested"] > first.checkpoints["requested"]
            and seen.transactions["rolled_back"] > first.transactions["rolled_back"]
            and seen.transactions["committed"] > first.transactions["committed"]
            and (seen.written_bytes or 0) >= (first.written_bytes or 0) + 500_000
        )
    )
    assert (then.wal_bytes or 0) > (first.wal_bytes or 0) + 800_000
    assert (then.read_bytes or 0) >= (first.read_bytes or 0)
    assert (then.table_bytes or 0) > (first.table_bytes or 0) + 800_000
    assert then.checkpoints["timed"] >= first.checkpoints["timed"]


@on_each_major
async def test_what_others_do_is_seen_and_what_we_do_is_not(database: FreshDatabase, opened: Open) -> None:
    make_table(database)
    looker = await opened(database.dsn)
    quiet = await looker.reaches(lambda seen: not any(seen.sessions.values()))
    assert quiet.sessions == {"active": 0.0, "idle": 0.0, "idle_in_transaction": 0.0}
    assert (quiet.oldest_transaction_s, quiet.lock_waiters, quiet.longest_lock_wait_s) == (0.0, 0.0, 0.0)
    assert (quiet.standbys, quiet.vacuums_running) == (0.0, 0.0)

    await session(database)
    failed = await session(database, "BEGIN")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await failed.execute("SELECT 1/0")
    holder = await session(database, "BEGIN", f"UPDATE {NAME} SET t = 'z' WHERE id IN (1, 3)")
    waiter, ours = await session(database), await session(database, "BEGIN", "SELECT 1", name="backfill/job/w1")
    waits = asyncio.ensure_future(waiter.execute(f"UPDATE {NAME} SET t = 'w' WHERE id = 1"))
    also = asyncio.ensure_future(ours.execute(f"UPDATE {NAME} SET t = 'o' WHERE id = 3"))
    busy = {"active": 1.0, "idle": 1.0, "idle_in_transaction": 2.0}
    seen = await looker.reaches(lambda seen: (seen.longest_lock_wait_s or 0.0) > 0.05 and seen.sessions == busy)
    assert seen.lock_waiters == 1.0
    assert (seen.oldest_transaction_s or 0.0) > (seen.longest_lock_wait_s or 0.0)
    await holder.execute("ROLLBACK")
    await asyncio.gather(waits, also)
    await ours.execute("ROLLBACK")
    await failed.execute("ROLLBACK")
    after = await looker.reaches(lambda seen: seen.sessions["active"] == 0.0)
    assert (after.lock_waiters, after.longest_lock_wait_s, after.oldest_transaction_s) == (0.0, 0.0, 0.0)

    await holder.execute(f"BEGIN; UPDATE {NAME} SET t = 'p' WHERE id = 2; PREPARE TRANSACTION 'left'")
    try:
        assert ((await looker.look()).oldest_transaction_s or 0.0) > 0.0  # whose session may be long gone
    finally:
        await holder.execute("ROLLBACK PREPARED 'left'")

    vacuuming = await session(database, "SET vacuum_cost_delay = 100", "SET vacuum_cost_limit = 1")
    database.sql("DELETE FROM p3")
    at_work = asyncio.ensure_future(vacuuming.execute("VACUUM p3"))
    await looker.reaches(lambda seen: seen.vacuums_running == 1.0)
    pid = vacuuming.get_server_pid()
    database.sql(f"SELECT pg_cancel_backend({pid})")
    with pytest.raises(asyncpg.QueryCanceledError):
        await at_work


async def test_what_happens_in_another_database_counts_where_it_takes_from_all(
    databases: TwoDatabases, opened: Open
) -> None:
    make_table(databases.source)
    make_table(databases.target)
    there, here = await opened(databases.source.dsn), await opened(databases.target.dsn)
    holder = await session(databases.source, "BEGIN", f"UPDATE {NAME} SET t = 'z' WHERE id = 1")
    waiter = await session(databases.source)
    waits = asyncio.ensure_future(waiter.execute(f"UPDATE {NAME} SET t = 'w' WHERE id = 1"))
    await there.reaches(lambda seen: seen.lock_waiters == 1.0)
    busy = {"active": 1.0, "idle": 0.0, "idle_in_transaction": 1.0}
    seen = await here.reaches(lambda seen: seen.sessions == busy)
    assert (seen.lock_waiters, seen.longest_lock_wait_s, seen.oldest_transaction_s) == (0.0, 0.0, 0.0)
    await holder.execute("ROLLBACK")
    await waits


@on_each_major
async def test_a_role_that_is_nobody_special_is_told_what_is_nobodys_secret(
    database: FreshDatabase, opened: Open
) -> None:
    make_table(database)
    role = f"plain_{database.name}"
    database.sql(f'CREATE ROLE "{role}" LOGIN')
    try:
        looker = await opened(database.dsn.replace("postgres@", f"{role}@"))
        await session(database, "BEGIN", "SELECT 1")
        seen = await looker.look()
        assert (seen.sessions, seen.oldest_transaction_s) == ({}, None)
        told = (seen.wal_bytes, seen.read_bytes, seen.table_bytes, seen.index_bytes, seen.lock_waiters, seen.standbys)
        assert None not in told
        database.sql(f'GRANT pg_monitor TO "{role}"')
        seen = await looker.look()
        assert seen.sessions["idle_in_transaction"] == 1.0  # not hidden any more
        assert (seen.oldest_transaction_s or 0.0) > 0.0
    finally:
        database.sql(f'DROP OWNED BY "{role}"; SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity'
                     f" WHERE usename = '{role}'; DROP ROLE \"{role}\"")  # fmt: skip


async def test_who_keeps_the_table_to_himself_hides_its_size_and_nothing_else(
    database: FreshDatabase, opened: Open
) -> None:
    make_table(database)
    looker = await opened(database.dsn)
    before = await looker.reaches(lambda seen: seen.live_rows == 3000)
    ddl = await session(database, "BEGIN", f"LOCK TABLE {NAME}")
    began = time.monotonic()
    seen = await looker.look()
    assert time.monotonic() - began < 5.0  # and not the ten of other sessions of ours
    assert (seen.table_bytes, seen.index_bytes, seen.live_rows) == (None, None, 3000)
    assert seen.sessions["idle_in_transaction"] == 1.0
    await ddl.execute("ROLLBACK")
    assert (await looker.look()).table_bytes == before.table_bytes
    database.sql(f"DROP TABLE {NAME}")
    gone = await looker.look()
    assert (gone.table_bytes, gone.live_rows, gone.vacuums_running) == (None, None, 0.0)
    assert gone.wal_bytes is not None


async def test_a_standby_is_seen_from_its_primary_and_tells_of_itself_what_it_can(opened: Open) -> None:
    with standby_pair(16) as pair:
        pair.primary.sql('CREATE SCHEMA "Odd Schema"; CREATE ROLE plain LOGIN')
        pair.primary.sql(f"CREATE TABLE {NAME} (t text)")
        pair.wait_replayed()
        primary, standby = await opened(pair.primary.dsn()), await opened(pair.standby.dsn())
        await primary.reaches(lambda seen: seen.standbys == 1.0 and seen.replication_lag_bytes == 0.0)
        pair.pause()
        pair.primary.sql(f"INSERT INTO {NAME} SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        behind = await primary.reaches(lambda seen: (seen.replication_lag_bytes or 0) > 1_000_000)
        assert behind.standbys == 1.0
        nobody = await (await opened(pair.primary.dsn().replace("postgres@", "plain@"))).look()
        assert (nobody.standbys, nobody.replication_lag_bytes, nobody.replication_lag_s) == (None, None, None)
        assert nobody.wal_bytes is not None
        seen = await standby.look()
        assert (seen.wal_bytes, seen.replication_lag_bytes, seen.standbys) == (None, None, 0.0)
        assert seen.table_bytes is not None
        pair.resume()


@pytest.mark.debian
async def test_an_older_server_tells_what_it_has(
    tls_server: TlsServer, make_database: Callable[..., FreshDatabase], opened: Open
) -> None:
    database = make_database(on=tls_server.server)
    make_table(database)
    looker = await opened(f"{database.dsn}?sslmode=disable")
    before = await looker.look()
    database.sql("CHECKPOINT")
    seen = await looker.reaches(lambda seen: seen.checkpoints["requested"] > before.checkpoints["requested"])
    assert (seen.read_bytes, seen.written_bytes) == (None, None)  # pg_stat_io came with 16
    assert None not in (seen.wal_bytes, seen.table_bytes, seen.lock_waiters)
    assert set(seen.sessions) == {"active", "idle", "idle_in_transaction"}


def test_a_standby_that_hangs_is_as_old_as_what_it_has_replayed() -> None:
    lag = StandbyLag(5.0)

    def judged(now: float, here: float, replayed: float | None, told: float | None) -> float | None:
        behind = None if replayed is None else here - replayed
        seen = Vitals(wal_bytes=here, replication_lag_bytes=behind, replication_lag_s=told)
        return lag.judged(now, seen).replication_lag_s

    assert judged(0.0, 100.0, 40.0, None) == 0.0  # nobody knows yet, and not for long
    assert judged(5.0, 200.0, 40.0, 3.0) == 5.0  # from before we looked
    assert judged(10.0, 300.0, 300.0, 0.2) == 0.0  # it has all there is
    assert judged(15.0, 400.0, 399.0, 0.2) == 0.2  # the server's own figure, between two looks
    assert judged(20.0, 500.0, 399.0, 0.2) == 5.0  # … which stands still
    assert judged(60.0, 900.0, 399.0, 0.2) == 45.0
    assert judged(65.0, 1000.0, 950.0, 300.0) == 5.0  # … or is of long ago
    assert judged(70.0, 1100.0, None, None) is None  # no standby
    assert lag.judged(75.0, Vitals(replication_lag_s=1.0)) == Vitals(replication_lag_s=1.0)  # the server is a standby


# -- who asks ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Screen:
    """What a watch has shown and forgotten, in order."""

    shown: list[tuple[str, Side, Vitals | None]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    supervisor: Supervisor | None = None

    def watch(self) -> asyncio.Task[None]:
        """Start watching, quickly."""
        watch = VitalsWatch(
            lambda: [] if self.supervisor is None else [self.supervisor],
            lambda *shown: self.shown.append(shown),
            self.forgotten.append,
            every_s=0.05,
            look_s=0.02,
        )
        return asyncio.create_task(watch.run())

    def of(self, side: Side) -> list[Vitals | None]:
        """What was shown of one side."""
        return [seen for _, shown, seen in self.shown if shown is side]


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def sessions(database: FreshDatabase) -> int:
    return int(
        database.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backfill/job/vitals'"
            " AND datname = current_database()"
        )
    )


async def test_who_paces_looks_and_who_rests_is_forgotten(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE t (id int PRIMARY KEY, m int); INSERT INTO t SELECT generate_series(1, 2000)")
    screen = Screen()
    watching = screen.watch()
    running = await start(in_place(database, "t", {"m": "1"}, pace=SLOW))
    screen.supervisor = running.supervisor
    await running.until(lambda: len(screen.of(Side.TARGET)) > 3)
    assert {shown[:2] for shown in screen.shown} == {("job", Side.TARGET)}
    seen = screen.of(Side.TARGET)[-1]
    assert seen is not None
    assert (seen.table_bytes or 0) > 0
    assert sessions(database) == 1
    assert screen.forgotten == []
    database.sql("SELECT backfill.pause('job')")
    await running.until(lambda: screen.forgotten == ["job"])
    shown = len(screen.shown)
    await until(lambda: sessions(database) == 0)
    await asyncio.sleep(0.2)  # several looks
    assert (len(screen.shown), screen.forgotten) == (shown, ["job"])
    database.sql("SELECT backfill.resume('job')")
    await running.until(lambda: len(screen.shown) > shown)
    await cancelled(watching)
    assert screen.forgotten == ["job", "job"]
    await until(lambda: sessions(database) == 0)
    await running.drained()


async def test_a_job_between_two_databases_has_two_sides_and_one_that_is_away_hides_not_the_other(
    databases: TwoDatabases,
) -> None:
    databases.source.sql("CREATE TABLE src (id int PRIMARY KEY); INSERT INTO src SELECT generate_series(1, 2000)")
    databases.target.sql("CREATE TABLE dst (id int PRIMARY KEY)")
    running = await start(into(databases.source, "src", databases.target, "dst", pace=SLOW, deletes="none"))
    screen = Screen(supervisor=running.supervisor)
    watching = screen.watch()
    await running.until(lambda: len(screen.of(Side.SOURCE)) > 1 and len(screen.of(Side.TARGET)) > 1)
    heap = [side[-1] and side[-1].table_bytes for side in (screen.of(Side.SOURCE), screen.of(Side.TARGET))]
    assert heap[0] == float(databases.source.sql("SELECT pg_relation_size('src')"))
    assert heap[0] != heap[1]

    databases.source.server.sql(f'ALTER DATABASE "{databases.source.name}" ALLOW_CONNECTIONS false')
    databases.target.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        f" WHERE application_name = 'backfill/job/vitals' AND datname = '{databases.source.name}'"
    )
    await running.until(lambda: screen.of(Side.SOURCE)[-1] is None)
    there = len(screen.of(Side.TARGET))
    await running.until(lambda: len(screen.of(Side.TARGET)) > there + 2)
    assert screen.of(Side.TARGET)[-1] is not None
    databases.source.server.sql(f'ALTER DATABASE "{databases.source.name}" ALLOW_CONNECTIONS true')
    await running.until(lambda: screen.of(Side.SOURCE)[-1] is not None)
    await cancelled(watching)
    assert screen.forgotten == ["job"]
    await running.drained()


async def test_the_next_job_of_a_process_takes_the_place_of_the_one_before(databases: TwoDatabases) -> None:
    """A process of a pool works one job after another, and may go from one to the next between two looks."""

    class Stub(SimpleNamespace):
        __eq__, __hash__ = object.__eq__, object.__hash__

    def leading(name: str, database: FreshDatabase, *, leads: bool = True) -> Supervisor:
        endpoints = SimpleNamespace(target=Database(database.dsn, side=Side.TARGET, job=name), is_one=True)
        prepared = SimpleNamespace(
            spec=SimpleNamespace(name=name), endpoints=endpoints, written_table=SimpleNamespace(name=TABLE)
        )
        return cast("Supervisor", Stub(prepared=prepared, leads=leads))

    screen = Screen(supervisor=leading("other", databases.source, leads=False))
    watching = screen.watch()
    await asyncio.sleep(0.1)
    assert (screen.shown, screen.forgotten) == ([], [])  # who follows asks nobody
    screen.supervisor = leading("one", databases.source)
    await until(lambda: len(screen.shown) > 1)
    screen.supervisor = leading("two", databases.target)
    await until(lambda: screen.shown[-1][0] == "two")
    assert screen.forgotten == ["one"]
    order = [job for job, _, _ in screen.shown]
    assert order == sorted(order)  # nothing of the first one comes later
    screen.supervisor = None
    await until(lambda: screen.forgotten == ["one", "two"])
    await cancelled(watching)
    assert screen.forgotten == ["one", "two"]
    assert replace(screen.shown[-1][2] or Vitals(), sessions={}).table_bytes is None
