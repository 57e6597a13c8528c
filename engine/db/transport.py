"""A transport on which writing after the end is harmless, on every event loop.

When a connection ends in the middle of COPY IN, asyncpg still writes to it, and finds out why it ended only afterwards.
asyncio ignores such a write; uvloop raises, and the server's last words ("terminating connection due to administrator
command": the difference between a job that pauses and one that fights an administrator) are lost in an orphaned future.
asyncpg offers no hook for a transport, so it is handed a loop that makes tolerant ones, and is a loop in all else.

An attempt to connect that is cut short after the socket was opened, by a time limit or by a cancelled task, leaves a
protocol behind that is told of the socket's end and asyncpg that no longer listens: its word is taken from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


class TolerantTransport:
    """Drops what is written once the connection is closed; everything else is the transport's own."""

    def __init__(self, transport: Any) -> None:
        self.inner = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, data: Any) -> None:
        """Write, unless the connection is closed."""
        if not self.inner.is_closing():
            self.inner.write(data)

    def writelines(self, data: Any) -> None:
        """Write all, unless the connection is closed."""
        if not self.inner.is_closing():
            self.inner.writelines(data)


class TolerantLoop:
    """The running loop, except that connections opened through it have tolerant transports."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, factory: Callable[[], Any], *args: Any, **options: Any) -> tuple[Any, Any]:
        """As the loop's own."""
        return await _open(self._loop.create_connection, factory, *args, **options)

    async def create_unix_connection(self, factory: Callable[[], Any], *args: Any, **options: Any) -> tuple[Any, Any]:
        """As the loop's own."""
        return await _open(self._loop.create_unix_connection, factory, *args, **options)

    async def start_tls(self, transport: TolerantTransport, *args: Any, **options: Any) -> TolerantTransport | None:
        """As the loop's own."""
        upgraded = await self._loop.start_tls(transport.inner, *args, **options)
        return None if upgraded is None else TolerantTransport(upgraded)


class _Introduction(asyncio.Protocol):
    """Stands in for a protocol just long enough to hand it the tolerant transport: no cost afterwards."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol

    def connection_made(self, transport: Any) -> None:
        """Step aside."""
        transport.set_protocol(self.protocol)
        self.protocol.connection_made(TolerantTransport(transport))


async def _open(
    create: Callable[..., Awaitable[tuple[Any, Any]]], factory: Callable[[], Any], *args: Any, **options: Any
) -> tuple[Any, Any]:
    made = []

    def introduce() -> _Introduction:
        made.append(factory())
        return _Introduction(made[-1])

    try:
        transport, introduction = await create(introduce, *args, **options)
    except BaseException:
        for protocol in made:
            if isinstance(answer := getattr(protocol, "on_data", None), asyncio.Future):
                answer.cancel()
        raise
    return TolerantTransport(transport), introduction.protocol
