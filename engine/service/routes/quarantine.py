"""Rows that a job has set aside: see them, try them again, forget them."""

from __future__ import annotations

from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import inspect
from engine.flow.quarantine import Retry, check_ids
from engine.service.access import Scope
from engine.service.admission import rows_refused
from engine.service.problems import Unprocessable
from engine.service.routes.finding import CONNECTION, changing, check_found, find, seen_by, spec_of
from engine.service.routing import Call, Parameter, Reply, Route
from engine.wire import shapes
from engine.wire.shapes import Detail

_PROBLEMS = ("unknown_job", "ambiguous_job", "cannot_connect")


async def list_rows(call: Call) -> Reply:
    """How many rows are set aside, and what was wrong with each. Keys only where the operator allows that."""
    if call.query["show_rows"] and not call.daemon.config.allow.show_rows:
        raise rows_refused()
    station, limit = await find(call), int(call.query["limit"])
    async with station.ledger(call.identity) as ledger:
        job_id = (await ledger.job(call.path["job"])).id
        counts = await ledger.quarantined_by_sqlstate(job_id)
        found = await ledger.quarantined(job_id, limit + 1, after=int(call.query["after"]))
    rows = [
        shapes.SetAside(
            id=row.id,
            sqlstate=row.sqlstate,
            error=row.error_class,
            attempts=row.attempts,
            first_at=row.first_at,
            last_at=row.last_at,
            key=list(row.key) if call.query["show_rows"] else None,
        )
        for row in found[:limit]
    ]
    return Reply(
        shapes.Quarantine(
            job=call.path["job"],
            quarantined=sum(counts.values()),
            by_sqlstate=counts,
            rows=rows,
            next=str(rows[-1].id) if len(found) > limit else None,
        )
    )


async def retry(call: Call) -> Reply:
    """Each row by itself, as the job would write it. What can be written now leaves the quarantine. Each row is a
    transaction of its own: If-Match is looked at before the first of them.
    """
    chosen, job, station = _chosen(call), call.path["job"], await find(call)
    async with station.ledger(call.identity) as ledger:
        async with ledger.at_revision(job, seen_by(call)):
            record = await ledger.job(job)
        await check_ids(ledger, job, chosen)
    spec = spec_of(call, station, record, writes=True)
    async with station.preparing:
        seen = await inspect(spec, endpoints_of(spec))
        check_found(call, station, record, seen)
        prepared = seen.prepared()
    async with station.ledger(call.identity) as ledger, ledger.at_revision(job, seen_by(call)):
        pass  # to look at the tables takes time
    tried = await Retry(prepared, by=station.named(call.identity)).run(chosen)
    async with station.ledger(call.identity) as ledger:
        left = await ledger.quarantined_count(record.id)
    return Reply(shapes.Retried.model_validate({"job": job, **tried.as_json(), "quarantined": left}))


async def drop(call: Call) -> Reply:
    """The job will not write them, and nobody is reminded of them any more."""
    chosen, job = _chosen(call), call.path["job"]
    async with changing(call) as (_, ledger):
        job_id = (await ledger.job(job)).id
        ids = await check_ids(ledger, job, chosen)
        dropped = await ledger.let_go(job_id, ids) if ids else 0
        if dropped:
            await ledger.record(job, "quarantine", {"dropped": dropped})
        left = await ledger.quarantined_count(job_id)
    return Reply(shapes.Dropped(job=job, dropped=dropped, quarantined=left))


def _chosen(call: Call) -> tuple[int, ...] | None:
    """The numbers that were given; None for all."""
    body: shapes.Rows = call.body
    if bool(body.ids) == body.all:
        detail = Detail(pointer="/ids", message="give either ids or all", hint="GET …/quarantine shows the numbers")
        raise Unprocessable("the body does not fit", errors=(detail,))
    return None if body.ids is None else tuple(dict.fromkeys(body.ids))


ROUTES = (
    Route(
        "GET",
        "/v1/jobs/{job}/quarantine",
        "get_quarantine",
        "Rows that could not be written and were set aside, oldest first",
        Scope.READ,
        list_rows,
        answer=shapes.Quarantine,
        parameters=(
            Parameter("limit", "integer", "At most so many.", default=100, minimum=1, maximum=1000),
            Parameter("after", "integer", "Only rows numbered above this.", default=0, minimum=0),
            Parameter("show_rows", "boolean", "With the rows' keys, where the operator allows that.", default=False),
            CONNECTION,
        ),
        problems=(*_PROBLEMS, "not_allowed"),
    ),
    Route(
        "POST",
        "/v1/jobs/{job}/quarantine/retry",
        "retry_quarantine",
        "Try rows again that were set aside",
        Scope.CONTROL,
        retry,
        answer=shapes.Retried,
        request=shapes.Rows,
        body_required=True,
        takes_if_match=True,
        parameters=(CONNECTION,),
        is_slow=True,
        problems=(
            *_PROBLEMS,
            "changed_meanwhile",
            "not_allowed",
            "preflight_refused",
            "superuser_refused",
            "transform_not_loaded",
            "spec_changed",
            "usage",
            "stopped",
        ),
    ),
    Route(
        "POST",
        "/v1/jobs/{job}/quarantine/drop",
        "drop_quarantine",
        "Forget rows that were set aside",
        Scope.SUBMIT,
        drop,
        answer=shapes.Dropped,
        request=shapes.Rows,
        body_required=True,
        takes_if_match=True,
        parameters=(CONNECTION,),
        problems=(*_PROBLEMS, "changed_meanwhile", "usage"),
    ),
)
