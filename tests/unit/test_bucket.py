"""The token bucket: what it grants, to whom, when, and what it says about waiting."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import ManualClock
from engine.pace.bucket import DEBT_S, PUNCTUALITY_S, RATE_LIMIT, Admission, BucketCore, TokenBucket

# ------------------------------------------------------------------------------------------------ what is granted

steps = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.floats(0, 5)),
        st.tuples(st.just("take"), st.floats(0, 5000)),
        st.tuples(st.just("settle"), st.floats(0, 1)),
        st.tuples(st.just("rate"), st.floats(1, 2000)),
        st.tuples(st.just("hold"), st.just(0.0)),
        st.tuples(st.just("release"), st.just(0.0)),
    ),
    max_size=60,
)


@given(rate=st.floats(1, 2000), script=steps)
def test_no_interval_is_granted_more_than_its_rate_and_one_capacity_and_one_chunk(
    rate: float, script: list[tuple[str, float]]
) -> None:
    now = 0.0
    core = BucketCore(rate, now)
    grants: list[list[float]] = []  # [time, rate integral at that time, cost]
    open_chunks: list[tuple[int, list[float]]] = []
    integral, fastest, largest = 0.0, rate, 0.0
    for step, value in script:
        if step == "pass":
            now += value
            integral += rate * value
        elif step == "take":
            ready = core.ready_in(now)
            if ready < 60:  # a worker that waits its turn
                now += ready
                integral += rate * ready
                grant = [now, integral, value]
                open_chunks.append((core.take(now, value), grant))
                grants.append(grant)
                largest = max(largest, value)
        elif step == "settle" and open_chunks:
            era, grant = open_chunks.pop(0)
            core.settle(now, era, grant[2], grant[2] * value)
            grant[2] *= value
        elif step == "rate":
            rate = value
            fastest = max(fastest, rate)
            core.set_rate(now, rate)
        elif step == "hold":
            core.hold(now, "held")
        elif step == "release":
            core.release(now)
    capacity = max(largest, fastest)
    for first, last in itertools.combinations_with_replacement(range(len(grants)), 2):
        granted = sum(grant[2] for grant in grants[first : last + 1])
        refilled = grants[last][1] - grants[first][1]
        assert granted <= refilled + capacity + largest + fastest * PUNCTUALITY_S * (last - first + 1) + 1e-6


@given(
    rate=st.floats(1, 2000),
    chunks=st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 5000), st.floats(0, 3)), max_size=40),
)
def test_the_bound_holds_for_chunks_that_cost_more_than_estimated(
    rate: float, chunks: list[tuple[float, float, float]]
) -> None:
    """One worker: its surplus is part of its one chunk, whatever the estimate was."""
    now = 0.0
    core = BucketCore(rate, now)
    grants: list[tuple[float, float]] = []
    for estimate, real, pause_s in chunks:
        now += core.ready_in(now)
        era = core.take(now, estimate)
        grants.append((now, real))
        now += pause_s
        core.settle(now, era, estimate, real)
    largest = max((max(estimate, real) for estimate, real, _ in chunks), default=0.0)
    for first, last in itertools.combinations_with_replacement(range(len(grants)), 2):
        granted = sum(cost for _, cost in grants[first : last + 1])
        elapsed = grants[last][0] - grants[first][0]
        slack = rate * PUNCTUALITY_S * len(grants) + 1e-6
        assert granted <= rate * elapsed + max(largest, rate) + largest + slack


@pytest.mark.parametrize("rate", [10.0, 777.0, 20_000.0, 1e6])
@pytest.mark.parametrize("workers", [1, 4])
async def test_the_rate_over_60_s_is_right_within_a_percent(rate: float, workers: int) -> None:
    clock = ManualClock()
    bucket = TokenBucket(rate, clock)
    rng = random.Random(7)
    moved: list[tuple[float, float]] = []

    async def work() -> None:
        while True:
            estimate = rate * rng.uniform(0.01, 0.2)
            admission = await bucket.acquire(estimate)
            moved.append((clock.now(), real := estimate * rng.uniform(0.6, 1.3)))
            await clock.sleep(rng.uniform(0.001, 0.02))
            admission.settle(real)

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    await clock.advance(5)
    start = clock.now()
    await clock.advance(60)
    await stop(tasks)
    granted = sum(cost for at, cost in moved if at >= start)
    assert granted == pytest.approx(rate * 60, rel=0.01)


async def test_a_limit_smaller_than_a_chunk_holds_as_well() -> None:
    clock = ManualClock()
    bucket = TokenBucket(10.0, clock)
    admitted_at = []
    for _ in range(4):
        task = asyncio.create_task(bucket.acquire(50))
        await clock.advance(30)
        await task
        admitted_at.append(task.result().waited_s)
    assert admitted_at[0] == 0  # saved up: nothing; but a first chunk never waits
    for _ in range(4):
        (await acquired(bucket, clock, 50)).settle(50)
    start = clock.now()
    for _ in range(10):
        (await acquired(bucket, clock, 50)).settle(50)
    assert clock.now() - start == pytest.approx(50, rel=0.001)


async def test_no_size_is_refused_and_its_debt_is_waited_out() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    assert (await bucket.acquire(100_000)).waited_s == 0
    assert bucket.try_acquire(1) is None
    await acquired(bucket, clock, 1)
    assert clock.now() == pytest.approx(1000)


async def test_an_idle_bucket_saves_up_one_second_and_no_more() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await clock.advance(3600)
    granted = 0
    while bucket.try_acquire(10) is not None:
        granted += 10
    assert granted == 110  # a capacity of 100, and one chunk from a balance of nothing


async def test_what_a_chunk_did_not_use_is_there_for_the_next() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    admission = await bucket.acquire(1000)
    waiter = asyncio.create_task(bucket.acquire(1))
    await clock.advance(1)
    assert not waiter.done()
    admission.settle(50)
    await clock.advance(0)
    assert waiter.done()


async def test_a_chunk_is_settled_once() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    admission = await bucket.acquire(100)
    admission.settle(100)
    admission.settle(0)  # a `finally` that refunds what was not settled
    assert bucket.try_acquire(1) is None


def test_the_floor_limits_what_settling_adds() -> None:
    core = BucketCore(1000.0, 0.0)
    core.hold(0.0, "warm")
    core.release(10.0)
    eras = [core.take(10.0, 0.0) for _ in range(10)]  # ten chunks run, each estimated at nothing
    for era in eras:
        core.settle(10.0, era, 0.0, 1500.0)
    assert core.balance(10.0) == -DEBT_S * 1000.0


def test_the_floor_is_never_a_refill() -> None:
    core = BucketCore(1000.0, 0.0)
    small = core.take(0.0, 0.0)
    core.take(0.0, 50_000.0)
    for rate in (10.0, 5000.0, 1.0):
        core.set_rate(0.0, rate)
        assert core.balance(0.0) == -50_000.0
    core.settle(0.0, small, 0.0, 10.0)
    assert core.balance(0.0) == -50_000.0


def test_a_chunk_admitted_without_a_limit_is_no_gift_under_one() -> None:
    core = BucketCore(None, 0.0)
    era = core.take(0.0, 1e6)
    core.set_rate(0.0, 10.0)
    core.settle(0.0, era, 1e6, 0.0)
    assert core.balance(0.0) == 0.0


def test_a_clock_that_steps_back_gives_and_takes_nothing() -> None:
    core = BucketCore(100.0, 50.0)
    core.take(50.0, 100.0)
    assert core.balance(10.0) == -100.0
    assert core.balance(50.5) == -50.0


# ------------------------------------------------------------------------------------------------- to whom, when


@given(
    script=st.lists(
        st.one_of(
            st.tuples(st.just("acquire"), st.floats(0, 500)),
            st.tuples(st.just("cancel"), st.integers(0, 20)),
            st.tuples(st.just("settle"), st.floats(0, 500)),
            st.tuples(st.just("rate"), st.one_of(st.none(), st.floats(1, 1000))),
            st.tuples(st.just("hold"), st.just(0)),
            st.tuples(st.just("release"), st.just(0)),
            st.tuples(st.just("advance"), st.sampled_from([0.001, 0.5, 3.0])),
            st.tuples(st.just("turn"), st.integers(1, 3)),  # let the loop run, a little
        ),
        max_size=40,
    )
)
def test_nobody_waits_who_could_start_whatever_happens_in_whatever_order(script: list[tuple[str, float]]) -> None:
    asyncio.run(play(script))


async def play(script: list[tuple[str, float]]) -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    charged: list[float] = []
    take = bucket._core.take
    # The order of charging, not of waking: a newcomer who need not wait may run before one who was just admitted.
    bucket._core.take = lambda now, cost: charged.append(cost) or take(now, cost)
    admissions: dict[int, Admission] = {}
    tasks: list[asyncio.Task[None]] = []
    spent = 0.0

    async def ask(number: int, cost: float) -> None:
        admissions[number] = await bucket.acquire(int(cost) + number / 1024)  # the fraction tells who it was

    for step, value in script:
        if step == "acquire":
            tasks.append(asyncio.create_task(ask(len(tasks), value)))
        elif step == "cancel" and tasks:
            tasks[int(value) % len(tasks)].cancel()
        elif step == "settle" and admissions:
            admissions.popitem()[1].settle(value)
            spent += value
        elif step == "rate":
            bucket.set_rate(value)
        elif step == "hold":
            bucket.hold("held")
        elif step == "release":
            bucket.release()
        elif step == "advance":
            await clock.advance(value)
        elif step == "turn":
            for _ in range(int(value)):
                await asyncio.sleep(0)
    await clock.advance(0)
    if bucket.waiting and bucket.reason != "held":
        assert bucket.try_acquire(0) is None
        assert bucket._core.ready_in(clock.now()) > 0
    assert bucket.waiting == sum(not task.done() for task in tasks)
    assert_in_turn(charged)

    bucket.release()
    bucket.set_rate(100.0)
    await clock.advance(1000)
    assert bucket.waiting == 0
    assert all(task.done() for task in tasks)
    assert_in_turn(charged)
    granted = spent + sum(admission.estimate for admission in admissions.values())
    assert bucket.take_usage().granted == pytest.approx(granted), "a cancelled chunk is refunded, and nobody else"
    assert len(asyncio.all_tasks()) == 1, "no timer outlives the last waiter"


def assert_in_turn(charged: list[float]) -> None:
    turns = [cost % 1 for cost in charged if cost]
    assert turns == sorted(turns), "first come, first served"


async def test_a_big_chunk_is_not_overtaken_by_small_ones() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await bucket.acquire(100)
    order: list[float] = []

    async def ask(cost: float) -> None:
        await bucket.acquire(cost)
        order.append(cost)

    tasks = [asyncio.create_task(ask(cost)) for cost in (10_000, 1, 2, 3)]
    await clock.advance(0.5)
    assert bucket.try_acquire(0) is None  # not even past a queue that costs nothing
    await clock.advance(200)
    await asyncio.gather(*tasks)
    assert order == [10_000, 1, 2, 3]


async def test_a_new_rate_reaches_the_waiting_head_at_once() -> None:
    clock = ManualClock()
    bucket = TokenBucket(1.0, clock)
    await bucket.acquire(1000)
    waiter = asyncio.create_task(bucket.acquire(1))
    await clock.advance(10)
    bucket.set_rate(990.0)
    await clock.advance(1.001)
    assert waiter.done()


async def test_a_lower_rate_makes_the_waiting_head_wait_longer() -> None:
    clock = ManualClock()
    bucket = TokenBucket(1000.0, clock)
    await bucket.acquire(1000)
    waiter = asyncio.create_task(bucket.acquire(1))
    await clock.advance(0.5)
    bucket.set_rate(100.0)
    await clock.advance(4.9)
    assert not waiter.done()
    await clock.advance(0.2)
    assert waiter.done()


async def test_no_limit_lets_all_go() -> None:
    clock = ManualClock()
    bucket = TokenBucket(1.0, clock)
    waiters = [asyncio.create_task(bucket.acquire(1000)) for _ in range(5)]
    await clock.advance(1)
    bucket.set_rate(None)
    await clock.advance(0)
    assert all(waiter.done() for waiter in waiters)


async def test_without_a_limit_nobody_is_suspended() -> None:
    bucket = TokenBucket(None, ManualClock())
    acquiring = bucket.acquire(1e12)
    with pytest.raises(StopIteration) as finished:
        acquiring.send(None)  # runs to its end without a loop ever seeing it
    assert isinstance(finished.value.value, Admission)


async def test_a_waiter_admitted_and_cancelled_in_one_turn_is_refunded() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await bucket.acquire(100)
    first = asyncio.create_task(bucket.acquire(5000))
    second = asyncio.create_task(bucket.acquire(1))
    await clock.advance(0.5)
    bucket.set_rate(None)
    await asyncio.sleep(0)  # the timer has admitted both; neither task has run since
    bucket.set_rate(100.0)
    first.cancel()
    await clock.advance(0.1)
    assert first.cancelled()
    assert second.done()
    assert bucket.take_usage().granted == 101


async def test_the_refund_of_a_cancelled_chunk_wakes_the_next_one() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await bucket.acquire(100)
    first = asyncio.create_task(bucket.acquire(5000))
    following = asyncio.create_task(bucket.acquire(1))
    await clock.advance(0.5)
    take = bucket._core.take

    def take_and_cancel(now: float, cost: float) -> int:
        asyncio.get_running_loop().call_soon(first.cancel)  # after the admission, before its task runs
        return take(now, cost)

    bucket._core.take = take_and_cancel
    await clock.advance(0.6)
    assert first.cancelled()
    assert following.done()


async def test_a_waiter_cancelled_just_before_its_turn_is_passed_over() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await bucket.acquire(100)
    first, second = (asyncio.create_task(bucket.acquire(cost)) for cost in (5, 7))
    await clock.advance(0.5)
    bucket.set_rate(None)  # the timer is due, and
    first.cancel()  # runs before the cancelled task does
    await clock.advance(0)
    assert first.cancelled()
    assert second.done()
    assert bucket.take_usage().granted == 107


async def test_a_newcomer_does_not_slip_in_between_a_release_and_those_it_releases() -> None:
    bucket = TokenBucket(None, ManualClock())
    bucket.hold("lag")
    waiter = asyncio.create_task(bucket.acquire(1))
    await asyncio.sleep(0)
    bucket.release()
    assert bucket.try_acquire(1) is None
    await waiter
    assert bucket.try_acquire(1) is not None


async def test_cancelling_the_head_lets_the_next_one_follow_in_its_own_time() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await bucket.acquire(100)
    head = asyncio.create_task(bucket.acquire(5000))
    following = asyncio.create_task(bucket.acquire(1))
    await clock.advance(0.5)
    head.cancel()
    await clock.advance(0.6)
    assert following.done()


async def test_a_broken_clock_fails_the_waiters_instead_of_forgetting_them() -> None:
    class Broken(ManualClock):
        async def sleep(self, seconds: float) -> None:
            raise OSError("no time left")

    bucket = TokenBucket(1.0, Broken())
    await bucket.acquire(10)
    with pytest.raises(OSError, match="no time left"):
        await bucket.acquire(10)
    assert bucket.waiting == 0


# ------------------------------------------------------------------------------------------------ holding, waiting


async def test_a_hold_admits_nothing_and_its_end_admits_at_once() -> None:
    clock = ManualClock()
    bucket = TokenBucket(None, clock)
    bucket.hold("replication_lag")
    waiter = asyncio.create_task(bucket.acquire(1))
    await clock.advance(1e6)
    assert not waiter.done()
    assert bucket.reason == "replication_lag"
    bucket.release()
    await clock.advance(0)
    assert waiter.done()
    assert bucket.reason == ""


async def test_the_end_of_a_hold_is_no_burst() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await clock.advance(10)  # a second of rate is saved up
    bucket.hold("window")
    await clock.advance(10)
    bucket.release()
    assert bucket.try_acquire(10) is not None
    assert bucket.try_acquire(10) is None


async def test_debt_is_paid_off_during_a_hold() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await bucket.acquire(1000)
    bucket.hold("window")
    await clock.advance(10)
    bucket.release()
    assert bucket.try_acquire(1) is not None


async def test_waiting_is_counted_for_each_that_waits_by_reason() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await bucket.acquire(200)
    await clock.advance(0.5)  # nobody waits: not counted
    waiters = [asyncio.create_task(bucket.acquire(0)) for _ in range(3)]  # three workers
    await clock.advance(1)
    assert bucket.reason == RATE_LIMIT
    bucket.hold("commit_latency")
    await clock.advance(4)
    assert bucket.waits == {RATE_LIMIT: pytest.approx(3), "commit_latency": pytest.approx(12)}
    bucket.hold("window")
    await clock.advance(2)
    bucket.release()
    await clock.advance(10)
    await asyncio.gather(*waiters)
    assert bucket.waits == {
        RATE_LIMIT: pytest.approx(3),
        "commit_latency": pytest.approx(12),
        "window": pytest.approx(6),
    }


async def test_usage_tells_the_controller_whether_the_limit_was_binding() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100.0, clock)
    await bucket.acquire(100)
    waiter = asyncio.create_task(bucket.acquire(50))
    await clock.advance(4)
    usage = bucket.take_usage()
    assert waiter.done()
    assert usage.elapsed_s == pytest.approx(4)
    assert usage.limited_fraction == pytest.approx(0.25)
    assert usage.granted == 150
    assert usage.granted_per_s == pytest.approx(37.5)

    bucket.hold("lag")
    waiter = asyncio.create_task(bucket.acquire(1))
    await clock.advance(2)
    usage = bucket.take_usage()
    assert (usage.limited_s, usage.held_s, usage.granted) == (0, pytest.approx(2), 0)
    assert bucket.take_usage().limited_fraction == 0  # an empty interval
    await stop([waiter])


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="hold the bucket"):
        TokenBucket(rate, ManualClock())


@pytest.mark.parametrize("cost", [-1.0, math.inf, math.nan])
async def test_a_cost_that_is_none_is_refused(cost: float) -> None:
    bucket = TokenBucket(10.0, ManualClock())
    with pytest.raises(ValueError, match="cost"):
        await bucket.acquire(cost)
    with pytest.raises(ValueError, match="cost"):
        (await bucket.acquire(1)).settle(cost)
    assert bucket.waiting == 0


@pytest.mark.parametrize("rate", [None, 1e6])
async def test_admission_costs_less_than_20_microseconds(rate: float | None) -> None:
    bucket = TokenBucket(rate, ManualClock())

    async def timed(chunks: int = 1000) -> float:
        start = time.perf_counter()
        for _ in range(chunks):
            (await bucket.acquire(1000)).settle(0)
        return (time.perf_counter() - start) / chunks

    assert min([await timed() for _ in range(5)]) < 20e-6


# -------------------------------------------------------------------------------------------------------- helpers


async def acquired(bucket: TokenBucket, clock: ManualClock, cost: float) -> Admission:
    """Let time pass until the bucket admits."""
    task = asyncio.create_task(bucket.acquire(cost))
    await asyncio.sleep(0)
    while not task.done():
        await clock.advance(max(bucket._core.ready_in(clock.now()), 0.0))
    return task.result()


async def stop(tasks: list[asyncio.Task[None]] | list[asyncio.Task[Admission]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
