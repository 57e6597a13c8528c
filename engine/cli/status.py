"""Looking at jobs: ``status``, ``list``, ``wait``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine.cli.codes import CODES, code_when_done
from engine.cli.jobs import Jobs, open_all_jobs, open_jobs
from engine.cli.loop import run_async
from engine.cli.places import (
    Place,
    Remote,
    Where,
    job_argument,
    ledger_database,
    ledger_option,
    place_of,
)
from engine.cli.signals import signal_lines
from engine.cli.terminal import Terminal, output_options
from engine.cli.watched_job import Steadily
from engine.cli.words import STYLES, block, limit_words, one_line, proof, reason, what_next
from engine.clock import Clock, SystemClock
from engine.db import Database
from engine.errors import Busy, CannotConnect, UsageError
from engine.ledger.records import JobStatus
from engine.model import JobState
from engine.spec.misfit import Misfit
from engine.spec.units import parse_duration
from engine.telemetry import numbers

WATCH_S: Final = 1.0
POLL_S: Final = 2.0
"""Between two looks of ``wait``; a notification comes first where the server sends one."""

_LEFT_COLUMNS: Final = (0, 1, 7)


@click.command()
@job_argument
@ledger_option
@click.option("--watch", is_flag=True, help="Stay, and show every change until the job ends.")
@output_options
def status(terminal: Terminal, job: str, where: Where, watch: bool) -> int:
    """Show how far a job is, how fast it goes, and what holds it up."""
    place = place_of(job, where)
    if watch:
        return run_async(_watch(terminal, place))
    seen = run_async(_status(place))
    if terminal.as_json:
        terminal.json(seen.as_json())
    else:
        terminal.out.print(_head(seen))
        terminal.details(block(seen))
        for line in signal_lines(seen):
            terminal.out.print(Text(line))
    return 0


async def _status(place: Place) -> JobStatus:
    async with open_jobs(place) as jobs:
        return await jobs.status(place.job)


def _block(seen: JobStatus) -> RenderableType:
    details = Table.grid(padding=(0, 2))
    for label, text in block(seen):
        details.add_row(Text(f"  {label}", style="dim"), Text(text, overflow="fold"))
    signals = [Text(line, style="dim" if number == 0 else "") for number, line in enumerate(signal_lines(seen))]
    return Group(_head(seen), details, *signals)


def _head(seen: JobStatus) -> Text:
    return Text.assemble((seen.job, "bold"), ": ", (one_line(seen), STYLES.get(seen.state, "")))


async def _watch(terminal: Terminal, place: Place, clock: Clock | None = None) -> int:
    clock = clock or SystemClock()
    live = Live(console=terminal.out, auto_refresh=False) if terminal.out.is_terminal and not terminal.as_json else None
    shown = ""
    steadily = Steadily(terminal, place, clock)
    async with open_jobs(place) as jobs:
        try:
            if live is not None:
                live.start()
            while True:
                seen = await steadily.ask(lambda: jobs.status(place.job))
                line = f"{seen.job}: {one_line(seen)}"
                if live is not None:
                    live.update(_block(seen), refresh=True)
                elif terminal.as_json:
                    terminal.json(seen.as_json())
                elif line != shown:
                    terminal.data(line)
                shown = line
                if seen.state.is_final:
                    return 0
                await clock.sleep(WATCH_S)
        finally:
            if live is not None:
                live.stop()


# -- list -------------------------------------------------------------------------------------------------------------


@click.command("list")
@ledger_option
@output_options
def list_jobs(terminal: Terminal, where: Where) -> int:
    """List the jobs of a ledger, the oldest first."""
    place = where.remote() or ledger_database(where.dsn)
    jobs, away = run_async(_list(place))
    if terminal.as_json:
        terminal.json([seen.as_json() for seen in jobs])
    elif not jobs:
        terminal.say(f"no jobs in {place.label}")
    else:
        _show_table(terminal, jobs)
    for name in away:
        terminal.say(f"{name} is away: its jobs are missing here", "yellow")
    return CannotConnect.exit_code if away else 0


async def _list(where: Database | Remote) -> tuple[tuple[JobStatus, ...], Sequence[str]]:
    """All jobs, and the databases whose jobs are missing."""
    async with open_all_jobs(where) as jobs:
        return await jobs.list(), jobs.unreachable


def _show_table(terminal: Terminal, jobs: tuple[JobStatus, ...]) -> None:
    """One line a job, never cut: the last column is as long as it needs to be."""
    head = ("job", "state", "progress", "rows", "rows/s", "left", "workers", "why")
    cells = [head, *map(_cells, jobs)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    for number, row in enumerate(cells):
        texts = [
            text.ljust(width) if place in _LEFT_COLUMNS else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        style = "dim" if number == 0 else STYLES.get(jobs[number - 1].state, "")
        terminal.out.print(Text("  ".join(texts).rstrip(), style=style))


def _cells(seen: JobStatus) -> tuple[str, ...]:
    return (
        seen.job,
        seen.state.value,
        numbers.percent(seen.progress),
        numbers.count(seen.rows_done),
        numbers.count(seen.rows_per_s) if seen.rows_per_s else "",
        numbers.duration(seen.eta_s) if seen.eta_s is not None else "",
        str(seen.workers) if seen.workers else "",
        reason(seen) or limit_words(seen) or proof(seen),
    )


# -- wait -------------------------------------------------------------------------------------------------------------


@click.command()
@job_argument
@ledger_option
@click.option("--timeout", metavar="DURATION", help="Give up after so long (exit 75), such as 10m.")
@output_options
def wait(terminal: Terminal, job: str, where: Where, timeout: str | None) -> int:
    """Wait until a job ends.

    The exit code is the job's, as that of run: 0 done, 6 done and differing, 7 failed, 8 cancelled.
    """
    seen = run_async(_wait(terminal, place_of(job, where), _seconds(timeout)))
    if terminal.as_json:
        terminal.json(seen.as_json())
    terminal.say(f"{seen.job}: {one_line(seen)}", STYLES.get(seen.state, ""))
    if next_step := what_next(seen):
        terminal.say(f"  {next_step}", "dim")
    return code_when_done(seen.verified) if seen.state is JobState.DONE else CODES[seen.state]


def _seconds(timeout: str | None) -> float | None:
    if timeout is None:
        return None
    try:
        return parse_duration(timeout)
    except Misfit as error:
        raise UsageError(f"--timeout {error.message}", hint=error.hint) from None


async def _wait(terminal: Terminal, place: Place, timeout_s: float | None) -> JobStatus:
    try:
        async with asyncio.timeout(timeout_s), open_jobs(place) as jobs:
            return await _until_final(terminal, jobs, place)
    except TimeoutError:
        raise Busy(f"job {place.job} has not ended within {numbers.duration(timeout_s or 0)}") from None


async def _until_final(terminal: Terminal, jobs: Jobs, place: Place) -> JobStatus:
    state: JobState | None = None
    steadily = Steadily(terminal, place)
    while True:
        seen = await steadily.ask(lambda: jobs.status(place.job))
        if seen.state.is_final:
            return seen
        if seen.state is not state:
            state = seen.state
            terminal.say(f"{seen.job}: {one_line(seen)}")
        await steadily.ask(partial(jobs.news, seen, POLL_S))
