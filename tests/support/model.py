"""The ledger's spans and leases as a few lines of plain Python: what ``engine.ledger`` promises, without a database.

Keys are integers, time is a number that tests move.  ``ModelLedger`` is what the real ledger is compared with
(``tests/conformance``); ``Schedule`` drives it through what can happen to workers: late, doubled and lost chunks, expired
leases, thefts, in any order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Final

LEASE: Final = 10


@dataclass(frozen=True, slots=True)
class View:
    """A span as its holder knows it."""

    id: int
    lo: int | None
    hi: int
    cursor: int | None
    epoch: int
    worker: str | None


@dataclass(slots=True)
class Row:
    """A span in the ledger."""

    id: int
    lo: int | None
    hi: int
    cursor: int | None
    epoch: int = 0
    worker: str | None = None
    until: int | None = None

    @property
    def view(self) -> View:
        """What a reader gets."""
        return View(self.id, self.lo, self.hi, self.cursor, self.epoch, self.worker)


@dataclass(slots=True)
class ModelLedger:
    """One phase of one job."""

    rows: dict[int, Row]
    now: int = 0

    @classmethod
    def of(cls, bounds: list[tuple[int | None, int]]) -> ModelLedger:
        """Fresh spans."""
        return cls({n: Row(n, lo, hi, lo) for n, (lo, hi) in enumerate(bounds, start=1)})

    def claim(self, worker: str) -> View | None:
        """The first span that nobody holds."""
        for row in self.rows.values():
            free = row.until is None or row.until < self.now or row.until > self.now + 2 * LEASE
            if row.cursor != row.hi and free:
                row.epoch, row.worker, row.until = row.epoch + 1, worker, self.now + LEASE
                return row.view
        return None

    def reclaim(self, held: View, worker: str) -> View | None:
        """The same span under the next epoch, unless it is somebody else's."""
        row = self.rows[held.id]
        if (row.worker, row.epoch) != (worker, held.epoch):
            return None
        row.epoch, row.until = row.epoch + 1, self.now + LEASE
        return row.view

    def advance(self, held: View, to: int) -> bool:
        """Commit a chunk; False when the fence refused it."""
        row = self.rows[held.id]
        if (row.epoch, row.cursor, row.hi) != (held.epoch, held.cursor, held.hi):
            return False
        row.cursor = to
        return True

    def renew(self, held: View, worker: str) -> bool:
        """Renew a lease, if it is still there."""
        row = self.rows[held.id]
        if (row.worker, row.epoch) != (worker, held.epoch) or row.until is None:
            return False
        row.until = self.now + LEASE
        return True

    def release(self, held: View, worker: str) -> None:
        """Give it back."""
        row = self.rows[held.id]
        if (row.worker, row.epoch) == (worker, held.epoch):
            row.worker = row.until = None

    def reread(self, held: View, worker: str) -> View | None:
        """As it stands, for its holder."""
        row = self.rows[held.id]
        return row.view if (row.worker, row.epoch) == (worker, held.epoch) else None

    def steal(self, victim: View, cut: int, worker: str) -> View | None:
        """Its upper half, if it still stands where the thief saw it."""
        row = self.rows[victim.id]
        if (row.cursor, row.hi) != (victim.cursor, victim.hi):
            return None
        taken = Row(max(self.rows) + 1, cut, row.hi, cut, 1, worker, self.now + LEASE)
        row.hi = cut
        self.rows[taken.id] = taken
        return taken.view

    def set_deadline(self, span: int, distance: int) -> None:
        """Tamper with a lease: its end lies so far ahead."""
        self.rows[span].until = self.now + distance

    def spans(self) -> list[View]:
        """All spans."""
        return [row.view for row in self.rows.values()]

    def unfinished(self) -> int:
        """Spans that are not at their bound."""
        return sum(row.cursor != row.hi for row in self.rows.values())


def tiles(spans: list[View], end: int) -> bool:
    """The spans partition the key space up to ``end``, and no cursor lies outside its span."""
    at: int | None = None
    for span in sorted(spans, key=lambda s: (s.lo is not None, s.lo or 0)):
        inside = (
            span.cursor is None
            if span.lo is None and span.cursor is None
            else (span.lo or 0) <= (span.cursor or 0) <= span.hi
        )
        if span.lo != at or not inside or (span.lo is not None and span.lo >= span.hi):
            return False
        at = span.hi
    return at == end


