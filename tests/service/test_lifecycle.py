"""A daemon's life: start, readiness, signs of life, drain and end, as orchestrators and service managers see it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.cli.main import main
from engine.fleet import pool
from engine.service import daemon as daemon_module
from engine.service.notify import ServiceManager
from engine.spec.pacing import Pace
from engine.spec.signals import ALL_OFF
from tests.support.daemon import (
    config_file,
    config_of,
    daemon_process,
    put_job,
    running_daemon,
    until_job,
)
from tests.support.databases import FreshDatabase
from tests.support.jobs import in_place

SLOW = Pace(signals=ALL_OFF, max_rows_per_s=500)
"""So slow that no test sees the end of it."""


@pytest.fixture
def shop(database: FreshDatabase) -> FreshDatabase:
    """20,000 orders to fill in place."""
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric NOT NULL, cents bigint);"
        "INSERT INTO orders SELECT g, g / 7.0 FROM generate_series(1, 20000) g;"
    )
    return database


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at ledgers several times a second, and a ledger is missed soon."""
    monkeypatch.setattr(pool, "POLL_S", 0.2)
    monkeypatch.setattr(daemon_module, "SEEN_WITHIN_S", 1.0)


def job(database: FreshDatabase, name: str = "cents", **settings: Any) -> Any:
    return in_place(database, "orders", {"cents": "(amount * 100)::bigint"}, name=name, **settings)


async def until(client: Any, path: str, status: int, within_s: float = 20.0) -> dict[str, Any]:
    """Ask until the answer has that status; gives its body."""
    deadline = time.monotonic() + within_s
    while (answer := await client.get(path)).status_code != status:
        assert time.monotonic() < deadline, answer.text
        await asyncio.sleep(0.02)
    body: dict[str, Any] = answer.json()
    return body


# -- health -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_a_database_that_is_away_keeps_nothing_from_starting_and_is_missed_by_readiness_only(
    database: FreshDatabase,
) -> None:
    refuse = f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS '
    database.server.sql(refuse + "false")
    async with running_daemon(config_of(database)) as daemon:
        unready = await until(daemon.client, "/readyz", 503)
        assert unready["status"] in ("starting", "failing")
        await asyncio.sleep(1.1)
        unready = await until(daemon.client, "/readyz", 503)
        assert unready == {
            "status": "failing",
            "checks": {
                "listening": "ok",
                "ledgers": "1 of 1 not seen for 1 s",
                "tokens": "ok",
                "certificates": "ok",
                "tasks": "ok",
            },
        }
        assert (await daemon.client.get("/livez")).status_code == 200
        database.server.sql(refuse + "true")
        assert (await until(daemon.client, "/readyz", 200))["status"] == "ok"


