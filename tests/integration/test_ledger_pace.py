"""The ledger's part in pacing: the pacer's lease, what it publishes, orders from any terminal, and old ledgers."""

from __future__ import annotations

import asyncio
import math
import uuid
from typing import Any

import asyncpg
import pytest

import engine.ledger.store
from engine.db import Database
from engine.errors import Busy, UnknownJob, UsageError
from engine.ledger import Ledger, PaceOrders, SignalOrder
from engine.ledger.orders import ALL_ORDERS
from engine.ledger.queries import migrations
from engine.ledger.records import Heartbeat
from engine.model import JobState, Mode, Phase, Side, SpanBounds
from tests.support.databases import FreshDatabase, on_each_major

LEASE_S = 15.0
ANNA, BELA = (str(uuid.UUID(int=n)) for n in (1, 2))
DECISION: dict[str, Any] = {
    "rate_per_s": 3200.0, "held": False, "leads": "read_latency", "reason": "read_latency 6.1ms of 5ms",
    "pressure": 1.2, "stage": "steady", "chunk_target_s": 0.02, "workers": 2,
    "signals": [
        {"name": "read_latency", "value": 0.0061, "target": 0.005, "max": None, "baseline": 0.001, "age_s": 0.5,
         "unit": "s", "pressure": 1.2, "detail": "", "error": ""}
    ],
    "baselines": {"read_latency": [0.001, 0.0001]}, "deadline": None, "growth": None,
}  # fmt: skip
HELD = DECISION | {"held": True, "leads": "commit_latency", "reason": "commit_latency 31ms > 20ms", "stage": "held"}


class Desk:
    """Several sessions on one ledger with one job in it."""

    def __init__(self, database: FreshDatabase) -> None:
        self.database = database
        self.opened: list[Ledger] = []
        self.job_id = 0

    async def open(self) -> Ledger:
        self.opened.append(Ledger(await Database(self.database.dsn, side=Side.TARGET, job="job").connect("test")))
        return self.opened[-1]

    async def create(self, name: str = "job", **more: Any) -> int:
        ledger = self.opened[0]
        assert await ledger.create(
            name=name, mode=Mode.UPDATE, source="s", target="s", identity={}, spec=more.pop("spec", {}), fingerprint={},
            key_types=["bigint"], rows_estimated=100, barrier_snapshot=None,
            spans=[SpanBounds(None, ("100",), 100.0)], **more,
        )  # fmt: skip
        job = await ledger.job(name)
        assert await ledger.start(job.id, ())
        return job.id

    async def published(self, decision: dict[str, Any] = DECISION, valid_s: float = 5.0) -> None:
        ledger = self.opened[0]
        assert (await ledger.pacer(self.job_id, ANNA, "host", 7, LEASE_S)).is_mine
        assert await ledger.publish_pace(self.job_id, ANNA, decision, valid_s)


@pytest.fixture
async def desk(database: FreshDatabase):
    made = Desk(database)
    ledger = await made.open()
    await ledger.ensure()
    made.job_id = await made.create()
    yield made
    for opened in made.opened:
        await opened.connection.close()


def without_since(decision: Any) -> dict[str, Any]:
    """What was published: the ledger adds since when it has been so."""
    return {name: value for name, value in decision.items() if name != "since"}


# -- the pacer's lease ------------------------------------------------------------------------------------------------


async def test_one_process_is_the_pacer_and_the_others_read_what_it_publishes(desk: Desk) -> None:
    anna, bela = desk.opened[0], await desk.open()
    mine = await anna.pacer(desk.job_id, ANNA, "host", 7, LEASE_S)
    assert (mine.is_mine, mine.decision, mine.valid_for_s, mine.age_s) == (True, None, None, None)
    assert not (await bela.pacer(desk.job_id, BELA, "host", 8, LEASE_S)).is_mine
    assert await anna.publish_pace(desk.job_id, ANNA, DECISION, 5.0)
    assert not await bela.publish_pace(desk.job_id, BELA, HELD, 5.0)
    look = await bela.pacer(desk.job_id, BELA, "host", 8, LEASE_S)
    assert (look.is_mine, without_since(look.decision)) == (False, DECISION)
    assert look.valid_for_s is not None
    assert 4 < look.valid_for_s <= 5
    assert look.age_s == pytest.approx(0, abs=1)


