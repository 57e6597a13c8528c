"""The status page as a person sees it: a shop with customers, a daemon on TCP, and a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import pytest

from tests.support.daemon import config_of
from tests.support.databases import FreshDatabase

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ALL = ["read", "control", "submit"]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


def for_browsers(database: FreshDatabase, port: int = 0, **settings: Any) -> dict[str, Any]:
    """A configuration that lets every process of this machine in, with all scopes.  ``port``: 0 is any that is free."""
    return config_of(database, listen=f"tcp://127.0.0.1:{port}", auth={"loopback": ALL}, **settings)


def open_shop(database: FreshDatabase, rows: int = 40_000, table: str = "orders") -> None:
    """A table whose job takes as long as its limit says."""
    database.sql(
        f"CREATE TABLE {table} (id bigint PRIMARY KEY, amount numeric(12,2) NOT NULL, amount_cents bigint, note text);"
        f"INSERT INTO {table} SELECT n, n % 1000 + 0.5, NULL, 'note ' || n FROM generate_series(1, {rows}) n;"
        f"ANALYZE {table}"
    )


def cents(name: str = "orders-cents", table: str = "orders", **settings: Any) -> dict[str, Any]:
    """A job that fills a column, slowly, as it is submitted."""
    pace = {"max_rows_per_s": 400, "signals": "off"}
    return {
        "name": name,
        "source": {"connection": "main", "table": f"public.{table}"},
        "set": {"amount_cents": "(amount * 100)::bigint"},
        "pace": pace,
    } | settings


async def submit(client: httpx.AsyncClient, spec: dict[str, Any]) -> None:
    """Begin a job."""
    answer = await client.post("/v1/jobs", json=spec)
    assert answer.status_code == 201, answer.text


@asynccontextmanager
async def customers(database: FreshDatabase, rows: int = 40_000, table: str = "orders") -> AsyncIterator[None]:
    """Others who read and write the table all the while."""
    connection = await asyncpg.connect(database.dsn)

    async def serve() -> None:
        chosen = random.Random(1)
        while True:
            await connection.execute(f"UPDATE {table} SET note = 'new' WHERE id = $1", chosen.randint(1, rows))
            await asyncio.sleep(0.01)

    serving = asyncio.create_task(serve())
    try:
        yield
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        connection.terminate()


@dataclass(slots=True)
class Visit:
    """A tab.  ``requests``: every address that it asked; ``complaints``: what its console said, and what broke."""

    page: Any
    origin: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    async def open_job(self, name: str) -> None:
        """Show one job in detail, and wait until it is there."""
        await self.page.goto(f"{self.origin}/#job={name}")
        await self.page.get_by_role("progressbar", name="Progress").wait_for()

    async def text(self) -> str:
        """All that is written on the page."""
        return str(await self.page.locator("body").inner_text())

    async def until(self, script: str, within_s: float = 60.0) -> None:
        """Wait until an expression is true in the page, which forbids the driver to wait there by itself."""
        deadline = time.monotonic() + within_s
        while not await self.page.evaluate(script):
            assert time.monotonic() < deadline, f"{script}\n{await self.text()}"
            await asyncio.sleep(0.05)

    async def badge(self, text: str, within_s: float = 60.0) -> None:
        """Wait until the job in view is in that state."""
        await self.until(f"document.querySelector('main .top .badge')?.textContent === {text!r}", within_s)

    async def wide_enough(self) -> bool:
        """False when the page has to be scrolled sideways."""
        return bool(await self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@asynccontextmanager
async def visit(
    origin: str, *, width: int = 1100, height: int = 800, dark: bool = False, path: str = "/", **options: Any
) -> AsyncIterator[Visit]:
    """Open the page in a browser of its own."""
    from playwright.async_api import async_playwright

    async with async_playwright() as driver:
        # Debian's Chromium, without its sandbox: tests run as root, on pages of ours.
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = await browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options
        )
        tab = await context.new_page()
        tab.set_default_timeout(60_000)
        seen = Visit(tab, origin)
        tab.on("request", lambda request: seen.requests.append(request.url))
        tab.on("console", lambda message: seen.complaints.append(message.text))
        tab.on("pageerror", lambda error: seen.complaints.append(str(error)))
        try:
            await tab.goto(origin + path)
            yield seen
        finally:
            await browser.close()


async def accessible(seen: Visit) -> None:
    """No rule of axe-core is broken in what the tab shows now."""
    from axe_playwright_python.async_playwright import Axe

    found = (await Axe().run(seen.page)).response["violations"]
    assert not found, [(rule["id"], [node["html"] for node in rule["nodes"]][:3]) for rule in found]
