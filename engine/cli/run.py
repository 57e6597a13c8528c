"""``backfill run``: starts a job, goes on with it, or joins those who work on it."""

from __future__ import annotations

from contextlib import closing

import click

from engine.cli.codes import CODES, TRY_AGAIN, code_when_done
from engine.cli.log_option import log_option
from engine.cli.loop import run_async
from engine.cli.metrics import MetricsOptions, Observer, metrics_options
from engine.cli.places import Remote
from engine.cli.progress import Display
from engine.cli.report import report
from engine.cli.spec_options import spec_options
from engine.cli.submitted import run_by_daemon
from engine.cli.terminal import Terminal, output_options
from engine.errors import BackfillError, UsageError
from engine.events import Emit
from engine.fleet import Interrupted, LocalRun
from engine.fleet.signals import exit_code
from engine.flow.endpoints import endpoints_of
from engine.flow.result import RunResult
from engine.model import JobState
from engine.spec import JobSpec
from engine.telemetry import JsonLines, tee
from engine.telemetry.entries import STOPPED, Entry


@click.command()
@spec_options
@click.option("--attach", is_flag=True, help="Only watch a job that runs elsewhere.")
@click.option("--no-wait", is_flag=True, help="Do not wait for a paused job (exit 8), nor join other runners (75).")
@metrics_options
@log_option
@output_options
def run(
    terminal: Terminal, spec: JobSpec, remote: Remote | None, metrics: MetricsOptions, attach: bool, no_wait: bool
) -> int:
    """Start a job, or go on with it where it was.

    FILE is the job's spec; without it flags say the same. A job that runs already is joined. Ctrl-C finishes the
    chunks in hand and stops; a second one aborts them. Either way the next run goes on.

    With --daemon the daemon runs it, and this command submits and watches it: Ctrl-C ends only the watching, and
    --no-wait submits and leaves. The spec names the daemon's connections in place of connection strings.
    """
    if remote is not None:
        if metrics.listen is not None:
            raise UsageError("--metrics-listen beside --daemon", hint="the daemon serves metrics itself: GET /metrics")
        terminal.bind(job=spec.name)
        return run_async(run_by_daemon(terminal, spec, remote, attach=attach, wait=not no_wait))
    lines = JsonLines(terminal.stdout) if terminal.as_json else None
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
        report(terminal, lines, result, rows_before=job.rows_before)
        code = code_of(result, job)
        if job.interrupted is None:
            await observer.linger()
        return code


def interrupted(error: Interrupted) -> Entry:
    """A signal came before there was anything to finish."""
    return Entry(event=STOPPED, message=f"{error}; nothing was moved by this run", fields={"reason": str(error)})


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
