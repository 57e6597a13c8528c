"""What a daemon lends to the jobs of a ledger, whoever wrote them there: its operator's, and nothing they bring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.errors import SpecError, UsageError
from engine.fleet import Pool
from engine.ledger.orders import PaceOrders
from engine.ledger.records import JobRecord
from engine.model import JobState, Mode, Phase
from engine.service.access import ALL_SCOPES, Identity
from engine.service.admission import admit
from engine.service.config import Config, read_config
from engine.service.lender import Lender
from engine.spec import Dsn, JobSpec, parse_spec
from tests.support.databases import TwoDatabases
from tests.support.jobs import run

CANARY = "s3cr3t-canary"
HERE, THERE = f"host=here password={CANARY}", f"host=there password={CANARY}"
ANYBODY = Identity("argo", "token", ALL_SCOPES)
ENV = {"SOURCE_DSN": "host=by-hand", "TARGET_DSN": "host=by-hand-too"}


def config_with(here: dict[str, Any] | None = None, there: dict[str, Any] | None = None, **sections: Any) -> Config:
    connections = {
        "main": {"dsn": HERE, "work": True, "tables": ["public.*"]} | (here or {}),
        "old": {"dsn": THERE, "tables": ["public.orders"]} | (there or {}),
    }
    return read_config({"connections": connections} | sections, {})


def record(spec: dict[str, Any], mode: Mode) -> JobRecord:
    return JobRecord(
        id=1, name="job", mode=mode, state=JobState.RUNNING, phase=Phase.MOVE, source="s", target="t", identity={},
        spec=spec, fingerprint={}, key_types=("bigint",), rows_estimated=0, barrier_snapshot=None, waits_for=None,
        limit_rows_per_s=None, error_code=None, error_message=None, error_hint=None, resumable=False, reason=None,
        refreeze=False, started_at=None, move_end=None, sweep_end=None, orders=PaceOrders(), heap_bytes=None,
    )  # fmt: skip


def by_hand(text: str, mode: Mode) -> JobRecord:
    return record(parse_spec(text, ENV).for_ledger(), mode)


def lent(job: JobRecord, config: Config | None = None) -> JobSpec:
    config = config or config_with()
    return Lender(config, config.dsns({}), "main").spec_of(job)


def aside(job: JobRecord, config: Config | None = None) -> str:
    """The reason why it is not worked here."""
    with pytest.raises(UsageError) as caught:
        lent(job, config)
    assert CANARY not in repr([caught.value, caught.value.hint])
    assert caught.value.hint
    return f"{caught.value.message}; {caught.value.hint}"


IN_PLACE = by_hand("{source: {dsn: '${SOURCE_DSN}', table: public.orders}, set: {a: b + 1}, name: job}", Mode.UPDATE)
COPY = by_hand(
    "{source: {dsn: '${SOURCE_DSN}', table: public.orders}, target: {dsn: '${TARGET_DSN}', table: orders}, name: job}",
    Mode.COPY,
)
SUBMITTED = record(
    {"name": "job", "source": {"connection": "old", "table": "public.orders"},
     "target": {"connection": "main", "table": "public.orders"}},
    Mode.COPY,
)  # fmt: skip
STANDS_FOR = {"references": ["SOURCE_DSN"]}


# -- where it leads ---------------------------------------------------------------------------------------------------


def test_the_target_is_always_the_ledgers_own_database():
    for job in (IN_PLACE, SUBMITTED):
        spec = lent(job)
        target = spec.target.dsn if spec.target is not None else spec.source.dsn
        assert target is not None
        assert target.secret() == HERE
    elsewhere = replace(IN_PLACE, spec=IN_PLACE.spec | {"source": {"connection": "old", "table": "public.orders"}})
    found = lent(elsewhere).source.dsn
    assert found is not None
    assert found.secret() == HERE, "a job in place is in its ledger's database, whatever its row says"


def test_a_named_source_is_this_daemons_connection_of_that_name():
    spec = lent(SUBMITTED)
    assert spec.source.dsn == Dsn(THERE)
    assert spec.for_ledger()["source"] == SUBMITTED.spec["source"]
    unknown = replace(SUBMITTED, spec=SUBMITTED.spec | {"source": {"connection": "new", "table": "public.orders"}})
    assert "not configured here" in aside(unknown)


def test_a_variable_that_a_job_names_is_never_looked_up(monkeypatch):
    monkeypatch.setenv("SOURCE_DSN", "host=from-the-environment")
    assert "${SOURCE_DSN}" in aside(COPY)
    spec = lent(COPY, config_with(there=STANDS_FOR))
    assert spec.source.dsn == Dsn(THERE, reference="${SOURCE_DSN}")
    other = replace(COPY, spec=COPY.spec | {"source": {"dsn": {"reference": "${HOME}"}, "table": "public.orders"}})
    assert "${HOME}" in aside(other, config_with(there=STANDS_FOR))


@pytest.mark.parametrize("reference", [f"host=evil password={CANARY}", "${A}${B}", "", 5, None, {"x": 1}, ["${A}"]])
def test_a_reference_that_is_none_leads_nowhere(reference):
    job = replace(COPY, spec=COPY.spec | {"source": {"dsn": {"reference": reference}, "table": "public.orders"}})
    assert aside(job, config_with(there=STANDS_FOR))


@pytest.mark.parametrize("name", [5, ["old"], {"a": 1}, True])
def test_a_connections_name_that_is_no_text_leads_nowhere(name):
    job = replace(SUBMITTED, spec=SUBMITTED.spec | {"source": {"connection": name, "table": "public.orders"}})
    assert aside(job)


def test_who_works_a_job_does_not_rewrite_its_settings():
    config = config_with(there=STANDS_FOR)
    for job in (IN_PLACE, COPY, SUBMITTED):
        assert (
            lent(job, config).for_ledger()
            == lent(record(lent(job, config).for_ledger(), job.mode), config).for_ledger()
        )
        assert {key: lent(job, config).for_ledger()[key] for key in job.spec} == job.spec


def test_a_copy_without_a_target_would_write_where_only_reading_is_lent():
    job = record({"name": "job", "source": SUBMITTED.spec["source"], "set": {"a": "b"}}, Mode.COPY)
    assert "contradicts itself" in aside(job, config_with(allow={"expressions": True}))


@pytest.mark.parametrize("spec", [{"nonsense": 1}, {}, [], None, 5, {"source": 5}, {"source": {"table": {}}}], ids=repr)
def test_a_row_that_is_no_spec_is_refused(spec):
    for mode in Mode:
        with pytest.raises((SpecError, UsageError)):
            lent(record(spec, mode))


# -- what it may ask there --------------------------------------------------------------------------------------------


def test_another_connection_is_lent_for_the_tables_it_lists_alone():
    job = replace(SUBMITTED, spec=SUBMITTED.spec | {"source": {"connection": "old", "table": "public.salaries"}})
    assert "source.table" in aside(job)
    assert "source.connection" in aside(SUBMITTED, config_with({"sources": []}))
    assert lent(SUBMITTED, config_with({"sources": ["old"]}))


@pytest.mark.parametrize(
    "asks",
    [
        {"columns": {"id": "pg_read_file('x')"}},
        {"where": "f()"},
        {"pace": {"signals": [{"sql": {"name": "spy", "query": "select 1", "max": 1}}]}},
        {"pace": {"signals": [{"read_latency": {"query": "select 1"}}]}},
    ],
)
def test_sql_runs_on_another_connection_only_where_the_operator_lets_submitters_write_it(asks):
    job = replace(SUBMITTED, spec=SUBMITTED.spec | asks)
    assert "runs SQL on another connection" in aside(job)
    assert lent(job, config_with(allow={"expressions": True}))


def test_in_its_own_database_a_job_made_by_hand_keeps_its_expressions():
    assert dict(lent(IN_PLACE).set) == {"a": "b + 1"}


# -- as whom, and how fast --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [None, "postgres"])
def test_a_job_of_another_role_is_left_aside_with_the_reason(role):
    job = replace(IN_PLACE, spec=IN_PLACE.spec | ({"role": role} if role else {}))
    assert "role: mover" in aside(job, config_with({"role": "mover"}))


def test_where_the_operator_names_no_role_a_row_of_the_ledger_does_not_choose_one():
    job = replace(IN_PLACE, spec=IN_PLACE.spec | {"role": "pg_monitor"})
    assert "write role under [connections.NAME]" in aside(job)
    assert lent(IN_PLACE).role is None


def test_the_name_of_the_connection_that_a_job_reads_from_is_known_where_it_is_another():
    config = config_with(there=STANDS_FOR)
    lender = Lender(config, config.dsns({}), "main")
    assert [lender.source_of(job) for job in (IN_PLACE, COPY, SUBMITTED)] == [None, "old", "old"]


def test_a_job_of_the_operators_role_is_worked_under_it():
    job = replace(SUBMITTED, spec=SUBMITTED.spec | {"role": "mover"})
    assert lent(job, config_with({"role": "mover"}, {"role": "mover"})).role == "mover"
    assert lent(job, config_with(there={"role": "mover"})).role == "mover"
    assert "different roles" in aside(job, config_with({"role": "mover"}, {"role": "reader"}))


def test_signals_are_the_operators_and_an_address_of_the_jobs_is_never_asked():
    spec = IN_PLACE.spec | {"pace": {"signals": ["api"]}}
    assert "signal api is not configured" in aside(replace(IN_PLACE, spec=spec))
    config = config_with(signals={"api": {"http": {"url": f"http://api/{CANARY}"}}})
    found = lent(replace(IN_PLACE, spec=spec), config)
    assert found.pace.signals[0].url == f"http://api/{CANARY}"
    assert found.operator_signals == config.signals
    own = IN_PLACE.spec | {"pace": {"signals": [{"http": {"name": "api", "url": "http://169.254.169.254/"}}]}}
    assert "an address of its own" in aside(replace(IN_PLACE, spec=own), config)


def test_the_most_workers_are_told_and_no_setting_of_the_job():
    config = config_with({"workers": 1})
    assert Lender(config, config.dsns({}), "main").max_workers == 1
    assert lent(replace(IN_PLACE, spec=IN_PLACE.spec | {"workers": 5}), config).workers == 5
    assert Lender(config_with(), config.dsns({}), "main").max_workers is None


# -- for real ---------------------------------------------------------------------------------------------------------


async def test_a_submitted_copy_is_worked_by_a_pool_that_was_lent_both_databases(databases: TwoDatabases):
    rows = 500
    databases.source.sql(
        f"CREATE TABLE orders (id int PRIMARY KEY, a int); INSERT INTO orders SELECT i, i FROM generate_series(1, {rows}) i"
    )
    databases.target.sql("CREATE TABLE orders (id int PRIMARY KEY, a int)")
    connections = {
        "main": {
            "dsn": databases.target.dsn, "work": True, "tables": ["public.orders"], "workers": 1, "superuser": True,
        },
        "old": {"dsn": databases.source.dsn, "tables": ["public.orders"], "superuser": True},
    }  # fmt: skip
    config = read_config({"connections": connections}, {})
    dsns = config.dsns({})
    data = SUBMITTED.spec | {"name": "copy", "pace": {"signals": "off"}, "deletes": "none"}
    found = admit(data, config, dsns, ANYBODY)
    ran = await run(found.spec)
    assert ran.result.state is JobState.DONE
    # As if it had not been done: the pool takes it from the ledger, by names alone.
    databases.target.sql("DELETE FROM backfill.job; TRUNCATE orders")
    await leave_in_the_ledger(found.spec)
    kept = databases.target.sql("SELECT spec -> 'source', spec -> 'target' FROM backfill.job")
    assert "host" not in kept
    assert '"connection": "old"' in kept
    pool = Pool(Lender(config, dsns, "main"), once=True)
    await pool.run(signals=False)
    assert not pool.errors
    assert databases.target.sql("SELECT count(*), sum(a) FROM orders") == f"{rows}|{rows * (rows + 1) // 2}"


async def leave_in_the_ledger(spec: JobSpec) -> None:
    from tests.support.daemon import put_job

    await put_job(spec)
