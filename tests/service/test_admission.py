"""What a submitted spec may ask for: the operator's rules, all refusals at once, and nothing of other people's shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SpecError
from engine.flow import endpoints_of, inspect
from engine.service.access import ALL_SCOPES, Identity
from engine.service.admission import Admitted, NotAllowed, admit, is_expression
from engine.service.config import Config, read_config
from engine.spec import Dsn, SignalKind, TableRef
from engine.spec.names import quote_where_needed
from tests.support.databases import FreshDatabase

CANARY = "s3cr3t-canary"
ANYBODY = Identity("argo", "token", ALL_SCOPES)


def config_with(**changes: Any) -> Config:
    """Two databases: ``main``, with every rule there is, and ``archive``; ``changes`` are of ``main``, or sections."""
    sections = {key: changes.pop(key) for key in ("allow", "signals") if key in changes}
    main = {"dsn": f"host=a password={CANARY}", "tables": ["public.*", '"Sales"."Order Lines"']} | changes
    archive = {"dsn": f"host=b password={CANARY}", "tables": ["old.orders"]}
    return read_config({"connections": {"main": main, "archive": archive}} | sections, {})


def in_place(**keys: Any) -> dict[str, Any]:
    return {"source": {"connection": "main", "table": "public.orders"}, "set": {"cents": "amount"}} | keys


def copy(**keys: Any) -> dict[str, Any]:
    return {
        "source": {"connection": "archive", "table": "old.orders"},
        "target": {"connection": "main", "table": "public.orders"},
    } | keys


def admitted(data: object, config: Config | None = None, identity: Identity = ANYBODY) -> Admitted:
    config = config or config_with()
    return admit(data, config, config.dsns({}), identity)


def refused(data: object, config: Config | None = None, identity: Identity = ANYBODY) -> dict[str, str]:
    with pytest.raises(NotAllowed) as caught:
        admitted(data, config, identity)
    error = caught.value
    assert (error.code, error.http_status) == ("not_allowed", 403)
    assert all(problem.hint for problem in error.problems)
    assert CANARY not in repr([error, error.problems])
    return {problem.pointer: f"{problem.message}; {problem.hint}" for problem in error.problems}


# -- what is admitted -------------------------------------------------------------------------------------------------


def test_a_spec_gets_this_hosts_connections_and_the_ledger_their_names_alone():
    found = admitted(
        copy(pace={"signals": ["api"]}), config_with(signals={"api": {"http": {"url": f"http://a/{CANARY}"}}})
    )
    spec = found.spec
    assert found.connection == "main", "the ledger is the target's"
    assert spec.target is not None
    assert (spec.source.dsn, spec.target.dsn) == (
        Dsn(f"host=b password={CANARY}"), Dsn(f"host=a password={CANARY}"),
    )  # fmt: skip
    assert spec.pace.signals[0].url == f"http://a/{CANARY}"
    data = spec.for_ledger()
    assert data["source"] == {"connection": "archive", "table": "old.orders"}
    assert data["target"] == {"connection": "main", "table": "public.orders"}
    assert data["pace"] == {"signals": ["api"]}
    assert CANARY not in repr([found, data, spec.settings()])


def test_within_one_database_there_is_one_connection():
    for target in ({"table": "public.other"}, {"connection": "main", "table": "public.other"}):
        found = admitted({"source": {"connection": "main", "table": "public.orders"}, "target": target})
        assert found.connection == "main"
        assert found.spec.target is not None
        assert found.spec.target.dsn is None
        assert found.spec.for_ledger()["target"]["connection"] == "main"


def test_the_operators_role_ceiling_and_workers_are_what_a_spec_gets_that_says_none():
    spec = admitted(in_place(), config_with(role="mover", max_rows_per_s=500.0, workers=1)).spec
    assert (spec.role, spec.pace.max_rows_per_s, spec.workers) == ("mover", 500.0, 1)
    spec = admitted(in_place(), config_with(workers=8)).spec
    assert (spec.role, spec.pace.max_rows_per_s, spec.workers) == (None, None, 2)


def test_between_two_databases_the_lower_ceiling_counts():
    config = read_config(
        {
            "connections": {
                "main": {"dsn": "host=a", "tables": ["*.*"], "max_rows_per_s": 500, "role": "mover"},
                "archive": {"dsn": "host=b", "tables": ["*.*"], "max_rows_per_s": 200, "workers": 1},
            }
        },
        {},
    )
    spec = admitted(copy(), config).spec
    assert (spec.pace.max_rows_per_s, spec.workers, spec.role) == (200.0, 1, "mover")


def test_below_the_ceiling_a_spec_chooses_for_itself():
    spec = admitted(in_place(workers=3, pace={"max_rows_per_s": 499}), config_with(max_rows_per_s=500, workers=3)).spec
    assert (spec.pace.max_rows_per_s, spec.workers) == (499.0, 3)


def test_findings_may_be_accepted():
    assert admitted(in_place(accept=["TRIGGERS_ON_TARGET"])).spec.accept == ("TRIGGERS_ON_TARGET",)


def test_the_hash_is_of_what_was_submitted_and_not_of_the_operators_rules():
    one = admitted(in_place())
    assert one.spec_hash == admitted(in_place(), config_with(role="mover", max_rows_per_s=5)).spec_hash
    assert one.spec_hash == admitted(in_place(workers=2)).spec_hash, "a default that is written out means the same"
    assert len({one.spec_hash, admitted(in_place(workers=3)).spec_hash, admitted(copy()).spec_hash}) == 3


# -- what is refused --------------------------------------------------------------------------------------------------


def test_every_refusal_comes_at_once_with_its_pointer():
    spec = in_place(
        set={"a/b": "1 + 1"},
        where="now() > x",
        role="postgres",
        workers=9,
        pace={
            "max_rows_per_s": 501,
            "signals": [
                "apj",
                {"http": {"name": "spy", "url": "http://169.254.169.254/"}},
                {"prometheus": {"name": "spy2", "url": "http://a", "query": "up", "max": 1}},
                {"sql": {"name": "spy3", "query": "select 1", "max": 1}},
                {"read_latency": {"query": "select pg_sleep(1)"}},
            ],
        },
    )
    spec["source"] = {"connection": "main", "table": "private.salaries"}
    config = config_with(role="mover", max_rows_per_s=500, workers=8, signals={"api": {"http": {"url": "http://a"}}})
    found = refused(spec, config)
    assert set(found) == {
        "/source/table",
        "/set/a~1b",
        "/where",
        "/role",
        "/workers",
        "/pace/max_rows_per_s",
        "/pace/signals/0",
        "/pace/signals/1/http",
        "/pace/signals/2/prometheus",
        "/pace/signals/3/sql",
        "/pace/signals/4/read_latency/query",
    }
    assert "did you mean api?" in found["/pace/signals/0"]


@pytest.mark.parametrize("name", ["nowhere", "archive"])
def test_a_connection_of_others_is_as_unknown_as_one_that_is_not_there(name):
    bound = Identity("argo", "token", ALL_SCOPES, frozenset({"main"}))
    found = refused(in_place(source={"connection": name, "table": "a.b"}), identity=bound)
    assert found == {"/source/connection": "is not a connection that you may name; yours are main"}
    assert "archive" not in repr(refused(copy(source={"connection": "archiv", "table": "a.b"}), identity=bound))


@pytest.mark.parametrize(
    ("keys", "pointer"),
    [
        ({"source": {"connection": "main", "table": "public.a", "dsn": "host=evil"}}, "/source/dsn"),
        ({"source": {"dsn": "${HOME}", "table": "public.a"}}, "/source/dsn"),
        ({"source": {"table": "public.a"}}, "/source/connection"),
        ({"transform": "/tmp/evil.py"}, "/transform"),
        ({"where": "a = '${PGPASSWORD}'"}, "/where"),
        ({"accept": ["${PGPASSWORD}"]}, "/accept/0"),
        ({"nonsense": 1}, "/nonsense"),
        ({"workers": 10**400}, "/workers"),
    ],
)
def test_connection_strings_variables_and_modules_are_no_part_of_a_submitted_spec(keys, pointer):
    with pytest.raises(SpecError) as caught:
        admitted(in_place(**keys), config_with(allow={"expressions": True}))
    assert (caught.value.code, caught.value.http_status) == ("spec_invalid", 422)
    assert pointer in {problem.pointer for problem in caught.value.problems}


@pytest.mark.parametrize(
    "table",
    ["orders", "private.orders", "public2.a", "pg_catalog.pg_authid", "backfill.job", '"Public".orders', "sales.x"],
)
def test_a_table_that_no_pattern_names_is_refused_on_both_sides(table):
    assert set(refused(in_place(source={"connection": "main", "table": table}))) == {"/source/table"}
    spec = {"source": {"connection": "main", "table": "public.a"}, "target": {"table": table}}
    assert set(refused(spec)) == {"/target/table"}


def test_even_where_everything_is_open_the_ledger_and_the_catalogue_are_not():
    config = config_with(tables=["*.*", "backfill.*"])
    for table in ("backfill.job", "pg_catalog.pg_proc", "information_schema.sql_features"):
        assert "/source/table" in refused(in_place(source={"connection": "main", "table": table}), config)


def test_a_quoted_pattern_opens_just_that_table():
    assert admitted(in_place(source={"connection": "main", "table": '"Sales"."Order Lines"'}))
    assert "/source/table" in refused(in_place(source={"connection": "main", "table": "sales.order_lines"}))


def test_the_targets_operator_says_from_where_its_jobs_may_read():
    assert admitted(copy(), config_with(sources=["archive"]))
    assert set(refused(copy(), config_with(sources=[]))) == {"/source/connection"}
    assert admitted(in_place(), config_with(sources=[])), "its own tables are no other connection"


def test_two_connections_with_different_roles_have_no_job_in_common():
    config = read_config(
        {
            "connections": {
                "main": {"dsn": "host=a", "tables": ["*.*"], "role": "one"},
                "archive": {"dsn": "host=b", "tables": ["*.*"], "role": "other"},
            }
        },
        {},
    )
    assert set(refused(copy(), config)) == {"/target/connection"}


@pytest.mark.parametrize("role", ["mover", None])
def test_a_role_is_the_operators_to_choose(role):
    config = config_with(**({"role": role} if role else {}))
    assert set(refused(in_place(role="postgres"), config)) == {"/role"}
    if role is not None:
        assert admitted(in_place(role=role), config).spec.role == role


# -- expressions ------------------------------------------------------------------------------------------------------

PLAIN = ["amount", " amount ", '"Amount"', '"a "" b"', "Amount", "größe", '"current_user"']
SQL = [
    "amount + 1", "f(amount)", "'x'", "1", "amount::text", "a.amount", "amount -- x", "/**/amount", "null", "TRUE",
    "current_user", "Session_User", "user", '"a"."b"', "$1", "amount;", "(amount)", 'U&"a"', '""',
]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_the_name_of_a_column_is_no_expression(text):
    spec = copy(columns={"id": text})
    assert admitted(spec).spec.columns["id"] == text


@pytest.mark.parametrize("text", SQL)
@pytest.mark.parametrize("key", ["set", "columns", "where", "done"])
def test_whatever_is_more_needs_the_operators_leave(text, key):
    base = copy() if key == "columns" else in_place()
    spec = base | {key: {"x": text} if key in ("set", "columns") else text}
    pointer = f"/{key}/x" if key in ("set", "columns") else f"/{key}"
    assert set(refused(spec)) == {pointer}
    assert admitted(spec, config_with(allow={"expressions": True}))


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20))
def test_any_column_as_a_spec_quotes_it_is_a_name(name):
    quoted = '"' + name.replace('"', '""') + '"'
    assert not is_expression(quoted)
    assert not is_expression(quote_where_needed(name)) or quote_where_needed(name) == name


@given(st.text(max_size=20))
def test_what_is_no_expression_is_one_name_and_nothing_else(text):
    if not is_expression(text):
        bare = text.strip()
        assert bare
        if not bare.startswith('"'):
            assert bare.replace("$", "a").replace("_", "a").isalnum() or not bare.isascii()
        else:
            assert bare.endswith('"')
            assert '"' not in bare[1:-1].replace('""', "")


# -- signals ----------------------------------------------------------------------------------------------------------


def test_built_in_signals_are_anybodys():
    signals = [{"replication_lag": {"target": "5s", "max": "30s"}}, {"read_latency": {"target": "5ms"}}]
    assert [signal.kind for signal in admitted(in_place(pace={"signals": signals})).spec.pace.signals] == [
        SignalKind.REPLICATION_LAG, SignalKind.READ_LATENCY,
    ]  # fmt: skip


def test_leave_for_expressions_is_no_leave_for_signals():
    spec = in_place(pace={"signals": [{"sql": {"name": "spy", "query": "select 1", "max": 1}}]})
    assert set(refused(spec, config_with(allow={"expressions": True}))) == {"/pace/signals/0/sql"}


# -- the catalogue ----------------------------------------------------------------------------------------------------


async def test_the_tables_that_the_catalogue_gives_are_looked_at_again(database: FreshDatabase):
    database.sql("CREATE TABLE orders (id int PRIMARY KEY, amount int, cents int); CREATE TABLE copied (LIKE orders)")
    main = {"dsn": database.dsn, "superuser": True, "tables": ["public.orders", "public.copied"]}
    config = read_config({"connections": {"main": main}}, {})
    data = {"source": {"connection": "main", "table": "public.orders"}, "target": {"table": "public.copied"}}
    found = admit(data, config, config.dsns({}), ANYBODY)
    seen = await inspect(found.spec, endpoints_of(found.spec))
    found.check_tables(seen)
    for tables, pointers in ((["public.orders"], {"/target/table"}), ([], {"/source/table", "/target/table"})):
        narrower = read_config({"connections": {"main": main | {"tables": tables}}}, {})
        stale = Admitted(found.spec, found.connection, found.spec_hash, narrower)
        with pytest.raises(NotAllowed) as caught:
            stale.check_tables(seen)
        assert {problem.pointer for problem in caught.value.problems} == pointers
    assert seen.source.name.schema == "public"
    assert TableRef.parse("public.orders") == found.spec.source.table
