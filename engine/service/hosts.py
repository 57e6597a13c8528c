"""Which Host headers are ours: a page of somebody else's, pointed here by DNS, must not speak as if it were ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from engine.service.config import Address
from engine.service.problems import Misdirected

_LOCAL: Final = ("localhost", "127.0.0.1", "[::1]")


class Hosts:
    """The allow-list.  ``names`` are of the operator, with or without a port."""

    def __init__(self, addresses: Iterable[Address], names: Iterable[str]) -> None:
        self._allowed = {name.lower() for name in names}
        for address in addresses:
            if address.path is not None:
                self._allowed |= {"localhost", "backfill"}
            else:
                self._allowed |= {f"{host}:{address.port}" for host in _LOCAL if address.is_loopback}
                self._allowed.add(f"{address.host}:{address.port}".lower())

    def check(self, host: str | None) -> None:
        """Raises ``Misdirected`` for a host that is not ours."""
        if host is None or host.lower() not in self._allowed:
            raise Misdirected("this is not the host that was asked for", hint="list it under `hosts` in backfill.toml")
