"""What is said of an event: the sentence for people, and the same as a line of the log with its fields.

An entry is made once and read twice: on a terminal its message is printed, in a log the whole of it.  Fields come from
events, which hold no row value, key or secret.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from engine.events import (
    ChunkCommitted,
    DeadlineLate,
    Event,
    JobFinished,
    LeaseLost,
    PaceChanged,
    PhaseChanged,
    RowQuarantined,
    StateChanged,
    Waiting,
    Warned,
)
from engine.model import JobState
from engine.telemetry.messages import STANDSTILLS, Level, finished, message

HELD: Final = "job.held"
MOVING: Final = "job.moving"
PROGRESS: Final = "job.progress"
STOPPED: Final = "run.stopped"
_WARNINGS: Final = (LeaseLost, Warned, RowQuarantined, DeadlineLate)
_SECONDS_DIGITS: Final = 4


class Weight(IntEnum):
    """How much a line matters; the numbers are those of ``logging``."""

    DEBUG = logging.DEBUG
    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR

    @property
    def word(self) -> str:
        """As a line has it: ``info``."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing worth a line.  ``event`` is its stable name.

    ``is_for_people`` False: on a terminal something else says it already, such as the last sentence of a run.
    """

    event: str
    message: str
    weight: Weight = Weight.INFO
    shown_from: Level = Level.NORMAL
    is_for_people: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)


def entry(event: Event) -> Entry | None:
    """What to say of an event; None where nothing is."""
    if event.is_measurement:
        return None
    said = message(event)
    if said is None:
        return _for_logs_only(event)
    shown_from, text = said
    return Entry(
        event=_name(event),
        message=text,
        weight=_weight(event, shown_from),
        shown_from=shown_from,
        fields=_fields(event),
    )


def ended(event: JobFinished) -> Entry:
    """The last sentence of a run."""
    weight = _weight(event, Level.NORMAL)
    return Entry(event=event.name, message=finished(event), weight=weight, fields=_fields(event))


def moving(job: str) -> Entry:
    """What held a job holds it no longer."""
    return Entry(event=MOVING, message="moving again", fields={"job": job})


def _for_logs_only(event: Event) -> Entry | None:
    match event:
        case StateChanged():
            text = event.state.value + (f": {event.reason}" if event.reason else "")
        case PhaseChanged():
            text = f"phase {event.phase.value}"
        case _:
            return None
    return Entry(
        event=event.name,
        message=text,
        weight=_weight(event, Level.NORMAL),
        is_for_people=False,
        fields=_fields(event),
    )


def _name(event: Event) -> str:
    """The event's own name; that a job is held, or moves again, has one of its own that can be searched for."""
    match event:
        case PaceChanged() if event.stage in STANDSTILLS:
            return HELD
        case Waiting() if not event.reason:
            return MOVING
        case _:
            return event.name


def _weight(event: Event, shown_from: Level) -> Weight:
    match event:
        case StateChanged() | JobFinished() if event.state is JobState.FAILED:
            return Weight.ERROR
        case _ if isinstance(event, _WARNINGS):
            return Weight.WARNING
        case _:
            return Weight.INFO if shown_from is Level.NORMAL else Weight.DEBUG


def _fields(event: Event) -> dict[str, Any]:
    fields = event.as_json()
    del fields["event"]
    match event:
        case ChunkCommitted():
            seen = event.observation
            del fields["observation"]
            fields |= {"rows": seen.rows, "scanned": seen.scanned, "bytes": seen.bytes}
            fields["seconds"] = round(seen.server_s, _SECONDS_DIGITS)
            if seen.changed:
                fields["changed"] = seen.changed
        case PaceChanged():
            fields["signal"] = fields.pop("leads")
        case Warned():
            del fields["message"]  # it is the line's own
        case _:
            pass
    return fields
