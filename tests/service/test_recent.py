"""The last minutes of a job, without a question to any database."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.clock import ManualClock
from engine.ledger.records import JobStatus
from engine.model import JobState, Mode
from engine.service.recent import EVERY_S, KEPT_S, Recent
from tests.support.daemon import config_of, running_daemon
from tests.support.databases import FreshDatabase
from tests.support.page import cents, open_shop, submit

READ = {"name": "read_latency@source", "value": 0.003, "target": 0.005, "unit": "s"}
QUEUE = {"name": "mail_queue", "value": 12.0, "target": None, "unit": "count"}


def status(rows_per_s: float = 1.0) -> JobStatus:
    """A job that runs."""
    shown: dict[str, Any] = dict.fromkeys(JobStatus.__dataclass_fields__)
    shown |= {"job": "cents", "state": JobState.RUNNING, "mode": Mode.UPDATE, "signals": (READ, QUEUE)}
    return JobStatus(**shown | {"rows_per_s": rows_per_s, "limit_now_rows_per_s": 50.0})


async def test_ten_minutes_are_kept_and_then_nothing() -> None:
    clock, now = ManualClock(), [status()]
    past = Recent(lambda: [("main", now[0])], clock)
    for number in range(400):
        now[0] = replace(now[0], rows_per_s=float(number))
        past.look()
        await clock.advance(EVERY_S)
    kept = [moment.rows_per_s for moment in past.of("main", "cents")]
    assert kept[-1] == 399.0
    assert len(kept) == KEPT_S / EVERY_S + 1
    assert past.of("other", "cents") == []
    await clock.advance(KEPT_S)
    past.look()  # the same status still: nobody has looked since
    assert past.of("main", "cents") == []
    assert not past._points


def test_a_moment_tells_rate_and_limit_and_how_long_others_waited() -> None:
    past = Recent(lambda: [("main", status()), ("main", None)], ManualClock())
    past.look()
    [moment] = past.of("main", "cents")
    assert (moment.rows_per_s, moment.limit_rows_per_s, moment.held_by) == (1.0, 50.0, None)
    assert [(one.name, one.value, one.target) for one in moment.signals] == [("read_latency@source", 0.003, 0.005)]


async def test_a_job_that_another_daemon_works_has_no_past_here(database: FreshDatabase) -> None:
    open_shop(database, 10)
    idle = {"main": {"dsn": database.dsn, "tables": ["*.*"]}}
    async with running_daemon(config_of(database, connections=idle)) as daemon:
        await submit(daemon.client, cents())
        answer = await daemon.client.get("/v1/jobs/orders-cents/recent")
        assert (answer.status_code, answer.json()["moments"]) == (200, [])
