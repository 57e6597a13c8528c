"""Orders and decisions that the ledger holds: whatever is written there, nothing unheard of is read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ledger.orders import MOST_WORKERS, PaceOrders, SignalOrder, read_json
from engine.ledger.pacing import orders_of
from engine.pace.law import Decision, Stage
from engine.pace.published import from_json, to_json
from engine.spec.signals import SignalKind, SignalSpec
from engine.watch.build import policy_of

HUGE = 10**400
ORDERED = ["max_rows_per_s", "max_wal_bytes_per_s", "workers", "signals", "target", "max", "off"]
DECIDED = ["rate_per_s", "chunk_target_s", "workers", "stage", "held", "leads", "reason"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([HUGE, -HUGE, 0, 1024, 1025, 2**16 + 1, 1e308, 5e-324]),
    st.floats(),
    st.text(max_size=80),
)
any_json = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(ORDERED + DECIDED), st.text(max_size=5)), inner, max_size=6),
    ),
    max_leaves=12,
)


def is_limit(value: float | None) -> bool:
    return value is None or (math.isfinite(value) and value > 0)


@given(st.one_of(any_json, st.dictionaries(st.sampled_from(ORDERED), any_json, max_size=9)))
def test_any_json_is_read_as_orders_that_can_be_followed(item: Any) -> None:
    orders = PaceOrders.from_json(item)
    assert is_limit(orders.max_rows_per_s)
    assert is_limit(orders.max_wal_bytes_per_s)
    assert orders.workers is None or (type(orders.workers) is int and 1 <= orders.workers <= MOST_WORKERS)
    for order in (*orders.signals.values(), SignalOrder.from_json(item)):
        assert is_limit(order.target)
        assert order.maximum is None or (math.isfinite(order.maximum) and order.maximum >= 0)
    assert PaceOrders.from_json(json.loads(json.dumps(orders.as_json(), allow_nan=False))) == orders


@pytest.mark.parametrize("value", [0, -1, HUGE, math.inf, math.nan, True, "5", [5]])
def test_what_is_no_limit_is_left_out(value: Any) -> None:
    limits = {"max_rows_per_s": value, "max_wal_bytes_per_s": value, "workers": value}
    assert PaceOrders.from_json(limits | {"signals": {"lag": {"target": value}}}) == PaceOrders()


def test_a_maximum_of_zero_and_what_is_beside_nonsense_are_kept() -> None:
    orders = PaceOrders.from_json({"workers": 3, "max_rows_per_s": HUGE, "signals": {"a": {"max": 0, "target": "x"}}})
    assert orders == PaceOrders(workers=3, signals={"a": SignalOrder(maximum=0.0)})
    assert PaceOrders.from_json({"workers": 2.5}) == PaceOrders.from_json({"workers": 1025}) == PaceOrders()


def test_a_ledger_may_hold_numbers_longer_than_python_reads() -> None:
    digits = "9" * 10_000
    assert read_json(f'[{digits}, 12, 1.5, "x"]') == [None, 12, 1.5, "x"]
    assert orders_of(f'{{"workers": {digits}, "max_wal_bytes_per_s": 7}}', 5.0) == PaceOrders(5.0, 7.0)
    assert orders_of("[1]", None) == PaceOrders()


@given(st.one_of(any_json, st.dictionaries(st.sampled_from(DECIDED), scalars, max_size=9)))
def test_any_json_is_read_as_a_decision_that_can_be_followed_or_as_none(item: Any) -> None:
    decision = from_json(item)
    if decision is not None:
        assert is_limit(decision.rate_per_s)
        assert is_limit(decision.chunk_target_s)
        assert decision.workers is None or (type(decision.workers) is int and 1 <= decision.workers <= 65536)
        assert len(decision.leads) <= 60


@pytest.mark.parametrize("rate", [0, -1.0, HUGE, math.inf, math.nan, True, "fast", [1]])
def test_what_is_no_rate_is_no_decision_rather_than_no_limit(rate: Any) -> None:
    assert from_json({"rate_per_s": rate}) is None
    assert from_json({"rate_per_s": 5.0, "workers": True}) is None
    assert from_json([rate]) is None


def test_a_decision_comes_back_with_its_words_and_a_name_that_is_not_endless() -> None:
    decision = Decision(rate_per_s=5.0, workers=2, held=True, leads="lag", reason="lag 2s > 1s", stage=Stage.HELD)
    assert from_json(json.loads(json.dumps(to_json(decision)))) == decision
    clipped = from_json({"rate_per_s": None, "leads": "x" * 1000, "reason": "y" * 100})
    assert clipped is not None
    assert (clipped.leads, clipped.reason) == ("x" * 60, "y" * 100)


@pytest.mark.parametrize("kind", list(SignalKind))
def test_only_lags_that_the_job_causes_accumulate(kind: SignalKind) -> None:
    its_own = {"name": "x"} if kind in (SignalKind.SQL, SignalKind.PROMETHEUS, SignalKind.HTTP) else {}
    policy = policy_of(SignalSpec(kind=kind, target=5.0, **its_own), "name", 1.0)
    assert policy.accumulates is (kind in (SignalKind.REPLICATION_LAG, SignalKind.SLOT_RETENTION))
