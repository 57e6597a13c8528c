"""Plans: what to send, when to wait and when to send it again, as generators that do no input and output themselves.

A plan yields steps and is given the outcome of each; ``engine.client.faces`` carries them out, with and without an
event loop.  So there is one decision about what may be repeated, and it is tested without a network.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from engine.client.failures import AnswerLost, DaemonError, error_of
from engine.clock import SystemClock
from engine.errors import BackfillError, CannotConnect

A = TypeVar("A")

ANSWER_S: Final = 40.0
"""How long an answer may take, where nothing was said about it: the daemon itself gives up after 30 s."""

POLL_S: Final = 20.0
"""How long the daemon is asked to hold an answer back until there is news."""

LEAST_POLL_S: Final = 0.5
"""Between two looks, even where the daemon does not hold its answer back."""

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
LONGEST_RETRY_AFTER_S: Final = 60.0

_TRY_LATER: Final = (429, 502, 503, 504)
_NOTHING_DONE: Final = ("too_many_tries", "crowded", "overloaded", "draining")
"""Codes that a daemon answers with before it does anything of what was asked."""


# -- steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request.  ``timeout_s``: the longest silence that is waited through."""

    method: str
    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    timeout_s: float = ANSWER_S


@dataclass(frozen=True, slots=True)
class Received:
    """An answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class NotSent:
    """Nobody heard the request: no connection came about.  ``is_lasting``: nor will one by trying again."""

    reason: str
    is_lasting: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """The request may have arrived; no (whole) answer did."""

    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """Its outcome: ``Received``, ``NotSent`` or ``Broken``."""

    request: Outgoing


@dataclass(frozen=True, slots=True)
class Open:
    """A stream, in place of the one before.  Its outcome: ``Received`` (the body is empty where a stream is open),
    ``NotSent`` or ``Broken``.
    """

    request: Outgoing


@dataclass(frozen=True, slots=True)
class Read:
    """The next piece of the stream.  Its outcome: bytes, None at the stream's end, or ``Broken``."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Its outcome: None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Give:
    """Something for the caller.  Its outcome: None."""

    item: Any


Step: TypeAlias = Send | Open | Read | Sleep | Give
Plan: TypeAlias = Generator[Step, Any, A]


# -- one request ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask(Generic[A]):
    """A request, how its answer is read, and whether asking twice does no more than asking once."""

    request: Outgoing
    read: Callable[[Received], A]
    is_repeatable: bool
    accepts: tuple[int, ...] = ()  # statuses besides those of success that are answers


@dataclass(frozen=True, slots=True)
class Habits:
    """How patient a client is.  ``patience_s``: how long one request is tried for, pauses included."""

    daemon: str  # for people
    patience_s: float
    now: Callable[[], float] = SystemClock().now
    random: random.Random = field(default_factory=random.Random)

    def pause_s(self, attempt: int, asked_s: float | None = None) -> float:
        """How long to wait after the ``attempt``-th failure: grows, and differs from client to client."""
        if asked_s is not None:
            return min(asked_s, LONGEST_RETRY_AFTER_S) * self.random.uniform(1.0, 1.25)
        return self.random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 16))

    def unreachable(self, failure: NotSent | Broken, *, may_be_done: bool = False) -> BackfillError:
        """What the caller is told when there is no answer."""
        if isinstance(failure, Broken) and may_be_done:
            return AnswerLost(
                f"{self.daemon} did not answer: {failure.reason}; whether it did what was asked is not known",
                hint="look before you ask again: backfill status, backfill history",
            )
        return CannotConnect(
            f"cannot reach the daemon at {self.daemon}: {failure.reason}", hint="does backfill serve run there?"
        )


def answered(ask: Ask[A], habits: Habits) -> Plan[A]:
    """The answer to ``ask``, tried for as long as the habits say.  Raises what the daemon says is wrong."""
    began, attempt = habits.now(), 0
    while True:
        outcome = yield Send(ask.request)
        asked_s: float | None = None
        if isinstance(outcome, Received):
            if outcome.status < 400 or outcome.status in ask.accepts:
                return ask.read(outcome)
            error = error_of(outcome.status, outcome.body, habits.daemon)
            may_repeat = outcome.status in _TRY_LATER and (ask.is_repeatable or error.code in _NOTHING_DONE)
            asked_s = retry_after_s(outcome)
        else:
            error = habits.unreachable(outcome, may_be_done=not ask.is_repeatable)
            may_repeat = not outcome.is_lasting if isinstance(outcome, NotSent) else ask.is_repeatable
        pause_s = habits.pause_s(attempt, asked_s)
        if not may_repeat or habits.now() + pause_s - began > habits.patience_s:
            raise error
        yield Sleep(pause_s)
        attempt += 1


def retry_after_s(received: Received) -> float | None:
    """The seconds of Retry-After; a date, which no daemon of ours sends, counts as none."""
    text = received.headers.get("retry-after", "")
    return float(text[:9]) if text.isascii() and text.isdigit() else None


def query(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as they travel; what is None is left out."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in parameters.items()
        if value is not None
    }


Shape = TypeVar("Shape", bound=BaseModel)


def shaped(shape: type[Shape]) -> Callable[[Received], Shape]:
    """Reads an answer as ``shape``.  The reader raises ``DaemonError`` for one of another form."""

    def read(received: Received) -> Shape:
        try:
            return shape.model_validate_json(received.body)
        except ValidationError:
            raise DaemonError(
                f"the daemon's answer is no {shape.__name__}",
                code="unexpected_answer",
                hint="are daemon and client of releases that know each other?",
            ) from None

    return read


def text(received: Received) -> str:
    """Reads an answer as text."""
    return received.body.decode("utf-8", errors="replace")
