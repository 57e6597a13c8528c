"""From an HTTP request to a handler and back: every request is checked against its route before anything is done.

In this order: is the Host ours, is there such a route, who is it, may he, is the request well formed.  Whatever is
raised on the way becomes a problem.  Then the handler has its time, and no more: a question whose caller has left is
given up, a change that was asked for is finished (and audited) whoever listens.

Requests and answers are starlette's; its router is not used.  Ours is data, so that no route can be without a scope,
and it takes a path apart before its percent signs are resolved: ``%2F`` in a name is no slash.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import BackfillError
from engine.service import problems
from engine.service.access import Forbidden, Identity, Peer, TooManyTries, Unauthenticated
from engine.service.daemon import Daemon
from engine.service.problems import GivenUp, MethodNotAllowed, NotFound, Overloaded, TookTooLong
from engine.service.reading import body_of, headers_of, names_of, query_of, segments_of
from engine.service.routing import Call, Reply, Route, Table, methods_of
from engine.service.transport import PEER
from engine.wire.shapes import Answer

SECURITY_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""What every answer carries; the page adds a Content-Security-Policy."""

REQUEST_ID: Final = "x-request-id"

DEADLINE_S: Final = 30.0
SLOW_DEADLINE_S: Final = 120.0
SLOW_AT_ONCE: Final = 2
"""Requests that read the tables themselves, of those that try something out and of those that change something; the
next one is told to come again.
"""

SLOW_RETRY_AFTER_S: Final = 10

NOBODY: Final = Identity("anybody", "peer", frozenset(), frozenset())
"""Who asks for what is public."""


Result = TypeVar("Result")


class App:
    """The ASGI application."""

    def __init__(self, daemon: Daemon, routes: Sequence[Route]) -> None:
        self._daemon = daemon
        self._table = Table(routes)
        self._slow: Counter[bool] = Counter()  # by whether they leave everything as it was

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
            reply = self._problem(error, request, number)
        await _send(reply, number, request, send)

    def _problem(self, error: Exception, request: HttpRequest, number: str) -> Reply:
        told = problems.known(error)
        if told.http_status == 500:
            self._daemon.failed(number, f"{request.method} {request.url.path}"[:200], error)
        reply = problems.reply(told, number)
        reply.content = self._without_addresses(str(reply.content))
        return reply

    def _without_addresses(self, text: str) -> str:
        """Errors name a database by its address, for whoever runs it.  Callers know connections, and no more."""
        labels = {station.database.label: name for name, station in self._daemon.stations.items()}
        for label in sorted(labels, key=len, reverse=True):
            text = text.replace(json.dumps(label, ensure_ascii=False)[1:-1], labels[label])
        return text

    async def _answer(self, request: HttpRequest, number: str) -> Reply:
        daemon, scope = self._daemon, request.scope
        daemon.hosts.check(request.headers)
        segments = segments_of(scope.get("raw_path") or scope["path"].encode())
        methods = self._table.at(segments)
        if not methods:
            raise NotFound("nothing is here", hint="GET /openapi.json describes what there is")
        method = "GET" if request.method == "HEAD" else request.method
        if method == "OPTIONS":
            return Reply(status=204, headers={"allow": ", ".join(methods_of(methods))}, media_type="")
        if method not in methods:
            raise MethodNotAllowed(request.method[:20], methods_of(methods))
        route = methods[method]
        identity = NOBODY
        if route.scope is not None:
            daemon.hosts.check_site(request.headers)
            peer = scope.get(PEER) or Peer()
            try:
                identity = daemon.doorkeeper.identify(peer, request.headers.get("authorization"))
            except (Unauthenticated, TooManyTries) as error:
                daemon.turned_away(peer, route, error, number)
                raise
        call = Call(route=route, daemon=daemon, identity=identity, path={}, query={}, headers={}, id=number)
        if not route.changes:
            return await self._fill_and_run(call, request, segments)
        with self._audited(call):
            return await self._fill_and_run(call, request, segments)

    async def _fill_and_run(self, call: Call, request: HttpRequest, segments: Sequence[str]) -> Reply:
        route, limits = call.route, self._daemon.config.limits
        if route.scope is not None and route.scope not in call.identity.scopes:
            with contextlib.suppress(BackfillError):
                call.path = names_of(route, segments)  # for the audit
            raise Forbidden(
                f"{call.identity.signature} lacks the scope {route.scope}", hint="the operator grants scopes"
            )
        call.path = names_of(route, segments)
        call.headers = headers_of(route, request)
        call.query = query_of(route, request.scope["query_string"])
        call.body = await body_of(route, request, limits.body, limits.body_timeout)
        handled = self._in_turn(call) if route.is_slow else _in_time(call, DEADLINE_S)
        reply = await (_while_wanted(handled, request) if route.ends_with_caller else handled)
        if reply.media_type is None:
            reply.media_type = route.media_type
        return _unless_known(call, reply)

    async def _in_turn(self, call: Call) -> Reply:
        kind = call.route.leaves_nothing
        if self._slow[kind] >= SLOW_AT_ONCE:
            raise Overloaded(
                f"{SLOW_AT_ONCE} requests of that kind, which read the tables, are being answered",
                hint="try again in a while",
                retry_after_s=SLOW_RETRY_AFTER_S,
            )
        self._slow[kind] += 1
        try:
            return await _in_time(call, SLOW_DEADLINE_S)
        finally:
            self._slow[kind] -= 1

    @contextlib.contextmanager
    def _audited(self, call: Call) -> Iterator[None]:
        """A change that was asked for is written down, whatever became of it."""
        try:
            yield
        except ClientDisconnect:
            self._daemon.audit(call, GivenUp("the caller left before the answer was there"))
            raise
        except Exception as error:
            self._daemon.audit(call, problems.known(error))
            raise
        except asyncio.CancelledError:
            self._daemon.audit(call, GivenUp("the daemon ended before the answer was there"))
            raise
        self._daemon.audit(call, None)


