"""What an independent review found, each as a statement about how a run behaves now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import engine.db.database
import engine.flow.movers.server_side
import engine.flow.steal
import engine.plan.spans
from engine.db import Database
from engine.errors import HeldByOperator, PreflightRefused, SchemaDrift, Stopped
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
from engine.ledger import Ledger
from engine.model import Deletes, JobState, Side
from engine.spec import ChunkLimits, JobSpec, Pace
from engine.spec.signals import ALL_OFF
from tests.support.databases import FreshDatabase, TlsServer, TwoDatabases
from tests.support.gate import Gate
from tests.support.jobs import SHORT, Running, in_place, into, knows_no_job, prepare, rows_of, run, run_to_done, start

pytestmark = pytest.mark.usefixtures("under_its_rights")

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


def counting_job(
    database: FreshDatabase, *, through: Gate | None = None, pause_s: float = 0.0, **settings: Any
) -> JobSpec:
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
    source.sql(
        f"CREATE TABLE src (id int PRIMARY KEY, v int); INSERT INTO src SELECT g, g FROM generate_series(1, {rows}) g"
    )
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
    assert knows_no_job(target)


@pytest.mark.parametrize("where", ["insert", "copy"])
@pytest.mark.parametrize(
    ("here", "there"),
    [("int", "bigint"), ("varchar(12)", "varchar(20)"), ("numeric(10,2)", "numeric(12,4)"), ("char(12)", "text")],
)
async def test_a_key_that_the_target_keeps_in_a_wider_type_arrives(
    databases: TwoDatabases, where: str, here: str, there: str
) -> None:
    source, target = place(databases, where)
    source.sql(
        f"CREATE TABLE src (k {here} PRIMARY KEY, v int); INSERT INTO src SELECT g, g FROM generate_series(1, 900) g"
    )
    target.sql(f"CREATE TABLE dst (k {there} PRIMARY KEY, v int)")
    await run_to_done(into(source, "src", target, "dst", chunk=SMALL))
    assert target.sql("SELECT count(*), sum(v) FROM dst") == source.sql("SELECT count(*), sum(v) FROM src")


# -- stealing -------------------------------------------------------------------------------------------------------


async def test_thieves_never_take_the_same_rows_however_often_they_steal(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.flow.steal, "WORTH_CHUNKS", 0.1)
    spec = counting_job(database, pause_s=0.02, chunk=ChunkLimits(min_rows=10, max_rows=100))
    ran = await run_to_done(spec, workers=5)
    assert sum(event.stolen for event in ran.of(SpanClaimed)) >= 5
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
    rows = ROWS if mode == "update" else 300
    monkeypatch.setattr(engine.plan.spans, "FEWEST_ROWS_PER_SPAN", rows // 4)
    server = databases.source.server
    async with Gate(server.host, server.port) as gate:
        if mode == "update":
            spec = counting_job(databases.source, through=gate)
        else:
            source, target = place(databases, mode)
            pair_of_tables(source, target, rows=rows)
            there = gate.dsn(source.dsn)
            spec = into(
                there,
                "src",
                there if mode == "insert" else gate.dsn(target.dsn),
                "dst",
                chunk=ChunkLimits(min_rows=10, max_rows=40),
            )
        running = await start(spec, workers=4)
        gate.latency_s = 0.005  # for each message
        await running.done()
        assert not [e for e in running.events if isinstance(e, ChunkRetried | LeaseLost | Warned)]


# -- two processes on one job ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["insert", "copy"])
async def test_two_processes_that_race_at_the_phase_change_and_at_the_end_plan_one_sweep_and_both_end_done(
    databases: TwoDatabases, where: str, many_spans: None
) -> None:
    source, target = place(databases, where)
    pair_of_tables(source, target)
    prepared = await prepare(into(source, "src", target, "dst", chunk=SMALL))
    runs = [run_prepared(prepared, workers=2) for _ in range(3)]
    for running in runs:
        await running.done()
    changes = [e for running in runs for e in running.events if isinstance(e, PhaseChanged)]
    assert len(changes) == 1
    what = "SELECT what, count(*) FROM backfill.event GROUP BY what ORDER BY what"
    assert target.sql(what).splitlines() == ["created|1", "done|1", "phase|1", "running|1"]
    starts = "SELECT count(*) FROM backfill.span WHERE phase = 'sweep' AND lo IS NULL"
    assert target.sql(starts) == "1"
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")


# -- orders and failures in odd moments -----------------------------------------------------------------------------


async def test_a_chunk_that_fails_while_the_job_is_paused_makes_it_failed_with_its_reason(
    database: FreshDatabase,
) -> None:
    spec = counting_job(database)
    database.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id = 1000 THEN"
        " PERFORM pg_sleep(0.7); RAISE division_by_zero; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER refuse BEFORE UPDATE ON src FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    running = await start(spec)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    await running.until(lambda: database.sql(asleep) == "1")
    database.sql("SELECT backfill.pause('job')")
    result = await running.ended()
    assert result.state is JobState.FAILED
    assert database.sql("SELECT state, error_code, resumable FROM backfill.status") == "failed|bad_row|t"


async def test_a_job_paused_before_its_start_begins_when_it_is_resumed(database: FreshDatabase) -> None:
    spec = counting_job(database)
    old = await database.connect()
    await old.execute("BEGIN; INSERT INTO src VALUES (0)")  # the start barrier waits for it
    running = await start(spec)
    await running.until(lambda: running.count(Waiting) >= 1)
    assert database.sql("SELECT backfill.pause('job')") == "paused"
    await running.until(lambda: "paused" in [e.reason for e in running.events if isinstance(e, Waiting)])
    await old.execute("ROLLBACK")
    await asyncio.sleep(1.2)
    assert running.count(ChunkCommitted) == 0
    assert database.sql("SELECT backfill.resume('job')") == "planned"
    await running.done()
    assert counted_once(database)


async def test_a_job_cancelled_during_the_start_barrier_ends_without_a_chunk(database: FreshDatabase) -> None:
    spec = counting_job(database)
    old = await database.connect()
    await old.execute("BEGIN; INSERT INTO src VALUES (0)")
    running = await start(spec)
    await running.until(lambda: running.count(Waiting) >= 1)
    database.sql("SELECT backfill.cancel('job', 'changed my mind')")
    result = await running.ended()
    assert result.state is JobState.CANCELLED
    assert isinstance(result.error, HeldByOperator)
    assert "changed my mind" in str(result.error)
    assert running.count(ChunkCommitted) == 0
    await old.execute("ROLLBACK")


@pytest.mark.parametrize("where", ["insert", "copy"])
async def test_a_job_that_failed_in_the_sweep_goes_on_there_when_it_is_resumed(
    databases: TwoDatabases, where: str
) -> None:
    source, target = place(databases, where)
    pair_of_tables(source, target)
    target.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no deletes here'; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON dst FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    spec = into(source, "src", target, "dst", chunk=SMALL, accept=("TRIGGERS_ON_TARGET",))
    running = await start(spec)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    source.sql("DELETE FROM src WHERE id BETWEEN 5 AND 30")
    result = await running.ended()
    assert result.state is JobState.FAILED
    assert target.sql("SELECT phase, resumable FROM backfill.status") == "sweep|t"
    target.sql(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$;"
        "SELECT backfill.resume('job')"
    )
    ran = await run_to_done(spec)
    assert not ran.of(PhaseChanged)
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")


@pytest.mark.parametrize(
    ("mode", "table"),
    [("update", "src"), ("insert", "src"), ("insert", "dst"), ("copy", "src"), ("copy", "dst")],
)
async def test_a_table_that_is_dropped_under_the_job_stops_it_with_the_reason(
    databases: TwoDatabases, mode: str, table: str, many_spans: None
) -> None:
    source, target = place(databases, "insert" if mode == "update" else mode)
    if mode == "update":
        spec = counting_job(source, pause_s=0.02)
    else:
        pair_of_tables(source, target)
        target.sql(SLOW_CHUNKS.format(pause_s=0.02, table="dst"))
        spec = into(source, "src", target, "dst", chunk=SMALL, accept=("TRIGGERS_ON_TARGET",))
    running = await start(spec, workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    # In a thread: it waits for a chunk that this loop has to finish.
    await asyncio.to_thread((source if table == "src" else target).sql, f"DROP TABLE {table}")
    result = await running.ended()
    assert result.state is JobState.FAILED
    assert isinstance(result.error, Stopped)
    assert result.error.exit_code == 7
    assert isinstance(result.error, SchemaDrift) or result.error.sqlstate == "42P01", result.error
    assert "dst" in str(result.error) or "src" in str(result.error)
    assert target.sql("SELECT state, error_message <> '' FROM backfill.job") == "failed|t"


# -- the ledger's job row is held by somebody -----------------------------------------------------------------------


async def test_somebody_who_holds_the_job_at_its_end_is_waited_for(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.db.database, "CONTROL_LOCK_TIMEOUT_S", 0.3)
    running = await start(counting_job(database, pause_s=0.01))
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    person = await database.connect()
    await person.execute("BEGIN; UPDATE backfill.job SET reason = 'let me see'")
    finished = "SELECT count(*) FROM backfill.span WHERE cursor IS DISTINCT FROM hi"
    await running.until(lambda: database.sql(finished) == "0")
    await asyncio.sleep(1.5)
    assert not running.task.done()
    await person.execute("COMMIT")
    await running.done()
    assert counted_once(database)


# -- servers --------------------------------------------------------------------------------------------------------


async def test_workers_that_meet_a_read_only_server_back_off_and_go_on_when_it_is_writable_again(
    database: FreshDatabase, many_spans: None
) -> None:
    spec = counting_job(database, pause_s=0.03)
    running = await start(spec, workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 4)
    watch = await database.connect()
    default = f'ALTER DATABASE "{database.name}" SET default_transaction_read_only'
    database.server.sql(f"{default} = on")
    for worker in running.supervisor.workers:
        worker.abort()
    sessions = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
    await running.until(lambda: running.count(ChunkRetried) >= 2)
    before = await watch.fetchval(sessions)
    await asyncio.sleep(3.0)
    opened = await watch.fetchval(sessions) - before
    assert opened < 40
    assert "25006" in {e.sqlstate for e in running.events if isinstance(e, ChunkRetried)}
    assert not running.task.done()
    database.server.sql(f"{default} = off")
    await running.done()
    assert counted_once(database)


async def test_a_drain_ends_within_the_deadline_when_a_workers_session_is_silent_and_the_others_are_well(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.flow.movers.server_side, "CHUNK_DEADLINE_S", 1.5)
    async with Gate(database.server.host, database.server.port) as gate:
        running = await start(counting_job(database, through=gate, pause_s=0.01), leases=Leases(60.0))
        await running.until(lambda: running.count(ChunkCommitted) >= 2)
        silent = gate.on(backend="", application="backfill/job/w1").silence()
        await silent.happened()
        began = time.monotonic()
        await running.drained()
        assert time.monotonic() - began < 6.0


# -- the sweep ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["insert", "copy"])
async def test_a_sweep_takes_out_many_deleted_rows_leaves_those_of_the_application_and_forgets_whose_they_were(
    databases: TwoDatabases, where: str
) -> None:
    source, target = place(databases, where)
    pair_of_tables(source, target)
    target.sql(SLOW_CHUNKS.format(pause_s=0.05, table="dst"))
    spec = into(source, "src", target, "dst", chunk=SMALL, accept=("TRIGGERS_ON_TARGET",))
    running = await start(spec)
    await running.until(lambda: target.sql("SELECT count(*) > 1000 FROM dst") == "t")
    await running.drained()
    assert target.sql("SELECT count(*) > 0 FROM backfill.written") == "t"
    target.sql("CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$")
    moved = int(target.sql("SELECT max(id) FROM dst"))
    kept = "id IN (3, 13, 23)"  # the application wrote these again after us, and deleted them at the source only
    target.sql(f"UPDATE dst SET v = -1 WHERE {kept}")
    source.sql("DELETE FROM src WHERE id % 10 IN (1, 2, 3)")
    await run_to_done(spec, workers=3)
    assert moved < ROWS
    assert target.sql(f"SELECT count(*), min(v) FROM dst WHERE {kept}") == "3|-1"
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, f"SELECT * FROM dst WHERE NOT ({kept})")
    assert target.sql("SELECT count(*) FROM backfill.written") == "0"


@pytest.mark.parametrize("where", ["insert", "copy"])
async def test_key_columns_of_different_collations_are_swept(databases: TwoDatabases, where: str) -> None:
    source, target = place(databases, where)
    table = '(a text COLLATE "C", b text COLLATE "POSIX", c text, v int, PRIMARY KEY (a, b, c))'
    source.sql(
        f"CREATE TABLE src {table}; INSERT INTO src SELECT g % 7, md5(g::text), g, g FROM generate_series(1, 3000) g"
    )
    target.sql(f"CREATE TABLE dst {table}")
    running = await start(into(source, "src", target, "dst", chunk=SMALL, deletes=Deletes.GUARDED))
    await running.until(lambda: running.count(ChunkCommitted) >= 3)
    source.sql("DELETE FROM src WHERE a = '0'")
    await running.done()
    assert any(isinstance(e, PhaseChanged) for e in running.events)
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")


# -- pace -----------------------------------------------------------------------------------------------------------


async def test_two_processes_together_keep_the_limit(database: FreshDatabase) -> None:
    limit_per_s, seconds = 400.0, 4.0
    spec = counting_job(
        database, pace=Pace(max_rows_per_s=limit_per_s, signals=ALL_OFF), chunk=ChunkLimits(min_rows=10, max_rows=12)
    )
    prepared = await prepare(spec)
    runs = [run_prepared(prepared, workers=n, leases=Leases()) for n in (1, 2)]
    for running in runs:
        await running.until(lambda running=running: running.count(ChunkCommitted) >= 1)
    await asyncio.sleep(2.2)  # until each has seen the other
    moved = "SELECT coalesce(sum(scanned), 0) FROM backfill.span"
    began, before = time.monotonic(), int(database.sql(moved))
    await asyncio.sleep(seconds)
    rate = (int(database.sql(moved)) - before) / (time.monotonic() - began)
    assert rate <= limit_per_s * 1.05
    assert rate >= limit_per_s * 0.85
    for running in runs:
        await running.drained()


async def test_another_pace_reaches_the_workers_within_two_seconds(database: FreshDatabase) -> None:
    running = await start(counting_job(database, pace=Pace(max_rows_per_s=100, signals=ALL_OFF)), workers=2)
    await running.until(lambda: running.count(ChunkCommitted) >= 1)
    began = time.monotonic()
    database.sql("SELECT backfill.pace('job', 1000000)")
    await running.done()
    assert time.monotonic() - began < 4.0
    assert counted_once(database)


# -- keys whose order is not the usual one ----------------------------------------------------------------------------

UNUSUAL_KEYS = {
    "descending, without a primary key": (
        "CREATE TABLE {t} (id bigint NOT NULL, v int); CREATE UNIQUE INDEX {t}_id ON {t} (id DESC)",
        "SELECT g * 7, g FROM generate_series(1, 3000) g",
    ),
    "two columns, both descending": (
        "CREATE TABLE {t} (a int NOT NULL, b int NOT NULL, v int); CREATE UNIQUE INDEX {t}_ab ON {t} (a DESC, b DESC)",
        "SELECT g % 7, g, g FROM generate_series(1, 3000) g",
    ),
    "partitioned by hash": (
        "CREATE TABLE {t} (id int PRIMARY KEY, v int) PARTITION BY HASH (id)"
        + "".join(
            f";CREATE TABLE {{t}}_{n} PARTITION OF {{t}} FOR VALUES WITH (MODULUS 3, REMAINDER {n})" for n in range(3)
        ),
        "SELECT g, g FROM generate_series(1, 3000) g",
    ),
}


@pytest.mark.parametrize("where", ["insert", "copy"])
@pytest.mark.parametrize("kind", UNUSUAL_KEYS)
async def test_this_key_is_moved_row_by_row(databases: TwoDatabases, kind: str, where: str) -> None:
    source, target = place(databases, where)
    table, rows = UNUSUAL_KEYS[kind]
    source.sql(f"{table.format(t='src')}; INSERT INTO src {rows}; ANALYZE src")
    target.sql(table.format(t="dst"))
    await run_to_done(into(source, "src", target, "dst", chunk=SMALL), workers=3)
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")


async def test_an_index_whose_columns_run_in_opposite_directions_is_no_key(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE src (a int NOT NULL, b int NOT NULL, v int)")
    database.sql(
        "CREATE UNIQUE INDEX src_ab ON src (a, b DESC); INSERT INTO src SELECT g % 7, g FROM generate_series(1, 99) g"
    )
    with pytest.raises(PreflightRefused):
        await run(in_place(database, "src", {"v": "1"}))


NATURAL = "CREATE COLLATION natural_order (provider = icu, locale = 'en-u-kn-true')"
LOOSE = "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"


async def test_a_natural_order_at_the_source_and_bytes_at_the_target_make_no_difference_to_the_rows(
    tls_server: TlsServer, make_database: Callable[..., FreshDatabase]
) -> None:
    source, target = make_database(on=tls_server.server), make_database(on=tls_server.server)
    source.sql(NATURAL)
    source.sql("CREATE TABLE src (a text COLLATE natural_order, b uuid, v int, PRIMARY KEY (a, b))")
    source.sql(
        "INSERT INTO src SELECT 'item ' || g % 500, md5(g::text)::uuid, g FROM generate_series(1, 4000) g; ANALYZE src"
    )
    target.sql('CREATE TABLE dst (a text COLLATE "C", b uuid, v int, PRIMARY KEY (a, b))')
    running = await start(into(source, "src", target, "dst", chunk=SMALL), workers=3)
    await running.until(lambda: running.count(ChunkCommitted) >= 3)
    source.sql("DELETE FROM src WHERE a IN ('item 0', 'item 1', 'item 2')")
    await running.done()
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")


@pytest.mark.parametrize("where", ["update", "insert", "copy"])
async def test_a_key_whose_collation_calls_different_texts_equal_is_moved_row_by_row_or_refused(
    tls_server: TlsServer, make_database: Callable[..., FreshDatabase], where: str
) -> None:
    source = make_database(on=tls_server.server)
    target = make_database(on=tls_server.server) if where == "copy" else source
    for database in {source.name: source, target.name: target}.values():
        database.sql(LOOSE)
    source.sql("CREATE TABLE src (k text COLLATE loose PRIMARY KEY, v int)")
    target.sql("CREATE TABLE dst (k text COLLATE loose PRIMARY KEY, v int)")
    source.sql(
        "INSERT INTO src (k) SELECT CASE g % 2 WHEN 0 THEN 'Key ' ELSE 'key ' END || g FROM generate_series(1, 2000) g"
    )
    spec = (
        in_place(source, "src", {"v": "1"}, chunk=SMALL)
        if where == "update"
        else into(source, "src", target, "dst", chunk=SMALL)
    )
    try:
        await run_to_done(spec)
    except PreflightRefused:
        return
    if where == "update":
        assert source.sql("SELECT count(*), sum(v) FROM src") == "2000|2000"
    else:
        assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")


# -- roles ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def login(database: FreshDatabase) -> AsyncIterator[str]:
    """A role that logs in and has rights on rows only after ``SET ROLE mover_…``; its connection string."""
    name, role = f"login_{database.name}", f"mover_{database.name}"
    owner = await Database(database.dsn, side=Side.TARGET).connect("control")
    await Ledger(owner).ensure()
    await owner.close()
    database.sql(f"CREATE ROLE {role}; CREATE ROLE {name} LOGIN NOINHERIT; GRANT {role} TO {name}")
    database.sql(f"GRANT USAGE ON SCHEMA backfill TO {name}, {role}")
    database.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA backfill TO {name}, {role}")
    yield database.server.dsn(database.name, user=name)
    database.sql(f"DROP OWNED BY {name}, {role}; DROP ROLE {name}, {role}")


def as_role(database: FreshDatabase, login: str) -> JobSpec:
    """A counting job of that login's role."""
    spec = counting_job(database)
    role = f"mover_{database.name}"
    database.sql(f"GRANT SELECT, UPDATE ON src TO {role}")
    return in_place(login, "src", dict(spec.set), role=role, done="false", chunk=SMALL)


