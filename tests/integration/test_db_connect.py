"""Being let in, or told why not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from engine.db import Action, Database, classify
from engine.db.database import application_name
from engine.embedded import EmbeddedServer
from engine.errors import BackfillError, CannotConnect, UsageError
from engine.model import Side
from tests.support.databases import FreshDatabase, TlsServer
from tests.support.gate import Gate

CANARY = "sesame-open"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


async def refused(dsn: str, **options: object) -> BackfillError:
    with pytest.raises(BackfillError) as caught:
        await Database(dsn, side=Side.SOURCE, **options).connect("test", data=True)  # type: ignore[arg-type]
    return caught.value


async def test_a_missing_database_says_so(database: FreshDatabase) -> None:
    error = await refused(database.dsn.replace(database.name, "nowhere"))
    assert isinstance(error, CannotConnect)
    assert error.sqlstate == "3D000"
    assert "nowhere" in error.message
    assert error.hint
    assert classify(error).action is Action.STOP


async def test_a_port_where_nobody_listens(database: FreshDatabase) -> None:
    error = await refused("host=127.0.0.1 port=1 user=u")
    assert "refused" in error.message
    assert classify(error).action is Action.WAIT


async def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    error = await refused(f"host={tmp_path} user=u")
    assert "no such socket" in error.message


async def test_a_host_name_that_means_nothing() -> None:
    error = await refused("host=name.invalid user=u")
    assert "cannot be resolved" in error.message


async def test_a_server_that_does_not_answer(server: EmbeddedServer, database: FreshDatabase) -> None:
    async with Gate(server.host, server.port) as gate:
        gate.silence()
        error = await refused(f"{gate.dsn(database.dsn)}&connect_timeout=0.3")
        assert "does not answer" in error.message
        assert classify(error).action is Action.WAIT


async def test_a_role_that_does_not_exist_or_is_not_ours(database: FreshDatabase) -> None:
    error = await refused(database.dsn, role="no such role")
    assert isinstance(error, CannotConnect)
    assert classify(error).action is Action.STOP


async def test_no_connection_left(database: FreshDatabase) -> None:
    user = f"limited_{database.name}"
    database.sql(f'CREATE ROLE "{user}" LOGIN CONNECTION LIMIT 0')
    try:
        error = await refused(
            f"host={database.server.host} port={database.server.port} dbname={database.name} user={user}"
        )
        assert error.sqlstate == "53300"
        assert classify(error).action is Action.WAIT
    finally:
        database.sql(f'DROP ROLE "{user}"')


async def test_the_next_host_is_tried_when_one_is_down(database: FreshDatabase, tmp_path: Path) -> None:
    server = database.server
    dsn = f"host=127.0.0.1,{tmp_path},{server.host} port=1,5432,{server.port} user=postgres dbname={database.name}"
    connection = await Database(dsn, side=Side.SOURCE).connect("test")
    assert connection.label == f"{server.host}:{server.port}/{database.name}"
    await connection.close()


async def test_the_kind_of_server_asked_for(database: FreshDatabase) -> None:
    error = await refused(f"{database.dsn}?target_session_attrs=standby")
    assert "target_session_attrs" in error.message
    preferring = await Database(f"{database.dsn}?target_session_attrs=prefer-standby", side=Side.SOURCE).connect("test")
    assert not preferring.server.in_recovery
    await preferring.close()


async def test_options_of_the_user_reach_the_server_and_ours_win(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=7MB -c jit=on")
    connection = await Database(database.dsn, side=Side.SOURCE).connect("test")
    assert await connection.fetchval("SELECT current_setting('work_mem') || current_setting('jit')") == "7MBoff"
    await connection.close()


async def test_the_socket_works_too(database: FreshDatabase) -> None:
    connection = await Database(database.socket_dsn, side=Side.SOURCE).connect("test")
    assert await connection.fetchval("SELECT inet_client_addr() IS NULL")
    await connection.close()


async def test_two_sessions_open_at_the_same_time(database: FreshDatabase) -> None:
    made = Database(database.dsn, side=Side.SOURCE)
    one, two = await asyncio.gather(made.connect("1"), made.connect("2"))
    assert one.backend.pid != two.backend.pid
    await asyncio.gather(one.close(), two.close())


@pytest.mark.parametrize(
    ("job", "name"), [("j", "backfill/j/w1"), ("", "backfill/w1"), ("x" * 80, f"backfill/{'x' * 51}/w1")]
)
def test_application_names_keep_their_end(job: str, name: str) -> None:
    assert application_name(job, "w1") == name
    assert len(name) <= 63


# -- TLS and passwords -----------------------------------------------------------------------------------------------


async def test_a_verified_server_is_spoken_to_in_secret(tls_server: TlsServer) -> None:
    connection = await Database(tls_server.dsn(), side=Side.SOURCE).connect("test")
    assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    assert await connection.copy_out("SELECT generate_series(1, 100000)", _nowhere) == 100_000
    await connection.close()


async def test_the_local_default_does_not_encrypt_unless_the_server_insists(tls_server: TlsServer) -> None:
    connection = await Database(tls_server.server.dsn("postgres"), side=Side.SOURCE).connect("test")
    assert not await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await connection.close()


async def test_an_unknown_authority_is_not_trusted(tls_server: TlsServer) -> None:
    error = await refused(f"{tls_server.server.dsn('postgres')}?sslmode=verify-full")
    assert "cannot be trusted" in error.message
    assert "sslrootcert" in error.hint
    assert classify(error).action is Action.STOP


async def test_a_server_without_tls_is_refused_when_tls_is_wanted(database: FreshDatabase) -> None:
    error = await refused(f"{database.dsn}?sslmode=require")
    assert "does not speak TLS" in error.message
    assert classify(error).action is Action.STOP


async def test_a_missing_certificate_file_is_a_mistake_of_the_user(database: FreshDatabase) -> None:
    error = await refused(f"{database.dsn}?sslmode=verify-full&sslrootcert=/no/such.pem")
    assert isinstance(error, UsageError)
    assert "/no/such.pem" in error.message


async def test_no_password_shows_in_any_error(database: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", CANARY)
    for dsn in (
        database.dsn.replace(database.name, "nowhere"),
        "host=127.0.0.1 port=1 user=u",
        f"postgresql://u:{CANARY}@127.0.0.1:1/d",
        f"{database.dsn}?sslmode=require",
    ):
        error = await refused(dsn)
        seen: BaseException | None = error
        while seen is not None:
            assert CANARY not in f"{seen!r} {seen} {getattr(seen, 'hint', '')}"
            seen = seen.__cause__ or seen.__context__
        assert CANARY not in repr(vars(Database(dsn, side=Side.SOURCE)))


async def _nowhere(piece: bytes) -> None:
    pass