@pytest.mark.usefixtures("quick")
async def test_a_database_that_goes_away_later_is_missed_and_found_again(database: FreshDatabase) -> None:
    async with running_daemon(config_of(database)) as daemon:
        await daemon.ready()
        database.server.sql(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS false')
        database.server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.name}'")
        assert (await until(daemon.client, "/readyz", 503))["status"] == "failing"
        database.server.sql(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS true')
        await until(daemon.client, "/readyz", 200)


async def test_readiness_tells_no_name(database: FreshDatabase) -> None:
    """Anybody may ask."""
    async with running_daemon(config_of("postgresql://somewhere.invalid/secret_name")) as daemon:
        told = (await daemon.client.get("/readyz")).text
        assert "main" not in told
        assert "somewhere" not in told


async def test_liveness_asks_no_database(database: FreshDatabase) -> None:
    async with running_daemon(config_of(database, connections={"main": {"dsn": database.dsn, "tables": []}})) as daemon:
        for _ in range(20):
            assert (await daemon.client.get("/livez")).status_code == 200
        seen = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert database.sql(seen) == "0"


async def test_a_daemon_whose_pool_has_died_is_not_alive(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret of somebody's")

    monkeypatch.setattr(pool.Pool, "run", die)
    told: list[Any] = []
    async with running_daemon(config_of(database), tell=told.append) as daemon:
        dead = await until(daemon.client, "/livez", 503)
        assert dead == {"status": "failing", "checks": {"tasks": "died: pool main"}}
        assert (await daemon.client.get("/readyz")).status_code == 503
    (died,) = [entry for entry in told if entry.event == "daemon.task_died"]
    assert died.fields["exception"] == "builtins.RuntimeError"
    assert "secret" not in repr(died)


# -- signals ----------------------------------------------------------------------------------------------------------


async def test_sigterm_lets_the_jobs_go_and_the_next_daemon_goes_on_where_they_were(shop: FreshDatabase) -> None:
    await put_job(job(shop, pace=SLOW, chunk={"max_rows": 100}))
    settings = config_of(shop)
    with config_file(settings) as file:
        async with daemon_process(settings, folder=file.parent) as daemon:
            await until_job(daemon.client, "cents", lambda shown: shown["rows_done"] > 0)
            assert await daemon.terminated() == 143
            events = [line["event"] for line in daemon.lines()]
            assert events[:2] == ["daemon.started", "daemon.ready"]
            assert events[-1] == "daemon.ended"
            (draining,) = [line for line in daemon.lines() if line["event"] == "daemon.draining"]
            assert (draining["jobs"], draining["reason"]) == (1, "terminated")
            assert any("STOPPING=1" in said for said in daemon.words())
        assert not (file.parent / "backfill.sock").exists()
        assert shop.sql("SELECT count(*) FROM backfill.span WHERE worker IS NOT NULL") == "0"
        assert shop.sql("SELECT state FROM backfill.job") == "running"
        before = int(shop.sql("SELECT count(*) FROM orders WHERE cents IS NOT NULL"))
        assert 0 < before < 20000
        shop.sql("SELECT backfill.pace('cents', 1000000)")
        async with daemon_process(settings, folder=file.parent) as daemon:
            done = await until_job(daemon.client, "cents", lambda shown: shown["state"] == "done")
            assert done["rows_done"] == 20000
            (opened,) = [line for line in daemon.lines() if line["event"] == "job.opened"]
            assert opened["resumed"] is True
    assert shop.sql("SELECT count(*) FROM orders WHERE cents IS DISTINCT FROM (amount * 100)::bigint") == "0"


async def test_ctrl_c_ends_with_its_own_code(database: FreshDatabase) -> None:
    async with daemon_process(config_of(database)) as daemon:
        daemon.signal(signal.SIGINT)
        assert await daemon.ended() == 130


async def test_a_chunk_that_does_not_end_is_cut_off_when_the_bound_is_over(shop: FreshDatabase) -> None:
    """Somebody holds a row: the chunk waits for it for longer than the daemon may take to end."""
    async with daemon_process(config_of(shop, drain="1s")) as daemon:
        holder = await in_the_way_of_a_job(shop, daemon.client)
        began = time.monotonic()
        assert await daemon.terminated() == 143
        assert 0.9 < time.monotonic() - began < 9
        assert "daemon.aborting" in [line["event"] for line in daemon.lines()]
    await holder.execute("ROLLBACK")


async def test_a_second_signal_waits_for_no_chunk(shop: FreshDatabase) -> None:
    async with daemon_process(config_of(shop, drain="1h")) as daemon:
        holder = await in_the_way_of_a_job(shop, daemon.client)
        daemon.signal(signal.SIGTERM)
        while "daemon.draining" not in [line["event"] for line in daemon.lines()]:
            await asyncio.sleep(0.02)
        assert (await daemon.client.get("/livez")).status_code == 200
        assert (await daemon.client.get("/readyz")).json()["status"] == "draining"
        assert (await daemon.client.get("/readyz")).status_code == 503
        assert (await daemon.client.get("/v1/jobs/cents")).status_code == 200
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended(9) == 143
    await holder.execute("ROLLBACK")


async def in_the_way_of_a_job(database: FreshDatabase, client: Any) -> Any:
    """A session that holds rows which a chunk of a job waits for."""
    await put_job(job(database, lock_timeout=60.0, pace=SLOW, chunk={"max_rows": 100}))
    await until_job(client, "cents", lambda shown: shown["rows_done"] > 0)
    holder = await database.connect()
    await holder.execute("BEGIN; UPDATE orders SET amount = amount WHERE id > 1000")
    database.sql("SELECT backfill.pace('cents', 1000000)")
    while database.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == "0":
        await asyncio.sleep(0.05)
    return holder


async def test_a_stream_ends_with_a_word_when_the_daemon_does(shop: FreshDatabase) -> None:
    await put_job(job(shop, pace=SLOW))
    async with running_daemon(config_of(shop)) as daemon:
        async with daemon.client.stream("GET", "/v1/jobs/cents/events") as stream:
            lines = stream.aiter_lines()
            while not (await anext(lines)).startswith("event: status"):
                pass
            began = time.monotonic()
            daemon.daemon.drain("the test says so")
            rest = [line async for line in lines]
        assert rest[-2].startswith(": this daemon is about to end")
        assert "event: end" not in rest  # the job has not ended
        assert time.monotonic() - began < 5
        await asyncio.wait_for(asyncio.shield(daemon.task), 20)


async def test_a_daemon_that_is_about_to_end_takes_no_job(shop: FreshDatabase) -> None:
    """Those that it has still run, so it still answers."""
    async with daemon_process(config_of(shop, drain="1h")) as daemon:
        holder = await in_the_way_of_a_job(shop, daemon.client)
        daemon.signal(signal.SIGTERM)
        await until(daemon.client, "/readyz", 503)
        refused = await daemon.client.post(
            "/v1/jobs",
            json={
                "name": "late",
                "source": {"connection": "main", "table": "public.orders"},
                "set": {"cents": "1"},
            },
        )
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        await holder.execute("ROLLBACK")
        assert await daemon.ended() == 143


async def test_sighup_ends_nothing(database: FreshDatabase) -> None:
    async with daemon_process(config_of(database)) as daemon:
        daemon.signal(signal.SIGHUP)
        while "daemon.reloaded" not in [line["event"] for line in daemon.lines()]:
            await asyncio.sleep(0.02)
        [said] = [line["message"] for line in daemon.lines() if line["event"] == "daemon.reloaded"]
        assert said.startswith("there are no certificates")
        assert (await daemon.client.get("/livez")).status_code == 200


async def test_a_configuration_can_be_checked_without_starting(
    database: FreshDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    with config_file(config_of(database)) as file:
        assert await asyncio.to_thread(main, ["serve", "--config", str(file), "--check"]) == 0
        assert "works jobs of" in capsys.readouterr().out
        file.write_text(file.read_text() + "\nnonsense = 1\n")
        assert await asyncio.to_thread(main, ["serve", "--config", str(file), "--check"]) == 3
        assert not (file.parent / "backfill.sock").exists()


async def test_a_daemon_does_not_take_the_socket_of_a_living_one(database: FreshDatabase) -> None:
    settings = config_of(database)
    async with daemon_process(settings) as first:
        async with daemon_process(settings, folder=first.folder, ready=False) as second:
            assert await second.ended() == 2
        assert (await first.client.get("/livez")).status_code == 200


# -- what is told -----------------------------------------------------------------------------------------------------


async def test_every_change_that_was_asked_for_is_in_the_audit_done_or_not(shop: FreshDatabase) -> None:
    await put_job(job(shop, pace=SLOW))
    told: list[Any] = []
    async with running_daemon(config_of(shop), tell=told.append) as daemon:
        done = await daemon.client.post("/v1/jobs/cents/pause", json={"reason": "lunch"})
        assert done.status_code == 200
        unknown = await daemon.client.post("/v1/jobs/nobody/pause", json={})
        assert unknown.status_code == 404
        await daemon.client.get("/v1/jobs/cents")
    audit = [entry.fields for entry in told if entry.event == "audit"]
    assert [(a["what"], a["job"], a["connection"], a["outcome"]) for a in audit] == [
        ("pause_job", "cents", "main", "ok"),
        ("pause_job", "nobody", "main", "unknown_job"),
    ]
    assert audit[0]["who"].startswith("peer ")
    assert [a["request_id"] for a in audit] == [done.headers["x-request-id"], unknown.headers["x-request-id"]]


async def test_metrics_of_two_ledgers_do_not_hide_each_other(database: FreshDatabase, make_database: Any) -> None:
    other = make_database()
    for place, name in ((database, "here"), (other, "there")):
        place.sql("CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric, cents bigint)")
        place.sql("INSERT INTO orders SELECT g, g FROM generate_series(1, 5000) g")
        await put_job(job(place, name, pace=SLOW))
    connections = {
        name: {"dsn": place.dsn, "work": True, "tables": ["*.*"]} for name, place in (("one", database), ("two", other))
    }
    async with running_daemon({"connections": connections}) as daemon:

        def reported() -> set[str]:
            lines = daemon.daemon.metrics_text().decode().splitlines()
            return {line.split('"')[1] for line in lines if line.startswith("backfill_job_info{")}

        deadline = time.monotonic() + 20
        while reported() != {"here", "there"}:
            assert time.monotonic() < deadline, reported()
            await asyncio.sleep(0.05)


# -- the service manager ----------------------------------------------------------------------------------------------


@contextmanager
def manager_at(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(2.0)
        yield manager


@pytest.mark.parametrize("is_abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, is_abstract: bool) -> None:
    name = f"backfill-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with manager_at(f"\0{name}" if is_abstract else name) as manager:
        service = ServiceManager({"NOTIFY_SOCKET": f"@{name}" if is_abstract else name})
        service.ready("listening")
        assert manager.recv(4096) == b"READY=1\nSTATUS=listening"
        service.status("4 jobs\nREADY=1")
        assert manager.recv(4096) == b"STATUS=4 jobs READY=1"  # one line, whatever it says
        service.status("4 jobs\nREADY=1")
        service.stopping("draining")
        assert manager.recv(4096) == b"STOPPING=1\nSTATUS=draining"
        service.alive()
        assert manager.recv(4096) == b"WATCHDOG=1"


def test_a_service_manager_that_does_not_listen_is_no_trouble(tmp_path: Path) -> None:
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("listening")
    ServiceManager({"NOTIFY_SOCKET": "vsock:2:1234"}).ready("listening")
    ServiceManager({}).ready("listening")


@pytest.mark.parametrize(
    ("environment", "every_s"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "7"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_signs_of_life_come_twice_as_often_as_they_are_wanted(
    environment: dict[str, str], every_s: float | None
) -> None:
    assert ServiceManager(environment | {"NOTIFY_SOCKET": "@x"}, pid=7).watchdog_every_s == every_s


async def test_the_watchdog_hears_of_the_daemon_only_while_it_is_well(
    database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"backfill-watchdog-{os.getpid()}"
    loop = asyncio.get_running_loop()
    with manager_at(f"\0{name}") as manager:
        manager.setblocking(False)
        service = ServiceManager({"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "200000"})
        async with running_daemon(config_of(database), manager=service) as daemon:

            async def heard() -> bytes:
                return await asyncio.wait_for(loop.sock_recv(manager, 4096), 5)

            signs = 0
            while signs < 3:
                signs += await heard() == b"WATCHDOG=1"
            daemon.daemon._dead.append("pool main")
            with pytest.raises(TimeoutError):
                for _ in range(10):  # what was on its way may still arrive
                    await asyncio.wait_for(loop.sock_recv(manager, 4096), 0.5)
