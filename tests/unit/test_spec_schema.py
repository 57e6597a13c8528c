"""The JSON Schema and the template agree with the loader."""

from __future__ import annotations

import re

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SpecError
from engine.spec import Purpose, TableRef, TemplateFacts, json_schema, parse_spec, template
from engine.spec.rules import NOT_AVAILABLE
from engine.spec.signals import DEFAULT_SIGNALS
from engine.spec.template import PLACEHOLDER

ENV = {"SOURCE_DSN": "host=a", "TARGET_DSN": "host=b"}
VALIDATOR = jsonschema.Draft202012Validator(json_schema())

VALID = [
    "{source: {table: t}, set: {a: b}}",
    '{source: {dsn: "${SOURCE_DSN}", table: public.orders}, set: {a: b}, done: "a > 1", key: [id], name: x}',
    '{source: {table: t}, target: {dsn: "${TARGET_DSN}", table: u}}',
    "{source: {table: t}, target: {table: u}, columns: {a: b}, on_conflict: newest(c), deletes: none, where: x}",
    "{source: {table: t}, target: {table: u}, on_conflict: replace, order: key, verify: after, accept: [A_1]}",
    "{source: {table: t}, set: {a: b}, chunk: {target: 1.5 s, min_rows: 1, max_rows: 2, max_bytes: 64KiB}}",
    "{source: {table: t}, set: {a: b}, pace: {max_rows_per_s: 0.5}, errors: {max_quarantined: 0}, workers: 64}",
    "{source: {table: t}, set: {a: b}, errors: {max_quarantined: 1000000}}",
    "{source: {table: t}, set: {a: b}, errors: {}}",
    "{source: {table: t}, set: {a: b}, role: r, lock_timeout: 250ms}",
    "{source: {table: t}, set: {a: b}, bloat: {max_growth: 2.5%}}",
    "{source: {table: t}, set: {a: b}, bloat: {}, pace: {}}",
    *(
        f"{{source: {{table: t}}, set: {{a: b}}, pace: {{{pace}}}}}"
        for pace in (
            "max_wal_bytes_per_s: 50MiB",
            "windows: ['22:00-06:00 Asia/Kolkata', 'Mon-Wed,sun 00:00-24:00 UTC']",
            "finish_by: '2026-12-01T06:00:00+05:30'",
            "finish_by: '2026-12-01 06:00 Asia/Kolkata'",
            "finish_by: '2026-12-01T06:00Z'",
            "signals: 'off'",
            "signals: []",
            "signals: [{read_latency: 'off'}, {commit_latency: {}}, {autovacuum: {}}, {wal_archive: {}}]",
            "signals: [{read_latency: {target: 5ms, query: 'select 1 where 1 = $1;'}}, {commit_latency: {target: 1s}}]",
            "signals: [{replication_lag: {target: 5s, max: 30s}}, {slot_retention: {max: 10GiB}}, {lock_waits: {}}]",
            "signals: [{replication_lag: {max: 100MiB}}, {active_sessions: {target: 1.5, max: 40}}, {xid_age: {max: 1}}]",
            "signals: [{wal_rate: {target: 1MiB}}, {vacuum_debt: {target: 5%, max: 20.5 %}}, {wal_archive: {max: 3}}]",
            "signals: [{sql: {name: a, query: select 1, target: 1, max: 2, unit: bytes/s, every: 5s, side: target}}]",
            "signals: [{prometheus: {name: a, url: 'http://p:9090', query: up, max: 0, on_failure: ignore}}]",
            "signals: [{http: {name: a, url: 'https://p/x?y=z', every: 1m, on_failure: hold}}, {http: {name: b, url: 'http://p'}}]",
        )
    ),
]
FOR_A_DAEMON = [
    "{source: {connection: main, table: t}, set: {a: b}}",
    "{source: {connection: a.b-c_1, table: t}, target: {connection: other, table: u}}",
    "{source: {connection: main, table: t}, target: {table: u}, pace: {signals: [api_p99, {lock_waits: {}}, queue]}}",
]
INVALID = [
    "{}",
    "[]",
    "{source: {table: t}}",
    "{source: {}, set: {a: b}}",
    "{source: {table: t}, set: {}}",
    "{source: {table: t}, set: {a: ' '}}",
    "{source: {table: t}, set: {a: 1}}",
    "{source: {table: t}, set: {a: b}, target: {table: u}}",
    "{source: {table: t}, set: {a: b}, target: null}",
    "{source: {table: t}, target: {table: u}, done: x}",
    "{source: {table: t}, set: {a: b}, columns: {a: b}}",
    "{source: {table: t}, set: {a: b}, on_conflict: keep}",
    "{source: {table: t}, set: {a: b}, deletes: none}",
    "{source: {table: t}, set: {a: b}, workers: 0}",
    "{source: {table: t}, set: {a: b}, workers: '2'}",
    "{source: {table: t}, set: {a: b}, chunk: {target: 250}}",
    "{source: {table: t}, set: {a: b}, chunk: {target_s: 250ms}}",
    "{source: {table: t}, set: {a: b}, chunk: {max_bytes: 16mib}}",
    "{source: {table: t}, set: {a: b}, key: id}",
    "{source: {table: t}, set: {a: b}, order: physical}",
    "{source: {table: t}, set: {a: b}, verify: afterwards}",
    "{source: {table: t}, set: {a: b}, errors: {max_quarantined: 1000001}}",
    "{source: {table: t}, set: {a: b}, errors: {max_quarantined: true}}",
    "{source: {table: t}, set: {a: b}, where: null}",
    "{source: {table: t}, set: {a: b}, nonsense: 1}",
    "{source: {table: t}, set: {a: b}, accept: [x]}",
    "{source: {table: t}, set: {a: b}, name: Orders}",
    "{source: {table: t}, target: {table: u}, on_conflict: newest}",
    "{source: {table: t}, target: {table: u}, bloat: {max_growth: 20%}}",
    "{source: {table: t}, set: {a: b}, bloat: {max_growth: 0.2}}",
    "{source: {table: t}, set: {a: b}, bloat: {max_growth: '20'}}",
    *(
        f"{{source: {{table: t}}, set: {{a: b}}, pace: {{{pace}}}}}"
        for pace in (
            "max_wal_bytes_per_s: 50",
            "windows: '22:00-06:00 UTC'",
            "windows: ['22:00-06:00']",
            "windows: ['22-06 UTC']",
            "finish_by: '2026-12-01'",
            "finish_by: '2026-12-01T06:00:00'",
            "signals: 'on'",
            "signals: {read_latency: {}}",
            "signals: [read_latency]",
            "signals: [{}]",
            "signals: [null]",
            "signals: [{read_latency: {}, lock_waits: {}}]",
            "signals: [{red_latency: {}}]",
            "signals: [{read_latency: 'on'}]",
            "signals: [{read_latency: {max: 5ms}}]",
            "signals: [{read_latency: {target: 5}}]",
            "signals: [{commit_latency: {query: select 1}}]",
            "signals: [{replication_lag: {max: 5}}]",
            "signals: [{wal_rate: {}}]",
            "signals: [{slot_retention: {}}]",
            "signals: [{active_sessions: {max: '40'}}]",
            "signals: [{autovacuum: {max: 1}}]",
            "signals: [{vacuum_debt: {max: 0.2}}]",
            "signals: [{sql: 'off'}]",
            "signals: [{sql: {query: select 1, max: 1}}]",
            "signals: [{sql: {name: a, max: 1}}]",
            "signals: [{sql: {name: a, query: select 1}}]",
            "signals: [{sql: {name: A, query: select 1, max: 1}}]",
            "signals: [{sql: {name: a, query: select 1, max: 1, side: left}}]",
            "signals: [{sql: {name: a, query: select 1, max: 1, on_failure: freeze}}]",
            "signals: [{prometheus: {name: a, url: 'ftp://p', query: up, max: 1}}]",
            "signals: [{http: {name: a, url: 'http://me@p'}}]",
            "signals: [{http: {name: a, url: 'http://p', max: 1}}]",
        )
    ),
]


