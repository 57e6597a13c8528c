"""Daemons in tests: in this process (``running_daemon``), or the real command in one of its own (``daemon_process``).

Both listen on a Unix socket in a folder of their own, unless the configuration says otherwise::

    async with running_daemon({"connections": {"main": {"dsn": database.dsn, "work": True, "tables": ["*.*"]}}}) as daemon:
        answer = await daemon.client.get("/v1/jobs")

    async with daemon_process(config_of(database)) as daemon:
        daemon.kill()
        assert await daemon.ended() == -signal.SIGKILL
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from engine.events import Event, JobOpened
from engine.flow import Supervisor
from engine.service.config import Config, load_config
from engine.service.daemon import Daemon
from engine.spec import JobSpec
from tests.support.databases import FreshDatabase
from tests.support.jobs import prepare

READY_S = 60.0
END_S = 60.0
ROOT = Path(__file__).parents[2]

Settings = Mapping[str, Any] | str
"""The configuration: what ``backfill.toml`` says, as a mapping, or as its text.  ``{folder}`` in a text is the daemon's."""


def config_of(database: FreshDatabase | str, /, **settings: Any) -> dict[str, Any]:
    """A configuration with one connection, ``main``, that may do everything; ``settings`` replace what it says."""
    dsn = database if isinstance(database, str) else database.dsn
    main = {"dsn": dsn, "work": True, "tables": ["*.*"]}
    return {"connections": {"main": main}, "allow": {"expressions": True}} | settings


def _as_superuser(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tests' servers know one account, a superuser; a test about that says ``superuser`` itself."""
    connections = {name: {"superuser": True} | dict(one) for name, one in settings.get("connections", {}).items()}
    return dict(settings) | ({"connections": connections} if connections else {})


def to_toml(data: Mapping[str, Any], place: tuple[str, ...] = ()) -> str:
    """A mapping as TOML."""
    plain = [(key, value) for key, value in data.items() if not isinstance(value, Mapping) and value is not None]
    lines = [f"{_name(key)} = {_value(value)}" for key, value in plain]
    for key, value in data.items():
        if isinstance(value, Mapping):
            below = (*place, _name(key))
            lines += ["", f"[{'.'.join(below)}]", to_toml(value, below)]
    return "\n".join(lines) + "\n"


def _name(key: str) -> str:
    return json.dumps(key)


def _value(value: Any) -> str:
    match value:
        case Mapping():
            return "{" + ", ".join(f"{_name(k)} = {_value(v)}" for k, v in value.items()) + "}"
        case list() | tuple() | set() | frozenset():
            return "[" + ", ".join(map(_value, value)) + "]"
        case bool() | int() | float() | str():
            return json.dumps(value)
        case _:
            return json.dumps(str(value))


@contextmanager
def config_file(settings: Settings, folder: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """``backfill.toml`` in a folder that only we can read, with a socket beside it where it says no ``listen``.

    A folder that is given is left there, so that a second daemon can be started from it.
    """
    place = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="backfill-daemon-"))
    try:
        file = place / "backfill.toml"
        if isinstance(settings, str):
            text = settings.replace("{folder}", str(place))
            if "listen" not in text:
                text = f'listen = "unix://{place}/backfill.sock"\n' + text
        else:
            text = to_toml({"listen": f"unix://{place}/backfill.sock"} | _as_superuser(settings))
        file.write_text(text)
        file.chmod(0o600)
        yield file
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def read_config(file: Path, environment: Mapping[str, str] | None = None) -> Config:
    """The configuration as the command reads it."""
    return load_config(file, os.environ if environment is None else environment)


def client_for(url: str, *, token: str | None = None, verify: ssl.SSLContext | bool = True, **options: Any) -> Any:
    """An ``httpx.AsyncClient`` for a daemon's URL: ``unix:///…``, ``http://…`` or ``https://…``."""
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    options = {"timeout": 30.0, "headers": headers, "trust_env": False} | options
    if url.startswith("unix://"):
        transport = httpx.AsyncHTTPTransport(uds=url.removeprefix("unix://"))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", **options)
    return httpx.AsyncClient(base_url=url, verify=verify, **options)


async def answers(client: httpx.AsyncClient, path: str = "/livez", *, within_s: float = READY_S) -> httpx.Response:
    """Wait until a daemon answers there with 200."""
    deadline = time.monotonic() + within_s
    while True:
        answer: httpx.Response | None = None
        with contextlib.suppress(httpx.TransportError):
            answer = await client.get(path)
        if answer is not None and answer.status_code == 200:
            return answer
        assert time.monotonic() < deadline, (path, answer and answer.text)
        await asyncio.sleep(0.01)


