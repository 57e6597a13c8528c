"""The status page when daemons go and come back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.daemon import config_of, daemon_process, running_daemon, until_job
from tests.support.databases import FreshDatabase
from tests.support.page import cents, for_browsers, needs_chromium, open_shop, submit, visit

SHARE = "parseInt(document.querySelector('main .big').textContent)"


@needs_chromium
async def test_after_a_restart_the_stream_goes_on_where_it_was(database: FreshDatabase, tmp_path: Path) -> None:
    open_shop(database)
    async with running_daemon(for_browsers(database)) as daemon:
        await submit(daemon.client, cents())
        async with visit(daemon.url) as seen:
            asked: list[str] = []
            seen.page.on("request", lambda request: asked.append(request.headers.get("last-event-id", "")))
            await seen.open_job("orders-cents")
            await seen.until(f"{SHARE} >= 2")
            last = (await daemon.client.get("/v1/jobs/orders-cents/history")).json()["entries"][-1]["id"]
            await daemon.stop()
            asked.clear()
            away = seen.page.get_by_text("The daemon does not answer, since")
            await away.wait_for()
            await seen.page.locator("main.stale").wait_for()
            share = await seen.page.evaluate(SHARE)
            same = for_browsers(database, port=httpx.URL(daemon.url).port or 0)
            async with running_daemon(same) as again:
                await away.wait_for(state="hidden")
                await seen.until(f"{SHARE} > {share}")
                assert (await again.client.post("/v1/jobs/orders-cents/pause", json={"reason": "seen"})).is_success
                await seen.page.get_by_role("row", name=re.compile("“seen”")).wait_for()
                answer = await again.client.get("/v1/jobs/orders-cents/history")
                told = [entry["what"] for entry in answer.json()["entries"]]
                history = seen.page.get_by_role("region", name="What happened")
                shown = await history.locator("tbody tr td:nth-child(2)").all_inner_texts()
                assert shown == told[::-1]
            assert {int(text) for text in asked if text} == {last}


@needs_chromium
@pytest.mark.timeout(240)
async def test_of_two_daemons_that_share_a_job_one_is_killed_and_the_page_shows_it(database: FreshDatabase) -> None:
    open_shop(database, 60_000)
    async with (
        running_daemon(for_browsers(database)) as daemon,
        daemon_process(config_of(database)) as other,
    ):
        await submit(daemon.client, cents(pace={"max_rows_per_s": 500, "signals": "off"}))
        await until_job(daemon.client, "orders-cents", lambda job: job["workers"] == 4)
        async with visit(daemon.url) as seen:
            await seen.open_job("orders-cents")
            await seen.page.get_by_text("4 workers", exact=True).wait_for()
            other.kill()
            await other.ended()
            share = await seen.page.evaluate(SHARE)
            # As if ten more seconds were over: nobody counts on a worker after 15 s, nor on its lease.
            database.sql(
                f"UPDATE backfill.worker SET seen_at = seen_at - interval '10 s' WHERE os_pid = {other.pid};"
                "UPDATE backfill.span SET lease_until = lease_until - interval '10 s'"
                f" WHERE worker IN (SELECT id FROM backfill.worker WHERE os_pid = {other.pid})"
            )
            await seen.page.get_by_text("2 workers", exact=True).wait_for()
            await seen.until(f"{SHARE} > {share}")
            freely: dict[str, Any] = {"max_rows_per_s": 1_000_000}
            assert (await daemon.client.patch("/v1/jobs/orders-cents/pace", json=freely)).is_success
            await seen.badge("done")
            assert "60.0 k rows" in await seen.text()
            assert not seen.complaints
    assert database.sql("SELECT count(*) FROM orders WHERE amount_cents IS DISTINCT FROM amount * 100") == "0"


@needs_chromium
async def test_a_database_that_is_away_is_told(database: FreshDatabase) -> None:
    open_shop(database)
    trouble = 'retry: 2000\n\nevent: trouble\ndata: {"message": "main cannot be reached"}\n\n'
    async with running_daemon(for_browsers(database)) as daemon:
        await submit(daemon.client, cents())
        async with visit(daemon.url) as seen:
            await seen.page.route(
                "**/events?*",
                lambda route: route.fulfill(body=trouble, content_type="text/event-stream"),
                times=1,
            )
            await seen.page.get_by_role("link", name="orders-cents").click()
            told = seen.page.get_by_text("main cannot be reached. What you see is from before.")
            await told.wait_for()
            await told.wait_for(state="hidden")
            await seen.until(f"{SHARE} >= 2")
