"""A rehearsal does what the job would do, takes all of it back, and tells what the job will cost."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from engine.flow import endpoints_of, inspect
from engine.flow.rehearse import Rehearsal, rehearse
from engine.model import ConflictPolicy, Mode
from engine.plan.rehearsal import OPENING_S
from engine.spec import ChunkLimits, JobSpec, OnConflict
from engine.spec.models import Errors
from tests.support.databases import FreshDatabase, TwoDatabases, on_each_major
from tests.support.jobs import UNPACED, in_place, into, knows_no_job, prepare, run_to_done
from tests.support.rights import limited

PATIENT = ChunkLimits(target_s=10.0)
"""On the busiest machine a chunk then has as many rows as on an idle one."""

pytestmark = pytest.mark.usefixtures("under_its_rights")

SMALL = ChunkLimits(target_s=10.0, min_rows=10, max_rows=400)
PATIENCE_S = 20.0

TABLE = "(id bigint PRIMARY KEY, v text NOT NULL, n int)"

EVERYTHING = """\
SELECT md5(string_agg(line, E'\\n' ORDER BY line)) FROM (
    SELECT 'relation ' || c.oid || c.relname || c.relfilenode FROM pg_class c
    UNION ALL SELECT 'schema ' || nspname FROM pg_namespace
    UNION ALL SELECT 'function ' || oid::text FROM pg_proc
    UNION ALL SELECT 'row ' || src.xmin || src.ctid || src::text FROM src
    UNION ALL SELECT 'row ' || dst.xmin || dst.ctid || dst::text FROM dst) lines (line)"""
"""All objects of a database, and all rows of the two tables, as which transaction wrote them and where they are."""


async def play(spec: JobSpec, **options: Any) -> Rehearsal:
    return await rehearse(await prepare(spec), **options)


class Stage:
    """The two tables of a job in each mode, and what they hold."""

    def __init__(self, databases: TwoDatabases, mode: Mode) -> None:
        self.mode = mode
        self.source = databases.source
        self.target = databases.target if mode is Mode.COPY else databases.source
        for database in (databases.source, databases.target):
            database.sql(f"CREATE TABLE src {TABLE}; CREATE TABLE dst {TABLE}")

    def fill(self, rows: int, value: str = "'value ' || g") -> None:
        self.source.sql(f"INSERT INTO src SELECT g, {value}, NULL FROM generate_series(1, {rows}) g; ANALYZE src")

    def spec(self, expression: str = "length(v)", **settings: Any) -> JobSpec:
        settings = {"chunk": PATIENT} | settings
        if self.mode is Mode.UPDATE:
            return in_place(self.source, "src", {"n": expression}, **settings)
        columns = {"id": "id", "v": "v", "n": expression}
        return into(self.source, "src", self.target, "dst", columns=columns, **settings)

    @property
    def written(self) -> str:
        return "src" if self.mode is Mode.UPDATE else "dst"

    def everything(self) -> list[str]:
        return [database.sql(EVERYTHING) for database in (self.source, self.target)]

    async def before(self) -> list[str]:
        """The same, with the job's rights and the ledger that they are about already there."""
        await limited(self.spec())
        assert knows_no_job(self.target)
        return self.everything()

    def traces(self) -> str:
        """Sessions, locks and transactions that are ours, on the whole server."""
        return self.target.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'backfill/%' UNION ALL"
            " SELECT count(*) FROM pg_prepared_xacts UNION ALL"
            " SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
            f" WHERE datname IN ('{self.source.name}', '{self.target.name}') AND pid <> pg_backend_pid()"
        )


NO_TRACES = "0\n0\n0"

WAITS = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"

TRIGGERS = ("TRIGGERS_ON_SOURCE", "TRIGGERS_ON_TARGET")
"""Findings that a job on a table with triggers has to accept."""


