"""Taking jobs out of the ledger: ``restart`` and ``cleanup``.  Rows of the target are never touched."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import click

from engine.cli.loop import run_async
from engine.cli.places import Place, job_argument, ledger_database, ledger_option, open_job, open_ledger, place_of
from engine.cli.terminal import Terminal, confirm, output_options
from engine.cli.words import one_line
from engine.db import Database
from engine.errors import Busy, UsageError
from engine.flow.dual_write_change import Installed, find_installed, patience, remove
from engine.ledger.records import JobStatus
from engine.model import Mode
from engine.telemetry import numbers

_NO: Final = 8
"""The exit code when the person says no: nothing was done."""


def _refuse_alive(status: JobStatus, *, force: bool) -> None:
    if status.workers and not force:
        raise Busy(
            f"{numbers.counted(status.workers, 'worker')} of {status.job} are alive",
            hint="backfill cancel stops them, or end their processes; --force goes on all the same",
        )


def _noted(status: JobStatus) -> dict[str, Any]:
    """For the history, which outlives the job."""
    return {"state": status.state.value, "rows": status.rows_done, "by": operator()}


def operator() -> str:
    """``user@host``: whose terminal this is, since a database's role is often one for all."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


# -- restart ----------------------------------------------------------------------------------------------------------


@click.command()
@job_argument
@ledger_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even while workers are alive; what they hold is rolled back.")
@output_options
def restart(terminal: Terminal, job: str, dsn: str | None, yes: bool, force: bool) -> int:
    """Forget a job's progress, so that the next run begins it anew.

    Rows that were moved stay where they are: the new run meets them again, and skips or rewrites them as its spec says.
    """
    return run_async(_restart(terminal, place_of(job, dsn), yes=yes, force=force))


async def _restart(terminal: Terminal, place: Place, *, yes: bool, force: bool) -> int:
    async with open_job(place) as ledger:
        status = await ledger.status(place.job)
        _refuse_alive(status, force=force)
        terminal.say(f"{status.job}: {one_line(status)}")
        terminal.say("forgets: its spans and cursors; keeps: the rows in the tables, and its history")
        if status.mode is not Mode.UPDATE:
            terminal.say(
                "the new run will not take out rows of this one that were deleted at the source since", "yellow"
            )
        if not confirm("begin it anew?", yes=yes):
            return _NO
        # Asking takes time: somebody may have begun meanwhile.
        _refuse_alive(await ledger.status(place.job), force=force)
        await ledger.record(place.job, "restart", _noted(status))
        await ledger.forget(place.job)
    if terminal.as_json:
        terminal.json({"job": place.job, "restarted": True})
    terminal.say(f"{place.job} is forgotten; the next backfill run begins it anew")
    return 0


# -- cleanup ----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("job", required=False, metavar="[JOB|FILE]")
@ledger_option
@click.option("--all", "everything", is_flag=True, help="The whole ledger: all jobs, all history, schema backfill.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even while workers are alive; what they hold is rolled back.")
@output_options
def cleanup(terminal: Terminal, job: str | None, dsn: str | None, everything: bool, yes: bool, force: bool) -> int:
    """Remove what a job keeps in the database, or all that this program ever put there, after showing it.

    Rows of your tables are never touched.
    """
    if (job is None) == (not everything):
        raise UsageError("give either a job or --all")
    if job is not None:
        return run_async(_cleanup_job(terminal, place_of(job, dsn), yes=yes, force=force))
    return run_async(_cleanup_all(terminal, ledger_database(dsn), yes=yes, force=force))


async def _cleanup_job(terminal: Terminal, place: Place, *, yes: bool, force: bool) -> int:
    async with open_job(place) as ledger:
        status = await ledger.status(place.job)
        _refuse_alive(status, force=force)
        terminal.say(f"{status.job}: {one_line(status)}")
        triggers = await find_installed(ledger.connection, place.job)
        terminal.say(f"removes from {place.database.label}: the job, its spans and workers; keeps its history")
        _show_triggers(terminal, triggers)
        if not status.state.is_final:
            terminal.say("it has not ended: where it stands would be lost", "yellow")
        if not confirm("remove it?", yes=yes):
            return _NO
        _refuse_alive(await ledger.status(place.job), force=force)
        if triggers:
            # While they are there they write tombstones for nobody; and a job that is gone cannot be asked about them.
            await remove(ledger.connection, place.job, force=True, by=patience(tell=terminal.say))
        await ledger.record(place.job, "cleanup", _noted(status))
        await ledger.forget(place.job)
    if terminal.as_json:
        terminal.json({"removed": [place.job]})
    terminal.say(f"{place.job} is removed")
    return 0


def _show_triggers(terminal: Terminal, triggers: Sequence[Installed]) -> None:
    for found in triggers:
        terminal.say(f"  trigger {found.trigger} on {found.table}: changes reach the target no longer")


async def _cleanup_all(terminal: Terminal, database: Database, *, yes: bool, force: bool) -> int:
    async with open_ledger(database, required=False) as ledger:
        if await ledger.installed_version() == 0:
            terminal.say(f"{database.label} holds no ledger: there is nothing to remove")
            if terminal.as_json:
                terminal.json({"removed": []})
            return 0
        jobs = await ledger.list()
        held = f"with {numbers.counted(len(jobs), 'job')}:" if jobs else "and its history; no job is left in it"
        terminal.say(f"removes from {database.label}: schema backfill {held}")
        for status in jobs:
            _refuse_alive(status, force=force)
            terminal.say(f"  {status.job}: {one_line(status)}")
        triggers = await find_installed(ledger.connection)
        _show_triggers(terminal, triggers)
        if not confirm("remove all of it?", yes=yes):
            return _NO
        for status in await ledger.list():
            _refuse_alive(status, force=force)
        for job in sorted({found.job for found in triggers if found.job is not None}):
            await remove(ledger.connection, job, force=True, by=patience(tell=terminal.say))
        await ledger.drop()
    if terminal.as_json:
        terminal.json({"removed": [status.job for status in jobs]})
    terminal.say("the ledger is removed")
    return 0
