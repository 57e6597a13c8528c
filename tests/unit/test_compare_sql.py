"""The text of comparing statements: what is cast to what, what is hashed, where a user's expression stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from engine.model import Column, ConflictPolicy, Key, KeyColumn, TableName
from engine.sql import compare, compare_in_place, images, repair
from engine.sql.compare import Compared, Form, compared, compared_column
from engine.sql.statements import MappedColumn, SourceShape, TargetShape


def column(name: str, oid: int, declared: str, base: str | None = None, **more: Any) -> Column:
    """A column of a table, plain unless said otherwise."""
    facts: dict[str, Any] = {
        "name": name,
        "number": 1,
        "type_oid": oid,
        "type_name": declared,
        "base_type": base or declared,
        "type_kind": "b",
        "category_oid": oid,
        "not_null": False,
        "identity": "",
        "generated": "",
        "has_default": False,
        "collation": None,
        "collation_id": None,
        "collation_is_c": False,
        "enum_labels": (),
        "binary_io": True,
        "binary_portable": True,
    }
    return Column(**facts | more)


COLUMNS = {
    "Id": column("Id", 20, "bigint"),
    "price": column("price", 1700, "numeric(10,2)", "numeric"),
    "r": column("r", 701, "double precision"),
}
KEY = Key((KeyColumn("id", "integer", 23, "int"),), "src_pkey")
OURS = (KeyColumn("Id", "bigint", 20, "int"),)


def two_tables(*, where: str | None = None, volatile: frozenset[str] = frozenset()) -> Compared:
    """Two tables of the odd names, one column an expression."""
    mapped = (
        MappedColumn("Id", '"id"', "bigint", needs_cast=False),
        MappedColumn("price", "cents / 100.0", "numeric", needs_cast=False),
        MappedColumn("r", "random()", "double precision", needs_cast=False),
    )
    target = TargetShape(TableName("My Schema", "dst"), OURS, mapped, False, ConflictPolicy.KEEP, None, True, True)
    return compared(SourceShape(TableName("public", "listed"), KEY, where), target, COLUMNS, volatile=volatile)


@pytest.mark.parametrize(
    ("declared", "base", "oid", "cast"),
    [
        ("numeric(10,2)", "numeric", 1700, "numeric(10,2)"),
        ("numeric(10,2)[]", "numeric[]", 1231, "numeric(10,2)[]"),
        ("timestamp(3) without time zone", "timestamp without time zone", 1114, "timestamp(3) without time zone"),
        ("interval day to second(2)", "interval", 1186, "interval day to second(2)"),
        ("character varying(3)", "character varying", 1043, "character varying"),
        ("character(3)", "bpchar", 1042, "bpchar"),
        ("bit(3)", '"bit"', 1560, '"bit"'),
        ("bit varying(3)", "bit varying", 1562, "bit varying"),
    ],
)
def test_a_value_is_rounded_as_an_assignment_rounds_and_never_cut_where_one_refuses(
    declared: str, base: str, oid: int, cast: str
) -> None:
    assert compared_column(column("c", oid, declared, base), "x").source_value == f"(x)::{cast}"


def test_a_type_of_the_users_is_compared_by_its_text_alone() -> None:
    mood = compared_column(column("c", 16400, "public.mood", type_kind="e"), "x")
    assert (mood.source_value, mood.target_value, mood.type_oid) == ("(x)::text", '("c")::text', images.TEXT)


def test_no_type_stands_for_itself_whose_hash_sees_less_than_its_text() -> None:
    # bigint, money and the times: 64 bits folded into 32.  Floats: -0.  numeric: neither sign nor scale.  interval: a
    # day is 24 hours.  bpchar: blanks.  jsonb and arrays: their numbers, no dimensions.  Enums: an OID.
    for oid in (
        20,
        790,
        1083,
        1114,
        1184,
        1266,
        700,
        701,
        1700,
        1186,
        1042,
        3802,
        114,
        1007,
        1231,
        3904,
        600,
        5069,
        3220,
    ):
        assert images.image(oid, "x") != "x", oid
    assert images.image(images.TEXT, "x") == '(x) COLLATE "C"'


def test_every_type_that_is_not_hashed_as_text_has_samples_to_agree_on() -> None:
    textual = {oid for oid in range(1, 10000) if images.image(oid, "x") == '((x)::text) COLLATE "C"'}
    others = {oid for oid in range(1, 10000) if oid not in textual}
    assert others - {1043, 1014} == set(images.SAMPLES) == set(images.SAMPLE_TYPES)


def test_columns_that_change_each_time_are_written_and_not_compared_unless_they_are_the_key() -> None:
    both = two_tables(volatile=frozenset({"r", "Id"}))
    assert [c.name for c in both.columns] == ["Id", "price"]
    assert both.not_compared == ("r",)
    assert [c.name for c in both.written] == ["Id", "price", "r"]


def statements() -> dict[str, str]:
    """Every statement, with a user's predicate in it."""
    both = two_tables(where="listed.state = 1")
    shape = compare_in_place.in_place(
        SourceShape(TableName("public", "listed"), KEY, "listed.state = 1"), {"price": "cents / 100.0"}, COLUMNS
    )
    there, here = compare.source_rows(both), compare.target_rows(both)
    found = {
        "lock": repair.lock(there, "FOR SHARE"),
        "values": repair.values(there, both.written),
        "update": repair.update(here, both.columns),
        "insert": repair.insert(here, both, both.written),
        "delete": repair.delete(here),
        "look": compare.look((there, here)),
        "marks": compare.marks((there,)),
        "look in place": compare_in_place.in_place_look(shape),
        "marks in place": compare_in_place.in_place_marks(shape),
        "lock in place": compare_in_place.in_place_lock(shape),
        "repair in place": compare_in_place.in_place_repair(shape),
    }
    ranges: dict[str, Callable[[bool], str]] = {
        "verify_chunk": lambda first: compare.verify_chunk(both, first=first),
        "in_place_chunk": lambda first: compare_in_place.in_place_chunk(shape, first=first),
        "suspects in place": lambda first: compare_in_place.in_place_suspects(shape, first=first),
        "digest in place": lambda first: compare_in_place.in_place_digest(shape, first=first),
        "digests": lambda first: compare.digests(both, Form.RECORD, first=first),
        "digest": lambda first: compare.digest(there, Form.TEXT, first=first),
        "suspects": lambda first: compare.suspects(both, Form.RECORD, first=first),
        "buckets": lambda first: compare.buckets(there, Form.RECORD, first=first),
        "rows": lambda first: compare.listed_rows(there, Form.VALUES, first=first),
        "keys": lambda first: compare.listed_keys(here, first=first, order=OURS),
    }
    for name, make in ranges.items():
        found[name] = make(False)
        found[f"{name}, first"] = make(True)
    return found


