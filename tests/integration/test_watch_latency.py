"""The read and the commit probe on real servers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable

import pytest

from engine.clock import SystemClock
from engine.db import Database
from engine.embedded import EmbeddedServer
from engine.ledger.store import Ledger
from engine.model import KeyColumn, KeyValue, Side, TableName
from engine.pace.law import Reading, SignalPolicy, Unit
from engine.watch import ProbeFailed, Watcher
from engine.watch.latency import CommitProbe, QueryProbe, ReadProbe
from tests.support.databases import FreshDatabase, on_each_major, on_the_newest_and_long_on_others
from tests.support.gate import Gate

POLICY = SignalPolicy(name="latency", unit=Unit.SECONDS)
CLOCK = SystemClock()
TABLE = TableName("public", "t")
ID = (KeyColumn("id", "bigint", 20, "int"),)
PAIR = (KeyColumn("a", "integer", 23, "int"), KeyColumn("b", "text", 25, "text", '"pg_catalog"."C"'))


def anywhere(low: int = 0, high: int = 1000) -> Callable[[], KeyValue]:
    rng = random.Random(5)
    return lambda: (str(rng.randint(low, high)),)


def make_rows(database: FreshDatabase) -> None:
    database.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) i"
    )


def at(database: FreshDatabase, dsn: str = "", **options: str) -> Database:
    return Database(dsn or database.dsn, side=Side.TARGET, job="job", **options)


@on_each_major
async def test_a_read_takes_time_and_touches_the_row(database: FreshDatabase) -> None:
    make_rows(database)
    database.sql("VACUUM ANALYZE t")  # an index-only scan would now be possible
    probe = ReadProbe(POLICY, at(database), TABLE, ID, anywhere(), CLOCK)
    for _ in range(20):
        assert 0 < (await probe.read()).value < 1
    await probe.close()
    await asyncio.sleep(0)
    counted = ""
    for _ in range(100):  # a session reports what it read when it ends
        counted = database.sql("SELECT idx_scan, idx_tup_fetch > 0 FROM pg_stat_user_tables WHERE relname = 't'")
        if counted.endswith("t"):
            break
        database.sql("SELECT pg_sleep(0.05)")
    assert counted.endswith("|t")


@on_each_major
async def test_reads_of_a_partitioned_table_with_a_key_of_two_columns(database: FreshDatabase) -> None:
    database.sql(
        'CREATE TABLE t (a int, b text COLLATE "C", v text, PRIMARY KEY (a, b)) PARTITION BY RANGE (a);'
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20);"
        "INSERT INTO t SELECT i, 'it''s', 'v' FROM generate_series(0, 19) i"
    )
    probe = ReadProbe(POLICY, at(database), TABLE, PAIR, lambda: ("7", "it's"), CLOCK)
    assert (await probe.read()).value > 0
    await probe.close()


@on_each_major
@pytest.mark.parametrize("key", [None, ("5000",)], ids=["no key known", "past the end"])
async def test_reads_need_neither_rows_nor_keys(database: FreshDatabase, key: KeyValue | None) -> None:
    database.sql("CREATE TABLE t (id bigint PRIMARY KEY)")
    probe = ReadProbe(POLICY, at(database), TABLE, ID, lambda: key, CLOCK)
    assert (await probe.read()).value > 0
    await probe.close()


@on_each_major
async def test_a_query_of_the_user_gets_existing_keys_of_any_type(database: FreshDatabase) -> None:
    database.sql(
        'CREATE SCHEMA shop; CREATE TABLE shop.t (a int, b text COLLATE "C", PRIMARY KEY (a, b));'
        "INSERT INTO shop.t SELECT i, E'\\\\it''s' FROM generate_series(1, 9) i;"
        f'ALTER DATABASE "{database.name}" SET search_path = shop;'
        "CREATE FUNCTION shop.known(a int, b text) RETURNS int LANGUAGE plpgsql AS"
        " $$ BEGIN IF NOT EXISTS (SELECT FROM shop.t WHERE t.a = $1 AND t.b = $2)"
        " THEN RAISE EXCEPTION 'no such key'; END IF; RETURN 1; END $$"
    )
    rng = random.Random(1)
    for query in ("SELECT known($1, $2)", "SELECT * FROM t WHERE a = $1 -- $3", "SELECT 1"):
        probe = QueryProbe(
            POLICY, at(database), query, TableName("shop", "t"), PAIR, lambda: (str(rng.randint(0, 12)), "a"), CLOCK
        )
        for _ in range(10):
            assert (await probe.read()).value > 0
        await probe.close()


@on_each_major
async def test_a_query_of_the_user_cannot_write(database: FreshDatabase) -> None:
    make_rows(database)
    database.sql("CREATE FUNCTION public.sneak() RETURNS int LANGUAGE sql AS $$ DELETE FROM public.t RETURNING 1 $$")
    probe = QueryProbe(POLICY, at(database), "SELECT public.sneak()", TABLE, ID, anywhere(), CLOCK)
    with pytest.raises(ProbeFailed, match="read-only"):
        await probe.read()
    await probe.close()
    assert database.sql("SELECT count(*) FROM t") == "1000"


@on_each_major
@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("SELECT 1; COMMIT; BEGIN READ WRITE; DROP TABLE public.t; COMMIT", "multiple commands"),
        ("select E'\\''; COMMIT; BEGIN READ WRITE; drop table public.t; COMMIT; --'", "multiple commands"),
        ("SELECT length(set_config('transaction_read_only', 'off', true)) + public.sneak()", "read-write mode"),
    ],
)
async def test_a_query_of_the_user_is_one_statement_that_reads(database: FreshDatabase, query: str, error: str) -> None:
    make_rows(database)
    database.sql("CREATE FUNCTION public.sneak() RETURNS int LANGUAGE sql AS $$ DELETE FROM public.t RETURNING 1 $$")
    probe = QueryProbe(POLICY, at(database), query, TABLE, ID, anywhere(), CLOCK)
    with pytest.raises(ProbeFailed, match=error):
        await probe.read()
    await probe.close()
    assert database.sql("SELECT count(*) FROM t") == "1000"


@on_each_major
async def test_a_query_of_the_user_lets_no_later_one_write(database: FreshDatabase) -> None:
    make_rows(database)
    database.sql("CREATE FUNCTION public.sneak() RETURNS int LANGUAGE sql AS $$ DELETE FROM public.t RETURNING 1 $$")
    setting = "length(set_config('default_transaction_read_only', 'off', false))"
    query = f"SELECT CASE current_setting('transaction_read_only') WHEN 'off' THEN public.sneak() ELSE {setting} END"
    probe = QueryProbe(POLICY, at(database), query, TABLE, ID, anywhere(), CLOCK)
    for _ in range(3):
        assert (await probe.read()).value > 0
    await probe.close()
    assert database.sql("SELECT count(*) FROM t") == "1000"


@on_each_major
async def test_a_query_that_fails_leaves_a_session_that_works(database: FreshDatabase) -> None:
    make_rows(database)
    keys = iter([("1",), ("1",), ("500",), ("1",)])
    query = "SELECT 1 / ($1::bigint - 501)"
    probe = QueryProbe(POLICY, at(database), query, TABLE, ID, lambda: next(keys), CLOCK)
    assert (await probe.read()).value > 0
    with pytest.raises(Exception, match="division by zero"):
        await probe.read()
    assert (await probe.read()).value > 0
    await probe.close()


@on_each_major
async def test_a_commit_is_as_durable_as_everybody_elses(database: FreshDatabase) -> None:
    connection = await at(database).connect("setup")
    await Ledger(connection).ensure()
    # The probe must not see "off", as our data sessions do: the trigger would let it fail.
    await connection.execute(
        "CREATE FUNCTION public.durable() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('synchronous_commit') <> 'on' THEN RAISE EXCEPTION 'not durable'; END IF;"
        " RETURN new; END $$;"
        "CREATE TRIGGER durable BEFORE INSERT OR UPDATE ON backfill.heartbeat"
        " FOR EACH ROW EXECUTE FUNCTION public.durable()"
    )
    probe = CommitProbe(POLICY, at(database), 11, CLOCK)
    for _ in range(5):
        assert 0 < (await probe.read()).value < 5
    assert await connection.fetchval("SELECT array_agg(id::int4) FROM backfill.heartbeat") == [3]
    await probe.close()
    await connection.close()


@on_each_major
async def test_a_role_that_commits_otherwise_is_followed(database: FreshDatabase) -> None:
    database.sql(f'ALTER DATABASE "{database.name}" SET synchronous_commit = local')
    connection = await at(database).connect("setup")
    await Ledger(connection).ensure()
    await connection.execute(
        "CREATE FUNCTION public.local() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('synchronous_commit') <> 'local' THEN RAISE EXCEPTION 'another'; END IF;"
        " RETURN new; END $$;"
        "CREATE TRIGGER local BEFORE INSERT OR UPDATE ON backfill.heartbeat FOR EACH ROW EXECUTE FUNCTION public.local()"
    )
    probe = CommitProbe(POLICY, at(database), 0, CLOCK)
    assert (await probe.read()).value > 0
    await probe.close()
    await connection.close()


async def readings(watcher: Watcher, seconds: float) -> list[Reading]:
    await CLOCK.sleep(seconds)
    return list(watcher.take())


@on_the_newest_and_long_on_others
async def test_a_frozen_server_process_shows_at_once_and_stops_nobody_else(database: FreshDatabase) -> None:
    make_rows(database)
    connection = await at(database).connect("setup")
    await Ledger(connection).ensure()
    policies = [SignalPolicy(name=name, unit=Unit.SECONDS) for name in ("read", "commit")]
    read = ReadProbe(policies[0], at(database), TABLE, ID, anywhere(), CLOCK)
    commit = CommitProbe(policies[1], at(database), 0, CLOCK)
    watcher = Watcher([read, commit], clock=CLOCK, rng=random.Random(1))
    await watcher.start()
    await readings(watcher, 0.5)
    pid = int(database.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'backfill/job/read probe'"))
    os.kill(pid, signal.SIGSTOP)
    try:
        seen = await readings(watcher, 1.5)
        values = [r.value or 0 for r in seen if r.signal == "read"]
        assert values[-1] > 1.0
        assert len([value for value in values if value > 0.15]) > 8
        assert all((r.value or 9) < 0.5 for r in seen if r.signal == "commit")
        assert len([r for r in seen if r.signal == "commit"]) > 10
    finally:
        os.kill(pid, signal.SIGCONT)
    seen = await readings(watcher, 1.0)
    assert (seen[-1].value or 9) < 0.5
    await watcher.close()
    await connection.close()


async def test_a_cut_wire_fails_until_it_is_mended(server: EmbeddedServer, database: FreshDatabase) -> None:
    make_rows(database)
    async with Gate(server.host, server.port) as gate:
        probe = ReadProbe(POLICY, at(database, gate.dsn(database.dsn)), TABLE, ID, anywhere(), CLOCK)
        watcher = Watcher([probe], clock=CLOCK, rng=random.Random(1))
        await watcher.start()
        assert all(r.value is not None for r in await readings(watcher, 0.5))
        gate.refusing = True
        gate.reset_all()
        seen = await readings(watcher, 1.0)
        failed = [r for r in seen if r.value is None]
        assert len(failed) > 5
        assert seen[-1].value is None
        assert "127.0.0.1" in failed[-1].error
        gate.heal()
        async with asyncio.timeout(10):
            while (await readings(watcher, 0.1) or failed)[-1].value is None:
                pass
        await watcher.close()
        assert not gate.wires
