"""How long a worker has waited, and for what."""

from __future__ import annotations

from engine.clock import Clock


class Waits:
    """Seconds of waiting by reason.  A wait that still goes on counts as it grows: an hour of it is no news only when
    it is over.  The sums never shrink.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ended: dict[str, float] = {}
        self._reason: str | None = None  # of the wait that goes on
        self._since = 0.0

    def begin(self, reason: str) -> None:
        """From now on ``reason`` is waited for, and nothing else.  A wait for it that goes on just goes on."""
        if reason != self._reason:
            self.end()
            self._reason, self._since = reason, self._clock.now()

    def end(self) -> None:
        """Nothing is waited for any longer."""
        if self._reason is not None:
            self._ended = self.totals(self._clock.now())
            self._reason = None

    def totals(self, now: float) -> dict[str, float]:
        """Seconds by reason until ``now``, with what is waited for at the moment."""
        sums = dict(self._ended)
        if self._reason is not None:
            sums[self._reason] = sums.get(self._reason, 0.0) + max(0.0, now - self._since)
        return sums
