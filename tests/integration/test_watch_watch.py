"""The watch as a whole: from a spec's signals to readings, with one database and with two."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from engine.clock import SystemClock
from engine.db import Connection, Database
from engine.ledger.store import Ledger
from engine.model import KeyColumn, Side, TableName
from engine.pace.law import OnFailure, Reading, Statistic, Unit
from engine.spec.signals import DEFAULT_SIGNALS, SignalKind, SignalSpec
from engine.watch import Place, Sight, Watch, Watched
from tests.support.databases import FreshDatabase, on_each_major
from tests.support.gate import Gate

CLOCK = SystemClock()
KEY = (KeyColumn("id", "bigint", 20, "int"),)
TABLE = TableName("public", "t")

ALL = (
    *DEFAULT_SIGNALS,
    SignalSpec(kind=SignalKind.REPLICATION_LAG),
    SignalSpec(kind=SignalKind.SLOT_RETENTION, maximum=1e9),
    SignalSpec(kind=SignalKind.ACTIVE_SESSIONS, maximum=40),
    SignalSpec(kind=SignalKind.WAL_RATE, maximum=1e9),
    SignalSpec(kind=SignalKind.WAL_ARCHIVE),
    SignalSpec(kind=SignalKind.VACUUM_DEBT, maximum=0.2),
    SignalSpec(kind=SignalKind.AUTOVACUUM),
    SignalSpec(kind=SignalKind.XID_AGE, maximum=1e9),
    SignalSpec(kind=SignalKind.SQL, name="queue", query="SELECT 5", maximum=10, every_s=0.3),
)


def place(database: FreshDatabase, side: Side, dsn: str = "") -> Place:
    rng = random.Random(5)
    return Place(
        database=Database(dsn or database.dsn, side=side, job="job"),
        table=TABLE,
        key=KEY,
        random_key=lambda: (str(rng.randint(0, 1000)),),
    )


@pytest.fixture
async def ready(database: FreshDatabase) -> FreshDatabase:
    await prepare(database)
    return database


async def prepare(database: FreshDatabase) -> None:
    connection = await Database(database.dsn, side=Side.TARGET).connect("setup")
    await Ledger(connection).ensure()
    await connection.close()
    database.sql("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)")


async def watching(
    signals: tuple[SignalSpec, ...], source: Place, target: Place | None = None, rows: Callable[[], float] = lambda: 0.0
) -> Watch:
    watched = Watched(job="job", signals=signals, source=source, target=target, written=TABLE)
    return await Watch.open(watched, clock=CLOCK, rng=random.Random(1), on_cancel=lambda _: None, rows_committed=rows)


async def see_all(watch: Watch, names: set[str]) -> dict[str, Reading]:
    """The newest reading of each, once there is a good one of all."""
    seen: dict[str, Reading] = {}
    async with asyncio.timeout(15):
        while not (names <= seen.keys() and all(reading.value is not None for reading in seen.values())):
            await asyncio.sleep(0.1)
            seen |= {reading.signal: reading for reading in (await watch.take()).readings}
    return seen


@on_each_major
async def test_every_signal_is_read(ready: FreshDatabase) -> None:
    watch = await watching(ALL, place(ready, Side.SOURCE))
    names = {signal.name for signal in ALL}
    assert {policy.name for policy in watch.policies} == names
    seen = await see_all(watch, names)
    assert seen.keys() == names
    assert seen["queue"].value == 5
    assert 0 < (seen["commit_latency"].value or 0) < 5
    await watch.close()
    async with asyncio.timeout(10):
        while ready.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'backfill/%'") != "0":
            await asyncio.sleep(0.05)


async def test_two_databases_are_told_apart(make_database: Callable[..., FreshDatabase]) -> None:
    source, target = make_database(), make_database()
    source.sql("CREATE TABLE t (id bigint PRIMARY KEY)")
    await prepare(target)
    watch = await watching(ALL, place(source, Side.SOURCE), place(target, Side.TARGET))
    both = {"read_latency", "active_sessions", "lock_waits"}
    names = {f"{signal.name}@target" for signal in ALL if signal.name != "queue"}
    names |= {f"{name}@source" for name in both} | {"queue"}
    assert {policy.name for policy in watch.policies} == names
    assert (await see_all(watch, names)).keys() == names
    await watch.close()


async def test_what_the_law_is_told_of_each(ready: FreshDatabase) -> None:
    ignoring = SignalSpec(
        kind=SignalKind.HTTP, name="freno", url="http://127.0.0.1:9/x", ignore_failure=True, every_s=10.0
    )
    lag = SignalSpec(kind=SignalKind.REPLICATION_LAG, target=2**20, maximum=2**30, in_bytes=True)
    watch = await watching((*DEFAULT_SIGNALS, lag, ignoring), place(ready, Side.SOURCE))
    policies = {policy.name: policy for policy in watch.policies}
    read = policies["read_latency"]
    assert (read.learns, read.foreground, read.statistic, read.on_failure) == (
        True,
        True,
        Statistic.P90,
        OnFailure.FREEZE,
    )
    assert (read.unit, read.window_s, read.stale_after_s) == (Unit.SECONDS, 3.0, 5.0)
    locks = policies["lock_waits"]
    assert (locks.target, locks.maximum, locks.foreground, locks.on_failure) == (None, 1.0, False, OnFailure.HOLD)
    by_bytes = policies["replication_lag"]
    assert (by_bytes.unit, by_bytes.target, by_bytes.maximum) == (Unit.BYTES, 2**20, 2**30)
    assert [name for name, policy in policies.items() if policy.accumulates] == ["replication_lag"]
    check = policies["freno"]
    assert (check.maximum, check.on_failure, check.stale_after_s) == (0.0, OnFailure.IGNORE, 30.0)
    await watch.close()


@on_each_major
async def test_what_a_row_of_ours_costs(ready: FreshDatabase) -> None:
    """Another job writes as much as we do: 18 knows who wrote what, 16 guesses from when it paused."""
    ready.sql("CREATE TABLE ours (a int, b text); CREATE TABLE theirs (a int, b text)")
    ours: Connection = await Database(ready.dsn, side=Side.TARGET, job="job").connect("worker 1")
    theirs = await ready.connect(server_settings={"application_name": "backfill/other/worker 1"})
    rows = 0
    watch = await watching((), place(ready, Side.SOURCE), rows=lambda: float(rows))
    sight = Sight()
    for turn in range(40):
        await ours.execute("INSERT INTO public.ours SELECT i, repeat('x', 300) FROM generate_series(1, 200) i")
        rows += 200
        if turn > 10:
            await theirs.execute("INSERT INTO theirs SELECT i, repeat('x', 300) FROM generate_series(1, 200) i")
        await asyncio.sleep(0.1)
        sight = await watch.take()
        assert sight.readings == (), "nobody asked for wal_rate"
    exact = ours.server.capabilities.own_wal_exact
    assert sight.own_wal_is_exact == exact
    assert sight.own_wal_bytes_per_row == pytest.approx(375, rel=0.3)
    await watch.close()
    await ours.close()


async def test_a_server_that_cannot_be_reached_is_no_reason_not_to_begin(ready: FreshDatabase) -> None:
    async with Gate(ready.server.host, ready.server.port) as gate:
        gate.refusing = True
        watch = await watching(DEFAULT_SIGNALS, place(ready, Side.SOURCE, gate.dsn(ready.dsn)))
        await asyncio.sleep(0.8)
        sight = await watch.take()
        assert not sight.alone
        assert {reading.signal for reading in sight.readings} == {signal.name for signal in DEFAULT_SIGNALS}
        assert all(reading.value is None and reading.error for reading in sight.readings)
        gate.heal()
        await see_all(watch, {signal.name for signal in DEFAULT_SIGNALS})
        await watch.close()


async def test_a_server_that_answers_nothing_ends_neither_the_start_nor_the_close(
    ready: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.watch.watcher.FIRST_LOOK_S", 0.3)
    async with Gate(ready.server.host, ready.server.port) as gate:
        gate.silence()
        async with asyncio.timeout(5):
            watch = await watching(DEFAULT_SIGNALS, place(ready, Side.SOURCE, gate.dsn(ready.dsn)))
            await asyncio.sleep(0.3)
            assert await watch.take() == Sight()
            await watch.close()
