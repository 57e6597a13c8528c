"""``backfill run``: starts, goes on, joins, waits, drains; and says how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, wrong_rows
from tests.support.databases import FreshDatabase, TwoDatabases

FINISHED = {
    "event", "job", "state", "rows", "bytes", "chunks", "seconds", "rows_per_s", "retries", "quarantined", "resumed",
    "verified",
}  # fmt: skip
"""The fields of the last line, as users' scripts know them."""


def test_run_fills_the_column_and_its_last_line_says_so(backfill: Cli, shop: FreshDatabase, spec) -> None:
    done = backfill("run", spec(), "--json")
    assert done.code == 0
    assert wrong_rows(shop) == 0
    assert set(done.json) == FINISHED
    assert done.json["event"] == "job.finished"
    assert (done.json["job"], done.json["state"], done.json["rows"]) == ("cents", "done", 20000)
    assert (done.json["resumed"], done.json["quarantined"], done.json["verified"]) == (False, 0, None)
    assert sum(event["observation"]["rows"] for event in done.events("chunk.committed")) == 20000


def test_without_json_stdout_stays_empty_and_messages_go_to_stderr(backfill: Cli, shop: FreshDatabase, spec) -> None:
    done = backfill("run", spec())
    assert (done.code, done.out) == (0, "")
    assert "cents is done: 20.0 k rows" in done.err


def test_quiet_says_nothing(backfill: Cli, shop: FreshDatabase, spec) -> None:
    assert backfill("run", spec(), "--quiet").err == ""


def test_a_done_job_moves_nothing_and_says_so(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    shop.sql("UPDATE orders SET cents = NULL WHERE id = 7")
    again = backfill("run", spec())
    assert again.code == 0
    assert "done already (20.0 k rows): nothing was moved" in again.err
    assert wrong_rows(shop) == 1
    as_json = backfill("run", spec(), "--json").json
    assert (as_json["state"], as_json["rows_per_s"], as_json["resumed"]) == ("done", 0.0, True)


def test_flags_say_the_same_as_a_file(backfill: Cli, shop: FreshDatabase) -> None:
    done = backfill(
        "run", "--dsn", shop.dsn, "--table", "orders", "--set", "cents=(amount * 100)::bigint", "--name", "f"
    )
    assert done.code == 0
    assert wrong_rows(shop) == 0


def test_a_copy_goes_to_the_other_database(backfill: Cli, two_shops: TwoDatabases, copy_job: Path) -> None:
    assert backfill("run", copy_job).code == 0
    assert two_shops.target.sql("SELECT count(*), sum(cents) FROM orders_v2").strip() == "5000|12502500"


# -- pause ------------------------------------------------------------------------------------------------------------


def test_a_pause_is_sticky_until_somebody_resumes(
    backfill: Cli, shop: FreshDatabase, slow_job: Path, until: Callable[..., None]
) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    assert backfill("pause", "cents", "--reason", "disk is filling").code == 0
    ordered = time.monotonic()
    until(shop, "state = 'paused' AND workers = 0")
    assert time.monotonic() - ordered < 8, "workers leave when they stop; they are not just forgotten after a while"
    refused = backfill("run", slow_job, "--no-wait")
    assert refused.code == 8
    assert "disk is filling" in refused.err
    assert "backfill resume" in refused.err
    rows = shop.sql("SELECT rows_done FROM backfill.status")
    waiting = backfill.start("run", slow_job, "--workers", "1")
    time.sleep(1)  # nothing may happen: there is no signal to wait for
    assert shop.sql("SELECT rows_done FROM backfill.status") == rows
    assert backfill("pace", "cents", "--max-rows-per-s", "1e6").code == 0
    assert backfill("resume", "cents").code == 0
    first, second = running.end(), waiting.end()
    assert (first.code, second.code) == (0, 0)
    assert "paused: disk is filling" in first.err
    assert wrong_rows(shop) == 0


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_drains_and_the_next_run_goes_on(
    backfill: Cli, shop: FreshDatabase, slow_job: Path, spec, until, number: signal.Signals, code: int
) -> None:
    running = backfill.start("run", slow_job, "--json")
    until(shop, "rows_done > 0")
    running.signal(number)
    stopped = running.end()
    assert stopped.code == code
    assert "stopped before the end" in stopped.err
    assert (stopped.json["event"], stopped.json["state"]) == ("job.finished", "running")
    assert shop.sql("SELECT count(*) FROM backfill.span WHERE lease_until IS NOT NULL").strip() == "0"
    before = int(shop.sql("SELECT rows_done FROM backfill.status"))
    assert before == stopped.json["rows"] == sum(e["observation"]["rows"] for e in stopped.events("chunk.committed"))
    done = backfill("run", spec(), "--json")  # the same job without a limit: settings may change
    assert (done.code, done.json["rows"], done.json["resumed"]) == (0, 20000, True)
    assert sum(e["observation"]["rows"] for e in done.events("chunk.committed")) == 20000 - before
    assert wrong_rows(shop) == 0


def test_the_second_signal_aborts_what_the_first_would_wait_for(
    backfill: Cli, shop: FreshDatabase, spec, until
) -> None:
    shop.sql("CREATE FUNCTION slow() RETURNS bigint LANGUAGE sql AS 'SELECT 1 FROM pg_sleep(60)'")
    running = backfill.start("run", spec(set={"cents": "public.slow()"}, done="cents is not null", workers=1))
    until(shop, "spans_running > 0")
    chunk = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'backfill/%/w1' AND query LIKE 'WITH moved%'"
    )
    while shop.sql(f"{chunk} AND state = 'active'").strip() == "0":
        time.sleep(0.02)
    running.signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.process.wait(0.5)  # the first signal waits for the chunk in hand
    running.signal(signal.SIGINT)
    assert running.end(10).code == 130
    assert shop.sql("SELECT count(*) FROM orders WHERE cents IS NOT NULL").strip() == "0"


