"""Watching a job that a daemon runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from engine.cli.jobs import status_of
from engine.cli.terminal import Terminal
from engine.flow.worker import Worker
from engine.ledger.records import JobStatus

if TYPE_CHECKING:  # loaded when a daemon is spoken to
    from engine.client import AsyncClient
    from engine.wire import shapes


class Afar:
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
