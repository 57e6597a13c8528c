"""The ledger by itself: leases and thefts, what people do from psql, several processes at once, and damage."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import asyncpg
import pytest

import engine.plan.spans
from engine.db import Database
from engine.errors import LedgerDamaged, UnknownJob
from engine.events import ChunkCommitted
from engine.ledger import Ledger, LedgerMissing, PaceOrders
from engine.ledger.queries import migrations
from engine.ledger.records import Heartbeat
from engine.model import JobState, Mode, Phase, Side, Span, SpanBounds
from engine.spec import ChunkLimits, JobSpec
from engine.sql import text_array
from engine.sql.statements import advance_call
from tests.support.databases import FreshDatabase
from tests.support.jobs import in_place, into, run, run_to_done, start

LEASE_S = 30.0
VICTIM, THIEF, RIVAL = (str(uuid.UUID(int=n)) for n in (1, 2, 3))
SPANS = (
    SpanBounds(None, ("100",), 100.0),
    SpanBounds(("100",), ("200",), 100.0),
    SpanBounds(("200",), ("300",), 100.0),
)


class Sessions:
    """As many ledgers on one database as a test wants, each over a session of its own."""

    def __init__(self, database: FreshDatabase) -> None:
        self._database = Database(database.dsn, side=Side.TARGET, job="job")
        self._opened: list[Ledger] = []

    async def open(self, *, data: bool = True) -> Ledger:
        self._opened.append(Ledger(await self._database.connect("w1", data=data)))
        return self._opened[-1]

    async def close(self) -> None:
        for ledger in self._opened:
            await ledger.connection.close()


@pytest.fixture
async def sessions(database: FreshDatabase):
    opened = Sessions(database)
    yield opened
    await opened.close()


@pytest.fixture
async def ledger(sessions: Sessions) -> Ledger:
    """A fresh ledger."""
    opened = await sessions.open()
    await opened.ensure()
    return opened


async def create(ledger: Ledger, name: str = "job", *, started: bool = True) -> int:
    """A job of three spans; ``started``: past its barrier."""
    assert await ledger.create(
        name=name,
        mode=Mode.UPDATE,
        source="here",
        target="here",
        identity={},
        spec={},
        fingerprint={},
        key_types=["integer"],
        rows_estimated=300.0,
        barrier_snapshot=None,
        spans=SPANS,
    )
    job = await ledger.job(name)
    if started:
        assert await ledger.start(job.id, ())
    return job.id


async def claim(ledger: Ledger, job_id: int, worker: str = VICTIM, lease_s: float = LEASE_S) -> Span:
    """Claim a span that must be there."""
    claimed = await ledger.claim(job_id, worker, (), lease_s)
    assert claimed is not None
    return claimed.span


async def advance(ledger: Ledger, job_id: int, span: Span, to: str) -> Span:
    """A chunk that wrote nothing."""
    await ledger.connection.fetchval(
        "SELECT backfill.advance($1::bigint, $2::int, $3::bigint, $4::text[], $5::text[], $6::text[], 1, 1, 1, false)",
        job_id,
        span.id,
        span.epoch,
        None if span.cursor is None else list(span.cursor),
        list(span.hi),
        [to],
    )
    return replace(span, cursor=(to,))


async def steal(ledger: Ledger, job_id: int, victim: Span, cut: str, worker: str = THIEF) -> Span | None:
    return await ledger.steal(
        job_id, victim, (cut,), rows_kept=50, rows_taken=50, worker=worker, backends=(), lease_s=LEASE_S
    )


# -- thefts ---------------------------------------------------------------------------------------------------------


async def test_of_two_thieves_at_once_one_gets_the_upper_half_and_the_other_nothing(
    ledger: Ledger, sessions: Sessions
) -> None:
    job_id = await create(ledger)
    victim = await claim(ledger, job_id)
    rival = await sessions.open()
    taken = await asyncio.gather(steal(ledger, job_id, victim, "50", THIEF), steal(rival, job_id, victim, "60", RIVAL))
    (stolen,) = [span for span in taken if span is not None]
    kept = await ledger.reread(job_id, victim, VICTIM)
    assert kept is not None
    assert (stolen.lo, stolen.cursor, stolen.hi) == (kept.hi, kept.hi, victim.hi)
    assert stolen.epoch == 1
    assert len(await ledger.spans(job_id, Phase.MOVE)) == len(SPANS) + 1


async def test_thefts_of_different_spans_at_once_succeed_or_come_to_nothing_as_a_whole(
    ledger: Ledger, sessions: Sessions
) -> None:
    job_id = await create(ledger)
    victims = [await claim(ledger, job_id, str(uuid.UUID(int=10 + n))) for n in range(3)]
    thieves = [await sessions.open() for _ in victims]
    outcomes = await asyncio.gather(
        *(steal(t, job_id, v, str(int(v.hi[0]) - 50)) for t, v in zip(thieves, victims, strict=True))
    )
    stolen = [outcome for outcome in outcomes if outcome is not None]
    spans = await ledger.spans(job_id, Phase.MOVE)
    assert stolen
    assert len(spans) == len(SPANS) + len(stolen)
    chain = sorted(spans, key=lambda s: int(s.hi[0]))
    assert [s.lo for s in chain] == [None, *(s.hi for s in chain[:-1])]
    assert chain[-1].hi == ("300",)


async def test_a_victim_that_moved_between_the_look_and_the_cut_is_not_cut(ledger: Ledger) -> None:
    job_id = await create(ledger)
    seen = await claim(ledger, job_id)
    await advance(ledger, job_id, seen, "70")
    assert await steal(ledger, job_id, seen, "50") is None
    assert [span.hi for span in await ledger.spans(job_id, Phase.MOVE)] == [span.hi for span in SPANS]


async def test_the_chunk_that_was_running_under_a_theft_is_fenced_and_the_next_one_is_not(ledger: Ledger) -> None:
    job_id = await create(ledger)
    victim = await claim(ledger, job_id)
    assert await steal(ledger, job_id, victim, "50") is not None
    with pytest.raises(asyncpg.PostgresError) as fenced:
        await advance(ledger, job_id, victim, "80")
    assert fenced.value.sqlstate == "BF001"
    again = await ledger.reread(job_id, victim, VICTIM)
    assert again is not None
    await advance(ledger, job_id, again, "50")


# -- leases ---------------------------------------------------------------------------------------------------------


async def test_claims_at_once_get_different_spans_and_none_when_all_are_held(
    ledger: Ledger, sessions: Sessions
) -> None:
    job_id = await create(ledger)
    others = [await sessions.open() for _ in range(5)]
    claims = await asyncio.gather(*(o.claim(job_id, str(uuid.uuid4()), (), LEASE_S) for o in others))
    assert sorted(c.span.id for c in claims if c is not None) == [1, 2, 3]


async def test_a_lease_that_ran_out_goes_to_the_next_with_another_epoch_and_its_holder_is_fenced(
    ledger: Ledger, database: FreshDatabase
) -> None:
    job_id = await create(ledger)
    held = await claim(ledger, job_id)
    database.sql("UPDATE backfill.span SET lease_until = clock_timestamp() - interval '1 ms' WHERE id = 1")
    heir = await claim(ledger, job_id, THIEF)
    assert (heir.id, heir.epoch) == (held.id, held.epoch + 1)
    assert await ledger.renew(job_id, [(held.id, VICTIM, held.epoch)], LEASE_S) == {}
    assert await ledger.reread(job_id, held, VICTIM) is None
    assert await ledger.reclaim(job_id, held, VICTIM, (), LEASE_S) is None
    with pytest.raises(asyncpg.PostgresError) as fenced:
        await advance(ledger, job_id, held, "50")
    assert fenced.value.sqlstate == "BF001"


async def test_a_deadline_further_ahead_than_a_lease_can_be_counts_as_run_out(
    ledger: Ledger, database: FreshDatabase
) -> None:
    """Somebody's clock stood an hour ahead."""
    job_id = await create(ledger)
    await claim(ledger, job_id)
    database.sql("UPDATE backfill.span SET lease_until = clock_timestamp() + interval '1 hour' WHERE id = 1")
    assert (await claim(ledger, job_id, THIEF)).id == 1


