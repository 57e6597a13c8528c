"""Lines of the audit: who asked for which change, and what became of it; and who was turned away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from engine.errors import BackfillError
from engine.service.routing import Call
from engine.telemetry.entries import Entry

_LONGEST: Final = 80


def of_change(call: Call, error: BackfillError | None, connection: str | None) -> Entry:
    """A change that was asked for, done or not.  ``connection``: where it must have been, if nobody has said."""
    outcome = "ok" if error is None else error.code
    job = call.noted.get("job") or call.path.get("job") or _name_in(call.body)
    connection = call.noted.get("connection") or call.query.get("connection") or connection
    about = "".join((f" {clean(job)}" if job else "", f" on {clean(connection)}" if connection else ""))
    return Entry(
        event="audit",
        message=f"{call.identity.signature}: {call.route.name}{about}: {outcome}",
        fields={
            "who": call.identity.signature,
            "what": call.route.name,
            "job": clean(job) if job else None,
            "connection": clean(connection) if connection else None,
            "outcome": outcome,
            "request_id": call.id,
        },
    )


def of_stranger(place: str, what: str, error: BackfillError, number: str) -> Entry:
    """Somebody who did not say who he is, or was not believed."""
    who = f"nobody known at {place}"
    return Entry(
        event="audit",
        message=f"{who}: {what}: {error.code}",
        fields={
            "who": who,
            "what": what,
            "job": None,
            "connection": None,
            "outcome": error.code,
            "request_id": number,
        },
    )


class Seldom:
    """Whether something may be said again of a place: once in ``every_s``.  A bounded table."""

    def __init__(self, every_s: float = 1.0, places: int = 1024) -> None:
        self._every_s = every_s
        self._places = places
        self._said: OrderedDict[str, float] = OrderedDict()

    def may(self, place: str, now: float) -> bool:
        """True at most once in that time; whoever asks says it."""
        said = self._said.get(place)
        if said is not None and now - said < self._every_s:
            return False
        self._said[place] = now
        self._said.move_to_end(place)
        while len(self._said) > self._places:
            self._said.popitem(last=False)
        return True

    def __len__(self) -> int:
        return len(self._said)


def clean(text: str) -> str:
    """What a stranger wrote, as one short line that no terminal takes for an order."""
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST])


def _name_in(body: Any) -> str | None:
    name = body.get("name") if isinstance(body, Mapping) else None
    return name if isinstance(name, str) else None
