"""A text is one SQL expression, or the reader says where it stops being one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sql import ExpressionError, read_expression

ONE_EXPRESSION = [
    "amount",
    "(amount * 100)::bigint",
    "1.5e-3 + .5",
    "coalesce(a, 'it''s; -- fine', b)",
    r"E'a\'b;' || B'01' || X'ff' || U&'\0441'",
    "$q$;) ' $q$ || $$ -- $$",
    "a is distinct from b",
    "percentile_cont(0.5) within group (order by x)",
    "(select max(x) from t where y = 1)",
    "case when a then b else c end",
    "arr[1:2]",
    "ts at time zone 'utc'",
    't.order + t."from"',
    "a /* one /* two */ ; */ + b -- rest ;",
    "a -- first\n + b",
    "update + set",
    "payload #>> '{a,b}' ~* '^x'",
]


@pytest.mark.parametrize("text", ONE_EXPRESSION)
def test_one_expression_is_accepted_and_kept_as_written(text: str) -> None:
    assert read_expression(text).text == text


@pytest.mark.parametrize(
    ("text", "complaint", "offset"),
    [
        ("", "empty", 0),
        ("  -- nothing\n", "empty", 0),
        ("a; drop table t", "';'", 1),
        ("f(a; b)", "';'", 3),
        ("a, b", "','", 1),
        ("(a", "never closed", 0),
        ("a)", "closes nothing", 1),
        ("(a]", "closes nothing", 2),
        ("a) or (true", "closes nothing", 1),
        ("'a", "a string is never closed", 0),
        (r"E'a\'", "a string is never closed", 0),
        ('"a', "a quoted name is never closed", 0),
        ('a + ""', "empty", 4),
        ("$q$ a $r$", "never closed", 0),
        ("a /* b", "a comment is never closed", 2),
        ("a /* /* */", "a comment is never closed", 2),
        ("a = $1", "$1", 4),
        (r"\d", "unexpected", 0),
        ("a +\0 b", "NUL", 3),
        ("select a", "statement", 0),
        ("WITH x AS (select 1) select 2", "statement", 0),
        ("a where b", "WHERE", 2),
        ("a from t", "FROM", 2),
        ("a AS b", "AS", 2),
        ("a union select 1", "UNION", 2),
        ("a,", "','", 1),
        ("t.", "ends with", 2),
    ],
)
def test_anything_else_is_refused_with_its_place(text: str, complaint: str, offset: int) -> None:
    with pytest.raises(ExpressionError, match=complaint.replace("$", r"\$")) as caught:
        read_expression(text)
    assert caught.value.offset == offset


def test_names_are_folded_unless_quoted_and_functions_are_told_from_columns() -> None:
    read = read_expression('Lower(T."Mixed ""One""") || pg_catalog.NOW ()::text || U&"d\\0061ta" || \'literal\'')
    assert read.identifiers == {"t", 'Mixed "One"', "pg_catalog", "text", "data"}
    assert read.functions == {"lower", "now"}


def test_only_ascii_is_folded_as_the_server_does() -> None:
    assert "Ärger" in read_expression("Ärger + 1").identifiers


def test_comments_are_left_out_so_that_a_bracket_can_follow_on_the_same_line() -> None:
    assert read_expression("a/* x */+b -- rest").sql == "a +b"


@given(st.text(alphabet="ab1'\"$()[];,.-*/\\ \nEeUu&:", max_size=40))
def test_every_text_is_read_or_refused_and_what_is_read_stays_in_its_brackets(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        read = read_expression(text)
        around = read_expression(f"f(({read.sql}), 1)")
        assert around.identifiers == read.identifiers
        assert around.functions == read.functions | {"f"}
