"""One job in this process, from its spec to its end."""

from __future__ import annotations

import asyncio
import signal
from contextlib import nullcontext
from typing import Any, ClassVar, Final

from engine.clock import SystemClock
from engine.db import Database
from engine.errors import Busy, Stopped, UnknownJob, UsageError
from engine.events import Emit, ignore
from engine.fleet.signals import NAMES, Interrupted, TwoSignals
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import Inspection, Prepared, inspect
from engine.flow.result import RunResult
from engine.flow.supervisor import Supervisor
from engine.flow.transforming import as_begun
from engine.ledger.store import Ledger
from engine.spec import JobSpec
from engine.spec.models import MAX_WORKERS

ABORT_S: Final = 3.0
"""How long an aborted run may take to close what it holds before it is cut off."""


class LocalRun:
    """Runs ``spec`` with workers in this process; ``await run.run()`` once.

    ``attach``: only watch.  ``wait`` False: a paused job, or one that others work on, is not waited for.
    ``signals``: handle SIGINT and SIGTERM (main thread only).  ``supervisor`` is there once the job is prepared.
    """

    _tries: ClassVar[bool] = True  # rows are to be written: a transform is tried on some of them before

    def __init__(
        self,
        spec: JobSpec,
        *,
        emit: Emit = ignore,
        attach: bool = False,
        wait: bool = True,
        signals: bool = False,
    ) -> None:
        self.spec = spec
        self.supervisor: Supervisor | None = None
        self.rows_before = 0  # what the job had moved when this run began
        self._emit = emit
        self._attach = attach
        self._wait = wait
        self._signals = TwoSignals(self._drain, self._abort) if signals else None
        self._task: asyncio.Task[Any] | None = None
        self._is_aborted = False
        self._clock = SystemClock()

    @property
    def interrupted(self) -> signal.Signals | None:
        """The first signal that came, if one did."""
        return self._signals.first if self._signals is not None else None

    async def run(self) -> RunResult:
        """Work the job to its end.

        Raises ``BackfillError`` for what keeps the job from being opened, ``Busy`` when others work on it and waiting
        was not wanted, and ``Interrupted`` when a signal came before the job was opened.
        """
        self._task = asyncio.current_task()
        with self._signals.watched() if self._signals is not None else nullcontext():
            try:
                return await self._run()
            except (asyncio.CancelledError, Exception) as error:
                # Cancelled by the first signal before there was a job, or cut off by the second.
                if self.interrupted is None or not (self._is_aborted or isinstance(error, asyncio.CancelledError)):
                    raise
                raise Interrupted(self.interrupted) from None

    async def _run(self) -> RunResult:
        databases = endpoints_of(self.spec)
        began = self._clock.now()
        await self._look_at_ledger(databases[1])
        tries = self._tries and not self._attach
        spec = self.spec if tries else await as_begun(self.spec, databases[1])
        prepared = self._prepared(await inspect(spec, databases, runs=tries, tries=tries))
        await self._begin(prepared)
        supervisor = Supervisor(
            prepared,
            workers=self.spec.workers,
            emit=self._emit,
            wait=self._wait,
            attach=self._attach,
        )
        self.supervisor = supervisor
        try:
            return await supervisor.run()
        except Stopped as error:
            return await self._stopped(databases[1], error, began)

    def _prepared(self, seen: Inspection) -> Prepared:
        """The job as it can be run.  Raises ``PreflightRefused``."""
        return seen.prepared()

    async def _begin(self, prepared: Prepared) -> None:
        """What comes before the supervisor looks at the job: here nothing."""

    async def _stopped(self, target: Database, error: Stopped, began: float) -> RunResult:
        """The job was found, and a guard stopped it before any work: that is how this run ended, too."""
        connection = await target.connect("look")
        try:
            status = await Ledger(connection).status(self.spec.name)
        finally:
            await connection.close()
        return RunResult(
            job=status.job,
            state=status.state,
            rows=status.rows_done,
            bytes=status.bytes_done,
            chunks=status.chunks,
            seconds=self._clock.now() - began,
            retries=status.retries,
            resumed=True,
            drained=False,
            error=error,
            quarantined=status.quarantined,
            verified=status.verified,
        )

    async def _look_at_ledger(self, target: Database) -> None:
        """What the job has behind it; and the two cases in which there is nothing for us to do."""
        connection = await target.connect("look")
        try:
            ledger = Ledger(connection)
            known = await ledger.installed_version() > 0 and await ledger.find(self.spec.name) is not None
            if not known:
                if self._attach:
                    raise UnknownJob(
                        f"no job named {self.spec.name!r} to attach to", hint="without --attach, run starts it"
                    )
                return
            status = await ledger.status(self.spec.name)
        finally:
            await connection.close()
        self.rows_before = status.rows_done
        if not self._wait and not self._attach and status.state.is_at_work and status.workers:
            raise Busy(
                f"job {self.spec.name} is being worked on by others ({status.workers} workers)",
                hint="without --no-wait, run joins them",
            )

    def _drain(self, number: signal.Signals) -> None:
        if self.supervisor is not None:
            self.supervisor.drain(NAMES[number])
        elif self._task is not None:
            self._task.cancel()

    def _abort(self) -> None:
        self._is_aborted = True
        if self.supervisor is not None:
            self.supervisor.abort()
        if self._task is not None:
            asyncio.get_running_loop().call_later(ABORT_S, self._task.cancel)


async def run_job(spec: JobSpec, *, workers: int | None = None, emit: Emit = ignore, wait: bool = True) -> RunResult:
    """Run a job in this process to its end, or join those who work on it; the programmer's ``backfill run``.

    ``workers`` replaces the spec's number.  ``emit`` hears every event.  ``wait`` False: a job that is paused or worked
    on by others is not waited for.  The result tells how the job ended; raises ``BackfillError`` for what kept it from
    being opened.  Cancelling the task ends the run: what was in hand rolls back, and the next run goes on.
    """
    if workers is not None:
        if not 1 <= workers <= MAX_WORKERS:
            raise UsageError(f"workers must be between 1 and {MAX_WORKERS}, not {workers}")
        spec = spec.model_copy(update={"workers": workers})
    return await LocalRun(spec, emit=emit, wait=wait).run()
