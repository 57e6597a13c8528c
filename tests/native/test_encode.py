"""What a transform may give back, encoded as a plain reading of PostgreSQL's wire forms has it: exactly, or refused."""

from __future__ import annotations

import struct
import threading
import uuid
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._native import encode as native
from engine._native.rows import HEADER, TRAILER, Encoded, assemble
from engine.transform.columns import INFINITY, Column, ListColumn
from engine.transform.encoding import WrongResult, encode
from engine.transform.types import ColumnType, Kind
from tests.support.transformed import rows_of

BOOL = ColumnType("flag", Kind.BOOL, "boolean", 16)
INTEGERS = {
    2: ColumnType("small", Kind.INT2, "smallint", 21),
    4: ColumnType("middle", Kind.INT4, "integer", 23),
    8: ColumnType("large", Kind.INT8, "bigint", 20),
}
FLOAT4 = ColumnType("short", Kind.FLOAT4, "real", 700)
FLOAT8 = ColumnType("long", Kind.FLOAT8, "double precision", 701)
DATE = ColumnType("day", Kind.DATE, "date", 1082)
TIMESTAMP = ColumnType("at", Kind.TIMESTAMP, "timestamp with time zone", 1184)
UUID = ColumnType("token", Kind.UUID, "uuid", 2950)
TEXT = ColumnType("word", Kind.TEXT, "text", 25)
BYTEA = ColumnType("raw", Kind.BYTEA, "bytea", 17)
JSONB = ColumnType("doc", Kind.JSONB, "jsonb", 3802)
NUMERIC = ColumnType("exact", Kind.DECIMAL, "numeric", 1700)
INT8 = INTEGERS[8]

NULL_NAN = struct.pack(">HhHH", 0, 0, 0xC000, 0)


def numeric_type(precision: int, scale: int) -> ColumnType:
    kind = Kind.SCALED if precision <= 18 and 0 <= scale <= 18 else Kind.DECIMAL
    return ColumnType("amount", kind, f"numeric({precision},{scale})", 1700, scale, precision)


def list_of(element: ColumnType) -> ColumnType:
    return ColumnType(
        element.name, Kind.ARRAY, f"{element.type_name}[]", 1000, element.scale, element.precision, element
    )


def wire(value: object, column: ColumnType, count: int | None = None) -> list[bytes | None]:
    """The encoded values, when none is bad."""
    encoded, bad = encode(value, column, len(value) if count is None else count)  # type: ignore[arg-type]
    assert bad == []
    return [encoded.value(row) for row in range(encoded.count)]


def outcome(value: Any, column: ColumnType) -> list[bytes | str | None]:
    """The encoded values; for a bad row, why."""
    encoded, bad = encode(value, column, len(value))
    assert [row for row, _ in ((b.row, b.reason) for b in bad)] == sorted({b.row for b in bad})
    found: list[bytes | str | None] = [encoded.value(row) for row in range(encoded.count)]
    for each in bad:
        assert each.reason.startswith(f"{column.name}: ")
        found[each.row] = each.reason.removeprefix(f"{column.name}: ")
    return found


def objects(*values: object) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def numeric_bytes(value: Decimal, scale: int | None = None) -> bytes:
    """numeric_send, as its description reads."""
    if not value.is_finite():
        sign = 0xC000 if value.is_nan() else 0xD000 if value > 0 else 0xF000
        return struct.pack(">HhHH", 0, 0, sign, 0 if value.is_nan() else 0x20)
    negative, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    dscale = max(0, -exponent if scale is None else scale)
    whole = int("".join(map(str, digits))) * 10 ** (exponent % 4)
    groups: list[int] = []
    while whole:
        whole, group = divmod(whole, 10_000)
        groups.insert(0, group)
    weight = len(groups) - 1 + exponent // 4
    while groups and groups[-1] == 0:
        groups.pop()
    if not groups:
        negative = weight = 0
    return struct.pack(f">HhHH{len(groups)}H", len(groups), weight, 0x4000 if negative else 0, dscale, *groups)


def fits(value: Decimal, precision: int, scale: int) -> str | None:
    """What speaks against the value in numeric(precision, scale)."""
    scaled = value.scaleb(scale)
    if scaled.is_finite() and abs(scaled) >= Decimal(10) ** precision:
        return "more digits before the decimal point than the column's type holds"
    if scaled.is_finite() and scaled != scaled.to_integral_value():
        return "more digits after the decimal point than the column's type keeps: round it in the transform"
    return None


