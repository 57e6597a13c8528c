"""What a route is: how it is called, what it demands, what it takes and what it gives.

A route is data.  The application checks every request against it before the handler is called; the OpenAPI document
and the tests of access are made from it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from engine.service.access import Identity, Scope
from engine.wire.shapes import Answer, Request

if TYPE_CHECKING:
    from engine.service.daemon import Daemon

SPEC: Final = "spec"
"""The body is a job's spec, whose own schema says what it is."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the query.  ``kind`` duration is text such as ``30s``; the handler gets seconds."""

    name: str
    kind: Literal["string", "integer", "boolean", "duration"]
    description: str
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.  ``scope`` None: public, without asking who it is."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str  # /v1/jobs/{job}/pause
    name: str  # operationId
    summary: str
    scope: Scope | None
    handler: Callable[[Call], Awaitable[Reply]]
    answer: type[Answer] | None = None
    status: int = 200
    request: type[Request] | Literal["spec"] | None = None
    body_required: bool = False
    parameters: tuple[Parameter, ...] = ()
    takes_if_match: bool = False
    takes_idempotency_key: bool = False
    media_type: str = "application/json"  # of the answer
    problems: tuple[str, ...] = ()  # stable codes of its own, besides those of every route
    is_slow: bool = False  # asks the tables themselves; fewer of these at a time

    @property
    def changes(self) -> bool:
        """True when a call may change something: it is audited, and never a GET."""
        return self.method != "GET"


@dataclass(slots=True)
class Call:
    """A request that fits its route, from somebody who may."""

    route: Route
    daemon: Daemon
    identity: Identity
    path: Mapping[str, str]
    query: Mapping[str, Any]  # by the route's parameters: converted, with defaults
    headers: Mapping[str, str]  # names in lower case
    body: Any = None  # an instance of the route's request; for SPEC, the JSON object
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def if_match(self) -> str | None:
        """The revision that the caller has seen, or None."""
        return self.headers.get("if-match")


@dataclass(slots=True)
class Reply:
    """An answer.  ``stream`` in place of ``content`` for server-sent events."""

    content: Answer | str | bytes | Mapping[str, Any] | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str | None = None  # None: the route's
    stream: AsyncIterator[bytes] | None = None
