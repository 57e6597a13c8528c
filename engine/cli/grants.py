"""``backfill grants``: the GRANT script with which a role that is nobody special can run a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    place_of,
    refuse_beside_daemon,
)
from engine.cli.terminal import Terminal, output_options
from engine.db import Database
from engine.errors import UsageError
from engine.fleet.grants import Grantee, Part, collect, script
from engine.flow.endpoints import endpoints_of
from engine.flow.transforming import only_declared
from engine.model import Mode, Side
from engine.spec import JobSpec

if TYPE_CHECKING:
    from engine.wire import shapes


@click.command()
@job_argument
@ledger_option
@click.option("--to", "to", metavar="ROLE", help="Who moves the rows. Default: role of the spec.")
@click.option("--login", metavar="ROLE", help="Who connects and becomes that role. Default: the same one.")
@click.option("--source-dsn", metavar="DSN", help="The source's database, where a job is given by its name.")
@click.option("--repair", is_flag=True, help="With what verify --repair takes beyond the job.")
@output_options
def grants(
    terminal: Terminal,
    job: str,
    where: Where,
    to: str | None,
    login: str | None,
    source_dsn: str | None,
    repair: bool,
) -> int:
    """Print the GRANT script that a job needs, for a superuser or the owner of the tables to run.

    It is enough for every command but `dualwrite --install` and `--remove`, and `cleanup --all`: what those take stands
    there as a comment. Nothing is changed by this command. Where there is no ledger yet the script creates it, so that
    the role needs no right to create anything.
    """
    place = place_of(job, where)
    if isinstance(place.where, Remote):
        refuse_beside_daemon(source_dsn=source_dsn)
        shown = run_async(_ask(place, to, login, repair=repair))
        if terminal.as_json:
            terminal.json(shown.model_dump(mode="json"))
        else:
            terminal.data(shown.script)
        return 0
    spec, parts = run_async(_collect(place, where.dsn, source_dsn))
    role = to or spec.role
    if role is None:
        raise UsageError("no role to grant to", hint="write role: into the spec, or give --to ROLE")
    to_whom = Grantee(role, login or role)
    text = script(spec, parts, to_whom, repair=repair)
    if terminal.as_json:
        terminal.json({"job": spec.name, "role": role, "login": login, "repair": repair, "script": text})
    else:
        terminal.data(text)
    return 0


async def _ask(place: Place, to: str | None, login: str | None, *, repair: bool) -> shapes.Grants:
    async with open_daemon(place, patience_s=SLOW_PATIENCE_S) as (client, connection):
        return await client.grants(place.job, to=to, login=login, repair=repair, connection=connection)


# -- looking ----------------------------------------------------------------------------------------------------------


async def _collect(place: Place, dsn: str | None, source_dsn: str | None) -> tuple[JobSpec, list[Part]]:
    spec = place.spec
    if spec is None:
        async with open_job(place) as ledger:
            record = await ledger.job(place.job)
            spec = JobSpec.from_ledger(record.spec, transforms=only_declared(record.identity))
            is_copy = record.mode is Mode.COPY
        target = place.database
        source = Database(dsn_of(source_dsn, "--source-dsn"), side=Side.SOURCE) if source_dsn else target
        if is_copy and not source_dsn:
            raise UsageError("its source is in another database", hint="give --source-dsn, or the spec file")
    else:
        source, target = endpoints_of(spec)
        if dsn is not None:
            target = place.database
            source = target if spec.target is None else source
    return spec, await collect(spec, source, target)
