"""Names and values as SQL text.  That the server agrees is shown by ``tests/integration/test_db_literals.py``."""

from __future__ import annotations

import pytest

from engine.model import TableName
from engine.sql import ident, idents, literal, qualified, text_array


@pytest.mark.parametrize(
    ("name", "sql"), [("id", '"id"'), ("A b", '"A b"'), ('say "hi"', '"say ""hi"""'), ("select", '"select"')]
)
def test_names_are_always_quoted(name: str, sql: str) -> None:
    assert ident(name) == sql


def test_lists_and_qualified_names() -> None:
    assert idents(["a", "B"]) == '"a", "B"'
    assert qualified(TableName("pub.lic", "t")) == '"pub.lic"."t"'


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_what_no_catalogue_holds_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="identifier"):
        ident(name)


@pytest.mark.parametrize(("text", "sql"), [("", "''"), ("it's", "'it''s'"), ("a\\b'", r" E'a\\b'''"), ("é\n", "'é\n'")])
def test_values_become_literals(text: str, sql: str) -> None:
    assert literal(text) == sql


@pytest.mark.parametrize("text", ["a\0", "secret\ud800"])
def test_what_no_text_column_holds_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="text value") as caught:
        literal(text)
    assert "secret" not in str(caught.value)


def test_arrays() -> None:
    assert text_array(()) == "ARRAY[]::text[]"
    assert text_array(("1", "it's")) == "ARRAY['1', 'it''s']::text[]"
