"""What an operator orders a job to do, from any terminal: ``pause``, ``resume``, ``cancel``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from engine.cli.jobs import open_jobs
from engine.cli.loop import run_async
from engine.cli.places import Place, Remote, Where, job_argument, ledger_option, place_of
from engine.cli.terminal import Terminal, output_options
from engine.cli.words import what_next
from engine.ledger.records import JobStatus
from engine.model import JobState
from engine.telemetry import numbers

Command = TypeVar("Command", bound=Callable[..., Any])


def _order(command: Command) -> Command:
    """The parts that all orders have."""
    reason = click.option("--reason", metavar="TEXT", help="Why: shown by status and history.")
    return job_argument(ledger_option(reason(output_options(command))))


@click.command()
@_order
def pause(terminal: Terminal, job: str, where: Where, reason: str | None) -> int:
    """Stop a job after the chunks in hand, until somebody resumes it.

    Wherever it runs; nothing but resume lets it go on, not even another run.
    """
    status = run_async(_pause(place_of(job, where), reason))
    if status.state is JobState.PAUSED:
        return _tell(terminal, status, f"{status.job} is paused; backfill resume lets it go on")
    return _tell(terminal, status, f"{status.job} is {status.state.value}: there is nothing to pause")


async def _pause(place: Place, reason: str | None) -> JobStatus:
    async with open_jobs(place) as jobs:
        return await jobs.pause(place.job, reason)


@click.command()
@_order
def resume(terminal: Terminal, job: str, where: Where, reason: str | None) -> int:
    """Let a paused job go on, or a failed one whose cause is mended."""
    place = place_of(job, where)
    status = run_async(_resume(place, reason))
    workers = "" if status.workers or status.state.is_final else _who_goes_on(place, status)
    if status.state is JobState.DONE:
        return _tell(terminal, status, f"{status.job} is done: there is nothing to resume")
    return _tell(terminal, status, f"{status.job} is {status.state.value}{workers}")


def _who_goes_on(place: Place, status: JobStatus) -> str:
    if isinstance(place.where, Remote):
        return "; the daemon takes it up"
    next_step = what_next(status)
    return "; whoever waits for it goes on" + (f", else {next_step}" if next_step else "")


async def _resume(place: Place, reason: str | None) -> JobStatus:
    async with open_jobs(place) as jobs:
        return await jobs.resume(place.job, reason)


@click.command()
@_order
def cancel(terminal: Terminal, job: str, where: Where, reason: str | None) -> int:
    """End a job for good.  Rows that were moved stay; only restart begins it anew."""
    status = run_async(_cancel(place_of(job, where), reason))
    if status.state is JobState.CANCELLED:
        return _tell(terminal, status, f"{status.job} is cancelled; {numbers.count(status.rows_done)} moved rows stay")
    return _tell(terminal, status, f"{status.job} is {status.state.value}: there is nothing to cancel")


async def _cancel(place: Place, reason: str | None) -> JobStatus:
    async with open_jobs(place) as jobs:
        return await jobs.cancel(place.job, reason)


def _tell(terminal: Terminal, status: JobStatus, text: str) -> int:
    if terminal.as_json:
        terminal.json(status.as_json())
    terminal.say(text)
    return 0
