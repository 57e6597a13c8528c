"""Our literals against the server's own ``quote_literal``, and on the way through COPY."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.db import Connection, Database
from engine.model import Side
from engine.sql import ident, literal, read_expression, text_array
from tests.support.databases import FreshDatabase, on_each_major

pytestmark = on_each_major

TEXT = st.text(
    alphabet=st.one_of(
        st.sampled_from("'\"\\\n\t$%;-/*{},Ee "),
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    ),
    max_size=30,
)
shares_the_server = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class Session:
    """A session for tests that Hypothesis repeats: its own loop, one call at a time."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        self._connection: Connection = self._runner.run(Database(dsn, side=Side.SOURCE).connect("test"))

    def texts(self, sql: str, *args: object) -> list[str]:
        return [row[0] for row in self._runner.run(self._connection.fetch(sql, *args))]

    def execute(self, sql: str) -> None:
        self._runner.run(self._connection.execute(sql))

    def copied(self, query: str) -> bytes:
        pieces: list[bytes] = []

        async def sink(piece: bytes) -> None:
            pieces.append(piece)

        self._runner.run(self._connection.copy_out(query, sink))
        return b"".join(pieces)

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


@pytest.fixture
def session(database: FreshDatabase) -> Iterator[Session]:
    opened = Session(database.dsn)
    yield opened
    opened.close()


@shares_the_server
@given(texts=st.lists(TEXT, min_size=1, max_size=50))
def test_a_literal_is_what_quote_literal_writes(session: Session, texts: list[str]) -> None:
    theirs = session.texts("SELECT quote_literal(t) FROM unnest($1::text[]) WITH ORDINALITY u(t, n) ORDER BY n", texts)
    assert [literal(text).lstrip() for text in texts] == theirs


@shares_the_server
@given(texts=st.lists(TEXT, max_size=20))
def test_an_array_of_literals_is_read_back_unchanged_whatever_the_setting(session: Session, texts: list[str]) -> None:
    query = f"SELECT t FROM unnest({text_array(texts)}) WITH ORDINALITY u(t, n) ORDER BY n"
    assert session.texts(query) == texts
    session.execute("SET standard_conforming_strings = off; SET escape_string_warning = off")
    try:
        assert session.texts(query + " /* again */") == texts
    finally:
        session.execute("RESET standard_conforming_strings")


@shares_the_server
@given(text=TEXT)
def test_a_literal_in_copy_means_the_same_value(session: Session, text: str) -> None:
    data = text.encode()
    copied = session.copied(f"SELECT {literal(text)}::text WHERE {literal(text)} = ({text_array([text])})[1]")
    assert copied.endswith(b"\0\x01" + len(data).to_bytes(4, "big") + data + b"\xff\xff")


@shares_the_server
@given(name=TEXT.filter(bool).filter(lambda name: len(name.encode()) < 64))
def test_a_name_means_exactly_itself(session: Session, name: str) -> None:
    assert session.texts(f"SELECT {ident(name)} FROM (SELECT 'yes'::text AS {ident(name)}) x") == ["yes"]


@pytest.mark.parametrize(
    "text",
    [r"E'a\'b' || 'c'", "$q$;)$q$ || 'x' -- rest", "'a'\n'b' /* /* */ ; */", "U&\"\\0061\" || ''", "(a)", "(-1)::text"],
)
def test_what_the_reader_takes_for_one_expression_the_server_does_too(session: Session, text: str) -> None:
    read = read_expression(text)
    assert len(session.texts(f"SELECT ({read.sql})::text FROM (SELECT 'x'::text AS a) t")) == 1
