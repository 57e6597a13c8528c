"""Transforms and a daemon: it runs what its operator allows, whoever names it, and imports nothing else."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.db import Database
from engine.errors import TransformNotAllowed
from engine.fleet.lent import Lent
from engine.flow.transforming import require_allowed
from engine.ledger import Ledger
from engine.model import Side
from engine.spec import Dsn
from tests.support.api import begin, idle, of, shop, spec
from tests.support.daemon import config_of, put_job, running_daemon, until_job
from tests.support.databases import FreshDatabase
from tests.support.jobs import in_place

MODULE = """
from pathlib import Path

import numpy as np

from engine.transform import Batch, Column, transform

(Path(__file__).parent / "imported").touch()


@transform(reads=["amount"], writes=["cents"])
def cents(batch: Batch):
    amount = batch["amount"]
    return {"cents": Column(amount.values * np.int32(100), amount.null)}
"""

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that is installed beside the daemon, and that nobody has imported."""
    name = f"daemon_transforms_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def imported(tmp_path: Path) -> Callable[[], bool]:
    return (tmp_path / "imported").exists


def computed(module: str, **settings: Any) -> dict[str, Any]:
    """A job whose column a transform computes."""
    return spec(set=None, transform=f"{module}:cents", **settings)


def allowing(*patterns: str, **more: bool) -> dict[str, Any]:
    return {"allow": {"transforms": list(patterns)} | more}


async def test_a_submitted_job_runs_a_transform_that_is_allowed(database: FreshDatabase, module: str) -> None:
    shop(database)
    async with running_daemon(config_of(database, **allowing(f"{module}:*"))) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=computed(module)), 201)
        done = await of(await daemon.client.get("/v1/jobs/cents?wait=30s&until=done"))
        assert (done["state"], done["rows_done"]) == ("done", 500)
    assert database.sql("SELECT count(*) FROM shop WHERE cents = amount * 100") == "500"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans", "/v1/rehearsals"])
async def test_a_submitted_transform_that_is_not_allowed_is_refused_before_it_is_imported(
    database: FreshDatabase, module: str, imported: Callable[[], bool], path: str
) -> None:
    shop(database)
    async with running_daemon(idle(database, **allowing(f"{module}:other", "elsewhere:*"))) as daemon:
        problem = await of(await daemon.client.post(path, json=computed(module)), 403)
        assert (problem["code"], [error["pointer"] for error in problem["errors"]]) == ("not_allowed", ["/transform"])
    assert not imported()
    assert database.sql("SELECT to_regclass('backfill.job') IS NULL") == "t"


async def test_a_transform_that_is_allowed_and_not_there_is_said_so(database: FreshDatabase, module: str) -> None:
    shop(database)
    async with running_daemon(idle(database, **allowing(f"{module}:*", "no_such_module_here:*"))) as daemon:
        for name in ("no_such_module_here:cents", f"{module}:other"):
            problem = await of(await daemon.client.post("/v1/jobs", json=computed(module) | {"transform": name}), 422)
            assert problem["code"] == "transform_not_loaded"
            assert name in problem["detail"]


async def test_a_plan_tries_the_transform_and_shows_rows_only_where_that_is_allowed(
    database: FreshDatabase, module: str
) -> None:
    shop(database)
    async with running_daemon(idle(database, **allowing(f"{module}:cents"))) as daemon:
        plan = await of(await daemon.client.post("/v1/plans", json=computed(module)))
        assert (plan["sample"]["rows"], plan["sample"]["shown"]) == (100, [])
        problem = await of(await daemon.client.post("/v1/plans?show_rows=true", json=computed(module)), 403)
        assert problem["code"] == "not_allowed"
    async with running_daemon(idle(database, **allowing(f"{module}:cents", show_rows=True))) as daemon:
        plan = await of(await daemon.client.post("/v1/plans?show_rows=true", json=computed(module)))
        assert plan["sample"]["shown"][0] == {"input": {"amount": "1"}, "output": {"cents": "100"}, "reason": None}


