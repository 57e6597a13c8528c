"""Verification under live traffic and under fire: it finds exactly what is wrong, mends exactly that, and nothing else,
whoever writes meanwhile and whoever is killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import pytest

from engine.fleet import LocalVerification
from engine.flow.dual_write_change import install
from engine.ledger.records import Verification
from engine.spec import ChunkLimits, JobSpec
from tests.support.databases import FreshDatabase, TwoDatabases
from tests.support.jobs import UNPACED, into, prepare, rows_of, run_to_done
from tests.support.runner import UNFINISHED, Nursery, Process
from tests.support.writers import STRIDE

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

ROUNDS: Final = int(os.environ.get("BACKFILL_FAULT_ROUNDS", "1"))
SEED: Final = int(os.environ.get("BACKFILL_FAULT_SEED", "1"))
LEASE_S: Final = 1.0
PATIENCE_S: Final = 30.0


async def verify(spec: JobSpec, **options: Any) -> tuple[Verification, dict[str, tuple[str, tuple[str, ...]]]]:
    """A verification in this process: what was found, and key -> (kind, columns)."""
    run = LocalVerification(spec, **({"settle_s": 0.3, "show": 10_000} | options))
    result = await run.run()
    assert result.error is None, result.error
    assert run.verification is not None
    return run.verification, {"/".join(d.key): (d.kind, d.columns) for d in run.differences}


def counts(seen: Verification) -> tuple[int, int, int, int]:
    return seen.mismatched, seen.missing, seen.extra, seen.unsettled


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


# -- a thousand differences, while an application writes ------------------------------------------------------------

ROWS: Final = 100_000
CLIENTS: Final = 6
OF: Final = CLIENTS + 1
"""The application's clients write to rows by their number modulo this; the last remainder is nobody's."""

TYPES: Final = """
    price numeric NOT NULL DEFAULT 1.50, amount numeric(12,2) DEFAULT 7.25, odd numeric DEFAULT 0, ratio float8 DEFAULT 0,
    part real DEFAULT 0.1, flag boolean DEFAULT true, at timestamptz DEFAULT '2024-03-31 12:00+00',
    wall timestamp DEFAULT '2024-03-31 12:00', day date DEFAULT '2024-03-31', took interval DEFAULT '1 day',
    meta jsonb DEFAULT '{"a": 1}', doc json DEFAULT '{"a": 1}', tags text[] DEFAULT '{a,b}', grid int[] DEFAULT '{{1,2},{3,4}}',
    mood mood DEFAULT 'calm', label text DEFAULT '', code char(4) DEFAULT 'ab', raw bytea DEFAULT '\\x00', ref uuid
    DEFAULT '00000000-0000-0000-0000-000000000001', host inet DEFAULT '10.0.0.1', small smallint DEFAULT 3,
    "Odd Name" varchar(20) DEFAULT 'x'
