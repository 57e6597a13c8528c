"""The stress run: a job, two runner processes that are killed again and again, and an application that never rests.

Everything random comes from one seed, except the machine.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import psutil

from engine.flow.dual_write_change import install
from engine.model import Deletes, Mode, Verify
from engine.spec import ChunkLimits, JobSpec
from tests.support.databases import FreshDatabase, TwoDatabases
from tests.support.jobs import in_place, into, prepare
from tests.support.runner import Nursery, Process
from tests.support.writers import STRIDE

RUNNERS: Final = 2
WORKERS: Final = 2
CLIENTS: Final = 4  # per writer process
INSIDE: Final = 0.97
"""Share of the kills that are aimed at an open chunk transaction; the others hit whatever is going on."""

AGAIN_S: Final = 0.05
AIM_S: Final = 5.0
"""How long to look for an open chunk before shooting anyway."""

_SESSIONS = """
SELECT pid, client_port, state, xact_start, left(ltrim(query), 400) AS query, wait_event
  FROM pg_stat_activity
 WHERE application_name LIKE 'backfill/job/w%' AND datname = current_database()
"""

_PHASES: Final = (
    ("WITH moved AS (UPDATE", "chunk: update"),
    ("WITH moved AS (INSERT", "chunk: insert"),
    ("BEGIN", "chunk: begun, nothing sent"),
    ("COPY", "chunk: copy in"),
    ("INSERT INTO", "chunk: from staging"),
    ("SELECT backfill.advance", "chunk: fence and commit"),
    ("WITH suspect", "sweep: look"),
    ("SELECT ARRAY", "sweep: clear"),
    ("DELETE", "sweep: clear"),
)

SLOW = """
CREATE FUNCTION slow(id bigint, pause_s float8) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    -- Every hundredth row waits for a hundred: sleeping costs no processor, and a chunk takes as long as on a big table.
    IF pause_s > 0 AND (id / 10) % 100 = 0 THEN PERFORM pg_sleep(pause_s * 100); END IF;
    RETURN 0;
END
$$;
"""

_SOURCE = """
CREATE TABLE src (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL{more});
INSERT INTO src (id, n, note) SELECT g * {stride}, g % 1000, 'note ' || g FROM generate_series(1, {rows}) g;
ANALYZE src;
"""

_FINISH_ROW = """
CREATE FUNCTION dual_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') LIKE 'backfill/%' THEN
        RETURN NEW;
    END IF;
    IF NEW.marked IS NOT TRUE THEN
        NEW.counter := NEW.counter + 1;
        NEW.marked := true;
    END IF;
    NEW.filled := NEW.n * 2;
    RETURN NEW;
END
$$;
CREATE TRIGGER dual_write BEFORE INSERT OR UPDATE ON src FOR EACH ROW EXECUTE FUNCTION dual_write();
"""

_WRITE_TARGET = """
CREATE FUNCTION dual_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(nullif(current_setting('stress.first', true), ''), 'source') = TG_ARGV[0] THEN
        IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.id <> NEW.id) THEN
            DELETE FROM dst WHERE id = OLD.id;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            INSERT INTO dst (id, doubled, note) VALUES (NEW.id, NEW.n * 2, NEW.note)
            ON CONFLICT (id) DO UPDATE SET doubled = excluded.doubled, note = excluded.note;
        END IF;
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER target_first BEFORE INSERT OR UPDATE OR DELETE ON src
    FOR EACH ROW EXECUTE FUNCTION dual_write('target');
CREATE TRIGGER source_first AFTER INSERT OR UPDATE OR DELETE ON src
    FOR EACH ROW EXECUTE FUNCTION dual_write('source');
"""

_TARGET = "CREATE TABLE dst (id bigint PRIMARY KEY, doubled bigint NOT NULL, note text NOT NULL);"


@dataclass(frozen=True, slots=True)
class Plan:
    """One stress run.  ``row_delay_s`` makes rows slow, so that a small table lasts as long as a big one.

    The job verifies itself at its end, while the application goes on.
    """

    mode: Mode
    rows: int
    kills: int
    writers: int = 1
    seed: int = 1
    row_delay_s: float = 0.0
    ours: bool = False  # dual-write by the triggers that `backfill dualwrite` installs, not by the application's own
    deletes: Deletes = Deletes.GUARDED


@dataclass(slots=True)
class Report:
    """What happened.  ``lost``: rows missing in the target; ``ghosts``: rows that should not be there, or are wrong."""

    plan: Plan
    kills: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    application: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    lost: int = 0
    ghosts: int = 0
    swept: int = 0
    swept_by: str = ""
    verified: bool | None = None
    found: dict[str, int] = field(default_factory=dict)  # what the job's own verification found
    claims: int = 0
    seconds: float = 0.0

    @property
    def inside(self) -> float:
        """Share of the kills that were inside an open transaction of a chunk."""
        inside = sum(n for phase, n in self.phases.items() if not phase.startswith("outside"))
        return inside / self.kills if self.kills else 0.0

    @property
    def near(self) -> float:
        """Share of the application's keys within two chunks of a cursor, while there were cursors."""
        keys = self.application["keys"]
        return self.application["keys near"] / keys if keys else 0.0

    def as_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "mode": self.plan.mode.value,
            "seed": self.plan.seed,
            "rows": self.rows,
            "kills": self.kills,
            "inside_chunk": round(self.inside, 3),
            "phases": dict(self.phases.most_common()),
            "application": dict(sorted(self.application.items())),
            "near": round(self.near, 3),
            "races": self.application["races"],
            "lost": self.lost,
            "ghosts": self.ghosts,
            "swept": self.swept,
            "swept_by": self.swept_by,
            "verified": self.verified,
            "found": self.found,
            "dual_write": "ours" if self.plan.ours else "application",
            "claims": self.claims,
            "seconds": round(self.seconds, 1),
        }


