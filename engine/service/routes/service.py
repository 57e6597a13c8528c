"""The daemon itself: health, metrics, what it can do, who the caller is and what he may name."""

from __future__ import annotations

import asyncio
from functools import cache

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as EXPOSITION

from engine.service.access import Forbidden, Scope
from engine.service.routing import Call, Reply, Route
from engine.wire import shapes


async def livez(call: Call) -> Reply:
    """The event loop answers, and nothing in it has died. Touches no database."""
    return _health(call.daemon.liveness())


async def readyz(call: Call) -> Reply:
    """All that jobs need is there: what it listens on, the ledgers it works, the tokens. Nothing is asked now."""
    return _health(call.daemon.readiness())


def _health(health: shapes.Health) -> Reply:
    return Reply(health, 200 if health.status == "ok" else 503)


async def metrics(call: Call) -> Reply:
    """As Prometheus scrapes them. Of all connections at once: a caller that is bound to some does not get them."""
    daemon = call.daemon
    if not all(map(call.identity.may_use, daemon.stations)):
        raise Forbidden(
            "metrics are of all connections at once", hint="scrape with a token that is not bound to connections"
        )
    return Reply(await asyncio.to_thread(daemon.metrics_text), media_type=EXPOSITION)


async def openapi(call: Call) -> Reply:  # noqa: ARG001 - the same for everybody
    """This document."""
    return Reply(_document())


@cache
def _document() -> str:
    from engine.service.openapi import as_text  # it describes this very route, too
    from engine.service.routes.table import ROUTES as TABLE

    return as_text(TABLE)


async def me(call: Call) -> Reply:
    """Whatever the scope, an identity may know itself."""
    identity = call.identity
    connections = [name for name in call.daemon.stations if identity.may_use(name)]
    return Reply(
        shapes.Me(
            name=identity.name, kind=identity.kind, scopes=sorted(identity.scopes), connections=sorted(connections)
        )
    )


async def connections(call: Call) -> Reply:
    """Only those that the caller may name. As the daemon last saw them: nothing is asked now."""
    daemon = call.daemon
    found = []
    for name, station in sorted(daemon.stations.items()):
        if not call.identity.may_use(name):
            continue
        pool, config = daemon.pools.get(name), station.config
        found.append(
            shapes.Connection(
                name=name,
                work=config.work,
                tables=[str(pattern) for pattern in config.tables],
                role=config.role,
                max_rows_per_s=config.max_rows_per_s,
                reachable=station.reachable,
                trouble=station.trouble,
                jobs_running=sorted(pool.working) if pool is not None else [],
            )
        )
    return Reply(shapes.Connections(connections=found))


ROUTES = (
    Route("GET", "/livez", "livez", "Whether the process lives", None, livez, answer=shapes.Health, also=(503,)),
    Route("GET", "/readyz", "readyz", "Whether it can work", None, readyz, answer=shapes.Health, also=(503,)),
    Route("GET", "/metrics", "metrics", "Metrics", Scope.READ, metrics, media_type="text/plain"),
    Route("GET", "/openapi.json", "openapi", "What the daemon answers", None, openapi),
    Route("GET", "/v1/me", "me", "Who the caller is, and what that allows", Scope.READ, me, answer=shapes.Me),
    Route(
        "GET",
        "/v1/connections",
        "list_connections",
        "What requests may name",
        Scope.READ,
        connections,
        answer=shapes.Connections,
    ),
)
