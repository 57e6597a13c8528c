"""Looking at jobs through the API: one, many, page by page, and waiting for one."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.service import watcher as watching
from engine.service.watcher import LOOK_EVERY_S, LOOK_SOONEST_S
from tests.support.api import begin, idle, of, two_connections
from tests.support.daemon import running_daemon
from tests.support.databases import FreshDatabase, TwoDatabases


async def test_a_database_without_a_ledger_has_no_jobs(database: FreshDatabase) -> None:
    async with running_daemon(idle(database)) as daemon:
        assert await of(await daemon.client.get("/v1/jobs")) == {"jobs": [], "next": None, "unreachable": []}
        assert (await of(await daemon.client.get("/v1/jobs/job"), 404))["code"] == "unknown_job"
        assert (await of(await daemon.client.get("/v1/jobs/job/history"), 404))["code"] == "unknown_job"


async def test_pages_hold_every_job_once_newest_first_while_others_are_begun(database: FreshDatabase) -> None:
    for n in range(7):
        await begin(database, f"job{n}")
    async with running_daemon(idle(database)) as daemon:
        seen: list[str] = []
        cursor = ""
        while True:
            page = await of(await daemon.client.get(f"/v1/jobs?limit=3{cursor}"))
            seen += [job["job"] for job in page["jobs"]]
            if page["next"] is None:
                break
            await begin(database, f"later{len(seen)}")
            cursor = f"&cursor={page['next']}"
        assert seen == [f"job{n}" for n in range(6, -1, -1)]


async def test_pages_over_two_ledgers_hold_every_job_once(databases: TwoDatabases) -> None:
    for n in range(6):
        await begin((databases.source, databases.target)[n % 2], f"job{n}")
    async with running_daemon(two_connections(databases)) as daemon:
        first = await of(await daemon.client.get("/v1/jobs?limit=4"))
        rest = await of(await daemon.client.get(f"/v1/jobs?limit=4&cursor={first['next']}"))
        jobs = first["jobs"] + rest["jobs"]
        assert [job["job"] for job in jobs] == [f"job{n}" for n in range(5, -1, -1)]
        assert [job["connection"] for job in jobs] == ["other", "one"] * 3
        assert rest["next"] is None
        only = await of(await daemon.client.get("/v1/jobs?connection=one"))
        assert {job["connection"] for job in only["jobs"]} == {"one"}
        misspelt = await daemon.client.get("/v1/jobs?connection=othr")
        assert misspelt.status_code == 404
        assert misspelt.json()["hint"] == "did you mean other?"


async def test_jobs_are_listed_by_state(database: FreshDatabase) -> None:
    for n in range(3):
        await begin(database, f"job{n}")
    async with running_daemon(idle(database)) as daemon:
        await daemon.client.post("/v1/jobs/job1/pause")
        await daemon.client.post("/v1/jobs/job2/cancel")

        async def names(states: str) -> list[str]:
            return [job["job"] for job in (await of(await daemon.client.get(f"/v1/jobs?state={states}")))["jobs"]]

        assert await names("paused") == ["job1"]
        assert await names("planned,cancelled") == ["job2", "job0"]
        await of(await daemon.client.get("/v1/jobs?state=lost"), 400)


async def test_a_cursor_that_is_none_of_ours_is_refused(database: FreshDatabase) -> None:
    async with running_daemon(idle(database)) as daemon:
        for cursor in ("x", "!!!", "bnVsbA", "eyJtYWluIjotMX0", "eyJtYWluIjoiYSJ9", "W10", "a" * 400):
            problem = await of(await daemon.client.get(f"/v1/jobs?cursor={cursor}"), 400)
            assert problem["errors"][0]["parameter"] == "cursor"


async def test_a_name_that_two_ledgers_hold_asks_for_the_connection(databases: TwoDatabases) -> None:
    await begin(databases.source)
    await begin(databases.target)
    async with running_daemon(two_connections(databases)) as daemon:
        problem = await of(await daemon.client.get("/v1/jobs/job"), 409)
        assert problem["code"] == "ambiguous_job"
        assert "?connection=" in problem["hint"]
        paused = await daemon.client.post("/v1/jobs/job/pause?connection=other")
        assert (await of(paused))["connection"] == "other"
        assert (await of(await daemon.client.get("/v1/jobs/job?connection=one")))["state"] == "planned"


async def test_what_is_away_hides_only_its_own_jobs(databases: TwoDatabases) -> None:
    await begin(databases.source)
    settings = two_connections(databases)
    settings["connections"]["other"]["dsn"] = "postgresql://127.0.0.1:1/none?sslmode=disable&user=nobody"
    async with running_daemon(settings) as daemon:
        page = await of(await daemon.client.get("/v1/jobs"))
        assert ([job["job"] for job in page["jobs"]], page["unreachable"]) == (["job"], ["other"])
        assert (await of(await daemon.client.get("/v1/jobs/job")))["connection"] == "one"
        problem = await of(await daemon.client.get("/v1/jobs/nobody"), 503)
        assert problem["code"] == "cannot_connect"
        assert "127.0.0.1" not in problem["detail"]
        found = (await of(await daemon.client.get("/v1/connections")))["connections"]
        assert {one["name"]: one["reachable"] for one in found} == {"one": True, "other": False}


async def test_who_has_seen_it_already_gets_nothing_again(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        seen = await daemon.client.get("/v1/jobs/job")
        again = await daemon.client.get("/v1/jobs/job", headers={"if-none-match": seen.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


# -- waiting ----------------------------------------------------------------------------------------------------------


async def test_whoever_waits_for_a_change_hears_of_it_at_once(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 15.0)  # what is notified waits for no look
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        revision = {"if-none-match": (await daemon.client.get("/v1/jobs/job")).headers["etag"]}
        waiting = [
            asyncio.create_task(daemon.client.get("/v1/jobs/job?wait=20s&until=change", headers=revision))
            for _ in range(20)
        ]
        watcher = daemon.daemon.stations["main"].watcher
        while watcher.watched < len(waiting) or watcher.looks == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(5 * LOOK_SOONEST_S)  # every one who came has had his look: the next one is far away
        assert not any(task.done() for task in waiting)
        began = time.monotonic()
        await daemon.client.post("/v1/jobs/job/pause")
        answers = await asyncio.gather(*waiting)
        assert time.monotonic() - began < 1.5
        assert {answer.json()["state"] for answer in answers} == {"paused"}


async def test_waiting_ends_with_the_job_as_it_is_when_the_time_is_over(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        began = time.monotonic()
        answer = await of(await daemon.client.get("/v1/jobs/job?wait=500ms&until=done"))
        assert answer["state"] == "planned"
        assert 0.4 < time.monotonic() - began < 5


async def test_waiting_for_what_is_so_already_takes_no_time(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        await daemon.client.post("/v1/jobs/job/pause")
        for until in ("paused", "change"):
            headers = {"if-none-match": '"0"'}
            answer = await daemon.client.get(f"/v1/jobs/job?wait=20s&until={until}", headers=headers)
            assert (await of(answer))["state"] == "paused"


async def test_many_who_watch_cost_one_look_a_second_and_nobody_costs_none(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        watcher = daemon.daemon.stations["main"].watcher
        assert watcher.looks == 0
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(daemon.client.get("/v1/jobs/job?wait=2s&until=done"))
        assert 2 <= watcher.looks <= 8
        before = watcher.looks
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert watcher.looks <= before + 1


async def test_waiting_ends_when_the_daemon_does(database: FreshDatabase) -> None:
    await begin(database)
    async with running_daemon(idle(database)) as daemon:
        waiting = asyncio.create_task(daemon.client.get("/v1/jobs/job?wait=30s"))
        while daemon.daemon.stations["main"].watcher.looks == 0:
            await asyncio.sleep(0.01)
        daemon.daemon.drain("test")
        assert (await of(await waiting))["state"] == "planned"