async def test_nobody_is_given_a_span_before_the_barrier_has_passed_or_while_the_job_is_paused(ledger: Ledger) -> None:
    job_id = await create(ledger, started=False)
    assert await ledger.claim(job_id, VICTIM, (), LEASE_S) is None
    assert await ledger.start(job_id, ())
    assert not await ledger.start(job_id, ())
    assert await ledger.pause("job", None) is JobState.PAUSED
    assert await ledger.claim(job_id, VICTIM, (), LEASE_S) is None
    assert await ledger.resume("job", None) is JobState.RUNNING
    assert await ledger.claim(job_id, VICTIM, (), LEASE_S) is not None


# -- from psql ------------------------------------------------------------------------------------------------------


async def test_a_person_at_psql_pauses_resumes_paces_and_cancels(ledger: Ledger, database: FreshDatabase) -> None:
    await create(ledger)
    assert database.sql("SELECT backfill.pause('job', 'disk is filling')") == "paused"
    assert database.sql("SELECT state, waiting FROM backfill.status") == "paused|disk is filling"
    assert database.sql("SELECT backfill.resume('job')") == "running"
    assert database.sql("SELECT backfill.pace('job', 2000)") == "2000"
    assert (await ledger.job("job")).limit_rows_per_s == 2000
    assert database.sql("SELECT backfill.pace('job', null) IS NULL") == "t"
    assert (await ledger.job("job")).limit_rows_per_s is None
    assert database.sql("SELECT backfill.cancel('job', 'not needed')") == "cancelled"
    for order in ("pause", "resume", "cancel"):
        assert database.sql(f"SELECT backfill.{order}('job')") == "cancelled"  # final
    history = await ledger.history("job")
    assert [entry.what for entry in history] == [
        "created", "running", "paused", "running", "pace", "pace", "cancelled",
    ]  # fmt: skip
    assert history[2].detail == {"from": "running", "reason": "disk is filling"}
    assert history[4].detail == {"from": {"max_rows_per_s": None}, "to": {"max_rows_per_s": 2000}}
    assert "postgres (psql)" in {entry.who for entry in history}
    assert "postgres (backfill/job/w1)" in {entry.who for entry in history}
    assert [entry.at for entry in history] == sorted(entry.at for entry in history)


