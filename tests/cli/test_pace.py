"""``backfill pace``, and what the commands say about a pace that somebody else decides."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.cli.words import limit_words, one_line, pace_block, reason, what_next
from engine.db import Database
from engine.ledger import Ledger
from engine.ledger.orders import PaceOrders, SignalOrder
from engine.ledger.records import Heartbeat, JobStatus
from engine.model import JobState, Mode, Side, SpanBounds
from engine.spec import JobSpec, load_spec
from tests.cli.conftest import Cli
from tests.support.databases import FreshDatabase

PACER = str(uuid.UUID(int=7))


def signal(name: str, value: float | None, unit: str = "s", **more: Any) -> dict[str, Any]:
    return {
        "name": name, "value": value, "target": None, "max": None, "baseline": None, "age_s": 0.4, "unit": unit,
        "pressure": None, "detail": "", "error": "", **more,
    }  # fmt: skip


SLOWED: dict[str, Any] = {
    "rate_per_s": 3200.0, "held": False, "leads": "read_latency", "reason": "read_latency 6.1ms of 5ms",
    "pressure": 1.22, "stage": "steady", "chunk_target_s": 0.02, "workers": 1,
    "signals": [
        signal("read_latency", 0.0061, target=0.005, baseline=0.0012),
        signal("replication_lag@target", None, error="standby two is gone", max=30.0),
        signal("queue", 1234.0, "count", max=5000.0),
    ],
    "deadline": None, "growth": None,
}  # fmt: skip
HELD = SLOWED | {"held": True, "stage": "held", "leads": "commit_latency", "reason": "commit_latency 31ms > 20ms"}


def publish(shop: FreshDatabase, decision: dict[str, Any]) -> None:
    """As another process that holds the pacer's lease."""
    shop.sql(
        "INSERT INTO backfill.pacer (job_id, process, host, os_pid, lease_until, decision, published_at, valid_until)"
        f" SELECT id, '{PACER}', 'host', 7, clock_timestamp() + interval '60 s', '{json.dumps(decision)}',"
        " clock_timestamp(), clock_timestamp() + interval '60 s' FROM backfill.job"
        " ON CONFLICT (job_id) DO UPDATE SET process = excluded.process, lease_until = excluded.lease_until,"
        " host = excluded.host, os_pid = excluded.os_pid, decision = excluded.decision,"
        " published_at = excluded.published_at, valid_until = excluded.valid_until"
    )


async def plant(database: FreshDatabase, spec: JobSpec) -> None:
    """A running job that nobody has run, with a worker that has just been heard of."""
    connection = await Database(database.dsn, side=Side.TARGET, job=spec.name).connect("test")
    try:
        ledger = Ledger(connection)
        await ledger.ensure()
        assert await ledger.create(
            name=spec.name, mode=Mode.UPDATE, source="s", target="s", identity={}, spec=spec.for_ledger(),
            fingerprint={}, key_types=["bigint"], rows_estimated=100, barrier_snapshot=None,
            spans=[SpanBounds(None, ("100",), 100.0)],
        )  # fmt: skip
        job = await ledger.job(spec.name)
        assert await ledger.start(job.id, ())
        await ledger.heartbeat(job.id, "host", 7, [Heartbeat(PACER, 3100.0, 0, "", {})])
    finally:
        await connection.close()


@pytest.fixture
def plant_job(shop: FreshDatabase, spec: Callable[..., Path]) -> Callable[..., None]:
    """``plant_job(name=…, pace=…)``"""
    return lambda **keys: asyncio.run(plant(shop, load_spec(str(spec(**keys)), os.environ)))


@pytest.fixture
def running_job(shop: FreshDatabase, plant_job: Callable[..., None]) -> FreshDatabase:
    """The job ``cents``, with a limit and a signal of its own."""
    signals = [{"sql": {"name": "queue", "query": "select 1", "max": 5000}}]
    plant_job(pace={"max_rows_per_s": 20000, "signals": signals})
    return shop


# -- looking ----------------------------------------------------------------------------------------------------------


