"""Jobs in tests: a spec from a few words, run in this process by the product's own supervisor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.events import Event
from engine.flow import Leases, Prepared, RunResult, Supervisor, endpoints_of, inspect
from engine.model import JobState
from engine.spec import Dsn, Endpoint, JobSpec, TableRef
from engine.spec.pacing import Pace
from engine.spec.signals import ALL_OFF
from tests.support.databases import FreshDatabase
from tests.support.rights import limited

SHORT = Leases(lease_s=2.0)
"""Leases for tests that wait for one to run out."""

UNPACED = Pace(signals=ALL_OFF)
"""No signals: a test's own sessions are somebody else to the job, and most tests are not about politeness."""

SLOT_S = 20.0
"""How long a test waits for a job to get somewhere."""


def endpoint(database: FreshDatabase | str, table: str) -> Endpoint:
    """A table of a database; ``schema.table`` or a bare name in ``public``."""
    schema, _, name = table.rpartition(".")
    dsn = database if isinstance(database, str) else database.dsn
    return Endpoint(dsn=Dsn(dsn), table=TableRef(schema or "public", name))


def in_place(database: FreshDatabase | str, table: str, assignments: dict[str, str], **settings: Any) -> JobSpec:
    """A job that fills columns of a table."""
    job = {"name": "job", "source": endpoint(database, table), "set": assignments, "pace": UNPACED}
    return JobSpec(**job | settings)


def into(
    source: FreshDatabase | str, table: str, target: FreshDatabase | str, target_table: str, **settings: Any
) -> JobSpec:
    """A job into another table: of the same database when both are the same object, else a copy."""
    there = endpoint(target, target_table)
    if target is source:
        there = Endpoint(table=there.table)
    job = {"name": "job", "source": endpoint(source, table), "target": there, "pace": UNPACED}
    return JobSpec(**job | settings)


@dataclass(slots=True)
class Ran:
    """A finished run: its result and every event, in order."""

    result: RunResult
    events: list[Event] = field(default_factory=list)

    def of(self, kind: type[Event]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


async def prepare(spec: JobSpec) -> Prepared:
    """Inspect and prepare; raises what preflight refuses.  Under the job's own rights, where the module says so."""
    spec = await limited(spec)
    return (await inspect(spec, endpoints_of(spec))).prepared()


async def run(spec: JobSpec, *, workers: int = 2, seed: int = 1, **options: Any) -> Ran:
    """Run the job in this process until it ends."""
    events: list[Event] = []
    supervisor = Supervisor(await prepare(spec), workers=workers, emit=events.append, seed=seed, **options)
    return Ran(await supervisor.run(), events)


async def run_to_done(spec: JobSpec, **options: Any) -> Ran:
    """Run the job and see that it is done."""
    ran = await run(spec, **options)
    assert ran.result.error is None, ran.result.error
    assert ran.result.state is JobState.DONE
    return ran


class Running:
    """A job that runs in this loop, and its events so far."""

    def __init__(self, supervisor: Supervisor, events: list[Event]) -> None:
        self.events = events
        self.supervisor = supervisor
        self.task = asyncio.create_task(supervisor.run())

    def count(self, kind: type[Event]) -> int:
        """How many events of that kind there were."""
        return sum(isinstance(event, kind) for event in self.events)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds; fails when the job ends without it, or after ``SLOT_S``."""
        deadline = time.monotonic() + SLOT_S
        while not condition():
            ended = self.task.done() and self.task.result()
            assert not ended and time.monotonic() < deadline, (ended, self.events[-5:])
            await asyncio.sleep(0.01)

    async def ended(self) -> RunResult:
        """Wait for the end."""
        return await asyncio.wait_for(self.task, SLOT_S)

    async def done(self) -> None:
        """Wait for the end, which must be a good one."""
        result = await self.ended()
        assert result.error is None, result.error
        assert result.state is JobState.DONE

    async def drained(self) -> None:
        """Stop the run after the chunks in hand."""
        self.supervisor.drain("the test is through with it")
        await self.ended()


async def start(spec: JobSpec, *, workers: int = 1, **options: Any) -> Running:
    """Start the job in this loop, with short leases."""
    events: list[Event] = []
    options = {"leases": SHORT, "seed": 1} | options
    return Running(Supervisor(await prepare(spec), workers=workers, emit=events.append, **options), events)


def knows_no_job(database: FreshDatabase) -> bool:
    """True when no job was ever written down there, whether or not somebody has prepared a ledger."""
    if database.sql("SELECT to_regclass('backfill.job') IS NULL") == "t":
        return True
    return database.sql("SELECT (SELECT count(*) FROM backfill.job) + (SELECT count(*) FROM backfill.event)") == "0"


def differing(database: FreshDatabase, left: str, right: str) -> int:
    """How many rows of two queries differ, in both directions, duplicates counted."""
    return int(
        database.sql(
            f"SELECT count(*) FROM ((({left}) EXCEPT ALL ({right})) UNION ALL (({right}) EXCEPT ALL ({left}))) d"
        )
    )


def rows_of(database: FreshDatabase, query: str) -> list[str]:
    """The rows of a query as sorted lines of text: comparable between databases."""
    return sorted(database.sql(query).splitlines())
