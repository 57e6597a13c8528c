"""``backfill dualwrite``: triggers that carry what the application writes meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import click

from engine.cli.jobs import open_daemon
from engine.cli.loop import run_async
from engine.cli.places import (
    SLOW_PATIENCE_S,
    Place,
    Remote,
    Where,
    dsn_of,
    job_argument,
    ledger_option,
    open_job,
    operator,
    place_of,
)
from engine.cli.terminal import Terminal, output_options
from engine.db import Connection, Database
from engine.errors import Stopped, UsageError
from engine.fleet.evidence import differences, dual_write_json
from engine.flow import dual_write_change as change
from engine.flow.dual_write import look
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import Prepared, inspect
from engine.flow.transforming import as_begun, only_declared
from engine.ledger.store import Ledger
from engine.model import Side
from engine.spec import JobSpec, units
from engine.spec.misfit import Misfit

_SAID: Final = {
    "install": ("installed", "the triggers are there already, and intact"),
    "remove": ("removed", "there are no triggers of this job"),
}
"""What is said of a change that was made, and of one that was not needed."""


@click.command()
@job_argument
@ledger_option
@click.option("--print", "action", flag_value="print", help="Print the script, and touch nothing.")
@click.option("--install", "action", flag_value="install", help="Create the triggers, or bring them up to date.")
@click.option("--remove", "action", flag_value="remove", help="Drop them.")
@click.option(
    "--check", "action", flag_value="check", help="Are they there, as the job needs them? Exits with 7 if not."
)
@click.option(
    "--patience",
    default="60s",
    metavar="DURATION",
    show_default=True,
    help="With --install and --remove: how long to try for the table, without making its writers wait.",
)
@click.option("--force", is_flag=True, help="With --remove: even while the job needs them.")
@output_options
def dualwrite(terminal: Terminal, job: str, where: Where, action: str | None, patience: str, force: bool) -> int:
    """Triggers on the source that bring what the application writes meanwhile to the target.

    To be installed before the job's first run. In place they fill the job's columns. Between two databases there are
    none: there the application writes both.
    """
    place = place_of(job, where)
    if isinstance(place.where, Remote) and action is not None:
        _seconds(patience)
        return run_async(_by_daemon(terminal, place, action, patience, force=force))
    match action:
        case "print":
            return run_async(_print(terminal, place, where.dsn))
        case "install":
            return run_async(_install(terminal, place, where.dsn, _seconds(patience)))
        case "remove":
            return run_async(_remove(terminal, place, where.dsn, _seconds(patience), force=force))
        case "check":
            return run_async(_check(terminal, place, where.dsn))
        case _:
            raise UsageError("give one of --print, --install, --remove and --check")


def _seconds(text: str) -> float:
    try:
        return units.parse_duration(text)
    except Misfit as error:
        raise UsageError(f"--patience {error.message}", hint=error.hint) from None


async def _by_daemon(terminal: Terminal, place: Place, action: str, patience: str, *, force: bool) -> int:
    """A file is sent where triggers are to come, which is before the job is begun; else the daemon knows the job."""
    async with open_daemon(place, patience_s=SLOW_PATIENCE_S) as (client, connection):
        if action in ("install", "remove"):
            changed = await client.change_dual_write(
                place.job,
                "install" if action == "install" else "remove",
                patience=patience,
                force=force,
                spec=place.spec.for_ledger() if place.spec is not None and action == "install" else None,
                connection=connection,
            )
            outcome = change.Outcome(changed.job, changed.changed, tuple(changed.triggers), tuple(changed.tables))
            _tell(terminal, outcome, *_SAID[action])
            return 0
        found = await client.dual_write(place.job, script=action == "print", connection=connection)
    if action == "print":
        _show_script(terminal, found.job, found.script or "")
        return 0
    shown = found.model_dump(mode="json", exclude={"script"})
    return _show_check(terminal, shown, differences(found))


# -- where ------------------------------------------------------------------------------------------------------------


async def _databases(place: Place, dsn: str | None) -> tuple[JobSpec, tuple[Database, Database]]:
    """The job's spec and its databases.  A job of the ledger has both tables where the ledger is, or we refuse it."""
    if place.spec is None:
        async with open_job(place) as ledger:
            record = await ledger.job(place.job)
            spec = JobSpec.from_ledger(record.spec, transforms=only_declared(record.identity))
        return spec, (place.database, place.database)
    if dsn is None or (place.spec.target is not None and place.spec.target.dsn is not None):
        return place.spec, endpoints_of(place.spec)
    here = Database(dsn_of(dsn, "--dsn"), side=Side.TARGET, job=place.spec.name, role=place.spec.role)
    return place.spec, (here, here)


