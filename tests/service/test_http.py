"""Requests that the front refuses or answers by itself: bad HTTP, and one request behind another."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import httpx
import pytest

from engine.service.exchange import MAX_HEADERS
from tests.support.front import GET, opened, problem, status
from tests.support.waiting import until


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
            async with asyncio.timeout(60):
                while sent < 50 * 2**20:
                    writer.write(bytes(65536))
                    await writer.drain()
                    sent += 65536
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        assert sent < 50 * 2**20  # it is not read to its end
        assert status(answer) in (200, 0)
        small = await front.raw(b"POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n" + bytes(200_000))
        assert status(small) == 200 and b"connection: close" in small
