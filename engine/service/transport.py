"""Connections and what they may cost: uvicorn's HTTP/1.1 under our own accept loop, event loop, and time limits.

uvicorn waits for a client as long as the client likes.  Here every wait for one has a bound: for the TLS handshake and
the head of a request (``header_timeout``), for the next request (``idle_timeout``), and for the client to take what it
asked for (``send_timeout``); the application bounds the wait for a body.  Who is there is asked of the kernel before
anything is read.  Requests that two readers could understand in two ways are refused, one is answered at a time, and an
answer that leaves a body unread is the last of its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from engine.errors import BackfillError, UsageError
from engine.service import refusals
from engine.service.access import Peer
from engine.service.config import Config, Limits
from engine.service.crowd import Crowd, Ticket, place_of
from engine.service.problems import TooSlow
from engine.service.refusals import Crowded, HeadTooLarge, Malformed, NotSupported, Stranger
from engine.service.sockets import Listener, certificate_names, listen, peer_of, tls_context
from engine.service.watched import Watched

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PEER: Final = "backfill.peer"
"""Key of the ASGI scope under which the ``Peer`` of the connection stands."""

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_HEADERS: Final = 100
HEALTH: Final = ("/livez", "/readyz")
RESERVE_TIMEOUT_S: Final = 2.0
LINGER_S: Final = 2.0
LINGER_BYTES: Final = 2**20
PROGRESS_BYTES: Final = 16 * 1024
"""A client must take this much of an answer within each ``send_timeout``."""

_SINGLE: Final = frozenset(
    (b"authorization", b"content-type", b"host", b"idempotency-key", b"if-match", b"last-event-id", b"origin")
)
_CLOSE: Final = (b"connection", b"close")
_BARE_NEWLINE: Final = re.compile(rb"(?<!\r)\n")
_TICK_S: Final = 1.0
_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# uvicorn warns of every malformed request: anybody could fill the log with them.
_quiet = logging.getLogger("engine.service.http")
_quiet.setLevel(logging.ERROR)


class Line(asyncio.Transport):
    """A transport that ends: what is still to be sent gets ``send_timeout``, as long as the client takes some of it."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, within_s: float) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._within_s = within_s
        self._due: asyncio.TimerHandle | None = None
        self._left = 0
        self._is_closing = False
        self._drained = 0
        self.is_unread = False
        """The request is not read to its end: to close at once would cost the client our answer."""

    def close(self) -> None:
        """No more answers; the connection ends when the last one was taken, or was not taken in time."""
        if self._is_closing:
            return
        self._is_closing = True
        self.watch()
        if not self.is_unread:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER_S, self._transport.close)

    def drain(self, size: int) -> None:
        """Bytes that came after ``close``."""
        self._drained += size
        if self._drained > LINGER_BYTES:
            self._transport.abort()

    def watch(self) -> None:
        """From now on the client has to take what was sent."""
        if self._due is None:
            self._left = self._transport.get_write_buffer_size()
            self._due = self._loop.call_later(self._within_s, self._look)

    def trust(self) -> None:
        """The client has taken enough of it, for now."""
        if self._due is not None and not self._is_closing:
            self._due.cancel()
            self._due = None

    def lost(self) -> None:
        """The connection is gone."""
        self._is_closing = True
        if self._due is not None:
            self._due.cancel()

    def _look(self) -> None:
        self._due = None
        left = self._transport.get_write_buffer_size()
        if self._left - left < PROGRESS_BYTES:
            self._transport.abort()
        else:
            self.watch()

    def abort(self) -> None:
        """Now."""
        self._is_closing = True
        self._transport.abort()

    def is_closing(self) -> bool:
        """True when no more answers go out."""
        return self._is_closing or self._transport.is_closing()

    def write(self, data: Any) -> None:
        """Send, unless nothing more is to be sent."""
        if not self._is_closing:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """As the transport does."""
        if not self.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """As the transport does."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the transport does."""
        return self._transport.get_extra_info(name, default)


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
        self.timeout_keep_alive = front.limits.idle_timeout  # type: ignore[assignment]  # a whole number there
        self.app = self._answer
        self.line: Line | None = None

    # -- asyncio's side

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
        """Part of a request; the first byte of the next one starts its clock."""
        line = self.line
        assert line is not None
        if line.is_closing():
            line.drain(len(data))
            return
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
        if self.conn.trailing_data[0] and not self.transport.is_closing():
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
        return self._ticket.is_reserve or bool(self.conn.trailing_data[0])

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


