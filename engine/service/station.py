"""One connection of the configuration: sessions to its ledger, and whoever works and watches there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from engine.clock import Clock, SystemClock
from engine.db import Connection, Database
from engine.db.failures import Action, classify
from engine.errors import BackfillError, CannotConnect
from engine.ledger.store import Ledger
from engine.model import Side, TableName
from engine.service.access import Identity
from engine.service.config import ConnectionConfig
from engine.service.watcher import Watcher
from engine.spec import Dsn

SESSIONS: Final = 4
"""Sessions with a ledger for requests, at most: a storm of requests queues here and not in the database."""

PREPARING: Final = 2
"""Submissions whose tables are looked at, at most: the others wait for their turn."""

REMOVING: Final = 2
"""Removals that wait for a table, at most: they hold a session meanwhile."""

TURN_S: Final = 10.0
"""How long a request waits for its turn: whoever is before it may look at a database that hangs."""

AWAY: Final = "it cannot be reached: the daemon's log says why"

WAIT_S: Final = 5.0
"""How long a request waits for one of them."""

_AWAY: Final = (Action.RECONNECT, Action.WAIT, Action.PAUSE)


@dataclass(slots=True)
class _Session:
    connection: Connection
    acts_as: str = ""


class Room:
    """Places for so many at a time: ``async with room``.  Raises ``CannotConnect`` when none was free in time."""

    def __init__(self, name: str, places: int) -> None:
        self._name = name
        self._places = asyncio.Semaphore(places)

    async def __aenter__(self) -> None:
        try:
            async with asyncio.timeout(TURN_S):
                await self._places.acquire()
        except TimeoutError:
            raise CannotConnect(f"others wait for {self._name} already", hint="try again in a while") from None

    async def __aexit__(self, *_: object) -> None:
        self._places.release()


class Station:
    """A database that requests may name.  ``async with station.ledger(identity)`` borrows a session.

    ``trouble`` says why the database could not be reached when it was last tried, and ``seen_at`` when it last
    answered, by the clock; nothing is asked of it for either.
    """

    def __init__(self, name: str, config: ConnectionConfig, dsn: Dsn, *, clock: Clock | None = None) -> None:
        self.name = name
        self.config = config
        self.dsn = dsn
        self.database = Database(dsn, side=Side.TARGET)
        self.clock = clock or SystemClock()
        self.trouble: str | None = None
        self.seen_at: float | None = None
        self._idle: list[_Session] = []
        self._room = asyncio.Semaphore(SESSIONS)
        self._host = socket.gethostname()
        self.preparing = Room(name, PREPARING)
        self.removing = Room(name, REMOVING)
        self.watcher = Watcher(self.database, self.clock)

    @property
    def reachable(self) -> bool | None:
        """Whether the database answered when it was last asked; None: nobody has asked yet."""
        if self.trouble is not None:
            return False
        return None if self.seen_at is None else True

    def is_open(self, table: TableName) -> bool:
        """Whether the operator lets jobs touch that table."""
        return any(each.matches(table.schema or "", table.name) for each in self.config.tables)

    @asynccontextmanager
    async def ledger(self, by: Identity | None = None) -> AsyncIterator[Ledger]:
        """The ledger, on behalf of ``by``, whom the history names; None: of the daemon itself.

        Raises ``CannotConnect``, also when all sessions are taken.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                await self._room.acquire()
        except TimeoutError:
            raise CannotConnect(f"all sessions with {self.name} are taken", hint="try again") from None
        session: _Session | None = None
        try:
            session = await self._session()
            await self._act_as(session, self.named(by))
            try:
                yield Ledger(session.connection)
            except Exception as error:
                if _is_unharmed(session.connection, error):
                    self._give_back(session)
                    session = None
                raise
            self._give_back(session)
            session = None
        except Exception as error:
            self._note(error)
            if isinstance(error, CannotConnect) and self.database.label in error.message:
                raise CannotConnect(
                    f"{self.name} cannot be reached", hint="try again", sqlstate=error.sqlstate
                ) from None
            raise
        finally:
            self._room.release()
            if session is not None:
                session.connection.abort()

    def named(self, by: Identity | None) -> str:
        """As the history names whoever acts through this daemon: ``token argo via daemon@host``."""
        daemon = f"daemon@{self._host}"
        return daemon if by is None else f"{by.signature} via {daemon}"

    async def close(self) -> None:
        """Let go of all sessions."""
        await self.watcher.close()
        while self._idle:
            await self._idle.pop().connection.close()

    def answered(self) -> None:
        """Somebody has just had an answer from there."""
        self.seen_at, self.trouble = self.clock.now(), None

    def failed(self, trouble: str) -> None:
        """Somebody has just tried in vain.  Why may name addresses: that is for the log."""
        self.trouble = trouble and AWAY
        self._drop_idle()

    # -- sessions -------------------------------------------------------------------------------------------------

    async def _session(self) -> _Session:
        while self._idle:
            session = self._idle.pop()
            if not session.connection.is_closed:
                return session
        return _Session(await self.database.connect("daemon"))

    async def _act_as(self, session: _Session, who: str) -> None:
        if session.acts_as != who:
            await Ledger(session.connection).act_as(who)
            session.acts_as = who
        self.answered()

    def _give_back(self, session: _Session) -> None:
        if not session.connection.is_closed:
            self._idle.append(session)

    def _note(self, error: Exception) -> None:
        if isinstance(error, CannotConnect):
            self.failed(error.message)
        elif not isinstance(error, BackfillError):
            failure = classify(error)
            if failure.lost or failure.action in _AWAY:
                self.failed(failure.message)

    def _drop_idle(self) -> None:
        """Where one session was lost, the others are not to be believed either."""
        while self._idle:
            self._idle.pop().connection.abort()


def _is_unharmed(connection: Connection, error: Exception) -> bool:
    """True where the session can serve somebody else: the error was a refusal, and no transaction is open."""
    if connection.is_closed or connection.raw.is_in_transaction():
        return False
    return isinstance(error, BackfillError) or bool(classify(error).sqlstate)
