"""What pacing promises, through the whole engine, on real servers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.embedded import EmbeddedServer
from engine.events import ChunkCancelled, ChunkCommitted, ChunkRetried, DeadlineLate, LeaseLost, PaceChanged
from engine.ledger.orders import PaceOrders, SignalOrder
from engine.spec import ChunkLimits
from engine.spec.pacing import Bloat, Pace
from engine.spec.signals import SignalKind, SignalSpec, SignalUnit
from tests.support.databases import (
    QUIET,
    FreshDatabase,
    create_database,
    on_each_major,
    on_the_newest_and_long_on_others,
)
from tests.support.jobs import SHORT, Running, in_place, start
from tests.support.pacing import (
    Onlooker,
    Somebody,
    filling,
    goes_on,
    held,
    listening_to,
    order,
    stages,
    stays_held,
    until,
    wrong,
)
from tests.support.standby import standby_pair

NAP_S = 0.005
"""Per fifty rows: some 8,000 rows a second and worker, at next to no load."""


# -- a standby that does not follow -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("major", "budget", "reason"),
    [
        (16, SignalSpec(kind=SignalKind.REPLICATION_LAG, maximum=256 * 1024, in_bytes=True), "KiB > 256KiB"),
        pytest.param(18, SignalSpec(kind=SignalKind.REPLICATION_LAG, maximum=1.0), "s > 1s", marks=pytest.mark.long),
    ],
    ids=["16-bytes", "18-seconds"],
)
async def test_a_job_waits_for_its_standby_with_its_leases(major: int, budget: SignalSpec, reason: str) -> None:
    with standby_pair(major) as pair:
        database = create_database(pair.primary)
        running = await start(filling(database, listening_to(budget), nap_s=NAP_S), workers=2)
        look = await Onlooker.at(database)
        await running.until(lambda: running.count(ChunkCommitted) > 5)
        pair.pause()
        said = await held(running, "replication_lag")
        assert said.startswith("replication_lag ")
        assert said.replace("MiB", "KiB").endswith(reason)
        await stays_held(running, look)
        row = await look.row("SELECT held_by, waiting FROM backfill.status")
        assert row["held_by"] == "replication_lag"
        assert row["waiting"].startswith("replication_lag ")
        pair.resume()
        await running.done()
        assert wrong(database) == 0
        assert await look.value("SELECT (waits->>'replication_lag')::float8 FROM backfill.status") > SHORT.lease_s
        assert running.count(LeaseLost) == 0
        await database.close()


# -- somebody waits for a lock ----------------------------------------------------------------------------------------

PATIENT = ChunkLimits(min_rows=10, max_rows=1000, target_s=30.0)


@on_each_major
async def test_a_chunk_that_somebody_waits_for_goes_second(database: FreshDatabase) -> None:
    locks = SignalSpec(kind=SignalKind.LOCK_WAITS)
    running = await start(filling(database, listening_to(locks), rows=3_000, nap_s=0.4, chunk=PATIENT))
    look, shop = await Onlooker.at(database), await database.connect(server_settings={"application_name": "shop"})
    lock = "SELECT FROM t WHERE id = 1 FOR UPDATE SKIP LOCKED"
    while await look.value(f"SELECT count(*) FROM ({lock}) free") != 0:  # the first chunk, of eight seconds, has it
        await asyncio.sleep(0.02)
    began = time.monotonic()
    await shop.execute("UPDATE t SET n = 41 WHERE id = 1")
    assert 0.9 < time.monotonic() - began < 3.5, "after a second, and the half of one between two looks"
    assert running.count(ChunkCommitted) == 0
    await running.until(lambda: running.count(ChunkCancelled) > 0)
    (cancelled,) = [event for event in running.events if isinstance(event, ChunkCancelled)]
    assert " shop waited 1." in cancelled.reason
    await running.until(lambda: running.count(ChunkRetried) > 0)
    assert {event.sqlstate for event in running.events if isinstance(event, ChunkRetried)} == {"57014"}
    await look.value("UPDATE t_naps SET seconds = 0 RETURNING 1")
    await running.done()
    assert wrong(database) == 0
    assert database.sql("SELECT m FROM t WHERE id = 1") == "42"
    first = next(event for event in running.events if isinstance(event, ChunkCommitted))
    assert first.observation.scanned <= 500, "half of the chunk that was in the way"
    assert running.count(LeaseLost) == 0


# -- windows and deadlines --------------------------------------------------------------------------------------------


async def test_outside_its_windows_a_job_waits_with_its_leases(database: FreshDatabase) -> None:
    soon = datetime.now(UTC) + timedelta(hours=2)
    pace = listening_to(windows=[f"{soon:%H}:00-{soon + timedelta(hours=1):%H}:00 UTC"])
    running = await start(filling(database, pace))
    look = await Onlooker.at(database)
    said = await held(running, "window")
    assert said.startswith("outside the windows ")
    assert "; opens in 1h " in said or "; opens in 2h" in said
    await running.until(lambda: running.supervisor.workers[0].span is not None)
    await stays_held(running, look)
    assert running.count(ChunkCommitted) == 0
    assert (await look.value("SELECT waiting FROM backfill.status")).startswith("outside the windows ")
    await running.drained()


async def test_a_window_that_closes_and_opens_during_the_job(database: FreshDatabase) -> None:
    pace = listening_to(windows=["Mon-Fri 10:00-11:00 Asia/Kolkata"], max_rows_per_s=20_000.0)
    running = await start(filling(database, pace))
    hour = datetime.fromisoformat("2026-06-05T10:30:00+05:30")  # a Friday
    running.supervisor._pacer._wall = lambda: hour
    look = await Onlooker.at(database)
    await goes_on(running)
    hour = datetime.fromisoformat("2026-06-05T11:00:00+05:30")
    said = await held(running, "window")
    assert said == "outside the windows Mon-Fri 10:00-11:00 Asia/Kolkata; opens in 2d 23h"
    await stays_held(running, look, seconds=1.0)
    hour = datetime.fromisoformat("2026-06-08T10:00:00+05:30")
    await running.done()
    assert wrong(database) == 0


async def test_a_deadline_that_cannot_be_met_is_told_once(database: FreshDatabase, monkeypatch: Any) -> None:
    monkeypatch.setattr("engine.flow.lateness.FORECAST_EVERY_S", 1.0)
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    pace = listening_to(finish_by=deadline, max_rows_per_s=200.0)  # of 60,000 rows
    running = await start(filling(database, pace))
    look = await Onlooker.at(database)
    await running.until(lambda: running.count(DeadlineLate) > 0)
    await goes_on(running, chunks=8)
    (late,) = [event for event in running.events if isinstance(event, DeadlineLate)]
    assert "cannot be met at the allowed pace: " in late.reason
    late_by_s = await look.value("SELECT (deadline->>'late_by_s')::float8 FROM backfill.status")
    assert 240 < late_by_s < 320, "60,000 rows at 200 a second less the half of a minute"
    await running.drained()


async def test_a_deadline_that_is_past_is_told(database: FreshDatabase) -> None:
    pace = listening_to(finish_by=datetime.now(UTC) - timedelta(hours=1), max_rows_per_s=20_000.0)
    running = await start(filling(database, pace))
    await running.done()
    (late,) = [event for event in running.events if isinstance(event, DeadlineLate)]
    assert late.reason.endswith("the time is up")


@pytest.mark.parametrize("alone", [True, False])
async def test_a_deadline_far_away_is_no_news(database: FreshDatabase, monkeypatch: Any, alone: bool) -> None:
    """Not before the first chunk either, when nobody knows how fast the job is, nor while a baseline is measured."""
    monkeypatch.setattr("engine.flow.lateness.FORECAST_EVERY_S", 0.5)
    signals = () if alone else (SignalSpec(kind=SignalKind.READ_LATENCY),)
    pace = listening_to(*signals, finish_by=datetime.now(UTC) + timedelta(days=2))
    async with Somebody(database):
        running = await start(filling(database, pace, nap_s=NAP_S))
        await running.until(lambda: running.count(ChunkCommitted) > 20)
        await running.drained()
    assert [event.reason for event in running.events if isinstance(event, DeadlineLate)] == []


# -- somebody comes and goes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def empty() -> Iterator[EmbeddedServer]:
    """A server where nobody is: on the shared one other tests have left their signs."""
    with EmbeddedServer(16, settings=QUIET, tcp=True) as server:
        yield server


@pytest.fixture
async def there(empty: EmbeddedServer) -> AsyncIterator[FreshDatabase]:
    database = create_database(empty)
    yield database
    await database.close()


async def test_somebody_comes_and_goes(there: FreshDatabase) -> None:
    running = await start(filling(there, Pace(), rows=800_000, nap_s=NAP_S))
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    await running.until(lambda: stages(running) == ["alone"])
    assert running.supervisor.pace is not None
    assert running.supervisor.pace.rate_per_s is None
    assert running.supervisor._bucket.rate is None
    async with Somebody(there):
        assert await until(lambda: "baseline" in stages(running)) < 2.0
        await held(running, "baseline")
        moved = running.count(ChunkCommitted)
        await until(lambda: "slow start" in stages(running))
        assert running.count(ChunkCommitted) <= moved + 1, "the latency without us is measured without us"
        await goes_on(running)
        pace = running.supervisor.pace
        assert pace.rate_per_s is not None
        assert {view.name for view in pace.signals if view.baseline} == {"read_latency", "commit_latency"}
    gone_at = time.monotonic()
    await until(lambda: stages(running)[-1] == "alone")
    assert 8.0 < time.monotonic() - gone_at < 15.0
    assert running.supervisor._bucket.rate is None
    await running.drained()


async def test_beside_a_foreground_the_first_chunk_comes_after_the_baseline(there: FreshDatabase) -> None:
    async with Somebody(there):
        running = await start(filling(there, Pace(), nap_s=NAP_S))
        began = time.monotonic()
        await running.until(lambda: running.count(ChunkCommitted) > 0)
        assert time.monotonic() - began > 4.0
        await running.drained()
    seen = [event for event in running.events if isinstance(event, PaceChanged | ChunkCommitted)]
    first = next(i for i, event in enumerate(seen) if isinstance(event, ChunkCommitted))
    assert [event.stage for event in seen[:first] if isinstance(event, PaceChanged)][:2] == ["baseline", "slow start"]


async def test_an_order_does_not_make_somebody_forgotten(there: FreshDatabase) -> None:
    """Somebody counts as there for ten seconds after his last statement, whatever is ordered meanwhile."""
    running = await start(filling(there, Pace(), rows=800_000, nap_s=NAP_S))
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    async with Somebody(there):
        await until(lambda: "slow start" in stages(running))
    gone_at = time.monotonic()
    await asyncio.sleep(1.5)
    await order(there, PaceOrders(signals={"commit_latency": SignalOrder(off=True)}))
    since = len(stages(running))
    await until(lambda: len(running.supervisor._pacer._watched) == 2)  # type: ignore[union-attr]
    while time.monotonic() - gone_at < 8.0:
        assert "alone" not in stages(running)[since:]
        await asyncio.sleep(0.1)
    await running.drained()


# -- the table's growth -----------------------------------------------------------------------------------------------

GROWTH = 0.2
WIDE_ROWS = 200_000


def wide(database: FreshDatabase, **settings: Any) -> tuple[Any, int]:
    """A job on a table of 100-byte rows that keeps to a budget; and the bytes of its heap."""
    database.sql(f"""
        CREATE TABLE w (id int PRIMARY KEY, c int, filled int, note text) WITH (autovacuum_enabled = off);
        INSERT INTO w SELECT g, g % 1000, NULL, repeat('x', 64) FROM generate_series(1, {WIDE_ROWS}) g;
        CREATE INDEX ON w (c);
        VACUUM (FREEZE, ANALYZE) w""")
    spec = in_place(
        database, "w", {"filled": "c * 2"}, bloat=Bloat(max_growth=GROWTH), **{"pace": listening_to()} | settings
    )
    return spec, heap_bytes(database)


def heap_bytes(database: FreshDatabase) -> int:
    return int(database.sql("SELECT pg_relation_size('w')"))


def unfilled(database: FreshDatabase) -> int:
    return int(database.sql("SELECT count(*) FROM w WHERE filled IS DISTINCT FROM c * 2"))


@on_the_newest_and_long_on_others
async def test_a_table_stays_in_its_budget(database: FreshDatabase) -> None:
    spec, before = wide(database)
    running = await start(spec, workers=2)
    await running.done()
    assert heap_bytes(database) <= (1 + GROWTH) * before
    assert unfilled(database) == 0
    assert database.sql(f"SELECT heap_bytes = {before} FROM backfill.job") == "t"


async def test_a_successor_keeps_the_budget_of_the_beginning(database: FreshDatabase) -> None:
    spec, before = wide(database)
    first = await start(spec, workers=2)
    await first.until(lambda: rows_moved(first) > WIDE_ROWS * 0.5)
    assert heap_bytes(database) > 1.05 * before, "else the successor has nothing to be wrong about"
    first.supervisor.abort()
    first.task.cancel()
    await asyncio.gather(first.task, return_exceptions=True)
    second = await start(spec, workers=2)
    await second.done()
    assert heap_bytes(database) <= (1 + GROWTH) * before
    assert unfilled(database) == 0


def rows_moved(running: Running) -> int:
    return sum(e.observation.rows for e in running.events if isinstance(e, ChunkCommitted))


# -- orders -----------------------------------------------------------------------------------------------------------


class Told:
    """What ``backfill`` said, run as a process of its own while the job runs in this one."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


