"""Small parsers of the spec room: durations, sizes, names, conflict policies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import ConflictPolicy
from engine.spec import OnConflict, TableRef
from engine.spec.misfit import Misfit
from engine.spec.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("2s", 2.0), ("1.5 s", 1.5), ("5m", 300.0), ("5min", 300.0), ("1h", 3600.0), ("1d", 86400.0)],
)
def test_a_duration_carries_its_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value", [250, 2.5, "250", "", "ms", "-1s", "1 week", "1e3s", "2s\n", "1s 2ms", "٣s", True, None]
)
def test_a_duration_without_a_known_unit_is_refused_with_examples(value):
    with pytest.raises(Misfit) as caught:
        parse_duration(value)
    assert "250ms" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("16MiB", 2**24), ("10MB", 10**7), ("64 KiB", 2**16), ("1.5GiB", 3 * 2**29), ("7B", 7)]
)
def test_a_size_knows_powers_of_1000_from_powers_of_1024(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("value", [16, "16", "16mib", "16Mb", "16M", "-1MB", "1TB1", ""])
def test_a_size_in_doubtful_spelling_is_refused(value):
    with pytest.raises(Misfit):
        parse_size(value)


@given(st.floats(min_value=0.001, max_value=3600.0))
def test_a_duration_comes_back_exactly(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 2**40))
def test_a_size_survives_text_and_back(size_bytes):
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("orders", None, "orders"),
        ("public.orders", "public", "orders"),
        ("Public.Orders", "public", "orders"),
        ('"Sales"."Order Lines"', "Sales", "Order Lines"),
        ('sales."a.b"', "sales", "a.b"),
        ('"say ""hi"""', None, 'say "hi"'),
        ("größe", None, "größe"),
        (" orders ", None, "orders"),
        ("t$1", None, "t$1"),
    ],
)
def test_a_table_is_named_as_in_sql(text, schema, name):
    assert TableRef.parse(text) == TableRef(schema, name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "a.",
        ".a",
        "a..b",
        '"a',
        'a"b"',
        "a b",
        "1a",
        "a;drop table b",
        '""',
        "a.b.c",
        "a-b",
        "x" * 64,
        "a\n",
    ],
)
def test_what_is_no_table_name_is_refused(text):
    with pytest.raises(Misfit):
        TableRef.parse(text)


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=15).filter(
    lambda name: name.strip()
)


@given(st.none() | NAMES, NAMES)
def test_a_table_written_out_names_the_same_table(schema, name):
    table = TableRef(schema, name)
    assert TableRef.parse(str(table)) == table


@pytest.mark.parametrize(
    ("text", "policy", "column"),
    [
        ("keep", ConflictPolicy.KEEP, None),
        ("replace", ConflictPolicy.REPLACE, None),
        ("fail", ConflictPolicy.FAIL, None),
        ("newest(updated_at)", ConflictPolicy.NEWEST, "updated_at"),
        ("newest( Updated_At )", ConflictPolicy.NEWEST, "updated_at"),
        ('newest("Updated At")', ConflictPolicy.NEWEST, "Updated At"),
    ],
)
def test_a_conflict_policy_is_read_and_written(text, policy, column):
    parsed = OnConflict.parse(text)
    assert (parsed.policy, parsed.column) == (policy, column)
    assert OnConflict.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text", ["newest", "newest()", "newest(a.b)", "newest(a, b)", "keep(a)", "latest", "", "keep keep"]
)
def test_what_is_no_conflict_policy_is_refused(text):
    with pytest.raises(Misfit):
        OnConflict.parse(text)