@pytest.mark.parametrize(
    "order", ["pause('nob''ody')", "resume('nob''ody')", "cancel('nob''ody')", "pace('nob''ody', 1)"]
)
async def test_an_order_for_an_unknown_job_is_an_error_that_names_it(
    ledger: Ledger, database: FreshDatabase, order: str
) -> None:
    connection = await database.connect()
    with pytest.raises(asyncpg.PostgresError, match="no job named 'nob''ody'") as refused:
        await connection.execute(f"SELECT backfill.{order}")
    assert refused.value.sqlstate == "BF404"


async def test_orders_through_the_ledger_know_the_same(ledger: Ledger) -> None:
    for order in (ledger.pause, ledger.resume, ledger.cancel):
        with pytest.raises(UnknownJob):
            await order("nobody", None)
    with pytest.raises(UnknownJob):
        await ledger.order_pace("nobody", PaceOrders(workers=1))
    with pytest.raises(UnknownJob):
        await ledger.status("nobody")


@pytest.mark.parametrize("rate", ["0", "-1", "'Infinity'", "'NaN'"])
async def test_a_pace_that_is_no_rate_is_refused(ledger: Ledger, database: FreshDatabase, rate: str) -> None:
    await create(ledger)
    connection = await database.connect()
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute(f"SELECT backfill.pace('job', {rate})")


async def test_a_failure_that_is_not_resumable_stays_and_the_first_reason_stays(
    ledger: Ledger, database: FreshDatabase
) -> None:
    job_id = await create(ledger)
    await ledger.fail(job_id, LedgerDamaged("first", hint="look"), resumable=False)
    await ledger.fail(job_id, LedgerDamaged("second"), resumable=True)
    assert database.sql("SELECT backfill.resume('job')") == "failed"
    status = await ledger.status("job")
    assert (status.error_code, status.error_message, status.error_hint) == ("ledger_damaged", "first", "look")


