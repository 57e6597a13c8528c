"""To which partitions the rows went that a job has written lately.

The server's counters know that exactly, but each session reports up to a second late, and partition by partition: for a
moment one of them seems to have got everything.  So what is not counted yet goes where it is due: a partition that has
just reported has little outstanding, one that reported 0.9 s ago has 0.9 s of its own rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engine.pace.growth import UNKNOWN_ROW_BYTES

SILENCE_S: Final = 2.0
"""A partition whose counter has stood still for so long is not written to any longer."""


@dataclass(frozen=True, slots=True)
class Partition:
    """What a look found: rows updated by anybody so far, size of the heap, rows it held when the job began (an
    estimate; None or not positive: unknown).
    """

    updates: int
    bytes: int
    rows: float | None


@dataclass(slots=True)
class _Account:
    """What is known about one partition."""

    first: Partition
    since: float
    updates: int
    reported_at: float
    rate: float = 0.0  # rows per second; before the first report as the file's growth suggests

    def look(self, now: float, partition: Partition) -> None:
        if partition.updates > self.updates and now > self.reported_at:
            self.rate = (partition.updates - self.updates) / (now - self.reported_at)
            self.reported_at = now
        elif now - self.reported_at > SILENCE_S:
            self.rate = 0.0
        elif self.updates == self.first.updates and now > self.since:
            self.rate = max(self.rate, self._rows_grown(partition) / (now - self.since))
        self.updates = partition.updates

    def _rows_grown(self, partition: Partition) -> float:
        first = self.first
        row_bytes = first.bytes / first.rows if first.rows is not None and first.rows > 0 else UNKNOWN_ROW_BYTES
        return max(0, partition.bytes - first.bytes) / max(1.0, row_bytes)


class Apportioner:
    """Divides the rows of a job among its partitions, by their identity."""

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}
        self._first_written: float | None = None
        self.shares: dict[int, float] = {}

    def divide(self, now: float, partitions: Mapping[int, Partition], rows_written: float) -> dict[int, float]:
        """Rows of the job per partition since the first call; ``rows_written``: of all of them, up to date.

        ``shares`` is how the rows go now; their sum is 1.
        """
        if self._first_written is None:
            self._first_written = rows_written
        for key, partition in partitions.items():
            account = self._accounts.get(key)
            if account is None:
                self._accounts[key] = _Account(partition, now, partition.updates, now)
            else:
                account.look(now, partition)
        accounts = {key: self._accounts[key] for key in partitions}
        self.shares = _normalised({key: account.rate for key, account in accounts.items()})
        due = _normalised({key: account.rate * (now - account.reported_at) for key, account in accounts.items()})
        counted = {key: max(0, account.updates - account.first.updates) for key, account in accounts.items()}
        unknown = max(0.0, rows_written - self._first_written - sum(counted.values()))
        return {key: count + unknown * due[key] for key, count in counted.items()}


def _normalised(weights: Mapping[int, float]) -> dict[int, float]:
    """The same with a sum of 1; equal ones where there are none."""
    total = sum(weights.values())
    return {key: weight / total if total > 0 else 1 / len(weights) for key, weight in weights.items()}
