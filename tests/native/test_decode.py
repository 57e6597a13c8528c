"""The decoders of binary COPY fields against a plain reading of PostgreSQL's wire forms, for right and for any bytes."""

from __future__ import annotations

import gc
import math
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import decode
from engine._native.rows import HEADER, TRAILER, RowBatches, Rows

INFINITY = 2**63 - 1
NAT = -(2**63)
ANY_PRECISION = Context(prec=500_000, Emax=999_999, Emin=-999_999)

Field = bytes | None


def rows_of(fields: list[Field], *, beside: bytes = b"\xff\x00\x7f") -> Rows:
    """Rows of three fields, what matters in the middle: who reads past a field reads its neighbours."""
    stream = HEADER
    for field in fields:
        stream += struct.pack(">h", 3)
        for value in (beside, field, beside):
            stream += struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value
    batches = RowBatches(3, max_rows=10**6, max_bytes=2**24)
    given = batches.feed(stream + TRAILER)
    last = batches.finish()
    (rows,) = [*given, *([last] if last is not None else [])]
    return rows


def cells_of(fields: list[Field]) -> decode.Cells:
    return decode.Cells(rows_of(fields), 1)


# ---------------------------------------------------------------------------------------------------- oracle


class Bad(Exception):
    pass


def number(form: str) -> Callable[[bytes], Any]:
    def read(field: bytes) -> Any:
        if len(field) != struct.calcsize(form):
            raise Bad
        return struct.unpack(form, field)[0]

    return read


def read_date(field: bytes) -> int:
    days = number(">i")(field)
    if days in (2**31 - 1, -(2**31)):
        return INFINITY if days > 0 else -INFINITY
    if not -2451545 <= days < 2147483494 - 2451545:
        raise Bad
    return int(days) + 10957


def read_timestamp(field: bytes) -> int:
    instant = number(">q")(field)
    if instant in (2**63 - 1, -(2**63)):
        return INFINITY if instant > 0 else -INFINITY
    since_1970 = int(instant) + 10957 * 86_400_000_000
    if not -2451545 * 86_400_000_000 <= instant < 106_751_983 * 86_400_000_000 or since_1970 >= INFINITY:
        raise Bad
    return since_1970


@dataclass
class Number:
    special: str
    negative: bool
    digits: list[int]
    weight: int
    display_scale: int

    @property
    def times(self) -> tuple[int, int]:
        """As an integer, and the power of 10000 that it is to be multiplied with."""
        value = 0
        for digit in self.digits:
            value = value * 10000 + digit
        return (-value if self.negative else value), self.weight - len(self.digits) + 1


def read_numeric(field: bytes) -> Number:
    if len(field) < 8:
        raise Bad
    count, weight, sign, display_scale = struct.unpack_from(">HhHH", field)
    if len(field) != 8 + 2 * count or display_scale > 0x3FFF:
        raise Bad
    special = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}.get(sign, "")
    if not special and sign not in (0, 0x4000):
        raise Bad
    digits = list(struct.unpack_from(f">{count}H", field, 8))
    if not special and any(digit > 9999 for digit in digits):
        raise Bad
    return Number(special, sign == 0x4000, digits, weight, display_scale)


def shifted(value: int, power: int) -> int:
    """``value * 10**power``, where that is an integer."""
    if power >= 0:
        return value * 10**power
    whole, rest = divmod(value, 10**-power)
    if rest:
        raise Bad
    return whole


def read_scaled(scale: int) -> Callable[[bytes], int]:
    def read(field: bytes) -> int:
        parts = read_numeric(field)
        if parts.special:
            raise Bad
        value, power = parts.times
        result = shifted(value, 4 * power + scale)
        if not -(2**63) <= result < 2**63:
            raise Bad
        return result

    return read


def read_decimal(field: bytes) -> Decimal:
    parts = read_numeric(field)
    if parts.special:
        return Decimal(parts.special)
    value, power = parts.times
    result = shifted(value, 4 * power + parts.display_scale)
    return Decimal(result).scaleb(-parts.display_scale, ANY_PRECISION)


def read_text(field: bytes) -> str:
    try:
        return field.decode("utf-8")
    except UnicodeDecodeError:
        raise Bad from None


def read_jsonb(field: bytes) -> str:
    if field[:1] != b"\x01":
        raise Bad
    return read_text(field[1:])


def read_uuid(field: bytes) -> bytes:
    if len(field) != 16:
        raise Bad
    return field


