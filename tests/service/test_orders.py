"""Orders through the API: pause, resume, cancel and pace, made only for the job as its caller saw it."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.api import begin, idle, of
from tests.support.daemon import running_daemon
from tests.support.databases import FreshDatabase


async def test_a_job_is_paused_and_resumed_and_history_says_who_and_why(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        paused = await of(await daemon.client.post("/v1/jobs/job/pause", json={"reason": "disk is filling"}))
        assert (paused["state"], paused["pace"]["reason"]) == ("paused", "disk is filling")
        resumed = await of(await daemon.client.post("/v1/jobs/job/resume"))
        assert resumed["state"] == "planned"
        history = (await of(await daemon.client.get("/v1/jobs/job/history")))["entries"]
        assert [entry["what"] for entry in history] == ["created", "paused", "planned"]
        assert history[1]["detail"]["reason"] == "disk is filling"
        assert history[1]["who"].startswith("peer ")
        assert " via daemon@" in history[1]["who"]
        assert history[0]["who"].startswith("postgres")


async def test_an_order_for_a_job_that_has_changed_since_is_not_carried_out(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        seen = await daemon.client.get("/v1/jobs/job")
        stale = {"if-match": seen.headers["etag"]}
        done = await daemon.client.post("/v1/jobs/job/pause", headers=stale)
        assert done.status_code == 200
        assert done.headers["etag"] != seen.headers["etag"]
        problem = await of(await daemon.client.post("/v1/jobs/job/resume", headers=stale), 412)
        assert problem["code"] == "changed_meanwhile"
        assert (await daemon.client.get("/v1/jobs/job")).json()["state"] == "paused"
        again = {"if-match": done.headers["etag"]}
        assert (await of(await daemon.client.post("/v1/jobs/job/resume", headers=again)))["state"] == "planned"


async def test_of_many_orders_for_the_same_revision_one_is_carried_out(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        headers = {"if-match": (await daemon.client.get("/v1/jobs/job")).headers["etag"]}
        answers = await asyncio.gather(
            *(
                daemon.client.patch("/v1/jobs/job/pace", json={"max_rows_per_s": 100 + n}, headers=headers)
                for n in range(12)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [412] * 11
        history = (await daemon.client.get("/v1/jobs/job/history")).json()["entries"]
        assert [entry["what"] for entry in history] == ["created", "pace"]


async def test_a_cancelled_job_is_not_resumed(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        assert (await of(await daemon.client.post("/v1/jobs/job/cancel")))["state"] == "cancelled"
        problem = await of(await daemon.client.post("/v1/jobs/job/resume"), 409)
        assert (problem["code"], problem["state"]) == ("held_by_operator", "cancelled")
        assert "restart" in problem["hint"]


async def test_the_pace_is_a_merge_patch(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:

        async def order(change: dict[str, Any]) -> Any:
            return (await of(await daemon.client.patch("/v1/jobs/job/pace", json=change)))["pace"]["orders"]

        latency = {"read_latency": {"target": 0.005, "max": 0.05}}
        assert await order({"max_rows_per_s": 500, "workers": 3, "signals": latency}) == {
            "max_rows_per_s": 500,
            "workers": 3,
            "signals": {"read_latency": {"target": 0.005, "max": 0.05, "off": False}},
        }
        assert await order({"workers": None}) == {
            "max_rows_per_s": 500,
            "signals": {"read_latency": {"target": 0.005, "max": 0.05, "off": False}},
        }
        assert (await order({"signals": {"read_latency": {"max": None}}}))["signals"] == {
            "read_latency": {"target": 0.005, "off": False}
        }
        assert await order({"signals": {"read_latency": None, "wal_rate": {"off": True}}}) == {
            "max_rows_per_s": 500,
            "signals": {"wal_rate": {"off": True}},
        }
        assert await order({"signals": None}) == {"max_rows_per_s": 500}
        assert await order({"max_rows_per_s": None}) == {}


async def test_an_order_that_makes_no_sense_changes_nothing(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        for change, pointer in (
            ({"signals": {"nobody": {"target": 1}}}, "/signals/nobody"),
            ({"signals": {"lock_waits": {"target": 1}}}, "/signals/lock_waits"),
            ({"signals": {"autovacuum": {"max": 1}}}, "/signals/autovacuum"),
            ({"signals": {"read_latency": {"target": 2, "max": 1}}}, "/signals/read_latency"),
            ({"signals": {"a/b": {"off": True}}}, "/signals/a~1b"),
            ({"max_rows_per_s": 0}, "/max_rows_per_s"),
            ({"rows": 1}, "/rows"),
        ):
            answer = await daemon.client.patch("/v1/jobs/job/pace", json={"workers": 7} | change)
            problem = await of(answer, 422)
            assert [error["pointer"] for error in problem["errors"]] == [pointer]
        assert (await daemon.client.get("/v1/jobs/job")).json()["pace"]["orders"] == {}


async def test_the_operators_ceiling_holds_for_orders(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database, main={"max_rows_per_s": 1000})) as daemon:
        problem = await of(await daemon.client.patch("/v1/jobs/job/pace", json={"max_rows_per_s": 1001}), 403)
        assert problem["code"] == "not_allowed"
        assert problem["errors"][0]["pointer"] == "/max_rows_per_s"
        await of(await daemon.client.patch("/v1/jobs/job/pace", json={"max_rows_per_s": 1000}))


async def test_orders_to_nobody_are_said_so(database: FreshDatabase) -> None:
    async with running_daemon(idle(database)) as daemon:
        for method, path in (("POST", "pause"), ("POST", "cancel"), ("PATCH", "pace")):
            answer = await daemon.client.request(method, f"/v1/jobs/nobody/{path}", json={"reason": "x"})
            assert (await of(answer, 404))["code"] == "unknown_job"
