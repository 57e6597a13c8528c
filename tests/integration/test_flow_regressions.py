"""What an independent review found, each as a statement about how a run behaves now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

import engine.db.database
import engine.flow.movers.server_side
import engine.flow.steal
import engine.plan.spans
from engine.db import Database
from engine.errors import PreflightRefused, SchemaDrift, Stopped
from engine.events import (
    ChunkCommitted,
    ChunkRetried,
    Event,
    LeaseLost,
    PhaseChanged,
    SpanClaimed,
    StateChanged,
    Waiting,
    Warned,
)
from engine.flow import Leases, Prepared, Supervisor
from engine.flow.steal import steal
from engine.ledger import Ledger
from engine.model import JobState, Phase, Side
from engine.spec import ChunkLimits, JobSpec, Pace
from tests.support.databases import FreshDatabase, TlsServer, TwoDatabases
from tests.support.gate import Gate
from tests.support.jobs import SHORT, Ran, Running, differing, in_place, into, prepare, rows_of, run, run_to_done, start

ROWS = 5000
SMALL = ChunkLimits(min_rows=10, max_rows=250)
OTHER_WORKER = "00000000-0000-0000-0000-00000000000a"

SLOW_CHUNKS = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.id % 100 = 0 THEN PERFORM pg_sleep({pause_s}); END IF; RETURN NEW; END $$;
CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION wait();
"""