def read_array(field: bytes, element_type: int) -> tuple[int, list[Field]]:
    """The number of the first element, and all of them."""
    if len(field) < 12:
        raise Bad
    dimensions, flags, of = struct.unpack_from(">iiI", field)
    if flags not in (0, 1) or of != element_type:
        raise Bad
    if dimensions == 0 and len(field) == 12:
        return 1, []
    if dimensions != 1 or len(field) < 20:
        raise Bad
    count, lower = struct.unpack_from(">ii", field, 12)
    if count < 0 or lower + count > 2**31 - 1:
        raise Bad
    elements: list[Field] = []
    at = 20
    for _ in range(count):
        if at + 4 > len(field):
            raise Bad
        (length,) = struct.unpack_from(">i", field, at)
        at += 4
        if length < -1 or at + length > len(field):
            raise Bad
        elements.append(None if length == -1 else field[at : at + length])
        at += max(length, 0)
    if at != len(field):
        raise Bad
    return lower, elements


# ------------------------------------------------------------------------------------------------- strategies


def numeric(digits: list[int], weight: int, sign: int, display_scale: int) -> bytes:
    return struct.pack(f">HhHH{len(digits)}H", len(digits), weight, sign, display_scale, *digits)


def numeric_of(value: Decimal) -> bytes:
    """As numeric_send writes it."""
    if not value.is_finite():
        sign = 0xC000 if value.is_nan() else 0xD000 if value > 0 else 0xF000
        return numeric([], 0, sign, 0)
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    display_scale = max(-exponent, 0)
    unscaled = int("".join(map(str, digits)) or "0")
    groups_after = -(-display_scale // 4)
    whole = unscaled * 10 ** (exponent + 4 * groups_after)
    groups: list[int] = []
    while whole:
        whole, digit = divmod(whole, 10000)
        groups.insert(0, digit)
    weight = len(groups) - 1 - groups_after
    while groups and groups[-1] == 0:
        groups.pop()
    return numeric(groups, weight if groups else 0, 0x4000 if sign and groups else 0, display_scale)


def array_of(elements: list[Field], element_type: int, lower: int = 1) -> bytes:
    if not elements:
        return struct.pack(">iiI", 0, 0, element_type)
    field = struct.pack(">iiIii", 1, None in elements, element_type, len(elements), lower)
    for element in elements:
        field += struct.pack(">i", -1) if element is None else struct.pack(">i", len(element)) + element
    return field


INTEGERS_AT_EDGES = st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**63 - 2])
DATES = st.one_of(
    st.integers(-2451545, 2145031948),
    st.sampled_from([-2451546, -2451545, 2145031948, 2145031949, 2**31 - 1, -(2**31)]),
).map(lambda days: struct.pack(">i", days))
LAST_DATETIME64 = 2**63 - 1 - 946_684_800_000_000
TIMESTAMPS = st.one_of(
    st.integers(-211_813_488_000_000_000, 9_223_371_331_199_999_999),
    st.sampled_from(
        [
            LAST_DATETIME64 - 1,
            LAST_DATETIME64,
            9_223_371_331_199_999_999,
            9_223_371_331_200_000_000,
            -211_813_488_000_000_000,
            -211_813_488_000_000_001,
        ]
    ),
    INTEGERS_AT_EDGES,
).map(lambda instant: struct.pack(">q", instant))
DECIMALS = st.one_of(
    st.decimals(allow_nan=True, allow_infinity=True, places=2),
    st.integers(-(10**20), 10**20).map(lambda value: Decimal(value).scaleb(-2, ANY_PRECISION)),
    st.tuples(st.integers(-(10**30), 10**30), st.integers(0, 40)).map(
        lambda parts: Decimal(parts[0]).scaleb(-parts[1], ANY_PRECISION)
    ),
    st.sampled_from(
        [Decimal(value) for value in ("0", "0.00", "1.00", "0.0001", "10000", "9999.9999", "92233720368547758.07")]
        + [Decimal(value) for value in ("92233720368547758.08", "-92233720368547758.08", "-92233720368547758.09")]
    ),
)
LOOSE_NUMERICS = st.builds(
    numeric,
    st.lists(st.sampled_from([0, 0, 1, 10, 100, 1234, 9999, 10000, 65535]), max_size=8),
    st.integers(-12, 12),
    st.sampled_from([0, 0, 0, 0x4000, 0xC000, 0xD000, 0xF000, 0x8000]),
    st.sampled_from([0, 1, 2, 4, 5, 18, 0x3FFF, 0x4000]),
)
NUMERICS = DECIMALS.map(numeric_of) | LOOSE_NUMERICS


