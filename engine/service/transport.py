"""Sockets and what is at their other end: uvicorn under our own event loop, signals and time limits.

uvicorn waits for a client as long as the client likes, and takes over the process's signals.  Here a connection that
does not finish its headers in time is closed, the peer of each connection is asked of the kernel (or of TLS) before
anything is read, and signals stay with whoever runs the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.errors import UsageError
from engine.service.access import Peer
from engine.service.config import Address, Config, Limits, Tls

PEER: Final = "backfill.peer"
"""Key of the ASGI scope under which the ``Peer`` of the connection stands."""

MAX_HEADERS: Final = 16 * 1024
_CREDENTIALS: Final = struct.Struct("3i")


class Protocol(H11Protocol):
    """HTTP/1.1 on one connection."""

    limits: Limits = Limits()
    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Learn who is there, and begin to wait for a request."""
        super().connection_made(transport)
        peer, app = _peer_of(transport), self.app

        async def with_peer(scope: Any, receive: Any, send: Any) -> None:
            self._stop_waiting()
            await app(scope | {PEER: peer}, receive, send)

        self.app = with_peer
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Part of a request; the first byte of the next one starts its clock."""
        if self._head_due is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head_due = self.loop.call_later(self.limits.header_timeout, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None


class Server(uvicorn.Server):
    """Serves one application on sockets that are open already; signals are left alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not ours."""
        yield


def build_server(app: Any, limits: Limits, drain_s: float, tls: ssl.SSLContext | None = None) -> Server:
    """A server for ``app``; ``await server.serve(sockets=[…])`` runs it until ``server.should_exit`` is set."""
    protocol = type("Protocol", (Protocol,), {"limits": limits})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=round(limits.idle_timeout),
        timeout_graceful_shutdown=max(1, round(drain_s)),
        h11_max_incomplete_event_size=MAX_HEADERS,
    )
    config.load()
    config.ssl = tls
    return Server(config)


def open_socket(address: Address) -> socket.socket:
    """Listen there.  A Unix socket that nobody listens on any more is replaced, a living one is not.

    Raises ``UsageError`` when the address cannot be listened on.
    """
    try:
        return _unix(Path(address.path)) if address.path is not None else _tcp(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {address}: {error.strerror or error}", hint="give another `listen`"
        ) from error


def _tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address.host, address.port))
    except OSError:
        found.close()
        raise
    return found


def _unix(path: Path) -> socket.socket:
    """A socket that only our own user can connect to, unless the folder and its mode say otherwise."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(str(path)) == 0:
                    raise OSError("somebody listens there already")
            path.unlink()
        before = os.umask(0o177)
        try:
            found.bind(str(path))
        finally:
            os.umask(before)
    except OSError:
        found.close()
        raise
    return found


def _peer_of(transport: asyncio.BaseTransport) -> Peer:
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.family == socket.AF_UNIX:
        with contextlib.closing(socket.socket(fileno=os.dup(raw.fileno()))) as own:
            pid, uid, gid = _CREDENTIALS.unpack(
                own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
        return Peer(uid=uid, gid=gid, pid=pid)
    name = transport.get_extra_info("peername")
    certificate = transport.get_extra_info("peercert") or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return Peer(address=str(name[0]) if name else None, certificate=tuple(names))


def tls_context(tls: Tls) -> ssl.SSLContext:
    """What TLS listeners use; with ``client_ca``, clients may show a certificate of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


class Front:
    """All listeners of a configuration, each with a server of its own: TLS is for TCP, and not for a Unix socket."""

    def __init__(self, app: Any, config: Config) -> None:
        self._config = config
        self._app = app
        self._open: list[tuple[Address, socket.socket]] = []
        self._servers: list[Server] = []

    def open(self) -> list[str]:
        """Listen everywhere; gives the URLs by which clients reach us.  Raises ``UsageError``."""
        try:
            for address in self._config.listen:
                self._open.append((address, open_socket(address)))
        except UsageError:
            self.close()
            raise
        return [self._url(address, opened) for address, opened in self._open]

    async def serve(self) -> None:
        """Answer until ``stop``."""
        context = tls_context(self._config.tls) if self._config.tls is not None else None
        for address, _ in self._open:
            tls = context if address.path is None else None
            self._servers.append(build_server(self._app, self._config.limits, self._config.drain, tls))
        try:
            async with asyncio.TaskGroup() as group:
                for server, (_, opened) in zip(self._servers, self._open, strict=True):
                    group.create_task(server.serve(sockets=[opened]))
        finally:
            self.close()

    def stop(self) -> None:
        """Take no more connections, and let ``serve`` return when the requests in hand are answered."""
        for server in self._servers:
            server.should_exit = True

    def close(self) -> None:
        """Listen no longer."""
        for address, opened in self._open:
            opened.close()
            if address.path is not None:
                Path(address.path).unlink(missing_ok=True)
        self._open = []

    def _url(self, address: Address, opened: socket.socket) -> str:
        if address.path is not None:
            return str(address)
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{'https' if self._config.tls is not None else 'http'}://{host}:{opened.getsockname()[1]}"
