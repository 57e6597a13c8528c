"""Which connection's ledger holds the job that a request names, and how a job is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, TypeVar

from engine.errors import BackfillError, UnknownJob
from engine.ledger.records import JobRecord, JobStatus
from engine.ledger.store import Ledger
from engine.service import problems
from engine.service.lender import Lender
from engine.service.routing import Call, Parameter, Reply
from engine.service.station import Station
from engine.spec import Dsn, JobSpec
from engine.spec.signals import SignalSpec
from engine.wire import shapes

CONNECTION: Final = Parameter(
    "connection",
    "string",
    "Where several connections hold a job of that name: which one.",
    pattern=r"[a-z0-9_.-]{1,63}",
)

T = TypeVar("T")


class AmbiguousJob(BackfillError):
    """Several connections hold a job of that name."""

    code = "ambiguous_job"
    exit_code = 2
    http_status = 409


def visible(call: Call) -> dict[str, Station]:
    """The connections that the caller may see and that the request does not leave out, by name."""
    wanted = call.query.get("connection")
    return {
        name: station
        for name, station in call.daemon.stations.items()
        if call.identity.may_use(name) and wanted in (None, name)
    }


async def ask_all(
    stations: Mapping[str, Station], ask: Callable[[str, Ledger], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, BackfillError]]:
    """The same question to several ledgers at once: what was answered, and why there was no answer."""

    async def one(station: Station) -> T:
        async with station.ledger() as ledger:
            return await ask(station.name, ledger)

    answers = await asyncio.gather(*(one(station) for station in stations.values()), return_exceptions=True)
    found: dict[str, T] = {}
    failed: dict[str, BackfillError] = {}
    for name, answer in zip(stations, answers, strict=True):
        if isinstance(answer, Exception):
            failed[name] = problems.known(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[name] = answer
    return found, failed


async def find(call: Call, *, gone: bool = False) -> Station:
    """The station of the job; ``gone``: also of one that is there no more, but in the history.

    Raises ``UnknownJob``, also for a job of a connection that is not the caller's, and ``AmbiguousJob``.
    """
    job, stations = call.path["job"], visible(call)

    async def ask(_: str, ledger: Ledger) -> bool:
        return await ledger.knows(job) or (gone and await ledger.remembers(job))

    knows, failed = await ask_all(stations, ask)
    names = [name for name, is_there in knows.items() if is_there]
    if len(names) > 1:
        raise AmbiguousJob(
            f"{len(names)} connections hold a job named {job!r}: {', '.join(names)}",
            hint=f"say which one: ?connection={names[0]}",
        )
    if names:
        return stations[names[0]]
    for error in failed.values():
        raise error
    raise UnknownJob(f"no job named {job!r}", hint="GET /v1/jobs lists them")


def shown(call: Call, station: Station, status: JobStatus) -> shapes.Job:
    """A job as it travels."""
    pool = call.daemon.pools.get(station.name) if hasattr(call.daemon, "pools") else None
    aside = pool.aside.get(status.job) if pool is not None and hasattr(pool, "aside") else None
    more = {"connection": station.name, "revision": str(status.revision or 0), "aside": aside}
    return shapes.Job.model_validate(status.as_json() | more)


def etag(revision: str) -> str:
    """The revision as an entity tag."""
    return f'"{revision}"'


async def job_reply(
    call: Call, station: Station, job: str, *, ledger: Ledger, status: int = 200, location: bool = False
) -> Reply:
    """The job as it is now."""
    found = shown(call, station, await ledger.status(job))
    headers = {"etag": etag(found.revision)}
    if location:
        headers["location"] = f"/v1/jobs/{job}"
    return Reply(found, status=status, headers=headers)


@asynccontextmanager
async def changing(call: Call) -> AsyncIterator[tuple[Station, Ledger]]:
    """A session for a change of the job, on behalf of the caller, made only if the job is still as he saw it."""
    station = await find(call)
    async with station.ledger(call.identity) as ledger, ledger.at_revision(call.path["job"], seen_by(call)):
        yield station, ledger


def spec_of(call: Call, station: Station, job: JobRecord, *, listens: bool = False) -> JobSpec:
    """The job's spec with what this daemon lends to jobs of that ledger, for whoever goes to its tables.

    Without its signals, unless the caller ``listens``.  Raises ``UsageError`` for a job that is not worked here.
    """
    pace = job.spec.get("pace")
    if not listens and isinstance(pace, dict):
        job = replace(job, spec=job.spec | {"pace": pace | {"signals": []}})
    return Lender(call.daemon.config, dsns_of(call), station.name).spec_of(job)


def dsns_of(call: Call) -> dict[str, Dsn]:
    """The connection string of each connection."""
    return {name: station.dsn for name, station in call.daemon.stations.items()}


def signals_of(call: Call, job: JobRecord) -> dict[str, SignalSpec]:
    """The signals that the job has here, by name."""
    spec = JobSpec.from_ledger(job.spec, signals=call.daemon.config.signals)
    return {signal.name: signal for signal in spec.pace.effective_signals()}


def seen_by(call: Call) -> set[int] | None:
    """The revisions at which the caller's order holds; None: at any."""
    text = call.if_match
    if text is None:
        return None
    return {int(text)} if text.isdigit() and len(text) < 19 else set()
