"""What was last read, as metrics: the jobs of a ledger as it tells of them, and the servers beside a job.

Read by another thread at any time: whoever shows something replaces a whole snapshot, and a report is not shown for
longer than whoever made it could answer for, even while his thread stands still.  What is not known is absent, and
never 0.  Of the ledger, which is untrusted, only numbers are believed that are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from engine.flow.pacer import NO_PACER
from engine.ledger.orders import ROWS, WAL
from engine.ledger.records import JobStatus
from engine.model import JobState, Side
from engine.pace.bucket import RATE_LIMIT
from engine.telemetry.catalogue import DATABASES, METRICS, Kind, Metric, Owner
from engine.telemetry.report import JobReport
from engine.watch.vitals import Vitals

MOST_REPORTED: Final = 200
MOST_SIGNALS: Final = 40
LONGEST_VALUE: Final = 60

Value = tuple[str, tuple[str, ...], float]
"""A metric's name, the values of its labels, and its own."""


def is_read(metric: Metric) -> bool:
    """True for what is read from a ledger or a server, False for what this process counts."""
    return metric.owner is Owner.REPORTER or metric in DATABASES


READ: Final = tuple(metric for metric in METRICS if is_read(metric))

_VITALS: Final[Mapping[str, str]] = {
    "database_wal_bytes_total": "wal_bytes",
    "database_read_bytes_total": "read_bytes",
    "database_written_bytes_total": "written_bytes",
    "database_checkpoints_total": "checkpoints",
    "database_transactions_total": "transactions",
    "database_sessions": "sessions",
    "database_oldest_transaction_seconds": "oldest_transaction_s",
    "database_lock_waiters": "lock_waiters",
    "database_longest_lock_wait_seconds": "longest_lock_wait_s",
    "database_standbys": "standbys",
    "database_replication_lag_seconds": "replication_lag_s",
    "database_replication_lag_bytes": "replication_lag_bytes",
    "database_table_bytes": "table_bytes",
    "database_index_bytes": "index_bytes",
    "database_dead_rows": "dead_rows",
    "database_live_rows": "live_rows",
    "database_vacuums_running": "vacuums_running",
}
"""Metric -> field of ``Vitals``."""

_COUNTERS: Final = frozenset(metric.name for metric in DATABASES if metric.kind is Kind.COUNTER)

_Counter = tuple[str, tuple[str, ...]]
"""A metric's name, and the values of its labels, of which the first one is the job."""


class Snapshots:
    """The last reports and the last looks at servers, as a collector of ``prometheus_client``.  ``now``: seconds.

    Of several ledgers with a job of the same name, the one is shown that was reported on first.

    A server's own counters step back when another server takes over or somebody resets its statistics, which ``rate``
    would take for all that was ever counted.  So this process counts by itself what they grew by while it looked.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._reports: dict[str, tuple[tuple[JobReport, ...] | None, float]] = {}  # ledger -> jobs, and how long valid
        self._servers: dict[tuple[str, Side], tuple[Value, ...]] = {}
        self._last: dict[_Counter, float] = {}  # what the server said
        self._grown: dict[_Counter, float] = {}  # what is exposed

    @property
    def reports(self) -> tuple[JobReport, ...] | None:
        """What this process reports now; None: nothing."""
        now = self._now()
        valid = [jobs for jobs, until in self._reports.values() if jobs is not None and now < until]
        return tuple(job for jobs in valid for job in jobs) if valid else None

    def report(self, jobs: Sequence[JobReport] | None, valid_s: float, *, ledger: str = "") -> None:
        """Replace the report on one ledger."""
        shown = None if jobs is None else tuple(jobs[:MOST_REPORTED])
        self._reports = {**self._reports, ledger: (shown, self._now() + valid_s)}

    def vitals(self, job: str, side: Side, seen: Vitals | None) -> None:
        """Replace what is known of one server."""
        values = tuple(self._counted(value) for value in _of_server(job, side, seen))
        self._servers = {**self._servers, (job, side): values}

    def _counted(self, value: Value) -> Value:
        name, labels, number = value
        if name not in _COUNTERS:
            return value
        counter = name, labels
        grown = self._grown.get(counter, 0.0) + max(0.0, number - self._last.get(counter, number))
        self._last[counter], self._grown[counter] = number, grown
        return name, labels, grown

    def forget_vitals(self, job: str) -> None:
        """Know nothing of a job's servers any more, but what they were seen to grow by: what they do until this process
        looks again, another one counts.
        """
        self._servers = {key: values for key, values in self._servers.items() if key[0] != job}
        self._last = {counter: number for counter, number in self._last.items() if counter[1][0] != job}

    def forget(self, job: str) -> None:
        """Know nothing of a job any more."""
        self.forget_vitals(job)
        self._grown = {counter: number for counter, number in self._grown.items() if counter[1][0] != job}

    def describe(self) -> Iterable[Family]:
        """The metrics without values, for the registry's list of names."""
        return [_family(metric) for metric in READ]

    def collect(self) -> Iterable[Family]:
        """The metrics that have a value now."""
        families = {metric.name: _family(metric) for metric in READ}
        for name, labels, value in self._values():
            families[name].add_metric(labels, value)
        return [family for family in families.values() if family.samples]

    def _values(self) -> Iterator[Value]:
        seen_jobs: set[str] = set()
        for report in self.reports or ():
            if report.status.job not in seen_jobs:  # a series that comes twice makes the whole scrape invalid
                seen_jobs.add(report.status.job)
                yield from _of_job(report)
        for values in self._servers.values():
            yield from values


