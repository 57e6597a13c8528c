"""Rows that cannot be written are set aside, exactly they, and the others arrive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

import engine.flow.halving
from engine.db import Action, Database, classify
from engine.events import ChunkCommitted, ChunkRetried, RowQuarantined, SpanClaimed, ignore
from engine.flow import Supervisor
from engine.flow.quarantine import Outcome, Retried, Retry
from engine.ledger.store import Ledger
from engine.model import JobState, Mode, Phase, Side, Span
from engine.spec import ChunkLimits, JobSpec, OnConflict
from engine.spec.models import Errors
from engine.spec.pacing import Pace
from engine.spec.signals import ALL_OFF
from tests.support.databases import FreshDatabase, TwoDatabases, on_each_major
from tests.support.jobs import SLOT_S, Ran, in_place, into, prepare, rows_of, run, run_to_done, start

pytestmark = pytest.mark.usefixtures("under_its_rights")

MODES = pytest.mark.parametrize("mode", list(Mode), ids=[mode.value for mode in Mode])
CANARY = "hunter2-row-value"
BIG = ChunkLimits(min_rows=50_000, max_rows=50_000, target_s=60.0)
SMALL = ChunkLimits(min_rows=10, max_rows=400)
MOST_STATEMENTS = 2 * 17 + 4
"""Two for each halving of 50,000 rows; the first failure, the last one, the look at what is left, the setting aside."""


class Stage:
    """A table of numbers as texts, and a job that makes integers of them: what is no number cannot be written."""

    def __init__(self, mode: Mode, databases: TwoDatabases, rows: int, bad: Iterable[int] = ()) -> None:
        self.mode = mode
        self.source = databases.source
        self.target = databases.target if mode is Mode.COPY else databases.source
        self.rows = rows
        self.source.sql(
            "CREATE TABLE src (id bigint PRIMARY KEY, v text NOT NULL, filled int, tries int NOT NULL DEFAULT 0);"
            f"INSERT INTO src SELECT g, g::text FROM generate_series(1, {rows}) g"
        )
        self.spoil(bad)
        self.source.sql("ANALYZE src")
        if mode is not Mode.UPDATE:
            self.target.sql("CREATE TABLE dst (id bigint PRIMARY KEY, filled int NOT NULL)")

    def spoil(self, bad: Iterable[int]) -> None:
        ids = ", ".join(map(str, bad)) or "NULL"
        self.source.sql(f"UPDATE src SET v = '{CANARY} ' || id WHERE id IN ({ids})")

    def mend(self, ids: Iterable[int]) -> None:
        self.source.sql(f"UPDATE src SET v = id::text WHERE id IN ({', '.join(map(str, ids))})")

    def spec(self, allowed: int = 10, **settings: Any) -> JobSpec:
        settings = {"errors": Errors(max_quarantined=allowed), "chunk": SMALL} | settings
        if self.mode is Mode.UPDATE:
            return in_place(self.source, "src", {"filled": "v::int"}, **settings)
        return into(self.source, "src", self.target, "dst", columns={"id": "id", "filled": "v::int"}, **settings)

    @property
    def missing(self) -> list[int]:
        """Ids of the source whose value has not arrived; those that arrived are right."""
        if self.mode is Mode.UPDATE:
            there = self.source.sql("SELECT id FROM src WHERE filled IS NOT NULL")
            assert self.source.sql("SELECT count(*) FROM src WHERE filled <> id") == "0"
        else:
            there = self.target.sql("SELECT id FROM dst")
            assert self.target.sql("SELECT count(*) FROM dst WHERE filled <> id") == "0"
        ids = self.source.sql("SELECT id FROM src")
        return sorted({int(i) for i in ids.split()} - {int(i) for i in there.split()})

    @property
    def quarantine(self) -> dict[int, str]:
        lines = self.target.sql("SELECT key[1], sqlstate FROM backfill.quarantine").splitlines()
        return {int(key): sqlstate for key, _, sqlstate in (line.partition("|") for line in lines)}

    @property
    def attempts(self) -> list[int]:
        return [int(n) for n in self.target.sql("SELECT attempts FROM backfill.quarantine ORDER BY id").split()]

    async def retry(self, ids: list[int] | None = None, **settings: Any) -> Retried:
        return await Retry(await prepare(self.spec(**settings))).run(ids)


def statements(ran: Ran) -> int:
    """Pieces and chunks that were sent, and those that came back."""
    return len(ran.of(ChunkCommitted)) + len(ran.of(ChunkRetried))


def everything_said(ran: Ran) -> str:
    return " ".join(json.dumps(event.as_json(), default=str) for event in ran.events) + repr(ran.result)


def ledger_texts(database: FreshDatabase) -> str:
    tables = database.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'backfill'").split()
    return "\n".join(database.sql(f"SELECT t FROM backfill.{table} t") for table in tables)


# -- one among many ---------------------------------------------------------------------------------------------------


@on_each_major
@MODES
async def test_one_poisoned_row_among_100_000_is_set_aside_and_all_others_arrive(
    databases: TwoDatabases, mode: Mode
) -> None:
    stage = Stage(mode, databases, 100_000, [61_803])
    ran = await run_to_done(stage.spec(1), workers=2)
    assert stage.missing == [61_803]
    assert stage.quarantine == {61_803: "22P02"}
    assert [event.sqlstate for event in ran.of(RowQuarantined)] == ["22P02"]
    assert (ran.result.quarantined, ran.result.rows) == (1, 99_999)
    assert CANARY not in everything_said(ran) + ledger_texts(stage.target)


@MODES
async def test_a_bad_row_costs_two_statements_for_each_halving(databases: TwoDatabases, mode: Mode) -> None:
    """The walks of the index are counted by asking the server how often the key's index was read."""
    stage = Stage(mode, databases, 50_000, [33_333])
    clean = await run_to_done(stage.spec(1, chunk=BIG, name="clean", where="id <> 33333"), workers=1)
    if mode is Mode.UPDATE:
        stage.source.sql("UPDATE src SET filled = NULL")
    else:
        stage.target.sql("TRUNCATE dst")
    ran = await run_to_done(stage.spec(1, chunk=BIG), workers=1)
    assert stage.quarantine == {33_333: "22P02"}
    # Each of them after one walk.
    assert 2 * (statements(ran) - statements(clean)) <= MOST_STATEMENTS
    assert statements(clean) <= 10, "chunks of the chosen size, or the comparison means nothing"


