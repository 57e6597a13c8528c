"""The dashboards: in step with what builds them, about metrics that exist, complete, and telling states apart."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools
import yaml
from Cython import Build

from engine.model import JobState
from engine.telemetry import boards
from engine.telemetry.catalogue import METRICS, PREFIX, Kind, Owner
from grafana.boards import BOARDS, dashboards, shown_on, text_of
from grafana.boards.queries import Scope, metrics_in
from grafana.boards.states import LOOKS, Shown, count, state
from tests.support.prometheus import promtool

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"
COMMITTED: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
KNOWN = {metric.name: metric for metric in METRICS}

MADE_BY_QUERIES = {"le"}
OF_TARGETS = {"instance"}
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
SELECTOR = re.compile(rf"{PREFIX}(\w+)(?:\{{([^}}]*)\}})?")
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "1h",
    "$job": ".+",
    "$side": ".+",
}

each_dashboard = pytest.mark.parametrize("name", COMMITTED)


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in COMMITTED[name]["panels"] if panel["type"] != "row"]


def targets() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name in COMMITTED:
        for panel in panels(name):
            for target in panel["targets"]:
                yield name, panel, target


def substituted(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


# -- in step ------------------------------------------------------------------------------------------------------------


def test_what_is_committed_is_what_the_code_makes() -> None:
    made = {name: text_of(dashboard) for name, dashboard in dashboards().items()}
    committed = {name: (GRAFANA / "dashboards" / f"{name}.json").read_text() for name in COMMITTED}
    assert committed == made, "make dashboards writes them anew"


def test_the_catalogue_says_on_which_panels_each_metric_is() -> None:
    said = {metric.name: metric.panels for metric in METRICS if metric.panels}
    assert said == shown_on(), "python -m grafana.boards --shown-on prints what belongs there"


def test_every_metric_is_on_a_panel_or_says_why_not() -> None:
    assert [metric.name for metric in METRICS if bool(metric.panels) == bool(metric.unpanelled)] == []


def test_the_panels_that_the_catalogue_names_show_the_metric() -> None:
    shown = {
        (f"{name}/{panel['title']}", metric)
        for name, panel, target in targets()
        for metric in metrics_in(target["expr"])
    }
    assert {(panel, metric.name) for metric in METRICS for panel in metric.panels} == shown


# -- queries --------------------------------------------------------------------------------------------------------------


def test_queries_ask_for_labels_that_their_metrics_have() -> None:
    for name, panel, target in targets():
        where = f"{name}/{panel['title']}"
        for asked, matchers in SELECTOR.findall(target["expr"]):
            base = asked if asked in KNOWN else re.sub(r"_(?:bucket|sum|count)$", "", asked)
            assert set(MATCHER.findall(matchers)) <= set(KNOWN[base].labels), f"{where}: {asked}{{{matchers}}}"
        read = [set(KNOWN[metric].labels) for metric in metrics_in(target["expr"])]
        for group in GROUPING.findall(target["expr"]):
            for label in filter(None, (part.strip() for part in group.split(","))):
                assert label in OF_TARGETS | MADE_BY_QUERIES or any(label in labels for labels in read), (
                    f"{where}: by ({label})"
                )


def test_every_query_about_jobs_is_about_the_jobs_that_were_chosen() -> None:
    for name, panel, target in targets():
        for asked, matchers in SELECTOR.findall(target["expr"]):
            base = asked if asked in KNOWN else re.sub(r"_(?:bucket|sum|count)$", "", asked)
            if "job" in KNOWN[base].labels:
                wanted = 'job=~"$job"' if name == "overview" else 'job="$job"'
                assert wanted in matchers, f"{name}/{panel['title']}: {asked}"
            if "side" in KNOWN[base].labels:
                assert 'side=~"$side"' in matchers, f"{name}/{panel['title']}: {asked}"


def test_processes_add_up_as_their_owners_say() -> None:
    """Sums of counters, the largest of gauges: two reporters or leaders that are seen at once double nothing."""
    for name, panel, target in targets():
        for asked, _ in SELECTOR.findall(target["expr"]):
            metric = KNOWN.get(asked) or KNOWN[re.sub(r"_(?:bucket|sum|count)$", "", asked)]
            before = target["expr"].split(f"{PREFIX}{asked}")[0]
            where = f"{name}/{panel['title']}: {asked}"
            if metric.kind in (Kind.COUNTER, Kind.HISTOGRAM):
                # A resume increases nothing: a process is born with its 1.
                change = "" if metric.name == "resumes_total" else r"(?:rate|increase)\("
                assert re.search(rf"sum by \([^)]*\) \({change}$", before), where
            elif metric.owner in (Owner.REPORTER, Owner.LEADER):
                assert re.search(r"(?:max|group) by \([^)]*\) \((?:last_over_time\()?$", before), where


@pytest.mark.debian
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{number}", "expr": substituted(target["expr"])}
        for number, (_, _, target) in enumerate(targets())
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = promtool("check", "rules", "--lint=none", str(tmp_path / "rules.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


# -- what a panel tells ---------------------------------------------------------------------------------------------------


@each_dashboard
def test_every_panel_says_what_it_shows_what_to_do_and_in_which_unit(name: str) -> None:
    for panel in panels(name):
        assert len(panel["description"]) > 40, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"]), panel["title"]


@each_dashboard
def test_panels_fill_the_grid_without_overlapping(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in COMMITTED[name]["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert taken == {(x, y) for x in range(24) for y in range(1 + max(y for _, y in taken))}


def test_a_dashboard_keeps_its_address() -> None:
    """Links of people and of our own documents lead there."""
    assert {name: dashboard["uid"] for name, dashboard in COMMITTED.items()} == {
        "overview": "backfill-overview",
        "job": "backfill-job",
        "database": "backfill-database",
    }


@each_dashboard
def test_titles_and_numbers_of_panels_are_unique(name: str) -> None:
    for field in ("id", "title"):
        values = [panel[field] for panel in COMMITTED[name]["panels"]]
        assert len(values) == len(set(values)), field


@each_dashboard
def test_it_refreshes_and_needs_no_plugin(name: str) -> None:
    assert COMMITTED[name]["refresh"] == "30s"
    kinds = {panel["type"] for panel in panels(name)}
    assert kinds <= {"stat", "table", "timeseries", "state-timeline"}
    assert "__inputs" not in COMMITTED[name]


def test_the_overview_is_for_many_jobs_and_the_others_for_one() -> None:
    for name, dashboard in COMMITTED.items():
        variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert variables["datasource"]["query"] == "prometheus"
        assert variables["job"]["multi"] is (name == "overview")
        assert ("side" in variables) is (name == "database")


def test_links_lead_to_dashboards_that_are_there() -> None:
    uids = {dashboard["uid"] for dashboard in COMMITTED.values()}
    for name, dashboard in COMMITTED.items():
        led = set(re.findall(r"/d/([\w-]+)", json.dumps(dashboard)))
        assert led == uids - {dashboard["uid"]}, name


def test_a_table_shows_no_label_or_value_that_nobody_named() -> None:
    tables = [panel for name in COMMITTED for panel in panels(name) if panel["type"] == "table"]
    assert tables
    for panel in tables:
        options = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
        dealt_with = {
            *options["renameByName"],
            *(field for field, is_out in options["excludeByName"].items() if is_out),
        }
        for target in panel["targets"]:
            labels = re.search(r"\bby \(([^)]*)\)", target["expr"])
            assert labels is not None
            grouped = {label.strip() for label in labels[1].split(",")}
            assert {f"Value #{target['refId']}"} <= dealt_with, panel["title"]
            assert grouped <= dealt_with | {"job"}, f"{panel['title']}: {grouped}"


# -- states ---------------------------------------------------------------------------------------------------------------

MOVES = {"since_progress_seconds": "0 1 2 0 1 2 0 1 2 0 1"}
STANDS_STILL = {"since_progress_seconds": "0+15x10"}
FAILS = {'chunks_total{outcome="failed"}': "0+1x10", 'chunks_total{outcome="committed"}': "5x10"}
GOES_WELL = {'chunks_total{outcome="failed"}': "0x10", 'chunks_total{outcome="committed"}': "0+50x10"}
HELD = {'job_held{reason="replication_lag"}': "1x10"}
WAITS = {"job_waiting": "1x10"}

SITUATIONS: dict[str, tuple[str, dict[str, str], Shown]] = {
    "it moves": ("running", MOVES | GOES_WELL, Shown.RUNNING),
    "it compares": ("verifying", MOVES | GOES_WELL, Shown.VERIFYING),
    "a chunk failed and others went well": (
        "running",
        MOVES | GOES_WELL | {'chunks_total{outcome="failed"}': "0+1x10"},
        Shown.RUNNING,
    ),
    "a signal holds it": ("running", STANDS_STILL | GOES_WELL | HELD, Shown.HELD),
    "a signal holds it after failures": ("running", STANDS_STILL | FAILS | HELD, Shown.HELD),
    "nothing moves, fails or holds": ("running", STANDS_STILL | GOES_WELL, Shown.STALLED),
    "a verification does not move": ("verifying", STANDS_STILL | GOES_WELL, Shown.STALLED),
    "nobody counts chunks any more": ("running", STANDS_STILL, Shown.STALLED),
    "chunks only fail": ("running", STANDS_STILL | FAILS, Shown.FAILING),
    "it waits for somebody's transaction": ("running", STANDS_STILL | GOES_WELL | WAITS, Shown.WAITING),
    "it waits before it tries a chunk again": ("running", STANDS_STILL | FAILS | WAITS, Shown.FAILING),
    "paused": ("paused", STANDS_STILL | HELD, Shown.PAUSED),
    "failed": ("failed", STANDS_STILL | FAILS, Shown.FAILED),
    "done": ("done", STANDS_STILL, Shown.DONE),
    "cancelled": ("cancelled", STANDS_STILL, Shown.CANCELLED),
    "planned": ("planned", {"since_progress_seconds": "0x10"}, Shown.PLANNED),
}
SAMPLES = 11
AT = "150s"  # the last sample, at a scrape each 15 s

GONE = {
    "was at work": ({"a": ("running", "1 1 1 stale")}, Shown.UNREPORTED),
    "was done": ({"a": ("done", "1 1 1 stale")}, Shown.DONE),
    "had failed": ({"a": ("failed", "1 1 1 stale")}, Shown.FAILED),
    "had failed, and was resumed": (
        {"a": ("failed", "1 1 1 stale"), "b": ("running", "_ _ _ _ 1 1 stale")},
        Shown.UNREPORTED,
    ),
    "was resumed, and then done": (
        {"b": ("running", "1 1 1 stale"), "a": ("done", "_ _ _ _ 1 1 stale")},
        Shown.DONE,
    ),
}
"""Jobs of which nobody reports any more: who had said what of them, and when."""


def told(job: str, instance: str, state_told: str, values: str) -> Iterator[dict[str, str]]:
    for one in JobState:
        labels = f'job="{job}", state="{one}", instance="{instance}"'
        shown = values if one == state_told else re.sub(r"\b1(?=x|\b)", "0", values)
        yield {"series": f"{PREFIX}job_state{{{labels}}}", "values": shown}


def series(job: str, state_now: str, more: dict[str, str]) -> Iterator[dict[str, str]]:
    for instance in ("a", "b"):  # twice, as while the reporter changes
        yield from told(job, instance, state_now, f"1x{SAMPLES}")
    for name, given in more.items():
        metric, _, labels = name.partition("{")
        inside = ", ".join(part for part in (f'job="{job}"', 'instance="a"', labels.rstrip("}")) if part)
        yield {"series": f"{PREFIX}{metric}{{{inside}}}", "values": given}


def proven(tmp_path: Path, expressions: dict[str, list[dict[str, Any]]]) -> None:
    """Ask promtool whether each expression gives these samples of what ``SITUATIONS`` and ``GONE`` tell."""
    inputs = [one for job, (now, more, _) in SITUATIONS.items() for one in series(job, now, more)]
    for job, (by, _) in GONE.items():
        inputs += [one for instance, (now, values) in by.items() for one in told(job, instance, now, values)]
    checks = [
        {"expr": substituted(expression), "eval_time": AT, "exp_samples": samples}
        for expression, samples in expressions.items()
    ]
    case = {"interval": "15s", "input_series": inputs, "promql_expr_test": checks}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    tested = promtool("test", "rules", str(tmp_path / "tests.yaml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.debian
def test_the_overview_tells_jobs_apart(tmp_path: Path) -> None:
    now = {job: shown for job, (_, _, shown) in SITUATIONS.items()}
    gone = {job: shown for job, (_, shown) in GONE.items()}

    def samples(of: dict[str, Shown]) -> list[dict[str, Any]]:
        return [{"labels": f'{{job="{job}"}}', "value": shown.value} for job, shown in of.items()]

    scope = Scope('job=~"$job"')
    proven(tmp_path, {state(scope): samples(now), state(scope, past=True): samples(now | gone)})
    assert set(now.values()) | set(gone.values()) == set(Shown), "a state that no situation leads to"


@pytest.mark.debian
def test_the_counts_on_top_are_those_of_the_table(tmp_path: Path) -> None:
    shown = [shown for _, _, shown in SITUATIONS.values()] + [shown for _, shown in GONE.values()]
    scope = Scope('job=~"$job"')
    expected = {count(scope, one): [{"labels": "{}", "value": shown.count(one)}] for one in Shown}
    for pair in ((Shown.RUNNING, Shown.VERIFYING), (Shown.FAILED, Shown.UNREPORTED)):
        expected[count(scope, *pair)] = [{"labels": "{}", "value": sum(map(shown.count, pair))}]
    nobody = count(Scope('job="nobody"'), Shown.STALLED)
    proven(tmp_path, expected | {nobody: [{"labels": "{}", "value": 0}]})


def test_every_state_is_counted_in_one_tile() -> None:
    tiles = [panel for panel in panels("overview") if panel["type"] == "stat" and panel["title"] != "Reporters"]
    counted = []
    for tile in tiles:
        (limits,) = re.findall(r"\) (== \d+|>= \d+ <= \d+)\) or vector", tile["targets"][0]["expr"])
        low, high = (re.findall(r"\d+", limits) * 2)[:2]
        counted += range(int(low), int(high) + 1)
    assert sorted(counted) == sorted(Shown)


def test_states_look_different() -> None:
    assert set(LOOKS) == set(Shown)
    assert len({look.text for look in LOOKS.values()}) == len({look.colour for look in LOOKS.values()}) == len(Shown)


def test_what_needs_somebody_is_on_top_of_the_table() -> None:
    table = next(panel for panel in panels("overview") if panel["title"] == "Jobs")
    assert table["options"]["sortBy"] == [{"displayName": "state", "desc": True}]
    urgent = [Shown.FAILED, Shown.STALLED, Shown.FAILING, Shown.UNREPORTED]
    assert min(urgent) > max(set(Shown) - set(urgent))


# -- provisioning ---------------------------------------------------------------------------------------------------------


def yaml_of(path: str) -> Any:
    return yaml.safe_load((GRAFANA / path).read_text())


def test_every_path_of_the_compose_file_is_there() -> None:
    compose = yaml_of("compose.yaml")
    mounts = [mount.split(":") for service in compose["services"].values() for mount in service["volumes"]]
    for source, target, *mode in mounts:
        if source.startswith("./"):
            assert (GRAFANA / source).exists(), source
            assert mode == ["ro"], f"{target} is ours: nothing in a container writes to it"
        else:
            assert source in compose["volumes"]


def test_what_the_containers_read_is_mounted_where_they_look() -> None:
    services = yaml_of("compose.yaml")["services"]
    inside = {
        target: source
        for service in services.values()
        for source, target, *_ in (mount.split(":") for mount in service["volumes"])
    }
    config = yaml_of("prometheus/prometheus.yml")
    (provider,) = yaml_of("provisioning/dashboards/backfill.yaml")["providers"]
    (source,) = yaml_of("provisioning/datasources/backfill.yaml")["datasources"]
    assert inside[provider["options"]["path"]] == "./dashboards"
    assert inside["/etc/grafana/provisioning"] == "./provisioning"
    assert inside["/etc/prometheus/prometheus.yml"] == "./prometheus/prometheus.yml"
    for pattern in (*config["rule_files"], *config["scrape_configs"][0]["file_sd_configs"][0]["files"]):
        folder, _, names = pattern.rpartition("/")
        assert list((GRAFANA / inside[folder]).glob(names)), pattern
    assert source["url"] == "http://prometheus:9090"
    assert source["type"] == "prometheus"
    assert "prometheus" in services
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (GRAFANA / "dashboards" / Path(home).name).exists()
    assert Path(home).parent == Path(provider["options"]["path"])


def test_nothing_is_reachable_from_other_machines() -> None:
    services = yaml_of("compose.yaml")["services"].values()
    assert all(port.startswith("127.0.0.1:") for service in services for port in service["ports"])


def test_a_scrape_keeps_the_jobs_names() -> None:
    (scrape,) = yaml_of("prometheus/prometheus.yml")["scrape_configs"]
    assert scrape["honor_labels"] is True


@pytest.mark.debian
def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    text = (GRAFANA / "prometheus" / "prometheus.yml").read_text()
    shutil.copytree(GRAFANA / "prometheus" / "targets", tmp_path / "targets")
    shutil.copytree(GRAFANA / "alerts", tmp_path / "alerts")
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/", ""))
    checked = promtool("check", "config", "prometheus.yml", folder=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "1 rule files found" in checked.stdout


# -- the files that come with the program ---------------------------------------------------------------------------------


def test_a_wheel_has_what_a_checkout_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setattr(Build, "cythonize", lambda *_, **__: [])
    stale = tmp_path / "engine" / "telemetry" / "grafana" / "dashboards" / "gone.json"
    stale.parent.mkdir(parents=True)
    stale.touch()
    runpy.run_path("setup.py")["pack"](tmp_path)
    checkout = boards.files()
    monkeypatch.setattr(boards, "PACKED", tmp_path / "engine" / "telemetry" / "grafana")
    assert boards.files() == checkout == boards.gathered(ROOT)


def test_what_is_exported_is_complete_and_nothing_else() -> None:
    names = {str(path) for path in boards.files()}
    assert {f"dashboards/{name}.json" for name in BOARDS} <= names
    assert {"compose.yaml", "README.md", "alerts/backfill.rules.yaml", "prometheus/prometheus.yml"} <= names
    assert {f"docs/operations/{page.name}" for page in (ROOT / "docs" / "operations").glob("*.md")} <= names
    assert not [name for name in names if name.endswith((".py", ".tests.yaml")) or "__pycache__" in name]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``backfill dashboards export`` writes."""
    folder = tmp_path_factory.mktemp("exported")
    for name, content in boards.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_links_of_exported_pages_lead_to_exported_pages(exported: Path) -> None:
    links = [
        (page, target, anchor)
        for page in exported.rglob("*.md")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)\s#]*)#?([^)\s]*)\)", page.read_text())
    ]
    assert len(links) > 50
    for page, target, anchor in links:
        there = (page.parent / target).resolve() if target else page
        assert there.is_file() and there.is_relative_to(exported), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}#{anchor}"


def test_each_alert_leads_to_its_section_in_what_is_exported(exported: Path) -> None:
    rules = (exported / "alerts" / "backfill.rules.yaml").read_text()
    runbooks = re.findall(r"runbook: (\S+)#(\S+)", rules)
    assert len(runbooks) == rules.count("- alert:")
    for path, anchor in runbooks:
        assert anchor in anchors(exported / path)


def test_what_the_exported_readme_names_is_in_its_folder(exported: Path) -> None:
    readme = (exported / "README.md").read_text()
    for path in re.findall(r"`([\w./-]+(?:/|\.ya?ml))`", readme):
        assert (exported / path).exists(), path
    for command in re.findall(r"docker compose[^\n`]*", readme + (exported / "compose.yaml").read_text()):
        assert command == "docker compose up", "it finds compose.yaml in the folder that it is called in"
