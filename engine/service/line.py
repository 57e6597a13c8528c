"""A transport whose end comes: nobody keeps a connection by not reading what he asked for, or by sending on and on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

LINGER_S: Final = 2.0
LINGER_BYTES: Final = 2**20
"""So long, and so much, is read of a request whose answer has gone out already."""

PROGRESS_BYTES: Final = 16 * 1024
"""A client must take this much of an answer within each ``send_timeout``."""


class Line(asyncio.Transport):
    """A transport that ends: what is still to be sent gets ``send_timeout``, as long as the client takes some of it."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, within_s: float) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._within_s = within_s
        self._due: asyncio.TimerHandle | None = None
        self._left = 0
        self._is_closing = False
        self._drained = 0
        self._is_paused = False  # by uvicorn
        self._is_held = False  # by us
        self.is_unread = False
        """The request is not read to its end: to close at once would cost the client our answer."""

    def close(self) -> None:
        """No more answers; the connection ends when the last one was taken, or was not taken in time."""
        if self._is_closing:
            return
        self._is_closing = True
        self.watch()
        if not self.is_unread:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.write_eof()
        self._read_or_not()
        self._loop.call_later(LINGER_S, self._transport.close)

    def drain(self, size: int) -> None:
        """Bytes that came after ``close``."""
        self._drained += size
        if self._drained > LINGER_BYTES:
            self._transport.abort()

    def watch(self) -> None:
        """From now on the client has to take what was sent."""
        if self._due is None:
            self._left = self._transport.get_write_buffer_size()
            self._due = self._loop.call_later(self._within_s, self._look)

    def trust(self) -> None:
        """The client has taken enough of it, for now."""
        if self._due is not None and not self._is_closing:
            self._due.cancel()
            self._due = None

    def lost(self) -> None:
        """The connection is gone."""
        self._is_closing = True
        if self._due is not None:
            self._due.cancel()

    def _look(self) -> None:
        self._due = None
        left = self._transport.get_write_buffer_size()
        if self._left - left < PROGRESS_BYTES:
            self._transport.abort()
        else:
            self.watch()

    def abort(self) -> None:
        """Now."""
        self._is_closing = True
        self._transport.abort()

    def is_closing(self) -> bool:
        """True when no more answers go out."""
        return self._is_closing or self._transport.is_closing()

    def write(self, data: Any) -> None:
        """Send, unless nothing more is to be sent."""
        if not self._is_closing:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """The parser has enough for now."""
        self._is_paused = True
        self._read_or_not()

    def resume_reading(self) -> None:
        """It has not."""
        self._is_paused = False
        self._read_or_not()

    def hold(self, *, held: bool) -> None:
        """We have enough for now, or not any longer."""
        self._is_held = held
        self._read_or_not()

    def _read_or_not(self) -> None:
        if self._transport.is_closing():
            return
        if (self._is_paused or self._is_held) and not self._is_closing:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the transport does."""
        return self._transport.get_extra_info(name, default)