@dataclass(frozen=True)
class Kind:
    decoder: Callable[[decode.Cells], tuple[Any, Any, list[tuple[int, str]]]]
    read: Callable[[bytes], Any]
    dtype: str
    fields: st.SearchStrategy[bytes]


def sized(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


KINDS = {
    "bool": Kind(decode.decode_bool, lambda field: number(">B")(field) != 0, "bool", sized(1)),
    "int2": Kind(decode.decode_int2, number(">h"), "int16", sized(2)),
    "int4": Kind(decode.decode_int4, number(">i"), "int32", sized(4)),
    "int8": Kind(decode.decode_int8, number(">q"), "int64", sized(8)),
    "float4": Kind(decode.decode_float4, number(">f"), "float32", sized(4)),
    "float8": Kind(decode.decode_float8, number(">d"), "float64", sized(8)),
    "date": Kind(decode.decode_date, read_date, "datetime64[D]", DATES),
    "timestamp": Kind(decode.decode_timestamp, read_timestamp, "datetime64[us]", TIMESTAMPS),
    "uuid": Kind(decode.decode_uuid, read_uuid, "V16", sized(16)),
    "text": Kind(decode.decode_text, read_text, "object", st.text().map(str.encode)),
    "bytea": Kind(decode.decode_bytea, bytes, "object", st.binary()),
    "jsonb": Kind(decode.decode_jsonb, read_jsonb, "object", st.text().map(lambda text: b"\x01" + text.encode())),
    "decimal": Kind(decode.decode_decimal, read_decimal, "object", NUMERICS),
    **{
        f"scaled{scale}": Kind(
            lambda cells, scale=scale: decode.decode_scaled(cells, scale), read_scaled(scale), "int64", NUMERICS
        )
        for scale in (0, 1, 2, 4, 6, 18)
    },
}
NOTHING = {"datetime64[D]": NAT, "datetime64[us]": NAT, "V16": bytes(16), "object": None}


@st.composite
def mutated(draw: st.DrawFn, fields: st.SearchStrategy[bytes]) -> bytes:
    """A right field with one byte changed, or cut, or made longer."""
    field = bytearray(draw(fields))
    what = draw(st.sampled_from(["change", "cut", "lengthen"]))
    if what == "change" and field:
        field[draw(st.integers(0, len(field) - 1))] = draw(st.integers(0, 255))
    elif what == "cut":
        del field[draw(st.integers(0, len(field))) :]
    else:
        field += draw(st.binary(min_size=1, max_size=9))
    return bytes(field)


def any_fields(kind: Kind) -> st.SearchStrategy[list[Field]]:
    one: st.SearchStrategy[Field] = st.one_of(st.none(), kind.fields, kind.fields, mutated(kind.fields), st.binary())
    return st.lists(one, min_size=1, max_size=20)


def plain(values: Any) -> list[Any]:
    """What Python would hold; times as integers."""
    if values.dtype.kind == "M":
        return values.view(np.int64).tolist()
    if values.dtype.kind == "V":
        return [bytes(value) for value in values]
    return values.tolist()


def same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    if isinstance(left, Decimal) and isinstance(right, Decimal):
        return left.as_tuple() == right.as_tuple()
    return type(left) is type(right) and left == right


def check(kind: Kind, fields: list[Field], given: tuple[Any, Any, list[tuple[int, str]]]) -> None:
    """Compare with the oracle."""
    values, null, bad = given
    assert values.dtype == kind.dtype and values.shape == (len(fields),)
    assert null.dtype == np.bool_ and null.shape == (len(fields),)
    wrong = [row for row, reason in bad if reason]
    for row, (field, value) in enumerate(zip(fields, plain(values), strict=True)):
        try:
            expected = None if field is None else kind.read(field)
            is_bad = False
        except Bad:
            expected, is_bad = None, True
        assert (row in wrong) == is_bad, field
        assert null[row] == (expected is None)
        assert same(value, NOTHING.get(kind.dtype, type(value)()) if expected is None else expected), field
    assert wrong == sorted(set(wrong))


# ------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("name", KINDS)
def test_every_field_reads_as_its_form_says_or_is_bad(name: str) -> None:
    kind = KINDS[name]

    @settings(max_examples=150, deadline=None)
    @given(any_fields(kind))
    def run(fields: list[Field]) -> None:
        check(kind, fields, kind.decoder(cells_of(fields)))

    run()


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("scaled")])
def test_the_elements_of_arrays_read_as_single_values_do(name: str) -> None:
    kind = KINDS[name]
    elements = st.lists(st.none() | kind.fields, max_size=6)
    arrays = st.builds(array_of, elements, st.just(77), st.sampled_from([1, 0, -5, 2**31 - 8]))
    fields = st.lists(
        st.one_of(st.none(), arrays, arrays, mutated(arrays), st.binary(max_size=40)), min_size=1, max_size=12
    )

    @settings(max_examples=100, deadline=None)
    @given(fields)
    def run(fields: list[Field]) -> None:
        cells, offsets, null, lower, bad = decode.elements(cells_of(fields), 77)
        expected: list[Field] = []
        wrong = []
        for row, field in enumerate(fields):
            try:
                first, found = (1, []) if field is None else read_array(field, 77)
            except Bad:
                first, found = 1, []
                wrong.append(row)
            assert offsets[row] == len(expected) and lower[row] == first
            assert null[row] == (field is None or row in wrong)
            expected += found
        assert [row for row, reason in bad if reason] == wrong
        assert offsets[-1] == len(expected) == cells.count
        check(kind, expected, kind.decoder(cells))

    run()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.none() | st.binary(max_size=60), min_size=1, max_size=8))
