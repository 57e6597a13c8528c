"""Reading a spec file: everything wrong at once, each with its place and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import SpecError, UsageError
from engine.model import ConflictPolicy, Deletes, Order
from engine.spec import Dsn, JobSpec, OnConflict, TableRef, load_spec, parse_spec

ENV = {"SOURCE_DSN": "postgresql://app:s3cr3t-canary@db/shop", "TARGET_DSN": "host=other password=s3cr3t-canary"}
IN_PLACE = 'source: {dsn: "${SOURCE_DSN}", table: public.orders}\nset: {cents: "(amount * 100)::bigint"}\n'
COPY = 'source: {dsn: "${SOURCE_DSN}", table: orders}\ntarget: {dsn: "${TARGET_DSN}", table: orders_v2}\n'


def problems(text: str | bytes, env: dict[str, str] | None = None) -> list[tuple[int, int, str, str]]:
    """(line, column, path, message and hint) of each problem of ``text``."""
    with pytest.raises(SpecError) as caught:
        parse_spec(text, ENV if env is None else env)
    assert "s3cr3t-canary" not in repr([caught.value, caught.value.problems])
    return [(p.line, p.column, p.path, f"{p.message}; {p.hint}") for p in caught.value.problems]


def only_problem(text: str | bytes, env: dict[str, str] | None = None) -> tuple[int, int, str, str]:
    found = problems(text, env)
    assert len(found) == 1, found
    return found[0]


def test_the_smallest_spec_in_place_gets_all_defaults():
    spec = parse_spec(IN_PLACE, ENV)
    assert spec.in_place
    assert spec.source.dsn == Dsn(ENV["SOURCE_DSN"], reference="${SOURCE_DSN}")
    assert spec.source.table == TableRef("public", "orders")
    assert dict(spec.set) == {"cents": "(amount * 100)::bigint"}
    assert (spec.where, spec.done, spec.key, spec.order) == (None, None, (), Order.KEY)
    assert (spec.workers, spec.lock_timeout_s, spec.pace.max_rows_per_s) == (2, 2.0, None)
    chunk = spec.chunk
    assert (chunk.target_s, chunk.min_rows, chunk.max_rows, chunk.max_bytes) == (0.25, 50, 50_000, 16 * 2**20)


def test_every_available_key_arrives(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text(
        COPY
        + """
name: orders-v2
columns: {id: id, cents: "(amount * 100)::bigint"}
where: "deleted_at is null"
key: [tenant_id, id]
order: key
on_conflict: newest(updated_at)
deletes: none
workers: 4
chunk: {target: 100ms, min_rows: 10, max_rows: 2000, max_bytes: 1MiB}
pace: {max_rows_per_s: 20000}
errors: {max_quarantined: 0}
accept: [TRIGGERS_ON_TARGET]
role: backfill_worker
lock_timeout: 500ms
verify: none
"""
    )
    spec = load_spec(path, ENV)
    assert spec.name == "orders-v2"
    assert spec.target is not None
    assert spec.target.dsn == Dsn(ENV["TARGET_DSN"], reference="${TARGET_DSN}")
    assert list(spec.columns.items()) == [("id", "id"), ("cents", "(amount * 100)::bigint")]
    assert spec.key == ("tenant_id", "id")
    assert spec.on_conflict == OnConflict(ConflictPolicy.NEWEST, "updated_at")
    assert spec.deletes is Deletes.NONE
    assert (spec.workers, spec.chunk.target_s, spec.chunk.max_bytes) == (4, 0.1, 2**20)
    assert spec.pace.max_rows_per_s == 20000
    assert (spec.accept, spec.role, spec.lock_timeout_s) == (("TRIGGERS_ON_TARGET",), "backfill_worker", 0.5)


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_is_read_too_with_places_even_when_indented_by_tabs(indent):
    data = {"source": {"dsn": "${SOURCE_DSN}", "table": "orders"}, "set": {"note": "E'\u00e9 \U0001f600 \\n'"}}
    assert dict(parse_spec(json.dumps(data, indent=indent), ENV).set) == data["set"]
    line, _, path, _ = only_problem(json.dumps(data | {"workers": 0}, indent=indent))
    assert path == "workers"
    assert line == (1 if indent is None else 9)


def test_all_problems_come_at_once_in_the_order_of_the_file():
    text = """