@pytest.fixture
def many_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of a thousand rows instead of fifty thousand."""
    monkeypatch.setattr(engine.plan.spans, "FEWEST_ROWS_PER_SPAN", 1000)


def counting_job(database: FreshDatabase, *, through: Gate | None = None, pause_s: float = 0.0, **settings: Any) -> JobSpec:
    """A job that tells in each row how often it was there."""
    database.sql("CREATE TABLE src (id int PRIMARY KEY, counter int NOT NULL DEFAULT 0)")
    database.sql(f"INSERT INTO src SELECT g FROM generate_series(1, {ROWS}) g; ANALYZE src")
    if pause_s:
        database.sql(SLOW_CHUNKS.format(pause_s=pause_s, table="src"))
    settings = {"chunk": SMALL, "accept": ("TRIGGERS_ON_SOURCE",), "done": "false"} | settings
    where = database if through is None else through.dsn(database.dsn)
    return in_place(where, "src", {"counter": "counter + 1"}, **settings)


def counted_once(database: FreshDatabase) -> bool:
    return database.sql("SELECT min(counter), max(counter), count(*) FROM src") == f"1|1|{ROWS}"


def pair_of_tables(source: FreshDatabase, target: FreshDatabase, *, rows: int = ROWS) -> None:
    """``src`` with rows, ``dst`` without."""
    source.sql(f"CREATE TABLE src (id int PRIMARY KEY, v int); INSERT INTO src SELECT g, g FROM generate_series(1, {rows}) g")
    source.sql("ANALYZE src")
    target.sql("CREATE TABLE dst (id int PRIMARY KEY, v int)")


def run_prepared(prepared: Prepared, *, workers: int = 1, **options: Any) -> Running:
    """Start a prepared job in this loop, with short leases."""
    events: list[Event] = []
    options = {"leases": SHORT, "seed": 1} | options
    return Running(Supervisor(prepared, workers=workers, emit=events.append, **options), events)


def place(databases: TwoDatabases, where: str) -> tuple[FreshDatabase, FreshDatabase]:
    """Source and target of an ``insert`` (one database) or a ``copy`` (two)."""
    return databases.source, databases.source if where == "insert" else databases.target


# -- keys that the target would change ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["insert", "copy"])
@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("timestamptz", "timestamptz(0)"),
        ("timestamp", "timestamp(3)"),
        ("numeric", "numeric(12,2)"),
        ("numeric(14,4)", "numeric(14,2)"),
        ("float8", "float4"),
        ("int", "numeric"),
        ("timestamp", "date"),
        ("text", "char(12)"),
        ("text", "varchar(12)"),
        ("varchar(20)", "varchar(12)"),
        ("varchar(12)", "char(12)"),
    ],
)
async def test_a_key_that_the_target_would_not_keep_as_it_is_is_refused_before_anything_is_touched(
    databases: TwoDatabases, where: str, here: str, there: str
) -> None:
    """Its rows would not be found again at the source, and the sweep would delete them."""
    source, target = place(databases, where)
    source.sql(f"CREATE TABLE src (k {here} PRIMARY KEY, v int)")
    target.sql(f"CREATE TABLE dst (k {there} PRIMARY KEY, v int)")
    with pytest.raises(PreflightRefused) as refused:
        await run(into(source, "src", target, "dst"))
    assert "KEY_CHANGES_VALUE" in [finding.code for finding in refused.value.findings]
    assert target.sql("SELECT to_regnamespace('backfill') IS NULL") == "t"


@pytest.mark.parametrize("where", ["insert", "copy"])
@pytest.mark.parametrize(
    ("here", "there"),
    [("int", "bigint"), ("varchar(12)", "varchar(20)"), ("numeric(10,2)", "numeric(12,4)"), ("char(12)", "text")],
)
async def test_a_key_that_the_target_keeps_in_a_wider_type_arrives(
    databases: TwoDatabases, where: str, here: str, there: str
) -> None:
    source, target = place(databases, where)
    source.sql(f"CREATE TABLE src (k {here} PRIMARY KEY, v int); INSERT INTO src SELECT g, g FROM generate_series(1, 900) g")
    target.sql(f"CREATE TABLE dst (k {there} PRIMARY KEY, v int)")
    await run_to_done(into(source, "src", target, "dst", chunk=SMALL))
    assert target.sql("SELECT count(*), sum(v) FROM dst") == source.sql("SELECT count(*), sum(v) FROM src")


# -- stealing -------------------------------------------------------------------------------------------------------


async def test_thieves_never_take_the_same_rows_however_often_they_steal(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.flow.steal, "WORTH_CHUNKS", 0.1)
    spec = counting_job(database, pause_s=0.005, chunk=ChunkLimits(min_rows=10, max_rows=100))
    ran = await run_to_done(spec, workers=5)
    assert sum(event.stolen for event in ran.of(SpanClaimed)) >= 10
    assert counted_once(database)
    overlaps = """
        SELECT count(*) FROM backfill.span a JOIN backfill.span b ON a.id < b.id
         WHERE int8range(coalesce(a.lo[1]::int, 0), a.hi[1]::int, '(]')
            && int8range(coalesce(b.lo[1]::int, 0), b.hi[1]::int, '(]')
    """
    assert database.sql(overlaps) == "0"
    assert database.sql("SELECT count(*) FROM backfill.span WHERE cursor IS DISTINCT FROM hi") == "0"


async def test_a_worker_that_lost_one_span_and_holds_another_is_not_ended_by_its_successor(
    database: FreshDatabase, many_spans: None
) -> None:
    """The first span goes to somebody else who then dies; his successor finds the loser's session written there."""
    spec = counting_job(database, pause_s=0.1, chunk=ChunkLimits(min_rows=10, max_rows=100))
    running = await start(spec)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    heirs = await prepare(spec)
    disown = f"UPDATE backfill.span SET epoch = epoch + 1, worker = '{OTHER_WORKER}', lease_until = clock_timestamp()"
    database.sql(f"{disown} + interval '4 s' WHERE id = 1")
    await running.until(lambda: running.count(LeaseLost) == 1 and running.count(SpanClaimed) >= 2)
    database.sql("UPDATE backfill.span SET lease_until = clock_timestamp() WHERE id = 1")
    heir = run_prepared(heirs)
    await heir.until(lambda: any(isinstance(e, SpanClaimed) and e.span == 1 for e in heir.events))
    assert running.supervisor.workers[0].span is not None  # the loser is at work, on the session that is written there
    await asyncio.gather(running.done(), heir.done())
    assert counted_once(database)
    for events in (running.events, heir.events):
        assert not [e for e in events if isinstance(e, ChunkRetried)]
        assert JobState.PAUSED not in [e.state for e in events if isinstance(e, StateChanged)]


# -- many tasks, one connection -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["update", "insert", "copy"])
async def test_no_two_tasks_meet_on_one_connection_however_slow_the_wire(
    databases: TwoDatabases, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg: "another operation is in progress"."""
    monkeypatch.setattr(engine.plan.spans, "FEWEST_ROWS_PER_SPAN", 100)
    server = databases.source.server
    async with Gate(server.host, server.port) as gate:
        if mode == "update":
            spec = counting_job(databases.source, through=gate)
        else:
            source, target = place(databases, mode)
            pair_of_tables(source, target, rows=800)
            there = gate.dsn(source.dsn)
            spec = into(there, "src", there if mode == "insert" else gate.dsn(target.dsn), "dst")
        running = await start(spec.model_copy(update={"chunk": ChunkLimits(min_rows=10, max_rows=50)}), workers=4)
        gate.latency_s = 0.005  # for each message
        await running.done()
        assert not [e for e in running.events if isinstance(e, ChunkRetried | LeaseLost | Warned)]
