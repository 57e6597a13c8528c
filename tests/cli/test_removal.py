"""``restart`` and ``cleanup``: what they take away, what they leave, and when they refuse."""

from __future__ import annotations

import getpass
import signal
import socket
from pathlib import Path

import pytest

from engine.cli import places
from tests.cli.conftest import Cli, wrong_rows
from tests.support.databases import FreshDatabase


def test_nothing_is_removed_unless_somebody_says_yes(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    for command in (["restart", "cents"], ["cleanup", "cents"], ["cleanup", "--all"]):
        asked = backfill.start(*command).end()
        assert asked.code == 2, command
        assert "--yes" in asked.err
    assert backfill("status", "cents").code == 0


def test_restart_begins_anew_and_keeps_rows_and_history(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    shop.sql("UPDATE orders SET cents = NULL WHERE id <= 10")
    assert backfill("restart", "cents", "--yes", "--json").json == {"job": "cents", "restarted": True}
    assert wrong_rows(shop) == 10
    assert backfill("status", "cents").code == 2
    again = backfill("run", spec(), "--json")
    assert (again.code, again.json["rows"], again.json["resumed"]) == (0, 10, False)
    whats = [entry["what"] for entry in backfill("history", "cents", "--json").json]
    assert whats == ["created", "running", "done", "restart", "created", "running", "done"]


def test_no_removal_under_workers_that_are_alive(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "workers > 0")
    for command in (["restart", "cents"], ["cleanup", "cents"], ["cleanup", "--all"]):
        refused = backfill(*command, "--yes")
        assert refused.code == 75, command
        assert "alive" in refused.err
    running.signal(signal.SIGINT)
    assert running.end().code == 130
    assert backfill("cleanup", "cents", "--yes").code == 0


@pytest.mark.parametrize("what", ["cents", "--all"])
async def test_nobody_works_a_job_whose_triggers_are_taken_away(
    backfill: Cli, shop: FreshDatabase, spec, until, what: str
) -> None:
    slow = spec(pace={"max_rows_per_s": 2000, "signals": "off"}, chunk={"max_rows": 100})
    assert backfill.start("dualwrite", slow, "--install").end().code == 0
    running = backfill.start("run", slow)
    until(shop, "rows_done > 0")
    running.signal(signal.SIGINT)
    assert running.end().code == 130
    backfill.started.remove(running)  # it may have ended so
    holder = await shop.connect()
    await holder.execute("BEGIN; SELECT FROM orders LIMIT 1")
    removing = backfill.start("cleanup", what, "--yes")
    until(shop, "state = 'cancelled'")
    triggers = "SELECT count(*) > 0 FROM pg_trigger WHERE tgname LIKE 'zz_backfill%'"
    assert shop.sql(triggers) == "t"
    await holder.execute("ROLLBACK")
    assert removing.end().code == 0
    assert shop.sql(triggers) == "f"
    await holder.close()


def test_cleanup_of_a_job_leaves_the_others_and_the_history(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    backfill("run", spec(name="other", set={"cents": "1"}))
    shown = backfill("cleanup", "cents", "--yes", "--json")
    assert shown.json == {"removed": ["cents"]}
    assert "removes from" in shown.err
    assert [job["job"] for job in backfill("list", "--json").json] == ["other"]
    assert backfill("history", "cents", "--json").json[-1]["what"] == "cleanup"
    assert wrong_rows(shop) == 0


def test_history_keeps_from_whose_terminal_a_job_was_forgotten(backfill: Cli, shop: FreshDatabase, spec) -> None:
    for command in ("restart", "cleanup"):
        backfill("run", spec())
        backfill(command, "cents", "--yes")
        last = backfill("history", "cents", "--json").json[-1]
        assert last["what"] == command
        assert last["detail"]["by"] == f"{getpass.getuser()}@{socket.gethostname()}"


def test_whose_terminal_it_was_is_told_by_number_where_the_user_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    monkeypatch.setattr("socket.gethostname", lambda: "ops1")
    assert places.operator() == "4711@ops1"


def test_cleanup_of_an_empty_ledger_says_that_no_job_is_left(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    backfill("cleanup", "cents", "--yes")
    assert backfill("cleanup", "--all", "--yes").err.splitlines()[0].endswith("its history; no job is left in it")


def test_cleanup_of_everything_leaves_no_trace_but_the_rows(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    shown = backfill("cleanup", "--all", "--yes")
    assert shown.code == 0
    assert "with 1 job:\n  cents: done" in shown.err
    assert shop.sql("SELECT to_regnamespace('backfill') IS NULL").strip() == "t"
    assert wrong_rows(shop) == 0
    assert "nothing to remove" in backfill("cleanup", "--all", "--yes").err


def test_cleanup_wants_a_job_or_all(backfill: Cli, shop: FreshDatabase) -> None:
    assert backfill("cleanup", "--yes").code == 2
    assert backfill("cleanup", "cents", "--all", "--yes").code == 2
