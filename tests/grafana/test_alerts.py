"""The alert rules: accepted and proven by promtool, about metrics that exist, each with a page that says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.telemetry.catalogue import METRICS
from tests.support.prometheus import promtool

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "grafana" / "alerts"
RULES = FOLDER / "backfill.rules.yaml"
CASES = FOLDER / "backfill.tests.yaml"
PAGE = ROOT / "docs" / "operations" / "alerts.md"
LIST = ROOT / "docs" / "alerts.md"

GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
EVERY_RULE: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = list(dict.fromkeys(rule["alert"] for rule in EVERY_RULE if "alert" in rule))
RECORDED = {rule["record"]: rule for rule in EVERY_RULE if "record" in rule}
TESTS: list[dict[str, Any]] = yaml.safe_load(CASES.read_text())["tests"]

LABELS = {metric.full_name: set(metric.labels) for metric in METRICS} | {"process_start_time_seconds": set()}
OF_TARGETS = {"instance"}
SEVERITIES = {"info", "warning", "critical"}

METRIC = re.compile(r"(?<![:\w])((?:backfill|process)_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
GROUPING = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\(([^)]*)\)")
RECORDING = re.compile(r"\w+:\w+:\w+")

each_alert = pytest.mark.parametrize("name", sorted(ALERTS))


def cases_of(name: str) -> list[dict[str, Any]]:
    return [case for case in TESTS if case["name"].startswith(f"{name}: ")]


def rules_of(name: str) -> list[dict[str, Any]]:
    """One alert may have several rules, which wait for different times."""
    return [rule for rule in EVERY_RULE if rule.get("alert") == name]


def expected(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [alert for check in case["alert_rule_test"] for alert in check["exp_alerts"]]


def metrics_in(expression: str) -> set[str]:
    """The metrics of an expression, those behind recorded series included."""
    found = {name for name, _ in METRIC.findall(expression)}
    for recorded in RECORDING.findall(expression):
        found |= metrics_in(RECORDED[recorded]["expr"])
    return found


@pytest.mark.debian
def test_promtool_accepts_the_rules() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.debian
def test_every_alert_fires_when_it_should_and_stays_silent_when_it_should() -> None:
    tested = promtool("test", "rules", str(CASES))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.debian
@pytest.mark.parametrize("name", sorted(name for name in RECORDED if name.startswith("instance:")))
def test_nothing_is_recorded_of_processes_that_are_not_ours(tmp_path: Path, name: str) -> None:
    told = [
        {"series": 'process_start_time_seconds{job="backfill", instance="ours:9477"}', "values": "10x8"},
        {"series": 'backfill_build_info{version="1", python="3", instance="ours:9477"}', "values": "1x8"},
        {"series": 'backfill_resumes_total{job="orders", instance="ours:9477"}', "values": "1x8"},
        {"series": 'process_start_time_seconds{job="node", instance="theirs:9100"}', "values": "10x8"},
    ]
    check = {"expr": f"count by (instance) ({name})", "eval_time": "2m"}
    check["exp_samples"] = [{"labels": '{instance="ours:9477"}', "value": 1}]
    case = {"interval": "15s", "input_series": told, "promql_expr_test": [check]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [case]}))
    tested = promtool("test", "rules", str(tmp_path / "tests.yaml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@each_alert
def test_an_alert_has_cases_in_which_it_fires_and_others_in_which_it_is_silent(name: str) -> None:
    cases = cases_of(name)
    assert any(expected(case) for case in cases), "no case in which it fires"
    assert any(not expected(case) for case in cases), "no near miss"
    for case in cases:
        assert {check["alertname"] for check in case["alert_rule_test"]} == {name}, case["name"]


def test_every_case_is_about_an_alert() -> None:
    assert [case["name"] for case in TESTS if case["name"].split(": ")[0] not in ALERTS] == []
    names = [case["name"] for case in TESTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_metrics_that_exist_by_labels_that_they_have(rule: dict[str, Any]) -> None:
    expression = rule["expr"]
    for name, matchers in METRIC.findall(expression):
        assert name in LABELS, f"{name} is not in the catalogue"
        assert set(MATCHER.findall(matchers)) <= LABELS[name], f"{name} has no such label"
    there = OF_TARGETS.union(*(LABELS[name] for name in metrics_in(expression)))
    for group in GROUPING.findall(expression):
        assert {label.strip() for label in group.split(",") if label.strip()} <= there


def test_the_cases_are_about_metrics_as_they_are_exposed() -> None:
    for case in TESTS:
        for one in case["input_series"]:
            name, labels = METRIC.findall(one["series"])[0]
            given = set(MATCHER.findall(labels)) - OF_TARGETS
            assert given == (LABELS[name] or {"job"}), one["series"]


@each_alert
def test_an_alert_says_how_bad_it_is_which_job_it_is_about_and_where_to_read_on(name: str) -> None:
    for rule in rules_of(name):
        notes = rule["annotations"]
        assert rule["labels"]["severity"] in SEVERITIES
        assert "{{ $labels.job }}" in notes["summary"] and "{{ $labels.job }}" in notes["description"]
        assert notes["summary"].count("\n") == notes["description"].count("\n") == 0
        path, _, anchor = notes["runbook"].partition("#")
        headings = re.findall(r"^### (\w+)$", (ROOT / path).read_text(), re.MULTILINE)
        assert name in headings and anchor == name.lower()


def test_the_page_tells_of_no_alert_that_is_not_there() -> None:
    assert re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE) == ALERTS


def test_the_list_of_alerts_says_how_bad_each_is() -> None:
    rows = re.findall(r"^\| `(Backfill\w+)` \| (\w+) \|", LIST.read_text(), re.MULTILINE)
    assert rows == [(name, rules_of(name)[0]["labels"]["severity"]) for name in ALERTS]


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_what_is_recorded_is_used(name: str) -> None:
    assert any(name in rule["expr"] for rule in EVERY_RULE if rule.get("record") != name)
