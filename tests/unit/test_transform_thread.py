"""Functions that hang, and what else may go wrong between the engine's loop and a transform's thread."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import TransformFailed
from engine.transform import Batch, Transform, running, transform
from engine.transform.failures import shown_file
from engine.transform.running import Runner
from engine.transform.thread import LoopThread, ThreadEnded
from tests.support.batches import numbers, runner_of, written

HERE = shown_file(__file__)
ROOT = Path(__file__).parents[2]


def line_of(marker: str) -> str:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (found,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {marker}")]
    return f"{HERE}:{found} in"


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging function waits for, so that its thread ends with the test."""
    event = threading.Event()
    yield event
    event.set()
    deadline = time.monotonic() + 5
    while left := [thread for thread in threading.enumerate() if thread.name.startswith("transform ")]:
        assert time.monotonic() < deadline, f"threads are left: {left}"
        time.sleep(0.005)


def double(batch: Batch) -> dict[str, Any]:
    return {"b": batch["a"].values * 2}


async def started(function: Any, **options: Any) -> Runner:
    declared: Transform = transform(**({"reads": ["a"], "writes": ["b"]} | options))(function)
    runner = runner_of(declared)
    await runner.start()
    return runner


async def failure_of(runner: Runner, value: int = 1) -> str:
    with pytest.raises(TransformFailed) as caught:
        await runner.apply(numbers(value))
    return caught.value.message


# Time


async def test_a_function_that_hangs_is_shown_with_the_line_it_hangs_at(gate: threading.Event) -> None:
    def waits() -> None:
        gate.wait()  # hangs here

    def hangs(batch: Batch) -> dict[str, Any]:
        waits()
        return double(batch)

    runner = await started(hangs, time_limit_s=0.1)
    began = time.monotonic()
    message = await failure_of(runner)
    assert message == (
        f"transform {__name__}:hangs has not come back after 0.1 s; it is at {line_of('hangs here')} waits: gate.wait()"
        "  # hangs here"
    )
    assert await failure_of(runner) == message  # at once, and for whoever else asks
    assert await runner.close() is None
    assert time.monotonic() - began < 1.0, "nobody waits for it"


async def test_a_loop_without_end_is_ended() -> None:
    ended = threading.Event()

    def loops(batch: Batch) -> dict[str, Any]:
        try:
            while True:
                sum(range(100))  # loops here
        finally:
            ended.set()

    runner = await started(loops, time_limit_s=0.1)
    assert f"it is at {line_of('loops here')} loops: " in await failure_of(runner)
    await runner.close()
    assert await asyncio.to_thread(ended.wait, 5), "it uses no processor any more"


async def test_an_async_function_that_hangs_is_shown_with_the_line_it_waits_at(gate: threading.Event) -> None:
    async def looks_up() -> None:
        await asyncio.sleep(3600)  # waits here

    async def hangs(batch: Batch) -> dict[str, Any]:
        await looks_up()
        return double(batch)

    runner = await started(hangs, time_limit_s=0.1, concurrency=2)
    first, second = await asyncio.gather(failure_of(runner), failure_of(runner))
    assert first == second and f"it is at {line_of('waits here')} looks_up: await" in first
    await runner.close()


async def test_an_async_function_that_blocks_is_shown_where_it_blocks(gate: threading.Event) -> None:
    async def blocks(batch: Batch) -> dict[str, Any]:
        if batch["a"].values[0] == 1:
            gate.wait()  # blocks here
        else:
            await asyncio.sleep(3600)
        return double(batch)

    runner = await started(blocks, time_limit_s=0.1, concurrency=3)
    waits = asyncio.create_task(failure_of(runner, 2))
    await asyncio.sleep(0.01)
    assert f"it is at {line_of('blocks here')} blocks: " in await failure_of(runner, 1)
    await waits
    await runner.close()


async def test_the_time_that_a_batch_waits_for_its_turn_does_not_count() -> None:
    def slow(batch: Batch) -> dict[str, Any]:
        time.sleep(0.15)
        return double(batch)

    runner = await started(slow, time_limit_s=0.4)
    answers = await asyncio.gather(*(runner.apply(numbers(n)) for n in range(5)))
    assert [written(answer.piece) for answer in answers] == [[(0, 2 * n)] for n in range(5)]
    await runner.close()