class Stage:
    """The tables of a mode, with dual-write in place, and what is right in the end."""

    def __init__(self, plan: Plan, databases: TwoDatabases) -> None:
        self.plan = plan
        self.source: FreshDatabase = databases.source
        self.target: FreshDatabase = databases.target if plan.mode is Mode.COPY else databases.source

    def build(self) -> None:
        """Make the tables and the triggers."""
        more = (
            ", filled bigint, counter int NOT NULL DEFAULT 0, marked boolean" if self.plan.mode is Mode.UPDATE else ""
        )
        self.source.sql(SLOW + _SOURCE.format(more=more, stride=STRIDE, rows=self.plan.rows))
        if self.plan.mode is not Mode.UPDATE:
            self.target.sql(_TARGET)
        if not self.plan.ours and self.plan.mode is not Mode.COPY:
            self.source.sql(_FINISH_ROW if self.plan.mode is Mode.UPDATE else _WRITE_TARGET)

    async def install(self) -> None:
        """Put our own triggers there, if the plan says so."""
        if not self.plan.ours:
            return
        prepared = await prepare(self.spec)
        session = await prepared.endpoints.source.connect("dualwrite")
        await install(session, prepared)
        await session.close()

    @property
    def spec(self) -> JobSpec:
        """The job."""
        slow = f"public.slow(id, {self.plan.row_delay_s})" if self.plan.row_delay_s else "0"
        settings: dict[str, Any] = {
            "workers": WORKERS,
            "chunk": ChunkLimits(min_rows=50, target_s=0.15),
            "verify": Verify.AFTER,
        }
        if self.plan.mode is Mode.UPDATE:
            sets = {"filled": f"n::bigint * 2 + {slow}", "counter": "counter + 1", "marked": "true"}
            accept = () if self.plan.ours else ("TRIGGERS_ON_SOURCE",)
            return in_place(self.source, "src", sets, done="marked", accept=accept, **settings)
        settings["deletes"] = self.plan.deletes
        columns = {"id": "id", "doubled": f"n::bigint * 2 + {slow}", "note": "note"}
        there = self.source if self.plan.mode is Mode.INSERT else self.target
        return into(self.source, "src", there, "dst", columns=columns, **settings)

    def compare(self) -> tuple[int, int, int]:
        """Rows, rows that are missing, and rows that should not be there (or are other ones)."""
        if self.plan.mode is Mode.UPDATE:
            right = self.source.sql("SELECT id, n::bigint * 2, 1, true FROM src ORDER BY id")
            found = self.source.sql("SELECT id, filled, counter, marked FROM src ORDER BY id")
        else:
            right = self.source.sql("SELECT id, n::bigint * 2, note FROM src ORDER BY id")
            found = self.target.sql("SELECT id, doubled, note FROM dst ORDER BY id")
        rows = right.splitlines()
        if right == found:
            return len(rows), 0, 0
        here = found.splitlines()
        return len(rows), sum((Counter(rows) - Counter(here)).values()), sum((Counter(here) - Counter(rows)).values())