async def test_the_status_view_tells_how_far_it_is_and_who_works(ledger: Ledger, database: FreshDatabase) -> None:
    job_id = await create(ledger)
    span = await claim(ledger, job_id)
    await advance(ledger, job_id, span, "100")
    await ledger.heartbeat(job_id, "host", 7, [Heartbeat(VICTIM, 50.0, 3, "", {"bucket": 1.5})])
    status = await ledger.status("job")
    assert (status.state, status.phase, status.spans_total, status.spans_done) == (JobState.RUNNING, "move", 3, 1)
    assert (status.workers, status.rows_per_s, status.retries, status.waits) == (1, 50.0, 3, {"bucket": 1.5})
    assert status.progress == pytest.approx(1 / 3)
    assert status.eta_s == pytest.approx(4.0)
    assert (status.rows_done, status.chunks, status.bytes_done) == (1, 1, 1)
    await ledger.leave([VICTIM])
    status = await ledger.status("job")
    assert (status.workers, status.rows_per_s, status.retries, status.waits) == (0, 0.0, 3, {"bucket": 1.5})
    columns = database.sql(
        "SELECT string_agg(column_name, ' ' ORDER BY ordinal_position) FROM information_schema.columns"
        " WHERE table_schema = 'backfill' AND table_name = 'status'"
    )
    assert columns == (
        "job state mode phase source target rows_done rows_estimated progress rows_per_s eta_s workers spans_total"
        " spans_done spans_running bytes_done chunks limit_rows_per_s waiting waits retries created_at started_at"
        " finished_at error_code error_message error_hint resumable max_rows_per_s limit_now_rows_per_s pressure stage"
        " leads held_by pace_reason chunk_target_s workers_allowed signals deadline growth pacer pace_valid pace_age_s"
        " orders quarantined verified verification pace_since"
    )


# -- the schema -----------------------------------------------------------------------------------------------------


async def test_several_processes_may_create_the_ledger_at_once(database: FreshDatabase, sessions: Sessions) -> None:
    ledgers = [await sessions.open(data=False) for _ in range(6)]
    await asyncio.gather(*(ledger.ensure() for ledger in ledgers))
    assert {await ledger.installed_version() for ledger in ledgers} == {migrations()[-1][0]}
    assert database.sql("SELECT count(*) FROM backfill.version") == str(len(migrations()))


async def test_several_processes_may_create_the_job_at_once_and_one_does(ledger: Ledger, sessions: Sessions) -> None:
    async def attempt() -> bool:
        try:
            await create(await sessions.open(), started=False)
        except AssertionError:
            return False
        return True

    assert sorted(await asyncio.gather(*(attempt() for _ in range(4)))) == [False, False, False, True]
    assert len(await ledger.spans((await ledger.job("job")).id, Phase.MOVE)) == len(SPANS)


async def test_the_ledger_of_a_newer_release_is_refused_and_left_as_it_is(
    ledger: Ledger, sessions: Sessions, database: FreshDatabase
) -> None:
    database.sql("INSERT INTO backfill.version (version) VALUES (1000)")
    other = await sessions.open()
    with pytest.raises(LedgerDamaged, match="version 1000"):
        await other.ensure()
    assert database.sql("SELECT max(version) FROM backfill.version") == "1000"


async def test_without_a_ledger_one_is_told_so(sessions: Sessions) -> None:
    with pytest.raises(LedgerMissing):
        await (await sessions.open()).require()


async def test_two_jobs_in_one_ledger_do_not_see_each_other(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, v int); CREATE TABLE dst (LIKE src INCLUDING ALL)")
    database.sql("INSERT INTO src SELECT g FROM generate_series(1, 3000) g")
    small = ChunkLimits(min_rows=10, max_rows=100)
    await asyncio.gather(
        run_to_done(in_place(database, "src", {"v": "id"}, name="fill", chunk=small)),
        run_to_done(into(database, "src", database, "dst", name="move", columns={"id": "id", "v": "id"}, chunk=small)),
    )
    assert database.sql("SELECT count(*), sum(v - id) FROM src") == "3000|0"
    assert database.sql("SELECT count(*), sum(v - id) FROM dst") == "3000|0"
    assert database.sql("SELECT string_agg(job || ' ' || state, ', ' ORDER BY job) FROM backfill.status") == (
        "fill done, move done"
    )
    before = database.sql("SELECT count(*) FROM backfill.event WHERE job = 'fill'")
    assert await _forget(database, "fill")
    assert database.sql("SELECT job FROM backfill.status") == "move"
    assert database.sql("SELECT count(*) FROM backfill.event WHERE job = 'fill'") == before  # history stays
    assert not await _forget(database, "fill")


