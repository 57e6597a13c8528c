"""Before a job: what it would do, what a few chunks of it cost, and what a database is like."""

from __future__ import annotations

from typing import Any, Final

from engine.fleet.examination import examine
from engine.flow.endpoints import endpoints_of
from engine.flow.planned import forecast_of, plan_json, rehearsal_json
from engine.flow.prepare import Inspection, inspect
from engine.flow.rehearse import rehearse as play
from engine.flow.sampled import SHOWN_ROWS
from engine.plan.preflight import refusals
from engine.service.access import Scope
from engine.service.admission import admit, rows_refused
from engine.service.routes.finding import dsns_of, no_connection
from engine.service.routing import SPEC, Call, Parameter, Reply, Route
from engine.service.station import Station
from engine.wire import shapes

REHEARSAL_S: Final = 60.0
"""When a rehearsal ends with what it has: a slow job's chunks may take hours."""

_PROBLEMS = ("spec_invalid", "not_allowed", "superuser_refused", "cannot_connect", "usage")


async def _look(call: Call, *, show_rows: int = 0) -> tuple[Station, Inspection]:
    admitted = admit(call.body, call.daemon.config, dsns_of(call), call.identity)
    station = call.daemon.stations[admitted.connection]
    call.noted |= {"connection": station.name, "job": admitted.spec.name}
    async with station.preparing:
        endpoints = endpoints_of(admitted.spec)
        seen = await inspect(admitted.spec, endpoints, tries=True, show_rows=show_rows, check=admitted.check_tables)
    return station, seen


async def plan(call: Call) -> Reply:
    """Key and index, spans, rows, a rough forecast, and findings with what to do about each. Touches nothing."""
    wants_rows = bool(call.query["show_rows"])
    if wants_rows and not call.daemon.config.allow.show_rows:
        raise rows_refused()
    _, seen = await _look(call, show_rows=SHOWN_ROWS if wants_rows else 0)
    return Reply(shapes.Plan.model_validate(plan_json(seen, forecast_of(seen))))


async def rehearse(call: Call) -> Reply:
    """The job's own statements on real rows, in transactions that all end in ROLLBACK. After a minute it ends with the
    chunks that it has, or at the end of the one in hand.
    """
    _, seen = await _look(call)
    rehearsal = None
    if not refusals(seen.findings):
        rehearsal = await play(seen.prepared(), chunks=int(call.query["chunks"]), within_s=REHEARSAL_S)
    return Reply(shapes.Rehearsal.model_validate(rehearsal_json(seen, rehearsal)))


async def doctor(call: Call) -> Reply:
    """Can it be reached, what is it, what may we do there, and what will a job meet."""
    name = call.path["name"]
    if name not in call.daemon.stations or not call.identity.may_use(name):
        raise no_connection(call, name)
    station = call.daemon.stations[name]
    async with station.preparing:
        found = await examine(station.database, "backfill.toml", None)
    return Reply(shapes.Examination.model_validate(_without_address(found, name)))


def _without_address(found: dict[str, Any], name: str) -> dict[str, Any]:
    """What a caller may know of a connection is its name; where it leads is the operator's."""
    label, error = found["label"], found.get("error")
    if error is not None:
        found = found | {"error": error | {"message": error["message"].replace(label, name)}}
    return found | {"label": name, "settings": {}}


ROUTES = (
    Route(
        "POST",
        "/v1/plans",
        "plan_job",
        "What a job would do, and what stands in its way",
        Scope.SUBMIT,
        plan,
        answer=shapes.Plan,
        request=SPEC,
        body_required=True,
        leaves_nothing=True,
        parameters=(
            Parameter(
                "show_rows",
                "boolean",
                "With rows before and after the transform, where the operator allows that.",
                default=False,
            ),
        ),
        deadline_s=60.0,
        problems=_PROBLEMS,
    ),
    Route(
        "POST",
        "/v1/rehearsals",
        "rehearse_job",
        "Run a few chunks, roll them back, and forecast the job",
        Scope.SUBMIT,
        rehearse,
        answer=shapes.Rehearsal,
        request=SPEC,
        body_required=True,
        leaves_nothing=True,
        is_slow=True,
        parameters=(
            Parameter("chunks", "integer", "In each of up to eight places.", default=3, minimum=1, maximum=20),
        ),
        problems=_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/connections/{name}/doctor",
        "get_doctor",
        "What a database is like: version, rights, capabilities, ledger",
        Scope.READ,
        doctor,
        answer=shapes.Examination,
        deadline_s=60.0,
        problems=("not_found",),
    ),
)
