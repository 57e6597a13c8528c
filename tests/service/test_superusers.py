"""Rows are moved as a superuser only where the operator says so, whoever wrote the job."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.daemon import config_of, running_daemon, until_job
from tests.support.databases import FreshDatabase

SPEC = {
    "name": "cents",
    "source": {"connection": "main", "table": "public.t"},
    "set": {"cents": "amount * 100"},
}


def make_table(database: FreshDatabase) -> None:
    database.sql("""
        CREATE TABLE t (id int PRIMARY KEY, amount int, cents int);
        INSERT INTO t SELECT g, g, NULL FROM generate_series(1, 1000) g;
        ANALYZE t""")


def config(database: FreshDatabase, **main: Any) -> dict[str, Any]:
    base = config_of(database)
    return base | {"connections": {"main": base["connections"]["main"] | {"superuser": False} | main}}


def filled(database: FreshDatabase) -> int:
    return int(database.sql("SELECT count(*) FROM t WHERE cents = amount * 100") or 0)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/plans", "/v1/rehearsals"])
async def test_a_superuser_moves_nothing_unless_the_operator_says_so(database: FreshDatabase, path: str) -> None:
    make_table(database)
    async with running_daemon(config(database)) as daemon:
        answer = await daemon.client.post(path, json=SPEC)
        assert answer.status_code == 403, answer.text
        assert answer.json()["code"] == "superuser_refused"
        assert "superuser = true" in answer.json()["hint"]
    assert filled(database) == 0


async def test_a_job_of_the_ledger_is_left_aside_with_the_reason(database: FreshDatabase) -> None:
    make_table(database)
    async with running_daemon(config(database, superuser=True, work=False)) as daemon:
        answer = await daemon.client.post("/v1/jobs", json=SPEC)
        assert answer.status_code == 201, answer.text
    async with running_daemon(config(database)) as daemon:
        shown = await until_job(daemon.client, "cents", lambda job: bool(job["aside"]))
        assert "superuser" in shown["aside"]
    assert filled(database) == 0


def make_account(database: FreshDatabase) -> str:
    account = f"mover_{database.name}"
    database.sql(f"CREATE ROLE {account} LOGIN; GRANT SELECT, UPDATE ON t TO {account}")
    return account


async def test_a_role_does_not_make_a_superuser_harmless(database: FreshDatabase) -> None:
    make_table(database)
    account = make_account(database)
    leaves_it = SPEC | {"set": {"cents": "case when set_config('role', 'none', true) = 'none' then amount * 100 end"}}
    try:
        async with running_daemon(config(database, role=account)) as daemon:
            for spec in (SPEC, leaves_it):
                answer = await daemon.client.post("/v1/plans", json=spec)
                assert answer.json()["code"] == "superuser_refused", answer.text
    finally:
        database.sql(f"DROP OWNED BY {account}; DROP ROLE {account}")


async def test_a_role_that_is_a_superuser_is_refused_as_well(database: FreshDatabase) -> None:
    make_table(database)
    account = make_account(database)
    dsn = database.server.dsn(database.name, user=account)
    database.sql(f"CREATE ROLE {account}_boss SUPERUSER; GRANT {account}_boss TO {account}")
    try:
        async with running_daemon(config(database, dsn=dsn, role=f"{account}_boss")) as daemon:
            answer = await daemon.client.post("/v1/plans", json=SPEC)
            assert answer.json()["code"] == "superuser_refused", answer.text
    finally:
        database.sql(f"DROP ROLE {account}_boss; DROP OWNED BY {account}; DROP ROLE {account}")


async def test_an_account_that_is_no_superuser_will_do(database: FreshDatabase) -> None:
    make_table(database)
    account = make_account(database)
    try:
        async with running_daemon(config(database, dsn=database.server.dsn(database.name, user=account))) as daemon:
            answer = await daemon.client.post("/v1/plans", json=SPEC)
            assert answer.status_code == 200, answer.text
            assert "SUPERUSER" not in answer.text
    finally:
        database.sql(f"DROP OWNED BY {account}; DROP ROLE {account}")