async def test_a_call_that_nobody_could_watch_is_over_its_time_when_it_comes_back() -> None:
    def holds_everything(batch: Batch) -> dict[str, Any]:
        switch = sys.getswitchinterval()
        sys.setswitchinterval(100.0)  # as C code does that never lets go of the interpreter's lock
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass
        sys.setswitchinterval(switch)
        return double(batch)

    runner = await started(holds_everything, time_limit_s=0.1)
    assert "holds_everything" in (message := await failure_of(runner))
    assert "took 0." in message or "has not come back after 0.1 s" in message
    await runner.close()


async def test_a_call_is_not_over_its_time_by_a_standstill_of_the_whole_process(gate: threading.Event) -> None:
    def waits(batch: Batch) -> dict[str, Any]:
        assert gate.wait(10)
        return double(batch)

    runner = await started(waits, time_limit_s=1.0)
    asked = asyncio.create_task(runner.apply(numbers(1)))
    await asyncio.sleep(0.05)
    time.sleep(2.5)  # noqa: ASYNC251 - nobody watches
    await asyncio.sleep(0.1)
    gate.set()
    assert (await asked).rows == 1
    await runner.close()


async def test_what_comes_back_too_late_goes_nowhere(gate: threading.Event) -> None:
    def hangs(batch: Batch) -> dict[str, Any]:
        gate.wait()
        return double(batch)

    runner = await started(hangs, time_limit_s=0.05)
    await failure_of(runner)
    gate.set()
    await asyncio.sleep(0.05)
    assert "has not come back" in await failure_of(runner, 7)
    await runner.close()


# Whoever asked has gone


async def test_a_batch_that_was_given_up_does_not_answer_for_the_next(gate: threading.Event) -> None:
    entered = threading.Event()

    def waits(batch: Batch) -> dict[str, Any]:
        if batch["a"].values[0] == 1:
            entered.set()
            gate.wait()
        return double(batch)

    runner = await started(waits)
    given_up = asyncio.create_task(runner.apply(numbers(1)))
    await asyncio.to_thread(entered.wait)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    following = [asyncio.create_task(runner.apply(numbers(n))) for n in (2, 3)]
    await asyncio.sleep(0.01)
    gate.set()
    assert [written((await task).piece) for task in following] == [[(0, 4)], [(0, 6)]]
    await runner.close()


async def test_the_next_batch_notices_that_one_given_up_hangs(gate: threading.Event) -> None:
    entered = threading.Event()

    def hangs(batch: Batch) -> dict[str, Any]:
        entered.set()
        gate.wait()
        return double(batch)

    runner = await started(hangs, time_limit_s=0.2)
    given_up = asyncio.create_task(runner.apply(numbers(1)))
    await asyncio.to_thread(entered.wait)
    given_up.cancel()
    assert "has not come back after 0.2 s" in await failure_of(runner, 2)
    await runner.close()


async def test_an_async_function_hears_that_its_batch_was_given_up() -> None:
    heard, entered = threading.Event(), threading.Event()

    async def waits(batch: Batch) -> dict[str, Any]:
        if batch["a"].values[0] == 1:
            entered.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                heard.set()
                raise
        return double(batch)

    runner = await started(waits)
    given_up = asyncio.create_task(runner.apply(numbers(1)))
    await asyncio.to_thread(entered.wait)
    given_up.cancel()
    assert await asyncio.to_thread(heard.wait, 5)
    assert written((await runner.apply(numbers(2))).piece) == [(0, 4)]
    await runner.close()


async def test_the_search_for_rows_ends_with_whoever_asked() -> None:
    calls = 0
    entered = threading.Event()

    def raises(batch: Batch) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls > 3:
            entered.set()
            time.sleep(0.01)
        if batch.rows > 1 or batch["a"].values[0] % 2:
            raise ValueError
        return double(batch)

    runner = await started(raises)
    runner.most_rejected = 10_000
    given_up = asyncio.create_task(runner.apply(numbers(*range(1000))))
    await asyncio.to_thread(entered.wait)
    given_up.cancel()
    assert (await runner.apply(numbers(2))).rows == 1
    assert calls < 100
    await runner.close()


async def test_closing_does_not_wait_for_ever_for_a_batch_that_was_given_up(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "TEAR_DOWN_LIMIT_S", 0.1)
    monkeypatch.setattr(running, "THREAD_ENDS_WITHIN_S", 0.1)
    entered = threading.Event()

    def hangs(batch: Batch) -> dict[str, Any]:
        entered.set()
        gate.wait()
        return double(batch)

    torn_down: list[Any] = []
    runner = await started(hangs, teardown=torn_down.append)
    given_up = asyncio.create_task(runner.apply(numbers(1)))
    await asyncio.to_thread(entered.wait)
    given_up.cancel()
    began = time.monotonic()
    failed = await runner.close()
    assert failed is not None and "had no turn: a batch is not done yet" in failed.message
    assert time.monotonic() - began < 2.0 and not torn_down


