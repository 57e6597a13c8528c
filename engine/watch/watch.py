"""The watch of one job: everything that ``flow`` asks of this room, in one object."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from engine.clock import Clock
from engine.pace.law import Reading, SignalPolicy
from engine.watch.build import Built, Watched, build
from engine.watch.watcher import Watcher

WAL_LOOK_S: Final = 1.0
"""How long anybody waits for a look at the WAL that is not one of the regular ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What was seen since the last look."""

    readings: tuple[Reading, ...] = ()
    alone: bool = False  # nobody else uses the job's servers
    own_wal_bytes_per_row: float | None = None  # what one row of ours costs in WAL
    own_wal_is_exact: bool = False  # else estimated: PostgreSQL before 18
    own_wal_bytes: float | None = None  # written by this job since the watch was opened


class Watch:
    """Probes at work, from ``open`` to ``close``."""

    def __init__(self, built: Built, watcher: Watcher) -> None:
        self.policies: tuple[SignalPolicy, ...] = built.policies
        self._names = frozenset(policy.name for policy in built.policies)
        self._wal = built.wal
        self._lag = built.lag
        self._watcher = watcher

    @classmethod
    async def open(
        cls,
        watched: Watched,
        *,
        clock: Clock,
        rng: random.Random,
        on_cancel: Callable[[str], None],
        rows_committed: Callable[[], float] = lambda: 0.0,
        somebody_was_there: bool = False,
    ) -> Self:
        """Begin to watch; returns when it is known whether anybody else is there, or nobody can say.

        ``on_cancel`` is told, in words, that a chunk was cancelled because somebody waited for it.  ``rows_committed``:
        rows that the job has committed so far, which before PostgreSQL 18 its share of the WAL is estimated from.
        ``somebody_was_there``: as a watch that this one replaces saw a moment ago.
        """
        built = build(watched, clock=clock, rng=rng, on_cancel=on_cancel, rows_committed=rows_committed)
        watcher = Watcher(built.probes, clock=clock, rng=rng, presences=built.presences)
        if somebody_was_there:
            for presence in built.presences:
                presence.remember_somebody()
        watch = cls(built, watcher)
        try:
            # What is written before the first look at the WAL is never known.
            await asyncio.gather(watcher.start(), watch.look_at_wal())
        except BaseException:
            await watcher.close()
            raise
        return watch

    @property
    def alone(self) -> bool:
        """True when nobody else uses the job's servers."""
        return self._watcher.alone

    @property
    def standbys(self) -> frozenset[str]:
        """Names of all standbys that this watch or an earlier one saw, for ``Watched.standbys`` of the next; empty when
        the spec has no signal that looks at them.
        """
        return self._lag.standbys if self._lag is not None else frozenset()

    async def take(self) -> Sight:
        """What was seen since the last call."""
        return self._sight(tuple(reading for reading in self._watcher.take() if reading.signal in self._names))

    def _sight(self, readings: tuple[Reading, ...] = ()) -> Sight:
        own = self._wal.own
        return Sight(
            readings=readings,
            alone=self._watcher.alone,
            own_wal_bytes_per_row=own.bytes_per_row if own is not None else None,
            own_wal_is_exact=own is not None and own.is_exact,
            own_wal_bytes=self._wal.own_bytes,
        )

    async def look_at_wal(self) -> Sight:
        """Look once more at who has written how much of it: before somebody goes, who takes the knowledge along.
        Returns soon, without readings, and never raises for what databases do.
        """
        with suppress(Exception):
            async with asyncio.timeout(WAL_LOOK_S):
                await self._wal.look()
        return self._sight()

    def set_quiet(self, quiet: bool) -> None:
        """Ask less often, while nobody else is there."""
        self._watcher.set_quiet(quiet)

    async def close(self) -> None:
        """Stop asking and end every session."""
        await self._watcher.close()