async def test_a_lease_that_ran_out_passes_on_with_what_was_published(desk: Desk) -> None:
    ledger = desk.opened[0]
    await desk.published()
    desk.database.sql("UPDATE backfill.pacer SET lease_until = clock_timestamp() - interval '1 ms'")
    assert not await ledger.publish_pace(desk.job_id, ANNA, DECISION, 5.0), "the lease ran out, even if nobody has it"
    heir = await ledger.pacer(desk.job_id, BELA, "other", 8, LEASE_S)
    assert (heir.is_mine, without_since(heir.decision)) == (True, DECISION)
    assert not (await ledger.pacer(desk.job_id, ANNA, "host", 7, LEASE_S)).is_mine
    assert desk.database.sql("SELECT pacer, pace_valid FROM backfill.status") == "other:8|t"


async def test_a_pacer_that_leaves_is_succeeded_at_once(desk: Desk) -> None:
    ledger = desk.opened[0]
    await desk.published()
    await ledger.leave_pacer(desk.job_id, BELA)  # not his to give up
    assert not (await ledger.pacer(desk.job_id, BELA, "other", 8, LEASE_S)).is_mine
    await ledger.leave_pacer(desk.job_id, ANNA)
    assert (await ledger.status("job")).pacer is None
    assert (await ledger.pacer(desk.job_id, BELA, "other", 8, LEASE_S)).is_mine


async def test_a_lease_further_ahead_than_a_lease_can_be_counts_as_run_out(desk: Desk) -> None:
    """Somebody's clock stood an hour ahead."""
    ledger = desk.opened[0]
    await desk.published()
    desk.database.sql(
        "UPDATE backfill.pacer SET lease_until = lease_until + interval '1 hour',"
        " valid_until = valid_until + interval '1 hour', published_at = published_at + interval '1 hour'"
    )
    heir = await ledger.pacer(desk.job_id, BELA, "other", 8, LEASE_S)
    assert (heir.is_mine, heir.valid_for_s) == (True, None)
    assert (await ledger.status("job")).pace_valid is False


async def test_renewing_keeps_the_moment_since_when_it_is_held(desk: Desk) -> None:
    await desk.published()
    held = "SELECT held_since FROM backfill.pacer"
    since = desk.database.sql(held)
    await desk.opened[0].pacer(desk.job_id, ANNA, "host", 7, LEASE_S)
    assert desk.database.sql(held) == since
    await desk.opened[0].leave_pacer(desk.job_id, ANNA)
    await desk.opened[0].pacer(desk.job_id, BELA, "host", 8, LEASE_S)
    assert desk.database.sql(held) != since


async def test_of_many_processes_at_once_one_is_the_pacer(desk: Desk) -> None:
    ledgers = [await desk.open() for _ in range(6)]
    for expire in (False, True):
        if expire:
            desk.database.sql("UPDATE backfill.pacer SET lease_until = '-infinity'")
        looks = await asyncio.gather(
            *(ledger.pacer(desk.job_id, str(uuid.uuid4()), "host", 7, LEASE_S) for ledger in ledgers)
        )
        assert sum(look.is_mine for look in looks) == 1


async def test_a_job_that_is_gone_has_no_pacer(desk: Desk) -> None:
    ledger = desk.opened[0]
    await desk.published()
    assert await ledger.forget("job")
    assert desk.database.sql("SELECT count(*) FROM backfill.pacer") == "0"
    look = await ledger.pacer(desk.job_id, ANNA, "host", 7, LEASE_S)
    assert (look.is_mine, look.decision) == (False, None)
    assert not await ledger.publish_pace(desk.job_id, ANNA, DECISION, 5.0)


