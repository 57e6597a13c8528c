"""What follows from rate and pressure without a loop of its own: how long a chunk may take, how many workers work.

| pressure | a chunk may take | workers |
|---|---|---|
| nobody else is there | the job's own target (250 ms) | all |
| 0 | 25 ms | as many as 1.2 times the rate needs |
| 0.5 | 12 ms | ... 1.1 times |
| 1 and more | 5 ms | ... 1.05 times: any less, and the workers would be the limit instead of the rate |

Between the rows the table is interpolated.  On two cores chunks of 200 rows at half duty kept the foreground's p95 at
less than half of what chunks of 1000 rows did, for 11 % of the throughput: a short chunk is the cheapest politeness.
One worker all of the time disturbs less than two for half of it: they meet, and then nobody else finds a processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    pressure: float
    chunk_s: float
    headroom: float


TABLE: Final = (Row(0.0, 0.025, 1.2), Row(0.5, 0.012, 1.1), Row(1.0, 0.005, 1.05))

CALM_DOWN_S: Final = 10.0
"""Time constant with which chunks grow and workers wake again when the pressure falls; both follow its rise at once.
A chunk size that followed each tick would only ever shrink: it grows by steps, and shrinks at once.
"""


def at_pressure(pressure: float) -> Row:
    """The table's row for a pressure, interpolated (chunk times on a logarithmic scale)."""
    below = TABLE[0]
    for above in TABLE[1:]:
        if pressure < above.pressure:
            part = max(0.0, (pressure - below.pressure) / (above.pressure - below.pressure))
            chunk_s = below.chunk_s * (above.chunk_s / below.chunk_s) ** part
            return Row(pressure, chunk_s, below.headroom + (above.headroom - below.headroom) * part)
        below = above
    return below


class Response:
    """Chunk target and workers of one job.  ``own_chunk_s`` is the job's own target time of a chunk in seconds,
    ``workers`` how many there are.
    """

    def __init__(self, own_chunk_s: float, workers: int) -> None:
        self._own_chunk_s = own_chunk_s
        self.workers = workers
        self._pressure = 0.0
        self._active: int | None = None
        self._too_many_since: float | None = None

    def forget(self) -> None:
        """Nobody else is there: all workers, and the job's own chunks."""
        self._pressure, self._active, self._too_many_since = 0.0, None, None

    def follow(self, pressure: float | None, elapsed_s: float) -> None:
        """Take this tick's pressure; without one, what was stays."""
        if pressure is None:
            return
        calmed = pressure + (self._pressure - pressure) * math.exp(-elapsed_s / CALM_DOWN_S)
        self._pressure = max(pressure, calmed)

    def chunk_s(self) -> float:
        """Server seconds a chunk may take beside a foreground: never more than the job's own."""
        return min(self._own_chunk_s, at_pressure(self._pressure).chunk_s)

    def active(self, rate_per_s: float, capacity_per_s: float | None, now: float) -> int | None:
        """Workers that ``rate_per_s`` needs, of which each does its part of ``capacity_per_s``; None for all.

        More are woken at once; fewer only after ten seconds, since each one parked costs a claim to wake.
        """
        if not capacity_per_s or self.workers <= 1:
            return None
        wanted = math.ceil(rate_per_s * at_pressure(self._pressure).headroom * self.workers / capacity_per_s)
        wanted = min(max(1, wanted), self.workers)
        if self._active is None or wanted >= self._active:
            self._active, self._too_many_since = wanted, None
        elif self._too_many_since is None:
            self._too_many_since = now
        elif now - self._too_many_since >= CALM_DOWN_S:
            self._active, self._too_many_since = wanted, None
        return self._active
