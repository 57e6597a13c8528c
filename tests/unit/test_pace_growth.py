"""When to VACUUM beside a job, decided against a heap in miniature that behaves as PostgreSQL's does."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pace.growth import (
    FIRST_GEAR,
    FIRST_RETRY_S,
    GEARS,
    LONGEST_LOOK_S,
    MINIMUM_BYTES,
    SHORTEST_LOOK_S,
    WORTHWHILE,
    GrowthPolicy,
    Sight,
    Verdict,
)

GIB = 2**30
MIB = 2**20
ROW_BYTES = 100.0
BUDGET = 0.2


@dataclass
class Plant:
    """A heap, its statistics (a second late, as the server's) and somebody who updates it at a steady rate."""

    start_bytes: int = GIB
    index_bytes: int = GIB // 4
    rate: float = 20e6  # bytes of new versions per second, while nothing holds the job
    hot: float = 0.0  # share of the updates that are HOT
    vacuum_s: float = 2.0
    widened: float = 1.0  # a new version's bytes per old version's
    wasted: float = 0.0  # share of the removed bytes that no row fits into
    all_late: bool = False  # what the job has written is only known once a second, too
    snapshot_at: float = math.inf  # somebody looks from then …
    snapshot_until: float = math.inf  # … to then
    free: float = 0.0
    now: float = 0.0
    held_s: float = 0.0
    vacuums: int = 0
    useless: int = 0
    wholes: int = 0
    most: float = 0.0
    gears: set[int] = field(default_factory=set)
    _bytes: float = 0.0
    _dead: float = 0.0
    _dead_at: deque[tuple[float, float]] = field(default_factory=deque)  # (when, bytes that had died in all)
    _rows: float = 0.0
    _reported: tuple[float, float] = (0.0, 0.0)
    _reported_dead: float = 0.0
    _reported_at: float = 0.0
    _removed: float = 0.0

    def __post_init__(self) -> None:
        self._bytes = float(self.start_bytes)

    @property
    def rows(self) -> float:
        return self.start_bytes / ROW_BYTES

    def policy(self, max_growth: float = BUDGET) -> GrowthPolicy:
        return GrowthPolicy(max_growth, start_bytes=self.start_bytes, rows=self.rows)

    def write(self, seconds: float) -> None:
        rows = min(self.rate * seconds / ROW_BYTES, self.rows - self._rows)
        self._rows += rows
        cold = rows * (1 - self.hot) * ROW_BYTES
        self._dead += cold
        into_room = min(self.free, cold * self.widened)
        self.free -= into_room
        self._bytes += cold * self.widened - into_room
        self.most = max(self.most, self._bytes / self.start_bytes - 1)

    def horizon(self) -> float:
        return self.snapshot_at if self.snapshot_at <= self.now < self.snapshot_until else self.now

    def died_before(self, moment: float) -> float:
        dead = 0.0
        while self._dead_at and self._dead_at[0][0] <= moment:
            dead = self._dead_at.popleft()[1]
        self._dead_at.appendleft((moment, dead))
        return dead

    def sight(self) -> Sight:
        if self.now - self._reported_at >= 1:
            self._reported, self._reported_at = (self._rows, self._rows * self.hot), self.now
            self._reported_dead = self._dead - self._removed
        self._dead_at.append((self.now, self._dead))
        return Sight(
            now=self.now,
            bytes=round(self._bytes),
            index_bytes=self.index_bytes,
            updates=round(self._reported[0]),
            hot_updates=round(self._reported[1]),
            deletes=0,
            dead_rows=round(self._reported_dead / ROW_BYTES),
            vacuums=self.vacuums,
            next_xid=round(self.now * 1000) + 1000,
            horizon_xid=round(self.horizon() * 1000) + 1000,
            rows_written=self._reported[0] if self.all_late else self._rows,
            rows_left=self.rows - self._rows,
        )

    def run(self, policy: GrowthPolicy, *, seconds: float = 10_000.0) -> None:
        """Play the job to its end, or so long."""
        done_at, removes, verdict = math.inf, 0.0, Verdict()
        while self._rows < self.rows * 0.999999 and self.now < seconds:
            policy.look(self.sight())
            verdict = policy.decide()
            if verdict.start:
                policy.started(self.now, verdict)
                self.gears.add(GEARS.index(verdict.gear))
                self.wholes += verdict.whole
                removes = self.died_before(self.horizon())
                done_at = self.now + self.vacuum_s
            step = min(0.5 if verdict.hold else policy.next_look_s, done_at - self.now)
            if verdict.hold:
                self.held_s += step
            else:
                self.write(step)
            self.now += step
            if self.now >= done_at:
                done_at = math.inf
                removed = max(0.0, removes - self._removed)
                self._removed += removed
                self.free += removed * (1 - self.wasted)
                self.vacuums += 1
                self._reported_dead = self._dead - self._removed
                self.useless += removed < WORTHWHILE * BUDGET * self.start_bytes / 2
                policy.ended(self.now, failed=False)


def test_the_heap_stays_in_its_budget_and_the_job_never_waits() -> None:
    plant = Plant()
    plant.run(plant.policy())
    assert plant.most <= BUDGET
    assert 5 <= plant.vacuums <= 10
    assert plant.held_s == 0


@pytest.mark.parametrize("seconds", [5, 10, 20])
def test_what_is_known_a_second_late_is_extrapolated(seconds: float) -> None:
    plant = Plant(rate=GIB / seconds, vacuum_s=0.2, all_late=True)
    plant.run(plant.policy())
    assert plant.most <= BUDGET + 0.02


def test_without_vacuum_the_plant_doubles() -> None:
    plant = Plant()
    plant.write(1000)
    assert plant.most == pytest.approx(1)


@given(
    rate=st.floats(10e6, 500e6),
    vacuum_s=st.floats(0.5, 100),
    widened=st.floats(1.0, 1.05),
    wasted=st.floats(0.0, 0.05),
    max_growth=st.sampled_from([0.1, 0.2, 0.5]),
)
def test_whatever_the_speeds_the_heap_stays_about_in_its_budget(
    rate: float, vacuum_s: float, widened: float, wasted: float, max_growth: float
) -> None:
    plant = Plant(20 * GIB, 4 * GIB, rate=rate, vacuum_s=vacuum_s, widened=widened, wasted=wasted)
    plant.run(plant.policy(max_growth), seconds=100_000)
    assert plant.most <= max_growth + 0.03 + (widened - 1) + wasted
    assert plant.vacuums <= 1.2 / (WORTHWHILE * max_growth) + 2
    assert plant._rows >= plant.rows * 0.999, "it never gets stuck"


def test_hot_updates_need_no_vacuum() -> None:
    plant = Plant(hot=1.0)
    plant.run(plant.policy())
    assert (plant.vacuums, plant.held_s, plant.most) == (0, 0, 0)


def test_updates_that_are_hot_count_for_nothing_among_others() -> None:
    plant = Plant(hot=0.8)
    policy = plant.policy()
    for plant.now in (0.0, 2.0, 4.0):
        policy.look(plant.sight())
        plant.write(2)
    plant.now = 5.5
    policy.look(plant.sight())
    assert policy.dead_bytes == pytest.approx(plant._dead)


def test_room_that_was_there_before_is_used_up_first() -> None:
    plant = Plant(free=0.9 * GIB)
    plant.run(plant.policy())
    assert (plant.vacuums, plant.held_s) == (0, 0)


def test_a_small_table_may_grow() -> None:
    plant = Plant(start_bytes=MINIMUM_BYTES - 1, rate=1e6)
    plant.run(plant.policy())
    assert (plant.vacuums, plant.held_s) == (0, 0)
    assert plant.most == pytest.approx(1, abs=0.01)


def test_a_vacuum_slower_than_the_budget_allows_makes_the_job_wait_for_it() -> None:
    plant = Plant(rate=50e6, vacuum_s=20.0)
    plant.run(plant.policy())
    assert plant.held_s > 20
    assert plant.most <= BUDGET + 0.03


def test_an_old_snapshot_is_waited_for_and_no_vacuum_is_wasted_on_it() -> None:
    plant = Plant(snapshot_at=0.0, snapshot_until=500.0)
    policy = plant.policy()
    plant.run(policy, seconds=499)
    assert plant.vacuums == 0
    assert policy.decide() == Verdict(hold=True, blocked=True, whole=False, gear=GEARS[-1])
    assert plant.most <= BUDGET + 0.02
    plant.run(policy)
    assert plant.now < 600, "it goes on by itself"
    assert plant.useless == 0
    assert plant.most <= BUDGET + 0.03


def test_other_peoples_rows_are_no_bloat() -> None:
    plant = Plant(rate=0.0)
    policy = plant.policy()
    for plant.now in range(100):
        plant._bytes += 0.01 * GIB
        policy.look(plant.sight())
        assert policy.decide() == Verdict(gear=GEARS[FIRST_GEAR], whole=policy.decide().whole)
    assert policy.ratio == pytest.approx(1)


def test_no_vacuum_is_begun_for_what_little_is_left() -> None:
    plant = Plant(start_bytes=GIB)
    plant._rows = plant.rows * 0.9  # an earlier run did the rest
    plant.run(plant.policy())
    assert plant.vacuums == 0
    assert plant.most == pytest.approx(0.1, abs=0.01)


def test_somebody_elses_vacuum_counts() -> None:
    plant = Plant()
    policy = plant.policy()
    for plant.now in (0.0, 2.0, 4.0):
        plant.write(1.5)
        policy.look(plant.sight())
    dead = policy.dead_bytes
    assert dead > 0
    plant.now = 5.0
    plant.write(0.001)
    plant._removed = plant._dead
    plant._reported_dead = 0.0
    plant.vacuums = 1
    policy.look(plant.sight())
    assert policy.dead_bytes < 0.1 * dead
    assert policy.room_bytes > 0.7 * dead


def test_what_the_server_still_counts_as_dead_is_no_room() -> None:
    plant = Plant()
    policy = plant.policy()
    for plant.now in (0.0, 2.0, 4.0):
        plant.write(1.5)
        policy.look(plant.sight())
    plant.vacuums = 1  # it ran, and removed nothing
    plant.now = 5.0
    plant.write(0.001)
    plant._reported_dead = plant._dead
    policy.look(plant.sight())
    assert policy.room_bytes == 0


def test_a_file_that_grows_shows_that_there_is_no_room() -> None:
    plant = Plant()
    policy = plant.policy()
    for plant.now in (0.0, 2.0, 4.0):
        plant.write(1.5)
        policy.look(plant.sight())
    plant.vacuums, plant._reported_dead = 1, 0.0
    policy.look(plant.sight())
    assert policy.room_bytes > 0
    plant.write(1.5)  # to the end of the file, whatever the VACUUM is said to have done
    plant.now = 5.5
    policy.look(plant.sight())
    assert policy.room_bytes == 0


def test_a_guess_that_is_taken_back_leaves_no_room_that_was_never_made() -> None:
    plant = Plant(rate=50e6, all_late=True)
    policy = plant.policy()
    for plant.now in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5):
        policy.look(plant.sight())
        plant.write(0.5 if plant.now < 2.0 else 0.0)  # it stops, and nobody knows yet
    plant.vacuums, plant._reported_dead = 1, 0.0
    plant.now = 2.7
    policy.look(plant.sight())
    given_by_it = policy.room_bytes
    assert given_by_it > 0
    for plant.now in (3.0, 4.0, 5.0, 6.0):
        plant._reported_at = plant.now  # nor does any counter change
        policy.look(plant.sight())
        assert policy.room_bytes <= given_by_it
    plant.write(1.0)  # to the end of the file
    plant.now = 6.5
    policy.look(plant.sight())
    assert policy.room_bytes == 0


