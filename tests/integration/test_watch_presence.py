"""Whether somebody else uses a real server, whatever the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from engine.clock import ManualClock
from engine.db import Database
from engine.embedded import EmbeddedServer
from engine.model import Side
from engine.watch.presence import MEMORY_S, Presence
from engine.watch.session import Session
from tests.support.databases import MAJORS, QUIET, FreshDatabase, create_database

# A server of its own: on the shared one other tests have left their signs a moment ago.


@pytest.fixture(scope="module", params=MAJORS, ids=[f"pg{major}" for major in MAJORS])
def empty(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(request.param, settings=QUIET, tcp=True) as server:
        server.sql("CREATE ROLE plain LOGIN")
        yield server


@pytest.fixture
def there(empty: EmbeddedServer) -> FreshDatabase:
    return create_database(empty)


@pytest.fixture
async def presence(there: FreshDatabase) -> AsyncIterator[Presence]:
    made = looking(there, there.dsn)
    yield made
    await made.close()
    await there.close()


CLOCK = ManualClock()
"""Memory runs by this one: ten seconds pass when a test says so."""


def looking(database: FreshDatabase, dsn: str) -> Presence:
    session = Session(Database(dsn, side=Side.TARGET, job="job"), "watch", clock=CLOCK, deadline_s=2.0)
    return Presence(session, CLOCK)


async def settle(presence: Presence) -> None:
    """Signs of this test's preparations are forgotten."""
    await asyncio.sleep(1.1)
    await presence.look()
    await CLOCK.advance(MEMORY_S + 1)
    await presence.look()
    assert presence.alone()


async def test_our_own_sessions_are_nobody(there: FreshDatabase, presence: Presence) -> None:
    await settle(presence)
    ours = [await Database(there.dsn, side=Side.SOURCE, job=job).connect("worker") for job in ("job", "other") * 8]
    sleeping = asyncio.ensure_future(ours[0].fetch("SELECT pg_sleep(0.3)"))
    for connection in ours[1:]:
        await connection.fetchval("SELECT 1")
        await presence.look()
        assert presence.alone()
    await sleeping
    for connection in ours:
        await connection.close()


async def test_a_statement_in_any_database_is_somebody(there: FreshDatabase, presence: Presence) -> None:
    elsewhere = create_database(there.server)
    other = await elsewhere.connect()
    await settle(presence)
    await other.execute("SELECT 1")
    await presence.look()
    assert not presence.alone()
    await settle(presence)
    await other.execute("BEGIN")
    await presence.look()
    assert not presence.alone()
    await settle(presence)  # idle in transaction, and silent: nobody
    await elsewhere.close()


async def test_a_statement_that_goes_on_and_on_is_somebody(there: FreshDatabase, presence: Presence) -> None:
    other = await there.connect()
    await settle(presence)
    sleeping = asyncio.ensure_future(other.execute("SELECT pg_sleep(1.5)"))
    await asyncio.sleep(0.2)
    await presence.look()
    assert not presence.alone()
    await CLOCK.advance(MEMORY_S + 1)
    await presence.look()
    assert not presence.alone()
    await sleeping


async def test_clients_that_come_and_go_at_once_are_counted(there: FreshDatabase, presence: Presence) -> None:
    await settle(presence)
    for _ in range(14):
        there.sql("SELECT 1")  # psql: connects, asks, leaves; what it changed is seen only if it is met
    for _ in range(40):
        await presence.look()
        if not presence.alone():
            break
        await asyncio.sleep(0.05)
    assert not presence.alone()


async def test_who_may_not_see_believes_in_somebody(there: FreshDatabase) -> None:
    blind = looking(there, there.dsn.replace("postgres@", "plain@"))
    other = await there.connect()
    await asyncio.sleep(1.1)
    await blind.look()
    assert not blind.alone()
    there.sql("GRANT pg_read_all_stats TO plain")
    try:
        await settle(blind)
    finally:
        there.sql("REVOKE pg_read_all_stats FROM plain")
    await blind.close()
    await other.close()
    await there.close()
