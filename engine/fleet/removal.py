"""Taking a job out of its ledger.  Rows of its tables are never touched; its history stays."""

from __future__ import annotations

from typing import Any

from engine.errors import Busy
from engine.flow.dual_write_change import find_installed, patience, remove
from engine.flow.table_lock import Tell
from engine.ledger.records import JobStatus
from engine.ledger.store import Ledger
from engine.telemetry import numbers


def refuse_alive(status: JobStatus, *, force: bool) -> None:
    """Raises ``Busy`` while workers are alive: they would find their job gone in mid-chunk."""
    if status.workers and not force:
        raise Busy(
            f"{numbers.counted(status.workers, 'worker')} of {status.job} are alive",
            hint="backfill cancel stops them, or end their processes; --force goes on all the same",
        )


def noted(status: JobStatus, by: str) -> dict[str, Any]:
    """What the history keeps of a job that goes."""
    return {"state": status.state.value, "rows": status.rows_done, "by": by}


async def forget(ledger: Ledger, status: JobStatus, what: str, *, by: str, reason: str | None = None) -> None:
    """Forget the job: ``what`` is restart or cleanup.  Inside the caller's transaction, if there is one."""
    await ledger.record(status.job, what, noted(status, by) | ({"reason": reason} if reason else {}))
    await ledger.forget(status.job)


async def remove_triggers(ledger: Ledger, job: str, tell: Tell = lambda _: None) -> tuple[str, ...]:
    """Take the job's own triggers away, before it is forgotten; gives their names.

    While they are there they write tombstones for nobody; and a job that is gone cannot be asked about them.
    """
    if not await find_installed(ledger.connection, job):
        return ()
    return (await remove(ledger.connection, job, force=True, by=patience(tell=tell))).triggers