class Killer:
    """Kills runners at random moments, most of them inside an open transaction of a chunk, and starts others."""

    def __init__(self, stage: Stage, nursery: Nursery, report: Report) -> None:
        self._stage = stage
        self._nursery = nursery
        self._report = report
        self._plan = stage.plan
        self._rng = random.Random(stage.plan.seed)
        self._spec = stage.spec
        self.runners: list[Process] = []
        self._watch: asyncpg.Connection[Any] | None = None

    async def run(self) -> None:
        """All the kills, spread over the job's progress; then wait for the job to be done."""
        self._watch = await asyncpg.connect(self._stage.target.dsn)
        moments = sorted(self._rng.uniform(0.0, 0.9) * self._plan.rows for _ in range(self._plan.kills))
        self.runners = [await self._start() for _ in range(RUNNERS)]
        for moment in moments:
            await self._reach(moment)
            await asyncio.sleep(self._rng.uniform(0.0, 0.25))
            victim = await self._shoot()
            self._replace(victim, await self._start())
            if self._is_over:
                break
        for runner in self.runners:
            code = await runner.ended(timeout_s=600)
            assert code == 0, runner.complaint() or runner.lines()[-3:]
        await self._watch.close()

    @property
    def _is_over(self) -> bool:
        return any(runner.code == 0 for runner in self.runners)

    def _replace(self, old: Process, new: Process) -> None:
        self.runners[self.runners.index(old)] = new

    async def _start(self) -> Process:
        return await self._nursery.run(self._spec, workers=WORKERS, seed=self._rng.randrange(1 << 30))

    async def _reach(self, moment: float) -> None:
        """Wait until the job has moved so many rows."""
        while not self._is_over:
            for runner in self.runners:
                assert runner.code in (None, 0), runner.complaint() or runner.lines()[-3:]
            try:
                done = await self._ask("SELECT sum(scanned)::float8 FROM backfill.span WHERE phase = 'move'")
            except asyncpg.PostgresError:
                done = None  # no ledger yet
            if (done or 0.0) >= moment:
                return
            await asyncio.sleep(0.02)

    async def _ask(self, sql: str) -> Any:
        assert self._watch is not None
        return await self._watch.fetchval(sql)

    async def _shoot(self) -> Process:
        """Kill a runner; note what it was doing."""
        victim = self._rng.choice([r for r in self.runners if r.is_running] or self.runners)
        aimed = self._rng.random() < INSIDE
        deadline = time.monotonic() + AIM_S
        while True:
            # Frozen first, then looked at: what is seen is what it is killed in.
            victim.signal(signal.SIGSTOP)
            phase, inside = self._pick(victim, await self._sessions())
            if inside or not aimed or time.monotonic() > deadline or not victim.is_running:
                break
            victim.signal(signal.SIGCONT)
            await asyncio.sleep(self._rng.uniform(0, AGAIN_S))
        victim.signal(signal.SIGKILL)
        self._report.kills += 1
        self._report.phases[phase] += 1
        await victim.ended()
        return victim

    async def _sessions(self) -> list[Any]:
        assert self._watch is not None
        rows = await self._watch.fetch(_SESSIONS)
        self._rng.shuffle(rows)
        return rows

    def _pick(self, victim: Process, sessions: list[Any]) -> tuple[str, bool]:
        """What one of the victim's workers is doing, and whether that is inside a transaction of a chunk."""
        try:
            ports = {c.laddr.port for c in psutil.Process(victim.pid).net_connections("tcp")}
        except psutil.Error:
            return "outside: starting or ended", False
        ours = [s for s in sessions if s["client_port"] in ports]
        for session in ours:
            if session["xact_start"] is not None:
                for start, phase in _PHASES:
                    if session["query"].startswith(start):
                        return phase, True
        return ("outside: between chunks" if ours else "outside: not connected"), False


async def stress(plan: Plan, databases: TwoDatabases) -> Report:
    """Run it, and compare."""
    report = Report(plan)
    stage = Stage(plan, databases)
    stage.build()
    await stage.install()
    began = time.monotonic()
    async with Nursery() as nursery:
        writers = [
            await nursery.fork(
                {
                    "kind": "writer",
                    "source_dsn": stage.source.dsn,
                    "target_dsn": stage.target.dsn if plan.mode is Mode.COPY else None,
                    "job": "job",
                    "rows": plan.rows,
                    "clients": CLIENTS,
                    "number": n * CLIENTS,
                    "of": plan.writers * CLIENTS,
                    "seed": plan.seed,
                }
            )
            for n in range(plan.writers)
        ]
        await Killer(stage, nursery, report).run()
        for writer in writers:
            writer.signal(signal.SIGTERM)
            assert await writer.ended() == 0, writer.complaint()
            report.application.update(writer.lines()[-1]["counts"])
    report.seconds = time.monotonic() - began
    report.rows, report.lost, report.ghosts = stage.compare()
    report.swept = int(stage.target.sql("SELECT coalesce(sum(rows), 0) FROM backfill.span WHERE phase = 'sweep'"))
    job = "SELECT {} FROM backfill.job j LEFT JOIN backfill.verification v ON v.id = j.verification_id"
    report.swept_by = stage.target.sql(job.format("coalesce(j.sweep_by, '')")).strip()
    report.verified = {"passed": True, "mismatch": False}.get(stage.target.sql(job.format("v.outcome")).strip())
    kinds = ("mismatched", "missing", "extra", "unsettled", "suspects")
    counts = stage.target.sql(job.format(", ".join(f"v.{kind}" for kind in kinds))).strip().split("|")
    report.found = {kind: int(count) for kind, count in zip(kinds, counts, strict=True)}
    report.claims = int(stage.target.sql("SELECT sum(epoch) FROM backfill.span WHERE phase IN ('move', 'sweep')"))
    return report
