"""Codes of each type rise with the type's own order, as plain Python values have it, and lead back to values."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import uuid
from decimal import Decimal

from hypothesis import assume, given
from hypothesis import strategies as st

from engine.model import KeyColumn
from engine.plan.codes import codec_for, to_codes, to_numbers
from engine.plan.dates import format_date, format_timestamp, parse_date, parse_timestamp

DAY_US = 86_400_000_000


def column(kind, type_name="", labels=()):
    return KeyColumn("k", type_name or kind, 0, kind, enum_labels=tuple(labels))


def codes_in(codec, texts):
    return to_numbers(codec.encode(texts))


def rises(numbers):
    return all(a <= b for a, b in itertools.pairwise(numbers))


INTS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-5, 5))


@given(st.lists(INTS, min_size=1))
def test_integers_are_placed_exactly_and_come_back(values):
    codec = codec_for(column("int"), [])
    texts = [str(v) for v in values]
    numbers = codes_in(codec, texts)
    assert [n - numbers[0] for n in numbers] == [v - values[0] for v in values]
    assert codec.decode(codec.encode(texts)) == texts


@given(st.lists(st.uuids(), min_size=1))
def test_uuids_are_placed_exactly_and_come_back(values):
    codec = codec_for(column("uuid"), [])
    texts = [str(v) for v in values]
    assert codes_in(codec, texts) == [uuid.UUID(t).int for t in texts]
    assert codec.decode(codec.encode(texts)) == texts


def test_booleans_are_read_in_both_of_the_servers_spellings():
    codec = codec_for(column("bool"), [])
    assert codes_in(codec, ["false", "true", "f", "t"]) == [0, 1, 0, 1]
    assert codec.decode(to_codes([0, 1])) == ["false", "true"]


def test_enum_values_stand_in_the_order_of_their_labels():
    codec = codec_for(column("enum", labels=["small", "medium", "LARGE"]), [])
    assert codes_in(codec, ["small", "medium", "LARGE", "added later"]) == [0, 1, 2, 1]
    assert codec.decode(to_codes([0, 2, 7])) == ["small", "LARGE", "LARGE"]


@given(st.lists(st.binary(max_size=24), min_size=1), st.binary(max_size=3))
def test_byte_strings_rise_with_their_bytes(values, beginning):
    values = sorted(beginning + v for v in values)
    texts = ["\\x" + v.hex() for v in values]
    codec = codec_for(column("bytea"), texts)
    numbers = codes_in(codec, texts)
    assert rises(numbers)
    for value, text in zip(values, codec.decode(codec.encode(texts)), strict=True):
        # Sixteen bytes after the common beginning fit into a code, and trailing zeros cannot be told from none.
        back = bytes.fromhex(text[2:])
        assert back <= value
        if len(value) <= 16:
            assert back.rstrip(b"\0") == value.rstrip(b"\0")


def decimal_order(text):
    value = Decimal(text)
    return (1, Decimal(0)) if value.is_nan() else (0, value)


NUMERICS = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9),
    st.integers(-(10**40), 10**40).map(Decimal),
    st.sampled_from([Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity"), Decimal(0)]),
).map(lambda d: format(d, "f"))


@given(st.lists(NUMERICS, min_size=1), st.lists(NUMERICS))
def test_numerics_rise_with_nan_above_infinity(known, others):
    known = sorted(known, key=decimal_order)
    codec = codec_for(column("numeric"), known)
    assert rises(codes_in(codec, sorted([*known, *others], key=decimal_order)))
    finite = [d for d in map(Decimal, known) if d.is_finite()]
    for text, back in zip(known, codec.decode(codec.encode(known)), strict=True):
        if Decimal(text).is_finite():
            tolerance = (max(finite) - min(finite)) / Decimal(10**30)
            assert abs(Decimal(back) - Decimal(text)) <= tolerance
            assert "E" not in back
        else:
            assert back == text


def test_numerics_of_any_length_are_read():
    codec = codec_for(column("numeric"), ["-" + "9" * 5000, "0", "9" * 20000 + "." + "1" * 5000])
    numbers = codes_in(codec, ["-" + "9" * 5000, "0", "1" * 20000, "9" * 20000])
    assert rises(numbers)
    assert numbers[2] < numbers[3]


def float_order(text):
    value = float(text)
    return (1, 0.0) if math.isnan(value) else (0, value)


def float_text(value):
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return "NaN" if math.isnan(value) else repr(value)


FLOATS = st.one_of(st.floats(), st.floats(-10, 10), st.sampled_from([0.0, -0.0, 5e-324])).map(float_text)


@given(st.lists(FLOATS, min_size=1), st.lists(FLOATS))
def test_floats_rise_with_nan_above_infinity(known, others):
    known = sorted(known, key=float_order)
    codec = codec_for(column("float"), known)
    assert rises(codes_in(codec, sorted([*known, *others], key=float_order)))
    assert codes_in(codec, ["-0"]) == codes_in(codec, ["0"])
    for text, back in zip(known, codec.decode(codec.encode(known)), strict=True):
        if math.isfinite(float(text)):
            width = max(abs(v) for t in known if math.isfinite(v := float(t)))
            assert math.isclose(float(back), float(text), rel_tol=1e-12, abs_tol=width * 1e-30 + 1e-323)
        else:
            assert back == text


@given(st.dates())
def test_dates_are_the_calendars_days(date):
    days = (date - dt.date(2000, 1, 1)).days
    text = f"{date.year:04d}-{date.month:02d}-{date.day:02d}"
    assert parse_date(text) == days
    assert format_date(days) == text


@given(st.integers(-2_451_545, 2_145_031_948))  # 4714-11-24 BC to 5874897-12-31: all that the server has
def test_days_outside_the_usual_calendar_come_back(days):
    assert parse_date(format_date(days)) == days


def test_the_turns_of_all_centuries_come_back():
    for century in range(-47, 120):
        turn = parse_date(f"{century * 100 + 1:04d}-01-01" if century >= 0 else f"{-century * 100:04d}-01-01 BC")
        ends_of_february = [*range(turn - 310, turn - 300), *range(turn + 55, turn + 65)]
        for days in (*range(turn - 2, turn + 3), *ends_of_february):
            assert parse_date(format_date(days)) == days
    for last, following in (
        ("2100-02-28", "2100-03-01"),
        ("2000-02-28", "2000-02-29"),
        ("0101-02-28 BC", "0101-03-01 BC"),
        ("0401-02-28 BC", "0401-02-29 BC"),
    ):
        assert format_date(parse_date(last) + 1) == following


def test_dates_before_christ_and_of_five_digit_years_are_spelled_as_the_server_does():
    assert parse_date("0001-12-31 BC") == parse_date("0001-01-01") - 1
    assert format_date(parse_date("0044-03-15 BC")) == "0044-03-15 BC"
    assert format_timestamp(parse_timestamp("12345-06-07 08:09:10.5"), "") == "12345-06-07 08:09:10.5"
    assert format_timestamp(parse_timestamp("0044-03-15 10:00:00+00 BC"), "+00") == "0044-03-15 10:00:00+00 BC"


@given(st.datetimes())
def test_timestamps_are_the_calendars_microseconds(moment):
    microseconds = (moment - dt.datetime(2000, 1, 1)) // dt.timedelta(microseconds=1)  # noqa: DTZ001
    text = format_timestamp(microseconds, "+00")
    assert parse_timestamp(text) == microseconds
    assert dt.datetime.fromisoformat(text).replace(tzinfo=None) == moment


MOMENTS = st.one_of(st.integers(-10, 10), st.integers(-2_451_545 * DAY_US, 106_751_991 * DAY_US))


@given(st.lists(MOMENTS, min_size=1), st.sampled_from(["date", "timestamp", "timestamptz"]), st.booleans())
def test_moments_rise_between_the_infinities_and_come_back(moments, kind, with_infinities):
    spell = {
        "date": lambda m: format_date(m // DAY_US),
        "timestamp": lambda m: format_timestamp(m, ""),
        "timestamptz": lambda m: format_timestamp(m, "+00"),
    }[kind]
    texts = [spell(m) for m in sorted(moments)]
    known = ["-infinity", *texts, "infinity"] if with_infinities else texts
    codec = codec_for(column(kind), known)
    assert rises(codes_in(codec, ["-infinity", *texts, "infinity"]))
    assert codec.decode(codec.encode(known)) == known


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30), min_size=1))
def test_text_in_byte_order_rises(values):
    values = sorted(values)
    numbers = codes_in(codec_for(column("text"), values), values)
    assert rises(numbers)


@given(
    st.text("abc-/_", max_size=12),
    st.lists(st.text("0123456789abcdef", min_size=1, max_size=20), min_size=2, unique=True),
)
def test_short_text_comes_back_after_a_beginning_of_any_length(beginning, values):
    values = sorted(beginning + v for v in values)
    codec = codec_for(column("text"), values)
    assert codec.decode(codec.encode(values)) == values


def test_the_reading_that_suits_the_servers_order_is_chosen():
    natural = ["Abel", "adam", "Bert", "bo-ris", "Boris2", "Éric", "erik", "Zoé", "zora"]
    assert rises(codes_in(codec_for(column("text"), natural), natural))
    assert rises(codes_in(codec_for(column("text"), sorted(natural)), sorted(natural)))
    ignoring_punctuation = ["a-1", "A_2", "a3", "-a4", "B.1", "b-2", "'b3"]
    assert rises(codes_in(codec_for(column("text"), ignoring_punctuation), ignoring_punctuation))


def test_padding_of_char_n_makes_no_difference():
    codec = codec_for(column("text", "bpchar"), ["a ", "ab", "b"])
    assert codes_in(codec, ["ab   "]) == codes_in(codec, ["ab"])


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), st.integers(0, 2**128 - 1)
)
def test_any_code_leads_to_text_that_a_server_accepts(value, code):
    codec = codec_for(column("text"), ["", value])
    alphabet_end = codes_in(codec, ["\U0010ffff" * 200])[0]
    assume(code <= alphabet_end)
    back = codec.decode(to_codes([code]))[0]
    assert "\0" not in back
    back.encode("utf-8")


def test_values_of_an_unknown_type_stand_in_the_order_in_which_they_are_known():
    codec = codec_for(column("opaque"), ["10.0.0.9", "10.0.0.10", "192.168.0.1"])
    assert codes_in(codec, ["10.0.0.9", "10.0.0.10", "192.168.0.1", "10.0.0.12"]) == [0, 1, 2, 1]
