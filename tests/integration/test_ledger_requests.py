"""What whoever serves jobs to others asks of a ledger: revisions, pages, names, and nothing begun twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import engine.ledger.store
from engine.db import Database
from engine.errors import UnknownJob
from engine.events import ChunkCommitted
from engine.ledger import Ledger
from engine.ledger.queries import migrations
from engine.ledger.requests import ChangedMeanwhile, KeyReused, Request
from engine.model import JobState, Mode, Side, SpanBounds
from engine.spec import ChunkLimits
from tests.support.databases import FreshDatabase, on_each_major
from tests.support.jobs import in_place, start


async def create(ledger: Ledger, name: str = "job", request: Request | None = None) -> bool:
    return await ledger.create(
        name=name,
        mode=Mode.UPDATE,
        source="s",
        target="t",
        identity={},
        spec={},
        fingerprint={},
        key_types=["bigint"],
        rows_estimated=10.0,
        barrier_snapshot=None,
        spans=[SpanBounds(None, ("10",), 10.0)],
        request=request,
    )


async def session(database: FreshDatabase) -> Ledger:
    return Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))


@pytest.fixture
async def ledger(database: FreshDatabase) -> AsyncIterator[Ledger]:
    """A ledger with one job."""
    opened = await session(database)
    await opened.ensure()
    await create(opened)
    yield opened
    await opened.connection.close()


async def revision(ledger: Ledger, job: str = "job") -> int:
    return (await ledger.status(job)).revision or 0


# -- revisions --------------------------------------------------------------------------------------------------------


async def test_every_change_that_somebody_asked_for_makes_a_new_revision(ledger: Ledger) -> None:
    seen = [await revision(ledger)]
    for change in (
        ledger.pause("job", None),
        ledger.resume("job", None),
        ledger.apply_settings((await ledger.job("job")).id, {"workers": 3}),
        ledger.record("job", "note", {}),
        ledger.cancel("job", None),
    ):
        await change
        seen.append(await revision(ledger))
    assert sorted(set(seen)) == seen


async def test_what_is_done_for_a_revision_that_is_over_is_not_done(ledger: Ledger) -> None:
    seen = await revision(ledger)
    await ledger.pause("job", None)
    with pytest.raises(ChangedMeanwhile):
        async with ledger.at_revision("job", {seen}):
            await ledger.cancel("job", None)
    assert (await ledger.job("job")).state is JobState.PAUSED
    async with ledger.at_revision("job", {await revision(ledger)}):
        await ledger.cancel("job", None)
    assert (await ledger.job("job")).state is JobState.CANCELLED
    with pytest.raises(UnknownJob):
        async with ledger.at_revision("nobody", None):
            pass


async def test_what_fails_halfway_leaves_nothing_of_itself(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError):
        async with ledger.at_revision("job", None):
            await ledger.pause("job", None)
            await ledger.record("job", "note", {})
            raise RuntimeError
    assert (await ledger.job("job")).state is JobState.PLANNED
    assert len(await ledger.history("job")) == 1


async def test_a_part_that_fails_leaves_the_rest_of_the_transaction(ledger: Ledger) -> None:
    async with ledger.at_revision("job", None):
        await ledger.pause("job", None)
        assert not await create(ledger)  # there is one of that name
        await ledger.record("job", "note", {})
    assert [entry.what for entry in await ledger.history("job")] == ["created", "paused", "note"]


async def test_statements_of_other_tasks_stay_out_of_a_transaction(ledger: Ledger) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def change() -> None:
        async with ledger.at_revision("job", None):
            await ledger.pause("job", None)
            entered.set()
            await leave.wait()
            raise RuntimeError

    changing = asyncio.create_task(change())
    await entered.wait()
    noting = asyncio.create_task(ledger.record("job", "note", {}))
    await asyncio.sleep(0.05)
    assert not noting.done()
    leave.set()
    with pytest.raises(RuntimeError):
        await changing
    await noting
    assert [entry.what for entry in await ledger.history("job")] == ["created", "note"]


async def test_of_two_who_saw_the_same_one_is_too_late(database: FreshDatabase, ledger: Ledger) -> None:
    seen, others = await revision(ledger), [await session(database) for _ in range(6)]

    async def order(one: Ledger) -> bool:
        try:
            async with one.at_revision("job", {seen}):
                await one.record("job", "note", {})
        except ChangedMeanwhile:
            return False
        return True

    assert sum(await asyncio.gather(*map(order, others))) == 1
    for one in others:
        await one.connection.close()


# -- who ------------------------------------------------------------------------------------------------------------


async def test_history_names_whom_a_session_acts_for_else_its_role(ledger: Ledger) -> None:
    await ledger.act_as("token argo via daemon@host")
    await ledger.pause("job", None)
    await ledger.act_as("")
    await ledger.resume("job", None)
    made, paused, resumed = await ledger.history("job")
    assert paused.who == "token argo via daemon@host"
    assert resumed.who == made.who
    assert "backfill/test" in made.who


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_a_request_stands_for_one_job_and_one_spec(ledger: Ledger) -> None:
    request = Request("token argo", "run-17", "hash")
    assert await ledger.job_of(request) is None
    assert await create(ledger, "first", request)
    assert await ledger.job_of(request) == "first"
    assert not await create(ledger, "second", request)
    assert await ledger.find("second") is None
    with pytest.raises(KeyReused):
        await ledger.job_of(Request("token argo", "run-17", "another"))
    assert await ledger.job_of(Request("token other", "run-17", "another")) is None


async def test_a_request_for_a_job_that_was_there_is_noted(ledger: Ledger) -> None:
    request = Request("token argo", "run-17", "hash")
    await ledger.note("job", request)
    await ledger.note("job", request)
    assert await ledger.job_of(request) == "job"
    await ledger.forget("job")
    assert await ledger.job_of(request) is None


async def test_requests_are_forgotten_after_some_days(database: FreshDatabase, ledger: Ledger) -> None:
    old, new = (Request("token argo", key, "hash") for key in ("old", "new"))
    await ledger.note("job", old)
    database.sql("UPDATE backfill.request SET at = at - interval '8 days'")
    await ledger.note("job", new)
    assert await ledger.job_of(old) is None
    assert await ledger.job_of(new) == "job"


# -- ledgers of older releases ----------------------------------------------------------------------------------------


async def test_older_ledgers_and_none_at_all_can_be_looked_at(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, request = await session(database), Request("token argo", "run-17", "hash")
    assert await ledger.page(10) == ()
    assert not await ledger.knows("job")
    assert not await ledger.remembers("job")
    assert await ledger.job_of(request) is None
    monkeypatch.setattr(engine.ledger.store, "migrations", lambda: migrations()[:1])
    await ledger.ensure()
    database.sql(
        "INSERT INTO backfill.job (name, mode, state, source, target, identity, spec, fingerprint, key_types,"
        " rows_estimated) VALUES ('job', 'update', 'running', 's', 's', '{}', '{}', '{}', '{bigint}', 100)"
    )
    assert [status.job for status in await ledger.page(10)] == ["job"]
    assert await ledger.knows("job")
    assert len(await ledger.history_after({"job": 0}, 10)) == 1
    assert await ledger.job_of(request) is None
    async with ledger.at_revision("job", {await revision(ledger)}):
        await ledger.pause("job", None)
    await ledger.connection.close()


@on_each_major
async def test_a_ledger_is_upgraded_while_its_workers_run(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.sql(
        "CREATE TABLE shop (id bigint PRIMARY KEY, amount int, cents int);"
        "INSERT INTO shop SELECT n, n FROM generate_series(1, 20000) n"
    )
    monkeypatch.setattr(engine.ledger.store, "migrations", lambda: migrations()[:4])
    spec = in_place(database, "shop", {"cents": "amount * 100"}, chunk=ChunkLimits(min_rows=50, max_rows=50))
    job, ledger = await start(spec), await session(database)
    await job.until(lambda: job.count(ChunkCommitted) > 10)
    assert await ledger.installed_version() == 4
    monkeypatch.undo()
    await ledger.ensure()
    assert await ledger.installed_version() == migrations()[-1][0]
    await ledger.act_as("somebody")
    assert await ledger.pause("job", None) is JobState.PAUSED
    assert await ledger.resume("job", None) is JobState.RUNNING
    await job.done()
    assert [entry.who for entry in await ledger.history("job") if entry.what == "paused"] == ["somebody"]
    await ledger.connection.close()
    assert database.sql("SELECT count(*) FROM shop WHERE cents = amount * 100") == "20000"
