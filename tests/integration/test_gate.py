"""The gate: every condition made false on a real server, one at a time; it says which, and changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.embedded import EmbeddedServer
from engine.errors import CannotConnect, SpecChanged
from engine.fleet import LocalVerification
from engine.fleet.evidence import look_at_gate
from engine.flow.dual_write_change import install, prepared_for_change
from engine.flow.endpoints import endpoints_of
from engine.flow.gate import Check, Gate
from engine.flow.prepare import inspect
from engine.model import Verify
from engine.spec import ChunkLimits, JobSpec
from engine.spec.models import Errors
from tests.support.databases import FreshDatabase, TwoDatabases, create_database, on_each_major
from tests.support.jobs import in_place, into, run_to_done
from tests.support.standby import standby_pair

NAMES = ("done", "verified", "schema", "dual_write", "quarantine", "server")
DECLARED = {"accept": ("DUAL_WRITE_MISSING",)}


@dataclass
class House:
    """A job, and what its gate says."""

    source: FreshDatabase
    target: FreshDatabase
    spec: JobSpec
    triggers: list[str] = field(default_factory=list)

    async def gate(self) -> Gate:
        """Look, and see that looking has changed nothing."""
        before = checksum(self.target)
        found = await look_at_gate(self.spec)
        assert checksum(self.target) == before
        assert tuple(check.name for check in found.checks) == NAMES
        assert all(check.detail for check in found.checks)
        assert all(bool(check.remedy) != check.ok for check in found.checks), (
            "a remedy for what is wrong, and only that"
        )
        assert found.ready is all(check.ok for check in found.checks)
        return found

    async def only(self, name: str) -> Check:
        """The one check that says no."""
        found = await self.gate()
        wrong = [check for check in found.checks if not check.ok]
        assert [check.name for check in wrong] == [name], wrong
        return wrong[0]

    async def verify(self, **options: Any) -> None:
        run = LocalVerification(self.spec, **({"settle_s": 0.05} | options))
        result = await run.run()
        assert result.error is None, result.error

    async def install(self) -> None:
        prepared = prepared_for_change(await inspect(self.spec, endpoints_of(self.spec)))
        session = await prepared.endpoints.source.connect("dualwrite")
        self.triggers = list((await install(session, prepared)).triggers)
        await session.close()

    async def run(self) -> None:
        await run_to_done(self.spec)


def checksum(database: FreshDatabase) -> str:
    """Of every row of every table of the ledger, and of every table of the user's."""
    tables = database.sql(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('backfill', 'public') ORDER BY 1"
    ).split()
    whole = [database.sql(f"SELECT xmin, t.* FROM {table} t ORDER BY t::text") for table in tables]
    return hashlib.sha256("\n".join(tables + whole).encode()).hexdigest()


SOURCE = "CREATE TABLE src (id int PRIMARY KEY, n int, note text); INSERT INTO src SELECT g, g, 'x' FROM generate_series(1, 500) g; ANALYZE src;"
TARGET = "CREATE TABLE dst (id int PRIMARY KEY, n int, note text); CREATE UNIQUE INDEX dst_pair ON dst (id, n);"
CHUNK = ChunkLimits(min_rows=10, max_rows=100)


def one(database: FreshDatabase, **settings: Any) -> House:
    database.sql(SOURCE + TARGET)
    return House(database, database, into(database, "src", database, "dst", chunk=CHUNK, **settings))


def two(databases: TwoDatabases, **settings: Any) -> House:
    databases.source.sql(SOURCE)
    databases.target.sql(TARGET)
    return House(
        databases.source,
        databases.target,
        into(databases.source, "src", databases.target, "dst", chunk=CHUNK, **(DECLARED | settings)),
    )


@pytest.fixture
async def ready(database: FreshDatabase) -> House:
    """With triggers of ours, done, verified."""
    house = one(database)
    await house.install()
    await house.run()
    await house.verify()
    return house


@on_each_major
async def test_ready_with_our_triggers(ready: House) -> None:
    found = await ready.gate()
    assert found.ready
    assert not found.mismatch
    details = {check.name: check.detail for check in found.checks}
    assert "500 rows agree" in details["verified"]
    assert "all the while" in details["dual_write"]
    assert found.as_json()["ready"] is True
    assert set(found.as_json()["checks"][0]) == {"name", "ok", "detail", "remedy"}


async def test_ready_between_two_databases_by_declaration(databases: TwoDatabases) -> None:
    house = two(databases, verify=Verify.AFTER)
    await house.run()
    found = await house.gate()
    assert found.ready
    assert "declared" in found.checks[3].detail


async def test_ready_in_place(database: FreshDatabase) -> None:
    database.sql(SOURCE + "ALTER TABLE src ADD twice int")
    house = House(database, database, in_place(database, "src", {"twice": "n * 2"}, verify=Verify.AFTER))
    await house.install()
    await house.run()
    assert (await house.gate()).ready