def test_the_schema_itself_is_valid():
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("text", VALID)
def test_what_the_loader_takes_the_schema_takes(text):
    parse_spec(text, ENV)
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", FOR_A_DAEMON)
def test_what_the_loader_takes_for_a_daemon_the_schema_takes(text):
    parse_spec(text, {}, purpose=Purpose.DAEMON)
    VALIDATOR.validate(yaml.safe_load(text))
    jsonschema.Draft202012Validator(json_schema(for_daemon=True)).validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", VALID)
def test_the_schema_for_a_daemon_wants_a_connection_and_no_connection_string(text):
    assert not jsonschema.Draft202012Validator(json_schema(for_daemon=True)).is_valid(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "{source: {connection: Main, table: t}, set: {a: b}}",
        "{source: {connection: '', table: t}, set: {a: b}}",
        "{source: {connection: 1, table: t}, set: {a: b}}",
        "{source: {connection: main, dsn: host=a, table: t}, set: {a: b}}",
        "{source: {connection: main, table: t}, set: {a: b}, pace: {signals: [Api]}}",
        "{source: {connection: main, table: t}, set: {a: b}, pace: {signals: [lock_waits]}}",
        "{source: {connection: main, table: t}, set: {a: b}, pace: {signals: [prometheus]}}",
    ],
)
def test_what_the_schema_refuses_for_a_daemon_the_loader_refuses(text):
    assert not VALIDATOR.is_valid(yaml.safe_load(text))
    with pytest.raises(SpecError):
        parse_spec(text, {}, purpose=Purpose.DAEMON)


