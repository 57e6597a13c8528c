"""The metrics of this process: events become counters and histograms, and what was last read becomes gauges.

Everything is made from the catalogue, in a registry of its own.  A scrape runs in another thread: what it reads are the
library's own locked numbers and immutable snapshots (``telemetry.gauges``).

What is kept is bounded.  A job's series exist, with 0, from the moment at which this process opens it, so that ``rate``
sees the first increment (but not what nobody may be able to count: ``LATER``); when there are too many jobs, the one
that was opened longest ago is forgotten.  A label that takes its values from outside (an SQLSTATE, a signal's name, a
reason) has at most ``MOST_VALUES`` of them per job.
"""

from __future__ import annotations

import math
import platform
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, Info, PlatformCollector
from prometheus_client import Metric as Family
from prometheus_client.process_collector import ProcessCollector

from engine._version import __version__
from engine.clock import SystemClock
from engine.events import (
    ChunkCancelled,
    ChunkCommitted,
    ChunkFound,
    ChunkRetried,
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
)
from engine.flow.pacer import NO_PACER, WINDOW
from engine.flow.vacuum import GATE
from engine.flow.worker import AWAY, CLAIMING, NO_SPAN, RETRY
from engine.ledger.orders import ROWS, WAL
from engine.model import Mode, Phase, Side
from engine.pace.bucket import RATE_LIMIT
from engine.spec.signals import LEARNING, kind_of
from engine.telemetry.catalogue import METRICS, Kind, Metric
from engine.telemetry.gauges import LONGEST_VALUE, Snapshots, is_read
from engine.telemetry.report import JobReport
from engine.watch.vitals import Vitals

MOST_JOBS: Final = 20
"""Jobs of which one process keeps counts: a worker of a large ledger works hundreds, one after another."""

MOST_VALUES: Final = 40
OTHER: Final = "other"
"""What stands for all values of a label beyond ``MOST_VALUES``."""

LOST_CONNECTION: Final = "lost_connection"
"""In the place of an SQLSTATE: an empty label would be none to Prometheus."""

PHASES: Final = ("admit", "read", "transform", "write", "commit")
OUTCOMES: Final = {
    "chunks_total": ("committed", "failed", "lost"),
    "spans_claimed_total": ("claimed", "stolen", "taken_over"),
}
REASONS: Final = (CLAIMING, NO_SPAN, RETRY, AWAY, RATE_LIMIT, WINDOW, NO_PACER, GATE, ROWS, WAL, "baseline")
SQLSTATES: Final = (LOST_CONNECTION, "40001", "40P01", "55P03", "57014", "57P01")
"""Those that a job on a busy database meets sooner or later."""

LATER: Final = frozenset({"wal_bytes_total"})
"""Without a 0 at the beginning: whether anybody can tell is known when somebody does."""

_MOVES: Final = (Phase.MOVE, Phase.SWEEP)
_CREATED: Final = "_created"


_Count = Callable[..., Any]
"""From a metric's name and the values of its labels but the job to its counter or histogram."""


