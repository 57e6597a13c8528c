"""``backfill worker``: a host that works the jobs of a ledger, and lends them only what its operator allowed."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.cli.conftest import Cli, eventually, wrong_rows
from tests.support.databases import FreshDatabase, TwoDatabases

COPY_WRONG = "SELECT count(*) FROM orders_v2 WHERE cents IS DISTINCT FROM (amount * 100)::bigint"


@pytest.fixture
def begun(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> str:
    """A job in place that somebody began and left."""
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    running.signal(signal.SIGINT)
    running.end()
    backfill("pace", "cents", "--max-rows-per-s", "1e6")
    backfill.started.clear()
    return "cents"


@pytest.fixture
def begun_copy(backfill: Cli, two_shops: TwoDatabases, copy_job: Path) -> str:
    """A copy that waits for workers."""
    copy_job.write_text(copy_job.read_text() + "pace: {max_rows_per_s: 500}\nchunk: {max_rows: 100}\n")
    running = backfill.start("run", copy_job, "--json")
    assert running.process.stdout is not None
    while "chunk.committed" not in running.process.stdout.readline():
        pass
    running.signal(signal.SIGINT)
    assert running.end().code == 130
    backfill("pace", copy_job, "--max-rows-per-s", "1e6")
    return "copy"


def test_a_worker_ends_what_others_began(backfill: Cli, shop: FreshDatabase, begun: str) -> None:
    done = backfill("worker", "--once", "--json")
    assert done.code == 0
    assert done.events("job.finished")[0]["rows"] == 20000
    assert wrong_rows(shop) == 0
    assert "settings" not in [entry["what"] for entry in backfill("history", begun, "--json").json]


def test_a_worker_without_work_ends_or_waits(backfill: Cli, shop: FreshDatabase) -> None:
    assert backfill("worker", "--once").code == 0
    waiting = backfill.start("worker")
    has_come = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'backfill/%' AND state = 'idle')"
    )
    eventually(lambda: shop.sql(has_come).strip() == "t", "a session of the worker's")
    with pytest.raises(Exception, match="timed out"):
        waiting.process.wait(1.0)
    waiting.signal(signal.SIGTERM)
    assert waiting.end().code == 143


def test_a_waiting_worker_takes_up_a_job_when_there_is_one(
    backfill: Cli, shop: FreshDatabase, begun: str, until
) -> None:
    backfill("pause", begun)
    waiting = backfill.start("worker", "--json")
    with pytest.raises(Exception, match="timed out"):
        waiting.process.wait(1.5)
    backfill("resume", begun)
    until(shop, "state = 'done'")
    waiting.signal(signal.SIGINT)
    ended = waiting.end()
    assert ended.code == 130
    assert ended.events("job.finished")[0]["state"] == "done"


def test_only_the_jobs_that_were_named_are_worked(backfill: Cli, shop: FreshDatabase, begun: str) -> None:
    assert backfill("worker", "--once", "--job", "another").code == 0
    assert wrong_rows(shop) > 0


def test_a_copys_source_comes_by_a_flag_or_by_an_allowed_reference(
    backfill: Cli, two_shops: TwoDatabases, begun_copy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DSN")
    aside = backfill("worker", "--once", "--dsn", two_shops.target.dsn)
    assert aside.code == 2
    assert "${SOURCE_DSN}, which is not set here" in aside.err
    monkeypatch.setenv("SOURCE_DSN", two_shops.source.dsn)
    assert backfill("worker", "--once", "--dsn", two_shops.target.dsn).code == 0
    assert two_shops.target.sql(COPY_WRONG).strip() == "0"
    assert two_shops.target.sql("SELECT count(*) FROM orders_v2").strip() == "5000"
    history = backfill("history", "copy", "--dsn", two_shops.target.dsn, "--json").json
    assert "settings" not in [entry["what"] for entry in history], "who works a job does not rewrite its settings"


def test_a_source_dsn_serves_any_copy(
    backfill: Cli, two_shops: TwoDatabases, begun_copy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DSN")
    worker = ("worker", "--once", "--dsn", two_shops.target.dsn)
    assert backfill(*worker, "--source-dsn", two_shops.source.dsn).code == 0
    assert two_shops.target.sql("SELECT count(*) FROM orders_v2").strip() == "5000"


def test_a_reference_that_nobody_allowed_is_not_looked_up(
    backfill: Cli, two_shops: TwoDatabases, begun_copy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger is untrusted: a row in it must not make this host read its other secrets."""
    monkeypatch.setenv("OTHER_SECRET", two_shops.source.dsn)
    two_shops.target.sql(
        "UPDATE backfill.job SET spec = jsonb_set(spec, '{source,dsn,reference}', '\"${OTHER_SECRET}\"')"
    )
    worker = ("worker", "--once", "--dsn", two_shops.target.dsn)
    refused = backfill(*worker)
    assert refused.code == 2
    assert "may not look up" in refused.err
    assert backfill(*worker, "--env", "OTHER_SECRET").code == 0


class _Go(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def gate() -> Iterator[str]:
    """The URL of a server that says go, and remembers who asked."""
    _Go.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Go) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/check"
        server.shutdown()


def test_a_signals_url_is_asked_only_where_the_operator_allowed_it(
    backfill: Cli, shop: FreshDatabase, begun: str, gate: str
) -> None:
    """The ledger is untrusted: a row in it must not make this host contact addresses."""
    signal_of_the_row = json.dumps([{"http": {"name": "freno", "url": gate}}])
    shop.sql(f"UPDATE backfill.job SET spec = jsonb_set(spec, '{{pace,signals}}', '{signal_of_the_row}')")
    refused = backfill("worker", "--once")
    assert refused.code == 2
    assert f"asks {gate.removesuffix('/check')}, which this worker may not contact" in refused.err
    assert backfill("worker", "--once", "--allow-url", gate + "er").code == 2
    assert not _Go.asked
    assert backfill("worker", "--once", "--allow-url", gate).code == 0
    assert _Go.asked
    assert wrong_rows(shop) == 0
    # Of the commands that take the job by its name, only the one that is paced asks.
    _Go.asked.clear()
    assert backfill("quarantine", "retry", "cents", "--all").code == 0
    assert backfill("gate", "cents").code == 7
    assert backfill("verify", "cents").code == 2
    assert not _Go.asked
    assert backfill("verify", "cents", "--allow-url", gate).code == 0
    assert _Go.asked
