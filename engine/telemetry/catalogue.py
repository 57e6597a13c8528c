"""Every metric that this project exposes: name, type, unit, labels, help, whose it is, and on which panels it is.

One place, from which the exposition (``telemetry.metrics``), ``docs/metrics.md`` and the tests of dashboards and alerts
are made.  Names are part of the contract.

Whose a metric is decides how several processes on one job add up:

* ``PROCESS``: every process counts what it did itself.  ``sum`` over processes is the job's; nothing is counted twice.
* ``LEADER``: counted or measured by the process that paces the job, which is one at a time.  ``sum`` of rates is right.
* ``REPORTER``: read from the ledger by one elected process per ledger (``fleet.reporter``), for all of its jobs.  While
  the reporter changes two of them may be seen for a moment: dashboards ask for ``max by (job)``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PREFIX: Final = "backfill_"


class Kind(StrEnum):
    """The type in Prometheus's exposition."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class Owner(StrEnum):
    """Which process exposes a metric; see the module."""

    PROCESS = "process"
    LEADER = "leader"
    REPORTER = "reporter"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.  ``name`` is without the prefix, and as exposed: counters end in ``_total``."""

    name: str
    kind: Kind
    owner: Owner
    labels: tuple[str, ...]
    unit: str  # s, bytes, rows, ratio, …; empty for plain counts
    help: str
    buckets: tuple[float, ...] = ()  # upper bounds, of histograms

    @property
    def full_name(self) -> str:
        """As scraped."""
        return PREFIX + self.name

    @property
    def panels(self) -> tuple[str, ...]:
        """The panels of our dashboards that show it, as ``dashboard/panel``; none where ``unpanelled`` says why."""
        return _SHOWN_ON.get(self.name, ())

    @property
    def unpanelled(self) -> str:
        """Why no panel shows it; empty where one does."""
        return _NOT_SHOWN.get(self.name, "")


def _counter(name: str, labels: str, unit: str, text: str, owner: Owner = Owner.PROCESS) -> Metric:
    return Metric(name, Kind.COUNTER, owner, tuple(labels.split()), unit, text)


def _gauge(name: str, labels: str, unit: str, text: str, owner: Owner = Owner.REPORTER) -> Metric:
    return Metric(name, Kind.GAUGE, owner, tuple(labels.split()), unit, text)


def _histogram(name: str, labels: str, unit: str, text: str, buckets: tuple[float, ...], owner: Owner) -> Metric:
    return Metric(name, Kind.HISTOGRAM, owner, tuple(labels.split()), unit, text, buckets=buckets)


CHUNK_SECONDS: Final = (0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CHUNK_ROWS: Final = (10.0, 50.0, 100.0, 500.0, 1e3, 5e3, 1e4, 5e4, 1e5)
PROBE_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

WORK: Final = (
    _counter("rows_total", "job mode", "rows", "Rows written by the move, by this process."),
    _counter("bytes_total", "job mode", "bytes", "Bytes that passed through, or are estimated to have been written."),
    _counter("chunks_total", "job outcome", "", "Chunks by outcome: committed, failed (to be tried again), lost."),
    _counter("chunks_cancelled_total", "job", "", "Chunks cancelled: others waited for their locks.", Owner.LEADER),
    _histogram(
        "chunk_seconds",
        "job phase",
        "s",
        "Time of a committed chunk by phase: admit (waited for the pace), read (looked for its bound), transform (only "
        "of jobs that have one), "
        "write (in a verification: the comparison), commit (0 where one statement writes and commits).",
        CHUNK_SECONDS,
        Owner.PROCESS,
    ),
    _histogram("chunk_rows", "job", "rows", "Rows that a committed chunk looked at.", CHUNK_ROWS, Owner.PROCESS),
    _counter(
        "held_seconds_total",
        "job reason",
        "s",
        "Worker-seconds of waiting, by what for.",
    ),
    _counter(
        "wal_bytes_total",
        "job",
        "bytes",
        "WAL that the job caused, as PostgreSQL 18 counts it; before, estimated.",
        Owner.LEADER,
    ),
    _counter("spans_claimed_total", "job outcome", "", "Spans: claimed, stolen, or taken_over from one who vanished."),
    _counter("lease_renewals_total", "job", "", "Leases renewed."),
    _counter("leases_lost_total", "job", "", "Leases that a worker found to be somebody else's."),
    _counter("resumes_total", "job", "", "Times that this process opened a job that had been begun before."),
    _counter("retries_total", "job sqlstate", "", "Chunks tried again, by SQLSTATE, or lost_connection."),
    _counter("quarantined_rows_total", "job", "rows", "Rows set aside by this process."),
    _counter("changed_rows_total", "job", "rows", "Rows that changed while a transform had them, and were read again."),
    _counter("verify_rows_total", "job", "rows", "Rows compared."),
    _counter("verify_mismatched_rows_total", "job", "rows", "Rows found to differ for good: changed, missing, extra."),
)

SIGNALS: Final = (
    _histogram(
        "probe_seconds",
        "job signal",
        "s",
        "Answers of the latency probes, a standstill counted as often as it was asked into.",
        PROBE_SECONDS,
        Owner.LEADER,
    ),
    _counter("probe_failures_total", "job signal", "", "Readings of a signal that failed.", Owner.LEADER),
    _gauge("signal_value", "job signal", "", "What the signal measured, as the law uses it: s, bytes, ratio or count."),
    _gauge("signal_target", "job signal", "", "What the pace steers it to: given or learnt."),
    _gauge("signal_max", "job signal", "", "Beyond this nothing is admitted."),
    _gauge("signal_age_seconds", "job signal", "s", "Since its last good reading; +Inf: there was none."),
)

JOBS: Final = (
    _gauge("job_state", "job state", "", "1 for the state that the job is in, 0 for the others."),
    _gauge("job_info", "job mode phase", "", "1; which mode the job has, and in which phase it is."),
    _gauge("job_held", "job reason", "", "1 while nothing is admitted, by what holds it."),
    _gauge("job_waiting", "job", "", "1 while nothing moves for another reason that `backfill status` tells."),
    _gauge("job_verified", "job", "", "1: the last verification passed, 0: it found differences; absent: neither."),
    _gauge("progress_ratio", "job", "ratio", "Of the move, or of the verification that runs: 0 to 1."),
    _gauge("rows_done", "job", "rows", "Rows moved by the whole job, as the ledger has it."),
    _gauge("rows_remaining", "job", "rows", "Rows still to be looked at, an estimate."),
    _gauge("rows_per_second", "job", "rows/s", "Speed of the whole job, as its workers report it."),
    _gauge("eta_seconds", "job", "s", "Until the end, at the present speed; absent when it does not move."),
    _gauge("deadline_late_seconds", "job", "s", "So late after `finish_by` it will end; 0: in time, or none given."),
    _gauge("since_progress_seconds", "job", "s", "Since the ledger last showed that something was committed."),
    _gauge("spans", "job state", "", "Spans of the present phase: done, running, waiting."),
    _gauge("workers", "job", "", "Workers at work on the job, wherever they are."),
    _gauge("limit_rows_per_second", "job", "rows/s", "What the pace allows; absent without a limit."),
    _gauge("pressure_ratio", "job", "ratio", "The largest of all signals': 0 at rest, 1 at the target."),
    _gauge("pacer_present", "job", "", "1 when a process decides the pace, and its decision is valid."),
    _gauge("table_growth_ratio", "job", "ratio", "Growth of a table filled in place since the job began."),
    _gauge("table_growth_limit_ratio", "job", "ratio", "What it may grow by: bloat.max_growth."),
    _gauge("rows_quarantined", "job", "rows", "Rows that are set aside now."),
)

DATABASES: Final = (
    _gauge("database_up", "job side", "", "1 when the last reading of the server succeeded.", Owner.LEADER),
    _counter("database_wal_bytes_total", "job side", "bytes", "WAL written by the whole server.", Owner.LEADER),
    _counter("database_read_bytes_total", "job side", "bytes", "Read by the whole server (pg_stat_io).", Owner.LEADER),
    _counter(
        "database_written_bytes_total", "job side", "bytes", "Written by the whole server (pg_stat_io).", Owner.LEADER
    ),
    _counter("database_checkpoints_total", "job side reason", "", "Checkpoints: timed, requested.", Owner.LEADER),
    _counter(
        "database_transactions_total", "job side outcome", "", "Of the database: committed, rolled_back.", Owner.LEADER
    ),
    _gauge(
        "database_sessions", "job side state", "", "Others' sessions: active, idle, idle_in_transaction.", Owner.LEADER
    ),
    _gauge("database_oldest_transaction_seconds", "job side", "s", "Age of the oldest transaction.", Owner.LEADER),
    _gauge("database_lock_waiters", "job side", "", "Sessions that wait for a lock.", Owner.LEADER),
    _gauge("database_longest_lock_wait_seconds", "job side", "s", "How long the longest has waited.", Owner.LEADER),
    _gauge("database_standbys", "job side", "", "Standbys that are connected.", Owner.LEADER),
    _gauge("database_replication_lag_seconds", "job side", "s", "Of the slowest standby's replay.", Owner.LEADER),
    _gauge("database_replication_lag_bytes", "job side", "bytes", "Of the slowest standby's replay.", Owner.LEADER),
    _gauge("database_table_bytes", "job side", "bytes", "Heap of the job's table on that side.", Owner.LEADER),
    _gauge("database_index_bytes", "job side", "bytes", "Indexes of the job's table on that side.", Owner.LEADER),
    _gauge("database_dead_rows", "job side", "rows", "Dead rows of that table, by statistics.", Owner.LEADER),
    _gauge("database_live_rows", "job side", "rows", "Live rows of that table, by statistics.", Owner.LEADER),
    _gauge("database_vacuums_running", "job side", "", "VACUUMs at work on that table.", Owner.LEADER),
)

PROCESSES: Final = (
    _gauge("reporter", "", "", "1 when this process reports on the jobs of its ledger.", Owner.PROCESS),
    Metric("build_info", Kind.INFO, Owner.PROCESS, ("version", "python"), "", "What is running."),
)

METRICS: Final = (*WORK, *SIGNALS, *JOBS, *DATABASES, *PROCESSES)

_SECTIONS: Final = (
    ("Work", WORK),
    ("Signals", SIGNALS),
    ("Jobs", JOBS),
    ("Databases beside the job", DATABASES),
    ("Processes", PROCESSES),
)


def tables() -> str:
    """All metrics as Markdown, for ``docs/metrics.md``."""
    parts = []
    for title, metrics in _SECTIONS:
        parts += [f"### {title}", "", "| name | type | labels | owner | |", "|---|---|---|---|---|"]
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            parts.append(f"| `{metric.full_name}` | {metric.kind} | {labels} | {metric.owner} | {metric.help} |")
        parts.append("")
    return "\n".join(parts)


# What the dashboards of ``grafana/`` show: `python -m grafana.boards --shown-on` prints it, and a test compares.
_SHOWN_ON: Final[Mapping[str, tuple[str, ...]]] = {
    "build_info": ("overview/Processes",),
    "bytes_total": ("overview/Bytes moved per second", "job/Bytes per second"),
    "chunk_rows": ("job/Rows of a chunk",),
    "chunk_seconds": ("job/Where the time goes", "job/Time of a chunk"),
    "chunks_cancelled_total": ("job/Chunks per second, by outcome",),
    "chunks_total": (
        "overview/Running",
        "overview/Held",
        "overview/Waiting, paused",
        "overview/Failing",
        "overview/Stalled",
        "overview/Failed, unreported",
        "overview/Ended",
        "overview/Jobs",
        "overview/State of each job",
        "overview/Chunks failed per minute",
        "job/State",
        "job/Chunks per second, by outcome",
    ),
    "database_checkpoints_total": ("database/Checkpoints within ten minutes",),
    "database_dead_rows": ("database/Dead rows", "database/Dead and live rows"),
    "database_index_bytes": ("database/Size of table and indexes",),
    "database_live_rows": ("database/Dead rows", "database/Dead and live rows"),
    "database_lock_waiters": ("database/Waiting for locks", "database/Sessions waiting for a lock"),
    "database_longest_lock_wait_seconds": (
        "database/Longest wait for a lock",
        "database/Longest wait and oldest transaction",
    ),
    "database_oldest_transaction_seconds": (
        "database/Oldest transaction",
        "database/Longest wait and oldest transaction",
    ),
    "database_read_bytes_total": ("database/I/O per second",),
    "database_replication_lag_bytes": ("database/Replication lag in bytes",),
    "database_replication_lag_seconds": ("database/Replication lag now", "database/Replication lag"),
    "database_sessions": ("database/Sessions of others",),
    "database_standbys": ("database/Standbys connected",),
    "database_table_bytes": ("database/Size of table and indexes",),
    "database_transactions_total": ("database/Transactions per second",),
    "database_up": ("database/Readings",),
    "database_vacuums_running": ("database/VACUUMs at work on it",),
    "database_wal_bytes_total": ("database/WAL per second",),
    "database_written_bytes_total": ("database/I/O per second",),
    "deadline_late_seconds": ("overview/Jobs", "job/Behind its deadline"),
    "eta_seconds": ("overview/Jobs", "job/Time left"),
    "held_seconds_total": ("overview/Workers waiting, by reason", "job/Where the time goes"),
    "job_held": (
        "overview/Running",
        "overview/Held",
        "overview/Waiting, paused",
        "overview/Failing",
        "overview/Stalled",
        "overview/Failed, unreported",
        "overview/Ended",
        "overview/Jobs",
        "overview/State of each job",
        "job/State",
        "job/Held by",
        "job/Time left",
        "job/Held, by reason",
    ),
    "job_info": ("overview/Jobs", "job/Mode and phase"),
    "job_state": (
        "overview/Running",
        "overview/Held",
        "overview/Waiting, paused",
        "overview/Failing",
        "overview/Stalled",
        "overview/Failed, unreported",
        "overview/Ended",
        "overview/Jobs",
        "overview/State of each job",
        "job/State",
        "job/Time left",
        "job/Since progress",
    ),
    "job_verified": ("overview/Jobs", "job/Verified"),
    "job_waiting": (
        "overview/Running",
        "overview/Held",
        "overview/Waiting, paused",
        "overview/Failing",
        "overview/Stalled",
        "overview/Failed, unreported",
        "overview/Ended",
        "overview/Jobs",
        "overview/State of each job",
        "job/State",
    ),
    "lease_renewals_total": ("job/Leases renewed per second",),
    "leases_lost_total": ("job/Spans taken per minute",),
    "limit_rows_per_second": ("job/Rate against limit",),
    "pacer_present": ("job/Workers",),
    "pressure_ratio": ("job/Pressure by signal",),
    "probe_failures_total": ("job/Failed readings per minute",),
    "probe_seconds": ("database/Read latency", "database/Commit latency"),
    "progress_ratio": ("overview/Jobs", "overview/Progress", "job/Progress", "job/Progress over time"),
    "quarantined_rows_total": ("job/Quarantine",),
    "reporter": ("overview/Reporters", "overview/Processes"),
    "resumes_total": ("job/Workers",),
    "retries_total": ("overview/Jobs", "job/Retries per minute, by SQLSTATE"),
    "rows_done": ("job/Rows done and left",),
    "rows_per_second": ("overview/Jobs", "overview/Rows per second", "job/Rate against limit"),
    "rows_quarantined": ("overview/Jobs", "job/Quarantine"),
    "rows_remaining": ("overview/Jobs", "job/Rows done and left"),
    "rows_total": ("job/Rate against limit",),
    "signal_age_seconds": ("job/Signals now", "job/Age of readings"),
    "signal_max": ("job/Pressure by signal", "job/Signals now"),
    "signal_target": (
        "job/Pressure by signal",
        "job/Latency signals and their targets",
        "job/Signals now",
        "database/Read latency",
        "database/Commit latency",
    ),
    "signal_value": ("job/Pressure by signal", "job/Latency signals and their targets", "job/Signals now"),
    "since_progress_seconds": (
        "overview/Running",
        "overview/Held",
        "overview/Waiting, paused",
        "overview/Failing",
        "overview/Stalled",
        "overview/Failed, unreported",
        "overview/Ended",
        "overview/Jobs",
        "overview/State of each job",
        "job/State",
        "job/Time left",
        "job/Since progress",
    ),
    "spans": ("job/Spans",),
    "spans_claimed_total": ("job/Spans taken per minute",),
    "table_growth_limit_ratio": ("job/Growth of the table",),
    "table_growth_ratio": ("job/Growth of the table",),
    "verify_mismatched_rows_total": ("job/Rows that differ",),
    "verify_rows_total": ("job/Rows compared per second",),
    "wal_bytes_total": ("job/Bytes per second", "database/WAL per second"),
    "workers": ("overview/Jobs", "job/Workers"),
}

_NOT_SHOWN: Final[Mapping[str, str]] = {
    "changed_rows_total": "only jobs in place through a transform have it, and it says how busy others are, not the job"
}
"""Metric -> why no panel shows it."""


if __name__ == "__main__":
    sys.stdout.write(tables())
