"""Metrics: what one process counts and shows, and the server that Prometheus scrapes."""

from __future__ import annotations

import asyncio
import gzip
import math
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from engine.cli.metrics import MetricsOptions, Observer
from engine.cli.terminal import Terminal
from engine.clock import ManualClock
from engine.errors import UsageError
from engine.events import (
    ChunkCancelled,
    ChunkCommitted,
    ChunkFound,
    ChunkRetried,
    Draining,
    Emit,
    Event,
    JobOpened,
    LeaseLost,
    LeasesRenewed,
    PaceChanged,
    RowQuarantined,
    SignalRead,
    SpanClaimed,
    WalWritten,
    WorkersWaited,
    ignore,
)
from engine.fleet import reporter
from engine.ledger.records import JobStatus
from engine.model import JobState, Mode, Observation, Phase, Side
from engine.telemetry import catalogue, exposition
from engine.telemetry.catalogue import METRICS, Kind, Metric, Owner
from engine.telemetry.exposition import Exposition, parse_address
from engine.telemetry.gauges import MOST_REPORTED
from engine.telemetry.metrics import MOST_JOBS, MOST_VALUES, Metrics
from engine.telemetry.report import JobReport
from engine.watch.vitals import Vitals

CONTRACT = [
    "rows_total",
    "bytes_total",
    "chunks_total",
    "chunk_seconds",
    "chunk_rows",
    "limit_rows_per_second",
    "pressure_ratio",
    "held_seconds_total",
    "signal_value",
    "signal_target",
    "signal_age_seconds",
    "probe_seconds",
    "wal_bytes_total",
    "table_growth_ratio",
    "progress_ratio",
    "rows_remaining",
    "eta_seconds",
    "spans",
    "workers",
    "lease_renewals_total",
    "leases_lost_total",
    "resumes_total",
    "retries_total",
    "quarantined_rows_total",
    "verify_rows_total",
    "verify_mismatched_rows_total",
    "job_state",
    "build_info",
]
"""Names that users' dashboards and alerts know."""

OPENED = JobOpened(job="j", mode=Mode.COPY, source="a", target="b", resumed=False, rows_estimated=1000, spans=4)
CHUNK = ChunkCommitted(
    job="j",
    worker="w1",
    span=3,
    epoch=1,
    phase=Phase.MOVE,
    observation=Observation(rows=10, scanned=20, bytes=300, server_s=0.05, commit_s=0.02),
    admit_s=0.5,
    read_s=0.001,
    move_s=0.06,
    next_rows=30,
)
RETRIED = ChunkRetried(job="j", worker="w1", span=3, epoch=1, sqlstate="55P03", action="retry", delay_s=0.1)
STATUS = JobStatus(
    job="j",
    state=JobState.RUNNING,
    mode=Mode.COPY,
    phase="move",
    source="a",
    target="b",
    rows_done=400,
    rows_estimated=1000.0,
    progress=0.4,
    rows_per_s=50.0,
    eta_s=12.0,
    workers=2,
    spans_total=4,
    spans_done=1,
    spans_running=2,
    bytes_done=9,
    chunks=5,
    limit_rows_per_s=None,
    waiting="window",
    waits={},
    retries=0,
    created_at=None,
    started_at=None,
    finished_at=None,
    error_code=None,
    error_message=None,
    error_hint=None,
    resumable=False,
    limit_now_rows_per_s=80.0,
    pressure=0.7,
    held_by="window",
    signals=(
        {"name": "read_latency", "value": 0.004, "target": 0.005, "max": None, "age_s": 0.5},
        {"name": "replication_lag", "value": 1.0, "target": 5.0, "max": 30.0, "age_s": 0.25},
    ),
    deadline={"late_by_s": 60.0},
    growth={"ratio": 0.1, "max": 0.2},
    pace_valid=True,
    pace_age_s=0.5,
    quarantined=3,
    verified=True,
)
VITALS = Vitals(
    wal_bytes=1e9,
    read_bytes=1e8,
    written_bytes=1e7,
    checkpoints={"timed": 5, "requested": 1},
    transactions={"committed": 1000, "rolled_back": 2},
    sessions={"active": 1, "idle": 2, "idle_in_transaction": 0},
    oldest_transaction_s=3,
    lock_waiters=0,
    longest_lock_wait_s=0,
    standbys=1,
    replication_lag_s=0.1,
    replication_lag_bytes=1000,
    table_bytes=1e6,
    index_bytes=1e5,
    dead_rows=7,
    live_rows=1e4,
    vacuums_running=1,
)
VITALS_LATER = replace(
    VITALS,
    wal_bytes=1e9 + 30,
    read_bytes=1e8 + 20,
    written_bytes=1e7 + 10,
    checkpoints={"timed": 6, "requested": 1},
    transactions={"committed": 1100, "rolled_back": 5},
)
EVENTS: tuple[Event, ...] = (
    OPENED,
    CHUNK,
    RETRIED,
    LeaseLost(job="j", worker="w1", span=3, epoch=1),
    SpanClaimed(job="j", worker="w1", span=3, epoch=1),
    LeasesRenewed(job="j", spans=2),
    WorkersWaited(job="j", seconds={"read_latency": 1.5}),
    RowQuarantined(job="j", worker="w1", span=3, epoch=1, sqlstate="22012"),
    SignalRead(job="j", signal="read_latency", unit="s", value=0.004),
    WalWritten(job="j", bytes=100.0, is_exact=True),
    ChunkCancelled(job="j", reason="somebody waits"),
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def full(metrics: Metrics) -> Metrics:
    """A process that has everything to show."""
    for event in EVENTS:
        metrics(event)
    metrics.report([JobReport(STATUS, 1.5)])
    metrics.vitals("j", Side.SOURCE, VITALS)
    metrics.vitals("j", Side.TARGET, VITALS)
    return metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Everything that a scrape gets: (name, sorted labels) -> value.  Fails where a series comes twice."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in parse_text(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One series of job ``j``, or of no job."""
    seen = samples(metrics)
    with_job = tuple(sorted({"job": "j", **labels}.items()))
    return seen.get((f"backfill_{name}", with_job), seen.get((f"backfill_{name}", tuple(sorted(labels.items())))))


def names(metrics: Metrics) -> set[str]:
    return {name for name, _ in samples(metrics)}


# -- the catalogue ----------------------------------------------------------------------------------------------------


def sample_name(metric: Metric) -> str:
    return metric.full_name + ("_bucket" if metric.kind is Kind.HISTOGRAM else "")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_of_the_catalogue_is_exposed_with_its_labels_and_its_type(metric: Metric, full: Metrics) -> None:
    families = {family.name: family for family in parse_text(generate_latest(full.registry).decode())}
    name = metric.full_name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.full_name
    family = families[name]
    # In the plain format an info is a gauge.
    assert family.type == (Kind.GAUGE if metric.kind is Kind.INFO else metric.kind).value
    assert family.documentation == metric.help
    expected = {*metric.labels} | ({"le"} if metric.kind is Kind.HISTOGRAM else set())
    of_it = [sample for sample in family.samples if sample.name == sample_name(metric)]
    assert of_it and all({*sample.labels} == expected for sample in of_it)


def test_nothing_is_exposed_that_is_not_in_the_catalogue(full: Metrics) -> None:
    parts = {metric.full_name + end for metric in METRICS for end in ("", "_bucket", "_sum", "_count")}
    ours = {name for name in names(full) if name.startswith("backfill")}
    assert ours <= parts
    assert {name.partition("_")[0] for name in names(full) - ours} == {"process", "python"}


def test_openmetrics_is_valid_and_says_the_same(full: Metrics) -> None:
    families = list(parse_openmetrics(generate_openmetrics(full.registry).decode()))
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("backfill")
    }
    assert found == {key: number for key, number in samples(full).items() if key[0].startswith("backfill")}
    assert {family.name: family.type for family in families}["backfill_build"] == "info"


