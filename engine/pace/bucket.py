"""The token bucket: when the next chunk may start.

A token is one row *scanned*.  A chunk is admitted as soon as the balance is not negative, and then takes its whole
estimate at once, so a chunk larger than the bucket simply leaves a debt that the next one waits out: no size is ever
refused.  At commit the estimate is replaced by what the chunk really cost.  Every chunk but the last of an interval
was therefore paid for by the balance or by refill, which gives the bound the property tests check for any interval::

    granted(t0, t1) <= integral of rate + capacity + one chunk        capacity = max(one chunk, 1 s of rate)

The debt has a floor at two seconds of rate, or one chunk if that is more.  It only limits what *settling* may add
(several running chunks that all cost more than estimated); it never lifts a balance that is lower already, because a
floor that refills would turn every ``set_rate`` into a gift of tokens.  The estimate itself is always paid in full: a
user's limit of 10 rows/s holds for chunks of 50 rows as well.

Why not ``aiolimiter.AsyncLimiter``: its drip rate is fixed when constructed (a later change only widens the burst),
an amount above ``max_rate`` raises, its waiters are ordered by amount, so that small requests starve big ones, and it
holds no debt.  It serves where a fixed limit fits (polling of probes, webhooks, the HTTP API), not on the data path.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from engine.clock import Clock

RATE_LIMIT: Final = "rate limit"
"""The reason given for waiting for tokens when nobody said who set the rate."""

BURST_S: Final = 1.0
"""An idle bucket saves up at most this many seconds of rate (or one chunk)."""

DEBT_S: Final = 2.0
"""Settling leaves at most this many seconds of rate as debt (or one chunk)."""

PUNCTUALITY_S: Final = 1e-6
"""A chunk may start this much early: rounding must not make a timer fire again for a remainder of nothing.  The
balance keeps the difference, so the error never adds up."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What happened at the bucket between two looks of the controller.  Seconds are wall-clock seconds in which *at
    least one* chunk waited, so ``limited_s`` and ``held_s`` never exceed ``elapsed_s``, however many workers wait.
    """

    elapsed_s: float
    limited_s: float  # somebody waited for tokens
    held_s: float  # somebody waited behind ``hold``
    granted: float  # tokens: estimates of admitted chunks, corrected by what was settled and refunded

    @property
    def limited_fraction(self) -> float:
        """Share of the time in which the limit was binding, 0..1; 0 for an empty interval."""
        return self.limited_s / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def granted_per_s(self) -> float:
        """Tokens per second; 0 for an empty interval."""
        return self.granted / self.elapsed_s if self.elapsed_s > 0 else 0.0


class BucketCore:
    """The arithmetic of the bucket, without waiting.  Every method is told the time, in seconds of one monotonic
    clock; a time before the last one counts as the last one.
    """

    def __init__(self, rate: float | None, now: float) -> None:
        self._rate = _checked_rate(rate)
        self._balance = 0.0  # an empty bucket admits its first chunk at once, and has no burst behind it
        self._chunk = 0.0  # cost of the last chunk: what "one chunk" means in capacity and floor
        self._era = 0  # counts the times the balance was wiped by a change from or to "no limit"
        self._updated = now
        self._hold: str | None = None
        self._limited_by = RATE_LIMIT
        self._waiting = 0
        self._waits: dict[str, float] = {}
        self._window_start = now
        self._window_limited_s = 0.0
        self._window_held_s = 0.0
        self._window_granted = 0.0

    @property
    def rate(self) -> float | None:
        """Tokens per second, None for no limit."""
        return self._rate

    @property
    def hold_reason(self) -> str | None:
        """Why nothing is admitted at all, None when chunks pass."""
        return self._hold

    @property
    def limited_by(self) -> str:
        """Whom waiting for tokens is put down to."""
        return self._limited_by

    @property
    def reason(self) -> str:
        """Why a chunk that waits now has to wait: who holds it, else who set the rate."""
        return self._hold or self._limited_by

    @property
    def capacity(self) -> float:
        """The largest balance that can be saved up, in tokens; infinite without a limit."""
        return math.inf if self._rate is None else max(self._chunk, self._rate * BURST_S)

    def balance(self, now: float) -> float:
        """Tokens in the bucket, negative for debt; 0 without a limit."""
        self._advance(now)
        return self._balance

    def ready_in(self, now: float) -> float:
        """Seconds until a chunk of any size may start: 0 for now, infinite while held."""
        if self._hold is not None:
            return math.inf
        if self._rate is None:
            return 0.0
        self._advance(now)
        debt_s = -self._balance / self._rate
        return debt_s if debt_s > PUNCTUALITY_S else 0.0

    def take(self, now: float, cost: float) -> int:
        """Charge an admitted chunk with its estimate.  The caller has seen ``ready_in`` return 0, and hands what this
        returns to ``settle``.
        """
        self._window_granted += cost
        if self._rate is not None:
            self._advance(now)
            self._chunk = cost
            self._balance -= cost
        return self._era

    def settle(self, now: float, era: int, estimate: float, real: float) -> None:
        """Replace an estimate by the real cost (0: a refund).  What was taken before the balance was wiped is not in
        it, and a refund of it would be a gift.
        """
        self._window_granted += real - estimate
        if self._rate is None or era != self._era:
            return
        self._advance(now)
        if real > 0:
            self._chunk = real
        settled = self._balance + estimate - real
        if real > estimate:
            floor = -max(self._rate * DEBT_S, estimate, real)
            settled = max(settled, min(floor, self._balance))
        self._balance = min(settled, self._ceiling())

    def set_rate(self, now: float, rate: float | None, reason: str = RATE_LIMIT) -> None:
        """Change the rate from now on, and whom waiting for tokens is put down to.  Debt stays what it is in tokens;
        savings are cut to the new capacity.  After "no limit" the bucket starts empty.
        """
        rate = _checked_rate(rate)
        self._advance(now)
        self._limited_by = reason
        if (rate is None) is not (self._rate is None):
            self._era += 1
            self._balance = 0.0
        self._rate = rate
        self._balance = min(self._balance, self._ceiling())

    def hold(self, now: float, reason: str) -> None:
        """Admit nothing from now on.  Savings are lost, so that the end of a hold is not a burst."""
        self._advance(now)
        self._hold = reason
        self._balance = min(self._balance, self._ceiling())

    def release(self, now: float) -> None:
        """Admit chunks again."""
        self._advance(now)
        self._hold = None

    def set_waiting(self, now: float, waiting: int) -> None:
        """Say how many chunks wait from now on."""
        if waiting != self._waiting:
            self._advance(now)
        self._waiting = waiting

    def waits(self, now: float) -> dict[str, float]:
        """Seconds that chunks waited, summed over those that waited at once, by reason, since the bucket was made."""
        self._advance(now)
        return dict(self._waits)

    def take_usage(self, now: float) -> Usage:
        """What happened since the last call (or the start), and begin a new window."""
        self._advance(now)
        usage = Usage(
            elapsed_s=self._updated - self._window_start,
            limited_s=self._window_limited_s,
            held_s=self._window_held_s,
            granted=self._window_granted,
        )
        self._window_start = self._updated
        self._window_limited_s = self._window_held_s = self._window_granted = 0.0
        return usage

    def _ceiling(self) -> float:
        # Debt is paid off during a hold, but nothing is saved up for its end.
        return 0.0 if self._hold is not None else self.capacity

    def _advance(self, now: float) -> None:
        elapsed_s = now - self._updated
        if elapsed_s <= 0:
            return
        self._updated = now
        if self._waiting:
            if self._hold is not None:
                self._window_held_s += elapsed_s
            else:
                self._window_limited_s += elapsed_s
            self._waits[self.reason] = self._waits.get(self.reason, 0.0) + elapsed_s * self._waiting
        if self._rate is not None:
            self._balance = min(self._balance + self._rate * elapsed_s, max(self._balance, self._ceiling()))


class Admission:
    """A chunk's right to start.  ``settle`` it at commit with what the chunk really scanned; a chunk that never ran
    is settled with 0.  Only the first call counts, so a ``finally`` may refund what was not settled before it.
    """

    __slots__ = ("_bucket", "_era", "_settled", "estimate", "waited_s")

    def __init__(self, bucket: TokenBucket, era: int, estimate: float, waited_s: float) -> None:
        self._bucket = bucket
        self._era = era
        self._settled = False
        self.estimate = estimate
        self.waited_s = waited_s

    def settle(self, real_cost: float) -> None:
        """Put the real cost, in tokens, in place of the estimate."""
        real_cost = _checked_cost(real_cost)
        if not self._settled:
            self._settled = True
            self._bucket._settle(self._era, self.estimate, real_cost)  # noqa: SLF001 - one class in two halves


class _Waiter:
    __slots__ = ("cost", "future", "since")

    def __init__(self, cost: float, future: asyncio.Future[int], since: float) -> None:
        self.cost = cost
        self.future = future
        self.since = since


class TokenBucket:
    """``BucketCore`` with a queue: chunks of one job await their turn, first come first served.

    Belongs to one event loop at a time and takes its time from ``clock``.  ``rate`` is in tokens (rows scanned) per
    second, None for no limit, which costs next to nothing and never suspends the caller.
    """

    def __init__(self, rate: float | None, clock: Clock) -> None:
        self._clock = clock
        self._core = BucketCore(rate, clock.now())
        self._queue: deque[_Waiter] = deque()
        self._timer: asyncio.Task[None] | None = None
        self._armed_for = math.inf

    @property
    def rate(self) -> float | None:
        """Tokens per second, None for no limit."""
        return self._core.rate

    @property
    def limited_by(self) -> str:
        """Whom waiting for tokens is put down to."""
        return self._core.limited_by

    @property
    def is_held(self) -> bool:
        """True between ``hold`` and ``release``."""
        return self._core.hold_reason is not None

    @property
    def waiting(self) -> int:
        """How many chunks wait for admission."""
        return len(self._queue)

    @property
    def reason(self) -> str:
        """Why chunks wait now: the reason of ``hold``, that of the rate, or "" when none waits and nothing is held."""
        return self._core.reason if self._queue or self._core.hold_reason is not None else ""

    @property
    def waits(self) -> dict[str, float]:
        """Seconds that chunks waited, summed over those that waited at once, by reason, up to now."""
        return self._core.waits(self._clock.now())

    def take_usage(self) -> Usage:
        """What happened since the last call: the controller's view, once a tick.  One caller only."""
        return self._core.take_usage(self._clock.now())

    def try_acquire(self, cost: float) -> Admission | None:
        """Admit a chunk if it needs not wait, else None.  ``cost`` is the estimate in tokens, any size from 0 up."""
        cost = _checked_cost(cost)
        if self._queue:
            return None
        now = self._clock.now()
        if self._core.ready_in(now) > 0:
            return None
        return Admission(self, self._core.take(now, cost), cost, 0.0)

    async def acquire(self, cost: float) -> Admission:
        """Wait for this chunk's turn.  Cancelling the caller gives back whatever it was charged."""
        admission = self.try_acquire(cost)
        return admission if admission is not None else await self._wait(cost)

    def set_rate(self, rate: float | None, reason: str = RATE_LIMIT) -> None:
        """Change the rate; whoever waits is woken by the new rate's time, not by the old one's.  ValueError unless
        positive and finite (to admit nothing, ``hold``).  ``reason`` is one of a few fixed names: the seconds that
        chunks wait for tokens are counted under it.
        """
        self._core.set_rate(self._clock.now(), rate, reason)
        self._rearm()

    def hold(self, reason: str) -> None:
        """Admit nothing until ``release``.  ``reason`` is one of a few fixed names (it becomes a key of ``waits``);
        holding again replaces it.
        """
        self._core.hold(self._clock.now(), reason)
        self._rearm()

    def release(self) -> None:
        """Admit chunks again; debt from before the hold was paid off meanwhile, and nothing was saved up."""
        self._core.release(self._clock.now())
        self._rearm()

    async def _wait(self, cost: float) -> Admission:
        now = self._clock.now()
        waiter = _Waiter(cost, asyncio.get_running_loop().create_future(), now)
        self._queue.append(waiter)
        self._core.set_waiting(now, len(self._queue))
        if self._timer is None or self._timer.done():
            self._rearm()
        try:
            era = await waiter.future
        except asyncio.CancelledError:
            self._forget(waiter)
            raise
        return Admission(self, era, cost, self._clock.now() - waiter.since)

    def _forget(self, waiter: _Waiter) -> None:
        now = self._clock.now()
        if waiter in self._queue:
            self._queue.remove(waiter)
        elif not waiter.future.cancelled():
            # It was admitted, and cancelled before it could know.
            self._core.settle(now, waiter.future.result(), waiter.cost, 0.0)
        self._core.set_waiting(now, len(self._queue))
        self._rearm()

    def _settle(self, era: int, estimate: float, real: float) -> None:
        now = self._clock.now()
        self._core.settle(now, era, estimate, real)
        # A deeper debt needs no new timer: it fires, looks, and sleeps on.
        if self._queue and now + self._core.ready_in(now) < self._armed_for - PUNCTUALITY_S:
            self._rearm()

    def _rearm(self) -> None:
        """Make it true again that a timer is armed exactly when somebody waits and nothing is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue and self._core.hold_reason is None:
            self._armed_for = -math.inf  # until it has looked for itself
            self._timer = asyncio.get_running_loop().create_task(self._admit_in_turn())

    async def _admit_in_turn(self) -> None:
        try:
            while self._queue:
                now = self._clock.now()
                delay_s = self._core.ready_in(now)
                if delay_s > 0:
                    self._armed_for = now + delay_s
                    await self._clock.sleep(delay_s)
                else:
                    self._admit_head(now)
        except Exception as error:  # noqa: BLE001 - nobody awaits this task: the waiters must hear of it
            for waiter in self._queue:
                if not waiter.future.done():
                    waiter.future.set_exception(error)
            self._queue.clear()
            self._core.set_waiting(self._clock.now(), 0)

    def _admit_head(self, now: float) -> None:
        waiter = self._queue.popleft()
        if not waiter.future.done():  # done: cancelled, and its task has not run yet to leave the queue itself
            waiter.future.set_result(self._core.take(now, waiter.cost))
        self._core.set_waiting(now, len(self._queue))


def _checked_rate(rate: float | None) -> float | None:
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"a rate must be positive and finite, not {rate!r}; to admit nothing, hold the bucket")
    return rate


def _checked_cost(cost: float) -> float:
    if not 0 <= cost < math.inf:
        raise ValueError(f"a cost must be finite and not negative, not {cost!r}")
    return cost