@dataclass(slots=True)
class Schedule:
    """Workers that do what workers do, in an order drawn from a seed, over a network that loses, doubles and delays.

    After every step: the spans tile, epochs have not gone back, no key was written twice, and what is written is what
    the cursors say.
    """

    seed: int
    workers: int = 3
    end: int = 24
    ledger: ModelLedger = field(init=False)
    written: list[int] = field(init=False)
    _rng: random.Random = field(init=False)
    _held: dict[str, View] = field(init=False, default_factory=dict)
    _flying: list[tuple[View, int]] = field(init=False, default_factory=list)
    _epochs: dict[int, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        middle = self.end // 2
        self.ledger = ModelLedger.of([(None, middle), (middle, self.end)])
        self.written = [0] * (self.end + 1)

    def run(self, steps: int) -> None:
        """So many steps, then everybody well until the end."""
        for _ in range(steps):
            self.step()
        self.finish()

    def step(self) -> None:
        """One thing happens to one worker."""
        rng, ledger = self._rng, self.ledger
        name = f"w{rng.randrange(self.workers)}"
        held = self._held.get(name)
        what = rng.random()
        if held is None:
            claimed = ledger.claim(name)
            if claimed is None and what < 0.7:
                claimed = self._steal(name)
            if claimed is not None:
                self._held[name] = claimed
        elif what < 0.40:
            self._send(name, held, arrives=True)
        elif what < 0.55:
            self._send(name, held, arrives=False)  # its connection is gone; the chunk may come later, or never
            self._again(name, held)
        elif what < 0.65:
            ledger.renew(held, name)
        elif what < 0.72:
            ledger.release(held, name)
            del self._held[name]
        elif what < 0.80:
            self._held.pop(name)  # killed, and started again
        else:
            ledger.now += rng.choice((1, LEASE // 2, LEASE + 1))
        if self._flying and rng.random() < 0.4:
            self._deliver(*self._flying[rng.randrange(len(self._flying))])  # and it may be delivered once more
        self.check()

    def _send(self, name: str, held: View, *, arrives: bool) -> None:
        at = held.cursor or 0
        if at >= held.hi:
            self.ledger.release(held, name)
            self._held.pop(name, None)
            return
        to = min(held.hi, at + self._rng.randint(1, 5))
        if not arrives:
            self._flying.append((held, to))
        elif self._deliver(held, to):
            self._held[name] = replace(held, cursor=to)
        else:
            again = self.ledger.reread(held, name)
            if again is None:
                del self._held[name]
            else:
                self._held[name] = again

    def _again(self, name: str, held: View) -> None:
        if name in self._held:
            again = self.ledger.reclaim(held, name)
            if again is None:
                del self._held[name]
            else:
                self._held[name] = again

    def _steal(self, name: str) -> View | None:
        running = [s for s in self.ledger.spans() if s.hi - (s.cursor or 0) > 2]
        if not running:
            return None
        victim = self._rng.choice(running)
        return self.ledger.steal(victim, self._rng.randrange((victim.cursor or 0) + 1, victim.hi), name)

    def _deliver(self, held: View, to: int) -> bool:
        if not self.ledger.advance(held, to):
            return False
        for key in range((held.cursor or 0) + 1, to + 1):
            self.written[key] += 1
        return True

    def check(self) -> None:
        """What must be true at every moment."""
        spans = self.ledger.spans()
        assert tiles(spans, self.end), (self.seed, spans)
        for span in spans:
            assert span.epoch >= self._epochs.get(span.id, 0), (self.seed, span)
            self._epochs[span.id] = span.epoch
            lo, cursor = span.lo or 0, span.cursor or 0
            assert all(self.written[key] == 1 for key in range(lo + 1, cursor + 1)), (self.seed, span, self.written)
            assert not any(self.written[key] for key in range(cursor + 1, span.hi + 1)), (self.seed, span, self.written)

    def finish(self) -> None:
        """Somebody well does the rest; every key has been written once."""
        while self.ledger.unfinished():
            self.ledger.now += 3 * LEASE
            held = self.ledger.claim("heir")
            assert held is not None, (self.seed, self.ledger.spans())
            assert self._deliver(held, held.hi), (self.seed, held)
        for held, to in self._flying:
            assert not self._deliver(held, to), (self.seed, held)
        assert self.written[1:] == [1] * self.end, (self.seed, self.written)