def test_the_names_of_the_contract_are_all_there() -> None:
    assert set(CONTRACT) <= {metric.name for metric in METRICS}


def test_memory_and_cpu_of_the_process_are_there(metrics: Metrics) -> None:
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "python_info"} <= names(metrics)


def test_the_documents_table_is_the_catalogues() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert catalogue.tables().strip() in text, "python -m engine.telemetry.catalogue prints what belongs there"


def test_no_two_metrics_share_a_name_and_every_one_says_what_it_is() -> None:
    assert len({metric.name.removesuffix("_total") for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.help.endswith(".") and len(metric.help) > 10
        assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total")
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)


# -- counting ---------------------------------------------------------------------------------------------------------


def test_a_jobs_series_are_there_with_zero_before_anything_happened(metrics: Metrics) -> None:
    metrics(OPENED)
    seen = samples(metrics)
    assert all(number == 0 for (name, labels), number in seen.items() if ("job", "j") in labels)
    counted = {m.name for m in METRICS if m.owner is not Owner.REPORTER and m.labels[:1] == ("job",)}
    by_probes = {"probe_seconds", "probe_failures_total"}  # which signals there are is known with their first reading
    by_vitals = {metric.name for metric in catalogue.DATABASES}
    when_known = {"wal_bytes_total"}
    there = {re.sub("_(bucket|sum|count)$", "", name).removeprefix("backfill_") for name, _ in seen}
    assert counted - by_probes - by_vitals - when_known <= there
    for outcome in ("committed", "failed", "lost"):
        assert value(metrics, "chunks_total", outcome=outcome) == 0
    assert value(metrics, "retries_total", sqlstate="55P03") == 0
    assert value(metrics, "held_seconds_total", reason="window") == 0


def test_wal_of_which_nobody_can_tell_is_absent_and_not_0(metrics: Metrics) -> None:
    metrics(OPENED)
    assert value(metrics, "wal_bytes_total") is None
    metrics(WalWritten(job="j", bytes=0.0, is_exact=True))
    assert value(metrics, "wal_bytes_total") == 0


def test_a_job_that_is_begun_anew_in_another_mode_has_that_modes_series_with_0(metrics: Metrics) -> None:
    metrics(OPENED)
    metrics(CHUNK)
    metrics(replace(OPENED, mode=Mode.UPDATE))
    for name in ("rows_total", "bytes_total"):
        assert value(metrics, name, mode="update") == 0
    metrics(CHUNK)
    assert [value(metrics, "rows_total", mode=mode) for mode in ("copy", "update")] == [10, 10]


def test_who_only_watches_a_job_does_not_resume_it(metrics: Metrics) -> None:
    metrics(replace(OPENED, resumed=True, attached=True))
    assert value(metrics, "resumes_total") == 0
    metrics(replace(OPENED, resumed=True))
    assert value(metrics, "resumes_total") == 1


@pytest.mark.parametrize("name", ["read_latency", "read_latency@source", "commit_latency@target"])
def test_every_latency_that_is_probed_has_a_histogram(metrics: Metrics, name: str) -> None:
    metrics(OPENED)
    metrics(SignalRead(job="j", signal=name, unit="s", value=0.004))
    assert value(metrics, "probe_seconds_sum", signal=name) == 0.004


@pytest.mark.parametrize("name", ["lock_waits@target", "replication_lag", "read_latency_of_ours"])
def test_what_nobody_felt_as_a_latency_has_none(metrics: Metrics, name: str) -> None:
    metrics(OPENED)
    metrics(SignalRead(job="j", signal=name, unit="s", value=0.004))
    assert value(metrics, "probe_seconds_count", signal=name) is None


def test_a_signals_series_are_there_with_its_first_reading_and_who_decides_the_pace_with_the_decision(
    metrics: Metrics,
) -> None:
    metrics(OPENED)
    metrics(SignalRead(job="j", signal="replication_lag", unit="s", value=1.0))
    metrics(
        PaceChanged(job="j", stage="held", leads="disk_of_ours", reason="disk_of_ours 3 > 1", limit_rows_per_s=None)
    )
    assert value(metrics, "probe_failures_total", signal="replication_lag") == 0
    assert value(metrics, "held_seconds_total", reason="replication_lag") == 0
    assert value(metrics, "held_seconds_total", reason="disk_of_ours") == 0


def test_a_chunk_counts_its_rows_bytes_and_seconds(metrics: Metrics) -> None:
    metrics(OPENED)
    metrics(CHUNK)
    assert value(metrics, "rows_total", mode="copy") == 10
    assert value(metrics, "bytes_total", mode="copy") == 300
    assert value(metrics, "chunks_total", outcome="committed") == 1
    assert value(metrics, "chunk_rows_sum") == 20
    by_phase = {"admit": 0.5, "read": 0.001, "write": 0.04, "commit": 0.02}
    for phase, seconds in by_phase.items():
        assert value(metrics, "chunk_seconds_sum", phase=phase) == pytest.approx(seconds)
        assert value(metrics, "chunk_seconds_count", phase=phase) == 1
    assert value(metrics, "chunk_seconds_count", phase="transform") == 0


def test_only_the_move_writes_rows_and_only_a_verification_compares_them(metrics: Metrics) -> None:
    metrics(OPENED)
    for phase in Phase:
        metrics(replace(CHUNK, phase=phase))
    metrics(replace(CHUNK, phase=Phase.CONFIRM, observation=replace(CHUNK.observation, differing=4)))
    assert value(metrics, "rows_total", mode="copy") == 10
    assert value(metrics, "chunks_total", outcome="committed") == 2  # the move's, and the sweep's
    assert value(metrics, "verify_rows_total") == 10
    assert value(metrics, "verify_mismatched_rows_total") == 4


def test_a_chunk_through_a_transform_counts_what_that_did(metrics: Metrics) -> None:
    metrics(OPENED)
    seen = replace(CHUNK.observation, transform_s=0.01, changed=3, set_aside=(("BF010", 2),))
    metrics(replace(CHUNK, observation=seen, move_s=0.05))
    metrics(RowQuarantined(job="j", worker="w1", span=3, epoch=1, sqlstate="BF010", rows=2, in_chunk=True))
    assert value(metrics, "chunk_seconds_sum", phase="transform") == pytest.approx(0.01)
    assert value(metrics, "chunk_seconds_sum", phase="write") == pytest.approx(0.02), "without transform and commit"
    assert value(metrics, "changed_rows_total") == 3
    assert value(metrics, "quarantined_rows_total") == 2
    assert value(metrics, "chunks_total", outcome="committed") == 1, "its rows are no step of their own"


def test_a_chunk_that_turns_out_to_be_committed_counts_with_its_rows(metrics: Metrics) -> None:
    metrics(OPENED)
    for phase in Phase:
        metrics(ChunkFound(job="j", worker="w1", span=3, epoch=1, phase=phase, rows=7))
    assert value(metrics, "rows_total", mode="copy") == 7
    assert value(metrics, "chunks_total", outcome="committed") == 2  # the move's, and the sweep's
    assert value(metrics, "verify_rows_total") == 0


def test_retries_are_told_apart_by_sqlstate_and_those_between_spans_are_no_failed_chunks(metrics: Metrics) -> None:
    metrics(OPENED)
    metrics(RETRIED)
    metrics(replace(RETRIED, sqlstate=""))
    metrics(replace(RETRIED, sqlstate="57P03", span=0))
    assert value(metrics, "retries_total", sqlstate="55P03") == 1
    assert value(metrics, "retries_total", sqlstate="lost_connection") == 1
    assert value(metrics, "retries_total", sqlstate="57P03") == 1
    assert value(metrics, "chunks_total", outcome="failed") == 2


def test_what_happened_is_counted_where_it_belongs(metrics: Metrics) -> None:
    for event in EVENTS:
        metrics(event)
    metrics(replace(OPENED, resumed=True))
    metrics(SpanClaimed(job="j", worker="w1", span=3, epoch=1, stolen=True))
    metrics(SpanClaimed(job="j", worker="w1", span=3, epoch=2, taken_over=True))
    metrics(SignalRead(job="j", signal="read_latency", unit="s", value=None, error="no answer"))
    metrics(SignalRead(job="j", signal="lock_waits", unit="s", value=2.0))
    assert value(metrics, "chunks_total", outcome="lost") == 1
    assert value(metrics, "leases_lost_total") == 1
    assert [value(metrics, "spans_claimed_total", outcome=o) for o in ("claimed", "stolen", "taken_over")] == [1, 1, 1]
    assert value(metrics, "lease_renewals_total") == 2
    assert value(metrics, "held_seconds_total", reason="read_latency") == 1.5
    assert value(metrics, "quarantined_rows_total") == 1
    assert value(metrics, "chunks_total", outcome="committed") == 2  # the chunk, and the step over the bad row
    assert value(metrics, "probe_seconds_count", signal="read_latency") == 1
    assert value(metrics, "probe_seconds_count", signal="lock_waits") is None  # no latency that anybody felt
    assert value(metrics, "probe_failures_total", signal="read_latency") == 1
    assert value(metrics, "wal_bytes_total") == 100
    assert value(metrics, "chunks_cancelled_total") == 1
    assert value(metrics, "resumes_total") == 1


def test_events_of_jobs_that_were_not_opened_here_count_nowhere(metrics: Metrics) -> None:
    metrics(CHUNK)
    metrics(Draining(job="", reason="interrupted"))
    assert not [labels for _, labels in samples(metrics) if dict(labels).get("job") is not None]


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_labels_that_come_from_outside_are_bounded(metrics: Metrics) -> None:
    metrics(OPENED)
    for number in range(3 * MOST_VALUES):
        metrics(replace(RETRIED, sqlstate=f"X{number:04}"))
        metrics(WorkersWaited(job="j", seconds={f"reason {number}": 1.0}))
        metrics(SignalRead(job="j", signal=f"signal_{number}", unit="s", value=None))
    for name in ("retries_total", "held_seconds_total", "probe_failures_total"):
        seen = {labels: n for (found, labels), n in samples(metrics).items() if found == f"backfill_{name}"}
        assert len(seen) <= MOST_VALUES + 1
    assert sum(n for (name, _), n in samples(metrics).items() if name == "backfill_retries_total") == 3 * MOST_VALUES
    assert value(metrics, "retries_total", sqlstate="other") > 0


def test_the_job_that_was_opened_longest_ago_is_forgotten(metrics: Metrics) -> None:
    for number in range(MOST_JOBS):
        metrics(replace(OPENED, job=f"j{number}"))
    metrics(replace(OPENED, job="j0", resumed=True))
    metrics(replace(OPENED, job="one more"))
    jobs = {dict(labels).get("job") for _, labels in samples(metrics)} - {None}
    assert len(jobs) == MOST_JOBS
    assert "j1" not in jobs and {"j0", "j2", "one more"} <= jobs
    metrics(replace(CHUNK, job="j1"))  # of a job that is no longer known
    metrics(replace(CHUNK, job="j0"))
    assert {dict(labels).get("job") for _, labels in samples(metrics)} - {None} == jobs


def test_a_report_is_bounded_and_a_job_that_comes_twice_does_not_spoil_the_scrape(metrics: Metrics) -> None:
    many = [JobReport(replace(STATUS, job=f"j{number}"), 0.0) for number in range(2 * MOST_REPORTED)]
    metrics.report([many[0], *many])
    assert len({labels for name, labels in samples(metrics) if name == "backfill_rows_done"}) == MOST_REPORTED - 1


# -- what was read ----------------------------------------------------------------------------------------------------


def test_a_report_becomes_gauges(metrics: Metrics) -> None:
    metrics.report([JobReport(STATUS, 1.5)])
    expected = {
        "rows_done": 400, "rows_remaining": 600, "progress_ratio": 0.4, "rows_per_second": 50, "eta_seconds": 12,
        "since_progress_seconds": 1.5, "workers": 2, "limit_rows_per_second": 80, "pressure_ratio": 0.7,
        "pacer_present": 1, "deadline_late_seconds": 60, "table_growth_ratio": 0.1, "table_growth_limit_ratio": 0.2,
        "rows_quarantined": 3, "job_verified": 1, "job_waiting": 0, "reporter": 1,
    }  # fmt: skip
    assert {name: value(metrics, name) for name in expected} == expected
    assert value(metrics, "job_held", reason="window") == 1
    assert value(metrics, "job_info", mode="copy", phase="move") == 1
    assert [value(metrics, "spans", state=state) for state in ("done", "running", "waiting")] == [1, 2, 1]
    assert {state: value(metrics, "job_state", state=state) for state in JobState} == {
        state: float(state is JobState.RUNNING) for state in JobState
    }
    assert value(metrics, "signal_value", signal="read_latency") == 0.004
    assert value(metrics, "signal_target", signal="read_latency") == 0.005
    assert value(metrics, "signal_max", signal="read_latency") is None
    assert value(metrics, "signal_max", signal="replication_lag") == 30
    assert value(metrics, "signal_age_seconds", signal="read_latency") == 1.0  # half a second, half a second ago


def test_a_signal_that_never_answered_is_infinitely_old(metrics: Metrics) -> None:
    unheard = {"name": "queue", "value": None, "target": 10, "max": None, "age_s": None}
    metrics.report([JobReport(replace(STATUS, signals=(unheard,)), 0.0)])
    assert value(metrics, "signal_age_seconds", signal="queue") == math.inf
    assert value(metrics, "signal_value", signal="queue") is None


def test_what_nobody_knows_is_absent(metrics: Metrics) -> None:
    nothing = {"eta_s": None, "pressure": None, "limit_now_rows_per_s": None, "held_by": None, "growth": None}
    status = replace(STATUS, **nothing, verified=None, signals=(), deadline=None, waiting=None, pace_valid=None)
    metrics.report([JobReport(status, 0.0)])
    absent = (
        "eta_seconds", "pressure_ratio", "limit_rows_per_second", "table_growth_ratio", "table_growth_limit_ratio",
        "job_verified", "job_held", "signal_value",
    )  # fmt: skip
    assert not names(metrics) & {f"backfill_{name}" for name in absent}
    assert value(metrics, "deadline_late_seconds") == 0
    assert value(metrics, "pacer_present") == 0


def test_a_job_that_ended_has_no_pace(metrics: Metrics) -> None:
    ended = replace(STATUS, state=JobState.DONE, phase="end", progress=1.0, held_by=None, waiting="as planned")
    metrics.report([JobReport(ended, 0.0)])
    assert value(metrics, "rows_remaining") == 0
    assert value(metrics, "job_waiting") == 0
    for name in ("pacer_present", "deadline_late_seconds", "limit_rows_per_second"):
        assert value(metrics, name) is None


@pytest.mark.parametrize(
    ("waiting", "changes", "waits"),
    [
        ("retry after 55P03", {}, True),
        ("older transactions to end: pid 7", {"state": JobState.PLANNED}, True),
        ("max_rows_per_s", {}, False),
        ("rate limit", {}, False),
        ("read_latency", {"leads": "read_latency"}, False),
        ("no pacer: at the minimum", {"pace_valid": False}, False),
        ("the weekend", {"state": JobState.PAUSED}, False),
    ],
)
def test_a_job_waits_when_neither_pace_nor_person_keeps_it(
    metrics: Metrics, waiting: str, changes: dict[str, Any], waits: bool
) -> None:
    metrics.report([JobReport(replace(STATUS, held_by=None, waiting=waiting, **changes), 0.0)])
    assert value(metrics, "job_waiting") == waits


def test_a_deadline_that_is_infinitely_far_gone_is_infinitely_late(metrics: Metrics) -> None:
    metrics.report([JobReport(replace(STATUS, deadline={"late_by_s": None}), 0.0)])
    assert value(metrics, "deadline_late_seconds") == float("inf")


def test_who_reports_no_longer_shows_no_job_at_once(full: Metrics) -> None:
    full.report(None)
    reported = {metric.full_name for metric in METRICS if metric.owner is Owner.REPORTER}
    assert not names(full) & reported
    assert "backfill_rows_done" not in generate_latest(full.registry).decode()  # not even its help
    assert value(full, "reporter") == 0
    assert not full.is_reporting


def test_a_report_is_shown_as_long_as_it_is_valid_whatever_the_reporter_is_busy_with() -> None:
    now = [100.0]
    metrics = Metrics(lambda: now[0])
    metrics.report([JobReport(STATUS, 0.0)], valid_s=6.0)
    now[0] = 105.9
    assert (value(metrics, "rows_done"), value(metrics, "reporter")) == (400, 1)
    now[0] = 106.0
    assert (value(metrics, "rows_done"), value(metrics, "reporter")) == (None, 0)
    assert not metrics.is_reporting
    metrics.report([JobReport(STATUS, 0.0)], valid_s=6.0)
    assert (value(metrics, "rows_done"), value(metrics, "reporter")) == (400, 1)


def test_a_ledger_that_tells_nonsense_spoils_no_scrape(metrics: Metrics) -> None:
    nonsense = (
        {"name": 'quote " and \n line', "value": 1, "age_s": "old"},
        {"name": "huge", "value": 10**400, "target": float("nan"), "max": True},
        {"name": "huge", "value": 2},
        {"name": ["no", "name"], "value": 3},
        {"value": 4},
        *({"name": f"s{number}", "value": number} for number in range(500)),
    )
    status = replace(STATUS, signals=nonsense, growth={"ratio": "much"}, pressure=float("nan"), held_by="x" * 1000)
    metrics.report([JobReport(status, 0.0)])
    seen = {dict(labels)["signal"]: n for (name, labels), n in samples(metrics).items() if "signal_value" in name}
    assert seen['quote " and \n line'] == 1
    assert "huge" not in seen and "backfill_signal_max" not in names(metrics)
    assert len(seen) < 50
    assert not {"backfill_table_growth_ratio", "backfill_pressure_ratio"} & names(metrics)
    assert list(parse_openmetrics(generate_openmetrics(metrics.registry).decode()))


def test_a_server_that_does_not_answer_is_down_and_nothing_else_is_told_of_it(full: Metrics) -> None:
    assert value(full, "database_up", side="source") == 1
    full.vitals("j", Side.SOURCE, None)
    assert value(full, "database_up", side="source") == 0
    assert [name for name, labels in samples(full) if ("side", "source") in labels] == ["backfill_database_up"]
    assert value(full, "database_live_rows", side="target") == 1e4
    full.forget_vitals("j")
    assert not [name for name in names(full) if name.startswith("backfill_database")]


def test_each_reading_of_a_server_has_its_metric(full: Metrics) -> None:
    expected = {
        "wal_bytes_total": 30, "read_bytes_total": 20, "written_bytes_total": 10, "oldest_transaction_seconds": 3,
        "lock_waiters": 0, "longest_lock_wait_seconds": 0, "standbys": 1, "replication_lag_seconds": 0.1,
        "replication_lag_bytes": 1000, "table_bytes": 1e6, "index_bytes": 1e5, "dead_rows": 7, "live_rows": 1e4,
        "vacuums_running": 1,
    }  # fmt: skip
    full.vitals("j", Side.SOURCE, VITALS_LATER)
    assert {name: value(full, f"database_{name}", side="source") for name in expected} == expected
    assert value(full, "database_checkpoints_total", side="source", reason="timed") == 1
    assert value(full, "database_transactions_total", side="source", outcome="rolled_back") == 3
    assert value(full, "database_sessions", side="source", state="idle") == 2


def test_a_servers_counters_begin_at_0_and_grow_as_its_own_do(full: Metrics) -> None:
    wal = ("database_wal_bytes_total", "target")
    assert value(full, wal[0], side=wal[1]) == 0
    full.vitals("j", Side.TARGET, replace(VITALS, wal_bytes=1e9 + 5))
    full.vitals("j", Side.TARGET, None)
    full.vitals("j", Side.TARGET, replace(VITALS, wal_bytes=None))
    assert value(full, wal[0], side=wal[1]) is None
    full.vitals("j", Side.TARGET, replace(VITALS, wal_bytes=1e9 + 7))  # what was written meanwhile is not lost
    assert value(full, wal[0], side=wal[1]) == 7
    assert value(full, wal[0], side="source") == 0


def test_a_failover_or_a_reset_of_statistics_takes_nothing_away_and_adds_nothing(full: Metrics) -> None:
    def counts() -> tuple[float | None, ...]:
        return (
            value(full, "database_wal_bytes_total", side="source"),
            value(full, "database_transactions_total", side="source", outcome="committed"),
            value(full, "database_transactions_total", side="source", outcome="rolled_back"),
        )

    full.vitals("j", Side.SOURCE, VITALS_LATER)
    assert counts() == (30, 100, 3)
    full.vitals("j", Side.SOURCE, replace(VITALS_LATER, wal_bytes=9e8, transactions={"committed": 0, "rolled_back": 5}))
    assert counts() == (30, 100, 3)
    full.vitals("j", Side.SOURCE, replace(VITALS_LATER, wal_bytes=9e8 + 1, transactions={"committed": 4}))
    assert counts() == (31, 104, None)


def test_what_a_server_did_while_another_process_led_is_that_ones_to_count(full: Metrics) -> None:
    full.vitals("j", Side.SOURCE, VITALS_LATER)
    full.vitals("other", Side.SOURCE, VITALS)
    full.forget_vitals("j")
    assert value(full, "database_wal_bytes_total", side="source") is None
    full.vitals("j", Side.SOURCE, replace(VITALS, wal_bytes=5e9))
    assert value(full, "database_wal_bytes_total", side="source") == 30
    full.vitals("j", Side.SOURCE, replace(VITALS, wal_bytes=5e9 + 2))
    assert value(full, "database_wal_bytes_total", side="source") == 32
    full.vitals("other", Side.SOURCE, VITALS_LATER)
    assert value(full, "database_wal_bytes_total", side="source", job="other") == 30


def test_of_a_job_that_is_forgotten_nothing_of_its_servers_is_kept(metrics: Metrics) -> None:
    for number in range(3 * MOST_JOBS):
        metrics(replace(OPENED, job=f"j{number}"))
        metrics.vitals(f"j{number}", Side.TARGET, VITALS)
        metrics.forget_vitals(f"j{number}")
    kept = metrics._snapshots
    assert {counter[1][0] for counter in kept._grown} == {f"j{2 * MOST_JOBS + number}" for number in range(MOST_JOBS)}
    assert not kept._last and not kept._servers


def test_what_a_server_does_not_tell_is_absent(metrics: Metrics) -> None:
    metrics.vitals("j", Side.TARGET, Vitals(lock_waiters=2))
    of_databases = {name for name in names(metrics) if name.startswith("backfill_database")}
    assert of_databases == {"backfill_database_up", "backfill_database_lock_waiters"}


# -- scrapes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(full: Metrics) -> Iterator[Exposition]:
    one = Exposition(full, "127.0.0.1:0")
    one.open()
    yield one
    one.close()


def get(url: str, **headers: str) -> Any:
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10)


