"""Taking jobs out of the ledger: ``restart`` and ``cleanup``.  Rows of the target are never touched."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import click

from engine.cli.jobs import open_daemon, status_of
from engine.cli.loop import run_async
from engine.cli.places import (
    SLOW_PATIENCE_S,
    Place,
    Remote,
    Where,
    job_argument,
    ledger_database,
    ledger_option,
    open_job,
    open_ledger,
    operator,
    place_of,
)
from engine.cli.terminal import Terminal, confirm, output_options
from engine.cli.words import one_line
from engine.db import Database
from engine.errors import UsageError
from engine.fleet.removal import REMOVING, forget, refuse_alive, take_away
from engine.flow.dual_write_change import Installed, find_installed, patience, remove
from engine.ledger.records import JobStatus
from engine.model import Mode
from engine.telemetry import numbers

_NO: Final = 8
"""The exit code when the person says no: nothing was done."""


# -- restart ----------------------------------------------------------------------------------------------------------


@click.command()
@job_argument
@ledger_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even while workers are alive; what they hold is rolled back.")
@output_options
def restart(terminal: Terminal, job: str, where: Where, yes: bool, force: bool) -> int:
    """Forget a job's progress, so that the next run begins it anew.

    Rows that were moved stay where they are: the new run meets them again, and skips or rewrites them as its spec says.
    """
    place = place_of(job, where)
    if isinstance(place.where, Remote):
        return run_async(_restart_there(terminal, place, yes=yes, force=force))
    return run_async(_restart(terminal, place, yes=yes, force=force))


async def _restart(terminal: Terminal, place: Place, *, yes: bool, force: bool) -> int:
    async with open_job(place) as ledger:
        status = await ledger.status(place.job)
        refuse_alive(status, force=force)
        if not _agreed_to_restart(terminal, status, yes=yes):
            return _NO
        # Asking takes time: somebody may have begun meanwhile.
        refuse_alive(await ledger.status(place.job), force=force)
        await forget(ledger, status, "restart", by=operator())
    if terminal.as_json:
        terminal.json({"job": place.job, "restarted": True})
    terminal.say(f"{place.job} is forgotten; the next backfill run begins it anew")
    return 0


async def _restart_there(terminal: Terminal, place: Place, *, yes: bool, force: bool) -> int:
    """A daemon begins the job anew by itself, with the spec that it has."""
    async with open_daemon(place, patience_s=SLOW_PATIENCE_S) as (client, connection):
        shown = await client.job(place.job, connection=connection)
        status = status_of(shown)
        refuse_alive(status, force=force)
        if not _agreed_to_restart(terminal, status, yes=yes):
            return _NO
        await client.restart(place.job, force=force, if_match=None if force else shown.revision, connection=connection)
    if terminal.as_json:
        terminal.json({"job": place.job, "restarted": True})
    terminal.say(f"{place.job} begins anew; backfill run --attach watches it")
    return 0


def _agreed_to_restart(terminal: Terminal, status: JobStatus, *, yes: bool) -> bool:
    terminal.say(f"{status.job}: {one_line(status)}")
    terminal.say("forgets: its spans and cursors; keeps: the rows in the tables, and its history")
    if status.mode is not Mode.UPDATE:
        terminal.say("the new run will not take out rows of this one that were deleted at the source since", "yellow")
    return confirm("begin it anew?", yes=yes)


# -- cleanup ----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("job", required=False, metavar="[JOB|FILE]")
@ledger_option
@click.option("--all", "everything", is_flag=True, help="The whole ledger: all jobs, all history, schema backfill.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even while workers are alive; what they hold is rolled back.")
@output_options
def cleanup(terminal: Terminal, job: str | None, where: Where, everything: bool, yes: bool, force: bool) -> int:
    """Remove what a job keeps in the database, or all that this program ever put there, after showing it.

    Rows of your tables are never touched.
    """
    if (job is None) == (not everything):
        raise UsageError("give either a job or --all")
    if job is not None:
        place = place_of(job, where)
        clean = _cleanup_there if isinstance(place.where, Remote) else _cleanup_job
        return run_async(clean(terminal, place, yes=yes, force=force))
    if where.remote() is not None:
        raise UsageError("--all beside --daemon", hint="a ledger is removed by --dsn, once no daemon works it any more")
    return run_async(_cleanup_all(terminal, ledger_database(where.dsn), yes=yes, force=force))


async def _cleanup_job(terminal: Terminal, place: Place, *, yes: bool, force: bool) -> int:
    async with open_job(place) as ledger:
        status = await ledger.status(place.job)
        refuse_alive(status, force=force)
        terminal.say(f"{status.job}: {one_line(status)}")
        triggers = await find_installed(ledger.connection, place.job)
        terminal.say(f"removes from {place.database.label}: the job, its spans and workers; keeps its history")
        _show_triggers(terminal, triggers)
        if not status.state.is_final:
            terminal.say("it has not ended: where it stands would be lost", "yellow")
        if not confirm("remove it?", yes=yes):
            return _NO
        await take_away(ledger, place.job, by=operator(), force=force, tell=terminal.say)
    if terminal.as_json:
        terminal.json({"removed": [place.job]})
    terminal.say(f"{place.job} is removed")
    return 0


async def _cleanup_there(terminal: Terminal, place: Place, *, yes: bool, force: bool) -> int:
    async with open_daemon(place, patience_s=SLOW_PATIENCE_S) as (client, connection):
        shown = await client.job(place.job, connection=connection)
        status = status_of(shown)
        refuse_alive(status, force=force)
        terminal.say(f"{status.job}: {one_line(status)}")
        terminal.say(f"removes from {shown.connection}: the job, its spans, workers and triggers; keeps its history")
        if not status.state.is_final:
            terminal.say("it has not ended: where it stands would be lost", "yellow")
        if not confirm("remove it?", yes=yes):
            return _NO
        seen = None if force else shown.revision
        removed = await client.remove(place.job, force=force, if_match=seen, connection=connection)
    if terminal.as_json:
        terminal.json({"removed": [place.job]})
    for trigger in removed.triggers:
        terminal.say(f"  trigger {trigger} is gone: changes reach the target no longer")
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
            refuse_alive(status, force=force)
            terminal.say(f"  {status.job}: {one_line(status)}")
        triggers = await find_installed(ledger.connection)
        _show_triggers(terminal, triggers)
        if not confirm("remove all of it?", yes=yes):
            return _NO
        # Nobody may work a job without its triggers: first all of them are cancelled, or none.
        async with AsyncExitStack() as locks:
            for status in await ledger.list():
                await locks.enter_async_context(ledger.at_revision(status.job, None))
                refuse_alive(await ledger.status(status.job), force=force)
                await ledger.cancel(status.job, REMOVING)
        for job in sorted({found.job for found in triggers if found.job is not None}):
            await remove(ledger.connection, job, force=True, by=patience(tell=terminal.say))
        await ledger.drop()
    if terminal.as_json:
        terminal.json({"removed": [status.job for status in jobs]})
    terminal.say("the ledger is removed")
    return 0
