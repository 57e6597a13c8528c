"""Movers whose rows never leave the server: ``update`` and ``insert``, one statement and one round trip per chunk."""

from __future__ import annotations

from typing import Final

from engine.clock import Clock
from engine.crashpoint import crashpoint
from engine.db import Connection, Database
from engine.db.database import STATEMENT_TIMEOUT_S
from engine.db.failures import Action, classify
from engine.flow.bounds import Bound
from engine.model import Backend, Observation, Side, Span

SETTING_DEADLINE_S: Final = 10.0
"""A session that takes longer to accept a setting is half open."""


CHUNK_DEADLINE_S: Final = STATEMENT_TIMEOUT_S + 15.0
"""How long a chunk may take by our clock: longer than the server's own time-out, for a server that stays silent."""


class StatementMover:
    """Runs a chunk statement of ``engine.sql.statements``.

    ``first`` and ``following`` are the statement for a span's first chunk (no lower bound) and for the others;
    ``direct`` is the cheaper pair for chunks of whose range the target holds nothing.  ``collided``
    is what a chunk falls back to when it meets a unique violation on one of ``arbiters``: somebody wrote one of its
    keys in between.  Any other unique violation is a bad row, not a reason to try again.
    """

    aside: tuple[tuple[str, int], ...] = ()

    def __init__(
        self,
        database: Database,
        purpose: str,
        job_id: int,
        row_bytes: float,
        clock: Clock,
        *,
        first: str,
        following: str,
        direct: tuple[str, str] | None = None,
        collided: tuple[str, str] | None = None,
        arbiters: frozenset[str] = frozenset(),
    ) -> None:
        self._database = database
        self._purpose = purpose
        self._job_id = job_id
        self._row_bytes = row_bytes
        self._clock = clock
        self._statements = (first, following)
        self._direct = direct or (first, following)
        self._collided = collided
        self._arbiters = arbiters
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The open data connection."""
        assert self._connection is not None, "open() first"
        return self._connection

    def session(self, side: Side) -> Connection:
        """The one connection: both sides are this server."""
        del side
        return self.connection

    @property
    def backends(self) -> tuple[Backend, ...]:
        """One process: source and target are the same server."""
        return (self.connection.backend,)

    async def open(self) -> None:
        """Connect, and force the chunk's statement onto the index."""
        await self.close()
        self._connection = await open_for_chunks(self._database, self._purpose)

    async def move(self, span: Span, bound: Bound) -> Observation:
        """One statement: rows, fence and commit."""
        crashpoint("write.before")
        try:
            observation = await self._run(self._statements if bound.occupied else self._direct, span, bound)
        except Exception as error:
            failure = classify(error)
            if (
                self._collided is None
                or failure.action is not Action.CONFLICT
                or failure.constraint not in self._arbiters
            ):
                raise
            observation = await self._run(self._collided, span, bound)
        crashpoint("commit.after")
        return observation

    async def _run(self, statements: tuple[str, str], span: Span, bound: Bound) -> Observation:
        sql = statements[0] if bound.after is None else statements[1]
        began = self._clock.now()
        row = await self.connection.fetchrow(
            sql,
            self._job_id,
            span.id,
            span.epoch,
            None if bound.after is None else list(bound.after),
            list(span.hi),
            list(bound.to),
            bound.scanned,
            self._row_bytes,
            timeout_s=CHUNK_DEADLINE_S,
        )
        assert row is not None
        # The round trip is part of what a chunk costs, and the server's own clock says how much of it was work.
        seconds = self._clock.now() - began
        server_s = seconds if row["server_s"] is None else min(seconds, row["server_s"])
        return Observation(
            rows=row["rows"], scanned=bound.scanned, bytes=round(row["rows"] * self._row_bytes), server_s=server_s
        )

    def abort(self) -> None:
        """Drop the socket."""
        if self._connection is not None:
            self._connection.abort()

    async def close(self) -> str:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
        return ""


async def open_for_chunks(database: Database, purpose: str) -> Connection:
    """A data connection whose chunk statements cannot flip to a scan of the whole table."""
    connection = await database.connect(purpose, data=True)
    await connection.execute("SET enable_seqscan = off", timeout_s=SETTING_DEADLINE_S)
    return connection