async def _forget(database: FreshDatabase, name: str) -> bool:
    connection = await Database(database.dsn, side=Side.TARGET).connect("control")
    try:
        return await Ledger(connection).forget(name)
    finally:
        await connection.close()


# -- damage ---------------------------------------------------------------------------------------------------------

DAMAGE = {
    "the first span deleted": "DELETE FROM backfill.span WHERE lo IS NULL",
    "a middle span deleted": "DELETE FROM backfill.span WHERE id = 3",
    "the last span deleted": "DELETE FROM backfill.span WHERE id = (SELECT max(id) FROM backfill.span)",
    "all spans gone": "DELETE FROM backfill.span",
    "an upper bound raised into the next span": "UPDATE backfill.span SET hi = ARRAY['2345'] WHERE id = 2",
    "an upper bound lowered": "UPDATE backfill.span SET hi = ARRAY['1500'] WHERE id = 2",
    "a span that is there twice": "INSERT INTO backfill.span (job_id, id, phase, lo, hi, cursor, rows_estimated)"
    " SELECT job_id, 99, phase, lo, hi, cursor, 1 FROM backfill.span WHERE id = 2",
    "a span inside another": "INSERT INTO backfill.span (job_id, id, phase, lo, hi, cursor, rows_estimated)"
    " SELECT job_id, 99, phase, ARRAY['1200'], ARRAY['1300'], ARRAY['1200'], 1 FROM backfill.span WHERE id = 2",
    "a cursor past its span": "UPDATE backfill.span SET cursor = ARRAY['4999'] WHERE id = 2",
    "a cursor before its span": "UPDATE backfill.span SET cursor = ARRAY['1'] WHERE id = 4",
    "a cursor lost": "UPDATE backfill.span SET cursor = NULL WHERE id = 4",
    "a cursor of another width": "UPDATE backfill.span SET cursor = cursor || 'x'::text WHERE id = 2",
    "bounds of another width": "UPDATE backfill.span SET hi = hi || 'x'::text WHERE id = 5",
    "a key of another type": "UPDATE backfill.job SET key_types = '{bigint}'",
    "the frozen end moved": "UPDATE backfill.job SET move_end = ARRAY['6000']",
    "the frozen end lost": "UPDATE backfill.job SET move_end = NULL",
    "spans of a sweep that never was": "INSERT INTO backfill.span (job_id, id, phase, hi, rows_estimated)"
    " SELECT id, 99, 'sweep', ARRAY['5'], 1 FROM backfill.job",
}


async def half_done(database: FreshDatabase) -> JobSpec:
    """A job that was stopped on its way."""
    database.sql("CREATE TABLE src (id int PRIMARY KEY, v int)")
    database.sql("INSERT INTO src SELECT g FROM generate_series(1, 5000) g; ANALYZE src")
    spec = in_place(database, "src", {"v": "id"}, chunk=ChunkLimits(min_rows=10, max_rows=100))
    running = await start(spec)
    await running.until(lambda: running.count(ChunkCommitted) >= 3)
    await running.drained()
    assert database.sql("SELECT count(*) > 4 FROM backfill.span") == "t"
    return spec


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_ledger_that_contradicts_itself_is_refused_and_nothing_is_moved(
    database: FreshDatabase, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.plan.spans, "FEWEST_ROWS_PER_SPAN", 1000)
    spec = await half_done(database)
    moved = database.sql("SELECT count(v) FROM src")
    database.sql(DAMAGE[damage])
    with pytest.raises(LedgerDamaged):
        await run(spec)
    assert database.sql("SELECT count(v) FROM src") == moved
    assert database.sql("SELECT state, error_code, resumable FROM backfill.status") == "failed|ledger_damaged|f"


