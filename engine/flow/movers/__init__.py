"""The movers: how one chunk gets from here to there.

A mover is given a span and a bound that is fixed already, and does one thing: in **one transaction** it writes the rows
of ``(cursor, to]`` and advances the cursor behind the fence.  It neither retries nor waits nor decides how large a
chunk is; whatever goes wrong is raised, with nothing written.  A mover asks capabilities and shapes, never a server's
name.
"""

from __future__ import annotations

from typing import Protocol

from engine.db import Connection
from engine.flow.bounds import Bound
from engine.model import Backend, Observation, Side, Span


class Unfinished(Exception):
    """A mover that waits has been asked to stop, with nothing written."""


class Mover(Protocol):
    """What a worker needs of a mover."""

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The server processes that work for us: a successor ends exactly these."""
        ...

    @property
    def connection(self) -> Connection:
        """The connection to the target database, where the ledger is."""
        ...

    @property
    def aside(self) -> tuple[tuple[str, int], ...]:
        """What the last transaction that was sent its COMMIT has set aside beside its rows: SQLSTATE, how many.  For
        one whose answer was lost; with an answer it stands in the observation.
        """
        ...

    def session(self, side: Side) -> Connection:
        """The connection to that side's server."""
        ...

    async def open(self) -> None:
        """Connect (again): after this, nothing of a former connection is used any more."""
        ...

    async def move(self, span: Span, bound: Bound) -> Observation:
        """Move one chunk and return what it cost.  Raises with nothing written."""
        ...

    def abort(self) -> None:
        """Drop the connections now: the lease cannot be trusted any longer."""
        ...

    async def close(self) -> str:
        """Let go of the connections politely.  What went wrong after all rows were in, for people; usually nothing."""
        ...
