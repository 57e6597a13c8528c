"""``backfill worker``: lends this host's workers to the jobs of a ledger."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import click

from engine.cli.log_option import log_option
from engine.cli.loop import run_async
from engine.cli.metrics import MetricsOptions, Observer, metrics_options
from engine.cli.places import dsn_of
from engine.cli.progress import Display
from engine.cli.terminal import Terminal, output_options
from engine.cli.transform_option import transform_option
from engine.db import Database
from engine.events import Event, JobFinished
from engine.fleet import Lent, Pool
from engine.fleet.pool import DEFAULT_VARIABLES, JobLeftAside, left_aside
from engine.fleet.signals import exit_code
from engine.model import Side
from engine.spec import Dsn
from engine.spec.models import MAX_WORKERS
from engine.telemetry import JsonLines, tee
from engine.telemetry.entries import ended


@click.command()
@click.option("--dsn", metavar="DSN", help="The target's database, with the ledger. Default: BACKFILL_DSN, else PG*.")
@click.option("--source-dsn", metavar="DSN", help="The source of jobs between two databases.")
@click.option("--job", "jobs", multiple=True, metavar="NAME", help="Only this job; may be given several times.")
@click.option("--workers", type=click.IntRange(1, MAX_WORKERS), metavar="N", help="Workers. Default: as each job says.")
@click.option("--env", "variables", multiple=True, metavar="NAME", help="A variable that a job's dsn may refer to.")
@click.option("--allow-url", "urls", multiple=True, metavar="URL", help="An address that signals of jobs may ask.")
@transform_option
@click.option("--once", is_flag=True, help="End when no job is left to work.")
@metrics_options
@log_option
@output_options
def worker(
    terminal: Terminal,
    metrics: MetricsOptions,
    dsn: str | None,
    source_dsn: str | None,
    jobs: tuple[str, ...],
    workers: int | None,
    variables: tuple[str, ...],
    urls: tuple[str, ...],
    transforms: tuple[str, ...],
    once: bool,
) -> int:
    """Work the jobs of a ledger, one after another, beside whoever else does.

    Connections are this host's own: the ledger's database by --dsn, sources by --source-dsn, or by a job's own
    reference where it names SOURCE_DSN, TARGET_DSN, or a variable allowed by --env. Signals that ask Prometheus or
    another HTTP server do so only below an address allowed by --allow-url. Transforms of jobs are loaded only where
    --allow-transform names them, and looked for in this folder too.
    """
    lent = Lent(
        target=dsn_of(dsn, "--dsn") if dsn else Dsn.from_environment(os.environ),
        source=dsn_of(source_dsn, "--source-dsn") if source_dsn else None,
        variables=frozenset((*DEFAULT_VARIABLES, *variables)),
        urls=frozenset(urls),
        transforms=frozenset(transforms),
        search=Path.cwd() if transforms else None,
    )
    with closing(Observer(terminal, metrics)) as observer:
        return run_async(_work(terminal, lent, observer, jobs, workers, once=once))


async def _work(
    terminal: Terminal, lent: Lent, observer: Observer, jobs: tuple[str, ...], workers: int | None, *, once: bool
) -> int:
    display = Display(terminal, lambda: pool.supervisor)

    def tell(event: Event) -> None:
        if isinstance(event, JobLeftAside):
            terminal.tell(left_aside(event))
        elif isinstance(event, JobFinished):
            terminal.tell(ended(event))
        display(event)

    emit = tee(tell, JsonLines(terminal.stdout), observer) if terminal.as_json else tee(tell, observer)
    pool = Pool(lent, workers=workers, only=jobs, once=once, emit=emit)
    async with observer.beside(Database(lent.target, side=Side.TARGET), lambda: pool.supervisor, emit):
        with display.shown():
            await pool.run()
        if pool.interrupted is not None:
            return exit_code(pool.interrupted)
        await observer.linger()
    return max((error.exit_code for error in pool.errors.values()), default=0)