@MODES
@pytest.mark.parametrize(
    "bad",
    [[1], [3000], [1500, 1501], [1, 2, 3, 2999, 3000], [400, 401, 800, 801], list(range(700, 720))],
    ids=["first", "last", "neighbours", "both ends", "chunk borders", "cluster"],
)
async def test_wherever_bad_rows_are_exactly_they_are_set_aside(
    databases: TwoDatabases, mode: Mode, bad: list[int]
) -> None:
    stage = Stage(mode, databases, 3000, bad)
    await run_to_done(stage.spec(len(bad)), workers=2)
    assert stage.missing == bad
    assert sorted(stage.quarantine) == bad


@MODES
async def test_all_rows_may_be_bad(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases, 300, range(1, 301))
    ran = await run_to_done(stage.spec(300), workers=1)
    assert len(stage.quarantine) == 300
    assert statements(ran) < 3 * 300, "where every row is bad nobody begins with a large chunk each time"


@MODES
async def test_bad_rows_do_not_make_chunks_small(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases, 30_000, [12_345, 12_346, 12_347])
    ran = await run_to_done(stage.spec(chunk=ChunkLimits(min_rows=10, max_rows=4000, target_s=60.0)), workers=1)
    first_failure = next(n for n, event in enumerate(ran.events) if isinstance(event, ChunkRetried))
    before = [e.next_rows for e in ran.events[:first_failure] if isinstance(e, ChunkCommitted)][-1]
    after = [e.next_rows for e in ran.events[first_failure:] if isinstance(e, ChunkCommitted)]
    assert len(stage.quarantine) == 3
    assert min(after) >= before > 1000, "the sizer was told of a failure that was not its own"
    assert ran.of(ChunkCommitted)[-1].next_rows == 4000


async def test_ids_that_are_not_there_are_never_set_aside(databases: TwoDatabases) -> None:
    """Chunks of dense integers are cut by arithmetic; the pieces are not."""
    stage = Stage(Mode.UPDATE, databases, 4000, [2001, 3900])
    stage.source.sql("DELETE FROM src WHERE id BETWEEN 1990 AND 2000 OR id BETWEEN 2002 AND 2010 OR id = 3899")
    await run_to_done(stage.spec(2), workers=1)
    assert sorted(stage.quarantine) == stage.missing == [2001, 3900]


@pytest.mark.parametrize(
    "key",
    ["upper(md5(g::text)), g", "chr(65 + g % 26) || repeat(' ', g % 3), g"],
    ids=["text and number", "padded"],
)
@MODES
async def test_composite_keys_and_odd_names(databases: TwoDatabases, mode: Mode, key: str) -> None:
    source, target = databases.source, databases.target if mode is Mode.COPY else databases.source
    source.sql(
        'CREATE TABLE "Order Lines" ("The Key" char(40), "No" numeric(8,2), v text, filled int, PRIMARY KEY ("The Key", "No"));'
        f"INSERT INTO \"Order Lines\" SELECT {key}, CASE WHEN g IN (17, 1200) THEN 'x' ELSE g::text END"
        ' FROM generate_series(1, 2000) g; ANALYZE "Order Lines"'
    )
    settings: dict[str, Any] = {"errors": Errors(max_quarantined=2), "chunk": SMALL}
    if mode is Mode.UPDATE:
        spec = in_place(source, "Order Lines", {"filled": "v::int"}, **settings)
        there = 'SELECT count(*) FROM "Order Lines" WHERE filled IS NOT NULL'
    else:
        target.sql(
            'CREATE TABLE dst ("The Key" char(40), "No" numeric(8,2), filled int, PRIMARY KEY ("The Key", "No"))'
        )
        columns = {"The Key": '"The Key"', "No": '"No"', "filled": "v::int"}
        spec = into(source, "Order Lines", target, "dst", columns=columns, **settings)
        there = "SELECT count(*) FROM dst"
    await run_to_done(spec)
    assert target.sql("SELECT key[2] FROM backfill.quarantine ORDER BY 1").split() == ["1200.00", "17.00"]
    assert target.sql(there) == "1998"
    source.sql("UPDATE \"Order Lines\" SET v = '7' WHERE v = 'x'")
    tried = await Retry(await prepare(spec)).run()
    assert tried.outcomes == {Outcome.WRITTEN: 2}
    assert target.sql(there) == "2000"