"""
MOOD: Final = "CREATE TYPE mood AS ENUM ('calm', 'wild');"
MAKE_SOURCE: Final = f"CREATE TABLE src (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL, {TYPES});"
MAKE_TARGET: Final = f"CREATE TABLE dst (id bigint PRIMARY KEY, doubled bigint NOT NULL, note text NOT NULL, {TYPES});"
FILL: Final = f"""
INSERT INTO src (id, n, note) SELECT g * {STRIDE}, g % 1000, 'note ' || g FROM generate_series(1, {ROWS}) g;
ANALYZE src;
"""

CHANGES: Final = {
    "doubled": "doubled + 1",
    "note": "note || ' '",
    "price": "1.5",  # the scale of a number
    "amount": "amount + 0.01",
    "odd": "'NaN'",
    "ratio": "'-0'",
    "part": "0.10000001",
    "flag": "NULL",
    "at": "at + interval '1 hour'",  # a time zone
    "wall": "wall + interval '1 microsecond'",
    "day": "day - 1",
    "took": "'24 hours'",
    "meta": """'{"a": 1.0}'""",
    "doc": """'{"a":1}'""",
    "tags": "'{a,b,NULL}'",
    "grid": "'[0:1][1:2]={{1,2},{3,4}}'",
    "mood": "'wild'",
    "label": "NULL",  # NULL against empty
    "code": "'abc'",
    "raw": "''",
    "ref": "NULL",
    "host": "'10.0.0.1/24'",
    "small": "-small",
    "Odd Name": "''",
}
"""Column -> what is planted there."""

EACH: Final = 30
MISSING: Final = 130
EXTRA: Final = 90
REKEYED: Final = 30  # both missing and extra
DIFFERENCES: Final = EACH * len(CHANGES) + MISSING + EXTRA + 2 * REKEYED


def plant(target: FreshDatabase) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Plant the differences in rows that no client writes; what must be found."""
    rng = random.Random(SEED)
    ours = [row * STRIDE for row in range(OF + CLIENTS, ROWS, OF)]
    assert all((key // STRIDE) % OF == CLIENTS for key in ours)
    rng.shuffle(ours)
    wanted: dict[str, tuple[str, tuple[str, ...]]] = {}
    statements: list[str] = []

    def take(number: int) -> list[int]:
        taken, ours[:] = ours[:number], ours[number:]
        return taken

    def listed(keys: Iterable[int]) -> str:
        return ", ".join(map(str, keys))

    for column, value in CHANGES.items():
        keys = take(EACH)
        statements.append(f'UPDATE dst SET "{column}" = {value} WHERE id IN ({listed(keys)})')
        wanted |= {str(key): ("changed", (column,)) for key in keys}
    gone = take(MISSING)
    statements.append(f"DELETE FROM dst WHERE id IN ({listed(gone)})")
    wanted |= {str(key): ("missing", ()) for key in gone}
    more = [key + 3 for key in take(EXTRA - 2)] + [-5, 2 * ROWS * STRIDE]  # before the first and behind the last, too
    statements += [f"INSERT INTO dst (id, doubled, note) VALUES ({key}, 0, 'nobody')" for key in more]
    wanted |= {str(key): ("extra", ()) for key in more}
    moved = take(REKEYED)
    statements.append(f"UPDATE dst SET id = id + 7 WHERE id IN ({listed(moved)})")
    wanted |= {str(key): ("missing", ()) for key in moved} | {str(key + 7): ("extra", ()) for key in moved}
    target.sql(";".join(statements))
    assert len(wanted) == DIFFERENCES >= 1000
    return wanted


@asynccontextmanager
async def application(nursery: Nursery, source: FreshDatabase, target: FreshDatabase | None) -> AsyncIterator[Process]:
    """Writes all the while; ends well, with something to show."""
    writer = await nursery.fork(
        {
            "kind": "writer",
            "source_dsn": source.dsn,
            "target_dsn": target.dsn if target else None,
            "job": "job",
            "rows": ROWS,
            "clients": CLIENTS,
            "number": 0,
            "of": OF,
            "seed": SEED,
        }
    )
    yield writer
    assert writer.is_running, writer.complaint()
    writer.signal(signal.SIGTERM)
    assert await writer.ended() == 0, writer.complaint()
    done = writer.lines()[-1]["counts"]
    assert done["committed"] > 100
    assert min(done.get(kind, 0) for kind in ("insert", "update", "delete", "rekey")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("where", ["one database, our triggers", "two databases, the application writes both"])
async def test_a_thousand_differences_are_found_and_mended_while_the_application_writes(
    nursery: Nursery, databases: TwoDatabases, where: str
) -> None:
    source = databases.source
    is_one = where.startswith("one")
    target = source if is_one else databases.target
    source.sql(MOOD + MAKE_SOURCE + FILL)
    target.sql(("" if is_one else MOOD) + MAKE_TARGET)
    names = {column: f'"{column}"' for column in CHANGES if column != "doubled"}
    columns = {"id": "id", "doubled": "n::bigint * 2"} | names
    spec = into(source, "src", target, "dst", columns=columns, chunk=ChunkLimits(min_rows=500, max_rows=5_000))
    if is_one:
        prepared = await prepare(spec)
        session = await prepared.endpoints.source.connect("dualwrite")
        await install(session, prepared)
        await session.close()
    async with application(nursery, source, None if is_one else target):
        await run_to_done(spec)
        wanted = plant(target)
        found, rows = await verify(spec)
        assert {key: rows.get(key) for key in wanted} == wanted
        assert set(rows) == set(wanted), "a difference was invented"
        changed = EACH * len(CHANGES)
        assert counts(found) == (changed, MISSING + REKEYED, EXTRA + REKEYED, 0)
        assert found.columns == dict.fromkeys(CHANGES, EACH)
        assert (found.verified, found.repaired) == (False, 0)
        mended, rows = await verify(spec, repair=True, delete_extra=True)
        assert rows == wanted
        assert (mended.verified, mended.repaired, counts(mended)) == (True, DIFFERENCES, counts(found))
        clean, rows = await verify(spec)
        assert (clean.verified, counts(clean), rows) == (True, (0, 0, 0, 0), {})
        assert clean.rows > 0.9 * ROWS
    chosen = ", ".join(names.values())
    right = rows_of(source, f"SELECT id, n::bigint * 2, {chosen} FROM src")
    assert right == rows_of(target, f"SELECT id, doubled, {chosen} FROM dst")


# -- kills ----------------------------------------------------------------------------------------------------------

SMALL_ROWS: Final = 4000
PLANTED: Final = {
    "changed": "UPDATE dst SET v = v || '!' WHERE id % 25 = 1",
    "missing": "DELETE FROM dst WHERE id % 50 = 2",
    "extra": f"""INSERT INTO dst SELECT g, 'extra' FROM generate_series(-29, {SMALL_ROWS + 30}) g
        WHERE g < 1 OR g > {SMALL_ROWS}""",
}
WRONG: Final = (160, 80, 60)
AUDIT: Final = """
CREATE TABLE audit (op text, id bigint);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep({pause_s});
    INSERT INTO public.audit VALUES (TG_OP, CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END);
    RETURN NULL;
END
$$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON dst FOR EACH ROW EXECUTE FUNCTION audit();
"""
AUDITED: Final = "SELECT op, count(*), count(DISTINCT id) FROM audit GROUP BY op ORDER BY op"
ONCE_EACH: Final = "DELETE|60|60\nINSERT|80|80\nUPDATE|160|160"


class Wrong:
    """A job that is done, with differences planted afterwards, and a record of every write to its target since then.
    ``wide``: the target's key is wider than the source's, so that extra rows are looked for in a phase of their own.
    """

    def __init__(self, databases: TwoDatabases, *, wide: bool) -> None:
        self.source, self.target = databases.source, databases.target if wide else databases.source
        self.source.sql(
            "CREATE TABLE src (id int PRIMARY KEY, v text);"
            f"INSERT INTO src SELECT g, 'v' || g FROM generate_series(1, {SMALL_ROWS}) g; ANALYZE src"
        )
        self.target.sql(f"CREATE TABLE dst (id {'bigint' if wide else 'int'} PRIMARY KEY, v text)")
        self.spec = into(
            self.source,
            "src",
            self.target,
            "dst",
            columns={"id": "id", "v": "v"},
            chunk=ChunkLimits(min_rows=1, max_rows=25),
            workers=1,
            accept=("TRIGGERS_ON_TARGET",),
        )

    async def make(self, *, pause_s: float = 0.0) -> None:
        """Move, then spoil.  ``pause_s``: how long each row takes to be mended."""
        await run_to_done(self.spec.model_copy(update={"chunk": ChunkLimits()}))
        self.target.sql(";".join(PLANTED.values()) + ";" + AUDIT.format(pause_s=pause_s))

    def phase(self) -> str:
        return self.target.sql("SELECT phase FROM backfill.job").strip()

    def check(self) -> None:
        """Everything was found once, mended once, counted once."""
        found = "rows, suspects, mismatched, missing, extra, unsettled, repaired, outcome"
        seen = self.target.sql(f"SELECT {found} FROM backfill.verification").strip()
        changed, missing, extra = WRONG
        assert seen == f"{SMALL_ROWS}|{sum(WRONG)}|{changed}|{missing}|{extra}|0|{sum(WRONG)}|passed"
        assert self.target.sql(AUDITED).strip() == ONCE_EACH
        assert rows_of(self.source, "SELECT id, v FROM src") == rows_of(self.target, "SELECT id, v FROM dst")


REPAIR: Final = {"repair": True, "delete_extra": True, "settle_s": 0.05}
INNER: Final = (
    "claim.before",
    "claim.after",
    "boundary.before",
    "boundary.after",
    "write.before",
    "write.after",
    "commit.before",
    "commit.after",
    "release.before",
    "release.after",
)
BETWEEN: Final = ("phase.before", "phase.after")
AT_THE_END: Final = ("finish.before", "finish.after")


def _inside(phase: str) -> list[str]:
    """The points of a chunk.  Phases that compare record what they saw in one statement: nothing comes after a write."""
    return [point for point in INNER if point != "write.after" or phase in ("confirm", "recheck")]


@pytest.mark.parametrize("kind", ["one database", "two databases"])
async def test_verifiers_die_at_every_point_of_every_phase_one_after_another(
    nursery: Nursery, databases: TwoDatabases, kind: str
) -> None:
    job = Wrong(databases, wide=kind == "two databases")
    await job.make()
    phases = ["verify", *(["extra"] if kind == "two databases" else []), "confirm", "recheck"]
    deaths: set[tuple[str, str]] = set()

    async def die(point: str) -> None:
        armed = {"BACKFILL_CRASH_AT": point}
        victim = await nursery.run(job.spec, lease_s=LEASE_S, verify=REPAIR, environment=armed)
        assert await victim.ended() == -signal.SIGKILL, (point, victim.complaint() or victim.lines()[-2:])
        deaths.add((job.phase(), point))

    for number, phase in enumerate(phases):
        for point in _inside(phase):
            await die(point)
        for point in BETWEEN if number < len(phases) - 1 else AT_THE_END:
            await die(point)
            if point == "phase.before":
                assert job.phase() == phase
    heir = await nursery.run(job.spec, lease_s=LEASE_S, verify=REPAIR if job.phase() != "end" else None)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    job.check()
    wanted = {(phase, point) for phase in phases for point in _inside(phase)}
    assert wanted <= deaths, sorted(wanted - deaths)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one database", "two databases"])
async def test_two_verifiers_killed_at_random_find_and_mend_everything_once(
    nursery: Nursery, databases: TwoDatabases, kind: str
) -> None:
    rng = random.Random(SEED)
    job = Wrong(databases, wide=kind == "two databases")
    await job.make(pause_s=0.03)
    spec = job.spec.model_copy(update={"pace": UNPACED.model_copy(update={"max_rows_per_s": 5000})})

    async def start() -> Process:
        return await nursery.run(spec, workers=3, lease_s=LEASE_S, seed=rng.randrange(1 << 30), verify=REPAIR)

    runners = [await start(), await start()]
    everybody, phases = list(runners), set[str]()
    watch = await job.target.connect()
    await until(lambda: watch.fetchval("SELECT phase <> 'end' FROM backfill.job"), "the verification to begin")
    for _ in range(10 * ROUNDS):
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        if job.phase() == "end":
            break
        phases.add(job.phase())
        victim = rng.choice(runners)
        victim.signal(signal.SIGKILL)
        await victim.ended()
        everybody.append(await nursery.run(spec, workers=3, lease_s=LEASE_S))
        runners[runners.index(victim)] = everybody[-1]
    for runner in runners:
        assert await runner.ended() == 0, runner.complaint() or runner.lines()[-2:]
    assert len(everybody) > 4, "hardly anybody was killed"
    assert len(phases - {"end"}) > 1
    assert any(line.get("stolen") is True for process in everybody for line in process.lines()), "nobody stole"
    job.check()


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        ("one database", "write.before"),  # has looked, has not written
        ("one database", "commit.before"),  # holds locks on rows of the target
        ("two databases", "write.after"),  # and of the source
        ("two databases", "commit.before"),
    ],
)
async def test_a_verifier_frozen_in_mid_repair_changes_nothing_when_it_wakes(
    nursery: Nursery, databases: TwoDatabases, kind: str, point: str
) -> None:
    job = Wrong(databases, wide=kind == "two databases")
    await job.make()
    for _ in range(2 if kind == "two databases" else 1):
        victim = await nursery.run(
            job.spec, lease_s=LEASE_S, verify=REPAIR, environment={"BACKFILL_CRASH_AT": "phase.after"}
        )
        assert await victim.ended() == -signal.SIGKILL
    assert job.phase() == "confirm"
    armed = {"BACKFILL_CRASH_AT": f"{point}#2", "BACKFILL_CRASH_BY": "stop"}
    frozen = await nursery.run(job.spec, workers=1, lease_s=LEASE_S, verify=REPAIR, environment=armed)
    await frozen.stopped()
    assert job.phase() == "confirm"
    job.target.sql("SET lock_timeout = 1000; SELECT backfill.pace('job', 1000000)")  # nobody else is held up
    heir = await nursery.run(job.spec, lease_s=LEASE_S, verify=REPAIR)
    assert await heir.ended(timeout_s=20) == 0, heir.complaint() or heir.lines()[-2:]
    job.check()
    ledger = "SELECT j.*, v.* FROM backfill.job j JOIN backfill.verification v ON v.id = j.verification_id"
    before = job.target.sql(ledger), job.target.sql("SELECT * FROM backfill.difference ORDER BY id")
    frozen.signal(signal.SIGCONT)
    assert await frozen.ended(timeout_s=20) == 0, frozen.complaint() or frozen.lines()[-2:]
    assert before == (job.target.sql(ledger), job.target.sql("SELECT * FROM backfill.difference ORDER BY id"))
    job.check()


async def test_drained_between_two_looks_nothing_is_lost(nursery: Nursery, databases: TwoDatabases) -> None:
    job = Wrong(databases, wide=False)
    await job.make()
    settle_s = 2.5
    slow = {"repair": True, "delete_extra": True, "settle_s": settle_s}
    runner = await nursery.run(job.spec, lease_s=LEASE_S, verify=slow)
    watch = await job.target.connect()
    leased = "SELECT phase = 'confirm' FROM backfill.job WHERE EXISTS (SELECT FROM backfill.span WHERE phase = 'confirm' AND lease_until > clock_timestamp())"
    await until(lambda: watch.fetchval(leased), "the second look")
    began = time.monotonic()
    runner.signal(signal.SIGTERM)
    assert await runner.ended() == UNFINISHED, runner.complaint()
    assert time.monotonic() - began < settle_s + 5
    assert await watch.fetchval("SELECT count(*) FROM backfill.span WHERE lease_until IS NOT NULL") == 0
    heir = await nursery.run(job.spec, lease_s=LEASE_S, verify=slow)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    job.check()


# -- rows that never stand still --------------------------------------------------------------------------------------


async def live(databases: TwoDatabases, rows: int = 2000) -> JobSpec:
    """A job between two databases that is done."""
    databases.source.sql(
        "CREATE TABLE src (id bigint PRIMARY KEY, n int NOT NULL);"
        f"INSERT INTO src SELECT g, 0 FROM generate_series(1, {rows}) g; ANALYZE src"
    )
    databases.target.sql("CREATE TABLE dst (id bigint PRIMARY KEY, n int NOT NULL)")
    spec = into(databases.source, "src", databases.target, "dst", chunk=ChunkLimits(min_rows=50, max_rows=500))
    await run_to_done(spec)
    return spec


class Restless:
    """Writes one row again and again, the source first and the target ``lag_s`` later; or, ``open``, the target at once
    but committed that much later.
    """

    def __init__(self, databases: TwoDatabases, row: int, *, lag_s: float, pause_s: float, held: bool) -> None:
        self._databases, self._row, self._lag_s, self._pause_s, self._held = databases, row, lag_s, pause_s, held
        self.rounds = 0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        source = await asyncpg.connect(self._databases.source.dsn)
        target = await asyncpg.connect(self._databases.target.dsn)
        try:
            while not self._stop.is_set():
                self.rounds += 1
                await self._write(source, target)
                await asyncio.sleep(self._pause_s)
        finally:
            source.terminate()
            target.terminate()

    async def _write(self, source: asyncpg.Connection[Any], target: asyncpg.Connection[Any]) -> None:
        update = "UPDATE {} SET n = $2 WHERE id = $1"
        if self._held:
            await target.execute("BEGIN")
            await target.execute(update.format("dst"), self._row, self.rounds)
        await source.execute(update.format("src"), self._row, self.rounds)
        await asyncio.sleep(self._lag_s)
        if self._held:
            await target.execute("COMMIT")
        else:
            await target.execute(update.format("dst"), self._row, self.rounds)

    def stop(self) -> None:
        self._stop.set()


@asynccontextmanager
async def restless(*writers: Restless) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.run())
        try:
            while not all(writer.rounds > 1 for writer in writers):
                await asyncio.sleep(0.01)
            yield
        finally:
            for writer in writers:
                writer.stop()


