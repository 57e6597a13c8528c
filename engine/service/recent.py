"""How fast jobs went lately, for whoever begins to look only now: the last ten minutes of each job that is worked here.

It is made of what the workers have looked at anyway.  No database is asked, and nothing is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from engine.clock import Clock
from engine.ledger.records import JobStatus
from engine.spec.signals import SignalKind, without_side
from engine.wire import shapes

EVERY_S: Final = 3.0
KEPT_S: Final = 600.0

_LATENCIES: Final = (SignalKind.READ_LATENCY, SignalKind.COMMIT_LATENCY)

Seen = Callable[[], Iterable[tuple[str, JobStatus | None]]]
"""Connection and status of each job that is worked now, as its workers saw it last."""


@dataclass(slots=True)
class _Point:
    at: float  # by the clock
    shown: shapes.Moment


class Recent:
    """The past of jobs, by connection and name.  As long as ``KEPT_S``, of as many jobs as were worked in that time."""

    def __init__(self, seen: Seen, clock: Clock) -> None:
        self._seen = seen
        self._clock = clock
        self._points: dict[tuple[str, str], deque[_Point]] = {}
        self._last: dict[tuple[str, str], JobStatus] = {}

    async def run(self) -> None:
        """Keep it, until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(EVERY_S)

    def look(self) -> None:
        """Note how the jobs are, and forget what is too long ago.  A status that was noted already tells nothing."""
        now = self._clock.now()
        statuses = {(name, status.job): status for name, status in self._seen() if status is not None}
        for key, status in statuses.items():
            if self._last.get(key) is not status:
                self._points.setdefault(key, deque()).append(_Point(now, _moment(status)))
        self._last = statuses
        for key, points in list(self._points.items()):
            while points and points[0].at < now - KEPT_S:
                points.popleft()
            if not points:
                del self._points[key]

    def of(self, connection: str, job: str) -> list[shapes.Moment]:
        """The job's last minutes, oldest first; nothing where it was not worked here."""
        return [point.shown for point in self._points.get((connection, job), ())]


def _moment(status: JobStatus) -> shapes.Moment:
    return shapes.Moment(
        at=datetime.now(UTC),
        rows_per_s=round(status.rows_per_s, 1),
        limit_rows_per_s=status.limit_now_rows_per_s,
        held_by=status.held_by,
        signals=[
            shapes.Reading(name=signal["name"], value=signal.get("value"), target=signal.get("target"))
            for signal in status.signals
            if without_side(str(signal.get("name"))) in _LATENCIES
        ],
    )
