"""``verify`` as a part of a job: what it finds, what it never invents, what it mends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import Busy, HeldByOperator, UsageError
from engine.events import Event, PhaseChanged
from engine.fleet import LocalVerification
from engine.ledger.records import Verification
from engine.model import JobState, Phase, Verify
from engine.spec import ChunkLimits, JobSpec
from tests.support.databases import FreshDatabase, TlsServer, TwoDatabases, on_each_major
from tests.support.jobs import UNPACED, differing, in_place, into, rows_of, run, run_to_done
from tests.support.rights import limited

pytestmark = pytest.mark.usefixtures("under_its_rights")

ROWS = 20_000
SETTLE_S = 0.1


async def verify(spec: JobSpec, **options: Any) -> tuple[Verification, LocalVerification, list[Event]]:
    events: list[Event] = []
    run = LocalVerification(
        await limited(spec), emit=events.append, **({"settle_s": SETTLE_S, "show": 10_000} | options)
    )
    result = await run.run()
    assert result.error is None, result.error
    assert run.verification is not None
    return run.verification, run, events


def found(seen: Verification) -> tuple[int, int, int, int]:
    return seen.mismatched, seen.missing, seen.extra, seen.unsettled


MAKE = """
CREATE TABLE {name} (id bigint PRIMARY KEY, n int NOT NULL, price numeric(12,2), ratio float8, note text,
    at timestamptz NOT NULL, meta jsonb);
"""
FILL = """
INSERT INTO src SELECT g, g % 1000, g / 100.0, g / 7.0, 'note ' || g,
       '2024-01-01+00'::timestamptz + g * interval '1 minute', jsonb_build_object('g', g)
  FROM generate_series(1, {rows}) g;