async def test_closing_ends_a_batch_without_end_that_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "THREAD_ENDS_WITHIN_S", 0.1)
    entered, ended = threading.Event(), threading.Event()

    def loops(batch: Batch) -> dict[str, Any]:
        try:
            entered.set()
            while True:
                sum(range(100))
        finally:
            ended.set()

    runner = await started(loops)
    given_up = asyncio.create_task(runner.apply(numbers(1)))
    await asyncio.to_thread(entered.wait)
    given_up.cancel()
    assert await runner.close() is None
    assert await asyncio.to_thread(ended.wait, 5)


# Set-up and tear-down


async def test_a_set_up_that_raises_is_shown_with_its_line() -> None:
    def setup() -> None:
        raise OSError("pass" + "word")  # the set-up raises here

    with pytest.raises(TransformFailed) as caught:
        await started(double, setup=setup)
    message = caught.value.message
    assert f"the set-up of transform {__name__}:double raised OSError at {line_of('the set-up raises here')}" in message
    assert "password" not in message


async def test_a_set_up_that_hangs_is_shown_with_its_line(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SET_UP_LIMIT_S", 0.1)

    def setup() -> None:
        gate.wait()  # the set-up hangs here

    with pytest.raises(TransformFailed, match="has not come back after") as caught:
        await started(double, setup=setup, time_limit_s=0.05)
    assert line_of("the set-up hangs here") in caught.value.message


async def test_a_start_that_is_given_up_ends_a_set_up_without_end() -> None:
    entered, ended = threading.Event(), threading.Event()

    def setup() -> None:
        try:
            entered.set()
            while True:
                sum(range(100))
        finally:
            ended.set()

    starting = asyncio.create_task(started(double, setup=setup))
    await asyncio.to_thread(entered.wait)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await asyncio.to_thread(ended.wait, 5)


async def test_a_set_up_may_take_longer_than_a_batch() -> None:
    runner = await started(double, setup=lambda: time.sleep(0.2), time_limit_s=0.05)
    assert (await runner.apply(numbers(1))).rows == 1
    await runner.close()


async def test_a_tear_down_that_raises_is_told_and_stops_nothing() -> None:
    def teardown(state: Any) -> None:
        raise ValueError("pass" + "word")  # the tear-down raises here

    runner = await started(double, teardown=teardown)
    failed = await runner.close()
    assert failed is not None and "password" not in failed.message
    assert f"the tear-down of transform {__name__}:double raised ValueError at" in failed.message
    assert line_of("the tear-down raises here") in failed.message


async def test_a_tear_down_that_hangs_is_told_and_stops_nothing(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "TEAR_DOWN_LIMIT_S", 0.1)
    runner = await started(double, teardown=lambda _: gate.wait())
    failed = await runner.close()
    assert failed is not None and "the tear-down of" in failed.message and "has not come back" in failed.message


async def test_closing_twice_or_without_a_start_is_nothing() -> None:
    runner = await started(double)
    assert await runner.close() is None and await runner.close() is None
    assert await runner_of(transform(reads=["a"], writes=["b"])(double)).close() is None


# What is left behind


async def test_a_task_left_behind_is_ended_with_the_worker() -> None:
    ended = threading.Event()

    async def for_ever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    tasks: list[Any] = []

    async def leaves(batch: Batch) -> dict[str, Any]:
        tasks.append(asyncio.create_task(for_ever()))
        return double(batch)

    runner = await started(leaves)
    await runner.apply(numbers(1))
    assert await runner.close() is None
    assert ended.is_set()


async def test_an_error_that_nobody_awaited_is_told_at_the_end_and_not_in_its_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def fails() -> None:
        raise ValueError("pass" + "word")  # nobody awaits this

    async def leaves(batch: Batch) -> dict[str, Any]:
        tasks = [asyncio.create_task(fails())]
        tasks.clear()
        await asyncio.sleep(0.01)
        return double(batch)

    runner = await started(leaves)
    await runner.apply(numbers(1))
    gc.collect()
    failed = await runner.close()
    assert failed is not None
    assert f"left behind raised ValueError at {line_of('nobody awaits this')} fails" in failed.message
    shown = capfd.readouterr()
    assert "password" not in failed.message + shown.out + shown.err


async def test_a_task_that_exits_ends_the_thread_and_not_the_process() -> None:
    async def exits() -> None:
        sys.exit(3)

    async def leaves(batch: Batch) -> dict[str, Any]:
        task = asyncio.create_task(exits())
        await asyncio.sleep(3600)
        return {"b": task}

    runner = await started(leaves)
    message = await failure_of(runner)
    assert "has ended its thread: SystemExit at" in message
    assert await failure_of(runner) == message
    await runner.close()


async def test_what_runs_in_other_threads_of_the_loop_is_awaited_as_ever() -> None:
    async def elsewhere(batch: Batch) -> dict[str, Any]:
        values = await asyncio.gather(*(asyncio.to_thread(lambda: batch["a"].values * 2) for _ in range(50)))
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return {"b": values[0]}

    runner = await started(elsewhere)
    assert written((await runner.apply(numbers(4))).piece) == [(0, 8)]
    await runner.close()


async def test_many_workers_may_begin_and_end() -> None:
    for _ in range(20):
        runner = await started(double)
        assert (await runner.apply(numbers(1))).rows == 1
        assert await runner.close() is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("transform ")]


