"""Jobs: begin one, list them, look at one."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from engine.errors import UnknownJob
from engine.flow import opening
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import Inspection, Prepared, inspect
from engine.flow.shared import Sides
from engine.ledger.records import JobStatus
from engine.ledger.requests import Request
from engine.ledger.store import Ledger
from engine.model import JobState, Side
from engine.service.access import Scope
from engine.service.admission import admit
from engine.service.problems import BadRequest, Draining
from engine.service.routes.finding import (
    CONNECTION,
    ask_all,
    dsns_of,
    find,
    job_reply,
    no_connection,
    shown,
    visible,
)
from engine.service.routes.waiting import UNTIL, WAIT, wait_for
from engine.service.routing import SPEC, Call, Parameter, Reply, Route
from engine.service.station import Station
from engine.wire import shapes
from engine.wire.shapes import Detail

PAGE: Final = 50
ATTEMPTS: Final = 3
"""How often a submission looks again when another one came in between."""

_COMMON: Final = ("unknown_job", "ambiguous_job", "cannot_connect")


# -- one --------------------------------------------------------------------------------------------------------------


async def get_job(call: Call) -> Reply:
    """The job as it is now; with ``wait``, as soon as it is as the caller waits for, or when his time is over."""
    station = await find(call)
    if call.query["wait"]:
        await wait_for(call, station)
    async with station.ledger(call.identity) as ledger:
        return await job_reply(call, station, call.path["job"], ledger=ledger)


# -- several ----------------------------------------------------------------------------------------------------------


async def list_jobs(call: Call) -> Reply:
    """A page of jobs, the newest first, over all connections that the caller may see."""
    limit, stations, connection = int(call.query["limit"]), visible(call), call.query["connection"]
    if connection is not None and not stations:
        raise no_connection(call, connection)
    wanted = call.query["state"]
    states = None if wanted is None else frozenset(map(JobState, wanted.split(",")))
    before = _cursor(call.query["cursor"])

    async def ask(name: str, ledger: Ledger) -> tuple[JobStatus, ...]:
        return await ledger.page(limit + 1, before=before.get(name), states=states)

    found, failed = await ask_all(stations, ask)
    if failed and not found:
        raise next(iter(failed.values()))
    jobs, after = _merged(found, limit, before)
    return Reply(
        shapes.JobPage(
            jobs=[shown(call, stations[name], status) for name, status in jobs],
            next=after,
            unreachable=sorted(failed),
        )
    )


def _merged(
    found: dict[str, tuple[JobStatus, ...]], limit: int, before: dict[str, int]
) -> tuple[list[tuple[str, JobStatus]], str | None]:
    """The newest of all; within a ledger its own order counts, so that none is left out of the pages or is there twice.

    The cursor says how far each ledger has been read.
    """
    waiting = {name: list(statuses) for name, statuses in found.items()}
    jobs: list[tuple[str, JobStatus]] = []
    place = dict(before)
    while len(jobs) < limit and any(waiting.values()):
        name = max((name for name in waiting if waiting[name]), key=lambda name: (waiting[name][0].created_at, name))
        status = waiting[name].pop(0)
        place[name] = status.number or 0
        jobs.append((name, status))
    if not any(waiting.values()):
        return jobs, None
    return jobs, base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _cursor(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    try:
        place = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        place = None
    if not isinstance(place, dict) or not all(type(n) is int and 0 <= n < 2**63 for n in place.values()):
        raise BadRequest("the query does not fit", errors=(Detail(parameter="cursor", message="is none of ours"),))
    return place


# -- beginning --------------------------------------------------------------------------------------------------------


async def submit(call: Call) -> Reply:
    """Begin the job that the spec describes, or find that it was begun already; workers take it up by themselves."""
    refuse_while_draining(call)
    admitted = admit(call.body, call.daemon.config, dsns_of(call), call.identity)
    station, job = call.daemon.stations[admitted.connection], admitted.spec.name
    call.noted |= {"connection": station.name, "job": job}
    request = request_of(call, admitted.spec_hash)
    if request is not None and (reply := await _met_before(call, station, request)) is not None:
        return reply
    async with station.preparing:
        refuse_while_draining(call)
        seen = await inspect(admitted.spec, endpoints_of(admitted.spec), tries=True, check=admitted.check_tables)
        created = await begin(call, station, seen, request)
    async with station.ledger(call.identity) as ledger:
        return await job_reply(call, station, job, ledger=ledger, status=201 if created else 200, location=True)


def refuse_while_draining(call: Call) -> None:
    """Whatever begins something new is for the next daemon."""
    if call.daemon.is_draining:
        raise Draining("this daemon is about to end", hint="try again: another one, or this one when it is back")


def request_of(call: Call, spec_hash: str) -> Request | None:
    """What the caller calls his submission, if he does."""
    key = call.headers.get("idempotency-key")
    return None if key is None else Request(call.identity.signature, key, spec_hash)


async def _met_before(call: Call, station: Station, request: Request) -> Reply | None:
    async with station.ledger(call.identity) as ledger:
        job = await ledger.job_of(request)
        return None if job is None else await job_reply(call, station, job, ledger=ledger, location=True)


async def begin(call: Call, station: Station, seen: Inspection, request: Request | None) -> bool:
    """Write the job into the ledger.  False when it was there; its settings are those of the spec now.

    Raises ``PreflightRefused``, ``SpecChanged``, ``KeyReused`` and what else keeps a job from being opened.
    """
    prepared = seen.prepared()
    async with opened_for(call, station, prepared) as (ledger, sides):
        await ledger.ensure()
        for _ in range(ATTEMPTS):
            try:
                opened = await opening.open_job(ledger, prepared, sides, request=request)
            except UnknownJob:
                # Nothing was created, nor is there such a job: the request's key has just been used, or the job of
                # that name was removed between two looks.
                if request is not None:
                    await ledger.job_of(request)
                continue
            if opened.resumed and request is not None:
                await ledger.note(opened.job.name, request)
            return not opened.resumed
    raise UnknownJob(f"job {prepared.spec.name!r} comes and goes", hint="somebody removes it: try again later")


@asynccontextmanager
async def opened_for(call: Call, station: Station, prepared: Prepared) -> AsyncIterator[tuple[Ledger, Sides]]:
    """The ledger over a session of the job's own name, which its start barrier knows for one of ours."""
    async with AsyncExitStack() as stack:
        here = await prepared.endpoints.target.connect("submit")
        stack.push_async_callback(here.close)
        sides: Sides = {Side.TARGET: here}
        if not prepared.endpoints.is_one:
            there = await prepared.endpoints.source.connect("submit")
            stack.push_async_callback(there.close)
            sides[Side.SOURCE] = there
        ledger = Ledger(here)
        await ledger.act_as(station.named(call.identity))
        yield ledger, sides


