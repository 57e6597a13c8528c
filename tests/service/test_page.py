"""The status page in a real browser, on a real daemon, with a real job under way."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from engine.service.routes.page import POLICY, page_files
from engine.service.tokens import digest, make_token
from tests.support.daemon import config_of, running_daemon, until_job
from tests.support.databases import FreshDatabase
from tests.support.page import (
    Visit,
    accessible,
    cents,
    customers,
    for_browsers,
    needs_chromium,
    open_shop,
    submit,
    visit,
)

SHARE = "parseInt(document.querySelector('main .big').textContent)"
ON_HEADING = "document.activeElement.tagName === 'H1'"
IN_DIALOG = "document.activeElement.closest('dialog') !== null"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
MOST_BYTES = 40_000


async def tab_to(seen: Visit, text: str) -> None:
    """Press Tab until what is focused says so."""
    for _ in range(30):
        await seen.page.keyboard.press("Tab")
        if await seen.page.evaluate(
            f"document.activeElement.matches('a, button') && document.activeElement.textContent.includes({text!r})"
        ):
            return
    raise AssertionError(f"no way to {text!r} by keyboard")


async def test_the_page_holds_no_data_and_may_speak_to_nobody_else() -> None:
    settings = {"connections": {"main": {"dsn": "postgresql://nobody@127.0.0.1:1/none"}}}
    async with running_daemon(settings) as daemon:
        sent = 0
        for path in ("/", *(f"/page/{name}" for name in page_files() if name != "index.html")):
            answer = await daemon.client.get(path, headers={"accept-encoding": "gzip"})
            assert answer.status_code == 200, path
            assert answer.headers["content-security-policy"] == POLICY
            assert "unsafe" not in POLICY
            sent += int(answer.headers["content-length"])
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), path
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", answer.text), path
        assert sent < MOST_BYTES
        plain = await daemon.client.get("/page/page.js", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == page_files()["page.js"][0]
        for name in ("none.js", "%2e%2e", "%2e%2e%2f%2e%2e%2fconfig.py", "page.py"):
            assert (await daemon.client.get(f"/page/{name}")).status_code == 404


@needs_chromium
async def test_a_job_is_seen_to_move_on_under_a_live_writer(database: FreshDatabase) -> None:
    open_shop(database)
    async with running_daemon(for_browsers(database)) as daemon, customers(database):
        await submit(daemon.client, cents())
        async with visit(daemon.url) as seen:
            await seen.page.get_by_role("link", name="orders-cents").click()
            await seen.badge("running")
            await seen.until(f"{SHARE} >= 3")
            before = await seen.page.evaluate(SHARE)
            await seen.until(f"{SHARE} > {before}")
            text = await seen.text()
            for words in ("of 40.0 k rows", "limit 400 rows/s by max_rows_per_s", "2 workers", "created"):
                assert words in text, words
            chart = seen.page.get_by_role("img", name=re.compile("rows.s now .* limit now 400"))
            await chart.wait_for()
            await seen.until("document.querySelector('svg[role] .rate').getAttribute('d').split('L').length > 4")
            await seen.page.get_by_text("In numbers", exact=True).click()
            await seen.page.get_by_role("row", name=re.compile("limit 400 400 400")).wait_for()
            assert not seen.complaints
            assert all(address.startswith((daemon.url, "data:")) for address in seen.requests), seen.requests


@needs_chromium
async def test_a_job_is_paused_and_resumed_by_keyboard_alone(database: FreshDatabase) -> None:
    open_shop(database)
    async with running_daemon(for_browsers(database)) as daemon:
        await submit(daemon.client, cents())
        async with visit(daemon.url) as seen:
            await seen.page.get_by_role("link", name="orders-cents").wait_for()
            keys = seen.page.keyboard
            await tab_to(seen, "orders-cents")
            await keys.press("Enter")
            await seen.badge("running")
            await seen.until(ON_HEADING)
            await tab_to(seen, "Pause")
            await keys.press("Enter")
            await seen.until(IN_DIALOG)
            await keys.type("lunch")
            await keys.press("Enter")
            await seen.badge("paused")
            await seen.until(ON_HEADING)  # the button is gone
            await seen.page.get_by_role("row", name=re.compile("paused loopback .*“lunch”")).wait_for()
            assert await seen.page.locator("[aria-live]").inner_text() == "orders-cents is paused"
            assert (await until_job(daemon.client, "orders-cents", lambda job: True))["state"] == "paused"
            await tab_to(seen, "Resume")
            await keys.press("Enter")
            await seen.until(IN_DIALOG)
            await keys.press("Escape")
            await seen.until("document.activeElement.textContent === 'Resume…'")  # where it was
            await seen.badge("paused")
            await keys.press("Enter")
            await seen.until(IN_DIALOG)
            await keys.press("Enter")
            await seen.badge("running")
            assert not seen.complaints


@needs_chromium
async def test_a_limit_is_set_unless_somebody_else_has_changed_the_job_meanwhile(database: FreshDatabase) -> None:
    open_shop(database)
    settings = for_browsers(database)
    settings["connections"]["main"]["max_rows_per_s"] = 1000
    async with running_daemon(settings) as daemon:
        await submit(daemon.client, cents())
        async with visit(daemon.url) as seen:
            await seen.open_job("orders-cents")
            await seen.page.get_by_role("button", name="Change limit").click()
            limit = seen.page.get_by_role("spinbutton", name="Rows a second")
            alert = seen.page.get_by_role("dialog").get_by_role("alert")
            # Both come before the stream can tell: the page must not order what its reader has not seen.
            await seen.page.route("**/pace", lambda route: meanwhile(daemon.client, route), times=1)
            await limit.fill("150")
            await seen.page.get_by_role("button", name="Set limit").click()
            await alert.wait_for()
            assert "changed" in await alert.inner_text()
            await limit.fill("5000")
            await seen.page.get_by_role("button", name="Set limit").click()
            await seen.until("document.querySelector('dialog [role=alert]')?.textContent.includes('1,000')")
            await limit.fill("150")
            await seen.page.get_by_role("textbox", name="Reason").fill("the evening rush")
            await seen.page.get_by_role("button", name="Set limit").click()
            await seen.until("document.querySelector('main').innerText.includes('limit 150 rows/s by max_rows_per_s')")
            row = seen.page.get_by_role("row", name=re.compile("max_rows_per_s: 777 → 150, “the evening rush”"))
            await row.wait_for()
            assert (await until_job(daemon.client, "orders-cents", lambda job: True))["pace"]["max_rows_per_s"] == 150


async def meanwhile(client: Any, route: Any) -> None:
    """Somebody else is faster."""
    answer = await client.patch("/v1/jobs/orders-cents/pace", json={"max_rows_per_s": 777})
    assert answer.status_code == 200
    await route.continue_()


@needs_chromium
async def test_a_job_is_cancelled_only_when_that_is_confirmed(database: FreshDatabase) -> None:
    open_shop(database)
    async with running_daemon(for_browsers(database)) as daemon:
        await submit(daemon.client, cents())
        async with visit(daemon.url) as seen:
            await seen.open_job("orders-cents")
            cancel = seen.page.get_by_role("button", name="Cancel…")
            await cancel.click()
            await seen.page.get_by_role("button", name="Leave it").click()
            assert (await until_job(daemon.client, "orders-cents", lambda job: True))["state"] == "running"
            await cancel.click()
            await seen.page.get_by_role("textbox", name="Reason").fill(HOSTILE)
            await seen.page.get_by_role("button", name="Cancel the job").click()
            await seen.badge("cancelled")
            assert await seen.page.locator("main button:visible").count() == 0
            await seen.page.get_by_role("row", name=re.compile("cancelled .*onerror")).wait_for()
            await seen.page.get_by_role("link", name="All jobs").click()
            await seen.page.get_by_text(HOSTILE).wait_for()
            assert await seen.page.locator("main img, main script").count() == 0
            assert await seen.page.title() == "Jobs · backfill"
            assert not seen.complaints


@needs_chromium
async def test_a_token_that_may_only_read_shows_all_and_orders_nothing(database: FreshDatabase, tmp_path: Path) -> None:
    open_shop(database)
    token, other = make_token(), make_token()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tokens.looker]\nsha256 = "{digest(token)}"\nscopes = ["read"]\n')
    tokens.chmod(0o600)
    sockets = tmp_path / "sockets"
    sockets.mkdir(mode=0o700)
    listen = [f"unix://{sockets}/backfill.sock", "tcp://127.0.0.1:0"]
    settings = config_of(database, listen=listen, auth={"tokens_file": str(tokens)})
    async with running_daemon(settings) as daemon:
        await submit(daemon.client, cents())
        async with visit(daemon.urls[1]) as seen:
            asked = seen.page.get_by_role("textbox", name="Token")
            await asked.fill(other)
            await asked.press("Enter")
            await seen.page.get_by_role("alert").wait_for()
            await asked.press("Escape")
            await asked.fill(token)
            await asked.press("Enter")
            await seen.page.get_by_role("link", name="orders-cents").click()
            await seen.badge("running")
            assert "token looker: read" in await seen.text()
            assert await seen.page.locator("main button:visible").count() == 0
            assert not any(token in address or other in address for address in seen.requests)
            assert await seen.page.evaluate("Object.values(localStorage).concat(document.cookie).join('')") == ""
            tokens.write_text("")  # taken away while he looks
            await seen.page.reload()
            await asked.wait_for()
            assert token not in await seen.page.content()


@needs_chromium
async def test_a_ledger_without_jobs_says_what_to_do(database: FreshDatabase) -> None:
    async with running_daemon(for_browsers(database)) as daemon, visit(daemon.url) as seen:
        await seen.page.get_by_role("heading", name="No jobs yet").wait_for()
        assert f"backfill run job.yaml --daemon {daemon.url}" in await seen.text()
        await seen.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await seen.page.get_by_role("button", name="Copy").click()
        await seen.page.get_by_role("button", name="Copied").wait_for()
        copied = await seen.page.evaluate("navigator.clipboard.readText()")
        assert copied == f"backfill run job.yaml --daemon {daemon.url}"
        await accessible(seen)
        assert not seen.complaints


@needs_chromium
async def test_a_held_job_names_its_signal_and_a_failed_one_what_to_do(database: FreshDatabase) -> None:
    open_shop(database, 5000)
    database.sql("CREATE TABLE mails (id int); INSERT INTO mails SELECT generate_series(1, 500)")
    open_shop(database, 100, "broken")
    queue = {"sql": {"query": "SELECT count(*) FROM mails", "max": 100}}
    settings = for_browsers(database, signals={"mail_queue": queue})
    async with running_daemon(settings) as daemon:
        others = [{name: "off"} for name in ("read_latency", "commit_latency", "lock_waits")]
        await submit(daemon.client, cents(pace={"signals": [*others, "mail_queue"]}))
        failing = {"amount_cents": "(amount / (id - 50))::bigint"}
        await submit(daemon.client, cents("broken-cents", "broken", set=failing))
        async with visit(daemon.url) as seen:
            await seen.page.get_by_text(re.compile("held: mail_queue 500 > 100, since .*s\\)")).wait_for()
            await seen.page.get_by_role("link", name="orders-cents").click()
            await seen.badge("held")
            await seen.page.get_by_text(re.compile("Held by mail_queue: mail_queue 500 > 100, since")).wait_for()
            await seen.page.get_by_role("row", name=re.compile("mail_queue 500 . 100 .* holds")).wait_for()
            await until_job(daemon.client, "broken-cents", lambda job: job["state"] == "failed")
            await seen.open_job("broken-cents")
            await seen.badge("failed")
            text = await seen.text()
            assert "division by zero" in text
            assert (await until_job(daemon.client, "broken-cents", lambda job: True))["error"]["hint"] in text


@needs_chromium
async def test_a_job_that_is_done_shows_its_proof(database: FreshDatabase) -> None:
    open_shop(database, 300)
    async with running_daemon(for_browsers(database)) as daemon:
        await submit(daemon.client, cents(pace={"signals": "off"}, verify="after"))
        async with visit(daemon.url) as seen:
            await seen.open_job("orders-cents")
            await seen.badge("done")
            text = await seen.text()
            for words in (r"100 %", r"verified", r"Outcome\s+passed", r"Verified\s+yes", r"Mismatched\s+0"):
                assert re.search(words, text), words
            assert [await one.inner_text() for one in await seen.page.locator("main button:visible").all()] == []


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_everybody_can_use_it_from_360_pixels_up(database: FreshDatabase, dark: bool) -> None:
    open_shop(database)
    async with running_daemon(for_browsers(database)) as daemon:
        await submit(daemon.client, cents(name="orders-" + "very-long-" * 5 + "cents"))
        async with visit(daemon.url, width=360, height=740, dark=dark) as seen:
            link = seen.page.get_by_role("link", name="very-long")
            await link.wait_for()
            ground = await seen.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground))) < 3 * 64) is dark
            assert await seen.wide_enough()
            await accessible(seen)
            await link.click()
            await seen.badge("running")
            await seen.until("document.querySelectorAll('figure svg path').length > 1")
            assert await seen.wide_enough()
            await accessible(seen)
            await seen.page.get_by_role("button", name="Change limit").click()
            assert await seen.wide_enough()
            await accessible(seen)
            await seen.page.keyboard.press("Escape")
            await seen.page.get_by_label("Colours").select_option("light" if dark else "dark")
            turned = await seen.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            assert turned != ground
            assert not seen.complaints


@needs_chromium
async def test_a_tab_that_nobody_sees_asks_for_nothing(database: FreshDatabase) -> None:
    async with running_daemon(for_browsers(database)) as daemon, visit(daemon.url) as seen:
        hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
        async with seen.page.expect_request("**/v1/jobs*"):
            pass  # asked again and again
        await seen.page.evaluate(hide % "true")
        async with seen.page.expect_response("**/livez"):
            await seen.page.evaluate("fetch('/livez').then(() => 0)")  # what was under way is told before this
        before = len(seen.requests)
        await seen.page.wait_for_timeout(2500)  # longer than from one look to the next
        assert len(seen.requests) == before
        # At once, and not at the next look: within the very event.
        looking = f"""async () => {{
            let asked = 0;
            const honest = window.fetch;
            window.fetch = (...given) => {{ asked += 1; return honest(...given); }};
            {hide % "false"};
            document.dispatchEvent(new Event("visibilitychange"));
            await null;
            window.fetch = honest;
            return asked;
        }}"""
        async with seen.page.expect_request("**/v1/jobs*"):
            assert await seen.page.evaluate(looking) == 1


@needs_chromium
async def test_many_jobs_come_by_the_page_and_by_their_state(database: FreshDatabase) -> None:
    open_shop(database, 10)
    idle = {"main": {"dsn": database.dsn, "tables": ["*.*"]}}
    async with running_daemon(for_browsers(database, connections=idle)) as daemon:
        for number in range(5):
            await submit(daemon.client, cents(f"job-{number}"))
        assert (await daemon.client.post("/v1/jobs/job-3/pause")).is_success
        async with visit(daemon.url) as seen:
            # As if there were as many jobs as fill a page of fifty.
            await seen.page.route(
                "**/v1/jobs?*", lambda route: route.continue_(url=route.request.url.replace("limit=50", "limit=3"))
            )
            await seen.page.reload()

            async def listed(*names: str) -> None:
                links = "[...document.querySelectorAll('main tbody tr a')].map((one) => one.innerText).join()"
                await seen.until(f"{links} === {','.join(names)!r}")

            await listed("job-4", "job-3", "job-2")
            await seen.page.get_by_role("button", name="Older jobs").click()
            await listed("job-4", "job-3", "job-2", "job-1", "job-0")
            await seen.page.get_by_label("State").select_option("paused")
            await listed("job-3")
            await seen.page.get_by_label("State").select_option("failed")
            await seen.page.get_by_text("No job is failed.").wait_for()
            assert not seen.complaints


@needs_chromium
async def test_the_chart_begins_with_what_the_daemon_saw_before_the_page_was_opened(database: FreshDatabase) -> None:
    open_shop(database)
    async with running_daemon(for_browsers(database)) as daemon:
        await submit(daemon.client, cents())
        while len((await daemon.client.get("/v1/jobs/orders-cents/recent")).json()["moments"]) < 2:
            await asyncio.sleep(0.1)
        async with visit(daemon.url, path="/#job=orders-cents") as seen:
            await seen.until("document.querySelector('svg[role] .rate')?.getAttribute('d').includes('L')")
            left = "parseFloat(document.querySelector('svg[role] .rate').getAttribute('d').slice(1))"
            wide = await seen.page.evaluate("document.querySelector('svg[role]').clientWidth")
            assert await seen.page.evaluate(left) < wide - 40  # a minute is as wide as the chart: more than two seconds
