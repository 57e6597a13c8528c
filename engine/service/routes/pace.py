"""How fast a job may go: orders on its pace, as a JSON merge patch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from engine.errors import Problem, UsageError
from engine.flow.pace_orders import check_order, check_thresholds, signal_named
from engine.ledger.orders import ROWS, SIGNALS, WAL, WORKERS, PaceOrders, SignalOrder
from engine.ledger.records import JobRecord
from engine.service.access import Scope
from engine.service.admission import NotAllowed, ceiling_of
from engine.service.problems import Unprocessable
from engine.service.routes.finding import CONNECTION, changing, job_reply, sides_of, signals_of
from engine.service.routing import Call, Reply, Route
from engine.service.station import Station
from engine.spec.misfit import Misfit
from engine.spec.signals import SignalSpec
from engine.wire import shapes
from engine.wire.shapes import Detail

_FIELDS: Final = {"target": "target", "max": "maximum", "off": "off"}
"""Names of the request, and of an order."""


async def order_pace(call: Call) -> Reply:
    """Change what is named, forget what is null, leave the rest; all of it or nothing."""
    job, change = call.path["job"], call.body
    async with changing(call) as (station, ledger):
        record = await ledger.job(job)
        _check_ceiling(call, station, record, change)
        wanted, reset = _orders(record, change, call)
        await ledger.order_pace(job, wanted, reset, reason=change.reason)
    async with station.ledger(call.identity) as ledger:
        return await job_reply(call, station, job, ledger=ledger)


def _check_ceiling(call: Call, station: Station, job: JobRecord, change: shapes.PaceChange) -> None:
    """The operator's limit holds for everybody; to forget an order goes back to the spec's, which is below it, too,
    unless the job was made by hand.
    """
    try:
        sides = sides_of(call, station, job)
    except UsageError:  # where it reads from is not known here: nobody here works it
        sides = {"target": station.name}
    most = ceiling_of(call.daemon.config, sides)
    if most is not None and change.max_rows_per_s is not None and change.max_rows_per_s > most:
        hint = f"at most {most:,.10g}"
        raise NotAllowed([Problem(ROWS, "is above what the operator allows", hint, pointer=f"/{ROWS}")])


def _orders(record: JobRecord, change: shapes.PaceChange, call: Call) -> tuple[PaceOrders, list[str]]:
    named = change.model_fields_set
    reset: list[str] = [name for name in (ROWS, WAL, WORKERS) if name in named and getattr(change, name) is None]
    orders: dict[str, SignalOrder] = {}
    if SIGNALS in named and change.signals is None:
        reset.append(SIGNALS)
    elif change.signals:
        known = signals_of(call, record)
        errors: list[Detail] = []
        for name, one in change.signals.items():
            try:
                order = _order(name, one, record.orders.signals.get(name, SignalOrder()), known)
            except Misfit as error:
                errors.append(Detail(pointer=_pointer(name), message=error.message, hint=error.hint))
                continue
            reset.append(f"{SIGNALS}.{name}")
            orders[name] = order
        if errors:
            raise Unprocessable("the orders on signals do not fit", errors=tuple(errors))
    return PaceOrders(change.max_rows_per_s, change.max_wal_bytes_per_s, change.workers, orders), reset


def _order(
    name: str, change: shapes.SignalChange | None, before: SignalOrder, known: Mapping[str, SignalSpec]
) -> SignalOrder:
    """What is ordered of one signal afterwards.  Raises ``Misfit``."""
    signal = signal_named(name, known)
    if change is None:
        return SignalOrder()
    check_thresholds(signal, target=change.target is not None, maximum=change.max is not None)
    if change.target is not None and change.target <= 0:
        raise Misfit("its target must be positive")
    said = change.model_fields_set
    order = replace(before, **{field: getattr(change, key) for key, field in _FIELDS.items() if key in said})
    if order.off is None and (change.target is not None or change.max is not None):
        order = replace(order, off=False)  # whoever gives a threshold wants it to count
    check_order(signal, order)
    return order


def _pointer(name: str) -> str:
    return f"/{SIGNALS}/{name[:80].replace('~', '~0').replace('/', '~1')}"


ROUTES = (
    Route(
        "PATCH",
        "/v1/jobs/{job}/pace",
        "order_pace",
        "Change how fast a job may go: a JSON merge patch of the orders on it",
        Scope.CONTROL,
        order_pace,
        answer=shapes.Job,
        request=shapes.PaceChange,
        body_required=True,
        takes_if_match=True,
        parameters=(CONNECTION,),
        problems=("unknown_job", "ambiguous_job", "changed_meanwhile", "not_allowed", "cannot_connect"),
    ),
)
