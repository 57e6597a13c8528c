"""A worker process for a whole ledger: works its jobs one after another, whoever created them.

What a job's row says is believed only as far as this host allows.  The ledger's own database is the target, so the
target's connection is always the one we were given.  The source of a job between two databases is reached by the
connection string that the operator of this host gave, or by a reference (``${SOURCE_DSN}``) to a variable that the
operator allowed to be looked up; a signal's URL is asked only if the operator allowed it.  Any other job is left to
other hosts, and said so once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from engine.clock import Clock, SystemClock
from engine.db import Action, Connection, Database, classify
from engine.errors import BackfillError, CannotConnect, UsageError
from engine.events import Draining, Emit, Event, ignore
from engine.fleet.signals import NAMES, TwoSignals
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import inspect
from engine.flow.result import RunResult
from engine.flow.supervisor import Supervisor
from engine.ledger.records import JobRecord
from engine.ledger.store import Ledger
from engine.model import Mode, Side
from engine.spec import Dsn, JobSpec
from engine.telemetry import finished_event

POLL_S: Final = 5.0
"""Between two looks for work when nobody notifies."""

ASIDE_S: Final = 60.0
"""How long a job that cannot be worked here is left aside before it is tried again."""

ABORT_S: Final = 3.0
DEFAULT_VARIABLES: Final = ("SOURCE_DSN", "TARGET_DSN")
_ASTRAY: Final = ("..", "\\", "\N{REPLACEMENT CHARACTER}")
"""What no path may have in it once decoded: a way up, what some servers take for a slash, bytes that are no text."""

_AWAY: Final = (Action.RECONNECT, Action.WAIT, Action.PAUSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLeftAside(Event):
    """This host does not work that job (now), and why."""

    name = "job.aside"
    reason: str


@dataclass(frozen=True, slots=True)
class Lent:
    """What this host lends to jobs of the ledger: connections, names of variables that references may mean, and URLs
    (with everything below them) that signals may ask.
    """

    target: Dsn
    source: Dsn | None = None
    variables: frozenset[str] = frozenset(DEFAULT_VARIABLES)
    urls: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def spec_of(self, job: JobRecord) -> JobSpec:
        """The job's spec with this host's connections.  Raises ``UsageError`` when its source cannot be reached from
        here, and ``SpecError`` when the ledger's row is no spec.
        """
        return self._checked(self._with_connections(job))

    def _with_connections(self, job: JobRecord) -> JobSpec:
        # References are kept as the ledger has them: who works a job does not rewrite its settings.
        target = Dsn(self.target.secret(), reference=_reference(job, "target"))
        if job.mode is not Mode.COPY:
            source = Dsn(self.target.secret(), reference=_reference(job, "source"))
            in_target = job.mode is Mode.INSERT and _reference(job, "target") is not None
            return JobSpec.from_ledger(job.spec, source_dsn=source, target_dsn=target if in_target else None)
        return JobSpec.from_ledger(job.spec, source_dsn=self._source_of(job), target_dsn=target)

    def _checked(self, spec: JobSpec) -> JobSpec:
        """The spec, unless one of its signals would have this host contact an address that nobody here named."""
        for listened in spec.pace.effective_signals():
            url = listened.url
            if url is not None and not any(_is_below(url, allowed) for allowed in self.urls):
                address = "{0.scheme}://{0.netloc}".format(urlsplit(url))
                raise UsageError(
                    f"its signal {listened.name} asks {address}, which this worker may not contact",
                    hint=f"allow it by --allow-url {address}",
                )
        return spec

    def _source_of(self, job: JobRecord) -> Dsn:
        reference = _reference(job, "source")
        if self.source is not None:
            return Dsn(self.source.secret(), reference=reference)
        if reference is None:
            raise UsageError("its source's connection is not known here", hint="give it by --source-dsn")
        variable = reference.removeprefix("${").removesuffix("}")
        if variable not in self.variables:
            raise UsageError(
                f"its source is {reference}, which this worker may not look up", hint=f"allow it by --env {variable}"
            )
        if not self.environment.get(variable):
            raise UsageError(f"its source is {reference}, which is not set here", hint=f"export {variable}")
        return Dsn(self.environment[variable], reference=reference)


def _is_below(url: str, allowed: str) -> bool:
    """True for the allowed URL itself and for what is below its path, however its server spells out the path."""
    asked, root = urlsplit(url), urlsplit(allowed)
    if (asked.scheme, asked.netloc) != (root.scheme, root.netloc):
        return False
    path, top = _decoded(asked.path), _decoded(root.path).rstrip("/")
    # A slash that was encoded is a step down for some servers, and part of a name for others.
    if path.count("/") != asked.path.count("/") or any(bad in path for bad in _ASTRAY):
        return False
    return path == top or path.startswith(f"{top}/")


def _decoded(path: str) -> str:
    """Without percent signs, even where they were encoded themselves: some way may decode it twice."""
    while (plain := unquote(path)) != path:
        path = plain
    return path


def _reference(job: JobRecord, side: str) -> str | None:
    endpoint = job.spec.get(side)
    dsn = endpoint.get("dsn") if isinstance(endpoint, Mapping) else None
    reference = dsn.get("reference") if isinstance(dsn, Mapping) else None
    return str(reference) if reference else None


class Pool:
    """Works the jobs of one ledger until drained; with ``once``, until no job is left to work.

    ``only``: names of jobs, empty for all.  ``workers`` None: as many as each job's spec says.
    """

    def __init__(
        self,
        lent: Lent,
        *,
        workers: int | None = None,
        only: Sequence[str] = (),
        once: bool = False,
        emit: Emit = ignore,
        clock: Clock | None = None,
    ) -> None:
        self.supervisor: Supervisor | None = None
        self.errors: dict[str, BackfillError] = {}  # jobs that could not be worked here, or that failed
        self._lent = lent
        self._workers = workers
        self._only = frozenset(only)
        self._once = once
        self._emit = emit
        self._clock = clock or SystemClock()
        self._signals = TwoSignals(self._drain, self._abort)
        self._stop = asyncio.Event()
        self._news = asyncio.Event()
        self._aside: dict[str, tuple[float, str]] = {}  # job -> (until, reason)
        self._task: asyncio.Task[Any] | None = None
        self._connection: Connection | None = None

    @property
    def interrupted(self) -> signal.Signals | None:
        """The first signal that came, if one did."""
        return self._signals.first

    async def run(self, *, signals: bool = True) -> None:
        """Work until told to stop, or with ``once`` until nothing is left.  Raises ``BackfillError`` for what keeps the
        ledger itself out of reach at the start.
        """
        self._task = asyncio.current_task()
        with self._signals.watched() if signals else nullcontext():
            try:
                await self._connect()
                await self._loop()
            except asyncio.CancelledError:
                if self.interrupted is None:
                    raise
            finally:
                if self._connection is not None:
                    await self._connection.close()

    async def _loop(self) -> None:
        while not self._stop.is_set():
            job = await self._next()
            if job is not None:
                await self._work(job)
            elif self._once:
                return
            else:
                await self._for_news()

    async def _connect(self) -> Ledger:
        if self._connection is None or self._connection.is_closed:
            self._connection = await Database(self._lent.target, side=Side.TARGET).connect("pool")
            if self._connection.server.capabilities.listen_notify:
                await self._connection.add_listener("backfill", lambda _: self._news.set())
        return Ledger(self._connection)

    async def _next(self) -> JobRecord | None:
        """The oldest job that can be worked here, or None."""
        try:
            ledger = await self._connect()
            if await ledger.installed_version() == 0:
                return None
            now = self._clock.now()
            for name in await ledger.workable():
                until, _ = self._aside.get(name, (now, ""))
                if until > now or (self._only and name not in self._only):
                    continue
                return await ledger.find(name)
        except Exception as error:
            if self._once or classify(error).action not in _AWAY:
                raise
            if self._connection is not None:
                self._connection.abort()
        return None

    async def _work(self, job: JobRecord) -> None:
        try:
            spec = self._lent.spec_of(job)
            inspection = await inspect(spec, endpoints_of(spec))
            self.supervisor = Supervisor(
                inspection.prepared(), workers=self._workers or spec.workers, emit=self._emit, wait=False
            )
            if self._stop.is_set():
                return
            result = await self.supervisor.run()
        except BackfillError as error:
            self._set_aside(job.name, error)
        except Exception as error:
            failure = classify(error)
            if failure.action not in _AWAY:
                raise
            self._set_aside(job.name, CannotConnect(failure.message, hint=failure.hint, sqlstate=failure.sqlstate))
        else:
            self._ended(result)
        finally:
            self.supervisor = None

    def _ended(self, result: RunResult) -> None:
        self._aside.pop(result.job, None)
        self.errors.pop(result.job, None)
        self._emit(finished_event(result))
        if result.error is not None:
            self._set_aside(result.job, result.error)
        elif not result.state.is_final and not result.drained:
            # Paused meanwhile: look again later, and at others until then.
            self._aside[result.job] = (self._clock.now() + POLL_S, result.state.value)

    def _set_aside(self, job: str, error: BackfillError) -> None:
        self.errors[job] = error
        reason = error.message + (f" ({error.hint})" if error.hint else "")
        _, before = self._aside.get(job, (0.0, ""))
        self._aside[job] = (self._clock.now() + ASIDE_S, reason)
        if reason != before:
            self._emit(JobLeftAside(job=job, reason=reason))

    async def _for_news(self) -> None:
        waiting = [asyncio.ensure_future(e.wait()) for e in (self._news, self._stop)]
        waiting.append(asyncio.ensure_future(self._clock.sleep(POLL_S)))  # type: ignore[arg-type]  # awaited for time only
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*waiting, return_exceptions=True)
        self._news.clear()

    def _drain(self, number: signal.Signals) -> None:
        self._stop.set()
        if self.supervisor is not None:
            self.supervisor.drain(NAMES[number])
        else:
            self._emit(Draining(job="", reason=NAMES[number]))

    def _abort(self) -> None:
        if self.supervisor is not None:
            self.supervisor.abort()
        if self._task is not None:
            asyncio.get_running_loop().call_later(ABORT_S, self._task.cancel)
