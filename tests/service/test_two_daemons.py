"""Two daemons on one ledger: they share a job, and the loss of either loses nothing."""

from __future__ import annotations

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
from tests.support.waiting import PATIENCE_S, until

ROWS = 60_000


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


def leased_by(database: FreshDatabase, daemon: DaemonProcess) -> int:
    """Spans that nobody else may have before their leases run out."""
    return int(
        database.sql(
            "SELECT count(*) FROM backfill.span s JOIN backfill.worker w ON w.id = s.worker"
            f" WHERE w.os_pid = {daemon.pid} AND s.lease_until IS NOT NULL"
        )
    )


def ten_seconds_on(database: FreshDatabase, gone: DaemonProcess) -> None:
    """As if ten more were over since that daemon's last sign of life."""
    database.sql(
        f"UPDATE backfill.worker SET seen_at = seen_at - interval '10 s' WHERE os_pid = {gone.pid};"
        "UPDATE backfill.span SET lease_until = lease_until - interval '10 s'"
        f" WHERE worker IN (SELECT id FROM backfill.worker WHERE os_pid = {gone.pid})"
    )


async def both_move_rows(database: FreshDatabase, *daemons: DaemonProcess) -> None:
    pids = {daemon.pid for daemon in daemons}

    def do() -> bool:
        speeds = rows_by_process(database)
        return pids <= {pid for pid, speed in speeds.items() if speed > 0}

    await until(do, lambda: f"rows by process: {rows_by_process(database)}")


def assert_each_row_written_once(database: FreshDatabase) -> None:
    wrong = "cents IS DISTINCT FROM (amount * 100)::bigint OR writes <> 1"
    assert database.sql(f"SELECT count(*), count(*) FILTER (WHERE {wrong}) FROM orders") == f"{ROWS}|0"


async def test_two_daemons_share_a_job_and_the_loss_of_either_loses_nothing(shop: FreshDatabase) -> None:
    await put_job(job(shop, rows_per_s=1000))
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
            await until(lambda: int(shop.sql("SELECT count(cents) FROM orders")) > before + 500, "moves on")
            third = await stack.enter_async_context(daemon_process(config_of(shop), folder=file.parent))
            await both_move_rows(shop, second, third)
            second.kill()
            assert await second.ended() == -9
            ten_seconds_on(shop, second)
            shop.sql("SELECT backfill.pace('cents', 1000000)")
            done = await until_job(third.client, "cents", lambda shown: shown["state"] == "done", within_s=PATIENCE_S)
            assert done["rows_done"] == ROWS
            assert await third.terminated() == 143
    assert_each_row_written_once(shop)


async def test_a_daemon_that_is_told_to_end_leaves_its_part_to_the_other_at_once(shop: FreshDatabase) -> None:
    await put_job(job(shop, rows_per_s=1000))
    async with daemon_process(config_of(shop)) as first, daemon_process(config_of(shop)) as second:
        await both_move_rows(shop, first, second)
        assert await first.terminated() == 143
        assert first.pid not in rows_by_process(shop)
        assert leased_by(shop, first) == 0  # no lease has to run out
        assert leased_by(shop, second) > 0
        shop.sql("SELECT backfill.pace('cents', 1000000)")
        await until_job(second.client, "cents", lambda shown: shown["state"] == "done", within_s=PATIENCE_S)
    assert_each_row_written_once(shop)


async def test_an_order_given_to_one_daemon_holds_for_the_other(shop: FreshDatabase) -> None:
    await put_job(job(shop, rows_per_s=1000))
    async with daemon_process(config_of(shop)) as first, daemon_process(config_of(shop)) as second:
        await both_move_rows(shop, first, second)
        answer = await first.client.post("/v1/jobs/cents/pause", json={"reason": "lunch"})
        assert answer.status_code == 200
        await until(lambda: not rows_by_process(shop), "nobody is at work")
        shown: dict[str, Any] = (await second.client.get("/v1/jobs/cents")).json()
        assert shown["state"] == "paused"
        assert (await second.client.post("/v1/jobs/cents/resume", json={})).status_code == 200
        shop.sql("SELECT backfill.pace('cents', 1000000)")
        await until_job(first.client, "cents", lambda shown: shown["state"] == "done", within_s=PATIENCE_S)
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
            await until_job(knowing.client, "copy", lambda shown: shown["state"] == "done", within_s=PATIENCE_S)
    assert database.sql("SELECT count(*) FROM orders") == "500"
