"""``backfill dualwrite``: print, install, check, remove, from a spec or by the job's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from engine.sql import dual_write
from tests.cli.conftest import Cli
from tests.support.databases import FreshDatabase
from tests.support.jobs import differing

Spec = Callable[..., Path]
MAPPED = "SELECT id, amount FROM orders"


@pytest.fixture
def into_v2(shop: FreshDatabase, spec: Spec) -> Path:
    """A job from the shop's table into another one of the same database."""
    shop.sql("CREATE TABLE orders_v2 (id bigint PRIMARY KEY, amount numeric(12,2))")
    keys = {"set": None, "target": {"table": "orders_v2"}, "columns": {"id": "id", "amount": "amount"}}
    return spec(name="v2", **keys)


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    def write(file: str = "job.yaml", **keys: object) -> Path:
        whole = {"name": "cents", "source": {"table": "orders"}, "set": {"cents": "(amount * 100)::bigint"}} | keys
        path = tmp_path / file
        path.write_text(yaml.safe_dump({key: value for key, value in whole.items() if value is not None}))
        return path

    return write


def triggers(database: FreshDatabase) -> list[str]:
    return database.sql("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'zz_backfill%' ORDER BY 1").splitlines()


def test_print_touches_nothing_and_what_it_prints_can_be_run(backfill: Cli, shop: FreshDatabase, into_v2: Path) -> None:
    printed = backfill("dualwrite", into_v2, "--print")
    assert printed.code == 0
    assert shop.sql("SELECT to_regnamespace('backfill') IS NULL") == "t"
    shop.sql(printed.out)
    assert backfill("dualwrite", into_v2, "--check").code == 0
    assert backfill("dualwrite", into_v2, "--print", "--json").json["job"] == "v2"


def test_install_check_run_and_remove(backfill: Cli, shop: FreshDatabase, into_v2: Path) -> None:
    missing = backfill("dualwrite", into_v2, "--check", "--json")
    assert (missing.code, missing.json["installed"], missing.json["intact"]) == (7, False, False)
    done = backfill("dualwrite", into_v2, "--install", "--json")
    assert (done.code, done.json["changed"]) == (0, True), done.err
    assert done.json["triggers"] == triggers(shop) == list(dual_write.trigger_names("v2"))
    again = backfill("dualwrite", into_v2, "--install", "--json")
    assert (again.code, again.json["changed"]) == (0, False)
    intact = backfill("dualwrite", into_v2, "--check", "--json")
    assert (intact.code, intact.json["intact"], intact.json["problems"]) == (0, True, [])
    assert intact.json["evidence"]["triggers"]
    shop.sql("UPDATE orders SET amount = 1 WHERE id = 7; DELETE FROM orders WHERE id = 8")
    assert backfill("run", into_v2).code == 0
    shop.sql("UPDATE orders SET amount = 2 WHERE id = 9; DELETE FROM orders WHERE id = 10")
    assert differing(shop, MAPPED, "TABLE orders_v2") == 0
    removed = backfill("dualwrite", "v2", "--remove")  # by name: the spec need not be there any more
    assert removed.code == 0
    assert "removed" in removed.err
    assert triggers(shop) == []
    nothing = backfill("dualwrite", "v2", "--remove", "--json")
    assert (nothing.code, nothing.json["changed"]) == (0, False)
    history = backfill("history", "v2").out
    assert "dual-write installed" in history
    assert "dual-write removed" in history


def test_a_job_in_place_by_its_name(backfill: Cli, shop: FreshDatabase, spec: Spec) -> None:
    assert backfill("dualwrite", spec(), "--install").code == 0
    assert backfill("run", spec()).code == 0
    assert backfill("dualwrite", "cents", "--check").code == 0
    shop.sql("INSERT INTO orders VALUES (30000, 5); UPDATE orders SET amount = 6 WHERE id = 1")
    assert shop.sql("SELECT cents FROM orders WHERE id IN (1, 30000) ORDER BY id") == "600\n500"


def test_check_says_what_is_wrong_and_install_mends_it(backfill: Cli, shop: FreshDatabase, into_v2: Path) -> None:
    backfill("dualwrite", into_v2, "--install")
    shop.sql(f"ALTER TABLE orders DISABLE TRIGGER {triggers(shop)[0]}")
    wrong = backfill("dualwrite", into_v2, "--check")
    assert wrong.code == 7
    assert "is disabled" in wrong.out
    mended = backfill("dualwrite", into_v2, "--install")
    assert mended.code == 0
    assert "backfill verify" in mended.err  # what was written meanwhile reached nobody
    assert backfill("dualwrite", into_v2, "--check").code == 0


def test_a_table_that_is_not_to_be_had_is_told_by_75(backfill: Cli, shop: FreshDatabase, into_v2: Path) -> None:
    shop.sql("BEGIN; DELETE FROM orders WHERE id = 1; PREPARE TRANSACTION 'left behind'")
    try:
        busy = backfill("dualwrite", into_v2, "--install", "--patience", "500ms", "--json")
    finally:
        shop.sql("ROLLBACK PREPARED 'left behind'")
    assert (busy.code, busy.json["code"]) == (75, "busy")
    assert triggers(shop) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "give one of"), (("--install", "--patience", "60"), "is not a duration")],
)
def test_arguments_that_make_no_sense(backfill: Cli, into_v2: Path, arguments: tuple[str, ...], said: str) -> None:
    refused = backfill("dualwrite", into_v2, *arguments)
    assert refused.code == 2
    assert said in refused.err


def test_two_databases_have_no_triggers(backfill: Cli, two_shops, copy_job: Path) -> None:
    for action in ("--print", "--install", "--check"):
        refused = backfill("dualwrite", copy_job, action)
        assert refused.code == 2, refused.err
        assert "different databases" in refused.err


def test_triggers_that_a_job_needs_stay_unless_forced(backfill: Cli, shop: FreshDatabase, into_v2: Path) -> None:
    backfill("dualwrite", into_v2, "--install")
    backfill("run", into_v2)
    shop.sql("UPDATE backfill.job SET state = 'paused'")
    assert backfill("dualwrite", into_v2, "--remove").code == 2
    assert len(triggers(shop)) == 2
    assert backfill("dualwrite", into_v2, "--remove", "--force").code == 0
    assert triggers(shop) == []