int64s = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, 9999, 10_000, -(2**63), 2**63 - 1, 10**18])
plain_decimals = st.builds(
    lambda sign, digits, exponent: Decimal((sign, digits, exponent)),
    st.integers(0, 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=30).map(tuple),
    st.integers(-40, 40),
)
declarations = st.sampled_from([(12, 2), (18, 0), (18, 18), (3, 5), (5, -2), (30, 10), (1, 0), (1000, 500)])


@given(values=st.lists(int64s | st.none(), max_size=20), scale=st.integers(0, 18))
def test_scaled_integers_are_exact(values: list[int | None], scale: int) -> None:
    column = Column(
        np.array([v or 0 for v in values], np.int64), np.array([v is None for v in values], np.bool_), scale
    )
    expected = [None if v is None else numeric_bytes(Decimal(v).scaleb(-scale), scale) for v in values]
    assert wire(column, NUMERIC) == expected


@given(values=st.lists(int64s, max_size=20), scale=st.integers(0, 18), declared=declarations)
def test_scaled_integers_get_the_scale_of_the_column_and_are_never_rounded(
    values: list[int], scale: int, declared: tuple[int, int]
) -> None:
    exact = [Decimal((int(v < 0), tuple(map(int, str(abs(v)))), -scale)) for v in values]
    expected = [fits(v, *declared) or numeric_bytes(v, declared[1]) for v in exact]
    found = outcome(Column(np.array(values, np.int64), scale=scale), numeric_type(*declared))
    assert [any_reason(f, e) for f, e in zip(found, expected, strict=True)] == expected


def any_reason(found: object, expected: object) -> object:
    """Of two reasons, either may be told."""
    return expected if isinstance(found, str) and isinstance(expected, str) else found


@given(values=st.lists(plain_decimals | st.none(), max_size=20), declared=st.none() | declarations)
def test_decimals_are_exact_with_their_trailing_zeros(
    values: list[Decimal | None], declared: tuple[int, int] | None
) -> None:
    column = numeric_type(*declared) if declared else NUMERIC
    expected = [
        None if v is None else (fits(v, *declared) if declared else None) or numeric_bytes(v, column.scale)
        for v in values
    ]
    found = outcome(objects(*values), column)
    assert [any_reason(f, e) for f, e in zip(found, expected, strict=True)] == expected


def test_decimals_at_the_ends_of_numeric() -> None:
    longest = Decimal("9" * 131_072)
    finest = Decimal("-1E-16383")
    good = objects(
        longest, finest, Decimal("1E+131071"), Decimal("0E+999999"), Decimal("-0.00"), 10**5000, np.int64(-7)
    )
    assert wire(good, NUMERIC) == [
        struct.pack(">HhHH", 32_768, 32_767, 0, 0) + struct.pack(">H", 9999) * 32_768,
        *(numeric_bytes(finest), numeric_bytes(Decimal("1E+131071")), bytes(8)),
        *(numeric_bytes(Decimal("0.00")), numeric_bytes(Decimal("1E+5000")), numeric_bytes(Decimal(-7))),
    ]


@pytest.mark.parametrize(
    ("declared", "held", "beyond"),
    [
        ((12, 2), ("9999999999.99", "-9999999999.99", "0.01"), ("10000000000", "-10000000000", "0.001", "-0.005")),
        ((18, 0), ("999999999999999999", "-1"), ("1000000000000000000", "0.1", "-999999999999999999.5")),
        ((18, 18), ("0.999999999999999999", "-0.000000000000000001"), ("1", "-1", "1.5")),
        ((3, 5), ("0.00999", "-0.00001"), ("0.01", "-0.01", "0.000001")),
        ((5, -2), ("9999900", "-100", "0"), ("10000000", "50", "-10", "1")),
    ],
)
def test_the_limits_of_a_declared_numeric(
    declared: tuple[int, int], held: tuple[str, ...], beyond: tuple[str, ...]
) -> None:
    column = numeric_type(*declared)
    exact = [Decimal(text) for text in held]
    assert wire(objects(*exact), column) == [numeric_bytes(value, declared[1]) for value in exact]
    refused = [Decimal(text) for text in beyond]
    assert [fits(value, *declared) for value in refused] == outcome(objects(*refused), column)
    for scale in range(19):
        for value in exact + refused:
            units = value.scaleb(scale)
            if units == units.to_integral_value() and abs(units) < 2**63:
                given_back = Column(np.array([int(units)]), scale=scale)
                assert outcome(given_back, column) == [fits(value, *declared) or numeric_bytes(value, declared[1])]


