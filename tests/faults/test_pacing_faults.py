"""What pacing does when it cannot see: signals that fail, probes that are cut off."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from engine.events import ChunkCommitted, LeaseLost
from engine.pace.law import Decision
from engine.spec.pacing import Pace
from engine.spec.signals import SignalKind, SignalSpec
from tests.support.answers import Answers
from tests.support.databases import FreshDatabase
from tests.support.gate import Gate
from tests.support.jobs import Running, start
from tests.support.pacing import Onlooker, Somebody, filling, goes_on, held, listening_to, stages, until, wrong

pytestmark = pytest.mark.faults

NAP_S = 0.005
"""Per fifty rows: some 8,000 rows a second and worker, at next to no load."""

FEW = 20_000
"""Rows of a job that is watched for a moment."""

# -- signals that fail ------------------------------------------------------------------------------------------------

QUEUE = SignalSpec(kind=SignalKind.SQL, name="queue", query="SELECT n FROM depth", maximum=5.0, every_s=0.5)

BREAKS = {
    "dropped": ("DROP TABLE depth", 'failed (relation "depth" does not exist)'),
    "null": ("UPDATE depth SET n = NULL", "failed (the answer is NULL, not a number)"),
    "nan": ("UPDATE depth SET n = 'NaN'", "failed (the answer is not a finite number)"),
    "hanging": ("BEGIN; LOCK depth", "failed (timed out after 1s)"),
}
MEND = "DROP TABLE IF EXISTS depth; CREATE TABLE depth AS SELECT 1::float8 AS n"


async def broken(database: FreshDatabase, how: str) -> Callable[[], None]:
    """Break the query's table; gives what mends it."""
    connection = await database.connect(server_settings={"application_name": "shop"})
    await connection.execute(BREAKS[how][0])

    def mend() -> None:
        connection.terminate()
        database.sql(MEND)

    return mend


@pytest.mark.parametrize(
    "how", ["dropped", "hanging", *(pytest.param(how, marks=pytest.mark.long) for how in ("null", "nan"))]
)
async def test_a_query_that_fails_holds_the_job_until_it_works_again(database: FreshDatabase, how: str) -> None:
    database.sql(MEND)
    running = await start(filling(database, listening_to(QUEUE), rows=FEW, nap_s=NAP_S))
    look = await Onlooker.at(database)
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    mend = await broken(database, how)
    assert await held(running, "queue") == f"queue: {BREAKS[how][1]}"
    moved = running.count(ChunkCommitted)
    waiting = "SELECT waiting FROM backfill.status"
    assert await look.value(waiting) == f"queue: {BREAKS[how][1]}"
    await asyncio.sleep(1.5)
    assert running.count(ChunkCommitted) == moved
    mend()
    await running.done()
    assert wrong(database) == 0
    assert running.count(LeaseLost) == 0


@pytest.mark.parametrize("how", ["dropped", pytest.param("nan", marks=pytest.mark.long)])
async def test_a_failure_that_may_be_ignored_is_shown_and_ignored(database: FreshDatabase, how: str) -> None:
    database.sql(MEND)
    ignoring = replace(QUEUE, ignore_failure=True)
    running = await start(filling(database, listening_to(ignoring), rows=FEW, nap_s=NAP_S))
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    mend = await broken(database, how)
    await running.until(lambda: BREAKS[how][1] in view(running, "queue").error)
    assert "held" not in stages(running)
    await goes_on(running)
    mend()
    database.sql("UPDATE depth SET n = 9")
    assert await held(running, "queue") == "queue 9 > 5", "it is ignored only while it fails"
    database.sql("UPDATE depth SET n = 0")
    await running.done()
    assert wrong(database) == 0


def view(running: Running, name: str) -> Any:
    """The signal as people see it now."""
    pace = running.supervisor.pace
    assert pace is not None
    return next(view for view in pace.signals if view.name == name)


@pytest.fixture
async def answers() -> AsyncIterator[Answers]:
    async with Answers() as server:
        yield server


