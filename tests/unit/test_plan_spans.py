"""Spans tile the key space on existing keys, whatever the statistics say; and evenly, where they tell the truth."""

from __future__ import annotations

import itertools
import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.questions import ColumnStatistics, ExistingKeys, Samples, drive
from engine.plan.spans import MOST_SPANS, plan_spans, wanted_spans
from engine.plan.survey import PROBES, survey
from tests.support.tables import TableInMemory, key_of

INT = key_of("int")


def plan(table, key=INT, **options):
    return drive(plan_spans(key, **options), table.answer)


def assert_tiled(plan, table):
    """Spans begin before the first key, meet each other, end at the last key, and stand on existing keys."""
    existing = set(table.keys)
    bounds = [span.hi for span in plan.spans]
    assert plan.spans[0].lo is None
    assert [span.lo for span in plan.spans[1:]] == bounds[:-1]
    assert bounds[-1] == table.keys[-1]
    assert existing.issuperset(bounds)
    assert bounds[0] != table.keys[0] or len(table.keys) == 1  # no span for the first row alone
    sort_keys = [table.sort_key(bound) for bound in bounds]
    assert all(a < b for a, b in itertools.pairwise(sort_keys))


def unevenness(plan, table):
    """The largest span in units of the mean, and the mean in units of the smallest."""
    sizes = [table.rows_between(span.lo, span.hi) for span in plan.spans]
    mean = sum(sizes) / len(sizes)
    return max(sizes) / mean, mean / min(sizes)


def ints(numbers):
    return [(str(n),) for n in numbers]


def skewed_gappy_numbers(count, seed=7):
    """Keys whose distances follow a Zipf law, with a hole of 10**12 every few thousand."""
    rng = random.Random(seed)
    here, result = 0, []
    for _ in range(count):
        here += min(int(1 / (1 - rng.random()) ** 1.2), 10**7) + (10**12 if rng.random() < 1 / 5000 else 0)
        result.append(here)
    return result


def test_an_empty_table_has_no_spans():
    result = plan(TableInMemory([]))
    assert result.spans == ()
    assert (result.first, result.last, result.rows) == (None, None, 0)


def test_one_row_is_one_span():
    result = plan(TableInMemory(ints([42])), workers=8)
    assert [(span.lo, span.hi, span.rows) for span in result.spans] == [(None, ("42",), 1.0)]


def test_a_small_table_is_one_span_and_costs_three_questions():
    table = TableInMemory(ints(range(1000)))
    result = plan(table, workers=8)
    assert len(result.spans) == 1
    assert len(table.asked) == 3


@pytest.mark.parametrize(
    ("rows", "workers", "spans"),
    [(0, 1, 1), (99_999, 4, 1), (400_000, 4, 8), (3_000_000, 2, 32), (10**9, 4, 500), (10**11, 4, MOST_SPANS)],
)
def test_the_number_of_spans_follows_rows_and_workers(rows, workers, spans):
    assert wanted_spans(rows, workers) == spans


def test_a_skewed_gappy_key_with_statistics_is_cut_evenly():
    table = TableInMemory(ints(skewed_gappy_numbers(60_000))).analyse()
    result = plan(table, spans=32)
    assert_tiled(result, table)
    assert result.basis == "statistics"
    assert len(result.spans) == 32
    assert max(unevenness(result, table)) < 1.2


def test_a_skewed_gappy_key_without_statistics_is_probed_and_cut_fairly_evenly():
    table = TableInMemory(ints(skewed_gappy_numbers(60_000)))
    result = plan(table, spans=16)
    assert_tiled(result, table)
    assert result.basis == "probes"
    assert unevenness(result, table)[0] < 2.5


def test_probing_asks_for_no_more_than_its_budget():
    table = TableInMemory(ints(skewed_gappy_numbers(60_000)))
    plan(table, spans=16)
    assert sum(len(q.guesses) for q in table.asked if isinstance(q, Samples)) <= PROBES
    assert len(table.asked) <= 24


def test_clusters_around_a_hole_are_found_by_a_handful_of_probes():
    far = 10**12
    table = TableInMemory(ints([*range(5000), *range(far, far + 5000)]))
    points = drive(survey(INT, table.keys[0], table.keys[-1], probes=64), table.answer)
    rows = dict(points)
    assert rows["4999",] == pytest.approx(5000, rel=0.05)
    assert rows[str(far),] - rows["4999",] <= 1
    assert points[-1][1] == pytest.approx(10_000, rel=0.05)


def test_infinite_ends_hide_nothing_that_lies_between():
    values = [str(n**5) for n in range(-500, 501)]
    table = TableInMemory([("-Infinity",), ("Infinity",), ("NaN",), *((v,) for v in values)], read=decimal_order)
    result = plan(table, key_of("numeric"), spans=8)
    assert_tiled(result, table)
    assert max(unevenness(result, table)) < 2


def test_an_infinite_end_counts_as_one_row_and_not_as_a_distance():
    values = [str(n) for n in range(10**6, 10**6 + 5000)]
    table = TableInMemory([("-Infinity",), ("NaN",), *((v,) for v in values)], read=decimal_order)
    points = drive(survey(key_of("numeric"), table.keys[0], table.keys[-1]), table.answer)
    assert points[0] == (("-Infinity",), 1.0)
    assert points[1] == ((values[0],), 2.0)
    assert points[-2][0] == (values[-1],)
    assert points[-1][1] == pytest.approx(5002, rel=0.1)


