"""Every finding of preflight, in a situation made on a real server, and gone again when that is mended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import engine.plan.preflight.servers
import engine.watch.rights
from engine.embedded import EmbeddedServer
from engine.flow import dual_write_change
from engine.flow.prepare import Inspection
from engine.model import Severity
from engine.plan.preflight import Code
from engine.spec import Bloat, SignalKind, SignalSpec
from tests.support.databases import FreshDatabase, Servers, create_database, drop_database, on_each_major
from tests.support.findings import BASE, Job, Situation, fill, move, pretend
from tests.support.ground import Ground, expect, look, noticed_and_gone, of_code
from tests.support.jobs import in_place, into
from tests.support.situations import OPEN, SHUT, SITUATIONS, watching
from tests.support.standby import standby_pair
from tests.support.transform_situations import TRANSFORM_SITUATIONS


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS.keys())
async def test_the_situation_is_noticed_and_its_end_too(grounds: Callable[[int], Ground], situation: Situation) -> None:
    await noticed_and_gone(grounds(situation.major), situation)


# -- what needs more than a schema -----------------------------------------------------------------------------------


async def test_triggers_of_an_older_spec_are_refused(grounds: Callable[[int], Ground]) -> None:
    ground = grounds(16)
    schema = ground.begin()
    installed = await look(ground.spec(fill(), schema))
    assert of_code(installed, Code.DUAL_WRITE_OUTDATED) == []
    connection = await installed.endpoints.source.connect("test")
    await dual_write_change.install(connection, installed.prepared())
    await connection.close()
    good = await look(ground.spec(fill(), schema))
    for code in (Code.DUAL_WRITE_OUTDATED, Code.DUAL_WRITE_MISSING, Code.TRIGGERS_ON_SOURCE):
        assert of_code(good, code) == []
    changed = await look(ground.spec(replace(fill(), sets={"cents": "(amount * 1000)::bigint"}), schema))
    expect(changed, Code.DUAL_WRITE_OUTDATED, f"{schema}.orders", "backfill dualwrite FILE --install")
    assert of_code(changed, Code.TRIGGERS_ON_SOURCE) == [], "they are said to be outdated, not to be accepted"
    ground.sql("ALTER TABLE orders DISABLE TRIGGER USER", schema)
    expect(await look(ground.spec(fill(), schema)), Code.DUAL_WRITE_OUTDATED)


async def test_whoever_is_long_in_a_transaction_is_named(
    grounds: Callable[[int], Ground], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.watch.rights, "HELD_FOR_S", 0.05)
    ground = grounds(16)
    schema = ground.begin()
    growing = fill(bloat=Bloat(max_growth=0.2))
    reader = await ground.here.connect(server_settings={"application_name": "report"})
    try:
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        await reader.execute("SELECT pg_sleep(0.1)")
        name = f"pid {reader.get_server_pid()} report since"
        held = await look(ground.spec(growing, schema))
        expect(held, Code.LONG_TRANSACTION, name, "source database")
        expect(held, Code.VACUUM_HELD_BACK, name, "20%")
        await reader.execute("COMMIT")
        for code in (Code.LONG_TRANSACTION, Code.VACUUM_HELD_BACK):
            assert of_code(await look(ground.spec(growing, schema)), code) == []
        await reader.execute(f"BEGIN; CREATE TABLE {schema}.held (); PREPARE TRANSACTION 'held'")
        await reader.execute("SELECT pg_sleep(0.1)")
        expect(await look(ground.spec(fill(), schema)), Code.LONG_TRANSACTION, "prepared transaction of postgres")
    finally:
        await reader.execute("ROLLBACK PREPARED 'held'")
        await ground.here.close()


async def test_a_server_that_nobody_has_tried_is_told(
    grounds: Callable[[int], Ground], monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = grounds(18)
    schema = ground.begin()
    assert of_code(await look(ground.spec(fill(), schema)), Code.SERVER_UNTESTED) == []
    monkeypatch.setattr(engine.plan.preflight.servers, "UNTESTED_VERSION_NUM", 180000)
    expect(await look(ground.spec(fill(), schema)), Code.SERVER_UNTESTED, "PostgreSQL 18")


async def test_text_of_another_encoding_is_told(grounds: Callable[[int], Ground], servers: Servers) -> None:
    ground = grounds(16)
    schema = ground.begin()
    west = create_database(servers.get(16), "ENCODING 'LATIN1' LOCALE 'C'")
    try:
        west.sql(BASE.replace(":schema", schema))
        there = into(ground.here, f"{schema}.orders", west, f"{schema}.orders_v2")
        expect(await look(there), Code.ENCODINGS_DIFFER, "UTF8", "LATIN1", "(columns note)")
        back = into(west, f"{schema}.orders", ground.here, f"{schema}.orders_v2")
        assert of_code(await look(back), Code.ENCODINGS_DIFFER) == []
    finally:
        drop_database(west)


def test_a_standby_is_no_source_and_a_reason_to_watch_its_lag() -> None:
    with standby_pair(16) as pair:
        primary = FreshDatabase(pair.primary, "postgres")
        primary.sql(BASE.replace(":schema", "shop") + pretend(2e6))
        pair.wait_replayed()

        def findings(server: EmbeddedServer, **settings: Any) -> Inspection:
            spec = in_place(FreshDatabase(server, "postgres"), "shop.orders", {"cents": "1"}, **settings)
            return asyncio.run(look(spec))

        expect(findings(pair.standby), Code.READ_ONLY_SERVER, "source")
        seen = findings(pair.primary)
        assert of_code(seen, Code.READ_ONLY_SERVER) == []
        name = pair.primary.sql("SELECT application_name FROM pg_stat_replication")
        expect(seen, Code.STANDBYS, f"({name})", "replication_lag")
        watched = watching(SignalSpec(kind=SignalKind.REPLICATION_LAG))
        assert of_code(findings(pair.primary, pace=watched), Code.STANDBYS) == []


ELSEWHERE = {
    Code.DUAL_WRITE_OUTDATED,
    Code.LONG_TRANSACTION,
    Code.VACUUM_HELD_BACK,
    Code.SERVER_UNTESTED,
    Code.ENCODINGS_DIFFER,
    Code.READ_ONLY_SERVER,
    Code.STANDBYS,
}
"""Codes whose situations are made by tests of their own."""


def test_no_code_is_without_a_situation() -> None:
    every = [*SITUATIONS.values(), *TRANSFORM_SITUATIONS.values()]
    assert {situation.code for situation in every} | ELSEWHERE == set(Code)


# -- and nothing where nothing is wrong ------------------------------------------------------------------------------


@on_each_major
@pytest.mark.parametrize("job", [fill(), move()], ids=["in place", "insert"])
async def test_a_healthy_job_with_dual_write_has_nothing_to_report(
    grounds: Callable[[int], Ground], server: EmbeddedServer, job: Job
) -> None:
    ground = grounds(server.major)
    schema = ground.begin(OPEN)
    try:
        installed = await look(ground.spec(job, schema))
        connection = await installed.endpoints.source.connect("test")
        await dual_write_change.install(connection, installed.prepared())
        await connection.close()
        ground.sql(
            "GRANT USAGE ON SCHEMA backfill TO :plain; GRANT ALL ON ALL TABLES IN SCHEMA backfill TO :plain", schema
        )
        seen = await look(ground.spec(replace(job, user=":plain"), schema))
        assert seen.findings == ()
    finally:
        ground.sql(f"{SHUT}; DROP SCHEMA backfill CASCADE", schema)
        ground.sql("DROP TABLE orders CASCADE", schema)


@on_each_major
async def test_what_is_asked_is_asked_of_odd_names_too(
    grounds: Callable[[int], Ground], server: EmbeddedServer
) -> None:
    ground = grounds(server.major)
    schema = ground.begin()
    ground.sql(
        'ALTER TABLE orders RENAME TO "Or""der s"; ALTER TABLE "Or""der s" RENAME cents TO "Ce nts";'
        'CREATE INDEX "I x" ON "Or""der s" (("Ce nts" + 1));'
        'ALTER TABLE "Or""der s" ADD CONSTRAINT "C k" CHECK (amount > 0) NOT VALID',
        schema,
    )
    seen = await look(ground.spec(Job(source='Or"der s', sets={"Ce nts": "1"}), schema))
    assert not [f for f in seen.findings if f.severity is Severity.REFUSE], seen.findings
    expect(seen, Code.HOT_UPDATES, "I x")
    expect(seen, Code.CONSTRAINTS_NOT_VALID, "C k", '"Or""der s"')
