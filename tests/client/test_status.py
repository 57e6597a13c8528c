"""A job comes out of a daemon's answer as the ledger told of it."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime

from engine.cli.jobs import pace_patch, status_of
from engine.ledger.orders import ALL_ORDERS, PaceOrders, SignalOrder
from engine.ledger.records import JobStatus
from engine.model import JobState, Mode
from engine.wire import shapes

WHEN = datetime(2026, 3, 4, 21, 58, 2, 123456, tzinfo=UTC)
FULL = JobStatus(
    job="cents", state=JobState.FAILED, mode=Mode.COPY, phase="sweep", source="a public.t", target="b public.t",
    rows_done=7, rows_estimated=10.0, progress=0.7, rows_per_s=3.5, eta_s=1.5, workers=2, spans_total=4, spans_done=1,
    spans_running=2, bytes_done=700, chunks=3, limit_rows_per_s=5000.0, waiting="older transactions",
    waits={"commit_latency": 1.5}, retries=1, created_at=WHEN, started_at=WHEN, finished_at=WHEN,
    error_code="bad_row", error_message="a row", error_hint="mend it", resumable=True, max_rows_per_s=5000.0,
    limit_now_rows_per_s=400.0, pressure=0.5, stage="held", leads="commit_latency", held_by="commit_latency",
    pace_reason="commit_latency 31ms > 20ms", pace_since=WHEN.isoformat(), chunk_target_s=0.25, workers_allowed=1,
    signals=({"name": "commit_latency", "unit": "s", "value": 0.031, "target": 0.02, "max": None, "age_s": 0.5, "detail": "x"},),
    deadline={"late_by_s": 60.0}, growth={"ratio": 0.1, "max": 0.2}, pacer="host:1", pace_valid=True, pace_age_s=1.25,
    orders=PaceOrders(5000.0, None, 2, {"lock_waits": SignalOrder(off=True)}), quarantined=1, verified=False,
    verification={"outcome": "mismatch", "rows": 7, "started_at": "2026-03-04T21:58:02+00:00"},
)  # fmt: skip


def test_nothing_that_commands_show_is_lost_on_the_way() -> None:
    for status in (FULL, JobStatus.from_json(FULL.as_json())):
        shown = shapes.Job.model_validate(status.as_json() | {"connection": "main", "revision": "7"})
        back = status_of(shapes.Job.model_validate_json(shown.model_dump_json()))
        assert back.as_json() == FULL.as_json()
        not_told = {
            "number",
            "revision",
            "pace_since",
            "pace_age_s",
            "signals",
            "verification",
        }  # or in another form, or a choice of it
        for field in fields(JobStatus):
            if field.name not in not_told:
                assert getattr(back, field.name) == getattr(FULL, field.name), field.name


def test_orders_are_the_same_as_a_merge_patch() -> None:
    change = PaceOrders(workers=2, signals={"lock_waits": SignalOrder(off=True)})
    assert pace_patch(change, ()) == {"workers": 2, "signals": {"lock_waits": {"off": True}}}
    assert pace_patch(PaceOrders(), ALL_ORDERS) == dict.fromkeys(ALL_ORDERS)
    reset = ("max_rows_per_s", "signals.lock_waits", "signals.read_latency")
    assert pace_patch(change, reset) == {
        "max_rows_per_s": None,
        "signals": {"lock_waits": {"off": True}, "read_latency": None},
        "workers": 2,
    }
