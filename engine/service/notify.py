"""What a service manager is told: ready, how it goes, stopping, and that we are alive.

The protocol of systemd's ``sd_notify``: lines of text in one datagram to the socket that ``NOTIFY_SOCKET`` names; a
name that begins with ``@`` is in the abstract name space.  Without the variable nothing is told to anybody.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

_MICROSECOND: Final = 1e-6
_LONGEST_STATUS: Final = 200
_SHARE: Final = 0.5
"""Of the time after which we are taken for dead, how much passes between two signs of life."""


class ServiceManager:
    """Who started us, if he wants to hear of us."""

    def __init__(self, environment: Mapping[str, str] | None = None, pid: int | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._watchdog_s = _watchdog_s(environment, os.getpid() if pid is None else pid)
        self._status = ""

    @property
    def watchdog_every_s(self) -> float | None:
        """How often it is to hear that we are alive; None: never."""
        return None if self._watchdog_s is None or self._address is None else self._watchdog_s * _SHARE

    def ready(self, status: str) -> None:
        """We answer."""
        self._tell("READY=1", self._status_line(status))

    def status(self, status: str) -> None:
        """How it goes, in a few words; the same words are told once."""
        if status != self._status:
            self._tell(self._status_line(status))

    def stopping(self, status: str) -> None:
        """We were told to end, and are about to."""
        self._tell("STOPPING=1", self._status_line(status))

    def alive(self) -> None:
        """We are well."""
        self._tell("WATCHDOG=1")

    def _status_line(self, status: str) -> str:
        self._status = status
        return "STATUS=" + " ".join(status.split())[:_LONGEST_STATUS]

    def _tell(self, *lines: str) -> None:
        """One datagram.  Who does not listen, or not fast enough, misses it: we wait for nobody."""
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)


def _address(text: str) -> str | None:
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float | None:
    """As the variables say, where they mean this process and not one that it was started by."""
    text, whom = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit()) or (whom and whom != str(pid)):
        return None
    return int(text) * _MICROSECOND or None
