"""What a job tells of itself for metrics agrees with what is so: WAL, waiting, and rows that differ."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

import engine.flow.movers.confirm
from engine.clock import ManualClock, SystemClock
from engine.events import ChunkCommitted, Event, JobOpened, PhaseChanged, WalWritten, WorkersWaited, ignore
from engine.fleet import LocalVerification
from engine.flow import Supervisor
from engine.flow.pacer import VALID_S
from engine.flow.worker import AWAY, NO_SPAN, Worker
from engine.ledger.records import Verification
from engine.model import Phase
from engine.spec import ChunkLimits, JobSpec
from engine.spec.pacing import Pace
from engine.spec.signals import ALL_OFF, SignalKind, SignalSpec
from engine.watch import Sight
from tests.support.databases import FreshDatabase, on_each_major
from tests.support.gate import Gate
from tests.support.jobs import endpoint, into, prepare, run_to_done, start
from tests.support.pacing import filling, listening_to

# -- WAL --------------------------------------------------------------------------------------------------------------

LOOKING = SignalSpec(kind=SignalKind.LOCK_WAITS)
"""A signal that holds nobody here; without any, nobody is asked about WAL either."""


def position(database: FreshDatabase) -> float:
    return float(database.sql("SELECT pg_current_wal_insert_lsn() - '0/0'"))


@on_each_major
@pytest.mark.parametrize(
    ("rows", "rows_per_s"), [(3_000, 800.0), (120_000, 50_000.0), (60_000, None)], ids=["slow", "fast", "in no time"]
)
async def test_the_wal_that_a_job_tells_of_is_what_the_server_has_written(
    database: FreshDatabase, rows: int, rows_per_s: float | None
) -> None:
    await run_to_done(filling(database, Pace(), rows=10, table="before"))  # the ledger is there
    pace = listening_to(LOOKING, max_rows_per_s=rows_per_s)
    spec = filling(database, pace, rows=rows, name="counted", chunk=ChunkLimits())
    database.sql("ALTER TABLE t SET (autovacuum_enabled = false)")
    database.sql("CHECKPOINT")
    began: list[float] = []
    written: list[WalWritten] = []

    def hear(event: Event) -> None:
        if isinstance(event, JobOpened):
            began.append(position(database))
        if isinstance(event, WalWritten):
            written.append(event)

    supervisor = Supervisor(await prepare(spec), workers=2, emit=hear, seed=1)
    result = await supervisor.run()
    assert (result.error, result.rows) == (None, rows)
    grown = position(database) - began[0]
    assert 0.75 * grown <= sum(event.bytes for event in written) <= 1.05 * grown
    assert {event.is_exact for event in written} == {database.server.major >= 18}


async def test_rows_that_were_counted_stay_counted_though_the_ledger_was_looked_at_meanwhile(
    database: FreshDatabase,
) -> None:
    """What our workers commit between the ledger's answer and the moment it arrives is in neither count."""
    pacer = Supervisor(await prepare(filling(database, Pace())), workers=1, emit=ignore)._pacer
    job, worker = SimpleNamespace(name="job", orders=None, spec=None), SimpleNamespace(rows=0)
    pacer._job, pacer._workers = job, [worker]

    def heard(in_ledger: int, *, ours: int) -> float:
        worker.rows = ours
        pacer.hear(job, SimpleNamespace(rows_done=in_ledger))
        return pacer._rows_done()

    def moved(ours: int) -> float:
        worker.rows = ours
        return pacer._rows_done()

    assert (heard(0, ours=0), moved(100)) == (0.0, 100.0)
    assert (heard(100, ours=150), moved(160)) == (150.0, 150.0)  # 50 came while the answer was on its way
    assert (heard(160, ours=160), moved(170)) == (160.0, 170.0)
    assert (heard(0, ours=170), moved(180)) == (0.0, 10.0)  # the job was begun anew


@pytest.mark.parametrize(("asleep_s", "told"), [(1.0, 100.0), (60.0, 0.0)])
async def test_who_slept_until_another_may_lead_tells_nothing_of_the_wal_that_the_other_counts(
    database: FreshDatabase, asleep_s: float, told: float
) -> None:
    class Seen:
        async def look_at_wal(self) -> Sight:
            return Sight(own_wal_bytes=100.0)

    clock, events = ManualClock(), []
    supervisor = Supervisor(await prepare(filling(database, Pace())), workers=1, emit=events.append, clock=clock)
    pacer = supervisor._pacer
    pacer._job, pacer._watch = SimpleNamespace(name="job"), Seen()
    pacer._valid_until = clock.now() + VALID_S
    await clock.advance(asleep_s)
    for _ in range(2):
        await pacer._tell_last_wal()
    assert sum(event.bytes for event in events if isinstance(event, WalWritten)) == told


async def workers_of(supervisor: Supervisor, count: int) -> Sequence[Worker]:
    """Wait until it has so many."""
    while len(supervisor.workers) < count:
        await asyncio.sleep(0.01)
    return supervisor.workers


# -- who works --------------------------------------------------------------------------------------------------------


async def test_who_only_watches_a_job_says_so_when_he_opens_it(database: FreshDatabase) -> None:
    spec = filling(database, Pace(), rows=100)
    worked, watched = await run_to_done(spec), await run_to_done(spec, attach=True)
    assert [(event.resumed, event.attached) for ran in (worked, watched) for event in ran.of(JobOpened)] == [
        (False, False),
        (True, True),
    ]


# -- waiting ----------------------------------------------------------------------------------------------------------


