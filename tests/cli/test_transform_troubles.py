"""Transforms that misbehave, through the command line: the error shows their own line and nothing of the rows, whoever
works other jobs goes on, and the process ends in time.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from engine.spec import load_spec
from tests.cli.conftest import Cli, Outcome, eventually, wrong_rows
from tests.support import functions
from tests.support.daemon import put_job
from tests.support.databases import FreshDatabase
from tests.support.functions import named

ROWS: Final = 4000
CANARY: Final = "canary0value"
SHOWN: Final = "  # the line to show"

IN_THE_MIDDLE: Final = {
    "raises": "raised LookupError at",
    "wrong_shape": "shape",
    "wrong_type": "float64",
    "wrong_column": "'h' is missing, 'hash' is not among them",
    "nothing": "gave back None",
    "eats_memory": "MemoryError at",
}
"""Function -> what is said of it.  These come back by themselves."""

OUT_OF_HAND: Final = {
    "hangs": "has not come back after 1 s",
    "hangs_in_await": "has not come back after 1 s",
    "holds_the_interpreter": "has not come back after 1 s",
    "holds_on": "has not come back after 1 s",
    "exits": "raised SystemExit at",
    "exits_later": "has ended its thread: SystemExit",
}
"""Those that could take their process with them, or keep it."""


@pytest.fixture
def table(database: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> FreshDatabase:
    database.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL, v text, h bigint);"
        f"INSERT INTO t SELECT g, g, '{CANARY}' || g FROM generate_series(1, {ROWS}) g; ANALYZE t"
    )
    monkeypatch.setenv("BACKFILL_DSN", database.dsn)
    return database


@pytest.fixture
def job(spec: Callable[..., Path]) -> Callable[..., Path]:
    """``job("raises")``: in place on the table."""

    def write(function: str, **keys: Any) -> Path:
        settings = {
            "name": "job",
            "source": {"table": "t"},
            "set": None,
            "transform": named(function),
            "chunk": {"max_rows": 500},
            "pace": {"signals": "off"},
        }
        return spec(f"{function}.yaml", **settings | keys)

    return write


def place_of(name: str) -> str:
    """The line of a function that an error must show: the marked one, else where it is declared."""
    lines, first = inspect.getsourcelines(getattr(functions, name).function)
    marked = [first + number for number, line in enumerate(lines) if SHOWN in line]
    declared = [first + number for number, line in enumerate(lines) if line.startswith(("def ", "async def "))]
    return f"tests/support/functions.py:{(marked or declared)[0]} in {name}"


def failed(ended: Outcome, name: str, said: str, code: int = 7) -> None:
    assert ended.code == code, ended.err
    message = " ".join(ended.err.split())
    assert said in message, ended.err
    if name != "exits_later":  # it is asyncio that calls it there
        assert place_of(name) in message, ended.err
    assert "Traceback" not in ended.err
    assert CANARY not in ended.err + ended.out
    assert "[3" not in message, "not even the numbers that the exception holds"


@pytest.mark.parametrize("name", IN_THE_MIDDLE)
def test_the_job_stops_and_the_error_shows_the_line(
    backfill: Cli, table: FreshDatabase, job: Callable[..., Path], name: str
) -> None:
    failed(backfill("run", job(name)), name, IN_THE_MIDDLE[name])
    assert 0 < int(table.sql("SELECT count(*) FROM t WHERE h IS NOT NULL")) < ROWS
    assert table.sql("SELECT state FROM backfill.job") == "failed"


def test_a_column_of_wrong_objects_stops_the_job_whatever_may_be_set_aside(
    backfill: Cli, table: FreshDatabase, job: Callable[..., Path]
) -> None:
    ended = backfill("run", job("wrong_objects", errors={"max_quarantined": ROWS}))
    failed(ended, "wrong_objects", "by the type of every value: h: str instead of int")
    assert table.sql("SELECT count(*) FROM backfill.quarantine") == "0"


def test_values_that_the_column_can_never_hold_are_found_before_anything_is_written(
    backfill: Cli, table: FreshDatabase, job: Callable[..., Path]
) -> None:
    refused = backfill("run", job("too_large_from_the_first_row", errors={"max_quarantined": ROWS}))
    assert refused.code == 4, refused.err
    assert "TRANSFORM_FAILS" in refused.err and "a number that int8 cannot hold" in " ".join(refused.err.split())
    assert table.sql("SELECT count(*) FROM t WHERE h IS NOT NULL") == "0"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "hangs" else ()) for name in OUT_OF_HAND]
)
def test_what_gets_out_of_hand_neither_ends_nor_keeps_its_process(
    backfill: Cli, table: FreshDatabase, job: Callable[..., Path], name: str
) -> None:
    began = time.monotonic()
    failed(backfill.start("run", job(name)).end(), name, OUT_OF_HAND[name])
    assert time.monotonic() - began < 20.0
    assert 0 < int(table.sql("SELECT count(*) FROM t WHERE h IS NOT NULL")) < ROWS
    assert table.sql("SELECT state FROM backfill.job") == "failed"


@pytest.mark.slow
def test_who_interrupts_twice_does_not_wait_for_a_function(
    backfill: Cli, table: FreshDatabase, job: Callable[..., Path]
) -> None:
    running = backfill.start("run", job("hangs_for_long"))
    # A chunk of 500 rows that has row 3777 in it, and what is behind it: the other worker may have taken that over and
    # hang there too.
    rest = "SELECT count(*) <= 500 + 4000 - 3777 FROM t WHERE h IS NULL"
    eventually(lambda: table.sql(rest) == "t", "all chunks but those that hang")
    running.signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(1.0)  # the first signal waits for the chunk in hand
    running.signal(signal.SIGINT)
    assert running.end(15).code == 130
    assert table.sql("SELECT h IS NULL FROM t WHERE n = 3777") == "t"
    assert CANARY not in table.sql("SELECT coalesce(string_agg(to_jsonb(e)::text, ''), '') FROM backfill.event e")


@pytest.mark.parametrize("name", ["raises_from_the_first_row", "cannot_be_set_up"])
def test_what_cannot_work_is_found_before_anything_is_written(
    backfill: Cli, table: FreshDatabase, job: Callable[..., Path], name: str
) -> None:
    shown = "set_up_badly" if name == "cannot_be_set_up" else name
    for command in ("plan", "run"):
        refused = backfill(command, job(name))
        assert refused.code == 4, refused.err
        said = " ".join((refused.out + refused.err).split())
        assert "TRANSFORM_FAILS" in said
        assert "LookupError" in said
        assert f"in {shown}" in said
        assert CANARY not in refused.out + refused.err
    assert table.sql("SELECT count(*) FROM t WHERE h IS NOT NULL") == "0"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["holds_on", pytest.param("raises", marks=pytest.mark.long), pytest.param("exits", marks=pytest.mark.long)]
)
def test_a_worker_ends_the_jobs_of_others_all_the_same(
    backfill: Cli, table: FreshDatabase, job: Callable[..., Path], spec: Callable[..., Path], name: str
) -> None:
    table.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(12,2) NOT NULL, cents bigint);"
        "INSERT INTO orders SELECT g, g / 100.0 FROM generate_series(1, 20000) g; ANALYZE orders"
    )
    for begun in (job(name), spec()):
        asyncio.run(put_job(load_spec(str(begun), os.environ)))
    worked = backfill.start("worker", "--once", "--allow-transform", named(name), "--json").end()
    assert worked.code == 7, worked.err
    states = {line["job"]: line["state"] for line in worked.events("job.finished")}
    assert states == {"job": "failed", "cents": "done"}
    assert wrong_rows(table) == 0
    assert CANARY not in worked.out + worked.err


@pytest.mark.slow
def test_a_worker_runs_no_function_that_its_operator_has_not_named(
    backfill: Cli, table: FreshDatabase, job: Callable[..., Path]
) -> None:
    asyncio.run(put_job(load_spec(str(job("fills")), os.environ)))
    for allowed in ((), ("--allow-transform", named("raises")), ("--allow-transform", "tests.support:*")):
        refused = backfill("worker", "--once", *allowed)
        assert refused.code == 3, refused.err
        assert f"transform {named('fills')} is not allowed" in " ".join(refused.err.split())
    assert table.sql("SELECT count(*) FROM t WHERE h IS NOT NULL") == "0"
