"""The forecast of a job: rough, never surprising in its direction."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.model import Index, Mode, Table, TableName
from engine.plan.forecast import SLOWEST, forecast

ROWS = 3_000_000
MIB = 2**20


def index(name: str) -> Index:
    return Index(name, 1, (name,), True, False, True, False, True, "btree", (False,), True, 64 * MIB)


ORDERS = Table(
    oid=1,
    name=TableName("public", "orders"),
    kind="r",
    persistence="p",
    relfilenode=1,
    rows=float(ROWS),
    heap_bytes=293 * MIB,
    toast_bytes=0,
    index_bytes=64 * MIB,
    fillfactor=100,
    columns=(),
    indexes=(index("id"),),
)
"""The table of the measurements: 102 bytes a row, one index."""

MEASURED_S = {Mode.UPDATE: (7.1, 8.4), Mode.INSERT: (4.6, 5.3), Mode.COPY: (3.8, 4.6)}


@pytest.mark.parametrize("mode", list(Mode))
def test_the_range_of_the_time_holds_what_was_measured(mode: Mode) -> None:
    guess = forecast(mode, ORDERS, None if mode is Mode.UPDATE else ORDERS, rows=ROWS, workers=2).seconds
    quickest, slowest = MEASURED_S[mode]
    assert guess.low <= quickest
    assert guess.high >= slowest
    assert guess.low >= quickest / 2, "a forecast that is always right says nothing"


def test_growth_of_a_table_filled_in_place_is_about_its_size() -> None:
    growth = forecast(Mode.UPDATE, ORDERS, None, rows=ROWS, workers=2).growth_bytes
    assert growth.low <= 293 * MIB <= growth.high  # seen: from 293 MB to 586 MB


def test_a_fixed_limit_is_a_lower_bound() -> None:
    guess = forecast(Mode.COPY, ORDERS, ORDERS, rows=ROWS, workers=2, max_rows_per_s=1000).seconds
    assert (guess.low, guess.high) == (3000, 3000)


def test_more_of_anything_costs_more() -> None:
    one = forecast(Mode.UPDATE, ORDERS, None, rows=ROWS, workers=2)
    for more in (
        forecast(Mode.UPDATE, ORDERS, None, rows=ROWS, workers=1),
        forecast(Mode.UPDATE, replace(ORDERS, heap_bytes=3000 * MIB), None, rows=ROWS, workers=2),
        forecast(Mode.UPDATE, replace(ORDERS, indexes=(index("a"), index("b"))), None, rows=ROWS, workers=2),
    ):
        assert more.seconds.low > one.seconds.low
        assert more.wal_bytes.high >= one.wal_bytes.high


def test_updates_that_stay_on_their_page_spare_the_indexes() -> None:
    two_indexes = replace(ORDERS, indexes=(index("a"), index("b")))
    cold = forecast(Mode.UPDATE, two_indexes, None, rows=ROWS, workers=2)
    hot = forecast(Mode.UPDATE, two_indexes, None, rows=ROWS, workers=2, hot=True)
    assert hot.seconds.low < cold.seconds.low
    assert hot.wal_bytes.high < cold.wal_bytes.high
    assert hot.growth_bytes.low == 0


def test_an_empty_table_costs_nothing() -> None:
    empty = replace(ORDERS, rows=-1.0, heap_bytes=0, index_bytes=0)
    guess = forecast(Mode.INSERT, empty, empty, rows=0, workers=2)
    assert guess.seconds.high == guess.wal_bytes.high == guess.growth_bytes.high == 0
    assert SLOWEST > 1
