"""The spec as a value: completeness, identity, the form that goes into the ledger."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from pydantic import ValidationError

from engine.errors import SpecError
from engine.model import Order
from engine.spec import (
    Bloat,
    ChunkLimits,
    Dsn,
    Endpoint,
    JobSpec,
    OnConflict,
    Pace,
    SignalKind,
    SignalSpec,
    TableRef,
    TimeWindow,
    differences,
    parse_spec,
)

SOURCE = Endpoint(dsn=Dsn("host=a password=s3cr3t-canary", reference="${A}"), table=TableRef("public", "orders"))
TARGET = Endpoint(dsn=Dsn("host=b password=s3cr3t-canary"), table=TableRef(None, "orders_v2"))


def in_place(**changes) -> JobSpec:
    return JobSpec(**{"source": SOURCE, "set": {"cents": "amount * 100"}} | changes)


def copy(**changes) -> JobSpec:
    return JobSpec(**{"source": SOURCE, "target": TARGET} | changes)


def test_python_code_gives_seconds_and_bytes_as_numbers():
    spec = in_place(chunk=ChunkLimits(target_s=0.1, max_bytes=2**20), lock_timeout_s=1, pace=Pace(max_rows_per_s=5))
    assert (spec.chunk.target_s, spec.chunk.max_bytes, spec.lock_timeout_s) == (0.1, 2**20, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"set": {}},
        {"done": "true", "target": TARGET},
        {"columns": {"a": "a"}},
        {"workers": 0},
        {"nonsense": 1},
        {"chunk": {"min_rows": 9, "max_rows": 5}},
        {"source": {"dsn": "host=a", "table": "t"}},
        {"pace": {"signals": (SignalSpec(kind=SignalKind.LOCK_WAITS), SignalSpec(kind=SignalKind.LOCK_WAITS))}},
        {"pace": {"signals": [None]}},
        {"pace": {"finish_by": datetime(2026, 12, 1, 6)}},  # noqa: DTZ001 - the zone is what is missing
        {"bloat": {"max_growth": 0}},
    ],
)
def test_a_spec_built_in_python_obeys_the_same_rules(wrong):
    with pytest.raises(ValidationError) as caught:
        in_place(**wrong)
    assert "s3cr3t-canary" not in str(caught.value)


def test_a_spec_cannot_be_changed():
    spec = in_place()
    with pytest.raises(ValidationError):
        spec.workers = 3
    with pytest.raises(TypeError):
        spec.set["cents"] = "0"


def test_a_job_without_a_name_gets_one_from_its_tables_and_meaning():
    assert in_place().name.startswith("orders-")
    assert copy().name.startswith("orders-to-orders_v2-")
    assert in_place().name == in_place(workers=7, accept=("X",), role="r").name
    assert in_place().name != in_place(where="true").name
    assert in_place(name="mine").name == "mine"


def test_default_names_stay_as_they_are_between_versions():
    """They are stored in ledgers: a job must find itself again after an upgrade."""
    assert in_place().name == "orders-7491400c"
    assert copy().name == "orders-to-orders_v2-784b65b8"


@pytest.mark.parametrize("table", ["x" * 63, "Größe Ä", "___", "..", "-", "A.B", "日本"])
def test_a_default_name_is_a_valid_name_for_any_table(table):
    name = in_place(source=Endpoint(table=TableRef("s", table))).name
    assert parse_spec(f"name: {name}\nsource: {{table: t}}\nset: {{a: b}}", {}).name == name
    assert len(name) <= 63


def test_the_meaning_knows_neither_connections_nor_settings():
    changed = in_place(
        name="other",
        source=Endpoint(dsn=Dsn("host=elsewhere"), table="public.orders"),
        workers=9,
        chunk=ChunkLimits(max_rows=10),
        pace=Pace(max_rows_per_s=1, windows=(TimeWindow.parse("22:00-06:00 UTC"),)),
        bloat=Bloat(max_growth=0.2),
        accept=("X",),
        role="r",
        lock_timeout_s=9,
    )
    assert changed.meaning() == in_place().meaning()
    assert changed.settings() != in_place().settings()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"set": {"cents": "amount"}}, "set.cents"),
        ({"set": {"cents": "amount * 100", "more": "1"}}, "set.more"),
        ({"where": "true"}, "where"),
        ({"done": "true"}, "done"),
        ({"key": ("id",)}, "key"),
        ({"order": Order.PHYSICAL}, "order"),
        ({"source": Endpoint(table="orders")}, "source"),
    ],
)
def test_each_part_of_the_meaning_shows_as_a_difference(change, path):
    assert [found for found, _, _ in differences(in_place().meaning(), in_place(**change).meaning())] == [path]


def test_differences_are_words_of_both_sides():
    old, new = copy(key=("a", "b")).meaning(), copy(where="x > 1", on_conflict=OnConflict.parse("newest(c)")).meaning()
    assert differences(old, new) == [
        ("key", "a, b", "(none)"),
        ("on_conflict", "keep", "newest(c)"),
        ("where", "(none)", "x > 1"),
    ]
    assert differences(old, old) == []


def test_differences_of_signals_are_as_the_file_has_them():
    new = in_place(
        pace=Pace(
            signals=(
                SignalSpec(kind=SignalKind.COMMIT_LATENCY, target=0.02),
                SignalSpec(kind=SignalKind.READ_LATENCY, off=True),
            )
        )
    )
    assert differences(in_place().settings(), new.settings()) == [
        ("pace.signals", "(none)", "commit_latency: {target: 20ms}, read_latency: off")
    ]


def test_a_key_of_a_later_version_that_is_not_used_is_no_difference():
    assert differences(copy().meaning(), copy().meaning() | {"transform": None}) == []


def test_the_order_in_which_columns_are_written_is_no_difference():
    one, other = in_place(set={"a": "1", "b": "2"}), in_place(set={"b": "2", "a": "1"})
    assert differences(one.meaning(), other.meaning()) == []
    assert one.name == other.name


def test_the_ledger_gets_references_and_no_secrets():
    data = copy().for_ledger()
    assert data["source"] == {"dsn": {"reference": "${A}"}, "table": "public.orders"}
    assert data["target"] == {"table": "orders_v2"}
    assert "s3cr3t-canary" not in json.dumps(data)


def test_a_spec_comes_back_from_the_ledger_with_the_connections_of_this_host():
    spec = copy(where="a = '${x}'", accept=("X",), key=("a", "B c"))
    data = json.loads(json.dumps(spec.for_ledger()))
    assert JobSpec.from_ledger(data, source_dsn=SOURCE.dsn, target_dsn=TARGET.dsn) == spec
    bare = JobSpec.from_ledger(data)
    assert bare.source.dsn is None
    assert bare.meaning() == spec.meaning()


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        [],
        None,
        {"source": "x"},
        {"source": {"table": "t", "dsn": {"reference": "${HOME}"}}, "set": {"a": None}},
        {"source": {"table": "t"}, "set": {"a": "b"}, "chunk": {"target": 250}},
        {"source": {"table": "t"}, "set": {"a": "b"}, "unknown": 1},
    ],
)
def test_a_damaged_spec_of_the_ledger_is_refused(damaged):
    with pytest.raises(SpecError) as caught:
        JobSpec.from_ledger(damaged)
    assert caught.value.file == "the ledger"


def test_nothing_about_a_spec_shows_its_secrets():
    spec = copy()
    shown = [repr(spec), str(spec), spec.for_ledger(), spec.meaning(), spec.settings(), repr(spec.model_dump())]
    assert "s3cr3t-canary" not in repr(shown)
    assert "s3cr3t-canary" not in spec.model_dump_json()
