"""Jobs: begin one, list them, look at one."""

from __future__ import annotations

from engine.service.access import Scope
from engine.service.routes.finding import find, job_reply
from engine.service.routing import Call, Parameter, Reply, Route
from engine.wire import shapes

CONNECTION = Parameter("connection", "string", "Where several connections hold a job of that name: which one.")


async def get_job(call: Call) -> Reply:
    """The job as it is now."""
    station = await find(call)
    async with station.ledger() as ledger:
        return await job_reply(ledger, station, call.path["job"])


ROUTES = (
    Route(
        "GET",
        "/v1/jobs/{job}",
        "get_job",
        "How far a job is, how fast it goes, and what holds it up",
        Scope.READ,
        get_job,
        answer=shapes.Job,
        parameters=(CONNECTION,),
    ),
)
