"""Rows that a transform cannot do are set aside with the chunk that the others are rows of, and can be tried again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.errors import TooManyBadRows, TransformFailed
from engine.events import ChunkCommitted, RowQuarantined
from engine.flow.quarantine import Outcome, Retried, Retry
from engine.model import JobState, Mode
from engine.spec import ChunkLimits, JobSpec
from engine.spec.models import Errors
from tests.support.databases import TwoDatabases, on_each_major
from tests.support.hashing import HASHED_SQL, POISON, named
from tests.support.jobs import in_place, into, prepare, run, run_to_done

pytestmark = pytest.mark.usefixtures("under_its_rights")

MODES = pytest.mark.parametrize("mode", list(Mode), ids=[mode.value for mode in Mode])
SMALL = ChunkLimits(min_rows=10, max_rows=400)
CANARY = f"{POISON} hunter2"
ROWS = 5000
BAD = (1500, 2600, 2601, 4999)


class Stage:
    """A table with some rows that the transform, or the target, cannot bear."""

    def __init__(self, mode: Mode, databases: TwoDatabases, bad: tuple[int, ...] = BAD) -> None:
        self.mode = mode
        self.source = databases.source
        self.target = databases.target if mode is Mode.COPY else databases.source
        self.table = "src" if mode is Mode.UPDATE else "dst"
        columns = "a int, b text, n int, v text, h bigint CHECK (h <> 31), PRIMARY KEY (a, b)"
        self.source.sql(
            f"CREATE TABLE src ({columns}); INSERT INTO src SELECT g, 'k''' || g, g, 'x' || g FROM"
            f" generate_series(1, {ROWS}) g; ANALYZE src"
        )
        if mode is not Mode.UPDATE:
            self.target.sql(f"CREATE TABLE dst ({columns})")
        self.spoil(bad)

    def spoil(self, bad: tuple[int, ...]) -> None:
        self.source.sql(f"UPDATE src SET v = '{CANARY}' WHERE a IN ({', '.join(map(str, bad))})")

    def spec(self, function: str = "raises_on_poison", allowed: int = 10, **settings: Any) -> JobSpec:
        settings = {"errors": Errors(max_quarantined=allowed), "chunk": SMALL, "transform": named(function)} | settings
        if self.mode is Mode.UPDATE:
            return in_place(self.source, "src", {}, **settings)
        return into(self.source, "src", self.target, "dst", **settings)

    @property
    def missing(self) -> list[int]:
        """Rows whose hash has not arrived; those that arrived are right."""
        assert self.target.sql(f"SELECT count(*) FROM {self.table} WHERE h <> {HASHED_SQL}") == "0"
        there = self.target.sql(f"SELECT a FROM {self.table} WHERE h IS NOT NULL").split()
        return sorted({*range(1, ROWS + 1)} - {int(a) for a in there})

    @property
    def aside(self) -> list[tuple[int, str, int]]:
        """Key, SQLSTATE and attempts of the rows in quarantine."""
        lines = self.target.sql("SELECT key[1], sqlstate, attempts FROM backfill.quarantine ORDER BY key[1]::int")
        return [(int(a), state, int(n)) for a, state, n in (line.split("|") for line in lines.splitlines())]

    async def retry(self, **settings: Any) -> Retried:
        return await Retry(await prepare(self.spec(**settings))).run()


@on_each_major
@MODES
async def test_rows_that_make_it_raise_are_set_aside_and_all_others_arrive(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    ran = await run_to_done(stage.spec(), workers=1)
    assert stage.missing == [*BAD]
    assert stage.aside == [(row, "BF011", 1) for row in BAD]
    assert (ran.result.quarantined, ran.result.rows) == (len(BAD), ROWS - len(BAD))
    told = ran.of(RowQuarantined)
    assert sum(event.rows for event in told) == len(BAD)
    assert {event.sqlstate for event in told} == {"BF011"}
    assert all(event.in_chunk for event in told)
    assert len(ran.of(ChunkCommitted)) < 60, "no chunk is cut smaller for a row that the transform cannot do"
    texts = " ".join(json.dumps(event.as_json(), default=str) for event in ran.events)
    assert CANARY not in texts + stage.target.sql("SELECT string_agg(q::text, ' ') FROM backfill.quarantine q")
    assert stage.target.sql("SELECT DISTINCT key[2] = 'k''' || key[1] FROM backfill.quarantine") == "t"


@MODES
async def test_rows_that_it_rejects_are_set_aside_with_its_reason(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases, bad=(13,))
    await run_to_done(stage.spec("hashed_or_no"))
    assert stage.aside == [(13 + k * 1000, "BF010", 1) for k in range(5)]
    assert stage.target.sql("SELECT DISTINCT error_class FROM backfill.quarantine") == "thirteen"
    assert len(stage.missing) == 5


@MODES
async def test_a_row_that_the_server_refuses_is_found_by_halves_as_ever(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    stage.source.sql("UPDATE src SET n = 1, v = '' WHERE a = 70")  # its hash is 31, and its chunk the first one
    await run_to_done(stage.spec())
    assert stage.aside == [(70, "23514", 1), *((row, "BF011", 1) for row in BAD)]
    assert stage.missing == [70, *BAD]


@MODES
async def test_one_row_more_than_allowed_stops_the_job_and_takes_its_chunk_back(
    databases: TwoDatabases, mode: Mode
) -> None:
    stage = Stage(mode, databases)
    ran = await run(stage.spec(allowed=3), workers=1)
    assert isinstance(ran.result.error, TooManyBadRows), ran.result.error
    assert ran.result.state is JobState.FAILED
    assert "4 of BF011" in ran.result.error.message
    assert stage.aside == [(row, "BF011", 1) for row in BAD[:3]]
    arrived = int(stage.target.sql(f"SELECT count(*) FROM {stage.table} WHERE h IS NOT NULL"))
    done = int(stage.target.sql("SELECT sum(rows) FROM backfill.span"))
    assert arrived == done


async def test_where_no_row_may_be_set_aside_the_first_one_stops_the_job(databases: TwoDatabases) -> None:
    stage = Stage(Mode.COPY, databases)
    ran = await run(stage.spec(allowed=0), workers=1)
    assert isinstance(ran.result.error, TransformFailed)
    assert "hashing.py" in ran.result.error.message
    assert "ValueError" in ran.result.error.message
    assert CANARY not in repr(ran.result)


@MODES
async def test_retrying_runs_the_transform_again(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    await run_to_done(stage.spec())
    mended, gone, *still = BAD
    stage.source.sql(f"UPDATE src SET v = 'mended' WHERE a = {mended}; DELETE FROM src WHERE a = {gone}")
    tried = await stage.retry()
    assert tried.outcomes == {Outcome.WRITTEN: 1, Outcome.GONE: 1, Outcome.FAILED: 2}
    assert tried.failed == {"BF011": 2}
    assert stage.aside == [(row, "BF011", 2) for row in still]
    assert stage.missing == [gone, *still]