# -- whose fault ------------------------------------------------------------------------------------------------------


@on_each_major
@pytest.mark.parametrize("mode", [Mode.INSERT, Mode.COPY], ids=["insert", "copy"])
async def test_a_violation_of_another_unique_index_is_the_rows_fault(databases: TwoDatabases, mode: Mode) -> None:
    source, target = databases.source, databases.target if mode is Mode.COPY else databases.source
    source.sql(
        "CREATE TABLE src (id int PRIMARY KEY, email text);"
        "INSERT INTO src SELECT g, CASE WHEN g = 2500 THEN 'm7' ELSE 'm' || g END FROM generate_series(1, 3000) g"
    )
    target.sql("CREATE TABLE dst (id int PRIMARY KEY, email text UNIQUE)")
    await run_to_done(into(source, "src", target, "dst", chunk=SMALL, errors=Errors(max_quarantined=1)), workers=1)
    assert target.sql("SELECT key, sqlstate FROM backfill.quarantine") == "{2500}|23505"
    assert target.sql("SELECT count(*) FROM dst") == "2999"


@pytest.mark.parametrize("mode", [Mode.INSERT, Mode.COPY], ids=["insert", "copy"])
async def test_a_key_that_the_target_holds_stops_under_on_conflict_fail(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases, 1000)
    stage.target.sql("INSERT INTO dst VALUES (500, 500)")
    ran = await run(stage.spec(on_conflict=OnConflict.parse("fail")))
    assert ran.result.state is JobState.FAILED
    assert ran.result.error is not None
    assert (ran.result.error.code, ran.result.error.sqlstate) == ("bad_row", "23505")
    assert stage.quarantine == {}


@on_each_major
@MODES
async def test_what_a_trigger_refuses_is_set_aside_and_its_words_are_not_kept(
    databases: TwoDatabases, mode: Mode
) -> None:
    stage = Stage(mode, databases, 2000)
    sqlstate = "22012" if mode is Mode.COPY else "ZZ999"
    table = "src" if mode is Mode.UPDATE else "dst"
    stage.target.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id IN (3, 1777) THEN"
        f" RAISE SQLSTATE '{sqlstate}' USING MESSAGE = 'not {CANARY} ' || NEW.id, DETAIL = '{CANARY}', HINT = '{CANARY}',"
        f" COLUMN = '{CANARY}', TABLE = '{CANARY}', CONSTRAINT = '{CANARY}'; END IF; RETURN NEW; END $$;"
        f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    accept = ("TRIGGERS_ON_SOURCE",) if mode is Mode.UPDATE else ("TRIGGERS_ON_TARGET",)
    ran = await run_to_done(stage.spec(accept=accept))
    assert sorted(stage.quarantine) == stage.missing == [3, 1777]
    assert set(stage.quarantine.values()) == {sqlstate}
    assert CANARY not in everything_said(ran) + ledger_texts(stage.target)


@pytest.mark.parametrize("mode", [Mode.INSERT, Mode.COPY], ids=["insert", "copy"])
async def test_constraints_and_limits_of_the_server_that_one_row_breaks(databases: TwoDatabases, mode: Mode) -> None:
    source, target = databases.source, databases.target if mode is Mode.COPY else databases.source
    source.sql(
        "CREATE TABLE src (id int PRIMARY KEY, a int, b text);"
        "INSERT INTO src SELECT g, g, 'b' || g FROM generate_series(1, 2000) g;"
        "UPDATE src SET a = -1 WHERE id = 10; UPDATE src SET a = NULL WHERE id = 20; UPDATE src SET a = 77777 WHERE id = 30;"
        "UPDATE src SET b = (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 400) g) WHERE id = 40"
    )
    target.sql(
        "CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other SELECT generate_series(-10, 5000);"
        "CREATE TABLE dst (id int PRIMARY KEY, a int NOT NULL CHECK (a > 0) REFERENCES other DEFERRABLE INITIALLY DEFERRED, b text);"
        "CREATE INDEX ON dst (b)"
    )
    columns = {"id": "id", "a": "a", "b": "b"}
    spec = into(
        source,
        "src",
        target,
        "dst",
        columns=columns,
        chunk=SMALL,
        errors=Errors(max_quarantined=4),
        accept=("FOREIGN_KEYS",),
    )
    await run_to_done(spec)
    found = dict(line.split("|") for line in target.sql("SELECT key[1], sqlstate FROM backfill.quarantine").split())
    assert found == {"10": "23514", "20": "23502", "30": "23503", "40": "54000"}
    assert target.sql("SELECT count(*) FROM dst") == "1996"