async def test_a_login_without_rights_of_its_own_moves_rows_as_its_role(database: FreshDatabase, login: str) -> None:
    ran = await run_to_done(as_role(database, login))
    assert ran.result.rows == ROWS
    assert counted_once(database)


async def test_a_session_left_behind_that_may_not_be_ended_is_warned_of_and_the_job_goes_on(
    database: FreshDatabase, login: str
) -> None:
    spec = as_role(database, login)
    running = await start(spec)
    await running.until(lambda: running.count(ChunkCommitted) >= 2)
    await running.drained()
    stranger = await database.connect()
    pid = await stranger.fetchval("SELECT pg_backend_pid()")
    database.sql(
        f"UPDATE backfill.span SET worker = '{OTHER_WORKER}', lease_until = clock_timestamp(), backends ="
        " (SELECT jsonb_build_array(jsonb_build_object('side', 'target', 'pid', pid, 'started', backend_start::text))"
        f"  FROM pg_stat_activity WHERE pid = {pid})"
    )
    ran = await run_to_done(spec)
    (warned,) = ran.of(Warned)
    assert f"process {pid}" in warned.message
    assert "pg_signal_backend" in warned.message
    assert await stranger.fetchval("SELECT 1") == 1
    assert counted_once(database)


# -- estimates ------------------------------------------------------------------------------------------------------


