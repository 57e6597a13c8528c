"""The daemon: opens what its configuration names, runs until it is told to stop, and drains within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from engine.errors import BackfillError
from engine.service.auth import Doorkeeper
from engine.service.config import Config
from engine.service.hosts import Hosts
from engine.service.routing import Call
from engine.service.station import Station
from engine.spec import Dsn


class Daemon:
    """What requests are answered from."""

    def __init__(self, config: Config, dsns: Mapping[str, Dsn]) -> None:
        self.config = config
        self.hosts = Hosts(config.listen, config.hosts)
        self.doorkeeper = Doorkeeper(config)
        self.stations = {name: Station(name, one, dsns[name]) for name, one in config.connections.items()}
        self.is_draining = False
        self._stop = asyncio.Event()

    def audit(self, call: Call, error: BackfillError | None) -> None:
        """A change was asked for, and done or not."""

    async def run(self, announce: Callable[[list[str]], None] = lambda _: None) -> None:
        """Listen and answer until ``drain``.  Raises ``UsageError`` when an address cannot be listened on."""
        from engine.service.app import App  # it takes routes, whose handlers take this module's types
        from engine.service.routes.table import ROUTES
        from engine.service.transport import Front

        front = Front(App(self, ROUTES), self.config)
        announce(front.open())
        serving = asyncio.create_task(front.serve(), name="front")
        try:
            await asyncio.wait((serving, asyncio.create_task(self._stop.wait())), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.is_draining = True
            front.stop()
            await serving
            await self.close()

    def drain(self, reason: str) -> None:
        """Take nothing new, finish what is in hand, and let ``run`` return."""
        self.is_draining = True
        self._stop.set()

    async def close(self) -> None:
        """Let go of everything."""
        for station in self.stations.values():
            await station.close()