def test_pace_shows_what_decides(backfill: Cli, running_job: FreshDatabase) -> None:
    publish(running_job, SLOWED)
    shown = backfill("pace", "cents")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[0] == "cents: running, 3,100 rows/s; limit 3,200 by read_latency 6.1ms of 5ms"
    assert {tuple(line.split(maxsplit=1)) for line in lines[1:7]} >= {
        ("limit", "3,200 rows/s"), ("because", "read_latency 6.1ms of 5ms"), ("stage", "steady, pressure 1.22"),
        ("allowed", "chunks of 0.02 s, 1 worker at work"), ("pacer", "host:7"),
    }  # fmt: skip
    head, latency, lag, queue = (line.split() for line in lines[-4:])
    assert head == ["signal", "value", "target", "max", "baseline", "age"]
    assert latency[:5] == ["read_latency", "6.1ms", "5ms", "-", "1.2ms"]
    assert latency[-1] == "leads"
    assert lag[:5] == ["replication_lag@target", "-", "-", "30s", "-"]
    assert lag[-4:] == ["standby", "two", "is", "gone"]
    assert queue[:4] == ["queue", "1,234", "-", "5,000"]
    seen = backfill("pace", "cents", "--json").json
    assert seen["pace"]["limit_rows_per_s"] == 3200
    assert [item["name"] for item in seen["signals"]] == ["read_latency", "replication_lag@target", "queue"]


def test_a_held_job_says_so_everywhere(backfill: Cli, running_job: FreshDatabase) -> None:
    publish(running_job, HELD)
    why = "held: commit_latency 31ms > 20ms"
    assert backfill("status", "cents").out.splitlines()[0].endswith(f"1 worker; {why}")
    assert why in backfill("list").out
    assert why in backfill("pace", "cents").out
    assert "nothing is let through" in backfill("pace", "cents").out
    assert backfill("status", "cents", "--json").json["pace"]["held_by"] == "commit_latency"


def test_what_was_published_by_a_pacer_that_is_gone_counts_no_more(backfill: Cli, running_job: FreshDatabase) -> None:
    publish(running_job, HELD)
    running_job.sql("UPDATE backfill.pacer SET valid_until = clock_timestamp() - interval '1 s'")
    shown = backfill("status", "cents").out
    assert shown.splitlines()[0].endswith("; no pacer: at the minimum")
    assert "commit_latency" not in shown
    assert "the minimum" in backfill("pace", "cents").out


# -- ordering ---------------------------------------------------------------------------------------------------------


def stored(shop: FreshDatabase) -> Any:
    return json.loads(shop.sql("SELECT orders FROM backfill.status"))