class Front:
    """All listeners of a configuration: what they accept is counted, asked who it is, and served.

    ``admits`` says whether a peer may speak at all.  ``tell`` hears of TLS files that cannot be used, and when they can
    again; until then the ones before stay in force.
    """

    def __init__(
        self,
        app: Any,
        config: Config,
        *,
        admits: Callable[[Peer], bool] = lambda _: True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.app = app
        self.admits = admits
        self.limits: Limits = config.limits
        self.state = ServerState()
        self.uvicorn = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        self._config = config
        self._tell = tell
        self._crowd = Crowd(config.limits.connections)
        self._listeners: list[Listener] = []
        self._greeting: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None
        self._tls_files = Watched(
            [path for path in (config.tls.certificate, config.tls.key, config.tls.client_ca) if path is not None]
            if config.tls is not None
            else []
        )
        self._drain_s = config.drain
        self._ending = asyncio.Event()
        self._empty = asyncio.Event()
        self.trouble: str | None = None

    def open(self) -> list[str]:
        """Listen everywhere; gives the URLs by which clients reach us.  Raises ``UsageError``."""
        if self._config.tls is not None:
            self._tls_files.has_changed()
            self._tls = tls_context(self._config.tls)
        try:
            for address in self._config.listen:
                self._listeners.append(listen(address, others=bool(self._config.auth.users)))
        except UsageError:
            self.close()
            raise
        return [listener.url(tls=self._tls is not None) for listener in self._listeners]

    async def serve(self) -> None:
        """Answer until ``stop``; then finish what is in hand, within its bound."""
        self.uvicorn.load()
        accepting = [asyncio.create_task(self._accept(one), name=f"accept {one.address}") for one in self._listeners]
        try:
            while not self._ending.is_set():
                self._tick()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_S):
                        await self._ending.wait()
                for task in accepting:
                    if task.done():
                        task.result()
        finally:
            for task in accepting:
                task.cancel()
            await asyncio.gather(*accepting, return_exceptions=True)
            self.close()
            await self._drain()

    def stop(self, within_s: float | None = None) -> None:
        """Take no more connections, and let ``serve`` return when the requests in hand are answered."""
        if within_s is not None:
            self._drain_s = within_s
        self._ending.set()

    def close(self) -> None:
        """Listen no longer."""
        while self._listeners:
            self._listeners.pop().close()

    def reload(self) -> None:
        """Read the TLS files again, for connections that are to come."""
        if self._config.tls is None:
            return
        try:
            self._tls = tls_context(self._config.tls)
        except UsageError as error:
            if self.trouble != error.message:
                self.trouble = error.message
                self._tell(f"{error.message}; the certificate before stays in force")
        else:
            if self.trouble is not None:
                self.trouble = None
                self._tell("the TLS files are in force again")

    def left(self) -> None:
        """A connection is gone."""
        if not self.state.connections:
            self._empty.set()

    def _tick(self) -> None:
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        if self._config.tls is not None and self._tls_files.has_changed():
            self.reload()

    async def _accept(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener.socket)
            except OSError as error:
                if error.errno in _FULL:  # it goes on waiting in the queue: look again when something may have ended
                    await asyncio.sleep(_TICK_S / 4)
                continue
            greeting = loop.create_task(self._greet(listener, accepted))
            self._greeting.add(greeting)
            greeting.add_done_callback(self._greeting.discard)

    async def _greet(self, listener: Listener, accepted: socket.socket) -> None:
        """Give a connection its place, and its protocol."""
        tls = self._tls if listener.address.path is None else None
        ticket = None
        try:
            peer = peer_of(accepted)
            ticket = self._crowd.enter(place_of(peer))
            if ticket is None:
                accepted.close()
                return
            ticket.guest = _Newcomer(accepted)
            await asyncio.get_running_loop().connect_accepted_socket(
                partial(Protocol, self, peer, ticket),
                accepted,
                ssl=tls,
                ssl_handshake_timeout=self.limits.header_timeout if tls is not None else None,
                ssl_shutdown_timeout=self.limits.send_timeout if tls is not None else None,
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError):  # gone, or no TLS: nobody is left to be told
            accepted.close()
            if ticket is not None:
                ticket.leave()

    async def _drain(self) -> None:
        for greeting in self._greeting:
            greeting.cancel()
        for connection in list(self.state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while self.state.connections:
                    self._empty.clear()
                    await self._empty.wait()
        tasks = list(self.state.tasks)
        for task in tasks:
            task.cancel()
        for connection in list(self.state.connections):
            connection.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Newcomer:
    """A connection that has not said a word: a handshake may be under way."""

    def __init__(self, accepted: socket.socket) -> None:
        self._accepted = accepted

    def evict(self) -> None:
        """Whoever handles it sees its end."""
        with contextlib.suppress(OSError):
            self._accepted.shutdown(socket.SHUT_RDWR)
