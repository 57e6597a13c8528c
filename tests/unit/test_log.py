"""The log: one line per change, with what a machine wants to find in it, and no flood from a reason that flaps."""

from __future__ import annotations

import io
import json
import logging
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog

from engine import events
from engine.clock import ManualClock
from engine.events import (
    ChunkCancelled,
    ChunkCommitted,
    ChunkFound,
    ChunkRetried,
    DeadlineLate,
    Event,
    JobFinished,
    LeaseLost,
    PaceChanged,
    PhaseChanged,
    RowQuarantined,
    SpanClaimed,
    StateChanged,
    Waiting,
    Warned,
)
from engine.model import JobState, Observation, Phase
from engine.telemetry.entries import HELD, MOVING, PROGRESS, STOPPED, Entry, Weight, ended, entry
from engine.telemetry.log import Log
from engine.telemetry.narrator import CALM_S, Narrator

ROOT = Path(__file__).parents[2]
MOMENT = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
CHUNK = ChunkCommitted(
    job="j",
    worker="w1",
    span=3,
    epoch=7,
    phase=Phase.MOVE,
    observation=Observation(rows=10, scanned=20, bytes=300, server_s=0.05),
    admit_s=0.0,
    read_s=0.001,
    move_s=0.06,
    next_rows=30,
)
FINISHED = JobFinished(
    job="j", state=JobState.DONE, rows=10, bytes=20, chunks=1, seconds=1.0, rows_per_s=10.0, retries=0, quarantined=0,
    resumed=False, verified=None,
)  # fmt: skip


def held(reason: str = "commit_latency 31ms > 20ms", leads: str = "commit_latency", job: str = "j") -> PaceChanged:
    return PaceChanged(job=job, stage="held", leads=leads, reason=reason, limit_rows_per_s=3200.0)


def steady(leads: str = "", job: str = "j") -> PaceChanged:
    return PaceChanged(job=job, stage="steady", leads=leads, reason=leads, limit_rows_per_s=None)


# -- lines ------------------------------------------------------------------------------------------------------------


