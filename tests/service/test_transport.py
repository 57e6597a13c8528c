"""Connections: what they may cost, and who is at their other end.  Real sockets, real TLS, both event loops' worth.

The application here answers anything, so that only the transport can refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trustme
import uvloop
from cryptography.hazmat.primitives import serialization

from engine.embedded.account import Account
from engine.errors import UsageError
from engine.service.access import Peer
from engine.service.auth import Doorkeeper
from engine.service.config import Address, Config
from engine.service.crowd import RESERVE, Crowd, place_of
from engine.service.exchange import MAX_HEADERS, PEER
from engine.service.sockets import listen
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

    async def raw(self, *pieces: bytes, within_s: float = 5.0, **options: Any) -> bytes:
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
        await asyncio.wait_for(serving, 10)
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


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.002)


# -- bad HTTP


@pytest.mark.parametrize(
    ("code", "pieces"),
    [
        ("malformed_request", [b"garbage\r\n\r\n"]),
        ("malformed_request", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"]),  # TLS to a plain port
        ("malformed_request", [b"GET / HTTP/1.1\nhost: x\n\n"]),
        ("malformed_request", [b"GET / HTTP/1.1\r\nhost: x\na: b\r\n\r\n"]),
        ("malformed_request", [b"GET / HTTP/1.1\r", b"\nhost: x", b"\na: b\r\n\r\n"]),
        ("malformed_request", [b"GET / HTTP/1.1\r\n\r\n"]),  # no Host
        ("malformed_request", [b"GET / HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n"]),
        ("malformed_request", [b"GET / HTTP/1.1\r\nhost: x\r\nhost : y\r\n\r\n"]),
        ("malformed_request", [b"GET / HTTP/1.1\r\nhost: x\r\na: b\x00c\r\n\r\n"]),
        ("malformed_request", [b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n"]),
        ("malformed_request", [b"GET / HTTP/2.7\r\nhost: x\r\n\r\n"]),
        ("malformed_request", [b"GET http://evil.example/ HTTP/1.1\r\nhost: x\r\n\r\n"]),
        ("malformed_request", [b"CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\n\r\n"]),
        ("malformed_request", [b"GET / HTTP/1.1\r\nhost: x\r\nauthorization: a\r\nauthorization: b\r\n\r\n"]),
        ("malformed_request", [b"GET / HTTP/1.1\r\nhost: x\r\nOrigin: a\r\norigin: b\r\n\r\n"]),
        ("malformed_request", [b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"]),
        ("malformed_request", [b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1, 2\r\n\r\nab"]),
        ("malformed_request", [b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n"]),
        ("malformed_request", [b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: +1\r\n\r\na"]),
        (
            "malformed_request",
            [b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
        ),
        ("malformed_request", [b"POST /echo HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"]),
        (
            "malformed_request",
            [b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", b"zz\r\nab\r\n0\r\n\r\n"],
        ),
        ("not_supported", [b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n"]),
        ("not_supported", [b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n"]),
        ("headers_too_large", [b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"x" * 20_000 + b"\r\n\r\n"]),
        ("headers_too_large", [b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"x" * 9000, b"x" * 9000, b"x" * 9000]),
        ("headers_too_large", [b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"]),
        ("headers_too_large", [b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n"]),
    ],
)
async def test_what_two_readers_could_read_in_two_ways_is_refused_by_the_transport(
    code: str, pieces: list[bytes]
) -> None:
    async with opened() as front:
        answer = await front.raw(*pieces)
        assert problem(answer)["code"] == code
        assert answer.count(b"HTTP/1.1 ") == 1
        assert not answer.endswith(b"ok")


async def test_nothing_of_a_bad_request_is_written_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened() as front:
        await front.raw(b"garbage\r\n\r\n")
        await front.raw(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n")
    assert [record for record in caplog.records if record.name.startswith(("uvicorn", "engine"))] == []


async def test_an_upgrade_is_answered_as_if_it_had_not_been_asked_for() -> None:
    async with opened() as front:
        for protocol in (b"websocket", b"h2c"):
            answer = await front.raw(
                b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: " + protocol + b"\r\n\r\n"
            )
            assert status(answer) == 200


async def test_http_1_0_is_answered_and_closed() -> None:
    async with opened() as front:
        assert status(await front.raw(b"GET / HTTP/1.0\r\nhost: x\r\n\r\n")) == 200


async def test_a_head_in_slices_of_one_byte_is_understood() -> None:
    async with opened() as front:
        pieces = [bytes([one]) for one in b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"]
        assert status(await front.raw(*pieces)) == 200


async def test_one_request_at_a_time_what_was_sent_behind_it_is_dropped_and_the_client_is_told() -> None:
    async with opened() as front:
        answer = await front.raw(GET + GET + GET)
        assert answer.count(b"HTTP/1.1 200") == 1 and b"connection: close" in answer
        asking = asyncio.create_task(front.raw(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n", GET * 1000))
        await until(lambda: any(one.conn.trailing_data[0] for one in front.front.state.connections))
        front.application.go_on.set()
        assert (await asking).count(b"HTTP/1.1 ") == 1
        assert front.application.paths == ["/", "/wait"]


async def test_what_comes_while_an_answer_is_on_its_way_is_dropped_too() -> None:
    async with opened() as front:
        asking = asyncio.create_task(front.raw(b"GET /halves HTTP/1.1\r\nhost: x\r\n\r\n", GET))
        await until(lambda: any(one.conn.trailing_data[0] for one in front.front.state.connections))
        front.application.go_on.set()
        assert (await asking).count(b"HTTP/1.1 ") == 1
        assert front.application.paths == ["/halves"]


async def test_a_connection_is_kept_for_one_request_after_another() -> None:
    async with opened() as front, httpx.AsyncClient(base_url=front.urls[0]) as client:
        for _ in range(5):
            assert (await client.get("/")).status_code == 200
            assert (await client.post("/echo", content=b"x" * 200_000)).content == b"x" * 200_000
        assert len(front.front.state.connections) == 1


async def test_an_answer_that_leaves_the_body_unread_arrives_and_is_the_last() -> None:
    """Closing at once would reset the connection, and the client would never see why."""
    async with opened() as front:
        reader, writer = await front.connect()
        writer.write(b"POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while sent < 50 * 2**20:
                    writer.write(bytes(65536))
                    await writer.drain()
                    sent += 65536
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert sent < 50 * 2**20  # it is not read to its end
        assert status(answer) in (200, 0)
        small = await front.raw(b"POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n" + bytes(200_000))
        assert status(small) == 200 and b"connection: close" in small


# -- slow clients


async def test_a_head_that_does_not_come_to_its_end_in_time_is_the_end() -> None:
    async with opened(limits={"header_timeout": "300ms"}) as front:
        begun = time.monotonic()
        reader, writer = await front.connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n")

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"a: b\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        with contextlib.suppress(ConnectionError):
            assert problem(await asyncio.wait_for(reader.read(), 5))["code"] == "too_slow"
        assert 0.2 < time.monotonic() - begun < 4
        trickling.cancel()
        writer.close()
        assert await front.raw() == b""  # one that says nothing at all


async def test_the_next_request_of_a_kept_connection_has_a_clock_of_its_own() -> None:
    async with opened(limits={"header_timeout": "300ms", "idle_timeout": "30s"}) as front:
        reader, writer = await front.connect()
        writer.write(GET)
        assert b"ok" in await reader.read(1000)
        await asyncio.sleep(0.5)  # idle for longer than a head may take
        writer.write(GET)
        assert b"ok" in await reader.read(1000)
        writer.write(GET[:10])
        assert problem(await asyncio.wait_for(reader.read(), 5))["code"] == "too_slow"
        writer.close()


async def test_a_connection_that_asks_for_nothing_more_is_closed() -> None:
    async with opened(limits={"idle_timeout": "200ms"}) as front:
        assert (await front.raw(GET, within_s=5)).endswith(b"ok")


async def test_a_client_that_does_not_read_is_cut_off_and_costs_little_meanwhile() -> None:
    async with opened(limits={"send_timeout": "400ms"}) as front:
        _, writer = await front.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(5):
            while not front.front.state.connections:
                await asyncio.sleep(0.001)
            while front.front.state.connections:
                await asyncio.sleep(0.01)
        assert front.application.sent_bytes < 16 * 2**20  # what the kernel's buffers hold
        writer.close()


async def test_a_client_that_reads_slowly_but_does_is_not_cut_off() -> None:
    async with opened(limits={"send_timeout": "300ms"}) as front:
        reader, writer = await front.connect()
        writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert await reader.read(2**17)
            await asyncio.sleep(0.005)
        assert front.front.state.connections
        writer.close()


async def test_a_long_answer_may_take_long_as_long_as_it_is_taken() -> None:
    async with opened(limits={"send_timeout": "300ms"}) as front:
        reader, writer = await front.connect(limit=4096)
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 20000000\r\n\r\n")
        writer.write(bytes(20_000_000))
        taken, begun = 0, time.monotonic()
        while piece := await reader.read(2**18):
            taken += len(piece)
            await asyncio.sleep(0.02)
        assert taken > 20_000_000 and time.monotonic() - begun > 0.9
        writer.close()


async def test_an_answer_that_is_not_taken_does_not_hold_a_closed_connection() -> None:
    async with opened(limits={"send_timeout": "300ms", "idle_timeout": "100ms"}) as front:
        _, writer = await front.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n")
        writer.write(bytes(20_000_000))
        await writer.drain()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(10):
            while front.front.state.connections:
                await asyncio.sleep(0.01)
        writer.close()


async def test_a_client_that_leaves_ends_its_request() -> None:
    async with opened() as front:
        _, writer = await front.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        while "/echo" not in front.application.paths:
            await asyncio.sleep(0.001)
        writer.close()
        async with asyncio.timeout(5):
            while front.front.state.tasks:
                await asyncio.sleep(0.001)
        assert front.application.left == ["/echo"]


async def ask_for(seconds: float, front: Opened) -> list[float]:
    """How long each answer took, the slowest last."""
    took = []
    async with httpx.AsyncClient(base_url=front.urls[0]) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            begun = time.monotonic()
            assert (await client.get("/")).status_code == 200
            took.append(time.monotonic() - begun)
            await asyncio.sleep(0.01)
    return sorted(took)


async def test_a_hundred_slow_clients_do_not_keep_a_healthy_one_waiting() -> None:
    """Slowloris: heads, bodies and answers that trickle, for as long as they are let."""
    async with opened(limits={"header_timeout": "2s", "send_timeout": "1s"}) as front:
        alone = await ask_for(1, front)
        clients = [await front.connect() for _ in range(99)]
        stop = asyncio.Event()
        beginnings = (
            b"GET / HTTP/1.1\r\nhost: x\r\n",
            b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n",
            b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n",
        )

        async def trickle(number: int) -> None:
            writer = clients[number][1]
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            with contextlib.suppress(ConnectionError):
                writer.write(beginnings[number % 3])
                while not stop.is_set():
                    await asyncio.sleep(0.1)
                    if number % 3 < 2:
                        writer.write(b"a: b\r\n")

        slow = [asyncio.create_task(trickle(number)) for number in range(99)]
        before = psutil.Process().memory_info().rss
        took = await ask_for(3, front)
        stop.set()
        await asyncio.gather(*slow)
        for _, writer in clients:
            writer.close()
        # A machine that is busy with other things is slow without any of them, too.
        assert took[int(len(took) * 0.99)] < max(0.1, 3 * alone[-1]), (took[-5:], alone[-5:])
        assert psutil.Process().memory_info().rss - before < 64 * 2**20


async def test_a_body_in_the_smallest_of_chunks_does_not_keep_the_event_loop() -> None:
    async with opened() as front:
        small = b"1\r\na\r\n" * 60_000
        asking = asyncio.create_task(
            front.raw(b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + small, within_s=2)
        )
        slowest, begun = 0.0, time.monotonic()
        while time.monotonic() - begun < 1.5:
            before = time.thread_time()  # our own work, however busy the machine is
            await asyncio.sleep(0)
            slowest = max(slowest, time.thread_time() - before)
        assert slowest < 0.1
        with contextlib.suppress(TimeoutError):
            await asking


# -- how many


async def test_clients_that_only_connect_push_each_other_out_and_not_one_that_asks() -> None:
    async with opened(limits={"connections": 20, "header_timeout": "60s"}) as front:
        async with httpx.AsyncClient(base_url=front.urls[0]) as client:
            asking = asyncio.create_task(client.get("/wait"))
            await until(lambda: front.application.paths == ["/wait"])
            silent = await fill(front, 200, GET[:9])
            assert (await client.get("/")).status_code == 200
            assert len(front.front.state.connections) <= 12
            front.application.go_on.set()
            assert (await asking).status_code == 200
        for writer in silent:
            writer.close()


async def test_when_all_are_busy_whoever_asks_whether_we_live_finds_a_place() -> None:
    async with opened(limits={"connections": 4}) as front:
        busy = await fill(front, 2, b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")  # half of all are the most of one place
        await until(lambda: front.application.paths.count("/wait") == 2)
        for path, expected in (("/livez", 200), ("/readyz", 200), ("/v1/jobs", 503)) * 5:
            answer = await front.raw(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert status(answer) == expected and b"connection: close" in answer
        assert problem(answer)["code"] == "crowded" and b"retry-after" in answer
        silent = await fill(front, RESERVE * 3, b"GET ")  # in the reserve, too, the silent go first
        assert status(await front.raw(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")) == 200
        front.application.go_on.set()
        await until(lambda: len(front.front.state.connections) <= 2 + RESERVE)
        for writer in busy + silent:
            writer.close()


def test_one_place_never_has_more_than_half() -> None:
    crowd, evicted = Crowd(20, reserve=2), []

    class Guest:
        def __init__(self, place: str) -> None:
            self.ticket = crowd.enter(place)
            if self.ticket is not None:
                self.ticket.guest = self

        def evict(self) -> None:
            evicted.append(self)

    first = [Guest("a") for _ in range(10)]
    assert not evicted
    Guest("a")
    assert evicted == [first[0]]  # the one that was silent for the longest
    assert first[1].ticket is not None
    first[1].ticket.begins()
    Guest("a")
    assert evicted == [first[0], first[2]]
    first[1].ticket.rests()
    others = [Guest(f"place {number}") for number in range(10)]
    assert len(evicted) == 2 and all(one.ticket and not one.ticket.is_reserve for one in others)
    Guest("another")  # all is full now: the fullest place gives
    assert evicted[-1] is first[3]
    assert len(crowd) == 20


def test_a_busy_crowd_lets_newcomers_into_its_reserve_only() -> None:
    crowd = Crowd(4, reserve=2)
    inside = [crowd.enter(place) for place in ("a", "a", "b", "b")]
    for ticket in inside:
        assert ticket is not None
        ticket.begins()
    reserve = [crowd.enter("c"), crowd.enter("c")]
    for ticket in reserve:
        assert ticket is not None and ticket.is_reserve
        ticket.begins()
    assert crowd.enter("d") is None
    assert inside[0] is not None
    inside[0].leave()
    inside[0].leave()
    back = crowd.enter("d")
    assert back is not None and not back.is_reserve
    assert len(crowd) == 6


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        (Peer(uid=7), "uid 7"),
        (Peer(address="192.0.2.7"), "192.0.2.7"),
        (Peer(address="::ffff:192.0.2.7"), "192.0.2.7"),
        (Peer(address="2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64"),
        (Peer(address="fe80::1%eth0"), "fe80::/64"),
        (Peer(address="::1"), "::1"),
        (Peer(address="no address"), "unknown"),
        (Peer(), "unknown"),
    ],
)
def test_where_somebody_sits(peer: Peer, place: str) -> None:
    assert place_of(peer) == place


# -- Unix sockets


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


# -- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


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


async def test_tls_is_for_tcp_and_a_unix_socket_beside_it_stays_plain(
    authority: trustme.CA, tmp_path: Path, folder: Path
) -> None:
    tls = server_files(authority, tmp_path / "tls")
    async with opened(f"unix://{folder}/s", "tcp://127.0.0.1:0", tls=tls) as front:
        assert front.urls[0] == f"unix://{folder}/s" and front.urls[1].startswith("https://127.0.0.1:")
        async with httpx.AsyncClient(base_url=front.urls[1], verify=trusting(authority)) as client:
            assert (await client.get("/")).status_code == 200
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=f"{folder}/s"), base_url="http://localhost"
        ) as client:
            assert (await client.get("/")).status_code == 200
        assert await front.raw(GET) == b""  # plain words to TLS
        assert front.application.peers[0].address == "127.0.0.1"
        assert front.application.peers[1].uid == os.geteuid()


async def test_versions_of_tls_before_1_2_are_refused(authority: trustme.CA, tmp_path: Path) -> None:
    async with opened(tls=server_files(authority, tmp_path / "tls")) as front:
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(authority)
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = context.maximum_version = version
            asking = front.raw(
                b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", ssl=context, server_hostname="localhost"
            )
            if version >= ssl.TLSVersion.TLSv1_2:
                assert status(await asking) == 200
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await asking


async def test_a_client_certificate_is_known_by_its_common_name_when_our_authority_signed_it(
    authority: trustme.CA, tmp_path: Path
) -> None:
    tls = server_files(authority, tmp_path / "tls")
    clients = trustme.CA()
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    async with opened(tls=tls | {"client_ca": str(tmp_path / "clients.pem")}) as front:

        async def ask(made: trustme.LeafCert | None) -> bytes:
            context = trusting(authority)
            if made is not None:
                made.configure_cert(context)
            return await front.raw(
                b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", ssl=context, server_hostname="localhost"
            )

        assert status(await ask(clients.issue_cert("argo.internal", common_name="argo"))) == 200
        assert front.application.peers[-1] == Peer(certificate=("argo",), address="127.0.0.1")
        assert status(await ask(None)) == 200
        assert front.application.peers[-1] == Peer(address="127.0.0.1")
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert status(await ask(trustme.CA().issue_cert("argo.internal", common_name="argo"))) == 0
        assert len(front.application.peers) == 2


async def test_certificates_are_exchanged_without_a_restart_and_broken_ones_change_nothing(
    authority: trustme.CA, tmp_path: Path
) -> None:
    told: list[str] = []
    tls = server_files(authority, tmp_path / "tls")
    async with opened(tls=tls, told=told) as front:

        async def serial() -> str:
            _, writer = await front.connect(ssl=trusting(authority), server_hostname="localhost")
            found = writer.get_extra_info("peercert")["serialNumber"]
            writer.close()
            return str(found)

        reader, writer = await front.connect(ssl=trusting(authority), server_hostname="localhost")
        first = await serial()
        Path(tls["certificate"]).write_text("nonsense")
        await until(lambda: front.front.trouble is not None)
        assert len(told) == 1 and await serial() == first
        server_files(authority, tmp_path / "tls")
        await until(lambda: front.front.trouble is None)
        assert len(told) == 2 and await serial() != first
        server_files(authority, tmp_path / "tls")
        second = await serial()
        front.front.reload()  # SIGHUP
        assert await serial() not in (first, second)
        writer.write(GET)  # a connection of before is not disturbed
        assert b"ok" in await reader.read(1000)
        writer.close()


@pytest.mark.parametrize("broken", ["certificate", "key", "client_ca", "encrypted"])
def test_tls_files_that_cannot_be_used_are_told_before_anything_is_opened(
    authority: trustme.CA, tmp_path: Path, broken: str
) -> None:
    tls = server_files(authority, tmp_path / "tls") | {"client_ca": str(tmp_path / "ca.pem")}
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    if broken == "encrypted":
        key = serialization.load_pem_private_key(Path(tls["key"]).read_bytes(), None)
        sealed = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pass phrase"),
        )
        Path(tls["key"] + ".e").write_bytes(sealed)
        tls["key"] += ".e"
    else:
        tls[broken] = str(tmp_path / "none.pem")
    front = Front(
        Application(), Config.model_validate({"listen": ["tcp://127.0.0.1:0"], "connections": {"main": {}}, "tls": tls})
    )
    with pytest.raises(UsageError, match="TLS file"):
        front.open()


async def test_a_client_that_never_ends_its_handshake_has_no_more_time_than_for_a_head(
    authority: trustme.CA, tmp_path: Path
) -> None:
    tls = server_files(authority, tmp_path / "tls")
    async with opened(tls=tls, limits={"header_timeout": "300ms", "connections": 4}) as front:
        silent = [await front.connect() for _ in range(30)]
        assert len(front.front._crowd) <= 4 + RESERVE  # a handshake takes a place as well
        async with httpx.AsyncClient(base_url=front.urls[0], verify=trusting(authority)) as client:
            assert (await client.get("/livez")).status_code == 200
        async with asyncio.timeout(5):
            for reader, writer in silent:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
        await until(lambda: len(front.front._crowd) == 0)


# -- the event loop of the command


def test_all_of_it_holds_in_the_event_loop_of_the_command(authority: trustme.CA, tmp_path: Path, folder: Path) -> None:
    """uvloop has transports of its own."""
    limits = {"header_timeout": "300ms", "send_timeout": "300ms", "idle_timeout": "300ms", "connections": 8}
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
