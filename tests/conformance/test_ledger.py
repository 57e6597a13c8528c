"""What a ledger promises about spans and leases: the model in memory and the real one, by the same scenarios."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from engine.db import Database
from engine.ledger import Ledger
from engine.model import KeyValue, Mode, Phase, Side, Span, SpanBounds
from tests.support.databases import FreshDatabase
from tests.support.model import LEASE, ModelLedger, View, tiles

ANNA, BELA, CARO = (str(uuid.UUID(int=n)) for n in (1, 2, 3))
END = 100
BOUNDS: list[tuple[int | None, int]] = [(None, 50), (50, END)]


class InMemory:
    """The model, behind the same awaitable face."""

    def __init__(self) -> None:
        self.model = ModelLedger.of(BOUNDS)

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            return getattr(self.model, name)(*args)

        return call

    async def pass_time(self, leases: float) -> None:
        self.model.now += int(leases * LEASE)


class OnPostgres:
    """The real ledger with a job of two spans."""

    def __init__(self, ledger: Ledger, job_id: int) -> None:
        self.ledger = ledger
        self.job_id = job_id

    async def claim(self, worker: str) -> View | None:
        claim = await self.ledger.claim(self.job_id, worker, (), float(LEASE))
        return None if claim is None else _view(claim.span, worker)

    async def reclaim(self, held: View, worker: str) -> View | None:
        claim = await self.ledger.reclaim(self.job_id, _span(held), worker, (), float(LEASE))
        return None if claim is None else _view(claim.span, worker)

    async def advance(self, held: View, to: int) -> bool:
        try:
            await self.ledger.connection.fetchval(
                "SELECT backfill.advance($1::bigint, $2::int, $3::bigint, $4::text[], $5::text[], $6::text[],"
                " 1::bigint, 1::bigint, 1::bigint, false)",
                self.job_id, held.id, held.epoch, _key(held.cursor), _key(held.hi), _key(to),
            )  # fmt: skip
        except asyncpg.PostgresError as error:
            if error.sqlstate != "BF001":
                raise
            return False
        return True

    async def renew(self, held: View, worker: str) -> bool:
        renewed = await self.ledger.renew(self.job_id, [(held.id, worker, held.epoch)], float(LEASE))
        return held.id in renewed

    async def release(self, held: View, worker: str) -> None:
        await self.ledger.release(self.job_id, _span(held), worker)

    async def reread(self, held: View, worker: str) -> View | None:
        span = await self.ledger.reread(self.job_id, _span(held), worker)
        return None if span is None else _view(span, worker)

    async def steal(self, victim: View, cut: int, worker: str) -> View | None:
        span = await self.ledger.steal(
            self.job_id, _span(victim), (str(cut),), rows_kept=1, rows_taken=1, worker=worker, backends=(),
            lease_s=float(LEASE),
        )  # fmt: skip
        return None if span is None else _view(span, worker)

    async def set_deadline(self, span: int, distance: int) -> None:
        await self.ledger.connection.fetch(
            "UPDATE backfill.span SET lease_until = clock_timestamp() + make_interval(secs => $2) WHERE id = $1",
            span,
            float(distance),
        )

    async def pass_time(self, leases: float) -> None:
        await self.ledger.connection.fetch(
            "UPDATE backfill.span SET lease_until = lease_until - make_interval(secs => $1)", float(leases * LEASE)
        )

    async def spans(self) -> list[View]:
        found = await self.ledger.spans(self.job_id, Phase.MOVE)
        return [View(s.id, _int(s.lo), int(s.hi[0]), _int(s.cursor), s.epoch, None) for s in found]

    async def unfinished(self) -> int:
        return await self.ledger.unfinished(self.job_id, Phase.MOVE)


def _key(value: int | None) -> list[str] | None:
    return None if value is None else [str(value)]


def _int(key: KeyValue | None) -> int | None:
    return None if key is None else int(key[0])


def _view(span: Span, worker: str) -> View:
    return View(span.id, _int(span.lo), int(span.hi[0]), _int(span.cursor), span.epoch, worker)


def _span(view: View) -> Span:
    def key(value: int | None) -> KeyValue | None:
        return None if value is None else (str(value),)

    return Span(view.id, Phase.MOVE, key(view.lo), (str(view.hi),), key(view.cursor), view.epoch, 0)


async def on_postgres(database: FreshDatabase) -> OnPostgres:
    ledger = Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))
    await ledger.ensure()
    bounds = [SpanBounds(None if lo is None else (str(lo),), (str(hi),), 1.0) for lo, hi in BOUNDS]
    await ledger.create(
        name="job", mode=Mode.UPDATE, source="s", target="t", identity={}, spec={}, fingerprint={}, key_types=["bigint"],
        rows_estimated=100, barrier_snapshot=None, spans=bounds,
    )  # fmt: skip
    job = await ledger.job("job")
    assert await ledger.start(job.id, ())
    return OnPostgres(ledger, job.id)


@pytest.fixture(params=["model", "postgres"])
async def ledger(request: pytest.FixtureRequest, database: FreshDatabase) -> AsyncIterator[Any]:
    if request.param == "model":
        yield InMemory()
        return
    made = await on_postgres(database)
    yield made
    await made.ledger.connection.close()


async def test_each_claim_takes_another_span_under_a_new_epoch(ledger: Any) -> None:
    first, second = await ledger.claim(ANNA), await ledger.claim(BELA)
    assert (first.id, first.lo, first.cursor, first.hi, first.epoch) == (1, None, None, 50, 1)
    assert (second.id, second.lo, second.cursor, second.hi, second.epoch) == (2, 50, 50, END, 1)
    assert await ledger.claim(CARO) is None


async def test_a_chunk_moves_the_cursor_and_only_the_next_one_may_follow(ledger: Any) -> None:
    held = await ledger.claim(ANNA)
    assert await ledger.advance(held, 10)
    assert not await ledger.advance(held, 10)  # the same again
    assert not await ledger.advance(held, 20)  # from a cursor that is not there any more
    held = await ledger.reread(held, ANNA)
    assert held.cursor == 10
    assert await ledger.advance(held, 50)
    assert await ledger.unfinished() == 1


async def test_an_old_epoch_is_refused(ledger: Any) -> None:
    held = await ledger.claim(ANNA)
    again = await ledger.reclaim(held, ANNA)
    assert again.epoch == held.epoch + 1
    assert not await ledger.advance(held, 10)
    assert await ledger.advance(again, 10)
    assert await ledger.reclaim(held, ANNA) is None
    assert await ledger.reread(held, ANNA) is None


async def test_an_expired_lease_passes_to_the_next_who_asks(ledger: Any) -> None:
    held = await ledger.claim(ANNA)
    await ledger.claim(BELA)
    await ledger.pass_time(1.5)
    heir = await ledger.claim(CARO)
    assert (heir.id, heir.epoch) == (held.id, held.epoch + 1)
    assert not await ledger.advance(held, 10)
    assert not await ledger.renew(held, ANNA)
    assert await ledger.reread(held, ANNA) is None
    assert await ledger.reclaim(held, ANNA) is None
    await ledger.release(held, ANNA)  # says nothing about the heir's lease
    assert await ledger.advance(heir, 10)
    assert await ledger.renew(heir, CARO)


async def test_a_renewed_lease_does_not_run_out(ledger: Any) -> None:
    held = await ledger.claim(ANNA)
    await ledger.claim(BELA)
    await ledger.pass_time(0.8)
    assert await ledger.renew(held, ANNA)
    await ledger.pass_time(0.8)
    assert (await ledger.claim(CARO)).id == 2


async def test_a_deadline_that_is_too_far_ahead_to_be_honest_counts_as_expired(ledger: Any) -> None:
    held = await ledger.claim(ANNA)
    await ledger.claim(BELA)
    await ledger.set_deadline(held.id, 3600)
    assert (await ledger.claim(CARO)).id == held.id


async def test_a_released_span_is_there_at_once_and_goes_on_from_its_cursor(ledger: Any) -> None:
    held = await ledger.claim(ANNA)
    await ledger.claim(BELA)
    assert await ledger.advance(held, 10)
    await ledger.release(held, ANNA)
    heir = await ledger.claim(CARO)
    assert (heir.id, heir.cursor, heir.epoch) == (held.id, 10, held.epoch + 1)


async def test_a_finished_span_is_nobodys(ledger: Any) -> None:
    held = await ledger.claim(ANNA)
    assert await ledger.advance(held, 50)
    await ledger.release(held, ANNA)
    assert (await ledger.claim(BELA)).id == 2
    await ledger.pass_time(5)
    assert (await ledger.claim(CARO)).id == 2


async def test_a_theft_halves_the_span_and_fences_the_chunk_that_is_on_its_way(ledger: Any) -> None:
    held = await ledger.claim(ANNA)
    assert await ledger.advance(held, 10)
    held = await ledger.reread(held, ANNA)
    stolen = await ledger.steal(held, 30, BELA)
    assert (stolen.lo, stolen.cursor, stolen.hi, stolen.epoch) == (30, 30, 50, 1)
    assert not await ledger.advance(held, 40)
    assert not await ledger.advance(held, 20)  # inside its half, but cut from another one
    again = await ledger.reread(held, ANNA)
    assert (again.cursor, again.hi, again.epoch) == (10, 30, held.epoch)
    assert await ledger.advance(again, 30)
    assert await ledger.advance(stolen, 50)
    assert tiles(await ledger.spans(), END)


async def test_a_thief_who_is_late_changes_nothing(ledger: Any) -> None:
    held = await ledger.claim(ANNA)
    assert await ledger.advance(held, 40)
    assert await ledger.steal(held, 30, BELA) is None
    assert [s.hi for s in await ledger.spans()] == [50, END]


async def test_a_span_is_not_done_while_a_part_of_it_is_somebody_elses(ledger: Any) -> None:
    """cockroach#153583."""
    held = await ledger.claim(ANNA)
    stolen = await ledger.steal(held, 30, BELA)
    held = await ledger.reread(held, ANNA)
    assert await ledger.advance(held, 30)
    assert await ledger.unfinished() == 2
    assert await ledger.advance(stolen, 50)
    assert await ledger.unfinished() == 1