def test_orders_are_stored_in_the_units_of_their_signals(backfill: Cli, running_job: FreshDatabase) -> None:
    told = backfill(
        "pace", "cents", "--max-rows-per-s", "5000", "--max-wal-bytes-per-s", "50MiB", "--workers", "3",
        "--target", "read_latency=5ms", "--max", "read_latency=20ms", "--max", "vacuum_debt=20%",
        "--target", "wal_rate=1MiB", "--max", "queue=7", "--off", "lock_waits", "--on", "commit_latency",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert stored(running_job) == {
        "max_rows_per_s": 5000,
        "max_wal_bytes_per_s": 50 * 2**20,
        "workers": 3,
        "signals": {
            "read_latency": {"target": 0.005, "max": 0.02, "off": False},
            "vacuum_debt": {"max": 0.2, "off": False},
            "wal_rate": {"target": 2**20, "off": False},
            "queue": {"max": 7, "off": False},
            "lock_waits": {"off": True},
            "commit_latency": {"off": False},
        },
    }
    assert told.err.splitlines()[0] == (
        "cents: ordered: max_rows_per_s 5,000, max_wal_bytes_per_s 50MiB/s, workers 3, commit_latency on,"
        " lock_waits off, queue max 7, read_latency target 5ms max 20ms, vacuum_debt max 20%, wal_rate target 1MiB/s"
    )
    assert "read_latency target 5ms max 20ms" in backfill("status", "cents").out
    assert backfill("pace", "cents", "--json").json["pace"]["orders"] == stored(running_job)


def test_an_order_leaves_the_others_and_can_be_taken_back(backfill: Cli, running_job: FreshDatabase) -> None:
    backfill(
        "pace", "cents", "--max-rows-per-s", "5000", "--max-wal-bytes-per-s", "1MiB", "--target", "read_latency=5ms"
    )
    backfill("pace", "cents", "--target", "commit_latency=9ms", "--reason", "sale")
    assert set(stored(running_job)["signals"]) == {"read_latency", "commit_latency"}
    backfill("pace", "cents", "--no-limit")
    assert set(stored(running_job)) == {"signals"}
    assert backfill("pace", "cents", "--no-limit", "--json").json["pace"]["max_rows_per_s"] == 20000, "as the spec says"
    told = backfill("pace", "cents", "--reset", "--workers", "1")
    assert stored(running_job) == {"workers": 1}
    assert told.err == "cents: ordered: workers 1\n"
    assert "no orders" in backfill("pace", "cents", "--reset").err
    assert stored(running_job) == {}


def test_orders_in_the_history_can_be_read(backfill: Cli, running_job: FreshDatabase) -> None:
    backfill(
        "pace", "cents", "--max-rows-per-s", "5000", "--target", "read_latency=5ms", "--reason", "sale until eight"
    )
    backfill("pace", "cents", "--no-limit", "--off", "wal_rate")
    backfill("pace", "cents", "--no-limit", "--off", "wal_rate")
    entries = backfill("history", "cents").out.splitlines()
    assert len(entries) == 4, "created, running, and two orders that changed something"
    first, second = entries[2:]
    assert first.endswith(
        "  max_rows_per_s: none -> 5,000, read_latency off: none -> false, read_latency target: none -> 5ms,"
        " reason: sale until eight"
    )
    assert second.endswith("  max_rows_per_s: 5,000 -> none, wal_rate off: none -> true")


def test_the_lag_is_in_the_unit_in_which_the_job_measures_it(
    backfill: Cli, running_job: FreshDatabase, plant_job: Callable[..., None]
) -> None:
    assert backfill("pace", "cents", "--max", "replication_lag=10s").code == 0
    assert "is not a duration" in backfill("pace", "cents", "--max", "replication_lag=10MiB").err
    plant_job(name="bytes", pace={"signals": [{"replication_lag": {"max": "100MiB"}}]})
    assert backfill("pace", "bytes", "--max", "replication_lag=10MiB").code == 0
    assert "replication_lag max 10MiB" in backfill("pace", "bytes").out


REFUSED = [
    (["--target", "read_latncy=5ms"], "did you mean read_latency?"),
    (["--off", "qeue"], "did you mean queue?"),
    (["--max", "sql=5"], "no signal 'sql'"),
    (["--target", "read_latency=5"], "is not a duration"),
    (["--target", "read_latency=0ms"], "must be positive"),
    (["--target", "read_latency"], "is not SIGNAL=VALUE"),
    (["--target", "read_latency@source=5ms"], "count for both databases"),
    (["--max", "vacuum_debt=0.2"], "is not a share in percent"),
    (["--max", "wal_rate=12"], "is not a size"),
    (["--max", "active_sessions=many"], "is not a number"),
    (["--max", "active_sessions=nan"], "is out of range"),
    (["--target", "lock_waits=2s"], "it does not steer"),
    (["--max", "autovacuum=1"], "only go or stop"),
    (["--target", "queue=9000"], "target is not below max"),
    (["--on", "slot_retention"], "neither target nor max"),
    (["--off", "read_latency", "--target", "read_latency=5ms"], "cannot stand beside another order"),
    (["--off", "read_latency", "--on", "read_latency"], "cannot stand beside another order"),
    (["--max-wal-bytes-per-s", "1kB"], "is out of range"),
    (["--max-wal-bytes-per-s", "5"], "is not a size"),
    (["--no-limit", "--max-rows-per-s", "5"], "lifts limits"),
    (["--workers", "0"], "0 is not in the range"),
    (["--max-rows-per-s", "0"], "out of range"),
    (["--max-rows-per-s", "inf"], "out of range"),
    (["--max-rows-per-s", "nan"], "out of range"),
    (["--reason", "because"], "--reason of what"),
]


def test_orders_that_make_no_sense_are_refused_and_change_nothing(backfill: Cli, running_job: FreshDatabase) -> None:
    for options, told in REFUSED:
        good = [] if "--reason" in options or "--workers" in options else ["--workers", "2"]
        refused = backfill("pace", "cents", *good, *options)
        assert refused.code == 2, options
        assert told in refused.err
    assert stored(running_job) == {}


def test_orders_that_nobody_follows_say_so(backfill: Cli, running_job: FreshDatabase) -> None:
    running_job.sql("DELETE FROM backfill.worker")
    assert "nobody works on it now" in backfill("pace", "cents", "--workers", "1").err
    running_job.sql("UPDATE backfill.job SET state = 'done'")
    assert "but it is done" in backfill("pace", "cents", "--workers", "2").err


# -- words ------------------------------------------------------------------------------------------------------------

STATUS = JobStatus(
    job="j", state=JobState.RUNNING, mode=Mode.UPDATE, phase="move", source="s", target="s", rows_done=8_100_000,
    rows_estimated=19_700_000, progress=0.41, rows_per_s=3100, eta_s=7200, workers=2, spans_total=8, spans_done=3,
    spans_running=2, bytes_done=0, chunks=9, limit_rows_per_s=None, waiting=None, waits={}, retries=0,
    created_at=None, started_at=None, finished_at=None, error_code=None, error_message=None, error_hint=None,  # type: ignore[arg-type]
    resumable=False, pace_valid=True, stage="steady",
)  # fmt: skip
LINE = (
    "running 41 % 8.10 M of 19.7 M rows, 3,100 rows/s (limit 3,200 by read_latency 6.1ms of 5ms), 2 h left, 2 workers"
)


def test_one_line_says_why_it_is_slow() -> None:
    slowed = replace(STATUS, limit_now_rows_per_s=3200, leads="read_latency", pace_reason="read_latency 6.1ms of 5ms")
    assert one_line(slowed) == LINE
    assert one_line(replace(slowed, waiting="read_latency")) == LINE, "what the workers wait for is said already"
    assert one_line(replace(slowed, waiting="a lock")) == f"{LINE}; waiting for: a lock"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"limit_now_rows_per_s": 3200.0}, "limit 3,200"),
        ({"limit_now_rows_per_s": 600.0, "stage": "slow start"}, "limit 600 by slow start"),
        (
            {"limit_now_rows_per_s": 2e4, "leads": "max_rows_per_s", "pace_reason": "max_rows_per_s 20,000"},
            "limit 20.0 k by max_rows_per_s",
        ),
        ({"limit_now_rows_per_s": 600.0, "held_by": "window"}, ""),
    ],
)
def test_a_limit_is_named_with_what_it_comes_from(changes: dict[str, Any], said: str) -> None:
    assert limit_words(replace(STATUS, **changes)) == said


