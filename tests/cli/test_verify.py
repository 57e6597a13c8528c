"""``backfill verify`` as its user has it: what it finds, what it prints, and what it never prints."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import CENTS_WRONG, Cli, Outcome, wrong_rows
from tests.support.databases import FreshDatabase, TwoDatabases

LAST_LINE = [
    "event", "job", "rows", "mismatched", "missing", "extra", "unsettled", "repaired", "seconds", "verified", "columns",
    "not_compared", "truncated",
]  # fmt: skip
"""The fields of the last line, as users' scripts know them, and in the order of docs/cli.md."""

KEYS = (4_711_471, 12_340_021)
CANARY = "hunter2-row-value"
QUICK = ("--settle", "100ms")


@pytest.fixture
def done(backfill: Cli, shop: FreshDatabase, spec: Callable[..., Path]) -> Path:
    """A job on the shop that is done; two more rows have keys that are easy to find in any output."""
    shop.sql(
        "ALTER TABLE orders ADD note text;"
        f"INSERT INTO orders SELECT g, 1, NULL, '{CANARY}' FROM unnest(ARRAY[{KEYS[0]}, {KEYS[1]}]) g"
    )
    path = spec(pace={"signals": "off"})
    assert backfill("run", path).code == 0
    return path


def spoil(shop: FreshDatabase) -> None:
    shop.sql(f"UPDATE orders SET cents = 7 WHERE id IN ({KEYS[0]}, {KEYS[1]})")


def nothing_leaks(*shown: Outcome) -> bool:
    said = "".join(one.out + one.err for one in shown)
    return CANARY not in said and not any(str(key) in said for key in KEYS)


# -- what it says -----------------------------------------------------------------------------------------------------