def test_what_may_be_written_before_the_next_look_is_what_the_budget_leaves() -> None:
    plant = Plant(start_bytes=GIB)
    policy = plant.policy()
    assert policy.allowance_rows == math.inf, "nothing has been seen yet"
    policy.look(plant.sight())
    plant.write(2.0)
    plant.now = 2.0
    policy.look(plant.sight())
    left = BUDGET * GIB - 2.0 * plant.rate
    assert policy.allowance_rows == pytest.approx(left / ROW_BYTES, rel=0.01)


def test_hot_updates_and_small_tables_are_allowed_without_end() -> None:
    for plant in (Plant(hot=1.0), Plant(start_bytes=MINIMUM_BYTES - 1, rate=1e6)):
        policy = plant.policy()
        for plant.now in (0.0, 2.0, 4.0):
            plant.write(1.5)
            policy.look(plant.sight())
        assert policy.allowance_rows == math.inf


def test_a_vacuum_that_fails_is_tried_again_later_and_later() -> None:
    plant = Plant(rate=50e6)
    policy = plant.policy()
    starts = []
    while plant.now < 120:
        policy.look(plant.sight())
        verdict = policy.decide()
        if verdict.start:
            starts.append(plant.now)
            policy.started(plant.now, verdict)
            policy.ended(plant.now, failed=True)
        if not verdict.hold:
            plant.write(0.5)
        plant.now += 0.5
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert gaps[0] == pytest.approx(FIRST_RETRY_S, abs=0.6)
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 16 * FIRST_RETRY_S


