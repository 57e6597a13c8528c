"""``backfill run --daemon``: gives the job to a daemon, and shows how it fares, as if it ran here."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Final

from engine.cli.codes import CODES, code_when_done
from engine.cli.jobs import status_of
from engine.cli.places import LONG_PATIENCE_S, SLOW_PATIENCE_S, Remote
from engine.cli.progress import Display
from engine.cli.report import report
from engine.cli.terminal import Terminal
from engine.cli.watched_job import WatchedJob, followed
from engine.cli.words import NO_PACER, STYLES, one_line, what_next
from engine.clock import SystemClock
from engine.errors import BackfillError, HeldByOperator, Stopped
from engine.events import DeadlineLate, Emit, JobOpened, PaceChanged, PhaseChanged, StateChanged, Waiting
from engine.fleet.signals import TwoSignals, exit_code
from engine.flow.result import RunResult
from engine.ledger.records import JobStatus
from engine.model import JobState, Phase
from engine.spec import JobSpec
from engine.telemetry import JsonLines, tee

if TYPE_CHECKING:  # loaded when a daemon is spoken to
    from engine.wire import shapes

_PHASES: Final = frozenset(phase.value for phase in Phase)


async def run_by_daemon(terminal: Terminal, spec: JobSpec, remote: Remote, *, attach: bool, wait: bool) -> int:
    """Submit the job, unless it is only to be watched, and follow it to its end; gives the exit code.

    ``wait`` False: tell how it is then, and leave.  A signal ends only the watching.
    """
    lines = JsonLines(terminal.stdout) if terminal.as_json else None
    watched = WatchedJob()
    display = Display(terminal, lambda: watched)
    news = _News(display if lines is None else tee(display, lines), attached=attach)
    task, clock = asyncio.current_task(), SystemClock()
    assert task is not None

    def leave(_: signal.Signals) -> None:
        task.cancel()

    signals = TwoSignals(leave, lambda: None)
    began = clock.now()
    try:
        with signals.watched():
            shown = await _begun(spec, remote, attach=attach)
            watched.status = status_of(shown)
            if not wait:
                return _left(terminal, watched.status)
            news.hear(watched.status)
            async with remote.client(patience_s=LONG_PATIENCE_S) as client:
                with display.shown():
                    async for status in followed(terminal, client, shown):
                        watched.status = status
                        news.hear(status)
    except asyncio.CancelledError:
        if signals.first is None:
            raise
        terminal.say(f"{spec.name} goes on in the daemon; the same command watches it again, backfill cancel ends it")
        return exit_code(signals.first)
    result = news.result(clock.now() - began)
    report(terminal, lines, result, rows_before=news.rows_before)
    if result.error is not None:
        return result.error.exit_code
    return code_when_done(result.verified) if result.state is JobState.DONE else CODES[result.state]


async def _begun(spec: JobSpec, remote: Remote, *, attach: bool) -> shapes.Job:
    async with remote.client(patience_s=SLOW_PATIENCE_S) as client:
        if attach:
            return await client.job(spec.name, connection=remote.connection)
        return await client.submit(spec.for_ledger())


def _left(terminal: Terminal, status: JobStatus) -> int:
    """What is told to somebody who does not want to wait."""
    if terminal.as_json:
        terminal.json(status.as_json())
    terminal.say(f"{status.job}: {one_line(status)}", STYLES.get(status.state, ""))
    if status.state.is_final and (next_step := what_next(status)):
        terminal.say(f"  {next_step}", "dim")
    return code_when_done(status.verified) if status.state is JobState.DONE else CODES.get(status.state, 0)


class _News:
    """Makes events of how a job changes from one look to the next: those that a run here would have, as far as they can
    be seen from afar.
    """

    def __init__(self, emit: Emit, *, attached: bool) -> None:
        self._emit = emit
        self._attached = attached
        self._seen: JobStatus | None = None
        self._resumed = False
        self.rows_before = 0

    def hear(self, now: JobStatus) -> None:
        """One look at the job."""
        before, self._seen = self._seen, now
        if before is None:
            self._open(now)
        if before is None or (now.state, now.phase) != (before.state, before.phase):
            self._tell_state(before, now)
        if _waiting(now) != (_waiting(before) if before is not None else ""):
            self._emit(Waiting(job=now.job, reason=_waiting(now)))
        if _pace(now) != (_pace(before) if before is not None else None) and now.stage is not None:
            self._emit(
                PaceChanged(
                    job=now.job,
                    stage=now.stage,
                    leads=now.leads or "",
                    reason=now.pace_reason or "",
                    limit_rows_per_s=now.limit_now_rows_per_s,
                )
            )
        if now.deadline is not None and (before is None or before.deadline is None):
            self._emit(DeadlineLate(job=now.job, reason="finish_by cannot be met at the allowed pace"))

    def _open(self, now: JobStatus) -> None:
        self._resumed, self.rows_before = now.started_at is not None, now.rows_done
        self._emit(
            JobOpened(
                job=now.job,
                mode=now.mode,
                source=now.source,
                target=now.target,
                resumed=self._resumed,
                rows_estimated=now.rows_estimated,
                spans=now.spans_total,
                attached=self._attached,
            )
        )

    def _tell_state(self, before: JobStatus | None, now: JobStatus) -> None:
        if before is None or now.state is not before.state:
            why = now.error_message if now.state is JobState.FAILED else now.waiting if _is_held(now) else ""
            self._emit(StateChanged(job=now.job, state=now.state, reason=why or ""))
        if before is not None and now.phase != before.phase and now.phase in _PHASES:
            self._emit(PhaseChanged(job=now.job, phase=Phase(now.phase)))

    def result(self, seconds: float) -> RunResult:
        """How the job ended."""
        seen = self._seen
        assert seen is not None
        return RunResult(
            job=seen.job,
            state=seen.state,
            rows=seen.rows_done,
            bytes=seen.bytes_done,
            chunks=seen.chunks,
            seconds=seconds,
            retries=seen.retries,
            resumed=self._resumed,
            drained=False,
            error=_error(seen),
            quarantined=seen.quarantined,
            verified=seen.verified,
        )


def _is_held(status: JobStatus) -> bool:
    return status.state in (JobState.PAUSED, JobState.CANCELLED)


def _waiting(status: JobStatus) -> str:
    """Why nothing moves, where no change of state and no pace says it."""
    if not status.waiting or _is_held(status) or status.state.is_final or status.held_by:
        return ""
    return "" if status.waiting.startswith(NO_PACER) else status.waiting


def _pace(status: JobStatus) -> tuple[str | None, ...] | None:
    return None if status.stage is None else (status.stage, status.held_by, status.leads)


def _error(status: JobStatus) -> BackfillError | None:
    """What ended the job, as a run here would tell it."""
    if status.state is JobState.CANCELLED:
        why = f": {status.waiting}" if status.waiting else ""
        hint = "backfill restart begins it anew"
        return HeldByOperator(f"job {status.job} was cancelled{why}", state=status.state, hint=hint)
    if status.state is JobState.FAILED:
        from engine.client.failures import named

        message, hint = status.error_message or "", status.error_hint or ""
        error = named(status.error_code or Stopped.code, message, hint=hint)
        return error if isinstance(error, Stopped) else Stopped(message, hint=hint)
    return None