def test_no_field_breaks_any_decoder(fields: list[Field]) -> None:
    cells = cells_of(fields)
    for kind in KINDS.values():
        values, null, _bad = kind.decoder(cells)
        assert len(values) == len(null) == len(fields)
    decode.elements(cells, 23)


@pytest.mark.parametrize(
    "text", ["1.00", "0.000", "-0.10", "12345678901234567890.5", "100000000", "0.000001", "-Infinity"]
)
def test_a_decimal_shows_as_the_server_shows_it(text: str) -> None:
    values, null, bad = decode.decode_decimal(cells_of([numeric_of(Decimal(text))]))
    assert str(values[0]) == text
    assert not null.any() and not bad


def test_the_largest_and_the_finest_numeric_are_exact() -> None:
    fields = [numeric([1], 32767, 0x4000, 0x3FFF), numeric([10], -4096, 0, 0x3FFF), numeric([9999], -32768, 0, 0x3FFF)]
    fields.append(numeric([9999] * (32768 + 4095) + [9990], 32767, 0, 0x3FFF))  # every digit that a numeric can have
    values, _null, bad = decode.decode_decimal(cells_of(fields))
    assert values[0] == Decimal("-1E131068") and values[0].as_tuple().exponent == -0x3FFF
    assert values[1] == Decimal("1E-16383")
    assert values[2] is None
    assert str(values[3]) == f"{'9' * 131_072}.{'9' * 16_383}"
    assert [row for row, _reason in bad] == [2]