# The thread by itself


async def test_a_thread_that_is_forced_while_idle_has_nothing_to_tell() -> None:
    strays: list[BaseException] = []
    for _ in range(10):  # wherever in the loop it is then
        thread = LoopThread("transform idle", strays.append)
        thread.start()
        assert await _value_of(thread, 7) == 7
        thread.force()
        thread.end()
        assert await thread.ended(5.0) and not strays


async def test_a_thread_that_is_forced_at_its_very_end_still_closes_its_loop() -> None:
    spinning = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def stays() -> None:
        loops.append(asyncio.get_running_loop())
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            spinning.set()
            while True:
                sum(range(100))

    tasks: list[asyncio.Task[None]] = []

    async def leave() -> None:
        tasks.append(asyncio.create_task(stays()))
        await asyncio.sleep(0)

    thread = LoopThread("transform leaving", lambda error: None)
    thread.start()
    errand = thread.submit(leave)
    assert await errand.waited(5.0)
    thread.drop(errand)
    thread.end()
    await asyncio.to_thread(spinning.wait)
    thread.force()
    assert await thread.ended(5.0)
    assert loops[0].is_closed()


async def test_nothing_comes_of_what_is_given_to_a_thread_that_has_ended() -> None:
    thread = LoopThread("transform ended", lambda error: None)
    thread.start()
    thread.end()
    with pytest.raises(ThreadEnded):
        await _value_of(thread, 7)
    assert await thread.ended(5.0)


async def _value_of(thread: LoopThread, value: int) -> int:
    async def give() -> int:
        return value

    errand = thread.submit(give)
    assert await errand.waited(5.0)
    thread.drop(errand)
    return errand.result


# The process

PROGRAM = """
import asyncio, sys, threading, time
from engine.errors import TransformFailed
from engine.transform import transform
from tests.support.batches import numbers, runner_of

def hangs(batch):
    {hangs}

async def hangs_elsewhere(batch):
    await asyncio.to_thread(time.sleep, 600)

async def main():
    runner = runner_of(transform(reads=["a"], writes=["b"], time_limit_s={limit_s})({function}))
    await runner.start()
    print("started", flush=True)
    try:
        await runner.apply(numbers(1))
    except TransformFailed as error:
        print("failed", error.message, flush=True)
    await runner.close()

asyncio.run(main())
print("ended", flush=True)
"""


@pytest.mark.parametrize(
    ("function", "hangs"),
    [
        ("hangs", "time.sleep(600)"),
        ("hangs", "threading.Event().wait()"),
        ("hangs", "\n    while True:\n        try:\n            time.sleep(600)\n        except BaseException: pass"),
        ("hangs_elsewhere", "pass"),
    ],
)
def test_a_process_ends_although_a_function_hangs(function: str, hangs: str) -> None:
    program = PROGRAM.format(function=function, hangs=hangs, limit_s=0.1)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "failed transform __main__:" in done.stdout and done.stdout.endswith("ended\n")
    assert done.stderr == ""


def test_a_ctrl_c_reaches_the_process_and_not_the_function() -> None:
    program = PROGRAM.format(function="hangs", hangs="time.sleep(600)", limit_s=45)
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        _out, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
