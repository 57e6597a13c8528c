"""Every type that a transform can read and write, to real servers and back: decoded as the server shows it, encoded
to the very bytes it came as; and what a transform makes itself arrives as the server would have written it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import encode as native
from engine._native.rows import HEADER, TRAILER, Rows, assemble
from engine.sql import literal
from engine.transform.columns import INFINITY, Column, ListColumn
from engine.transform.decoding import decode
from engine.transform.encoding import WrongResult, encode
from engine.transform.types import FORMS, ColumnType
from tests.support.databases import MAJORS, Servers, create_database, drop_database
from tests.support.transformed import (
    DATES,
    DOMAINS,
    JUDGES,
    TIMESTAMPS,
    TYPES,
    Session,
    array_text,
    decimal_text,
    rows_of,
    scaled_text,
)

assert settings.default is not None
few = settings(max_examples=max(6, settings.default.max_examples // 8))  # there is a test per type and version


class Tables:
    """Of each declared type: table ``origin_<n>`` and its twin ``arrived_<n>``, with columns n and v; and the same
    pair with arrays of it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._found: dict[str, list[ColumnType]] = {}
        session.execute(DOMAINS)
        for number, declared in enumerate(TYPES):
            for suffix in ("", "_array") if TYPES[declared].has_array else ("",):
                columns = f"(n bigint, v {declared}{'[]' if suffix else ''})"
                session.execute(f"CREATE TABLE origin_{number}{suffix} {columns}")
                session.execute(f"CREATE TABLE arrived_{number}{suffix} {columns}")

    def of(self, declared: str, *, array: bool) -> tuple[str, list[ColumnType]]:
        """The suffix of its tables, and the column v in each form that a transform may ask for."""
        name = f"{list(TYPES).index(declared)}{'_array' if array else ''}"
        if name not in self._found:
            forms = [self.session.column_type(f"origin_{name}", "v", form) for form in FORMS]
            assert forms[0] is not None
            self._found[name] = [form for form in forms if form is not None]
        return name, self._found[name]


@pytest.fixture(scope="module", params=MAJORS, ids=lambda major: f"pg{major}")
def tables(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Tables]:
    database = create_database(servers.get(request.param))
    session = Session(database.dsn)
    try:
        yield Tables(session)
    finally:
        session.close()
        drop_database(database)


def piece_of(rows: Rows, layout: list[int], columns: list[Any]) -> bytes:
    return HEADER + assemble(rows, layout, columns) + TRAILER


def round_trip(
    tables: Tables, declared: str, texts: list[str | None], *, array: bool = False, decimals_only: bool = False
) -> None:
    """Put the texts into a column, read it, compare with the server's own text, write it, and read it again."""
    session = tables.session
    name, forms = tables.of(declared, array=array)
    if decimals_only:
        forms = forms[1:]
    session.execute("BEGIN")
    try:
        sql_type = f"{declared}{'[]' if array else ''}"
        session.fetch(
            f"INSERT INTO origin_{name} SELECT n, t::{sql_type} FROM unnest($1::text[]) WITH ORDINALITY u(t, n)", texts
        )
        stream = session.copied(f"SELECT n, v FROM origin_{name} ORDER BY n")
        if array:
            shown = session.fetch(
                f"SELECT v IS NULL, coalesce(array_lower(v, 1), 1), ARRAY(SELECT e::text FROM unnest(v) WITH ORDINALITY u(e, i)"
                f" ORDER BY i) FROM origin_{name} ORDER BY n"
            )
        else:
            shown = session.fetch(f"SELECT v::text FROM origin_{name} ORDER BY n")
        rows = rows_of(stream, 2)
        assert rows.count == len(texts)
        for form in forms:
            column, bad = decode(rows, 1, form)
            assert bad == []
            if array:
                assert isinstance(column, ListColumn)
                check_lists(declared, form, column, shown)
            else:
                assert isinstance(column, Column)
                check_values(declared, form, column, [text for (text,) in shown])
            encoded, bad = encode(column, form, rows.count)
            assert bad == []
            written = piece_of(rows, [0, -1], [encoded])
            assert written == stream
        session.copy_in(f"arrived_{name}", ["n", "v"], written)
        assert session.copied(f"SELECT n, v FROM arrived_{name} ORDER BY n") == stream
    finally:
        session.execute("ROLLBACK")


def check_values(declared: str, form: ColumnType, column: Column, texts: list[str | None]) -> None:
    judge = JUDGES[TYPES[declared].judge or form.kind]
    assert len(column) == len(texts)
    assert column.scale == (form.scale if form.kind == "scaled" else None)
    for value, null, text in zip(column.values, column.null, texts, strict=True):
        assert null == (text is None)
        assert text is None or judge(value, column.scale, text), (value, text)


def check_lists(declared: str, form: ColumnType, column: ListColumn, shown: list[Any]) -> None:
    assert form.element is not None
    assert column.null.tolist() == [null for null, _lower, _elements in shown]
    assert column.lower.tolist() == [lower for _null, lower, _elements in shown]
    assert column.lengths.tolist() == [len(elements) for _null, _lower, elements in shown]
    elements = Column(column.values, column.element_null, column.scale)
    check_values(declared, form.element, elements, [text for _null, _lower, texts in shown for text in texts])