def test_indexes_are_cleaned_rarely_when_that_is_dear_and_always_when_rows_are_narrow() -> None:
    dear, cheap = Plant(index_bytes=2 * GIB), Plant(index_bytes=GIB // 100)
    for plant in (dear, cheap):
        plant.run(plant.policy())
    assert dear.wholes <= 1
    assert cheap.wholes >= cheap.vacuums // 2
    narrow = GrowthPolicy(BUDGET, start_bytes=GIB, rows=GIB / 40)
    narrow.look(Plant().sight())
    assert narrow._is_whole(Plant(index_bytes=100 * GIB).sight())


def test_a_vacuum_is_gentle_while_that_is_fast_enough() -> None:
    slow = Plant(rate=2e6)
    slow.run(slow.policy())
    assert 0 in slow.gears
    fast = Plant(rate=100e6, vacuum_s=4.0)
    fast.run(fast.policy())
    assert 0 not in fast.gears
    assert len(GEARS) - 1 in fast.gears


def test_looks_are_frequent_where_the_budget_could_be_used_up_soon() -> None:
    assert Plant(start_bytes=64 * MIB).policy().next_look_s == SHORTEST_LOOK_S
    assert Plant(start_bytes=100 * GIB).policy().next_look_s == LONGEST_LOOK_S
    assert SHORTEST_LOOK_S < Plant(start_bytes=10 * GIB).policy().next_look_s < LONGEST_LOOK_S


def test_statistics_that_somebody_resets_do_no_harm() -> None:
    plant = Plant(rate=20e6)
    policy = plant.policy()
    policy.look(plant.sight())
    plant.write(5)
    plant.now = 5.0
    policy.look(plant.sight())
    dead = policy.dead_bytes
    plant._reported, plant._reported_at = (0.0, 0.0), 5.9
    plant.now = 6.0
    policy.look(plant.sight())
    assert policy.dead_bytes == pytest.approx(dead, rel=0.01)


@pytest.mark.parametrize("max_growth", [0.0, -0.1, math.inf, math.nan])
def test_a_budget_that_is_none_is_refused(max_growth: float) -> None:
    with pytest.raises(ValueError, match="max_growth"):
        GrowthPolicy(max_growth, start_bytes=GIB)


def test_an_unknown_number_of_rows_is_no_obstacle() -> None:
    plant = Plant()
    plant.run(GrowthPolicy(BUDGET, start_bytes=GIB, rows=-1))
    assert plant.most <= BUDGET + 0.02
