"""Pictures of the status page for the documents: real jobs of a shop with customers, on a private server.

``make page-pictures`` writes them to ``docs/pictures``; it takes some three minutes, since charts have to fill.
"""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any, Final

import asyncpg

from engine.cli import demo_shop
from engine.cli.demo_shop import Customers
from engine.clock import SystemClock
from engine.embedded import EmbeddedServer
from tests.support.daemon import running_daemon, until_job
from tests.support.databases import FreshDatabase
from tests.support.page import Visit, cents, for_browsers, submit, visit

FOLDER: Final = Path(__file__).parents[2] / "docs" / "pictures"
ROWS: Final = 2_000_000
FILL_S: Final = 100.0
"""How long a chart is filled before it is drawn."""

COLUMNS: Final = ("id", "customer_id", "status", "note", "created_at", "flag")


def moving() -> dict[str, Any]:
    """The job of the demonstration, as it is submitted to a daemon."""
    return {
        "name": "orders-to-orders-v2",
        "source": {"connection": "main", "table": "public.orders"},
        "target": {"table": "public.orders_v2"},
        "columns": {name: name for name in COLUMNS} | {"amount_cents": "(amount * 100)::bigint"},
        "pace": {"max_rows_per_s": 6000},
    }


async def fill(database: FreshDatabase) -> None:
    """The shop, and some tables beside it."""
    connection = await asyncpg.connect(database.dsn)
    await demo_shop.open_shop(connection, ROWS)
    await demo_shop.expand(connection)
    for table, rows in (("customers", 400_000), ("invoices", 60_000), ("sessions", 500), ("baskets", 20_000)):
        await connection.execute(
            f"CREATE TABLE {table} (id bigint PRIMARY KEY, amount numeric(12,2), amount_cents bigint);"
            f"INSERT INTO {table} SELECT n, n % 1000 FROM generate_series(1, {rows}) n"
        )
    await connection.execute("CREATE TABLE mails (id int); INSERT INTO mails SELECT generate_series(1, 500)")
    await connection.execute("ANALYZE")
    await connection.close()


async def begin(client: Any) -> None:
    """One job of every kind."""
    slow = {"max_rows_per_s": 200, "signals": "off"}
    await submit(client, cents("baskets-cents", "baskets", pace={"signals": "off"}, verify="after"))
    failing = {"amount_cents": "(amount / (id - 400))::bigint"}
    await submit(client, cents("sessions-cents", "sessions", set=failing, pace={"signals": "off"}))
    await until_job(client, "sessions-cents", lambda job: job["state"] == "failed")
    await submit(client, cents("invoices-cents", "invoices", pace=slow))
    await until_job(client, "invoices-cents", lambda job: job["progress"] > 0.01)
    paused = await client.post("/v1/jobs/invoices-cents/pause", json={"reason": "the books are being closed"})
    assert paused.is_success, paused.text
    await until_job(client, "baskets-cents", lambda job: job["state"] == "done")
    await submit(client, cents("customers-cents", "customers", pace={"max_rows_per_s": 500, "signals": ["mail_queue"]}))
    await submit(client, moving())


async def shoot(seen: Visit, name: str, *, whole: bool = True) -> None:
    """One picture."""
    await seen.page.wait_for_timeout(2500)
    path = FOLDER / f"page-{name}.png"
    await seen.page.screenshot(path=path, full_page=whole)
    assert not seen.complaints, seen.complaints
    print(f"{path.name}: {path.stat().st_size:,} bytes")


async def take(database: FreshDatabase) -> None:
    """All of them."""
    queue = {"sql": {"query": "SELECT count(*) FROM mails", "max": 600}}
    settings = for_browsers(database, signals={"mail_queue": queue})
    settings["connections"]["main"] |= {"jobs": 4, "tables": ["public.*"]}
    async with (
        running_daemon(settings) as daemon,
        Customers(database.dsn, ROWS, SystemClock(), random.Random(1)),
        visit(daemon.url) as light,
        visit(daemon.url, dark=True) as dark,
        visit(daemon.url, width=360, height=740) as narrow,
        visit(daemon.url) as other,
    ):
        await begin(daemon.client)
        for seen in (light, dark):
            await seen.open_job("orders-to-orders-v2")
        await other.open_job("customers-cents")
        await asyncio.sleep(FILL_S / 2)
        order = {"max_rows_per_s": 3000, "reason": "the evening rush"}
        assert (await daemon.client.patch("/v1/jobs/orders-to-orders-v2/pace", json=order)).is_success
        database.sql("INSERT INTO mails SELECT generate_series(1, 412)")
        await asyncio.sleep(FILL_S / 2)
        await shoot(light, "running")
        await shoot(dark, "dark")
        await other.badge("held")
        await shoot(other, "held")
        await light.page.goto(daemon.url + "/#")
        await light.page.get_by_role("link", name=re.compile("orders-to")).wait_for()
        await shoot(light, "list", whole=False)
        await shoot(narrow, "narrow", whole=False)


def main() -> None:
    """Start a server, fill it, and take pictures."""
    server = EmbeddedServer(16, settings={"shared_buffers": "256MB", "max_wal_size": "2GB"}, tcp=True)
    try:
        server.start()
        server.sql("CREATE DATABASE shop")
        database = FreshDatabase(server, "shop")

        async def all_of_it() -> None:
            await fill(database)
            await take(database)

        asyncio.run(all_of_it())
    finally:
        server.discard()


if __name__ == "__main__":
    main()
