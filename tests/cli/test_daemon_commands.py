"""The command line as the client of a daemon: what is printed is what is printed without one."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.cli.places import operator
from tests.cli.conftest import Cli, Outcome, in_a_thread, wrong_rows
from tests.support.daemon import RunningDaemon, config_of
from tests.support.databases import FreshDatabase


@pytest.fixture
def daemon(shop: FreshDatabase) -> Iterator[RunningDaemon]:
    """A daemon that works the jobs of the shop."""
    with in_a_thread(config_of(shop)) as running:
        yield running


@pytest.fixture
def idle(shop: FreshDatabase) -> Iterator[RunningDaemon]:
    """A daemon that works no jobs."""
    with in_a_thread({"connections": {"main": {"dsn": shop.dsn, "tables": ["*.*"]}}, "allow": ALLOW}) as running:
        yield running


ALLOW = {"expressions": True, "show_rows": True, "dual_write": True}


@pytest.fixture
def job(spec: Callable[..., Path]) -> Path:
    """The job ``cents`` as a daemon takes it."""
    return spec(source={"connection": "main", "table": "public.orders"})


AGO = re.compile(r"\d[\d.,]* (?:s|min|h|ms)( [\d.]+ (?:s|min))?( ago)?\b")
AGES = {"age_s", "eta_s", "connect_s", "since"}


def timeless(value: Any) -> Any:
    """Without what differs from one look to the next."""
    match value:
        case dict():
            return {name: None if name in AGES else timeless(item) for name, item in value.items()}
        case list():
            return [timeless(item) for item in value]
        case str():
            return AGO.sub("T", value)
        case _:
            return value


def same(backfill: Cli, daemon: RunningDaemon, *arguments: str, code: int = 0) -> Outcome:
    """The command prints the same by itself and by the daemon, for people and for programs."""
    for more in ((), ("--json",)):
        direct = backfill(*arguments, *more)
        by_daemon = backfill(*arguments, *more, "--daemon", daemon.url)
        assert (direct.code, by_daemon.code) == (code, code), (direct.err, by_daemon.err)
        if more:
            assert timeless(by_daemon.lines) == timeless(direct.lines)
        else:
            assert timeless(by_daemon.out) == timeless(direct.out)
            assert timeless(by_daemon.err).replace(daemon.url, "") == timeless(direct.err)
    return by_daemon


# -- the same as without ------------------------------------------------------------------------------------------------


def test_looking_at_a_done_job_shows_the_same(backfill: Cli, daemon: RunningDaemon, job: Path, shop) -> None:
    backfill("run", "--table", "orders", "--set", "cents=0", "--where", "id < 0", "--name", "zero")
    done = backfill("run", str(job), "--daemon", daemon.url)
    print(done.err, done.out)
    assert done.code == 0, done.err
    assert wrong_rows(shop) == 0
    for command in (["status", "cents"], ["list"], ["wait", "cents"], ["history", "cents"], ["pace", "cents"]):
        same(backfill, daemon, *command)
    same(backfill, daemon, "gate", "cents", code=7)
    same(backfill, daemon, "quarantine", "list", "cents")
    same(backfill, daemon, "grants", "cents", "--to", "somebody")
    same(backfill, daemon, "dualwrite", "cents", "--check", code=7)
    same(backfill, daemon, "dualwrite", "cents", "--print")


def test_plans_and_rehearsals_show_the_same(backfill: Cli, idle: RunningDaemon, shop, spec) -> None:
    here = spec("here.yaml", source={"dsn": shop.dsn, "table": "public.orders"}, chunk={"target": "10s"})
    there = spec("there.yaml", source={"connection": "main", "table": "public.orders"}, chunk={"target": "10s"})
    for more in ((), ("--json",)):
        direct, by_daemon = backfill("plan", here, *more), backfill("plan", there, *more, "--daemon", idle.url)
        assert (direct.code, by_daemon.code) == (0, 0), by_daemon.err
        if more:
            assert by_daemon.json == direct.json
        else:
            assert by_daemon.out == direct.out
    direct = backfill("rehearse", here, "--chunks", "1")
    by_daemon = backfill("rehearse", there, "--chunks", "1", "--daemon", idle.url)
    assert (direct.code, by_daemon.code) == (0, 0), by_daemon.err
    assert [line.split("  ")[1:2] for line in by_daemon.out.splitlines()] == [
        line.split("  ")[1:2] for line in direct.out.splitlines()
    ]
    refused = spec("refused.yaml", source={"connection": "main", "table": "public.orders"}, set={"cents": "nothing"})
    assert backfill("plan", refused, "--daemon", idle.url).code == 4


def test_the_doctor_looks_at_the_connections_of_a_daemon(backfill: Cli, idle: RunningDaemon, shop, job) -> None:
    direct = backfill("doctor", "--dsn", shop.dsn, "--json").json["database"]
    for arguments in (["doctor"], ["doctor", "--connection", "main"], ["doctor", str(job)]):
        by_daemon = backfill(*arguments, "--json", "--daemon", idle.url)
        assert by_daemon.code == 0, by_daemon.err
        assert [*by_daemon.json] == ["main"]
        assert by_daemon.json["main"]["server"] == direct["server"]
        assert by_daemon.json["main"]["capabilities"] == direct["capabilities"]
    shown = backfill("doctor", "--daemon", idle.url)
    assert shown.out.startswith("main: ")


# -- orders -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(spec: Callable[..., Path]) -> Path:
    """Some twenty seconds of work: time to look at it."""
    return spec(
        source={"connection": "main", "table": "public.orders"},
        pace={"max_rows_per_s": 1000, "signals": "off"},
        chunk={"max_rows": 100},
    )


def test_orders_reach_a_running_job_through_the_daemon(backfill: Cli, daemon: RunningDaemon, slow: Path, shop) -> None:
    by = ("--daemon", daemon.url)
    left = backfill("run", slow, "--no-wait", *by)
    assert left.code == 0, left.err
    assert left.err.startswith("cents: planned 0 % ")
    paused = backfill("pause", "cents", "--reason", "sale until eight", *by)
    assert (paused.code, paused.err) == (0, "cents is paused; backfill resume lets it go on\n")
    same(backfill, daemon, "status", "cents")
    assert "sale until eight" in backfill("status", "cents", *by).out
    assert backfill("run", slow, "--no-wait", *by).code == 8
    ordered = backfill(
        "pace", "cents", "--max-rows-per-s", "5000", "--target", "read_latency=5ms", "--workers", "1", *by
    )
    assert ordered.err == (
        "cents: ordered: max_rows_per_s 5,000, workers 1, read_latency target 5ms\n"
        "  nobody works on it now: it counts as soon as somebody does\n"
    )
    same(backfill, daemon, "pace", "cents")
    reset = backfill("pace", "cents", "--reset", *by)
    assert reset.err.startswith("cents: no orders: what the spec says counts")
    assert backfill("resume", "cents", "--json", *by).json["state"] in ("planned", "running")
    cancelled = backfill("cancel", "cents", *by)
    assert (cancelled.code, "cents is cancelled" in cancelled.err) == (0, True)
    for command in (["resume", "cents"], ["wait", "cents"]):
        direct = backfill(*command)
        by_daemon = backfill(*command, *by)
        assert (by_daemon.code, by_daemon.err) == (direct.code, direct.err)
        assert by_daemon.code == 8
    whose = {entry["what"]: entry["who"] for entry in backfill("history", "cents", "--json", *by).json}
    for what in ("created", "paused", "pace", "cancelled"):
        assert " via daemon@" in whose[what], "the daemon says whose order it was"
    backfill("restart", "cents", "--yes")
    assert backfill("history", "cents", "--json", *by).json[-1]["who"] == operator(), "and so does the command line"


def test_signals_that_nobody_has_are_refused_with_the_nearest_name(backfill: Cli, daemon, slow: Path) -> None:
    backfill("run", slow, "--no-wait", "--daemon", daemon.url)
    wrong = backfill("pace", "cents", "--off", "comit_latency", "--daemon", daemon.url)
    assert wrong.code == 2
    assert "did you mean commit_latency?" in wrong.err


def test_a_job_is_restarted_and_removed_through_the_daemon(
    backfill: Cli, daemon: RunningDaemon, job: Path, shop
) -> None:
    by = ("--daemon", daemon.url)
    assert backfill("run", job, *by).code == 0
    shop.sql("UPDATE orders SET cents = NULL")
    assert backfill("restart", "cents", *by).code == 2, "it has to be confirmed"
    restarted = backfill("restart", "cents", "--yes", *by)
    assert restarted.code == 0, restarted.err
    assert backfill("wait", "cents", *by).code == 0
    assert wrong_rows(shop) == 0
    removed = backfill("cleanup", "cents", "--yes", "--json", *by)
    assert (removed.code, removed.json) == (0, {"removed": ["cents"]}), removed.err
    assert backfill("status", "cents", *by).code == 2
    assert [entry["what"] for entry in backfill("history", "cents", "--json", *by).json][-1] == "cleanup"
    everything = backfill("cleanup", "--all", "--yes", *by)
    assert (everything.code, "--all beside --daemon" in everything.err) == (2, True)


def test_verification_and_repair_by_the_daemon_say_what_direct_ones_say(
    backfill: Cli, daemon: RunningDaemon, job: Path, shop
) -> None:
    by = ("--daemon", daemon.url)
    assert backfill("run", job, *by).code == 0
    verified = backfill("verify", "cents", "--json", *by)
    assert verified.code == 0, verified.err
    last = verified.json
    assert (last["event"], last["verified"], last["rows"]) == ("verify.finished", True, 20000)
    shop.sql("UPDATE orders SET cents = 0 WHERE id <= 3")
    differs = backfill("verify", "cents", "--settle", "50ms", *by)
    direct = backfill("verify", "cents", "--settle", "50ms")
    assert (differs.code, direct.code) == (6, 6)
    without_keys = direct.err.replace("; --show-rows lists their keys", "")  # which a daemon does not give
    assert timeless(differs.err.splitlines()[-3:]) == timeless(without_keys.splitlines()[-3:])
    repaired = backfill("verify", "cents", "--repair", "--settle", "50ms", "--json", *by)
    assert (repaired.code, repaired.json["repaired"]) == (0, 3), repaired.err
    assert wrong_rows(shop) == 0
    assert backfill("verify", "cents", "--show-rows", *by).code == 2


def test_rows_in_quarantine_are_listed_tried_again_and_dropped_by_the_daemon(backfill: Cli, shop, spec) -> None:
    shop.sql("ALTER TABLE orders ADD CONSTRAINT small CHECK (cents < 1000000) NOT VALID")
    shop.sql("UPDATE orders SET amount = 99999 WHERE id IN (7, 8)")
    job = spec(source={"connection": "main", "table": "public.orders"}, errors={"max_quarantined": 5})
    with in_a_thread(config_of(shop, allow=ALLOW)) as daemon:
        by = ("--daemon", daemon.url)
        done = backfill("run", job, *by)
        assert done.code == 0, done.err
        listed = same(backfill, daemon, "quarantine", "list", "cents", "--show-rows")
        assert [row["key"] for row in listed.json["rows"]] == [["7"], ["8"]]
        assert "key" not in backfill("quarantine", "list", "cents", "--json", *by).json["rows"][0]
        still = backfill("quarantine", "retry", "cents", "--all", "--json", *by)
        assert (still.code, still.json["failed"], still.json["quarantined"]) == (7, 2, 2), still.err
        shop.sql("UPDATE orders SET amount = 1 WHERE id = 7")
        number = str(listed.json["rows"][0]["id"])
        mended = backfill("quarantine", "retry", "cents", "--id", number, *by)
        assert (mended.code, mended.err.splitlines()[0]) == (0, "cents: 1 written; 1 row set aside now"), mended.err
        assert backfill("quarantine", "retry", "cents", "--id", number, *by).code == 2
        dropped = backfill("quarantine", "drop", "cents", "--all", "--yes", "--json", *by)
        assert dropped.json == {"job": "cents", "dropped": 1, "quarantined": 0}, dropped.err


# -- run ----------------------------------------------------------------------------------------------------------------


def test_run_tells_the_events_of_the_job_and_ends_with_its_code(
    backfill: Cli, daemon: RunningDaemon, job, shop
) -> None:
    done = backfill("run", job, "--json", "--daemon", daemon.url)
    assert done.code == 0, done.err
    assert done.lines[0]["event"] == "job.opened"
    assert (done.lines[0]["job"], done.lines[0]["resumed"]) == ("cents", False)
    assert [line["state"] for line in done.events("job.state")][-1] == "done"
    assert (done.json["event"], done.json["state"], done.json["rows"]) == ("job.finished", "done", 20000)
    again = backfill("run", job, "--json", "--daemon", daemon.url)
    assert (again.code, again.json["rows"], again.json["resumed"]) == (0, 20000, True)
    people = backfill("run", job, "--daemon", daemon.url)
    assert people.err.splitlines()[-1] == "cents is done already (20.0 k rows): nothing was moved"
    other = yaml.safe_load(Path(job).read_text()) | {"where": "id > 5"}
    job.write_text(yaml.safe_dump(other))
    changed = backfill("run", job, "--json", "--daemon", daemon.url)
    assert (changed.code, changed.json["code"]) == (3, "spec_changed")
    assert changed.json["differences"][0]["path"] == "where"


def test_a_job_that_fails_ends_run_as_it_does_without_a_daemon(
    backfill: Cli, daemon: RunningDaemon, spec, shop
) -> None:
    shop.sql("UPDATE orders SET amount = 0 WHERE id = 10000")
    broken = {"cents": "(100 / amount)::bigint"}
    there = spec("there.yaml", source={"connection": "main", "table": "public.orders"}, set=broken)
    here = spec("here.yaml", source={"dsn": shop.dsn, "table": "public.orders"}, set=broken, name="here")
    failed, direct = backfill("run", there, "--json", "--daemon", daemon.url), backfill("run", here, "--json")
    assert (failed.code, direct.code) == (7, 7), failed.err
    there_error, here_error = failed.events("error")[0], direct.events("error")[0]
    for same_name in ("code", "message", "hint", "exit_code"):
        assert there_error[same_name] == here_error[same_name]
    assert failed.json["state"] == "failed"


def test_what_the_daemon_refuses_is_said_as_if_it_were_refused_here(backfill: Cli, daemon, spec, shop) -> None:
    by = ("--daemon", daemon.url)
    shop.sql("CREATE TABLE keyless (id bigint, cents bigint)")
    for table, code in (("public.nothing", 2), ("public.keyless", 4)):
        there = spec("a.yaml", source={"connection": "main", "table": table})
        here = spec("b.yaml", source={"dsn": shop.dsn, "table": table})
        refused, direct = backfill("run", there, *by), backfill("run", here)
        # Where its databases are, a daemon tells nobody: it names its connection.
        assert (refused.code, refused.err) == (code, re.sub(rf"\S+/{shop.name}\b", "main", direct.err))
    unknown = backfill(
        "run", spec("b.yaml", source={"connection": "elsewhere", "table": "public.orders"}), "--json", *by
    )
    assert unknown.code == 3, unknown.err
    assert unknown.json["problems"][0]["path"] == "source.connection"


def test_a_spec_for_a_daemon_is_checked_here_first_with_line_and_column(backfill: Cli, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: cents\nsource:\n  dsn: ${SOURCE_DSN}\n  table: orders\nset:\n  cents: amuont\nworkesr: 2\n")
    refused = backfill("run", path, "--daemon", "unix:///nowhere.sock")
    assert refused.code == 3
    assert f"{path}:3:3: source.dsn" in refused.err
    assert f"{path}:7:1: workesr" in refused.err
    assert backfill("run", "--table", "orders", "--set", "cents=1", "--daemon", "unix:///nowhere.sock").code == 2


def test_ctrl_c_ends_the_watching_and_leaves_the_job_running(backfill: Cli, daemon, slow: Path, shop, until) -> None:
    watching = backfill.start("run", slow, "--daemon", daemon.url)
    until(shop, "rows_done > 0")
    watching.signal(signal.SIGINT)
    left = watching.end()
    assert left.code == 130
    assert "cents goes on in the daemon" in left.err
    assert backfill("status", "cents", "--json", "--daemon", daemon.url).json["state"] == "running"
    attached = backfill.start("run", slow, "--attach", "--json", "--daemon", daemon.url)
    backfill("pace", "cents", "--max-rows-per-s", "1e6", "--daemon", daemon.url)
    done = attached.end()
    assert (done.code, done.json["state"]) == (0, "done"), done.err
    assert done.lines[0]["attached"] is True


def test_watching_status_and_waiting_end_with_the_job(backfill: Cli, daemon, slow: Path, shop, until) -> None:
    by = ("--daemon", daemon.url)
    backfill("run", slow, "--no-wait", *by)
    until(shop, "rows_done > 0")
    watching, waiting = backfill.start("status", "cents", "--watch", *by), backfill.start("wait", "cents", *by)
    late = backfill("wait", "cents", "--timeout", "100ms", *by)
    assert (late.code, "has not ended within" in late.err) == (75, True)
    backfill("pace", "cents", "--max-rows-per-s", "1e6", *by)
    assert waiting.end().code == 0
    seen = watching.end()
    assert seen.code == 0
    assert seen.out.splitlines()[-1] == "cents: done 100 % 20.0 k rows"


def test_run_and_wait_outlive_a_restart_of_the_daemon(
    backfill: Cli, slow: Path, shop: FreshDatabase, until, tmp_path: Path
) -> None:
    folder = tmp_path / "daemon"
    folder.mkdir(mode=0o700)
    with in_a_thread(config_of(shop), folder=folder) as daemon:
        running = backfill.start("run", slow, "--json", "--daemon", daemon.url)
        until(shop, "rows_done > 0")
        waiting = backfill.start("wait", "cents", "--daemon", daemon.url)
    assert running.process.poll() is None, "it waits for the daemon to come back"
    with in_a_thread(config_of(shop), folder=folder) as daemon:
        backfill("pace", "cents", "--max-rows-per-s", "1e6", "--daemon", daemon.url)
        done = running.end()
        assert waiting.end().code == 0
    assert (done.code, done.json["state"], done.json["rows"]) == (0, "done", 20000), done.err
    assert wrong_rows(shop) == 0


# -- which daemon -------------------------------------------------------------------------------------------------------


def test_flags_that_contradict_a_daemon_are_refused(backfill: Cli) -> None:
    both = backfill("status", "cents", "--dsn", "postgresql:///x", "--daemon", "unix:///x")
    assert (both.code, "--dsn and --daemon cannot stand together" in both.err) == (2, True)
    for flags in (["--token-file", "x"], ["--connection", "main"]):
        alone = backfill("status", "cents", *flags)
        assert (alone.code, "without --daemon" in alone.err) == (2, True)
    for command in (
        ["gate", "cents"],
        ["grants", "cents"],
        ["verify", "cents"],
        ["quarantine", "retry", "cents", "--all"],
    ):
        refused = backfill(*command, "--source-dsn", "postgresql:///x", "--daemon", "unix:///x")
        assert (refused.code, "--source-dsn beside --daemon" in refused.err) == (2, True)
    for url in ("localhost:8471", "ftp://x", "http://", "unix://host/x", "http://u:p@h", "http://x/?token=a"):
        assert backfill("list", "--daemon", url).code == 2, url


def test_a_daemon_that_is_not_there_is_told_at_once(backfill: Cli, monkeypatch) -> None:
    monkeypatch.setattr("engine.cli.places.PATIENCE_S", 0.1)
    away = backfill("list", "--daemon", "unix:///nonexistent/backfill.sock")
    assert away.code == 5
    assert "cannot reach the daemon at unix:///nonexistent/backfill.sock: no such file or directory" in away.err


def test_the_daemon_may_come_from_the_environment_and_an_unknown_job_is_told_the_nearest(
    backfill: Cli, daemon, job, monkeypatch
) -> None:
    monkeypatch.setenv("BACKFILL_DAEMON", daemon.url)
    assert backfill("run", job).code == 0
    unknown = backfill("status", "cent")
    assert unknown.code == 2
    assert "did you mean cents?" in unknown.err
    assert backfill("status", job, "--json").json["job"] == "cents", "a file stands for its job"
    direct = backfill("list", "--dsn", daemon.config.connections["main"].dsn or "", "--json")
    assert [seen["job"] for seen in direct.json] == ["cents"], "a flag counts more than a variable"


def test_a_token_comes_from_a_file_that_only_its_owner_reads(backfill: Cli, shop, tmp_path, monkeypatch) -> None:
    import hashlib

    tokens = tmp_path / "tokens.toml"
    digest = hashlib.sha256(b"s3cret-of-a-reader").hexdigest()
    tokens.write_text(f'[tokens.reader]\nsha256 = "{digest}"\nscopes = ["read"]\n')
    tokens.chmod(0o600)
    settings = config_of(shop, listen="tcp://127.0.0.1:0", auth={"tokens_file": str(tokens)})
    with in_a_thread(settings) as daemon:
        by = ("--daemon", daemon.url)
        nobody = backfill("list", *by)
        assert (nobody.code, "error: " in nobody.err) == (5, True)
        file = tmp_path / "token"
        file.write_text("s3cret-of-a-reader\n")
        file.chmod(0o644)
        open_to_all = backfill("list", *by, "--token-file", str(file))
        assert (open_to_all.code, "chmod 600" in open_to_all.err) == (2, True)
        file.chmod(0o600)
        assert backfill("list", *by, "--token-file", str(file)).code == 0
        monkeypatch.setenv("BACKFILL_TOKEN", "s3cret-of-a-reader")
        assert backfill("list", *by).code == 0
        may_not = backfill("pause", "cents", *by)
        assert (may_not.code, "control" in may_not.err) == (5, True)
        monkeypatch.setenv("BACKFILL_TOKEN", "another")
        wrong = backfill("list", *by, "--json")
        assert (wrong.code, wrong.json["code"]) == (5, "unauthenticated")
        assert "another" not in wrong.out + wrong.err


def test_a_name_that_two_databases_have_needs_the_connection(backfill: Cli, databases, spec) -> None:
    here, there = databases.source, databases.target
    for database in (here, there):
        database.sql("CREATE TABLE orders (id bigint PRIMARY KEY, amount int, cents bigint)")
    connections = {
        name: {"dsn": database.dsn, "work": True, "tables": ["*.*"]}
        for name, database in (("here", here), ("there", there))
    }
    with in_a_thread({"connections": connections, "allow": ALLOW}) as daemon:
        by = ("--daemon", daemon.url)
        for name in connections:
            job = spec(source={"connection": name, "table": "public.orders"})
            assert backfill("run", job, *by).code == 0
        assert len(backfill("list", "--json", *by).json) == 2
        either = backfill("status", "cents", *by)
        assert (either.code, "2 connections hold a job" in either.err) == (2, True), either.err
        assert "--connection here" in either.err
        one = backfill("status", "cents", "--json", *by, "--connection", "there")
        assert (one.code, one.json["job"]) == (0, "cents")
        assert backfill("cleanup", "cents", "--yes", *by, "--connection", "here").code == 0
        assert backfill("status", "cents", *by).code == 0, "now there is only one"


def test_validate_knows_a_spec_for_a_daemon(backfill: Cli, job: Path) -> None:
    valid = backfill("validate", job)
    assert (valid.code, "--daemon URL" in valid.err) == (0, True), valid.err
    by_hand = backfill("run", job)
    assert (by_hand.code, "--daemon URL" in by_hand.err) == (3, True)


def test_a_list_says_whose_jobs_are_missing(backfill: Cli, shop: FreshDatabase, job: Path) -> None:
    away = {"dsn": "postgresql://postgres@127.0.0.1:1/away", "tables": ["*.*"]}
    main = {"dsn": shop.dsn, "work": True, "tables": ["*.*"]}
    with in_a_thread({"connections": {"main": main, "away": away}, "allow": ALLOW}) as daemon:
        by = ("--daemon", daemon.url)
        assert backfill("run", job, *by).code == 0
        listed = backfill("list", *by)
        assert (listed.code, "away is away: its jobs are missing here" in listed.err) == (5, True), listed.err
        assert "cents" in listed.out
        assert backfill("list", "--connection", "main", *by).code == 0
