"""The daemon's application without a socket: routes of a test's own, and whoever a test says is at the other end.

::

    asked = asking(a_route(handler=say_hello), as_peer=Peer(uid=0))
    answer = await asked.client.get("/hello")

What reached a handler is in ``asked.calls``, what was audited in ``asked.audited``, what went wrong in ``asked.failures``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from engine.errors import BackfillError
from engine.service.access import Peer, Scope
from engine.service.app import App
from engine.service.config import Config
from engine.service.daemon import Daemon
from engine.service.routing import Call, Reply, Route
from engine.service.transport import PEER
from engine.spec import Dsn
from engine.wire import shapes

OURSELVES = Peer(uid=0, gid=0, pid=1)
"""Root at a Unix socket: every scope."""

NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"
"""A database that nobody may need to answer."""


class Watched(Daemon):
    """A daemon that remembers what it was told."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, {name: Dsn(NOWHERE) for name in config.connections})
        self.audited: list[tuple[Call, BackfillError | None]] = []
        self.failures: list[tuple[str, str, BaseException]] = []

    def audit(self, call: Call, error: BackfillError | None) -> None:
        self.audited.append((call, error))

    def failed(self, number: str, request: str, error: BaseException) -> None:
        self.failures.append((number, request, error))


@dataclass
class Asked:
    """An application, and what was seen of it."""

    daemon: Watched
    app: App
    client: httpx.AsyncClient
    calls: list[Call] = field(default_factory=list)

    @property
    def audited(self) -> list[tuple[Call, BackfillError | None]]:
        return self.daemon.audited

    @property
    def failures(self) -> list[tuple[str, str, BaseException]]:
        return self.daemon.failures


def config_with(**settings: Any) -> Config:
    """A configuration with two connections and two hosts."""
    data = {
        "listen": ["tcp://127.0.0.1:8471"],
        "connections": {name: {"dsn": NOWHERE, "tables": ["*.*"]} for name in ("main", "other")},
        "auth": {"loopback": ["read", "control", "submit"]},
    } | settings
    return Config.model_validate(data)


async def _fine(call: Call) -> Reply:
    return Reply(shapes.Health(status="ok"))


def a_route(path: str = "/it", method: Any = "GET", scope: Scope | None = Scope.READ, **changes: Any) -> Route:
    """A route that says that all is well, unless ``handler`` says otherwise."""
    handler: Callable[[Call], Awaitable[Reply]] = changes.pop("handler", _fine)
    return Route(method, path, "it", "A route of a test.", scope, handler, answer=shapes.Health, **changes)


def asking(
    *routes: Route, as_peer: Peer = OURSELVES, config: Config | None = None, headers: Mapping[str, str] | None = None
) -> Asked:
    """An application with these routes, and a client of it at ``127.0.0.1:8471``."""
    calls: list[Call] = []

    def noting(route: Route) -> Route:
        async def handler(call: Call) -> Reply:
            calls.append(call)
            return await route.handler(call)

        return replace(route, handler=handler)

    daemon = Watched(config or config_with())
    app = App(daemon, [noting(route) for route in routes])

    async def with_peer(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, PEER: as_peer}, receive, send)

    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(with_peer), base_url="http://127.0.0.1:8471", headers=dict(headers or {})
    )
    return Asked(daemon, app, client, calls)
