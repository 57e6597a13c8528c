"""What a transform is given: columns whose parts fit each other, and the types that they stand for."""

from __future__ import annotations

import struct
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from engine import model
from engine._native.rows import HEADER, TRAILER, RowBatches, Rows
from engine.transform.columns import INFINITY, Column, ListColumn
from engine.transform.decoding import Bad, decode
from engine.transform.types import ColumnType, Kind, column_type


def column(type_name: str, category_oid: int, *, name: str = "amount", type_oid: int | None = None) -> model.Column:
    return model.Column(
        name=name,
        number=1,
        type_oid=category_oid if type_oid is None else type_oid,
        type_name=type_name,
        base_type=type_name.split("(", maxsplit=1)[0],
        type_kind="b" if type_oid is None else "d",
        category_oid=category_oid,
        not_null=False,
        identity="",
        generated="",
        has_default=False,
        collation=None,
        collation_id=None,
        collation_is_c=False,
        enum_labels=(),
        binary_io=True,
        binary_portable=True,
    )


def supported(type_name: str, oid: int, form: str = "") -> ColumnType:
    found = column_type(column(type_name, oid), form)
    assert found is not None
    return found


def rows_of(*fields: bytes | None) -> Rows:
    stream = HEADER
    for field in fields:
        stream += struct.pack(">hi", 1, -1) if field is None else struct.pack(">hi", 1, len(field)) + field
    batches = RowBatches(1)
    batches.feed(stream + TRAILER)
    rows = batches.finish()
    assert rows is not None
    return rows


# ------------------------------------------------------------------------------------------------------ columns


