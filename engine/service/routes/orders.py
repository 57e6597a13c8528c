"""Orders to a job: pause, resume, cancel."""

from __future__ import annotations

from engine.service.access import Scope
from engine.service.routes.finding import find, job_reply
from engine.service.routing import Call, Reply, Route
from engine.wire import shapes


async def pause(call: Call) -> Reply:
    """Sticky: only resume clears it."""
    station = await find(call)
    async with station.ledger(call.identity) as ledger:
        await ledger.pause(call.path["job"], call.body.reason)
        return await job_reply(ledger, station, call.path["job"])


ROUTES = (
    Route(
        "POST",
        "/v1/jobs/{job}/pause",
        "pause_job",
        "Stop a job after the chunks in hand, until somebody resumes it",
        Scope.CONTROL,
        pause,
        answer=shapes.Job,
        request=shapes.Order,
        takes_if_match=True,
    ),
)