def prometheus(answers: Answers, **settings: Any) -> SignalSpec:
    kind = SignalKind.PROMETHEUS
    return SignalSpec(kind=kind, name="load", url=answers.url, query="node_load1", maximum=5.0, every_s=0.5, **settings)


def not_a_number(answers: Answers) -> None:
    answers.sample("NaN")


def server_error(answers: Answers) -> None:
    answers.status, answers.body = 500, b"out of order"


def standstill(answers: Answers) -> None:
    answers.silent = True


FAULTS = {
    "nan": (not_a_number, "load: failed (the answer is not a finite number)"),
    "500": (server_error, "load: failed (the server answers HTTP 500)"),
    "hanging": (standstill, "load: failed (timed out after 1s)"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_prometheus_out_of_order(database: FreshDatabase, answers: Answers, fault: str) -> None:
    spoil, reason = FAULTS[fault]
    answers.sample("1")
    running = await start(filling(database, listening_to(prometheus(answers)), rows=FEW, nap_s=NAP_S))
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    spoil(answers)
    assert await held(running, "load") == reason
    answers.silent = False
    answers.sample("7.5")
    await until(lambda: running.supervisor.pace.reason == "load 7.5 > 5")  # type: ignore[union-attr]
    answers.sample("1")
    await running.done()
    assert wrong(database) == 0


async def test_prometheus_out_of_order_may_be_ignored(database: FreshDatabase, answers: Answers) -> None:
    server_error(answers)
    ignoring = prometheus(answers, ignore_failure=True)
    running = await start(filling(database, listening_to(ignoring), rows=FEW, nap_s=NAP_S))
    await running.until(lambda: "HTTP 500" in view(running, "load").error if running.supervisor.pace else False)
    await running.done()
    assert "held" not in stages(running)


async def test_an_http_check_says_go_and_stop(database: FreshDatabase, answers: Answers) -> None:
    check = SignalSpec(kind=SignalKind.HTTP, name="deploy", url=f"{answers.url}/go", every_s=0.5)
    running = await start(filling(database, listening_to(check), rows=FEW, nap_s=NAP_S))
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    answers.status = 503
    assert (await held(running, "deploy")).startswith("deploy ")
    answers.silent = True
    await until(lambda: "timed out after 1s" in running.supervisor.pace.reason)  # type: ignore[union-attr]
    answers.status, answers.silent = 200, False
    await running.done()


# -- probes that are cut off ------------------------------------------------------------------------------------------

STEERING = SignalSpec(kind=SignalKind.READ_LATENCY, target=2.0)
"""So far away that nothing but blindness keeps the rate from rising."""

GATING = replace(STEERING, maximum=4.0)


class Ride:
    """A job whose probes, and nothing else of it, go through a gate; and its pace, looked at all the time."""

    def __init__(self, running: Running, gate: Gate) -> None:
        self.running = running
        self.gate = gate
        self.seen: list[Decision] = []

    def cut(self) -> None:
        """Whatever a probe or a watch says from now on is answered with a reset, new connections included."""
        for purpose in ("probe", "watch"):
            self.gate.on(frontend="", application=purpose, times=None).reset()

    def swallow(self) -> None:
        """The same, and nobody is told."""
        for purpose in ("probe", "watch"):
            self.gate.on(frontend="", application=purpose, times=None).drop()

    async def look(self, seconds: float) -> list[Decision]:
        """The decisions in force during that time."""
        seen: list[Decision] = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pace = self.running.supervisor.pace
            if pace is not None and (not seen or seen[-1] is not pace):
                seen.append(pace)
            await asyncio.sleep(0.05)
        return seen


def rates(decisions: list[Decision]) -> list[float]:
    """Rows a second that each of them lets pass: none while held."""
    return [0.0 if d.held else math.inf if d.rate_per_s is None else d.rate_per_s for d in decisions]


async def ride(database: FreshDatabase, gate: Gate, pace: Pace) -> Ride:
    spec = filling(database, pace, rows=400_000, nap_s=NAP_S)
    source = spec.source.model_copy(update={"dsn": type(spec.source.dsn)(gate.dsn(database.dsn))})
    return Ride(await start(spec.model_copy(update={"source": source}), workers=2), gate)


@pytest.mark.parametrize("how", [pytest.param("cut", marks=pytest.mark.long), "swallow"])
async def test_no_rate_rises_while_nobody_sees(database: FreshDatabase, how: str) -> None:
    async with Somebody(database), Gate(database.server.host, database.server.port) as gate:
        job = await ride(database, gate, listening_to(STEERING))
        await job.running.until(lambda: "slow start" in stages(job.running))
        first = rates(await job.look(1.5))[-1]
        await until(lambda: rates([job.running.supervisor.pace])[0] > 1.5 * first)  # type: ignore[list-item]
        getattr(job, how)()
        await until(lambda: view(job.running, "read_latency").error or job.running.supervisor.pace.held)  # type: ignore[union-attr]
        blind = await job.look(5.0)
        assert blind[-1].reason.startswith("read_latency"), blind[-1].reason
        for before, after in zip(rates(blind), rates(blind)[1:], strict=False):
            assert after <= before * 1.001, [(d.stage, d.rate_per_s, d.reason) for d in blind]
        gate.heal()
        await until(lambda: not view(job.running, "read_latency").error)
        least = rates(blind)[-1]
        await until(lambda: rates([job.running.supervisor.pace])[0] > max(least, 1.0))  # type: ignore[list-item]
        await goes_on(job.running)
        await job.running.drained()


async def test_a_probe_with_a_maximum_closes_its_gate_when_it_is_cut_off(database: FreshDatabase) -> None:
    async with Somebody(database), Gate(database.server.host, database.server.port) as gate:
        job = await ride(database, gate, listening_to(GATING))
        await job.running.until(lambda: "slow start" in stages(job.running))
        await goes_on(job.running)
        job.cut()
        assert (await held(job.running, "read_latency")).startswith("read_latency: failed (")
        moved = job.running.count(ChunkCommitted)
        await asyncio.sleep(3.0)
        assert job.running.count(ChunkCommitted) == moved
        gate.heal()
        await goes_on(job.running)
        assert job.running.count(LeaseLost) == 0
        await job.running.drained()


@pytest.mark.parametrize("how", [pytest.param("cut", marks=pytest.mark.long), "swallow"])
async def test_who_can_no_longer_see_others_is_not_alone(database: FreshDatabase, how: str) -> None:
    async with Gate(database.server.host, database.server.port) as gate:
        job = await ride(database, gate, listening_to(STEERING))
        await job.running.until(lambda: stages(job.running)[-1:] == ["alone"] and job.running.count(ChunkCommitted) > 5)
        getattr(job, how)()
        assert await until(lambda: stages(job.running)[-1] != "alone") < 6.0
        blind = await job.look(4.0)
        assert max(rates(blind)) < math.inf
        gate.heal()
        await until(lambda: stages(job.running)[-1] == "alone")
        await goes_on(job.running)
        await job.running.drained()


async def test_probes_that_are_ended_again_and_again(database: FreshDatabase) -> None:
    """An administrator, or a pooler's idle time-out.  Nothing but probes is touched, and the job ends well."""
    end = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name ~ '^backfill/job/(read probe|commit probe|watch)'"
    )
    running = await start(filling(database, Pace(), rows=30_000, nap_s=NAP_S))
    look = await Onlooker.at(database)
    await running.until(lambda: running.count(ChunkCommitted) > 5)
    ended, deadline = 0, time.monotonic() + 5.0
    while time.monotonic() < deadline and not running.task.done():
        ended += await look.value(end)
        await asyncio.sleep(0.1)
    await until(running.task.done, 60.0)  # who reconnects so often may take himself for somebody else, and is polite
    await running.done()
    assert ended > 10
    assert wrong(database) == 0
    assert running.count(LeaseLost) == 0
