"""Whose fault a failure is: a row's, too much at once, or nobody's row's; and what halving and caution make of it."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
import pytest

from engine.db import Action, classify
from engine.db.failures import Fault
from engine.errors import BackfillError, SchemaDrift
from engine.flow.bounds import Bound
from engine.flow.halving import Caution, Halving
from engine.model import KeyValue, Phase, Span

SEVERITY, CODE, MESSAGE, ROUTINE, SCHEMA, CONSTRAINT = "S", "C", "M", "R", "s", "n"


def said(sqlstate: str, routine: str = "ExecConstraints", **fields: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new(
        {SEVERITY: "ERROR", "V": "ERROR", CODE: sqlstate, MESSAGE: "m", ROUTINE: routine} | fields
    )


@pytest.mark.parametrize(
    ("sqlstate", "fault"),
    [
        *(
            (state, Fault.ROW)
            for state in ("21000", "22001", "22003", "22007", "22012", "22021", "22P02", "22P05", "2202E")
        ),
        *((state, Fault.ROW) for state in ("23000", "23502", "23503", "23505", "23514", "23P01", "44000")),
        *((state, Fault.ROW) for state in ("P0001", "P0002", "P0003", "P0004", "38000", "38001", "2F005", "39004")),
        *((state, Fault.ROW) for state in ("54000", "54001")),
        *((state, Fault.LOAD) for state in ("57014", "53200", "53400", "25P04")),
        *(
            (state, Fault.NONE)
            for state in ("42P01", "42703", "42804", "42501", "42883", "428C9", "0A000", "54011", "54023")
        ),
        *((state, Fault.NONE) for state in ("40001", "40P01", "40002", "40003", "55P03", "55000", "72000", "39P01")),
        *(
            (state, Fault.NONE)
            for state in ("08006", "08P01", "57P01", "57P02", "57P03", "57P04", "53100", "53300", "58030")
        ),
        *(
            (state, Fault.NONE)
            for state in ("25006", "25P02", "25P03", "26000", "28000", "3D000", "XX000", "XX001", "XX002")
        ),
        *((state, Fault.NONE) for state in ("22P04", "BF001", "BF002", "BF404", "ZZ999", "00000")),
    ],
)
def test_each_sqlstate_of_the_server_has_its_fault(sqlstate: str, fault: Fault) -> None:
    failure = classify(said(sqlstate))
    assert failure.fault is fault
    assert failure.is_of_row is (fault is Fault.ROW)


@pytest.mark.parametrize("routine", ["exec_stmt_raise", "PLy_output", "plperl_util_elog", "pltcl_elog"])
@pytest.mark.parametrize("sqlstate", ["P0001", "ZZ999", "42883", "55000", "0A000", "57014", "23505", "22P04"])
def test_what_a_users_function_raises_is_a_rows_fault_whatever_it_calls_it(routine: str, sqlstate: str) -> None:
    assert classify(said(sqlstate, routine)).is_of_row


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "57P01", "53100", "08006", "BF001", "BF002"])
def test_unless_it_asks_to_be_tried_again_or_speaks_for_us(sqlstate: str) -> None:
    assert not classify(said(sqlstate, "exec_stmt_raise")).is_of_row


@pytest.mark.parametrize("routine", ["aclcheck_error", "ExecWithCheckOptions", "exec_stmt_raise", "PLy_output"])
def test_a_missing_right_is_no_rows_fault_whoever_says_so(routine: str) -> None:
    failure = classify(said("42501", routine))
    assert (failure.action, failure.fault, failure.is_missing_right) == (Action.STOP, Fault.NONE, True)
    assert not classify(said("42883", routine)).is_missing_right


@pytest.mark.parametrize("schema", ["backfill", "pg_catalog"])
def test_a_constraint_of_the_ledger_or_the_catalogue_is_no_rows_fault(schema: str) -> None:
    assert classify(said("23514", **{SCHEMA: schema, CONSTRAINT: "span_rows_check"})).fault is Fault.NONE
    assert classify(said("23514", **{SCHEMA: "public", CONSTRAINT: "span_rows_check"})).fault is Fault.ROW


@pytest.mark.parametrize(
    "error", [ValueError("22P02"), KeyError("23505"), AssertionError(), SchemaDrift("x"), BackfillError("x"), OSError()]
)
def test_our_own_mistakes_and_lost_connections_are_no_rows_fault(error: Exception) -> None:
    assert classify(error).fault is Fault.NONE


def test_what_is_too_much_at_once_is_still_split_first() -> None:
    for sqlstate in ("57014", "53200", "54000"):
        assert classify(said(sqlstate)).action is Action.SPLIT


# -- halving ----------------------------------------------------------------------------------------------------------


class Rows:
    """Stands in for the prober: the keys there are, and how often it was asked."""

    def __init__(self, keys: Sequence[int]) -> None:
        self.keys = list(keys)
        self.walks = 0

    async def walk(self, after: KeyValue | None, hi: KeyValue, rows: int) -> KeyValue | None:
        self.walks += 1
        inside = [k for k in self.keys if (after is None or k > int(after[0])) and k <= int(hi[0])]
        return (str(inside[rows - 1]),) if len(inside) >= rows else None


async def hunt(rows: Rows, bad: int, to: int, estimated: int, most: int = 50_000) -> tuple[int, list[int]]:
    """Halve until a single row has failed: how many pieces were tried, and which keys moved."""
    span = Span(id=1, phase=Phase.MOVE, lo=None, hi=(str(to),), cursor=None, epoch=1, rows=0)
    halving = Halving(rows, span, Bound(None, (str(to),), estimated, estimated, by_arithmetic=True))  # type: ignore[arg-type]
    cursor: KeyValue | None = None
    moved: list[int] = []
    for tried in range(1, 1000):
        bound = await halving.next(cursor, most)
        piece = [k for k in rows.keys if (cursor is None or k > int(cursor[0])) and k <= int(bound.to[0])]
        if bad in piece:
            halving.failed(bound)
            left = await halving.rows_left(cursor) if bound.asked == 1 else ()
            if len(left) == 1:
                assert left == ((str(bad),),)
                return tried, moved
        else:
            halving.moved(bound)
            moved += piece
            cursor = bound.to
    raise AssertionError("the bad row was never alone")


@pytest.mark.parametrize("bad", [1, 2, 24_999, 25_000, 25_001, 49_999, 50_000])
async def test_a_bad_row_among_50_000_is_found_in_seventeen_pieces(bad: int) -> None:
    rows = Rows(range(1, 50_001))
    tried, moved = await hunt(rows, bad, 50_000, 50_000)
    assert tried <= 17
    assert rows.walks <= 17 + 3
    assert moved == list(range(1, bad))


@pytest.mark.parametrize("estimated", [1, 2, 100, 50_000])
@pytest.mark.parametrize("bad", [10, 500, 1000])
async def test_a_wrong_count_costs_some_walks_and_nothing_else(bad: int, estimated: int) -> None:
    """Ids with gaps, chunks cut by arithmetic, rows that came or went: what is thought to be there is an estimate."""
    keys = [1, 10, 11, 12, 499, 500, 998, 1000]
    rows = Rows(keys)
    tried, moved = await hunt(rows, bad, 1000, estimated)
    assert moved == [k for k in keys if k < bad]
    assert tried <= 3 * len(keys)


async def test_a_chunk_that_was_thought_to_hold_one_row_is_halved_by_what_it_was_cut_for() -> None:
    """The number of rows left in a span is an estimate, and blind for texts under some collations."""
    rows = Rows(range(1, 40_001))
    span = Span(id=1, phase=Phase.MOVE, lo=None, hi=("40000",), cursor=None, epoch=1, rows=0)
    halving = Halving(rows, span, Bound(None, ("40000",), 50_000, 1, by_arithmetic=False))  # type: ignore[arg-type]
    assert (await halving.next(None, 50_000)).to == ("25000",)


async def test_pieces_are_never_larger_than_wanted() -> None:
    tried, moved = await hunt(Rows(range(1, 1001)), 900, 1000, 1000, most=100)
    assert moved == list(range(1, 900))
    assert tried <= 8 + 10


# -- caution ----------------------------------------------------------------------------------------------------------


def test_behind_the_first_bad_row_chunks_are_as_large_as_before() -> None:
    caution = Caution()
    caution.moved(50_000, 50_000)
    caution.met_bad_row(50_000)
    assert caution.limit(50_000) == 50_000


def test_where_bad_rows_lie_close_chunks_are_small_until_it_is_over() -> None:
    caution = Caution()
    caution.met_bad_row(50_000)
    caution.moved(3, 50_000)
    caution.met_bad_row(50_000)
    assert caution.limit(50_000) == 6
    sizes = []
    for _ in range(10):
        caution.moved(caution.limit(50_000), 50_000)
        sizes.append(caution.limit(50_000))
    assert sizes[:2] == [24, 96]
    assert sizes[-1] == 50_000
    caution.moved(60_000, 50_000)
    caution.met_bad_row(50_000)
    assert caution.limit(50_000) == 50_000, "far from the last one"
