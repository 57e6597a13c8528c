"""What an operator sees and orders, from any terminal that reaches the ledger."""

from __future__ import annotations

import signal
from pathlib import Path

from engine.cli.places import operator
from tests.cli.conftest import Cli
from tests.support.databases import FreshDatabase, TwoDatabases

STATUS = {
    "job", "state", "mode", "source", "target", "rows_done", "rows_estimated", "progress", "rows_per_s", "eta_s",
    "workers", "spans", "pace", "signals", "waits", "retries", "quarantined", "started_at", "finished_at", "error",
}  # fmt: skip
"""The fields of ``status --json``, as users' scripts know them."""


# -- status and list --------------------------------------------------------------------------------------------------


def test_status_tells_a_running_job_in_one_line(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0 AND workers = 2")
    shown = backfill("status", "cents")
    assert shown.code == 0
    head = shown.out.splitlines()[0]
    assert head.startswith("cents: running ")
    assert " of 20.0 k rows, " in head
    assert "2 workers" in head
    seen = backfill("status", slow_job, "--json").json
    assert set(seen) >= STATUS
    assert (seen["state"], seen["workers"], seen["spans"]["done"]) == ("running", 2, 0)
    assert 0 < seen["progress"] < 1
    assert (seen["pace"]["limit_rows_per_s"], seen["pace"]["max_rows_per_s"]) == (2000, 2000)
    running.signal(signal.SIGINT)
    running.end()
    assert "nobody works on it" in backfill("status", "cents").out


def test_status_of_a_done_job(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    seen = backfill("status", "cents", "--json").json
    assert (seen["state"], seen["progress"], seen["rows_done"], seen["error"]) == ("done", 1.0, 20000, None)
    assert seen["spans"]["total"] == seen["spans"]["done"] > 0
    assert backfill("status", "cents").out.startswith("cents: done 100 % 20.0 k rows\n")


def test_watching_ends_with_the_job(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    watching = backfill.start("status", "cents", "--watch")
    backfill("pace", "cents", "--max-rows-per-s", "1e6")
    seen = watching.end()
    assert seen.code == 0
    assert seen.out.splitlines()[-1] == "cents: done 100 % 20.0 k rows"
    assert running.end().code == 0


def test_list_shows_every_job(backfill: Cli, shop: FreshDatabase, spec) -> None:
    nothing = backfill("list")
    assert (nothing.code, nothing.out) == (0, "")
    assert "no jobs in" in nothing.err
    backfill("run", spec())
    backfill("run", spec(name="more", set={"cents": "1"}))
    assert [job["job"] for job in backfill("list", "--json").json] == ["cents", "more"]
    lines = backfill("list").out.splitlines()
    assert lines[0].split()[:2] == ["job", "state"]
    assert lines[2].split()[:2] == ["more", "done"]


def test_a_file_stands_for_its_job_and_its_database(
    backfill: Cli, two_shops: TwoDatabases, copy_job: Path, monkeypatch
) -> None:
    backfill("run", copy_job)
    assert backfill("status", copy_job, "--json").json["job"] == "copy"
    assert backfill("status", "copy").code == 5, "by its name the ledger must be named too"
    assert backfill("status", "copy", "--dsn", two_shops.target.dsn).code == 0


def test_an_unknown_job_is_told_the_nearest_name(backfill: Cli, shop: FreshDatabase, spec) -> None:
    assert "holds no ledger" in backfill("status", "cents").err
    backfill("run", spec())
    for command in (["status"], ["pause"], ["resume"], ["cancel"], ["wait"], ["history"], ["pace", "--no-limit"]):
        unknown = backfill(*command, "cnets")
        assert unknown.code == 2, command
        assert "did you mean cents?" in unknown.err
    assert "no such file either" in backfill("status", "jbo.yaml").err
    assert backfill("status", "no such/thing").code == 2


# -- orders -----------------------------------------------------------------------------------------------------------


def test_orders_are_in_the_history_with_their_reason(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    backfill("pause", "cents", "--reason", "disk is filling")
    until(shop, "state = 'paused'")
    assert "disk is filling" in backfill("status", "cents").out
    assert "backfill resume" in backfill("status", "cents").out
    backfill("resume", "cents", "--reason", "more disk")
    backfill("pace", "cents", "--max-rows-per-s", "1000000")
    assert running.end().code == 0
    entries = backfill("history", "cents", "--json").json
    assert [entry["what"] for entry in entries] == ["created", "running", "paused", "running", "pace", "done"]
    assert entries[2]["detail"]["reason"] == "disk is filling"
    assert entries[0]["who"] == "postgres (backfill/cents/control)"
    assert entries[2]["who"] == entries[4]["who"] == operator()
    assert "reason: more disk" in backfill("history", "cents").out


def test_orders_that_do_not_fit_the_state_say_so(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    for order in ("pause", "resume", "cancel"):
        told = backfill(order, "cents", "--json")
        assert told.code == 0
        assert told.json["state"] == "done"
        assert f"there is nothing to {order}" in told.err


def test_pace_reaches_the_workers_within_two_seconds(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    running = backfill.start("run", slow_job, "--json")
    until(shop, "rows_done > 0")
    assert "max_rows_per_s" in backfill("pace", "cents").out
    assert "max_rows_per_s 1.00 M" in backfill("pace", "cents", "--max-rows-per-s", "1e6").err
    done = running.end(5)
    assert done.json["rows_per_s"] > 3000
    assert backfill("pace", "cents", "--no-limit", "--json").json["pace"]["max_rows_per_s"] == 2000, "the spec's"


# -- wait -------------------------------------------------------------------------------------------------------------


def test_wait_ends_with_the_jobs_own_code(backfill: Cli, shop: FreshDatabase, slow_job: Path, spec, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    assert backfill("wait", "cents", "--timeout", "200ms").code == 75
    waiting = backfill.start("wait", "cents", "--json")
    backfill("cancel", "cents")
    ended = waiting.end()
    assert (ended.code, ended.json["state"]) == (8, "cancelled")
    running.end()
    backfill("run", spec(name="other"))
    assert backfill("wait", "other").code == 0
    assert backfill("wait", "other", "--timeout", "5").code == 2, "a duration needs its unit"