def test_a_job_that_will_be_late_says_so() -> None:
    assert ", late: finish_by is missed by 3 h" in one_line(replace(STATUS, deadline={"late_by_s": 10800.0}))
    assert one_line(replace(STATUS, deadline={"late_by_s": None})).endswith("late: finish_by is missed")


@pytest.mark.parametrize(
    ("held_by", "signals", "advice"),
    [
        ("read_latency", [signal("read_latency", 1.8)], "--off read_latency"),
        ("read_latency@target", [signal("read_latency@target", 1.8)], "--off read_latency "),
        ("read_latency", [signal("read_latency", 1.8, detail="not answered yet")], "pg_blocking_pids()"),
        ("queue", [signal("read_latency", 1.8, detail="not answered yet"), signal("queue", 9.0)], "--off queue"),
        ("window", [signal("read_latency", 1.8, detail="not answered yet")], "pace.windows"),
    ],
)
def test_nobody_is_told_to_turn_a_probe_off_that_waits_itself(
    held_by: str, signals: list[dict[str, Any]], advice: str
) -> None:
    told = what_next(replace(STATUS, held_by=held_by, signals=tuple(signals)))
    assert advice in told
    assert ("--off" in told) == ("--off" in advice)


def test_a_pause_is_told_as_its_operator_said_it() -> None:
    assert reason(replace(STATUS, state=JobState.PAUSED, waiting="disk", held_by="window")) == "disk"


def test_details_tell_orders_and_growth() -> None:
    status = replace(
        STATUS, growth={"ratio": 0.124, "max": 0.2}, orders=PaceOrders(signals={"read_latency": SignalOrder(off=True)})
    )
    details = dict(pace_block(status, lambda _: "s"))
    assert (details["growth"], details["ordered"], details["limit"]) == ("12.4% of 20%", "read_latency off", "none")