@pytest.mark.parametrize("text", INVALID)
def test_what_the_schema_refuses_the_loader_refuses(text):
    assert not VALIDATOR.is_valid(yaml.safe_load(text))
    with pytest.raises(SpecError):
        parse_spec(text, ENV)


def objects(node):
    if isinstance(node, dict):
        if "properties" in node and "additionalProperties" in node:
            yield node
        for value in node.values():
            yield from objects(value)


def test_every_key_is_described_and_no_unknown_key_is_allowed():
    schema = json_schema()
    for node in objects(schema):
        assert node["additionalProperties"] is False
        for key, value in node["properties"].items():
            described = schema["$defs"][value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else value
            assert described["description"], key


def test_every_example_and_default_of_the_schema_is_valid():
    for node in objects(json_schema()):
        for key, value in node["properties"].items():
            resolver = VALIDATOR.evolve(schema={"$defs": json_schema()["$defs"]} | value)
            for example in [*value.get("examples", []), *([value["default"]] if "default" in value else [])]:
                assert resolver.is_valid(example), (key, example)


def test_keys_whose_feature_is_still_to_come_are_absent_from_the_schema():
    schema = json_schema()
    always = [path for path in NOT_AVAILABLE if path != ("order",)]
    for path in always:
        node = schema["properties"]
        if len(path) == 2:
            node = schema["$defs"][node[path[0]]["$ref"].rsplit("/", 1)[1]]["properties"]
        assert path[-1] not in node, path


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda name: name.strip()
)
TABLES = st.builds(TableRef, st.none() | NAMES, NAMES)
COLUMNS = st.lists(NAMES, max_size=4, unique=True)


@pytest.mark.parametrize("name", ['a"b\x85c', 'a"b\u2028', 'a"b\nc', "a'b", "\x7f", "\U0001f600", "null", "a: b # c"])
def test_a_template_loads_back_for_names_that_yaml_would_twist(name):
    facts = TemplateFacts(TableRef(name, name), key=[name], columns=[name])
    spec = parse_spec(template(facts), ENV)
    assert (spec.source.table, spec.key, list(spec.set)) == (facts.source, (name,), [name])


def test_a_template_does_not_depend_on_what_another_library_made_of_yaml(monkeypatch):
    """Some libraries change how PyYAML writes every text of the process (a block with ``|`` where it has lines)."""

    def as_block(dumper, text):
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")

    monkeypatch.setattr(yaml.SafeDumper, "yaml_representers", yaml.SafeDumper.yaml_representers | {str: as_block})
    assert yaml.safe_dump("a\nb").startswith("|"), "the change took effect"
    test_a_template_loads_back_for_names_that_yaml_would_twist('a"b\nc')


@given(
    facts=st.builds(
        TemplateFacts,
        source=TABLES,
        target=st.none() | TABLES,
        key=COLUMNS,
        columns=COLUMNS,
        rows=st.none() | st.floats(-1, 1e12),
        target_dsn=st.none() | st.just("${TARGET_DSN}"),
        name=st.none() | st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,62}", fullmatch=True),
    )
)
def test_a_template_loads_back_for_any_names(facts):
    text = template(facts)
    VALIDATOR.validate(yaml.safe_load(text))
    spec = parse_spec(text, ENV)
    assert spec.source.table == facts.source
    assert spec.key == tuple(facts.key)
    if facts.target is None:
        assert list(spec.set) == (list(facts.columns) or [PLACEHOLDER])
    else:
        assert spec.target is not None
        assert spec.target.table == facts.target
        assert list(spec.columns) == list(facts.columns)
    if facts.name is not None:
        assert spec.name == facts.name


def test_every_commented_line_of_a_template_is_valid_when_uncommented():
    for target in (None, TableRef("public", "orders_v2")):
        text = template(TemplateFacts(TableRef("public", "orders"), target, columns=["id"]))
        lines = [
            line.removeprefix("# ") if line.startswith("# ") and re.search(r":( |$)", line) else line
            for line in text.splitlines()
        ]
        kept = [line for line in lines if not line.startswith(("What", "and `", "column <-", "target column", "These"))]
        spec = parse_spec("\n".join(kept), ENV)
        assert spec.role == "backfill_worker"
        assert spec.where == "deleted_at is null"
        assert spec.pace.effective_signals()[:3] == DEFAULT_SIGNALS
        assert [signal.name for signal in spec.pace.effective_signals()[3:]] == ["replication_lag"]
        assert spec.pace.windows
        assert spec.pace.finish_by
        assert spec.bloat.max_growth == (0.2 if target is None else None)
        VALIDATOR.validate(yaml.safe_load("\n".join(kept)))


def test_target_columns_without_a_source_are_left_to_the_user():
    facts = TemplateFacts(TableRef(None, "a"), TableRef(None, "b"), columns=["id"], missing=["cents"])
    assert dict(parse_spec(template(facts), ENV).columns) == {"id": '"id"', "cents": PLACEHOLDER}
