"""The program as a whole: help, versions, slips of the pen, errors nobody expected; ``doctor`` and ``completion``."""

from __future__ import annotations

import pytest

import engine
from engine.cli import main as cli
from engine.ledger.queries import migrations
from tests.cli.conftest import Cli
from tests.support.databases import FreshDatabase, TwoDatabases

NEWEST = migrations()[-1][0]


def test_version_and_help(backfill: Cli) -> None:
    assert backfill("--version").out == f"backfill, version {engine.__version__}\n"
    shown = backfill("--help")
    assert shown.code == 0
    assert all(f"\n  {name} " in shown.out for name in cli.COMMANDS)


def test_every_command_has_help(backfill: Cli) -> None:
    for name in cli.COMMANDS:
        shown = backfill(name, "--help")
        assert shown.code == 0, name
        assert shown.out.startswith(f"Usage: backfill {name} ")


def test_a_slip_of_the_pen_is_told_what_was_meant(backfill: Cli) -> None:
    slip = backfill("statsu")
    assert slip.code == 2
    assert "Did you mean status?" in slip.err
    assert "--json" in backfill("list", "--jsno").err
    assert backfill("run").code == 2


def test_an_unexpected_error_is_exit_1_without_values(
    backfill: Cli, shop: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(database: object) -> None:
        raise RuntimeError("row (4711, 'secret')")

    monkeypatch.setattr("engine.cli.status._list", fail)
    broken = backfill("list")
    assert broken.code == 1
    assert "unexpected RuntimeError" in broken.err
    assert "-v" in broken.err
    shown = backfill("list", "-v", "--json")
    assert "in fail" in shown.err
    assert shown.json["code"] == "unexpected"
    assert "secret" not in broken.err + shown.err + shown.out


def test_the_public_surface_is_sorted_and_there() -> None:
    assert engine.__all__ == sorted(engine.__all__)
    assert all(getattr(engine, name) is not None for name in engine.__all__)
    with pytest.raises(AttributeError):
        _ = engine.no_such_name


async def test_a_program_runs_a_job_as_the_command_does(shop: FreshDatabase, spec) -> None:
    import os

    seen: list[engine.Event] = []
    result = await engine.run_job(engine.load_spec(spec(), os.environ), workers=1, emit=seen.append)
    assert (result.state, result.rows) == (engine.JobState.DONE, 20000)
    assert seen[0].name == "job.opened"
    with pytest.raises(engine.BackfillError):
        await engine.run_job(engine.load_spec(spec(), os.environ), workers=0)


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_tells_where_every_setting_comes_from(
    backfill: Cli, shop: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    shown = backfill("doctor", "--json")
    report = shown.json["database"]
    assert report["settings"]["port"]["origin"] == "BACKFILL_DSN"
    assert report["settings"]["connect_timeout"] == {"value": "7 s", "origin": "PGCONNECT_TIMEOUT"}
    assert report["settings"]["password"] == {"value": "given", "origin": "PGPASSWORD"}
    assert report["server"]["product"] == "PostgreSQL"
    assert report["capabilities"]["binary_copy"] is True
    assert report["ledger"]["version"] is None
    text = backfill("doctor").out
    assert "binary copy" in text
    assert "hunter2" not in text + shown.out


def test_doctor_of_a_spec_looks_at_both_databases(backfill: Cli, two_shops: TwoDatabases, copy_job) -> None:
    backfill("run", copy_job)
    report = backfill("doctor", copy_job, "--json").json
    assert set(report) == {"source", "target"}
    assert report["source"]["ledger"]["version"] is None
    assert report["target"]["ledger"] == {"version": NEWEST, "newest": NEWEST, "jobs": 1}
    assert "variable ${TARGET_DSN}" in report["target"]["settings"]["host"]["origin"]


def test_doctor_says_which_signals_of_a_spec_can_be_read(
    backfill: Cli, shop: FreshDatabase, spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = [{"replication_lag": {"max": "30s"}}, {"wal_archive": {"max": 10}}]
    job = spec(pace={"signals": signals})
    shown = backfill("doctor", job)
    assert shown.code == 0
    report = backfill("doctor", job, "--json").json["database"]["pacing"]
    names = ("read_latency", "commit_latency", "lock_waits", "replication_lag", "wal_archive")
    assert report["signals"] == dict.fromkeys(names, "yes")
    assert "archive mode" in shown.out
    shop.sql("CREATE ROLE watcher LOGIN")
    try:
        monkeypatch.setenv("BACKFILL_DSN", shop.server.dsn(shop.name, user="watcher"))
        report = backfill("doctor", job, "--json").json["database"]["pacing"]
    finally:
        shop.sql("DROP ROLE watcher")
    assert report["sees_other_sessions"] is False
    assert report["signals"]["replication_lag"] == "no: GRANT pg_read_all_stats TO watcher"
    assert report["signals"]["wal_archive"] == "no: GRANT pg_monitor TO watcher"
    assert report["signals"]["read_latency"] == "yes"


def test_doctor_reports_what_it_cannot_reach_and_exits_with_5(
    backfill: Cli, two_shops: TwoDatabases, copy_job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGET_DSN", "postgresql://nobody@127.0.0.1:1/none")
    shown = backfill("doctor", copy_job)
    assert shown.code == 5
    assert "connection refused" in shown.out
    assert "PostgreSQL 16" in shown.out, "the one that can be reached is shown all the same"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(backfill: Cli, shell: str) -> None:
    script = backfill("completion", shell)
    assert script.code == 0
    assert "_BACKFILL_COMPLETE" in script.out
