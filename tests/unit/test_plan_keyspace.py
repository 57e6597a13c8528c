"""The key space maps keys to row numbers and back, from whatever is known of a table."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import SpanBounds
from engine.plan.keyspace import SAMPLED_ROWS_PER_BUCKET, KeySpace
from tests.support.tables import key_of

INT = key_of("int")


def int_space(rows=1000.0, low=0, high=1000, **known):
    return KeySpace(INT, rows=rows, low=(str(low),), high=(str(high),), **known)


@st.composite
def int_tables(draw):
    """Statistics of an integer column: rows, low, high, histogram, most common values with fractions."""
    bounds = sorted(draw(st.sets(st.integers(-(2**62), 2**62), min_size=2, max_size=12)))
    common = draw(st.lists(st.integers(bounds[0], bounds[-1]), max_size=4, unique=True))
    shares = draw(st.lists(st.integers(1, 20), min_size=len(common), max_size=len(common)))
    fractions = [share / 100 for share in shares]
    return float(draw(st.integers(1, 10**9))), bounds, list(zip(common, fractions, strict=True))


def expected_position(value, rows, bounds, common):
    """The oracle: histogram buckets hold equal shares of what is not common, in exact fractions."""
    others = 1 - sum(Fraction(fraction) for _, fraction in common)
    i = min(max(np.searchsorted(bounds, value, side="right") - 1, 0), len(bounds) - 2)
    inside = Fraction(value - bounds[i], bounds[i + 1] - bounds[i])
    spread = (i + inside) / (len(bounds) - 1) * others
    return float(rows * (spread + sum(Fraction(fraction) for v, fraction in common if v <= value)))


@given(int_tables(), st.floats(0, 1))
def test_positions_follow_histogram_and_common_values(table, share):
    rows, bounds, common = table
    space = KeySpace(
        INT,
        rows=rows,
        low=(str(bounds[0]),),
        high=(str(bounds[-1]),),
        histogram=[str(b) for b in bounds],
        common=[(str(v), f) for v, f in common],
    )
    value = bounds[0] + int((bounds[-1] - bounds[0]) * share)
    for candidate in (value, *bounds, *(v for v, _ in common)):
        expected = expected_position(min(max(candidate, bounds[0]), bounds[-1]), rows, bounds, common)
        assert space.position((str(candidate),)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(int_tables(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_guesses_rise_stay_inside_and_lead_back(table, shares):
    rows, bounds, common = table
    space = KeySpace(
        INT,
        rows=rows,
        low=(str(bounds[0]),),
        high=(str(bounds[-1]),),
        histogram=[str(b) for b in bounds],
        common=[(str(v), f) for v, f in common],
    )
    targets = np.sort(np.array(shares)) * rows
    guesses = [int(guess[0]) for guess in space.guesses(targets)]
    assert guesses == sorted(guesses)
    assert bounds[0] <= guesses[0]
    assert guesses[-1] <= bounds[-1]
    for guess, target in zip(guesses, targets, strict=True):
        near = max(1, abs(guess) >> 45)
        assert space.position((str(guess - near),)) - rows * 1e-6 <= target
        assert target <= space.position((str(guess + near),)) + rows * 1e-6


VALUES = {
    "int": ["-9223372036854775808", "-5", "0", "7", "8", "1000000000000", "9223372036854775807"],
    "uuid": [
        "00000000-0000-0000-0000-000000000000",
        "018f0000-0000-7000-8000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ],
    "text": ["", "Abe", "Berta", "Zoe", "abe", "zo\u00e9", "\U0001f600"],
    "bytea": ["\\x", "\\x0001", "\\x7f", "\\xffff"],
    "numeric": ["-Infinity", "-10.5", "0", "0.001", "123456789012345678901234567890", "Infinity", "NaN"],
    "float": ["-Infinity", "-1e+30", "-1.5", "0", "1", "1e+30", "Infinity", "NaN"],
    "date": ["-infinity", "4714-11-24 BC", "0001-01-01", "2024-02-29", "12345-01-01", "infinity"],
    "timestamp": ["-infinity", "0044-03-15 10:00:00 BC", "2024-02-29 12:00:00.5", "99999-01-01 00:00:00", "infinity"],
    "timestamptz": ["-infinity", "2024-01-01 00:00:00+00", "2024-01-01 00:00:00.000001+00", "infinity"],
    "bool": ["false", "true"],
    "enum": ["small", "medium", "LARGE"],
    "opaque": ["10.0.0.9", "10.0.0.10", "192.168.0.1"],
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("basis", ["ends", "histogram", "points"])
def test_every_type_has_rising_positions_that_lead_back(kind, basis):
    values = VALUES[kind]
    key = key_of(kind, labels=VALUES["enum"])
    known = {
        "ends": {},
        "histogram": {"histogram": values},
        "points": {"points": [((value,), i * 10.0) for i, value in enumerate(values)]},
    }[basis]
    space = KeySpace(key, rows=1000, low=(values[0],), high=(values[-1],), **known)
    positions = [space.position((value,)) for value in values]
    assert positions == sorted(positions)
    assert positions[-1] == 1000
    if basis != "ends":
        assert [space.guess(p)[0] for p in positions[1:]] == values[1:]
    guesses = space.guesses(np.linspace(0, 1000, 50))
    back = [space.position(guess) for guess in guesses]
    assert back == sorted(back)


def test_text_in_an_order_that_nobody_would_guess_still_gives_rising_guesses():
    by_length = ["zz", "b", "yyy", "aaaa", "kkkkk", "ccccc", "q"]
    space = KeySpace(key_of("text"), rows=700, low=("zz",), high=("q",), histogram=by_length)
    guesses = space.guesses(np.linspace(0, 700, 40))
    positions = [space.position(guess) for guess in guesses]
    assert positions == sorted(positions)
    assert positions[-1] == 700
    assert all(space.rises(a, b) for a, b in itertools.pairwise(guesses))
    assert len(set(guesses)) > 10


def test_rows_outside_the_histogram_get_their_small_share():
    space = int_space(rows=10_000, low=0, high=300, histogram=["100", "150", "200"])
    edge = space.position(("100",))
    assert edge == pytest.approx(10_000 / (3 * SAMPLED_ROWS_PER_BUCKET), rel=0.01)
    assert space.position(("0",)) == 0
    assert space.position(("200",)) == pytest.approx(10_000 - edge, rel=0.01)
    assert space.position(("300",)) == 10_000


def test_statistics_of_rows_that_are_gone_are_cut_off():
    space = int_space(rows=1000, low=500, high=750, histogram=[str(i * 100) for i in range(11)])
    assert space.position(("499",)) == 0
    assert space.position(("625",)) == pytest.approx(500)
    assert int_space(rows=10, low=5000, high=6000, histogram=["0", "10"]).position(("5500",)) == 5


def test_a_gap_of_a_million_millions_is_no_place_for_a_guess_when_points_show_it():
    far = 10**12
    points = [(("1",), 1.0), (("100",), 100.0), ((str(far),), 101.0), ((str(far + 99),), 200.0)]
    space = int_space(rows=200, low=1, high=far + 99, points=points)
    guesses = [int(space.guess(rows)[0]) for rows in range(1, 200)]
    assert sum(100 < guess < far for guess in guesses) <= 1
    assert space.position((str(far // 2),)) == pytest.approx(100, abs=1)


def test_a_heavy_leading_value_can_be_looked_into():
    key = key_of("int", "int")
    space = KeySpace(key, rows=1000, low=("1", "1"), high=("9", "9"), histogram=["1", "9"], common=[("5", 0.8)])
    assert space.rows_with("5") == pytest.approx(800)
    middle = space.position(("5", "0"))
    assert space.position(("4", "0")) < middle < space.position(("6", "0"))
    assert space.guess(500) == ("5",)
    inner = KeySpace(key_of("int"), rows=8, low=("100",), high=("900",))
    space.refine("5", inner)
    assert space.guess(500) == ("5", "500")
    assert space.position(("5", "500")) == pytest.approx(500)
    assert space.position(("5",)) == pytest.approx(900)


def test_one_leading_value_throughout_hands_over_to_the_next_column():
    space = KeySpace(key_of("bool", "int"), rows=100, low=("true", "0"), high=("true", "1000"))
    assert space.guess(25) == ("true", "250")
    assert space.position(("true", "250")) == pytest.approx(25)


def test_spans_describe_a_key_space_as_a_ledger_keeps_them():
    spans = [
        SpanBounds(None, ("1", "500"), 10.0),
        SpanBounds(("1", "500"), ("1", "900"), 30.0),
        SpanBounds(("1", "900"), ("7", "2"), 60.0),
    ]
    space = KeySpace.from_spans(key_of("int", "int"), spans, first=("1", "3"))
    assert space.rows == 100
    for span in spans:
        assert space.rows_between(span.lo, span.hi) == pytest.approx(span.rows)
    assert space.position(("1", "700")) == pytest.approx(25)
    assert KeySpace.from_spans(INT, []).rows == 0


def test_one_span_without_a_first_key_is_enough_for_a_key_space():
    space = KeySpace.from_spans(INT, [SpanBounds(None, ("100",), 50.0)])
    assert space.rows == 50
    assert space.position(("100",)) == 50
    assert space.split(None, ("100",)) == ("100",)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_a_split_point_of_integers_lies_between_unless_they_are_neighbours(a, b):
    lo, hi = min(a, b), max(a, b)
    split = int_space(low=-(2**63), high=2**63 - 1).split((str(lo),), (str(hi),))
    if hi - lo > 1:
        assert lo < int(split[0]) < hi
    else:
        assert split == (str(hi),)


@given(st.lists(st.integers(0, 10**6), min_size=4, max_size=20, unique=True), st.data())
def test_a_split_halves_the_rows_that_are_estimated(bounds, data):
    bounds = sorted(bounds)
    space = int_space(rows=1e6, low=bounds[0], high=bounds[-1], histogram=[str(b) for b in bounds])
    lo, hi = sorted(data.draw(st.sets(st.sampled_from(bounds), min_size=2, max_size=2)))
    split = space.split((str(lo),), (str(hi),))
    one = space.rows_between((str(lo),), split)
    whole = space.rows_between((str(lo),), (str(hi),))
    finest = max(space.rows_between((str(v - 1),), (str(v + 1),)) for v in (int(split[0]), lo + 1, hi))
    assert abs(one - whole / 2) <= finest


def test_a_split_of_a_composite_key_goes_as_deep_as_it_must():
    key = key_of("int", "uuid")
    low, high = (f"{i:08x}-0000-0000-0000-000000000000" for i in (0, 16))
    space = KeySpace(key, rows=100, low=("1", low), high=("9", high))
    assert space.split(("3", low), ("3", high)) == ("3", "00000008-0000-0000-0000-000000000000")
    assert space.split(("3", low), ("7", low)) == ("5",)
    assert space.split(("3", low), ("4", high)) == ("4",)
    assert space.split(("3", low), ("3", low)) == ("3", low)


def test_density_is_told_of_single_integers_only():
    assert int_space(rows=500, low=1, high=1000).density(None, ("1000",)) == pytest.approx(0.5)
    assert int_space(rows=500, low=0, high=1000).density(("500",), ("500",)) is None
    assert KeySpace(key_of("text"), rows=5, low=("a",), high=("z",)).density(None, ("z",)) is None


def test_an_empty_table_has_no_rows_anywhere():
    space = KeySpace(INT, rows=0, low=None, high=None)
    assert space.position(("5",)) == 0
    assert space.rows_between(None, ("5",)) == 0
    assert space.boundaries(8) == []
    assert space.open_middles([("5",)]) == []
    assert space.split(("1",), ("5",)) == ("5",)
    with pytest.raises(ValueError, match="empty"):
        space.guess(1)


def test_boundaries_cut_equal_numbers_of_rows():
    space = int_space(rows=1e6, low=0, high=10**6, histogram=["0", "10", "1000", "1000000"])
    cuts = space.boundaries(30)
    assert len(cuts) == len(set(cuts)) == 20 + 9  # the first third has ten values only: nine of its cuts, and the bound
    sizes = [space.rows_between(a, b) for a, b in itertools.pairwise(cuts[12:])]
    assert max(sizes) < 1.1 * min(sizes)


@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=12, unique=True),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=6),
)
def test_no_guess_falls_into_a_hole_that_is_known(bounds, holes):
    bounds = sorted(bounds)
    space = int_space(rows=1e6, low=bounds[0], high=bounds[-1], histogram=[str(b) for b in bounds])
    kept = []
    for left, right in sorted(holes):  # apart from each other, and at least one value left in each bucket
        here = [(a, b) for a, b in itertools.pairwise(bounds) if a <= left < right <= b and right - left < b - a]
        if here and (not kept or left > kept[-1][1]):
            kept.append((left, right))
    space.exclude([((str(left),), (str(right),)) for left, right in kept])
    positions = [space.position((str(b),)) for b in bounds]
    assert positions == pytest.approx([i * 1e6 / (len(bounds) - 1) for i in range(len(bounds))], rel=1e-9)
    guesses = [int(guess[0]) for guess in space.guesses(np.linspace(0, 1e6, 101)[1:-1] + 1e-3)]
    for left, right in kept:
        assert sum(left + 1 < guess < right for guess in guesses) == 0
        assert space.rows_between((str(left),), (str(right),)) == pytest.approx(0, abs=1e-3)


def test_holes_found_one_by_one_count_like_holes_found_at_once():
    holes = [(("10",), ("400",)), (("500",), ("520",)), (("600",), ("990",))]
    at_once, one_by_one = (int_space(histogram=["0", "1000", "2000"], high=2000) for _ in range(2))
    at_once.exclude(holes)
    for hole in reversed(holes):
        one_by_one.exclude([hole])
    for key in range(0, 2000, 7):
        assert one_by_one.position((str(key),)) == pytest.approx(at_once.position((str(key),)))
    assert at_once.position(("500",)) == pytest.approx(500 * 110 / 200)


def test_the_widest_stretch_around_a_guess_is_where_to_look_for_the_next_hole():
    space = int_space(histogram=["0", "1000", "2000"], high=2000)
    assert space.open_middles([("3",), ("700",)]) == [("500",)]
    space.exclude([(("450",), ("900",))])
    assert space.open_middles([("3",), ("700",), ("1500",)]) == [("225",), ("1500",)]


def test_holes_that_contradict_the_statistics_change_nothing():
    space = int_space(rows=100, histogram=["0", "10", "1000"])
    space.exclude([(("0",), ("10",)), (("700",), ("600",)), (("900",), ("2000",))])
    assert space.position(("5",)) == pytest.approx(25, abs=1)
    assert space.position(("1000",)) == 100
    KeySpace(INT, rows=0, low=None, high=None).exclude([(("1",), ("2",))])
