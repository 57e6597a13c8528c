"""``backfill gate``: yes or no, why, and what to do; by exit code, in words and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.support.databases import FreshDatabase, TwoDatabases

NAMES = ["done", "verified", "schema", "dual_write", "quarantine", "server"]
QUICK = ("--settle", "100ms")


@pytest.fixture
def done(backfill: Cli, shop: FreshDatabase, spec: Callable[..., Path]) -> Path:
    path = spec(accept=["DUAL_WRITE_MISSING"], pace={"signals": "off"})
    assert backfill("run", path).code == 0
    return path


def test_not_ready_is_7_differing_is_6_and_ready_is_0(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    unproved = backfill("gate", "cents")
    assert unproved.code == 7
    assert unproved.out.splitlines()[0] == "cents: not ready"
    assert "nobody has verified it" in unproved.out
    assert "backfill verify cents" in unproved.out
    shop.sql("UPDATE orders SET cents = 1 WHERE id = 4711")
    backfill("verify", "cents", *QUICK)
    differing = backfill("gate", done)
    assert differing.code == 6
    assert "found 1 row differing" in differing.out
    assert "backfill verify cents --repair, then backfill verify cents" in differing.out
    assert "4711" not in differing.out
    backfill("verify", "cents", "--repair", *QUICK)
    assert backfill("gate", "cents").code == 7, "repaired is not verified"
    backfill("verify", "cents")
    for job in ("cents", str(done)):
        ready = backfill("gate", job, "--dsn", shop.dsn)
        assert (ready.code, ready.err) == (0, "")
        assert ready.out.splitlines()[0] == "cents: ready"
        assert [line.split()[:2] for line in ready.out.splitlines()[1:]] == [["yes", name] for name in NAMES]
        assert "20,000 rows agree" in ready.out


def test_json(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    seen = backfill("gate", "cents", "--json")
    assert seen.code == 7
    assert list(seen.json) == ["job", "ready", "checks"]
    assert (seen.json["job"], seen.json["ready"]) == ("cents", False)
    assert [check["name"] for check in seen.json["checks"]] == NAMES
    assert [check["name"] for check in seen.json["checks"] if not check["ok"]] == ["verified"]
    assert all(list(check) == ["name", "ok", "detail", "remedy"] for check in seen.json["checks"])
    backfill("verify", "cents")
    seen = backfill("gate", "cents", "--json")
    assert (seen.code, seen.json["ready"]) == (0, True)


def test_several_things_are_said_at_once(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    shop.sql("ALTER TABLE orders ALTER amount TYPE numeric(14,2)")
    seen = backfill("gate", "cents")
    assert seen.code == 7
    assert [line.split()[1] for line in seen.out.splitlines() if line.startswith("  no ")] == ["verified", "schema"]
    assert "amount" in seen.out


def test_a_copy_by_name_needs_its_source(
    backfill: Cli, two_shops: TwoDatabases, copy_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backfill("run", copy_job).code == 0
    assert backfill("verify", copy_job).code == 0
    by_file = backfill("gate", copy_job)
    assert by_file.code == 7
    assert "accept: [DUAL_WRITE_MISSING]" in by_file.out
    monkeypatch.delenv("SOURCE_DSN")
    refused = backfill("gate", "copy", "--dsn", "${TARGET_DSN}")
    assert (refused.code, "SOURCE_DSN" in refused.err) == (2, True)
    monkeypatch.setenv("ELSEWHERE", two_shops.source.dsn)
    assert backfill("gate", "copy", "--dsn", "${TARGET_DSN}", "--source-dsn", "${ELSEWHERE}").code == 7


def test_what_is_not_there(backfill: Cli, shop: FreshDatabase, done: Path) -> None:
    unknown = backfill("gate", "cennts")
    assert (unknown.code, "did you mean cents?" in unknown.err) == (2, True)


def test_no_ledger_at_all(backfill: Cli, shop: FreshDatabase, spec: Callable[..., Path]) -> None:
    for job in ("cents", str(spec())):
        seen = backfill("gate", job)
        assert seen.code == 2, seen.err
    assert shop.sql("SELECT to_regnamespace('backfill') IS NULL").strip() == "t"
