"""Clients that take their time: what each may take, and what it costs the others."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
import psutil
import pytest

from tests.support.front import GET, Opened, opened, problem, status
from tests.support.waiting import until


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
            assert problem(await asyncio.wait_for(reader.read(), 20))["code"] == "too_slow"
        assert time.monotonic() - begun > 0.2
        trickling.cancel()
        writer.close()
        assert await front.raw() == b""  # one that says nothing at all


async def test_the_next_request_of_a_kept_connection_has_a_clock_of_its_own() -> None:
    async with opened(limits={"header_timeout": "1s", "idle_timeout": "60s"}) as front:
        reader, writer = await front.connect()
        writer.write(GET)
        assert b"ok" in await reader.read(1000)
        await asyncio.sleep(1.5)  # idle for longer than a head may take
        writer.write(GET)
        assert b"ok" in await reader.read(1000)
        writer.write(GET[:10])
        assert problem(await asyncio.wait_for(reader.read(), 30))["code"] == "too_slow"
        writer.close()


async def test_a_connection_that_asks_for_nothing_more_is_closed() -> None:
    async with opened(limits={"idle_timeout": "200ms"}) as front:
        assert (await front.raw(GET)).endswith(b"ok")


async def test_a_client_that_does_not_read_is_cut_off_and_costs_little_meanwhile() -> None:
    async with opened(limits={"send_timeout": "400ms"}) as front:
        _, writer = await front.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: front.application.sent_bytes > 0)
        await until(lambda: not front.front.state.connections)
        assert front.application.sent_bytes < 16 * 2**20  # what the kernel's buffers hold
        writer.close()


async def test_a_client_that_reads_slowly_but_does_is_not_cut_off() -> None:
    async with opened(limits={"send_timeout": "2s"}) as front:
        reader, writer = await front.connect()
        writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        begun = time.monotonic()
        while time.monotonic() - begun < 5:
            assert await reader.read(2**17)
            await asyncio.sleep(0.005)
        assert front.front.state.connections
        writer.close()


async def test_a_long_answer_may_take_long_as_long_as_it_is_taken() -> None:
    async with opened(limits={"send_timeout": "2s"}) as front:
        reader, writer = await front.connect(limit=4096)
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 20000000\r\n\r\n")
        writer.write(bytes(20_000_000))
        taken, begun = 0, time.monotonic()
        while piece := await reader.read(2**18):
            taken += len(piece)
            await asyncio.sleep(0.06)
        assert taken > 20_000_000 and time.monotonic() - begun > 2.5
        writer.close()


async def test_an_answer_that_is_not_taken_does_not_hold_a_closed_connection() -> None:
    async with opened(limits={"send_timeout": "300ms", "idle_timeout": "100ms"}) as front:
        _, writer = await front.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n")
        writer.write(bytes(20_000_000))
        await writer.drain()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: not front.front.state.connections)
        writer.close()


async def test_a_client_that_leaves_ends_its_request() -> None:
    async with opened() as front:
        _, writer = await front.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        await until(lambda: "/echo" in front.application.paths)
        writer.close()
        await until(lambda: not front.front.state.tasks)
        assert front.application.left == ["/echo"]


async def ask_for(seconds: float, front: Opened) -> list[float]:
    """How long each answer took, the slowest last."""
    took = []
    async with httpx.AsyncClient(base_url=front.urls[0]) as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begun = time.monotonic()
            assert (await client.get("/")).status_code == 200
            took.append(time.monotonic() - begun)
            await asyncio.sleep(0.01)
    return sorted(took)


@pytest.mark.alone
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
        assert took[int(len(took) * 0.99)] < max(0.5, 3 * alone[-1]), (took[-5:], alone[-5:])
        assert psutil.Process().memory_info().rss - before < 64 * 2**20


async def test_a_body_in_the_smallest_of_chunks_does_not_keep_the_event_loop() -> None:
    async with opened() as front:
        small = b"1\r\na\r\n" * 60_000
        asking = asyncio.create_task(
            front.raw(
                b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
                + small
                + b"0\r\n\r\n"
            )
        )
        slowest = 0.0
        while not asking.done():
            before = time.thread_time()  # our own work, however busy the machine is
            await asyncio.sleep(0)
            slowest = max(slowest, time.thread_time() - before)
        assert slowest < 0.1
        assert status(await asking) == 200
