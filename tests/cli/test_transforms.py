"""Python transforms as a user meets them: in a spec, in a plan, in a run, and what a host does not load."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.spec import load_spec
from tests.cli.conftest import Cli, wrong_rows
from tests.support.daemon import put_job
from tests.support.databases import FreshDatabase, TwoDatabases

MODULE = """
from pathlib import Path

from engine.transform import Batch, Column, transform

(Path(__file__).parent / "imported").touch()


@transform(reads=["amount"], writes=["cents"])
def cents(batch: Batch):
    amount = batch["amount"]
    return {"cents": Column(amount.values, amount.null)}


@transform(reads=["amount"], writes=["cents"])
def picky(batch: Batch):
    amount = batch["amount"]
    batch.reject(amount.values == 77, "seventy-seven")
    return {"cents": Column(amount.values, amount.null)}


@transform(reads=["amount"], writes=["cents"])
def broken(batch: Batch):
    return {"cents": batch["amount"].values / len(batch.no_such_attribute)}


@transform(reads=["amount"], writes=["cents"])
def prints(batch: Batch):
    print("values of rows:", batch["amount"].values[:3])
    return {"cents": batch["amount"].values}
"""

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working directory, which no test has imported before."""
    name = f"shop_transforms_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def imported(tmp_path: Path) -> Callable[[], bool]:
    return (tmp_path / "imported").exists


@pytest.fixture
def job(spec: Callable[..., Path], module: str) -> Callable[..., Path]:
    """``job("cents")``: a spec of that transform on the shop."""
    return lambda function="cents", **keys: spec(**({"set": None, "transform": f"{module}:{function}"} | keys))


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_a_spec_by_hand_runs_the_function_beside_it(backfill: Cli, shop: FreshDatabase, job) -> None:
    done = backfill("run", job(), "--json")
    assert done.code == 0, done.err
    assert wrong_rows(shop) == 0
    again = backfill("run", job(), "--json")
    assert again.code == 0
    assert backfill("status", "cents", "--json").json["state"] == "done"


def test_flags_say_the_same(backfill: Cli, shop: FreshDatabase, module: str) -> None:
    done = backfill("run", "--table", "orders", "--transform", f"{module}:cents", "--name", "by-flags")
    assert done.code == 0, done.err
    assert wrong_rows(shop) == 0


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_a_function_prints_is_kept_out_of_the_json(backfill: Cli, shop: FreshDatabase, job, command: str) -> None:
    done = backfill(command, job("prints"), "--json")
    assert done.code == 0, done.err
    assert "values of rows" in done.err
    for line in done.out.splitlines():
        assert isinstance(json.loads(line), dict)


def test_validate_imports_nothing(backfill: Cli, job, imported) -> None:
    assert backfill("validate", job()).code == 0
    refused = backfill("validate", job(transform="shop.transforms"), "--json")
    assert refused.code == 3
    assert [problem["path"] for problem in refused.json["problems"]] == ["transform"]
    assert not imported()


def test_a_plan_tries_the_transform_and_writes_nothing(backfill: Cli, shop: FreshDatabase, job) -> None:
    plan = backfill("plan", job(), "--json")
    assert plan.code == 0, plan.out
    shown = plan.json
    assert (shown["transform"]["reads"], shown["transform"]["writes"]) == (["amount"], ["cents"])
    assert (shown["sample"]["rows"], shown["sample"]["shown"]) == (100, [])
    assert int(shop.sql("SELECT count(*) FROM orders WHERE cents IS NOT NULL")) == 0


def test_rows_are_shown_to_who_asks(backfill: Cli, shop: FreshDatabase, job) -> None:
    human = backfill("plan", job(), "--show-rows")
    assert human.code == 0
    assert "row 5" in human.out
    assert "row 6" not in human.out
    shown = backfill("plan", job(), "--show-rows", "--json").json["sample"]["shown"]
    assert len(shown) == 5
    assert shown[0] == {"input": {"amount": "0.01"}, "output": {"cents": "1"}, "reason": None}


def test_rows_of_a_job_without_a_transform_are_nothing_to_show(backfill: Cli, shop: FreshDatabase, spec) -> None:
    assert backfill("plan", spec(), "--show-rows").code == 2


def test_a_transform_that_fails_on_the_sample_is_refused_with_its_own_line(
    backfill: Cli, shop: FreshDatabase, job, module: str
) -> None:
    for command in ("plan", "run"):
        refused = backfill(command, job("broken"))
        assert refused.code == 4, refused.err
        said = refused.out + refused.err
        assert "TRANSFORM_FAILS" in said
        assert f"{module}.py:24" in said.replace("\n", "")


