"""One row by itself through the job's transform: what ``quarantine retry`` does with it."""

from __future__ import annotations

from dataclasses import replace

from engine.clock import Clock
from engine.db import Connection
from engine.flow.bounds import Bound
from engine.flow.movers.filled import Filled, FillMover, filling_of
from engine.flow.movers.transformed import Aside, TransformedCopyMover, Transforming, passage_of
from engine.flow.prepare import Prepared
from engine.model import KeyValue, Mode
from engine.sql.statements import SourceShape
from engine.sql.transformed import passage_in_place


class RowRejected(Exception):
    """The transform cannot do the row now either.  ``reason`` holds no values."""

    def __init__(self, reason: str, sqlstate: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sqlstate = sqlstate


class Alone:
    """One runner, and rows that pass it one by one, each in a transaction of the caller's on ``here``."""

    def __init__(self, prepared: Prepared, there: Connection, here: Connection, clock: Clock) -> None:
        assert prepared.transform is not None
        self._prepared = prepared
        self._sessions = (there, here)
        self._clock = clock
        in_place = prepared.mode is Mode.UPDATE
        through = passage_in_place(filling_of(prepared)) if in_place else passage_of(prepared)
        self._transforming = Transforming(prepared.transform, through, most_rejected=1)
        self._transforming.with_keys = True

    async def open(self) -> None:
        """Begin the runner.  Raises ``TransformFailed``."""
        await self._transforming.open()

    async def close(self) -> None:
        """End the runner."""
        await self._transforming.close()

    async def write(self, source: SourceShape, key: KeyValue) -> int:
        """Write the row of ``key``, the only one that ``source`` has; gives how many were written, 0 or 1.

        Raises ``RowRejected``, and what a mover raises.
        """
        alone = replace(self._prepared, source=source)
        bound = Bound(None, key, 1, 1, by_arithmetic=False)
        if self._prepared.mode is Mode.UPDATE:
            filler = FillMover(alone, 0, "", self._clock, most_rejected=1, transforming=self._transforming)
            filler.adopt(*self._sessions)
            filled = Filled(Aside())
            await filler.fill(bound, filled)
            rows, aside = filled.rows, filled.aside
        else:
            mover = TransformedCopyMover(alone, 0, "", self._clock, most_rejected=1, transforming=self._transforming)
            mover.adopt(*self._sessions)
            rows, aside = await mover.write_alone(bound)
        if len(aside):
            raise RowRejected(*aside.first)
        return rows
