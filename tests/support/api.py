"""What tests of the daemon's API share: a table, a job on it, configurations whose daemon works nothing, answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from engine.db import Database
from engine.flow import opening
from engine.ledger import Ledger
from engine.model import Side
from tests.support.daemon import config_of
from tests.support.databases import FreshDatabase, TwoDatabases
from tests.support.jobs import in_place, prepare


def idle(database: FreshDatabase, *, main: Mapping[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """A configuration whose daemon works no job.  ``main``: more about its one connection."""
    connection = {"dsn": database.dsn, "tables": ["public.*"]} | dict(main or {})
    return config_of(database, **{"connections": {"main": connection}} | settings)


def two_connections(databases: TwoDatabases, **settings: Any) -> dict[str, Any]:
    """A configuration of two ledgers whose jobs nobody works."""
    connections = {
        "one": {"dsn": databases.source.dsn, "tables": ["*.*"]},
        "other": {"dsn": databases.target.dsn, "tables": ["*.*"]},
    }
    return config_of(databases.source, **{"connections": connections} | settings)


def shop(database: FreshDatabase, rows: int = 500) -> None:
    """A table to fill."""
    database.sql(
        "CREATE TABLE shop (id bigint PRIMARY KEY, amount int, cents int);"
        f"INSERT INTO shop SELECT n, n FROM generate_series(1, {rows}) n;"
    )


def spec(name: str | None = "cents", **settings: Any) -> dict[str, Any]:
    """A job in place on ``shop``, without signals, as JSON."""
    job = {
        "name": name,
        "source": {"connection": "main", "table": "public.shop"},
        "set": {"cents": "amount * 100"},
        "pace": {"signals": "off"},
        "accept": ["DUAL_WRITE_MISSING"],
    }
    return {key: value for key, value in (job | settings).items() if value is not None}


async def begin(database: FreshDatabase, name: str = "job", *, rows: int = 100, **settings: Any) -> None:
    """A job on ``shop`` that is planned, and that nobody works; makes the table where there is none."""
    database.sql(
        "CREATE TABLE IF NOT EXISTS shop (id bigint PRIMARY KEY, amount int, cents int);"
        f"INSERT INTO shop SELECT n, n FROM generate_series(1, {rows}) n ON CONFLICT DO NOTHING;"
    )
    prepared = await prepare(in_place(database, "shop", {"cents": "amount * 100"}, name=name, **settings))
    connection = await Database(database.dsn, side=Side.TARGET).connect("test")
    ledger = Ledger(connection)
    await ledger.ensure()
    await opening.open_job(ledger, prepared, {Side.TARGET: connection})
    await connection.close()


async def of(answer: httpx.Response, status: int = 200) -> Any:
    """What was answered, with the status that was to be."""
    assert answer.status_code == status, answer.text
    return answer.json()
