"""The last minutes of a job, for charts that are opened late."""

from __future__ import annotations

from datetime import UTC, datetime

from engine.service.access import Scope
from engine.service.routes.finding import CONNECTION, find
from engine.service.routing import Call, Reply, Route
from engine.wire import shapes


async def recent(call: Call) -> Reply:
    """How fast the job went, as this daemon saw it."""
    station, job = await find(call), call.path["job"]
    return Reply(shapes.Recent(job=job, now=datetime.now(UTC), moments=call.daemon.recent.of(station.name, job)))


ROUTES = (
    Route(
        "GET",
        "/v1/jobs/{job}/recent",
        "get_recent",
        "How fast a job went in the last ten minutes, as far as this daemon worked it",
        Scope.READ,
        recent,
        answer=shapes.Recent,
        parameters=(CONNECTION,),
        problems=("unknown_job", "ambiguous_job", "cannot_connect"),
    ),
)