def test_a_column_without_a_mask_has_no_nulls() -> None:
    made = Column(np.array([1, 2]))
    assert made.null.tolist() == [False, False]
    assert len(made) == 2 and made.scale is None


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        (([1, 2],), TypeError, "values is a numpy array, not list"),
        ((np.array(1),), ValueError, "one entry per row"),
        ((np.array([1, 2]), np.array([0, 1])), TypeError, "null is a mask of bool, not of int64"),
        ((np.array([1, 2]), np.array([True])), ValueError, r"null has shape \(1,\) beside 2 of values"),
        ((np.array([1, 2]), [True, False]), TypeError, "null is a numpy array, not list"),
        ((np.array([1]), None, 2.0), TypeError, "scale is an int, not float"),
        ((np.array([1]), None, True), TypeError, "scale is an int, not bool"),
    ],
)
def test_a_column_whose_parts_do_not_fit_is_refused_where_it_is_made(
    parts: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Column(*parts)


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ((np.array([1, 2]), np.array([0, 1])), ValueError, "end at the number of values"),
        ((np.array([1, 2]), np.array([1, 2])), ValueError, "offsets start at 0"),
        ((np.array([1, 2]), np.array([0, 2, 1, 2])), ValueError, "never fall"),
        ((np.array([1, 2]), np.array([], np.int64)), ValueError, "offsets start at 0"),
        ((np.array([1, 2]), np.array([0.0, 2.0])), TypeError, "offsets are integers"),
        ((np.array([1, 2]), np.array([[0, 2]])), TypeError, "offsets are integers"),
        ((np.array([1, 2]), np.array([0, 2]), np.array([True])), ValueError, "a row that is NULL has elements"),
        ((np.array([1, 2]), np.array([0, 2]), None, np.array([True])), ValueError, "element_null has shape"),
        ((np.array([1, 2]), np.array([0, 2]), None, None, np.array([1])), TypeError, "lower is int32"),
    ],
)
def test_lists_whose_parts_do_not_fit_are_refused_where_they_are_made(
    parts: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ListColumn(*parts)


def test_lists_can_be_made_of_pythons_own() -> None:
    made = ListColumn.of([[1, None], None, [], [3]], np.int32)
    assert made.values.tolist() == [1, 0, 3] and made.values.dtype == np.int32
    assert made.offsets.tolist() == [0, 2, 2, 2, 3]
    assert made.null.tolist() == [False, True, False, False]
    assert made.element_null.tolist() == [False, True, False]
    assert made.lower.tolist() == [1, 1, 1, 1] and made.lower.dtype == np.int32
    assert made.lengths.tolist() == [2, 0, 0, 1]
    assert made.rows.tolist() == [0, 0, 3]
    assert ListColumn.of([["a", None]], object).values.tolist() == ["a", None]
    assert len(ListColumn.of([], np.int64)) == 0


def test_infinities_are_told_from_other_values_and_from_null() -> None:
    times = np.array([0, INFINITY, -INFINITY, -(2**63)]).view("M8[us]")
    assert Column(times).infinite.tolist() == [False, True, True, False]
    assert Column(np.array([1.0, -np.inf, np.nan])).infinite.tolist() == [False, True, False]
    assert ListColumn(times, np.array([0, 4])).infinite.tolist() == [False, True, True, False]
    assert Column(np.array([INFINITY])).infinite.tolist() == [False]


def test_dates_and_timestamps_keep_infinity_and_null() -> None:
    null = np.array([False, False, False, False, True])
    times = Column(np.array([INFINITY, -INFINITY, -1, -(2**63), 7]).view("M8[us]"), null)
    days = times.dates()
    assert days.values.dtype == np.dtype("M8[D]") and days.null.tolist() == null.tolist()
    assert days.values.view(np.int64).tolist() == [INFINITY, -INFINITY, -1, -(2**63), 0]
    back = days.timestamps()
    assert back.values.dtype == np.dtype("M8[us]") and back.null.tolist() == null.tolist()
    assert back.values.view(np.int64).tolist() == [INFINITY, -INFINITY, -86_400 * 10**6, -(2**63), 0]
    foreign = Column(times.values.astype(">M8[us]"))
    assert foreign.infinite.tolist() == times.infinite.tolist()
    assert foreign.dates().values.tolist() == days.values.tolist()
    lists = ListColumn(times.values, np.array([0, 2, 5]), None, null)
    assert lists.dates().values.view(np.int64).tolist() == days.values.view(np.int64).tolist()
    assert lists.dates().timestamps().lengths.tolist() == [2, 3]
    assert lists.dates().timestamps().element_null.tolist() == null.tolist()
    assert times.timestamps().values is not times.values, "the new arrays are their own"


def test_what_cannot_become_a_timestamp_is_refused_and_not_wrapped() -> None:
    late = np.array([200_000_000, 0]).view("M8[D]")
    with pytest.raises(ValueError, match="year 294247"):
        Column(late).timestamps()
    assert Column(late, np.array([True, False])).timestamps().values[1] == np.datetime64(0, "us")
    for method in (Column(np.array([1])).dates, ListColumn(np.array([1]), np.array([0, 1])).timestamps):
        with pytest.raises(TypeError, match="is for datetime64, not for int64"):
            method()


def test_what_a_masked_array_masks_is_null() -> None:
    masked = np.ma.MaskedArray([1, 2, 3], [False, True, False])
    made = Column(masked, np.array([True, False, False]))
    assert type(made.values) is np.ndarray and made.null.tolist() == [True, True, False]
    assert Column(masked).null.tolist() == [False, True, False]
    lists = ListColumn(masked, np.array([0, 3]), None, np.array([True, False, False]))
    assert type(lists.values) is np.ndarray and lists.element_null.tolist() == [True, True, False]
    with pytest.raises(TypeError, match="null is a plain mask of bool, not a masked array"):
        Column(np.array([1, 2, 3]), masked > 1)


# -------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("type_name", "oid", "kind", "dtype"),
    [
        ("boolean", 16, "bool", "bool"),
        ("smallint", 21, "int2", "int16"),
        ("integer", 23, "int4", "int32"),
        ("bigint", 20, "int8", "int64"),
        ("real", 700, "float4", "float32"),
        ("double precision", 701, "float8", "float64"),
        ("date", 1082, "date", "datetime64[D]"),
        ("timestamp(3) without time zone", 1114, "timestamp", "datetime64[us]"),
        ("timestamp with time zone", 1184, "timestamp", "datetime64[us]"),
        ("uuid", 2950, "uuid", "V16"),
        ("text", 25, "text", "object"),
        ("character varying(20)", 1043, "text", "object"),
        ("character(3)", 1042, "text", "object"),
        ("name", 19, "text", "object"),
        ("bytea", 17, "bytea", "object"),
        ("json", 114, "json", "object"),
        ("jsonb", 3802, "jsonb", "object"),
        ("numeric(12,2)", 1700, "scaled", "int64"),
        ("numeric(18,0)", 1700, "scaled", "int64"),
        ("numeric(3,5)", 1700, "scaled", "int64"),
        ("numeric(19,2)", 1700, "decimal", "object"),
        ("numeric(3,-2)", 1700, "decimal", "object"),
        ("numeric(3,20)", 1700, "decimal", "object"),
        ("numeric", 1700, "decimal", "object"),
    ],
)
def test_each_type_is_held_as_the_documentation_lists(type_name: str, oid: int, kind: str, dtype: str) -> None:
    found = supported(type_name, oid)
    assert (found.kind, found.dtype, found.type_name, found.oid) == (kind, np.dtype(dtype), type_name, oid)


def test_arrays_know_their_elements() -> None:
    found = supported("numeric(12,2)[]", 1231)
    assert found.kind is Kind.ARRAY and found.oid == 1231
    assert found.element is not None
    assert (found.element.kind, found.element.oid, found.element.scale) == (Kind.SCALED, 1700, 2)
    assert found.element.type_name == "numeric(12,2)"
    assert found.described == "lists of int64, times 10**-2"


