"""Every order in which a chunk of the copy and a transaction of the application can meet, with our triggers on the source.

A schedule is an interleaving of the steps of two sessions: the chunk (its statement, its commit) and the application
(begin, its statements, its end).  A step that waits for the other session is left waiting, and the schedule goes on with
the other one.  Afterwards both have ended, which is the sweep's horizon, the buried keys are looked at as the sweep
does, and source and target must agree to the row.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from engine.flow import Prepared, dual_write_change
from engine.sql.statements import insert_chunk
from tests.support.databases import FreshDatabase, on_each_major
from tests.support.jobs import differing, into, prepare, start
from tests.support.writers import STRIDE, Client, Triggers, Watch

pytestmark = pytest.mark.faults

FIRST_ROWS = "(1, 10, 'one'), (2, 20, 'two'), (3, 30, 'three')"
MAPPED = "SELECT id, n * 2, note FROM src"
BEATEN = ("40001", "40P01", "0A000")
"""How a transaction may end here: serialization, deadlock, TRUNCATE by an old snapshot."""
ISOLATION = ("READ COMMITTED", "REPEATABLE READ")

PROGRAMS: dict[str, tuple[str, ...]] = {
    "insert": ("INSERT INTO src VALUES (4, 40, 'new')",),
    "update": ("UPDATE src SET n = 21 WHERE id = 2",),
    "delete": ("DELETE FROM src WHERE id = 2",),
    "change the key": ("UPDATE src SET id = 5 WHERE id = 2",),
    "change all keys": ("UPDATE src SET id = id - 1",),
    "delete all": ("DELETE FROM src",),
    "truncate": ("TRUNCATE src",),
    "update, delete": ("UPDATE src SET n = 21 WHERE id = 2", "DELETE FROM src WHERE id = 2"),
    "insert, delete": ("INSERT INTO src VALUES (4, 40, 'new')", "DELETE FROM src WHERE id = 4"),
    "delete, insert again": ("DELETE FROM src WHERE id = 2", "INSERT INTO src VALUES (2, 22, 'again')"),
    "key to one just deleted": ("DELETE FROM src WHERE id = 3", "UPDATE src SET id = 3 WHERE id = 2"),
    "key there and back": ("UPDATE src SET id = 5 WHERE id = 2", "UPDATE src SET id = 2 WHERE id = 5"),
    "key, then delete it": ("UPDATE src SET id = 5 WHERE id = 2", "DELETE FROM src WHERE id = 5"),
    "two rows against the copy's order": (
        "UPDATE src SET n = 31 WHERE id = 3",
        "UPDATE src SET n = 11 WHERE id = 1",
    ),
    "leave the job": ("UPDATE src SET n = -1 WHERE id = 2",),
    "leave the job and come back": ("UPDATE src SET n = -1 WHERE id = 2", "UPDATE src SET n = 7 WHERE id = 2"),
    "truncate, insert": ("TRUNCATE src", "INSERT INTO src VALUES (2, 9, 'after')"),
}
GHOSTLY = ("delete", "change the key", "delete all", "key, then delete it", "leave the job")
"""Programs that leave rows behind in the target unless somebody remembers their keys."""


@dataclass
class Session:
    """One of the two, with the steps that it still has to do."""

    connection: asyncpg.Connection[Any]
    pid: int
    steps: list[str]
    running: asyncio.Task[Any] | None = None
    beaten: str | None = None  # the SQLSTATE that ended its transaction

    @property
    def is_through(self) -> bool:
        return not self.steps and self.running is None


@dataclass
class Race:
    """The tables, the sessions, and what the product would do."""

    database: FreshDatabase
    prepared: Prepared
    chunk: asyncpg.Connection[Any]
    application: asyncpg.Connection[Any]
    judge: asyncpg.Connection[Any]
    outcomes: Counter[str] = field(default_factory=Counter)

    async def reset(self) -> None:
        """The rows as they were at first; nothing copied, nothing buried."""
        await self.judge.execute(
            f"DELETE FROM src; INSERT INTO src VALUES {FIRST_ROWS}; TRUNCATE dst, backfill.tombstone, ours"
        )

    async def run(self, order: Sequence[int], program: Sequence[str], isolation: str, end: str) -> None:
        """One schedule: ``order`` says whose step is next, 0 the chunk's, 1 the application's."""
        await self.reset()
        # The first statement of a transaction takes its snapshot: that is what "begun" means.
        steps = [f"BEGIN ISOLATION LEVEL {isolation}; SELECT FROM src LIMIT 0", *program, end]
        sessions = (
            Session(self.chunk, self.chunk.get_server_pid(), ["chunk", "COMMIT"]),
            Session(self.application, self.application.get_server_pid(), steps),
        )
        for who in order:
            await self._step(sessions[who])
        while not all(session.is_through for session in sessions):
            for session in sessions:
                await self._step(session)
        copied = sessions[0].beaten is None
        self.outcomes[f"chunk {sessions[0].beaten or 'committed'}"] += 1
        self.outcomes[f"application {sessions[1].beaten or 'ended'}"] += 1
        if not copied:  # the worker tries again
            assert await self._chunk(self.chunk)
            await self.chunk.execute("COMMIT")

    async def _step(self, session: Session) -> None:
        """Begin the session's next step, if its last one is through, and wait until it has ended or waits for a lock."""
        if session.running is None:
            if not session.steps:
                return
            step = session.steps.pop(0)
            session.running = asyncio.create_task(self._do(session, step))
        while not session.running.done():
            await asyncio.wait({session.running}, timeout=0.004)
            if not session.running.done() and await self._waits(session):
                return
        await session.running
        session.running = None

    async def _waits(self, session: Session) -> bool:
        return bool(await self.judge.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", session.pid))

    async def _do(self, session: Session, step: str) -> None:
        try:
            if step == "chunk":
                await self._chunk(session.connection)
            else:
                await session.connection.execute(step)
        except asyncpg.PostgresError as error:
            if error.sqlstate not in BEATEN:
                raise
            session.beaten = error.sqlstate
            session.steps.clear()
            await session.connection.execute("ROLLBACK")

    async def _chunk(self, connection: asyncpg.Connection[Any]) -> bool:
        """The product's own chunk over all keys, repeated with ON CONFLICT when a row came in between."""
        assert self.prepared.target is not None
        for collided in (False, True):
            statement = insert_chunk(
                self.prepared.source, self.prepared.target, first=True, collided=collided, fence=False
            )
            await connection.execute("BEGIN")
            try:
                await connection.execute("INSERT INTO ours VALUES (pg_current_xact_id()::xid)")
                await connection.fetch(statement, None, ["1000000"])
                return True
            except asyncpg.UniqueViolationError:
                await connection.execute("ROLLBACK")
                self.outcomes["chunk collided"] += 1
        raise AssertionError("ON CONFLICT did not help")

    async def sweep(self) -> None:
        """What the sweep does to buried keys: it deletes rows of ours that the source does not hold."""
        await self.judge.execute(
            "DELETE FROM dst WHERE xmin IN (SELECT xid FROM ours)"
            " AND NOT EXISTS (SELECT FROM src WHERE src.id = dst.id AND n >= 0)"
            " AND EXISTS (SELECT FROM backfill.tombstone t WHERE t.key IS NULL OR t.key = ARRAY[dst.id::text])"
        )

    async def differences(self) -> int:
        return int(
            await self.judge.fetchval(
                f"WITH wanted AS ({MAPPED} WHERE n >= 0) SELECT count(*) FROM"
                " (((TABLE wanted) EXCEPT ALL (TABLE dst)) UNION ALL ((TABLE dst) EXCEPT ALL (TABLE wanted))) d"
            )
        )


@pytest.fixture
async def race(database: FreshDatabase) -> Race:
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, n int, note text);"
        "CREATE TABLE dst (id int PRIMARY KEY, doubled int, note text); CREATE TABLE ours (xid xid);"
        f"INSERT INTO src VALUES {FIRST_ROWS}"
    )
    columns = {"id": "id", "doubled": "n * 2", "note": "note"}
    prepared = await prepare(into(database, "src", database, "dst", columns=columns, where="n >= 0"))
    connection = await prepared.endpoints.source.connect("dualwrite")
    await dual_write_change.install(connection, prepared)
    await connection.close()
    sessions = [await database.connect(server_settings={"deadlock_timeout": "30ms"}) for _ in range(2)]
    return Race(database, prepared, *sessions, await database.connect())