def test_a_module_that_is_not_there_is_said_so(backfill: Cli, shop: FreshDatabase, job) -> None:
    missing = backfill("plan", job(transform="no_such_module_here:cents"))
    assert missing.code == 3
    assert "no_such_module_here" in missing.err


# -- what others wrote ------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(shop: FreshDatabase, job, module: str) -> str:
    """The name of the transform of a job that somebody began, and that nobody works."""
    asyncio.run(put_job(load_spec(job(pace={"signals": "off"}), os.environ)))
    return f"{module}:cents"


def test_a_worker_that_may_ends_what_others_began(backfill: Cli, shop: FreshDatabase, begun: str) -> None:
    done = backfill("worker", "--once", "--json", "--allow-transform", f"{begun.partition(':')[0]}:*")
    assert done.code == 0, done.err
    assert done.events("job.finished")[0]["state"] == "done"
    assert wrong_rows(shop) == 0


def test_what_a_function_prints_is_kept_out_of_a_workers_json(
    backfill: Cli, shop: FreshDatabase, job, module: str
) -> None:
    asyncio.run(put_job(load_spec(job("prints", pace={"signals": "off"}), os.environ)))
    done = backfill("worker", "--once", "--json", "--allow-transform", f"{module}:*")
    assert done.code == 0, done.err
    assert "values of rows" in done.err
    assert "job.finished" in [json.loads(line)["event"] for line in done.out.splitlines()]


def test_a_worker_leaves_a_job_aside_whose_transform_it_may_not_load(
    backfill: Cli, shop: FreshDatabase, begun: str, tmp_path: Path, imported
) -> None:
    (tmp_path / "imported").unlink()
    aside = backfill("worker", "--once", "--json", "--allow-transform", f"{begun}_too")
    assert aside.code == 3
    assert begun in aside.events("job.aside")[0]["reason"]
    assert not imported()
    assert backfill("status", "cents", "--json").json["state"] == "planned", "others may still work it"


def test_the_ledgers_word_is_never_enough(backfill: Cli, shop: FreshDatabase, begun: str, tmp_path: Path) -> None:
    """Whoever can write the ledger's tables does not choose what this process imports."""
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath('planted').touch()\n")
    for planted in ("os:system", "planted:cents"):
        declared = f'{{"transform": "{planted}", "transform_reads": [], "transform_writes": ["cents"]}}'
        shop.sql(
            f"UPDATE backfill.job SET spec = jsonb_set(spec, '{{transform}}', '\"{planted}\"'),"
            f" identity = identity || '{declared}'"
        )
        for command in (
            ["worker", "--once", "--allow-transform", begun],
            ["quarantine", "retry", "cents", "--all"],
            ["gate", "cents"],
            ["verify", "cents"],
            ["dualwrite", "cents", "--check"],
            ["grants", "cents", "--to", "somebody"],
        ):
            backfill(*command)
        assert not (tmp_path / "planted").exists()
    assert backfill("worker", "--once", "--allow-transform", begun).code == 3
    assert shop.sql("SELECT count(*) FROM orders WHERE cents IS NOT NULL") == "0"


def test_a_transform_that_declares_something_else_now_is_another_job(
    backfill: Cli, shop: FreshDatabase, begun: str, tmp_path: Path, job
) -> None:
    sys.modules.pop(begun.partition(":")[0], None)
    module = tmp_path / f"{begun.partition(':')[0]}.py"
    module.write_text(module.read_text().replace('reads=["amount"]', 'reads=["amount", "id"]'))
    changed = backfill("run", job())
    assert changed.code == 3
    assert "transform_reads" in changed.err


def test_a_row_is_tried_again_by_the_transform_where_it_may_be_loaded(
    backfill: Cli, shop: FreshDatabase, job, module: str
) -> None:
    assert backfill("run", job("picky", errors={"max_quarantined": 5})).code == 0
    listed = backfill("quarantine", "list", "cents", "--json").json
    assert listed["by_sqlstate"] == {"BF010": 1}
    assert wrong_rows(shop) == 1
    retry = ("quarantine", "retry", "cents", "--all")
    assert backfill(*retry).code == 3
    assert backfill(*retry, "--allow-transform", "*").code == 2
    allowed = (*retry, "--allow-transform", f"{module}:picky")
    assert backfill(*allowed).code == 7, "it is rejected again"
    shop.sql("UPDATE orders SET amount = 1 WHERE id = 77")
    assert backfill(*allowed).code == 0
    assert wrong_rows(shop) == 0


# -- what others can do with it ---------------------------------------------------------------------------------------


