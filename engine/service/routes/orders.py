"""Orders to a job: pause, resume, cancel; begin it anew, or remove it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from engine.errors import HeldByOperator, Stopped
from engine.fleet.removal import forget, refuse_alive, take_away
from engine.flow import opening
from engine.flow.dual_write_change import find_installed
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import inspect
from engine.ledger.store import Ledger
from engine.model import JobState
from engine.service.access import Scope
from engine.service.routes.evidence import refuse_beyond
from engine.service.routes.finding import CONNECTION, changing, check_found, find, job_reply, seen_by, spec_of
from engine.service.routes.jobs import opened_for, refuse_while_draining
from engine.service.routing import Call, Parameter, Reply, Route
from engine.wire import shapes

ANEW: Final = "begin it anew: POST /v1/jobs/{job}/restart"
REMOVAL_S: Final = 120.0
"""Of a removal: a table that others work in is waited for."""

_PROBLEMS: Final = ("unknown_job", "ambiguous_job", "changed_meanwhile", "cannot_connect")

Order = Callable[[Ledger, str, str | None], Awaitable[JobState]]


async def _obey(call: Call, order: Order) -> Reply:
    job = call.path["job"]
    async with changing(call) as (station, ledger):
        await order(ledger, job, call.body.reason)
    async with station.ledger(call.identity) as ledger:
        return await job_reply(call, station, job, ledger=ledger)


async def pause(call: Call) -> Reply:
    """Sticky: only resume clears it.  A job that is over stays as it is, which the answer shows."""
    return await _obey(call, Ledger.pause)


async def cancel(call: Call) -> Reply:
    """Final, but for a restart.  A job that is over stays as it is."""
    return await _obey(call, Ledger.cancel)


async def resume(call: Call) -> Reply:
    """Clear a pause, or a failure that can be resumed.  Raises ``HeldByOperator``, ``Stopped`` for any other end."""
    return await _obey(call, _resume)


async def _resume(ledger: Ledger, job: str, reason: str | None) -> JobState:
    state = await ledger.resume(job, reason)
    if state is JobState.CANCELLED:
        raise HeldByOperator(f"job {job} was cancelled, which is final", state=state, hint=ANEW.format(job=job))
    if state is JobState.FAILED:
        found = await ledger.job(job)
        hint = found.error_hint or ANEW.format(job=job)
        raise Stopped(f"job {job} cannot be resumed: {found.error_message}", hint=hint)
    return state


async def restart(call: Call) -> Reply:
    """Forgets what the job has done and begins it anew, by the spec that the ledger has. Rows that were moved stay."""
    refuse_while_draining(call)
    job, station = call.path["job"], await find(call)
    async with station.ledger(call.identity) as ledger:
        async with ledger.at_revision(job, seen_by(call)):
            record = await ledger.job(job)
        refuse_alive(await ledger.status(job), force=call.body.force)
    spec = spec_of(call, station, record, listens=True, writes=True)
    async with station.preparing:
        checked = partial(check_found, call, station, record)
        seen = await inspect(spec, endpoints_of(spec), tries=True, check=checked)
        prepared = seen.prepared()
        async with opened_for(call, station, prepared) as (ledger, sides):
            await ledger.ensure()
            async with ledger.at_revision(job, seen_by(call)):  # asking takes time
                status = await ledger.status(job)
                refuse_alive(status, force=call.body.force)
                await forget(ledger, status, "restart", by=station.named(call.identity), reason=call.body.reason)
                await opening.open_job(ledger, prepared, sides)
    async with station.ledger(call.identity) as ledger:
        return await job_reply(call, station, job, ledger=ledger, location=True)


async def remove(call: Call) -> Reply:
    """Takes the job, its spans and our triggers for it out of the database. Rows and history stay. The job is cancelled
    first: it stays so where its triggers' table is not to be had.
    """
    job, station = call.path["job"], await find(call)
    async with station.removing, station.ledger(call.identity) as ledger:
        refuse_beyond(station, await find_installed(ledger.connection, job))
        triggers = await take_away(
            ledger, job, by=station.named(call.identity), force=call.query["force"], seen=seen_by(call)
        )
    return Reply(shapes.Removed(job=job, removed=True, triggers=list(triggers)))


def _route(name: str, summary: str, handler: Callable[[Call], Awaitable[Reply]], *codes: str) -> Route:
    return Route(
        "POST",
        f"/v1/jobs/{{job}}/{name}",
        f"{name}_job",
        summary,
        Scope.CONTROL,
        handler,
        answer=shapes.Job,
        request=shapes.Order,
        takes_if_match=True,
        parameters=(CONNECTION,),
        problems=(*_PROBLEMS, *codes),
    )


ROUTES = (
    _route("pause", "Stop a job after the chunks in hand, until somebody resumes it", pause),
    _route(
        "resume",
        "Let a paused job go on, or a failed one whose cause is mended",
        resume,
        "held_by_operator",
        "stopped",
    ),
    _route("cancel", "End a job for good; rows that were moved stay", cancel),
    Route(
        "POST",
        "/v1/jobs/{job}/restart",
        "restart_job",
        "Begin a job anew, from its first row",
        Scope.SUBMIT,
        restart,
        answer=shapes.Job,
        request=shapes.Restart,
        takes_if_match=True,
        parameters=(CONNECTION,),
        deadline_s=60.0,
        problems=(
            *_PROBLEMS,
            "busy",
            "draining",
            "not_allowed",
            "preflight_refused",
            "superuser_refused",
            "transform_not_loaded",
            "usage",
        ),
    ),
    Route(
        "DELETE",
        "/v1/jobs/{job}",
        "remove_job",
        "Remove what a job keeps in the database; rows of its tables are never touched",
        Scope.SUBMIT,
        remove,
        answer=shapes.Removed,
        takes_if_match=True,
        parameters=(Parameter("force", "boolean", "Even while workers are alive.", default=False), CONNECTION),
        deadline_s=REMOVAL_S,
        problems=(*_PROBLEMS, "busy", "not_allowed", "usage"),
    ),
)
