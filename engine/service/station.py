"""One connection of the configuration: sessions to its ledger, and whoever works and watches there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from engine.db import Connection, Database
from engine.ledger.store import Ledger
from engine.model import Side
from engine.service.access import Identity
from engine.service.config import ConnectionConfig
from engine.spec import Dsn

SESSIONS: Final = 4
"""Sessions with a ledger for requests, at most: a storm of requests queues here and not in the database."""

WAIT_S: Final = 5.0


class Station:
    """A database that requests may name.  ``async with station.ledger(identity)`` borrows a session."""

    def __init__(self, name: str, config: ConnectionConfig, dsn: Dsn) -> None:
        self.name = name
        self.config = config
        self.dsn = dsn
        self.database = Database(dsn, side=Side.TARGET)
        self._idle: list[Connection] = []
        self._room = asyncio.Semaphore(SESSIONS)

    @asynccontextmanager
    async def ledger(self, by: Identity | None = None) -> AsyncIterator[Ledger]:
        """The ledger, on behalf of ``by``.  Raises ``CannotConnect``, and ``TimeoutError`` when all sessions are taken."""
        async with asyncio.timeout(WAIT_S):
            await self._room.acquire()
        session: Connection | None = None
        try:
            while self._idle and session is None:
                session = self._idle.pop()
                session = None if session.is_closed else session
            session = session or await self.database.connect("daemon")
            yield Ledger(session)
            self._idle.append(session)
            session = None
        finally:
            self._room.release()
            if session is not None:
                session.abort()

    async def close(self) -> None:
        """Let go of all sessions."""
        while self._idle:
            await self._idle.pop().close()
