"""One connection that probes ask through: opened when first used, dropped when an answer is late, opened again.

Probes that share a session wait for each other, so what may hang for other reasons than its neighbours has a session
of its own (``watch.build`` says who shares).  A connection that cannot be opened is tried again with growing pauses;
in between every question fails at once, with the reason of the last attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from engine.clock import Clock
from engine.db import Action, Connection, Database, classify
from engine.watch.probe import ProbeFailed, explain

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 5.0
"""Between two attempts to connect.  Short enough that a database that came back is soon watched again."""

SERVER_MARGIN_S: Final = 1.0
"""The server's own time-out comes this much after ours, so that a statement we gave up ends there as well."""

_OF_NO_MORE_USE: Final = (Action.RECONNECT, Action.PAUSE)
_T = TypeVar("_T")


class Session:
    """A connection to ``database`` called ``backfill/<job>/<purpose>``, with ``deadline_s`` for every answer.

    ``data``: under the job's role (only to read: those sessions do not wait for the disk at commit).  ``greet`` is
    called with each new connection before anything else is asked; what it raises is a failure to connect.
    """

    def __init__(
        self,
        database: Database,
        purpose: str,
        *,
        clock: Clock,
        deadline_s: float,
        data: bool = False,
        greet: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        self.deadline_s = deadline_s
        self._database = database
        self._purpose = purpose
        self._clock = clock
        self._data = data
        self._greet = greet
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._pause_s = FIRST_PAUSE_S
        self._not_before: float | None = None
        self._refusal = ""

    async def ask(self, sql: str, *args: object) -> list[Any]:
        """All rows of one statement.  Raises ``ProbeFailed``, or what the driver raised."""

        async def question(connection: Connection) -> list[Any]:
            return await connection.fetch(sql, *args, timeout_s=self.deadline_s)

        return await self.use(question)

    async def use(self, question: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Several statements in a row, undisturbed by neighbours; each carries ``deadline_s`` as its time-out."""
        async with self._turn:
            connection = await self._connected()
            try:
                return await question(connection)
            except TimeoutError:
                raise ProbeFailed(f"timed out after {self.deadline_s:g}s") from None
            except ProbeFailed:
                raise
            except Exception as error:
                if not connection.is_closed and classify(error).action in _OF_NO_MORE_USE:
                    connection.abort()
                raise
            except asyncio.CancelledError:
                connection.abort()
                raise

    async def close(self) -> None:
        """End the connection.  Doing it twice does no harm."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.is_closed:
            return self._connection
        self._connection = None
        if self._not_before is not None and self._clock.now() < self._not_before:
            raise ProbeFailed(self._refusal)
        try:
            connection = await self._open()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is why nobody can be asked
            self._refusal = explain(error)
            self._not_before = self._clock.now() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            raise ProbeFailed(self._refusal) from None
        self._not_before, self._pause_s = None, FIRST_PAUSE_S
        self._connection = connection
        return connection

    async def _open(self) -> Connection:
        timeout_s = self.deadline_s + SERVER_MARGIN_S
        connection = await self._database.connect(self._purpose, data=self._data, statement_timeout_s=timeout_s)
        if self._greet is not None:
            try:
                await self._greet(connection)
            except BaseException:
                connection.abort()
                raise
        return connection
