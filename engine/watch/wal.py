"""Whose WAL is it: what the server writes in all, what this job writes of it, and the rest.

From PostgreSQL 18 on the server counts the WAL of each process, and ours is exact.  Before, it is estimated: in each
interval, all WAL divided by the job's rows is no less than what a row costs, and equal to it when nobody else wrote;
so a low percentile of recent intervals is near the truth, and never wanders far below it.

Rates are for pacing.  ``own_bytes`` is for the record: a sum that only grows, of what was counted, or of rows at the
price known when they came (those that come before there is one wait for it), and never more than the server wrote.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from engine.clock import Clock
from engine.db import Connection
from engine.db.activity import is_of_job
from engine.pace.law import SignalPolicy
from engine.watch.probe import Measured, ProbeFailed
from engine.watch.session import Session

EVERY_S: Final = 1.0

WINDOW_S: Final = 10.0
"""Rates are averages over so long: a checkpoint's full page images come in bursts."""

ESTIMATE_S: Final = 60.0
"""How long an interval counts in the estimate, before the newest: longer than most pauses of those who write beside us.
"""

FEWEST_INTERVALS: Final = 10
"""So many count however old they are: after a pause one bad interval shall not drive out what is known."""

ESTIMATE_PERCENTILE: Final = 0.1
FEWEST_ROWS: Final = 100
"""Fewer rows of ours say little of what one costs: an interval goes on until it has as many."""

_LOOK: Final = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8 AS position"

_BACKENDS: Final = """\
SELECT a.pid, a.backend_start::text AS started, a.application_name::text AS name, w.wal_bytes::float8 AS wal_bytes
  FROM pg_stat_activity a, LATERAL pg_stat_get_backend_wal(a.pid) AS w
 WHERE a.application_name LIKE 'backfill/%' AND w.wal_bytes IS NOT NULL"""


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    position: float
    rows: float
    own: float  # bytes of ours since the beginning, where the server counts them


class OwnWal:
    """Splits the growth of WAL into ours and others'.  Pure.

    ``exact``: the server counts per process.  All figures are None until two observations with time between them.
    """

    def __init__(self, *, exact: bool) -> None:
        self.is_exact = exact
        self._samples: deque[_Sample] = deque()
        self._costs: deque[tuple[float, float]] = deque()  # when, bytes a row at most
        self._began: _Sample | None = None  # of the interval that goes on
        self._own_cost: float | None = None  # exact: bytes a row, as last known
        self._backends: dict[object, float] | None = None
        self._own = 0.0
        self._priced = 0.0  # bytes of the rows that had a price
        self._unpriced_rows = 0.0
        self._unclaimed = 0.0  # bytes of WAL that none of our rows has paid for

    def observe(self, now: float, position: float, rows: float, backends: Mapping[object, float] | None = None) -> None:
        """At ``now`` WAL ends at ``position`` (bytes), the job has committed ``rows`` in all, and each of its server
        processes has written so many bytes of WAL since it began.
        """
        if backends is not None:
            self._count(backends)
        if self._samples and (position < self._samples[-1].position or rows < self._samples[-1].rows):
            self._samples.clear()  # another server, or another job
            self._began = None
            self._unpriced_rows = self._unclaimed = 0.0
        if self._samples and now <= self._samples[-1].at:
            return
        if self._samples:
            self._unpriced_rows += rows - self._samples[-1].rows
            self._unclaimed += position - self._samples[-1].position
        self._samples.append(_Sample(now, position, rows, self._own))
        while len(self._samples) > 2 and now - self._samples[1].at >= WINDOW_S:
            self._samples.popleft()
        self._learn()
        self._price()

    @property
    def own_bytes(self) -> float:
        """Bytes of WAL that this job has written since the first observation.  Never shrinks."""
        return self._own if self.is_exact else self._priced

    @property
    def total_per_s(self) -> float | None:
        """Bytes of WAL a second, everybody's."""
        return self._rate(lambda sample: sample.position)

    @property
    def bytes_per_s(self) -> float | None:
        """Bytes of WAL a second that this job writes."""
        total = self.total_per_s
        if total is None:
            return None
        if self.is_exact:
            own = self._rate(lambda sample: sample.own)
        else:
            rows, cost = self._rate(lambda sample: sample.rows), self.bytes_per_row
            own = 0.0 if not rows or cost is None else rows * cost
        # Processes report what they wrote with a delay: more than everybody's cannot be.
        return None if own is None else min(own, total)

    @property
    def others_per_s(self) -> float | None:
        """Bytes of WAL a second that others write."""
        total, own = self.total_per_s, self.bytes_per_s
        return None if total is None or own is None else max(0.0, total - own)

    @property
    def bytes_per_row(self) -> float | None:
        """Bytes of WAL that one committed row of this job costs, as last seen; None until enough rows were."""
        if self.is_exact:
            return self._own_cost
        costs = sorted(cost for _, cost in self._costs)
        return costs[math.ceil(ESTIMATE_PERCENTILE * len(costs)) - 1] if costs else None

    def _learn(self) -> None:
        """What a row costs, from the newest sample.  What is known stays until something newer is."""
        oldest, now = self._samples[0], self._samples[-1]
        began = self._began if self._began is not None else oldest
        if self.is_exact and now.rows - oldest.rows >= FEWEST_ROWS:
            began = oldest  # the whole window: processes report with a delay
        rows = now.rows - began.rows
        if rows >= FEWEST_ROWS:
            self._own_cost = (now.own - began.own) / rows
            self._costs.append((now.at, (now.position - began.position) / rows))
            while len(self._costs) > FEWEST_INTERVALS and now.at - self._costs[0][0] > ESTIMATE_S:
                self._costs.popleft()
            began = now
        elif rows == 0 and oldest.at > began.at:
            began = oldest  # what others write while we pause is not the price of our next rows
            self._unclaimed = min(self._unclaimed, now.position - began.position)
        self._began = began

    def _price(self) -> None:
        """Our rows claim their part of the WAL, as soon as it is known what one costs."""
        cost = self.bytes_per_row
        if cost is not None:
            size = min(self._unpriced_rows * cost, self._unclaimed)
            self._priced += size
            self._unclaimed -= size
            self._unpriced_rows = 0.0

    def _count(self, backends: Mapping[object, float]) -> None:
        """Add what each process wrote since the last look; what those wrote that were there before us is not known."""
        known = self._backends
        if known is not None:
            self._own += sum(max(0.0, written - known.get(who, 0.0)) for who, written in backends.items())
        self._backends = dict(backends)

    def _rate(self, what: Callable[[_Sample], float]) -> float | None:
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        return (what(last) - what(first)) / (last.at - first.at)


