"""Events and numbers as people and programs read them."""

from __future__ import annotations

import io
import json

import pytest

from engine.events import (
    ChunkCancelled,
    ChunkCommitted,
    ChunkRetried,
    DeadlineLate,
    Draining,
    Event,
    JobFinished,
    JobOpened,
    LeaseLost,
    PaceChanged,
    StateChanged,
    Waiting,
)
from engine.flow.result import RunResult
from engine.model import JobState, Mode, Observation, Phase
from engine.telemetry import JsonLines, Level, finished_event, message, numbers, tee

OPENED = JobOpened(
    job="j", mode=Mode.COPY, source="a:1/x s.t", target="b:1/y s.u", resumed=False, rows_estimated=19_700_000, spans=10
)
CHUNK = ChunkCommitted(
    job="j",
    worker="w1",
    span=3,
    epoch=1,
    phase=Phase.MOVE,
    observation=Observation(rows=10, scanned=20, bytes=300, server_s=0.05),
    admit_s=0.0,
    read_s=0.001,
    move_s=0.06,
    next_rows=30,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9999, "9,999"), (12_400, "12.4 k"), (310_000, "310 k"), (19_700_000, "19.7 M"), (2.5e9, "2.50 G")],
)
def test_counts(value: float, text: str) -> None:
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.042, "0.042 s"), (2.34, "2.3 s"), (24, "24 s"), (119, "119 s"), (250, "4 min 10 s"),
        (240, "4 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h"),
    ],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (16384, "16.0 KiB"), (307_000_000, "293 MiB"), (2**41, "2.00 TiB")],
)
def test_sizes(value: float, text: str) -> None:
    assert numbers.size(value) == text


def test_a_share_is_never_whole_before_the_end() -> None:
    assert numbers.percent(0.9999) == "99 %"
    assert numbers.percent(1.0) == "100 %"


def test_slow_rates_keep_their_digits() -> None:
    assert numbers.per_second(0) == "0 rows/s"
    assert numbers.per_second(0.25) == "0.25 rows/s"
    assert numbers.per_second(310_000) == "310 k rows/s"


# -- sentences --------------------------------------------------------------------------------------------------------


def said(event: Event) -> str:
    found = message(event)
    return found[1] if found is not None else ""


def test_opening_names_both_ends() -> None:
    assert said(OPENED) == "j (new, copy): a:1/x s.t -> b:1/y s.u, about 19.7 M rows"


def test_what_holds_a_job_up_is_said_once() -> None:
    assert said(Waiting(job="j", reason="rate limit")) == "waiting for: rate limit"
    assert said(Waiting(job="j", reason="")) == "moving again"
    assert said(StateChanged(job="j", state=JobState.PAUSED, reason="disk")) == "paused: disk"
    assert said(Waiting(job="j", reason="paused: disk")) == "", "the change of state has said it"


def test_what_decides_the_pace_is_for_the_curious_unless_it_stops_the_job() -> None:
    slowed = PaceChanged(
        job="j", stage="steady", leads="read_latency", reason="read_latency 6.1ms of 5ms", limit_rows_per_s=3200.0
    )
    assert message(slowed) == (Level.VERBOSE, "pace: steady, 3,200 rows/s by read_latency 6.1ms of 5ms")
    alone = PaceChanged(job="j", stage="alone", leads="", reason="", limit_rows_per_s=None)
    assert message(alone) == (Level.VERBOSE, "pace: alone, no limit")
    held = PaceChanged(
        job="j", stage="held", leads="commit_latency", reason="commit_latency 31ms > 20ms", limit_rows_per_s=3200.0
    )
    assert message(held) == (Level.NORMAL, "held: commit_latency 31ms > 20ms")
    cancelled = ChunkCancelled(job="j", reason="lock_waits 1.2s > 1s")
    assert message(cancelled) == (Level.NORMAL, "cancelled a chunk, to be tried again: lock_waits 1.2s > 1s")
    late = DeadlineLate(job="j", reason="finish_by cannot be met")
    assert message(late) == (Level.NORMAL, "late: finish_by cannot be met")


def test_chunks_are_for_the_curious_only() -> None:
    assert message(CHUNK) is not None
    assert message(CHUNK)[0] is Level.DEBUG  # type: ignore[index]
    retried = ChunkRetried(job="j", worker="w1", span=1, epoch=1, sqlstate="40001", action="retry", delay_s=0.05)
    assert message(retried) == (Level.VERBOSE, "w1: retry after 40001, in 0.05 s")
    assert message(LeaseLost(job="j", worker="w1", span=1, epoch=1))[0] is Level.NORMAL  # type: ignore[index]
    assert "once more" in said(Draining(job="j", reason="interrupted"))


# -- lines ------------------------------------------------------------------------------------------------------------


def test_every_event_is_one_line_that_begins_with_its_name() -> None:
    stream = io.StringIO()
    lines = JsonLines(stream)
    lines(OPENED)
    lines(CHUNK)
    first, second = stream.getvalue().splitlines()
    assert first.startswith('{"event": "job.opened", ')
    assert json.loads(second)["observation"]["scanned"] == 20


def test_a_reader_that_went_away_does_not_fail_the_work() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    heard: list[Event] = []
    emit = tee(JsonLines(Gone()), heard.append)
    emit(OPENED)
    emit(CHUNK)
    assert heard == [OPENED, CHUNK]
    closed = io.StringIO()
    closed.close()
    JsonLines(closed)(OPENED)


# -- the last event ---------------------------------------------------------------------------------------------------


def result(rows: int, seconds: float, *, resumed: bool = False, state: JobState = JobState.DONE) -> RunResult:
    return RunResult("j", state, rows, 1000, 5, seconds, 0, resumed, False)


def test_the_rate_of_a_run_leaves_out_what_was_there_before() -> None:
    event = finished_event(result(1500, 2.0, resumed=True), rows_before=500)
    assert (event.rows, event.rows_per_s) == (1500, 500.0)
    assert finished_event(result(0, 0.0)).rows_per_s == 0


def test_a_job_that_was_done_says_that_nothing_was_moved() -> None:
    event = finished_event(result(1500, 0.1, resumed=True), rows_before=1500)
    assert said(event) == "j is done already (1,500 rows): nothing was moved"
    moved = finished_event(result(1500, 2.0))
    assert isinstance(moved, JobFinished)
    assert said(moved) == "j is done: 1,500 rows, 1000 B, 5 chunks; this run 2 s, 750 rows/s"