@pytest.mark.parametrize("held", [False, True], ids=["written later", "committed later"])
@pytest.mark.parametrize("repair", [False, True], ids=["look", "repair"])
async def test_a_row_that_is_never_equal_and_never_still_is_at_worst_unsettled(
    databases: TwoDatabases, held: bool, repair: bool
) -> None:
    """Lags shorter than ``--settle`` where the target is written later; any lag where a transaction shows it."""
    spec = await live(databases)
    settle_s = 0.25
    lag_s = 3 * settle_s if held else 0.4 * settle_s
    writers = [Restless(databases, row, lag_s=lag_s, pause_s=0.01, held=held) for row in (1, 700, 701, 2000)]
    async with restless(*writers):
        for _ in range(ROUNDS):
            seen, rows = await verify(spec, settle_s=settle_s, repair=repair)
            assert seen.suspects > 0, "nobody was caught between the two: this proves nothing"
            assert counts(seen)[:3] == (0, 0, 0), rows
            assert seen.repaired == 0
            assert seen.verified is (seen.unsettled == 0)
    after, _ = await verify(spec)
    assert (after.verified, counts(after)) == (True, (0, 0, 0, 0))


async def test_an_application_between_its_two_commits_is_waited_for(databases: TwoDatabases) -> None:
    spec = await live(databases)
    source, target = await databases.source.connect(), await databases.target.connect()
    watch = await databases.target.connect()
    await target.execute(
        "BEGIN; UPDATE dst SET n = 7 WHERE id = 5; DELETE FROM dst WHERE id = 6; INSERT INTO dst VALUES (9999, 1)"
    )
    await source.execute(
        "UPDATE src SET n = 7 WHERE id = 5; DELETE FROM src WHERE id = 6; INSERT INTO src VALUES (9999, 1)"
    )
    running = asyncio.create_task(verify(spec, settle_s=0.1))
    waits = "SELECT phase = 'confirm' AND waiting LIKE '%' || $1 || '%' FROM backfill.status"
    pid = str(target.get_server_pid())
    await until(lambda: watch.fetchval(waits, f"pid {pid} "), "status to name who holds it up")
    await asyncio.sleep(0.5)  # five times as long as it settles: nothing may happen
    assert not running.done()
    await target.execute("COMMIT")
    seen, rows = await asyncio.wait_for(running, PATIENCE_S)
    assert (seen.verified, counts(seen), rows) == (True, (0, 0, 0, 0), {})
    assert seen.suspects > 0