async def backfill(database: FreshDatabase, *arguments: str) -> Told:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "engine", *arguments,
        env=os.environ | {"BACKFILL_DSN": database.dsn, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return Told(process.returncode, out.decode(), err.decode())


async def test_a_signal_that_fails_can_be_ordered_off(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE depth AS SELECT 1 AS n")
    queue = SignalSpec(kind=SignalKind.SQL, name="queue", query="SELECT n FROM depth", maximum=5.0)
    running = await start(filling(database, listening_to(queue), nap_s=NAP_S))
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    database.sql("DROP TABLE depth")
    await held(running, "queue")
    told = await backfill(database, "pace", "job", "--off", "queue", "--reason", "queue was dropped")
    assert told.code == 0, told.err
    assert await goes_on(running, chunks=1) < 2.0
    await running.done()
    assert wrong(database) == 0
    history = (await backfill(database, "history", "job")).out
    assert "queue off: none -> true, reason: queue was dropped" in history


async def test_a_limit_of_wal_is_kept(database: FreshDatabase) -> None:
    limit = 512 * 1024
    running = await start(filling(database, listening_to(), rows=400_000, nap_s=NAP_S), workers=2)
    look = await Onlooker.at(database)
    await running.until(lambda: running.count(ChunkCommitted) > 20)
    told = await backfill(database, "pace", "job", "--max-wal-bytes-per-s", "512KiB")
    assert told.code == 0, told.err
    supervisor = running.supervisor
    await until(lambda: supervisor.pace is not None and supervisor.pace.leads == "max_wal_bytes_per_s", 2.0)
    await asyncio.sleep(5.0)  # until what a row costs has been measured under the limit
    position = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
    before, began = await look.value(position), time.monotonic()
    moved = rows_moved(running)
    await asyncio.sleep(5.0)
    per_s = float(await look.value(position) - before) / (time.monotonic() - began)
    assert rows_moved(running) > moved
    assert per_s <= 1.3 * limit, "our rows, and a little that the ledger writes"
    await running.drained()


async def test_orders_on_workers_and_targets_reach_a_running_job(database: FreshDatabase) -> None:
    latency = SignalSpec(kind=SignalKind.READ_LATENCY)
    running = await start(filling(database, listening_to(latency), rows=400_000, nap_s=NAP_S), workers=2)
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    supervisor = running.supervisor
    told = await backfill(
        database, "pace", "job", "--workers", "1", "--target", "read_latency=700ms", "--max", "read_latency=2s"
    )
    assert told.code == 0, told.err

    def in_force() -> bool:
        views = {view.name: view for view in supervisor.pace.signals} if supervisor.pace is not None else {}
        view = views.get("read_latency")
        return view is not None and (view.target, view.maximum) == (0.7, 2.0)

    assert await until(in_force) < 2.0
    await until(lambda: supervisor.workers[1].waiting == "parked", 2.0)
    stored = database.sql("SELECT pace, limit_rows_per_s FROM backfill.job")
    for arguments, hint in (
        (["--target", "read_latncy=5ms"], "did you mean read_latency?"),
        (["--target", "read_latency=3s"], "target is not below max"),
        (["--max", "read_latency=5MiB"], "is not a duration"),
    ):
        refused = await backfill(database, "pace", "job", "--max-rows-per-s", "1", *arguments)
        assert (refused.code, hint in refused.err) == (2, True), refused.err
    assert database.sql("SELECT pace, limit_rows_per_s FROM backfill.job") == stored
    told = await backfill(database, "pace", "job", "--reset")
    assert told.code == 0, told.err
    assert await until(lambda: supervisor.workers[1].waiting != "parked") < 2.0
    await running.drained()


# -- two jobs ---------------------------------------------------------------------------------------------------------

BOTH_PER_S = 4_000.0
TOGETHER = SignalSpec(
    kind=SignalKind.SQL,
    name="together",
    query="SELECT coalesce(sum(rows_per_s), 0) FROM backfill.worker WHERE seen_at > clock_timestamp() - interval '3 s'",
    target=BOTH_PER_S,
    every_s=0.5,
    given_unit=SignalUnit.COUNT,
)
"""A gauge that both of them move, and nothing else: what they do together."""


@pytest.mark.slow
async def test_two_jobs_share_what_there_is(database: FreshDatabase) -> None:
    pace = listening_to(TOGETHER)
    specs = [filling(database, pace, table=f"t{n}", rows=400_000, nap_s=NAP_S, name=f"job{n}") for n in (1, 2)]
    jobs = [await start(spec, seed=n) for n, spec in enumerate(specs)]
    async with Somebody(database):
        for running in jobs:
            await running.until(lambda running=running: "slow start" in stages(running))
        await until(lambda: all("steady" in stages(running) for running in jobs), 60.0)
        before = [rows_moved(running) for running in jobs]
        await asyncio.sleep(10.0)
        moved = [rows_moved(running) - was for running, was in zip(jobs, before, strict=True)]
    assert min(moved) >= 0.25 * sum(moved)
    assert sum(moved) <= 10 * BOTH_PER_S * 1.25
    for running in jobs:
        await running.drained()
