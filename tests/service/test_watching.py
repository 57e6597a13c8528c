"""The stream of what happens to a job: whole, in order, across daemons that end and databases that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from engine.db import Database
from engine.ledger import Ledger
from engine.model import Side
from engine.service.routes import watching
from engine.service.watcher import MOST_WAITING, News
from tests.support.api import begin, idle, of
from tests.support.daemon import RunningDaemon, config_of, running_daemon
from tests.support.databases import FreshDatabase

WITHIN_S = 20.0


@dataclass
class Event:
    """One event of a stream; ``name`` empty: a comment."""

    name: str
    data: Any = None
    id: int | None = None


class Stream:
    """A stream that is read event by event."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self, *wanted: str) -> Event:
        """The next event of these names (else: any event that is no comment)."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                event = await self._event()
                if event.name in wanted or (not wanted and event.name):
                    return event

    async def rest(self) -> list[Event]:
        """All that comes until the stream's end."""
        events = []
        async with asyncio.timeout(WITHIN_S):
            try:
                while True:
                    events.append(await self._event())
            except StopAsyncIteration:
                return events

    async def _event(self) -> Event:
        event = Event("")
        async for line in self._lines:
            key, _, value = line.partition(": ")
            if not line:
                return event
            if line.startswith(":"):
                event.data = line
            elif key == "event":
                event.name = value
            elif key == "id":
                event.id = int(value)
            elif key == "data":
                event.data = json.loads(value)
        raise StopAsyncIteration


@asynccontextmanager
async def stream(daemon: RunningDaemon, job: str = "job", after: int | None = None) -> AsyncIterator[Stream]:
    """The events of a job."""
    headers = {} if after is None else {"last-event-id": str(after)}
    async with daemon.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Stream(answer)


async def history(daemon: RunningDaemon, job: str = "job") -> list[dict[str, Any]]:
    """The whole history."""
    entries: list[dict[str, Any]] = (await of(await daemon.client.get(f"/v1/jobs/{job}/history?limit=1000")))["entries"]
    return entries


