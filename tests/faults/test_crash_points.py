"""A process dies at every named point; the next run goes on, and every row is right and written once."""

from __future__ import annotations

import signal

import pytest

from engine.crashpoint import POINTS
from engine.spec import ChunkLimits, JobSpec
from engine.spec.models import Errors
from tests.support.databases import TwoDatabases
from tests.support.jobs import in_place, into, rows_of
from tests.support.runner import Nursery

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

ROWS = 4000
CHUNK = ChunkLimits(min_rows=10, max_rows=200)
LEASE_S = 1.0
BAD_ID = 1234

SLOW_CHUNKS = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.id % 100 = 0 THEN PERFORM pg_sleep(0.02); END IF; RETURN NEW; END $$;
CREATE TRIGGER wait BEFORE UPDATE ON src FOR EACH ROW EXECUTE FUNCTION wait();
"""

# Point -> kind of job in which it is reached, and the turn at which the process dies.
DEATHS = {
    "claim.before": [("count", 1), ("count", 2)],
    "claim.after": [("count", 1)],
    "boundary.before": [("count", 1), ("count", 5)],
    "boundary.after": [("count", 6)],
    "read.before": [("copy", 3)],
    "read.first": [("copy", 3)],
    "write.before": [("count", 1), ("count", 7), ("copy", 4)],
    "write.middle": [("copy", 4)],
    "write.after": [("copy", 3)],
    "commit.before": [("copy", 1), ("copy", 5)],
    "commit.after": [("count", 1), ("count", 4), ("copy", 3), ("insert", 3)],
    "quarantine.before": [("bad count", 1)],
    "quarantine.after": [("bad count", 1)],
    "release.before": [("count", 1)],
    "release.after": [("count", 1)],
    "steal.before": [("long count", 1)],
    "steal.after": [("long count", 1)],
    "phase.before": [("insert", 1), ("copy", 1)],
    "phase.after": [("insert", 1), ("copy", 1)],
    "finish.before": [("count", 1), ("insert", 1)],
    "finish.after": [("count", 1)],
}


class Job:
    """Tables of one kind of job; ``count`` adds one to a counter whose ``done`` is never true; in ``bad count`` one row
    cannot be written.
    """

    def __init__(self, kind: str, databases: TwoDatabases) -> None:
        self.kind = kind.rsplit(maxsplit=1)[-1]
        self.bad = BAD_ID if kind.startswith("bad") else None
        self.rows = 3 * ROWS if kind.startswith("long") else ROWS
        self.source = databases.source
        self.target = databases.target if kind == "copy" else databases.source
        self.source.sql(
            "CREATE TABLE src (id int PRIMARY KEY, v text, counter int NOT NULL DEFAULT 0);"
            f"INSERT INTO src SELECT g, 'v' || g FROM generate_series(1, {self.rows}) g; ANALYZE src"
        )
        if kind.startswith("long"):
            self.source.sql(SLOW_CHUNKS)  # so that a thief finds the victim where it saw it
        if self.kind != "count":
            self.target.sql("CREATE TABLE dst (id int PRIMARY KEY, v text)")

    @property
    def spec(self) -> JobSpec:
        if self.kind == "count":
            return in_place(
                self.source,
                "src",
                {"counter": f"counter + 1 + 0 / (id - {self.bad or 0})"},
                done="false",
                chunk=CHUNK,
                errors=Errors(max_quarantined=1),
                accept=("TRIGGERS_ON_SOURCE",),
            )
        return into(self.source, "src", self.target, "dst", columns={"id": "id", "v": "v"}, chunk=CHUNK)

    def check(self) -> None:
        if self.kind == "count":
            good = f"SELECT min(counter), max(counter), count(*) FROM src WHERE id <> {self.bad or 0}"
            assert self.source.sql(good) == f"1|1|{self.rows - bool(self.bad)}"
            aside = self.source.sql("SELECT key, attempts FROM backfill.quarantine")
            assert aside == (f"{{{self.bad}}}|1" if self.bad else "")
        else:
            assert rows_of(self.source, "SELECT id, v FROM src") == rows_of(self.target, "SELECT id, v FROM dst")


async def test_every_declared_point_has_its_death() -> None:
    assert set(DEATHS) == set(POINTS)


@pytest.mark.parametrize(
    ("point", "kind", "turn"), [(point, *death) for point, deaths in DEATHS.items() for death in deaths]
)
async def test_a_process_dies_here_and_the_next_run_goes_on(
    nursery: Nursery, databases: TwoDatabases, point: str, kind: str, turn: int
) -> None:
    job = Job(kind, databases)
    armed = {"BACKFILL_CRASH_AT": f"{point}#{turn}"}
    victim = await nursery.run(job.spec, lease_s=LEASE_S, environment=armed)
    assert await victim.ended() == -signal.SIGKILL, victim.complaint() or victim.lines()[-2:]
    heir = await nursery.run(job.spec, lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    job.check()


@pytest.mark.parametrize("kind", ["insert", "copy"])
@pytest.mark.parametrize("point", ["write.before", "write.after", "commit.before", "commit.after"])
async def test_a_process_dies_in_the_sweep_and_the_next_run_goes_on(
    nursery: Nursery, databases: TwoDatabases, point: str, kind: str
) -> None:
    job = Job(kind, databases)
    moved = await nursery.run(job.spec, lease_s=LEASE_S, environment={"BACKFILL_CRASH_AT": "phase.after"})
    assert await moved.ended() == -signal.SIGKILL
    job.source.sql("DELETE FROM src WHERE id % 10 = 0")
    victim = await nursery.run(job.spec, lease_s=LEASE_S, environment={"BACKFILL_CRASH_AT": f"{point}#2"})
    assert await victim.ended() == -signal.SIGKILL, victim.complaint() or victim.lines()[-2:]
    heir = await nursery.run(job.spec, lease_s=LEASE_S)
    assert await heir.ended() == 0, heir.complaint() or heir.lines()[-2:]
    job.check()


async def test_two_deaths_in_a_row_at_the_same_point(nursery: Nursery, databases: TwoDatabases) -> None:
    job = Job("count", databases)
    for _ in range(3):
        victim = await nursery.run(job.spec, lease_s=LEASE_S, environment={"BACKFILL_CRASH_AT": "commit.after#2"})
        assert await victim.ended() == -signal.SIGKILL
    heir = await nursery.run(job.spec, lease_s=LEASE_S)
    assert await heir.ended() == 0
    job.check()
