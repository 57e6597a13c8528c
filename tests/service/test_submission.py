"""Submissions: begun once, by whoever and however often they are sent, under the operator's rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.api import idle, of, shop, spec
from tests.support.daemon import RunningDaemon, config_of, running_daemon, until_job
from tests.support.databases import FreshDatabase, TwoDatabases


async def test_a_submitted_job_is_worked_to_its_end(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(config_of(database)) as daemon:
        answer = await daemon.client.post("/v1/jobs", json=spec())
        created = await of(answer, 201)
        assert answer.headers["location"] == "/v1/jobs/cents"
        assert answer.headers["etag"] == f'"{created["revision"]}"'
        done = await of(await daemon.client.get("/v1/jobs/cents?wait=30s&until=done"))
        assert (done["state"], done["rows_done"], done["connection"]) == ("done", 500, "main")
    assert database.sql("SELECT count(*) FROM shop WHERE cents = amount * 100") == "500"


async def test_the_same_spec_is_the_same_job(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(idle(database)) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=spec()), 201)
        again = await of(await daemon.client.post("/v1/jobs", json=spec()), 200)
        assert again["job"] == "cents"
        assert database.sql("SELECT count(*) FROM backfill.job") == "1"


async def test_a_spec_without_a_name_gets_one_and_is_still_the_same_job(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(idle(database)) as daemon:
        first = await of(await daemon.client.post("/v1/jobs", json=spec(None)), 201)
        again = await of(await daemon.client.post("/v1/jobs", json=spec(None)), 200)
        assert first["job"] == again["job"]
        assert first["job"].startswith("shop-")


async def test_settings_that_may_change_are_applied_and_history_says_who(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(idle(database)) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=spec()), 201)
        await of(await daemon.client.post("/v1/jobs", json=spec(workers=5)), 200)
        history = (await of(await daemon.client.get("/v1/jobs/cents/history")))["entries"]
        assert [entry["what"] for entry in history] == ["created", "accepted", "settings"]
        assert (history[2]["detail"]["from"]["workers"], history[2]["detail"]["to"]["workers"]) == (2, 5)
        assert all(" via daemon@" in entry["who"] for entry in history)


async def test_another_meaning_under_the_same_name_is_refused_with_the_difference(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(idle(database)) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=spec()), 201)
        problem = await of(await daemon.client.post("/v1/jobs", json=spec(set={"cents": "amount"})), 409)
        assert problem["code"] == "spec_changed"
        assert problem["errors"][0]["pointer"] == "/set/cents"


async def test_a_key_means_one_spec_and_one_job(database: FreshDatabase) -> None:
    shop(database)
    key = {"idempotency-key": "run-17"}
    async with running_daemon(idle(database)) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=spec(), headers=key), 201)
        await of(await daemon.client.post("/v1/jobs", json=spec(), headers=key), 200)
        for other in (spec("other"), spec(workers=5)):
            problem = await of(await daemon.client.post("/v1/jobs", json=other, headers=key), 409)
            assert problem["code"] == "idempotency_key_reused"
        assert database.sql("SELECT count(*) FROM backfill.job") == "1"
        await of(await daemon.client.delete("/v1/jobs/cents"))
        await of(await daemon.client.post("/v1/jobs", json=spec("other"), headers=key), 201)


async def test_the_key_itself_is_not_kept(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(idle(database)) as daemon:
        headers = {"idempotency-key": "customer-4711"}
        await of(await daemon.client.post("/v1/jobs", json=spec(), headers=headers), 201)
    assert "4711" not in database.sql("SELECT r::text FROM backfill.request r")


@asynccontextmanager
async def two_daemons(database: FreshDatabase, **settings: Any) -> AsyncIterator[list[RunningDaemon]]:
    async with running_daemon(idle(database, **settings)) as one, running_daemon(idle(database, **settings)) as other:
        yield [one, other]


@pytest.mark.parametrize("key", ["run-17", None])
async def test_of_many_submissions_at_once_to_two_daemons_one_begins_the_job(
    database: FreshDatabase, key: str | None
) -> None:
    shop(database)
    headers = {} if key is None else {"idempotency-key": key}
    async with two_daemons(database) as daemons:
        answers = await asyncio.gather(
            *(daemons[n % 2].client.post("/v1/jobs", json=spec(), headers=headers) for n in range(20))
        )
        assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201], [a.text for a in answers]
    assert database.sql("SELECT count(*) FROM backfill.job") == "1"
    assert database.sql("SELECT count(*) FROM backfill.event WHERE what = 'created'") == "1"


async def test_of_many_specs_under_one_key_one_begins_a_job(database: FreshDatabase) -> None:
    shop(database)
    headers = {"idempotency-key": "run-17"}
    async with two_daemons(database) as daemons:
        answers = await asyncio.gather(
            *(daemons[n % 2].client.post("/v1/jobs", json=spec(f"job{n}"), headers=headers) for n in range(10))
        )
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9, [a.text for a in answers]
        codes = {answer.json()["code"] for answer in answers if answer.status_code == 409}
        assert codes == {"idempotency_key_reused"}
    assert database.sql("SELECT count(*) FROM backfill.job") == "1"


async def test_tables_that_cannot_be_backfilled_are_refused_with_findings_and_nothing_is_written(
    database: FreshDatabase,
) -> None:
    database.sql("CREATE TABLE shop (id bigint, amount int, cents int)")
    async with running_daemon(idle(database)) as daemon:
        problem = await of(await daemon.client.post("/v1/jobs", json=spec()), 409)
        assert problem["code"] == "preflight_refused"
        assert "NO_KEY" in {finding["code"] for finding in problem["findings"]}
        assert all(finding["remedy"] for finding in problem["findings"])
    assert database.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'backfill'") == "0"


async def test_what_the_operator_does_not_allow_is_refused_with_pointers(database: FreshDatabase) -> None:
    shop(database)
    database.sql("CREATE SCHEMA other CREATE TABLE hidden (id bigint PRIMARY KEY, amount int, cents int)")
    async with running_daemon(idle(database, allow={"expressions": False})) as daemon:
        for job, pointer in (
            (spec(), "/set/cents"),
            (spec(set={"cents": "amount"}, source={"connection": "main", "table": "other.hidden"}), "/source/table"),
            (spec(set={"cents": "amount"}, role="postgres"), "/role"),
        ):
            problem = await of(await daemon.client.post("/v1/jobs", json=job), 403)
            assert problem["code"] == "not_allowed"
            assert [error["pointer"] for error in problem["errors"]] == [pointer]


async def test_a_daemon_that_is_about_to_end_begins_nothing_new(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(idle(database)) as daemon:
        daemon.daemon.draining.set()
        answer = await daemon.client.post("/v1/jobs", json=spec())
        assert (await of(answer, 503))["code"] == "draining"
        assert "retry-after" in answer.headers


async def test_a_copy_between_two_connections_is_in_the_targets_ledger(databases: TwoDatabases) -> None:
    shop(databases.source)
    databases.target.sql("CREATE TABLE shop (id bigint PRIMARY KEY, amount int, cents int)")
    connections = {
        "here": {"dsn": databases.source.dsn, "tables": ["public.*"]},
        "there": {"dsn": databases.target.dsn, "tables": ["public.*"], "work": True},
    }
    async with running_daemon({"connections": connections, "allow": {"expressions": True}}) as daemon:
        ends = {
            "source": {"connection": "here", "table": "public.shop"},
            "target": {"connection": "there", "table": "public.shop"},
        }
        job = {key: value for key, value in spec("copy").items() if key != "set"} | ends
        created = await of(await daemon.client.post("/v1/jobs", json=job), 201)
        assert created["connection"] == "there"
        await until_job(daemon.client, "copy", lambda job: job["state"] == "done")
        assert databases.target.sql("SELECT count(*) FROM shop") == "500"
        stored = databases.target.sql("SELECT spec::text FROM backfill.job")
        assert databases.source.dsn not in stored
        assert '"connection": "here"' in stored