def test_keys_that_crowd_around_one_value_are_found_in_a_few_rounds():
    table = TableInMemory([(str(n**9),) for n in range(-1500, 1501)], read=Decimal)
    result = plan(table, key_of("numeric"), spans=8)
    assert_tiled(result, table)
    assert max(unevenness(result, table)) < 1.7


def test_rows_that_came_after_the_statistics_are_found_behind_the_histogram():
    table = TableInMemory(ints(range(0, 20_000, 2))).analyse()
    grown = TableInMemory(ints([*range(0, 20_000, 2), *range(20_000, 40_000)]), statistics=table.statistics)
    result = plan(grown, spans=10)
    assert_tiled(result, grown)
    assert max(unevenness(result, grown)) < 1.5


def tenants(sizes):
    """Composite keys (tenant, id), ids shared out among tenants at random."""
    rng = random.Random(11)
    owners = [tenant for tenant, size in enumerate(sizes) for _ in range(size)]
    rng.shuffle(owners)
    return [(str(tenant), str(i)) for i, tenant in enumerate(owners)]


@pytest.mark.parametrize(("analysed", "small_tenants"), [(True, 400), (False, 20)])
def test_a_tenant_with_most_of_the_rows_is_cut_inside(analysed, small_tenants):
    table = TableInMemory(tenants([100, 20_000, 50, 3000, 200] + [5] * small_tenants))
    if analysed:
        table.analyse(common=20)
    result = plan(table, key_of("int", "int"), spans=12)
    assert_tiled(result, table)
    assert sum(span.hi[0] == "1" for span in result.spans) >= 5
    assert unevenness(result, table)[0] < 2.5


def test_equal_tenants_without_statistics_are_cut_inside():
    table = TableInMemory(tenants([2000] * 10))
    result = plan(table, key_of("int", "int"), spans=20)
    assert_tiled(result, table)
    assert unevenness(result, table)[0] < 2.5


def test_a_boolean_first_column_is_no_obstacle():
    keys = [(("true" if i % 4 else "false"), str(i)) for i in range(10_000)]
    table = TableInMemory(keys, read=lambda text: int(text) if text.isdigit() else text).analyse(common=2)
    result = plan(table, key_of("bool", "int"), spans=8)
    assert_tiled(result, table)
    assert max(unevenness(result, table)) < 1.5


def decimal_order(text):
    value = Decimal(text)
    return (1, Decimal(0)) if value.is_nan() else (0, value)


def natural(text):
    return ("".join(c for c in text.casefold() if c.isalnum()), text)


TEXT = st.text("abcXYZ019-_ é", max_size=6)
TABLES = st.one_of(
    st.tuples(st.just("int"), st.lists(st.integers(-(2**63), 2**63 - 1).map(str), max_size=40), st.just(int)),
    st.tuples(st.just("text"), st.lists(TEXT, max_size=40), st.just(str)),
    st.tuples(st.just("text"), st.lists(TEXT, max_size=40), st.just(natural)),
    st.tuples(
        st.just("numeric"),
        st.lists(st.one_of(st.decimals(places=2, allow_nan=False).map(str), st.sampled_from(["NaN"])), max_size=40),
        st.just(decimal_order),
    ),
    st.tuples(st.just("opaque"), st.lists(TEXT, max_size=40), st.just(lambda text: (len(text), text))),
)


@given(TABLES, st.data())
def test_wrong_statistics_never_lose_a_key(case, data):
    kind, values, read = case
    table = TableInMemory([(value,) for value in values], read, rows=data.draw(st.floats(0, 1e12)))
    lies = data.draw(st.lists(st.sampled_from(values), max_size=10)) if values else []
    table.statistics = ColumnStatistics(
        histogram=tuple(lies), common=tuple((v, 0.3) for v in data.draw(st.permutations(lies))[:3])
    )
    result = plan(table, key_of(kind), spans=data.draw(st.integers(1, 20)))
    if values:
        assert_tiled(result, table)
        assert all(span.rows >= 0 for span in result.spans)
    else:
        assert result.spans == ()


@given(st.lists(st.tuples(st.integers(0, 3).map(str), TEXT, st.integers(0, 99).map(str)), max_size=80), st.data())
def test_composite_keys_are_tiled_with_and_without_statistics(keys, data):
    table = TableInMemory(keys, read=lambda text: (0, int(text), "") if text.isdigit() else (1, 0, natural(text)))
    if keys and data.draw(st.booleans()):
        table.analyse(common=data.draw(st.integers(0, 4)))
    result = plan(table, key_of("int", "text", "int"), spans=data.draw(st.integers(1, 20)))
    if keys:
        assert_tiled(result, table)


def test_boundaries_are_asked_for_in_one_question():
    table = TableInMemory(ints(range(0, 10**6, 17))).analyse()
    result = plan(table, spans=2000)
    assert sum(isinstance(question, ExistingKeys) for question in table.asked) == 1
    assert len(result.spans) == 2000
