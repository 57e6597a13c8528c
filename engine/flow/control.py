"""The control sessions of a process: one to each database of the job, apart from everything that moves rows.

State, leases, history and barriers travel here, so that a renewal never waits behind a chunk.  A session that is lost
is replaced; whoever asks in between gets the error and asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from engine.db import Connection
from engine.db.backends import terminate_backends
from engine.db.failures import Action, classify
from engine.errors import BackfillError, BadRow, Stopped
from engine.events import Emit, Warned
from engine.flow.endpoints import Endpoints
from engine.flow.shared import Sides
from engine.ledger.store import Ledger
from engine.model import Backend, Side

DATABASE_IS_AWAY: Final = (Action.RECONNECT, Action.WAIT, Action.PAUSE)
TRY_AGAIN: Final = (Action.RETRY, Action.SPLIT)


class Control:
    """Sessions called ``control``, and the ledger over the target's."""

    def __init__(self, endpoints: Endpoints, job: str, emit: Emit, on_news: Callable[[], None]) -> None:
        self._endpoints = endpoints
        self._job = job
        self._emit = emit
        self._on_news = on_news
        self._turn = asyncio.Lock()
        self._ledger: Ledger | None = None
        self.sides: Sides = {}

    @property
    def ledger(self) -> Ledger:
        """The ledger, over the present control session."""
        assert self._ledger is not None, "open() first"
        return self._ledger

    async def open(self) -> None:
        """Connect to both sides (one, where both are the same database) and listen for news."""
        self.sides[Side.TARGET] = await self._endpoints.target.connect("control")
        if not self._endpoints.is_one:
            self.sides[Side.SOURCE] = await self._endpoints.source.connect("control")
        await self._attend()

    async def _attend(self) -> None:
        session = self.sides[Side.TARGET]
        if session.server.capabilities.listen_notify:
            await session.add_listener("backfill", lambda _: self._on_news())
        self._ledger = Ledger(session)  # last: the loops beside the workers use it as soon as it is there

    async def mend(self, error: Exception) -> None:
        """After trouble: new sessions for those that are gone.  What is no trouble of a session passes on."""
        if isinstance(error, TimeoutError):
            self.sides[Side.TARGET].abort()  # half open, or stuck: either way of no more use
        else:
            action = classify(error).action
            if action in TRY_AGAIN:
                return
            if action not in DATABASE_IS_AWAY:
                raise error
        await self.reconnect()

    async def reconnect(self) -> None:
        """Replace the sessions that have ended; those that cannot be replaced now will be the next time."""
        async with self._turn:
            with suppress(Exception):
                for side, database in (
                    (Side.SOURCE, self._endpoints.source),
                    (Side.TARGET, self._endpoints.target),
                ):
                    if side in self.sides and self.sides[side].is_closed:
                        self.sides[side] = await database.connect("control")
                if self.ledger.connection is not self.sides[Side.TARGET]:
                    await self._attend()

    @asynccontextmanager
    async def data_session(self, side: Side) -> AsyncIterator[Connection]:
        """A session with the rights of the role that moves rows, for a question or two."""
        database = self._endpoints.target if side is Side.TARGET else self._endpoints.source
        session = await database.connect("plan", data=True)
        try:
            yield session
        finally:
            await session.close()

    @asynccontextmanager
    async def data_sides(self) -> AsyncIterator[Sides]:
        """Such a session with each side: one, where both are the same database."""
        async with self.data_session(Side.TARGET) as target:
            if self._endpoints.is_one:
                yield {Side.TARGET: target}
                return
            async with self.data_session(Side.SOURCE) as source:
                yield {Side.SOURCE: source, Side.TARGET: target}

    async def end_backends(self, backends: tuple[Backend, ...]) -> None:
        """End server processes that a former holder left behind, with the rights of the role that logged in.

        One that stays is no danger to the data (the fence sees to that), only to the time the next chunk takes.
        """
        for side, database in ((Side.SOURCE, self._endpoints.source), (Side.TARGET, self._endpoints.target)):
            of_side = [b for b in backends if b.side is side]
            if not of_side:
                continue
            session = await database.connect("takeover")
            try:
                for ended in await terminate_backends(session, of_side):
                    if not ended.is_gone:
                        self._emit(
                            Warned(
                                job=self._job,
                                message=f"the former holder's server process {ended.backend.pid} on the {side}"
                                f" {ended.ending}: grant pg_signal_backend, or end it by hand",
                            )
                        )
            finally:
                await session.close()

    async def close(self) -> None:
        """Let go of the sessions."""
        for session in self.sides.values():
            await session.close()


def as_stop(error: Exception) -> BackfillError:
    """The error that a job ends with: the rule that was broken, never the row that broke it.

    Raises ``error`` itself when no server said it: that is a mistake of ours, which must not pass for a bad row.
    """
    if isinstance(error, BackfillError):
        return error
    failure = classify(error)
    if not failure.sqlstate:
        raise error
    kind = Stopped if failure.is_missing_right else BadRow
    return kind(failure.message, hint=failure.hint, sqlstate=failure.sqlstate)