ROUTES = (
    Route(
        "POST",
        "/v1/jobs",
        "submit_job",
        "Begin a job, or find that it was begun already: the same spec is the same job",
        Scope.SUBMIT,
        submit,
        answer=shapes.Job,
        status=201,
        also=(200,),
        request=SPEC,
        body_required=True,
        takes_idempotency_key=True,
        deadline_s=60.0,
        problems=(
            "spec_invalid",
            "not_allowed",
            "superuser_refused",
            "preflight_refused",
            "spec_changed",
            "idempotency_key_reused",
            "draining",
            "cannot_connect",
        ),
    ),
    Route(
        "GET",
        "/v1/jobs",
        "list_jobs",
        "Jobs, the newest first",
        Scope.READ,
        list_jobs,
        answer=shapes.JobPage,
        parameters=(
            Parameter("limit", "integer", "At most so many.", default=PAGE, minimum=1, maximum=shapes.MAX_PAGE),
            Parameter("cursor", "string", "The page after: `next` of the page before."),
            Parameter(
                "state",
                "string",
                "Only jobs in this state, or one of several: running,paused.",
                pattern=rf"(?:{'|'.join(JobState)})(?:,(?:{'|'.join(JobState)}))*",
            ),
            Parameter("connection", "string", "Only jobs of this connection.", pattern=CONNECTION.pattern),
        ),
        problems=("cannot_connect", "not_found"),
    ),
    Route(
        "GET",
        "/v1/jobs/{job}",
        "get_job",
        "How far a job is, how fast it goes, and what holds it up",
        Scope.READ,
        get_job,
        answer=shapes.Job,
        parameters=(CONNECTION, WAIT, UNTIL),
        problems=_COMMON,
    ),
)