# -- done -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "paused", "failed", "cancelled"])
async def test_a_job_that_is_not_done(ready: House, state: str) -> None:
    ready.target.sql(f"UPDATE backfill.job SET state = '{state}', phase = 'move', finished_at = NULL")
    check = await ready.only("done")
    assert state in check.detail
    assert "backfill status" in check.remedy


# -- verified ---------------------------------------------------------------------------------------------------------


async def test_a_job_that_nobody_verified(database: FreshDatabase) -> None:
    house = one(database)
    await house.install()
    await house.run()
    check = await house.only("verified")
    assert check.remedy == "backfill verify job"
    assert not (await house.gate()).mismatch


async def test_a_verification_that_runs_and_is_cancelled(ready: House) -> None:
    ready.target.sql("UPDATE dst SET n = -1 WHERE id = 1")
    run = LocalVerification(ready.spec, settle_s=20)
    task = asyncio.create_task(run.run())
    while ready.target.sql("SELECT phase FROM backfill.job").strip() != "confirm":
        await asyncio.sleep(0.02)
    found = {check.name: check for check in (await look_at_gate(ready.spec)).checks}
    assert (found["done"].ok, found["verified"].ok) == (False, False)
    assert "running" in found["verified"].detail
    ready.target.sql("SELECT backfill.cancel('job')")
    assert run.supervisor is not None
    run.supervisor.abort()
    await task
    check = await ready.only("verified")
    assert "cancelled" in check.detail


async def test_a_mismatch_and_a_repair_of_it_want_another_verification(ready: House) -> None:
    ready.target.sql("UPDATE dst SET n = -1 WHERE id IN (1, 2); DELETE FROM dst WHERE id = 3")
    await ready.verify()
    check = await ready.only("verified")
    assert "3 rows" in check.detail
    assert "--repair" in check.remedy
    assert (await ready.gate()).mismatch
    await ready.verify(repair=True)
    check = await ready.only("verified")
    assert "after the verification began" in check.detail
    assert not (await ready.gate()).mismatch
    await ready.verify()
    assert (await ready.gate()).ready


async def test_the_remedy_for_extra_rows_does_not_delete_unasked(ready: House) -> None:
    ready.target.sql("INSERT INTO dst VALUES (9000, 1, 'x')")
    await ready.verify()
    check = await ready.only("verified")
    assert check.remedy.startswith("backfill verify job --repair (--delete-extra, if ")
    await ready.verify(repair=True)
    assert (await ready.only("verified")).remedy == check.remedy
    assert ready.target.sql("SELECT count(*) FROM dst WHERE id = 9000").strip() == "1"
    await ready.verify(repair=True, delete_extra=True)
    await ready.verify()
    assert (await ready.gate()).ready


REWRITTEN = {
    "emptied": "TRUNCATE dst",
    "emptied and filled again": "CREATE TABLE kept AS TABLE dst; TRUNCATE dst; INSERT INTO dst TABLE kept; DROP TABLE kept",
    "rewritten": "VACUUM FULL dst",
}


@pytest.mark.parametrize("where", ["one", "two"])
@pytest.mark.parametrize("how", REWRITTEN)
async def test_a_target_whose_file_is_another_since_it_was_verified(
    databases: TwoDatabases, how: str, where: str
) -> None:
    house = one(databases.source, verify=Verify.AFTER) if where == "one" else two(databases, verify=Verify.AFTER)
    if where == "one":
        await house.install()
    await house.run()
    assert (await house.gate()).ready
    house.target.sql(REWRITTEN[how])
    check = await house.only("verified")
    assert "public.dst" in check.detail
    assert check.remedy == "backfill verify job"
    await house.verify()
    assert (await house.gate()).ready is (how != "emptied")


async def test_a_target_that_is_emptied_while_it_is_verified(ready: House) -> None:
    """What was compared before that agreed."""
    ready.target.sql("UPDATE dst SET n = -1 WHERE id = 1")
    run = LocalVerification(ready.spec, settle_s=2)
    task = asyncio.create_task(run.run())
    while ready.target.sql("SELECT phase FROM backfill.job").strip() != "confirm":
        await asyncio.sleep(0.02)
    ready.target.sql("TRUNCATE dst; INSERT INTO dst TABLE src LIMIT 1")
    await task
    assert ready.target.sql("SELECT outcome FROM backfill.verification ORDER BY id DESC LIMIT 1").strip() == "passed"
    assert "emptied" in (await ready.only("verified")).detail


PARTITIONED = """
CREATE TABLE {0} (id int PRIMARY KEY, n int, note text) PARTITION BY RANGE (id);
CREATE TABLE {0}_old PARTITION OF {0} FOR VALUES FROM (-100) TO (0);
CREATE TABLE {0}_now PARTITION OF {0} FOR VALUES FROM (0) TO (1000);
"""


