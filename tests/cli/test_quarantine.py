"""``quarantine list``, ``retry`` and ``drop``: what a person sees of rows that were set aside, and what he may not see."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.cli.places import operator
from tests.cli.conftest import Cli, wrong_rows
from tests.support.databases import FreshDatabase, TwoDatabases

CANARY = "hunter2-row-value"
KEYS = ("4711", "12345")


@pytest.fixture
def spoiled(shop: FreshDatabase, spec) -> Path:
    """A job with two rows that cannot be written, for two reasons, and room for three."""
    shop.sql(
        "ALTER TABLE orders ADD note text; ALTER TABLE orders ADD CONSTRAINT odd CHECK (cents <> 471100 OR id <> 4711);"
        f"UPDATE orders SET note = '{CANARY}' WHERE id = 12345; UPDATE orders SET amount = 4711 WHERE id = 4711"
    )
    sets = {"cents": "(amount * 100)::bigint + coalesce(note, '0')::bigint"}
    return spec(set=sets, errors={"max_quarantined": 3})


def mend(shop: FreshDatabase) -> None:
    shop.sql("UPDATE orders SET note = NULL WHERE id = 12345")


def numbers_of(shop: FreshDatabase) -> dict[str, str]:
    lines = shop.sql("SELECT sqlstate, id FROM backfill.quarantine").splitlines()
    return dict(line.split("|") for line in lines)


def test_run_sets_them_aside_and_says_so(backfill: Cli, shop: FreshDatabase, spoiled: Path) -> None:
    done = backfill("run", spoiled, "--json")
    assert done.code == 0
    assert (done.json["state"], done.json["quarantined"], done.json["rows"]) == ("done", 2, 19998)
    events = done.events("row.quarantined")
    assert sorted(event["sqlstate"] for event in events) == ["22P02", "23514"]
    assert set(events[0]) == {"event", "job", "worker", "span", "epoch", "sqlstate", "rows", "in_chunk"}
    assert "set a row of span" in done.err
    assert "2 rows set aside" in done.err
    assert CANARY not in done.out + done.err
    assert backfill("status", "cents", "--json").json["quarantined"] == 2
    assert wrong_rows(shop) == 2


def test_list_shows_why_and_the_keys_only_to_who_asks(backfill: Cli, shop: FreshDatabase, spoiled: Path) -> None:
    backfill("run", spoiled)
    shown = backfill("quarantine", "list", "cents")
    assert shown.code == 0
    assert "cents: 2 rows set aside" in shown.out
    assert "a value cannot be read as its type" in shown.out
    assert "constraint odd" in shown.out
    assert "1 attempt" in shown.out
    assert not any(key in shown.out for key in KEYS)
    assert all(key in backfill("quarantine", "list", spoiled, "--show-rows").out for key in KEYS)
    as_json = backfill("quarantine", "list", "cents", "--json").json
    assert (as_json["job"], as_json["quarantined"]) == ("cents", 2)
    assert as_json["by_sqlstate"] == {"22P02": 1, "23514": 1}
    assert {tuple(row) for row in as_json["rows"]} == {("id", "sqlstate", "error", "attempts", "first_at", "last_at")}
    with_keys = backfill("quarantine", "list", "cents", "--json", "--show-rows").json["rows"]
    assert sorted(row["key"] for row in with_keys) == [["12345"], ["4711"]]
    assert CANARY not in repr(with_keys)
    first = backfill("quarantine", "list", "cents", "--limit", "1", "--json").json
    assert (len(first["rows"]), first["quarantined"]) == (1, 2)
    assert "and 1 more" in backfill("quarantine", "list", "cents", "--limit", "1").err


def test_retry_writes_what_was_mended_and_ends_with_7_while_rows_are_bad(
    backfill: Cli, shop: FreshDatabase, spoiled: Path
) -> None:
    backfill("run", spoiled)
    mend(shop)
    tried = backfill("quarantine", "retry", "cents", "--all", "--json")
    assert tried.code == 7
    assert tried.json["event"] == "quarantine.retried"
    assert (tried.json["written"], tried.json["failed"], tried.json["quarantined"]) == (1, 1, 1)
    assert tried.json["by_sqlstate"] == {"23514": 1}
    assert "1 written, 1 bad still (1 of 23514)" in tried.err
    assert "backfill verify cents" in tried.err
    assert not any(text in tried.out + tried.err for text in (CANARY, *KEYS))
    assert wrong_rows(shop) == 1
    shop.sql("ALTER TABLE orders DROP CONSTRAINT odd")
    assert backfill("quarantine", "retry", spoiled, "--all").code == 0
    assert wrong_rows(shop) == 0
    assert backfill("quarantine", "list", "cents", "--json").json["rows"] == []
    assert backfill("quarantine", "retry", "cents", "--all").code == 0
    whats = [entry["what"] for entry in backfill("history", "cents", "--json").json]
    assert whats.count("quarantine") == 2


def test_retry_of_one_row_leaves_the_other(backfill: Cli, shop: FreshDatabase, spoiled: Path) -> None:
    backfill("run", spoiled)
    mend(shop)
    number = numbers_of(shop)["22P02"]
    tried = backfill("quarantine", "retry", "cents", "--id", number, "--json")
    assert (tried.code, tried.json["written"], tried.json["quarantined"]) == (0, 1, 1)


def test_drop_asks_counts_and_is_history(backfill: Cli, shop: FreshDatabase, spoiled: Path) -> None:
    backfill("run", spoiled)
    refused = backfill.start("quarantine", "drop", "cents", "--all").end()
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert len(numbers_of(shop)) == 2
    number = numbers_of(shop)["23514"]
    dropped = backfill("quarantine", "drop", "cents", "--id", number, "--yes", "--json")
    assert (dropped.code, dropped.json) == (0, {"job": "cents", "dropped": 1, "quarantined": 1})
    assert backfill("quarantine", "drop", "cents", "--all", "--yes", "--json").json["quarantined"] == 0
    entries = [e for e in backfill("history", "cents", "--json").json if e["what"] == "quarantine"]
    assert [entry["detail"] for entry in entries] == [{"dropped": 1}, {"dropped": 1}]
    assert all(entry["who"] == operator() for entry in entries)
    assert wrong_rows(shop) == 2


def test_too_many_bad_rows_fail_the_job_with_counts(backfill: Cli, shop: FreshDatabase, spoiled: Path, spec) -> None:
    sets = {"cents": "(amount * 100)::bigint + coalesce(note, '0')::bigint"}
    failed = backfill("run", spec("tight.yaml", set=sets, errors={"max_quarantined": 1}), "--json")
    assert failed.code == 7
    error = failed.lines[-2]
    assert (error["event"], error["code"]) == ("error", "too_many_bad_rows")
    assert "1 of 22P02" in error["message"]
    assert "1 of 23514" in error["message"]
    assert "errors.max_quarantined" in error["hint"]
    assert not any(text in failed.out + failed.err for text in (CANARY, *KEYS))
    assert backfill("resume", "cents").code == 0
    done = backfill("run", spoiled, "--json")
    assert (done.code, done.json["quarantined"]) == (0, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("retry", "cents"),
        ("drop", "cents", "--yes"),
        ("retry", "cents", "--all", "--id", "1"),
        ("drop", "cents", "--id", "0"),
    ],
)
def test_which_rows_must_be_said(backfill: Cli, shop: FreshDatabase, spoiled: Path, arguments: tuple[str, ...]) -> None:
    backfill("run", spoiled)
    assert backfill("quarantine", *arguments).code == 2
    assert len(numbers_of(shop)) == 2


def test_rows_and_jobs_that_are_not_there(backfill: Cli, shop: FreshDatabase, spoiled: Path) -> None:
    backfill("run", spoiled)
    for order in (("retry",), ("drop", "--yes")):
        refused = backfill("quarantine", order[0], "cents", "--id", "999", *order[1:])
        assert refused.code == 2
        assert "999" in refused.err
    assert backfill("quarantine", "list", "cennts").code == 2


def test_a_copy_by_name_needs_its_source(
    backfill: Cli, two_shops: TwoDatabases, spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_shops.source.sql("ALTER TABLE orders ADD note text; UPDATE orders SET note = 'x' WHERE id = 77")
    job = spec(
        name="copy",
        set=None,
        source={"dsn": "${SOURCE_DSN}", "table": "orders"},
        target={"dsn": "${TARGET_DSN}", "table": "orders_v2"},
        columns={"id": "id", "cents": "(amount * 100)::bigint + coalesce(note, '0')::bigint"},
        errors={"max_quarantined": 1},
    )
    assert backfill("run", job).code == 0
    monkeypatch.delenv("SOURCE_DSN")
    target = ("--dsn", "${TARGET_DSN}")
    refused = backfill("quarantine", "retry", "copy", "--all", *target)
    assert (refused.code, "SOURCE_DSN" in refused.err) == (2, True)
    monkeypatch.setenv("ELSEWHERE", two_shops.source.dsn)
    two_shops.source.sql("UPDATE orders SET note = NULL")
    tried = backfill("quarantine", "retry", "copy", "--all", *target, "--source-dsn", "${ELSEWHERE}")
    assert tried.code == 0, tried.err
    assert two_shops.target.sql("SELECT count(*), sum(cents) FROM orders_v2").strip() == "5000|12502500"
