"""What a probe is: one question, asked again and again, whose answer is one signal's reading.

A probe knows how to ask and how long an answer may take.  When it is asked, and that a slow one never delays another,
is the watcher's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.db.failures import classify
from engine.errors import BackfillError
from engine.pace.law import SignalPolicy


@dataclass(frozen=True, slots=True)
class Measured:
    """The answer: a value in the unit of the probe's policy, and which of several things it is about, for people."""

    value: float
    detail: str = ""


class ProbeFailed(BackfillError):
    """There is no value now.  The message is short, for people, and holds no values of rows."""

    code = "probe_failed"


class Probe(Protocol):
    """One question.  ``read`` is never called while a former call is still running."""

    @property
    def policy(self) -> SignalPolicy:
        """What the law shall make of the readings; its ``name`` is the signal's."""
        ...

    @property
    def every_s(self) -> float:
        """Seconds between two beginnings of ``read``."""
        ...

    @property
    def quiet_every_s(self) -> float:
        """The same while nobody else is there to be disturbed or to be noticed."""
        ...

    @property
    def asked_at(self) -> float | None:
        """Since when an answer is awaited that would itself be the value, once it comes: only for probes that measure
        how long an answer takes.  None for all others, and while none is awaited.
        """
        ...

    async def read(self) -> Measured:
        """Ask once.  Raises ``ProbeFailed``, or what the driver raised; ends by itself at the probe's deadline."""
        ...

    async def close(self) -> None:
        """Let go of what is open.  Called after the last ``read`` has ended."""
        ...


def explain(error: BaseException) -> str:
    """Why a reading failed, in a few words that hold no values and no secrets."""
    if isinstance(error, ProbeFailed):
        return error.message
    return classify(error).message
