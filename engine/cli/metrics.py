"""``--metrics-listen`` and ``--metrics-linger``: a run that Prometheus can scrape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from engine.cli.terminal import Terminal
from engine.clock import Clock, SystemClock
from engine.db import Database
from engine.errors import UsageError
from engine.events import Emit, Event
from engine.fleet.signals import TwoSignals
from engine.flow.supervisor import Supervisor
from engine.spec.misfit import Misfit
from engine.spec.units import parse_duration
from engine.telemetry import numbers
from engine.telemetry.entries import Entry, Weight

if TYPE_CHECKING:  # the library takes a while to load, and most runs are not scraped
    from engine.telemetry.exposition import Exposition
    from engine.telemetry.metrics import Metrics

Command = TypeVar("Command", bound=Callable[..., Any])

LINGER_POLL_S: Final = 0.05
LEAVE_S: Final = 3.0
"""How long reporter and readings may take to close what they have open."""


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """What was asked for.  ``listen`` None: no metrics."""

    listen: str | None = None
    linger_s: float = 0.0


def metrics_options(command: Command) -> Command:
    """Adds ``--metrics-listen`` and ``--metrics-linger``; the command gets ``MetricsOptions`` as ``metrics``."""

    @click.option("--metrics-listen", metavar="HOST:PORT", help="Serve metrics for Prometheus there, while it runs.")
    @click.option(
        "--metrics-linger",
        metavar="DURATION",
        default="20s",
        show_default=True,
        help="Stay at most so long after the end, until the last values are scraped.",
    )
    @wraps(command)
    def wrapped(*args: Any, metrics_listen: str | None, metrics_linger: str, **options: Any) -> Any:
        return command(*args, metrics=_options(metrics_listen, metrics_linger), **options)

    return wrapped  # type: ignore[return-value]  # click keeps the options on the function


def _options(listen: str | None, linger: str) -> MetricsOptions:
    try:
        linger_s = parse_duration(linger)
    except Misfit as error:
        raise UsageError(f"--metrics-linger {error.message}", hint=error.hint) from None
    return MetricsOptions(listen, linger_s)


@contextmanager
def listening(terminal: Terminal, metrics: Metrics, listen: str | None) -> Iterator[None]:
    """Serve ``metrics`` while the block runs, where that is asked for.  Raises ``UsageError`` when it cannot be."""
    if listen is None:
        yield
        return
    exposition = _exposed(terminal, metrics, listen)
    try:
        yield
    finally:
        exposition.close()


def _exposed(terminal: Terminal, metrics: Metrics, listen: str) -> Exposition:
    from engine.telemetry.exposition import Exposition

    exposition = Exposition(metrics, listen)
    exposition.open()
    url = exposition.url
    terminal.tell(Entry(event="metrics.listening", message=f"metrics: {url}", fields={"url": url}))
    return exposition


class Observer:
    """What is seen of a run from outside; without ``--metrics-listen``, nothing.  An ``Emit``."""

    def __init__(self, terminal: Terminal, options: MetricsOptions, clock: Clock | None = None) -> None:
        """Listens, where that is asked for.  Raises ``UsageError`` when it cannot."""
        self._terminal = terminal
        self._linger_s = options.linger_s
        self._clock = clock or SystemClock()
        self._metrics: Metrics | None = None
        self._exposition: Exposition | None = None
        self._has_warned = False
        if options.listen is not None:
            from engine.telemetry.metrics import Metrics

            self._metrics = Metrics(self._clock.now)
            self._exposition = _exposed(terminal, self._metrics, options.listen)

    def __call__(self, event: Event) -> None:
        """Count.  What goes wrong here never reaches the job."""
        if self._metrics is not None:
            try:
                self._metrics(event)
            except Exception as error:  # noqa: BLE001 - a count that fails is a bug, and no reason to stop a job
                self._warn(error)

    @asynccontextmanager
    async def beside(
        self, ledger: Database, supervisor: Callable[[], Supervisor | None], emit: Emit
    ) -> AsyncIterator[None]:
        """Report on the ledger's jobs, if it is our turn, and look at the databases, while the block runs."""
        tasks = [] if self._metrics is None else self._tasks(self._metrics, ledger, supervisor, emit)
        try:
            yield
        finally:
            self.close()  # first: nobody is to scrape what is no longer reported, nor beside a successor
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=LEAVE_S)

    def _tasks(
        self, metrics: Metrics, ledger: Database, supervisor: Callable[[], Supervisor | None], emit: Emit
    ) -> list[asyncio.Task[None]]:
        from engine.fleet.observing import observe

        tasks = observe(metrics, ledger, lambda: filter(None, (supervisor(),)), emit)
        for task in tasks:
            task.add_done_callback(self._ended)
        return tasks

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._warn(error)

    async def linger(self) -> None:
        """After the end: stay until the last values have been scraped, if anybody ever scrapes, and not for long.  A
        signal ends it.
        """
        exposition, metrics = self._exposition, self._metrics
        if exposition is None or metrics is None or not exposition.scrapes or self._linger_s <= 0:
            return
        stop = asyncio.Event()
        waiting = asyncio.ensure_future(self._last_scrape(exposition, metrics))
        stopping = asyncio.ensure_future(stop.wait())
        longest = numbers.duration(self._linger_s)
        text = f"waiting up to {longest} for a last scrape of the metrics; Ctrl-C ends that"
        with TwoSignals(lambda _: stop.set(), stop.set).watched():
            self._terminal.tell(Entry(event="metrics.lingering", message=text))
            try:
                await asyncio.wait((waiting, stopping), timeout=self._linger_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
                stopping.cancel()
                await asyncio.gather(waiting, stopping, return_exceptions=True)

    async def _last_scrape(self, exposition: Exposition, metrics: Metrics) -> None:
        before = metrics.reports
        while metrics.is_reporting and metrics.reports == before:
            await self._clock.sleep(LINGER_POLL_S)  # the ledger tells of the end from its next report on
        has_been = exposition.from_now_on()
        while not has_been():
            await self._clock.sleep(LINGER_POLL_S)

    def close(self) -> None:
        """Listen no longer."""
        if self._exposition is not None:
            self._exposition.close()

    def _warn(self, error: BaseException) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = f"some metrics are missing from now on: unexpected {type(error).__name__}; please report this bug"
            self._terminal.tell(Entry(event="metrics.failed", message=text, weight=Weight.WARNING))