def test_the_context_of_decimals_changes_nothing() -> None:
    value = Decimal("123456.7890E-12")
    with localcontext(prec=2, capitals=0):
        assert wire(objects(value, 10**30), NUMERIC) == [numeric_bytes(value), numeric_bytes(Decimal("1E+30"))]


def test_decimals_that_numeric_does_not_have_are_bad_rows() -> None:
    too_many = "more digits than numeric holds (131072 before and 16383 after the decimal point)"
    infinite = "infinity, which a numeric of declared precision cannot hold"
    beyond = objects(Decimal("1E+131072"), Decimal("1E-16384"), Decimal("1E+99999999"), Decimal("sNaN"), True, 1.5, "1")
    assert outcome(beyond, NUMERIC) == [
        *(too_many, too_many, too_many, "a signaling NaN"),
        *(f"{name} instead of Decimal or int" for name in ("bool", "float", "str")),
    ]
    special = objects(Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity"))
    assert wire(special, NUMERIC) == [numeric_bytes(value) for value in special]
    assert outcome(special, numeric_type(12, 2)) == [NULL_NAN, infinite, infinite]


@given(
    values=st.lists(
        st.integers(-(2**63), 2**64 - 1) | st.sampled_from([0, 127, 128, -32768, 65535, 2**31, 2**63]), max_size=20
    ),
    given_as=st.sampled_from(["i1", "u1", "i2", "u2", "i4", ">i4", "u4", "i8", ">i8", "u8", "O"]),
    width=st.sampled_from([2, 4, 8]),
)
def test_integers_of_any_dtype_are_written_or_out_of_range(values: list[int], given_as: str, width: int) -> None:
    dtype = np.dtype(given_as)
    if dtype.kind != "O":
        values = [value for value in values if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max]
    found = outcome(np.array(values, dtype), INTEGERS[width])
    most = 2 ** (8 * width - 1)
    for value, result in zip(values, found, strict=True):
        if -most <= value < most:
            assert result == value.to_bytes(width, "big", signed=True)
        else:
            assert isinstance(result, str)
            assert result.startswith("a number that int")


@given(patterns=st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_floats_keep_each_bit(patterns: list[int]) -> None:
    eight = np.array(patterns, np.uint64).view(np.float64)
    assert wire(eight, FLOAT8) == [pattern.to_bytes(8, "big") for pattern in patterns]
    four = np.array([pattern & 0xFFFFFFFF for pattern in patterns], np.uint32).view(np.float32)
    assert wire(four, FLOAT4) == [(pattern & 0xFFFFFFFF).to_bytes(4, "big") for pattern in patterns]


def test_shorter_floats_are_widened_exactly() -> None:
    assert wire(np.array([1.5, np.inf], np.float32), FLOAT8) == [struct.pack(">d", 1.5), struct.pack(">d", np.inf)]
    assert wire(np.array([1.5], np.float16), FLOAT4) == [struct.pack(">f", 1.5)]


def test_dates_and_their_limits() -> None:
    days = np.array(["2000-01-01", "1999-12-31", "-4713-11-24", "5874897-12-31", "NaT"], "datetime64[D]")
    endless = np.array([INFINITY, -INFINITY]).view("datetime64[D]")
    expected = [0, -1, -2_451_545, 2_145_031_948, None, 2**31 - 1, -(2**31)]
    assert wire(np.concatenate([days, endless]), DATE) == [
        None if day is None else day.to_bytes(4, "big", signed=True) for day in expected
    ]
    beyond = np.array([days[2] - 1, days[3] + 1, np.datetime64(2**62, "D")])
    assert outcome(beyond, DATE) == ["a date beyond PostgreSQL's (4714 BC to 5874897)"] * 3


@pytest.mark.parametrize("unit", ["us", "ms", "s", "m", "h", "D"])
def test_timestamps_of_each_unit_that_is_exact(unit: str) -> None:
    times = np.array(["2000-01-01", "1969-12-31", "-4713-11-24", "NaT", "10000-02-29"], f"datetime64[{unit}]")
    endless = np.array([INFINITY, -INFINITY]).view(times.dtype)
    day = 86_400 * 10**6
    expected = [0, -10_958 * day, -211_813_488_000_000_000, None, 2_921_999 * day, 2**63 - 1, -(2**63)]
    assert wire(np.concatenate([times, endless]), TIMESTAMP) == [
        None if time is None else time.to_bytes(8, "big", signed=True) for time in expected
    ]
    beyond = np.array([int(times[2].view(np.int64)) - 1, -INFINITY + 1] + ([] if unit == "us" else [2**62])).view(
        times.dtype
    )
    reason = "a timestamp beyond PostgreSQL's (from 4714 BC) or numpy's (to 294247)"
    assert outcome(beyond, TIMESTAMP) == [reason] * len(beyond)


MADE_OF_INFINITY = "what .astype makes of infinity (January of the year 294247): .dates() and .timestamps() keep it"


@pytest.mark.parametrize("unit", ["ms", "s", "m", "h", "D"])
def test_what_astype_makes_of_infinity_is_a_bad_row_and_no_date(unit: str) -> None:
    endless = Column(np.array([INFINITY, -INFINITY, 0]).view("datetime64[us]"))
    converted = endless.values.astype(f"datetime64[{unit}]")
    assert outcome(converted, TIMESTAMP)[:2] == [MADE_OF_INFINITY] * 2
    assert outcome(converted - 2, TIMESTAMP)[0] == wire((converted[:1] - 2).astype("datetime64[us]"), TIMESTAMP)[0]
    if unit == "D":
        assert outcome(converted, DATE)[:2] == [MADE_OF_INFINITY] * 2
        days = (2**63 - 1) // (86_400 * 10**6) - 10_957
        for away in (-2, 1):
            assert outcome(converted[:1] + away, DATE) == [(days + away).to_bytes(4, "big", signed=True)]


def test_dates_and_timestamps_of_columns_are_written_with_their_infinities() -> None:
    times = Column(np.array([INFINITY, -INFINITY, -1]).view("datetime64[us]"))
    day = (-10_958).to_bytes(4, "big", signed=True)
    assert wire(times.dates(), DATE) == [
        (2**31 - 1).to_bytes(4, "big"),
        (-(2**31)).to_bytes(4, "big", signed=True),
        day,
    ]
    midnight = (-10_958 * 86_400 * 10**6).to_bytes(8, "big", signed=True)
    assert wire(times.dates().timestamps(), TIMESTAMP) == [
        *((2**63 - 1).to_bytes(8, "big"), (-(2**63)).to_bytes(8, "big", signed=True), midnight)
    ]


def test_uuids_in_each_form() -> None:
    tokens = [uuid.UUID(int=1 << 100), uuid.UUID(int=0)]
    expected = [token.bytes for token in tokens]
    blocks = np.frombuffer(b"".join(expected), np.uint8).reshape(2, 16)
    assert wire(blocks.reshape(-1).view("V16"), UUID) == wire(blocks, UUID) == wire(objects(*tokens), UUID) == expected
    assert wire(np.asfortranarray(blocks), UUID) == expected
    assert wire(np.zeros((0, 16), np.uint8), UUID) == wire(np.zeros(0, "V16"), UUID) == []
    assert outcome(objects(tokens[0], None, str(tokens[0])), UUID) == [expected[0], None, "str instead of uuid.UUID"]


@given(texts=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=10))
def test_texts_in_each_form(texts: list[str]) -> None:
    expected = [text.encode() for text in texts]
    assert wire(objects(*texts), TEXT) == wire(np.array(texts, np.dtypes.StringDType()), TEXT) == expected
    assert wire(np.array(texts, "U"), TEXT) == expected
    assert wire(objects(*texts), JSONB) == [b"\x01" + text for text in expected]


def test_texts_that_postgresql_cannot_store_are_bad_rows() -> None:
    values = objects("a", "b\0", "\ud800", b"c", 5, None, "ä" * 1000)
    assert outcome(values, TEXT) == [
        *(b"a", "text with a NUL character, which PostgreSQL cannot store"),
        *("text with a surrogate, which has no UTF-8 form", "bytes instead of str", "int instead of str", None),
        "ä".encode() * 1000,
    ]


def test_a_string_array_with_its_own_null() -> None:
    values = np.array(["a", None, "c"], np.dtypes.StringDType(na_object=None))
    assert wire(values, TEXT) == [b"a", None, b"c"]
    values = np.array(["a", np.nan], np.dtypes.StringDType(na_object=np.nan))
    assert wire(values, TEXT) == [b"a", None]


def test_bytes_in_each_form() -> None:
    values = objects(b"", b"\0\xff\0", bytearray(b"x"), memoryview(b"abc")[::2], None, "text")
    assert outcome(values, BYTEA) == [b"", b"\0\xff\0", b"x", b"ac", None, "str instead of bytes"]


@pytest.mark.parametrize(
    "values",
    [
        np.ma.MaskedArray([1, 2, 3], [False, True, False]),
        Column(np.array([1, 2, 3]), np.array([False, True, False])),
        objects(1, None, 3),
        Column(np.array([1, 9, 3], ">i8"), np.array([False, True, False])),
    ],
)
def test_nulls_in_each_form(values: object) -> None:
    assert wire(values, INT8) == [(1).to_bytes(8, "big"), None, (3).to_bytes(8, "big")]


def test_where_a_null_is_the_value_does_not_matter() -> None:
    null = np.array([True, False])
    assert wire(Column(np.array([2**40, 1]), null), INTEGERS[4])[0] is None
    assert wire(Column(objects("\0", "a"), null), TEXT)[0] is None
    assert wire(Column(objects("no", Decimal(1)), null), NUMERIC)[0] is None
    assert wire(Column(objects("no", uuid.UUID(int=1)), null), UUID)[0] is None
    assert wire(Column(np.array([2**62, 0]).view("datetime64[D]"), null), DATE)[0] is None
    assert wire(Column(np.array([10**17, 1]), null, scale=0), numeric_type(5, 2))[0] is None


def test_a_masked_array_means_the_same_inside_a_column() -> None:
    masked = np.ma.MaskedArray([1, 2, 3], [False, True, False])
    assert wire(Column(masked), INT8) == wire(masked, INT8) == [(1).to_bytes(8, "big"), None, (3).to_bytes(8, "big")]
    lists = ListColumn(masked, np.array([0, 3]))
    assert wire(lists, list_of(INT8)) == wire(ListColumn.of([[1, None, 3]], np.int64), list_of(INT8))


def test_what_is_encoded_is_the_engines_own_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that the transform started may still write to its arrays between the look at them and the writing."""
    given: list[np.ndarray] = []
    theirs: list[np.ndarray] = []

    def watched(name: str) -> None:
        kernel = getattr(native, name)

        def watching(*arguments: Any) -> Any:
            given.extend(argument for argument in arguments if isinstance(argument, np.ndarray))
            return kernel(*arguments)

        monkeypatch.setattr(native, name, watching)

    for name in ("encode_words", "encode_scaled", "encode_decimals", "encode_texts", "encode_lists"):
        watched(name)
    for column in (INT8, TIMESTAMP, numeric_type(12, 2), TEXT):
        values = objects("a", "b") if column is TEXT else np.zeros(2, column.dtype)
        null, offsets, lower = np.zeros(2, np.bool_), np.array([0, 2]), np.ones(1, np.int32)
        scale = column.scale
        encode(Column(values, null, scale), column, 2)
        encode(ListColumn(values, offsets, null[:1], null, lower, scale), list_of(column), 1)
        theirs += [values, null, offsets, lower]
    assert len(given) >= 18
    assert not any(np.shares_memory(one, other) for one in given for other in theirs if other.dtype != object)


def test_a_mask_that_somebody_still_writes_to_breaks_no_stream() -> None:
    count = 1 << 17
    null = np.zeros(count, np.uint8)
    values = np.arange(count, dtype=np.uint64)
    rows = rows_of(HEADER + bytes(2 * count) + TRAILER, 0)
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            np.bitwise_xor(null, 1, out=null)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            stream = HEADER + assemble(rows, [-1], [native.encode_words(values, null)]) + TRAILER
            assert rows_of(stream, 1).count == count
    finally:
        ended.set()
        writer.join()


def test_strided_and_read_only_arrays() -> None:
    large = np.arange(20, dtype=np.int64)
    every_other = large[::-2]
    every_other.flags.writeable = False
    assert wire(every_other, INT8) == [value.to_bytes(8, "big") for value in range(19, 0, -2)]
    mask = np.zeros(20, np.bool_)
    mask[::4] = True
    assert wire(Column(large[:10], mask[::2]), INT8)[::2] == [None] * 5
    assert wire(np.array([True, False, True])[::2], BOOL) == [b"\1", b"\1"]
    assert wire(objects("a", 1, "b")[::2], TEXT) == [b"a", b"b"]


def test_lists() -> None:
    column = ListColumn(
        np.array([1, 2, 3, 4], np.int32),
        np.array([0, 2, 2, 2, 4]),
        np.array([False, False, True, False]),
        np.array([False, True, False, False]),
        np.array([1, 1, 1, -5], np.int32),
    )
    assert wire(column, list_of(INTEGERS[4])) == [
        struct.pack(">iiIiiiii", 1, 1, 23, 2, 1, 4, 1, -1),
        struct.pack(">iiI", 0, 0, 23),
        None,
        struct.pack(">iiIiiiiii", 1, 0, 23, 2, -5, 4, 3, 4, 4),
    ]
    scaled = ListColumn.of([[150]], np.int64, scale=2)
    assert wire(scaled, list_of(numeric_type(12, 2))) == [
        struct.pack(">iiIiii", 1, 0, 1700, 1, 1, 12) + numeric_bytes(Decimal("1.50"))
    ]


def test_a_bad_element_makes_its_row_bad_once() -> None:
    lists = ListColumn.of([["a"], [], ["\0", "b", "\0"], None, ["c", "\ud800"]], object)
    found = outcome(lists, list_of(TEXT))
    assert found[2] == "an element: text with a NUL character, which PostgreSQL cannot store"
    assert found[4] == "an element: text with a surrogate, which has no UTF-8 form"
    assert found[1] == struct.pack(">iiI", 0, 0, 25)
    assert found[3] is None
    last = ListColumn(np.array([1, 2]), np.array([0, 2]), lower=np.array([2**31 - 2], np.int32))
    assert outcome(last, list_of(INT8)) == ["an array whose upper bound is beyond 2147483647"]


@pytest.mark.parametrize("offsets", [[0, 5, 2], [-1, 0, 2], [0, 1, 2**40], [0, 3, 1], [0, -(2**62), 2]])
def test_offsets_that_were_overwritten_are_refused(offsets: list[int]) -> None:
    lists = ListColumn.of([[1], [2]], np.int64)
    lists.offsets[:] = offsets
    with pytest.raises(WrongResult, match="offsets"):
        encode(lists, list_of(INT8), 2)


@pytest.mark.parametrize(
    ("value", "column", "said"),
    [
        ([1, 2], INT8, "an object of type list was given for bigint; expected a numpy array"),
        (np.zeros(3, np.int64), INT8, r"an array of shape \(3,\) was given for bigint; expected shape \(2,\)"),
        (np.zeros((2, 2), np.int64), INT8, r"an array of shape \(2, 2\) was given"),
        (np.zeros((2, 15), np.uint8), UUID, r"expected shape \(2, 16\)"),
        (np.int64(5), INT8, "type int64 was given"),
        (np.array(5), INT8, r"an array of shape \(\) was given"),
        (np.array([1.0, 2.0]), INT8, r"float64 was given for bigint; expected int64; say .astype\(np.int64\)"),
        (np.array([True, False]), INT8, "an array of bool was given"),
        (np.array([1, 2]), BOOL, r"say .astype\(np.bool_\)"),
        (np.array([1, 2]), FLOAT8, r"expected float64; say .astype\(np.float64\)"),
        (np.array([1.0, 2.0]), FLOAT4, r"float64 was given for real; expected float32; say .astype\(np.float32\)"),
        (np.zeros(2, np.longdouble), FLOAT8, "expected float64"),
        (np.array([1.0, 2.0]), NUMERIC, r"give Decimal objects, or scaled integers"),
        (np.array([1, 2]), numeric_type(12, 2), r"scale=2\) for values times 100, or scale=0 for whole numbers"),
        (Column(np.array([1, 2]), scale=19), NUMERIC, "a scale of 0 to 18"),
        (Column(np.array([1, 2]), scale=-1), NUMERIC, "a scale of 0 to 18"),
        (Column(objects(Decimal(1), Decimal(2)), scale=2), NUMERIC, "a Decimal has its own"),
        (Column(np.array([1, 2]), scale=2), INT8, "no scale: .* writes the integers as they are"),
        (np.zeros(2, "datetime64[us]"), DATE, r"expected datetime64\[D\]; Column\(values, null\).dates\(\)"),
        (np.zeros(2, "datetime64[ns]"), TIMESTAMP, r"Column\(values, null\).timestamps\(\)"),
        (np.zeros(2, "datetime64[25us]"), TIMESTAMP, r"Column\(values, null\).timestamps\(\)"),
        (np.array(["NaT", "NaT"], "datetime64"), TIMESTAMP, "datetime64 was given"),
        (np.zeros(2, "timedelta64[us]"), TIMESTAMP, "timedelta64"),
        (np.zeros(2, "V8"), UUID, "give V16"),
        (np.array([b"a", b"b"]), TEXT, "give str objects"),
        (np.array([b"a", b"b"]), BYTEA, "give bytes objects"),
        (np.array(["a", "b"]), BYTEA, "give bytes objects"),
        (np.array([1, 2]), TEXT, "give str objects"),
        (np.array([1, 2]), list_of(INT8), "an array of int64 was given for bigint.*; expected a ListColumn"),
        (ListColumn.of([[1]], np.int64), list_of(INT8), "1 lists were given .* expected 2, one per row"),
        (ListColumn.of([[1], [2]], np.int64), INT8, "type ListColumn was given"),
        (ListColumn.of([[1.0], [2.0]], np.float64), list_of(INT8), "an array of float64 was given"),
        (None, INT8, "type NoneType was given"),
    ],
)
def test_a_column_that_cannot_be_the_right_one_is_refused_as_a_whole(
    value: object, column: ColumnType, said: str
) -> None:
    with pytest.raises(WrongResult, match=f"^column '{column.name}': .*{said}"):
        encode(value, column, 2)


def test_no_reason_shows_a_value() -> None:
    secret = "4417123456789113"
    given_back: list[tuple[Any, ColumnType]] = [
        (np.array([int(secret)]), INTEGERS[4]),
        (objects(secret), INT8),
        (objects(secret), UUID),
        (objects(secret), NUMERIC),
        (objects(Decimal(secret)), numeric_type(12, 2)),
        (Column(np.array([int(secret)]), scale=2), numeric_type(12, 2)),
        (objects(secret + "\0"), TEXT),
        (objects(secret), BYTEA),
        (ListColumn.of([[secret + "\ud800"]], object), list_of(TEXT)),
    ]
    for value, column in given_back:
        _encoded, [bad] = encode(value, column, 1)
        assert secret not in bad.reason


def test_kernels_refuse_parts_that_do_not_fit() -> None:
    three, two = np.zeros(3, np.int64), np.zeros(2, np.uint8)
    blocks = np.zeros((3, 16), np.uint8)
    elements = Encoded.of([b"a"])
    for call in (
        lambda: native.encode_words(three.view(np.uint64), two),
        lambda: native.encode_blocks(blocks, two),
        lambda: native.encode_scaled(three, two, 2),
        lambda: native.encode_scaled(np.zeros(2, np.int64), two, 19),
        lambda: native.encode_scaled(np.zeros(2, np.int64), two, 0, 5, 0x4000),
        lambda: native.encode_decimals([1, 2, 3], two),
        lambda: native.encode_texts(["a"], two),
        lambda: native.encode_bytes([b"a"], two),
        lambda: native.encode_lists(elements, np.array([0, 1]), two, np.ones(2, np.int32), 25),
        lambda: native.encode_lists(elements, np.array([0, 1, 2]), two, np.ones(2, np.int32), 25),
        lambda: native.encode_lists(elements, np.array([0, 1, 1]), two, np.ones(1, np.int32), 25),
    ):
        with pytest.raises(ValueError):
            call()


def test_values_that_nobody_encoded_are_none() -> None:
    made = Encoded.__new__(Encoded)
    assert (made.count, made.nbytes, len(made)) == (0, 0, 0)
    with pytest.raises(IndexError):
        made.value(0)
    lists, bad = native.encode_lists(made, np.zeros(2, np.int64), np.zeros(1, np.uint8), np.ones(1, np.int32), 25)
    assert lists.value(0) == struct.pack(">iiI", 0, 0, 25) and not bad


def test_a_column_of_no_rows() -> None:
    for column in (BOOL, INT8, FLOAT4, DATE, TIMESTAMP, UUID):
        assert wire(np.zeros(0, column.dtype), column) == []
    assert wire(objects(), TEXT) == wire(objects(), NUMERIC) == wire(objects(), BYTEA) == []
    assert wire(ListColumn.of([], np.int64), list_of(INT8)) == []
