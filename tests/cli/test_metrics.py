"""``--metrics-listen``: what a scrape sees of a real job is what the ledger says of it."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.telemetry.metrics import Metrics
from tests.cli.conftest import Cli, Started, eventually, wrong_rows
from tests.support.databases import FreshDatabase

LISTEN = ("--metrics-listen", "127.0.0.1:0")
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scraped:
    """A process with metrics, and what its scrapes have seen: the last values, and that no counter went down."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self.said: list[str] = []
        self.now: Series = {}
        assert started.process.stderr is not None
        for line in started.process.stderr:
            self.said.append(line)
            if found := re.search(r"metrics: (http://\S+)", line):
                self.url = found[1]
                return
        pytest.fail(f"it says no address: {self.said}")

    def scrape(self) -> bool:
        """True when it answered."""
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return False
        fresh: Series = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in fresh, f"{key} comes twice"
                fresh[key] = sample.value
                if family.type in ("counter", "histogram") and key in self.now:
                    assert sample.value >= self.now[key], f"{key} went down"
        self.now = fresh
        return True

    def __call__(self, name: str, **labels: str) -> float | None:
        """The sum of all series with these labels; None without any."""
        found = [
            n for (one, of), n in self.now.items() if one == f"backfill_{name}" and labels.items() <= dict(of).items()
        ]
        return sum(found) if found else None


def all_scraped(processes: list[Scraped], condition: Callable[[], bool], what: str) -> None:
    """Scrape them all until it holds."""

    def holds() -> bool:
        for one in processes:
            one.scrape()
        return condition()

    eventually(holds, what)


def to_the_end(processes: list[Scraped]) -> None:
    """Scrape until no one answers any more; each must have ended by itself."""

    def all_ended() -> bool:
        for one in processes:
            one.scrape()
        return all(one.started.process.poll() is not None for one in processes)

    eventually(all_ended, "the end of all processes")


def status_of(backfill: Cli, job: str) -> Any:
    return backfill("status", job, "--json").json


@pytest.fixture
def busy_job(shop: FreshDatabase, spec: Callable[..., Path]) -> Path:
    """Some three seconds of work, with one bad row, one row that somebody holds for a moment, and a verification."""
    return spec(
        set={"cents": "(amount * 100)::bigint / (CASE WHEN id = 777 THEN 0 ELSE 1 END)"},
        done="cents IS NOT NULL",
        verify="after",
        lock_timeout="100ms",
        errors={"max_quarantined": 3},
        pace={"max_rows_per_s": 8000, "signals": "off"},
        chunk={"max_rows": 200},
    )


def test_a_run_tells_while_it_runs_and_at_its_end_what_the_ledger_says(
    backfill: Cli, shop: FreshDatabase, busy_job: Path
) -> None:
    blocker = threading.Thread(
        target=shop.sql, args=("BEGIN; SELECT FROM orders WHERE id = 9000 FOR UPDATE; SELECT pg_sleep(1); COMMIT",)
    )
    blocker.start()
    run = Scraped(backfill.start("run", busy_job, *LISTEN, "--json"))
    one = [run]
    all_scraped(one, lambda: (run("rows_total") or 0) > 0 and run("job_state", state="running") == 1, "a running job")
    assert run("reporter") == 1
    assert 0 < run("progress_ratio") < 1
    assert run("database_up", side="target") == 1
    to_the_end(one)
    blocker.join()
    ended = run.started.end()
    assert ended.code == 6, ended.err  # the row that was set aside differs
    seen = status_of(backfill, "cents")
    assert seen["quarantined"] == seen["verification"]["mismatched"] == 1
    assert seen["retries"] >= 2 and seen["verification"]["rows"] == 20000
    expected = {
        "rows_total": seen["rows_done"],
        "bytes_total": json.loads(ended.out.splitlines()[-1])["bytes"],
        "retries_total": seen["retries"],
        "quarantined_rows_total": seen["quarantined"],
        "verify_rows_total": seen["verification"]["rows"],
        "verify_mismatched_rows_total": sum(seen["verification"][kind] for kind in ("mismatched", "missing", "extra")),
        "rows_done": seen["rows_done"],
        "rows_remaining": 0,
        "progress_ratio": seen["progress"],
        "rows_quarantined": 1,
        "workers": 0,
    }
    assert {name: run(name) for name in expected} == expected
    assert run("chunks_total", outcome="committed") == json.loads(ended.out.splitlines()[-1])["chunks"]
    assert run("chunks_total", outcome="failed") == run("retries_total")
    assert run("retries_total", sqlstate="22012") >= 1
    assert run("job_state", state="done") == 1 and run("job_state") == 1
    assert run("spans", state="done") == seen["spans"]["total"]
    waited = {reason: run("held_seconds_total", reason=reason) for reason in seen["waits"]}
    assert waited == pytest.approx(seen["waits"], abs=0.11)  # the view rounds
    assert wrong_rows(shop) == 1  # the one that was set aside


