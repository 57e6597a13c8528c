"""What ``run`` and ``worker`` say on stderr: sentences on a terminal, elsewhere a log that a machine can read."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import engine.cli.run
import engine.cli.worker
from engine.cli import progress
from engine.cli.progress import Display
from engine.cli.terminal import LogFormat, Terminal
from engine.clock import ManualClock
from engine.events import PaceChanged
from tests.cli.conftest import Cli, Outcome
from tests.support.databases import FreshDatabase


@pytest.fixture(autouse=True)
def as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKFILL_LOG_FORMAT")


def log(outcome: Outcome) -> list[dict[str, Any]]:
    """stderr from its first to its last line."""
    lines = [json.loads(line) for line in outcome.err.splitlines()]
    for line in lines:
        assert [*line][:4] == ["timestamp", "level", "event", "message"]
    return lines


def names(outcome: Outcome) -> list[str]:
    return [line["event"] for line in log(outcome)]


def test_elsewhere_than_on_a_terminal_stderr_is_json_from_first_to_last(
    backfill: Cli, shop: FreshDatabase, spec
) -> None:
    done = backfill("run", spec())
    assert (done.code, done.out) == (0, "")
    lines = log(done)
    assert [line["event"] for line in lines] == ["job.opened", *["job.state"] * 3, "job.finished"]
    assert [line.get("state") for line in lines] == [None, "planned", "running", "done", "done"]
    assert {line["job"] for line in lines} == {"cents"}
    assert {line["level"] for line in lines} == {"info"}
    assert lines[-1]["rows"] == 20000
    assert lines[-1]["message"].startswith("cents is done: 20.0 k rows")
    assert lines[0]["message"].startswith("cents (new, update): ")


def test_chunks_are_for_the_very_curious(backfill: Cli, shop: FreshDatabase, spec) -> None:
    curious = backfill("run", spec(), "-v")
    assert {"span.claimed", "span.released", "pace.changed"} <= {*names(curious)}
    assert "chunk.committed" not in names(curious)
    claimed = next(line for line in log(curious) if line["event"] == "span.claimed")
    assert (claimed["level"], claimed["epoch"], claimed["span"] > 0) == ("debug", 1, True)
    very = log(backfill("run", spec(name="again", set={"cents": "-1"}, done="cents = -1"), "-vv"))
    chunks = [line for line in very if line["event"] == "chunk.committed"]
    assert sum(chunk["rows"] for chunk in chunks) == 20000
    assert {"job", "worker", "span", "epoch", "phase"} <= {*chunks[0]}


def test_the_log_stands_beside_the_events_of_stdout(backfill: Cli, shop: FreshDatabase, spec) -> None:
    done = backfill("run", spec(), "--json")
    assert done.json["event"] == "job.finished"
    assert names(done)[-1] == "job.finished"
    assert done.events("chunk.committed"), "what --json tells is not the log's business"


def test_quiet_leaves_errors(backfill: Cli, shop: FreshDatabase, spec) -> None:
    assert backfill("run", spec(where="id < 9"), "--quiet").err == ""
    shop.sql("ALTER TABLE orders ADD CHECK (cents < 100) NOT VALID")
    failed = backfill("run", spec(name="bad"), "--quiet")
    assert failed.code == 7
    assert {line["level"] for line in log(failed)} == {"error"}


def test_a_failure_tells_why_and_what_to_do(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shop.sql("ALTER TABLE orders ADD CONSTRAINT cheap CHECK (cents < 100) NOT VALID")
    failed = backfill("run", spec())
    assert failed.code == 7
    lines = log(failed)
    assert [(line["level"], line["event"]) for line in lines[-3:]] == [
        ("error", "job.state"),
        ("error", "job.finished"),
        ("error", "error"),
    ]
    last = lines[-1]
    assert (last["job"], last["code"], last["sqlstate"], last["exit_code"]) == ("cents", "bad_row", "23514", 7)
    assert last["hint"]


def test_errors_before_there_is_a_job_are_lines_too(backfill: Cli, shop: FreshDatabase, spec, monkeypatch) -> None:
    invalid = backfill("run", spec(chunk={"max_rows": "many"}))
    assert invalid.code == 3
    (line,) = log(invalid)
    assert (line["level"], line["event"], line["code"]) == ("error", "error", "spec_invalid")
    assert line["problems"][0]["path"] == "chunk.max_rows"
    refused = backfill("run", spec(source={"table": "nowhere"}))
    assert log(refused)[-1]["exit_code"] == refused.code
    monkeypatch.setenv("BACKFILL_DSN", "host=/nonexistent dbname=nothing")
    away = backfill("run", spec())
    assert (away.code, log(away)[-1]["code"]) == (5, "cannot_connect")
    assert log(backfill("worker", "--once"))[-1]["code"] == "cannot_connect"


def test_what_nobody_expected_is_a_line_without_its_words(
    backfill: Cli, shop: FreshDatabase, spec, monkeypatch
) -> None:
    def fail(work: Any) -> None:
        work.close()
        logging.getLogger("asyncio").error(
            "Task exception was never retrieved: row value", exc_info=KeyError("row value")
        )
        raise ZeroDivisionError("row value")

    monkeypatch.setattr(engine.cli.run, "run_async", fail)
    failed = backfill("run", spec(), "-v")
    assert failed.code == 1
    assert "row value" not in failed.err
    lines = log(failed)
    assert [line["event"] for line in lines] == ["library.message", "error.place", "error", "error.place"]
    assert lines[0]["message"] == "asyncio reported KeyError"
    assert lines[2]["message"] == "unexpected ZeroDivisionError"
    assert any("in fail" in frame for frame in lines[3]["frames"])
    plain = backfill("run", spec(), "--log-format", "human")
    assert "row value" not in plain.err
    assert "asyncio reported KeyError" in plain.err


def test_usage_is_for_whoever_typed_it(backfill: Cli, shop: FreshDatabase, spec, monkeypatch) -> None:
    assert backfill("run", spec(), "--log-format", "xml").code == 2
    monkeypatch.setenv("BACKFILL_LOG_FORMAT", "xml")
    unknown = backfill("worker", "--once")
    assert unknown.code == 2
    assert "BACKFILL_LOG_FORMAT" in unknown.err or "--log-format" in unknown.err


@pytest.mark.parametrize(("variable", "flags"), [("", ["--log-format", "human"]), ("human", []), ("json", ["--log-format", "human"])])  # fmt: skip
def test_who_wants_sentences_gets_them(backfill: Cli, shop, spec, monkeypatch, variable: str, flags: list[str]) -> None:
    monkeypatch.setenv("BACKFILL_LOG_FORMAT", variable)
    done = backfill("run", spec(), *flags)
    assert "cents is done: 20.0 k rows" in done.err
    assert "{" not in done.err


def test_other_commands_speak_to_people(backfill: Cli, shop: FreshDatabase, spec, monkeypatch) -> None:
    monkeypatch.setenv("BACKFILL_LOG_FORMAT", "json")
    backfill("run", spec())
    assert backfill("status", "cents").out.startswith("cents: done")
    assert backfill("pause", "cents").err == "cents is done: there is nothing to pause\n"
    assert backfill("status", "nobody").err.startswith("error: ")


def test_a_worker_writes_the_same_log_for_each_job(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    running.signal(signal.SIGINT)
    drained = running.end()
    assert drained.code == 130
    assert names(drained)[-2:] == ["run.draining", "run.stopped"]
    assert log(drained)[-1]["rows"] > 0
    backfill("pace", "cents", "--max-rows-per-s", "1e6")
    done = backfill("worker", "--once")
    assert done.code == 0
    assert names(done) == ["job.opened", "job.state", "job.state", "job.finished"]
    assert {line["job"] for line in log(done)} == {"cents"}


def test_a_job_left_aside_is_a_warning(backfill: Cli, two_shops, copy_job: Path, monkeypatch) -> None:
    copy_job.write_text(copy_job.read_text() + "pace: {max_rows_per_s: 500}\nchunk: {max_rows: 100}\n")
    running = backfill.start("run", copy_job, "--json")
    assert running.process.stdout is not None
    while "chunk.committed" not in running.process.stdout.readline():
        pass
    running.signal(signal.SIGINT)
    assert running.end().code == 130
    monkeypatch.setenv("BACKFILL_DSN", two_shops.target.dsn)
    monkeypatch.delenv("SOURCE_DSN")
    aside = backfill("worker", "--once")
    assert aside.code == 2
    (line,) = log(aside)
    assert (line["level"], line["event"], line["job"]) == ("warning", "job.aside", "copy")
    assert "SOURCE_DSN" in line["reason"]


def test_now_and_then_the_log_says_how_far_it_is(
    backfill: Cli, shop: FreshDatabase, spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SUMMARY_S", 0.3)
    job = spec(pace={"max_rows_per_s": 12000, "signals": "off"}, chunk={"max_rows": 200})
    found = [line for line in log(backfill("run", job)) if line["event"] == "job.progress"]
    moving = [line for line in found if line["state"] == "running"]
    assert moving
    last = moving[-1]
    assert (last["level"], last["job"], last["phase"]) == ("info", "cents", "move")
    assert {"rows", "rows_estimated", "progress", "rows_per_s", "workers", "message"} <= {*last}
    assert last["message"].startswith("running ")


def test_a_held_job_says_so_once_and_by_which_signal(backfill: Cli, shop: FreshDatabase, spec, until) -> None:
    shop.sql("CREATE TABLE queue AS SELECT 9 AS n")
    signals = [{"sql": {"name": "queue", "query": "SELECT n FROM queue", "max": 5}}]
    running = backfill.start("run", spec(pace={"signals": signals}))
    until(shop, "held_by = 'queue'")
    shop.sql("UPDATE queue SET n = 1")
    done = running.end()
    assert done.code == 0
    held = [line for line in log(done) if line["event"] == "job.held" and line["signal"] == "queue"]
    assert len(held) == 1
    assert held[0]["message"] == "held: queue 9 > 5"
    assert "job.moving" in names(done)


async def test_what_came_too_soon_is_said_a_little_later_or_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = ManualClock()
    display = Display(Terminal(log_format=LogFormat.JSON), lambda: None, clock)

    def pace(stage: str) -> None:
        display(PaceChanged(job="j", stage=stage, leads="queue", reason="queue 9 > 5", limit_rows_per_s=None))

    def said() -> list[str]:
        return [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]

    with display.shown():
        for stage in ("held", "steady", "held"):
            pace(stage)
        assert said() == ["job.held", "job.moving"]
        await clock.advance(12)
        assert said() == ["job.held"]
        for stage in ("steady", "held"):
            pace(stage)
        assert said() == ["job.moving"]
    assert said() == ["job.held"]


def test_on_a_terminal_it_is_sentences_and_a_display(shop: FreshDatabase, spec) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "engine", "run", str(spec())]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave, env=environment
    ) as one:
        os.close(slave)
        said = b""
        with pytest.raises(OSError, match="Input/output error"):  # the other end is closed
            while True:
                said += os.read(master, 65536)
    os.close(master)
    assert one.returncode == 0
    assert b"cents (new, update): " in said
    assert b"cents is done: 20.0 k rows" in said
    assert b'{"timestamp"' not in said


def test_the_event_loop_of_both_commands_is_heard(monkeypatch: pytest.MonkeyPatch, backfill: Cli, shop, spec) -> None:
    """An exception that nobody awaits is told by its class: its text might hold what is in a row."""

    async def lose() -> None:
        asyncio.get_running_loop().create_task(_fail())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _fail() -> None:
        raise ValueError("row value")

    def run_async(work: Any) -> int:
        work.close()
        with asyncio.Runner() as runner:
            runner.run(lose())
        return 0

    monkeypatch.setattr(asyncio.BaseEventLoop, "default_exception_handler", DEFAULT_HANDLER)
    monkeypatch.setattr(engine.cli.worker, "run_async", run_async)
    told = backfill("worker", "--once")
    assert "row value" not in told.err
    assert [(line["level"], line["logger"]) for line in log(told)] == [("error", "asyncio")]


def _default(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The real one, which the house rules replace."""
    logging.getLogger("asyncio").error(
        "%s: %r", context["message"], context.get("exception"), exc_info=context.get("exception")
    )


DEFAULT_HANDLER = _default