async def test_a_statement_that_fails_without_any_row_stops_the_job(databases: TwoDatabases) -> None:
    """A trigger for each statement refuses them all, those over empty ranges too."""
    stage = Stage(Mode.UPDATE, databases, 50)
    stage.source.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'never'; END $$;"
        "CREATE TRIGGER refuse BEFORE UPDATE ON src FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
    )
    prepared = await prepare(stage.spec(1000, accept=("TRIGGERS_ON_SOURCE",)))
    stage.source.sql("DELETE FROM src")
    result = await Supervisor(prepared, workers=1, emit=ignore, seed=1).run()
    assert result.error is not None
    assert (result.error.code, result.error.sqlstate) == ("bad_row", "P0001")
    assert stage.quarantine == {}


@MODES
@pytest.mark.parametrize(
    "refused",
    [
        pytest.param("PERFORM 1 FROM private", id="server"),
        pytest.param("RAISE insufficient_privilege USING MESSAGE = 'not yours'", id="raised"),
    ],
)
async def test_a_right_that_an_expression_lacks_stops_the_job_and_no_row_is_blamed_for_it(
    databases: TwoDatabases, mode: Mode, refused: str
) -> None:
    """The role meets it at one row; whoever grants it mends them all."""
    stage = Stage(mode, databases, 500)
    body = "BEGIN IF v = '300' THEN {}; END IF; RETURN v::int; END"
    create = "CREATE OR REPLACE FUNCTION number_of(v text) RETURNS int IMMUTABLE LANGUAGE plpgsql SET search_path = public AS $f$ {} $f$"
    stage.source.sql(f"CREATE TABLE private (); {create.format(body.format(refused))}")
    filled = {"filled": "public.number_of(v)"}
    changed = {"set": filled} if mode is Mode.UPDATE else {"columns": {"id": "id"} | filled}
    spec = stage.spec(1000).model_copy(update=changed)
    ran = await run(spec)
    error = ran.result.error
    assert error is not None
    assert (error.code, error.sqlstate, error.exit_code) == ("stopped", "42501", 7)
    assert stage.quarantine == {}
    assert ran.of(RowQuarantined) == []
    assert stage.target.sql("SELECT error_code, resumable FROM backfill.job") == "stopped|t"
    stage.source.sql(create.format(body.format("NULL")))
    stage.target.sql("SELECT backfill.resume('job')")
    await run_to_done(spec)
    assert stage.missing == []


async def test_a_table_that_is_not_there_is_nobodys_row(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases, 500)
    stage.source.sql(
        "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM FROM nowhere; RETURN NEW; END $$;"
        "CREATE TRIGGER broken BEFORE UPDATE ON src FOR EACH ROW EXECUTE FUNCTION broken()"
    )
    ran = await run(stage.spec(1000, accept=("TRIGGERS_ON_SOURCE",)))
    assert ran.result.error is not None
    assert ran.result.error.sqlstate == "42P01"
    assert stage.quarantine == {}


async def test_a_row_that_alone_needs_more_than_there_is_is_set_aside(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases, 150)
    database = stage.source
    database.sql(f'ALTER DATABASE "{database.name}" SET temp_file_limit = 1000')
    database.sql(
        "CREATE FUNCTION heavy(v int) RETURNS int LANGUAGE sql STABLE SET work_mem = '64kB' AS $$ SELECT v + 0 *"
        " (SELECT count(DISTINCT g)::int FROM generate_series(1, CASE WHEN v = 123 THEN 400000 ELSE 1 END) g) $$"
    )
    spec = in_place(
        database,
        "src",
        {"filled": "public.heavy(v::int)"},
        chunk=ChunkLimits(min_rows=1, max_rows=1),
        errors=Errors(max_quarantined=1),
    )
    ran = await run_to_done(spec, workers=1)
    assert stage.quarantine == {123: "53400"}
    assert stage.missing == [123]
    waited = [event.delay_s > 0 for event in ran.of(ChunkRetried)]
    assert waited == [True, True, False], "the server may have been short of it by chance"


