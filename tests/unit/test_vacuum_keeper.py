"""The keeper of a table's growth fails closed, and by nothing that it sees does it end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from engine.clock import ManualClock
from engine.db import Database
from engine.db.vacuum import Heap, Look
from engine.events import Event
from engine.flow.vacuum import LONGEST_PAUSE_S, STALE_S, VacuumKeeper
from engine.model import Side, TableName

MIB = 1 << 20
HEAP = Heap(1, TableName("public", "t"), 100 * MIB, MIB, 1e6, 0, 0, 0, 0, 0, None, may_vacuum=True)
SEEN = Look((HEAP,), next_xid=100, horizon_xid=100, holder="")


class Scene:
    """A keeper whose looks are answered by ``answer``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self.events: list[Event] = []
        self.looks = 0
        self.written = 0.0
        self.told: list[str] = []
        self.answer: Callable[[], Awaitable[Look]] = self.good
        self.keeper = VacuumKeeper(
            Database("postgresql://nowhere.invalid/x", side=Side.TARGET, job="job"),
            HEAP.name,
            start_bytes=HEAP.bytes,
            max_growth=0.2,
            rows_total=1e6,
            rows_written=lambda: self.written,
            clock=self.clock,
            emit=self.events.append,
            job="job",
            on_change=lambda: self.told.append(self.closed),
        )

        async def use(_: Any) -> Look:
            self.looks += 1
            return await self.answer()

        monkeypatch.setattr(self.keeper._looking, "use", use)

    async def good(self) -> Look:
        return SEEN

    async def hanging(self) -> Look:
        await asyncio.Event().wait()
        raise AssertionError

    async def dropped_meanwhile(self) -> Look:
        return replace(SEEN, heaps=(HEAP, replace(HEAP, oid=2, bytes=None)))  # type: ignore[arg-type]

    async def passes(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    @property
    def closed(self) -> str:
        return self.keeper.closed.get("table_growth", "")


@asynccontextmanager
async def running(scene: Scene) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(scene.keeper.run())
    await asyncio.sleep(0)
    try:
        yield task
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_look_that_never_ends_closes_the_gate_although_nothing_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.answer = scene.hanging
    assert scene.closed == "", "it does not run yet"
    async with running(scene):
        await scene.passes(STALE_S)
        assert scene.closed == ""
        await scene.passes(1.0)
        assert scene.closed == "table_growth unknown: not measured for 10s"


async def test_a_look_that_is_late_lets_no_more_pass_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)

    async def grown() -> Look:
        growth = round(scene.written * HEAP.bytes / 1e6)
        return replace(SEEN, heaps=(replace(HEAP, bytes=HEAP.bytes + growth, updates=int(scene.written)),))

    scene.answer = grown
    async with running(scene):
        scene.written = 50_000.0  # of a million: 5 %
        await scene.passes(LONGEST_PAUSE_S)
        assert scene.closed == ""
        scene.answer = scene.hanging
        await scene.passes(LONGEST_PAUSE_S)
        scene.written = 190_000.0
        await scene.passes(0.1)
        assert scene.told == []
        scene.written = 201_000.0
        await scene.passes(0.1)
        assert scene.told == [scene.closed]
        assert scene.closed == "table_growth may exceed 20% before it is measured again"


async def test_what_nobody_expects_is_a_failed_look_and_the_next_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    async with running(scene):
        await scene.passes(5.0)
        scene.answer = scene.dropped_meanwhile
        await scene.passes(5.0)
        assert scene.closed == "", "one look may fail"
        await scene.passes(STALE_S)
        assert scene.closed == "table_growth unknown: unexpected TypeError"
        scene.answer = scene.good
        await scene.passes(1.0)
        assert scene.closed == ""


async def test_however_long_a_look_takes_the_next_one_is_not_far(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.keeper._look_took_s = 4.0
    async with running(scene):
        await scene.passes(1.0)
        looks = scene.looks
        await scene.passes(5 * LONGEST_PAUSE_S)
        assert looks + 4 <= scene.looks <= looks + 6


async def test_a_vacuum_that_fails_in_an_unheard_of_way_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)

    async def bad() -> None:
        raise KeyError("x")

    async with running(scene):
        scene.keeper._working = asyncio.create_task(bad())
        await scene.passes(5.0)
        assert [event.as_json()["message"] for event in scene.events] == ["a VACUUM ended badly: unexpected KeyError"]
        assert scene.keeper._working is None
