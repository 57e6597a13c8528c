"""A job of the ledger is begun anew, mended, or tried again only as one that could be submitted now, and by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.service.tokens import digest, make_token
from tests.support.api import begin, of
from tests.support.daemon import client_for, config_of, put_job, running_daemon, until_job
from tests.support.databases import FreshDatabase, TwoDatabases
from tests.support.jobs import in_place

WAYS = {
    "restart": ("/v1/jobs/job/restart", {}),
    "repair": ("/v1/jobs/job/verify", {"repair": True, "delete_extra": True}),
    "retry": ("/v1/jobs/job/quarantine/retry", {"all": True}),
}


def rules(database: FreshDatabase, *, expressions: bool = True, **main: Any) -> dict[str, Any]:
    """A daemon that works no job."""
    connection = {"dsn": database.dsn, "tables": ["public.*"]} | main
    return config_of(database, connections={"main": connection}, allow={"expressions": expressions})


@pytest.mark.parametrize("way", WAYS)
async def test_rules_that_were_made_stricter_hold_for_jobs_that_are_there(database: FreshDatabase, way: str) -> None:
    await begin(database, pace={"max_rows_per_s": 20, "signals": "off"})
    database.sql("UPDATE backfill.job SET state = 'done' WHERE name = 'job'")
    path, body = WAYS[way]
    for stricter, pointer in (
        (rules(database, tables=["public.other"]), "/source/table"),  # which the job names without its schema
        (rules(database, expressions=False), "/set/cents"),
        (rules(database, max_rows_per_s=10), "/pace/max_rows_per_s"),
    ):
        async with running_daemon(stricter) as daemon:
            problem = await of(await daemon.client.post(path, json=body), 403)
            assert (problem["code"], [error["pointer"] for error in problem["errors"]]) == ("not_allowed", [pointer])
    assert database.sql("SELECT state FROM backfill.job") == "done"


async def test_a_job_made_by_hand_without_a_limit_gets_the_operators_when_it_is_begun_anew(
    database: FreshDatabase,
) -> None:
    await begin(database)
    async with running_daemon(rules(database, max_rows_per_s=10)) as daemon:
        assert (await of(await daemon.client.get("/v1/jobs/job")))["pace"]["max_rows_per_s"] is None
        anew = await of(await daemon.client.post("/v1/jobs/job/restart", json={}))
        assert anew["pace"]["max_rows_per_s"] == 10


async def test_a_role_of_a_row_is_not_taken_on_where_the_operator_names_none(database: FreshDatabase) -> None:
    await begin(database)
    database.sql("""UPDATE backfill.job SET spec = spec || '{"role": "pg_monitor"}'""")
    async with running_daemon(rules(database)) as daemon:
        problem = await of(await daemon.client.post("/v1/jobs/job/restart", json={}), 400)
        assert "pg_monitor" in problem["detail"]
        assert "[connections.NAME]" in problem["hint"]


async def test_a_job_that_reads_from_a_connection_of_others_is_not_theirs_to_order(
    databases: TwoDatabases, tmp_path: Path
) -> None:
    databases.source.sql("CREATE TABLE shop (id int PRIMARY KEY, n int); INSERT INTO shop SELECT 1, 1")
    databases.target.sql("CREATE TABLE shop (id int PRIMARY KEY, n int)")
    token, tokens = make_token(), tmp_path / "tokens.toml"
    tokens.write_text(
        f'[tokens.bound]\nsha256 = "{digest(token)}"\nscopes = ["read", "control", "submit"]\nconnections = ["main"]\n'
    )
    tokens.chmod(0o600)
    connections = {
        "main": {"dsn": databases.target.dsn, "work": True, "tables": ["public.*"]},
        "old": {"dsn": databases.source.dsn, "tables": ["public.*"]},
    }
    config = {"connections": connections, "auth": {"tokens_file": str(tokens)}, "allow": {"dual_write": True}}
    copy = {
        "name": "job",
        "source": {"connection": "old", "table": "public.shop"},
        "target": {"connection": "main", "table": "public.shop"},
        "pace": {"signals": "off"},
        "accept": ["DUAL_WRITE_MISSING"],
        "deletes": "none",
    }
    async with running_daemon(config) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=copy), 201)
        whole = await until_job(daemon.client, "job", lambda job: job["state"] == "done")
        async with client_for(daemon.url, token=token) as bound:
            for method, path, body in (
                *(("POST", path, body) for path, body in WAYS.values()),
                ("POST", "/v1/jobs/job/verify", {}),
                ("POST", "/v1/jobs/job/dualwrite", {"action": "remove", "force": True}),
                ("GET", "/v1/jobs/job/gate", None),
                ("GET", "/v1/jobs/job/grants?to=x", None),
                ("GET", "/v1/jobs/job/dualwrite", None),
            ):
                answer = await bound.request(method, path, **({} if body is None else {"json": body}))
                assert (await of(answer, 403))["code"] == "forbidden", path
            shown = await of(await bound.get("/v1/jobs/job"))
            assert (shown["source"], shown["target"]) == ("elsewhere public.shop", "main public.shop")
            assert (await of(await bound.get("/v1/jobs")))["jobs"][0]["source"] == "elsewhere public.shop"
            stream = await bound.get("/v1/jobs/job/events")
            assert "elsewhere public.shop" in stream.text
            address = whole["source"].split()[0]
            assert "/" in address
            for answer in (stream, await bound.get("/v1/jobs/job/history")):
                assert address not in answer.text


async def test_a_job_within_one_database_is_shown_by_the_name_of_its_connection(
    database: FreshDatabase, tmp_path: Path
) -> None:
    database.sql("CREATE TABLE shop (id int PRIMARY KEY, n int, m int)")
    await put_job(in_place(database, "shop", {"m": "n"}, name="job"))
    token, tokens = make_token(), tmp_path / "tokens.toml"
    tokens.write_text(f'[tokens.b]\nsha256 = "{digest(token)}"\nscopes = ["read"]\nconnections = ["main"]\n')
    tokens.chmod(0o600)
    async with (
        running_daemon(rules(database) | {"auth": {"tokens_file": str(tokens)}}) as daemon,
        client_for(daemon.url, token=token) as bound,
    ):
        shown = await of(await bound.get("/v1/jobs/job"))
        assert (shown["source"], shown["target"]) == ("main public.shop", "main public.shop")
