"""Long-poll: an answer that comes when the job is as the caller waits for it, or when his time is over."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from engine.ledger.records import JobStatus
from engine.model import JobState
from engine.service.routing import Call, Parameter
from engine.service.station import Station

LONGEST_WAIT_S: Final = 60.0

WAIT: Final = Parameter(
    "wait",
    "duration",
    "Answer only when the job is as `until` says, or after so long: 30s.",
    minimum=0,
    maximum=LONGEST_WAIT_S,
)
UNTIL: Final = Parameter(
    "until",
    "string",
    "What to wait for: the job is done; it is final (done, failed or cancelled); it is paused (or final); or it has"
    " changed since the revision of If-None-Match, or since now.",
    default="final",
    choices=("done", "final", "paused", "change"),
)


async def wait_for(call: Call, station: Station) -> None:
    """Return when the job is as the caller waits for it, when it is gone, or when his time (or ours) is over."""
    until = call.query["until"]
    revision = call.headers.get("if-none-match", "").strip().removeprefix("W/").strip('"') or None
    leaving = asyncio.create_task(call.daemon.draining.wait())
    try:
        async with station.watcher.watch(call.path["job"]) as watch:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(call.query["wait"]):
                    while True:
                        coming = asyncio.create_task(watch.next())
                        try:
                            await asyncio.wait((coming, leaving), return_when=asyncio.FIRST_COMPLETED)
                        finally:
                            coming.cancel()
                        if not coming.done() or coming.cancelled():
                            return
                        news = coming.result()
                        if news.gone:
                            return
                        if news.sight is None:
                            continue
                        status = news.sight.status
                        revision = str(status.revision) if revision is None else revision
                        if _is_so(status, until, revision):
                            return
    finally:
        leaving.cancel()


def _is_so(status: JobStatus, until: str, revision: str) -> bool:
    match until:
        case "done":
            return status.state is JobState.DONE or status.state.is_final
        case "final":
            return status.state.is_final
        case "paused":
            return status.state is JobState.PAUSED or status.state.is_final
        case _:
            return str(status.revision) != revision
