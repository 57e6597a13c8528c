"""A spec's transform: a name that is checked and never imported, and who may load it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SpecError
from engine.model import Declaration
from engine.spec import (
    Dsn,
    Endpoint,
    JobSpec,
    Purpose,
    TableRef,
    TransformRights,
    differences,
    json_schema,
    parse_spec,
    read_submitted,
    spec_from_flags,
)

CENTS = "shop.transforms:cents"
FILE = f"source: {{dsn: host=a, table: orders}}\ntransform: {CENTS}\n"


def problems(text: str) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, {})
    return {problem.path: f"{problem.message}; {problem.hint}" for problem in caught.value.problems}


@pytest.mark.parametrize("name", [CENTS, "cents:cents", "_a.b1.C:_d", f"antigravity{'.a' * 40}:b"])
def test_a_name_is_a_module_and_a_function(name: str) -> None:
    assert parse_spec(FILE.replace(CENTS, name), {}).transform == name
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        "shop.transforms",
        "shop.transforms:",
        ":cents",
        "shop..transforms:cents",
        "shop/transforms.py:cents",
        "shop.transforms:cents.inner",
        "shop.transforms:*",
        "shop.transforms:cents()",
        "shop.transforms:cents\n",
        " shop.transforms:cents",
        "1shop:cents",
        "shöp:cents",
        "",
    ],
)
def test_anything_else_is_refused_with_the_form(name: str) -> None:
    found = problems(f"source: {{dsn: host=a, table: orders}}\ntransform: {json.dumps(name)}\n")
    assert list(found) == ["transform"]
    assert "shop.transforms:cents" in found["transform"]


def test_a_name_is_text() -> None:
    assert "must be text" in problems("source: {dsn: host=a, table: orders}\ntransform: 1\n")["transform"]


def test_a_transform_is_enough_for_a_job_in_place_and_may_stand_beside_set_and_columns() -> None:
    assert parse_spec(FILE, {}).in_place
    assert parse_spec(FILE + "set: {note: \"'x'\"}\n", {}).set
    assert parse_spec(FILE + "target: {table: other}\ncolumns: {id: id}\n", {}).columns


def test_a_job_in_place_that_fills_nothing_is_told_of_both_ways() -> None:
    assert "transform" in problems("source: {dsn: host=a, table: orders}\n")["set"]


def test_flags_say_it_too() -> None:
    spec = spec_from_flags({}, dsn="host=a", table="orders", transform=CENTS)
    assert spec.transform == CENTS
    with pytest.raises(SpecError) as caught:
        spec_from_flags({}, dsn="host=a", table="orders", transform="cents")
    assert [problem.path for problem in caught.value.problems] == ["--transform"]


def test_the_schema_knows_it() -> None:
    assert CENTS in json_schema()["properties"]["transform"]["examples"]


# -- identity ---------------------------------------------------------------------------------------------------------


def job(**changes: Any) -> JobSpec:
    return JobSpec(**{"source": Endpoint(table=TableRef(None, "orders"), dsn=Dsn("host=a"))} | changes)


def test_another_transform_is_another_job() -> None:
    one, other = job(transform=CENTS), job(transform="shop.transforms:hashes")
    assert differences(one.meaning(), other.meaning()) == [("transform", CENTS, "shop.transforms:hashes")]
    assert one.name != other.name


def test_a_job_without_one_means_and_is_called_what_it_was() -> None:
    plain = job(set={"cents": "1"})
    assert plain.meaning()["transform"] is None
    assert "transform" not in plain.for_ledger()


def test_it_comes_back_from_the_ledger() -> None:
    data = json.loads(json.dumps(job(transform=CENTS, set={"note": "'x'"}).for_ledger()))
    assert JobSpec.from_ledger(data).transform == CENTS


# -- rights -----------------------------------------------------------------------------------------------------------


def test_by_hand_what_the_file_names_may_be_loaded_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rights = parse_spec(FILE, {}).transforms
    assert (rights.allow(CENTS), rights.allow("shop.transforms:other"), rights.search) == (True, False, tmp_path)


def test_python_code_that_builds_a_spec_may_load_what_it_names() -> None:
    assert job(transform=CENTS).transforms == TransformRights(frozenset({CENTS}))


def test_the_ledger_allows_nothing() -> None:
    data = job(transform=CENTS).for_ledger()
    assert not JobSpec.from_ledger(data).transforms.allow(CENTS)
    rights = TransformRights(declared=Declaration(CENTS, (), ("cents",)))
    assert not JobSpec.from_ledger(data, transforms=rights).transforms.allow(CENTS)


def test_a_submitted_spec_allows_nothing() -> None:
    data = {"source": {"connection": "main", "table": "public.orders"}, "transform": CENTS}
    assert not read_submitted(data).transforms.allow(CENTS)
    assert not parse_spec(json.dumps(data), {}, purpose=Purpose.DAEMON).transforms.allow(CENTS)


def test_rights_stay_with_a_copy_and_are_no_part_of_what_a_spec_says() -> None:
    spec = job(transform=CENTS)
    assert spec.model_copy(update={"workers": 5}).transforms == spec.transforms
    assert "allowed" not in spec.model_dump_json() + repr(spec)


@pytest.mark.parametrize(
    ("pattern", "covers"),
    [
        (CENTS, True),
        ("shop.transforms:*", True),
        ("shop.transforms:cent", False),
        ("shop:*", False),
        ("shop.transforms.cents:*", False),
        ("*", False),
        ("*:*", False),
    ],
)
def test_a_pattern_covers_one_function_or_one_module(pattern: str, covers: bool) -> None:
    assert TransformRights(frozenset({pattern})).allow(CENTS) is covers
