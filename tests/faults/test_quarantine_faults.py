"""Bad rows and bad luck together: whatever is killed, cut or stolen, exactly the bad rows are set aside, once."""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from engine.embedded import EmbeddedServer
from engine.errors import BackfillError
from engine.events import ChunkCommitted, ChunkFound, ChunkRetried, RowQuarantined
from engine.flow.quarantine import Outcome, Retry
from engine.model import Mode, Phase
from engine.spec import ChunkLimits, JobSpec
from engine.spec.models import Errors
from tests.support.databases import FreshDatabase, TwoDatabases
from tests.support.gate import Gate
from tests.support.jobs import in_place, into, prepare, run_to_done, start
from tests.support.runner import Nursery

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

MODES = pytest.mark.parametrize("mode", list(Mode), ids=[mode.value for mode in Mode])
ROWS = 3000
BAD = (1, 700, 701, 1999, ROWS)
CHUNK = ChunkLimits(min_rows=10, max_rows=300)
LEASE_S = 1.0
SET_ASIDE = b"SELECT backfill.set_aside($1"


@pytest_asyncio.fixture(loop_scope="module")
async def gate(server: EmbeddedServer) -> AsyncIterator[Gate]:
    async with Gate(server.host, server.port) as opened:
        yield opened


class Stage:
    """In place a counter that goes up by one and whose ``done`` is never true; else a copy.  Bad rows divide by zero."""

    def __init__(self, mode: Mode, databases: TwoDatabases, rows: int = ROWS) -> None:
        self.mode = mode
        self.rows = rows
        self.source = databases.source
        self.target = databases.target if mode is Mode.COPY else databases.source
        self.source.sql(
            "CREATE TABLE src (id int PRIMARY KEY, d int NOT NULL, counter int NOT NULL DEFAULT 0);"
            f"INSERT INTO src SELECT g, (g NOT IN {BAD})::int FROM generate_series(1, {rows}) g; ANALYZE src"
        )
        if mode is not Mode.UPDATE:
            self.target.sql("CREATE TABLE dst (id int PRIMARY KEY, counter int)")

    def spec(self, gate: Gate | None = None) -> JobSpec:
        source, target = (gate.dsn(d.dsn) if gate else d.dsn for d in (self.source, self.target))
        settings = {"chunk": CHUNK, "errors": Errors(max_quarantined=len(BAD))}
        if self.mode is Mode.UPDATE:
            return in_place(source, "src", {"counter": "counter + 1 / d"}, done="false", **settings)
        there = source if self.mode is Mode.INSERT else target
        return into(source, "src", there, "dst", columns={"id": "id", "counter": "counter + 1 / d"}, **settings)

    def check(self, bad: tuple[int, ...] = BAD) -> None:
        """All good rows are written once, all bad ones set aside once."""
        table = "src" if self.mode is Mode.UPDATE else "dst"
        good = f"SELECT min(counter), max(counter), count(*) FROM {table} WHERE id <> ALL (ARRAY{[*bad]}::int[])"
        assert self.target.sql(good) == f"1|1|{self.rows - len(bad)}"
        assert self.target.sql(f"SELECT count(*) FROM {table} WHERE counter > 0") == str(self.rows - len(bad))
        aside = self.target.sql(
            "SELECT key[1]::int, attempts, sqlstate FROM backfill.quarantine ORDER BY 1"
        ).splitlines()
        assert aside == [f"{number}|1|22012" for number in bad]


DEATHS = [("quarantine.before", 1), ("quarantine.before", 3), ("quarantine.after", 1), ("quarantine.after", 5)]
DEATHS += [("write.before", 3), ("write.before", 9), ("commit.after", 2), ("boundary.after", 7)]