async def _in_time(call: Call, usual_s: float) -> Reply:
    """The handler's reply.  Who asks to wait for a change has that much longer."""
    waits_s = call.query.get("wait") or 0.0
    deadline_s = call.route.deadline_s or usual_s
    clock = asyncio.timeout(deadline_s + waits_s)
    try:
        async with clock:
            return await call.route.handler(call)
    except TimeoutError:
        if not clock.expired():
            raise
        raise TookTooLong(f"no answer was there after {deadline_s:g} s", hint="try again later") from None


async def _while_wanted(wanted: Coroutine[Any, Any, Result], request: HttpRequest) -> Result:
    """What is wanted, unless its caller leaves first: then the work for it ends too.  Raises ``ClientDisconnect``."""
    work = asyncio.create_task(wanted)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return await work
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unless_known(call: Call, reply: Reply) -> Reply:
    """304 for somebody who has that very answer already."""
    etag = reply.headers.get("etag")
    seen = [one.strip().removeprefix("W/") for one in call.headers.get("if-none-match", "").split(",")]
    if call.route.changes or reply.status != 200 or etag is None or not {etag, "*"} & set(seen):
        return reply
    return Reply(status=304, headers=reply.headers, media_type="")


async def _send(reply: Reply, number: str, request: HttpRequest, send: Send) -> None:
    """The whole answer.  Of HEAD everything but the content."""
    headers = SECURITY_HEADERS | {REQUEST_ID: number} | dict(reply.headers)
    response = Response(_content(reply), reply.status, headers, reply.media_type or None)
    raw = response.raw_headers
    is_head = request.method == "HEAD"
    if reply.stream is None:
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if is_head else bytes(response.body)})
        return
    raw = [(name, value) for name, value in raw if name != b"content-length"]
    try:
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        if not is_head:
            await _while_wanted(_pieces(reply.stream, send), request)
        await send({"type": "http.response.body", "body": b""})
    except ClientDisconnect:
        return
    finally:
        if hasattr(reply.stream, "aclose"):
            await reply.stream.aclose()


async def _pieces(stream: AsyncIterator[bytes], send: Send) -> None:
    async for piece in stream:
        await send({"type": "http.response.body", "body": piece, "more_body": True})


def _content(reply: Reply) -> str | bytes | None:
    match reply.content:
        case Answer() as answer:
            return answer.model_dump_json()
        case Mapping() as mapping:
            return json.dumps(dict(mapping), ensure_ascii=False, allow_nan=False)
        case other:
            return other
