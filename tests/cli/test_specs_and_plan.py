"""Before anything runs: ``init``, ``validate``, ``schema``, ``plan``."""

from __future__ import annotations

import json
import os
from pathlib import Path

from engine.spec import load_spec
from tests.cli.conftest import Cli, wrong_rows
from tests.support.databases import FreshDatabase, TwoDatabases


def test_init_writes_a_spec_that_runs_once_the_blank_is_filled(
    backfill: Cli, shop: FreshDatabase, tmp_path: Path
) -> None:
    path = tmp_path / "first.yaml"
    assert backfill("init", "orders", "--set", "cents", "--output", path).code == 0
    assert backfill("plan", path).code == 4, "nobody has said yet what fills the column"
    path.write_text(path.read_text().replace("cents: REPLACE_ME", "cents: (amount * 100)::bigint"))
    assert backfill("plan", path).code == 0
    assert backfill("run", path).code == 0
    assert wrong_rows(shop) == 0


def test_init_never_overwrites(backfill: Cli, shop: FreshDatabase, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    refused = backfill("init", "orders", "-o", path)
    assert refused.code == 2
    assert "exists already" in refused.err
    assert path.read_text() == "precious"


def test_init_matches_the_columns_of_two_tables(backfill: Cli, two_shops: TwoDatabases, tmp_path: Path) -> None:
    two_shops.target.sql("ALTER TABLE orders_v2 ADD region text NOT NULL")
    path = tmp_path / "copy.yaml"
    dsns = ("--dsn", "${SOURCE_DSN}", "--target-dsn", "${TARGET_DSN}")
    assert backfill("init", "orders", *dsns, "--target", "orders_v2", "-o", path).code == 0
    spec = load_spec(path, os.environ)
    assert dict(spec.columns) == {"id": '"id"', "amount": '"amount"', "region": "REPLACE_ME"}
    assert "${TARGET_DSN}" in path.read_text()


def test_init_of_a_table_that_is_not_there(backfill: Cli, shop: FreshDatabase) -> None:
    missing = backfill("init", "order")
    assert missing.code == 2
    assert "orders" in missing.err
    assert backfill("init", "orders", "--set", "sents").code == 2


def test_validate_needs_no_database(backfill: Cli, spec) -> None:
    path = spec()
    valid = backfill("validate", path, "--json")
    assert (valid.code, valid.json["valid"], valid.json["job"]) == (0, True, "cents")
    invalid = backfill("validate", spec(workers=0, order="sideways"), "--json")
    assert invalid.code == 3
    assert {problem["path"] for problem in invalid.json["problems"]} == {"workers", "order"}
    assert all(problem["line"] for problem in invalid.json["problems"])


def test_schema_describes_the_file(backfill: Cli) -> None:
    shown = json.loads(backfill("schema").out)
    assert shown["required"] == ["source"]
    assert "workers" in shown["properties"]


def test_plan_shows_what_would_happen_and_touches_nothing(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shown = backfill("plan", spec())
    assert shown.code == 0
    assert "id (index orders_pkey)" in shown.out
    assert "about 20.0 k in" in shown.out
    assert "(rough)" in shown.out
    assert shop.sql("SELECT to_regnamespace('backfill') IS NULL").strip() == "t"
    plan = backfill("plan", spec(), "--json").json
    assert (plan["mode"], plan["rows_estimated"], plan["refused"]) == ("update", 20000, False)
    assert plan["key"] == {"columns": ["id"], "index": "orders_pkey"}
    low, high = plan["forecast"]["seconds"]
    assert 0 < low < high
    assert wrong_rows(shop) == 20000


def test_plan_of_a_job_that_would_be_refused_exits_with_4(backfill: Cli, shop: FreshDatabase, spec) -> None:
    path = spec(set={"cents": "no_such_column + 1"})
    refused = backfill("plan", path)
    assert refused.code == 4
    assert "refuse  EXPRESSION_INVALID" in refused.out
    as_json = backfill("plan", path, "--json").json
    assert as_json["refused"]
    assert {"code", "severity", "message", "remedy"} == set(as_json["findings"][0])


def test_plan_of_a_missing_target_says_what_is_missing(backfill: Cli, shop: FreshDatabase, spec) -> None:
    refused = backfill("plan", spec(set=None, target={"table": "orders_v2"}))
    assert refused.code == 4
    assert "TARGET_MISSING" in refused.out
