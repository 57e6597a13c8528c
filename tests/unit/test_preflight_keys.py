"""The key a job pages through, and the arbiter that keeps it unique in the target."""

from __future__ import annotations

import pytest

from engine.plan.preflight import choose_arbiter, choose_key, ranges_agree
from tests.support.preflight import column, index, primary, required, spec, table


def chosen(source, **changes):
    choice = choose_key(spec(set={"amount": "1"}, **changes), source)
    assert choice.key is not None, choice.findings
    return choice.key


def refused(source, **changes):
    choice = choose_key(spec(set={"amount": "1"}, **changes), source)
    assert choice.key is None
    assert choice.findings
    return choice.findings


def test_the_primary_key_is_the_default_even_when_it_is_the_larger_one():
    source = table(
        "orders",
        required("code", "text"),
        required("id"),
        indexes=[primary("code", size_bytes=1 << 30), index("by_id", "id")],
    )
    assert chosen(source).names == ("code",)


def test_without_a_primary_key_the_cheapest_unique_index_serves():
    columns = (required("id"), required("code", "text"), required("a"), required("b"), required("shape", "box"))
    by_code, by_pair = index("by_code", "code", size_bytes=1), index("by_pair", "a", "b", size_bytes=2)
    by_id, by_shape = index("by_id", "id", size_bytes=9), index("by_shape", "shape", size_bytes=0)
    assert chosen(table("t", *columns, indexes=[by_shape, by_code, by_pair, by_id])).index == "by_id"
    assert chosen(table("t", *columns, indexes=[by_shape, by_code, by_pair])).index == "by_pair"
    assert chosen(table("t", *columns, indexes=[by_shape, by_code])).index == "by_code"
    smaller = index("smaller", "a", size_bytes=5)
    assert chosen(table("t", *columns, indexes=[by_id, smaller])).index == "smaller"


def test_a_key_column_carries_its_type_kind_collation_and_labels():
    source = table(
        "t",
        required("mood", "mood", type_kind="e", enum_labels=("sad", "glad")),
        required("name", "character varying(20)"),
        indexes=[primary("mood", "name")],
    )
    mood, name = chosen(source).columns
    assert (mood.kind, mood.enum_labels) == ("enum", ("sad", "glad"))
    assert (name.kind, name.type_name, name.collation_id) == (
        "text",
        "character varying",
        source.column("name").collation_id,
    )


def test_a_named_key_is_used_in_the_order_given():
    columns = (required("tenant"), required("id"))
    source = table("t", *columns, indexes=[primary("id"), index("by_tenant", "tenant", "id")])
    assert chosen(source, key=("tenant", "id")).index == "by_tenant"


def test_a_named_key_in_another_order_than_its_index_is_refused_with_the_right_order():
    source = table("t", required("tenant"), required("id"), indexes=[primary("tenant", "id")])
    (found,) = refused(source, key=("id", "tenant"))
    assert found.code == "KEY_INDEX_UNUSABLE"
    assert "key: [tenant, id]" in found.remedy


def test_of_two_indexes_on_a_named_key_the_smaller_usable_one_serves():
    source = table(
        "t",
        required("id"),
        required("code"),
        indexes=[
            index("large", "id", size_bytes=9),
            index("small", "id", size_bytes=5),
            index("partial", "id", size_bytes=1, partial=True),
            index("other", "code", size_bytes=1),
        ],
    )
    assert chosen(source, key=("id",)).index == "small"


def test_a_named_key_without_a_unique_index_is_not_a_key():
    columns = (required("id"), required("tenant"))
    source = table("t", *columns, indexes=[primary("id"), index("plain", "tenant", unique=False)])
    assert [f.code for f in refused(source, key=("tenant",))] == ["KEY_NOT_UNIQUE"]
    assert [f.code for f in refused(source, key=("tenant", "id"))] == ["KEY_NOT_UNIQUE"]


def test_a_named_key_column_that_does_not_exist_is_refused_with_the_closest_name():
    source = table("t", required("Id"), indexes=[primary("Id")])
    (found,) = refused(source, key=("id",))
    assert found.code == "COLUMN_MISSING"
    assert "did you mean Id?" in found.remedy


def test_a_nullable_unique_column_is_no_key():
    source = table("t", column("id"), indexes=[index("by_id", "id")])
    assert [f.code for f in refused(source)] == ["KEY_NULLABLE"]
    assert [f.code for f in refused(source, key=("id",))] == ["KEY_NULLABLE"]
    assert chosen(table("t", required("id"), indexes=[index("by_id", "id")])).index == "by_id"