class _Registry(CollectorRegistry):
    """Without the library's ``_created`` series, which double the number of counters and say nothing here."""

    def collect(self) -> Iterable[Family]:
        """All metrics, made afresh."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith(_CREATED)]
            yield family


@dataclass(slots=True)
class _Job:
    """What is kept of one job: its children of the metrics, and the values that its labels have."""

    mode: Mode
    children: dict[tuple[str, ...], Any] = field(default_factory=dict)  # (metric, values of labels but the job)
    values: dict[str, set[str]] = field(default_factory=dict)


class Metrics:
    """An ``Emit`` that counts, and the place where reports and readings are shown.  ``registry`` is what is exposed."""

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        self.registry: CollectorRegistry = _Registry()
        self.reports = 0  # how often somebody has reported, or said that this process does not
        self._made: dict[str, Any] = {m.name: _make(m, self.registry) for m in METRICS if not is_read(m)}
        self._made["build_info"].info({"version": __version__, "python": platform.python_version()})
        self._snapshots = Snapshots(now or SystemClock().now)
        self._made["reporter"].set_function(lambda: float(self.is_reporting))
        self.registry.register(self._snapshots)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._jobs: OrderedDict[str, _Job] = OrderedDict()

    # -- what was read ------------------------------------------------------------------------------------------------

    @property
    def is_reporting(self) -> bool:
        """True while this process reports on the jobs of a ledger."""
        return self._snapshots.reports is not None

    def report(self, jobs: Sequence[JobReport] | None, valid_s: float = math.inf, *, ledger: str = "") -> None:
        """All jobs of a ledger as they are now, and for how long that may be shown; None: another process reports.

        ``ledger`` tells apart those of a process that reports on several.
        """
        self._snapshots.report(jobs, valid_s, ledger=ledger)
        self.reports += 1

    def vitals(self, job: str, side: Side, seen: Vitals | None) -> None:
        """How a server beside a job is doing; None: the last look failed."""
        self._snapshots.vitals(job, side, seen)

    def forget_vitals(self, job: str) -> None:
        """This process looks at the job's servers no longer."""
        self._snapshots.forget_vitals(job)

    # -- what happened ------------------------------------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """An ``Emit``.  Events of jobs that were not opened here count nowhere."""
        if isinstance(event, JobOpened):
            self._open(event)
        job = self._jobs.get(event.job)
        if job is None:
            return
        count = self._counter(event.job, job)
        match event:
            case ChunkCommitted():
                self._committed(event, job, count)
            case ChunkFound():
                self._found(event, job, count)
            case ChunkRetried():
                count("retries_total", self._bounded(job, "sqlstate", event.sqlstate or LOST_CONNECTION)).inc()
                if event.span:
                    count("chunks_total", "failed").inc()
            case LeaseLost():
                count("leases_lost_total").inc()
                count("chunks_total", "lost").inc()
            case SpanClaimed():
                outcome = "stolen" if event.stolen else "taken_over" if event.taken_over else "claimed"
                count("spans_claimed_total", outcome).inc()
            case LeasesRenewed():
                count("lease_renewals_total").inc(event.spans)
            case WorkersWaited():
                for reason, seconds in event.seconds.items():
                    count("held_seconds_total", self._bounded(job, "reason", reason)).inc(max(0.0, seconds))
            case PaceChanged() if event.leads:
                count("held_seconds_total", self._bounded(job, "reason", event.leads))  # what may be waited for next
            case RowQuarantined():
                count("quarantined_rows_total").inc(event.rows)
                if not event.in_chunk:
                    count("chunks_total", "committed").inc()  # the step over it: the ledger counts it as a chunk, too
            case SignalRead():
                self._signal(event, job, count)
            case WalWritten():
                count("wal_bytes_total").inc(max(0.0, event.bytes))
            case ChunkCancelled():
                count("chunks_cancelled_total").inc()
            case _:
                pass

    def _committed(self, event: ChunkCommitted, job: _Job, count: _Count) -> None:
        seen = event.observation
        if event.phase is Phase.MOVE:
            count("rows_total", job.mode.value).inc(seen.rows)
            count("bytes_total", job.mode.value).inc(seen.bytes)
        if event.phase in _MOVES:
            count("chunks_total", "committed").inc()
        elif event.phase is Phase.VERIFY:
            count("verify_rows_total").inc(seen.rows)
        if seen.differing:
            count("verify_mismatched_rows_total").inc(seen.differing)
        count("chunk_rows").observe(seen.scanned)
        count("chunk_seconds", "admit").observe(event.admit_s)
        count("chunk_seconds", "read").observe(event.read_s)
        if seen.transform_s:
            count("chunk_seconds", "transform").observe(seen.transform_s)
        if seen.changed:
            count("changed_rows_total").inc(seen.changed)
        count("chunk_seconds", "write").observe(max(0.0, event.move_s - seen.commit_s - seen.transform_s))
        count("chunk_seconds", "commit").observe(seen.commit_s)

    def _found(self, event: ChunkFound, job: _Job, count: _Count) -> None:
        if event.phase is Phase.MOVE:
            count("rows_total", job.mode.value).inc(event.rows)
        if event.phase in _MOVES:
            count("chunks_total", "committed").inc()

    def _signal(self, event: SignalRead, job: _Job, count: _Count) -> None:
        signal = self._bounded(job, "signal", event.signal)
        failures = count("probe_failures_total", signal)
        count("held_seconds_total", self._bounded(job, "reason", event.signal))
        if event.value is None:
            failures.inc()
        elif kind_of(event.signal) in LEARNING:
            count("probe_seconds", signal).observe(event.value)

    # -- series -------------------------------------------------------------------------------------------------------

    def _open(self, event: JobOpened) -> None:
        job = self._jobs.get(event.job)
        if job is None:
            job = self._jobs[event.job] = _Job(event.mode)
        job.mode = event.mode  # another one than before, when the job was removed and begun anew
        self._begin(event.job, job)
        self._jobs.move_to_end(event.job)
        while len(self._jobs) > MOST_JOBS:
            self._forget(*self._jobs.popitem(last=False))
        if event.resumed and not event.attached:
            self._counter(event.job, job)("resumes_total").inc()

    def _begin(self, name: str, job: _Job) -> None:
        """All series of which the labels are known beforehand, with 0."""
        count = self._counter(name, job)
        known: dict[str, tuple[str, ...]] = {
            "mode": (job.mode.value,),
            "phase": PHASES,
            "reason": tuple(self._bounded(job, "reason", reason) for reason in REASONS),
            "sqlstate": tuple(self._bounded(job, "sqlstate", sqlstate) for sqlstate in SQLSTATES),
        }
        for metric in METRICS:
            if metric.name not in self._made or metric.name in LATER or metric.labels[:1] != ("job",):
                continue
            if metric.labels == ("job",):
                count(metric.name)
            for value in OUTCOMES.get(metric.name) or known.get(metric.labels[-1], ()):
                count(metric.name, value)

    def _counter(self, name: str, job: _Job) -> _Count:
        """``count(metric, …)`` gives the job's counter or histogram with these values of its other labels."""

        def count(metric: str, *rest: str) -> Any:
            child = job.children.get((metric, *rest))
            if child is None:
                child = job.children[metric, *rest] = self._made[metric].labels(name, *rest)
            return child

        return count

    def _bounded(self, job: _Job, label: str, value: str) -> str:
        known = job.values.setdefault(label, set())
        value = value[:LONGEST_VALUE]
        if value in known:
            return value
        if len(known) >= MOST_VALUES:
            return OTHER
        known.add(value)
        return value

    def _forget(self, name: str, job: _Job) -> None:
        for metric, *rest in job.children:
            self._made[metric].remove(name, *rest)
        self._snapshots.forget(name)


def _make(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram | Info:
    match metric.kind:
        case Kind.COUNTER:
            return Counter(metric.full_name, metric.help, metric.labels, registry=registry)
        case Kind.GAUGE:
            return Gauge(metric.full_name, metric.help, metric.labels, registry=registry)
        case Kind.HISTOGRAM:
            return Histogram(metric.full_name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
        case Kind.INFO:
            return Info(metric.full_name.removesuffix("_info"), metric.help, registry=registry)