async def test_a_row_that_alone_times_out_is_set_aside_and_one_that_is_cancelled_is_not(
    databases: TwoDatabases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Database.connect.__kwdefaults__, "statement_timeout_s", 0.3)
    monkeypatch.setattr(engine.flow.halving, "STATEMENT_TIMEOUT_S", 0.3)
    stage = Stage(Mode.UPDATE, databases, 40)
    stage.source.sql(
        "CREATE FUNCTION slow(v int) RETURNS int LANGUAGE plpgsql AS"
        " $$ BEGIN IF v = 7 THEN PERFORM pg_sleep(30); END IF; RETURN v; END $$"
    )
    chunk = ChunkLimits(min_rows=1, max_rows=4)
    spec = in_place(
        stage.source,
        "src",
        {"filled": "public.slow(v::int)"},
        done="filled is not null",
        chunk=chunk,
        errors=Errors(max_quarantined=1),
    )
    running = await start(spec)
    await running.done()
    assert stage.quarantine == {7: "57014"}
    assert stage.missing == [7]


async def test_a_single_row_that_somebody_cancels_is_tried_again(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases, 6)
    stage.source.sql(
        "CREATE TABLE gate (shut boolean); INSERT INTO gate VALUES (true); GRANT SELECT ON gate TO PUBLIC;"
        "CREATE FUNCTION slow(v int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
        " IF v = 3 AND (SELECT shut FROM public.gate) THEN PERFORM pg_sleep(30); END IF; RETURN v; END $$"
    )
    spec = in_place(
        stage.source,
        "src",
        {"filled": "public.slow(v::int)"},
        done="filled is not null",
        chunk=ChunkLimits(min_rows=1, max_rows=1),
        errors=Errors(max_quarantined=5),
    )
    running = await start(spec)
    cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE '%/w1' AND wait_event = 'PgSleep'"
    for _ in range(2 * engine.flow.halving.ATTEMPTS_ALONE):
        await running.until(lambda: stage.source.sql(cancel) == "1")
    stage.source.sql("UPDATE gate SET shut = false")
    await running.until(lambda: stage.source.sql(cancel) == "1" or running.task.done())
    await running.done()
    assert stage.quarantine == {}
    assert stage.missing == []


# -- the limit --------------------------------------------------------------------------------------------------------


@MODES
async def test_without_quarantine_the_first_bad_row_stops_and_says_what_would_set_it_aside(
    databases: TwoDatabases, mode: Mode
) -> None:
    stage = Stage(mode, databases, 2000, [1000])
    ran = await run(stage.spec(0))
    error = ran.result.error
    assert error is not None
    assert (error.code, error.sqlstate, error.exit_code) == ("bad_row", "22P02", 7)
    assert "a value cannot be read as its type" in error.message
    assert "errors: {max_quarantined: N}" in error.hint
    assert CANARY not in everything_said(ran)


@on_each_major
@MODES
async def test_one_bad_row_too_many_stops_the_job_and_a_higher_limit_lets_it_go_on(
    databases: TwoDatabases, mode: Mode
) -> None:
    stage = Stage(mode, databases, 3000, [100, 200, 1500, 2900])
    ran = await run(stage.spec(3), workers=1)
    error = ran.result.error
    assert error is not None
    assert (error.code, error.exit_code, ran.result.state) == ("too_many_bad_rows", 7, JobState.FAILED)
    assert "4 rows cannot be written (4 of 22P02); errors.max_quarantined allows 3" in error.message
    assert len(stage.quarantine) == ran.result.quarantined == 3
    assert stage.target.sql("SELECT resumable, error_code FROM backfill.job") == "t|too_many_bad_rows"
    assert "2900" not in repr(error)
    stage.target.sql("SELECT backfill.resume('job')")
    await run_to_done(stage.spec(4))
    assert sorted(stage.quarantine) == stage.missing == [100, 200, 1500, 2900]


async def test_rows_that_have_left_the_quarantine_make_room(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases, 1000, [100, 900])
    assert (await run(stage.spec(1), workers=1)).result.state is JobState.FAILED
    stage.mend([100])
    assert (await stage.retry()).outcomes == {Outcome.WRITTEN: 1}
    stage.target.sql("SELECT backfill.resume('job')")
    await run_to_done(stage.spec(1))
    assert stage.quarantine == {900: "22P02"}


@MODES
async def test_setting_aside_is_behind_the_same_fence_as_a_chunk(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases, 1000, [500])
    assert (await run(stage.spec(0), workers=1)).result.state is JobState.FAILED
    connection = await Database(stage.target.dsn, side=Side.TARGET).connect("test")
    ledger = Ledger(connection)
    job_id = (await ledger.job("job")).id
    (at,) = [
        span
        for span in await ledger.spans(job_id, Phase.MOVE)
        if span.cursor and int(span.hi[0]) >= 500 > int(span.cursor[0])
    ]
    right = Span(id=at.id, phase=Phase.MOVE, lo=at.lo, hi=at.hi, cursor=at.cursor, epoch=at.epoch, rows=at.rows)
    late = {
        "epoch": replace(right, epoch=right.epoch - 1),
        "cursor": replace(right, cursor=("1",)),
        "bound": replace(right, hi=("998",)),
        "span": replace(right, id=right.id + 100),
    }
    why = {"error_class": "bad", "sqlstate": "22P02", "allowed": 5}
    for what, span in late.items():
        with pytest.raises(Exception) as caught:
            await ledger.set_aside(job_id, span, ("500",), **why)
        assert classify(caught.value).action is Action.FENCED, what
    assert stage.quarantine == {}
    assert await ledger.set_aside(job_id, right, ("500",), **why) == 1
    (now,) = [span for span in await ledger.spans(job_id, Phase.MOVE) if span.id == right.id]
    assert (now.cursor, stage.quarantine) == (("500",), {500: "22P02"})
    await connection.close()


