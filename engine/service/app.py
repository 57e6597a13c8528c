"""From an HTTP request to a handler and back: every request is checked against its route before anything is done.

In this order: is the Host ours, is there such a route, who is it, may he, is the request well formed.  Whatever is
raised on the way becomes a problem.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from engine.service import problems
from engine.service.access import Forbidden, Identity, Peer
from engine.service.daemon import Daemon
from engine.service.problems import BadRequest, MethodNotAllowed, NotFound, TooLarge, TooSlow, Unprocessable
from engine.service.routing import SPEC, Call, Parameter, Reply, Route
from engine.service.transport import PEER
from engine.spec.misfit import Misfit
from engine.spec.units import parse_duration
from engine.wire.shapes import Answer, Detail

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

SECURITY_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""What every answer carries; the page adds a Content-Security-Policy."""

MAX_DEPTH: Final = 32


class App:
    """The ASGI application."""

    def __init__(self, daemon: Daemon, routes: Sequence[Route]) -> None:
        self._daemon = daemon
        self._routes = [
            (re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path) + r"\Z"), route) for route in routes
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request = HttpRequest(scope, receive)
        number = secrets.token_hex(8)
        try:
            reply = await self._answer(request, number)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is becomes an answer
            reply = problems.reply(problems.known(error), number)
        await _response(reply, number)(scope, receive, send)

    async def _answer(self, request: HttpRequest, number: str) -> Reply:
        daemon = self._daemon
        daemon.hosts.check(request.headers.get("host"))
        route, path = self._find(request.method, request.url.path)
        identity = await self._admit(route, request)
        call = Call(
            route=route,
            daemon=daemon,
            identity=identity,
            path=path,
            query=_query(route, request.url.query),
            headers=dict(request.headers),
            body=await _body(route, request, daemon.config.limits.body, daemon.config.limits.body_timeout),
            id=number,
        )
        if not route.changes:
            return await _handled(call)
        try:
            reply = await _handled(call)
        except Exception as error:
            daemon.audit(call, problems.known(error))
            raise
        daemon.audit(call, None)
        return reply

    def _find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        allowed = []
        for pattern, route in self._routes:
            found = pattern.match(path)
            if found is None:
                continue
            if route.method == method:
                return route, found.groupdict()
            allowed.append(route.method)
        if allowed:
            raise MethodNotAllowed(f"{method} is not for this path", hint=f"allowed: {', '.join(sorted(set(allowed)))}")
        raise NotFound("nothing is here", hint="GET /openapi.json describes what there is")

    async def _admit(self, route: Route, request: HttpRequest) -> Identity:
        peer = request.scope.get(PEER) or Peer()
        if route.scope is None:
            return Identity("anybody", "peer", frozenset(), frozenset())
        identity = self._daemon.doorkeeper.identify(peer, request.headers.get("authorization"))
        if route.scope not in identity.scopes:
            raise Forbidden(f"{identity.signature} lacks the scope {route.scope}", hint="the operator grants scopes")
        return identity


async def _handled(call: Call) -> Reply:
    reply = await call.route.handler(call)
    if reply.media_type is None:
        reply.media_type = call.route.media_type
    return reply


def _query(route: Route, text: str) -> dict[str, Any]:
    given = parse_qsl(text, keep_blank_values=True, max_num_fields=50)
    known = {parameter.name: parameter for parameter in route.parameters}
    values: dict[str, Any] = {parameter.name: parameter.default for parameter in route.parameters}
    errors = []
    for name, value in given:
        parameter = known.get(name)
        if parameter is None:
            errors.append(Detail(parameter=name[:80], message="is not a parameter of this route"))
            continue
        try:
            values[name] = _value(parameter, value)
        except Misfit as error:
            errors.append(Detail(parameter=name, message=error.message, hint=error.hint))
    if errors:
        raise BadRequest("the query does not fit", errors=tuple(errors))
    return values


def _value(parameter: Parameter, text: str) -> Any:
    match parameter.kind:
        case "integer":
            if not re.fullmatch(r"-?[0-9]{1,18}", text):
                raise Misfit("is not a whole number")
            number: float = int(text)
        case "boolean":
            if text not in ("true", "false"):
                raise Misfit("is neither true nor false")
            return text == "true"
        case "duration":
            number = parse_duration(text)
        case _:
            if parameter.choices and text not in parameter.choices:
                raise Misfit(f"must be one of: {', '.join(parameter.choices)}")
            if parameter.pattern is not None and not re.fullmatch(parameter.pattern, text):
                raise Misfit("has another form than it should")
            return text
    if parameter.minimum is not None and number < parameter.minimum:
        raise Misfit(f"is below {parameter.minimum:g}")
    if parameter.maximum is not None and number > parameter.maximum:
        raise Misfit(f"is above {parameter.maximum:g}")
    return number


async def _body(route: Route, request: HttpRequest, most: int, within_s: float) -> Any:
    raw = b""
    try:
        async with asyncio.timeout(within_s):
            async for piece in request.stream():
                raw += piece
                if len(raw) > most:
                    raise TooLarge(f"a body has at most {most:,} bytes here")
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {within_s:g} s") from None
    if route.request is None:
        if raw:
            raise BadRequest("this route takes no body")
        return None
    if not raw:
        if route.body_required:
            raise Unprocessable("the body is missing")
        return None if route.request == SPEC else route.request()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/merge-patch+json"):
        raise problems.UnsupportedMediaType("a body must be application/json")
    data = _json(raw)
    if route.request == SPEC:
        return data
    try:
        return route.request.model_validate(data)
    except ValidationError as error:
        raise Unprocessable("the body does not fit", errors=tuple(map(_detail, error.errors()))) from None


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _detail(error: Any) -> Detail:
    return Detail(pointer=pointer(error["loc"]), message=error["msg"])


def pointer(path: Sequence[str | int]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _response(reply: Reply, number: str) -> Response:
    headers = SECURITY_HEADERS | {"x-request-id": number} | dict(reply.headers)
    if reply.stream is not None:
        return StreamingResponse(reply.stream, reply.status, headers, reply.media_type)
    content = reply.content
    if isinstance(content, Answer):
        content = content.model_dump_json()
    elif isinstance(content, Mapping):
        content = json.dumps(content)
    return Response(content, reply.status, headers, reply.media_type)
