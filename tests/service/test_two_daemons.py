"""Two daemons on one ledger: they share a job, and the loss of either loses nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from engine.spec import JobSpec
from engine.spec.pacing import Pace
from engine.spec.signals import ALL_OFF
from tests.support.daemon import DaemonProcess, config_file, config_of, daemon_process, put_job, until_job
from tests.support.databases import FreshDatabase
from tests.support.jobs import in_place, into

ROWS = 60_000
PATIENCE_S = 40.0


@pytest.fixture
def shop(database: FreshDatabase) -> FreshDatabase:
    """Orders that count how often each was written."""
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric NOT NULL, cents bigint, writes int DEFAULT 0);"
        f"INSERT INTO orders SELECT g, g / 7.0 FROM generate_series(1, {ROWS}) g;"
        "ANALYZE orders"
    )
    return database


def job(database: FreshDatabase, rows_per_s: float) -> JobSpec:
    """A job that writes each row once, and shows it when it does not."""
    return in_place(
        database,
        "orders",
        {"cents": "(amount * 100)::bigint", "writes": "writes + 1"},
        name="cents",
        done="cents is not null",
        pace=Pace(signals=ALL_OFF, max_rows_per_s=rows_per_s),
        chunk={"max_rows": 200},
    )


def rows_by_process(database: FreshDatabase) -> dict[int, float]:
    """Processes at work by their pid, and how fast each moves rows."""
    lines = database.sql(
        "SELECT os_pid, sum(rows_per_s) FROM backfill.worker WHERE seen_at <> '-infinity' GROUP BY 1"
    ).splitlines()
    return {int(pid): float(speed) for pid, speed in (line.split("|") for line in lines)}


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def both_move_rows(database: FreshDatabase, *daemons: DaemonProcess) -> None:
    pids = {daemon.pid for daemon in daemons}

    def do() -> bool:
        speeds = rows_by_process(database)
        return pids <= {pid for pid, speed in speeds.items() if speed > 0}

    await until(do, f"rows by process: {rows_by_process(database)}")


def assert_each_row_written_once(database: FreshDatabase) -> None:
    wrong = "cents IS DISTINCT FROM (amount * 100)::bigint OR writes <> 1"
    assert database.sql(f"SELECT count(*), count(*) FILTER (WHERE {wrong}) FROM orders") == f"{ROWS}|0"


async def test_two_daemons_share_a_job_and_the_loss_of_either_loses_nothing(shop: FreshDatabase) -> None:
    await put_job(job(shop, rows_per_s=4000))
    async with AsyncExitStack() as stack:
        with config_file(config_of(shop)) as file:
            first = await stack.enter_async_context(daemon_process(config_of(shop), folder=file.parent))
            second = await stack.enter_async_context(daemon_process(config_of(shop)))
            await both_move_rows(shop, first, second)
            first.kill()
            assert await first.ended() == -9
            before = int(shop.sql("SELECT count(cents) FROM orders"))
            assert 0 < before < ROWS
            # The other one goes on, with what it has, from the first moment.
            await until(lambda: int(shop.sql("SELECT count(cents) FROM orders")) > before + 2000, "moves on")
            third = await stack.enter_async_context(daemon_process(config_of(shop), folder=file.parent))
            await both_move_rows(shop, second, third)
            second.kill()
            shop.sql("SELECT backfill.pace('cents', 1000000)")
            done = await until_job(third.client, "cents", lambda shown: shown["state"] == "done", within_s=PATIENCE_S)
            assert done["rows_done"] == ROWS
            assert await third.terminated() == 143
    assert_each_row_written_once(shop)


async def test_a_daemon_that_is_told_to_end_leaves_its_part_to_the_other_at_once(shop: FreshDatabase) -> None:
    await put_job(job(shop, rows_per_s=6000))
    async with daemon_process(config_of(shop)) as first, daemon_process(config_of(shop)) as second:
        await both_move_rows(shop, first, second)
        assert await first.terminated() == 143
        assert first.pid not in rows_by_process(shop)
        shop.sql("SELECT backfill.pace('cents', 1000000)")
        began = time.monotonic()
        await until_job(second.client, "cents", lambda shown: shown["state"] == "done")
        assert time.monotonic() - began < 12  # no lease had to run out
    assert_each_row_written_once(shop)


async def test_an_order_given_to_one_daemon_holds_for_the_other(shop: FreshDatabase) -> None:
    await put_job(job(shop, rows_per_s=2000))
    async with daemon_process(config_of(shop)) as first, daemon_process(config_of(shop)) as second:
        await both_move_rows(shop, first, second)
        answer = await first.client.post("/v1/jobs/cents/pause", json={"reason": "lunch"})
        assert answer.status_code == 200
        await until(lambda: not rows_by_process(shop), "nobody is at work")
        shown: dict[str, Any] = (await second.client.get("/v1/jobs/cents")).json()
        assert shown["state"] == "paused"
        assert (await second.client.post("/v1/jobs/cents/resume", json={})).status_code == 200
        shop.sql("SELECT backfill.pace('cents', 1000000)")
        await until_job(first.client, "cents", lambda shown: shown["state"] == "done")
    assert_each_row_written_once(shop)


async def test_a_job_whose_source_only_the_other_daemon_knows_is_left_to_it_with_the_reason(
    database: FreshDatabase, make_database: Callable[[], FreshDatabase]
) -> None:
    source = make_database()
    source.sql("CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric)")
    source.sql("INSERT INTO orders SELECT g, g FROM generate_series(1, 500) g")
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric)")
    spec = into(source, "orders", database, "orders", name="copy")
    named = spec.source.model_copy(update={"connection": "shop"})
    await put_job(spec.model_copy(update={"source": named}))
    ledger = {"dsn": database.dsn, "work": True, "tables": ["*.*"]}
    async with daemon_process({"connections": {"main": ledger}}) as ignorant:
        await until(lambda: any(line["event"] == "job.aside" for line in ignorant.lines()), "left aside")
        (aside,) = [line for line in ignorant.lines() if line["event"] == "job.aside"]
        assert (aside["job"], aside["connection"]) == ("copy", "main")
        assert "not configured here" in aside["reason"]
        assert (await ignorant.client.get("/v1/jobs/copy")).json()["state"] == "planned"
        both = {"main": ledger, "shop": {"dsn": source.dsn, "tables": ["*.*"]}}
        async with daemon_process({"connections": both}) as knowing:
            await until_job(knowing.client, "copy", lambda shown: shown["state"] == "done")
    assert database.sql("SELECT count(*) FROM orders") == "500"