def test_what_two_processes_count_adds_up_and_one_of_them_reports(
    backfill: Cli, shop: FreshDatabase, spec: Callable[..., Path]
) -> None:
    path = spec(pace={"max_rows_per_s": 5000, "signals": "off"}, chunk={"max_rows": 100})
    both = [Scraped(backfill.start("run", path, *LISTEN, "--json")) for _ in range(2)]
    all_scraped(both, lambda: all((one("rows_total") or 0) > 0 for one in both), "work of both")
    all_scraped(both, lambda: any(one("reporter") == 1 for one in both), "a reporter")
    to_the_end(both)
    ended = [one.started.end() for one in both]
    assert [one.code for one in ended] == [0, 0], ended
    sums = Counter(
        {name: sum(one(name) or 0 for one in both) for name in ("rows_total", "bytes_total", "resumes_total")}
    )
    finished = json.loads(ended[0].out.splitlines()[-1])
    assert sums == {"rows_total": 20000, "bytes_total": finished["bytes"], "resumes_total": 1}
    assert sum(one("chunks_total", outcome="committed") or 0 for one in both) == finished["chunks"]
    reports = [one("rows_done") for one in both]
    assert sorted(reports, key=str) in ([20000.0, None], [20000.0, 20000.0])  # the second: after the first had left
    assert sorted(one("reporter") for one in both) in ([0, 1], [1, 1])


def test_counts_survive_a_partner_that_is_killed(backfill: Cli, shop: FreshDatabase, spec: Callable[..., Path]) -> None:
    path = spec(pace={"max_rows_per_s": 4000, "signals": "off"}, chunk={"max_rows": 100})
    killed, other = both = [Scraped(backfill.start("run", path, *LISTEN, "--json")) for _ in range(2)]
    all_scraped(both, lambda: all((one("rows_total") or 0) > 500 for one in both), "work of both")
    killed.started.signal(signal.SIGKILL)
    killed.started.end()
    before = other("rows_total")
    assert not killed.scrape()
    all_scraped([other], lambda: other("rows_total") > before + 500, "more work of the other one")
    other.started.signal(signal.SIGTERM)
    to_the_end([other])
    other.started.end()
    # What somebody did after his last scrape is lost with him, and only that.
    done = status_of(backfill, "cents")["rows_done"]
    assert done - 2000 <= killed("rows_total") + other("rows_total") <= done


def test_a_copy_has_histograms_of_the_latencies_of_both_databases(backfill: Cli, copy_job: Path) -> None:
    copy_job.write_text(f"{copy_job.read_text()}pace: {{max_rows_per_s: 2000}}\n")
    run = Scraped(backfill.start("run", copy_job, *LISTEN))

    def probes(name: str) -> float:
        return run("probe_seconds_count", signal=name) or 0

    names = ("read_latency@source", "read_latency@target", "commit_latency@target")
    all_scraped([run], lambda: all(probes(name) > 0 for name in names), "readings of all latencies")
    assert {dict(labels)["signal"] for name, labels in run.now if name == "backfill_probe_seconds_count"} == {*names}
    run.started.signal(signal.SIGTERM)
    run.started.end()