ANALYZE src;
"""
PLANTED = {
    "changed": "UPDATE dst SET n = n + 1 WHERE id = 11",
    "null against empty": "UPDATE dst SET note = NULL WHERE id = 22",
    "negative zero": "UPDATE dst SET ratio = '-0' WHERE id = 33",
    "time zone": "UPDATE dst SET at = at + interval '1 hour' WHERE id = 44",
    "last digit": "UPDATE dst SET ratio = ratio * (1 + 2.3e-16) WHERE id = 49",
    "json": """UPDATE dst SET meta = '{"g": 55.0}' WHERE id = 55""",
    "missing": "DELETE FROM dst WHERE id IN (66, 19999)",
    "extra": "INSERT INTO dst SELECT 30000, n, price, ratio, note, at, meta FROM dst WHERE id = 1",
}


@pytest.fixture(params=["one database", "two databases"])
def pair(request: pytest.FixtureRequest, databases: TwoDatabases) -> tuple[FreshDatabase, FreshDatabase]:
    source = databases.source
    target = source if request.param == "one database" else databases.target
    source.sql(MAKE.format(name="src") + FILL.format(rows=ROWS) + "UPDATE src SET ratio = 0 WHERE id = 33")
    target.sql(MAKE.format(name="dst"))
    return source, target


def job(pair: tuple[FreshDatabase, FreshDatabase], **settings: Any) -> JobSpec:
    chunk = ChunkLimits(min_rows=50, max_rows=2_000)
    return into(pair[0], "src", pair[1], "dst", **({"chunk": chunk} | settings))


@on_each_major
async def test_equal_tables_are_verified(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    spec = job(pair)
    await run_to_done(spec)
    seen, _, events = await verify(spec)
    assert (seen.verified, seen.rows, found(seen)) == (True, ROWS, (0, 0, 0, 0))
    assert not [e for e in events if isinstance(e, PhaseChanged)], "there was nothing to look at again"


@on_each_major
async def test_every_planted_difference_is_found_and_repaired(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    source, target = pair
    spec = job(pair)
    await run_to_done(spec)
    for sql in PLANTED.values():
        target.sql(sql)
    target.sql("UPDATE src SET ratio = 0 WHERE id = 33" if source is target else "SELECT 1")
    seen, ran, _ = await verify(spec)
    assert seen.verified is False
    assert found(seen) == (6, 2, 1, 0)
    by_key = {d.key[0]: (d.kind, d.columns) for d in ran.differences}
    assert by_key == {
        "11": ("changed", ("n",)),
        "22": ("changed", ("note",)),
        "33": ("changed", ("ratio",)),
        "44": ("changed", ("at",)),
        "49": ("changed", ("ratio",)),
        "55": ("changed", ("meta",)),
        "66": ("missing", ()),
        "19999": ("missing", ()),
        "30000": ("extra", ()),
    }
    assert seen.columns == {"n": 1, "note": 1, "ratio": 2, "at": 1, "meta": 1}
    mended, _, events = await verify(spec, repair=True, delete_extra=True)
    assert (mended.verified, found(mended), mended.repaired) == (True, (6, 2, 1, 0), 9)
    assert Phase.RECHECK in [e.phase for e in events if isinstance(e, PhaseChanged)]
    again, _, _ = await verify(spec)
    assert (again.verified, found(again), again.suspects) == (True, (0, 0, 0, 0), 0)
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")


@on_each_major
async def test_a_repair_leaves_rows_that_only_the_target_holds(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    """They may be another job's: here, the other half of the same table."""
    source, target = pair
    even, odd = (job(pair, name=f"n{n}", where=f"id % 2 = {n}", accept=["TARGET_HAS_ROWS"]) for n in (0, 1))
    await run_to_done(even)
    await run_to_done(odd)
    target.sql("UPDATE dst SET n = -1 WHERE id = 2; DELETE FROM dst WHERE id = 4")
    seen, ran, _ = await verify(even, repair=True, show=20_000)
    assert (seen.verified, found(seen), seen.repaired) == (False, (1, 1, ROWS // 2, 0), 2)
    assert {d.state for d in ran.differences if d.kind == "extra"} == {"confirmed"}
    assert rows_of(source, "SELECT * FROM src") == rows_of(target, "SELECT * FROM dst")
    moved = "SELECT moved_at FROM backfill.job WHERE name = 'n0'"
    before = target.sql(moved)
    assert (await verify(even, repair=True))[0].repaired == 0
    assert target.sql(moved) == before, "where nothing may be repaired, nothing was written"


async def test_whether_extra_rows_are_deleted_is_decided_by_who_began(
    pair: tuple[FreshDatabase, FreshDatabase],
) -> None:
    """Whoever joins, or goes on, reads it in the ledger."""
    spec = job(pair)
    await run_to_done(spec)
    pair[1].sql(PLANTED["extra"])
    began = LocalVerification(await limited(spec), settle_s=20, repair=True, delete_extra=True)
    task = asyncio.create_task(began.run())
    await until(lambda: pair[1].sql("SELECT phase FROM backfill.job").strip() == "confirm")
    assert began.supervisor is not None
    began.supervisor.abort()
    await task
    pair[1].sql("UPDATE backfill.verification SET settle_s = 0.1")
    joined, _, _ = await verify(spec)
    assert (joined.verified, joined.delete_extra, found(joined), joined.repaired) == (True, True, (0, 0, 1, 0), 1)
    assert pair[1].sql("SELECT count(*) FROM dst").strip() == str(ROWS)


async def test_deleting_extra_rows_is_a_part_of_a_repair(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    spec = job(pair)
    await run_to_done(spec)
    with pytest.raises(UsageError, match="--repair"):
        await LocalVerification(await limited(spec), delete_extra=True).run()


async def test_verify_after_is_part_of_the_job(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    ran = await run_to_done(job(pair, verify=Verify.AFTER))
    assert ran.result.verified is True
    assert pair[1].sql("SELECT state, phase, verified FROM backfill.status").strip() == "done|end|t"


async def test_a_mismatch_leaves_the_job_done_and_not_verified(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    pair[1].sql("INSERT INTO dst SELECT 5, 0, 0, 0, '', now(), '{}'")
    ran = await run_to_done(job(pair, verify=Verify.AFTER))
    assert ran.result.verified is False
    assert ran.result.state is JobState.DONE


async def test_only_a_job_that_is_done_can_be_verified(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    spec = job(pair)
    await run_to_done(spec)
    pair[1].sql("UPDATE backfill.job SET state = 'running', phase = 'move', finished_at = NULL")
    with pytest.raises(Busy):
        await LocalVerification(await limited(spec)).run()
    pair[1].sql("SELECT backfill.cancel('job')")
    with pytest.raises(HeldByOperator):
        await LocalVerification(await limited(spec)).run()


async def test_a_cancelled_verification_leaves_the_job_done(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    spec = job(pair)
    await run_to_done(spec)
    pair[1].sql("UPDATE dst SET n = n + 1 WHERE id = 1")
    run = LocalVerification(await limited(spec), settle_s=20)
    task = asyncio.create_task(run.run())
    await until(lambda: pair[1].sql("SELECT phase FROM backfill.job").strip() == "confirm")
    pair[1].sql("SELECT backfill.cancel('job', 'enough')")
    assert run.supervisor is not None
    run.supervisor.abort()
    await task
    assert pair[1].sql("SELECT state, phase, verified IS NULL FROM backfill.status").strip() == "done|end|t"
    seen, _, _ = await verify(spec)
    assert found(seen) == (1, 0, 0, 0)


async def test_two_processes_verify_together(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    spec = job(pair)
    await run_to_done(spec)
    pair[1].sql("UPDATE dst SET n = n + 1 WHERE id % 1000 = 7")
    both = await asyncio.gather(verify(spec), verify(spec))
    assert [found(seen) for seen, _, _ in both] == [(20, 0, 0, 0)] * 2
    assert both[0][0].id == both[1][0].id
    assert both[0][0].rows == ROWS


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


@on_each_major
async def test_in_place_the_expression_is_verified_and_repaired(database: FreshDatabase) -> None:
    database.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, amount numeric(12,2) NOT NULL, cents bigint, label text);"
        "INSERT INTO t SELECT g, g / 100.0 FROM generate_series(1, 5000) g; ANALYZE t"
    )
    spec = in_place(database, "t", {"cents": "(amount * 100)::bigint", "label": "'no ' || id"})
    await run_to_done(spec)
    database.sql("UPDATE t SET amount = amount + 1 WHERE id IN (5, 4000); UPDATE t SET label = '' WHERE id = 17")
    database.sql("UPDATE t SET cents = NULL WHERE id = 18")
    seen, ran, _ = await verify(spec)
    assert (seen.verified, seen.rows, found(seen)) == (False, 5000, (4, 0, 0, 0))
    assert {d.key[0]: d.columns for d in ran.differences} == {
        "5": ("cents",), "4000": ("cents",), "17": ("label",), "18": ("cents",)
    }  # fmt: skip
    mended, _, _ = await verify(spec, repair=True)
    assert (mended.verified, mended.repaired) == (True, 4)
    assert database.sql("SELECT count(*) FROM t WHERE cents <> amount * 100 OR label <> 'no ' || id").strip() == "0"


async def test_a_job_that_cannot_be_computed_again_is_verified_by_what_is_left(database: FreshDatabase) -> None:
    database.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, marked boolean);"
        "INSERT INTO t SELECT g FROM generate_series(1, 3000) g; ANALYZE t"
    )
    spec = in_place(database, "t", {"n": "n + 1", "marked": "true"}, done="marked")
    await run_to_done(spec)
    assert (await verify(spec))[0].verified is True
    database.sql("INSERT INTO t VALUES (5000, 0, NULL); UPDATE t SET marked = false WHERE id = 7")
    seen, _, _ = await verify(spec)
    assert (seen.verified, found(seen)) == (False, (2, 0, 0, 0))
    with pytest.raises(UsageError, match="repair"):
        await LocalVerification(await limited(spec), repair=True).run()


async def test_columns_that_are_volatile_are_not_compared(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    columns = {"id": "id", "n": "n", "at": "clock_timestamp()"}
    spec = job(pair, columns=columns)
    await run_to_done(spec)
    seen, _, _ = await verify(spec)
    assert (seen.verified, seen.not_compared) == (True, ("at",))


async def test_rows_outside_the_where_are_extra(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    spec = job(pair, where="n <> 5")
    await run_to_done(spec)
    pair[1].sql("INSERT INTO dst SELECT 5, 5, 0, 0, '', now(), '{}'")
    seen, _, _ = await verify(spec)
    assert found(seen) == (0, 0, 1, 0)


async def test_an_empty_source_against_rows_in_the_target(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    source, target = pair
    source.sql("TRUNCATE src")
    spec = job(pair)
    await run_to_done(spec)
    assert (await verify(spec))[0].verified is True
    target.sql("INSERT INTO dst SELECT 5, 5, 0, 0, '', now(), '{}'")
    assert found((await verify(spec))[0]) == (0, 0, 1, 0)


async def test_a_target_that_sorts_differently(tls_server: TlsServer, make_database: Any) -> None:
    source, target = make_database(on=tls_server.server), make_database(on=tls_server.server)
    source.sql(
        'CREATE TABLE src (id text COLLATE "C" PRIMARY KEY, n int);'
        "INSERT INTO src SELECT CASE g % 2 WHEN 0 THEN 'a' ELSE 'B' END || g, g FROM generate_series(1, 5000) g;"
        "ANALYZE src"
    )
    target.sql('CREATE TABLE dst (id text COLLATE "en-x-icu" PRIMARY KEY, n int)')
    there, here = (tls_server.dsn(database.name) for database in (source, target))
    spec = into(there, "src", here, "dst")
    await run_to_done(spec)
    assert (await verify(spec))[0].verified is True
    target.sql(
        "UPDATE dst SET n = -1 WHERE id = 'B7'; DELETE FROM dst WHERE id = 'a8'; INSERT INTO dst VALUES ('zz', 1)"
    )
    seen, ran, events = await verify(spec)
    assert found(seen) == (1, 1, 1, 0)
    assert {d.key[0]: d.kind for d in ran.differences} == {"B7": "changed", "a8": "missing", "zz": "extra"}
    assert Phase.EXTRA in [e.phase for e in events if isinstance(e, PhaseChanged)]
    assert (await verify(spec, repair=True, delete_extra=True))[0].repaired == 3
    assert (await verify(spec))[0].verified is True


async def test_paused_and_resumed_it_goes_on(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    spec = job(pair)
    await run_to_done(spec)
    slow = spec.model_copy(update={"pace": UNPACED.model_copy(update={"max_rows_per_s": 10_000})})
    task = asyncio.create_task(verify(slow))
    target = pair[1]
    await until(
        lambda: target.sql("SELECT coalesce(sum(rows), 0) > 0 FROM backfill.span WHERE phase = 'verify'").strip() == "t"
    )
    target.sql("SELECT backfill.pause('job', 'lunch')")
    await until(lambda: target.sql("SELECT state FROM backfill.job").strip() == "paused")
    target.sql("SELECT backfill.resume('job')")
    seen, _, _ = await asyncio.wait_for(task, 30)
    assert (seen.verified, seen.rows) == (True, ROWS)


async def test_the_same_run_again_moves_nothing_and_keeps_the_result(pair: tuple[FreshDatabase, FreshDatabase]) -> None:
    spec = job(pair, verify=Verify.AFTER)
    await run_to_done(spec)
    again = await run(spec)
    assert (again.result.state, again.result.verified) == (JobState.DONE, True)
    if pair[0] is pair[1]:
        assert differing(pair[0], "SELECT * FROM src", "SELECT * FROM dst") == 0
