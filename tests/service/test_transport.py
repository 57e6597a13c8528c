"""Sockets: who is at their other end, both event loops, and the end."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trustme
import uvloop

from engine.embedded.account import Account
from engine.errors import UsageError
from engine.service.auth import Doorkeeper
from engine.service.config import Address, Config
from engine.service.sockets import listen
from tests.support.front import GET, fill, opened, problem, server_files, status, trusting
from tests.support.waiting import until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


async def test_a_unix_socket_lies_in_a_private_folder_that_is_made_for_it(folder: Path) -> None:
    async with opened(f"unix://{folder}/s") as front:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o600
        assert status(await front.raw(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")) == 200
        peer = front.application.peers[0]
        assert (peer.uid, peer.gid, peer.pid, peer.address) == (os.geteuid(), os.getegid(), os.getpid(), None)
    assert not (folder / "s").exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_in_which_others_can_write_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UsageError, match="other users can write"):
        listen(Address.parse(f"unix://{folder}/s"))
    assert list(folder.iterdir()) == []


def test_a_path_that_is_too_long_or_taken_by_a_file_is_told(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "file").write_text("mine")
    for name, words in (("file", "no socket"), ("x" * 120, "longer than 107"), ("no/such/s", "No such file")):
        with pytest.raises(UsageError, match=words):
            listen(Address.parse(f"unix://{folder}/{name}"))
    assert (folder / "file").read_text() == "mine"


async def test_a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "s"))
        dead.listen()
    assert (folder / "s").exists()
    async with opened(f"unix://{folder}/s") as front:
        with pytest.raises(UsageError, match="somebody listens there already"):
            listen(Address.parse(f"unix://{folder}/s"))
        assert status(await front.raw(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")) == 200


async def test_at_the_end_the_socket_of_a_successor_is_left_alone(folder: Path) -> None:
    async with opened(f"unix://{folder}/s"):
        (folder / "s").unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(folder / "s"))
    assert (folder / "s").exists()


ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as one:
    one.connect(sys.argv[1])
    one.sendall(b"GET " + sys.argv[2].encode() + b" HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\n\\r\\n")
    answer = b""
    while piece := one.recv(65536):
        answer += piece
    sys.stdout.write(answer.decode())
"""


def as_another_user(folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Ask at the socket as the account that servers of the tests run as."""
    account = Account.for_servers()
    if not account.drop:
        pytest.skip("to be another user, the tests have to run as root")
    pythons = [sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"]
    python = next((one for one in pythons if account.can_run([one, "-I", "-S", "-c", ""])), None)
    if python is None:
        pytest.skip(f"{account.name} can run no python here")
    return subprocess.run(
        [python, "-I", "-S", "-c", ASK, str(folder / "s"), path],
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        **account.process_options(),
    )


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Every folder above lets others pass, so that only the daemon's own doing keeps them out.

    Not one of pytest's: each session that starts closes the folder above all of them.
    """
    with tempfile.TemporaryDirectory(prefix="backfill-socket-") as above:
        Path(above).chmod(0o711)
        yield Path(above) / "run"


async def test_another_user_cannot_even_connect(reachable: Path) -> None:
    async with opened(f"unix://{reachable}/s") as front:
        done = await asyncio.to_thread(as_another_user, reachable, "/livez")
        assert done.returncode != 0 and "PermissionError" in done.stderr
        reachable.chmod(0o755)  # as an operator might
        done = await asyncio.to_thread(as_another_user, reachable, "/livez")
        assert done.returncode != 0 and "PermissionError" in done.stderr
        assert front.application.paths == []


async def test_of_other_users_only_the_listed_get_an_answer_even_where_the_socket_is_open_to_all(
    reachable: Path,
) -> None:
    account = Account.for_servers()
    for listed, expected in (("backup", 403), (account.name, 200)):
        settings = {"auth": {"users": {listed: ["read"]}}}
        config = Config.model_validate({"connections": {"main": {}}} | settings)
        async with opened(f"unix://{reachable}/s", admits=Doorkeeper(config).admits, **settings) as front:
            for path in ("/livez", "/readyz", "/openapi.json", "/", "/v1/jobs", "/nothing"):
                done = await asyncio.to_thread(as_another_user, reachable, path)
                assert status(done.stdout.encode()) == expected, done
            assert len(front.application.paths) == (6 if expected == 200 else 0)
            if expected == 200:
                assert front.application.peers[0].uid == account.uid
            assert status(await front.raw(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")) == 200
        (reachable / "s").unlink(missing_ok=True)
        reachable.rmdir()


# -- the event loop of the command


def test_all_of_it_holds_in_the_event_loop_of_the_command(tmp_path: Path, folder: Path) -> None:
    """uvloop has transports of its own."""
    authority = trustme.CA()
    limits = {"header_timeout": "1s", "send_timeout": "1s", "idle_timeout": "1s", "connections": 8}
    tls = server_files(authority, tmp_path / "tls")
    one = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"

    async def everything() -> None:
        async with opened("tcp://127.0.0.1:0", f"unix://{folder}/s", limits=limits) as front:
            assert status(await front.raw(one)) == 200
            assert front.application.peers[0].uid == os.geteuid()
            assert problem(await front.raw(GET[:-2]))["code"] == "too_slow"
            assert problem(await front.raw(b"GET / HTTP/1.1\nhost: x\n\n"))["code"] == "malformed_request"
            assert (await front.raw(GET)).endswith(b"ok")  # and then idle for too long
            _, deaf = await front.connect()
            deaf.transport.pause_reading()  # type: ignore[attr-defined]
            deaf.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: "/endless" in front.application.paths)
            await until(lambda: not front.front.state.connections)
            deaf.close()
            silent = await fill(front, 50, b"GET ")
            assert status(await front.raw(one)) == 200
            await until(lambda: len(front.front._crowd) == 0)
            for writer in silent:
                writer.close()
        async with opened(tls=tls, limits=limits) as front:
            asking = {"ssl": trusting(authority), "server_hostname": "localhost"}
            assert status(await front.raw(one, **asking)) == 200
            assert await front.raw(GET) == b""
            assert (await front.raw(GET, **asking)).endswith(b"ok")
            await until(lambda: len(front.front._crowd) == 0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(everything())


# -- the end


async def test_an_answer_that_has_begun_is_finished_and_the_rest_is_cut_off_in_time() -> None:
    async with opened() as front:
        writers = await fill(front, 2, b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        waiting = asyncio.create_task(front.raw(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n"))
        writers += await fill(front, 2, b"GET ")
        await until(lambda: front.application.paths.count("/wait") == 3)
        front.front.stop(5)
        await until(lambda: len(front.front.state.connections) == 3)  # the idle ones went at once
        with pytest.raises(ConnectionError):
            await front.connect()
        front.application.go_on.set()
        answer = await waiting
        assert status(answer) == 200 and b"connection: close" in answer
    async with opened() as front:
        cut = asyncio.create_task(front.raw(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n"))
        await until(lambda: front.application.paths == ["/wait"])
    assert await cut == b""
    for writer in writers:
        writer.close()


async def test_nothing_is_left_when_all_have_gone() -> None:
    async def round_of(count: int) -> None:
        async with opened() as front:
            for _ in range(count):
                await front.raw(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                await front.raw(b"garbage\r\n\r\n")
            await until(lambda: len(front.front._crowd) == 0)
            assert not front.front._greeting

    await round_of(1)  # what the event loop itself opens when it is first used
    before = psutil.Process().num_fds()
    await round_of(100)
    await until(lambda: psutil.Process().num_fds() <= before)
