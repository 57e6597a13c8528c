"""What each partition got is known about as well as the counters' delay allows, whichever session reports first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pace.partitions import Apportioner, Partition

LOOK_S = 0.1
ROW_BYTES = 100


class Truth:
    """Two partitions, each written by a session of its own that reports once a second, at its own moments."""

    def __init__(self, rates: dict[int, float], *, phases: dict[int, float], room: bool) -> None:
        self.rates, self.phases, self.room = rates, phases, room
        self.rows = dict.fromkeys(rates, 0.0)
        self.reported = dict.fromkeys(rates, 0)
        self.now = 0.0
        self.apportioner = Apportioner()
        self.divided = self.look()

    def look(self) -> dict[int, float]:
        seen = {
            key: Partition(self.reported[key], 10_000_000 + (0 if self.room else int(rows) * ROW_BYTES), 100_000)
            for key, rows in self.rows.items()
        }
        return self.apportioner.divide(self.now, seen, sum(self.rows.values()))

    def passes(self, seconds: float) -> None:
        for _ in range(round(seconds / LOOK_S)):
            before, self.now = self.now, self.now + LOOK_S
            for key, rate in self.rates.items():
                self.rows[key] += rate * LOOK_S
                if int(self.now - self.phases[key]) != int(before - self.phases[key]):
                    self.reported[key] = int(self.rows[key])
            self.divided = self.look()


@given(
    rates=st.fixed_dictionaries({1: st.floats(1e3, 1e5), 2: st.floats(1e3, 1e5)}),
    phases=st.fixed_dictionaries({1: st.floats(0, 0.9), 2: st.floats(0, 0.9)}),
    room=st.booleans(),
)
def test_no_partition_seems_to_have_got_what_another_one_did(
    rates: dict[int, float], phases: dict[int, float], room: bool
) -> None:
    truth = Truth(rates, phases=phases, room=room)
    truth.passes(2.5)
    for _ in range(30):
        truth.passes(LOOK_S)
        assert sum(truth.divided.values()) == pytest.approx(sum(truth.rows.values()), abs=2)
        for key, rows in truth.rows.items():
            # a look's length of everybody's rows, for a report is only known to have come since the last look
            assert abs(truth.divided[key] - rows) <= 2.5 * LOOK_S * sum(rates.values())


def test_before_any_report_the_files_that_grow_tell() -> None:
    truth = Truth({1: 10_000.0, 2: 0.0}, phases={1: 0.95, 2: 0.95}, room=False)
    truth.passes(0.5)
    assert truth.divided == pytest.approx({1: 5_000, 2: 0}, abs=1)
    assert truth.apportioner.shares == pytest.approx({1: 1.0, 2: 0.0})


def test_one_that_is_done_gets_nothing_more() -> None:
    truth = Truth({1: 10_000.0, 2: 10_000.0}, phases={1: 0.0, 2: 0.5}, room=True)
    truth.passes(3.0)
    truth.rates[1] = 0.0
    truth.passes(5.0)
    assert truth.apportioner.shares == pytest.approx({1: 0.0, 2: 1.0})
    assert truth.divided == pytest.approx(truth.rows, abs=2)


def test_a_new_partition_is_taken_in() -> None:
    truth = Truth({1: 10_000.0}, phases={1: 0.0}, room=False)
    truth.passes(1.0)
    truth.rates[2], truth.phases[2], truth.rows[2], truth.reported[2] = 10_000.0, 0.0, 0.0, 0
    truth.passes(2.5)
    assert truth.apportioner.shares == pytest.approx({1: 0.5, 2: 0.5}, rel=0.1)
