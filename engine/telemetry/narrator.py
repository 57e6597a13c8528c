"""Tells a run as it goes: what changed, once, and not each second while it goes to and fro.

A signal that crosses its threshold every second changes the reason every second.  Of one reason at most one entry comes
in ``CALM_S``; the next one tells how many were left out, and what was true last is always said in the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from engine.clock import Clock
from engine.events import ChunkCancelled, ChunkCommitted, Event, PaceChanged, RowQuarantined, StateChanged, Waiting
from engine.telemetry.entries import Entry, entry, moving
from engine.telemetry.messages import STANDSTILLS, Level

CALM_S: Final = 10.0
"""Of one reason, no more than one entry in so long."""

_MOVES: Final = ""
_WHILE_AT_WORK: Final = ("held", "waiting", "pace")


@dataclass(slots=True)
class _Topic:
    """What goes to and fro by itself: whether the pace holds a job, or one signal that cancels chunks."""

    said: str | None = None  # what was said last, where saying it again would tell nothing
    at: dict[str, float] = field(default_factory=dict)  # reason -> when it was said last
    later: tuple[str, str | None, Entry] | None = None  # came too soon: reason, meaning, entry
    left_out: int = 0


class Narrator:
    """Makes entries of events and hands on those that are due.  ``settle`` wants to be called about every second."""

    def __init__(self, tell: Callable[[Entry], None], clock: Clock, *, verbosity: int = 0) -> None:
        self._tell = tell
        self._clock = clock
        self._verbosity = verbosity
        self._topics: dict[tuple[str, str], _Topic] = {}
        self._held: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        if isinstance(event, PaceChanged):
            self._hear_pace(event)
            return
        if isinstance(event, ChunkCommitted) and self._verbosity < Level.DEBUG:
            return  # there are many: no sentence is made that nobody reads
        found = entry(event)
        if found is None or found.shown_from > self._verbosity:
            return
        match event:
            case Waiting():
                self._hear(event.job, "waiting", _without_numbers(event.reason), event.reason, found)
            case ChunkCancelled():
                self._hear(event.job, "cancelled", _without_numbers(event.reason), None, found)
            case RowQuarantined():
                self._hear(event.job, "quarantined", event.sqlstate, None, found)
            case StateChanged() if not event.state.is_at_work:
                self._forget(event.job)  # what held it up is of no interest any more
                self._tell(found)
            case _:
                self._tell(found)

    def settle(self, *, at_once: bool = False) -> None:
        """Say what came too soon after its like and is still true.  ``at_once``: nothing comes afterwards."""
        for topic in list(self._topics.values()):
            if topic.later is None:
                continue
            reason, meaning, found = topic.later
            if meaning is not None and meaning == topic.said:
                topic.later = None
            elif at_once or self._is_due(topic, reason):
                topic.left_out -= 1  # itself
                self._say(topic, reason, meaning, found)

    # -- to and fro ---------------------------------------------------------------------------------------------------

    def _hear_pace(self, event: PaceChanged) -> None:
        """Held and moving are one topic, whatever the pace does in between another one, for the curious."""
        found = entry(event)
        assert found is not None
        is_held, was_held = event.stage in STANDSTILLS, event.job in self._held
        if is_held:
            self._held.add(event.job)
            self._hear(event.job, "held", event.leads, f"{event.stage} {event.leads}", found)
            return
        self._held.discard(event.job)
        if was_held:
            self._hear(event.job, "held", _MOVES, _MOVES, moving(event.job))
        if found.shown_from <= self._verbosity:
            self._hear(event.job, "pace", f"{event.stage} {event.leads}", None, found)

    def _hear(self, job: str, about: str, reason: str, meaning: str | None, found: Entry) -> None:
        place = (job, about) if meaning is not None else (job, f"{about} {reason}")
        topic = self._topics.setdefault(place, _Topic())
        if meaning is not None and meaning == topic.said:
            topic.left_out += topic.later is not None
            topic.later = None
        elif self._is_due(topic, reason):
            self._say(topic, reason, meaning, found)
        else:
            topic.later = (reason, meaning, found)
            topic.left_out += 1

    def _is_due(self, topic: _Topic, reason: str) -> bool:
        return self._clock.now() - topic.at.get(reason, float("-inf")) >= CALM_S

    def _say(self, topic: _Topic, reason: str, meaning: str | None, found: Entry) -> None:
        now, left_out = self._clock.now(), topic.left_out
        topic.at = {other: at for other, at in topic.at.items() if now - at < CALM_S} | {reason: now}
        topic.said, topic.later, topic.left_out = meaning, None, 0
        if left_out:
            text = f"{found.message} (and {left_out:,} more like it)"
            found = replace(found, message=text, fields={**found.fields, "left_out": left_out})
        self._tell(found)

    def _forget(self, job: str) -> None:
        self._held.discard(job)
        over = [place for place in self._topics if place[0] == job and place[1].split()[0] in _WHILE_AT_WORK]
        for place in over:
            del self._topics[place]


def _without_numbers(reason: str) -> str:
    return re.sub(r"[\d.,]+", "#", reason)