@pytest.mark.parametrize("seed", range(12))
async def test_both_ledgers_answer_alike_to_the_same_random_calls(database: FreshDatabase, seed: int) -> None:
    """The model is worth what it says about the real one."""
    rng = random.Random(seed)
    model, real = InMemory(), await on_postgres(database)
    views: list[tuple[View, str]] = []
    for _ in range(60):
        worker = rng.choice((ANNA, BELA, CARO))
        call: tuple[Any, ...] = rng.choice(
            (("claim", worker), ("claim", worker), ("pass_time", rng.choice((0.3, 1.5))), ("unfinished",))
        )
        if views and rng.random() < 0.7:
            view, owner = rng.choice(views[-4:])
            at = view.cursor or 0
            call = rng.choice(
                (
                    ("advance", view, rng.randint(at + 1, view.hi) if at < view.hi else view.hi),
                    ("reclaim", view, owner),
                    ("reread", view, owner),
                    ("renew", view, owner),
                    ("release", view, owner),
                    ("steal", view, rng.randint(at + 1, max(at + 1, view.hi - 1)), worker),
                )
            )
            if call[0] == "steal" and not at < call[2] < view.hi:
                continue
            if call[0] == "advance" and at >= view.hi:
                continue
        expected = await getattr(model, call[0])(*call[1:])
        found = await getattr(real, call[0])(*call[1:])
        assert found == expected, call
        if isinstance(expected, View):
            views.append((expected, expected.worker or worker))
        assert tiles(await real.spans(), END)
    await real.ledger.connection.close()


