"""What a route is: how it is called, what it demands, what it takes and what it gives.

A route is data.  The application checks every request against it before the handler is called; the OpenAPI document
and the tests of access are made from it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from engine.service.access import Identity, Scope
from engine.spec.models import NAME_PATTERN
from engine.wire.shapes import Answer, Job, Request

if TYPE_CHECKING:
    from engine.service.daemon import Daemon

SPEC: Final = "spec"
"""The body is a job's spec, whose own schema says what it is."""

EVENT_STREAM: Final = "text/event-stream"

PATH_PATTERNS: Final = {
    "job": NAME_PATTERN,
    "name": r"^[a-z0-9][a-z0-9_.-]{0,62}$",  # of a connection
    "file": r"^[a-z][a-z0-9_.-]{0,62}$",  # of the page
}
"""What can stand in a path: anything else names nothing, and nobody is asked about it."""


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
    leaves_nothing: bool = False  # a POST after which everything is as before: given up when its caller leaves
    deadline_s: float | None = None  # None: as the application says
    also: tuple[int, ...] = ()  # other statuses with the same answer

    @property
    def changes(self) -> bool:
        """True when a call may change something: it is audited, and never a GET."""
        return self.method != "GET"

    @property
    def ends_with_caller(self) -> bool:
        """True when nobody but the caller has any use for the answer.  A change is finished: it was asked for."""
        return self.method == "GET" or self.leaves_nothing

    @property
    def has_etag(self) -> bool:
        """True when the answer carries a revision."""
        return self.answer is Job

    @property
    def streams(self) -> bool:
        """True for server-sent events."""
        return self.media_type == EVENT_STREAM

    @property
    def names(self) -> tuple[str, ...]:
        """The parts of the path that the caller fills in."""
        return tuple(re.findall(r"\{(\w+)\}", self.path))


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
    noted: dict[str, str] = field(
        default_factory=dict
    )  # for audit: "job" and "connection", where the handler finds them

    @property
    def if_match(self) -> str | None:
        """The revision that the caller has seen, as text without quotes; None where any will do."""
        text = self.headers.get("if-match", "*").strip()
        return None if text == "*" else text.strip('"')


@dataclass(slots=True)
class Reply:
    """An answer.  ``stream`` in place of ``content`` for server-sent events."""

    content: Answer | str | bytes | Mapping[str, Any] | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str | None = None  # None: the route's
    stream: AsyncIterator[bytes] | None = None  # closed when the caller leaves


class Table:
    """All routes, by path and method.

    Segments are compared after their percent signs are resolved, one by one: ``%2F`` stays inside its segment, and a
    name with one names nothing.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._by_shape: dict[tuple[str, ...], dict[str, Route]] = {}
        for route in routes:
            methods = self._by_shape.setdefault(_shape(route.path), {})
            if route.method in methods:
                raise ValueError(f"two routes are {route.method} {route.path}")
            methods[route.method] = route

    def at(self, segments: tuple[str, ...]) -> dict[str, Route]:
        """The routes of a path by method; empty where nothing is.  A spelled-out segment goes before a name."""
        fitting = [shape for shape in self._by_shape if _fits(shape, segments)]
        return self._by_shape[max(fitting, key=_spelled_out)] if fitting else {}


def methods_of(routes: Iterable[str]) -> list[str]:
    """What an ``Allow`` header lists: HEAD goes where GET does."""
    return sorted({*routes, "OPTIONS"} | ({"HEAD"} if "GET" in routes else set()))


def _shape(path: str) -> tuple[str, ...]:
    return tuple("{}" if part.startswith("{") else part for part in path.split("/")[1:])


def _fits(shape: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    return len(shape) == len(segments) and all(
        part in ("{}", segment) for part, segment in zip(shape, segments, strict=True)
    )


def _spelled_out(shape: tuple[str, ...]) -> tuple[bool, ...]:
    return tuple(part != "{}" for part in shape)
