"""A daemon and transforms that misbehave: their own job fails and says where; everybody else's goes on, with its leases."""

from __future__ import annotations

from typing import Any

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
