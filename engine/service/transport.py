"""All listeners, and what they accept: uvicorn's HTTP/1.1 under our own accept loop, event loop and signals.

Who is there is asked of the kernel before anything is read, every connection takes a place in the crowd before its TLS
handshake begins, and TLS is for TCP alone.  What happens on a connection is ``exchange``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from engine.errors import UsageError
from engine.service.access import Peer
from engine.service.config import Config, Limits
from engine.service.crowd import Crowd, place_of
from engine.service.exchange import MAX_HEAD_BYTES, PEER, Protocol
from engine.service.sockets import Listener, listen, peer_of, tls_context
from engine.service.watched import Watched

__all__ = ["PEER", "Front"]

_TICK_S: Final = 1.0
_NOT_OURS: Final = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


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

    def reload(self) -> bool:
        """Read the TLS files again, for connections that are to come.  False where there are none, or broken ones."""
        if self._config.tls is None:
            return False
        try:
            self._tls = tls_context(self._config.tls)
        except UsageError as error:
            if self.trouble != error.message:
                self.trouble = error.message
                self._tell(f"{error.message}; the certificate before stays in force")
            return False
        if self.trouble is not None:
            self.trouble = None
            self._tell("the TLS files are in force again")
        return True

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
                if error.errno in _NOT_OURS:
                    raise
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
