"""``backfill grants``: a role that is nobody special runs a job with exactly what the script gives."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, wrong_rows
from tests.support.databases import FreshDatabase, TwoDatabases, on_each_major

_serial = itertools.count()


@pytest.fixture
def make_role(request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """``make_role(database, "LOGIN")``: roles that are gone afterwards, with whatever they were granted."""
    made: list[tuple[FreshDatabase, str, list[FreshDatabase]]] = []

    def make(database: FreshDatabase, options: str = "", *others: FreshDatabase) -> str:
        name = f"role_{os.getpid()}_{next(_serial)}"
        database.sql(f"CREATE ROLE {name} {options}")
        made.append((database, name, [database, *others]))
        return name

    yield make
    for database, name, places in reversed(made):
        for place in places:
            place.sql(f"DROP OWNED BY {name}")
        database.sql(f"DROP ROLE {name}")


def as_user(database: FreshDatabase, user: str) -> str:
    return database.server.dsn(database.name, user=user)


@on_each_major
def test_a_login_and_a_worker_role_fill_a_column_with_nothing_but_the_script(
    backfill: Cli, shop: FreshDatabase, spec, make_role, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, login = make_role(shop), make_role(shop, "LOGIN")
    path = spec(role=mover)
    monkeypatch.setenv("BACKFILL_DSN", as_user(shop, login))
    assert backfill("run", path).code != 0
    script = backfill("grants", path, "--login", login)
    assert script.code == 0
    shop.sql(script.out)
    done = backfill("run", path, "--json")
    assert (done.code, done.json["rows"]) == (0, 20000), done.err
    assert wrong_rows(shop) == 0
    for command in (["pause"], ["status"], ["history"], ["restart", "--yes"]):
        assert backfill(*command, "cents").code == 0, command


def test_one_role_copies_between_databases_with_nothing_but_the_script(
    backfill: Cli, two_shops: TwoDatabases, copy_job: Path, make_role, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = make_role(two_shops.source, "LOGIN", two_shops.target)
    two_shops.target.sql("INSERT INTO orders_v2 VALUES (4000, 1, 100)")  # one chunk goes through the staging table
    script = backfill("grants", copy_job, "--to", role).out
    here, _, there = script.partition(f"-- In database {two_shops.target.name}")
    two_shops.source.sql(here)
    two_shops.target.sql(f"-- {there}")
    monkeypatch.setenv("SOURCE_DSN", as_user(two_shops.source, role))
    monkeypatch.setenv("TARGET_DSN", as_user(two_shops.target, role))
    done = backfill("run", copy_job, "--json")
    assert (done.code, done.json["rows"]) == (0, 4999), done.err


def test_a_job_that_is_there_needs_no_file(backfill: Cli, shop: FreshDatabase, spec, make_role) -> None:
    backfill("run", spec())
    script = backfill("grants", "cents", "--to", "anybody").out
    assert 'GRANT SELECT, UPDATE ON "public"."orders" TO "anybody";' in script
    assert "CREATE SCHEMA backfill" not in script
    assert backfill("grants", "cents").code == 2, "nobody to grant to"


def test_grants_changes_nothing(backfill: Cli, shop: FreshDatabase, spec) -> None:
    assert "CREATE SCHEMA backfill" in backfill("grants", spec(), "--to", "anybody").out
    assert shop.sql("SELECT to_regnamespace('backfill') IS NULL").strip() == "t"


@on_each_major
def test_signals_and_growth_ask_for_their_rights_and_the_script_gives_them(
    backfill: Cli, shop: FreshDatabase, spec, make_role
) -> None:
    role = make_role(shop)
    named = [{"wal_archive": {}}, {"active_sessions": {"max": 40}}, {"autovacuum": {}}, {"replication_lag": "off"}]
    script = backfill("grants", spec(pace={"signals": named}, bloat={"max_growth": "20%"}), "--to", role).out
    assert f'GRANT pg_monitor TO "{role}";  -- needs a superuser; for the signals wal_archive\n' in script
    assert (
        f'GRANT pg_read_all_stats TO "{role}";  -- needs a superuser; for the signals active_sessions, autovacuum\n'
        in script
    )
    shop.sql(script)
    assert shop.sql(f"SELECT pg_has_role('{role}', 'pg_monitor', 'USAGE')").strip() == "t"
    if int(shop.sql("SHOW server_version_num")) >= 170000:
        assert shop.sql(f"SELECT has_table_privilege('{role}', 'orders', 'MAINTAIN')").strip() == "t"
    else:
        assert "MAINTAIN" not in script
        assert "only a member of the table's owner may vacuum it" in script
