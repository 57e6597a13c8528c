"""Evidence about a job: verification, gate, rights, dual-write."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from engine.errors import Problem, UsageError
from engine.fleet import evidence
from engine.fleet.grants import Grantee, collect, script
from engine.fleet.verification import begin as begin_verification
from engine.flow import dual_write_change as triggers
from engine.flow.dual_write_change import Installed, prepared_for_change
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import Prepared, inspect
from engine.flow.shared import SETTLE_S
from engine.service.access import Forbidden, Scope
from engine.service.admission import NotAllowed, admit
from engine.service.problems import BadRequest, Unprocessable
from engine.service.routes.finding import CONNECTION, check_found, dsns_of, find, job_reply, seen_by, spec_of
from engine.service.routing import Call, Parameter, Reply, Route
from engine.service.station import Station
from engine.spec import JobSpec
from engine.spec.misfit import Misfit
from engine.spec.units import parse_duration
from engine.wire import shapes
from engine.wire.shapes import Detail

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engine.db import Connection
    from engine.ledger.records import JobRecord

LONGEST_SETTLE_S: Final = 60.0
LONGEST_PATIENCE_S: Final = 60.0
_ROLE: Final = Parameter("to", "string", "Who moves the rows. Left out: the role of the spec.", pattern=r".{1,63}")
_PROBLEMS: Final = (
    "unknown_job",
    "ambiguous_job",
    "cannot_connect",
    "superuser_refused",
    "transform_not_allowed",
    "transform_not_loaded",
    "preflight_refused",
    "spec_changed",
    "usage",
)


async def _spec(call: Call, *, writes: bool = False) -> tuple[Station, JobRecord, JobSpec]:
    """The job, and its spec with this daemon's connections."""
    station = await find(call)
    async with station.ledger(call.identity) as ledger, ledger.at_revision(call.path["job"], seen_by(call)):
        record = await ledger.job(call.path["job"])
    return station, record, spec_of(call, station, record, writes=writes)


# -- verification -----------------------------------------------------------------------------------------------------


async def verify(call: Call) -> Reply:
    """Begins it, or joins the one that runs; whoever works the ledger compares. A repair takes the scope submit."""
    asked: shapes.Verify = call.body
    if asked.repair and Scope.SUBMIT not in call.identity.scopes:
        raise Forbidden(f"{call.identity.signature} lacks the scope submit, which a repair takes")
    if asked.delete_extra and not asked.repair:
        raise _misfit("/delete_extra", "is a part of a repair", "give repair, too, or neither")
    settle_s = _seconds(asked.settle, "/settle", LONGEST_SETTLE_S) if asked.settle is not None else SETTLE_S
    station, record, spec = await _spec(call, writes=asked.repair)
    async with station.preparing:
        seen = await inspect(spec, endpoints_of(spec), runs=False)
        if asked.repair:
            check_found(call, station, record, seen)
        prepared = prepared_for_change(seen)
    async with station.ledger(call.identity) as ledger:
        await ledger.ensure()
        async with ledger.at_revision(spec.name, seen_by(call)):  # to look at the tables takes time
            await begin_verification(
                ledger, prepared, repair=asked.repair, delete_extra=asked.delete_extra, settle_s=settle_s
            )
        return await job_reply(call, station, spec.name, ledger=ledger)


# -- the gate ---------------------------------------------------------------------------------------------------------


async def gate(call: Call) -> Reply:
    """Whether the old column or table may be given up: each condition, looked at now."""
    station, _, spec = await _spec(call)
    async with station.preparing:
        found = await evidence.look_at_gate(spec)
    return Reply(shapes.Gate.model_validate(found.as_json() | {"mismatch": found.mismatch}))


# -- rights -----------------------------------------------------------------------------------------------------------


async def grants(call: Call) -> Reply:
    """For a superuser or the owner of the tables to run. Nothing is changed."""
    station, _, spec = await _spec(call)
    role = call.query["to"] or spec.role
    if role is None:
        raise UsageError("no role to grant to", hint="name one: ?to=ROLE")
    to = Grantee(role, call.query["login"] or role)
    source, target = endpoints_of(spec)
    async with station.preparing:
        parts = await collect(spec, source, target)
    text = script(spec, parts, to, repair=call.query["repair"])
    return Reply(
        shapes.Grants(job=spec.name, role=role, login=call.query["login"], repair=call.query["repair"], script=text)
    )


# -- dual-write -------------------------------------------------------------------------------------------------------


async def look_at_triggers(call: Call) -> Reply:
    """Whether our triggers are on the source, and do what the job asks for. With `script`, what installing would do."""
    station, _, spec = await _spec(call)
    async with station.preparing:
        prepared, found = await evidence.look_at_dual_write(spec)
        text = None
        if call.query["script"]:
            async with _session(prepared) as connection:
                text = await triggers.script(connection, prepared)
    return Reply(shapes.DualWrite.model_validate(evidence.dual_write_json(prepared, found) | {"script": text}))