def schedules(program: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Every interleaving of two steps of the chunk and all of the application's."""
    length = 2 + len(program) + 2
    for places in itertools.combinations(range(length), 2):
        yield tuple(0 if n in places else 1 for n in range(length))


@pytest.mark.parametrize(
    ("server", "name"),
    [pytest.param(16, name, id=f"{name}-pg16") for name in PROGRAMS]
    + [pytest.param(18, name, id=f"{name}-pg18") for name in GHOSTLY],
    indirect=["server"],
)
async def test_in_whatever_order_the_two_meet_both_sides_agree(race: Race, name: str) -> None:
    program = PROGRAMS[name]
    tried = 0
    for isolation, end, order in itertools.product(ISOLATION, ("COMMIT", "ROLLBACK"), schedules(program)):
        await race.run(order, program, isolation, end)
        await race.sweep()
        tried += 1
        assert await race.differences() == 0, (name, isolation, end, order)
    assert tried == 4 * len(list(schedules(program)))
    assert race.outcomes["chunk committed"] > tried / 2


@pytest.mark.parametrize("isolation", ISOLATION)
@pytest.mark.parametrize("name", GHOSTLY)
async def test_without_tombstones_there_are_ghosts(race: Race, name: str, isolation: str) -> None:
    """The same schedules without what was buried: what the tombstones are for, and that the test above can fail."""
    program, ghosts = PROGRAMS[name], 0
    for order in schedules(program):
        await race.run(order, program, isolation, "COMMIT")
        await race.judge.execute("TRUNCATE backfill.tombstone")
        await race.sweep()
        ghosts += await race.differences() > 0
    assert ghosts > 0


@on_each_major
async def test_a_job_beside_an_application_that_writes_the_source_only(database: FreshDatabase) -> None:
    """The product's own run, its own sweep by tombstones, and clients that insert, update, delete and change keys."""
    rows = 6000
    database.sql(
        "CREATE TABLE src (id bigint PRIMARY KEY, n int, note text);"
        "CREATE TABLE dst (id bigint PRIMARY KEY, doubled int, note text);"
        f"INSERT INTO src SELECT g * {STRIDE}, g, 'first' FROM generate_series(1, {rows}) g; ANALYZE src"
    )
    columns = {"id": "id", "doubled": "n * 2", "note": "note"}
    spec = into(database, "src", database, "dst", columns=columns)
    prepared = await prepare(spec)
    connection = await prepared.endpoints.source.connect("dualwrite")
    await dual_write_change.install(connection, prepared)
    await connection.close()
    stop = asyncio.Event()
    watch = Watch(await database.connect(), "job")
    settings = {"application_name": "application", "lock_timeout": "500"}
    order = {"of": 4, "rows": rows, "seed": 7}
    clients = [Client(order, n, Triggers(await database.connect(server_settings=settings)), watch) for n in range(4)]
    writing = [asyncio.create_task(client.run(stop)) for client in clients]
    try:
        running = await start(spec, workers=2)
        result = await running.ended()
    finally:
        stop.set()
        await asyncio.gather(*writing)
    assert result.error is None, result.error
    assert database.sql("SELECT sweep_by FROM backfill.job") == "tombstones"
    assert differing(database, MAPPED, "TABLE dst") == 0
    counts = sum((client.counts for client in clients), Counter())
    assert counts["committed"] > 20, counts