def waited(events: Sequence[Event], reason: str) -> float:
    return sum(event.seconds.get(reason, 0.0) for event in events if isinstance(event, WorkersWaited))


async def test_a_worker_that_finds_nothing_to_do_is_told_of_while_it_waits(database: FreshDatabase) -> None:
    spec = filling(database, Pace(signals=ALL_OFF), rows=100, nap_s=1.5)
    running = await start(spec, workers=2)
    await running.until(lambda: waited(running.events, NO_SPAN) > 0.5)
    assert NO_SPAN in [worker.waiting for worker in running.supervisor.workers]
    before = waited(running.events, NO_SPAN)
    await running.until(lambda: waited(running.events, NO_SPAN) > before)
    await running.done()
    sums = [worker.heartbeat().waits[NO_SPAN] for worker in running.supervisor.workers]
    assert waited(running.events, NO_SPAN) == pytest.approx(sum(sums))


async def test_a_server_that_is_away_is_waited_for_and_told_of_when_it_is_back(database: FreshDatabase) -> None:
    async with Gate(database.server.host, database.server.port) as gate:
        spec = filling(database, Pace(signals=ALL_OFF, max_rows_per_s=500.0), rows=1500)
        spec = spec.model_copy(update={"source": endpoint(gate.dsn(database.dsn), "t")})
        running = await start(spec)
        (worker,) = await workers_of(running.supervisor, 1)
        await running.until(lambda: worker.rows > 0)
        gate.on(frontend="startup", application="/w1", times=None).reset()  # what it cannot reach, others can
        (wire,) = (wire for wire in gate.wires if wire.application.endswith("/w1"))
        wire.reset()
        await running.until(lambda: worker.trouble == AWAY)
        clock = SystemClock()
        so_far = worker.waits.totals(clock.now())[AWAY]
        await running.until(lambda: worker.waits.totals(clock.now())[AWAY] > so_far + 0.5)
        gate.heal()
        await running.until(lambda: worker.trouble != AWAY)
        away_s = worker.waits.totals(clock.now())[AWAY]
        await running.done()
    assert worker.waits.totals(clock.now())[AWAY] == away_s
    assert waited(running.events, AWAY) == pytest.approx(away_s)


# -- rows that differ -------------------------------------------------------------------------------------------------


async def verify(
    spec: JobSpec, at: dict[Phase, Callable[[], object]] | None = None, **options: Any
) -> tuple[Verification, int]:
    """A verification, and the rows that its events call differing.  ``at``: what happens when a phase begins."""
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        if isinstance(event, PhaseChanged) and at is not None and event.phase in at:
            at[event.phase]()

    run = LocalVerification(spec, emit=hear, settle_s=0.1, **options)
    result = await run.run()
    assert result.error is None, result.error
    assert run.verification is not None
    return run.verification, sum(e.observation.differing for e in events if isinstance(e, ChunkCommitted))


def differing(seen: Verification) -> int:
    return seen.mismatched + seen.missing + seen.extra


@pytest.fixture
async def copied(database: FreshDatabase) -> JobSpec:
    database.sql("CREATE TABLE src (id int PRIMARY KEY, v int); CREATE TABLE dst (id int PRIMARY KEY, v int)")
    database.sql("INSERT INTO src SELECT g, g FROM generate_series(1, 500) g; ANALYZE src")
    spec = into(database, "src", database, "dst")
    await run_to_done(spec)
    return spec


SPOILT = "UPDATE dst SET v = -v WHERE id IN (3, 77, 78); DELETE FROM dst WHERE id = 5; INSERT INTO dst VALUES (900, 1)"


async def test_rows_that_differ_are_counted_as_the_verification_counts_them(
    database: FreshDatabase, copied: JobSpec
) -> None:
    database.sql(SPOILT)
    seen, told = await verify(copied)
    assert (differing(seen), told) == (5, 5)
    mended, told = await verify(copied, repair=True)
    assert (differing(mended), mended.repaired, told) == (5, 4, 5)
    left, told = await verify(copied)
    assert (differing(left), told) == (1, 1)


async def test_a_row_that_is_confirmed_at_the_second_look_only_is_counted(
    database: FreshDatabase, copied: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.sql(SPOILT)
    confirm = engine.flow.movers.confirm

    def move_on() -> None:
        database.sql("UPDATE dst SET v = v - 1000 WHERE id IN (77, 78)")
        monkeypatch.setattr(confirm, "LOOKS", 1)  # so that a row which has changed since is not settled

    looks = confirm.LOOKS
    at = {Phase.CONFIRM: move_on, Phase.RECHECK: lambda: monkeypatch.setattr(confirm, "LOOKS", looks)}
    seen, told = await verify(copied, at)
    assert (differing(seen), seen.unsettled, told) == (5, 0, 5)


async def test_a_row_that_could_not_be_repaired_is_counted_only_if_it_differs_in_the_end(
    database: FreshDatabase, copied: JobSpec
) -> None:
    database.sql(SPOILT)
    database.sql(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER keep BEFORE UPDATE ON dst FOR EACH ROW WHEN (OLD.id IN (77, 78)) EXECUTE FUNCTION keep()"
    )

    def mend_one() -> None:
        database.sql("BEGIN; SET LOCAL session_replication_role = replica; UPDATE dst SET v = 77 WHERE id = 77; COMMIT")

    seen, told = await verify(copied, {Phase.RECHECK: mend_one}, repair=True)
    assert (differing(seen), seen.repaired, seen.unsettled, told) == (4, 2, 0, 4)
