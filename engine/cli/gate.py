"""``backfill gate``: may the old column or table be given up?"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

import click
from rich.text import Text

from engine.cli.known_spec import spec_of
from engine.cli.loop import run_async
from engine.cli.places import job_argument, ledger_option
from engine.cli.terminal import Terminal, output_options
from engine.errors import Stopped, VerificationMismatch
from engine.flow import gate as gates
from engine.flow.endpoints import endpoints_of
from engine.flow.gate import Gate
from engine.flow.prepare import inspect
from engine.flow.shared import Sides
from engine.ledger.store import Ledger
from engine.model import Side
from engine.spec import JobSpec

_WIDTH: Final = len("dual_write")


@click.command()
@job_argument
@ledger_option
@click.option("--source-dsn", metavar="DSN", help="The source's database, where a job is given by its name.")
@output_options
def gate(terminal: Terminal, job: str, dsn: str | None, source_dsn: str | None) -> int:
    """Say whether the old side may be given up, and what the evidence is.

    The job is done; it was verified after its last write; the schema has not changed; dual-write is in place; no row is
    in quarantine; the target's server has lost nothing. Exits with 0 when all of it holds, with 6 when the last
    verification found differences, and with 7 otherwise. Changes nothing.
    """
    found = run_async(look_at_gate(spec_of(job, dsn, source_dsn, listens=False)))
    if terminal.as_json:
        terminal.json(found.as_json())
    else:
        _show(terminal, found)
    if found.ready:
        return 0
    return VerificationMismatch.exit_code if found.mismatch else Stopped.exit_code


async def look_at_gate(spec: JobSpec) -> Gate:
    """The gate of the job of ``spec``, over sessions of its own."""
    seen = await inspect(spec, endpoints_of(spec))
    endpoints = seen.endpoints
    async with AsyncExitStack() as stack:
        here = await endpoints.target.connect("gate")
        stack.push_async_callback(here.close)
        sides: Sides = {Side.TARGET: here}
        if not endpoints.is_one:
            there = await endpoints.source.connect("gate")
            stack.push_async_callback(there.close)
            sides[Side.SOURCE] = there
        ledger = Ledger(here)
        await ledger.require()
        return await gates.gate(seen, ledger, sides)


def _show(terminal: Terminal, found: Gate) -> None:
    verdict, style = ("ready", "bold green") if found.ready else ("not ready", "bold red")
    terminal.out.print(Text.assemble((found.job, "bold"), ": ", (verdict, style)))
    for check in found.checks:
        mark, style = ("yes", "green") if check.ok else ("no", "bold red")
        terminal.out.print(Text.assemble((f"  {mark:<3}", style), f"  {check.name:<{_WIDTH}}  {check.detail}"))
        if check.remedy:
            terminal.out.print(Text(f"       {'':<{_WIDTH}}  {check.remedy}", style="dim"))