def test_a_job_that_agrees_by_file_and_by_name(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    for job in (str(done), "cents"):
        seen = backfill("verify", job)
        assert (seen.code, seen.out) == (0, "")
        assert "cents is verified: 20.0 k rows" in seen.err
        assert "no difference" in seen.err
    assert backfill("verify", "cents", "--dsn", shop.dsn).code == 0
    assert backfill("verify", "cents", "--quiet").err == ""


def test_json_ends_with_the_line_that_is_documented(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    good = backfill("verify", "cents", "--json")
    assert list(good.json) == LAST_LINE
    assert (good.json["event"], good.json["job"], good.json["verified"]) == ("verify.finished", "cents", True)
    assert (good.json["rows"], good.json["columns"], good.json["not_compared"]) == (20002, {}, [])
    assert good.json["seconds"] > 0
    spoil(shop)
    bad = backfill("verify", "cents", "--json", *QUICK)
    assert bad.code == 6
    assert list(bad.json) == LAST_LINE
    found = {name: bad.json[name] for name in ("mismatched", "missing", "extra", "unsettled", "repaired", "verified")}
    assert found == {"mismatched": 2, "missing": 0, "extra": 0, "unsettled": 0, "repaired": 0, "verified": False}
    assert bad.json["columns"] == {"cents": 2}
    assert nothing_leaks(good, bad)


def test_what_differs_is_counted_and_repaired(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    spoil(shop)
    seen = backfill("verify", "cents", *QUICK)
    assert (seen.code, seen.out) == (6, "")
    assert "cents differs: 2 with other values; 20.0 k rows in" in seen.err
    assert "cents: 2 rows" in seen.err
    assert "backfill verify cents --repair mends them" in seen.err
    assert "looking again at those that seemed to differ" in seen.err
    assert wrong_rows(shop) == 2
    mended = backfill("verify", "cents", "--repair", *QUICK)
    assert mended.code == 0
    assert "cents is verified" in mended.err
    assert "2 repaired" in mended.err
    assert "before the gate opens, verify once more" in mended.err
    assert wrong_rows(shop) == 0
    assert backfill("verify", "cents").code == 0
    assert nothing_leaks(seen, mended)


def test_keys_are_shown_to_who_asks_and_values_to_nobody(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    spoil(shop)
    seen = backfill("verify", "cents", "--show-rows", *QUICK)
    assert seen.code == 6
    assert sorted(seen.out.splitlines()) == [f"confirmed  changed in cents: ({key})" for key in sorted(map(str, KEYS))]
    assert not any(str(key) in seen.err for key in KEYS)
    assert CANARY not in seen.out + seen.err
    as_json = backfill("verify", "cents", "--show-rows", "--json", *QUICK)
    assert CANARY not in as_json.out + as_json.err
    json_lines = [json.loads(line) for line in as_json.out.splitlines()]  # every line of it is JSON
    assert json_lines[-1]["event"] == "verify.finished"
    rows = as_json.events("verify.row")
    assert sorted(row.pop("key") for row in rows) == [[str(key)] for key in sorted(map(str, KEYS))]
    assert rows == [{"event": "verify.row", "state": "confirmed", "kind": "changed", "columns": ["cents"]}] * 2


def test_no_other_command_tells_a_key(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    spoil(shop)
    shown = [backfill("verify", "cents", *QUICK), backfill("verify", "cents", "--json", "-vv", *QUICK)]
    for command in ("status", "history", "wait", "gate"):
        shown += [backfill(command, "cents"), backfill(command, "cents", "--json")]
    shown += [backfill("list"), backfill("list", "--json")]
    assert nothing_leaks(*shown)


# -- other commands about it ------------------------------------------------------------------------------------------


def test_status_list_wait_and_history_of_a_job_that_differs(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    assert "verified" not in backfill("status", "cents").out
    assert backfill("status", "cents", "--json").json["verified"] is None
    spoil(shop)
    backfill("verify", "cents", *QUICK)
    status = backfill("status", "cents")
    assert "2 rows differ" in status.out.splitlines()[0]
    assert "no, 2 rows differ" in status.out
    assert "--repair" in status.out
    assert backfill("status", "cents", "--json").json["verified"] is False
    assert backfill("wait", "cents").code == 6
    assert backfill("run", done).code == 6
    history = backfill("history", "cents")
    assert "verified" in history.out
    assert [e["detail"]["mismatched"] for e in backfill("history", "cents", "--json").json if e["what"] == "verified"] == [2]  # fmt: skip
    backfill("verify", "cents", "--repair", *QUICK)
    assert ", verified" in backfill("status", "cents").out.splitlines()[0]
    assert backfill("wait", "cents").code == 0


def slow_verify(backfill: Cli, spec: Callable[..., Path]) -> Path:
    """The job's spec with a pace at which a verification takes some ten seconds."""
    return spec(pace={"max_rows_per_s": 2000, "signals": "off"}, chunk={"max_rows": 100})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_and_the_next_verify_goes_on(
    backfill: Cli, shop: FreshDatabase, done: Path, spec, until, number: signal.Signals, code: int
) -> None:
    running = backfill.start("verify", slow_verify(backfill, spec), "--json")
    until(shop, "state = 'verifying' AND spans_done > 0")
    seen = backfill("status", "cents")
    assert seen.out.startswith("cents: verifying")
    assert "verifying" in backfill("list").out
    assert backfill("gate", "cents").code == 7
    running.signal(number)
    stopped = running.end()
    assert stopped.code == code
    assert "the next backfill verify cents goes on from there" in stopped.err
    assert not stopped.events("verify.finished")
    compared = int(shop.sql("SELECT sum(rows) FROM backfill.span WHERE phase = 'verify'"))
    assert 0 < compared < 20002
    assert shop.sql("SELECT count(*) FROM backfill.span WHERE lease_until IS NOT NULL").strip() == "0"
    left = backfill("status", "cents")
    assert "nobody works on it" in left.out
    assert "backfill verify cents goes on with it" in left.out
    assert backfill("pace", "cents", "--max-rows-per-s", "1e6").code == 0
    finished = backfill("verify", "cents", "--json")
    assert "going on with the verification that was begun without --repair" in finished.err
    assert (finished.code, finished.json["rows"]) == (0, 20002)
    here = sum(event["observation"]["rows"] for event in finished.events("chunk.committed"))
    assert here == 20002 - compared, "what was compared before is not compared again"


def test_a_verification_that_is_cancelled_says_so(backfill: Cli, shop: FreshDatabase, done: Path, spec, until) -> None:
    running = backfill.start("verify", slow_verify(backfill, spec))
    until(shop, "state = 'verifying' AND spans_done > 0")
    assert backfill("cancel", "cents", "--reason", "not now").code == 0
    ended = running.end()
    assert ended.code == 8
    assert "cents: the verification was cancelled" in ended.err
    assert backfill("status", "cents", "--json").json["state"] == "done"
    assert "cancelled" in backfill("status", "cents").out


def test_asking_for_repair_while_another_only_looks_is_said(
    backfill: Cli, shop: FreshDatabase, done: Path, spec, until
) -> None:
    spoil(shop)
    running = backfill.start("verify", slow_verify(backfill, spec), "--workers", "1")
    until(shop, "state = 'verifying' AND spans_done > 0")
    assert backfill("pace", "cents", "--max-rows-per-s", "1e6").code == 0
    second = backfill("verify", "cents", "--repair")
    assert running.end().code == 6
    assert second.code == 6
    assert "going on with the verification that was begun without --repair" in second.err
    assert wrong_rows(shop) == 2


# -- what it refuses --------------------------------------------------------------------------------------------------


def test_an_unknown_job(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    seen = backfill("verify", "cennts")
    assert seen.code == 2
    assert "did you mean cents?" in seen.err


def test_no_ledger_at_all(backfill: Cli, shop: FreshDatabase, spec) -> None:
    for job in ("cents", str(spec())):
        seen = backfill("verify", job)
        assert seen.code == 2, seen.err
        assert "Traceback" not in seen.err
    assert shop.sql("SELECT to_regnamespace('backfill') IS NULL").strip() == "t", "to look leaves nothing behind"


def test_a_job_that_is_not_done(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    shop.sql("UPDATE backfill.job SET state = 'running', phase = 'move', finished_at = NULL")
    seen = backfill("verify", "cents")
    assert seen.code == 75
    assert "is running: only a job that is done can be verified" in seen.err
    shop.sql("SELECT backfill.cancel('cents')")
    seen = backfill("verify", "cents")
    assert seen.code == 8
    assert "cancelled" in seen.err


@pytest.mark.parametrize("text", ["soon", "-1s", "61s", "1", ""])
def test_a_settle_that_is_none(backfill: Cli, shop: FreshDatabase, done: Path, text: str) -> None:
    seen = backfill("verify", "cents", "--settle", text)
    assert seen.code == 2
    assert "--settle" in seen.err
    assert backfill("status", "cents", "--json").json["state"] == "done"


def test_deleting_without_repairing(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    seen = backfill("verify", "cents", "--delete-extra")
    assert seen.code == 2
    assert "--delete-extra is a part of --repair" in seen.err
    assert backfill("status", "cents", "--json").json["verified"] is None


def test_no_repair_where_it_cannot_be_computed_again(backfill: Cli, shop: FreshDatabase, spec) -> None:
    job = spec(set={"cents": "coalesce(cents, 0) + 1"}, done="cents is not null")
    backfill("run", job)
    seen = backfill("verify", job, "--repair")
    assert seen.code == 2
    assert "cents cannot be computed again" in seen.err
    assert backfill("verify", job).code == 0


# -- between two databases --------------------------------------------------------------------------------------------


def test_a_copy_by_name_needs_its_source(
    backfill: Cli, two_shops: TwoDatabases, copy_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backfill("run", copy_job).code == 0
    two_shops.target.sql("DELETE FROM orders_v2 WHERE id = 77; INSERT INTO orders_v2 VALUES (-5, 1, 1)")
    by_file = backfill("verify", copy_job, *QUICK)
    assert by_file.code == 6
    assert "1 missing in the target, 1 only in the target" in by_file.err
    assert "--repair mends them, but for those only in the target" in by_file.err
    monkeypatch.delenv("SOURCE_DSN")
    target = ("--dsn", "${TARGET_DSN}")
    refused = backfill("verify", "copy", *target)
    assert (refused.code, "SOURCE_DSN" in refused.err) == (2, True)
    monkeypatch.setenv("ELSEWHERE", two_shops.source.dsn)
    mended = backfill("verify", "copy", *target, "--source-dsn", "${ELSEWHERE}", "--repair", *QUICK)
    assert mended.code == 6
    assert "1 missing in the target, 1 only in the target, 1 repaired" in mended.err
    assert mended.err.rstrip().endswith("backfill verify copy --repair --delete-extra deletes them")
    assert "mends" not in mended.err
    both = ("--repair", "--delete-extra")
    mended = backfill("verify", "copy", *target, "--source-dsn", "${ELSEWHERE}", *both, *QUICK, "--json")
    assert (mended.code, mended.json["repaired"]) == (0, 1), mended.err
    assert two_shops.target.sql("SELECT count(*), sum(cents) FROM orders_v2").strip() == "5000|12502500"


def test_settle_is_how_long_it_waits(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    spoil(shop)
    began = time.monotonic()
    assert backfill("verify", "cents", "--settle", "2s").code == 6
    assert time.monotonic() - began > 2
    assert shop.sql(CENTS_WRONG).strip() == "2"
