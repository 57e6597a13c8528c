"""Signals that users write as SQL: exactly one number, read-only, under the job's role."""

from __future__ import annotations

import asyncio

import pytest

from engine.clock import SystemClock
from engine.db import Database
from engine.model import Side
from engine.pace.law import SignalPolicy, Unit
from engine.watch.custom import SqlProbe
from engine.watch.probe import explain
from tests.support.databases import FreshDatabase, on_each_major

pytestmark = on_each_major

CLOCK = SystemClock()


def asking(database: FreshDatabase, query: str, role: str | None = None) -> SqlProbe:
    policy = SignalPolicy(name="queue", unit=Unit.COUNT)
    return SqlProbe(policy, Database(database.dsn, side=Side.SOURCE, job="job", role=role), query, 1.0, CLOCK)


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("SELECT count(*) FROM jobs", 3),
        ("select 2.5 -- of something", 2.5),
        ("SELECT 1e300::float8", 1e300),
        ("SELECT 7::smallint", 7),
        ("WITH w AS (SELECT 4 AS n) SELECT n FROM w", 4),
        ("VALUES (0)", 0),
        ("SELECT a FROM jobs ORDER BY a LIMIT 1", 1),
    ],
)
async def test_one_number(database: FreshDatabase, query: str, value: float) -> None:
    database.sql("CREATE TABLE jobs AS SELECT generate_series(1, 3) AS a")
    probe = asking(database, query)
    assert (await probe.read()).value == value
    await probe.close()


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("SELECT NULL::int", "is NULL"),
        ("SELECT 1 WHERE false", "no row"),
        ("SELECT generate_series(1, 1000000000)", "more than one row"),
        ("SELECT 1, 2", "2 columns"),
        ("SELECT 'secret'", "not a number"),
        ("SELECT true", "not a number"),
        ("SELECT 'NaN'::float8", "not a finite number"),
        ("SELECT 'infinity'::numeric", "not a finite number"),
        ("SELECT -1", "negative"),
        ("SELECT 1 / 0", "division by zero"),
        ("SELECT 'secret'::int", "cannot be read as its type"),
        ("SELECT nothing FROM nowhere", "does not exist"),
        ("SELECT nextval('numbers')", "read-only transaction"),
        ("WITH d AS (DELETE FROM jobs RETURNING 1) SELECT count(*) FROM d", "top level"),
        ("SELECT 1) AS answer; DELETE FROM jobs; SELECT * FROM (SELECT 1", "multiple commands"),
        ("SELECT 1 FROM (SELECT pg_sleep(30)) AS s", "timed out after 1s"),
    ],
)
async def test_whatever_else_is_a_failure_that_tells_no_values(database: FreshDatabase, query: str, error: str) -> None:
    database.sql("CREATE SEQUENCE numbers; CREATE TABLE jobs AS SELECT generate_series(1, 3) AS a")
    probe = asking(database, query)
    with pytest.raises(Exception) as caught:
        await probe.read()
    told = explain(caught.value)
    assert error in told
    assert "secret" not in told
    assert database.sql("SELECT count(*) FROM jobs") == "3"
    await probe.close()


SNEAK = "CREATE FUNCTION public.sneak() RETURNS int LANGUAGE sql AS $$ DELETE FROM public.jobs RETURNING 1 $$"


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("SELECT length(set_config('transaction_read_only', 'off', true)) + sneak()", "read-write mode"),
        ("SELECT length(set_config('transaction_read_only', 'off', false)) + sneak()", "read-write mode"),
        (
            "select E'\\'') AS answer; COMMIT; BEGIN READ WRITE; DROP TABLE jobs; COMMIT; SELECT * FROM (SELECT 1 --'",
            "multiple commands",
        ),
        ("select E'\\'') AS answer; drop table jobs; SELECT * FROM (SELECT 1 --'", "multiple commands"),
    ],
)
async def test_no_query_writes(database: FreshDatabase, query: str, error: str) -> None:
    database.sql(f"CREATE TABLE jobs AS SELECT 1 AS a; {SNEAK}")
    probe = asking(database, query)
    for _ in range(2):
        with pytest.raises(Exception, match=error):
            await probe.read()
    await probe.close()
    assert database.sql("SELECT count(*) FROM jobs") == "1"


async def test_no_query_lets_the_next_one_write(database: FreshDatabase) -> None:
    database.sql(f"CREATE TABLE jobs AS SELECT 1 AS a; {SNEAK}")
    setting = "length(set_config('default_transaction_read_only', 'off', false))"
    probe = asking(
        database, f"SELECT CASE current_setting('transaction_read_only') WHEN 'off' THEN sneak() ELSE {setting} END"
    )
    for _ in range(3):
        assert (await probe.read()).value == len("off")
    await probe.close()
    assert database.sql("SELECT count(*) FROM jobs") == "1"


async def test_the_role_of_the_job_asks(database: FreshDatabase) -> None:
    name = f"asker_{database.name}"
    database.sql(f'CREATE ROLE "{name}"; CREATE TABLE jobs AS SELECT 1 AS a')
    try:
        probe = asking(database, "SELECT count(*) FROM jobs", role=name)
        with pytest.raises(Exception, match="permission denied"):
            await probe.read()
        database.sql(f'GRANT SELECT ON jobs TO "{name}"')
        assert (await probe.read()).value == 1
        await probe.close()
    finally:
        database.sql(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


async def test_after_a_time_out_it_asks_again(database: FreshDatabase) -> None:
    database.sql("CREATE TABLE jobs AS SELECT 1 AS a")
    probe = asking(database, "SELECT count(*) FROM jobs")
    assert (await probe.read()).value == 1
    holder = await database.connect()
    await holder.execute("BEGIN; LOCK TABLE jobs")
    with pytest.raises(Exception, match="timed out"):
        await asyncio.wait_for(probe.read(), 5)
    await holder.execute("ROLLBACK")
    assert (await probe.read()).value == 1
    await probe.close()