async def test_numbers_that_json_does_not_have_are_published_as_null(desk: Desk) -> None:
    signal = DECISION["signals"][0] | {"value": math.nan}
    await desk.published(DECISION | {"rate_per_s": math.inf, "signals": [signal]})
    status = await desk.opened[0].status("job")
    assert (status.limit_now_rows_per_s, status.signals[0]["value"]) == (None, None)


async def test_decisions_are_updated_in_place(desk: Desk) -> None:
    """Once a second for days: neither index nor TOAST table may grow with it."""
    ledger = desk.opened[0]
    signals = [
        DECISION["signals"][0] | {"name": str(n), "detail": f"{uuid.uuid4()} {uuid.uuid4()} {uuid.uuid4()}"}
        for n in range(30)
    ]
    await desk.published(DECISION | {"signals": signals})
    for _ in range(40):
        await ledger.publish_pace(desk.job_id, ANNA, DECISION | {"signals": signals}, 5.0)
    size = "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'backfill.pacer'::regclass"
    assert desk.database.sql(size) == "0"
    assert int(desk.database.sql("SELECT pg_relation_size('backfill.pacer_pkey')")) <= 2 * 8192


# -- what status says -------------------------------------------------------------------------------------------------


async def working(desk: Desk, waiting: str = "") -> None:
    await desk.opened[0].heartbeat(desk.job_id, "host", 7, [Heartbeat(ANNA, 3100.0, 0, waiting, {})])


async def test_status_tells_the_pace_that_is_in_force(desk: Desk) -> None:
    await working(desk)
    await desk.published()
    status = await desk.opened[0].status("job")
    assert status.waiting is None
    shown = status.as_json()
    assert shown["pace"].pop("since") is not None
    assert shown["pace"] == {
        "limit_rows_per_s": 3200.0, "pressure": 1.2, "held_by": None, "reason": "read_latency 6.1ms of 5ms",
        "waiting": None, "because": "read_latency 6.1ms of 5ms",
        "leads": "read_latency", "stage": "steady", "max_rows_per_s": None, "chunk_target_s": 0.02, "workers": 2,
        "orders": {}, "pacer": "host:7", "valid": True, "age_s": pytest.approx(0, abs=1), "deadline": None,
        "growth": None,
    }  # fmt: skip
    assert shown["signals"] == [DECISION["signals"][0] | {"age_s": pytest.approx(0.5, abs=1)}]


async def test_since_when_it_is_held_outlives_its_pacer_and_ends_with_another_reason(desk: Desk) -> None:
    ledger = desk.opened[0]

    async def since(decision: dict[str, Any]) -> str:
        assert await ledger.publish_pace(desk.job_id, ANNA, decision, 5.0)
        return str((await ledger.status("job")).as_json()["pace"]["since"])

    await working(desk, "held")
    await desk.published(HELD)
    first = await since(HELD)
    assert await since(HELD | {"reason": "commit_latency 40ms > 20ms"}) == first
    desk.database.sql("UPDATE backfill.pacer SET lease_until = NULL")
    await ledger.pacer(desk.job_id, BELA, "other", 8, LEASE_S)
    assert await ledger.publish_pace(desk.job_id, BELA, HELD, 5.0)
    assert (await ledger.status("job")).as_json()["pace"]["since"] == first
    desk.database.sql("UPDATE backfill.pacer SET lease_until = NULL")
    await ledger.pacer(desk.job_id, ANNA, "host", 7, LEASE_S)
    assert await since(HELD | {"leads": "lock_waits"}) > first
    desk.database.sql("""UPDATE backfill.pacer SET decision = decision || '{"since": "yesterday"}'""")
    assert (await ledger.status("job")).as_json()["pace"]["since"] is None, "nobody's words are trusted"