def test_a_table_without_any_unique_index_has_no_key():
    assert [f.code for f in refused(table("t", required("id"), indexes=[index("i", "id", unique=False)]))] == ["NO_KEY"]


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ({"partial": True}, "partial"),
        ({"immediate": False}, "deferrable"),
        ({"valid": False}, "invalid"),
        ({"columns": ("id", "")}, "expression"),
        ({"method": "hash"}, "hash"),
        ({"descending": (True, False)}, "mixes"),
        ({"default_opclass": False}, "operator class"),
    ],
)
def test_an_index_that_does_not_order_every_row_is_no_key_and_the_reason_is_said(fault, word):
    columns = (required("id"), required("part"))
    (found,) = refused(table("t", *columns, indexes=[index("odd", "id", "part", **fault)]))
    assert found.code == "KEY_INDEX_UNUSABLE"
    assert word in found.message
    assert ";" not in found.message, "one fault, one reason"
    assert chosen(table("t", *columns, indexes=[index("fine", "id", "part")])).index == "fine"


def test_an_expression_has_no_collation_to_disagree_with():
    (found,) = refused(table("t", indexes=[index("odd", "", default_opclass=False)]))
    assert found.message.endswith("it indexes an expression")


def test_an_index_that_is_descending_throughout_serves():
    source = table("t", required("a"), required("b"), indexes=[primary("a", "b", descending=(True, True))])
    assert chosen(source).names == ("a", "b")


def test_a_named_key_with_an_unusable_index_says_what_is_wrong_with_it():
    source = table("t", required("id"), indexes=[primary("id", immediate=False)])
    (found,) = refused(source, key=("id",))
    assert found.code == "KEY_INDEX_UNUSABLE"
    assert "deferrable" in found.message


def test_each_unusable_index_is_reported():
    source = table(
        "t", required("a"), column("b"), indexes=[index("one", "a", partial=True), index("two", "b"), index("n", "a")]
    )
    assert chosen(source).index == "n"
    source = table("t", required("a"), column("b"), indexes=[index("one", "a", partial=True), index("two", "b")])
    assert [f.code for f in refused(source)] == ["KEY_INDEX_UNUSABLE", "KEY_NULLABLE"]


def test_the_arbiter_is_a_unique_index_on_exactly_the_key_in_any_order():
    columns = (required("a"), required("b"), required("c"))
    fits = index("fits", "b", "a")
    target = table("t", *columns, indexes=[primary("c"), index("wide", "a", "b", "c"), index("a", "a"), fits])
    assert choose_arbiter(("a", "b"), target) is fits
    assert choose_arbiter(("b", "c"), target) is None


def test_of_two_arbiters_the_primary_key_wins():
    pkey = primary("id", size_bytes=9)
    assert choose_arbiter(("id",), table("t", required("id"), indexes=[index("i", "id", size_bytes=1), pkey])) is pkey


@pytest.mark.parametrize(
    "fault", [{"unique": False}, {"partial": True}, {"immediate": False}, {"valid": False}, {"columns": ("",)}]
)
def test_partial_deferrable_invalid_and_expression_indexes_are_no_arbiters(fault):
    assert choose_arbiter(("id",), table("t", required("id"), indexes=[index("i", "id", **fault)])) is None


def test_a_nullable_column_does_not_spoil_an_arbiter():
    arbiter = index("i", "id")
    assert choose_arbiter(("id",), table("t", column("id"), indexes=[arbiter])) is arbiter


def test_an_arbiter_may_mix_directions():
    arbiter = index("i", "a", "b", descending=(True, False))
    assert choose_arbiter(("a", "b"), table("t", required("a"), required("b"), indexes=[arbiter])) is arbiter


ENUM = {"type_kind": "e", "enum_labels": ("sad", "glad")}


@pytest.mark.parametrize(
    ("ours", "theirs", "agree"),
    [
        (required("k", "integer"), required("k", "bigint"), True),
        (required("k", "text"), required("k", "character varying(9)"), True),
        (required("k", "text"), required("k", "text", collation_id="icu de 153.14"), False),
        (required("k", "bigint"), required("k", "text"), False),
        (required("k", "bigint"), required("k", "numeric"), False),
        (required("k", "mood", **ENUM), required("k", "mood", **ENUM), True),
        (required("k", "mood", **ENUM), required("k", "mood", type_kind="e", enum_labels=("glad", "sad")), False),
        (required("k", "inet"), required("k", "inet"), True),
        (required("k", "inet"), required("k", "macaddr"), False),
    ],
)
def test_ranges_mean_the_same_only_where_both_sides_sort_alike(ours, theirs, agree):
    key = chosen(table("t", ours, indexes=[primary("k")]))
    assert ranges_agree(key, (theirs,)) is agree


def test_a_key_of_an_extensions_type_is_refused_since_only_its_own_operators_know_its_order():
    source = table("t", required("k", "citext"), indexes=[primary("k")])
    choice = choose_key(spec(set={"amount": "1"}), source)
    assert choice.key is None
    assert [f.code for f in choice.findings] == ["KEY_INDEX_UNUSABLE"]
    assert choose_arbiter(("k",), source) is None
