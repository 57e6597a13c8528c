"""``backfill run``: starts a job, goes on with it, or joins those who work on it."""

from __future__ import annotations

import sys
from contextlib import closing

import click

from engine.cli.codes import CODES, TRY_AGAIN, code_when_done
from engine.cli.log_option import log_option
from engine.cli.loop import run_async
from engine.cli.metrics import MetricsOptions, Observer, metrics_options
from engine.cli.progress import Display
from engine.cli.spec_options import spec_options
from engine.cli.terminal import Terminal, error_json, output_options
from engine.errors import BackfillError
from engine.events import Emit
from engine.fleet import Interrupted, LocalRun
from engine.fleet.signals import exit_code
from engine.flow.endpoints import endpoints_of
from engine.flow.result import RunResult
from engine.model import JobState
from engine.spec import JobSpec
from engine.telemetry import JsonLines, finished_event, numbers, tee
from engine.telemetry.entries import STOPPED, Entry, ended


@click.command()
@spec_options
@click.option("--attach", is_flag=True, help="Only watch a job that runs elsewhere.")
@click.option("--no-wait", is_flag=True, help="Do not wait for a paused job (exit 8), nor join other runners (75).")
@metrics_options
@log_option
@output_options
def run(terminal: Terminal, spec: JobSpec, metrics: MetricsOptions, attach: bool, no_wait: bool) -> int:
    """Start a job, or go on with it where it was.

    FILE is the job's spec; without it flags say the same. A job that runs already is joined. Ctrl-C finishes the
    chunks in hand and stops; a second one aborts them. Either way the next run goes on.
    """
    lines = JsonLines(sys.stdout) if terminal.as_json else None
    terminal.bind(job=spec.name)
    with closing(Observer(terminal, metrics)) as observer:
        return run_async(_run(terminal, spec, lines, observer, attach=attach, wait=not no_wait))


async def _run(
    terminal: Terminal, spec: JobSpec, lines: JsonLines | None, observer: Observer, *, attach: bool, wait: bool
) -> int:
    display = Display(terminal, lambda: job.supervisor)
    emit: Emit = tee(display, observer) if lines is None else tee(display, lines, observer)
    job = LocalRun(spec, emit=emit, attach=attach, wait=wait, signals=True)
    async with observer.beside(endpoints_of(spec)[1], lambda: job.supervisor, emit):
        try:
            with display.shown():
                result = await job.run()
        except Interrupted as error:
            terminal.tell(interrupted(error))
            return error.exit_code
        code = report(terminal, lines, job, result)
        if job.interrupted is None:
            await observer.linger()
        return code


def report(terminal: Terminal, lines: JsonLines | None, job: LocalRun, result: RunResult) -> int:
    """Say how a run ended; gives its exit code."""
    finished = finished_event(result, rows_before=job.rows_before)
    if lines is not None:
        if result.error is not None:
            lines.write(error_json(result.error))
        lines(finished)
    terminal.tell(stopped(result) if result.drained and not result.state.is_final else ended(finished))
    if result.error is not None:
        terminal.error(result.error)
    return code_of(result, job)


def interrupted(error: Interrupted) -> Entry:
    """A signal came before there was anything to finish."""
    return Entry(event=STOPPED, message=f"{error}; nothing was moved by this run", fields={"reason": str(error)})


def stopped(result: RunResult) -> Entry:
    """The run ends, and the job does not."""
    moved = f"{numbers.count(result.rows)} rows of {result.job} are moved"
    return Entry(
        event=STOPPED,
        message=f"stopped before the end: {moved}; the next run goes on from there",
        fields={
            "job": result.job,
            "state": result.state.value,
            "rows": result.rows,
            "seconds": round(result.seconds, 3),
        },
    )


def code_of(result: RunResult, job: LocalRun) -> int:
    """The exit code of a run that ended so."""
    error: BackfillError | None = result.error
    if error is not None:
        return error.exit_code
    if result.state is JobState.DONE:
        return code_when_done(result.verified)
    if result.drained and job.interrupted is not None:
        return exit_code(job.interrupted)
    return CODES.get(result.state, TRY_AGAIN)