@pytest.fixture(params=list(Mode))
def stage(request: pytest.FixtureRequest, databases: TwoDatabases) -> Stage:
    return Stage(databases, request.param)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for a look at the server to come true."""
    deadline = time.monotonic() + PATIENCE_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.02)


# -- nothing is left --------------------------------------------------------------------------------------------------


@on_each_major
async def test_a_rehearsal_writes_rows_and_leaves_nothing(stage: Stage) -> None:
    stage.fill(20_000)
    before = await stage.before()
    seen = await play(stage.spec())
    assert stage.everything() == before
    await eventually(lambda: stage.traces() == NO_TRACES, "the last session's end")
    assert seen.failed == ()
    assert seen.spans == 6
    assert sum(sample.rows for sample in seen.samples) == sum(sample.scanned for sample in seen.samples) >= 15_000
    assert knows_no_job(stage.target)


async def test_a_target_that_holds_rows_already_keeps_them_and_gets_none(databases: TwoDatabases) -> None:
    for mode in (Mode.INSERT, Mode.COPY):
        for database in (databases.source, databases.target):
            database.sql("DROP TABLE IF EXISTS src, dst")
        stage = Stage(databases, mode)
        stage.fill(3000)
        stage.target.sql("INSERT INTO dst SELECT g, 'mine', 0 FROM generate_series(1, 3000, 2) g")
        before = await stage.before()
        seen = await play(stage.spec())
        assert stage.everything() == before, mode
        assert seen.failed == ()
        assert sum(s.scanned for s in seen.samples) == 2900, "all but those of the first small chunk"
        assert sum(s.rows for s in seen.samples) == 1450, "the others are there"
        assert seen.dead_rows == 1500, "and are left out at once, not after a violation"


async def test_a_row_that_comes_in_between_is_met_as_in_the_job(databases: TwoDatabases) -> None:
    for mode in (Mode.INSERT, Mode.COPY):
        for database in (databases.source, databases.target):
            database.sql("DROP TABLE IF EXISTS src, dst")
        stage = Stage(databases, mode)
        stage.fill(1000)
        somebody = await stage.target.connect()
        await somebody.execute("BEGIN; INSERT INTO dst VALUES (500, 'mine')")
        playing = asyncio.create_task(play(stage.spec(lock_timeout_s=PATIENCE_S)))
        await eventually(lambda on=stage.target: on.sql(WAITS) == "t", "a chunk that waits")
        await somebody.execute("COMMIT")
        seen = await playing
        assert seen.failed == (), mode
        assert sum(s.rows for s in seen.samples) == 899, "somebody's row wins"
        assert seen.dead_rows > 899 + 100, "the first attempt has left some, too"
        assert stage.target.sql("SELECT * FROM dst") == "500|mine|"


@pytest.mark.parametrize("policy", [ConflictPolicy.REPLACE, ConflictPolicy.FAIL])
async def test_the_jobs_policy_for_conflicts_is_rehearsed(databases: TwoDatabases, policy: ConflictPolicy) -> None:
    stage = Stage(databases, Mode.INSERT)
    stage.fill(3000)
    stage.target.sql("INSERT INTO dst SELECT g, 'mine', 0 FROM generate_series(1, 3000) g")
    before = await stage.before()
    # A key that the target holds is never set aside.
    seen = await play(stage.spec(on_conflict=OnConflict(policy), errors=Errors(max_quarantined=100)))
    assert stage.everything() == before
    if policy is ConflictPolicy.FAIL:
        assert {(f.failure.sqlstate, f.stops) for f in seen.failed} == {("23505", True)}
        assert seen.outlook is None
    else:
        assert sum(s.rows for s in seen.samples) == 2900


async def test_an_interrupted_rehearsal_leaves_nothing(stage: Stage) -> None:
    stage.fill(1000)
    slow(stage, 0.01)
    before = await stage.before()
    playing = asyncio.create_task(play(stage.spec(accept=TRIGGERS)))
    await eventually(lambda: playing.done() or is_writing(stage), "a chunk under way")
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    await eventually(lambda: stage.traces() == NO_TRACES, "the sessions' end")
    assert stage.everything() == before


async def test_a_session_that_is_ended_ends_the_rehearsal_and_leaves_nothing(stage: Stage) -> None:
    stage.fill(1000)
    slow(stage, 0.01)
    before = await stage.before()
    playing = asyncio.create_task(play(stage.spec(accept=TRIGGERS)))
    await eventually(lambda: playing.done() or is_writing(stage), "a chunk under way")
    stage.target.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'backfill/job/rehearse'"
        f" AND datname = '{stage.target.name}' AND backend_xid IS NOT NULL"
    )
    with pytest.raises(Exception, match=r"terminat|connection|ended"):
        await playing
    await eventually(lambda: stage.traces() == NO_TRACES, "the sessions' end")
    assert stage.everything() == before


def slow(stage: Stage, row_s: float) -> None:
    """Have every written row take so long."""
    stage.target.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM pg_sleep({row_s}); RETURN NEW; END $$;"
        f" CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON {stage.written} FOR EACH ROW EXECUTE FUNCTION slow()"
    )


def is_writing(stage: Stage) -> bool:
    """A rehearsed chunk has written its first row."""
    return (
        stage.target.sql(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'backfill/job/rehearse'"
            f" AND backend_xid IS NOT NULL AND datname = '{stage.target.name}'"
        )
        == "t"
    )


# -- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.alone
@on_each_major
async def test_the_real_job_takes_what_the_rehearsal_said(stage: Stage) -> None:
    stage.fill(120_000)
    spec = stage.spec(workers=2, chunk=ChunkLimits())
    stage.target.sql("CHECKPOINT")
    seen = await play(spec)
    assert seen.outlook is not None
    stage.target.sql("CHECKPOINT")
    wal_before, sizes_before, began = wal(stage.target), sizes(stage), time.monotonic()
    await run_to_done(spec, workers=2)
    took_s, wal_bytes = time.monotonic() - began, wal(stage.target) - wal_before
    grown = [after - before for before, after in zip(sizes_before, sizes(stage), strict=True)]
    said = seen.outlook
    assert said.seconds.low / 3 <= took_s <= said.seconds.high * 3, said.seconds
    assert 0.5 * said.wal_bytes.low <= wal_bytes <= 1.5 * said.wal_bytes.high, (said.wal_bytes, wal_bytes)
    assert 0.5 * said.wal_bytes.expected <= wal_bytes <= 1.5 * said.wal_bytes.expected
    # The first pages are there already: the rehearsal's.
    for growth, figure in zip(grown, (said.heap_bytes, said.index_bytes), strict=True):
        assert 0.5 * figure.low <= growth <= 1.5 * figure.high, (growth, figure)
        assert figure.high < 4 * growth
    assert said.seconds.high - said.seconds.low < took_s * 5 + OPENING_S, "a forecast that is always right says nothing"


def wal(database: FreshDatabase) -> int:
    return int(database.sql("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint"))


def sizes(stage: Stage) -> list[int]:
    found = stage.target.sql(f"SELECT pg_relation_size('{stage.written}'), pg_indexes_size('{stage.written}')")
    return [int(size) for size in found.split("|")]


async def test_updates_that_stay_on_their_page_are_seen_as_such(database: FreshDatabase) -> None:
    for fillfactor in (100, 40):
        database.sql(f"DROP TABLE IF EXISTS t; CREATE TABLE t {TABLE} WITH (fillfactor = {fillfactor})")
        database.sql("INSERT INTO t SELECT g, 'v', NULL FROM generate_series(1, 5000) g; ANALYZE t")
        seen = await play(in_place(database, "t", {"n": "1"}), chunks=1)
        assert seen.outlook is not None
        hot = sum(s.hot_rows or 0 for s in seen.samples) / sum(s.rows for s in seen.samples)
        grows = seen.outlook.heap_bytes.expected + seen.outlook.index_bytes.expected
        if fillfactor == 100:
            assert hot < 0.1
            assert grows > 5000 * 30
        else:
            assert hot > 0.9
            assert grows < 5000 * 10


async def test_a_partitioned_table_with_an_awkward_name_is_measured_in_all_its_parts(database: FreshDatabase) -> None:
    database.sql(
        'CREATE TABLE "Odd Table" ("Tenant Id" int, id int, "New Value" int, PRIMARY KEY ("Tenant Id", id))'
        ' PARTITION BY LIST ("Tenant Id");'
        'CREATE TABLE one PARTITION OF "Odd Table" FOR VALUES IN (1);'
        'CREATE TABLE two PARTITION OF "Odd Table" FOR VALUES IN (2);'
        'INSERT INTO "Odd Table" SELECT 1 + g % 2, g, NULL FROM generate_series(1, 12000) g; ANALYZE "Odd Table"'
    )
    seen = await play(in_place(database, "Odd Table", {"New Value": "id"}, chunk=PATIENT))
    assert seen.failed == ()
    assert {s.span for s in seen.samples} == {0, 1, 2}
    assert all(s.hot_rows is not None for s in seen.samples)
    assert sum(s.heap_bytes for s in seen.samples) > 0
    assert database.sql('SELECT count("New Value") FROM "Odd Table"') == "0"


async def test_rows_that_are_done_or_left_out_are_looked_at_only(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE t {TABLE}")
    database.sql("INSERT INTO t SELECT g, 'v', CASE WHEN g % 2 = 0 THEN 1 END FROM generate_series(1, 4000) g")
    database.sql("ANALYZE t")
    seen = await play(in_place(database, "t", {"n": "1"}, chunk=PATIENT, where="id % 4 <> 1"))
    assert seen.outlook is not None
    assert seen.outlook.rows_written.expected == pytest.approx(1000, rel=0.1)
    assert sum(s.rows for s in seen.samples) * 4 == sum(s.scanned for s in seen.samples)


async def test_an_empty_table_has_nothing_to_rehearse(stage: Stage) -> None:
    seen = await play(stage.spec())
    assert (seen.samples, seen.failed, seen.outlook, seen.dead_rows) == ((), (), None, 0)


async def test_the_number_of_dead_rows_and_of_sequence_values_is_the_real_one(databases: TwoDatabases) -> None:
    for mode in (Mode.INSERT, Mode.COPY):
        for database in (databases.source, databases.target):
            database.sql("DROP TABLE IF EXISTS src, dst")
        stage = Stage(databases, mode)
        stage.fill(5000)
        stage.target.sql("ALTER TABLE dst ADD own bigint GENERATED BY DEFAULT AS IDENTITY, ADD other bigserial")
        seen = await play(stage.spec())
        taken = stage.target.sql("SELECT a.last_value + b.last_value FROM dst_own_seq a, dst_other_seq b")
        assert seen.sequence_values == int(taken) == 2 * seen.dead_rows
        assert seen.dead_rows == sum(s.rows for s in seen.samples) + 100


@pytest.mark.alone
async def test_a_fixed_limit_holds_for_the_rehearsal_too(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE t {TABLE}; INSERT INTO t SELECT g, 'v' FROM generate_series(1, 1000) g; ANALYZE t")
    spec = in_place(
        database, "t", {"n": "1"}, chunk=PATIENT, pace=UNPACED.model_copy(update={"max_rows_per_s": 2000.0})
    )
    began = time.monotonic()
    seen = await play(spec)
    assert time.monotonic() - began >= 1000 / 2000
    assert seen.outlook is not None
    assert seen.outlook.seconds.low >= 1000 / 2000


# -- what goes wrong --------------------------------------------------------------------------------------------------


@on_each_major
async def test_a_row_that_cannot_be_written_is_reported_without_its_value(stage: Stage) -> None:
    stage.fill(1000, "CASE g WHEN 777 THEN 'canary' ELSE g::text END")
    before = await stage.before()
    seen = await play(stage.spec("v::int", chunk=SMALL))
    assert [(f.failure.sqlstate, f.stops) for f in seen.failed] == [("22P02", True)]
    assert seen.stops
    assert "canary" not in repr(seen)
    assert "777" not in repr(seen.failed)
    assert seen.outlook is not None, "the other chunks say what they cost"
    assert stage.everything() == before


async def test_bad_rows_that_may_be_set_aside_stop_the_job_when_there_are_more(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE t {TABLE}; INSERT INTO t SELECT g, g FROM generate_series(1, 1000) g; ANALYZE t")
    database.sql("UPDATE t SET v = 'canary' WHERE id IN (50, 150, 950)")
    for allowed, consequences in ((3, ["set aside"] * 3), (2, ["set aside", "set aside", "stop"]), (0, ["stop"] * 3)):
        spec = in_place(database, "t", {"n": "v::int"}, chunk=SMALL, errors=Errors(max_quarantined=allowed))
        seen = await play(spec)
        assert [f.consequence for f in seen.failed] == consequences
        assert seen.stops is (allowed < 3)


async def test_a_violation_that_only_the_commit_would_find_is_found(databases: TwoDatabases) -> None:
    for mode in (Mode.INSERT, Mode.COPY):
        for database in (databases.source, databases.target):
            database.sql("DROP TABLE IF EXISTS src, dst, other")
        stage = Stage(databases, mode)
        stage.fill(1000)
        stage.target.sql(
            "CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 50);"
            "ALTER TABLE dst ADD FOREIGN KEY (n) REFERENCES other DEFERRABLE INITIALLY DEFERRED"
        )
        seen = await play(stage.spec("CASE WHEN id = 500 THEN 51 ELSE 7 END", accept=("FOREIGN_KEYS",)))
        assert {(f.failure.sqlstate, f.stops) for f in seen.failed} == {("23503", True)}
        assert seen.wal_is_shared, "the foreign key's own writing is in no statement's count"


async def test_a_lock_that_is_not_to_be_had_is_reported_and_stops_nothing(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE t {TABLE}; INSERT INTO t SELECT g, 'v' FROM generate_series(1, 1000) g; ANALYZE t")
    somebody = await database.connect()
    await somebody.execute("BEGIN; UPDATE t SET v = 'mine' WHERE id = 500")
    seen = await play(in_place(database, "t", {"n": "1"}, chunk=SMALL, lock_timeout_s=0.3))
    await somebody.execute("COMMIT")
    assert [(f.failure.sqlstate, f.stops) for f in seen.failed] == [("55P03", False)]
    assert not seen.stops
    assert len(seen.samples) == 2
    assert database.sql("SELECT v FROM t WHERE id = 500") == "mine"


@pytest.mark.alone
async def test_a_wait_for_a_lock_is_measured(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE t {TABLE}; INSERT INTO t SELECT g, 'v' FROM generate_series(1, 1000) g; ANALYZE t")
    somebody = await database.connect()
    await somebody.execute("BEGIN; UPDATE t SET v = 'mine' WHERE id = 500")
    playing = asyncio.create_task(play(in_place(database, "t", {"n": "1"}, chunk=PATIENT, lock_timeout_s=10)))
    waits = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND waitstart < clock_timestamp() - interval '0.4 s'"
    await eventually(lambda: database.sql(waits) == "t", "a chunk that waits")
    await somebody.execute("COMMIT")
    seen = await playing
    assert max(s.waited_s for s in seen.samples) >= 0.3
    assert seen.failed == ()


@pytest.mark.alone
async def test_a_writer_waits_for_one_chunk_at_most(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE src {TABLE}; INSERT INTO src SELECT g, 'v' FROM generate_series(1, 1000) g")
    database.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.n = 1 THEN PERFORM pg_sleep(0.02); END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE UPDATE ON src FOR EACH ROW EXECUTE FUNCTION slow(); ANALYZE src"
    )
    writer = await database.connect()
    spec = in_place(database, "src", {"n": "1"}, chunk=ChunkLimits(min_rows=25, max_rows=25), accept=TRIGGERS)
    playing = asyncio.create_task(play(spec))
    began, waits = time.monotonic(), [0.0]
    for row in itertools.cycle(range(1, 101)):
        if playing.done():
            break
        asked = time.monotonic()
        await writer.execute("UPDATE src SET v = 'w' WHERE id = $1", row)
        waits.append(time.monotonic() - asked)
    seen = await playing
    took_s = time.monotonic() - began
    assert took_s > 4 * 25 * 0.02
    longest = max(s.held_s for s in seen.samples)
    assert longest < max(s.server_s for s in seen.samples) + 0.2, "no longer than the statement needs"
    assert 0.1 < max(waits) < longest + 0.3 < took_s / 2
    assert 0.05 < seen.kept_waiting_s < longest + 0.1
    assert database.sql("SELECT count(*) FROM src WHERE v = 'w'") == "100"
    assert database.sql("SELECT count(n) FROM src") == "0"


_serial = itertools.count()


@pytest.fixture
def mover(database: FreshDatabase) -> Iterator[str]:
    """A role that may do nothing yet, and is gone afterwards."""
    name = f"mover_{os.getpid()}_{next(_serial)}"
    database.sql(f"CREATE ROLE {name}")
    yield name
    database.sql(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_chunks_are_rehearsed_as_the_jobs_role_which_needs_no_ledger(database: FreshDatabase, mover: str) -> None:
    database.sql(
        f"CREATE TABLE t {TABLE}; INSERT INTO t SELECT g, 'v' FROM generate_series(1, 1000) g; ANALYZE t;"
        "CREATE FUNCTION who() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF current_user <> '{mover}' OR current_setting('lock_timeout') <> '7s' THEN RAISE 'not as the job'; END IF;"
        " RETURN NEW; END $$; CREATE TRIGGER who BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION who();"
        f"GRANT SELECT, UPDATE ON t TO {mover}"
    )
    spec = in_place(database, "t", {"n": "1"}, chunk=PATIENT, role=mover, lock_timeout_s=7)
    inspection = await inspect(spec, endpoints_of(spec))
    # Preflight misses the rights on a ledger, which the job will need.
    seen = await rehearse(replace(inspection, findings=()).prepared())
    assert seen.failed == ()
    assert sum(s.rows for s in seen.samples) == 900


async def test_a_table_that_is_locked_is_reported_and_nothing_hangs(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE t {TABLE}; INSERT INTO t SELECT g, 'v' FROM generate_series(1, 1000) g; ANALYZE t")
    prepared = await prepare(in_place(database, "t", {"n": "1"}, lock_timeout_s=0.2))
    somebody = await database.connect()
    await somebody.execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
    seen = await asyncio.wait_for(rehearse(prepared), PATIENCE_S)
    assert {(f.failure.sqlstate, f.stops) for f in seen.failed} == {("55P03", False)}
    assert seen.outlook is None


async def test_values_that_an_expression_takes_from_a_sequence_are_counted(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE t {TABLE}; INSERT INTO t SELECT g, 'v' FROM generate_series(1, 1000) g; ANALYZE t")
    # The rights of what an expression calls are no part of the script.
    database.sql("CREATE SEQUENCE numbers; GRANT USAGE ON SEQUENCE numbers TO PUBLIC")
    seen = await play(in_place(database, "t", {"n": "nextval('public.numbers')"}, chunk=PATIENT, done="n is not null"))
    assert seen.sequence_values == int(database.sql("SELECT last_value FROM numbers")) == 1000
