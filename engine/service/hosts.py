"""Which requests a browser may make for its user: those of our own page, under our own name.

A page of somebody else's that DNS points here (rebinding) speaks under its own Host; one that posts here from the
operator's browser says so in ``Origin`` or ``Sec-Fetch-Site``.  Other clients than browsers send neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from engine.service.config import Address
from engine.service.problems import BadRequest, Misdirected

_LOCAL: Final = ("localhost", "127.0.0.1", "[::1]")
_OF_UNIX_SOCKETS: Final = ("localhost", "backfill")
_OURS: Final = ("same-origin", "none")  # none: the user typed the address
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 - as the operator may have written


class CrossSite(BadRequest):
    """A page of another site asked, with its visitor's browser."""

    code = "cross_site"
    http_status = 403


class Hosts:
    """The allow-list.  ``names`` are of the operator; one without a port is allowed with any."""

    def __init__(self, addresses: Iterable[Address], names: Iterable[str]) -> None:
        self._allowed = {name.lower() for name in names}
        self._on_any_port = {name for name in self._allowed if ":" not in name or name.endswith("]")}
        for address in addresses:
            if address.path is not None:
                self._allowed |= set(_OF_UNIX_SOCKETS)
                continue
            host = f"[{address.host}]" if ":" in address.host else address.host
            local = _LOCAL if address.is_loopback or address.host in _ANY else ()
            for name in (host.lower(), *local):
                if address.port == 0:  # any free one: nobody knows it beforehand
                    self._on_any_port.add(name)
                else:
                    self._allowed.add(f"{name}:{address.port}")
                    if address.port in (80, 443):
                        self._allowed.add(name)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises ``Misdirected`` for a Host that is not ours.  ``headers``: names in lower case."""
        if not self._knows(headers.get("host", "").strip().lower()):
            raise Misdirected("this is not the host that was asked for", hint="list it under `hosts` in backfill.toml")

    def check_site(self, headers: Mapping[str, str]) -> None:
        """Raises ``CrossSite`` for what a page of another site asks; for every route that is not public."""
        site = headers.get("sec-fetch-site", "none").strip().lower()
        origin = headers.get("origin")
        if site not in _OURS or (origin is not None and not _is_of(origin, headers.get("host", "").strip().lower())):
            raise CrossSite("pages of other sites may not ask", hint="open the page of this daemon, or use the command")

    def _knows(self, host: str) -> bool:
        if host in self._allowed:
            return True
        name, mark, port = host.rpartition(":")
        return bool(mark) and port.isdecimal() and port.isascii() and name in self._on_any_port


def _is_of(origin: str, host: str) -> bool:
    """Whether a page of that origin came from ``host``; its scheme is left to whatever ends TLS in front of us."""
    scheme, mark, netloc = origin.strip().lower().partition("://")
    return bool(mark) and scheme in ("http", "https") and netloc == host
