"""Asks all probes, each at its own times, and keeps what they answer until somebody takes it.

No probe waits for another: each has a schedule of its own, and a question that is not answered when the next is due is
left alone until it is.  For probes that measure how long an answer takes, the time so far is a reading meanwhile, as
soon as it exceeds the last answer's.  So an answer that takes a second is not one slow reading among thirty but as many
as there would have been questions: without that, a percentile of the readings would be blind to standstills ("How NOT
to Measure Latency", Gil Tene; HdrHistogram corrects for the expected interval in the same way).
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from engine.clock import Clock
from engine.pace.law import OnFailure, Reading
from engine.watch.presence import Presence
from engine.watch.probe import Measured, Probe, explain

MOST_READINGS: Final = 10_000
"""Kept while nobody takes them; then the oldest go."""

FIRST_LOOK_S: Final = 2.0
"""How long ``start`` waits for first answers.  Without one, somebody is there, and what holds the job back does so."""


class Watcher:
    """Runs ``probes`` and ``presences`` from ``start`` to ``close``.

    Failures of every kind become readings without a value; nothing that a database does ends the watching.
    """

    def __init__(
        self, probes: Iterable[Probe], *, clock: Clock, rng: random.Random, presences: Iterable[Presence] = ()
    ) -> None:
        self._probes = tuple(probes)
        self._presences = tuple(presences)
        self._clock = clock
        self._rng = rng
        self._quiet = False
        self._readings: deque[Reading] = deque(maxlen=MOST_READINGS)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Look for others once, ask once whatever holds a job back until it has answered, then begin.  Returns within
        ``FIRST_LOOK_S``; never raises for what databases do.
        """
        looks = [asyncio.ensure_future(_attempt(presence)) for presence in self._presences]
        looks += [
            asyncio.ensure_future(self._ask(probe, _Last()))
            for probe in self._probes
            if probe.policy.on_failure is OnFailure.HOLD and (probe.policy.gates or probe.policy.steers)
        ]
        try:
            if looks:
                await asyncio.wait(looks, timeout=FIRST_LOOK_S)
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
        self._tasks = [asyncio.ensure_future(self._ask_again_and_again(probe)) for probe in self._probes]
        self._tasks += [asyncio.ensure_future(self._look_again_and_again(presence)) for presence in self._presences]

    def take(self) -> tuple[Reading, ...]:
        """The readings since the last call, in the order in which they came."""
        taken = tuple(self._readings)
        self._readings.clear()
        return taken

    @property
    def alone(self) -> bool:
        """True when nobody else uses any of the servers.  False without ``presences``: then nobody knows."""
        return bool(self._presences) and all(presence.alone() for presence in self._presences)

    def set_quiet(self, quiet: bool) -> None:
        """Ask less often, while there is nobody to be disturbed or to be noticed."""
        self._quiet = quiet

    async def close(self) -> None:
        """Stop asking and end every session.  Nothing is left running."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        closing = [*(p.close() for p in self._probes), *(p.close() for p in self._presences)]
        await asyncio.gather(*closing, return_exceptions=True)

    async def _ask_again_and_again(self, probe: Probe) -> None:
        due = self._clock.now() + self._rng.uniform(0, self._interval(probe))  # probes do not march in step
        asking: asyncio.Task[None] | None = None
        last = _Last()
        try:
            while True:
                await self._clock.sleep(due - self._clock.now())
                if asking is None or asking.done():
                    asking = asyncio.ensure_future(self._ask(probe, last))
                else:
                    self._note_lateness(probe, last)
                due = max(due + self._interval(probe), self._clock.now())
        finally:
            if asking is not None:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, probe: Probe, last: _Last) -> None:
        name = probe.policy.name
        try:
            measured = await probe.read()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is why there is no value
            self._readings.append(Reading(name, self._clock.now(), None, error=explain(error)))
        else:
            last.measured = measured
            self._readings.append(Reading(name, self._clock.now(), measured.value, detail=measured.detail))

    def _note_lateness(self, probe: Probe, last: _Last) -> None:
        asked_at, now = probe.asked_at, self._clock.now()
        if asked_at is None:
            return
        so_far = now - asked_at
        if last.measured is None or so_far > last.measured.value:
            self._readings.append(Reading(probe.policy.name, now, so_far, detail="not answered yet"))

    async def _look_again_and_again(self, presence: Presence) -> None:
        while True:
            await self._clock.sleep(presence.every_s)
            await _attempt(presence)

    def _interval(self, probe: Probe) -> float:
        return probe.quiet_every_s if self._quiet else probe.every_s


class _Last:
    """The last good answer of one probe."""

    def __init__(self) -> None:
        self.measured: Measured | None = None


async def _attempt(presence: Presence) -> None:
    with suppress(Exception):
        await presence.look()