def _family(metric: Metric) -> Any:
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    return kind(metric.full_name, metric.help, labels=metric.labels)


def _of_job(report: JobReport) -> Iterator[Value]:
    status = report.status
    job = status.job
    for state in JobState:
        yield "job_state", (job, state.value), float(status.state is state)
    yield "job_info", (job, status.mode.value, status.phase), 1.0
    if status.held_by:
        yield "job_held", (job, status.held_by[:LONGEST_VALUE]), 1.0
    waiting = max(0, status.spans_total - status.spans_done - status.spans_running)
    for name, spans in (("done", status.spans_done), ("running", status.spans_running), ("waiting", waiting)):
        yield "spans", (job, name), float(spans)
    for name, value in _numbers(report).items():
        if (number := _number(value)) is not None:
            yield name, (job,), number
    if status.state.is_at_work:
        yield "deadline_late_seconds", (job,), _late_s(status)
    yield from _of_signals(status)


def _numbers(report: JobReport) -> dict[str, Any]:
    """The gauges of a job without other labels; what is no number is not known."""
    status = report.status
    estimated = max(0.0, status.rows_estimated)
    growth = status.growth or {}
    at_work = status.state.is_at_work
    return {
        "job_waiting": float(_waits(status)),
        "job_verified": None if status.verified is None else float(status.verified),
        "progress_ratio": status.progress,
        "rows_done": status.rows_done,
        "rows_remaining": estimated * (1 - min(1.0, status.progress)),
        "rows_per_second": status.rows_per_s,
        "eta_seconds": status.eta_s,
        "since_progress_seconds": report.since_progress_s,
        "workers": status.workers,
        "limit_rows_per_second": status.limit_now_rows_per_s if at_work else None,
        "pressure_ratio": status.pressure,
        "pacer_present": float(status.pace_valid is True) if at_work else None,
        "table_growth_ratio": growth.get("ratio"),
        "table_growth_limit_ratio": growth.get("max"),
        "rows_quarantined": status.quarantined,
    }


def _waits(status: JobStatus) -> bool:
    """True when all workers wait for something that is neither the pace nor a person: it has a name in the status."""
    waiting = status.waiting
    if not waiting or status.held_by or waiting.startswith(NO_PACER):
        return False
    if status.state.is_final or status.state is JobState.PAUSED:
        return False  # then it is why the job is in that state
    return waiting not in {RATE_LIMIT, ROWS, WAL, status.leads, *(signal.get("name") for signal in status.signals)}


def _late_s(status: JobStatus) -> float:
    """0 in time, infinite when nothing moves: the ledger, whose JSON has no infinity, has null for that."""
    if status.deadline is None:
        return 0.0
    late_s = _number(status.deadline.get("late_by_s"))
    return math.inf if late_s is None else late_s


def _of_signals(status: JobStatus) -> Iterator[Value]:
    seen: set[str] = set()
    for signal in status.signals[:MOST_SIGNALS]:
        name = signal.get("name")
        if not isinstance(name, str) or (label := name[:LONGEST_VALUE]) in seen:
            continue
        seen.add(label)
        age_s = _number(signal.get("age_s"))
        values = {
            "signal_value": signal.get("value"),
            "signal_target": signal.get("target"),
            "signal_max": signal.get("max"),
        }
        for metric, value in values.items():
            if (number := _number(value)) is not None:
                yield metric, (status.job, label), number
        age_now_s = math.inf if age_s is None else age_s + (status.pace_age_s or 0.0)  # infinite: it never answered
        yield "signal_age_seconds", (status.job, label), age_now_s


def _of_server(job: str, side: Side, vitals: Vitals | None) -> Iterator[Value]:
    labels = (job, side.value)
    yield "database_up", labels, float(vitals is not None)
    if vitals is None:
        return
    for metric, attribute in _VITALS.items():
        value = getattr(vitals, attribute)
        if isinstance(value, Mapping):
            for kind, count in value.items():
                if (number := _number(count)) is not None:
                    yield metric, (*labels, kind), number
        elif (number := _number(value)) is not None:
            yield metric, labels, number


def _number(value: Any) -> float | None:
    """A number that can be shown, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON has integers of any length
        return None
    return number if math.isfinite(number) else None
