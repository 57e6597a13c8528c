"""Lost replies, held messages, thefts: whatever the wire does, a row is written once.

The jobs add one to a counter and their ``done`` is never true: nothing but the fence keeps a chunk from being applied
twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import engine.db.database
import engine.flow.bounds
import engine.flow.control
import engine.flow.movers.server_side
import engine.ledger.statements
from engine.embedded import EmbeddedServer
from engine.events import ChunkCommitted, ChunkFound, ChunkRetried, SpanClaimed
from engine.model import Mode, Phase
from engine.spec import ChunkLimits, JobSpec
from tests.support.databases import FreshDatabase, TwoDatabases
from tests.support.gate import Fault, Gate, Wire, _abort
from tests.support.jobs import SLOT_S, Running, in_place, into, rows_of, start

pytestmark = pytest.mark.faults

ROWS = 6000
CHUNK = ChunkLimits(min_rows=10, max_rows=300)
CHUNK_STATEMENT = b"WITH moved"
FENCE_STATEMENT = b"SELECT backfill.advance("


@pytest.fixture
async def gate(server: EmbeddedServer) -> AsyncIterator[Gate]:
    async with Gate(server.host, server.port) as opened:
        yield opened


@pytest.fixture
def no_privilege_to_end_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a role without pg_signal_backend: what the former holder left behind stays."""

    async def forbidden(*_: object, **__: object) -> list[object]:
        return []

    monkeypatch.setattr(engine.flow.control, "terminate_backends", forbidden)


def counting_job(gate: Gate, database: FreshDatabase, rows: int = ROWS, **settings: Any) -> JobSpec:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, counter int NOT NULL DEFAULT 0)")
    database.sql(f"INSERT INTO src SELECT g FROM generate_series(1, {rows}) g; ANALYZE src")
    assignments = {"counter": "counter + 1"}
    return in_place(gate.dsn(database.dsn), "src", assignments, done="false", chunk=CHUNK, **settings)


def counters(database: FreshDatabase) -> str:
    return database.sql("SELECT min(counter), max(counter), count(*) FROM src")


