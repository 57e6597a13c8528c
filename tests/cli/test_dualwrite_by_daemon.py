"""``backfill dualwrite --daemon``: triggers come before the job, so a file must do where the daemon knows no job yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.sql import dual_write
from tests.cli.conftest import Cli, in_a_thread
from tests.support.daemon import RunningDaemon, config_of
from tests.support.databases import FreshDatabase
from tests.support.jobs import differing

MAPPED = "SELECT id, amount FROM orders"


@pytest.fixture
def daemon(shop: FreshDatabase) -> Iterator[RunningDaemon]:
    """A daemon whose operator lets callers change triggers."""
    with in_a_thread(config_of(shop, allow={"dual_write": True})) as running:
        yield running


@pytest.fixture
def into_v2(shop: FreshDatabase, spec: Callable[..., Path]) -> Path:
    """A job from the shop's table into another one of the same database, as a daemon takes it."""
    shop.sql("CREATE TABLE orders_v2 (id bigint PRIMARY KEY, amount numeric(12,2))")
    return spec(
        name="v2",
        set=None,
        source={"connection": "main", "table": "public.orders"},
        target={"connection": "main", "table": "public.orders_v2"},
        columns={"id": "id", "amount": "amount"},
    )


def triggers(database: FreshDatabase) -> list[str]:
    return database.sql("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'zz_backfill%' ORDER BY 1").splitlines()


def test_triggers_are_installed_from_a_file_before_the_job_is_begun(
    backfill: Cli, daemon: RunningDaemon, shop: FreshDatabase, into_v2: Path
) -> None:
    there = ("--daemon", daemon.url)
    done = backfill("dualwrite", into_v2, "--install", "--json", *there)
    assert (done.code, done.json["changed"]) == (0, True), done.err
    assert done.json["triggers"] == triggers(shop) == list(dual_write.trigger_names("v2"))
    again = backfill("dualwrite", into_v2, "--install", "--json", *there)
    assert (again.code, again.json["changed"]) == (0, False), again.err
    shop.sql("INSERT INTO orders VALUES (20001, 1)")
    run = backfill("run", into_v2, *there)
    assert run.code == 0, run.err
    assert differing(shop, MAPPED, "SELECT id, amount FROM orders_v2") == 0
    for one in (str(into_v2), "v2"):
        assert backfill("dualwrite", one, "--check", *there).code == 0
        assert backfill("dualwrite", one, "--install", *there).code == 0
    removed = backfill("dualwrite", into_v2, "--remove", "--force", *there)
    assert removed.code == 0, removed.err
    assert triggers(shop) == []


def test_looking_at_triggers_needs_a_job_that_was_begun(
    backfill: Cli, daemon: RunningDaemon, shop: FreshDatabase, into_v2: Path
) -> None:
    for action in ("--check", "--print", "--remove"):
        refused = backfill("dualwrite", into_v2, action, "--daemon", daemon.url)
        assert refused.code == 2, refused.err
        assert "v2" in refused.err
    assert triggers(shop) == []


def test_a_file_is_no_way_round_the_operators_word(backfill: Cli, shop: FreshDatabase, into_v2: Path) -> None:
    with in_a_thread(config_of(shop)) as strict:
        refused = backfill("dualwrite", into_v2, "--install", "--daemon", strict.url)
    assert refused.code == 3, refused.err
    assert triggers(shop) == []
