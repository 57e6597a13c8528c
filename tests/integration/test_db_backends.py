"""A successor ends exactly the server processes that a former holder left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from engine.db import Database
from engine.db.backends import Ending, terminate_backends
from engine.model import Backend, Side
from tests.support.databases import FreshDatabase, on_each_major

pytestmark = on_each_major


async def test_exactly_those_processes_end(database: FreshDatabase) -> None:
    made = Database(database.dsn, side=Side.TARGET)
    us, old, bystander = [await made.connect(name) for name in ("us", "old", "bystander")]
    running = asyncio.create_task(old.execute("BEGIN; SELECT pg_sleep(60)"))
    another_time = replace(bystander.backend, started="2001-02-03 04:05:06+00")
    gone = Backend(Side.TARGET, 2**22 + 1, "2001-02-03 04:05:06+00")
    outcome = await terminate_backends(us, [old.backend, another_time, gone])
    assert [ended.ending for ended in outcome] == [Ending.ENDED, Ending.GONE, Ending.GONE]
    assert all(ended.is_gone for ended in outcome)
    await asyncio.gather(running, return_exceptions=True)
    assert old.is_closed
    assert await bystander.fetchval("SELECT 1") == 1
    assert (await terminate_backends(us, [old.backend]))[0].ending is Ending.GONE
    for connection in (us, bystander):
        await connection.close()


async def test_a_process_that_cannot_stop_is_reported(database: FreshDatabase) -> None:
    made = Database(database.dsn, side=Side.TARGET)
    us, frozen = await made.connect("us"), await made.connect("frozen")
    os.kill(frozen.backend.pid, signal.SIGSTOP)
    try:
        (ended,) = await terminate_backends(us, [frozen.backend], timeout_s=0.2)
        assert (ended.ending, ended.is_gone) == (Ending.STAYS, False)
    finally:
        os.kill(frozen.backend.pid, signal.SIGCONT)
    frozen.abort()
    await us.close()


async def test_a_process_of_somebody_else_is_reported(database: FreshDatabase) -> None:
    user = f"nobody_{database.name}"
    database.sql(f'CREATE ROLE "{user}" LOGIN')
    theirs = await Database(database.dsn, side=Side.TARGET).connect("theirs")
    us = await Database(database.dsn.replace("postgres@", f"{user}@"), side=Side.TARGET).connect("us")
    (ended,) = await terminate_backends(us, [theirs.backend])
    assert (ended.ending, ended.is_gone) == (Ending.FORBIDDEN, False)
    assert await theirs.fetchval("SELECT 1") == 1
    await us.close()
    await theirs.close()
    database.sql(f'DROP ROLE "{user}"')


async def test_a_session_does_not_end_itself(database: FreshDatabase) -> None:
    us = await Database(database.dsn, side=Side.TARGET).connect("us")
    with pytest.raises(ValueError, match="itself"):
        await terminate_backends(us, [us.backend])
    await us.close()