async def test_estimates_that_see_no_distance_between_keys_do_not_shred_the_job_into_tiny_chunks(
    database: FreshDatabase,
) -> None:
    chunks = {}
    prefix = "x" * 60
    for workers in (1, 3):
        table = f"src{workers}"
        database.sql(f"CREATE TABLE {table} (k text PRIMARY KEY, v int)")
        database.sql(f"INSERT INTO {table} SELECT '{prefix}' || md5(g::text) FROM generate_series(1, 100000) g")
        ran = await run_to_done(
            in_place(database, table, {"v": "1"}, name=table, chunk=ChunkLimits(max_rows=2000)), workers=workers
        )
        chunks[workers] = len(ran.of(ChunkCommitted))
    assert chunks[3] <= 3 * chunks[1], chunks


async def test_seconds_waited_before_a_pause_are_not_counted_again_after_it(database: FreshDatabase) -> None:
    """Each phase and each resume makes new workers, whose rows in the ledger begin at nothing."""
    spec = counting_job(database, pace=Pace(max_rows_per_s=1500, signals=ALL_OFF))
    began = time.monotonic()
    running = await start(spec)

    def pauses() -> int:
        return [e.state for e in running.events if isinstance(e, StateChanged)].count(JobState.PAUSED)

    for number in range(2):
        await asyncio.sleep(1.0)
        assert database.sql("SELECT backfill.pause('job')") == "paused"
        await running.until(lambda number=number: pauses() > number)  # type: ignore[misc]
        assert database.sql("SELECT backfill.resume('job')") == "running"
    await running.done()
    waited = "SELECT sum(seconds::float8) FROM backfill.status, jsonb_each_text(waits) AS w (reason, seconds)"
    assert 1.0 < float(database.sql(waited)) < time.monotonic() - began