async def test_a_held_job_says_why(desk: Desk) -> None:
    await working(desk, "held")
    await desk.published(HELD | {"deadline": {"late_by_s": 600.0}, "growth": {"ratio": 0.1, "max": 0.2}})
    shown = (await desk.opened[0].status("job")).as_json()["pace"]
    assert (shown["held_by"], shown["reason"]) == ("commit_latency", "commit_latency 31ms > 20ms")
    assert (shown["deadline"], shown["growth"]) == ({"late_by_s": 600.0}, {"ratio": 0.1, "max": 0.2})
    assert desk.database.sql("SELECT waiting FROM backfill.status") == "commit_latency 31ms > 20ms"


async def test_a_decision_that_ran_out_is_not_in_force_and_status_says_what_is(desk: Desk) -> None:
    await desk.opened[0].order_pace("job", PaceOrders(max_rows_per_s=9000))
    await desk.published(HELD, valid_s=5)
    desk.database.sql("UPDATE backfill.pacer SET valid_until = clock_timestamp() - interval '1 ms'")
    await working(desk)
    status = await desk.opened[0].status("job")
    assert (status.waiting, status.pace_valid) == ("no pacer: at the minimum", False)
    assert (status.held_by, status.limit_now_rows_per_s, status.max_rows_per_s) == (None, None, 9000)
    assert status.signals == ()
    desk.database.sql("UPDATE backfill.worker SET seen_at = '-infinity'")
    assert (await desk.opened[0].status("job")).waiting is None, "nobody works on it: that is another story"


async def test_a_parked_worker_waits_for_nothing(desk: Desk) -> None:
    ledger = desk.opened[0]
    parked = Heartbeat(BELA, 0.0, 0, "parked", {})
    await ledger.heartbeat(desk.job_id, "host", 7, [Heartbeat(ANNA, 5.0, 0, "", {}), parked])
    assert (await ledger.status("job")).waiting is None
    await ledger.heartbeat(desk.job_id, "host", 7, [Heartbeat(ANNA, 5.0, 0, "a lock", {}), parked])
    assert (await ledger.status("job")).waiting == "a lock"


async def test_a_paused_job_is_held_by_nobody_but_its_operator(desk: Desk) -> None:
    await desk.published(HELD)
    await desk.opened[0].pause("job", "disk")
    status = await desk.opened[0].status("job")
    assert (status.state, status.waiting, status.held_by, status.stage) == (JobState.PAUSED, "disk", None, None)


async def test_without_a_pacer_the_limit_is_the_order_or_else_the_specs(desk: Desk) -> None:
    ledger = desk.opened[0]
    await desk.create("other", spec={"pace": {"max_rows_per_s": 20000}})
    assert (await ledger.status("job")).limit_now_rows_per_s is None
    status = await ledger.status("other")
    assert (status.limit_now_rows_per_s, status.max_rows_per_s, status.limit_rows_per_s) == (20000, 20000, None)
    await ledger.order_pace("other", PaceOrders(max_rows_per_s=500))
    status = await ledger.status("other")
    assert (status.limit_now_rows_per_s, status.max_rows_per_s, status.limit_rows_per_s) == (500, 500, 500)


# -- orders -----------------------------------------------------------------------------------------------------------