@pytest.mark.parametrize("name", statements())
def test_a_statement_mentions_every_parameter_up_to_its_last(name: str) -> None:
    sql = statements()[name]
    numbers = {int(n) for n in re.findall(r"\$(\d+)", sql)}
    assert numbers == set(range(1, max(numbers) + 1))
    chunk = name.startswith(("verify_chunk", "in_place_chunk"))
    assert max(numbers) == (8 if chunk else 1 if len(numbers) == 1 else 2)


@pytest.mark.parametrize("name", statements())
def test_a_source_table_called_as_our_own_list_of_keys_is_not_taken_for_it(name: str) -> None:
    sql = statements()[name]
    assert not re.search(r"(?<!_)\blisted\.(?!state)", sql)


def test_a_repair_writes_no_identity_that_no_update_can_write() -> None:
    identity = compared_column(column("n", 20, "bigint", identity="always"), "n")
    assert not identity.may_be_set
    assert compared_column(column("n", 20, "bigint", identity="default"), "n").may_be_set


def test_a_rows_hash_starts_from_its_key_on_both_sides_alike() -> None:
    both = two_tables()
    for side, value in ((compare.source_rows(both), '("id")::bigint'), (compare.target_rows(both), '("Id")::bigint')):
        for form in (Form.RECORD, Form.TEXT):
            assert side.row(form).endswith(f", ({value})::bigint)")
