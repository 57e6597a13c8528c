"""Throw-away servers: they start anywhere, stop in every way, and die with their owner."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import psutil
import pytest

from engine.embedded import BinariesMissing, EmbeddedError, EmbeddedServer, find_binaries
from engine.embedded.account import Account
from engine.embedded.binaries import within_reach
from tests.support.databases import FreshDatabase, TlsServer, TwoDatabases, on_each_major

OWNER = """
import sys, time
from engine.embedded import EmbeddedServer
server = EmbeddedServer(int(sys.argv[1]))
server.start()
print(server.postmaster, server.folder, flush=True)
time.sleep(600)
"""


def wait_until_gone(pids: list[int], folder: Path, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) for pid in pids) or folder.exists():
        assert time.monotonic() < deadline, f"still there: {list(filter(psutil.pid_exists, pids))} {folder.exists()}"
        time.sleep(0.05)


@pytest.mark.parametrize("major", [16, 18])
def test_a_server_starts_answers_and_leaves_nothing_behind(major: int) -> None:
    with EmbeddedServer(major) as server:
        folder, postmaster = server.folder, server.postmaster
        assert postmaster is not None
        assert server.sql("SELECT current_setting('server_version_num')::int / 10000") == str(major)
        assert server.sql("SELECT current_setting('listen_addresses')") == ""
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert psutil.Process(postmaster).uids().effective != 0
    assert not folder.exists()
    assert not psutil.pid_exists(postmaster)
    server.discard()


async def test_both_of_its_addresses_work_for_the_driver() -> None:
    with EmbeddedServer(tcp=True) as server:
        server.sql('CREATE DATABASE "a b/ü"')
        for dsn in (server.dsn("a b/ü"), server.socket_dsn("a b/ü")):
            connection = await asyncpg.connect(dsn)
            assert await connection.fetchval("SELECT current_database()") == "a b/ü"
            await connection.close()


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_what_was_committed_is_there_after_every_way_to_stop(server: EmbeddedServer, mode: str) -> None:
    server.sql("CREATE TABLE IF NOT EXISTS stopped (how text)")
    server.sql(f"INSERT INTO stopped VALUES ('{mode}')")
    port = server.port
    server.restart(mode)
    assert server.port == port
    assert mode in server.sql("SELECT how FROM stopped").split()


def test_it_starts_again_at_once_after_its_main_process_was_killed(server: EmbeddedServer) -> None:
    server.sql("CREATE TABLE killed AS SELECT 1 AS one")
    for _ in range(3):
        server.kill()
        assert not server.is_running
        server.start()
    assert server.sql("SELECT one FROM killed") == "1"


def test_a_death_of_its_own_is_noticed(server: EmbeddedServer) -> None:
    assert server.postmaster is not None
    watched = psutil.Process(server.postmaster)
    os.kill(server.postmaster, signal.SIGKILL)
    watched.wait(10)
    while server.is_running:
        time.sleep(0.01)
    assert server.postmaster is None
    server.start()
    assert server.sql("SELECT 1") == "1"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_owner_and_takes_its_folder_along(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, "16"], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        family = [int(pid), *(child.pid for child in psutil.Process(int(pid)).children())]
        assert len(family) > 3
        owner.send_signal(how)
        owner.wait(10)
    wait_until_gone(family, Path(folder))


def test_it_dies_with_its_owner_even_when_the_shell_between_them_died_first() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, "18"], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        shell = psutil.Process(int(pid)).parent()
        assert shell is not None
        shell.kill()
        owner.kill()
        owner.wait(10)
    wait_until_gone([int(pid)], Path(folder))


def test_a_fork_of_its_owner_leaves_it_alone(server: EmbeddedServer) -> None:
    child = os.fork()
    if child == 0:
        try:
            server.discard()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert server.sql("SELECT 1") == "1"


def test_many_start_at_the_same_time() -> None:
    servers = [EmbeddedServer(16, settings={"shared_buffers": "8MB"}, tcp=True) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(EmbeddedServer.start, servers))
        assert len({server.port for server in servers}) == 4
        assert [server.sql("SELECT 1") for server in servers] == ["1"] * 4
    finally:
        for server in servers:
            server.discard()


def test_a_port_taken_by_somebody_else_is_given_up_for_another() -> None:
    with EmbeddedServer(tcp=True) as first, EmbeddedServer(tcp=True) as second:
        assert second.port != first.port
        second.stop()
        third = EmbeddedServer(tcp=True)
        third.port = first.port
        with third:
            assert third.port != first.port


def test_a_folder_that_was_given_is_kept_and_used_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(0o755)
    folder = tmp_path / ("long" * 25)
    with EmbeddedServer(folder=folder, durable=True) as server:
        server.sql("CREATE TABLE kept AS SELECT current_setting('fsync') AS fsync")
        sockets = server.socket_folder
    assert not sockets.exists()
    with EmbeddedServer(folder=folder) as server:
        assert server.sql("SELECT fsync, current_setting('fsync') FROM kept") == "on|off"
    assert (folder / "data" / "PG_VERSION").exists()
    shutil.rmtree(folder)


def test_no_variable_of_ours_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGOPTIONS": "-c nonsense=1", "LC_ALL": "xx_XX"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedServer() as server:
        assert server.sql("SHOW timezone") == "UTC"


def test_settings_are_quoted_and_reloaded(server: EmbeddedServer) -> None:
    server.configure({"search_path": '"it\'s", public'})
    server.reload()
    deadline = time.monotonic() + 10
    while server.sql("SHOW search_path") != '"it\'s", public':
        assert time.monotonic() < deadline
        time.sleep(0.02)
    del server.settings["search_path"]
    server.configure({})
    server.reload()


def test_a_server_that_cannot_start_says_why() -> None:
    server = EmbeddedServer(settings={"shared_buffers": "plenty"})
    try:
        with pytest.raises(EmbeddedError, match='invalid value for parameter "shared_buffers"'):
            server.start()
    finally:
        server.discard()


def test_failing_sql_says_why(server: EmbeddedServer) -> None:
    with pytest.raises(EmbeddedError, match="division by zero"):
        server.sql("SELECT 1/0; CREATE TABLE never (a int)")
    assert server.sql("SELECT to_regclass('never') IS NULL") == "t"


def test_a_version_that_is_not_there_says_what_to_install() -> None:
    with pytest.raises(BinariesMissing, match="postgresql-9"):
        find_binaries(9)


def test_looking_for_binaries_runs_no_code_of_the_package() -> None:
    program = (
        "import sys; from engine.embedded import find_binaries; "
        "assert find_binaries(16).name == find_binaries(18).name == 'bin'; "
        "assert not [m for m in sys.modules if m.startswith('pixeltable')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide files from the account that servers run as")
def test_binaries_out_of_the_accounts_reach_are_copied_and_work(tmp_path: Path) -> None:
    account = Account.for_servers()
    hidden = tmp_path / "home"
    package = find_binaries(16).parent.parent
    shutil.copytree(package, hidden / package.name, ignore=shutil.ignore_patterns("pginstall18"))
    shutil.copytree(package.with_name(f"{package.name}.libs"), hidden / f"{package.name}.libs")
    hidden.chmod(0o700)
    binaries = hidden / package.name / "pginstall" / "bin"
    library = next((hidden / f"{package.name}.libs").iterdir())
    library.chmod(0o600)
    server = EmbeddedServer()
    try:
        server.prepare()
        assert not account.can_run([str(binaries / "postgres"), "--version"])
        copied = within_reach(binaries, account, server.folder)
        assert copied.is_relative_to(server.folder)
        for program in ("postgres", "initdb", "psql", "pgbench"):
            assert account.can_run([str(copied / program), "--version"])
        assert stat.S_IMODE(hidden.stat().st_mode) == 0o700
        assert stat.S_IMODE(library.stat().st_mode) == 0o600
    finally:
        server.discard()


def test_a_standby_follows_and_can_be_promoted() -> None:
    with EmbeddedServer(16, tcp=True) as primary:
        primary.sql("CREATE TABLE followed AS SELECT 7 AS seven")
        standby = primary.make_standby()
        try:
            assert standby.sql("SELECT pg_is_in_recovery(), seven FROM followed") == "t|7"
            primary.kill()
            standby.promote()
            standby.sql("INSERT INTO followed VALUES (8)")
            assert standby.sql("SELECT pg_is_in_recovery(), count(*) FROM followed") == "f|2"
        finally:
            standby.discard()


@on_each_major
async def test_each_test_has_a_database_of_its_own(database: FreshDatabase) -> None:
    assert database.sql("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == "0"
    connection = await database.connect()
    await connection.execute("CREATE TABLE mine (a int)")
    assert database.sql("SELECT count(*) FROM pg_class WHERE relname = 'mine'") == "1"


async def test_a_copy_has_two(databases: TwoDatabases) -> None:
    source, target = await databases.source.connect(), await databases.target.connect()
    names = {await c.fetchval("SELECT current_database()") for c in (source, target)}
    assert names == {databases.source.name, databases.target.name}
    assert len(names) == 2


@pytest.mark.debian
async def test_a_tls_server_proves_who_it_is(tls_server: TlsServer) -> None:
    connection = await asyncpg.connect(tls_server.dsn())
    assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    assert await connection.fetchval("SELECT count(*) > 0 FROM pg_collation WHERE collprovider = 'i'")
    await connection.close()
