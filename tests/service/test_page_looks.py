"""How the status page looks: on a telephone, with a long history, while a pace is found, and when an order is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.daemon import running_daemon
from tests.support.databases import FreshDatabase
from tests.support.page import Visit, accessible, cents, for_browsers, needs_chromium, open_shop, submit, visit

LONG = "the evening rush of all the shops in the north, " * 5 + "and-one-word-that-never-ends-" * 6

CUT_OFF = """[...document.querySelectorAll('body *')].filter((one) => {
    const box = one.getBoundingClientRect();
    const aside = one.closest('.unseen, .skip, thead, .theme span, svg') || getComputedStyle(one).clipPath !== 'none';
    return !aside && box.width && (box.right > innerWidth + 1 || (one.clientWidth && one.scrollWidth > one.clientWidth));
}).map((one) => `${one.tagName}.${one.className} ${one.textContent.slice(0, 40)}`)"""

SLOW = {
    "state": "running",
    "workers": 2,
    "rows_per_s": 15,
    "eta_s": 11520,
    "signals": [{"name": "read_latency"}],
    "pace": {
        "stage": "slow start",
        "limit_rows_per_s": 15,
        "held_by": None,
        "leads": "read_latency",
        "because": "read_latency 0.65ms of 3ms",
        "pressure": 0.22,
        "waiting": None,
    },
}


async def said_of(seen: Visit, **pace: Any) -> list[str]:
    """What the page's words say of a job: its limit, and the time left."""
    job = SLOW | {"pace": SLOW["pace"] | pace}  # type: ignore[operator]
    script = f"import('/page/words.js').then((words) => [words.why({json.dumps(job)}), words.left({json.dumps(job)})])"
    return list(await seen.page.evaluate(script))


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_nothing_is_cut_off_at_360_pixels_however_long_a_reason_is(database: FreshDatabase, dark: bool) -> None:
    open_shop(database)
    async with running_daemon(for_browsers(database)) as daemon:
        await submit(daemon.client, cents(pace={"max_rows_per_s": 400}))
        assert (await daemon.client.post("/v1/jobs/orders-cents/pause", json={"reason": LONG[:500]})).is_success
        async with visit(daemon.url, width=360, height=740, dark=dark) as seen:
            await seen.page.get_by_text("and-one-word").wait_for()
            assert await seen.page.evaluate(CUT_OFF) == []
            assert await seen.page.evaluate("document.querySelector('header').offsetHeight") < 64
            await seen.page.get_by_role("button", name="You", exact=True).click()
            await seen.page.get_by_text("loopback: control, read, submit").wait_for()
            assert await seen.page.evaluate(CUT_OFF) == []
            await seen.open_job("orders-cents")
            row = (
                seen.page.get_by_role("region", name="What happened").get_by_role("row").filter(has_text="and-one-word")
            )
            await row.wait_for()
            assert (await daemon.client.post("/v1/jobs/orders-cents/resume")).is_success
            await seen.until("document.querySelectorAll('[aria-label^=Signals] tbody tr').length > 1")
            await seen.page.get_by_text("In numbers", exact=True).click()
            assert await seen.page.evaluate(CUT_OFF) == []
            await accessible(seen)
            assert not seen.complaints


@needs_chromium
async def test_a_long_history_is_shown_whole_fifty_lines_at_a_time(database: FreshDatabase) -> None:
    open_shop(database)
    async with running_daemon(for_browsers(database)) as daemon:
        await submit(daemon.client, cents())
        for number in range(60):
            answer = await daemon.client.patch("/v1/jobs/orders-cents/pace", json={"max_rows_per_s": 300 + number})
            assert answer.is_success, answer.text
        async with visit(daemon.url, width=1280) as seen:
            await seen.open_job("orders-cents")
            lines = "document.querySelectorAll('[aria-label^=\"What happened\"] tbody tr').length"
            await seen.until(f"{lines} === 50")
            box = "document.querySelector('[aria-label^=\"What happened\"]')"
            assert await seen.page.evaluate(f"{box}.scrollHeight <= {box}.clientHeight")
            await seen.page.get_by_role("button", name="Older").click()
            await seen.until(f"{lines} >= 61")
            assert await seen.page.evaluate(f"document.activeElement === {box}")
            assert not await seen.page.get_by_role("button", name="Older").is_visible()
            heads = await seen.page.get_by_role("columnheader", name="When (UTC)").count()
            assert heads == 1
            assert not seen.complaints


@needs_chromium
async def test_words_blame_no_signal_below_its_target_while_the_pace_is_found(database: FreshDatabase) -> None:
    async with running_daemon(for_browsers(database)) as daemon, visit(daemon.url, timezone_id="Asia/Tokyo") as seen:
        assert await said_of(seen) == ["limit 15 rows/s by slow start", ""]
        assert await said_of(seen, stage="baseline", because="measuring latency without us") == [
            "limit 15 rows/s by measuring latency without us",
            "",
        ]
        assert (await said_of(seen, stage="slowdown", limit_rows_per_s=0.8, leads="slowdown"))[1] == ""
        blamed = "limit 15 rows/s by read_latency 0.65ms of 3ms"
        assert await said_of(seen, stage="steady") == [blamed, "3 h 12 min"]
        assert await said_of(seen, pressure=1.4) == [blamed, ""]
        ordered = {"leads": "max_rows_per_s", "because": "max_rows_per_s 15"}
        assert await said_of(seen, **ordered) == ["limit 15 rows/s by max_rows_per_s", "3 h 12 min"]
        # A limit far above what it does is not what makes it slow.
        assert (await said_of(seen, limit_rows_per_s=1000))[1] == "3 h 12 min"
        entry = {"detail": {"settle_s": 1, "max_rows_per_s": 5, "late_by_s": 75}}
        told = await seen.page.evaluate(f"import('/page/words.js').then((words) => words.told({json.dumps(entry)}))")
        assert told == "looks again after 1 s, max rows per s: 5, late by: 75 s"
        moment = "import('/page/words.js').then((words) => words.moment('2024-03-05T23:59:58Z'))"
        assert (await seen.page.evaluate(moment)).endswith("23:59:58")
        await seen.page.get_by_text("All times are UTC.").wait_for()


@needs_chromium
async def test_what_is_wrong_with_a_limit_stands_beside_its_field(database: FreshDatabase) -> None:
    open_shop(database)
    settings = for_browsers(database)
    settings["connections"]["main"]["max_rows_per_s"] = 1000
    async with running_daemon(settings) as daemon:
        await submit(daemon.client, cents())
        async with visit(daemon.url) as seen:
            await seen.open_job("orders-cents")
            await seen.page.get_by_role("button", name="Change limit").click()
            limit = seen.page.get_by_role("spinbutton", name="Rows a second")
            await limit.fill("5000")
            await seen.page.get_by_role("button", name="Set limit").click()
            alert = limit.locator("xpath=..").get_by_role("alert")
            assert "1,000" in await alert.inner_text()
            text = await seen.page.get_by_role("dialog").inner_text()
            assert "problem" not in text
            assert "/max_rows" not in text
            assert await limit.get_attribute("aria-invalid") == "true"
            await accessible(seen)
            await limit.fill("150")
            await seen.page.get_by_role("button", name="Set limit").click()
            await seen.page.get_by_role("dialog").wait_for(state="detached")
