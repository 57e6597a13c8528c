"""The log of a long-running command: entries as JSON, one object a line, by structlog.

Every line begins with ``timestamp``, ``level``, ``event`` and ``message``; the event's own fields follow.  What is
bound to the log, or to structlog's context variables, is in every line from there on.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from engine.telemetry.entries import Entry
from engine.telemetry.lines import Stream

_FIRST: Final = ("timestamp", "level", "event", "message", "job")

Line = MutableMapping[str, Any]


class Log:
    """Writes entries that weigh enough.  A reader that is gone ends only the writing."""

    def __init__(
        self,
        stream: Callable[[], Stream] = lambda: sys.stderr,
        *,
        least: int = logging.INFO,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._logger = structlog.wrap_logger(
            _Lines(stream),
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                _Stamp(wall),
                _in_order,
                structlog.processors.JSONRenderer(_text),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(least),
            context_class=dict,
            cache_logger_on_first_use=False,
        )

    def bind(self, **fields: Any) -> None:
        """These fields are in every line from now on, unless an entry says otherwise."""
        self._logger = self._logger.bind(**fields)

    def write(self, entry: Entry) -> None:
        """One entry."""
        self.line(entry.weight, entry.event, entry.message, entry.fields)

    def line(self, level: int, event: str, message: str, fields: Mapping[str, Any]) -> None:
        """One line; ``level`` is one of ``logging``'s.  Fields that are None are left out."""
        known = {name: value for name, value in fields.items() if value is not None}
        self._logger.log(level, event, message=message, **known)


class _Lines:
    """What structlog writes to: the stream as it is at that moment, under the names of all levels."""

    def __init__(self, stream: Callable[[], Stream]) -> None:
        self._stream: Callable[[], Stream] | None = stream

    def msg(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            stream = self._stream()
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._stream = None

    debug = info = warning = error = msg


class _Stamp:
    """The time in UTC, to the millisecond."""

    def __init__(self, wall: Callable[[], datetime]) -> None:
        self._wall = wall

    def __call__(self, _logger: object, _method: str, line: Line) -> Line:
        moment = self._wall().astimezone(UTC).isoformat(timespec="milliseconds")
        return {**line, "timestamp": moment.removesuffix("+00:00") + "Z"}


def _in_order(_logger: object, _method: str, line: Line) -> Mapping[str, Any]:
    first = {name: line[name] for name in _FIRST if name in line}
    return first | {name: _finite(value) for name, value in line.items() if name not in first}


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(line: Mapping[str, Any], **_: Any) -> str:
    """In ASCII, so that no locale can stop a line; what JSON does not know, as a text."""
    return json.dumps(line, default=str)
