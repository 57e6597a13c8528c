"""Taking a job out of its ledger.  Rows of its tables are never touched; its history stays."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from engine.errors import Busy
from engine.flow.dual_write_change import find_installed, patience, remove
from engine.flow.table_lock import Tell
from engine.ledger.records import JobStatus
from engine.ledger.store import Ledger
from engine.telemetry import numbers

REMOVING: Final = "is being removed"
"""Why a job that goes is cancelled first, as its history says."""


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


async def take_away(
    ledger: Ledger,
    job: str,
    *,
    by: str,
    force: bool,
    seen: Collection[int] | None = None,
    tell: Tell = lambda _: None,
) -> tuple[str, ...]:
    """Remove the job and its triggers; gives their names.  ``seen``: only if the job is at one of these revisions.

    First of all nobody works it any more: a job that goes on without its triggers loses deletes.  Raises ``Busy`` while
    workers are alive (unless ``force``) or when a table was not to be had; in that last case the job stays, cancelled.
    """
    async with ledger.at_revision(job, seen):
        status = await ledger.status(job)
        refuse_alive(status, force=force)
        await ledger.cancel(job, REMOVING)
        number = (await ledger.job(job)).id
    triggers = await remove_triggers(ledger, job, tell)
    async with ledger.at_revision(job, None):
        if (await ledger.job(job)).id != number:
            raise Busy(f"job {job} was begun anew meanwhile", hint="look at it again, and decide anew")
        await forget(ledger, status, "cleanup", by=by)
    return triggers


async def remove_triggers(ledger: Ledger, job: str, tell: Tell = lambda _: None) -> tuple[str, ...]:
    """Take the job's own triggers away, before it is forgotten; gives their names.

    While they are there they write tombstones for nobody; and a job that is gone cannot be asked about them.
    """
    if not await find_installed(ledger.connection, job):
        return ()
    return (await remove(ledger.connection, job, force=True, by=patience(tell=tell))).triggers
