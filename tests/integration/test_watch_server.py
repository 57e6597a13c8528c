"""Questions to a server about its sessions, slots, archive and vacuum, each against a situation made for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import asyncpg
import pytest

from engine.clock import SystemClock
from engine.db import Database
from engine.embedded import EmbeddedServer
from engine.model import Side, TableName
from engine.pace.law import SignalPolicy, Unit
from engine.watch import ProbeFailed
from engine.watch.rights import look_at_rights
from engine.watch.server import (
    ACTIVE_SESSIONS,
    SLOT_RETENTION,
    WAL_ARCHIVE,
    XID_AGE,
    Question,
    ServerProbe,
    autovacuum,
    vacuum_debt,
)
from engine.watch.session import Session
from tests.support.databases import QUIET, FreshDatabase, on_each_major

pytestmark = on_each_major

POLICY = SignalPolicy(name="asked", unit=Unit.COUNT)
CLOCK = SystemClock()
TABLE = TableName("public", "Odd Table")


class Asker:
    """Asks one database, as one role or another."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []

    def probe(self, dsn: str, question: Question, deadline_s: float = 2.0) -> ServerProbe:
        session = Session(Database(dsn, side=Side.TARGET, job="job"), "watch", clock=CLOCK, deadline_s=deadline_s)
        self.sessions.append(session)
        return ServerProbe(POLICY, session, question)


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    made = Asker()
    yield made
    for session in made.sessions:
        await session.close()


