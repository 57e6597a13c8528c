"""An HTTP server that answers as a test wants, or not at all."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from types import TracebackType
from typing import Self


class Answers:
    """Listens on 127.0.0.1 and answers every GET with ``status`` and ``body``; ``silent``: never."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.silent = False
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    def sample(self, value: str) -> None:
        """Answer as Prometheus does, with one sample."""
        data = {"resultType": "vector", "result": [{"metric": {}, "value": [0, value]}]}
        self.status, self.body = 200, json.dumps({"status": "success", "data": data}).encode()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                if self.silent:
                    await reader.read()
                head = f"HTTP/1.1 {self.status} As told\r\ncontent-length: {len(self.body)}\r\n\r\n"
                writer.write(head.encode() + self.body)
                await writer.drain()
        writer.close()
        self._tasks.discard(task)