async def change_triggers(call: Call) -> Reply:
    """Only where the operator allows it: triggers run with the rights of the source's owner. They are not changed in
    one transaction with the job: If-Match is looked at immediately before.
    """
    if not call.daemon.config.allow.dual_write:
        raise NotAllowed(
            [
                Problem(
                    "",
                    "the operator does not allow triggers to be changed through the API",
                    "the operator writes [allow] dual_write = true",
                )
            ]
        )
    asked: shapes.DualWriteChange = call.body
    if asked.spec is not None and asked.action == "remove":
        raise _misfit("/spec", "is for triggers that are to be installed", "those of a job go by its name alone")
    if asked.spec is not None and "if-match" in call.headers:
        detail = Detail(parameter="if-match", message="is for a job that is there, and a spec for one that is not")
        raise BadRequest("a header does not fit", errors=(detail,))
    patience_s = _seconds(asked.patience, "/patience", LONGEST_PATIENCE_S) if asked.patience else 30.0
    installs, record = asked.action == "install", None
    if asked.spec is None:
        station, record, spec = await _spec(call, writes=installs)
    else:
        station, spec = _submitted(call, asked.spec)
    async with station.preparing:
        seen = await inspect(spec, endpoints_of(spec), runs=False)
    if record is not None:
        if installs:  # what is there may always be taken away
            check_found(call, station, record, seen)
    elif asked.spec is not None:
        admit(asked.spec, call.daemon.config, dsns_of(call), call.identity).check_tables(seen)
    prepared = prepared_for_change(seen)
    async with _session(prepared, as_whom=station.named(call.identity)) as connection:
        by = triggers.patience(patience_s)
        if installs:
            triggers.wanted(prepared)
            await _look_again(call, station)
            outcome = await triggers.install(connection, prepared, by=by)
        else:
            triggers.within_one_database(prepared)
            refuse_beyond(station, await triggers.find_installed(connection, spec.name))
            await _look_again(call, station)
            outcome = await triggers.remove(connection, spec.name, force=asked.force, by=by)
    return Reply(shapes.DualWriteChanged.model_validate(triggers.summary(outcome)))


async def _look_again(call: Call, station: Station) -> None:
    """What was asked for holds for the job as its caller saw it, if he says how that was."""
    seen = seen_by(call)
    if seen is not None:
        async with station.ledger(call.identity) as ledger, ledger.at_revision(call.path["job"], seen):
            pass


def refuse_beyond(station: Station, found: Sequence[Installed]) -> None:
    """A job is known by its name, and a name is soon taken: triggers elsewhere are none of its caller's business.

    Raises ``NotAllowed`` when one is on a table that is not open to jobs.
    """
    beyond = {str(one.table) for one in found if not station.is_open(one.table)}
    if beyond:
        hint = "the operator removes them with backfill dualwrite or backfill cleanup"
        raise NotAllowed(
            [Problem("", f"triggers of the job are on {table}, which jobs may not touch", hint) for table in beyond]
        )


def _submitted(call: Call, data: dict[str, Any]) -> tuple[Station, JobSpec]:
    """The job of a spec that is not begun yet: triggers come first."""
    admitted = admit(data, call.daemon.config, dsns_of(call), call.identity)
    if admitted.spec.name != call.path["job"]:
        raise _misfit("/spec/name", f"is not {call.path['job']}, which the path names")
    call.noted["connection"] = admitted.connection
    return call.daemon.stations[admitted.connection], admitted.spec


@asynccontextmanager
async def _session(prepared: Prepared, as_whom: str = "") -> AsyncIterator[Connection]:
    """Not under the job's role, which moves rows and owns nothing."""
    connection = await prepared.endpoints.source.connect("dualwrite")
    try:
        if as_whom:
            await connection.fetchval("SELECT set_config('backfill.by', $1, false)", as_whom)
        yield connection
    finally:
        await connection.close()


# -- words ------------------------------------------------------------------------------------------------------------


def _seconds(text: str, pointer: str, most_s: float) -> float:
    try:
        seconds = parse_duration(text)
    except Misfit as error:
        raise _misfit(pointer, error.message, error.hint) from None
    if seconds > most_s:
        raise _misfit(pointer, f"is longer than {most_s:.0f}s")
    return seconds


def _misfit(pointer: str, message: str, hint: str = "") -> Unprocessable:
    return Unprocessable("the body does not fit", errors=(Detail(pointer=pointer, message=message, hint=hint),))


ROUTES = (
    Route(
        "POST",
        "/v1/jobs/{job}/verify",
        "verify_job",
        "Compare both sides of a job that is done, and mend what differs if asked to",
        Scope.CONTROL,
        verify,
        answer=shapes.Job,
        request=shapes.Verify,
        takes_if_match=True,
        parameters=(CONNECTION,),
        deadline_s=60.0,
        problems=(*_PROBLEMS, "changed_meanwhile", "not_allowed", "busy", "held_by_operator"),
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/gate",
        "get_gate",
        "Whether the old side may be given up, and what the evidence is",
        Scope.READ,
        gate,
        answer=shapes.Gate,
        parameters=(CONNECTION,),
        deadline_s=60.0,
        problems=_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/grants",
        "get_grants",
        "The GRANT script with which a role that is nobody special can run the job",
        Scope.READ,
        grants,
        answer=shapes.Grants,
        parameters=(
            _ROLE,
            Parameter("login", "string", "Who connects and becomes that role. Left out: the same.", pattern=r".{1,63}"),
            Parameter("repair", "boolean", "With what a repair takes beyond the job.", default=False),
            CONNECTION,
        ),
        problems=_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/dualwrite",
        "get_dual_write",
        "Our own triggers on the source: are they there, and intact",
        Scope.READ,
        look_at_triggers,
        answer=shapes.DualWrite,
        parameters=(
            Parameter("script", "boolean", "With all that installing would do, as a script.", default=False),
            CONNECTION,
        ),
        deadline_s=60.0,
        problems=_PROBLEMS,
    ),
    Route(
        "POST",
        "/v1/jobs/{job}/dualwrite",
        "change_dual_write",
        "Put our triggers on the source, or take them away; where the operator allows it",
        Scope.SUBMIT,
        change_triggers,
        answer=shapes.DualWriteChanged,
        request=shapes.DualWriteChange,
        body_required=True,
        takes_if_match=True,
        parameters=(CONNECTION,),
        is_slow=True,
        problems=(*_PROBLEMS, "changed_meanwhile", "not_allowed", "spec_invalid", "busy"),
    ),
)
