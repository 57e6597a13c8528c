"""What movers have in common that look at both sides: one session with each, or one for both."""

from __future__ import annotations

from engine.clock import Clock
from engine.db import Connection, Database
from engine.flow.movers.server_side import open_for_chunks
from engine.model import Backend, Side


class BothSides:
    """Sessions of one worker.  ``source_db`` is None when both tables are in one database."""

    aside: tuple[tuple[str, int], ...] = ()

    def __init__(
        self, source_db: Database | None, target_db: Database, purpose: str, job_id: int, clock: Clock
    ) -> None:
        self._source_db = source_db
        self._target_db = target_db
        self._purpose = purpose
        self._job_id = job_id
        self._clock = clock
        self._there: Connection | None = None  # the source, when it is another database
        self._here: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The connection to the target, which holds the ledger too."""
        assert self._here is not None, "open() first"
        return self._here

    def session(self, side: Side) -> Connection:
        """The connection to that side's server."""
        return self.connection if side is Side.TARGET or self._there is None else self._there

    @property
    def backends(self) -> tuple[Backend, ...]:
        """One process on each side that there is."""
        there = () if self._there is None else (self._there.backend,)
        return (*there, self.connection.backend)

    async def open(self) -> None:
        """Connect, and force the lookups onto the indexes."""
        await self._hang_up()
        self._here = await open_for_chunks(self._target_db, self._purpose)
        if self._source_db is not None:
            self._there = await open_for_chunks(self._source_db, self._purpose)

    def adopt(self, there: Connection, here: Connection) -> None:
        """Use these sessions, which stay the caller's to close."""
        self._there, self._here = there, here

    def abort(self) -> None:
        """Drop the sockets."""
        for connection in (self._there, self._here):
            if connection is not None:
                connection.abort()

    async def close(self) -> str:
        """Close the connections."""
        await self._hang_up()
        return ""

    async def _hang_up(self) -> None:
        there, self._there = self._there, None
        here, self._here = self._here, None
        for connection in (there, here):
            if connection is not None:
                await connection.close()
