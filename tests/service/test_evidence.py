"""What comes before and after a job, through the API: plans, rehearsals, verification, gate, quarantine, removal."""

from __future__ import annotations

from typing import Any

import pytest

from engine.service.access import Identity, Scope
from tests.support.api import begin, idle, of, shop, spec
from tests.support.daemon import RunningDaemon, config_of, running_daemon, until_job
from tests.support.databases import FreshDatabase

COPY = {
    "name": "copy",
    "source": {"connection": "main", "table": "public.shop"},
    "target": {"connection": "main", "table": "public.copied"},
    "pace": {"signals": "off"},
    "accept": ["DUAL_WRITE_MISSING"],
}


async def done(daemon: RunningDaemon, job: dict[str, Any]) -> None:
    """Submit it and see it done."""
    assert (await daemon.client.post("/v1/jobs", json=job)).status_code == 201
    await until_job(daemon.client, job["name"], lambda shown: shown["state"] == "done")


async def verified(daemon: RunningDaemon, job: str, **asked: Any) -> dict[str, Any]:
    """Verify it, and wait for the outcome."""
    began = await of(await daemon.client.post(f"/v1/jobs/{job}/verify", json={"settle": "50ms"} | asked))
    assert began["state"] in ("verifying", "done")
    return await until_job(
        daemon.client, job, lambda shown: shown["state"] == "done" and shown["verification"]["outcome"] is not None
    )


def copied(database: FreshDatabase) -> None:
    """A table and an empty one like it."""
    shop(database, 100)
    database.sql("CREATE TABLE copied (LIKE shop INCLUDING ALL)")


