"""One connection's trouble, or one spoiled row of a ledger, is nobody else's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from engine.service.routes import finding
from tests.support.api import begin, idle, of, two_connections
from tests.support.daemon import running_daemon
from tests.support.databases import FreshDatabase, TwoDatabases

NOWHERE = "postgresql://nobody@127.0.0.1:1/none?sslmode=disable"


@pytest.fixture
def hung() -> Iterator[str]:
    """The address of a server that accepts and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(100)
        yield f"postgresql://nobody@127.0.0.1:{server.getsockname()[1]}/none?sslmode=disable"


# -- connections ------------------------------------------------------------------------------------------------------


async def test_a_name_that_was_ambiguous_does_not_come_to_mean_the_job_that_happens_to_be_there(
    databases: TwoDatabases,
) -> None:
    await begin(databases.source)
    await begin(databases.target)
    settings = two_connections(databases)
    settings["connections"]["other"]["dsn"] = NOWHERE
    async with running_daemon(settings) as daemon:
        for method, path, body in (
            ("POST", "/v1/jobs/job/cancel", {}),
            ("PATCH", "/v1/jobs/job/pace", {"max_rows_per_s": 5}),
            ("DELETE", "/v1/jobs/job", None),
        ):
            answer = await daemon.client.request(method, path, **({} if body is None else {"json": body}))
            problem = await of(answer, 503)
            assert (problem["code"], problem["hint"]) == ("cannot_connect", "say which one: ?connection=one")
        assert (await of(await daemon.client.get("/v1/jobs/job")))["state"] == "planned"
        cancelled = await of(await daemon.client.post("/v1/jobs/job/cancel?connection=one", json={}))
        assert cancelled["state"] == "cancelled"


async def test_a_database_that_hangs_holds_up_its_own_jobs_alone(
    databases: TwoDatabases, hung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "PATIENCE_S", 1.0)
    monkeypatch.setattr(finding, "PATIENCE_WHERE_AWAY_S", 0.1)
    await begin(databases.source)
    settings = two_connections(databases)
    settings["connections"]["other"]["dsn"] = hung
    async with running_daemon(settings) as daemon:
        began = time.monotonic()
        page = await of(await daemon.client.get("/v1/jobs"))
        assert ([job["job"] for job in page["jobs"]], page["unreachable"]) == (["job"], ["other"])
        # From now on it is known to be away.
        answers = await asyncio.gather(*(daemon.client.get("/v1/jobs/job") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert (await of(await daemon.client.get("/v1/jobs/nobody"), 503))["code"] == "cannot_connect"
        assert time.monotonic() - began < 6.0, "it takes ten seconds to see that nobody answers"


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["[1]", '{"pace": {"signals": [{"read_latency": 5}]}, "set": []}'])
async def test_a_spec_that_is_none_is_said_so(database: FreshDatabase, spec: str) -> None:
    await begin(database)
    database.sql(f"UPDATE backfill.job SET spec = '{spec}'")
    async with running_daemon(idle(database)) as daemon:
        for method, path, body in (
            ("PATCH", "pace", {"signals": {"read_latency": {"off": True}}}),
            ("POST", "restart", {}),
            ("POST", "verify", {}),
            ("GET", "gate", None),
            ("GET", "grants?to=x", None),
            ("GET", "dualwrite", None),
        ):
            answer = await daemon.client.request(
                method, f"/v1/jobs/job/{path}", **({} if body is None else {"json": body})
            )
            assert answer.status_code < 500, (path, answer.text)
            if not spec.startswith("{"):
                assert answer.json()["code"] == "ledger_damaged", path
        assert (await of(await daemon.client.get("/v1/jobs")))["jobs"]
        assert (await of(await daemon.client.post("/v1/jobs/job/cancel", json={})))["state"] == "cancelled"
        assert (await of(await daemon.client.delete("/v1/jobs/job")))["removed"]


SPOILED = {
    "a word for seconds": """UPDATE backfill.worker SET waits = '{"x": "y", "rate": 2}'""",
    "no seconds at all": "UPDATE backfill.worker SET waits = '[1]'",
    "too many seconds": "UPDATE backfill.worker SET waits = '{\"x\": 1e4000}'",
    "a word for a limit": """UPDATE backfill.job SET spec = '{"pace": {"max_rows_per_s": "fast"}}'""",
    "a limit beyond all": """UPDATE backfill.job SET spec = '{"pace": {"max_rows_per_s": 1e400}}'""",
    "no number of rows": "UPDATE backfill.job SET rows_estimated = 'NaN'",
}


async def test_a_spoiled_row_hides_no_other_job(database: FreshDatabase) -> None:
    await begin(database)
    await begin(database, "other")
    number = "(SELECT id FROM backfill.job WHERE name = 'other')"
    database.sql(f"INSERT INTO backfill.worker (id, job_id, host, os_pid) VALUES (gen_random_uuid(), {number}, 'h', 1)")
    async with running_daemon(idle(database)) as daemon:
        for name, sql in SPOILED.items():
            database.sql(sql + (f" WHERE id = {number}" if "backfill.job" in sql else ""))
            answer = await daemon.client.get("/v1/jobs")
            assert answer.status_code == 200, (name, answer.text)
            assert {job["job"] for job in answer.json()["jobs"]} == {"job", "other"}
            other = await of(await daemon.client.get("/v1/jobs/other"))
            assert other["pace"]["max_rows_per_s"] is None
            assert other["waits"] == ({"rate": 2} if name == "a word for seconds" else {})
        assert (await of(await daemon.client.post("/v1/jobs/job/pause", json={})))["state"] == "paused"