async def test_a_job_of_the_ledger_with_another_transform_is_left_aside(
    database: FreshDatabase, module: str, imported: Callable[[], bool], tmp_path: Path
) -> None:
    """Whatever its row says: it is not failed, and nothing is imported; whoever may load it can go on."""
    shop(database)
    job = in_place(database, "shop", {}, name="job", transform=f"{module}:cents")
    await put_job(job)
    (tmp_path / "imported").unlink()
    sys.modules.pop(module)
    planted = '{"transform": "antigravity:cents"}'
    async with running_daemon(config_of(database, **allowing(f"{module}:other"))) as daemon:
        aside = await until_job(daemon.client, "job", lambda seen: seen["aside"] is not None)
        assert f"{module}:cents" in str(aside["aside"])
        assert aside["state"] == "planned"
        database.sql(f"UPDATE backfill.job SET spec = spec || '{planted}', identity = identity || '{planted}'")
        for path, body in (
            ("/v1/jobs/job/restart", {"force": True}),
            ("/v1/jobs/job/quarantine/retry", {"all": True}),
            ("/v1/jobs/job/verify", {"repair": True}),
        ):
            problem = await of(await daemon.client.post(path, json=body), 403)
            assert [error["pointer"] for error in problem["errors"]] == ["/transform"], path
    assert not imported()
    assert "antigravity" not in sys.modules
    database.sql(f"""UPDATE backfill.job SET spec = spec || '{{"transform": "{module}:cents"}}',
        identity = identity || '{{"transform": "{module}:cents"}}'""")
    async with running_daemon(config_of(database, **allowing(f"{module}:cents"))) as daemon:
        await until_job(daemon.client, "job", lambda seen: seen["state"] == "done")


async def test_what_only_looks_at_a_job_needs_no_permission(
    database: FreshDatabase, module: str, imported: Callable[[], bool], tmp_path: Path
) -> None:
    shop(database)
    await put_job(in_place(database, "shop", {}, name="job", transform=f"{module}:cents"))
    (tmp_path / "imported").unlink()
    sys.modules.pop(module)
    async with running_daemon(idle(database)) as daemon:
        await of(await daemon.client.get("/v1/jobs/job/gate"))
        grants = await of(await daemon.client.get("/v1/jobs/job/grants?to=somebody"))
        assert "GRANT TEMPORARY ON DATABASE" in grants["script"]
        refused = await of(await daemon.client.get("/v1/jobs/job/dualwrite"), 400)
        assert "application" in refused["hint"]
    assert not imported()


async def test_a_job_is_looked_at_where_its_module_is_gone(
    database: FreshDatabase, module: str, tmp_path: Path
) -> None:
    shop(database)
    async with running_daemon(config_of(database, **allowing(f"{module}:*"))) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=computed(module)), 201)
        await until_job(daemon.client, "cents", lambda seen: seen["state"] == "done")
        sys.modules.pop(module)
        (tmp_path / f"{module}.py").write_text("raise ValueError")
        await of(await daemon.client.get("/v1/jobs/cents/gate"))
        await of(await daemon.client.post("/v1/jobs/cents/verify", json={}))
        shown = await until_job(daemon.client, "cents", lambda seen: seen["verified"] is not None)
        assert shown["aside"] is None
        again = await of(await daemon.client.post("/v1/jobs/cents/restart", json={}), 422)
        assert f"ValueError at {module}.py:1" in again["detail"]


async def test_only_what_this_host_allows_counts(database: FreshDatabase) -> None:
    """A worker believes neither the spec in the ledger nor what the job's identity says was declared."""
    await begin(database)
    planted = '{"transform": "os:system", "transform_reads": [], "transform_writes": [], "transform_drops": false}'
    named = '{"transform": "os:system"}'
    database.sql(f"UPDATE backfill.job SET spec = spec || '{named}', identity = identity || '{planted}'")
    connection = await Database(database.dsn, side=Side.TARGET).connect("test")
    record = await Ledger(connection).job("job")
    await connection.close()
    found = Lent(target=Dsn(database.dsn), transforms=frozenset({"shop.transforms:*"})).spec_of(record)
    assert found.transforms.declared is not None
    with pytest.raises(TransformNotAllowed, match="os:system"):
        require_allowed(found)