# -- several runners --------------------------------------------------------------------------------------------------


def test_two_runs_join_and_both_end_well(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    first = backfill.start("run", slow_job, "--json", "--workers", "1")
    until(shop, "rows_done > 0")
    second = backfill.start("run", slow_job, "--json", "--workers", "1")
    until(shop, "workers = 2")
    backfill("pace", "cents", "--max-rows-per-s", "4000")
    one, two = first.end(), second.end()
    assert (one.code, two.code) == (0, 0)
    shares = [sum(e["observation"]["rows"] for e in run.events("chunk.committed")) for run in (one, two)]
    assert sum(shares) == 20000
    assert min(shares) > 0
    assert wrong_rows(shop) == 0


def test_no_wait_does_not_join(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "workers > 0")
    busy = backfill("run", slow_job, "--no-wait")
    assert busy.code == 75
    assert "worked on by others" in busy.err
    running.signal(signal.SIGINT)
    assert running.end().code == 130


def test_attach_only_watches(backfill: Cli, shop: FreshDatabase, slow_job: Path, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "workers > 0")
    watching = backfill.start("run", slow_job, "--attach", "--json")
    time.sleep(1)
    backfill("pace", "cents", "--max-rows-per-s", "1e6")
    seen = watching.end()
    assert (seen.code, seen.json["state"], seen.json["rows"]) == (0, "done", 20000)
    assert seen.events("chunk.committed") == []
    assert running.end().code == 0


def test_attach_to_a_job_that_is_not_there_creates_none(backfill: Cli, shop: FreshDatabase, spec) -> None:
    assert backfill("run", spec(), "--attach").code == 2
    assert backfill("list", "--json").json == []


# -- ends that are not good -------------------------------------------------------------------------------------------


def test_a_bad_row_fails_the_job_with_what_to_do_and_without_its_value(
    backfill: Cli, shop: FreshDatabase, spec
) -> None:
    shop.sql("ALTER TABLE orders ADD note text; UPDATE orders SET note = 'secret-4711' WHERE id = 19000")
    job = spec(set={"cents": "coalesce(note, '1')::bigint"})
    failed = backfill("run", job, "--json")
    assert failed.code == 7
    assert failed.json["state"] == "failed"
    assert failed.lines[-2]["event"] == "error"
    assert failed.lines[-2]["sqlstate"] == "22P02"
    assert "secret-4711" not in failed.out + failed.err
    assert backfill("run", job).code == 7, "it stays failed until somebody resumes it"
    shop.sql("UPDATE orders SET note = '1' WHERE id = 19000")
    assert backfill("resume", "cents").code == 0
    assert backfill("run", job).code == 0
    assert shop.sql("SELECT count(*) FROM orders WHERE cents = 1").strip() == "20000"


def test_a_changed_table_stops_the_job_and_the_last_line_tells_it(
    backfill: Cli, shop: FreshDatabase, slow_job: Path, until
) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    running.signal(signal.SIGINT)
    running.end()
    shop.sql("ALTER TABLE orders ALTER amount TYPE numeric(14,2)")
    stopped = backfill("run", slow_job, "--json")
    assert stopped.code == 7
    assert (stopped.json["event"], stopped.json["state"]) == ("job.finished", "failed")
    assert stopped.lines[-2]["code"] == "schema_drift"


def test_a_cancelled_job_stays_so_until_restart(
    backfill: Cli, shop: FreshDatabase, slow_job: Path, spec, until
) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    assert backfill("cancel", "cents").code == 0
    assert running.end().code == 8
    assert backfill("run", slow_job).code == 8
    assert backfill("resume", "cents").code == 8
    assert backfill("restart", "cents", "--yes").code == 0
    assert backfill("run", spec()).code == 0
    assert wrong_rows(shop) == 0


def test_another_meaning_under_the_same_name_is_refused_with_the_difference(
    backfill: Cli, shop: FreshDatabase, spec
) -> None:
    backfill("run", spec())
    other = backfill("run", spec(where="id > 5"))
    assert other.code == 3
    assert "where: (none) -> id > 5" in other.err


def test_a_table_without_a_key_is_refused(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shop.sql("CREATE TABLE heap (id bigint, cents bigint)")
    refused = backfill("run", spec(source={"table": "heap"}, set={"cents": "1"}), "--json")
    assert refused.code == 4
    assert "NO_KEY" in refused.err
    assert refused.json["findings"][0]["code"] == "NO_KEY"
    assert backfill("list", "--json").json == []


def test_every_problem_of_a_spec_is_told_with_its_place(backfill: Cli, shop: FreshDatabase, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("source: {table: orders}\nsett: {a: b}\nworkers: many\n")
    bad = backfill("run", path)
    assert bad.code == 3
    assert f"{path}:2:1: sett" in bad.err
    assert f"{path}:3:10: workers" in bad.err
    assert "hint: " in bad.err


def test_a_server_that_is_not_there_is_exit_5(backfill: Cli, spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKFILL_DSN", "postgresql://nobody@127.0.0.1:1/none")
    lost = backfill("run", spec())
    assert lost.code == 5
    assert "connection refused" in lost.err


def test_a_password_in_a_flag_is_refused_and_not_repeated(backfill: Cli, shop: FreshDatabase) -> None:
    dsn = "postgresql://me:hunter2@127.0.0.1/shop"
    for command in (("run", "--table", "orders", "--set", "cents=1"), ("list",), ("worker", "--once"), ("doctor",)):
        refused = backfill(*command, "--dsn", dsn)
        assert refused.code in (2, 3), command
        assert "hunter2" not in refused.out + refused.err
        assert "BACKFILL_DSN" in refused.err


def test_a_reader_that_goes_away_does_not_stop_the_job(backfill: Cli, shop: FreshDatabase, spec) -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "engine", "run", spec(chunk={"max_rows": 100}), "--json"]
    running = subprocess.Popen(command, stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    assert os.read(reader, 1) == b"{"
    os.close(reader)
    assert running.wait(30) == 0
    assert wrong_rows(shop) == 0


def test_flags_beside_a_file_are_refused(backfill: Cli, shop: FreshDatabase, spec) -> None:
    refused = backfill("run", spec(), "--where", "id > 1")
    assert refused.code == 2
    assert "--where beside a spec file" in refused.err


def test_it_runs_as_a_module_too() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "engine", "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    assert shown.stdout.startswith("backfill, version ")
