"""HTTP/1.1 on one connection: uvicorn's protocol, with a bound for every wait, and one way to read every request.

uvicorn waits for a client as long as the client likes.  Here every wait for one has a bound: for the head of a request
(``header_timeout``), for the next request (``idle_timeout``), and for the client to take what it asked for
(``send_timeout``); the application bounds the wait for a body.  Requests that two readers could understand in two ways
are refused, one is answered at a time, and an answer that leaves a body unread is the last of its connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from engine.errors import BackfillError
from engine.service import refusals
from engine.service.access import Peer
from engine.service.crowd import Ticket
from engine.service.line import Line
from engine.service.problems import TooSlow
from engine.service.refusals import Crowded, HeadTooLarge, Malformed, NotSupported, Stranger
from engine.service.sockets import certificate_names

if TYPE_CHECKING:
    from engine.service.transport import Front

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PEER: Final = "backfill.peer"
"""Key of the ASGI scope under which the ``Peer`` of the connection stands."""

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_HEADERS: Final = 100
HEALTH: Final = ("/livez", "/readyz")
"""What is answered on a connection in reserve."""

RESERVE_TIMEOUT_S: Final = 2.0
SLICE_BYTES: Final = 4096

_SINGLE: Final = frozenset(
    (b"authorization", b"content-type", b"host", b"idempotency-key", b"if-match", b"last-event-id", b"origin")
)
_CLOSE: Final = (b"connection", b"close")
_BARE_NEWLINE: Final = re.compile(rb"(?<!\r)\n")

# uvicorn warns of every malformed request: anybody could fill the log with them.
_quiet = logging.getLogger("engine.service.http")
_quiet.setLevel(logging.ERROR)


class Protocol(H11Protocol):
    """HTTP/1.1 on one connection."""

    def __init__(self, front: Front, peer: Peer, ticket: Ticket) -> None:
        super().__init__(front.uvicorn, front.state, {}, asyncio.get_running_loop())
        self.logger, self.access_log = _quiet, False
        self._front = front
        self._limits = front.limits
        self._peer = peer
        self._ticket = ticket
        self._head_due: asyncio.TimerHandle | None = None
        self._head_tail = b""
        self._unread = bytearray()
        self._reading: asyncio.Handle | None = None
        self.timeout_keep_alive = front.limits.idle_timeout  # type: ignore[assignment]  # a whole number there
        self.app = self._answer
        self.line: Line | None = None

    # -- asyncio's side

    # asyncio's types say BaseTransport; a protocol of streams is given this one.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        names = certificate_names(transport.get_extra_info("peercert"))
        if names:
            self._peer = Peer(certificate=names, address=self._peer.address)
        self.line = Line(transport, self.loop, self._limits.send_timeout)
        super().connection_made(self.line)
        self._ticket.guest = self
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Part of a request, which is read a slice at a time: a quarter of a megabyte of the smallest chunks takes the
        parser half a second, and others wait for the event loop.
        """
        self._unread += data
        if self._reading is None:
            self._read_slice()

    def _read_slice(self) -> None:
        self._reading = None
        line = self.line
        assert line is not None
        if line.is_closing():
            line.drain(len(self._unread))
            self._unread.clear()
            return
        size = len(self._unread) if self._is_answering and not self._is_chunked() else SLICE_BYTES
        piece = bytes(self._unread[:size])
        del self._unread[:size]
        line.hold(held=bool(self._unread))
        if self._unread:
            self._reading = self.loop.call_soon(self._read_slice)
        self._understand(piece)

    def _is_chunked(self) -> bool:
        return any(name == b"transfer-encoding" for name, _ in self.headers)

    def _understand(self, data: bytes) -> None:
        """The first byte of the next request starts its clock."""
        if not self._is_answering:
            if self._head_due is None:
                self._wait_for_head()
            if self._has_bare_newline(data):
                self._refuse(Malformed("a line of the head ends without a carriage return"))
                return
        super().data_received(data)

    def pause_writing(self) -> None:
        """The client does not take what it asked for."""
        super().pause_writing()
        if self.line is not None:
            self.line.watch()

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        if self.line is not None:
            self.line.trust()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        self._stop_waiting()
        if self._reading is not None:
            self._reading.cancel()
        if self.line is not None:
            self.line.lost()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self._ticket.leave()
        self._front.left()

    # -- uvicorn's side

    def _should_upgrade(self) -> bool:
        """Never: a request to upgrade is answered as if it had not asked for that."""
        return False

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words
        """What came is not HTTP.  uvicorn calls this where it has caught h11's error."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        match status:
            case 431:
                self._refuse(HeadTooLarge(f"a head has at most {MAX_HEAD_BYTES:,} bytes here"))
            case 501:
                self._refuse(NotSupported("this transfer coding is not supported"))
            case _:
                self._refuse(Malformed("this is not HTTP/1.1"))

    def on_response_complete(self) -> None:
        """What came after a request, before it was answered, is not answered: one request at a time."""
        if self._has_more() and not self.transport.is_closing():
            self.transport.close()
        super().on_response_complete()
        self._ticket.rests()
        self._head_tail = b""

    def shutdown(self) -> None:
        """The daemon ends: an answer that has begun is finished, and nothing else."""
        if self._is_answering:
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def evict(self) -> None:
        """Another needs the place."""
        if self.line is not None:
            self.line.abort()

    # -- ours

    @property
    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever uvicorn's types say
        return cycle is not None and not cycle.response_complete

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._stop_waiting()
        self._ticket.begins()
        cycle, line = self.cycle, self.line
        assert line is not None

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                line.is_unread = cycle.more_body
                if cycle.more_body or self._is_last() or not cycle.keep_alive:
                    message["headers"] = [*message.get("headers", ()), _CLOSE]
            await send(message)

        refusal = self._refusal(scope)
        try:
            if refusal is None:
                await self._front.app(scope | {PEER: self._peer}, receive, send_on)
                return
            status, headers, body = refusals.answer(refusal)
            line.is_unread = cycle.more_body
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        except asyncio.CancelledError:  # the daemon ends, and this answer took longer than it waits
            cycle.disconnected = True
            line.abort()

    def _is_last(self) -> bool:
        return self._ticket.is_reserve or self._has_more()

    def _has_more(self) -> bool:
        """Whether the client has sent something behind the request in hand."""
        return bool(self._unread) or bool(self.conn.trailing_data[0])

    def _refusal(self, scope: Scope) -> BackfillError | None:
        """Why the application does not hear of this request."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        count = Counter(name for name, _ in headers)
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) + 4 for n, v in headers)
        if not self._front.admits(self._peer):
            return Stranger("this user may not", hint="the operator lists users under [auth.users]")
        if len(headers) > MAX_HEADERS or size > MAX_HEAD_BYTES:
            return HeadTooLarge(f"a head has at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES:,} bytes here")
        if scope["http_version"] not in ("1.0", "1.1"):
            return Malformed("this is not HTTP/1.1")
        if not scope["raw_path"].startswith(b"/") and scope["raw_path"] != b"*":
            return Malformed("the target of a request is a path here", hint="proxies are spoken to in another way")
        if b"transfer-encoding" in count and (b"content-length" in count or scope["http_version"] == "1.0"):
            return Malformed("the length of the body is given in two ways")
        if any(count[name] > 1 for name in _SINGLE):
            return Malformed("a header is given twice")
        if self._ticket.is_reserve and scope["path"] not in HEALTH:
            return Crowded("all connections are taken", hint="try again in a while")
        return None

    def _refuse(self, error: BackfillError) -> None:
        """Answer what is no request, and close."""
        self._stop_waiting()
        line = self.line
        assert line is not None
        line.is_unread = True
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status, headers, body = refusals.answer(error)
            for event in (
                h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                line.write(self.conn.send(event))
            line.close()
        else:
            line.abort()

    def _has_bare_newline(self, data: bytes) -> bool:
        """Whether the head, as far as it is here, has a line that ends in LF alone.

        h11 takes these for line ends, as it may; whoever stands in front of us might not.
        """
        text, seen = self._head_tail + data, len(self._head_tail)
        end = text.find(b"\r\n\r\n")
        self._head_tail = text[-3:] if end < 0 else b""
        return _BARE_NEWLINE.search(text, seen, len(text) if end < 0 else end) is not None

    def _wait_for_head(self) -> None:
        within_s = self._limits.header_timeout
        if self._ticket.is_reserve:
            within_s = min(within_s, RESERVE_TIMEOUT_S)
        self._head_due = self.loop.call_later(within_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_due = None
        if self.conn.trailing_data[0]:
            self._refuse(TooSlow(f"the head did not arrive within {self._limits.header_timeout:g} s"))
        elif self.line is not None:
            self.line.abort()

    def _stop_waiting(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
