"""What the workers of one process share while they work on one phase of one job."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from engine.clock import Clock
from engine.db import Connection
from engine.errors import BackfillError
from engine.events import Emit
from engine.model import Backend, Key, Phase, Side, Span, TableName
from engine.pace.bucket import TokenBucket
from engine.plan.keyspace import KeySpace
from engine.spec import ChunkLimits
from engine.sql.statements import TargetShape

LEASE_S: Final = 15.0
"""How long a lease holds without renewal.  Long enough that a slow network or a full collection of garbage does not
lose it, short enough that a killed worker's span waits only seconds."""

RENEWALS_PER_LEASE: Final = 5
TRUST: Final = 0.6
"""Share of the lease for which its holder believes in it after the last renewal it *sent*: it stops itself first."""

SETTLE_S: Final = 1.0
"""Between two looks of a verification at a row, unless the person who verifies says otherwise: longer than an
application needs from its commit on one side to the one on the other."""


Sides = dict[Side, Connection]
"""The sessions to ask: both sides, or only the target's where both are one database."""


def of_side(sides: Sides, side: Side) -> Connection:
    """The session of that side; the only one, where both are one database."""
    return sides.get(side, sides[Side.TARGET])


@dataclass(frozen=True, slots=True)
class Leases:
    """The three times of a lease, in seconds."""

    lease_s: float = LEASE_S

    @property
    def renew_every_s(self) -> float:
        """Between two renewals."""
        return self.lease_s / RENEWALS_PER_LEASE

    @property
    def trust_s(self) -> float:
        """How long after the last renewal sent a worker may begin a chunk."""
        return self.lease_s * TRUST


LIMITED_CHUNK_S: Final = 1.0
"""Under a limit a chunk is no more than what it allows in this time."""

SCARCE_SHARE: Final = 1 / 3
SCARCE_FLOOR_ROWS: Final = 500


class Stop:
    """Asks everybody to come to an end, once, for a reason; drained means: after the chunk in hand."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""

    @property
    def is_set(self) -> bool:
        """True once somebody asked."""
        return self._event.is_set()

    def set(self, reason: str) -> None:
        """Ask; the first reason stays."""
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    async def wait(self) -> None:
        """Return once somebody asked."""
        await self._event.wait()

    async def interrupts(self, task: asyncio.Future[Any]) -> bool:
        """Wait for ``task``; True when somebody asked before it was done, and it is cancelled."""
        waiting = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    async def pause(self, clock: Clock, seconds: float, also: asyncio.Event | None = None) -> bool:
        """Sleep, but not longer than until somebody asks, or until ``also``.  True when somebody asked."""
        waits = [asyncio.ensure_future(clock.sleep(seconds)), asyncio.ensure_future(self._event.wait())]
        if also is not None:
            waits.append(asyncio.ensure_future(also.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in waits:
                waiting.cancel()
        return self._event.is_set()


@dataclass(slots=True)
class Shared:
    """Everything a worker needs that is not its own."""

    job: str
    job_id: int
    phase: Phase
    table: TableName  # whose keys the phase pages through
    key: Key
    space: KeySpace
    bucket: TokenBucket
    limits: ChunkLimits
    leases: Leases
    clock: Clock
    rng: random.Random
    emit: Emit
    target: TargetShape | None  # to be asked ahead about each chunk's range, where that is worth it
    check_schema: Callable[[Sides], Awaitable[None]]  # raises SchemaDrift when a table changed under the job
    end_backends: Callable[[tuple[Backend, ...]], Awaitable[None]]  # of a former holder
    verification_id: int | None = None  # of a phase of a verification: another one's spans are not ours
    max_quarantined: int = 0  # rows of the job that may be set aside
    arbiters: frozenset[str] = frozenset()  # indexes whose violation is the policy's business, not a row's fault
    stop: Stop = field(default_factory=Stop)
    released: asyncio.Event = field(default_factory=asyncio.Event)  # a span was let go of: look for work again
    active: int = 1 << 16  # workers of this process that may be at work: those numbered up to it; the others are parked
    resized: asyncio.Event = field(default_factory=asyncio.Event)  # ``active`` has grown: parked workers look again
    scarce: bool = False  # somebody found nothing to claim: chunks get smaller, so that all end together
    in_flight: dict[int, int] = field(default_factory=dict)  # span -> rows of the chunk that one of ours is moving
    failure: BackfillError | None = None  # what stopped the job, when one of our workers met it
    is_over: bool = False  # a worker has seen that every span of the phase is at its bound

    def rows_wanted(self, span: Span, asked: int) -> int:
        """What the sizer asked for, with two exceptions.  Under a low limit no more than a second of it, or the
        smallest chunk: a limit of 1,000 rows/s means a small chunk every second, not a large one every minute.  And
        when there is nothing left to claim, a part of what the span has left, so that the workers come to their ends
        together.
        """
        rows = asked
        if (rate := self.bucket.rate) is not None:
            rows = min(rows, max(self.limits.min_rows, int(rate * LIMITED_CHUNK_S)))
        if self.scarce:
            share = int(self.space.rows_between(span.cursor, span.hi) * SCARCE_SHARE)
            # Below the floor it is the end, or the estimate is blind to this key: neither wants smaller chunks.
            rows = min(rows, share) if share > SCARCE_FLOOR_ROWS else rows
        return rows

    def allow(self, active: int) -> None:
        """Let so many workers of this process be at work, at least one; the others park after the chunk in hand."""
        active = max(1, active)
        if active > self.active:
            self.resized.set()
        self.active = active

    def end(self) -> None:
        """The phase has nothing left to do: parked workers need not wait any longer."""
        self.is_over = True
        self.resized.set()

    def fail(self, error: BackfillError) -> None:
        """A worker met something that stops the job; the first one counts."""
        if self.failure is None:
            self.failure = error
        self.stop.set(error.message)
