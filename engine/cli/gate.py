"""``backfill gate``: may the old column or table be given up?"""

from __future__ import annotations

from typing import Final

import click
from rich.text import Text

from engine.cli.jobs import open_daemon
from engine.cli.known_spec import spec_of
from engine.cli.loop import run_async
from engine.cli.places import Place, Where, job_argument, ledger_option, place_of, refuse_beside_daemon
from engine.cli.terminal import Terminal, output_options
from engine.errors import Stopped, VerificationMismatch
from engine.fleet.evidence import look_at_gate
from engine.flow.gate import Check, Gate

_WIDTH: Final = len("dual_write")


@click.command()
@job_argument
@ledger_option
@click.option("--source-dsn", metavar="DSN", help="The source's database, where a job is given by its name.")
@output_options
def gate(terminal: Terminal, job: str, where: Where, source_dsn: str | None) -> int:
    """Say whether the old side may be given up, and what the evidence is.

    The job is done; it was verified after its last write; the schema has not changed; dual-write is in place; no row is
    in quarantine; the target's server has lost nothing. Exits with 0 when all of it holds, with 6 when the last
    verification found differences, and with 7 otherwise. Changes nothing.
    """
    if where.remote() is not None:
        refuse_beside_daemon(source_dsn=source_dsn)
        found = run_async(_ask(place_of(job, where)))
    else:
        found = run_async(look_at_gate(spec_of(job, where, source_dsn, listens=False)))
    if terminal.as_json:
        terminal.json(found.as_json())
    else:
        _show(terminal, found)
    if found.ready:
        return 0
    return VerificationMismatch.exit_code if found.mismatch else Stopped.exit_code


async def _ask(place: Place) -> Gate:
    async with open_daemon(place) as (client, connection):
        found = await client.gate(place.job, connection=connection)
    checks = tuple(Check(check.name, check.ok, check.detail, check.remedy) for check in found.checks)
    return Gate(found.job, checks, found.mismatch)


def _show(terminal: Terminal, found: Gate) -> None:
    verdict, style = ("ready", "bold green") if found.ready else ("not ready", "bold red")
    terminal.out.print(Text.assemble((found.job, "bold"), ": ", (verdict, style)))
    for check in found.checks:
        mark, style = ("yes", "green") if check.ok else ("no", "bold red")
        terminal.out.print(Text.assemble((f"  {mark:<3}", style), f"  {check.name:<{_WIDTH}}  {check.detail}"))
        if check.remedy:
            terminal.out.print(Text(f"       {'':<{_WIDTH}}  {check.remedy}", style="dim"))