@pytest.mark.parametrize(
    ("decoder", "field", "reason"),
    [
        (decode.decode_int4, b"\0" * 8, "not as many bytes as a value of its type has"),
        (decode.decode_text, b"\xff", "not valid UTF-8"),
        (decode.decode_text, b"\xed\xa0\x80", "not valid UTF-8"),
        (decode.decode_jsonb, b"\x02{}", "an unknown version of jsonb"),
        (decode.decode_jsonb, b"", "an unknown version of jsonb"),
        (decode.decode_date, struct.pack(">i", 2**31 - 2), "no date that the server knows"),
        (decode.decode_timestamp, struct.pack(">q", 2**63 - 2), "no timestamp that the server knows"),
        (decode.decode_timestamp, struct.pack(">q", 9_223_371_331_200_000_000), "no timestamp that the server knows"),
        (
            decode.decode_timestamp,
            struct.pack(">q", 9_223_371_331_199_999_999),
            "later than datetime64[us] can hold (year 294247)",
        ),
        (
            decode.decode_timestamp,
            struct.pack(">q", LAST_DATETIME64),
            "later than datetime64[us] can hold (year 294247)",
        ),
        (decode.decode_decimal, b"", "not in the form of a numeric"),
    ],
)
def test_a_bad_value_says_what_is_wrong(decoder: Any, field: bytes, reason: str) -> None:
    values, null, bad = decoder(cells_of([None, field]))
    assert bad == [(1, reason)]
    assert null.tolist() == [True, True]
    assert len(values) == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("NaN", 'NaN, which an integer cannot hold (the form "decimal" can)'),
        ("Infinity", 'infinite, which an integer cannot hold (the form "decimal" can)'),
        ("1.001", "finer than the column's scale"),
        ("0.00001", "finer than the column's scale"),
        ("92233720368547758.08", "beyond what int64 can hold at the column's scale"),
        ("1E30", "beyond what int64 can hold at the column's scale"),
    ],
)
def test_what_a_scaled_integer_cannot_hold_is_bad_and_says_why(value: str, reason: str) -> None:
    values, null, bad = decode.decode_scaled(cells_of([numeric_of(Decimal(value)), numeric_of(Decimal("1.5"))]), 2)
    assert bad == [(0, reason)]
    assert values.tolist() == [0, 150] and null.tolist() == [True, False]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (struct.pack(">iiI", 2, 0, 23) + struct.pack(">iiii", 1, 1, 0, 1), "an array of more than one dimension"),
        (array_of([b"\0\0\0\1"], 25), "an array of another element type"),
        (array_of([b"\0\0\0\1"], 23)[:-1], "not in the form of an array"),
        (array_of([b"\0\0\0\1"], 23, 2**31 - 1), "not in the form of an array"),
        (struct.pack(">iiIii", 1, 0, 23, 2**31 - 1, 0), "not in the form of an array"),
        (struct.pack(">iiIii", 1, 0, 23, 1, 1) + struct.pack(">i", 2**30), "not in the form of an array"),
        (struct.pack(">iiI", 0, 0, 23) + b"\0", "not in the form of an array"),
        (struct.pack(">iiI", 7, 0, 23), "not in the form of an array"),
        (struct.pack(">iiI", 0, 2, 23), "not in the form of an array"),
    ],
)
def test_a_broken_array_says_what_is_wrong(field: bytes, reason: str) -> None:
    _cells, offsets, null, _lower, bad = decode.elements(cells_of([array_of([b"\0\0\0\7"], 23), field]), 23)
    assert bad == [(1, reason)]
    assert offsets.tolist() == [0, 1, 1] and null.tolist() == [False, True]


def test_the_bits_of_a_nan_pass_unchanged() -> None:
    quiet, signalling = bytes.fromhex("7ff8000000000abc"), bytes.fromhex("fff0000000000001")
    values, _null, _bad = decode.decode_float8(cells_of([quiet, signalling]))
    assert values.byteswap().tobytes() == quiet + signalling


def test_a_null_time_is_nat_and_nothing_else_is() -> None:
    values, null, bad = decode.decode_timestamp(cells_of([None, struct.pack(">q", -(2**63))]))
    assert np.isnat(values).tolist() == null.tolist() == [True, False]
    assert values.view(np.int64)[1] == -INFINITY and not bad


def test_cells_keep_the_rows_that_they_lie_in() -> None:
    rows = rows_of([array_of([b"some text"], 25)] * 1000)
    cells, *_rest = decode.elements(decode.Cells(rows, 1), 25)
    del rows
    gc.collect()
    others = [rows_of([bytes(30)] * 1000) for _ in range(10)]  # what is free would be used for these
    values, _null, bad = decode.decode_text(cells)
    assert set(values) == {"some text"} and not bad
    assert len(others) == 10


def test_long_decimals_leave_no_memory_behind() -> None:
    cells = cells_of([numeric([1], 2000, 0, 0), numeric([10001], 2000, 0, 0)])  # 8 kB of text each; the second is bad
    decode.decode_decimal(cells)
    tracemalloc.start()
    try:
        before, _peak = tracemalloc.get_traced_memory()
        for _ in range(50):
            decode.decode_decimal(cells)
        after, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000


def test_every_array_is_new_and_may_be_overwritten() -> None:
    cells = cells_of([struct.pack(">i", 7)])
    first, _null, _bad = decode.decode_int4(cells)
    first[0] = 8
    second, _null, _bad = decode.decode_int4(cells)
    assert second.tolist() == [7]


def test_only_fields_that_are_there_are_decoded() -> None:
    rows = rows_of([b""])
    for field in (-1, 3):
        with pytest.raises(IndexError):
            decode.Cells(rows, field)


@pytest.mark.parametrize("scale", [-1, 19])
def test_a_scale_is_one_that_int64_can_have(scale: int) -> None:
    with pytest.raises(ValueError):
        decode.decode_scaled(cells_of([None]), scale)
