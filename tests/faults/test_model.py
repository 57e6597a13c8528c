"""Ledger and leases as a model: every schedule of late, doubled and lost chunks keeps its promises."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.model import LEASE, ModelLedger, Schedule, View, tiles

pytestmark = pytest.mark.faults

SCHEDULES = 100_000 if os.environ.get("BACKFILL_FAULT_ROUNDS") else 10_000
END = 60
WORKERS = ("w1", "w2", "w3")


def test_spans_tile_epochs_grow_and_every_key_is_written_once_in_every_schedule() -> None:
    for seed in range(SCHEDULES):
        Schedule(seed).run(30)


class Fleet(RuleBasedStateMachine):
    """Hypothesis chooses who does what; views never forget what they once saw."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ModelLedger.of([(None, 20), (20, END)])
        self.views: list[tuple[View, str]] = []
        self.written = [0] * (END + 1)
        self.epochs: dict[int, int] = {}

    def _see(self, view: View | None, worker: str) -> None:
        if view is not None:
            self.views.append((view, worker))

    def _pick(self, number: int) -> tuple[View, str] | None:
        return self.views[number % len(self.views)] if self.views else None

    @rule(worker=st.sampled_from(WORKERS))
    def claim(self, worker: str) -> None:
        self._see(self.ledger.claim(worker), worker)

    @rule(number=st.integers(0, 50), rows=st.integers(1, 30))
    def deliver(self, number: int, rows: int) -> None:
        """A chunk cut from anything that was ever seen arrives now."""
        picked = self._pick(number)
        if picked is None:
            return
        view, worker = picked
        start = view.cursor or 0
        to = min(view.hi, start + rows)
        if start < to and self.ledger.advance(view, to):
            for key in range(start + 1, to + 1):
                self.written[key] += 1
            self._see(self.ledger.reread(view, worker), worker)

    @rule(number=st.integers(0, 50))
    def reconnect(self, number: int) -> None:
        picked = self._pick(number)
        if picked:
            self._see(self.ledger.reclaim(*picked), picked[1])

    @rule(number=st.integers(0, 50))
    def give_back(self, number: int) -> None:
        picked = self._pick(number)
        if picked:
            self.ledger.release(*picked)

    @rule(number=st.integers(0, 50))
    def renew(self, number: int) -> None:
        picked = self._pick(number)
        if picked:
            self.ledger.renew(*picked)

    @rule(number=st.integers(0, 50), share=st.floats(0, 1), thief=st.sampled_from(WORKERS))
    def steal(self, number: int, share: float, thief: str) -> None:
        picked = self._pick(number)
        if picked:
            start, end = picked[0].cursor or 0, picked[0].hi
            cut = start + 1 + int(share * (end - start - 2))
            if start < cut < end:
                self._see(self.ledger.steal(picked[0], cut, thief), thief)

    @rule(leases=st.sampled_from((0.5, 1.5)))
    def wait(self, leases: float) -> None:
        self.ledger.now += int(leases * LEASE)

    @invariant()
    def spans_partition_the_key_space(self) -> None:
        assert tiles(self.ledger.spans(), END)

    @invariant()
    def what_is_written_is_what_the_cursors_say(self) -> None:
        for span in self.ledger.spans():
            cursor = span.cursor or 0
            assert all(self.written[key] == 1 for key in range((span.lo or 0) + 1, cursor + 1))
            assert not any(self.written[key] for key in range(cursor + 1, span.hi + 1))

    @invariant()
    def epochs_only_grow_and_one_view_at_most_may_commit(self) -> None:
        for span in self.ledger.spans():
            assert span.epoch >= self.epochs.get(span.id, 0)
            self.epochs[span.id] = span.epoch
            # A fence that passes names one worker's lease.
            able = {
                w
                for v, w in self.views
                if (v.id, v.epoch, v.cursor, v.hi) == (span.id, span.epoch, span.cursor, span.hi)
            }
            assert len(able) <= 1


Fleet.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFleet = Fleet.TestCase