@pytest.fixture
def plain_dsn(database: FreshDatabase) -> Iterator[str]:
    """A role that may log in, and nothing else."""
    name = f"plain_{database.name}"
    database.sql(f'CREATE ROLE "{name}" LOGIN')
    yield database.dsn.replace("postgres@", f"{name}@")
    database.sql(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


class Others:
    """Sessions of somebody else, each in the middle of a statement once ``begin`` returns."""

    def __init__(self, database: FreshDatabase) -> None:
        self.database = database
        self.pids: list[int] = []
        self.tasks: list[asyncio.Future[object]] = []

    async def begin(self, *statements: str, application: str = "psql") -> None:
        connection = await self.database.connect(server_settings={"application_name": application})
        for setting in statements[:-1]:
            await connection.execute(setting)
        self.tasks.append(asyncio.ensure_future(connection.execute(statements[-1])))
        self.pids.append(connection.get_server_pid())
        look = f"SELECT state FROM pg_stat_activity WHERE pid = {self.pids[-1]}"
        async with asyncio.timeout(10):
            while self.database.sql(look) != "active":
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        for pid in self.pids:
            self.database.sql(f"SELECT pg_terminate_backend({pid}, 5000)")
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.pids.clear()
        self.tasks.clear()


@pytest.fixture
async def others(database: FreshDatabase) -> AsyncIterator[Others]:
    made = Others(database)
    yield made
    await made.end()


async def test_active_sessions_are_those_of_others(asker: Asker, database: FreshDatabase, others: Others) -> None:
    probe = asker.probe(database.dsn, ACTIVE_SESSIONS)
    assert (await probe.read()).value == 0
    for _ in range(3):
        await others.begin("SELECT pg_sleep(60)")
    await others.begin("SELECT pg_sleep(60)", application="backfill/job/worker")
    idle = await database.connect()
    await idle.execute("BEGIN")
    assert (await probe.read()).value == 3


async def test_hidden_sessions_are_no_idle_ones(
    asker: Asker, database: FreshDatabase, plain_dsn: str, others: Others
) -> None:
    await others.begin("SELECT pg_sleep(60)")
    with pytest.raises(ProbeFailed, match="grant pg_read_all_stats"):
        await asker.probe(plain_dsn, ACTIVE_SESSIONS).read()
    database.sql(f'GRANT pg_read_all_stats TO "plain_{database.name}"')
    assert (await asker.probe(plain_dsn, ACTIVE_SESSIONS).read()).value == 1


async def test_the_slot_that_keeps_the_most_is_named(asker: Asker, database: FreshDatabase) -> None:
    probe = asker.probe(database.dsn, SLOT_RETENTION)
    assert (await probe.read()).value == 0
    try:
        database.sql("SELECT pg_create_physical_replication_slot('watch_far', true)")
        database.sql("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 3000)")
        database.sql("SELECT pg_create_physical_replication_slot('watch_near', true)")
        measured = await probe.read()
        assert measured.value > 3e6
        assert measured.detail == "slot watch_far"
    finally:
        database.sql(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'watch%'"
        )


async def test_a_slot_that_lost_its_wal_is_a_failure(server: EmbeddedServer, asker: Asker) -> None:
    settings = {**QUIET, "max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with EmbeddedServer(server.major, settings={**settings, "wal_keep_size": 0}, tcp=True) as small:
        small.sql("SELECT pg_create_physical_replication_slot('left_behind', true)")
        for _ in range(4):
            small.sql("CREATE TABLE t (); DROP TABLE t; SELECT pg_switch_wal()")
        small.sql("CHECKPOINT")
        with pytest.raises(ProbeFailed, match="slot left_behind has lost WAL"):
            await asker.probe(small.dsn(), SLOT_RETENTION).read()


async def test_vacuum_debt_over_all_partitions(asker: Asker, database: FreshDatabase) -> None:
    database.sql(
        'CREATE TABLE "Odd Table" (a int) PARTITION BY RANGE (a);'
        'CREATE TABLE p1 PARTITION OF "Odd Table" FOR VALUES FROM (0) TO (1000);'
        'CREATE TABLE p2 PARTITION OF "Odd Table" FOR VALUES FROM (1000) TO (2000);'
        "ALTER TABLE p1 SET (autovacuum_enabled = off); ALTER TABLE p2 SET (autovacuum_enabled = off);"
        'INSERT INTO "Odd Table" SELECT generate_series(0, 1999);'
    )
    probe = asker.probe(database.dsn, vacuum_debt(TABLE))
    await reaches(probe, lambda value: value == 0)
    database.sql('DELETE FROM "Odd Table" WHERE a % 4 = 0')
    await reaches(probe, lambda value: abs(value - 0.25) < 0.01)
    database.sql('VACUUM "Odd Table"')
    await reaches(probe, lambda value: value == 0)
    database.sql('DROP TABLE "Odd Table"')
    with pytest.raises(ProbeFailed, match="gone"):
        await probe.read()


async def reaches(probe: ServerProbe, wanted: Callable[[float], bool]) -> None:
    value = -1.0
    for _ in range(200):
        value = (await probe.read()).value
        if wanted(value):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"stays at {value}")


async def test_a_vacuum_on_the_table_is_seen_unless_it_is_ours(
    asker: Asker, database: FreshDatabase, plain_dsn: str, others: Others
) -> None:
    rows = "WITH (autovacuum_enabled = off) AS SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i"
    database.sql(
        f'CREATE TABLE "Odd Table" {rows}; CREATE TABLE another {rows}; DELETE FROM "Odd Table"; DELETE FROM another'
    )
    probe = asker.probe(database.dsn, autovacuum(TABLE))
    slowly = ("SET vacuum_cost_delay = 100", "SET vacuum_cost_limit = 1")
    for name, application, expected in (
        ('"Odd Table"', "psql", 1.0),
        ('"Odd Table"', "backfill/job/vacuum", 0.0),
        ("another", "psql", 0.0),
    ):
        await others.begin(*slowly, f"VACUUM {name}", application=application)
        async with asyncio.timeout(10):
            while database.sql("SELECT count(*) FROM pg_stat_progress_vacuum") == "0":
                await asyncio.sleep(0.02)
        assert (await probe.read()).value == expected
        if expected:
            with pytest.raises(ProbeFailed, match="hidden from us"):
                await asker.probe(plain_dsn, autovacuum(TABLE)).read()
        await others.end()
    assert (await probe.read()).value == 0


async def test_transaction_ids_have_an_age(asker: Asker, database: FreshDatabase) -> None:
    measured = await asker.probe(database.dsn, XID_AGE).read()
    assert measured.value > 0
    assert measured.detail.startswith("database ")


async def test_a_statement_that_hangs_ends_at_its_deadline(asker: Asker, database: FreshDatabase) -> None:
    slow = replace(XID_AGE, sql="SELECT pg_sleep(60)::text AS name, 1 AS age")
    probe = asker.probe(database.dsn, slow, deadline_s=0.3)
    started = CLOCK.now()
    with pytest.raises(ProbeFailed, match=r"timed out after 0\.3s"):
        await probe.read()
    assert CLOCK.now() - started < 2
    async with asyncio.timeout(10):  # it does not go on at the server either
        while database.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'backfill/%'") != "0":
            await asyncio.sleep(0.05)


async def test_what_the_archiver_has_not_taken_is_counted(asker: Asker, server: EmbeddedServer) -> None:
    settings = {**QUIET, "archive_mode": "on", "archive_command": "false"}
    with EmbeddedServer(server.major, settings=settings, tcp=True) as archiving:
        probe = asker.probe(archiving.dsn(), WAL_ARCHIVE)
        before = (await probe.read()).value
        for _ in range(3):
            archiving.sql("SELECT pg_switch_wal(); CREATE TABLE t(); DROP TABLE t")
        assert (await probe.read()).value >= before + 2
        archiving.sql("CREATE ROLE plain LOGIN")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asker.probe(archiving.dsn().replace("postgres@", "plain@"), WAL_ARCHIVE).read()


async def test_what_a_role_may_see(database: FreshDatabase, plain_dsn: str) -> None:
    database.sql('CREATE TABLE "Odd Table" (a int)')
    boss = await Database(database.dsn, side=Side.TARGET).connect("look")
    seen = await look_at_rights(boss, TABLE)
    assert (seen.can_read_stats, seen.can_read_archive, seen.can_vacuum) == (True, True, True)
    assert (seen.archive_mode, seen.autovacuum) == ("off", True)
    assert (seen.standbys, seen.slots, seen.oldest_xmin_holder) == ((), 0, None)
    plain = await Database(plain_dsn, side=Side.TARGET).connect("look")
    seen = await look_at_rights(plain, TABLE)
    assert (seen.can_read_stats, seen.can_read_archive, seen.can_vacuum) == (False, False, False)
    role = plain.server.user
    if plain.server.capabilities.maintain_privilege:
        database.sql(f'GRANT MAINTAIN ON "Odd Table" TO "{role}"')
    else:
        database.sql(f'ALTER TABLE "Odd Table" OWNER TO "{role}"')
    database.sql(f'GRANT pg_monitor TO "{role}"')
    seen = await look_at_rights(plain, TABLE)
    assert (seen.can_read_stats, seen.can_read_archive, seen.can_vacuum) == (True, True, True)
    await boss.close()
    await plain.close()


async def test_who_holds_old_rows(database: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.watch.rights.HELD_FOR_S", 0.1)
    connection = await Database(database.dsn, side=Side.TARGET).connect("look")
    holder = await database.connect(server_settings={"application_name": "report"})
    await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    await asyncio.sleep(0.2)
    seen = await look_at_rights(connection, TABLE)
    assert seen.oldest_xmin_holder is not None
    assert seen.oldest_xmin_holder.startswith(f"pid {holder.get_server_pid()} report since ")
    await holder.execute("COMMIT")
    await holder.execute("BEGIN; CREATE TABLE kept (); PREPARE TRANSACTION 'held'")
    try:
        await asyncio.sleep(0.2)
        seen = await look_at_rights(connection, TABLE)
        assert (seen.oldest_xmin_holder or "").startswith("prepared transaction of postgres since ")
    finally:
        await holder.execute("ROLLBACK PREPARED 'held'")
    assert (await look_at_rights(connection, TABLE)).oldest_xmin_holder is None
    await connection.close()
