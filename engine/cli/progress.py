"""What ``run`` shows while it runs: a display that repaints itself on a terminal, else a line now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.cli.terminal import Terminal
from engine.cli.words import STYLES, limit_words, one_line, reason, rows, waits
from engine.clock import Clock, SystemClock
from engine.events import ChunkCommitted, Event, JobFinished, Waiting
from engine.flow.worker import Worker
from engine.ledger.records import JobStatus
from engine.telemetry import numbers
from engine.telemetry.entries import PROGRESS, Entry
from engine.telemetry.narrator import Narrator

if TYPE_CHECKING:
    from engine.telemetry.log import Log  # who writes none does not wait for it

REPAINT_S: Final = 0.25
SUMMARY_S: Final = 10.0
LOG_SUMMARY_S: Final = 60.0
SETTLE_S: Final = 1.0
"""Between two looks at what came too soon after its like."""

_BAR_WIDTH: Final = 30


class Runner(Protocol):
    """Who runs the job: a supervisor here, or a daemon, whose workers are not seen."""

    @property
    def status(self) -> JobStatus | None:
        """The job as it was seen last."""
        ...

    @property
    def workers(self) -> Sequence[Worker]:
        """The workers of this process."""
        ...


Watched = Callable[[], Runner | None]


class Display:
    """Listens to events and looks at the supervisor; says what a person wants to know about the run."""

    def __init__(self, terminal: Terminal, supervisor: Watched, clock: Clock | None = None) -> None:
        self._terminal = terminal
        self._supervisor = supervisor
        self._clock = clock or SystemClock()
        self._live: Live | None = None
        self._narrator = Narrator(terminal.tell, self._clock, verbosity=terminal.verbosity)
        self._waiting = ""  # as was said: what stands still makes no progress, and its status may be an old one
        self._fresh_rows = 0  # committed here since the last look at the ledger
        self._look: object = None
        self._own_rows = 0
        self._own_since: float | None = None  # the first chunk's end

    def __call__(self, event: Event) -> None:
        """An ``Emit``: sentences are printed above the display."""
        if isinstance(event, ChunkCommitted):
            self._fresh_rows += event.observation.rows
            if self._own_since is None:
                self._own_since = self._clock.now()
            else:
                self._own_rows += event.observation.rows
        if isinstance(event, Waiting):
            self._waiting = event.reason
        if not isinstance(event, JobFinished):
            self._narrator(event)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress while the block runs."""
        tasks = [asyncio.ensure_future(work) for work in self._while_shown()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            if self._live is not None:
                self._live.stop()
            self._narrator.settle(at_once=True)

    def _while_shown(self) -> Iterator[Coroutine[None, None, None]]:
        if self._terminal.quiet:
            return
        yield self._settle()
        if self._terminal.log is not None:
            yield self._log_progress(self._terminal.log)
        elif self._terminal.shows_progress:
            yield self._repaint()
        elif not self._terminal.as_json:
            yield self._summarise()

    async def _settle(self) -> None:
        while True:
            await self._clock.sleep(SETTLE_S)
            self._narrator.settle()

    async def _repaint(self) -> None:
        console = self._terminal.err
        self._live = Live(self._picture(), console=console, auto_refresh=False, transient=True)
        self._live.start()
        while True:
            self._live.update(self._picture(), refresh=True)
            await self._clock.sleep(REPAINT_S)

    async def _summarise(self) -> None:
        while True:
            await self._clock.sleep(SUMMARY_S)
            supervisor = self._supervisor()
            if supervisor is not None and supervisor.status is not None and not self._waiting:
                self._terminal.say(one_line(supervisor.status))

    async def _log_progress(self, log: Log) -> None:
        while True:
            await self._clock.sleep(LOG_SUMMARY_S)
            supervisor = self._supervisor()
            if supervisor is not None and supervisor.status is not None and not self._waiting:
                log.write(progress_entry(supervisor.status))

    # -- the picture ------------------------------------------------------------------------------------------------

    def _picture(self) -> RenderableType:
        supervisor = self._supervisor()
        status = supervisor.status if supervisor is not None else None
        if supervisor is None or status is None:
            return Text("connecting" if supervisor is None else self._waiting and f"waiting for: {self._waiting}")
        if status is not self._look:
            self._look, self._fresh_rows = status, 0
        parts: list[RenderableType] = [self._headline(supervisor)]
        for worker in supervisor.workers:
            if status.state.is_at_work:
                why = f"  waiting: {worker.waiting}" if worker.waiting else ""
                span = f"span {worker.span.id}" if worker.span is not None else "no span"
                parts.append(Text(f"  {worker.name}  {span}, chunks of {worker.sizer.rows:,} rows{why}", style="dim"))
        if limit := limit_words(status):
            pressure = "" if status.pressure is None else f", pressure {status.pressure:.2f}"
            parts.append(Text(f"  {limit}{pressure}", style="dim"))
        if waited := waits(status):
            parts.append(Text(f"  waited: {waited}", style="dim"))
        if why := f"waiting for: {self._waiting}" if self._waiting else reason(status):
            parts.append(Text(f"  {why}", style="yellow"))
        return Group(*parts)

    def _own_rate(self) -> float:
        """Rows a second of this process, until the ledger knows better: workers report every few seconds."""
        elapsed_s = self._clock.now() - self._own_since if self._own_since is not None else 0.0
        return self._own_rows / elapsed_s if elapsed_s > REPAINT_S else 0.0

    def _headline(self, supervisor: Runner) -> RenderableType:
        status = supervisor.status
        assert status is not None
        text = rows(status)
        if status.state.is_at_work:
            done = status.rows_done + self._fresh_rows  # the ledger's count is up to a second old
            text = f"{numbers.count(done)} of {numbers.count(max(done, status.rows_estimated))} rows"
            text += f"  {numbers.per_second(status.rows_per_s or self._own_rate())}"
            if status.eta_s is not None:
                text += f"  {numbers.duration(status.eta_s)} left"
            if status.workers > len(supervisor.workers):
                text += f"  {numbers.counted(status.workers, 'worker')} in all"
        state = "sweeping" if status.phase == "sweep" else status.state.value
        line = Table.grid(padding=(0, 2))
        line.add_row(
            Text(status.job, style="bold"),
            Text(state, style=STYLES.get(status.state, "")),
            ProgressBar(total=1.0, completed=status.progress, width=_BAR_WIDTH),
            Text(numbers.percent(status.progress)),
            Text(text),
        )
        return line


def progress_entry(status: JobStatus) -> Entry:
    """Where the job is, as a line of the log: the names are those of ``status --json``."""
    return Entry(
        event=PROGRESS,
        message=one_line(status),
        fields={
            "job": status.job,
            "state": status.state.value,
            "phase": status.phase,
            "rows": status.rows_done,
            "rows_estimated": round(status.rows_estimated),
            "progress": round(status.progress, 6),
            "rows_per_s": round(status.rows_per_s, 1),
            "eta_s": None if status.eta_s is None else round(status.eta_s, 1),
            "workers": status.workers,
            "limit_rows_per_s": status.limit_now_rows_per_s,
            "held_by": status.held_by,
            "reason": reason(status) or None,
            "quarantined": status.quarantined,
        },
    )