# -- lingering --------------------------------------------------------------------------------------------------------


def test_nobody_waits_for_a_scrape_where_nobody_scrapes(backfill: Cli, shop: FreshDatabase, spec) -> None:
    done = backfill("run", spec(), *LISTEN, "--metrics-linger", "10m")
    assert done.code == 0
    assert "last scrape" not in done.err
    assert done.err.count("metrics: http://127.0.0.1:") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_lingering_and_the_exit_code_is_the_jobs(
    backfill: Cli, shop: FreshDatabase, spec, number: signal.Signals
) -> None:
    run = Scraped(backfill.start("run", spec(), *LISTEN, "--metrics-linger", "10m"))
    assert run.scrape()
    assert run.started.process.stderr is not None
    while "for a last scrape" not in run.started.process.stderr.readline():
        pass
    run.started.signal(number)
    assert run.started.end().code == 0
    assert wrong_rows(shop) == 0


def test_who_is_told_to_stop_does_not_linger(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    run = Scraped(backfill.start("run", slow_job, *LISTEN, "--metrics-linger", "10m"))
    until(shop, "rows_done > 0")
    assert run.scrape()
    run.started.signal(signal.SIGTERM)
    ended = run.started.end()
    assert ended.code == 143
    assert "last scrape" not in ended.err


# -- workers, refusals, mishaps ---------------------------------------------------------------------------------------


def test_a_worker_has_metrics_too(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    first = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    worker = Scraped(backfill.start("worker", *LISTEN, "--once", "--json"))
    all_scraped([worker], lambda: (worker("rows_total", job="cents") or 0) > 0, "work of the worker")
    assert worker("resumes_total") == 1
    watching = Scraped(backfill.start("run", slow_job, "--attach", *LISTEN))
    all_scraped([watching], lambda: watching("resumes_total") is not None, "somebody who watches the job")
    assert watching("resumes_total") == 0
    backfill("pace", "cents", "--max-rows-per-s", "1e6")
    to_the_end([worker, watching])
    assert watching.started.end().code == 0
    assert worker.started.end().code == first.end().code == 0
    assert worker("rows_done") == 20000


def test_an_address_in_use_is_refused_before_anything_is_touched(backfill: Cli, shop: FreshDatabase, spec) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        for command in (("run", spec()), ("worker", "--once")):
            refused = backfill(*command, "--metrics-listen", listen)
            assert refused.code == 2
            assert f"cannot listen on {listen}: address already in use" in refused.err
            assert "hint: another process listens there" in refused.err
    assert shop.sql("SELECT to_regnamespace('backfill') IS NULL").strip() == "t"


@pytest.mark.parametrize(
    "options", [("--metrics-listen", "9187"), ("--metrics-listen", ":9187"), (*LISTEN, "--metrics-linger", "20")]
)
def test_options_that_make_no_sense_are_refused_with_a_hint(
    backfill: Cli, shop: FreshDatabase, spec, options: tuple[str, ...]
) -> None:
    refused = backfill("run", spec(), *options)
    assert refused.code == 2
    assert "hint" in refused.err


def test_metrics_that_fail_do_not_fail_the_job(
    backfill: Cli, shop: FreshDatabase, spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metrics, "__call__", lambda *_: 1 / 0)
    monkeypatch.setattr(Metrics, "report", lambda *_, **__: 1 / 0)
    done = backfill("run", spec(), *LISTEN)
    assert done.code == 0
    assert done.err.count("some metrics are missing") == 1
    assert wrong_rows(shop) == 0
