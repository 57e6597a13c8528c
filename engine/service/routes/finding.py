"""Which connection's ledger holds the job that a request names."""

from __future__ import annotations

from engine.errors import UnknownJob
from engine.ledger.store import Ledger
from engine.service.routing import Call, Reply
from engine.service.station import Station
from engine.wire import shapes


async def find(call: Call) -> Station:
    """The station of the job.  Raises ``UnknownJob``, and ``Forbidden`` for a connection that is not the caller's."""
    job, wanted = call.path["job"], call.query.get("connection")
    for name, station in call.daemon.stations.items():
        if not call.identity.may_use(name) or (wanted is not None and wanted != name):
            continue
        async with station.ledger() as ledger:
            if await ledger.installed_version() and await ledger.find(job) is not None:
                return station
    raise UnknownJob(f"no job named {job!r}", hint="GET /v1/jobs lists them")


async def job_reply(ledger: Ledger, station: Station, job: str) -> Reply:
    """The job as it is now."""
    status = await ledger.status(job)
    shown = shapes.Job.model_validate(status.as_json() | {"connection": station.name, "revision": "0"})
    return Reply(shown)
