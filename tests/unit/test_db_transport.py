"""What asyncpg is handed in place of a loop: nobody is told of what nobody listens to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest
from asyncpg.connect_utils import TLSUpgradeProto

from engine.db.transport import TolerantLoop


class Halting:
    """The running loop, stopped for ever when a connection has just been opened."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.opened = asyncio.Event()
        self.transport: Any = None

    async def create_connection(self, factory: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        self.transport, _ = await self.loop.create_connection(factory, *args, **options)
        self.opened.set()
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("cut", ["cancelled", "timed out"])
async def test_an_attempt_that_is_cut_short_leaves_no_complaint_behind(cut: str) -> None:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    made: list[TLSUpgradeProto] = []

    def factory() -> TLSUpgradeProto:
        made.append(TLSUpgradeProto(halting.loop, "host", 5432, ssl.create_default_context(), False))
        return made[-1]

    tolerant, halting = TolerantLoop(), Halting()
    tolerant._loop = halting  # type: ignore[assignment]
    address = server.sockets[0].getsockname()
    attempt = asyncio.create_task(tolerant.create_connection(factory, *address, family=socket.AF_INET))
    if cut == "cancelled":
        await halting.opened.wait()
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(attempt, 0.2)
    halting.transport.close()
    await asyncio.sleep(0.05)  # connection_lost is on its way
    assert made[0].on_data.cancelled()
    server.close()
