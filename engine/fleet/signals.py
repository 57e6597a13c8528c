"""Two signals, two meanings: the first drains, the second aborts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
NAMES: Final = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_EXIT_BASE: Final = 128


class Interrupted(Exception):
    """A signal ended the work before there was a job to drain."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(NAMES[number])
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 or 143."""
        return exit_code(self.number)


def exit_code(number: signal.Signals) -> int:
    """128 plus the signal's number, as shells have it."""
    return _EXIT_BASE + number


class TwoSignals:
    """Counts SIGINT and SIGTERM of this process while watched for.  ``first``: the one that came first, or None."""

    def __init__(self, drain: Callable[[signal.Signals], None], abort: Callable[[], None]) -> None:
        self.first: signal.Signals | None = None
        self._drain = drain
        self._abort = abort

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle both signals in the running loop; must be the main thread's."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._arrived, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _arrived(self, number: signal.Signals) -> None:
        if self.first is None:
            self.first = number
            self._drain(number)
        else:
            self._abort()
