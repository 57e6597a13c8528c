"""One session with one server: a thin shell round ``asyncpg.Connection`` that cannot hang.

asyncpg waits without a limit in three places that matter here: ``close`` on a dead peer, a COPY IN whose connection is
lost while the socket is full (nothing wakes its flow control), and a statement that was cancelled by a request that got
lost.  So: ``close`` has a deadline, COPY IN watches the connection itself, and after a client-side time-out or a
cancelled COPY the socket is dropped; the server notices within a second and rolls back.

Only text, ``text[]``, integers, floats, booleans and json (as text) should travel as parameters and results: for other
types asyncpg asks the catalogue in additional round trips.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from typing import Any, Final, Literal, cast

import asyncpg

from engine.db.server import Server
from engine.model import Backend, TableName

CLOSE_DEADLINE_S: Final = 2.0
RECOVERY_DEADLINE_S: Final = 2.0  # for a COPY that failed on our side to end on the server's


class ConnectionLost(ConnectionError):
    """The session ended under a running operation.  Whether its transaction committed is for the ledger to say."""


class Connection:
    """A session, opened by ``Database.connect``.  Used by one task at a time.

    Errors of the server surface as asyncpg raises them; ``engine.db.failures.classify`` says what to do about one.
    """

    def __init__(
        self, raw: asyncpg.Connection[asyncpg.Record], *, server: Server, backend: Backend, search_path: str, label: str
    ) -> None:
        self.raw = raw
        self.server = server
        self.backend = backend
        self.label = label  # host:port/database
        self.user_search_path = search_path  # what the role would have without our pinned one: resolves bare names
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._aborted = False
        self._transport: asyncio.Transport = raw._transport  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
        self._flow = cast(asyncio.BaseProtocol, self._transport.get_protocol())
        raw.add_termination_listener(self._on_termination)

    # -- statements --------------------------------------------------------------------------------------------------

    async def fetch(self, sql: str, *args: object, timeout_s: float | None = None) -> list[asyncpg.Record]:
        """All rows of one statement, prepared and cached by its text."""
        try:
            return await self.raw.fetch(sql, *args, timeout=timeout_s)
        except TimeoutError:
            self.abort()
            raise

    async def fetchrow(self, sql: str, *args: object, timeout_s: float | None = None) -> asyncpg.Record | None:
        """The first row of one statement, or None."""
        try:
            return await self.raw.fetchrow(sql, *args, timeout=timeout_s)
        except TimeoutError:
            self.abort()
            raise

    async def fetchval(self, sql: str, *args: object, timeout_s: float | None = None) -> Any:
        """The first column of the first row of one statement, or None."""
        try:
            return await self.raw.fetchval(sql, *args, timeout=timeout_s)
        except TimeoutError:
            self.abort()
            raise

    async def execute(self, sql: str, *, timeout_s: float | None = None) -> str:
        """Run ``sql`` by the simple protocol: several statements are one transaction unless they say otherwise.

        Gives the command tag of the last statement.
        """
        try:
            return await self.raw.execute(sql, timeout=timeout_s)
        except TimeoutError:
            self.abort()
            raise

    @property
    def encoding(self) -> str:
        """The database's, by the server's name for it; what is not in it, it refuses."""
        return str(self.raw.get_settings().server_encoding)

    async def roll_back(self) -> None:
        """ROLLBACK, or if that fails the end of the session, which comes to the same.  Never raises but when cancelled:
        the error that led here is the one that counts.
        """
        if self.is_closed:
            return
        try:
            await asyncio.shield(self.execute("ROLLBACK", timeout_s=RECOVERY_DEADLINE_S))
        except Exception:  # noqa: BLE001 - whatever it was, the session is over
            self.abort()

    async def describe(self, sql: str) -> list[tuple[str, int, str]]:
        """Parse ``sql`` and give its result columns as (name, type OID, type name) without running it.

        The type name is ``format_type`` without a modifier: safe to cast to.
        """
        statement = await self.raw.prepare(sql)
        attributes = statement.get_attributes()
        oids = [attribute.type.oid for attribute in attributes]
        names = await self.raw.fetchval(
            "SELECT array_agg(format_type(oid::oid, -1) ORDER BY place) FROM unnest($1::int8[]) WITH ORDINALITY"
            " AS types(oid, place)",
            oids,
        )
        return [(attribute.name, oid, name) for attribute, oid, name in zip(attributes, oids, names or [], strict=True)]

    async def explain(self, sql: str, *args: object) -> dict[str, Any]:
        """The plan of one statement for these very arguments, as the top node of ``EXPLAIN (FORMAT JSON)``."""
        answer = await self.fetchval(f"EXPLAIN (FORMAT JSON) {sql}", *args)
        plan: dict[str, Any] = json.loads(answer)[0]["Plan"]
        return plan

    # -- COPY --------------------------------------------------------------------------------------------------------

    async def copy_out(self, query: str, sink: Callable[[bytes], Awaitable[None]], *, binary: bool = True) -> int:
        """Stream ``COPY (query) TO STDOUT`` into ``sink``, in pieces of any size; gives the number of rows.

        The next piece is read when the sink is done with the last: backpressure reaches the server.  When the sink
        raises, the statement is cancelled and its error passes through; the session is usable afterwards, or closed.
        """

        async def pass_on(piece: bytes) -> None:  # asyncpg would take a sink with a ``write`` attribute for a file
            await sink(piece)

        try:
            tag = await self.raw.copy_from_query(query, output=pass_on, format=_format(binary=binary))
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception:
            await self._recover()
            raise
        return _rows(tag)

    async def copy_in(
        self,
        table: TableName | None,
        columns: Sequence[str],
        source: AsyncIterable[bytes],
        *,
        binary: bool = True,
        temp_name: str | None = None,
    ) -> int:
        """Stream ``source`` into ``COPY table (columns) FROM STDIN``; gives the number of rows.

        ``temp_name`` names a temporary table of this session instead of ``table``.  When the source raises, the server
        is told so (CopyFail: no row stays) and the error passes through; the session is usable afterwards, or closed.
        An error of the server shows itself at the end of the source.  Raises ``ConnectionLost`` as soon as the session
        ends.
        """
        if (table is None) == (temp_name is None):
            raise ValueError("exactly one of table and temp_name")
        schema, name = (table.schema, table.name) if table is not None else ("pg_temp", str(temp_name))
        guarded = _Guarded(source, self._lost)
        copying = asyncio.ensure_future(
            self.raw.copy_to_table(
                name, schema_name=schema, columns=list(columns), source=guarded, format=_format(binary=binary)
            )
        )
        try:
            await asyncio.wait((copying, self._lost), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.abort()
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            raise
        if not copying.done():
            if guarded.is_waiting:
                copying.cancel()
            else:
                self._flow.resume_writing()
            await asyncio.wait((copying,), timeout=RECOVERY_DEADLINE_S)
            copying.cancel()
        if self._lost.done():
            reason = (await asyncio.gather(copying, return_exceptions=True))[0]
            if isinstance(reason, int | str):
                return _rows(reason)
            raise ConnectionLost(f"the session with {self.label} ended in the middle of COPY") from reason
        try:
            return _rows(copying.result())
        except Exception:
            await self._recover()
            raise

    async def _recover(self) -> None:
        """After a COPY failed: wait until the server has acknowledged, or give the session up."""
        if self.is_closed:
            return
        try:
            await self.raw.execute("SELECT 1", timeout=RECOVERY_DEADLINE_S)
        except asyncpg.InFailedSQLTransactionError:
            pass  # the server is with us again; the transaction is the caller's to roll back
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception:  # noqa: BLE001 - the error that matters is the one that brought us here
            self.abort()

    # -- the session itself ------------------------------------------------------------------------------------------

    async def add_listener(self, channel: str, callback: Callable[[str], None]) -> None:
        """LISTEN on ``channel`` and call ``callback`` with the payload of each notification."""

        def forward(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            callback(str(payload))

        await self.raw.add_listener(channel, forward)

    @property
    def is_closed(self) -> bool:
        """True when the session has ended, whoever ended it."""
        return self._aborted or self.raw.is_closed()

    async def wait_closed(self) -> None:
        """Return when the session has ended, whoever ended it."""
        await asyncio.shield(self._lost)

    def abort(self) -> None:
        """Drop the socket now, without waiting for anything; the server rolls back when it notices.

        Not by asyncpg's ``terminate``, which pulls the transport from under a running COPY.
        """
        self._aborted = True
        self._transport.abort()

    async def close(self) -> None:
        """Say goodbye, for at most ``CLOSE_DEADLINE_S``; then drop the socket.  Never raises but when cancelled."""
        if self.is_closed:
            return
        try:
            await self.raw.close(timeout=CLOSE_DEADLINE_S)
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception:  # noqa: BLE001 - whatever it was, the session is over
            self.abort()

    def _on_termination(self, _connection: object) -> None:
        if not self._lost.done():
            self._lost.set_result(None)


class _Guarded:
    """The source of a COPY IN, which ends by itself when the session is lost."""

    def __init__(self, source: AsyncIterable[bytes], lost: asyncio.Future[None]) -> None:
        self._iterator = aiter(source)
        self._lost = lost
        self.is_waiting = False

    def __aiter__(self) -> _Guarded:
        return self

    async def __anext__(self) -> bytes:
        if self._lost.done():
            raise StopAsyncIteration
        self.is_waiting = True
        try:
            return await anext(self._iterator)
        except asyncio.CancelledError:
            if self._lost.done():
                raise StopAsyncIteration from None
            raise
        finally:
            self.is_waiting = False


def _format(*, binary: bool) -> Literal["binary", "text"]:
    return "binary" if binary else "text"


def _rows(tag: str) -> int:
    """The count in a command tag such as ``COPY 10``."""
    return int(tag.rpartition(" ")[2])
