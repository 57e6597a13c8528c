"""Who reports on the jobs of a ledger: one process of several, by a lease in the ledger; and what it reports.

The reporters' clocks are moved by hand, so a process that sleeps too long is one whose clock nobody moves.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

import engine.ledger.store
from engine.clock import ManualClock
from engine.db import Database
from engine.events import Event, Warned
from engine.fleet.grants import LEDGER_RIGHTS
from engine.fleet.reporter import EVERY_S, LEASE_S, LONGEST_PAUSE_S, TRUST, Ages, Reporter
from engine.ledger import Ledger
from engine.ledger.queries import migrations, queries
from engine.ledger.records import Heartbeat
from engine.ledger.reporting import MOST_REPORTED, Reported
from engine.model import JobState, Mode, Side, SpanBounds
from engine.telemetry.report import JobReport
from tests.support.databases import FreshDatabase, TlsServer, on_each_major

SLOT_S = 20.0
ANNA, BELA = (str(uuid.UUID(int=n)) for n in (1, 2))


class Clock(ManualClock):
    """One that also stands still while its process does."""

    def jump(self, seconds: float) -> None:
        """The process was stopped for so long: whatever was due meanwhile comes after it."""
        self._now += seconds


class Desk:
    """One process that would report: a reporter, its clock, and all that it has shown."""

    def __init__(self, dsn: str, **options: Any) -> None:
        self.clock = Clock()
        self.shown: list[Sequence[JobReport] | None] = []
        self.events: list[Event] = []
        self.reporter = Reporter(
            Database(dsn, side=Side.TARGET), self.shown.append, self.clock, emit=self.events.append, **options
        )
        self.sleeps: list[float] = []
        slept = self.clock.sleep

        async def sleep(seconds: float) -> None:
            self.sleeps.append(seconds)
            await slept(seconds)

        self.clock.sleep = sleep  # type: ignore[method-assign]
        self.task = asyncio.create_task(self.reporter.run())

    @property
    def now(self) -> Sequence[JobReport] | None:
        """What is shown now."""
        return self.shown[-1]

    @property
    def only(self) -> JobReport:
        """The only job that is shown."""
        assert self.now is not None
        (report,) = self.now
        return report

    def rests(self) -> bool:
        """True when it has looked and waits for its next turn."""
        waiting = [s for s in self.clock._sleepers if not s[2].done()]
        return len(waiting) == 2  # the other one watches the lease's end

    async def rested(self) -> None:
        """Wait until it does."""
        await until(self.rests)

    async def step(self, seconds: float = EVERY_S) -> None:
        """Let time pass, and what is due then happen."""
        await self.clock.advance(seconds)
        await self.rested()

    async def end(self) -> None:
        """As at the end of a process that ends in order."""
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SLOT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


class Office:
    """A database with a ledger, and desks at which somebody would report on it."""

    def __init__(self, database: FreshDatabase) -> None:
        self.database = database
        self.desks: list[Desk] = []
        self.ledger: Ledger

    async def open(self, **options: Any) -> Desk:
        desk = Desk(self.database.dsn, **options)
        self.desks.append(desk)
        await desk.rested()
        return desk

    async def create(self, name: str = "job") -> int:
        assert await self.ledger.create(
            name=name, mode=Mode.UPDATE, source="s", target="s", identity={}, spec={}, fingerprint={},
            key_types=["bigint"], rows_estimated=200, barrier_snapshot=None,
            spans=[SpanBounds(None, ("100",), 100.0), SpanBounds(("100",), ("200",), 100.0)],
        )  # fmt: skip
        job = await self.ledger.job(name)
        assert await self.ledger.start(job.id, ())
        return job.id

    def lease(self, seconds: float) -> None:
        """Put the lease's end so far from now, by the database's clock."""
        moved = f"lease_until = clock_timestamp() + make_interval(secs => {seconds})"
        self.database.sql(f"UPDATE backfill.reporter SET {moved}")

    @property
    def sessions(self) -> int:
        return int(
            self.database.sql(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name = 'backfill/report' AND datname = current_database()"
            )
        )


@pytest.fixture
async def office(database: FreshDatabase) -> AsyncIterator[Office]:
    made = Office(database)
    made.ledger = Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))
    await made.ledger.ensure()
    yield made
    for desk in made.desks:
        if not desk.task.done():
            await desk.end()
    await made.ledger.connection.close()


# -- the lease --------------------------------------------------------------------------------------------------------


@on_each_major
async def test_of_two_processes_one_reports_and_agrees_with_the_ledger(office: Office) -> None:
    await office.create("one")
    await office.create("two")
    anna = await office.open()
    bela = await office.open()
    for desk in (bela, anna, bela, anna):
        await desk.step()
    assert bela.shown == [None]
    assert anna.now is not None
    assert [report.status.job for report in anna.now] == ["one", "two"]
    for report in anna.now:
        assert report.status == await office.ledger.status(report.status.job)
    assert office.database.sql("SELECT count(*) FROM backfill.reporter WHERE process IS NOT NULL") == "1"


async def test_who_ends_is_succeeded_at_once_and_leaves_no_session(office: Office) -> None:
    anna, bela = await office.open(), await office.open()
    assert office.sessions == 2
    await anna.end()
    assert anna.now is None
    await bela.step()
    assert bela.now is not None
    await bela.end()
    await until(lambda: office.sessions == 0)


async def test_who_vanishes_is_succeeded_when_the_lease_has_run_out_and_not_before(office: Office) -> None:
    await office.open(lease_s=1.5)
    bela = await office.open(lease_s=1.5)
    end = office.database.sql("SELECT lease_until FROM backfill.reporter")
    over = f"SELECT clock_timestamp() >= '{end}'"
    while True:
        was_over = office.database.sql(over) == "t"
        await bela.step()
        if bela.now is not None:
            break
        assert not was_over, "the lease has run out, and nobody took it"
    assert office.database.sql(over) == "t"


async def test_who_wakes_after_the_lease_shows_nothing_before_anything_else(office: Office) -> None:
    anna, bela = await office.open(), await office.open()
    office.lease(-1.0)
    await bela.step()
    assert bela.now is not None
    assert anna.now is not None  # asleep
    other = await office.database.connect()
    await other.execute("BEGIN; LOCK TABLE backfill.version")  # nobody is told anything
    anna.clock.jump(3600.0)
    await anna.clock.advance(0.0)
    assert anna.now is None
    await other.execute("ROLLBACK")
    await anna.rested()
    assert anna.now is None
    await bela.step()
    assert bela.now is not None


async def test_what_was_read_before_a_long_sleep_is_not_shown_after_it(office: Office) -> None:
    anna = await office.open()
    before = len(anna.shown)
    other = await office.database.connect()
    await other.execute("BEGIN; LOCK TABLE backfill.span")  # so that the statuses have to be waited for
    await anna.clock.advance(EVERY_S)
    await until(lambda: office.database.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1")
    assert anna.shown[before:] == []
    await anna.clock.advance(TRUST * LEASE_S)
    assert anna.shown[before:] == [None]  # though the statement still waits
    await other.execute("ROLLBACK")
    await anna.rested()
    assert anna.shown[before:] == [None]
    await anna.step()
    assert anna.now is not None


@pytest.mark.parametrize(("ahead_s", "is_taken"), [(1.9 * LEASE_S, False), (3600.0, True)])
async def test_a_lease_that_no_honest_clock_gave_is_none(office: Office, ahead_s: float, is_taken: bool) -> None:
    anna, bela = await office.open(), await office.open()
    office.lease(ahead_s)
    await bela.step()
    assert (bela.now is not None) == is_taken
    await anna.step()
    assert (anna.now is None) == is_taken  # and not both


async def test_one_of_many_who_ask_at_once_gets_the_lease(office: Office) -> None:
    ledgers = [Ledger(await Database(office.database.dsn, side=Side.TARGET).connect("test")) for _ in range(6)]
    for prepare in ("DELETE FROM backfill.reporter", "UPDATE backfill.reporter SET process = NULL", "SELECT 1"):
        office.database.sql(prepare)
        if prepare == "SELECT 1":
            office.lease(-1.0)
        ids = [str(uuid.uuid4()) for _ in ledgers]
        answers = await asyncio.gather(
            *(ledger.report(process, "host", 7, LEASE_S) for ledger, process in zip(ledgers, ids, strict=True))
        )
        assert sum(answers) == 1, prepare
    await ledgers[0].leave_reporter(ids[answers.index(True) - 1])  # somebody else's
    assert not await ledgers[0].report(ANNA, "host", 7, LEASE_S)
    await ledgers[0].leave_reporter(ids[answers.index(True)])
    assert await ledgers[0].report(ANNA, "host", 7, LEASE_S)
    for ledger in ledgers:
        await ledger.connection.close()


async def test_who_comes_second_to_a_new_ledger_waits_for_the_first_and_is_told(office: Office) -> None:
    first = await office.database.connect()
    await first.execute(
        "BEGIN; INSERT INTO backfill.reporter (process, lease_until) VALUES"
        f" ('{ANNA}', clock_timestamp() + interval '10 seconds')"
    )
    asks = asyncio.ensure_future(office.ledger.report(BELA, "host", 7, LEASE_S))
    await until(lambda: office.database.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1")
    await first.execute("COMMIT")
    assert not await asks


async def test_who_only_asks_locks_nothing_and_renewals_leave_the_index_alone(office: Office) -> None:
    assert await office.ledger.report(ANNA, "host", 7, LEASE_S)
    holder = await office.database.connect()
    await holder.execute("BEGIN; UPDATE backfill.reporter SET lease_until = lease_until")
    assert not await asyncio.wait_for(office.ledger.report(BELA, "host", 7, LEASE_S), 5.0)
    await holder.execute("ROLLBACK")
    for _ in range(50):
        assert await office.ledger.report(ANNA, "host", 7, LEASE_S)
    await office.ledger.connection.fetchval("SELECT pg_stat_force_next_flush()")
    assert office.database.sql("SELECT pg_relation_size('backfill.reporter') <= 16384") == "t"
    hot = "SELECT n_tup_upd >= 50 AND n_tup_upd = n_tup_hot_upd FROM pg_stat_all_tables WHERE relname = 'reporter'"
    await until(lambda: office.database.sql(hot) == "t")


# -- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_ledger_that_is_not_there_yet_is_waited_for_in_silence(database: FreshDatabase) -> None:
    office = Office(database)
    desk = await office.open()
    await desk.step()
    assert (desk.shown, desk.events, desk.sleeps.count(EVERY_S)) == ([None], [], 2)
    office.ledger = Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))
    await office.ledger.ensure()
    await desk.step()
    assert desk.now == ()
    await office.ledger.drop()
    await desk.step()
    assert desk.now is None
    await office.ledger.ensure()
    await desk.step()
    assert desk.now == ()
    await desk.end()
    await office.ledger.connection.close()


async def test_a_ledger_of_another_release_is_left_alone(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = Office(database)
    office.ledger = Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))
    monkeypatch.setattr(engine.ledger.store, "migrations", lambda: migrations()[:3])
    await office.ledger.ensure()
    monkeypatch.undo()
    desk = await office.open()
    await desk.step()
    assert (desk.shown, desk.events) == ([None], [])
    await office.ledger.ensure()
    await desk.step()
    assert desk.now == ()
    database.sql("INSERT INTO backfill.version (version) VALUES (1000)")
    await desk.step()
    assert desk.now is None
    await desk.end()
    assert desk.events == []
    await office.ledger.connection.close()


END_SESSIONS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE application_name = 'backfill/report' AND datname = current_database()"
)


async def test_a_session_that_ended_between_two_looks_is_replaced_without_a_gap(office: Office) -> None:
    await office.create()
    desk = await office.open()
    office.database.sql(END_SESSIONS)
    await desk.step()
    assert desk.only.since_progress_s == EVERY_S
    assert desk.shown.count(None) == 1  # at the beginning


async def test_when_a_look_fails_nothing_is_shown_until_one_succeeds(office: Office) -> None:
    await office.create()
    desk = await office.open()
    other = await office.database.connect()
    await other.execute("BEGIN; LOCK TABLE backfill.span")
    await desk.clock.advance(EVERY_S)
    await until(lambda: office.database.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1")
    office.database.sql(END_SESSIONS)
    await until(lambda: desk.now is None)
    await other.execute("ROLLBACK")
    await desk.rested()
    await desk.step(2 * EVERY_S)
    assert desk.only.since_progress_s >= 2 * EVERY_S  # what was seen before counts
    assert desk.events == []


async def test_a_database_that_is_away_is_asked_less_and_less_often(database: FreshDatabase) -> None:
    desk = Desk("postgresql://nobody@127.0.0.1:1/nowhere")
    await desk.rested()
    for _ in range(6):
        await desk.step(2 * LONGEST_PAUSE_S)
    pauses = [pause for pause in desk.sleeps if pause != 1.0]  # of the one who watches the lease's end
    assert 0.7 * EVERY_S <= pauses[0] <= 1.3 * EVERY_S
    assert all(0.7 * LONGEST_PAUSE_S <= pause <= 1.3 * LONGEST_PAUSE_S for pause in pauses[-2:])
    assert (desk.shown, desk.events) == ([None], [])
    await desk.end()


async def test_a_right_that_is_missing_is_told_once_and_those_of_the_script_are_enough(office: Office) -> None:
    role = f"reports_{office.database.name}"
    office.database.sql(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA backfill TO {role}")
    office.database.sql(f"GRANT SELECT ON backfill.version TO {role}")
    await office.create()
    try:
        desk = Desk(office.database.dsn.replace("postgres@", f"{role}@"))
        office.desks.append(desk)
        await desk.rested()
        await desk.step(1.4 * EVERY_S)  # the pauses grow, and are no longer than so
        (warned,) = desk.events
        assert isinstance(warned, Warned)
        assert "reporter" in warned.message
        for right in LEDGER_RIGHTS:
            office.database.sql(right.format(both=role))
        await desk.step(1.4 * 2 * EVERY_S)
        assert desk.only.status.job == "job"
        await desk.end()
    finally:
        office.database.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.debian
async def test_an_older_server_can_be_reported_on(tls_server: TlsServer, make_database: Callable[..., Any]) -> None:
    office = Office(make_database(on=tls_server.server))
    dsn = f"{office.database.dsn}?sslmode=disable"
    office.ledger = Ledger(await Database(dsn, side=Side.TARGET).connect("test"))
    await office.ledger.ensure()
    await office.create()
    desk = Desk(dsn)
    await desk.rested()
    assert desk.only.status == await office.ledger.status("job")
    await desk.end()
    await office.ledger.connection.close()


@pytest.mark.parametrize(
    "answers_after_s", [{"reported": 3.5}, dict.fromkeys(("installed_version", "report", "reported"), 1.1)]
)
async def test_a_ledger_that_answers_slowly_is_reported_on_without_a_gap(
    office: Office, monkeypatch: pytest.MonkeyPatch, answers_after_s: dict[str, float]
) -> None:
    await office.create()
    desk = await office.open()

    def slowed(asked: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        async def ask(*args: Any) -> Any:
            await desk.clock.sleep(seconds)
            return await asked(*args)

        return ask

    for name, seconds in answers_after_s.items():
        monkeypatch.setattr(Ledger, name, slowed(getattr(Ledger, name), seconds))
    before = len(desk.shown)
    for _ in range(240):
        await desk.step(0.1)
    assert None not in desk.shown[before:]
    assert 5 <= len(desk.shown) - before <= 6


# -- what is reported -------------------------------------------------------------------------------------------------


async def advance(office: Office, job: int, span: int, cursor: str, to: str) -> None:
    state = office.database.sql(f"SELECT epoch, hi[1], cursor IS NULL FROM backfill.span WHERE id = {span}")
    epoch, hi, is_new = state.split("|")
    before = "NULL" if is_new == "t" else f"'{{{cursor}}}'"
    office.database.sql(
        f"SELECT backfill.advance({job}::bigint, {span}, {epoch}::bigint, {before}::text[], '{{{hi}}}'::text[],"
        f" '{{{to}}}'::text[], 0::bigint, 10::bigint, 0::bigint, false)"
    )


async def test_the_time_since_progress_grows_while_nothing_commits_and_ends_with_a_chunk(office: Office) -> None:
    job = await office.create()
    desk = await office.open()
    assert desk.only.since_progress_s == 0.0
    await desk.step()
    await desk.step()
    assert desk.only.since_progress_s == 2 * EVERY_S
    await advance(office, job, 1, "", "40")  # a chunk in which no row had to be written
    await desk.step()
    assert desk.only.since_progress_s == 0.0
    await desk.step()
    # A theft changes what is estimated, and moves nothing.
    claim = await office.ledger.claim(job, ANNA, (), 30.0)
    assert claim is not None
    progress = desk.only.status.progress
    stolen = await office.ledger.steal(
        job, claim.span, ("70",), rows_kept=1, rows_taken=1, worker=BELA, backends=(), lease_s=30.0
    )
    assert stolen is not None
    await desk.step()
    assert desk.only.status.progress != progress
    assert desk.only.since_progress_s == 2 * EVERY_S
    await office.ledger.pause("job", "for a while")
    for _ in range(2):
        await desk.step()
        assert desk.only.since_progress_s == 0.0  # it is not meant to get anywhere
    await office.ledger.resume("job", None)
    await desk.step()
    await desk.step()
    assert desk.only.since_progress_s == EVERY_S


async def test_a_verification_gets_somewhere_though_its_estimates_are_used_up(office: Office) -> None:
    job = await office.create()
    office.database.sql(
        "UPDATE backfill.span SET phase = 'verify', rows_estimated = 1, scanned = 50;"
        " UPDATE backfill.job SET state = 'verifying', phase = 'verify'"
    )
    desk = await office.open()
    await desk.step()
    assert desk.only.since_progress_s == EVERY_S
    progress = desk.only.status.progress
    await advance(office, job, 1, "", "40")
    await desk.step()
    assert (desk.only.status.progress, desk.only.since_progress_s) == (progress, 0.0)


async def test_a_job_that_went_and_came_again_is_a_new_one(office: Office) -> None:
    await office.create()
    status = await office.ledger.status("job")
    ages = Ages()
    ages.reports([Reported(status, 1)], 0.0)
    assert ages.reports([Reported(status, 1)], 8.0)[0].since_progress_s == 8.0
    assert ages.reports([], 9.0) == ()
    assert ages.reports([Reported(status, 1)], 10.0)[0].since_progress_s == 0.0
    done = replace(status, state=JobState.DONE)
    assert ages.reports([Reported(done, None)], 20.0)[0].since_progress_s == 0.0
    assert ages.reports([Reported(done, None)], 30.0)[0].since_progress_s == 0.0


async def test_a_ledger_full_of_jobs_is_reported_on_as_far_as_somebody_cares(office: Office) -> None:
    office.database.sql(
        "INSERT INTO backfill.job (name, mode, state, phase, source, target, identity, spec, fingerprint, key_types,"
        " rows_estimated, created_at, finished_at)"
        " SELECT state || n, 'update', state, CASE state WHEN 'done' THEN 'end' ELSE 'move' END, 's', 's', '{}', '{}',"
        " '{}', '{bigint}', 1, timestamptz '2020-01-01' + make_interval(mins => n), "
        " CASE WHEN state IN ('done', 'cancelled', 'failed')"
        "      THEN timestamptz '2024-01-01' + make_interval(mins => (7 * n) % 500) END"
        "  FROM generate_series(1, 500) n,"
        " LATERAL (SELECT CASE WHEN n <= 5 THEN 'running' WHEN n <= 8 THEN 'paused' WHEN n <= 10 THEN 'failed'"
        "          WHEN n <= 12 THEN 'planned' WHEN n <= 14 THEN 'verifying'"
        "          WHEN n % 2 = 0 THEN 'done' ELSE 'cancelled' END AS state) s"
    )
    reported = await office.ledger.reported()
    assert len(reported) == MOST_REPORTED
    names = {one.status.job for one in reported}
    assert {f"running{n}" for n in range(1, 6)} | {"paused8", "failed9", "planned12", "verifying13"} <= names
    ended = sorted(
        one.status.finished_at for one in reported if one.status.state in (JobState.DONE, JobState.CANCELLED)
    )
    assert len(ended) == MOST_REPORTED - 14
    newer = office.database.sql(
        f"SELECT count(*) FROM backfill.job WHERE state IN ('done', 'cancelled') AND finished_at > '{ended[0]}'"
    )
    assert int(newer) == len(ended) - 1
    created = [one.status.created_at for one in reported]
    assert created == sorted(created)
    assert len(await office.ledger.reported(3)) == 3
    assert {one.status.state for one in await office.ledger.reported(9)} <= {
        JobState.PLANNED, JobState.RUNNING, JobState.VERIFYING,
    }  # fmt: skip


ODD = {
    "a word for seconds": """UPDATE backfill.worker SET waits = '{"rate": "long"}' WHERE job_id = 2""",
    "too many seconds": """UPDATE backfill.worker SET waits = '{"rate": "1e200000"}' WHERE job_id = 2""",
    "no seconds at all": "UPDATE backfill.worker SET waits = '[1]' WHERE job_id = 2",
    "a number for signals": "UPDATE backfill.pacer SET decision = '{\"signals\": 5}' WHERE job_id = 2",
    "a rate too small to divide by": (
        "UPDATE backfill.worker SET rows_per_s = 1e-307 WHERE job_id = 2;"
        "UPDATE backfill.span SET rows_estimated = 1e6 WHERE job_id = 2"
    ),
    "a word for a pace": 'UPDATE backfill.pacer SET decision = \'{"rate_per_s": "slow"}\' WHERE job_id = 2',
}


@pytest.mark.parametrize("sql", ODD.values(), ids=ODD)
async def test_a_job_that_cannot_be_read_hides_no_other(office: Office, sql: str) -> None:
    desk = await office.open()
    jobs = {name: await office.create(name) for name in ("one", "two", "three")}
    assert jobs["two"] == 2
    for job in jobs.values():
        await office.ledger.heartbeat(job, "host", 7, [Heartbeat(str(uuid.uuid4()), 1.0, 0, "", {"rate": 1.0})])
        await office.ledger.pacer(job, ANNA, "host", 7, 30.0)
        assert await office.ledger.publish_pace(job, ANNA, {"signals": []}, 30.0)
    office.database.sql(sql)
    await desk.step()
    assert desk.now is not None
    assert [report.status.job for report in desk.now if report.status.job != "two"] == ["one", "three"]
    assert desk.events == []


async def test_the_statuses_are_read_by_job_and_not_by_reading_every_span(office: Office) -> None:
    """500 jobs of 100 spans: what it costs follows from the jobs that are shown, not from those that are there."""
    office.database.sql(
        "INSERT INTO backfill.job (name, mode, state, phase, source, target, identity, spec, fingerprint, key_types,"
        " rows_estimated, finished_at) SELECT 'job' || n, 'update', 'done', 'end', 's', 's', '{}', '{}', '{}',"
        " '{bigint}', 1, now() FROM generate_series(1, 500) n;"
        "INSERT INTO backfill.span (job_id, id, phase, hi, cursor, rows_estimated)"
        " SELECT j.id, n, 'move', ARRAY[n::text], ARRAY[n::text], 1 FROM backfill.job j, generate_series(1, 100) n;"
        "INSERT INTO backfill.worker (id, job_id, host, os_pid)"
        " SELECT gen_random_uuid(), j.id, 'h', 1 FROM backfill.job j, generate_series(1, 4); ANALYZE backfill.span;"
        " ANALYZE backfill.job; ANALYZE backfill.worker"
    )
    reported = queries()["reported"].replace("$1", "10").replace("$2", "NULL")
    plan = office.database.sql(f"EXPLAIN (ANALYZE, COSTS OFF) {reported}")
    assert "Seq Scan on span" not in plan
    assert "Seq Scan on worker" not in plan
    assert asdict((await office.ledger.reported(1))[0].status)["job"] == "job500"
