"""The kernels of the key space agree with plain Python that counts in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._native import keyspace as kernel

CODES = st.one_of(
    st.integers(0, 2**128 - 1),
    st.integers(0, 40),
    st.integers(2**64 - 20, 2**64 + 20),
    st.integers(2**128 - 20, 2**128 - 1),
)
NEAR = 1e-9


def codes_of(numbers):
    array = np.array([[n >> 64, n & (2**64 - 1)] for n in numbers], dtype=np.uint64)
    return array.reshape(-1, 2)


def numbers_of(codes):
    return [(int(high) << 64) | int(low) for high, low in codes]


@st.composite
def curves(draw):
    codes = sorted(draw(st.lists(CODES, min_size=1, max_size=12)))
    steps = draw(st.lists(st.integers(0, 1000), min_size=len(codes), max_size=len(codes)))
    rows = np.cumsum(steps).astype(np.float64)
    return codes, rows - rows[0]


def located(codes, rows, wanted):
    """The oracle of ``locate``: rows before a code, and up to it, as exact fractions."""
    if wanted < codes[0]:
        return Fraction(0), Fraction(0)
    if wanted > codes[-1]:
        return Fraction(rows[-1]), Fraction(rows[-1])
    same = [Fraction(r) for c, r in zip(codes, rows, strict=True) if c == wanted]
    if same:
        return min(same), max(same)
    i = max(i for i, c in enumerate(codes) if c < wanted)
    share = Fraction(wanted - codes[i], codes[i + 1] - codes[i])
    between = Fraction(rows[i]) + share * Fraction(rows[i + 1] - rows[i])
    return between, between


@given(curves(), st.lists(CODES, max_size=20))
def test_locate_agrees_with_exact_arithmetic(curve, wanted):
    codes, rows = curve
    below, upto = kernel.locate(codes_of(codes), rows, codes_of(wanted))
    for i, code in enumerate(wanted):
        expected = located(codes, rows, code)
        assert below[i] == pytest.approx(float(expected[0]), rel=NEAR, abs=NEAR)
        assert upto[i] == pytest.approx(float(expected[1]), rel=NEAR, abs=NEAR)


@given(curves(), st.lists(CODES, min_size=2, max_size=20))
def test_positions_never_fall_while_codes_rise(curve, wanted):
    codes, rows = curve
    below, upto = kernel.locate(codes_of(codes), rows, codes_of(sorted(set(wanted))))
    assert (np.diff(below) >= 0).all()
    assert (np.diff(upto) >= 0).all()
    assert (below <= upto).all()
    assert (below[1:] >= upto[:-1]).all()


@given(curves(), st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=20))
def test_inverting_leads_to_a_code_that_lies_there(curve, shares):
    codes, rows = curve
    targets = np.sort(np.array(shares)) * rows[-1]
    found = numbers_of(kernel.invert(codes_of(codes), rows, targets))
    assert found == sorted(found)
    assert all(codes[0] <= code <= codes[-1] for code in found)
    for code, target in zip(found, np.clip(targets, 0, rows[-1]), strict=True):
        # A code is a whole number: the rows of one code, or a double's precision of a wide gap, may lie between.
        below, _ = located(codes, rows, max(code - max(1, code >> 50), 0))
        _, upto = located(codes, rows, code + max(1, code >> 50))
        assert float(below) - NEAR <= target <= float(upto) + NEAR


def test_a_target_that_is_not_a_number_leads_to_the_end():
    assert numbers_of(kernel.invert(codes_of([3, 9]), np.array([0.0, 5.0]), np.array([np.nan, np.inf]))) == [9, 9]


@st.composite
def digit_items(draw):
    base = draw(st.integers(2, 256))
    length = max(n for n in range(1, 129) if base**n <= 2**128)
    digits = draw(st.integers(1, length))
    items = draw(st.lists(st.lists(st.integers(0, base - 1), max_size=digits + 3), max_size=12))
    return base, digits, items


@given(digit_items())
def test_digits_become_the_number_that_they_spell_and_come_back(case):
    base, digits, items = case
    padded = [(item + [0] * digits)[:digits] for item in items]
    data = np.array([d for item in items for d in item], dtype=np.uint8)
    offsets = np.cumsum([0, *map(len, items)]).astype(np.int64)
    codes = kernel.encode_digits(data, offsets, base, digits)
    assert numbers_of(codes) == [sum(d * base ** (digits - 1 - i) for i, d in enumerate(item)) for item in padded]
    assert kernel.decode_digits(codes, base, digits).tolist() == padded


def test_shapes_that_would_read_outside_an_array_are_refused():
    codes, rows = codes_of([1, 2]), np.array([0.0, 1.0])
    with pytest.raises(ValueError, match="curve"):
        kernel.locate(codes, rows[:1], codes)
    with pytest.raises(ValueError, match="curve"):
        kernel.invert(codes[:0], rows[:0], rows)
    with pytest.raises(ValueError, match="halves"):
        kernel.locate(codes, rows, np.zeros((3, 1), dtype=np.uint64))
    with pytest.raises(ValueError, match="outside"):
        kernel.encode_digits(b"abc", np.array([0, 4], dtype=np.int64), 256, 2)
    with pytest.raises(ValueError, match="fall"):
        kernel.encode_digits(b"abc", np.array([0, 2, 1, 3], dtype=np.int64), 256, 2)
    with pytest.raises(ValueError, match="128 bits"):
        kernel.decode_digits(codes, 256, 17)
