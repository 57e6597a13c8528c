"""Sessions: their settings, statements, COPY in both directions, and that nothing waits for ever."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
import uvloop

from engine.db import Action, Connection, ConnectionLost, Database, classify
from engine.db.connection import CLOSE_DEADLINE_S, RECOVERY_DEADLINE_S
from engine.embedded import EmbeddedServer
from engine.model import Side, TableName
from tests.support.databases import FreshDatabase, on_each_major
from tests.support.gate import Gate

pytestmark = on_each_major

T = TableName("public", "t")
MANY = "SELECT g::bigint, 'text ' || g FROM generate_series(1, 200000) g"
SOON_S = 5.0  # far below every deadline of the engine, far above what the machine needs

Open = Callable[..., Awaitable[Connection]]


@pytest.fixture
async def connect(database: FreshDatabase) -> AsyncIterator[Open]:
    """Sessions with a database that has a table ``t (id bigint primary key, v text)``."""
    database.sql("CREATE TABLE t (id bigint PRIMARY KEY, v text)")
    opened: list[Connection] = []

    async def open_one(purpose: str = "test", *, dsn: str | None = None, **options: object) -> Connection:
        made = Database(dsn or database.dsn, side=Side.TARGET, job="job")
        opened.append(await made.connect(purpose, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.abort()


async def pieces(connection: Connection, query: str = MANY) -> list[bytes]:
    taken: list[bytes] = []

    async def sink(piece: bytes) -> None:
        taken.append(piece)

    await connection.copy_out(query, sink)
    return taken


async def each(items: list[bytes]) -> AsyncIterator[bytes]:
    for item in items:
        yield item


async def becomes(expected: str, question: Callable[[], str], within_s: float = SOON_S) -> None:
    deadline = time.monotonic() + within_s
    while question() != expected:
        assert time.monotonic() < deadline, f"{question()!r} is not {expected!r}"
        await asyncio.sleep(0.05)


# -- settings --------------------------------------------------------------------------------------------------------


async def test_every_session_reads_and_writes_values_alike_whatever_the_database_says(
    connect: Open, database: FreshDatabase
) -> None:
    for setting in ("DateStyle = 'SQL, DMY'", "TimeZone = 'Asia/Kolkata'", "extra_float_digits = -3", "jit = on"):
        database.sql(f'ALTER DATABASE "{database.name}" SET {setting}')
    database.sql(f'ALTER DATABASE "{database.name}" SET search_path = public')
    connection = await connect(dsn=f"{database.dsn}?options=-c%20IntervalStyle%3Diso_8601")
    row = await connection.fetchrow(
        "SELECT (timestamptz '2024-05-06 07:08:09+00')::text, (0.1::float8 + 0.2)::text, (interval '1 day 2h')::text,"
        " '\\x00ff'::bytea::text, current_setting('search_path'), current_setting('jit'),"
        " current_setting('plan_cache_mode'), current_setting('row_security'), current_setting('client_encoding')"
    )
    assert row is not None
    assert list(row) == [
        "2024-05-06 07:08:09+00",
        "0.30000000000000004",
        "1 day 02:00:00",
        r"\x00ff",
        "pg_catalog",
        "off",
        "force_custom_plan",
        "off",
        "UTF8",
    ]
    assert connection.user_search_path == "public"


async def test_only_data_sessions_commit_asynchronously_and_act_as_the_role(
    connect: Open, database: FreshDatabase
) -> None:
    role = f"mover_{database.name}"
    database.sql(f'CREATE ROLE "{role}"')
    try:
        made = Database(database.dsn, side=Side.SOURCE, job="job", role=role, lock_timeout_s=0.75)
        data, control = await made.connect("w1", data=True), await made.connect("ledger")
        seen = [
            list(
                await connection.fetchrow(
                    "SELECT current_user::text, current_setting('synchronous_commit'), current_setting('lock_timeout'),"
                    " current_setting('application_name')"
                )
                or []
            )
            for connection in (data, control)
        ]
        assert seen == [
            [role, "off", "750ms", "backfill/job/w1"],
            ["postgres", "on", "10s", "backfill/job/ledger"],
        ]
        assert (data.server.user, data.server.is_superuser) == (role, False)
        assert (control.server.user, control.server.is_superuser) == ("postgres", True)
        assert data.backend.started  # seen as the login, before the role hid it
        data.abort()
        control.abort()
    finally:
        database.sql(f'DROP ROLE "{role}"')


async def test_a_session_knows_its_server_and_itself(connect: Open, server: EmbeddedServer) -> None:
    connection = await connect()
    assert connection.server.major == server.major
    assert connection.server.capabilities.own_wal_exact == (server.major >= 18)
    assert (connection.server.timeline, connection.server.in_recovery) == (1, False)
    assert connection.server.system_identifier.isdecimal()
    facts = await connection.fetchrow(
        "SELECT pid, backend_start::text AS started FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    )
    assert facts is not None
    assert (connection.backend.pid, connection.backend.started) == (facts["pid"], facts["started"])


# -- statements ------------------------------------------------------------------------------------------------------


async def test_describe_names_columns_and_types_without_running_anything(connect: Open) -> None:
    connection = await connect()
    assert await connection.describe("SELECT 1::int8 AS a, 'x'::varchar(3) AS \"B b\", 1/0::numeric AS c") == [
        ("a", 20, "bigint"),
        ("B b", 1043, "character varying"),
        ("c", 1700, "numeric"),
    ]
    await connection.describe("INSERT INTO public.t VALUES (1)")
    assert await connection.fetchval("SELECT count(*) FROM public.t") == 0


async def test_explain_shows_the_plan_for_these_very_arguments(connect: Open) -> None:
    connection = await connect()
    await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
    plan = await connection.explain("SELECT * FROM public.t WHERE id > ($1::text[])[1]::bigint", ["7"])
    assert plan["Node Type"] == "Index Scan"
    assert "'7'::bigint" in plan["Index Cond"]


async def test_a_listener_hears_the_payload(connect: Open) -> None:
    connection, other = await connect(), await connect()
    heard: asyncio.Queue[str] = asyncio.Queue()
    await connection.add_listener("channel", heard.put_nowait)
    await other.execute("NOTIFY channel, 'news'")
    assert await asyncio.wait_for(heard.get(), SOON_S) == "news"


# -- COPY ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
async def test_rows_stream_from_one_session_into_another(connect: Open, binary: bool) -> None:
    source, target = await connect(), await connect()
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=2)

    async def stream() -> AsyncIterator[bytes]:
        while (piece := await queue.get()) is not None:
            yield piece

    async def read() -> int:
        rows = await source.copy_out(MANY, queue.put, binary=binary)
        await queue.put(None)
        return rows

    sent, received = await asyncio.gather(read(), target.copy_in(T, ["id", "v"], stream(), binary=binary))
    assert (sent, received) == (200_000, 200_000)
    assert await target.fetchval("SELECT count(*) = 200000 AND max(v) = 'text 99999' FROM public.t")


async def test_copy_into_a_temporary_table(connect: Open) -> None:
    connection = await connect()
    await connection.execute('CREATE TEMP TABLE "St age" (id bigint)')
    stream = each(await pieces(connection, "SELECT g::bigint FROM generate_series(1, 3) g"))
    assert await connection.copy_in(None, ["id"], stream, temp_name="St age") == 3


async def test_a_source_that_fails_leaves_no_row_and_a_usable_session(connect: Open) -> None:
    connection = await connect()
    whole = await pieces(connection)

    async def failing() -> AsyncIterator[bytes]:
        for piece in whole[:3]:
            yield piece
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        await connection.copy_in(T, ["id", "v"], failing())
    assert not connection.is_closed
    assert await connection.fetchval("SELECT count(*) FROM public.t") == 0


async def test_a_source_that_fails_inside_a_transaction_aborts_it(connect: Open) -> None:
    connection = await connect()
    await connection.execute("BEGIN; INSERT INTO public.t VALUES (-1, 'before')")

    async def failing() -> AsyncIterator[bytes]:
        raise RuntimeError("at once")
        yield b""

    with pytest.raises(RuntimeError):
        await connection.copy_in(T, ["id", "v"], failing())
    assert await connection.execute("COMMIT") == "ROLLBACK"
    assert await connection.fetchval("SELECT count(*) FROM public.t") == 0


async def test_a_sink_that_fails_stops_the_query_and_leaves_a_usable_session(connect: Open) -> None:
    connection = await connect()

    async def sink(piece: bytes) -> None:
        raise RuntimeError("full")

    started = time.monotonic()
    with pytest.raises(RuntimeError, match="full"):
        await connection.copy_out("SELECT generate_series(1, 1000000000::bigint)", sink)
    assert time.monotonic() - started < SOON_S
    assert await connection.fetchval("SELECT 1") == 1


async def test_a_sink_that_fails_while_the_server_is_silent_costs_the_session_and_little_time(
    server: EmbeddedServer, connect: Open, database: FreshDatabase
) -> None:
    async with Gate(server.host, server.port) as gate:
        connection = await connect(dsn=gate.dsn(database.dsn))

        async def sink(piece: bytes) -> None:
            gate.silence()
            gate.refusing = True
            raise RuntimeError("full")

        started = time.monotonic()
        with pytest.raises(RuntimeError, match="full"):
            await connection.copy_out("SELECT generate_series(1, 1000000000::bigint)", sink)
        assert connection.is_closed
        assert time.monotonic() - started < RECOVERY_DEADLINE_S + 1


async def test_an_error_of_the_server_in_copy_in_shows_and_leaves_a_usable_session(connect: Open) -> None:
    connection = await connect()
    twice = each(await pieces(connection, "SELECT g % 10 + 0::bigint, '' FROM generate_series(1, 100000) g"))
    with pytest.raises(asyncpg.UniqueViolationError) as caught:
        await connection.copy_in(T, ["id", "v"], twice)
    assert caught.value.constraint_name == "t_pkey"
    assert await connection.fetchval("SELECT count(*) FROM public.t") == 0


@pytest.mark.parametrize("direction", ["in", "out"])
async def test_a_cancelled_copy_drops_the_session_and_the_server_rolls_back(
    connect: Open, database: FreshDatabase, direction: str
) -> None:
    connection = await connect()
    begun = asyncio.Event()

    async def stuck_source() -> AsyncIterator[bytes]:
        yield b"PGCOPY\n\xff\r\n\0" + bytes(8)
        begun.set()
        await asyncio.Event().wait()

    async def stuck_sink(piece: bytes) -> None:
        begun.set()
        await asyncio.Event().wait()

    copying = asyncio.create_task(
        connection.copy_in(T, ["id", "v"], stuck_source())
        if direction == "in"
        else connection.copy_out("SELECT generate_series(1, 1000000000::bigint)", stuck_sink)
    )
    await asyncio.wait_for(begun.wait(), SOON_S)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(copying, SOON_S)
    assert connection.is_closed
    await becomes(
        "0", lambda: database.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'backfill/%'")
    )


@pytest.mark.parametrize("waits_for", ["source", "socket"])
async def test_a_session_that_dies_in_copy_in_is_noticed_at_once(
    connect: Open, database: FreshDatabase, waits_for: str
) -> None:
    """asyncpg alone waits for ever: its flow control is not told when the connection goes while the socket is full."""
    connection = await connect()
    if waits_for == "socket":
        database.sql("CREATE FUNCTION stall() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); END'")
        database.sql("CREATE TRIGGER stall BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION stall()")
    whole = await pieces(connection)
    begun = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        for piece in whole * 40 if waits_for == "socket" else whole[:2]:
            yield piece
            begun.set()
        await asyncio.Event().wait()

    copying = asyncio.create_task(connection.copy_in(T, ["id", "v"], source()))
    await asyncio.wait_for(begun.wait(), SOON_S)
    await asyncio.sleep(0.3)  # the socket fills
    database.sql(f"SELECT pg_terminate_backend({connection.backend.pid})")
    with pytest.raises((ConnectionLost, asyncpg.PostgresConnectionError)) as caught:
        await asyncio.wait_for(copying, SOON_S)
    assert classify(caught.value).sqlstate == "57P01"
    assert connection.is_closed


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_who_ended_a_copy_is_known_on_every_event_loop(
    database: FreshDatabase, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    complaints: list[object] = []

    async def scene() -> BaseException:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        connection = await Database(database.dsn, side=Side.TARGET).connect("test")
        await connection.execute("CREATE TABLE public.t (id bigint, v text)")
        begun = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield (await pieces(other, "SELECT 1::bigint, 'x'"))[0]
            begun.set()
            await asyncio.Event().wait()

        other = await Database(database.dsn, side=Side.TARGET).connect("other")
        copying = asyncio.create_task(connection.copy_in(T, ["id", "v"], stuck()))
        await begun.wait()
        await other.fetchval("SELECT pg_terminate_backend($1)", connection.backend.pid)
        (outcome,) = await asyncio.wait_for(asyncio.gather(copying, return_exceptions=True), SOON_S)
        await other.close()
        assert isinstance(outcome, BaseException)
        return outcome

    with asyncio.Runner(loop_factory=new_loop) as runner:
        outcome = runner.run(scene())
        gc.collect()
    failure = classify(outcome)
    assert (failure.action, failure.sqlstate, failure.lost) == (Action.PAUSE, "57P01", True)
    assert complaints == []


# -- waiting, closing, aborting --------------------------------------------------------------------------------------


async def test_an_aborted_session_stops_its_statement_on_the_server(connect: Open, database: FreshDatabase) -> None:
    connection = await connect()
    running = asyncio.create_task(connection.fetchval("SELECT pg_sleep(60)"))
    await becomes("1", lambda: database.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)'"))
    connection.abort()
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
        await asyncio.wait_for(running, SOON_S)
    assert connection.is_closed
    await asyncio.wait_for(connection.wait_closed(), SOON_S)
    await becomes(
        "0", lambda: database.sql(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {connection.backend.pid}")
    )


async def test_a_statement_that_outlasts_our_patience_costs_the_session(connect: Open) -> None:
    connection = await connect()
    with pytest.raises(TimeoutError):
        await connection.fetchval("SELECT pg_sleep(60)", timeout_s=0.1)
    assert connection.is_closed


async def test_close_does_not_wait_for_a_dead_peer(
    server: EmbeddedServer, connect: Open, database: FreshDatabase
) -> None:
    async with Gate(server.host, server.port) as gate:
        connection = await connect(dsn=gate.dsn(database.dsn))
        running = asyncio.create_task(connection.fetchval("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.1)
        gate.silence()
        gate.refusing = True
        started = time.monotonic()
        await connection.close()
        assert time.monotonic() - started < CLOSE_DEADLINE_S + 1
        assert connection.is_closed
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
            await asyncio.wait_for(running, SOON_S)


async def test_close_is_quiet_and_may_be_repeated(connect: Open) -> None:
    connection = await connect()
    await connection.close()
    await connection.close()
    connection.abort()
    assert connection.is_closed