# -- beside others ----------------------------------------------------------------------------------------------------


async def test_a_span_that_is_stolen_from_while_a_bad_row_is_looked_for(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases, 20_000, [7, 9_999, 10_001, 19_998])
    stage.source.sql(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.id % 100 = 0 THEN PERFORM pg_sleep(0.01); END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER wait BEFORE UPDATE ON src FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    running = await start(stage.spec(4, accept=("TRIGGERS_ON_SOURCE",)), workers=4)
    await running.done()
    assert sorted(stage.quarantine) == stage.missing == [7, 9_999, 10_001, 19_998]
    assert any(isinstance(event, SpanClaimed) and event.stolen for event in running.events)


@MODES
async def test_a_row_inserted_beside_the_bad_one_is_not_taken_for_it(
    databases: TwoDatabases, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the failure of a single row and its setting aside somebody puts another into the gap before it."""
    stage = Stage(mode, databases, 1000, [501])
    stage.source.sql("DELETE FROM src WHERE id = 500")
    before = engine.flow.halving.Halving.rows_left
    looks: list[int] = []

    async def rows_left(self: Any, cursor: Any) -> Any:
        if not looks:
            stage.source.sql("INSERT INTO src VALUES (500, '500')")
        looks.append(1)
        return await before(self, cursor)

    monkeypatch.setattr(engine.flow.halving.Halving, "rows_left", rows_left)
    await run_to_done(stage.spec(1), workers=1)
    assert stage.quarantine == {501: "22P02"}
    assert stage.missing == [501]
    assert len(looks) > 1


@MODES
async def test_a_bad_row_that_is_deleted_before_it_is_set_aside_leaves_no_trace(
    databases: TwoDatabases, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(mode, databases, 1000, [500])
    before = engine.flow.halving.Halving.rows_left

    async def rows_left(self: Any, cursor: Any) -> Any:
        stage.source.sql("DELETE FROM src WHERE id = 500")
        return await before(self, cursor)

    monkeypatch.setattr(engine.flow.halving.Halving, "rows_left", rows_left)
    await run_to_done(stage.spec(1), workers=1)
    assert stage.quarantine == {}
    assert stage.missing == []


# -- retry ------------------------------------------------------------------------------------------------------------


@on_each_major
@MODES
async def test_a_row_that_was_mended_is_written_and_the_others_count_one_attempt_more(
    databases: TwoDatabases, mode: Mode
) -> None:
    stage = Stage(mode, databases, 2000, [10, 20, 30, 40])
    await run_to_done(stage.spec())
    stage.mend([10])
    stage.source.sql("DELETE FROM src WHERE id = 30")
    before = stage.target.sql("SELECT moved_at FROM backfill.job")
    tried = await stage.retry()
    assert tried.outcomes == {Outcome.WRITTEN: 1, Outcome.GONE: 1, Outcome.FAILED: 2}
    assert tried.failed == {"22P02": 2}
    assert sorted(stage.quarantine) == stage.missing == [20, 40]
    assert stage.attempts == [2, 2]
    assert stage.target.sql("SELECT moved_at FROM backfill.job") > before, "what was proved before is proved no more"
    assert stage.target.sql("SELECT count(*) FROM backfill.written") == "0"
    history = stage.target.sql("SELECT what, detail -> 'retried' ->> 'written' FROM backfill.event ORDER BY id").split()
    assert history[-1] == "quarantine|1"


async def test_an_expression_that_cannot_be_repeated_is_applied_exactly_once(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases, 500, [100, 200])
    sets = {"tries": "tries + (v::int * 0) + 1"}
    spec = in_place(stage.source, "src", sets, done="false", chunk=SMALL, errors=Errors(max_quarantined=2))
    await run_to_done(spec)
    stage.mend([100, 200])
    first, second = await asyncio.gather(Retry(await prepare(spec)).run(), Retry(await prepare(spec)).run())
    assert first.outcomes[Outcome.WRITTEN] + second.outcomes[Outcome.WRITTEN] == 2
    assert first.left + second.left == 0
    assert stage.source.sql("SELECT min(tries), max(tries) FROM src") == "1|1"


async def test_done_keeps_a_retry_from_a_row_that_somebody_has_finished(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases, 200, [100])
    await run_to_done(stage.spec())
    stage.source.sql("UPDATE src SET v = '7', filled = 42 WHERE id = 100")
    assert (await stage.retry()).outcomes == {Outcome.NOT_NEEDED: 1}
    assert stage.source.sql("SELECT filled FROM src WHERE id = 100") == "42"
    assert stage.quarantine == {}


@pytest.mark.parametrize("mode", [Mode.INSERT, Mode.COPY], ids=["insert", "copy"])
async def test_what_dual_write_has_put_there_wins_over_a_retry(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases, 200, [100])
    await run_to_done(stage.spec())
    stage.mend([100])
    stage.target.sql("INSERT INTO dst VALUES (100, 42)")
    assert (await stage.retry()).outcomes == {Outcome.NOT_NEEDED: 1}
    assert stage.target.sql("SELECT filled FROM dst WHERE id = 100") == "42"
    assert stage.quarantine == {}


async def test_a_row_that_somebody_holds_stays_as_it_was(databases: TwoDatabases) -> None:
    stage = Stage(Mode.UPDATE, databases, 200, [100])
    await run_to_done(stage.spec())
    stage.mend([100])
    holder = await stage.source.connect()
    await holder.execute("BEGIN; UPDATE src SET v = v WHERE id = 100")
    tried = await stage.retry(lock_timeout_s=0.05)
    assert tried.outcomes == {Outcome.BUSY: 1}
    assert stage.attempts == [1]
    await holder.execute("ROLLBACK")
    assert (await stage.retry()).outcomes == {Outcome.WRITTEN: 1}


async def test_only_the_rows_that_were_asked_for_are_tried(databases: TwoDatabases) -> None:
    stage = Stage(Mode.INSERT, databases, 200, [50, 100])
    await run_to_done(stage.spec())
    number = int(stage.target.sql("SELECT id FROM backfill.quarantine WHERE key = '{100}'"))
    assert (await stage.retry([number])).outcomes == {Outcome.FAILED: 1}
    assert sorted(stage.attempts) == [1, 2]


@pytest.mark.parametrize("mode", [Mode.INSERT, Mode.COPY], ids=["insert", "copy"])
async def test_a_retry_while_the_job_runs_is_swept_with_it(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases, 2000, [10, 20])
    running = await start(stage.spec(pace=Pace(signals=ALL_OFF, max_rows_per_s=100)))
    await running.until(lambda: running.count(RowQuarantined) == 2)
    stage.mend([10, 20])
    tried = await stage.retry()
    assert tried.outcomes == {Outcome.WRITTEN: 2}
    stage.source.sql("DELETE FROM src WHERE id = 20")  # by somebody who does not know of the target
    stage.target.sql("SELECT backfill.pace('job', 1e6)")
    await running.done()
    assert stage.target.sql("SELECT count(*) FILTER (WHERE id = 10), count(*) FILTER (WHERE id = 20) FROM dst") == "1|0"


@pytest.mark.parametrize("mode", [Mode.INSERT, Mode.COPY], ids=["insert", "copy"])
async def test_a_row_deleted_by_a_transaction_that_did_not_see_it_is_taken_out_again(
    databases: TwoDatabases, mode: Mode
) -> None:
    """After the job's end: the application's snapshot is older than what the retry writes."""
    stage = Stage(mode, databases, 500, [100, 200])
    await run_to_done(stage.spec())
    stage.mend([100, 200])
    older = await stage.source.connect()
    await older.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM src")
    said: list[str] = []
    retrying = asyncio.create_task(Retry(await prepare(stage.spec()), say=said.append).run())
    async with asyncio.timeout(SLOT_S):
        while not said:
            await asyncio.sleep(0.01)
    assert stage.target.sql("SELECT count(*) FROM dst WHERE id IN (100, 200)") == "2"
    await older.execute("DELETE FROM src WHERE id = 100")
    if mode is Mode.INSERT:
        await older.execute("DELETE FROM dst WHERE id = 100")  # does not see it
    await older.execute("COMMIT")
    tried = await retrying
    assert (tried.outcomes[Outcome.WRITTEN], tried.taken_back) == (2, 1)
    assert stage.target.sql("SELECT id FROM dst WHERE id IN (100, 200)") == "200"
    assert stage.target.sql("SELECT count(*) FROM backfill.written") == "0"


async def test_what_somebody_else_wrote_meanwhile_is_not_taken_out(databases: TwoDatabases) -> None:
    stage = Stage(Mode.INSERT, databases, 500, [100])
    await run_to_done(stage.spec())
    stage.mend([100])
    older = await stage.source.connect()
    await older.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM src")
    said: list[str] = []
    retrying = asyncio.create_task(Retry(await prepare(stage.spec()), say=said.append).run())
    async with asyncio.timeout(SLOT_S):
        while not said:
            await asyncio.sleep(0.01)
    stage.target.sql("UPDATE dst SET filled = 100 WHERE id = 100")
    await older.execute("DELETE FROM src WHERE id = 100; COMMIT")
    assert (await retrying).taken_back == 0
    assert stage.target.sql("SELECT count(*) FROM dst WHERE id = 100") == "1"


async def test_a_retry_that_waits_for_the_application_keeps_nobody_from_the_ledger(databases: TwoDatabases) -> None:
    """Nor from the job's row: whoever looks after the job needs it, and stands behind the application else."""
    stage = Stage(Mode.INSERT, databases, 500, [100])
    await run_to_done(stage.spec())
    stage.mend([100])
    older, holder = await stage.source.connect(), await stage.target.connect()
    await older.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM src")
    said: list[str] = []
    retrying = asyncio.create_task(Retry(await prepare(stage.spec()), say=said.append).run())
    async with asyncio.timeout(SLOT_S):
        while not said:
            await asyncio.sleep(0.01)
    await older.execute("DELETE FROM src WHERE id = 100")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    # Who begins now did not see the row's writer running: nobody waits for him but for his lock.
    await holder.execute("BEGIN; SELECT FROM dst WHERE id = 100 FOR UPDATE")
    before = stage.target.sql("SELECT moved_at FROM backfill.job")
    await older.execute("COMMIT")
    async with asyncio.timeout(SLOT_S):
        while stage.target.sql(waiting) == "0":
            await asyncio.sleep(0.01)
    stage.target.sql("SELECT FROM backfill.job FOR NO KEY UPDATE NOWAIT")
    await holder.execute("COMMIT")
    assert (await retrying).taken_back == 1
    assert stage.target.sql("SELECT moved_at FROM backfill.job") > before, "it wrote to the job's tables"


async def test_types_that_travel_as_text_are_tried_again_too(databases: TwoDatabases) -> None:
    databases.source.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'Happy one'); CREATE TABLE src (id numeric PRIMARY KEY, m mood, j json, v text);"
        "INSERT INTO src SELECT g + 0.50, 'Happy one', '{\"a\": 1}', CASE WHEN g = 77 THEN 'x' ELSE g::text END"
        " FROM generate_series(1, 300) g"
    )
    databases.target.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'Happy one'); CREATE TABLE dst (id numeric PRIMARY KEY, m mood, j json, v int)"
    )
    columns = {"id": "id", "m": "m", "j": "j", "v": "v::int"}
    spec = into(
        databases.source, "src", databases.target, "dst", columns=columns, chunk=SMALL, errors=Errors(max_quarantined=1)
    )
    await run_to_done(spec)
    assert databases.target.sql("SELECT key FROM backfill.quarantine") == "{77.50}"
    databases.source.sql("UPDATE src SET v = '77' WHERE v = 'x'")
    assert (await Retry(await prepare(spec)).run()).outcomes == {Outcome.WRITTEN: 1}
    assert rows_of(databases.source, "SELECT id, m, j, v FROM src") == rows_of(databases.target, "SELECT * FROM dst")


