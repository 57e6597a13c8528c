"""The gate itself: each fault hits the point it names, seen from the client and from the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from engine.embedded import EmbeddedServer
from tests.support.databases import FreshDatabase
from tests.support.gate import Gate

pytestmark = pytest.mark.faults

Connect = Callable[..., Awaitable["asyncpg.Connection[Any]"]]
GONE = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)
SOON_S = 0.3


@pytest.fixture
async def gate(server: EmbeddedServer) -> AsyncIterator[Gate]:
    async with Gate(server.host, server.port) as opened:
        yield opened


@pytest.fixture
async def connect(gate: Gate, database: FreshDatabase) -> AsyncIterator[Connect]:
    """Connections through the gate to a database with a table ``t`` of no rows."""
    database.sql("CREATE TABLE t (a int)")
    opened: list[asyncpg.Connection[Any]] = []

    async def through_the_gate(**options: Any) -> asyncpg.Connection[Any]:
        opened.append(await asyncpg.connect(gate.dsn(database.dsn), **options))
        return opened[-1]

    yield through_the_gate
    for connection in opened:
        connection.terminate()


def rows(database: FreshDatabase) -> int:
    return int(database.sql("SELECT count(*) FROM t"))


async def becomes(expected: int, question: Callable[[], int], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while question() != expected:
        assert time.monotonic() < deadline, f"{question()} is not {expected}"
        await asyncio.sleep(0.02)


async def test_without_faults_everything_passes_unchanged(gate: Gate, connect: Connect) -> None:
    connection = await connect(server_settings={"application_name": "backfill/x/1"})
    big = b"\x00\xff" * 300_000
    assert await connection.fetchval("SELECT $1::bytea", big) == big
    pieces: list[bytes] = []

    async def keep(piece: bytes) -> None:
        pieces.append(piece)

    await connection.copy_from_query("SELECT * FROM generate_series(1, 100000)", output=keep, format="binary")
    assert b"".join(pieces).startswith(b"PGCOPY\n\xff\r\n\0")
    assert gate.wires[0].application == "backfill/x/1"
    assert gate.wires[0].backend_pid == connection.get_server_pid()
    assert gate.seen["backend", "d"] >= 100_000
    assert gate.seen["frontend", "startup"] == 1
    await connection.close()
    await becomes(0, lambda: len(gate.wires))


async def test_a_client_that_would_like_tls_is_told_no_and_goes_on(gate: Gate, database: FreshDatabase) -> None:
    for mode in ("prefer", "allow"):
        connection = await asyncpg.connect(gate.dsn(f"{database.dsn}?sslmode={mode}"))
        assert not await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        await connection.close()
    with pytest.raises(ConnectionError, match="rejected SSL upgrade"):
        await asyncpg.connect(gate.dsn(f"{database.dsn}?sslmode=require"))


async def test_a_lost_commit_reply_leaves_a_committed_row_behind(
    gate: Gate, connect: Connect, database: FreshDatabase
) -> None:
    connection = await connect()
    lost = gate.on(backend="C", containing=b"COMMIT").reset()
    await connection.execute("BEGIN; INSERT INTO t VALUES (1)")
    with pytest.raises(GONE):
        await connection.execute("COMMIT")
    await lost.happened()
    assert rows(database) == 1


async def test_a_commit_that_never_arrives_leaves_nothing(
    gate: Gate, connect: Connect, database: FreshDatabase
) -> None:
    connection = await connect()
    gate.on(frontend="Q", containing=b"COMMIT").reset()
    await connection.execute("BEGIN; INSERT INTO t VALUES (1)")
    pid = connection.get_server_pid()
    with pytest.raises(GONE):
        await connection.execute("COMMIT")
    await becomes(0, lambda: int(database.sql(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")))
    assert rows(database) == 0


async def test_a_held_commit_happens_after_its_client_has_left(
    gate: Gate, connect: Connect, database: FreshDatabase
) -> None:
    connection = await connect()
    held = gate.on(frontend="Q", containing=b"COMMIT").hold()
    await connection.execute("BEGIN; INSERT INTO t VALUES (1)")
    commit = asyncio.create_task(connection.execute("COMMIT"))
    await held.happened()
    connection.terminate()
    with pytest.raises(GONE):
        await commit
    await asyncio.sleep(0.05)
    assert int(database.sql("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'")) == 1
    assert rows(database) == 0
    held.release()
    await becomes(1, lambda: rows(database))


async def test_a_held_message_goes_on_when_released_and_the_client_never_knows(gate: Gate, connect: Connect) -> None:
    connection = await connect()
    held = gate.on(backend="C", containing=b"SELECT").hold()
    question = asyncio.create_task(connection.fetch("SELECT 1"))
    await held.happened()
    assert not (await asyncio.wait([question], timeout=0.05))[0]
    held.release()
    assert await question == [(1,)]


async def test_faults_choose_the_statement_they_belong_to(gate: Gate, connect: Connect) -> None:
    connection = await connect()
    harmless, chosen = "SELECT 1 AS harmless", "SELECT 2 AS chosen"
    fault = gate.on(backend="C", during=b"AS chosen").reset()
    prepared = await connection.prepare(chosen)
    assert await connection.fetch(harmless) == [(1,)]
    assert fault.hits == 0
    with pytest.raises(GONE):
        await prepared.fetch()
    assert fault.hits == 1


async def test_faults_choose_the_connection_and_the_turn(gate: Gate, connect: Connect) -> None:
    mine = await connect(server_settings={"application_name": "backfill/job/mine"})
    other = await connect(server_settings={"application_name": "backfill/job/other"})
    fault = gate.on(frontend="Q", containing=b"count", application="job/mine", nth=3).reset()
    for _ in range(3):
        await other.execute("SELECT count(*) FROM t")
    for _ in range(2):
        await mine.execute("SELECT count(*) FROM t")
    assert fault.hits == 0
    with pytest.raises(GONE):
        await mine.execute("SELECT count(*) FROM t")
    await other.execute("SELECT count(*) FROM t")
    assert fault.hits == 1


@pytest.mark.parametrize("after_bytes", [1, 4, 5, 7, 60])
async def test_a_reset_at_any_byte_of_a_message_is_an_error_not_a_result(
    gate: Gate, connect: Connect, after_bytes: int
) -> None:
    connection = await connect()
    gate.on(backend="D").reset(after_bytes)
    with pytest.raises(GONE):
        await connection.fetchval("SELECT repeat('x', 100)")


async def test_a_reset_in_mid_copy_rolls_the_copy_back(gate: Gate, connect: Connect, database: FreshDatabase) -> None:
    connection = await connect()
    fault = gate.on(frontend="d", nth=3).reset(after_bytes=2000)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"1\n" * 5000
            await asyncio.sleep(0)

    with pytest.raises(GONE):
        await connection.copy_to_table("t", source=source())
    assert fault.hits == 1
    assert rows(database) == 0


async def test_silence_towards_the_client_is_a_reply_that_never_comes(
    gate: Gate, connect: Connect, database: FreshDatabase
) -> None:
    connection = await connect()
    gate.silence(to="client")
    with pytest.raises(TimeoutError):
        await connection.execute("INSERT INTO t VALUES (1)", timeout=SOON_S)
    assert rows(database) == 1


async def test_silence_towards_the_server_is_a_statement_that_never_runs(
    gate: Gate, connect: Connect, database: FreshDatabase
) -> None:
    connection = await connect()
    gate.silence(to="server")
    with pytest.raises(TimeoutError):
        await connection.execute("INSERT INTO t VALUES (1)", timeout=SOON_S)
    assert rows(database) == 0
    gate.heal()
    assert await (await connect()).fetchval("SELECT 1") == 1


async def test_silence_from_one_message_on_concerns_only_its_connection(gate: Gate, connect: Connect) -> None:
    deaf, other = await connect(), await connect()
    fault = gate.on(backend="C", containing=b"SELECT 7").silence()
    with pytest.raises(TimeoutError):
        await deaf.execute("SELECT generate_series(1, 7)", timeout=SOON_S)
    await fault.happened()
    assert await other.fetchval("SELECT 1") == 1


async def test_a_dropped_notification_is_just_missing(gate: Gate, connect: Connect) -> None:
    connection, heard = await connect(), asyncio.Queue[str]()
    await connection.add_listener("news", lambda *notice: heard.put_nowait(notice[3]))
    gate.on(backend="A", containing=b"first").drop()
    for payload in ("first", "second"):
        await connection.execute(f"NOTIFY news, '{payload}'")
    assert await asyncio.wait_for(heard.get(), 5) == "second"
    assert heard.empty()


async def test_one_byte_slices_are_reassembled(gate: Gate, connect: Connect) -> None:
    connection = await connect()
    gate.slice_bytes = 1
    assert await connection.fetchval("SELECT repeat('x', 2000)") == "x" * 2000


async def test_latency_and_delay_take_their_time(gate: Gate, connect: Connect) -> None:
    connection = await connect()
    await connection.fetchval("SELECT 1")
    gate.latency_s = 0.02
    before = time.monotonic()
    await connection.fetchval("SELECT 1")
    assert time.monotonic() - before >= 0.04
    gate.heal()
    gate.on(backend="C").delay(0.1)
    before = time.monotonic()
    await connection.fetch("SELECT 1")
    assert time.monotonic() - before >= 0.1


async def test_a_slow_wire_carries_no_more_than_its_bytes(gate: Gate, connect: Connect) -> None:
    connection = await connect()
    await connection.execute("SELECT 1")
    gate.bytes_per_s = 1000
    before = time.monotonic()
    assert len(await connection.fetchval("SELECT repeat('x', 500)", timeout=10)) == 500
    assert 0.5 <= time.monotonic() - before < 3


async def test_refused_and_reset_connections_fail_at_once_and_heal(gate: Gate, connect: Connect) -> None:
    connection = await connect()
    gate.refusing = True
    with pytest.raises(GONE):
        await connect(timeout=5)
    gate.reset_all()
    with pytest.raises(GONE):
        await connection.fetchval("SELECT 1")
    gate.heal()
    assert await (await connect()).fetchval("SELECT 1") == 1


async def test_cancelling_a_statement_passes_through(gate: Gate, connect: Connect) -> None:
    connection = await connect()
    with pytest.raises(TimeoutError):
        await connection.execute("SELECT pg_sleep(60)", timeout=0.1)
    assert await connection.fetchval("SELECT 1") == 1
    assert gate.seen["frontend", "cancel"] == 1


async def test_a_server_that_is_not_there_looks_like_one_that_resets() -> None:
    async with Gate("127.0.0.1", 1) as nowhere:
        with pytest.raises(GONE):
            await asyncpg.connect(nowhere.dsn("postgresql://postgres@127.0.0.1:1/postgres"), timeout=5)


async def test_a_fault_that_never_happens_fails_the_test_that_waits_for_it(gate: Gate) -> None:
    fault = gate.on(backend="C", containing=b"COMMIT").drop()
    with pytest.raises(AssertionError, match="drop of backend C b'COMMIT' did not happen"):
        await fault.happened(timeout_s=0.01)