# -- old transactions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("differs", [False, True], ids=["equal", "differing"])
async def test_a_long_reader_holds_nothing_up(databases: TwoDatabases, differs: bool) -> None:
    spec = await live(databases)
    readers = [await databases.source.connect(), await databases.target.connect()]
    for reader, table in zip(readers, ("src", "dst"), strict=True):
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.fetchval(f"SELECT count(*) FROM {table}")
    if differs:
        databases.target.sql("UPDATE dst SET n = 9 WHERE id = 5")
    seen, _ = await asyncio.wait_for(verify(spec, settle_s=0.1), 15)
    assert counts(seen) == (int(differs), 0, 0, 0)


async def test_a_long_writer_is_waited_for_only_where_something_differs(databases: TwoDatabases) -> None:
    spec = await live(databases)
    writer, watch = await databases.target.connect(), await databases.target.connect()
    databases.target.sql("CREATE TABLE other (n int)")
    await writer.execute("BEGIN; INSERT INTO other VALUES (1)")
    assert (await asyncio.wait_for(verify(spec), 15))[0].verified is True
    databases.target.sql("UPDATE dst SET n = 9 WHERE id = 5")
    running = asyncio.create_task(verify(spec, settle_s=0.1))
    named = "SELECT waiting LIKE '%pid ' || $1 || ' %' FROM backfill.status"
    await until(lambda: watch.fetchval(named, str(writer.get_server_pid())), "status to name the writer")
    assert not running.done()
    await writer.execute("ROLLBACK")
    assert counts((await asyncio.wait_for(running, PATIENCE_S))[0]) == (1, 0, 0, 0)