@pytest.mark.parametrize("declared", TYPES)
def test_a_value_is_decoded_as_the_server_shows_it_and_encoded_to_the_bytes_it_came_as(
    tables: Tables, declared: str
) -> None:
    kind = TYPES[declared]
    null = [] if declared == "code" else [None]
    round_trip(tables, declared, [*kind.edges, *null, *reversed(kind.edges)])
    if kind.decimals_only:
        round_trip(tables, declared, [*kind.decimals_only, *kind.edges], decimals_only=True)

    @few
    @given(texts=st.lists(kind.values | st.sampled_from([*kind.edges[:20], *null]), min_size=1, max_size=30))
    def check(texts: list[str | None]) -> None:
        round_trip(tables, declared, texts)

    check()


@pytest.mark.parametrize("declared", [name for name in TYPES if TYPES[name].has_array])
def test_arrays_are_too(tables: Tables, declared: str) -> None:
    kind = TYPES[declared]
    elements = [*kind.edges, None]
    round_trip(
        tables,
        declared,
        [
            *("{}", None, "{NULL}", "{NULL,NULL}", array_text(1, elements), array_text(-(2**31), elements)),
            array_text(2**31 - 1 - len(elements), elements),
            *(array_text(0, [edge]) for edge in kind.edges),
        ],
        array=True,
    )

    some = st.lists(
        kind.values | st.sampled_from([edge for edge in elements if edge is None or len(edge) < 99]), max_size=6
    )
    lower = st.sampled_from([1, 0, -5, 7, 2**31 - 10])
    lists = st.none() | st.builds(array_text, lower, some)

    @few
    @given(texts=st.lists(lists, min_size=1, max_size=12))
    def check(texts: list[str | None]) -> None:
        round_trip(tables, declared, texts, array=True)

    check()


def arrived(tables: Tables, declared: str, value: Any, count: int) -> tuple[list[str | None], dict[int, str]]:
    """Write a column that a transform made: what the server then shows, and the reasons of the rows it did not get."""
    session = tables.session
    name, forms = tables.of(declared, array=isinstance(value, ListColumn))
    encoded, bad = encode(value, forms[0], count)
    keep = np.ones(count, np.bool_)
    keep[[each.row for each in bad]] = False
    session.execute("BEGIN")
    try:
        numbers = native.encode_words(np.arange(count, dtype=np.uint64), np.zeros(count, np.uint8))
        rows = rows_of(HEADER + b"".join(b"\0\0" for _ in range(count)) + TRAILER, 0)
        session.copy_in(
            f"arrived_{name}", ["n", "v"], HEADER + assemble(rows, [-1, -2], [numbers, encoded], keep) + TRAILER
        )
        shown = dict(session.fetch(f"SELECT n, v::text FROM arrived_{name}"))
    finally:
        session.execute("ROLLBACK")
    assert len(shown) == count - len(bad)
    return [shown.get(n) for n in range(count)], {each.row: each.reason for each in bad}


DECLARED = {"numeric": None, "numeric(12,2)": (12, 2), "numeric(5,-2)": (5, -2), "numeric(3,5)": (3, 5)}


@pytest.mark.parametrize("declared", [*DECLARED, "numeric(18,18)", "numeric(30,10)", "price"])
def test_a_number_that_a_transform_made_arrives_exactly_or_not_at_all(tables: Tables, declared: str) -> None:
    limits = {"numeric(18,18)": (18, 18), "numeric(30,10)": (30, 10), "price": (10, 2), **DECLARED}[declared]

    def shown_by_the_server(value: Decimal) -> str | None:
        """None: it would round it, or not take it."""
        if limits is None:
            return decimal_text(value)
        precision, scale = limits
        units = value.scaleb(scale)
        if units != units.to_integral_value() or abs(units) >= 10**precision:
            return None
        return scaled_text(int(units), scale) if scale > 0 else str(int(value))

    digits = st.integers(-(10**14), 10**14) | st.integers(-999, 999)

    @few
    @given(
        drawn=st.lists(st.tuples(digits, st.integers(-12, 20)), min_size=1, max_size=30),
        scale=st.integers(0, 18),
    )
    def check(drawn: list[tuple[int, int]], scale: int) -> None:
        objects = np.array([Decimal(whole).scaleb(-places) for whole, places in drawn], object)
        found, bad = arrived(tables, declared, objects, len(drawn))
        assert found == [shown_by_the_server(value) for value in objects]
        assert set(bad) == {row for row, text in enumerate(found) if text is None}

        scaled = Column(np.array([whole for whole, _ in drawn], np.int64), scale=scale)
        found, bad = arrived(tables, declared, scaled, len(drawn))
        values = [Decimal(whole).scaleb(-scale) for whole, _ in drawn]
        expected = [shown_by_the_server(value) for value in values]
        if limits is None:
            expected = [scaled_text(whole, scale) for whole, _ in drawn]
        assert found == expected
        assert set(bad) == {row for row, text in enumerate(found) if text is None}

    check()