async def test_two_thieves_at_the_same_moment_take_two_spans_or_one_and_lose_none(database: FreshDatabase) -> None:
    real = await on_postgres(database)
    left, right = await real.claim(ANNA), await real.claim(BELA)
    other = await database.connect()
    await other.execute("BEGIN")
    await other.fetch(
        "WITH cut AS (UPDATE backfill.span SET hi = '{20}' WHERE id = 1 RETURNING phase)"
        " INSERT INTO backfill.span (job_id, id, phase, lo, hi, cursor, rows_estimated)"
        " SELECT 1, 3, phase, '{20}', '{50}', '{20}', 1 FROM cut"
    )
    second = asyncio.create_task(real.steal(right, 70, CARO))
    await asyncio.sleep(0.2)
    await other.execute("COMMIT")
    stolen = await second
    assert stolen is None or (stolen.lo, stolen.hi) == (70, END)
    assert tiles(await real.spans(), END)
    assert left is not None
    await real.ledger.connection.close()


async def test_several_processes_create_the_ledger_at_once(database: FreshDatabase) -> None:
    ledgers = [Ledger(await Database(database.dsn, side=Side.TARGET).connect("test")) for _ in range(6)]
    for ledger in ledgers:
        assert await ledger.installed_version() == 0  # and their caches know that there is no such schema
    await asyncio.gather(*(ledger.ensure() for ledger in ledgers))
    for ledger in ledgers:
        assert await ledger.installed_version() > 0
        await ledger.connection.close()