async def test_the_number_of_rows_set_aside_is_kept_with_the_job(database: FreshDatabase) -> None:
    """It is asked for at every status: to count half a million rows each time would be felt."""
    connection = await Database(database.dsn, side=Side.TARGET).connect("test")
    await Ledger(connection).ensure()
    database.sql(
        "INSERT INTO backfill.job (name, mode, source, target, identity, spec, fingerprint, key_types, rows_estimated)"
        " VALUES ('a', 'update', '', '', '{}', '{}', '{}', '{}', 0), ('b', 'update', '', '', '{}', '{}', '{}', '{}', 0)"
    )
    put = (
        "INSERT INTO backfill.quarantine (job_id, key, error_class, sqlstate)"
        " SELECT j.id, ARRAY[g::text], 'x', '23514' FROM backfill.job j, generate_series(1, {rows}) g"
        " ON CONFLICT (job_id, key) DO UPDATE SET attempts = quarantine.attempts + 1"
    )
    database.sql(put.format(rows=20_000))
    database.sql(put.format(rows=20_005))
    database.sql("DELETE FROM backfill.quarantine WHERE key = '{7}'")
    assert database.sql("SELECT job, quarantined FROM backfill.status ORDER BY job") == "a|20004\nb|20004"
    await connection.close()


async def test_a_value_that_no_integer_can_hold_is_the_rows_fault(databases: TwoDatabases) -> None:
    """The server calls it a feature that is not supported (0A000)."""
    database = databases.source
    database.sql("CREATE TABLE t (id int PRIMARY KEY, v numeric, filled bigint)")
    database.sql(
        "INSERT INTO t SELECT g, CASE WHEN g = 700 THEN 'NaN'::numeric ELSE g END FROM generate_series(1, 1000) g"
    )
    ran = await run_to_done(
        in_place(database, "t", {"filled": "v::bigint"}, errors=Errors(max_quarantined=1)), workers=1
    )
    assert [event.sqlstate for event in ran.of(RowQuarantined)] == ["0A000"]
    assert database.sql("SELECT count(*) FROM t WHERE filled = v").strip() == "999"