class Late:
    """The session behind a wire whose client has left while a message was held."""

    def __init__(self, database: FreshDatabase, wire: Wire) -> None:
        self._database = database
        self._pid = wire.backend_pid
        self._rolled_back = 0

    def release(self, held: Fault) -> None:
        """Let the held message arrive."""
        self._rolled_back = self._count()
        held.release()

    async def was_rolled_back(self) -> None:
        """Wait until the session has ended; it must have rolled back what arrived."""
        async with asyncio.timeout(SLOT_S):
            while self._database.sql(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {self._pid}") != "0":
                await asyncio.sleep(0.05)
        assert self._count() > self._rolled_back

    def _count(self) -> int:
        name = self._database.name
        return int(self._database.sql(f"SELECT xact_rollback FROM pg_stat_database WHERE datname = '{name}'"))


def told(running: Running) -> str:
    """Rows and chunks that were moved, as the events tell."""
    moved = [e.observation.rows for e in running.events if isinstance(e, ChunkCommitted) and e.phase is Phase.MOVE]
    moved += [e.rows for e in running.events if isinstance(e, ChunkFound) and e.phase is Phase.MOVE]
    return f"{sum(moved)}|{len(moved)}"


def recorded(database: FreshDatabase) -> str:
    return database.sql("SELECT sum(rows), sum(chunks) FROM backfill.span WHERE phase = 'move'")


def wire_of(gate: Gate, worker: str) -> Wire:
    (wire,) = [w for w in gate.wires if w.application.endswith(f"/{worker}")]
    return wire


async def test_the_reply_to_a_chunks_commit_is_lost(gate: Gate, database: FreshDatabase) -> None:
    spec = counting_job(gate, database)
    # ReadyForQuery comes after the commit; the rows of the answer before it.
    lost = gate.on(backend="Z", during=CHUNK_STATEMENT, nth=5, times=4).reset()
    running = await start(spec)
    await running.done()
    assert lost.hits == 4
    assert running.count(ChunkRetried) >= 4
    assert running.count(ChunkFound) == 4
    assert told(running) == recorded(database)
    assert sum(worker.rows for worker in running.supervisor.workers) == ROWS  # what the estimate of WAL goes by
    assert counters(database) == f"1|1|{ROWS}"


@pytest.mark.parametrize("message", [1, 5, 9])
async def test_the_connection_breaks_inside_the_reply(gate: Gate, database: FreshDatabase, message: int) -> None:
    spec = counting_job(gate, database)
    broken = gate.on(backend="D", during=CHUNK_STATEMENT, nth=2, times=3).reset(after_bytes=message)
    running = await start(spec)
    await running.done()
    assert broken.hits == 3
    assert told(running) == recorded(database)
    assert counters(database) == f"1|1|{ROWS}"


@pytest.mark.parametrize("mode", [Mode.INSERT, Mode.COPY])
async def test_the_reply_to_a_commit_of_rows_is_lost(gate: Gate, databases: TwoDatabases, mode: Mode) -> None:
    source, target = databases.source, databases.source if mode is Mode.INSERT else databases.target
    source.sql(
        f"CREATE TABLE src (id int PRIMARY KEY, v int); INSERT INTO src SELECT g, g FROM generate_series(1, {ROWS}) g"
    )
    target.sql("CREATE TABLE dst (id int PRIMARY KEY, v int)")
    here = gate.dsn(source.dsn)
    there = here if mode is Mode.INSERT else gate.dsn(target.dsn)
    statement = CHUNK_STATEMENT if mode is Mode.INSERT else FENCE_STATEMENT
    lost = gate.on(backend="Z", during=statement, nth=5, times=3).reset()
    running = await start(into(here, "src", there, "dst", chunk=CHUNK))
    await running.done()
    assert lost.hits == 3
    assert told(running) == recorded(target)
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")
    assert int(target.sql("SELECT sum(rows) FROM backfill.span WHERE phase = 'move'")) == ROWS


async def test_a_retry_while_the_first_attempt_hangs_in_a_proxy_is_fenced(
    gate: Gate, database: FreshDatabase, no_privilege_to_end_sessions: None
) -> None:
    """The worker has reconnected and done the chunk again when the first attempt arrives after all."""
    spec = counting_job(gate, database)
    held = gate.on(frontend="B", during=CHUNK_STATEMENT, nth=3).hold()
    running = await start(spec)
    await held.happened()
    before, late = running.count(ChunkCommitted), Late(database, wire_of(gate, "w1"))
    _abort(wire_of(gate, "w1")._client)
    await running.until(lambda: running.count(ChunkCommitted) >= before + 3)
    late.release(held)
    await late.was_rolled_back()
    await running.done()
    assert (running.count(ChunkFound), told(running)) == (0, recorded(database))
    assert counters(database) == f"1|1|{ROWS}"


async def test_the_same_attempt_cannot_arrive_once_its_session_was_ended(gate: Gate, database: FreshDatabase) -> None:
    spec = counting_job(gate, database)
    held = gate.on(frontend="B", during=CHUNK_STATEMENT, nth=3).hold()
    running = await start(spec)
    await held.happened()
    pid = wire_of(gate, "w1").backend_pid
    before = running.count(ChunkCommitted)
    _abort(wire_of(gate, "w1")._client)
    await running.until(lambda: running.count(ChunkCommitted) >= before + 1)
    assert database.sql(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}") == "0"
    held.release()
    await running.done()
    assert counters(database) == f"1|1|{ROWS}"


async def test_a_commit_that_hangs_in_a_proxy_while_the_chunk_is_tried_again(
    gate: Gate, databases: TwoDatabases, no_privilege_to_end_sessions: None
) -> None:
    """Between two databases: rows are in, the fence and COMMIT are held up, and their worker is long gone on."""
    source, target = databases.source, databases.target
    source.sql(
        f"CREATE TABLE src (id int PRIMARY KEY, v int); INSERT INTO src SELECT g, g FROM generate_series(1, {ROWS}) g"
    )
    target.sql("CREATE TABLE dst (id int PRIMARY KEY, v int)")
    held = gate.on(frontend="Q", containing=FENCE_STATEMENT, nth=1).hold()
    running = await start(into(source.dsn, "src", gate.dsn(target.dsn), "dst", chunk=CHUNK, lock_timeout_s=0.3))
    await held.happened()
    late = Late(target, wire_of(gate, "w1"))
    _abort(wire_of(gate, "w1")._client)
    # The held transaction keeps its rows: whoever inserts the same keys waits for it, and gives way by time-out.
    await running.until(lambda: running.count(ChunkRetried) >= 2)
    late.release(held)
    await late.was_rolled_back()
    await running.done()
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")
    assert int(target.sql("SELECT sum(rows) FROM backfill.span WHERE phase = 'move'")) == ROWS


async def test_a_late_insert_of_a_row_that_is_gone_meanwhile_is_fenced(
    gate: Gate, database: FreshDatabase, no_privilege_to_end_sessions: None
) -> None:
    database.sql(f"CREATE TABLE src (id int PRIMARY KEY); INSERT INTO src SELECT generate_series(1, {ROWS})")
    database.sql("CREATE TABLE dst (id int PRIMARY KEY)")
    held = gate.on(frontend="B", during=CHUNK_STATEMENT, nth=3).hold()
    dsn = gate.dsn(database.dsn)
    running = await start(into(dsn, "src", dsn, "dst", chunk=CHUNK))
    await held.happened()
    late = Late(database, wire_of(gate, "w1"))
    _abort(wire_of(gate, "w1")._client)
    await running.done()
    database.sql("DELETE FROM dst")  # as dual-write would, for as many deletes: nobody may bring a row back now
    late.release(held)
    await late.was_rolled_back()
    assert database.sql("SELECT count(*) FROM dst") == "0"


async def test_a_span_is_halved_under_a_chunk_that_is_on_its_way(gate: Gate, database: FreshDatabase) -> None:
    spec = counting_job(gate, database, rows=20_000)
    held = gate.on(frontend="B", during=CHUNK_STATEMENT, nth=3).hold()
    refused = gate.on(backend="E", containing=b"BF001").delay(0)
    running = await start(spec, workers=2)
    await held.happened()
    bound = "SELECT min(hi[1]::int) FROM backfill.span WHERE cursor IS DISTINCT FROM hi"
    await running.until(lambda: any(isinstance(e, SpanClaimed) and e.stolen for e in running.events))
    await running.until(lambda: int(database.sql(bound) or 0) < 20_000)
    held.release()
    await refused.happened()
    await running.done()
    assert counters(database) == "1|1|20000"


async def test_half_open_connections_are_given_up_and_the_job_goes_on(
    gate: Gate, database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.flow.bounds, "PROBE_DEADLINE_S", 1.0)
    monkeypatch.setattr(engine.flow.movers.server_side, "CHUNK_DEADLINE_S", 1.5)
    monkeypatch.setattr(engine.ledger.statements, "DEADLINE_S", 1.0)
    monkeypatch.setattr(engine.db.database, "_user_timeout_s", lambda _: 1.5)  # as if statements might take so long
    spec = counting_job(gate, database)
    running = await start(spec, workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 3)
    for wire in gate.wires:
        wire._is_silent.update(frontend=True, backend=True)  # open for ever, and deaf and dumb
    await running.done()
    assert running.count(ChunkRetried) >= 1
    assert counters(database) == f"1|1|{ROWS}"


async def test_every_message_arrives_in_slices_of_a_byte(gate: Gate, databases: TwoDatabases) -> None:
    source, target = databases.source, databases.target
    source.sql(
        "CREATE TABLE src (id int PRIMARY KEY, v text); INSERT INTO src SELECT g, 'v' || g FROM generate_series(1, 300) g"
    )
    target.sql("CREATE TABLE dst (id int PRIMARY KEY, v text)")
    gate.slice_bytes = 1
    running = await start(into(gate.dsn(source.dsn), "src", gate.dsn(target.dsn), "dst", chunk=CHUNK))
    await running.done()
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")


async def test_a_slow_wire_costs_time_and_nothing_else(gate: Gate, database: FreshDatabase) -> None:
    spec = counting_job(gate, database, rows=1000)
    gate.latency_s = 0.005
    running = await start(spec, workers=2)
    await running.done()
    assert running.count(ChunkRetried) == 0
    assert counters(database) == "1|1|1000"
