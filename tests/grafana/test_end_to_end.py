"""A real Prometheus has scraped real jobs: alerts have fired, panels have data, and the numbers are the ledger's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.telemetry.catalogue import METRICS, Kind, Owner
from tests.support.prometheus import Series, promtool
from tests.support.recorded import FIRES, SPECS, Story

pytestmark = [pytest.mark.debian, pytest.mark.slow, pytest.mark.timeout(200)]

BOARDS = sorted((Path(__file__).parents[2] / "grafana" / "dashboards").glob("*.json"))
STALENESS_S = 5.0  # every panel's rate() sees some scrapes

STEADY = {
    "backfill_build_info": "its value is in its labels",
    "backfill_job_info": "its value is in its labels",
    "backfill_job_held": "it is there while the job is held, and then 1",
    "backfill_job_verified": "it is there when the verification has ended, and then 0",
    "backfill_signal_target": "given by the spec",
    "backfill_signal_max": "given by the spec",
    "backfill_table_growth_limit_ratio": "given by the spec",
    "backfill_deadline_late_seconds": "orders is in time",
    "backfill_pacer_present": "somebody paces as soon as there are workers, and a successor is there at once",
    "backfill_leases_lost_total": "nobody was frozen",
    "backfill_resumes_total": "a process resumes the job before it is first scraped",
    "backfill_chunks_cancelled_total": "nobody waited for the job's own locks",
    "backfill_database_up": "the server was there",
    "backfill_database_standbys": "the standby was there",
    "backfill_database_live_rows": "in place a job adds no rows",
    "backfill_database_vacuums_running": "the table is too small for one to last",
}
"""Metrics of which the value may stand still in this story, and why."""

COUNTS_OF_JOBS = {"overview/Failing", "overview/Failed, unreported", "overview/Stalled", "overview/Waiting, paused"}
"""Panels that count jobs in a state that none of the three need get into long enough."""


@dataclass(frozen=True)
class Asked:
    """One query of a panel."""

    board: str
    panel: str
    query: str
    legend: str
    is_table: bool

    @property
    def place(self) -> str:
        return f"{self.board}/{self.panel}"

    @property
    def metrics(self) -> set[str]:
        """What it asks for."""
        return set(re.findall(r"\bbackfill_\w+", self.query))

    @property
    def labels(self) -> set[str]:
        """What each line of the panel is named by."""
        if self.is_table and (found := re.match(r"[^{]*?by \(([^)]*)\)", self.query)):
            return {label.strip() for label in found[1].split(",")}
        return set(re.findall(r"\{\{(\w+)\}\}", self.legend))


def panels(board: Path) -> Iterator[Asked]:
    def walk(items: list[dict[str, Any]]) -> Iterator[Asked]:
        for panel in items:
            for target in panel.get("targets", ()):
                yield Asked(
                    board.stem,
                    panel["title"],
                    target["expr"],
                    target.get("legendFormat") or "",
                    panel["type"] == "table",
                )
            yield from walk(panel.get("panels", []))

    yield from walk(json.loads(board.read_text())["panels"])


def range_s(story: Story) -> int:
    return round(story.ended - story.began) + 5


def ask(story: Story, asked: Asked) -> list[Series]:
    """What the panel would have shown at any second of the story."""
    several = asked.board == "overview"
    values = {
        "$job": "|".join(SPECS) if several else "orders",
        "$side": "source|target",
        "$__rate_interval": f"{STALENESS_S:g}s",
        "$__interval": "1s",
        "$__range": f"{range_s(story)}s",
    }
    query = asked.query
    for name in sorted(values, key=len, reverse=True):
        query = query.replace(name, values[name])
    assert "$" not in query, query
    return story.prometheus.query_range(query, story.began, story.ended)


def total(story: Story, query: str) -> float:
    """The sum over all that the query gives at the end of the story, of processes that are gone, too."""
    metric, _, matchers = query.partition("{")
    found = story.prometheus.query(
        f'last_over_time({metric}{{job="orders",{matchers or "}"}[{range_s(story)}s])', story.ended
    )
    return sum(series.value for series in found)


# --- panels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_every_query_of_a_panel_has_data_under_the_names_that_it_shows(story: Story, board: Path) -> None:
    wrong = []
    for asked in panels(board):
        seen = ask(story, asked)
        key = f"{asked.place}: {asked.query}"
        if not seen:
            wrong.append(f"no data: {key}")
        wrong += [f"{series.labels} of {key}" for series in seen if not asked.labels <= set(series.labels)]
    assert wrong == []


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_what_a_panel_shows_changed_as_the_jobs_did(story: Story, board: Path) -> None:
    wrong = []
    for asked in panels(board):
        seen = ask(story, asked)
        moved = any(len({value for _, value in series.values}) > 1 for series in seen)
        if not moved and not asked.metrics <= STEADY.keys() and asked.place not in COUNTS_OF_JOBS:
            wrong.append(f"stands still: {asked.place}: {asked.query}")
    assert wrong == []


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_what_two_processes_counted_is_what_the_ledger_has(story: Story) -> None:
    ledger = story.status["orders"]
    found = ledger["verification"]
    assert total(story, "backfill_rows_total") == ledger["rows_done"]
    assert total(story, "backfill_bytes_total") == ledger["bytes_done"]
    assert total(story, 'backfill_chunks_total{outcome="committed"}') == ledger["chunks"]
    assert total(story, "backfill_retries_total") == ledger["retries"] > 0
    assert total(story, "backfill_quarantined_rows_total") == ledger["quarantined"] == 1
    assert total(story, "backfill_verify_rows_total") == found["rows"]
    assert total(story, "backfill_verify_mismatched_rows_total") == found["mismatched"] == 2
    assert story.code == 6


def test_both_processes_had_a_part_in_it(story: Story) -> None:
    found = story.prometheus.query(
        f'last_over_time(backfill_rows_total{{job="orders"}}[{range_s(story)}s])', story.ended
    )
    assert len(found) == 2 and all(series.value > 0 for series in found)
    assert total(story, 'backfill_spans_claimed_total{outcome="taken_over"}') > 0
    assert total(story, "backfill_resumes_total") == 1


def test_the_last_report_is_what_the_ledger_has(story: Story) -> None:
    ledger, whole = story.status["orders"], range_s(story)
    last = {
        name: story.prometheus.query(
            f'last_over_time((max by (job) (backfill_{name}{{job="orders"}}))[{whole}s:1s])', story.ended
        )
        for name in ("rows_done", "rows_quarantined", "job_verified", "progress_ratio", "rows_remaining")
    }
    assert {name: [series.value for series in found] for name, found in last.items()} == {
        "rows_done": [ledger["rows_done"]],
        "rows_quarantined": [ledger["quarantined"]],
        "job_verified": [0],
        "progress_ratio": [1],
        "rows_remaining": [0],
    }


def test_one_process_at_a_time_reports(story: Story) -> None:
    for job in SPECS:
        reports = f'count(backfill_job_state{{job="{job}", state="running"}})'
        seen = story.prometheus.query_range(reports, story.began, story.ended)
        assert {value for series in seen for _, value in series.values} == {1.0}
    reporters = f"count(max_over_time(backfill_reporter[{range_s(story)}s]) == 1)"
    assert story.prometheus.query(reporters, story.ended)[0].value >= 2, "the reporter was killed, and nobody followed"


def test_a_server_is_looked_at_by_one_process_at_a_time(story: Story) -> None:
    seen = story.prometheus.query_range(
        'count(backfill_database_up{job="orders", side="target"})', story.began, story.ended
    )
    assert {value for series in seen for _, value in series.values} == {1.0}


def test_counters_never_go_down(story: Story) -> None:
    names = [m.full_name for m in METRICS if m.kind is Kind.COUNTER]
    names += [
        m.full_name + suffix for m in METRICS if m.kind is Kind.HISTOGRAM for suffix in ("_bucket", "_count", "_sum")
    ]
    for name in names:
        seen = story.prometheus.query(f"{name}[{range_s(story)}s]", story.ended)
        for series in seen:
            values = [value for _, value in series.values]
            assert values == sorted(values), f"{name}{series.labels} goes down"


def test_what_a_process_counts_was_seen_at_0_before_it_counted(story: Story) -> None:
    """Or ``rate`` would miss the first increments of a process."""
    for name in ("verify_rows_total", "verify_mismatched_rows_total", "leases_lost_total"):
        for series in story.prometheus.query(f'backfill_{name}{{job="orders"}}[{range_s(story)}s]', story.ended):
            assert series.values[0][1] == 0, f"{name}{series.labels}"


def test_every_metric_of_the_catalogue_was_scraped(story: Story) -> None:
    missing = {
        metric.full_name
        for metric in METRICS
        if not story.prometheus.query(
            f"count(last_over_time({metric.full_name}{'_count' if metric.kind is Kind.HISTOGRAM else ''}[{range_s(story)}s]))",
            story.ended,
        )
    }
    assert missing == set()


def test_the_labels_in_prometheus_are_those_of_the_catalogue(story: Story) -> None:
    """None was renamed: the scrape honours them."""
    for metric in METRICS:
        name = metric.full_name + ("_count" if metric.kind is Kind.HISTOGRAM else "")
        for series in story.prometheus.query(f"last_over_time({name}[{range_s(story)}s])", story.ended):
            own = set(series.labels) - {"instance"} - (set() if "job" in metric.labels else {"job"})
            assert own == set(metric.labels), name
            if metric.owner is not Owner.PROCESS or "job" in metric.labels:
                assert series["job"] in SPECS


def test_promtool_has_nothing_against_what_is_exposed(story: Story) -> None:
    linted = promtool("check", "metrics", stdin=story.exposition)
    assert linted.returncode == 0, linted.stdout + linted.stderr


# --- alerts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alert", "job"), FIRES)
def test_an_alert_fired_for_the_job_that_it_is_about(story: Story, alert: str, job: str) -> None:
    assert (alert, job) in story.fired, sorted(story.fired)
    assert job in story.fired[alert, job]["annotations"]["description"]


@pytest.mark.parametrize(
    ("alert", "jobs"),
    [
        ("BackfillJobFailed", set()),
        ("BackfillJobHeldTooLong", {"held"}),
        ("BackfillJobReportedTwice", set()),
        ("BackfillDeadlineLate", {"stuck"}),
        ("BackfillQuarantineGrows", {"orders"}),
        ("BackfillResumesOften", set()),
        ("BackfillSignalStale", {"orders"}),
        ("BackfillSpansTakenOver", {"orders"}),
        ("BackfillTableGrowthOverBudget", set()),
        ("BackfillVerificationMismatch", {"orders"}),
    ],
)
def test_an_alert_fired_for_no_job_that_gave_no_cause(story: Story, alert: str, jobs: set[str]) -> None:
    assert {job for fired, job in story.fired if fired == alert} <= jobs


def test_rules_are_evaluated_without_trouble(story: Story) -> None:
    assert [rule["name"] for rule in story.prometheus.rules() if rule["health"] != "ok"] == []