async def test_a_plan_says_what_a_job_would_do_and_touches_nothing(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(idle(database)) as daemon:
        plan = await of(await daemon.client.post("/v1/plans", json=spec()))
        assert (plan["job"], plan["mode"], plan["refused"], plan["key"]["columns"]) == (
            "cents",
            "update",
            False,
            ["id"],
        )
        assert database.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'backfill'") == "0"
        database.sql("ALTER TABLE shop DROP CONSTRAINT shop_pkey")
        refused = await of(await daemon.client.post("/v1/plans", json=spec()))
        assert refused["refused"]
        assert "NO_KEY" in {finding["code"] for finding in refused["findings"]}


async def test_a_rehearsal_rolls_everything_back(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(idle(database)) as daemon:
        played = await of(await daemon.client.post("/v1/rehearsals?chunks=1", json=spec()))
        assert played["rehearsal"]["chunks"]
        assert played["forecast"]["seconds"]["expected"] >= 0
    assert database.sql("SELECT count(*) FROM shop WHERE cents IS NOT NULL") == "0"


async def test_what_may_not_be_submitted_may_not_be_planned_either(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(idle(database, allow={"expressions": False})) as daemon:
        for path in ("/v1/plans", "/v1/rehearsals"):
            assert (await of(await daemon.client.post(path, json=spec()), 403))["code"] == "not_allowed"


async def test_a_job_is_verified_and_its_gate_opens(database: FreshDatabase) -> None:
    copied(database)
    async with running_daemon(config_of(database)) as daemon:
        await done(daemon, COPY)
        before = await of(await daemon.client.get("/v1/jobs/copy/gate"))
        assert not before["ready"]
        assert [check["name"] for check in before["checks"] if not check["ok"]] == ["verified"]
        assert (await verified(daemon, "copy"))["verified"] is True
        assert (await of(await daemon.client.get("/v1/jobs/copy/gate")))["ready"]
        database.sql("UPDATE copied SET amount = -1 WHERE id = 7")
        assert (await verified(daemon, "copy"))["verified"] is False
        assert (await of(await daemon.client.get("/v1/jobs/copy/gate")))["mismatch"]
        assert (await verified(daemon, "copy", repair=True))["verification"]["repaired"] == 1
        assert database.sql("SELECT amount FROM copied WHERE id = 7") == "7"


async def test_a_repair_takes_the_right_to_submit(database: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(database)
    clerk = Identity("clerk", "token", frozenset({Scope.READ, Scope.CONTROL}))
    async with running_daemon(config_of(database)) as daemon:
        await done(daemon, COPY)
        monkeypatch.setattr(daemon.daemon.doorkeeper, "identify", lambda *_: clerk)
        answer = await daemon.client.post("/v1/jobs/copy/verify", json={"repair": True})
        assert (await of(answer, 403))["code"] == "forbidden"
        await of(await daemon.client.post("/v1/jobs/copy/verify", json={}))


async def test_what_is_not_done_cannot_be_verified(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        assert (await of(await daemon.client.post("/v1/jobs/job/verify"), 409))["code"] == "busy"
        answer = await daemon.client.post("/v1/jobs/job/verify", json={"settle": "soon"})
        assert (await of(answer, 422))["errors"][0]["pointer"] == "/settle"
        answer = await daemon.client.post("/v1/jobs/job/verify", json={"delete_extra": True})
        assert (await of(answer, 422))["errors"][0]["pointer"] == "/delete_extra"


# -- quarantine -------------------------------------------------------------------------------------------------------


def spoiled(database: FreshDatabase) -> dict[str, Any]:
    """A job that cannot write three of its rows."""
    shop(database, 50)
    database.sql("UPDATE shop SET amount = 2147483647 WHERE id IN (3, 5, 7)")
    return spec(errors={"max_quarantined": 10})


async def test_rows_that_were_set_aside_are_seen_tried_again_and_dropped(database: FreshDatabase) -> None:
    job = spoiled(database)
    async with running_daemon(config_of(database)) as daemon:
        await done(daemon, job)
        seen = await of(await daemon.client.get("/v1/jobs/cents/quarantine?limit=2"))
        assert (seen["quarantined"], seen["by_sqlstate"], len(seen["rows"])) == (3, {"22003": 3}, 2)
        assert all(row.get("key") is None for row in seen["rows"])
        rest = await of(await daemon.client.get(f"/v1/jobs/cents/quarantine?after={seen['next']}"))
        assert (len(rest["rows"]), rest["next"]) == (1, None)
        database.sql("UPDATE shop SET amount = 1 WHERE id = 3")
        tried = await of(await daemon.client.post("/v1/jobs/cents/quarantine/retry", json={"all": True}))
        assert (tried["written"], tried["failed"], tried["quarantined"]) == (1, 2, 2)
        one = seen["rows"][1]["id"]
        dropped = await of(await daemon.client.post("/v1/jobs/cents/quarantine/drop", json={"ids": [one]}))
        assert (dropped["dropped"], dropped["quarantined"]) == (1, 1)
        again = await daemon.client.post("/v1/jobs/cents/quarantine/drop", json={"ids": [one]})
        assert (await of(again, 400))["code"] == "usage"
        history = (await of(await daemon.client.get("/v1/jobs/cents/history")))["entries"]
        quarantine = [entry for entry in history if entry["what"] == "quarantine"]
        assert len(quarantine) == 2
        assert all(" via daemon@" in entry["who"] for entry in quarantine)
    assert database.sql("SELECT cents FROM shop WHERE id = 3") == "100"


async def test_keys_are_shown_only_where_the_operator_allows_it(database: FreshDatabase) -> None:
    job = spoiled(database)
    async with running_daemon(config_of(database)) as daemon:
        await done(daemon, job)
        refused = await daemon.client.get("/v1/jobs/cents/quarantine?show_rows=true")
        assert (await of(refused, 403))["code"] == "not_allowed"
    async with running_daemon(config_of(database, allow={"expressions": True, "show_rows": True})) as daemon:
        shown = await of(await daemon.client.get("/v1/jobs/cents/quarantine?show_rows=true"))
        assert [row["key"] for row in shown["rows"]] == [["3"], ["5"], ["7"]]


async def test_it_must_be_clear_which_rows_are_meant(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        for body in ({}, {"ids": []}, {"ids": [1], "all": True}, {"ids": [0]}, {"ids": ["1"]}):
            for action in ("retry", "drop"):
                await of(await daemon.client.post(f"/v1/jobs/job/quarantine/{action}", json=body), 422)


# -- anew, and away ---------------------------------------------------------------------------------------------------


async def test_a_restart_begins_the_same_job_anew_with_its_history(database: FreshDatabase) -> None:
    shop(database)
    async with running_daemon(config_of(database)) as daemon:
        await done(daemon, spec())
        database.sql("UPDATE shop SET cents = NULL")
        seen = await daemon.client.get("/v1/jobs/cents")
        stale = {"if-match": '"1"'}
        assert (await daemon.client.post("/v1/jobs/cents/restart", headers=stale)).status_code == 412
        again = await daemon.client.post(
            "/v1/jobs/cents/restart", json={"reason": "once more"}, headers={"if-match": seen.headers["etag"]}
        )
        assert (await of(again))["state"] in ("planned", "running", "done")
        await until_job(daemon.client, "cents", lambda shown: shown["state"] == "done")
        history = (await of(await daemon.client.get("/v1/jobs/cents/history")))["entries"]
        whats = [entry["what"] for entry in history]
        assert (whats.count("created"), whats.count("done"), whats.count("restart")) == (2, 2, 1)
        assert next(e for e in history if e["what"] == "restart")["detail"]["reason"] == "once more"
    assert database.sql("SELECT count(*) FROM shop WHERE cents = amount * 100") == "500"


async def test_a_restart_that_preflight_refuses_leaves_the_job_as_it_was(database: FreshDatabase) -> None:
    await begin(database, accept=("DUAL_WRITE_MISSING",))
    async with running_daemon(idle(database)) as daemon:
        await of(await daemon.client.post("/v1/jobs/job/cancel"))
        database.sql("ALTER TABLE shop DROP CONSTRAINT shop_pkey")
        assert (await of(await daemon.client.post("/v1/jobs/job/restart"), 409))["code"] == "preflight_refused"
        assert (await of(await daemon.client.get("/v1/jobs/job")))["state"] == "cancelled"


async def test_a_removed_job_is_gone_with_its_triggers_and_its_history_stays(database: FreshDatabase) -> None:
    shop(database, 10)
    allow = {"expressions": True, "dual_write": True}
    async with running_daemon(idle(database, allow=allow)) as daemon:
        job = spec(accept=None)
        other = await daemon.client.post("/v1/jobs/other/dualwrite", json={"action": "install", "spec": job})
        assert (await of(other, 422))["errors"][0]["pointer"] == "/spec/name"
        installed = await daemon.client.post("/v1/jobs/cents/dualwrite", json={"action": "install", "spec": job})
        assert (await of(installed))["changed"]
        database.sql("INSERT INTO shop VALUES (11, 7)")
        assert database.sql("SELECT cents FROM shop WHERE id = 11") == "700"
        await of(await daemon.client.post("/v1/jobs", json=job), 201)
        assert (await of(await daemon.client.get("/v1/jobs/cents/dualwrite")))["intact"]
        await of(await daemon.client.post("/v1/jobs/cents/cancel"))
        removed = await of(await daemon.client.delete("/v1/jobs/cents"))
        assert removed["triggers"]
        assert (
            database.sql("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = 'shop'::regclass") == "0"
        )
        await of(await daemon.client.get("/v1/jobs/cents"), 404)
        history = (await of(await daemon.client.get("/v1/jobs/cents/history")))["entries"]
        whats = ["dual-write installed", "created", "cancelled", "dual-write removed", "cleanup"]
        assert [entry["what"] for entry in history] == whats
        assert all(" via daemon@" in entry["who"] for entry in history)
        assert history[-1]["detail"]["by"] == history[-1]["who"]


async def test_nobody_takes_a_job_from_under_its_workers(database: FreshDatabase) -> None:
    await begin(database)
    database.sql(
        "INSERT INTO backfill.worker (id, job_id, host, os_pid) SELECT gen_random_uuid(), id, 'elsewhere', 1"
        " FROM backfill.job"
    )
    async with running_daemon(idle(database)) as daemon:
        assert (await of(await daemon.client.delete("/v1/jobs/job"), 409))["code"] == "busy"
        assert (await of(await daemon.client.post("/v1/jobs/job/restart"), 409))["code"] == "busy"
        assert (await of(await daemon.client.delete("/v1/jobs/job?force=true")))["removed"]


# -- rights and triggers ----------------------------------------------------------------------------------------------


async def test_the_grants_of_a_job_are_a_script(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        assert (await of(await daemon.client.get("/v1/jobs/job/grants"), 400))["code"] == "usage"
        found = await of(await daemon.client.get("/v1/jobs/job/grants?to=clerk"))
        assert '"public"."shop" TO "clerk";' in found["script"]
        assert "backfill.request" in found["script"]


async def test_triggers_are_changed_only_where_the_operator_allows_it(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        found = await of(await daemon.client.get("/v1/jobs/job/dualwrite?script=true"))
        assert (found["installed"], found["intact"]) == (False, False)
        assert "CREATE" in found["script"]
        answer = await daemon.client.post("/v1/jobs/job/dualwrite", json={"action": "install"})
        assert (await of(answer, 403))["code"] == "not_allowed"
    async with running_daemon(idle(database, allow={"dual_write": True, "expressions": True})) as daemon:
        answer = await daemon.client.post("/v1/jobs/job/dualwrite", json={"action": "install"})
        assert (await of(answer, 400))["code"] == "usage"  # the job was begun without them
        removed = await daemon.client.post("/v1/jobs/job/dualwrite", json={"action": "remove", "force": True})
        assert not (await of(removed))["changed"]


async def test_a_doctor_looks_at_a_connection(database: FreshDatabase) -> None:
    async with running_daemon(idle(database)) as daemon:
        found = await of(await daemon.client.get("/v1/connections/main/doctor"))
        assert found["server"]["product"] == "PostgreSQL"
        assert found["ledger"]["version"] is None
        await of(await daemon.client.get("/v1/connections/nobody/doctor"), 404)
