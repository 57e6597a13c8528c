"""What the errors of a real server mean, and what is said about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from engine.db import Action, Connection, Database, Failure, classify
from engine.db.failures import CONNECTION_FAILURE
from engine.errors import SchemaDrift
from engine.model import Side, TableName
from tests.support.databases import FreshDatabase

CANARY = "hunter2-row-value"


@pytest.fixture
async def connection(database: FreshDatabase) -> AsyncIterator[Connection]:
    database.sql(
        "CREATE TYPE mood AS ENUM ('sad');"
        "CREATE TABLE t (id bigint PRIMARY KEY, v text CHECK (v <> 'bad'), n int NOT NULL DEFAULT 0, short varchar(3),"
        " other bigint REFERENCES t, EXCLUDE USING btree (v WITH =))"
    )
    opened = await Database(database.dsn, side=Side.SOURCE).connect("test")
    yield opened
    opened.abort()


async def failure_of(connection: Connection, sql: str, *args: object) -> Failure:
    with pytest.raises((asyncpg.PostgresError, OSError, asyncpg.InterfaceError)) as caught:
        await connection.fetch(sql, *args)
    return classify(caught.value)


def raising(sqlstate: str) -> str:
    return f"DO $do$ BEGIN RAISE EXCEPTION 'text {CANARY}' USING ERRCODE = '{sqlstate}', DETAIL = '{CANARY}'; END $do$"


@pytest.mark.parametrize(
    ("sqlstate", "action"),
    [
        ("BF001", Action.FENCED),
        ("40001", Action.RETRY),
        ("40P01", Action.RETRY),
        ("55P03", Action.RETRY),
        ("57014", Action.SPLIT),
        ("53200", Action.SPLIT),
        ("54000", Action.SPLIT),
        ("57P01", Action.PAUSE),
        ("57P03", Action.WAIT),
        ("53300", Action.WAIT),
        ("53100", Action.WAIT),
        ("25006", Action.WAIT),
        ("25P03", Action.RECONNECT),
        ("08006", Action.RECONNECT),
        ("08P01", Action.STOP),
        ("22012", Action.STOP),
        ("42501", Action.STOP),
        ("P0001", Action.STOP),
        ("ZZ999", Action.STOP),
        ("23505", Action.STOP),  # without a constraint's name there is no arbiter to compare with
    ],
)
async def test_each_sqlstate_has_its_action_and_a_raised_text_is_never_repeated(
    connection: Connection, sqlstate: str, action: Action
) -> None:
    failure = await failure_of(connection, raising(sqlstate))
    assert (failure.action, failure.sqlstate) == (action, sqlstate)
    assert CANARY not in repr(failure)
    assert failure.message


@pytest.mark.parametrize(
    ("sql", "action", "named"),
    [
        (f"SELECT '{CANARY}'::int", Action.STOP, ""),
        (f"INSERT INTO public.t (id, short) VALUES (1, '{CANARY}')", Action.STOP, ""),
        (f"INSERT INTO public.t (id, v, n) VALUES (1, '{CANARY}', NULL)", Action.STOP, "column n"),
        ("INSERT INTO public.t (id, v) VALUES (1, 'bad')", Action.STOP, "constraint t_v_check"),
        ("INSERT INTO public.t (id, other) VALUES (1, 77)", Action.STOP, "constraint t_other_fkey"),
        (f"INSERT INTO public.t (id, v) VALUES (1, '{CANARY}'), (1, 'b')", Action.CONFLICT, "table public.t"),
        (f"SELECT '{CANARY}'::public.mood", Action.STOP, ""),
        (f"SELECT '{CANARY}'::timestamptz", Action.STOP, ""),
        (f"SELECT '{CANARY}'::jsonb", Action.STOP, ""),
        (f"SELECT '{{{CANARY}'::text[]", Action.STOP, ""),
        (f"SELECT pg_catalog.chr(0) || '{CANARY}'", Action.SPLIT, ""),
    ],
)
async def test_no_value_of_a_row_gets_into_a_failure(
    connection: Connection, sql: str, action: Action, named: str
) -> None:
    failure = await failure_of(connection, sql)
    assert failure.action is action
    assert CANARY not in repr(failure)
    assert named in failure.message


async def test_the_constraint_in_the_way_is_named(connection: Connection) -> None:
    await connection.execute("INSERT INTO public.t (id, v) VALUES (1, 'x')")
    unique = await failure_of(connection, "INSERT INTO public.t (id) VALUES (1)")
    assert (unique.action, unique.constraint) == (Action.CONFLICT, "t_pkey")
    exclusion = await failure_of(connection, "INSERT INTO public.t (id, v) VALUES (2, 'x')")
    assert (exclusion.action, exclusion.constraint) == (Action.CONFLICT, "t_v_excl")


async def test_messages_about_names_are_kept_since_they_help(connection: Connection) -> None:
    missing = await failure_of(connection, "SELECT nope FROM public.t")
    assert missing.message == 'column "nope" does not exist'
    function = await failure_of(connection, "SELECT my_function(1)")
    assert "my_function" in function.message
    assert "public.f(x)" in function.hint


async def test_who_asks_for_rows_gets_the_servers_message(connection: Connection) -> None:
    with pytest.raises(asyncpg.DataError) as caught:
        await connection.fetch(f"SELECT '{CANARY}'::int")
    assert CANARY in classify(caught.value, show_rows=True).message


async def test_time_outs_of_the_server(database: FreshDatabase, connection: Connection) -> None:
    await connection.execute("SET statement_timeout = 50")
    slow = await failure_of(connection, "SELECT pg_sleep(5)")
    assert (slow.action, slow.lost) == (Action.SPLIT, False)
    other = await database.connect()
    await other.execute("BEGIN; LOCK TABLE t")
    await connection.execute("SET lock_timeout = 20")
    blocked = await failure_of(connection, "SELECT FROM public.t")
    assert (blocked.action, blocked.sqlstate) == (Action.RETRY, "55P03")


async def test_our_own_patience_ends_the_session(connection: Connection) -> None:
    with pytest.raises(TimeoutError) as caught:
        await connection.fetch("SELECT pg_sleep(5)", timeout_s=0.05)
    failure = classify(caught.value)
    assert (failure.action, failure.sqlstate, failure.lost) == (Action.RECONNECT, CONNECTION_FAILURE, True)


async def test_an_administrator_is_told_from_a_broken_wire(database: FreshDatabase, connection: Connection) -> None:
    running = asyncio.create_task(failure_of(connection, "SELECT pg_sleep(30)"))
    await asyncio.sleep(0.2)
    database.sql(f"SELECT pg_terminate_backend({connection.backend.pid})")
    ended = await running
    assert (ended.action, ended.sqlstate, ended.lost) == (Action.PAUSE, "57P01", True)
    after = await failure_of(connection, "SELECT 1")
    assert (after.action, after.lost) == (Action.RECONNECT, True)


async def test_a_crash_of_the_server_means_reconnect(database: FreshDatabase, connection: Connection) -> None:
    running = asyncio.create_task(failure_of(connection, "SELECT pg_sleep(30)"))
    await asyncio.sleep(0.2)
    database.server.stop("immediate")
    failure = await running
    assert failure.action is Action.RECONNECT
    assert failure.lost
    database.server.start()


async def test_a_plan_that_a_schema_change_outdated_is_tried_again(
    connection: Connection, database: FreshDatabase
) -> None:
    await connection.execute("BEGIN")
    await connection.fetch("SELECT * FROM public.t")
    await connection.execute("COMMIT")
    database.sql("ALTER TABLE t ADD COLUMN new int")
    await connection.execute("BEGIN")
    failure = await failure_of(connection, "SELECT * FROM public.t")
    assert failure.action is Action.RETRY


async def test_a_stream_that_is_no_copy_stream_stops(connection: Connection) -> None:
    async def garbage() -> AsyncIterator[bytes]:
        yield b"not a signature, " + CANARY.encode()

    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.copy_in(TableName("public", "t"), ["id"], garbage())
    failure = classify(caught.value)
    assert failure.action is Action.STOP
    assert CANARY not in repr(failure)


def test_our_own_errors_stop_with_their_own_words_and_bugs_without_any() -> None:
    ours = classify(SchemaDrift("column a is gone", hint="plan again"))
    assert (ours.action, ours.message, ours.hint) == (Action.STOP, "column a is gone", "plan again")
    assert classify(ValueError(CANARY)).message == "unexpected ValueError"
