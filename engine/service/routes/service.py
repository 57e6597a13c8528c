"""The daemon itself: health, who the caller is, what may be named."""

from __future__ import annotations

from engine.service.access import Scope
from engine.service.routing import Call, Reply, Route
from engine.wire import shapes


async def livez(call: Call) -> Reply:  # noqa: ARG001 - to answer is all
    """The event loop answers.  Touches nothing."""
    return Reply(shapes.Health(status="ok"))


async def me(call: Call) -> Reply:
    """Who the caller is."""
    identity = call.identity
    connections = [name for name in call.daemon.stations if identity.may_use(name)]
    return Reply(
        shapes.Me(
            name=identity.name, kind=identity.kind, scopes=sorted(identity.scopes), connections=sorted(connections)
        )
    )


ROUTES = (
    Route("GET", "/livez", "livez", "Whether the process lives", None, livez, answer=shapes.Health),
    Route("GET", "/v1/me", "me", "Who the caller is, and what that allows", Scope.READ, me, answer=shapes.Me),
)
