"""``backfill health``: asks a daemon how it is, for probes that can run a program and see a Unix socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import click

from engine.cli.terminal import Terminal, output_options
from engine.errors import Busy, CannotConnect, UsageError

DEFAULT_DAEMON: Final = "unix:///run/backfill/backfill.sock"
DEFAULT_TIMEOUT_S: Final = 3.0
MAX_ANSWER_BYTES: Final = 65536


@click.command()
@click.option("--daemon", metavar="URL", help=f"Which daemon. Default: BACKFILL_DAEMON, else {DEFAULT_DAEMON}.")
@click.option("--live", is_flag=True, help="Ask whether the process works, not whether its databases are there.")
@click.option("--ca", metavar="FILE", help="The CA of the daemon's certificate, for https.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 60),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    help="Seconds.",
)
@output_options
def health(terminal: Terminal, daemon: str | None, live: bool, ca: str | None, timeout_s: float) -> int:
    """Exit with 0 when a daemon is ready, with 75 when it is not yet or no more, with 5 when nobody answers.

    It needs no token: what it asks is public, and says nothing about jobs.
    """
    status, found = ask(
        daemon or os.environ.get("BACKFILL_DAEMON") or DEFAULT_DAEMON,
        "/livez" if live else "/readyz",
        ca=ca,
        timeout_s=timeout_s,
    )
    state, checks = str(found.get("status", "unknown")), found.get("checks")
    if terminal.as_json:
        terminal.json(found)
    elif not terminal.quiet:
        terminal.heading(state)
        terminal.details([(str(name), str(text)) for name, text in checks.items()] if isinstance(checks, dict) else [])
    if status != http.client.OK:
        raise Busy(f"the daemon is {state}", hint="its log says more")
    return 0


def ask(daemon: str, path: str, *, ca: str | None, timeout_s: float) -> tuple[int, dict[str, Any]]:
    """The answer's status and its JSON object.  Raises ``UsageError`` or ``CannotConnect``."""
    connection = _connection(daemon, ca, timeout_s)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        text = answer.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise CannotConnect(f"no daemon answers at {daemon}: {reason}", hint="is backfill serve running?") from error
    finally:
        connection.close()
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CannotConnect(f"what answers at {daemon} is no backfill daemon", hint="give another --daemon")
    return answer.status, found


def _connection(daemon: str, ca: str | None, timeout_s: float) -> http.client.HTTPConnection:
    """Reads the address as ``engine.client.address`` does, once more: that room loads httpx and pydantic, which takes
    longer than the whole probe.
    """
    wrong = UsageError(
        "--daemon is no address", hint=f"write {DEFAULT_DAEMON}, http://127.0.0.1:8471 or https://backfill.example:8471"
    )
    try:
        parts = urlsplit(daemon)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.username is not None or parts.password is not None:
        raise UsageError("--daemon holds a secret", hint="no token is needed here")
    match parts.scheme:
        case "unix" if not host and parts.path.startswith("/"):
            return _OverUnix(parts.path, timeout_s)
        case "http" if host:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        case "https" if host:
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=_trust(ca))
    raise wrong


def _trust(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise UsageError(f"--ca cannot be used: {error.strerror or type(error).__name__}") from error


class _OverUnix(http.client.HTTPConnection):
    """HTTP over a Unix socket, with what Python brings: a probe runs every few seconds, and should cost little."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Reach the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
