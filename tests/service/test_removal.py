"""Taking a job and its triggers away through the API: not from under a worker, and not beyond the operator's tables."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.service import station
from engine.service.routes import evidence, planning, quarantine
from tests.support.api import idle, of, shop, spec
from tests.support.daemon import RunningDaemon, config_of, running_daemon, until_job
from tests.support.databases import FreshDatabase, TwoDatabases

ALLOW = {"expressions": True, "dual_write": True}
TRIGGERS = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'zz_backfill%'"


async def with_triggers(daemon: RunningDaemon, job: dict[str, Any]) -> None:
    """A job that is begun, and its triggers."""
    path = f"/v1/jobs/{job['name']}/dualwrite"
    await of(await daemon.client.post(path, json={"action": "install", "spec": job}))
    await of(await daemon.client.post("/v1/jobs", json=job), 201)


async def test_nobody_works_a_job_whose_triggers_are_taken_away(database: FreshDatabase) -> None:
    shop(database, 10)
    async with running_daemon(idle(database, allow=ALLOW)) as daemon:
        await with_triggers(daemon, spec())
        seen = (await daemon.client.get("/v1/jobs/cents")).headers["etag"]
        assert (await daemon.client.delete("/v1/jobs/cents", headers={"if-match": '"1"'})).status_code == 412
        holder = await database.connect()
        await holder.execute("BEGIN; SELECT FROM shop LIMIT 1")
        removing = asyncio.create_task(daemon.client.delete("/v1/jobs/cents", headers={"if-match": seen}))
        await until_job(daemon.client, "cents", lambda shown: shown["state"] == "cancelled")
        assert not removing.done() and database.sql(TRIGGERS) != "0"
        assert (await daemon.client.post("/v1/jobs/cents/resume")).status_code == 409
        await holder.execute("ROLLBACK")
        assert (await of(await removing))["triggers"]
        await holder.close()
        history = (await of(await daemon.client.get("/v1/jobs/cents/history")))["entries"]
        assert [entry["detail"].get("reason") for entry in history if entry["what"] == "cancelled"] == [
            "is being removed"
        ]
    assert database.sql(TRIGGERS) == "0"


async def test_a_job_that_was_begun_anew_meanwhile_is_not_removed(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.fleet import removal

    shop(database, 10)
    async with running_daemon(idle(database)) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=spec()), 201)

        async def meanwhile(*_: Any) -> tuple[str, ...]:
            await of(await daemon.client.post("/v1/jobs/cents/restart"))
            return ()

        monkeypatch.setattr(removal, "remove_triggers", meanwhile)
        assert (await of(await daemon.client.delete("/v1/jobs/cents"), 409))["code"] == "busy"
        assert (await of(await daemon.client.get("/v1/jobs/cents")))["state"] == "planned"


# -- triggers ---------------------------------------------------------------------------------------------------------


async def test_a_spec_is_for_triggers_that_are_to_be_installed(database: FreshDatabase) -> None:
    shop(database, 10)
    async with running_daemon(idle(database, allow=ALLOW)) as daemon:
        path = "/v1/jobs/cents/dualwrite"
        problem = await of(await daemon.client.post(path, json={"action": "remove", "spec": spec()}), 422)
        assert problem["errors"][0]["pointer"] == "/spec"
        body = {"action": "install", "spec": spec()}
        problem = await of(await daemon.client.post(path, json=body, headers={"if-match": '"7"'}), 400)
        assert problem["errors"][0]["parameter"] == "if-match"
    assert database.sql(TRIGGERS) == "0"


async def test_triggers_on_tables_that_are_not_open_to_jobs_are_not_taken_away(database: FreshDatabase) -> None:
    shop(database, 10)
    database.sql("CREATE SCHEMA hidden; CREATE TABLE hidden.shop (LIKE public.shop INCLUDING ALL)")
    theirs = spec(source={"connection": "main", "table": "hidden.shop"})
    settings = config_of(database, connections={"main": {"dsn": database.dsn, "tables": ["*.*"]}}, allow=ALLOW)
    async with running_daemon(settings) as daemon:
        await with_triggers(daemon, theirs)
    there = database.sql(TRIGGERS)
    assert there != "0"
    async with running_daemon(idle(database, allow=ALLOW)) as daemon:
        body = {"action": "remove", "force": True}
        refused = await of(await daemon.client.post("/v1/jobs/cents/dualwrite", json=body), 403)
        assert refused["code"] == "not_allowed"
        assert (await of(await daemon.client.delete("/v1/jobs/cents"), 403))["code"] == "not_allowed"
        assert (await of(await daemon.client.get("/v1/jobs/cents")))["state"] == "planned"
    assert database.sql(TRIGGERS) == there


async def test_between_two_databases_there_are_no_triggers_to_remove(databases: TwoDatabases) -> None:
    for database in (databases.source, databases.target):
        database.sql("CREATE TABLE shop (id bigint PRIMARY KEY, amount int)")
    two = {"here": databases.target, "there": databases.source}
    connections = {name: {"dsn": one.dsn, "superuser": True, "tables": ["*.*"]} for name, one in two.items()}
    job = {
        "name": "copy",
        "source": {"connection": "there", "table": "public.shop"},
        "target": {"connection": "here", "table": "public.shop"},
        "accept": ["DUAL_WRITE_MISSING"],
    }
    async with running_daemon({"connections": connections, "allow": ALLOW}) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=job), 201)
        answers = [
            await of(await daemon.client.post("/v1/jobs/copy/dualwrite", json={"action": action, "force": True}), 400)
            for action in ("install", "remove")
        ]
        assert "different databases" in answers[0]["detail"]
        assert answers[0]["detail"] == answers[1]["detail"]


# -- what changes while the tables are looked at ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "path", "body"),
    [
        (evidence, "verify", {}),
        (quarantine, "quarantine/retry", {"all": True}),
        (evidence, "dualwrite", {"action": "remove", "force": True}),
    ],
)
async def test_an_order_for_a_job_that_changes_while_its_tables_are_looked_at_is_not_carried_out(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch, module: Any, path: str, body: dict[str, Any]
) -> None:
    shop(database, 10)
    async with running_daemon(config_of(database, allow=ALLOW)) as daemon:
        await of(await daemon.client.post("/v1/jobs", json=spec()), 201)
        await until_job(daemon.client, "cents", lambda shown: shown["state"] == "done" and not shown["workers"])
        look = module.inspect

        async def meanwhile(*asked: Any, **how: Any) -> Any:
            await of(await daemon.client.patch("/v1/jobs/cents/pace", json={"max_rows_per_s": 7}))
            return await look(*asked, **how)

        monkeypatch.setattr(module, "inspect", meanwhile)
        seen = {"if-match": (await daemon.client.get("/v1/jobs/cents")).headers["etag"]}
        problem = await of(await daemon.client.post(f"/v1/jobs/cents/{path}", json=body, headers=seen), 412)
        assert problem["code"] == "changed_meanwhile"
        shown = await of(await daemon.client.get("/v1/jobs/cents"))
        assert (shown["state"], shown["verification"]) == ("done", None)


# -- time -------------------------------------------------------------------------------------------------------------


async def test_a_rehearsal_of_a_slow_job_ends_with_what_it_has(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop(database)
    monkeypatch.setattr(planning, "REHEARSAL_S", 0.5)
    async with running_daemon(idle(database)) as daemon, asyncio.timeout(15):
        slow = spec(pace={"signals": "off", "max_rows_per_s": 1})
        played = await of(await daemon.client.post("/v1/rehearsals", json=slow))
        assert played["rehearsal"]["spans"] == 1
    assert database.sql("SELECT count(*) FROM shop WHERE cents IS NOT NULL") == "0"


async def test_who_hangs_before_us_is_not_waited_for_long(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop(database, 10)
    monkeypatch.setattr(station, "TURN_S", 0.1)
    async with running_daemon(idle(database)) as daemon:
        preparing = daemon.daemon.stations["main"].preparing
        async with preparing, preparing:
            problem = await of(await daemon.client.post("/v1/plans", json=spec()), 503)
        assert problem["code"] == "cannot_connect"
        await of(await daemon.client.post("/v1/plans", json=spec()))
