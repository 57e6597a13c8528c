"""The daemon: opens what its configuration names, runs until it is told to stop, and drains within a bound.

::

    configuration ──▶ sockets ──▶ pools ──▶ ready ──▶ … ──▶ draining ──▶ jobs let go ──▶ streams end ──▶ ended
                                                               │ (a bound, or a second signal)
                                                               └──▶ what is in hand is cut off

A database that is away keeps nothing from starting: its pool tries again, and readiness says so.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import generate_latest

from engine.clock import Clock, SystemClock
from engine.db import Database
from engine.errors import BackfillError
from engine.events import Draining, Event, JobFinished
from engine.fleet.observing import observe
from engine.fleet.pool import JobLeftAside, Pool, left_aside
from engine.model import Side
from engine.service import audit
from engine.service.access import Peer
from engine.service.audit import Seldom, clean
from engine.service.auth import Doorkeeper
from engine.service.config import Config
from engine.service.crowd import place_of
from engine.service.hosts import Hosts
from engine.service.lender import Lender
from engine.service.notify import ServiceManager
from engine.service.recent import Recent
from engine.service.routing import Call, Route
from engine.service.station import Station
from engine.spec import Dsn
from engine.telemetry import numbers
from engine.telemetry.entries import Entry, Weight, ended
from engine.telemetry.metrics import Metrics
from engine.telemetry.narrator import Narrator
from engine.wire import shapes

if TYPE_CHECKING:
    from engine.service.transport import Front

SEEN_WITHIN_S: Final = 15.0
"""A ledger that was not seen for longer makes us unready."""

TICK_S: Final = 1.0
ABORT_S: Final = 5.0
"""How long what was cut off may take to close what it holds."""

LEAVE_S: Final = 3.0
"""The same of what reads for metrics, and of streams, once they were told."""

_FRAMES: Final = 6

Tell = Callable[[Entry], None]


class Daemon:
    """What requests are answered from.  ``tell`` takes what there is to say; ``manager`` is the service manager."""

    def __init__(
        self,
        config: Config,
        dsns: Mapping[str, Dsn],
        *,
        tell: Tell = lambda _: None,
        metrics: Metrics | None = None,
        manager: ServiceManager | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.metrics = metrics or Metrics(self.clock.now)
        self.hosts = Hosts(config.listen, config.hosts)
        self.doorkeeper = Doorkeeper(config, tell=lambda text: self._warn("daemon.tokens", text))
        self.stations = {name: Station(name, one, dsns[name]) for name, one in config.connections.items()}
        self.draining = asyncio.Event()
        self._tell = tell
        self._manager = manager or ServiceManager()
        self._strangers = Seldom()
        self._narrators: dict[str, Narrator] = {}
        self.pools: Mapping[str, Pool] = {
            name: self._pool(name, Lender(config, dsns, name)) for name, one in config.connections.items() if one.work
        }
        self.recent = Recent(
            lambda: [(name, one.status) for name, pool in self.pools.items() for one in pool.supervisors], self.clock
        )
        self._reason = ""
        self._abort = asyncio.Event()
        self._front: Front | None = None
        self._is_listening = False
        self._began = self.clock.now()
        self._core: list[asyncio.Task[Any]] = []
        self._dead: list[str] = []
        self._has_warned = False

    # -- what others ask ----------------------------------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        """True once nothing new is taken."""
        return self.draining.is_set()

    def liveness(self) -> shapes.Health:
        """Whether the event loop answers (it does), and all that should run runs.  Asks nobody."""
        if self._dead:
            return shapes.Health(status="failing", checks={"tasks": f"died: {', '.join(self._dead)}"})
        return shapes.Health(status="ok")

    def readiness(self) -> shapes.Health:
        """Whether requests can be answered and jobs worked.  Tells numbers and no names: anybody may ask."""
        now, front = self.clock.now(), self._front
        unseen = [p for p in self.pools.values() if p.seen_at is None or now - p.seen_at > SEEN_WITHIN_S]
        is_new = all(pool.seen_at is None for pool in unseen) and now - self._began < SEEN_WITHIN_S
        checks = {
            "listening": "ok" if self._is_listening else "not yet",
            "ledgers": f"{len(unseen)} of {len(self.pools)} not seen for {SEEN_WITHIN_S:g} s" if unseen else "ok",
            "tokens": "ok" if self.doorkeeper.trouble is None else "the new file cannot be used",
            "certificates": "ok" if front is None or front.trouble is None else "the new ones cannot be used",
            "tasks": "some died" if self._dead else "ok",
        }
        if unseen and is_new:
            checks["ledgers"] = f"{len(unseen)} of {len(self.pools)} not seen yet"
        is_well = all(word == "ok" for word in checks.values())
        if self.is_draining:
            return shapes.Health(status="draining", checks=checks)
        if is_well:
            return shapes.Health(status="ok", checks=checks)
        is_starting = all(word == "ok" for name, word in checks.items() if name not in ("listening", "ledgers")) and (
            is_new or not unseen
        )
        return shapes.Health(status="starting" if is_starting else "failing", checks=checks)

    def metrics_text(self) -> bytes:
        """What a scrape gets.  May be asked for in another thread, and should: it takes a while."""
        return generate_latest(self.metrics.registry)

    def audit(self, call: Call, error: BackfillError | None) -> None:
        """A change was asked for, and done or not."""
        self._tell(audit.of_change(call, error, self._only_connection()))

    def turned_away(self, peer: Peer, route: Route, error: BackfillError, number: str) -> None:
        """Somebody is not known.  Whoever goes on trying writes a line a second at most."""
        place = place_of(peer)
        if self._strangers.may(place, self.clock.now()):
            self._tell(audit.of_stranger(place, route.name, error, number))

    def failed(self, number: str, request: str, error: BaseException) -> None:
        """A request met an error that nobody foresaw: a bug, for the log, without the error's own words."""
        fields = {"request_id": number, "request": clean(request), **_place_of(error)}
        text = f"{clean(request)}: unexpected {type(error).__name__}; please report this bug"
        self._tell(Entry(event="request.failed", message=text, weight=Weight.ERROR, fields=fields))

    # -- orders -------------------------------------------------------------------------------------------------------

    def drain(self, reason: str) -> None:
        """Take nothing new, finish what is in hand, and let ``run`` return."""
        if not self.is_draining:
            self._reason = reason
            self.draining.set()

    def abort(self) -> None:
        """As ``drain``, without waiting for what is in hand: its leases run out."""
        self.drain("abort")
        self._abort.set()

    def reload(self) -> None:
        """Read certificates again, and say what came of it.  Tokens are read whenever their file has changed."""
        tokens = "tokens are read whenever their file changes"
        if self.config.tls is None:
            self._say("daemon.reloaded", f"there are no certificates to read again; {tokens}")
        elif self._front is not None and self._front.reload():
            self._say("daemon.reloaded", f"certificates were read again; {tokens}")
        else:
            self._warn("daemon.not_reloaded", f"those before stay in force: certificates cannot be used; {tokens}")

    # -- the life of a daemon -----------------------------------------------------------------------------------------

    async def run(self, announce: Callable[[list[str]], None] = lambda _: None) -> None:
        """Listen and answer until ``drain``.  ``announce`` hears where, once a client can connect.

        Raises ``UsageError`` when an address cannot be listened on.
        """
        from engine.service.app import App  # it takes routes, whose handlers take this module's types
        from engine.service.routes.table import ROUTES
        from engine.service.transport import Front

        front = Front(
            App(self, ROUTES),
            self.config,
            admits=self.doorkeeper.admits,
            tell=lambda text: self._warn("daemon.certificates", text),
        )
        urls = front.open()
        self._front = front
        serving = self._start(front.serve(), "listener")
        working = [self._start(pool.run(signals=False), f"pool {name}") for name, pool in self.pools.items()]
        beside = [*self._observers(), self._start(self._tick(), "clock"), self._start(self.recent.run(), "recent")]
        try:
            self._is_listening = True
            announce(urls)
            self._say("daemon.ready", f"listening on {', '.join(urls)}", urls=urls)
            self._manager.ready(self._status())
            await _first(self.draining.wait(), serving)
            if not self.is_draining:
                self._reason = "the listener has died"
        finally:
            self.draining.set()
            try:
                await self._wind_down(working, beside)
            finally:
                front.stop(LEAVE_S)
                await asyncio.wait([serving], timeout=2 * LEAVE_S)
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
                front.close()
                await self.close()
        self._say("daemon.ended", "ended")
        if serving.done() and not serving.cancelled():
            serving.result()

    async def close(self) -> None:
        """Let go of everything."""
        for station in self.stations.values():
            await station.close()

    async def _wind_down(self, working: list[asyncio.Task[Any]], beside: list[asyncio.Task[Any]]) -> None:
        """Let the jobs go: gently within the bound, then by force."""
        jobs = sum(len(pool.working) for pool in self.pools.values())
        self._manager.stopping(f"draining: {numbers.counted(jobs, 'job')}")
        self._say(
            "daemon.draining",
            f"{self._reason or 'ending'}: {numbers.counted(jobs, 'job')} let go within {self.config.drain:g} s",
            reason=self._reason,
            jobs=jobs,
        )
        for pool in self.pools.values():
            pool.drain(self._reason or "ending")
        if working:
            await _first(self._abort.wait(), self.clock.sleep(self.config.drain), _all(working))
        if not all(task.done() for task in working):
            self._warn("daemon.aborting", "what is still in hand is cut off; the next to work it goes by the ledger")
            for pool in self.pools.values():
                pool.abort()
            await asyncio.wait(working, timeout=ABORT_S)
        for task in (*working, *beside):
            task.cancel()
        await asyncio.wait([*working, *beside], timeout=LEAVE_S)

    def _pool(self, name: str, lender: Lender) -> Pool:
        station = self.stations[name]
        known: list[str | None] = [None]

        def looked(trouble: str | None) -> None:
            if trouble is None:
                station.answered()
            else:
                station.failed(trouble)
            if trouble != known[0]:
                known[0] = trouble
                if trouble is None:
                    self._say("connection.back", f"connection {name}: its ledger answers again", connection=name)
                else:
                    self._warn("connection.away", f"connection {name}: {trouble}", connection=name)

        return Pool(
            lender, jobs=self.config.connections[name].jobs, patient=True, emit=self._emit_of(name), looked=looked
        )

    def _observers(self) -> Iterator[asyncio.Task[Any]]:
        for name, pool in self.pools.items():
            ledger = Database(self.stations[name].dsn, side=Side.TARGET)
            for task in observe(self.metrics, ledger, _supervisors_of(pool), self._emit_of(name), name=name):
                self._watch(task)
                yield task

    def _start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._watch(task)
        return task

    def _watch(self, task: asyncio.Task[Any]) -> None:
        """One of those that run for as long as we do."""
        self._core.append(task)
        task.add_done_callback(self._core_ended)

    def _core_ended(self, task: asyncio.Task[Any]) -> None:
        self._core.remove(task)
        error = None if task.cancelled() else task.exception()
        if error is not None or not self.is_draining:
            self._dead.append(task.get_name())
            fields = {"task": task.get_name(), **(_place_of(error) if error is not None else {})}
            why = "" if error is None else f": unexpected {type(error).__name__}"
            text = f"{task.get_name()} has ended{why}; please report this bug"
            self._tell(Entry(event="daemon.task_died", message=text, weight=Weight.ERROR, fields=fields))

    async def _tick(self) -> None:
        """Tell the service manager how it goes, and that we are well; say what came too soon after its like."""
        every_s = self._manager.watchdog_every_s
        while True:
            if every_s is not None and self.liveness().status == "ok":
                self._manager.alive()
            self._manager.status(self._status())
            for narrator in self._narrators.values():
                narrator.settle()
            await self.clock.sleep(TICK_S if every_s is None else min(TICK_S, every_s))

    def _status(self) -> str:
        jobs = sum(len(pool.working) for pool in self.pools.values())
        away = sum(pool.trouble is not None for pool in self.pools.values())
        return f"{numbers.counted(jobs, 'job')} at work" + (
            f", {numbers.counted(away, 'connection')} away" if away else ""
        )

    # -- what there is to say -----------------------------------------------------------------------------------------

    def _emit_of(self, connection: str) -> Callable[[Event], None]:
        """Counts and tells the events of one connection's jobs.  What goes wrong here never reaches a job."""

        def tell(entry: Entry) -> None:
            self._tell(replace(entry, fields={**entry.fields, "connection": connection}))

        narrator = self._narrators.setdefault(connection, Narrator(tell, self.clock))

        def emit(event: Event) -> None:
            try:
                self.metrics(event)
                if isinstance(event, Draining) and not event.job:
                    return  # we have said so already
                if isinstance(event, JobLeftAside):
                    tell(left_aside(event))
                elif isinstance(event, JobFinished):
                    tell(ended(event))
                else:
                    narrator(event)
            except Exception as error:  # noqa: BLE001 - a bug, and no reason to stop a job
                self._warn_once(error)

        return emit

    def _warn_once(self, error: BaseException) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = f"some metrics or lines are missing: unexpected {type(error).__name__}; please report this bug"
            self._tell(Entry(event="metrics.failed", message=text, weight=Weight.ERROR, fields=_place_of(error)))

    def _say(self, event: str, text: str, **fields: Any) -> None:
        self._tell(Entry(event=event, message=text, fields=fields))

    def _warn(self, event: str, text: str, **fields: Any) -> None:
        self._tell(Entry(event=event, message=text, weight=Weight.WARNING, fields=fields))

    def _only_connection(self) -> str | None:
        return next(iter(self.stations)) if len(self.stations) == 1 else None


def _supervisors_of(pool: Pool) -> Callable[[], Any]:
    return lambda: pool.supervisors


def _place_of(error: BaseException) -> dict[str, Any]:
    """What an error is and where it came from, without its words: they might hold a value of a row."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"{os.path.relpath(frame.filename)}:{frame.lineno}" for frame in frames]
    return {"exception": f"{type(error).__module__}.{type(error).__qualname__}", "frames": places}


async def _all(tasks: list[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)


async def _first(*things: Awaitable[Any]) -> None:
    """Wait until one of them is over; those that were begun for this are given up then, tasks are not."""
    futures = [asyncio.ensure_future(thing) for thing in things]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        own = [future for future, thing in zip(futures, things, strict=True) if future is not thing]
        for future in own:
            future.cancel()
        await asyncio.gather(*own, return_exceptions=True)
