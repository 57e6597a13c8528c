"""Signals that the user writes as SQL: one row, one column, a number."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Final

from engine.clock import Clock
from engine.db import Connection, Database
from engine.pace.law import SignalPolicy
from engine.watch.latency import make_read_only, reading_only
from engine.watch.probe import Measured, ProbeFailed
from engine.watch.session import Session

LONGEST_DEADLINE_S: Final = 5.0
SHORTEST_DEADLINE_S: Final = 1.0


class SqlProbe:
    """Runs the query in a read-only transaction, under the job's role and with that role's search_path, on a session of
    its own; what the query sets is undone.
    """

    def __init__(self, policy: SignalPolicy, database: Database, query: str, every_s: float, clock: Clock) -> None:
        self.policy = policy
        self.every_s = self.quiet_every_s = every_s
        self.asked_at: float | None = None
        # As a table expression it can be cut after two rows, and changes nothing.  The line ends keep a comment at the
        # query's end from swallowing the rest.
        self._sql = f"SELECT * FROM (\n{query}\n) AS answer LIMIT 2"
        self._session = Session(
            database,
            f"signal {policy.name}",
            clock=clock,
            deadline_s=deadline_for(self.every_s),
            data=True,
            greet=self._prepare,
        )

    async def read(self) -> Measured:
        """In whatever unit the query counts."""
        rows = await self._session.use(self._ask)
        if len(rows) != 1 or len(rows[0]) != 1:
            columns = f"{len(rows[0])} columns" if rows else "no row"
            raise ProbeFailed(f"the query gives {'more than one row' if len(rows) > 1 else columns}, not one number")
        return Measured(as_number(rows[0][0]))

    async def _ask(self, connection: Connection) -> list[Any]:
        timeout_s = self._session.deadline_s
        async with reading_only(connection, timeout_s):
            return await connection.fetch(self._sql, timeout_s=timeout_s)  # fetch: one statement, not several

    async def _prepare(self, connection: Connection) -> None:
        await make_read_only(connection, self._session.deadline_s)

    async def close(self) -> None:
        """End the session."""
        await self._session.close()


def deadline_for(every_s: float) -> float:
    """How long an answer may take that is wanted every so many seconds."""
    return min(max(SHORTEST_DEADLINE_S, every_s), LONGEST_DEADLINE_S)


def as_number(value: Any) -> float:
    """``value`` as a float.  Raises ``ProbeFailed`` for what is no finite number of at least zero."""
    if value is None:
        raise ProbeFailed("the answer is NULL, not a number")
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ProbeFailed("the answer is not a number: add a cast")
    number = float(value)
    if not math.isfinite(number):
        raise ProbeFailed("the answer is not a finite number")
    if number < 0:
        raise ProbeFailed("the answer is negative")
    return number
