"""Watching a job that a daemon runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from engine.cli.jobs import status_of
from engine.cli.places import LONG_PATIENCE_S, Place, Remote
from engine.cli.terminal import Terminal
from engine.clock import Clock, SystemClock
from engine.errors import BackfillError, Busy, CannotConnect
from engine.flow.worker import Worker
from engine.ledger.records import JobStatus
from engine.telemetry import numbers

if TYPE_CHECKING:  # loaded when a daemon is spoken to
    from engine.client import AsyncClient
    from engine.wire import shapes

Answer = TypeVar("Answer")

AGAIN_S: Final = 2.0
"""Between two questions to a daemon that is away."""

_LATER: Final = (429, 502, 503, 504)


class WatchedJob:
    """What the display of progress looks at: the job; its workers are elsewhere."""

    def __init__(self) -> None:
        self.status: JobStatus | None = None
        self.workers: tuple[Worker, ...] = ()


async def followed(terminal: Terminal, client: AsyncClient, shown: shapes.Job) -> AsyncIterator[JobStatus]:
    """The job as it changes, to its end."""
    from engine.wire import shapes

    if shown.state.is_final:
        return
    aside: str | None = None
    async for told in client.follow(shown.job, connection=shown.connection):
        if isinstance(told, shapes.Job):
            if told.aside is not None and told.aside != aside:
                terminal.say(f"this daemon does not work it: {told.aside}", "yellow")
            aside = told.aside
            yield status_of(told)
        elif isinstance(told, shapes.Trouble):
            terminal.say(f"no news for now: {told.message}", "yellow")


class Steadily:
    """Asks a daemon again and again while it, or its database, is away, and says so once for each stretch of trouble.

    Only who was answered once is so patient: an address where nobody ever answered is more likely a wrong one.
    """

    def __init__(self, terminal: Terminal, place: Place, clock: Clock | None = None) -> None:
        self._terminal = terminal
        self._is_remote = isinstance(place.where, Remote)
        self._clock = clock or SystemClock()
        self._was_answered = False

    async def ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer.  Raises what will not pass by itself, and what has lasted for too long."""
        troubled_since: float | None = None
        while True:
            try:
                answer = await question()
            except BackfillError as error:
                if not (self._is_remote and self._was_answered and _may_pass(error)):
                    raise
                now = self._clock.now()
                if troubled_since is None:
                    troubled_since = now
                    lasts = numbers.duration(LONG_PATIENCE_S)
                    self._terminal.say(f"no news for now: {error.message}; trying for {lasts}", "yellow")
                elif now - troubled_since > LONG_PATIENCE_S:
                    raise
            else:
                self._was_answered = True
                return answer
            await self._clock.sleep(AGAIN_S)


def _may_pass(error: BackfillError) -> bool:
    return isinstance(error, (CannotConnect, Busy)) or getattr(error, "status", 0) in _LATER