def test_a_numeric_can_be_asked_for_as_decimals_and_nothing_else_can() -> None:
    found = supported("numeric(12,2)", 1700, "decimal")
    assert (found.kind, found.scale, found.precision) == (Kind.DECIMAL, 2, 12)
    array = supported("numeric(12,2)[]", 1231, "decimal").element
    assert array is not None and array.kind is Kind.DECIMAL
    assert column_type(column("integer", 23), "decimal") is None
    assert column_type(column("numeric(12,2)", 1700), "float") is None


def test_a_domain_counts_as_its_base_type_with_the_modifier_that_it_gives_it() -> None:
    domain = column("money_amount", 1700, type_oid=20001)
    plain = column_type(replace(domain, declared_base="numeric"))
    assert plain is not None and plain.kind is Kind.DECIMAL and plain.scale is None
    scaled = column_type(replace(domain, declared_base="numeric(12,2)"))
    assert scaled is not None
    assert (scaled.kind, scaled.precision, scaled.scale, scaled.type_name) == (Kind.SCALED, 12, 2, "money_amount")
    lists = column_type(replace(column("amounts", 1231, type_oid=20002), declared_base="numeric(12,2)[]"))
    assert lists is not None and lists.element is not None
    assert (lists.element.kind, lists.element.scale) == (Kind.SCALED, 2)


@pytest.mark.parametrize(
    ("type_name", "oid"), [("int4range", 3904), ("inet", 869), ("mood", 16999), ("interval", 1186), ("mood[]", 17001)]
)
def test_other_types_are_not_supported(type_name: str, oid: int) -> None:
    assert column_type(column(type_name, oid)) is None


# ----------------------------------------------------------------------------------------------------- decoding


def test_a_bad_value_names_its_column_and_becomes_null() -> None:
    nan = struct.pack(">hhHH", 0, 0, 0xC000, 0)
    one = struct.pack(">hhHHH", 1, 0, 0, 2, 1)
    values, bad = decode(rows_of(one, nan, None), 0, supported("numeric(12,2)", 1700))
    assert isinstance(values, Column)
    assert values.values.tolist() == [100, 0, 0] and values.null.tolist() == [False, True, True] and values.scale == 2
    assert bad == [Bad(1, 'amount: NaN, which an integer cannot hold (the form "decimal" can)')]


def test_decimals_have_no_scale_of_the_column() -> None:
    one = struct.pack(">hhHHH", 1, 0, 0, 2, 1)
    values, bad = decode(rows_of(one), 0, supported("numeric(12,2)", 1700, "decimal"))
    assert isinstance(values, Column) and values.scale is None and not bad
    assert [str(value) for value in values.values] == ["1.00"] and values.values[0] == Decimal(1)


def array(*elements: bytes | None, oid: int, lower: int = 1) -> bytes:
    field = struct.pack(">iiIii", 1, 1, oid, len(elements), lower)
    for element in elements:
        field += struct.pack(">i", -1) if element is None else struct.pack(">i", len(element)) + element
    return field


def test_a_bad_element_makes_its_row_bad_and_leaves_the_others_alone() -> None:
    rows = rows_of(
        array(b"one", b"\xff", b"\xfe", oid=25, lower=5),
        None,
        array(b"two", None, oid=25, lower=7),
        array(b"three", oid=23),
        struct.pack(">iiI", 0, 0, 25),
        array(b"\xff", oid=25),
        array(b"four", oid=25),
    )
    values, bad = decode(rows, 0, supported("text[]", 1009, ""))
    assert isinstance(values, ListColumn)
    assert bad == [
        Bad(0, "amount: an element is not valid UTF-8"),
        Bad(3, "amount: an array of another element type"),
        Bad(5, "amount: an element is not valid UTF-8"),
    ]
    assert values.null.tolist() == [True, True, False, True, False, True, False]
    assert values.lengths.tolist() == [0, 0, 2, 0, 0, 0, 1]
    assert values.values.tolist() == ["two", None, "four"]
    assert values.element_null.tolist() == [False, True, False]
    assert values.lower.tolist() == [1, 1, 7, 1, 1, 1, 1]


@pytest.mark.parametrize("form", ["", "decimal"])
def test_arrays_of_numeric_are_scaled_as_single_values_are(form: str) -> None:
    one = struct.pack(">hhHHH", 1, 0, 0, 2, 1)
    values, bad = decode(rows_of(array(one, one, oid=1700)), 0, supported("numeric(12,2)[]", 1231, form))
    assert isinstance(values, ListColumn) and not bad
    assert values.scale == (None if form else 2)
    assert [str(value) for value in values.values] == (["1.00", "1.00"] if form else ["100", "100"])