class WalRate:
    """Bytes of WAL a second that others write.  Keeps ``own``, which others may read: what this job writes of it.

    ``rows_committed``: rows that the job has committed so far, over all its processes, as far as is known.
    """

    every_s = quiet_every_s = EVERY_S

    def __init__(
        self, policy: SignalPolicy, session: Session, job: str, rows_committed: Callable[[], float], clock: Clock
    ) -> None:
        self.policy = policy
        self.asked_at: float | None = None
        self.own: OwnWal | None = None
        self._session = session
        self._job = job
        self._rows_committed = rows_committed
        self._clock = clock
        self._before = 0.0  # of a server that counted otherwise

    @property
    def own_bytes(self) -> float | None:
        """Bytes of WAL that this job has written since the first look; None before it."""
        return None if self.own is None else self._before + self.own.own_bytes

    async def look(self) -> None:
        """Look once, beside the looks that readings come from."""
        await self._session.use(self._look)

    async def read(self) -> Measured:
        """Bytes a second."""
        await self.look()
        others = self.own.others_per_s if self.own is not None else None
        if self.own is None or others is None:
            raise ProbeFailed("measuring: a second look is needed")
        return Measured(others, detail="" if self.own.is_exact else "ours is estimated")

    async def _look(self, connection: Connection) -> None:
        exact = connection.server.capabilities.own_wal_exact
        if self.own is None or self.own.is_exact != exact:
            self._before = self.own_bytes or 0.0
            self.own = OwnWal(exact=exact)
        timeout_s = self._session.deadline_s
        backends: dict[object, float] | None = None
        if exact:
            rows = await connection.fetch(_BACKENDS, timeout_s=timeout_s)
            backends = {(r["pid"], r["started"]): r["wal_bytes"] for r in rows if is_of_job(r["name"], self._job)}
        committed = self._rows_committed()
        position = await connection.fetchval(_LOOK, timeout_s=timeout_s)
        self.own.observe(self._clock.now(), position, committed, backends)

    async def close(self) -> None:
        """End the session, if another of its users has not done so."""
        await self._session.close()