# -- rows set aside with their chunk ------------------------------------------------------------------------------------


def aside(job: int, keys: list[str], states: list[str], *, allowed: int = 10, width: int = 1) -> str:
    """The statement as a mover sends it."""
    texts = [text_array(some) for some in (keys, ["bad"] * len(states), states)]
    return f"SELECT backfill.set_aside_all({job}, {texts[0]}, {width}, {texts[1]}, {texts[2]}, {allowed})"


async def test_rows_are_set_aside_together_and_counted_once(ledger: Ledger, database: FreshDatabase) -> None:
    job = await create(ledger)
    await ledger.connection.execute(aside(job, ["1", "a", "2", "b"], ["BF010", "BF011"], width=2))
    await ledger.connection.execute(aside(job, ["2", "b", "3", "c"], ["BF012", "BF010"], width=2))
    rows = database.sql("SELECT key, sqlstate, attempts FROM backfill.quarantine ORDER BY key").splitlines()
    assert rows == ["{1,a}|BF010|1", "{2,b}|BF012|2", "{3,c}|BF010|1"]
    assert await ledger.quarantined_count(job) == 3


async def test_the_parts_of_a_key_keep_their_order(ledger: Ledger, database: FreshDatabase) -> None:
    job = await create(ledger)
    keys = [[f"{n}", f"b{n}", f"a{n}"] for n in range(200)]
    states = [f"BF{n % 3:03}" for n in range(200)]
    flat = [part for key in keys for part in key]
    await ledger.connection.execute(aside(job, flat, states, width=3, allowed=1000))
    rows = database.sql("SELECT array_to_string(key, ' '), sqlstate FROM backfill.quarantine ORDER BY id").splitlines()
    assert rows == [f"{' '.join(key)}|{state}" for key, state in zip(keys, states, strict=True)]


async def test_setting_many_rows_aside_takes_a_time_for_each_and_no_more(ledger: Ledger) -> None:
    """The job's row is locked all the while.  40,000 rows took 14 s when each cut its key out of all of them."""
    job = await create(ledger)
    rows = 40_000
    await ledger.connection.execute("SET statement_timeout = '8s'")
    await ledger.connection.execute(aside(job, [str(10**9 + n) for n in range(rows)], ["BF011"] * rows, allowed=10**6))
    assert await ledger.quarantined_count(job) == rows


async def test_more_rows_than_allowed_are_none(ledger: Ledger) -> None:
    job = await create(ledger)
    await ledger.connection.execute(aside(job, ["1"], ["BF010"], allowed=2))
    with pytest.raises(asyncpg.PostgresError) as refused:
        await ledger.connection.execute(aside(job, ["2", "3"], ["BF010", "BF010"], allowed=2))
    assert refused.value.sqlstate == "BF002"
    assert await ledger.quarantined_count(job) == 1


async def test_rows_set_aside_by_a_fenced_chunk_are_not(ledger: Ledger) -> None:
    job = await create(ledger)
    claim = await ledger.claim(job, VICTIM, (ledger.connection.backend,), LEASE_S)
    assert claim is not None
    span = claim.span
    fence = advance_call(job, span.id, span.epoch - 1, span.cursor, span.hi, span.hi, 0, 0, 0, remember=False)
    with pytest.raises(asyncpg.PostgresError) as refused:
        await ledger.connection.execute(f"BEGIN; {aside(job, ['1'], ['BF010'])}; {fence}; COMMIT")
    await ledger.connection.roll_back()
    assert refused.value.sqlstate == "BF001"
    assert await ledger.quarantined_count(job) == 0


async def test_keys_that_do_not_belong_to_their_errors_are_refused(ledger: Ledger) -> None:
    job = await create(ledger)
    for keys, width in ((["1", "2", "3"], 2), (["1"], 2), (["1"], 0)):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await ledger.connection.execute(aside(job, keys, ["BF010"], width=width))
        assert refused.value.sqlstate == "BF003"