async def listens(client: httpx.AsyncClient, *, within_s: float = READY_S) -> None:
    """Wait until somebody answers there, whatever he says."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            await client.get("/livez")
        except httpx.TransportError:
            assert time.monotonic() < deadline, "nobody listens"
            await asyncio.sleep(0.01)
        else:
            return


async def until_job(
    client: httpx.AsyncClient, job: str, is_so: Callable[[dict[str, Any]], bool], *, within_s: float = READY_S
) -> dict[str, Any]:
    """Ask for a job until it is so; gives it as it is then."""
    deadline = time.monotonic() + within_s
    while True:
        answer = await client.get(f"/v1/jobs/{job}")
        shown: dict[str, Any] = answer.json()
        if answer.status_code == 200 and is_so(shown):
            return shown
        assert time.monotonic() < deadline, shown
        await asyncio.sleep(0.02)


async def put_job(spec: JobSpec) -> None:
    """Write a job down in its ledger, planned, for whoever works there."""

    def leave(event: Event) -> None:
        if isinstance(event, JobOpened):
            supervisor.drain("written down")

    supervisor = Supervisor(await prepare(spec), workers=1, emit=leave, attach=True)
    await supervisor.run()


# -- in this process ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RunningDaemon:
    """A daemon in this loop.  ``url`` is the first of ``urls``, and ``client`` talks to it as our own user."""

    daemon: Daemon
    config: Config
    file: Path
    urls: list[str]
    client: httpx.AsyncClient
    task: asyncio.Task[None]

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.urls[0]

    @property
    def folder(self) -> Path:
        """Its folder: the configuration and the socket."""
        return self.file.parent

    async def ready(self) -> None:
        """Wait until ``/readyz`` says so."""
        await answers(self.client, "/readyz")

    async def stop(self) -> None:
        """Drain it, and wait for its end.  May be called twice."""
        self.daemon.drain("the test is through with it")
        await asyncio.wait_for(asyncio.shield(self.task), END_S)


@asynccontextmanager
async def running_daemon(
    settings: Settings,
    *,
    folder: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
    token: str | None = None,
    verify: ssl.SSLContext | bool = True,
    **options: Any,
) -> AsyncIterator[RunningDaemon]:
    """A daemon in this process and loop, which listens when the block begins and has ended when it is left.

    ``options`` go to ``Daemon``.
    """
    with config_file(settings, folder) as file:
        config = read_config(file, environment)
        daemon = Daemon(config, config.dsns(os.environ if environment is None else environment), **options)
        told: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(daemon.run(told.set_result), name="daemon under test")
        await asyncio.wait((told, task), timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            told.cancel()
            await task  # tells why it could not start
        urls = told.result()
        async with client_for(urls[0], token=token, verify=verify) as client:
            running = RunningDaemon(daemon, config, file, urls, client, task)
            try:
                await listens(client)
                yield running
            finally:
                await running.stop()


# -- in a process of its own ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class DaemonProcess:
    """``backfill serve`` in a process of its own.  What it writes to stderr is in ``log``, one JSON object a line.

    ``url``: where it says that it listens; before it is ready, where it is told to.
    """

    process: asyncio.subprocess.Process
    file: Path
    log: Path
    url: str
    client: httpx.AsyncClient
    manager: socket.socket
    told: list[str] = field(default_factory=list)  # what it told the service manager

    @property
    def pid(self) -> int:
        """The daemon's own."""
        return self.process.pid

    @property
    def folder(self) -> Path:
        """Its folder: the configuration and the socket."""
        return self.file.parent

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def words(self) -> list[str]:
        """All that it has told the service manager up to now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.told.append(self.manager.recv(65536).decode())
        return self.told

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """As a machine that loses its power does."""
        self.signal(signal.SIGKILL)

    async def ended(self, within_s: float = END_S) -> int:
        """Wait for the end: the exit code, or minus the signal's number."""
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(self.process.wait())), within_s)
        except TimeoutError:
            raise AssertionError(f"the daemon is still running\n{self.log.read_text()[-3000:]}") from None

    async def terminated(self) -> int:
        """SIGTERM, and wait for the end."""
        self.signal(signal.SIGTERM)
        return await self.ended()


@asynccontextmanager
async def daemon_process(
    settings: Settings,
    *arguments: str,
    folder: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
    token: str | None = None,
    ready: bool = True,
) -> AsyncIterator[DaemonProcess]:
    """The real command.  ``ready``: wait until it has told the service manager that it is; else until it is started.

    Whatever is left of it when the block is left is killed.
    """
    with config_file(settings, folder) as file, _service_manager() as (address, manager):
        log = Path(tempfile.mkstemp(prefix="daemon-", suffix=".log", dir=file.parent)[1])
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine",
                "serve",
                "--config",
                str(file),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, "NOTIFY_SOCKET": address, "PYTHONPATH": str(ROOT), **(environment or {})},
            )
        url = str(read_config(file, environment).listen[0])
        async with client_for(url.replace("tcp://", "http://"), token=token) as client:
            daemon = DaemonProcess(process, file, log, url, client, manager)
            try:
                if ready:
                    await _until_ready(daemon)
                    if not url.startswith("unix://"):  # port 0 is any: now it says which
                        daemon.url = client.base_url = next(
                            line["urls"][0] for line in daemon.lines() if line["event"] == "daemon.ready"
                        )
                    await listens(client)
                yield daemon
            finally:
                daemon.kill()
                await daemon.ended()


@contextmanager
def _service_manager() -> Iterator[tuple[str, socket.socket]]:
    """What systemd is to a service: a datagram socket that it tells how it is."""
    address = f"\0backfill-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)
        yield "@" + address[1:], manager


async def _until_ready(daemon: DaemonProcess) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.ensure_future(daemon.process.wait())
    try:
        async with asyncio.timeout(READY_S):
            while not any("READY=1" in said.splitlines() for said in daemon.told):
                reading = asyncio.ensure_future(loop.sock_recv(daemon.manager, 65536))
                await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    raise AssertionError(f"the daemon ended with {ending.result()}\n{daemon.log.read_text()[-3000:]}")
                daemon.told.append(reading.result().decode())
    except TimeoutError:
        raise AssertionError(f"the daemon did not become ready\n{daemon.log.read_text()[-3000:]}") from None
    finally:
        ending.cancel()