def test_the_first_and_the_last_value_of_each_type_arrive_and_those_beyond_are_bad_rows(tables: Tables) -> None:
    days = np.array([DATES[0] - 1, DATES[0], DATES[1], DATES[1] + 1, INFINITY, -INFINITY]).view("datetime64[D]")
    found, bad = arrived(tables, "date", days, 6)
    assert found == [None, "4714-11-24 BC", "5874897-12-31", None, "infinity", "-infinity"]
    assert sorted(bad) == [0, 3]
    times = np.array([TIMESTAMPS[0] - 1, TIMESTAMPS[0], TIMESTAMPS[1], INFINITY, -INFINITY]).view("datetime64[us]")
    for declared, zone in (("timestamp", ""), ("timestamp with time zone", "+00")):
        found, bad = arrived(tables, declared, times, 5)
        first, last = f"4714-11-24 00:00:00{zone} BC", f"294247-01-10 04:00:54.775806{zone}"
        assert found == [None, first, last, "infinity", "-infinity"]
        assert list(bad) == [0]
    numbers = [Decimal("9" * 131_072), Decimal("1E+131072"), Decimal("1E-16383"), Decimal("1E-16384")]
    found, bad = arrived(tables, "numeric", np.array(numbers, object), 4)
    assert found == [decimal_text(numbers[0]), None, decimal_text(numbers[2]), None]
    assert sorted(bad) == [1, 3]


def test_what_a_transform_makes_of_other_arrays_arrives(tables: Tables) -> None:
    moments = np.array(["2024-02-29T12", "0000-01-01T00", "NaT"], "datetime64[h]")
    assert arrived(tables, "timestamp", moments, 3)[0] == ["2024-02-29 12:00:00", "0001-01-01 00:00:00 BC", None]
    tokens = [uuid.UUID(int=1 << 127), uuid.UUID(int=5)]
    assert arrived(tables, "uuid", np.array(tokens, object), 2)[0] == [str(token) for token in tokens]
    words = np.array(["ä", "\U0001f9d1"], "U")
    assert arrived(tables, "text", words, 2)[0] == words.tolist()
    assert arrived(tables, "character varying(40)", words.astype(np.dtypes.StringDType()), 2)[0] == words.tolist()
    assert arrived(tables, "jsonb", np.array(['{"b":1,"a":[]}', "null"]), 2)[0] == ['{"a": [], "b": 1}', "null"]
    masked = np.ma.MaskedArray([1, 2], [False, True])
    assert arrived(tables, "smallint", masked, 2)[0] == ["1", None]
    lists = ListColumn.of([[Decimal("1.50"), None], [], None], object)
    assert arrived(tables, "numeric(12,2)", lists, 3)[0] == ["{1.50,NULL}", "{}", None]


@pytest.mark.parametrize("declared", ["price", "dear"])
def test_a_domain_has_the_scale_of_what_it_is_over(tables: Tables, declared: str) -> None:
    _, forms = tables.of(declared, array=False)
    assert [(form.kind, form.precision, form.scale) for form in forms] == [("scaled", 10, 2), ("decimal", 10, 2)]
    found, bad = arrived(tables, declared, np.array([Decimal("1.005"), Decimal("1.5")], object), 2)
    assert found == [None, "1.50"] and list(bad) == [0]
    with pytest.raises(WrongResult, match=f"without a scale was given for {declared}; expected .*scale=2"):
        encode(np.array([150]), forms[0], 1)


def test_an_infinite_timestamp_becomes_an_infinite_date_and_back(tables: Tables) -> None:
    times = Column(np.array([INFINITY, -INFINITY, 0, 0]).view("datetime64[us]"), np.array([False] * 3 + [True]))
    assert arrived(tables, "date", times.dates(), 4)[0] == ["infinity", "-infinity", "1970-01-01", None]
    found, _bad = arrived(tables, "timestamp", times.dates().timestamps(), 4)
    assert found == ["infinity", "-infinity", "1970-01-01 00:00:00", None]
    found, bad = arrived(tables, "date", times.values.astype("datetime64[D]"), 4)
    assert found == [None, None, "1970-01-01", "1970-01-01"] and sorted(bad) == [0, 1]


@pytest.mark.parametrize(
    ("declared", "text", "said"),
    [
        ("timestamp", "294276-12-31 23:59:59.999999", "later than datetime64[us] can hold (year 294247)"),
        (
            "timestamp with time zone",
            "294247-01-10 04:00:54.775807+00",
            "later than datetime64[us] can hold (year 294247)",
        ),
        ("numeric(12,2)", "NaN", 'NaN, which an integer cannot hold (the form "decimal" can)'),
    ],
)
def test_a_value_that_numpy_does_not_have_is_a_bad_row(tables: Tables, declared: str, text: str, said: str) -> None:
    _, [form, *_] = tables.of(declared, array=False)
    stream = tables.session.copied(f"SELECT {literal(text)}::{declared} AS v")
    _column, [bad] = decode(rows_of(stream, 1), 0, form)
    assert (bad.row, bad.reason) == (0, f"v: {said}")