def lines(*entries: Entry, least: int = logging.INFO, wall: datetime = MOMENT, **bound: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    log = Log(lambda: stream, least=least, wall=lambda: wall)
    if bound:
        log.bind(**bound)
    for one in entries:
        log.write(one)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def line(event: Event, least: int = logging.DEBUG) -> dict[str, Any]:
    found = entry(event)
    assert found is not None
    return lines(found, least=least)[0]


def test_a_line_begins_with_when_how_grave_what_and_the_sentence() -> None:
    found = line(StateChanged(job="j", state=JobState.PAUSED, reason="disk is filling"))
    assert [*found.items()] == [
        ("timestamp", "2026-03-04T05:06:07.890Z"),
        ("level", "info"),
        ("event", "job.state"),
        ("message", "paused: disk is filling"),
        ("job", "j"),
        ("state", "paused"),
        ("reason", "disk is filling"),
    ]


def test_times_are_in_utc_whatever_the_clock_on_the_wall_says() -> None:
    wall = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert lines(Entry(event="a.b", message="m"), wall=wall)[0]["timestamp"] == "2026-03-04T05:06:07.890Z"


@pytest.mark.parametrize(
    ("event", "level", "name"),
    [
        (StateChanged(job="j", state=JobState.RUNNING), "info", "job.state"),
        (StateChanged(job="j", state=JobState.FAILED, reason="a guard"), "error", "job.state"),
        (StateChanged(job="j", state=JobState.DONE), "info", "job.state"),
        (PhaseChanged(job="j", phase=Phase.VERIFY), "info", "job.phase"),
        (PhaseChanged(job="j", phase=Phase.SWEEP), "info", "job.phase"),
        (held(), "info", "job.held"),
        (steady("read_latency"), "debug", "pace.changed"),
        (Waiting(job="j", reason="rate limit"), "info", "job.waiting"),
        (Waiting(job="j", reason=""), "info", "job.moving"),
        (LeaseLost(job="j", worker="w1", span=3, epoch=7), "warning", "lease.lost"),
        (Warned(job="j", message="VACUUM failed"), "warning", "job.warning"),
        (DeadlineLate(job="j", reason="finish_by"), "warning", "deadline.late"),
        (RowQuarantined(job="j", worker="w1", span=3, epoch=7, sqlstate="23514"), "warning", "row.quarantined"),
        (ChunkRetried(job="j", worker="w", span=1, epoch=1, sqlstate="40001", action="retry", delay_s=0.1), "debug", "chunk.retried"),
        (ChunkFound(job="j", worker="w1", span=3, epoch=7, phase=Phase.MOVE, rows=10), "debug", "chunk.found"),
        (CHUNK, "debug", "chunk.committed"),
        (FINISHED, "info", "job.finished"),
    ],
)  # fmt: skip
def test_how_grave_each_event_is(event: Event, level: str, name: str) -> None:
    found = line(event)
    assert (found["level"], found["event"], found["job"]) == (level, name, "j")
    assert found["message"]


def test_spans_and_epochs_can_be_searched_for() -> None:
    lost = line(LeaseLost(job="j", worker="w1", span=3, epoch=7))
    assert (lost["worker"], lost["span"], lost["epoch"]) == ("w1", 3, 7)
    aside = line(RowQuarantined(job="j", worker="w1", span=3, epoch=7, sqlstate="23514"))
    assert (aside["span"], aside["epoch"], aside["sqlstate"]) == (3, 7, "23514")
    rejected = line(RowQuarantined(job="j", worker="w1", span=3, epoch=7, sqlstate="BF010", rows=142))
    assert rejected["message"] == "w1: set aside 142 rows of span 3 that the transform rejected (BF010)"
    assert (line(held())["signal"], line(held())["reason"]) == ("commit_latency", "commit_latency 31ms > 20ms")


def test_a_chunk_is_flat() -> None:
    found = line(CHUNK)
    assert (found["rows"], found["scanned"], found["bytes"], found["seconds"]) == (10, 20, 300, 0.05)
    assert (found["span"], found["epoch"], found["phase"], found["next_rows"]) == (3, 7, "move", 30)
    assert not [value for value in found.values() if isinstance(value, dict)]


def test_measurements_are_no_lines() -> None:
    measured = [kind for kind in vars(events).values() if isinstance(kind, type) and getattr(kind, "is_measurement", 0)]
    assert len(measured) >= 4
    assert entry(events.LeasesRenewed(job="j", spans=2)) is None
    assert entry(events.WalWritten(job="j", bytes=1.0, is_exact=True)) is None


def test_the_end_of_a_failed_job_is_an_error() -> None:
    assert ended(FINISHED).weight is Weight.INFO
    assert ended(replace(FINISHED, state=JobState.FAILED)).weight is Weight.ERROR


def test_what_weighs_too_little_is_not_written() -> None:
    debug, info = Entry(event="a.debug", message="", weight=Weight.DEBUG), Entry(event="a.info", message="")
    error = Entry(event="an.error", message="", weight=Weight.ERROR)
    assert [found["event"] for found in lines(debug, info, error)] == ["a.info", "an.error"]
    assert [found["event"] for found in lines(debug, info, error, least=logging.DEBUG)] == [
        "a.debug",
        "a.info",
        "an.error",
    ]
    assert [found["event"] for found in lines(debug, info, error, least=logging.ERROR)] == ["an.error"]


def test_what_is_bound_is_in_every_line_unless_an_entry_knows_better() -> None:
    first, second = lines(Entry(event="a.b", message=""), Entry(event="a.b", message="", fields={"job": "k"}), job="j")
    assert (first["job"], second["job"]) == ("j", "k")
    with structlog.contextvars.bound_contextvars(request="r1"):
        assert lines(Entry(event="a.b", message=""))[0]["request"] == "r1"


def test_nothing_can_break_a_line() -> None:
    odd = Entry(event="a.b", message="two\nlines \ud800 …", fields={"eta_s": float("inf"), "none": None, "odd": {1}})
    stream = io.StringIO()
    Log(lambda: stream).write(odd)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.isascii()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (found["message"], found["eta_s"], found["odd"]) == ("two\nlines \ud800 …", None, "{1}")
    assert "none" not in found


def test_a_reader_that_went_away_does_not_fail_the_work() -> None:
    class Gone(io.StringIO):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise BrokenPipeError

    gone = Gone()
    log = Log(lambda: gone)
    log.write(Entry(event="a.b", message=""))
    log.write(Entry(event="a.b", message=""))
    assert gone.tries == 1


def test_every_line_that_there_can_be_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "logs.md").read_text()
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event) and kind.name]
    names = {kind.name for kind in kinds if not kind.is_measurement} - {"verify.finished"}  # verify speaks to people
    for file in [*(ROOT / "engine" / "cli").glob("*.py"), *(ROOT / "engine" / "service").glob("*.py")]:
        names |= {*re.findall(r'(?:Entry\(\s*event=|_say\(\s*|_warn\(\s*)"([^"]+)"', file.read_text())}
    names |= {HELD, MOVING, PROGRESS, STOPPED}
    assert {"daemon.ready", "connection.away", "audit"} <= names
    assert len(names) > 30
    assert not [name for name in sorted(names) if f"`{name}`" not in text]


# -- to and fro -------------------------------------------------------------------------------------------------------


class Heard:
    """A narrator, and what it said at which second."""

    def __init__(self, verbosity: int = 0) -> None:
        self.clock = ManualClock()
        self.said: list[tuple[float, Entry]] = []
        self.tell = Narrator(lambda one: self.said.append((self.clock.now(), one)), self.clock, verbosity=verbosity)

    async def each_second(self, *told: Event, settle: bool = True) -> None:
        for event in told:
            self.tell(event)
            await self.clock.advance(1.0)
            if settle:
                self.tell.settle()

    async def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            await self.clock.advance(1.0)
            self.tell.settle()

    @property
    def names(self) -> list[str]:
        return [one.event for _, one in self.said]

    @property
    def messages(self) -> list[str]:
        return [one.message for _, one in self.said]