async def test_orders_add_up_and_what_is_not_named_stays(desk: Desk) -> None:
    ledger = desk.opened[0]
    first = await ledger.order_pace(
        "job", PaceOrders(max_rows_per_s=5000, signals={"read_latency": SignalOrder(0.005)})
    )
    assert first == PaceOrders(max_rows_per_s=5000, signals={"read_latency": SignalOrder(0.005)})
    change = PaceOrders(
        workers=3, signals={"read_latency": SignalOrder(maximum=0.02), "wal_rate": SignalOrder(off=True)}
    )
    expected = PaceOrders(
        max_rows_per_s=5000,
        workers=3,
        signals={"read_latency": SignalOrder(0.005, 0.02), "wal_rate": SignalOrder(off=True)},
    )
    assert await ledger.order_pace("job", change) == expected
    assert (await ledger.job("job")).orders == expected
    assert (await ledger.status("job")).orders == expected
    assert (await ledger.job("job")).limit_rows_per_s == 5000
    lifted = await ledger.order_pace(
        "job", PaceOrders(max_wal_bytes_per_s=1e6), ["max_rows_per_s", "signals.read_latency"]
    )
    assert lifted == PaceOrders(max_wal_bytes_per_s=1e6, workers=3, signals={"wal_rate": SignalOrder(off=True)})
    assert await ledger.order_pace("job", PaceOrders(), ALL_ORDERS) == PaceOrders()
    assert desk.database.sql("SELECT pace, limit_rows_per_s IS NULL FROM backfill.job") == "{}|t"


async def test_two_operators_at_once_do_not_undo_each_other(desk: Desk) -> None:
    ledgers = [await desk.open() for _ in range(8)]
    await asyncio.gather(
        *(
            ledger.order_pace("job", PaceOrders(signals={f"s{n}": SignalOrder(target=float(n + 1))}))
            for n, ledger in enumerate(ledgers)
        )
    )
    orders = (await ledgers[0].job("job")).orders
    assert orders.signals == {f"s{n}": SignalOrder(target=float(n + 1)) for n in range(8)}


async def test_an_order_is_one_line_of_history_with_what_changed_and_why(desk: Desk) -> None:
    ledger = desk.opened[0]
    await ledger.order_pace("job", PaceOrders(workers=2, signals={"commit_latency": SignalOrder(maximum=0.02)}))
    change = PaceOrders(max_rows_per_s=5000, signals={"commit_latency": SignalOrder(maximum=0.05, target=0.01)})
    await ledger.order_pace("job", change, reason="month's end")
    await ledger.order_pace("job", change)  # nothing new
    desk.database.sql("SELECT backfill.pace('job', 7)")
    entries = [entry for entry in await ledger.history("job") if entry.what == "pace"]
    assert len(entries) == 3
    latency = "signals.commit_latency"
    assert entries[1].detail == {
        "from": {"max_rows_per_s": None, f"{latency}.max": 0.02, f"{latency}.target": None},
        "to": {"max_rows_per_s": 5000, f"{latency}.max": 0.05, f"{latency}.target": 0.01},
        "reason": "month's end",
    }
    assert entries[2].detail == {"from": {"max_rows_per_s": 5000}, "to": {"max_rows_per_s": 7}}


async def test_an_order_by_hand_is_history_too(desk: Desk) -> None:
    desk.database.sql("""UPDATE backfill.job SET pace = '{"workers": 1}'""")
    entry = (await desk.opened[0].history("job"))[-1]
    assert (entry.what, entry.detail) == ("pace", {"from": {"workers": None}, "to": {"workers": 1}})


async def test_an_order_is_told_to_whoever_listens(desk: Desk) -> None:
    listener = await desk.database.connect()
    told: asyncio.Queue[str] = asyncio.Queue()
    await listener.add_listener("backfill", lambda *news: told.put_nowait(news[-1]))
    await desk.opened[0].order_pace("job", PaceOrders(workers=1))
    assert await asyncio.wait_for(told.get(), 10) == "job"


async def test_what_a_newer_release_ordered_survives_an_order_of_ours(desk: Desk) -> None:
    stored = '{"phase_of_moon": "full", "signals": {"read_latency": {"window": "5s", "target": "soon"}, "odd": 3}}'
    desk.database.sql(f"UPDATE backfill.job SET pace = '{stored}'")
    ledger = desk.opened[0]
    assert (await ledger.job("job")).orders == PaceOrders()
    await ledger.order_pace("job", PaceOrders(signals={"read_latency": SignalOrder(off=True)}))
    assert desk.database.sql("SELECT pace FROM backfill.job") == (
        '{"signals": {"odd": 3, "read_latency": {"off": true, "target": "soon", "window": "5s"}},'
        ' "phase_of_moon": "full"}'
    )


