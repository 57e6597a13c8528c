"""A daemon and transforms that misbehave: their own job fails and says where; everybody else's goes on, with its leases."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api import of, shop, spec
from tests.support.daemon import config_of, daemon_process, until_job
from tests.support.databases import FreshDatabase
from tests.support.functions import named

CANARY = "canary0value"


def transformed(function: str, **settings: Any) -> dict[str, Any]:
    """A job in place on ``t``."""
    return spec(
        function.replace("_", "-"),
        source={"connection": "main", "table": "public.t"},
        set=None,
        transform=named(function),
        chunk={"max_rows": 500},
        **settings,
    )


def table(database: FreshDatabase, rows: int = 4000) -> None:
    database.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL, v text, h bigint);"
        f"INSERT INTO t SELECT g, g, '{CANARY}' || g FROM generate_series(1, {rows}) g; ANALYZE t"
    )


@pytest.mark.slow
async def test_one_jobs_function_is_nobody_elses_trouble(database: FreshDatabase) -> None:
    table(database)
    shop(database, 4000)
    allow = {"expressions": True, "transforms": [named("*")]}
    async with daemon_process(config_of(database, allow=allow)) as daemon:
        slowly = {"pace": {"max_rows_per_s": 50, "signals": "off"}, "chunk": {"max_rows": 20}}
        await of(await daemon.client.post("/v1/jobs", json=spec(**slowly)), 201)
        await until_job(daemon.client, "cents", lambda shown: shown["rows_done"] > 0)
        for function, said in (("holds_on", "has not come back after 1 s"), ("exits", "raised SystemExit")):
            await of(await daemon.client.post("/v1/jobs", json=transformed(function)), 201)
            failed = await until_job(
                daemon.client, function.replace("_", "-"), lambda shown: shown["state"] == "failed"
            )
            assert said in failed["error"]["message"]
            assert "tests/support/functions.py:" in failed["error"]["message"]
        meanwhile = await of(await daemon.client.get("/v1/jobs/cents"))
        assert meanwhile["state"] == "running"
        await of(await daemon.client.patch("/v1/jobs/cents/pace", json={"max_rows_per_s": 1e6}))
        await until_job(daemon.client, "cents", lambda shown: shown["state"] == "done")
        told = daemon.log.read_text()
        assert CANARY not in told
        assert "lease.lost" not in told
        assert await daemon.terminated() in (0, 143)
    assert database.sql("SELECT count(*) FROM shop WHERE cents IS DISTINCT FROM amount * 100") == "0"
    assert (
        database.sql(
            "SELECT max(epoch) FROM backfill.span s JOIN backfill.job j ON j.id = s.job_id WHERE name = 'cents'"
        )
        == "1"
    )


async def test_a_module_that_does_not_come_back_keeps_neither_others_nor_the_daemon(
    database: FreshDatabase, tmp_path: Path
) -> None:
    """One that raises a Ctrl-C is no signal to the daemon, and one that hangs is left behind."""
    table(database)
    (tmp_path / "interrupting.py").write_text("raise KeyboardInterrupt\n")
    begun = tmp_path / "begun"
    (tmp_path / "hanging.py").write_text(f"import time\nopen({str(begun)!r}, 'w').close()\ntime.sleep(600)\n")
    job = {"source": {"connection": "main", "table": "public.t"}, "set": None}
    allow = {"expressions": True, "transforms": ["interrupting:f", "hanging:f"]}
    path = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    async with daemon_process(config_of(database, allow=allow), environment={"PYTHONPATH": path}) as daemon:
        refused = await daemon.client.post("/v1/plans", json=spec("a", transform="interrupting:f", **job))
        problem = await of(refused, 422)
        assert "KeyboardInterrupt, which ends a program, at interrupting.py:1" in problem["detail"]
        asked = asyncio.create_task(daemon.client.post("/v1/plans", json=spec("b", transform="hanging:f", **job)))
        while not begun.exists():
            assert not asked.done()
            await asyncio.sleep(0.05)
        await of(await daemon.client.get("/v1/jobs"))
        assert await asyncio.wait_for(daemon.terminated(), 30) in (0, 143)
        with suppress(httpx.HTTPError):
            await asked
