"""The connection behind probes: one at a time, again and again, never in a hurry."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.clock import ManualClock
from engine.errors import CannotConnect
from engine.watch import ProbeFailed
from engine.watch.session import LONGEST_PAUSE_S, Session


class FakeConnection:
    """Answers with its number, or hangs."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_closed = False
        self.hangs = False
        self.error: Exception | None = None
        self.asking = 0

    async def fetch(self, sql: str, *args: object, timeout_s: float) -> list[Any]:
        self.asking += 1
        assert self.asking == 1, "two questions at once"
        try:
            await asyncio.sleep(0)
            if self.hangs:
                await asyncio.get_running_loop().create_future()
            if self.error is not None:
                raise self.error
            return [self.number]
        finally:
            self.asking -= 1

    def abort(self) -> None:
        self.is_closed = True

    async def close(self) -> None:
        self.is_closed = True


class FakeDatabase:
    """Counts who connects, and refuses while told to."""

    def __init__(self) -> None:
        self.attempts = 0
        self.refuses = False
        self.opened: list[FakeConnection] = []

    async def connect(self, purpose: str, *, data: bool, statement_timeout_s: float) -> FakeConnection:
        self.attempts += 1
        await asyncio.sleep(0)
        if self.refuses:
            raise CannotConnect("nobody listens at host:5432")
        self.opened.append(FakeConnection(self.attempts))
        return self.opened[-1]


def over(database: FakeDatabase, clock: ManualClock, **options: Any) -> Session:
    return Session(database, "watch", clock=clock, deadline_s=1.0, **options)  # type: ignore[arg-type]


async def test_one_connection_serves_all_in_turn() -> None:
    database = FakeDatabase()
    session = over(database, ManualClock())
    assert await asyncio.gather(*(session.ask("SELECT 1") for _ in range(5))) == [[1]] * 5
    assert database.attempts == 1
    await session.close()
    assert database.opened[0].is_closed


async def test_one_that_was_lost_is_replaced() -> None:
    database = FakeDatabase()
    session = over(database, ManualClock())
    await session.ask("SELECT 1")
    database.opened[0].is_closed = True
    assert await session.ask("SELECT 1") == [2]


async def test_attempts_become_rarer_and_never_stop() -> None:
    database, clock = FakeDatabase(), ManualClock()
    database.refuses = True
    session = over(database, clock)
    for _ in range(600):  # ten questions a second, for a minute
        with pytest.raises(ProbeFailed, match="nobody listens at host:5432"):
            await session.ask("SELECT 1")
        await clock.advance(0.1)
    assert 60 / LONGEST_PAUSE_S <= database.attempts <= 60 / LONGEST_PAUSE_S + 5
    database.refuses = False
    await clock.advance(LONGEST_PAUSE_S)
    assert await session.ask("SELECT 1") == [database.attempts]
    database.opened[-1].is_closed = True
    database.refuses = True
    before = database.attempts
    for _ in range(20):
        with pytest.raises(ProbeFailed):
            await session.ask("SELECT 1")
        await clock.advance(0.1)
    assert database.attempts - before in (2, 3), "a success makes the pauses short again"


async def test_a_greeting_that_fails_is_a_failure_to_connect() -> None:
    database, clock = FakeDatabase(), ManualClock()

    async def greet(connection: object) -> None:
        raise ProbeFailed("no such table")

    session = over(database, clock, greet=greet)
    for _ in range(3):
        with pytest.raises(ProbeFailed, match="no such table"):
            await session.ask("SELECT 1")
    assert database.attempts == 1
    assert database.opened[0].is_closed


async def test_whoever_is_cancelled_in_a_question_leaves_no_half_read_answer() -> None:
    database = FakeDatabase()
    session = over(database, ManualClock())
    await session.ask("SELECT 1")
    database.opened[0].hangs = True
    asking = asyncio.ensure_future(session.ask("SELECT 1"))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert database.opened[0].is_closed
    assert await session.ask("SELECT 1") == [2]


async def test_a_late_answer_is_a_failure_in_words() -> None:
    database = FakeDatabase()
    session = over(database, ManualClock())
    await session.ask("SELECT 1")
    database.opened[0].error = TimeoutError()
    with pytest.raises(ProbeFailed, match="timed out after 1s"):
        await session.ask("SELECT 1")
