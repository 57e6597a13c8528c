"""Server-sent events, from bytes to values (the WHATWG's rules, as far as a daemon uses them).  No input, no output."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

MOST_CHARACTERS: Final = 4 * 1024 * 1024
"""Of one event.  What is longer comes from no daemon of ours."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event.  ``id``: the last one that the stream has told, empty before the first."""

    kind: str
    data: str
    id: str


class TooLong(ValueError):
    """An event, or a line of one, without end."""


@dataclass(slots=True)
class EventReader:
    """Feed it bytes, in pieces of any size; it gives the events that they complete.

    ``retry_s``: how long the daemon wants us to wait before we connect anew.  ``heard``: true since the first event or
    comment; what a stream opens with (``retry``) comes through even where nothing else does.
    """

    last_id: str = ""
    retry_s: float | None = None
    heard: bool = False
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )
    _rest: str = ""
    _kind: str = ""
    _data: list[str] = field(default_factory=list)
    _length: int = 0

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        """The events that end in ``piece``.  Raises ``TooLong``."""
        text = self._rest + self._decoder.decode(piece)
        held = "\r" if text.endswith("\r") else ""  # it may be the first half of a line's end
        *lines, rest = text.removesuffix(held).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = rest + held
        for line in lines:
            self._count(len(line))
            if (event := self._line(line)) is not None:
                yield event
        if len(self._rest) > MOST_CHARACTERS:
            raise TooLong

    def _count(self, characters: int) -> None:
        self._length += characters
        if self._length > MOST_CHARACTERS:
            raise TooLong

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            return self._end()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":  # a comment
                self.heard = True
            case "event":
                self._kind = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self.last_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_s = int(value[:6]) / 1000
        return None

    def _end(self) -> ServerEvent | None:
        kind, data = self._kind or "message", self._data
        self._kind, self._data, self._length = "", [], 0
        if not data and kind == "message":
            return None
        self.heard = True
        return ServerEvent(kind, "\n".join(data), self.last_id)