async def test_orders_for_an_unknown_job_are_refused(desk: Desk) -> None:
    with pytest.raises(UnknownJob):
        await desk.opened[0].order_pace("nobody", PaceOrders(workers=1))
    assert (await desk.opened[0].job("job")).orders == PaceOrders()  # and the session is usable


async def test_a_limit_that_is_none_is_refused_as_a_whole(desk: Desk) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await desk.opened[0].order_pace("job", PaceOrders(max_rows_per_s=-1.0, workers=2))
    assert (await desk.opened[0].job("job")).orders == PaceOrders()


async def test_the_size_at_the_beginning_is_kept(desk: Desk) -> None:
    await desk.create("sized", heap_bytes=8192)
    assert (await desk.opened[0].job("sized")).heap_bytes == 8192
    assert (await desk.opened[0].job("job")).heap_bytes is None


# -- a ledger of the first release ------------------------------------------------------------------------------------


async def first_release(database: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger at version 1 with a job that runs, as the first release left it, and a role that may use it."""
    monkeypatch.setattr(engine.ledger.store, "migrations", lambda: migrations()[:1])
    ledger = Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))
    await ledger.ensure()
    await ledger.connection.close()
    monkeypatch.undo()
    database.sql(
        "INSERT INTO backfill.job (name, mode, state, source, target, identity, spec, fingerprint, key_types,"
        " rows_estimated, move_end, limit_rows_per_s, started_at)"
        " VALUES ('job', 'update', 'running', 's', 's', '{}', '{}', '{}', '{bigint}', 100, '{100}', 250, now());"
        "INSERT INTO backfill.span (job_id, id, phase, hi, cursor, epoch, worker, lease_until, rows_estimated, rows)"
        f" VALUES (1, 1, 'move', '{{100}}', '{{40}}', 3, '{ANNA}', clock_timestamp() + interval '15 s', 100, 40);"
    )


@on_each_major
async def test_a_ledger_of_the_first_release_is_upgraded_under_a_running_job(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await first_release(database, monkeypatch)
    ledgers = [Ledger(await Database(database.dsn, side=Side.TARGET).connect("test")) for _ in range(4)]
    await asyncio.gather(*(ledger.ensure() for ledger in ledgers))
    assert database.sql("SELECT string_agg(version::text, ' ' ORDER BY version) FROM backfill.version") == "1 2 3 4 5 6"
    ledger = ledgers[0]
    job = await ledger.job("job")
    assert (job.orders, job.heap_bytes, job.limit_rows_per_s) == (PaceOrders(max_rows_per_s=250), None, 250)
    status = await ledger.status("job")
    assert (status.state, status.rows_done, status.spans_running) == (JobState.RUNNING, 40, 1)
    await ledger.connection.fetchval(
        "SELECT backfill.advance(1::bigint, 1, 3::bigint, '{40}'::text[], '{100}'::text[], '{100}'::text[],"
        " 60::bigint, 60::bigint, 60::bigint, false)"
    )  # the chunk that was on its way
    assert (await ledger.pacer(job.id, ANNA, "host", 7, LEASE_S)).is_mine
    await ledger.order_pace("job", PaceOrders(workers=1))
    for opened in ledgers:
        await opened.connection.close()


async def test_an_upgrade_keeps_the_rights_that_were_given(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await first_release(database, monkeypatch)
    role = f"mover_{uuid.uuid4().hex[:8]}"
    database.sql(
        f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA backfill TO {role};"
        f"GRANT SELECT ON ALL TABLES IN SCHEMA backfill TO {role};"
        f"GRANT INSERT, UPDATE, DELETE ON backfill.job, backfill.span, backfill.worker TO {role}"
    )
    try:
        ledger = Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))
        await ledger.ensure()
        await ledger.connection.execute(f"SET ROLE {role}")
        assert (await ledger.pacer(1, ANNA, "host", 7, LEASE_S)).is_mine
        assert await ledger.publish_pace(1, ANNA, DECISION, 5.0)
        assert (await ledger.status("job")).limit_now_rows_per_s == 3200
        await ledger.connection.execute("INSERT INTO backfill.heartbeat VALUES (1, clock_timestamp())")
        assert await ledger.report(ANNA, "host", 7, LEASE_S)
        await ledger.connection.close()
    finally:
        database.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("everybody", [True, False], ids=["as it was made", "taken from the public"])
async def test_whoever_may_set_one_row_aside_may_set_aside_a_chunks(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch, everybody: bool
) -> None:
    monkeypatch.setattr(engine.ledger.store, "migrations", lambda: migrations()[:5])
    ledger = Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))
    await ledger.ensure()
    monkeypatch.undo()
    roles = [f"{name}_{uuid.uuid4().hex[:8]}" for name in ("mover", "guest")]
    database.sql("".join(f"CREATE ROLE {role};" for role in roles))
    one = "EXECUTE ON FUNCTION backfill.set_aside"
    if not everybody:
        database.sql(f"REVOKE {one} FROM PUBLIC; GRANT {one} TO {roles[0]}")
    try:
        await ledger.ensure()
        arguments = "bigint, text[], int, text[], text[], bigint"
        for role, may in zip(roles, (True, everybody), strict=True):
            asked = f"has_function_privilege('{role}', 'backfill.set_aside_all({arguments})', 'EXECUTE')"
            assert database.sql(f"SELECT {asked}") == ("t" if may else "f")
    finally:
        await ledger.connection.close()
        database.sql(f"DROP OWNED BY {', '.join(roles)}; DROP ROLE {', '.join(roles)}")


async def test_an_older_ledger_can_be_looked_at_and_takes_new_orders_only_after_its_upgrade(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await first_release(database, monkeypatch)
    ledger = Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))
    assert (await ledger.job("job")).orders == PaceOrders(max_rows_per_s=250)
    status = (await ledger.status("job")).as_json()
    assert (status["rows_done"], status["pace"]["orders"], status["signals"]) == (40, {}, [])
    with pytest.raises(UsageError, match="version 1"):
        await ledger.order_pace("job", PaceOrders(workers=1))
    await ledger.ensure()
    await ledger.order_pace("job", PaceOrders(workers=1))
    await ledger.connection.close()


async def test_an_upgrade_does_not_queue_everybody_behind_a_long_reader(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await first_release(database, monkeypatch)
    monkeypatch.setattr(engine.ledger.store, "UPGRADE_PATIENCE_S", 0.1)
    dump = await database.connect()
    await dump.execute("BEGIN; LOCK TABLE backfill.job IN ACCESS SHARE MODE")
    ledger = Ledger(await Database(database.dsn, side=Side.TARGET).connect("test"))
    with pytest.raises(Busy):
        await asyncio.wait_for(ledger.ensure(), 10)
    assert await ledger.installed_version() == 1
    await dump.execute("ROLLBACK")
    await ledger.ensure()
    assert await ledger.installed_version() == migrations()[-1][0]
    await ledger.connection.close()


async def test_a_process_of_an_older_release_cannot_take_an_unplanned_sweep_for_a_finished_one(desk: Desk) -> None:
    """It would clear the barrier of a phase without spans, find nothing left to do, and call the job done."""
    desk.database.sql("UPDATE backfill.job SET phase = 'sweep', barrier_snapshot = '{}'")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await desk.opened[0].connection.execute("UPDATE backfill.job SET barrier_snapshot = NULL, waits_for = NULL")
    assert refused.value.sqlstate == "BF003"
    assert await desk.opened[0].open_phase(desk.job_id, Phase.SWEEP, (), sweep_by="keys")
