"""Events as JSON, one object a line: the output of ``--json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

from engine.events import Emit, Event, JobFinished
from engine.flow.result import RunResult

_DIGITS: Final = 6
_SECONDS_DIGITS: Final = 3
_RATE_DIGITS: Final = 1


class Stream(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object:
        """Take a text."""
        ...

    def flush(self) -> object:
        """Pass on what was taken."""
        ...


class JsonLines:
    """An ``Emit`` that writes each event as one line, at once, measurements left out.  A reader that is gone ends only
    the writing.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream: Stream | None = stream

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if not event.is_measurement:
            self.write(event.as_json())

    def write(self, item: Mapping[str, Any]) -> None:
        """Write one object."""
        if self._stream is None:
            return
        try:
            self._stream.write(json.dumps(_rounded(item)) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._stream = None


def _rounded(value: Any) -> Any:
    """Without digits that nobody measured: microseconds are enough of any time, and a run writes many lines."""
    match value:
        case float():
            return round(value, _DIGITS)
        case Mapping():
            return {name: _rounded(item) for name, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case _:
            return value


def tee(*listeners: Emit) -> Emit:
    """An ``Emit`` that tells several."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


def finished_event(result: RunResult, *, rows_before: int = 0) -> JobFinished:
    """The last event of a run.  ``rows_before``: what the job had moved when this run began, left out of its rate."""
    rate = max(0, result.rows - rows_before) / result.seconds if result.seconds > 0 else 0.0
    return JobFinished(
        job=result.job,
        state=result.state,
        rows=result.rows,
        bytes=result.bytes,
        chunks=result.chunks,
        seconds=round(result.seconds, _SECONDS_DIGITS),
        rows_per_s=round(rate, _RATE_DIGITS),
        retries=result.retries,
        quarantined=result.quarantined,
        resumed=result.resumed,
        verified=result.verified,
    )
