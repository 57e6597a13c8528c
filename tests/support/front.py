"""The daemon's front on real sockets, before an application that answers anything: so only the front can refuse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trustme

from engine.service.access import Peer
from engine.service.config import Config
from engine.service.exchange import PEER
from engine.service.transport import Front

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Application:
    """Answers anything: with its own words, with megabytes, or slowly."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.paths: list[str] = []
        self.left: list[str] = []  # whose client went away before the end
        self.go_on = asyncio.Event()
        self.sent_bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.peers.append(scope[PEER])
        self.paths.append(scope["path"])
        body = b"ok"
        match scope["path"]:
            case "/echo":
                body = b""
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        self.left.append("/echo")
                        return
                    body += message.get("body", b"")
                    if not message.get("more_body"):
                        break
            case "/wait":
                await self.go_on.wait()
            case "/halves":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"first", "more_body": True})
                await self.go_on.wait()
                await send({"type": "http.response.body", "body": b"second"})
                return
            case "/endless":
                await receive()
                leaving = asyncio.create_task(receive())
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while not leaving.done():
                    await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
                    self.sent_bytes += 65536
                    await asyncio.sleep(0)
                return
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Opened:
    """A front that answers."""

    def __init__(self, front: Front, application: Application, urls: list[str]) -> None:
        self.front = front
        self.application = application
        self.urls = urls

    @property
    def port(self) -> int:
        """Of the last listener."""
        return int(self.urls[-1].rsplit(":", 1)[1])

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection."""
        if self.urls[-1].startswith("unix"):
            return await asyncio.open_unix_connection(self.urls[-1].removeprefix("unix://"))
        return await asyncio.open_connection("127.0.0.1", self.port, **options)

    async def raw(self, *pieces: bytes, within_s: float = 30.0, **options: Any) -> bytes:
        """All that is answered until the daemon closes."""
        reader, writer = await self.connect(**options)
        try:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.005)  # so that they arrive as pieces
            async with asyncio.timeout(within_s):
                return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


@asynccontextmanager
async def opened(
    *listen: str, admits: Callable[[Peer], bool] = lambda _: True, told: list[str] | None = None, **settings: Any
) -> AsyncIterator[Opened]:
    config = Config.model_validate(
        {"listen": list(listen) or ["tcp://127.0.0.1:0"], "connections": {"main": {}}, "drain": "1s"} | settings
    )
    application = Application()
    front = Front(application, config, admits=admits, tell=(told if told is not None else []).append)
    urls = front.open()
    serving = asyncio.create_task(front.serve())
    try:
        yield Opened(front, application, urls)
    finally:
        front.stop(0.2)
        await asyncio.wait_for(serving, 30)
    assert not front.state.connections and not front.state.tasks


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def problem(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    for line in (b"content-type: application/problem+json", b"connection: close"):
        assert line in head.lower(), answer
    shown: dict[str, Any] = json.loads(body)
    return shown


async def fill(front: Opened, count: int, words: bytes) -> list[asyncio.StreamWriter]:
    writers = []
    for _ in range(count):
        _, writer = await front.connect()
        writer.write(words)
        writers.append(writer)
    return writers


def server_files(authority: trustme.CA, folder: Path, *names: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    made = authority.issue_cert("localhost", "127.0.0.1", *names)
    made.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "certificate.pem").write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
    return {"certificate": str(folder / "certificate.pem"), "key": str(folder / "key.pem")}


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