@on_each_major
async def test_one_partition_of_the_target_is_emptied_and_another_comes(database: FreshDatabase) -> None:
    database.sql(SOURCE + PARTITIONED.format("dst"))
    house = House(database, database, into(database, "src", database, "dst", chunk=CHUNK, verify=Verify.AFTER))
    await house.install()
    await house.run()
    database.sql("CREATE TABLE dst_new PARTITION OF dst FOR VALUES FROM (1000) TO (2000)")
    assert (await house.gate()).ready
    database.sql("TRUNCATE dst_now")
    detail = (await house.only("verified")).detail
    assert "dst_now" in detail
    assert "dst_old" not in detail


# -- schema -----------------------------------------------------------------------------------------------------------

CHANGES = {
    "column added to the source": ("ALTER TABLE src ADD extra int", "src", "extra"),
    "column added to the target": ("ALTER TABLE dst ADD extra int", "dst", "extra"),
    "column renamed": ("ALTER TABLE src RENAME note TO remark", "src", "note"),
    "type widened": ("ALTER TABLE dst ALTER n TYPE bigint", "dst", "n"),
    "type that does not fit": ("ALTER TABLE dst ALTER n TYPE uuid USING NULL", "dst", "n"),
    "column dropped": ("ALTER TABLE dst DROP note", "dst", "note"),
    "unique index dropped": ("DROP INDEX dst_pair", "dst", "dst_pair"),
    "key of the source dropped": ("ALTER TABLE src DROP CONSTRAINT src_pkey", "src", "key"),
    "key of the target dropped": ("ALTER TABLE dst DROP CONSTRAINT dst_pkey", "dst", "dst"),
    "nullable": ("ALTER TABLE dst ALTER note SET NOT NULL", "dst", "note"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_schema_that_has_changed(databases: TwoDatabases, change: str) -> None:
    house = two(databases, verify=Verify.AFTER)
    await house.run()
    sql, table, what = CHANGES[change]
    (house.source if table == "src" else house.target).sql(sql)
    wrong = {check.name: check for check in (await house.gate()).checks if not check.ok}
    # A column of another type has its table written anew, too.
    assert set(wrong) == {"schema"} | ({"verified"} if change.startswith("type") else set())
    check = wrong["schema"]
    assert what in check.detail, check.detail
    assert table in check.detail, check.detail


async def test_an_index_that_only_makes_things_faster_changes_nothing(ready: House) -> None:
    ready.target.sql("CREATE INDEX ON dst (n); VACUUM FULL src; ANALYZE dst")
    assert (await ready.gate()).ready


async def test_a_file_that_means_another_job_is_refused(ready: House) -> None:
    ready.spec = ready.spec.model_copy(update={"where": "n > 5"})
    with pytest.raises(SpecChanged):
        await look_at_gate(ready.spec)


# -- dual-write -------------------------------------------------------------------------------------------------------


async def test_no_triggers_and_no_declaration(database: FreshDatabase) -> None:
    house = one(database, verify=Verify.AFTER)
    await house.run()
    check = await house.only("dual_write")
    assert "accept: [DUAL_WRITE_MISSING]" in check.remedy
    house.spec = house.spec.model_copy(update=DECLARED)  # as the remedy says, in the file
    assert (await house.gate()).ready


BROKEN = {
    "dropped": "DROP TRIGGER {0} ON src",
    "disabled": "ALTER TABLE src DISABLE TRIGGER {0}",
    "disabled and enabled again": "ALTER TABLE src DISABLE TRIGGER {0}; ALTER TABLE src ENABLE ALWAYS TRIGGER {0}",
    "for some sessions only": "ALTER TABLE src ENABLE REPLICA TRIGGER {0}",
}


@pytest.mark.parametrize("how", BROKEN)
async def test_triggers_that_were_not_in_place_all_the_while(ready: House, how: str) -> None:
    ready.source.sql(BROKEN[how].format(f'"{ready.triggers[0]}"'))
    check = await ready.only("dual_write")
    assert "backfill restart" in check.remedy
    if how == "disabled and enabled again":
        assert "switched off" in check.detail
    else:
        assert ready.triggers[0] in check.detail


async def test_a_function_that_was_replaced(ready: House) -> None:
    name = ready.source.sql(
        "SELECT p.oid::regproc FROM pg_proc p JOIN pg_trigger t ON t.tgfoid = p.oid WHERE t.tgrelid = 'src'::regclass LIMIT 1"
    ).strip()
    body = "BEGIN RETURN NULL; END"
    ready.source.sql(
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS '{body}'"
    )
    check = await ready.only("dual_write")
    assert "function" in check.detail


@on_each_major
async def test_an_old_partition_of_the_source_that_goes_closes_no_gate(database: FreshDatabase) -> None:
    database.sql(
        PARTITIONED.format("src")
        + "INSERT INTO src SELECT g, g, 'x' FROM generate_series(1, 500) g; ANALYZE src;"
        + TARGET
    )
    house = House(database, database, into(database, "src", database, "dst", chunk=CHUNK))
    await house.install()
    await house.run()
    database.sql("DROP TABLE src_old")
    await house.verify()
    assert (await house.gate()).ready
    database.sql("CREATE TABLE src_next PARTITION OF src FOR VALUES FROM (1000) TO (2000); VACUUM FULL src_now")
    assert (await house.gate()).ready
    database.sql(f'ALTER TABLE src_now DISABLE TRIGGER "{house.triggers[0]}"')
    assert (await house.only("dual_write")).detail


# -- quarantine -------------------------------------------------------------------------------------------------------


async def test_a_row_in_quarantine(database: FreshDatabase) -> None:
    house = one(database, errors=Errors(max_quarantined=5))
    await house.install()
    await house.run()
    database.sql(
        "INSERT INTO backfill.quarantine (job_id, key, error_class, sqlstate) SELECT id, '{7}', 'odd', '22P02' FROM backfill.job"
    )
    await house.verify()
    check = await house.only("quarantine")
    assert check.detail.startswith("1 row ")
    assert "quarantine list job" in check.remedy


async def test_a_retry_of_a_row_after_the_verification_wants_another(ready: House) -> None:
    ready.target.sql("UPDATE backfill.job SET moved_at = clock_timestamp()")
    assert "after the verification began" in (await ready.only("verified")).detail


# -- the target's server ----------------------------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(16, tcp=True, settings={"log_min_messages": "fatal"}) as server:
        yield server


@pytest.fixture
async def apart(own_server: EmbeddedServer, make_database: Callable[..., FreshDatabase]) -> House:
    """Its target on a server of its own."""
    house = two(TwoDatabases(make_database(), make_database(on=own_server)), verify=Verify.AFTER)
    await house.run()
    assert (await house.gate()).ready
    return house


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_target_that_was_restarted_or_crashed_until_it_is_verified_again(apart: House, mode: str) -> None:
    apart.target.server.restart(mode)
    check = await apart.only("server")
    assert "restarted" in check.detail
    assert check.remedy == "backfill verify job"
    await apart.verify()
    assert (await apart.gate()).ready


async def test_a_restarted_source_is_nothing_to_the_gate(
    own_server: EmbeddedServer, make_database: Callable[..., FreshDatabase]
) -> None:
    house = two(TwoDatabases(make_database(on=own_server), make_database()), verify=Verify.AFTER)
    await house.run()
    own_server.restart()
    assert (await house.gate()).ready


async def test_a_verification_from_before_the_crash_does_not_count(apart: House) -> None:
    """It began on the server as it was, and compared some rows before they were lost."""
    apart.target.sql("UPDATE dst SET n = -1 WHERE id = 1")
    run = LocalVerification(apart.spec, settle_s=4)
    task = asyncio.create_task(run.run())
    leased = "SELECT count(*) FROM backfill.span WHERE phase = 'confirm' AND lease_until IS NOT NULL"
    while apart.target.sql(leased).strip() == "0":
        await asyncio.sleep(0.02)
    apart.target.sql("UPDATE dst SET n = 1 WHERE id = 1")
    apart.target.server.restart("immediate")
    with suppress(CannotConnect):  # it may have met the server while that was away; then somebody goes on with it
        await task
    if apart.target.sql("SELECT phase FROM backfill.job").strip() != "end":
        await apart.verify()
    assert (
        apart.target.sql("SELECT count(*), max(outcome) FROM backfill.verification WHERE id > 1").strip() == "1|passed"
    )
    assert (await apart.only("server")).remedy == "backfill verify job"


@pytest.mark.slow
async def test_a_standby_that_was_promoted_until_it_is_verified(make_database: Callable[..., FreshDatabase]) -> None:
    with standby_pair(16) as pair:
        target = create_database(pair.primary)  # gone with its server
        house = two(TwoDatabases(make_database(), target), verify=Verify.AFTER)
        await house.run()
        assert (await house.gate()).ready
        pair.wait_replayed()
        pair.primary.stop("immediate")
        pair.standby.promote()
        there = FreshDatabase(pair.standby, target.name)
        moved = two_specs(house, there)
        assert (await moved.only("server")).remedy == "backfill verify job"
        await moved.verify()
        assert (await moved.gate()).ready


def two_specs(house: House, target: FreshDatabase) -> House:
    """The same job with its target elsewhere."""
    spec = into(house.source, "src", target, "dst", chunk=CHUNK, verify=Verify.AFTER, **DECLARED)
    return House(house.source, target, spec)
