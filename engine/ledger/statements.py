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
        self._holder: asyncio.Task[Any] | None = None  # whose transaction is open: its statements need no turn

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        """A transaction; within one of the same task, a part of it that can fail for itself."""
        if self._is_ours:
            async with self._part():
                yield
            return
        async with self._turn:
            self._holder = asyncio.current_task()
            try:
                await self.connection.execute("BEGIN")
                try:
                    yield
                except BaseException:
                    await self.connection.roll_back()
                    raise
                await self.connection.execute("COMMIT")
            finally:
                self._holder = None

    @asynccontextmanager
    async def _part(self) -> AsyncIterator[None]:
        await self.connection.execute("SAVEPOINT part")
        try:
            yield
        except Exception:
            if not self.connection.is_closed:
                await self.connection.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
            raise
        await self.connection.execute("RELEASE SAVEPOINT part")

    @property
    def _is_ours(self) -> bool:
        return self._holder is not None and self._holder is asyncio.current_task()

    @asynccontextmanager
    async def _statement(self) -> AsyncIterator[None]:
        if self._is_ours:
            yield
            return
        async with self._turn:
            yield

    async def _row(self, query: str, *args: Any) -> Any:
        async with self._statement():
            return await self.connection.fetchrow(queries()[query], *args, timeout_s=DEADLINE_S)

    async def _rows(self, query: str, *args: Any) -> Rows:
        async with self._statement():
            return await self.connection.fetch(queries()[query], *args, timeout_s=DEADLINE_S)

    async def _value(self, query: str, *args: Any) -> Any:
        async with self._statement():
            return await self.connection.fetchval(queries()[query], *args, timeout_s=DEADLINE_S)