async def test_a_stream_begins_with_the_status_and_tells_what_happens(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon, stream(daemon) as events:
        first = await events.next()
        assert (first.name, first.data["state"]) == ("status", "planned")
        await daemon.client.post("/v1/jobs/job/pause", json={"reason": "lunch"})
        told = await events.next()
        assert (told.name, told.data["what"], told.data["detail"]["reason"]) == ("history", "paused", "lunch")
        assert told.id == told.data["id"]
        assert (await events.next("status")).data["state"] == "paused"
        await daemon.client.post("/v1/jobs/job/cancel")
        last = [event.name for event in await events.rest() if event.name]
        assert last == ["history", "status", "end"]


async def test_the_stream_of_a_job_that_is_over_says_so_and_ends(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        await daemon.client.post("/v1/jobs/job/cancel")
        async with stream(daemon, after=0) as events:
            names = [event.name for event in await events.rest() if event.name]
        assert names == ["history", "history", "status", "end"]


async def test_a_stream_goes_on_after_the_daemon_was_started_again_and_nothing_is_lost_or_doubled(
    database: FreshDatabase,
) -> None:
    await begin(database)
    connection = await Database(database.dsn, side=Side.TARGET).connect("test")
    ledger, told, last = Ledger(connection), list[int](), 0
    stopped = asyncio.Event()

    async def happen() -> None:
        n = 0
        while not stopped.is_set():
            n += 1
            await ledger.record("job", "note", {"n": n})
            await asyncio.sleep(0.005)
        await ledger.cancel("job", None)

    happening = asyncio.create_task(happen())
    ended = False
    for _ in range(4):
        async with running_daemon(idle(database)) as daemon:
            async with stream(daemon, after=last) as events:
                for _ in range(40):
                    told.append((await events.next("history")).id or 0)
                daemon.daemon.drain("test")
                rest = await events.rest()
            told += [event.id or 0 for event in rest if event.name == "history"]
            last = told[-1]
            assert rest[-1].name == ""
            assert "end" in rest[-1].data
    stopped.set()
    await happening
    async with running_daemon(idle(database)) as daemon:
        async with stream(daemon, after=last) as events:
            for event in await events.rest():
                ended = ended or event.name == "end"
                told += [event.id or 0] if event.name == "history" else []
        entries = await history(daemon)
    await connection.close()
    assert ended
    assert len(entries) > 160
    assert told == [entry["id"] for entry in entries]


async def test_a_long_history_comes_whole_before_the_end(database: FreshDatabase) -> None:
    await begin(database)
    database.sql(
        "INSERT INTO backfill.event (job, what) SELECT 'job', 'note' FROM generate_series(1, 1) n,"
        f" generate_series(1, {2 * MOST_WAITING - 1}) m"
    )
    async with running_daemon(idle(database)) as daemon:
        await daemon.client.post("/v1/jobs/job/cancel")
        async with stream(daemon, after=0) as events:
            told = await events.rest()
        assert [event.id for event in told if event.name == "history"] == [e["id"] for e in await history(daemon)]
        assert told[-1].name == "end"


async def test_lines_become_visible_in_the_order_of_their_numbers(database: FreshDatabase) -> None:
    """Two at once: the one that commits later must not have the smaller number, or a reader would step over it."""
    await begin(database)
    first = await Database(database.dsn, side=Side.TARGET).connect("test")
    second = await Database(database.dsn, side=Side.TARGET).connect("test")
    await first.execute("BEGIN")
    await Ledger(first).record("job", "first", {})
    waiting = asyncio.create_task(Ledger(second).record("job", "second", {}))
    blocked = f"SELECT count(*) FROM pg_stat_activity WHERE {second.backend.pid} = pid AND wait_event_type = 'Lock'"
    async with asyncio.timeout(WITHIN_S):
        while database.sql(blocked) == "0":
            assert not waiting.done()
            await asyncio.sleep(0.01)
    await first.execute("COMMIT")
    await waiting
    assert database.sql("SELECT string_agg(what, ' ' ORDER BY id) FROM backfill.event") == "created first second"
    await first.close()
    await second.close()


async def test_a_database_that_goes_away_is_told_and_the_stream_goes_on_behind_it(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon, stream(daemon) as events:
        await events.next("status")
        database.server.sql(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false", "postgres")
        try:
            database.server.sql(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'backfill/%'"
                f" AND datname = '{database.name}'",
                "postgres",
            )
            trouble = await events.next()
            assert trouble.name == "trouble"
            assert database.dsn not in trouble.data["message"]
        finally:
            database.server.sql(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true", "postgres")
        assert (await events.next("status")).data["state"] == "planned"
        await daemon.client.post("/v1/jobs/job/pause")
        assert (await events.next("history")).data["what"] == "paused"


async def test_a_job_that_is_removed_ends_its_stream(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon, stream(daemon) as events:
        await events.next("status")
        await of(await daemon.client.delete("/v1/jobs/job"))
        told = await events.rest()
        whats = [event.data["what"] for event in told if event.name == "history"]
        assert whats in (["cancelled"], ["cancelled", "cleanup"])  # it is over with the first of them
        assert told[-1].name == "end"


class Busy:
    """A station whose job always has news, and a daemon that watches it."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()
        self.watcher = self.doorkeeper = self

    @asynccontextmanager
    async def watch(self, *_: Any) -> AsyncIterator[Busy]:
        yield self

    def still_knows(self, _: Any) -> bool:
        return True

    async def next(self) -> News:
        return News(trouble="there is always something")

    def stream(self) -> AsyncGenerator[bytes, None]:
        call: Any = SimpleNamespace(daemon=self, identity=None, path={"job": "job"})
        return cast("AsyncGenerator[bytes, None]", watching._stream(call, cast("Any", self), None))


async def test_the_stream_of_a_busy_job_ends_when_the_daemon_does() -> None:
    busy = Busy()
    stream = busy.stream()
    assert [(await anext(stream)).split(b":")[0] for _ in range(3)] == [b"retry", b"event", b"event"]
    busy.draining.set()
    async with asyncio.timeout(WITHIN_S):
        rest = []
        async for piece in stream:
            rest.append(piece)
            assert len(rest) < 100
    assert rest[-1].startswith(b": this daemon is about to end")


async def test_whoever_leaves_a_stream_at_once_leaves_nothing_behind() -> None:
    before, stream = asyncio.all_tasks(), Busy().stream()
    assert (await anext(stream)).startswith(b"retry")
    await stream.aclose()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_silent_stream_shows_that_it_lives(database: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "HEARTBEAT_S", 0.2)
    await begin(database)
    async with running_daemon(idle(database)) as daemon, stream(daemon) as events:
        await events.next("status")
        assert (await events.next("")).data == ": still there"


async def test_a_last_event_that_is_none_of_ours_is_refused(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        for after in ("x", "-1", "9" * 30, "1.5"):
            answer = await daemon.client.get("/v1/jobs/job/events", headers={"last-event-id": after})
            assert (await of(answer, 400))["errors"][0]["parameter"] == "last-event-id"


async def test_whoever_leaves_leaves_nothing_behind(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        watcher = daemon.daemon.stations["main"].watcher
        for _ in range(20):
            async with stream(daemon) as events:
                await events.next("status")
        async with asyncio.timeout(WITHIN_S):
            while watcher.watched:
                await asyncio.sleep(0.01)
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backfill/watch'"
        assert int(database.sql(left)) <= 1


async def test_history_is_paged_and_has_no_addresses(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        for n in range(5):
            secret = f"see https://example.org/hook?token=s3cret {n}"
            await daemon.client.post("/v1/jobs/job/pause", json={"reason": secret})
            await daemon.client.post("/v1/jobs/job/resume")
        assert "s3cret" not in (await daemon.client.get("/v1/jobs/job/history")).text
        entries, after = [], "0"
        while after is not None:
            page = await of(await daemon.client.get(f"/v1/jobs/job/history?limit=4&after={after}"))
            entries += page["entries"]
            after = page["next"]
        assert entries == await history(daemon)
        newest = await of(await daemon.client.get("/v1/jobs/job/history?last=2"))
        assert newest["entries"] == entries[-2:]
        assert (await of(await daemon.client.get("/v1/jobs/job/history?since=1h")))["entries"] == entries


async def test_a_running_job_shows_its_progress_in_the_stream(database: FreshDatabase) -> None:
    await begin(database, rows=3000)
    async with running_daemon(config_of(database)) as daemon, stream(daemon, after=0) as events:
        told = await events.rest()
        assert told[-1].name == "end"
        assert [e.data["what"] for e in told if e.name == "history"][-1] == "done"
        assert [e.data["rows_done"] for e in told if e.name == "status"][-1] == 3000
