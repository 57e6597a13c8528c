"""One statement of the ledger at a time, over one connection, each with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from engine.db import Connection
from engine.ledger.queries import queries

Rows = list[Any]

DEADLINE_S: Final = 30.0
"""How long a statement on the ledger may take, by our clock: a server that stays silent must not hold a worker."""


class Statements:
    """Runs the statements of ``queries.sql`` by name; safe to share between tasks."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        async with self._turn:
            await self.connection.execute("BEGIN")
            try:
                yield
            except BaseException:
                await self.connection.roll_back()
                raise
            await self.connection.execute("COMMIT")

    async def _row(self, query: str, *args: Any) -> Any:
        async with self._turn:
            return await self.connection.fetchrow(queries()[query], *args, timeout_s=DEADLINE_S)

    async def _rows(self, query: str, *args: Any) -> Rows:
        async with self._turn:
            return await self.connection.fetch(queries()[query], *args, timeout_s=DEADLINE_S)

    async def _value(self, query: str, *args: Any) -> Any:
        async with self._turn:
            return await self.connection.fetchval(queries()[query], *args, timeout_s=DEADLINE_S)