@MODES
@pytest.mark.parametrize(("point", "turn"), DEATHS)
async def test_a_process_dies_while_bad_rows_are_looked_for(
    nursery: Nursery, databases: TwoDatabases, mode: Mode, point: str, turn: int
) -> None:
    stage = Stage(mode, databases)
    armed = {"BACKFILL_CRASH_AT": f"{point}#{turn}"}
    victim = await nursery.run(stage.spec(), workers=1, lease_s=LEASE_S, environment=armed)
    assert await victim.ended() == -signal.SIGKILL, victim.complaint() or victim.lines()[-2:]
    heir = await nursery.run(stage.spec(), lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    stage.check()


@MODES
async def test_death_after_death_at_random_turns(nursery: Nursery, databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    chance = random.Random(4)
    for _ in range(6):
        point = chance.choice(
            ["write.before", "commit.after", "boundary.after", "quarantine.before", "quarantine.after"]
        )
        armed = {"BACKFILL_CRASH_AT": f"{point}#{chance.randint(1, 6)}"}
        runner = await nursery.run(stage.spec(), workers=1, lease_s=LEASE_S, environment=armed)
        assert await runner.ended() in (-signal.SIGKILL, 0), runner.complaint() or runner.lines()[-2:]
    heir = await nursery.run(stage.spec(), lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    stage.check()


@MODES
async def test_told_to_stop_while_a_bad_row_is_looked_for(
    nursery: Nursery, databases: TwoDatabases, mode: Mode
) -> None:
    """Stopped by SIGSTOP just before the row is set aside, told to drain, woken: the next run goes on."""
    stage = Stage(mode, databases)
    armed = {"BACKFILL_CRASH_AT": "quarantine.before#2", "BACKFILL_CRASH_BY": "stop"}
    runner = await nursery.run(stage.spec(), workers=1, lease_s=30.0, environment=armed)
    await runner.stopped()
    runner.signal(signal.SIGTERM)
    runner.signal(signal.SIGCONT)
    assert await runner.ended() == 75, runner.complaint() or runner.lines()[-2:]
    heir = await nursery.run(stage.spec(), lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    stage.check()


@MODES
async def test_a_zombie_cannot_set_a_row_aside(nursery: Nursery, databases: TwoDatabases, mode: Mode) -> None:
    """It stands still just before, its successor finishes the job, then it goes on: the fence refuses it."""
    stage = Stage(mode, databases)
    armed = {"BACKFILL_CRASH_AT": "quarantine.before#1", "BACKFILL_CRASH_BY": "stop"}
    zombie = await nursery.run(stage.spec(), workers=1, lease_s=LEASE_S, environment=armed)
    await zombie.stopped()
    heir = await nursery.run(stage.spec(), lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    zombie.signal(signal.SIGCONT)
    assert await zombie.ended() == 0, zombie.complaint() or zombie.lines()[-2:]
    stage.check()


@MODES
async def test_a_pause_while_a_bad_row_is_looked_for(databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    running = await start(stage.spec())
    await running.until(lambda: running.count(ChunkRetried) >= 3)
    stage.target.sql("SELECT backfill.pause('job', 'lunch')")
    asleep = "SELECT count(*) FROM backfill.span WHERE lease_until IS NOT NULL"
    await running.until(lambda: stage.target.sql(asleep) == "0")
    stage.target.sql("SELECT backfill.resume('job')")
    await running.done()
    stage.check()


@MODES
@pytest.mark.parametrize("message", ["Z", "D"])
async def test_the_reply_to_setting_aside_is_lost(
    gate: Gate, databases: TwoDatabases, mode: Mode, message: str
) -> None:
    stage = Stage(mode, databases)
    lost = gate.on(backend=message, during=SET_ASIDE, nth=1, times=2).reset()
    running = await start(stage.spec(gate))
    await running.done()
    assert lost.hits == 2
    aside = [e for e in running.events if isinstance(e, RowQuarantined)]
    assert [e.sqlstate for e in aside] == ["22012"] * len(BAD), "what it was not told, it finds in the ledger"
    moved = [e.observation.rows for e in running.events if isinstance(e, ChunkCommitted) and e.phase is Phase.MOVE]
    found = [e for e in running.events if isinstance(e, ChunkFound)]
    ledger = "SELECT sum(rows), sum(chunks) FROM backfill.span WHERE phase = 'move'"
    assert stage.target.sql(ledger) == f"{sum(moved)}|{len(moved) + len(aside)}"
    assert found == []
    stage.check()


@MODES
async def test_the_connection_breaks_before_a_row_is_set_aside(gate: Gate, databases: TwoDatabases, mode: Mode) -> None:
    stage = Stage(mode, databases)
    lost = gate.on(frontend="B", during=SET_ASIDE, nth=1, times=3).reset()
    running = await start(stage.spec(gate))
    await running.done()
    assert lost.hits == 3
    stage.check()


async def mend(database: FreshDatabase) -> None:
    database.sql("UPDATE src SET d = 1 WHERE d = 0")


@MODES
@pytest.mark.parametrize("message", ["Z", "C"])
async def test_the_reply_to_the_commit_of_a_retry_is_lost(
    gate: Gate, databases: TwoDatabases, mode: Mode, message: str
) -> None:
    """The row is written or it is not; either way the next retry makes it once."""
    stage = Stage(mode, databases)
    await run_to_done(stage.spec())
    await mend(stage.source)
    gate.on(backend=message, during=b"COMMIT", nth=3).reset()
    with pytest.raises(BackfillError):
        await Retry(await prepare(stage.spec(gate))).run()
    left = int(stage.target.sql("SELECT count(*) FROM backfill.quarantine"))
    assert left < len(BAD)
    again = await Retry(await prepare(stage.spec())).run()
    assert again.outcomes == {Outcome.WRITTEN: left}
    stage.check(bad=())


@MODES
async def test_a_retry_whose_connection_breaks_before_its_commit_has_done_nothing(
    gate: Gate, databases: TwoDatabases, mode: Mode
) -> None:
    stage = Stage(mode, databases)
    await run_to_done(stage.spec())
    await mend(stage.source)
    gate.on(frontend="Q", containing=b"COMMIT", nth=1).reset()
    with pytest.raises(BackfillError):
        await Retry(await prepare(stage.spec(gate))).run()
    stage.check()
    assert (await Retry(await prepare(stage.spec())).run()).outcomes == {Outcome.WRITTEN: len(BAD)}
    stage.check(bad=())