def eventually(condition: Callable[[], bool]) -> None:
    """What the server does after its last byte, we cannot be told of."""
    waited = threading.Event()
    for _ in range(1000):
        if condition():
            return
        waited.wait(0.01)
    pytest.fail("waited in vain")


def test_a_scrape_gets_the_metrics_in_the_format_it_asks_for(served: Exposition) -> None:
    with get(served.url) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    assert 'backfill_rows_total{job="j",mode="copy"} 10.0' in text
    with get(served.url, Accept="application/openmetrics-text; version=1.0.0", **{"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert list(parse_openmetrics(gzip.decompress(answer.read()).decode()))


def test_scrapes_are_counted_and_nothing_else(served: Exposition) -> None:
    later = served.from_now_on()
    assert (served.scrapes, later()) == (0, False)
    get(served.url).close()
    eventually(lambda: served.scrapes == 1)
    assert later()
    assert not served.from_now_on()()
    get(served.url.replace("/metrics", "/favicon.ico")).close()
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(urllib.request.Request(served.url, method="POST", data=b""), timeout=10)
    assert served.scrapes == 1


def test_a_client_that_says_nothing_keeps_nobody_waiting(served: Exposition) -> None:
    with closing(socket.create_connection(("127.0.0.1", served.port))):
        get(served.url).close()


def clients_of(served: Exposition) -> int:
    assert served._server is not None
    return len(served._server._clients)


def test_a_client_that_does_not_read_is_cut_off_and_leaves_no_word(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert 0 < exposition.CLIENT_TIMEOUT_S <= 30
    monkeypatch.setattr(exposition, "CLIENT_TIMEOUT_S", 0.2)
    metrics.report([JobReport(replace(STATUS, job=f"j{number}" * 300), 0.0) for number in range(MOST_REPORTED)])
    served = Exposition(metrics, "127.0.0.1:0")
    served.open()
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        eventually(lambda: clients_of(served) == 1)
        eventually(lambda: clients_of(served) == 0)
    assert served.scrapes == 0
    served.close()
    assert capfd.readouterr() == ("", "")


def test_a_client_that_says_a_byte_now_and_then_is_cut_off_when_his_time_is_over(
    served: Exposition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "CLIENT_TIMEOUT_S", 0.3)
    with pytest.raises(OSError), closing(socket.create_connection(("127.0.0.1", served.port), timeout=0.05)) as slow:
        for _ in range(200):
            slow.sendall(b"G")
            try:
                assert slow.recv(1) == b""  # or it is reset at once: the server has not read the last byte
                raise ConnectionResetError
            except TimeoutError:
                continue
        pytest.fail("he is served to this day")
    eventually(lambda: clients_of(served) == 0)


def test_when_all_places_are_taken_the_one_who_came_first_gives_up_his(served: Exposition) -> None:
    def silent() -> socket.socket:
        return socket.create_connection(("127.0.0.1", served.port), timeout=10)

    slow = [silent() for _ in range(exposition.MOST_CLIENTS)]
    eventually(lambda: clients_of(served) == exposition.MOST_CLIENTS)
    get(served.url).close()
    assert slow[0].recv(1) == b""
    eventually(lambda: clients_of(served) == exposition.MOST_CLIENTS - 1)  # the scrape has left, too
    slow += [silent(), silent()]
    assert slow[1].recv(1) == b""
    slow[2].settimeout(0.05)
    with pytest.raises(TimeoutError):
        slow[2].recv(1)
    assert clients_of(served) == exposition.MOST_CLIENTS
    for one in slow:
        one.close()
    eventually(lambda: clients_of(served) == 0)


def test_a_client_for_whom_there_is_no_thread_takes_no_place(
    served: Exposition, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        for _ in range(exposition.MOST_CLIENTS + 1):
            with closing(socket.create_connection(("127.0.0.1", served.port), timeout=10)) as refused:
                assert refused.recv(1) == b""
    assert clients_of(served) == 0
    get(served.url).close()


def test_counters_never_go_down_while_they_are_scraped(full: Metrics, served: Exposition) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            full(CHUNK)
            full(RETRIED)
            full.report([JobReport(STATUS, 0.0)])
            full.vitals("j", Side.SOURCE, VITALS)
            full.forget_vitals("j")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        before: dict[Any, float] = {}
        for _ in range(20):
            with get(served.url) as answer:
                families = list(parse_text(answer.read().decode()))
            for family in families:
                for sample in family.samples:
                    if sample.name.startswith("backfill") and family.type in ("counter", "histogram"):
                        key = sample.name, tuple(sorted(sample.labels.items()))
                        assert sample.value >= before.get(key, 0.0), key
                        before[key] = sample.value
    finally:
        stop.set()
        thread.join()


def test_a_closed_one_is_gone_and_its_port_is_free(metrics: Metrics) -> None:
    served = Exposition(metrics, "127.0.0.1:0")
    served.open()
    port = served.port
    served.close()
    served.close()
    again = Exposition(metrics, f"127.0.0.1:{port}")
    again.open()
    again.close()


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9187", "127.0.0.1", 9187),
        ("localhost:0", "localhost", 0),
        ("[::1]:9187", "::1", 9187),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
    ],
)
def test_addresses_that_are_meant(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "9187", ":9187", "host", "host:", "host:x", "host:-1", "host:65536", "::1:9187", "[]:1", "h:²"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_address(text)
    assert refused.value.hint


def test_an_ipv6_address_is_served(metrics: Metrics) -> None:
    served = Exposition(metrics, "[::1]:0")
    try:
        served.open()
    except UsageError:
        with pytest.raises(OSError):
            socket.socket(socket.AF_INET6, socket.SOCK_STREAM).bind(("::1", 0))
        return  # this machine has none
    assert served.url.startswith("http://[::1]:")
    get(served.url).close()
    served.close()


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("192.0.2.1:9187", "cannot assign requested address"),
        (f"{'a' * 70}.invalid:9187", "no such host"),
    ],
)
def test_what_cannot_be_listened_on_is_said_with_what_to_do(metrics: Metrics, listen: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        Exposition(metrics, listen).open()
    assert refused.value.hint


def test_an_address_in_use_is_said(metrics: Metrics, served: Exposition) -> None:
    with pytest.raises(UsageError, match="address already in use") as refused:
        Exposition(metrics, f"127.0.0.1:{served.port}").open()
    assert "another process listens there" in refused.value.hint


# -- beside a job -----------------------------------------------------------------------------------------------------


def test_a_count_that_fails_is_said_once_and_never_reaches_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Metrics, "__call__", lambda *_: 1 / 0)
    with closing(Observer(Terminal(), MetricsOptions("127.0.0.1:0"))) as observer:
        observer(OPENED)
        observer(CHUNK)
    said = capsys.readouterr().err
    assert said.count("metrics are missing") == 1
    assert "ZeroDivisionError" in said


class Silent:
    """Watches nothing."""

    def __init__(self, *_: object) -> None: ...

    async def run(self) -> None: ...


async def test_nobody_is_served_any_more_when_the_report_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape in between would see a job of which nobody knows anything, for the last time."""
    urls: list[str] = []
    served_at_the_end: list[bool] = []

    class Reporting:
        def __init__(self, ledger: Any, show: Callable[..., None], emit: Emit) -> None:
            self.show = show

        async def run(self) -> None:
            self.show([JobReport(STATUS, 0.0)])
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    get(urls[0]).close()
                    served_at_the_end.append(True)
                except OSError:
                    served_at_the_end.append(False)

    monkeypatch.setattr("engine.fleet.observing.Reporter", Reporting)
    monkeypatch.setattr("engine.fleet.observing.VitalsWatch", Silent)
    observer = Observer(Terminal(), MetricsOptions("127.0.0.1:0"))
    assert observer._exposition is not None
    urls.append(observer._exposition.url)
    async with observer.beside(None, lambda: None, ignore):  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with await asyncio.to_thread(get, urls[0]) as answer:
            assert "backfill_rows_done" in answer.read().decode()
    assert served_at_the_end == [False]


async def test_a_reporter_whose_loop_stands_still_is_believed_as_long_as_its_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reporting:
        def __init__(self, ledger: Any, show: Callable[..., None], emit: Emit) -> None:
            self.show = show

        async def run(self) -> None:
            self.show([JobReport(STATUS, 0.0)])  # and never again

    monkeypatch.setattr("engine.fleet.observing.Reporter", Reporting)
    monkeypatch.setattr("engine.fleet.observing.VitalsWatch", Silent)
    clock = ManualClock()
    observer = Observer(Terminal(), MetricsOptions("127.0.0.1:0"), clock)
    metrics = observer._metrics
    assert metrics is not None
    async with observer.beside(None, lambda: None, ignore):  # type: ignore[arg-type]
        await clock.advance(reporter.TRUST * reporter.LEASE_S - 0.1)
        assert value(metrics, "rows_done") == 400
        await clock.advance(0.2)
        assert value(metrics, "rows_done") is None


def test_without_the_option_nothing_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(Observer(Terminal(), MetricsOptions())) as observer:
        observer(OPENED)
    assert capsys.readouterr().err == ""
