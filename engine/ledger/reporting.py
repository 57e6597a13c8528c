"""The part of the ledger that is about reporting: who reports on its jobs, and what there is to report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

from engine.db import classify
from engine.ledger.orders import PaceOrders, read_json
from engine.ledger.records import JobStatus
from engine.ledger.statements import Statements
from engine.model import JobState, Mode

DATA_ERROR: Final = "22"
"""The class of SQLSTATEs of a value that is not what it should be."""

MOST_REPORTED: Final = 200
"""Jobs that are reported on at once, so that a ledger that has grown for years costs no more than a young one."""


@dataclass(frozen=True, slots=True)
class Reported:
    """A job as it is now, and how many steps its spans have taken in all phases: it grows with every commit of a
    worker, and with nothing else.  None for a job that is not at work.
    """

    status: JobStatus
    steps: int | None


class Reporting(Statements):
    """The lease of a ledger's reporter, and the statuses of its jobs."""

    async def report(self, process: str, host: str, os_pid: int, lease_s: float) -> bool:
        """Take the reporter's lease if it is free, ran out, or reaches further ahead than two leases (somebody's clock
        jumped); renew it if it is ours.  True when it is ours now.  One statement, by the database's clock.
        """
        return bool(await self._value("report", process, host, os_pid, lease_s))

    async def leave_reporter(self, process: str) -> None:
        """Give the lease up at once."""
        await self._row("leave_reporter", process)

    async def reported(self, most: int = MOST_REPORTED) -> tuple[Reported, ...]:
        """The jobs to report on, oldest first: those that are not over and those that failed, then the ones that ended
        last, ``most`` in all.

        The ledger is untrusted: a job of which something cannot be read is left out, and hides no other.
        """
        try:
            rows = await self._rows("reported", most, None)
        except Exception as error:
            if not classify(error).sqlstate.startswith(DATA_ERROR):
                raise
            rows = [row for job in await self._rows("to_report", most) for row in await self._readable(job["id"])]
            rows.sort(key=lambda row: row["created_at"])
        return tuple(_reported(rows))

    async def _readable(self, job_id: int) -> list[Any]:
        try:
            return await self._rows("reported", 1, job_id)
        except Exception as error:
            if not classify(error).sqlstate.startswith(DATA_ERROR):
                raise
            return []


def _finite(value: Any) -> Any:
    """No number of ours is infinite: somebody else wrote it."""
    return 0.0 if isinstance(value, float) and not math.isfinite(value) else value


def _reported(rows: Iterable[Any]) -> Iterable[Reported]:
    for row in rows:
        try:
            yield Reported(status_of(row), row["steps"])
        except Exception:  # noqa: BLE001, S112 - whatever is odd about it, the others are not
            continue


def status_of(row: Any) -> JobStatus:
    """One row of the view ``backfill.status``, of whatever release."""
    known = {field.name for field in fields(JobStatus)}  # a newer release's ledger tells more, an older one's less
    values = {name: _finite(value) for name, value in dict(row).items() if name in known}
    values["state"] = JobState(values["state"])
    values["mode"] = Mode(values["mode"])
    values["waits"] = {reason: float(seconds) for reason, seconds in read_json(values["waits"]).items()}
    values["orders"] = PaceOrders.from_json(read_json(values.get("orders", "{}")))
    values["signals"] = tuple(signal for signal in read_json(values.get("signals", "[]")) if isinstance(signal, dict))
    for name in ("deadline", "growth", "verification"):
        values[name] = read_json(values[name]) if values.get(name) else None
    return JobStatus(**values)
