"""Bytes and arrays that no server and no sound transform would send, through every kernel of a transform.

Nothing may crash, read past an end (``make test-sanitized`` sees that) or invent a value: what is no value of its type
is bad, and what is one comes back from the encoder as it was.  ``make fuzz-native`` tries thousands of each.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine._native import decode as decoders
from engine._native import encode as encoders
from engine._native.copybin import CopyFormatError
from engine._native.rows import HEADER, TRAILER, Encoded, RowBatches, Rows, assemble
from engine.transform.columns import Column, ListColumn
from engine.transform.decoding import decode
from engine.transform.encoding import encode
from engine.transform.types import ColumnType, Kind
from tests.support.copystream import cut, damaged_tables
from tests.support.copystream import encode as stream_of

OIDS = {
    Kind.BOOL: 16,
    Kind.INT2: 21,
    Kind.INT4: 23,
    Kind.INT8: 20,
    Kind.FLOAT4: 700,
    Kind.FLOAT8: 701,
    Kind.DATE: 1082,
    Kind.TIMESTAMP: 1114,
    Kind.UUID: 2950,
    Kind.TEXT: 25,
    Kind.BYTEA: 17,
    Kind.JSON: 114,
    Kind.JSONB: 3802,
    Kind.DECIMAL: 1700,
}
WIDTHS = {
    Kind.BOOL: 1,
    Kind.INT2: 2,
    Kind.INT4: 4,
    Kind.INT8: 8,
    Kind.FLOAT4: 4,
    Kind.FLOAT8: 8,
    Kind.DATE: 4,
    Kind.TIMESTAMP: 8,
    Kind.UUID: 16,
}
SCALARS = [ColumnType("a", kind, kind, oid) for kind, oid in OIDS.items()] + [
    ColumnType("a", Kind.SCALED, f"numeric(18,{scale})", 1700, scale, 18) for scale in (0, 2, 5, 18)
]
# Kinds of which every value that is not bad has one form only.
EXACT = frozenset(OIDS) - {Kind.BOOL, Kind.DECIMAL}

by_name = {"ids": lambda column: column.type_name, "argvalues": SCALARS, "argnames": "column"}

numbers = st.sampled_from([0, 1, 2, -1, 9999, 10_000, 2**15 - 1, -(2**15)]) | st.integers(-(2**15), 2**15 - 1)
signs = st.sampled_from([0, 0x4000, 0xC000, 0xD000, 0xF000, 1, 0x8000])
counts = st.sampled_from([0, 1, 2, 3, -1, 7, 2**31 - 1, -(2**31)])


@st.composite
def numerics(draw: st.DrawFn) -> bytes:
    """Bytes in the form of a numeric, mostly; its parts may make no sense."""
    digits = draw(st.lists(st.integers(0, 9999) | st.just(0) | numbers, max_size=8))
    count = draw(st.just(len(digits)) | numbers)
    weight = draw(st.integers(-6, 6) | numbers)
    scale = draw(st.integers(0, 40) | numbers)
    return struct.pack(">hhHH", count, weight, draw(signs), scale & 0xFFFF) + b"".join(
        struct.pack(">h", digit) for digit in digits
    )


def scalars(column: ColumnType) -> st.SearchStrategy[bytes]:
    """Values of the type, near it, and of nothing at all."""
    anything = st.binary(max_size=24)
    if column.is_numeric:
        return numerics() | anything
    if column.kind in WIDTHS:
        width = WIDTHS[column.kind]
        return (
            st.binary(min_size=width, max_size=width)
            | st.sampled_from([b"\x7f", b"\x80"]).map(
                lambda first: first + (b"\xff" if first == b"\x7f" else b"\0") * (width - 1)
            )
            | anything
        )
    return st.text(max_size=9).map(lambda text: b"\1" * (column.kind is Kind.JSONB) + text.encode()) | anything


@st.composite
def arrays(draw: st.DrawFn, element: ColumnType) -> bytes:
    """Bytes in the form of an array, mostly."""
    elements = draw(st.lists(st.none() | scalars(element), max_size=4))
    dimensions = draw(st.just(1) | counts)
    head = [
        dimensions,
        draw(st.sampled_from([0, 1, 1, 2])),
        draw(st.just(element.oid) | st.just(element.oid + 1)),
        draw(st.just(len(elements)) | counts),
        draw(st.just(1) | counts),
    ]
    whole = b"".join(struct.pack(">i", number) for number in head) + b"".join(
        struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value for value in elements
    )
    damaged = bytearray(whole)
    if draw(st.booleans()):
        damaged[draw(st.integers(0, len(whole) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(damaged[: draw(st.just(len(whole)) | st.integers(0, len(whole)))])


def rows_of(values: list[bytes | None]) -> Rows:
    """Rows of one field, the last value of which ends where the memory does."""
    batches = RowBatches(1)
    gathered = batches.feed(stream_of([(value,) for value in values]))
    last = batches.finish()
    [rows] = [*gathered, *([last] if last else [])]
    return rows


def wire(encoded: Encoded) -> list[bytes | None]:
    return [encoded.value(row) for row in range(encoded.count)]


def numeric_value(value: bytes) -> Fraction | float | None:
    """The oracle: what the bytes of a numeric stand for, None if they are none."""
    if len(value) < 8:
        return None
    count, weight, sign, scale = struct.unpack(">hhHH", value[:8])
    if count < 0 or len(value) != 8 + 2 * count or scale > 0x3FFF:
        return None
    if sign in (0xC000, 0xD000, 0xF000):
        return {0xC000: float("nan"), 0xD000: float("inf"), 0xF000: float("-inf")}[sign]
    digits = struct.unpack(f">{count}H", value[8:])
    if sign not in (0, 0x4000) or any(digit > 9999 for digit in digits):
        return None
    total = sum((Fraction(digit) * Fraction(10_000) ** (weight - i) for i, digit in enumerate(digits)), Fraction())
    return -total if sign else total


# ------------------------------------------------------------------------------------------------------ streams


@given(table=damaged_tables(), data=st.data())
@settings(deadline=None)
def test_whatever_comes_out_of_a_damaged_stream_can_be_decoded_and_assembled(
    table: tuple[int, tuple[int, ...], bytes], data: st.DataObject
) -> None:
    fields, _, stream = table
    batches = RowBatches(fields, max_rows=data.draw(st.integers(1, 4)))
    gathered: list[Rows] = []
    with_error = False
    try:
        for piece in cut(data, stream):
            gathered += batches.feed(piece)
        gathered += [last for last in [batches.finish()] if last]
    except CopyFormatError:
        with_error = True
    for rows in gathered:
        again = assemble(rows, range(fields), [])
        assert len(again) == rows.nbytes
        assert with_error or again in stream
        for field in range(fields):
            for column in SCALARS:
                decode(rows, field, column)


# ----------------------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize(**by_name)
@given(data=st.data())
@settings(deadline=None)
def test_a_value_is_bad_or_comes_back_from_the_encoder(column: ColumnType, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | scalars(column), min_size=1, max_size=4))
    decoded, bad = decode(rows_of(values), 0, column)
    assert isinstance(decoded, Column)
    assert [entry.row for entry in bad] == sorted({entry.row for entry in bad})
    bad_rows = {entry.row for entry in bad}
    assert {row for row, null in enumerate(decoded.null) if null} == bad_rows | {
        row for row, value in enumerate(values) if value is None
    }
    encoded, refused = encode(decoded, column, len(values))
    refused_rows = {entry.row for entry in refused}
    again, bad_again = decode(rows_of(wire(encoded)), 0, column)
    assert not bad_again
    assert isinstance(again, Column)
    for row, value in enumerate(values):
        if value is None or row in bad_rows:
            continue
        if row in refused_rows:  # what a server never sends: its texts hold no NUL, and int64 holds 19 digits
            assert b"\0" in value or column.kind is Kind.SCALED
            continue
        if column.kind in EXACT:
            assert encoded.value(row) == value
        elif column.is_numeric:
            meant = numeric_value(value)
            held = decoded.values[row]
            if isinstance(meant, Fraction):
                assert Fraction(held) == meant * (10 ** (column.scale or 0) if column.kind is Kind.SCALED else 1)
            else:
                assert str(float(held)) == str(meant)
        assert not again.null[row]
        assert str(again.values[row]) == str(decoded.values[row])


@pytest.mark.parametrize("scale", [0, 2, 18])
@given(values=st.lists(numerics(), min_size=1, max_size=4))
@settings(deadline=None)
def test_a_numeric_is_bad_only_where_an_integer_cannot_hold_it(scale: int, values: list[bytes]) -> None:
    _, bad = decode(rows_of(values), 0, ColumnType("a", Kind.SCALED, f"numeric(18,{scale})", 1700, scale, 18))
    for row, value in enumerate(values):
        meant = numeric_value(value)
        scaled = meant * 10**scale if isinstance(meant, Fraction) else None
        fits = scaled is not None and scaled.denominator == 1 and -(2**63) <= scaled < 2**63
        assert (row in {entry.row for entry in bad}) != fits


@pytest.mark.parametrize(**by_name)
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_an_array_is_bad_or_comes_back_from_the_encoder(column: ColumnType, data: st.DataObject) -> None:
    listed = ColumnType("a", Kind.ARRAY, f"{column.type_name}[]", 1, column.scale, column.precision, column)
    values = data.draw(st.lists(st.none() | arrays(column), min_size=1, max_size=3))
    decoded, bad = decode(rows_of(values), 0, listed)
    assert isinstance(decoded, ListColumn)
    assert {row for row, null in enumerate(decoded.null) if null} == {entry.row for entry in bad} | {
        row for row, value in enumerate(values) if value is None
    }
    encoded, refused = encode(decoded, listed, len(values))
    once = wire(encoded)
    again, bad_again = decode(rows_of(once), 0, listed)
    assert not bad_again
    assert wire(encode(again, listed, len(values))[0]) == once
    for row in set(range(len(values))) - {entry.row for entry in refused}:
        assert (once[row] is None) == bool(decoded.null[row])


@given(value=st.binary(max_size=64), field=st.integers(-3, 3))
@example(value=b"", field=0)
@settings(deadline=None)
def test_no_decoder_crashes_on_any_bytes(value: bytes, field: int) -> None:
    rows = rows_of([value])
    if field != 0:
        with pytest.raises(IndexError):
            decoders.Cells(rows, field)
        return
    cells = decoders.Cells(rows, 0)
    for name in sorted(vars(decoders)):
        if name.startswith("decode_"):
            values, null, bad = getattr(decoders, name)(cells, *([2] if name == "decode_scaled" else []))
            assert len(values) == len(null) == 1
            assert bool(null[0]) == bool(bad)
    inner, offsets, null, lower, bad = decoders.elements(cells, 25)
    assert (len(offsets), len(null), len(lower), inner.count) == (2, 1, 1, offsets[-1])


# ----------------------------------------------------------------------------------------------------- encoders


@given(
    given_elements=st.lists(st.none() | st.binary(max_size=4), max_size=5),
    offsets=st.lists(st.integers(-2, 6) | st.sampled_from([2**63 - 1, -(2**63)]), min_size=1, max_size=5),
    data=st.data(),
)
@settings(deadline=None)
def test_lists_whose_parts_do_not_fit_are_refused(
    given_elements: list[bytes | None], offsets: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.just(len(offsets) - 1) | st.integers(0, 5))
    null = np.array(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), np.uint8)
    edges = st.sampled_from([1, 0, -(2**31), 2**31 - 1, 2**31 - 3])
    lower = np.array(data.draw(st.lists(edges, min_size=count, max_size=count)), np.int32)
    fits = (
        len(offsets) == count + 1
        and offsets[0] >= 0
        and offsets[-1] <= len(given_elements)
        and all(a <= b for a, b in pairwise(offsets))
    )
    elements = Encoded.of(given_elements)

    def call() -> tuple[Encoded, list[tuple[int, str]]]:
        return encoders.encode_lists(elements, np.array(offsets, np.int64), null, lower, 25)

    if not fits:
        with pytest.raises(ValueError):
            call()
        return
    encoded, bad = call()
    for row, value in enumerate(wire(encoded)):
        expected = given_elements[offsets[row] : offsets[row + 1]]
        if null[row] or row in dict(bad):
            assert value is None
        else:
            inner, ends, _, _, wrong = decoders.elements(decoders.Cells(rows_of([value]), 0), 25)
            assert (wrong, ends.tolist()) == ([], [0, len(expected)])
            got, _, _ = decoders.decode_bytea(inner)
            assert got.tolist() == expected


@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 0, 1]), max_size=5),
    scale=st.integers(-2, 20),
    precision=st.none() | st.integers(-2, 1000),
    declared=st.none() | st.integers(-1000, 1000) | st.sampled_from([2**31 - 1, 0x3FFF, 0x4000]),
)
@settings(deadline=None)
def test_scaled_integers_are_written_exactly_or_are_bad(
    values: list[int], scale: int, precision: int | None, declared: int | None
) -> None:
    null = np.zeros(len(values), np.uint8)
    try:
        encoded, bad = encoders.encode_scaled(np.array(values, np.int64), null, scale, precision, declared)
    except (ValueError, OverflowError):
        assert not 0 <= scale <= 18 or (declared is not None and declared > 0x3FFF)
        return
    for row, value in enumerate(wire(encoded)):
        if row in dict(bad):
            assert value is None
            assert precision is not None or declared is not None
        else:
            assert value is not None
            assert numeric_value(value) == Fraction(values[row], 10**scale)


@given(
    values=st.lists(
        st.decimals(allow_nan=True) | st.integers() | st.none() | st.just(Decimal("sNaN")) | st.just(Decimal("-0E+5")),
        max_size=5,
    ),
    precision=st.none() | st.integers(1, 1000),
    declared=st.none() | st.integers(-1000, 1000),
)
@example(
    values=[Decimal("1E+131071"), Decimal("1E+131072"), Decimal("1E-16383"), Decimal("1E-16384")],
    precision=None,
    declared=None,
)
@example(values=[Decimal("1E+999999999999999999"), Decimal("-1E-1999999999999999997")], precision=9, declared=2)
@settings(deadline=None)
def test_decimals_are_written_exactly_or_are_bad(
    values: list[Any], precision: int | None, declared: int | None
) -> None:
    encoded, bad = encoders.encode_decimals(values, np.zeros(len(values), np.uint8), precision, declared)
    for row, value in enumerate(wire(encoded)):
        if values[row] is None or row in dict(bad):
            assert value is None
        elif isinstance(values[row], Decimal) and not values[row].is_finite():
            assert value is not None
            assert str(numeric_value(value)) == str(float(values[row]))
        else:
            assert value is not None
            assert numeric_value(value) == Fraction(values[row])


ONE = np.zeros(1, np.uint8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: encoders.encode_words(np.zeros(2, np.uint64), ONE),
        lambda: encoders.encode_blocks(np.zeros((2, 16), np.uint8), ONE),
        lambda: encoders.encode_scaled(np.zeros(2, np.int64), ONE, 2),
        lambda: encoders.encode_decimals([Decimal(1)] * 2, ONE),
        lambda: encoders.encode_texts(["a"] * 2, ONE),
        lambda: encoders.encode_bytes([b"a"] * 2, ONE),
        lambda: encoders.encode_texts(["a"], np.zeros(0, np.uint8)),
    ],
)
def test_masks_of_another_length_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="marks of null"):
        call()


@given(
    values=st.lists(
        st.none() | st.text(max_size=5) | st.binary(max_size=5) | st.integers() | st.just("\ud800") | st.just("a\0b"),
        max_size=6,
    )
)
@settings(deadline=None)
def test_objects_of_any_type_are_written_or_bad(values: list[Any]) -> None:
    null = np.zeros(len(values), np.uint8)
    texts, bad_texts = encoders.encode_texts(values, null, b"\1")
    contents, bad_bytes = encoders.encode_bytes(values, null)
    for row, value in enumerate(values):
        good_text = isinstance(value, str) and "\0" not in value and value != "\ud800"
        assert texts.value(row) == (b"\1" + value.encode() if good_text else None)
        assert (row in dict(bad_texts)) == (value is not None and not good_text)
        assert contents.value(row) == (value if isinstance(value, bytes) else None)
        assert (row in dict(bad_bytes)) == (value is not None and not isinstance(value, bytes))


def test_streams_that_are_put_together_are_read_again() -> None:
    rows = rows_of([b"1", None, b"333"])
    output = HEADER + assemble(rows, [0, -1, 0], [Encoded.of([None, b"", b"x"])]) + TRAILER
    assert output == stream_of([(b"1", None, b"1"), (None, b"", None), (b"333", b"x", b"333")])
