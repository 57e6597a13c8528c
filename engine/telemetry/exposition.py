"""Where Prometheus scrapes this process: a small HTTP server in threads of its own.

The application is the library's, with its formats and its negotiation.  The server around it is ours for three reasons:
it asks no name server for its own name (which can take longer than a job), nobody is served for longer than a scrape
can take, and no more than so many at once: the newest ones, so that slow clients never lock Prometheus out.  It tells
no row, key or secret, and asks nobody who he is.
"""

from __future__ import annotations

import errno
import io
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from engine.clock import SystemClock
from engine.errors import UsageError
from engine.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

CLIENT_TIMEOUT_S: Final = 10.0
"""From the moment at which a client is there until the last byte of his answer."""

MOST_CLIENTS: Final = 16
LEAVE_S: Final = 1.0
"""How long a client who is cut off may keep his place: until an answer that is being made is ready."""

POLL_S: Final = 0.05
"""How soon a server that is told to end looks up."""

_HIGHEST_PORT: Final = 65535
_HINT: Final = "as in 127.0.0.1:9477, [::1]:9477, or with port 0 for any that is free"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """``HOST:PORT``; an IPv6 address stands in brackets.  Raises ``UsageError``."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"{text} is not HOST:PORT", hint="an IPv6 address stands in brackets: [::1]:9477")
    if not host:
        raise UsageError(
            f"{text} is not HOST:PORT",
            hint="127.0.0.1:9477 listens on this host alone, 0.0.0.0:9477 on all its addresses",
        )
    if not (port.isascii() and port.isdigit()) or int(port) > _HIGHEST_PORT:
        raise UsageError(f"{text} is not HOST:PORT", hint=_HINT)
    return Address(host, int(port))


class Exposition:
    """Serves ``metrics`` at ``listen`` from ``open`` to ``close``."""

    def __init__(self, metrics: Metrics, listen: str) -> None:
        """Raises ``UsageError`` for what is no address; listens to nothing yet."""
        self._address = parse_address(listen)
        self._scrapes = _Scrapes(make_wsgi_app(metrics.registry))
        self._server: _Server | None = None

    def open(self) -> None:
        """Listen.  Raises ``UsageError`` when that cannot be, as when the address is in use."""
        address = self._address
        try:
            family, *_, place = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _Server(family, place, self._scrapes)
        except (OSError, UnicodeError) as error:
            raise UsageError(f"cannot listen on {address}: {_why(error)}", hint=_what_to_do(error)) from None
        thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="metrics", daemon=True)
        thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on; where 0 was asked for, the one that was free."""
        return self._address.port if self._server is None else int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """What a scrape asks for."""
        return f"http://{Address(self._address.host, self.port)}/metrics"

    @property
    def scrapes(self) -> int:
        """How many there have been: answered to the last byte."""
        return self._scrapes.answered

    def from_now_on(self) -> Callable[[], bool]:
        """Asks whether a scrape that began after this moment has been answered."""
        return self._scrapes.from_now_on()

    def close(self) -> None:
        """Listen no longer.  May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


class _Scrapes:
    """The application with a count of what it has answered."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.answered = 0
        self._application = application
        self._lock = threading.Lock()
        self._began = 0  # numbers of scrapes, in the order in which they began
        self._last_answered = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The WSGI application."""
        is_scrape = environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"] != "/favicon.ico"
        with self._lock:
            self._began += is_scrape
            number = self._began
        answer = self._application(environ, start_response)
        return _Answer(answer, lambda: self._note(number)) if is_scrape else answer

    def from_now_on(self) -> Callable[[], bool]:
        """As of ``Exposition``."""
        with self._lock:
            began = self._began
        return lambda: self._last_answered > began

    def _note(self, number: int) -> None:
        with self._lock:
            self.answered += 1
            self._last_answered = max(self._last_answered, number)


class _Answer:
    """The body of an answer; tells when all of it has been sent."""

    def __init__(self, body: Iterable[bytes], sent: Callable[[], None]) -> None:
        self._body = list(body)
        self._sent = sent

    def __len__(self) -> int:
        return len(self._body)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._body
        self._sent()


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_S  # between two bytes; alone it counts when nobody looks at deadlines any more

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the signature is the library's
        """Nothing: a scrape is no event of the job's."""

    def get_stderr(self) -> TextIO:
        """Nowhere: a client that stopped reading is nobody's concern, and no traceback in the output of a job."""
        return io.StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CLIENTS

    def __init__(self, family: int, place: Any, application: Callable[..., Iterable[bytes]]) -> None:
        self.address_family = family
        self._now = SystemClock().now
        self._clients: dict[socket.socket, float] = {}  # with their deadlines, in the order in which they came
        self._left = threading.Condition()
        super().__init__(place, _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        """Without asking for the host's name, as ``HTTPServer`` does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = (str(part) for part in self.server_address[:2])  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the client.  When all places are taken, whoever has been there longest gives up his."""
        with self._left:
            if len(self._clients) >= MOST_CLIENTS:
                _cut_off(next(iter(self._clients)))
            if not self._left.wait_for(lambda: len(self._clients) < MOST_CLIENTS, LEAVE_S):
                raise TimeoutError  # this one is sent away
            self._clients[request] = self._now() + CLIENT_TIMEOUT_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The end of a client, however it came: also when there was no thread to be had for him."""
        with self._left:
            self._clients.pop(request, None)
            self._left.notify()
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Every now and then: whoever is past his deadline is cut off."""
        with self._left:
            for client, deadline in self._clients.items():
                if self._now() >= deadline:
                    _cut_off(client)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing, as above."""


def _cut_off(client: socket.socket) -> None:
    """Whoever reads from it, or writes to it, finds it closed."""
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _why(error: OSError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return "no such host"
    return (error.strerror or "it failed").lower()


def _what_to_do(error: OSError | UnicodeError) -> str:
    match error.errno if isinstance(error, OSError) else None:
        case errno.EADDRINUSE:
            return "another process listens there; choose another port, or 0 for any that is free"
        case errno.EACCES:
            return "ports below 1024 need privileges; choose a higher one"
        case errno.EADDRNOTAVAIL:
            return "this host does not have that address; 0.0.0.0 stands for all that it has"
        case _:
            return _HINT