nme: x
source: {dsn: "${UNSET}", table: "a.b.c"}
target: {table: orders_v2, dsn: "postgresql://app:s3cr3t-canary@db/shop"}
set: {a: b}
workers: "2"
chunk: {target: 250, min_rows: 60, max_rows: 50, foo: 1}
pace: {signals: [{red: {}}], windows: [22-06]}
on_conflict: replce
where: "id < ${MAX}"
key: id
accept: [x]
lock_timeout: 2
"""
    found = problems(text)
    assert [(line, path) for line, _, path, _ in found] == [
        (2, "nme"),
        (3, "source.dsn"),
        (3, "source.table"),
        (4, "target.dsn"),
        (5, "set"),
        (6, "workers"),
        (7, "chunk.target"),
        (7, "chunk.min_rows"),
        (7, "chunk.foo"),
        (8, "pace.signals[0].red"),
        (8, "pace.windows[0]"),
        (9, "on_conflict"),
        (10, "where"),
        (11, "key"),
        (12, "accept[0]"),
        (13, "lock_timeout"),
    ]
    assert found[2][:2] == (3, 34), "a wrong value is shown at the value"
    assert found[8][:2] == (7, 50), "an unknown key at the key"
    assert found[9][:2] == (8, 19), "in lists, too"
    assert all(message and not message.endswith("; ") for *_, message in found), "each has a hint"


@pytest.mark.parametrize(
    ("line", "path", "words"),
    [
        ("wokers: 3", "wokers", "did you mean workers?"),
        ("max_rows: 3", "max_rows", "it belongs under chunk"),
        ("chunk: {max_row: 3}", "chunk.max_row", "did you mean max_rows?"),
        ("chunk: {target_s: 3s}", "chunk.target_s", "did you mean target?"),
        ("chunk: {workers: 3}", "chunk.workers", "top level"),
        ("blaot: {max_growth: 20%}", "blaot", "did you mean bloat?"),
        ("zzz: 3", "zzz", "known here: name, source"),
        ("order: keys", "order", "did you mean key?"),
        ("done:", "done", "is empty; give it a value, or leave the key out"),
        ("where: ''", "where", "is empty"),
        ("where: '  '", "where", "is empty"),
        ("where: true", "where", "must be text; put it in quotes"),
        ("workers: 65", "workers", "at most 64"),
        ("workers: 0", "workers", "at least 1"),
        ("workers: 2.0", "workers", "whole number"),
        ("workers: true", "workers", "whole number"),
        ("workers: [2]", "workers", "whole number"),
        ("pace: 3", "pace", "must be a mapping"),
        ("pace: [3]", "pace", "must be a mapping"),
        ("pace: {max_rows_per_s: 0}", "pace.max_rows_per_s", "more than 0"),
        ("pace: {max_rows_per_s: .inf}", "pace.max_rows_per_s", "must be a number"),
        ("pace: {max_rows_per_s: 1e999}", "pace.max_rows_per_s", "must be a number"),
        ("pace: {max_rows_per_s: 20k}", "pace.max_rows_per_s", "must be a number"),
        ("chunk: {target: 0ms}", "chunk.target", "at least 0.001"),
        ("chunk: {max_bytes: 2GiB}", "chunk.max_bytes", "at most"),
        ("lock_timeout: 0s", "lock_timeout", "at least"),
        ("accept: [A, A]", "accept", "twice"),
        ("key: [id, id]", "key", "twice"),
        ("key: [id, 3]", "key[1]", "must be text"),
        ("key: ['']", "key[0]", "is empty"),
        (f"role: {'r' * 64}", "role", "63 bytes"),
        ("name: Orders", "name", "lower-case"),
        ("name: -x", "name", "lower-case"),
        (f"name: {'x' * 64}", "name", "up to 63"),
        ("name: ''", "name", "lower-case"),
        ("verify: afterwards", "verify", "must be one of"),
        ("columns: {a: b}", "columns", "in place"),
        ("on_conflict: keep", "on_conflict", "in place"),
        ("deletes: guarded", "deletes", "in place"),
        ("1: x", "(key not shown)", "not a key"),
        ("[a]: x", "", "keys are plain text"),
        ("workers: 2\nworkers: 2", "workers", "first given in line 3"),
        ("chunk: {max_rows: 9}\nchunk: {max_rows: 9}", "chunk", "first given in line 3"),
        ("role: &r worker", "", "anchor"),
        ("role: *r", "", "alias"),
        ("role: !!str worker", "", "tag"),
        ("role: !!python/object/apply:os.system [id]", "", "tag"),
        ('where: "\\0"', "where", "NUL"),
        ('where: "\\ud800"', "where", "half a character"),
        ("---\nname: x", "", "second document"),
        ("role: 'x", "", "not valid YAML"),
        ("role: [x", "", "not valid YAML"),
        ("\trole: x", "", "not valid YAML"),
        ("role: \x01", "", "control character"),
        ("where: 'a\u2028b'", "", 'write it as "\\u2028" in double quotes'),
        ("where: 'a\x85b'", "", 'write it as "\\u0085"'),
        ('role: "\\U00110000"', "", "not valid YAML"),
        ("where: " + "[" * 100, "where", "nested more than"),
    ],
)
def test_one_mistake_is_one_problem_with_its_place_and_a_way_out(line, path, words):
    number, column, where, text = only_problem(IN_PLACE + line + "\n")
    assert where.startswith(path) if path else True
    assert words in text
    assert number >= 3
    assert column >= 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n", "not a mapping"),
        ("just text", "not a mapping"),
        ("source: {table: t}\n", "which columns it fills"),
        ("set: {a: b}\n", "is missing"),
        ("source: {}\nset: {a: b}\n", "is missing"),
        ("source: t\nset: {a: b}\n", "must be a mapping"),
        ("source: {table: t}\nset: {}\n", "is empty"),
        ("source: {table: t}\nset: {'': b}\n", "empty"),
        ("source: {table: t}\nset: {a: 1}\n", "put it in quotes"),
        ("source: {table: t}\nset: {a: }\n", "text"),
        ("source: {table: 3}\nset: {a: b}\n", "must be text"),
        ("source: {table: t, dsn: 3}\nset: {a: b}\n", "must be text"),
        ("source: {table: t}\ntarget:\n", "is empty"),
        ("source: {table: t}\ntarget: {table: u}\nset: {a: b}\n", "in place only"),
        ("source: {table: t}\ntarget: {table: u}\ndone: 'true'\n", "in place only"),
        ("source: {table: t}\ntarget: {table: u}\nbloat: {max_growth: 20%}\n", "in place only"),
        (b"source: {table: \xff}\n", "UTF-8"),
        ("source: {table: t}\n".encode("utf-16"), "UTF-8"),
        (b"#" * (2**20 + 1), "larger than 1 MiB"),
        ("set: {" + ", ".join(f"c{i}: x" for i in range(11_000)) + "}", "more than 20000 values"),
    ],
)
def test_specs_that_are_wrong_as_a_whole(text, words):
    assert words in only_problem(text)[3]


@pytest.mark.parametrize(("text", "path"), [("order: physical", "order")])
def test_a_key_whose_feature_is_still_to_come_says_so_and_is_never_ignored(text, path):
    _, _, where, words = only_problem(IN_PLACE + text)
    assert where == path
    assert "is not available yet" in words


@pytest.mark.parametrize("value", [0, 1, 1_000_000])
def test_so_many_rows_may_be_set_aside(value):
    spec = parse_spec(IN_PLACE + f"errors: {{max_quarantined: {value}}}", ENV)
    assert spec.errors.max_quarantined == value
    assert spec.for_ledger()["errors"] == {"max_quarantined": value}


@pytest.mark.parametrize("value", ["-1", "1.5", "true", "'0'", "1000001"])
def test_max_quarantined_takes_only_what_works(value):
    assert only_problem(IN_PLACE + f"errors: {{max_quarantined: {value}}}")[2] == "errors.max_quarantined"


def test_a_billion_laughs_are_refused_at_the_first():
    laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
    assert "anchor" in only_problem(laughs)[3]


def test_a_dsn_left_out_comes_from_the_environment_and_the_target_follows_the_source():
    text = "source: {table: a}\ntarget: {table: b}\n"
    spec = parse_spec(text, {"BACKFILL_DSN": "host=x"})
    assert spec.target is not None
    assert spec.source.dsn == spec.target.dsn == Dsn("host=x", reference="${BACKFILL_DSN}")
    assert parse_spec(text, {}).source.dsn == Dsn("")
    assert only_problem(text, {"BACKFILL_DSN": "nonsense"})[2] == "source.dsn"


@pytest.mark.parametrize(
    "dsn", ["postgresql://app:s3cr3t-canary@db/shop", "host=db password=s3cr3t-canary", "s3cr3t-canary"]
)
def test_a_secret_written_into_the_file_is_refused_and_not_repeated(dsn):
    _, _, path, _ = only_problem(f'source: {{dsn: "{dsn}", table: t}}\nset: {{a: b}}\n')
    assert path == "source.dsn"


@pytest.mark.parametrize(
    "text",
    [
        "source: postgresql://app:s3cr3t-canary@db/shop",
        "source: {'postgresql://app:s3cr3t-canary@db/shop'}",
        "postgresql://app:s3cr3t-canary@db/shop: x",
        "source: {table: 'postgresql://app:s3cr3t-canary@db/shop'}",
        "source: {dsn: ${X, table: s3cr3t-canary}}",
        "role: 'host=s3cr3t-canary",
        "role: *s3cr3t-canary",
        "role: &s3cr3t-canary x",
        "role: !s3cr3t-canary x",
        "%s3cr3t-canary",
        "workers: s3cr3t-canary",
        "on_conflict: newest(s3cr3t-canary, s3cr3t-canary)",
        "source: {dsn: [s3cr3t-canary], table: t}",
        "lock_timeout: s3cr3t-canary",
        "order: s3cr3t-canary",
        "verify: s3cr3t-canary",
        "name: S3cr3t s3cr3t-canary",
        "accept: [s3cr3t-canary]",
        "errors: s3cr3t-canary",
    ],
)
def test_a_secret_in_the_wrong_place_is_in_no_message(text):
    problems(text)  # looks for the canary


def test_a_limit_on_one_side_moves_the_default_of_the_other():
    assert parse_spec(IN_PLACE + "chunk: {max_rows: 10}", ENV).chunk.min_rows == 10
    assert parse_spec(IN_PLACE + "chunk: {min_rows: 60000}", ENV).chunk.max_rows == 60_000


def test_names_that_yaml_would_turn_into_other_types_stay_text():
    spec = parse_spec('source: {table: t}\nset: {on: "a", y: "b", null: "c", 1: "d", "2026-01-01": "e"}\n', {})
    assert list(spec.set) == ["on", "y", "null", "1", "2026-01-01"]


def test_a_byte_order_mark_and_windows_line_ends_are_fine():
    assert isinstance(parse_spec(b"\xef\xbb\xbf" + IN_PLACE.replace("\n", "\r\n").encode(), ENV), JobSpec)


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            load_spec(path, {})


def test_the_error_names_the_file(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text("workers: 0\n")
    with pytest.raises(SpecError, match=r"3 problems in .*job\.yaml"):
        load_spec(path, {})