async def _prepared(place: Place, dsn: str | None) -> Prepared:
    """The job as it would be run now; raises ``PreflightRefused`` for what triggers cannot mend."""
    spec, databases = await _databases(place, dsn)
    return change.prepared_for_change(await inspect(await as_begun(spec, databases[1]), databases, runs=False))


@asynccontextmanager
async def _session(database: Database) -> AsyncIterator[Connection]:
    """Not under the job's role, which moves rows and owns nothing."""
    connection = await database.connect("dualwrite")
    try:
        await Ledger(connection).act_as(operator())
        yield connection
    finally:
        await connection.close()


# -- doing ------------------------------------------------------------------------------------------------------------


async def _print(terminal: Terminal, place: Place, dsn: str | None) -> int:
    prepared = await _prepared(place, dsn)
    async with _session(prepared.endpoints.source) as connection:
        script = await change.script(connection, prepared)
    _show_script(terminal, prepared.spec.name, script)
    return 0


def _show_script(terminal: Terminal, job: str, script: str) -> None:
    if terminal.as_json:
        terminal.json({"job": job, "script": script})
    else:
        terminal.data(script.rstrip())


async def _install(terminal: Terminal, place: Place, dsn: str | None, patience_s: float) -> int:
    prepared = await _prepared(place, dsn)
    change.wanted(prepared)
    async with _session(prepared.endpoints.source) as connection:
        before = await look(connection, prepared)
        outcome = await change.install(connection, prepared, by=change.patience(patience_s, terminal.say))
    _tell(terminal, outcome, *_SAID["install"])
    if before.installed and outcome.changed:
        terminal.say(f"they were {differences(before)}: what was written meanwhile shows in backfill verify", "yellow")
    return 0


async def _remove(terminal: Terminal, place: Place, dsn: str | None, patience_s: float, *, force: bool) -> int:
    database = place.database if place.spec is None else (await _databases(place, dsn))[1][0]
    async with _session(database) as connection:
        outcome = await change.remove(connection, place.job, force=force, by=change.patience(patience_s, terminal.say))
    _tell(terminal, outcome, *_SAID["remove"])
    return 0


def _tell(terminal: Terminal, outcome: change.Outcome, done: str, nothing: str) -> None:
    if terminal.as_json:
        terminal.json(change.summary(outcome))
    if outcome.changed:
        terminal.say(f"{outcome.job}: {done} {', '.join(outcome.triggers)} on {', '.join(outcome.tables)}")
    else:
        terminal.say(f"{outcome.job}: {nothing}")


async def _check(terminal: Terminal, place: Place, dsn: str | None) -> int:
    prepared = await _prepared(place, dsn)
    change.wanted(prepared)
    async with _session(prepared.endpoints.source) as connection:
        found = await look(connection, prepared)
    return _show_check(terminal, dual_write_json(prepared, found), differences(found))


def _show_check(terminal: Terminal, shown: Mapping[str, Any], wrong: str) -> int:
    if terminal.as_json:
        terminal.json(shown)
    elif shown["intact"]:
        terminal.data(f"{shown['job']}: the triggers are there, and do what the job asks for")
    else:
        terminal.data(f"{shown['job']}: {wrong}")
        terminal.say("backfill dualwrite --install puts them there as the job needs them")
    return 0 if shown["intact"] else Stopped.exit_code
