"""Which connection's ledger holds the job that a request names, and how a job is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, TypeVar

from engine.errors import BackfillError, CannotConnect, UnknownJob
from engine.flow.prepare import Inspection
from engine.ledger.records import JobRecord, JobStatus
from engine.ledger.store import Ledger
from engine.model import Mode
from engine.service import problems
from engine.service.access import Forbidden
from engine.service.admission import ceiling_of, check_again, check_tables
from engine.service.lender import Lender
from engine.service.routing import Call, Parameter, Reply
from engine.service.station import Station
from engine.spec import Dsn, JobSpec
from engine.spec.misfit import nearest
from engine.spec.signals import SignalSpec
from engine.wire import shapes

CONNECTION: Final = Parameter(
    "connection",
    "string",
    "Where several connections hold a job of that name: which one.",
    pattern=r"[a-z0-9_.-]{1,63}",
)

T = TypeVar("T")

PATIENCE_S: Final = 3.0
"""How long one of several databases is waited for: what hangs holds up only its own jobs."""

PATIENCE_WHERE_AWAY_S: Final = 0.5
"""The same for one that did not answer when it was last asked."""


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


def no_connection(call: Call, name: str) -> problems.NotFound:
    """The caller names a connection that is not there, or that he may not use."""
    usable = sorted(one for one in call.daemon.stations if call.identity.may_use(one))
    guess = nearest(name, usable)
    listed = f"yours are {', '.join(usable)}" if usable else "none is yours: ask the daemon's operator"
    return problems.NotFound(f"no connection named {name!r}", hint=f"did you mean {guess}?" if guess else listed)


async def ask_all(
    stations: Mapping[str, Station], ask: Callable[[str, Ledger], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, BackfillError]]:
    """The same question to several ledgers at once: what was answered, and why there was no answer.

    One that does not answer soon is not waited for, unless it is the only one.
    """

    async def one(station: Station) -> T:
        async with station.ledger() as ledger:
            return await ask(station.name, ledger)

    async def soon(station: Station) -> T:
        patience_s = PATIENCE_WHERE_AWAY_S if station.reachable is False else PATIENCE_S
        try:
            async with asyncio.timeout(patience_s):
                return await one(station)
        except TimeoutError:
            trouble = f"{station.name} does not answer"
            station.failed(trouble)
            raise CannotConnect(trouble, hint="try again") from None

    asked = one if len(stations) == 1 else soon

    answers = await asyncio.gather(*(asked(station) for station in stations.values()), return_exceptions=True)
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

    Raises ``UnknownJob``, also for a job of a connection that is not the caller's, and ``AmbiguousJob``.  A change
    waits until every one of the caller's connections can be asked, unless he says which one he means: a name that
    two of them hold must not come to mean the one that happens to be there.
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
    if names and failed and call.route.changes:
        raise CannotConnect(
            f"{', '.join(failed)} cannot be asked whether it holds a job named {job!r}, too",
            hint=f"say which one: ?connection={names[0]}",
        )
    if names:
        call.noted |= {"connection": names[0], "job": job}
        return stations[names[0]]
    for error in failed.values():
        raise error
    raise UnknownJob(f"no job named {job!r}", hint="GET /v1/jobs lists them")


def shown(call: Call, station: Station, status: JobStatus) -> shapes.Job:
    """A job as it travels."""
    pool = call.daemon.pools.get(station.name)
    aside = None if pool is None else pool.aside.get(status.job)
    more = {"connection": station.name, "revision": str(status.revision or 0), "aside": aside}
    if call.identity.connections is not None:
        more |= _without_addresses(call, station, status)
        if aside is not None and any(name in aside for name in call.daemon.stations if not call.identity.may_use(name)):
            more["aside"] = "it asks for what is not lent to it: ask the daemon's operator"
    return shapes.Job.model_validate(status.as_json() | more)


def _without_addresses(call: Call, station: Station, status: JobStatus) -> dict[str, str]:
    """Both tables for one who may use some connections: by the names of his own, not as ``host:port/database``."""
    source = station.name if status.mode is not Mode.COPY else "elsewhere"
    for name, other in call.daemon.stations.items():
        if call.identity.may_use(name) and status.source.startswith(f"{other.database.label} "):
            source = name
    return {
        "source": f"{source} {status.source.partition(' ')[2]}",
        "target": f"{station.name} {status.target.partition(' ')[2]}",
    }


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


def spec_of(call: Call, station: Station, job: JobRecord, *, listens: bool = False, writes: bool = False) -> JobSpec:
    """The job's spec with what this daemon lends to jobs of that ledger, for whoever goes to its tables.

    Without its signals, unless the caller ``listens``.  ``writes``: it is to be begun anew, or to write more than its
    workers do by themselves, so it must be one that could be submitted now, and gets the operator's limit; the caller
    looks at the tables that were found, too (``check_found``).  Raises ``UsageError`` for a job that is not worked
    here, ``Forbidden`` for one that reads from a connection which is not the caller's, and ``NotAllowed``.
    """
    lender, config = Lender(call.daemon.config, dsns_of(call), station.name), call.daemon.config
    pace, source = job.document.get("pace"), lender.source_of(job)
    if source is not None and not call.identity.may_use(source):
        raise Forbidden("it reads from a connection that is not yours")
    if not listens and isinstance(pace, dict):
        job = replace(job, spec=job.document | {"pace": pace | {"signals": []}})
    spec = lender.spec_of(job)
    if not writes:
        return spec
    sides = sides_of(call, station, job)
    check_again(spec, config, sides, call.identity)
    ceiling = ceiling_of(config, sides)
    if ceiling is None or spec.pace.max_rows_per_s is not None:
        return spec
    said = job.document.get("pace")
    paced = (said if isinstance(said, dict) else {}) | {"max_rows_per_s": ceiling}
    return lender.spec_of(replace(job, spec=job.document | {"pace": paced}))


def check_found(call: Call, station: Station, job: JobRecord, seen: Inspection) -> None:
    """See that what the job's tables turned out to be is open to jobs.  Raises ``NotAllowed``."""
    check_tables(seen, call.daemon.config, sides_of(call, station, job))


def sides_of(call: Call, station: Station, job: JobRecord) -> dict[str, str]:
    """The connection of each side, by its name here.  Raises ``UsageError`` where the source is none of ours."""
    source = Lender(call.daemon.config, dsns_of(call), station.name).source_of(job)
    return {"source": source or station.name, "target": station.name}


def dsns_of(call: Call) -> dict[str, Dsn]:
    """The connection string of each connection."""
    return {name: station.dsn for name, station in call.daemon.stations.items()}


def signals_of(call: Call, job: JobRecord) -> dict[str, SignalSpec]:
    """The signals that the job has here, by name."""
    spec = JobSpec.from_ledger(job.document, signals=call.daemon.config.signals)
    return {signal.name: signal for signal in spec.pace.effective_signals()}


def seen_by(call: Call) -> set[int] | None:
    """The revisions at which the caller's order holds; None: at any."""
    text = call.if_match
    if text is None:
        return None
    return {int(text)} if text.isdigit() and len(text) < 19 else set()