def test_who_only_looks_need_not_load_it(backfill: Cli, shop: FreshDatabase, job, module: str, tmp_path: Path) -> None:
    assert backfill("run", job()).code == 0
    sys.modules.pop(module, None)
    (tmp_path / f"{module}.py").unlink()
    verified = backfill("verify", "cents", "--json")
    assert verified.code == 0, verified.err
    gate = backfill("gate", "cents", "--json")
    assert gate.code in (0, 7, 8), gate.err
    assert backfill("grants", "cents", "--to", "somebody").code == 0


def test_who_only_looks_at_a_job_that_is_begun_does_not_load_it_by_its_file_either(
    backfill: Cli, shop: FreshDatabase, job, module: str, tmp_path: Path, imported
) -> None:
    path = job()
    assert backfill("run", path).code == 0
    sys.modules.pop(module, None)
    (tmp_path / "imported").unlink()
    assert backfill("verify", path).code == 0
    assert backfill("gate", path).code in (0, 7, 8)
    assert "application" in backfill("dualwrite", path, "--check").err
    assert backfill("grants", path, "--to", "somebody").code == 0
    assert not imported()
    (tmp_path / f"{module}.py").write_text("raise ValueError")
    assert backfill("verify", path, "--json").code == 0


def test_what_lies_in_the_working_directory_is_nothing_to_python_m(tmp_path: Path) -> None:
    """It would hide what is installed, in a daemon too."""
    for name in ("click", "yaml", "asyncpg", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the working directory')")
    command = [sys.executable, "-m", "engine", "validate", "nothing.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "taken from" not in done.stdout + done.stderr
    assert "nothing.yaml" in done.stderr


def test_a_verification_in_place_counts_what_is_not_done(backfill: Cli, shop: FreshDatabase, job) -> None:
    assert backfill("run", job()).code == 0
    assert backfill("verify", "cents").code == 0
    shop.sql("UPDATE orders SET cents = NULL WHERE id <= 3")
    found = backfill("verify", "cents", "--json")
    assert found.code == 6
    assert found.json["mismatched"] == 3
    for command in ("verify", "gate"):
        said = backfill(command, "cents")
        told = said.out + said.err
        assert "3 rows not done" in told, told
        assert "a repair is SQL" in told and "backfill restart cents does what is not done" in told
        assert "mends them" not in told and "quarantine list" not in said.err
    told = backfill("status", "cents").out
    assert "backfill restart cents does what is not done" in " ".join(told.split()), told
    assert "--repair" not in told
    refused = backfill("verify", "cents", "--repair")
    assert refused.code == 2
    assert "verify --repair cannot compute cents, which" in refused.err


def test_rows_that_are_set_aside_are_what_is_not_done(backfill: Cli, shop: FreshDatabase, job) -> None:
    assert backfill("run", job("picky", errors={"max_quarantined": 5})).code == 0
    verified = backfill("verify", "cents").err
    gate = backfill("gate", "cents").out
    assert "cents differs: 1 row not done" in verified, verified
    for told in (verified, gate):
        assert "1 row of them may be set aside: backfill quarantine list cents" in told, told
        assert "backfill quarantine retry cents" in told


def test_a_copy_is_compared_but_for_what_was_computed(backfill: Cli, two_shops: TwoDatabases, job, module: str) -> None:
    path = job(
        name="copy",
        source={"dsn": "${SOURCE_DSN}", "table": "orders"},
        target={"dsn": "${TARGET_DSN}", "table": "orders_v2"},
    )
    assert backfill("run", path).code == 0
    two_shops.target.sql("UPDATE orders_v2 SET cents = 0 WHERE id = 1; UPDATE orders_v2 SET amount = 0 WHERE id = 2")
    found = backfill("verify", path, "--json")
    assert found.code == 6, found.err
    finished = found.json
    assert (finished["mismatched"], finished["not_compared"]) == (1, ["cents"])
    refused = backfill("verify", path, "--repair")
    assert refused.code == 2
    assert f"verify --repair cannot compute cents, which {module}:cents does" in refused.err
    assert two_shops.target.sql("SELECT amount FROM orders_v2 WHERE id = 2") == "0.00"


def test_triggers_cannot_run_it(backfill: Cli, shop: FreshDatabase, job) -> None:
    for action in ("--print", "--install", "--check"):
        refused = backfill("dualwrite", job(), action)
        assert refused.code == 2, refused.out
        assert "cents" in refused.err
        assert "application" in refused.err
    assert "zz_backfill_" not in shop.sql("SELECT tgname FROM pg_trigger")


def test_the_grant_script_lets_a_role_stage_rows(backfill: Cli, shop: FreshDatabase, job, spec) -> None:
    with_transform = backfill("grants", job(), "--to", "somebody").out
    without = backfill("grants", spec(), "--to", "somebody").out
    assert "GRANT TEMPORARY ON DATABASE" in with_transform
    assert "GRANT TEMPORARY ON DATABASE" not in without
    assert "dualwrite" not in with_transform