async def test_a_change_is_told_at_once() -> None:
    heard = Heard()
    heard.tell(held())
    heard.tell(steady())
    heard.tell(held("lock_waits 3s > 1s", leads="lock_waits"))
    assert heard.names == ["job.held", "job.moving", "job.held"]
    assert "left_out" not in heard.said[0][1].fields


async def test_a_signal_that_crosses_its_threshold_every_second_does_not_write_every_second() -> None:
    heard = Heard()
    for number in range(60):
        await heard.each_second(held(f"commit_latency {20 + number}ms > 20ms"), steady())
    by_reason = [at for at, one in heard.said if one.event == "job.held"]
    assert 10 <= len(by_reason) <= 13
    assert min(later - at for at, later in pairwise(by_reason)) >= CALM_S
    moving = [at for at, one in heard.said if one.event == "job.moving"]
    assert len(moving) <= 13
    told = len(heard.said) + sum(one.fields.get("left_out", 0) for _, one in heard.said)
    assert 120 - 12 <= told <= 120, "what was left out is counted, but for the last moments"


async def test_one_reason_does_not_silence_another() -> None:
    heard = Heard()
    await heard.each_second(held(), steady(), held("lock_waits 3s > 1s", leads="lock_waits"))
    assert heard.messages == ["held: commit_latency 31ms > 20ms", "moving again", "held: lock_waits 3s > 1s"]


async def test_one_job_does_not_silence_another() -> None:
    heard = Heard()
    await heard.each_second(held(), held(job="k"))
    assert [one.fields["job"] for _, one in heard.said] == ["j", "k"]


async def test_what_is_true_in_the_end_is_said_in_the_end() -> None:
    heard = Heard()
    await heard.each_second(held(), steady(), held(), steady(), held())
    assert heard.names == ["job.held", "job.moving"]
    await heard.wait(20)
    assert heard.names == ["job.held", "job.moving", "job.held"], "or a log that ends with `moving again` would lie"
    assert heard.said[-1][0] <= CALM_S + 1
    assert heard.messages[-1].endswith("(and 2 more like it)")
    assert heard.said[-1][1].fields["left_out"] == 2


async def test_what_came_back_to_what_was_said_is_not_said_again() -> None:
    heard = Heard()
    await heard.each_second(held(), steady(), held(), steady())
    await heard.wait(20)
    assert heard.names == ["job.held", "job.moving"]


async def test_what_is_due_at_the_end_of_a_run_is_not_lost() -> None:
    heard = Heard()
    await heard.each_second(held(), steady(), held())
    heard.tell.settle(at_once=True)
    assert heard.names == ["job.held", "job.moving", "job.held"]


async def test_a_pause_ends_what_held_the_job() -> None:
    heard = Heard()
    await heard.each_second(held(), steady(), held(), StateChanged(job="j", state=JobState.PAUSED, reason="disk"))
    await heard.wait(20)
    assert heard.messages == ["held: commit_latency 31ms > 20ms", "moving again", "paused: disk"]


async def test_waiting_for_others_flaps_as_little() -> None:
    heard = Heard()
    for number in range(30):
        reason = f"a database of the job: it is away ({number})"
        await heard.each_second(Waiting(job="j", reason=reason), Waiting(job="j", reason=""))
    assert 6 <= len([name for name in heard.names if name == "job.waiting"]) <= 7


async def test_a_thousand_bad_rows_are_a_few_lines_and_a_count() -> None:
    heard = Heard()
    for number in range(1000):
        state = "23514" if number % 2 else "22003"
        heard.tell(RowQuarantined(job="j", worker="w1", span=number, epoch=1, sqlstate=state))
    assert len(heard.said) == 2
    await heard.wait(int(CALM_S) + 1)
    assert [one.fields.get("left_out") for _, one in heard.said] == [None, None, 498, 498]
    await heard.wait(100)
    assert len(heard.said) == 4


async def test_chunks_cancelled_again_and_again_are_a_few_lines() -> None:
    heard = Heard()
    await heard.each_second(*(ChunkCancelled(job="j", reason=f"lock_waits {n}s > 1s") for n in range(2, 32)))
    assert len(heard.said) == 4


async def test_how_much_is_said_is_the_readers_choice() -> None:
    told = (CHUNK, SpanClaimed(job="j", worker="w1", span=1, epoch=1), steady("read_latency"), held())
    names = []
    for verbosity in (0, 1, 2):
        heard = Heard(verbosity)
        await heard.each_second(*told, settle=False)
        names.append(heard.names)
    assert names[0] == ["job.held"]
    assert names[1] == ["span.claimed", "pace.changed", "job.held"]
    assert names[2] == ["chunk.committed", "span.claimed", "pace.changed", "job.held"]
