"""One worker's transform at work: with the real codec, without a server."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import TooManyBadRows, TransformFailed
from engine.transform import Batch, Column, Transform, transform
from engine.transform.failures import shown_file
from engine.transform.running import Applied, Runner
from engine.transform.types import ColumnType, Kind
from tests.support.batches import counting, int8, numbers, rows_of, runner_of, text, written

HERE = __file__
SECRET = 8675309  # a row's value that must be seen nowhere


class Odd(int):
    """Says that it fits everywhere."""

    __le__ = __ge__ = lambda self, other: True


def transform_of(function: Callable[[Batch], Any], **options: Any) -> Transform:
    return transform(**({"reads": ["a"], "writes": ["b"]} | options))(function)


@asynccontextmanager
async def at_work(function: Callable[[Batch], Any], *, most_rejected: int = 0, **options: Any) -> AsyncIterator[Runner]:
    runner = runner_of(transform_of(function, **options), most_rejected=most_rejected)
    await runner.start()
    try:
        yield runner
    finally:
        await runner.close()


async def failure_of(function: Callable[[Batch], Any], *values: int, most_rejected: int = 0, **options: Any) -> str:
    async with at_work(function, most_rejected=most_rejected, **options) as runner:
        with pytest.raises(TransformFailed) as caught:
            await runner.apply(numbers(*(values or (1, 2, 3))))
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    ran_in = {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}
    assert "attempt" not in ran_in and "_passed" not in ran_in, "an error that is kept keeps no rows"
    return caught.value.message


def line_of(marker: str) -> str:
    """``file:line`` of the only line of this file that ends with that comment."""
    lines = Path(HERE).read_text(encoding="utf-8").splitlines()
    (found,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {marker}")]
    return f"{shown_file(HERE)}:{found} in"


def double(batch: Batch) -> dict[str, Any]:
    a = batch["a"]
    return {"b": Column(a.values * 2, a.null)}


def raise_on(*bad: int) -> Callable[[Batch], dict[str, Any]]:
    def function(batch: Batch) -> dict[str, Any]:
        calls.append(batch.rows)
        found = np.isin(batch["a"].values, bad)
        if found.any():
            raise ValueError(f"no good: {batch['a'].values[found]}")
        return double(batch)

    calls: list[int] = []
    function.calls = calls  # type: ignore[attr-defined]
    return function


# What comes out


async def test_the_columns_written_stand_where_the_layout_says() -> None:
    declared = transform(reads=["a"], writes=["b", "c"])(
        lambda batch: {"c": batch["a"].values + 100, "b": batch["a"].values * 2}
    )
    runner = Runner(declared, [(1, int8("a"))], [int8("b"), int8("c")], [-2, 1, 0, -1])
    await runner.start()
    applied = await runner.apply(numbers(5, 6))
    assert written(applied.piece, 4) == [(105, 5, 0, 10), (106, 6, 1, 12)]
    assert await runner.close() is None


async def test_nulls_go_through() -> None:
    async with at_work(double) as runner:
        assert written((await runner.apply(numbers(1, None, 3))).piece) == [(0, 2), (1, None), (2, 6)]


def texts(*rows: int) -> Callable[[Batch], dict[str, Any]]:
    """Gives texts back instead of the numbers of those rows."""

    def function(batch: Batch) -> dict[str, Any]:
        given = batch["a"].values.astype(object)
        given[batch["a"].null] = None
        for row in rows:
            given[row] = str(given[row])
        return {"b": given}

    return function


async def test_a_column_whose_every_value_is_of_a_wrong_type_is_no_rows_fault() -> None:
    message = await failure_of(texts(0, 1, 2), most_rejected=100)
    assert "gave back a column that cannot be written, by the type of every value: b: str instead of int" in message
    assert f"it stands at {shown_file(HERE)}:" in message


async def test_nulls_and_rows_that_are_left_out_do_not_make_a_wrong_type_right() -> None:
    def function(batch: Batch) -> dict[str, Any]:
        batch.reject([0], "the first")
        batch.drop([1])
        return {"b": np.array([1, 2, None, "3", "4"], object)}

    assert "every value: b: str instead of int" in await failure_of(function, *range(5), most_rejected=9, drops=True)


@pytest.mark.parametrize("rows", [(0,), (0, 2)])
async def test_values_of_a_wrong_type_beside_right_ones_are_bad_rows(rows: tuple[int, ...]) -> None:
    async with at_work(texts(*rows), most_rejected=2) as runner:
        applied = await runner.apply(numbers(5, 6, 7))
    assert [(one.row, one.sqlstate, one.reason) for one in applied.rejected] == [
        (row, "BF012", "b: str instead of int") for row in rows
    ]


async def test_a_single_value_of_a_wrong_type_may_be_its_rows_fault() -> None:
    async with at_work(texts(1), most_rejected=1) as runner:
        applied = await runner.apply(numbers(None, 6, None))
    assert [one.row for one in applied.rejected] == [1] and applied.rows == 2


async def test_what_a_function_leaves_in_rows_that_it_rejects_is_not_looked_at() -> None:
    def function(batch: Batch) -> dict[str, Any]:
        batch.reject([0, 1], "two of them")
        return {"b": np.array(["1", "2", None], object)}

    async with at_work(function, most_rejected=2) as runner:
        applied = await runner.apply(numbers(1, 2, 3))
    assert [one.sqlstate for one in applied.rejected] == ["BF010"] * 2 and applied.rows == 1


async def test_rejected_and_dropped_rows_are_left_out_and_counted() -> None:
    def particular(batch: Batch) -> dict[str, Any]:
        values = batch["a"].values
        batch.reject(values == 2, "two")
        batch.drop(values >= 4)
        return {"b": values}

    async with at_work(particular, most_rejected=5, drops=True) as runner:
        applied = await runner.apply(numbers(1, 2, 3, 4, 5))
    assert written(applied.piece) == [(0, 1), (2, 3)]
    assert (applied.rows, applied.dropped) == (2, 2)
    assert [(one.row, one.reason, one.sqlstate) for one in applied.rejected] == [(1, "two", "BF010")]


async def test_a_batch_of_which_nothing_is_left_is_an_empty_piece() -> None:
    def nothing(batch: Batch) -> dict[str, Any]:
        batch.drop(np.ones(batch.rows, bool))
        return double(batch)

    async with at_work(nothing, drops=True) as runner:
        applied = await runner.apply(numbers(1, 2))
    assert applied.piece == b"" and (applied.rows, applied.dropped) == (0, 2)


async def test_what_is_written_for_a_rejected_or_dropped_row_is_not_looked_at() -> None:
    def small(batch: Batch) -> dict[str, Any]:
        batch.reject(0, "first")
        batch.drop(1)
        return {"b": batch["a"].values}

    smallint = ColumnType("b", Kind.INT2, "smallint", 21)
    runner = Runner(transform_of(small, drops=True), [(1, int8("a"))], [smallint], [0, -1], most_rejected=9)
    await runner.start()
    applied = await runner.apply(numbers(1 << 40, 1 << 40, 7, 1 << 40))
    assert [(one.row, one.sqlstate) for one in applied.rejected] == [(0, "BF010"), (3, "BF012")]
    assert (applied.rows, applied.dropped) == (1, 1)
    assert applied.rejected[1].reason == "b: a number that int2 cannot hold"
    await runner.close()


async def test_a_function_may_overwrite_what_it_is_given() -> None:
    def overwrites(batch: Batch) -> dict[str, Any]:
        values = batch["a"].values
        values *= 2
        if (values == 26).any():
            raise ValueError
        return {"b": values}

    async with at_work(overwrites, most_rejected=1) as runner:
        rows = numbers(*range(20))
        applied = await runner.apply(rows)
        assert written(applied.piece) == [(n, n * 2) for n in range(20) if n != 13]
        assert written((await runner.apply(rows)).piece) == written(applied.piece)


async def test_only_the_columns_that_are_read_are_decoded() -> None:
    rows = rows_of([(b"\xff not a number", 1, b"\x00")])
    runner = Runner(transform_of(double), [(1, int8("a"))], [int8("b")], [-1])
    await runner.start()
    assert written((await runner.apply(rows)).piece, 1) == [(2,)]
    await runner.close()


async def test_a_value_that_cannot_be_decoded_is_rejected_and_not_shown_to_the_function() -> None:
    seen: list[int] = []

    def looks(batch: Batch) -> dict[str, Any]:
        seen.extend(batch["a"].values.tolist())
        return double(batch)

    async with at_work(looks, most_rejected=2) as runner:
        applied = await runner.apply(rows_of([(0, 1), (1, b"odd"), (2, 3)]))
        assert written(applied.piece) == [(0, 2), (2, 6)] and seen == [1, 3]
        ((row, reason, state),) = [(one.row, one.reason, one.sqlstate) for one in applied.rejected]
        assert (row, state) == (1, "BF012") and reason.startswith("a: ")
        seen.clear()
        assert (await runner.apply(rows_of([(1, b"odd")]))).rows == 0 and not seen


# What it is called with


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_set_up_runs_once_and_its_state_is_torn_down(kind: str) -> None:
    seen: list[Any] = []

    def setup() -> dict[str, int]:
        seen.append("up")
        return {"plus": 10}

    def teardown(state: dict[str, int]) -> None:
        seen.append(state)

    async def setup_later() -> dict[str, int]:
        await asyncio.sleep(0)
        return setup()

    async def teardown_later(state: dict[str, int]) -> None:
        await asyncio.sleep(0)
        teardown(state)

    def plus(batch: Batch) -> dict[str, Any]:
        return {"b": batch["a"].values + batch.state["plus"]}

    up, down = (setup, teardown) if kind == "plain" else (setup_later, teardown_later)
    runner = runner_of(transform_of(plus, setup=up, teardown=down))
    await runner.start()
    assert written((await runner.apply(numbers(1))).piece) == [(0, 11)]
    assert written((await runner.apply(numbers(2))).piece) == [(0, 12)]
    assert seen == ["up"]
    assert await runner.close() is None
    assert seen == ["up", {"plus": 10}]


async def test_everything_of_one_worker_runs_in_one_thread_that_is_not_the_engines() -> None:
    threads: list[str] = []

    def note(*_: Any) -> Any:
        threads.append(threading.current_thread().name)

    async with at_work(lambda batch: note() or double(batch), setup=note, teardown=note) as runner:
        await runner.apply(numbers(1))
    assert len(threads) == 3 and set(threads) == {f"transform {__name__}:<lambda>"}


async def test_an_async_function_has_several_batches_at_once_and_no_more() -> None:
    at_once = most = 0
    gate = threading.Event()

    async def slow(batch: Batch) -> dict[str, Any]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        while not gate.is_set():
            await asyncio.sleep(0.001)
        at_once -= 1
        return double(batch)

    async with at_work(slow, concurrency=3) as runner:
        asked = [asyncio.create_task(runner.apply(numbers(n))) for n in range(7)]
        while most < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        gate.set()
        answers = await asyncio.gather(*asked)
    assert most == 3
    assert [written(answer.piece) for answer in answers] == [[(0, 2 * n)] for n in range(7)]


async def test_each_batch_gets_its_own_answer_whichever_is_done_first() -> None:
    async def backwards(batch: Batch) -> dict[str, Any]:
        await asyncio.sleep(0.05 - float(batch["a"].values[0]) / 100)
        return double(batch)

    async with at_work(backwards, concurrency=4) as runner:
        answers = await asyncio.gather(*(runner.apply(numbers(n)) for n in range(4)))
    assert [written(answer.piece) for answer in answers] == [[(0, 2 * n)] for n in range(4)]


async def test_a_plain_function_that_gives_back_what_is_to_be_awaited_is_awaited() -> None:
    async def later(times: int, batch: Batch) -> dict[str, Any]:
        return {"b": batch["a"].values * times}

    async with at_work(functools.partial(later, 2)) as runner:
        assert written((await runner.apply(numbers(4))).piece) == [(0, 8)]


async def test_rows_of_small_batches_that_raise_one_after_the_other_are_an_outage() -> None:
    def is_away(batch: Batch) -> dict[str, Any]:
        if (batch["a"].values < 0).any():
            raise ConnectionError
        return double(batch)

    async def bad(first: int, last: int) -> None:
        assert len((await runner.apply(numbers(*range(-first, -last - 1, -1)))).rejected) == 32

    async with at_work(is_away, most_rejected=1000) as runner:
        await bad(1, 32)
        await bad(33, 64)
        await bad(33, 64)  # the same ones again: the chunk was tried again
        assert (await runner.apply(numbers(1))).rows == 1
        await bad(65, 96)  # something went well between
        await bad(97, 128)
        with pytest.raises(TransformFailed, match="more than 64 rows that were tried alone") as caught:
            await runner.apply(numbers(-129))
        assert caught.value.hint.endswith("then backfill resume, and run again")


async def test_where_few_rows_may_be_set_aside_none_is_taken_for_an_outage() -> None:
    def raises(batch: Batch) -> dict[str, Any]:
        raise ValueError

    async with at_work(raises, most_rejected=1) as runner:  # as `quarantine retry` asks, row by row
        for n in range(100):
            assert len((await runner.apply(numbers(n))).rejected) == 1


async def test_the_engines_loop_goes_on_while_a_function_works() -> None:
    release = threading.Event()

    def busy(batch: Batch) -> dict[str, Any]:
        while not release.is_set():
            sum(range(1000))
        return double(batch)

    async with at_work(busy) as runner:
        asked = asyncio.create_task(runner.apply(numbers(1)))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not asked.done()
        release.set()
        assert (await asked).rows == 1


async def test_nothing_of_a_batch_is_kept() -> None:
    kept: list[Any] = []

    class Marked(dict[str, Any]):
        pass

    def remembers(batch: Batch) -> dict[str, Any]:
        values = batch["a"].values
        kept.append(weakref.ref(values))
        given = Marked(b=values)
        kept.append(weakref.ref(given))
        if (values == 13).any():
            raise ValueError
        return given

    async with at_work(remembers, most_rejected=1) as runner:
        assert (await runner.apply(numbers(1, 2))).rows == 2
        assert (await runner.apply(numbers(12, 13))).rows == 1
        gc.collect()
        assert [reference() for reference in kept if reference() is not None] == []


# Rows on which it raises


async def test_a_row_that_makes_it_raise_is_found_and_rejected() -> None:
    function = raise_on(SECRET)
    values = [*range(4000), SECRET, *range(4001, 8192)]
    async with at_work(function, most_rejected=1) as runner:
        applied = await runner.apply(numbers(*values))
    assert written(applied.piece) == [(n, 2 * value) for n, value in enumerate(values) if value != SECRET]
    (one,) = applied.rejected
    assert (one.row, one.sqlstate) == (4000, "BF011")
    assert one.reason.startswith(f"ValueError at {shown_file(HERE)}:") and one.reason.endswith("in function")
    assert str(SECRET) not in one.reason


@pytest.mark.parametrize("count", [1, 2, 7, 63, 64, 65, 200, 1000])
@pytest.mark.parametrize("every", [1, 2, 3, 50])
async def test_exactly_the_rows_that_make_it_raise_are_rejected(count: int, every: int) -> None:
    bad = list(range(0, count, every))
    if len(bad) == count > 64:
        bad.remove(0)  # else it is not the rows
    async with at_work(raise_on(*bad), most_rejected=len(bad)) as runner:
        applied = await runner.apply(counting(count))
    assert [one.row for one in applied.rejected] == bad
    assert written(applied.piece) == [(n, 2 * n) for n in range(count) if n not in set(bad)]


async def test_finding_rows_takes_few_calls() -> None:
    count, bad = 8192, (5, 700, 701, 5000, 8191)
    function = raise_on(*bad)
    async with at_work(function, most_rejected=100) as runner:
        assert len((await runner.apply(counting(count))).rejected) == len(bad)
    assert len(function.calls) <= 1 + 64 + 2 * len(bad) * math.log2(count)  # type: ignore[attr-defined]


async def test_a_function_that_raises_on_every_row_is_not_asked_about_each() -> None:
    function = raise_on(*range(8192))
    async with at_work(function, most_rejected=1_000_000) as runner:
        with pytest.raises(TransformFailed, match="on each of 64 rows that were tried alone, so it is not the rows"):
            await runner.apply(counting(8192))
    assert len(function.calls) == 65  # type: ignore[attr-defined]


async def test_more_such_rows_than_may_be_set_aside_stop_it() -> None:
    async with at_work(raise_on(3, 400, 800), most_rejected=2) as runner:
        with pytest.raises(TooManyBadRows, match=r"raises on more rows of one batch than may be set aside .2."):
            await runner.apply(counting(1000))
        runner.most_rejected = 3
        assert len((await runner.apply(counting(1000))).rejected) == 3


async def test_rows_of_all_kinds_are_counted_together() -> None:
    def particular(batch: Batch) -> dict[str, Any]:
        values = batch["a"].values
        if (values == 5).any():
            raise ValueError
        batch.reject(values == 6, "six")
        return double(batch)

    rows = rows_of([(0, b"odd"), (1, 5), (2, b"odd"), (3, 6), (4, 7)])
    async with at_work(particular, most_rejected=4) as runner:
        applied = await runner.apply(rows)
        assert [(one.row, one.sqlstate) for one in applied.rejected] == [
            (0, "BF012"),
            (1, "BF011"),
            (2, "BF012"),
            (3, "BF010"),
        ]
        assert written(applied.piece) == [(4, 14)]
        for runner.most_rejected in (3, 2, 1):
            with pytest.raises(TooManyBadRows):
                await runner.apply(rows)


@pytest.mark.parametrize(
    ("row", "message", "state"),
    [(6, "cannot pass a row: six", "BF010"), (b"odd", "cannot pass a row: a: ", "BF012")],
)
async def test_where_no_row_may_be_set_aside_the_first_stops_it(row: Any, message: str, state: str) -> None:
    def particular(batch: Batch) -> dict[str, Any]:
        batch.reject(batch["a"].values == 6, "six")
        return double(batch)

    async with at_work(particular) as runner:
        with pytest.raises(TransformFailed, match=message) as caught:
            await runner.apply(rows_of([(0, 1), (1, row)]))
    assert caught.value.sqlstate == state and "errors: {max_quarantined: N}" in caught.value.hint


async def test_a_failure_that_passes_costs_no_row() -> None:
    calls = 0

    def flaky(batch: Batch) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError
        return double(batch)

    async with at_work(flaky, most_rejected=5) as runner:
        applied = await runner.apply(counting(100))
    assert applied.rows == 100 and not applied.rejected


# What is said of it


async def test_a_function_that_raises_shows_its_own_line_and_not_what_it_says() -> None:
    def raises(batch: Batch) -> dict[str, Any]:
        value = int(batch["a"].values[0])
        return {"b": np.array([{}[value]])}  # raises here

    message = await failure_of(raises, SECRET)
    assert f"transform {__name__}:raises raised KeyError at {line_of('raises here')} raises: return {{" in message
    assert str(SECRET) not in message


async def test_the_line_is_the_functions_own_and_not_that_of_a_library() -> None:
    def shapes(batch: Batch) -> dict[str, Any]:
        return {"b": np.linalg.inv(batch["a"].values)}  # calls numpy here

    message = await failure_of(shapes)
    assert f"numpy.linalg.LinAlgError (from ValueError) at {line_of('calls numpy here')} shapes" in message


async def test_a_comprehension_goes_by_the_name_of_its_function() -> None:
    def lists(batch: Batch) -> dict[str, Any]:
        return {"b": np.array([1 // (value - value) for value in batch["a"].values.tolist()])}  # in a comprehension

    assert f"ZeroDivisionError at {line_of('in a comprehension')} lists: return" in await failure_of(lists)


async def test_what_an_error_came_from_is_told_by_class() -> None:
    def chained(batch: Batch) -> dict[str, Any]:
        try:
            return {"b": [][SECRET]}
        except IndexError as error:
            raise LookupError(f"no {SECRET}") from error

    assert "raised LookupError (from IndexError) at" in await failure_of(chained)


async def test_a_group_of_errors_is_told_by_classes() -> None:
    async def several(batch: Batch) -> dict[str, Any]:
        async def fail(error: Exception) -> None:
            raise error

        async with asyncio.TaskGroup() as group:
            group.create_task(fail(ValueError(SECRET)))
            group.create_task(fail(KeyError(SECRET)))
        return {}

    assert "raised ExceptionGroup of KeyError, ValueError at" in await failure_of(several)


async def test_a_class_made_of_a_value_says_nothing() -> None:
    def made(batch: Batch) -> dict[str, Any]:
        raise type("Bad\nrow" + " " * 300 + "x" * 300, (Exception,), {})

    assert len(await failure_of(made)) < 500


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, BaseException])
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_what_would_end_a_program_or_a_task_ends_neither(error: type[BaseException], kind: str) -> None:
    def exits(batch: Batch) -> dict[str, Any]:
        if (batch["a"].values > 0).any():
            raise error
        return double(batch)

    async def exits_later(batch: Batch) -> dict[str, Any]:
        await asyncio.sleep(0)
        return exits(batch)

    async with at_work(exits if kind == "plain" else exits_later, most_rejected=10) as runner:
        with pytest.raises(TransformFailed, match=rf"raised ([a-z.]+\.)?{error.__name__} at"):
            await runner.apply(numbers(1))
        assert (await runner.apply(numbers(0))).rows == 1  # and it can go on


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda a: None, "gave back None, where a dict with 'b' is expected"),
        (lambda a: a.values, "gave back an ndarray, where a dict with 'b' is expected"),
        (lambda a: {}, "'b' is missing"),
        (lambda a: {"b": a, "extra column": a}, "'extra column' is not among them"),
        (lambda a: {int(v): v for v in a.values}, "'b' is missing, 3 others"),
        (lambda a: {str(v): v for v in a.values}, "'b' is missing, 3 others"),
        (lambda a: {"b": a.values[:2]}, "gave back a column that cannot be written: "),
        (lambda a: {"b": a.values.astype(float)}, "gave back a column that cannot be written: "),
        (lambda a: {"b": a.values.reshape(-1, 1)}, "gave back a column that cannot be written: "),
        (lambda a: {"b": "text"}, "gave back a column that cannot be written: "),
        (
            lambda a: {"b": np.array([Odd(2**70)] * len(a), object)},
            "gave back a column that cannot be written: column 'b': it cannot be encoded: OverflowError",
        ),
        (lambda a: (v for v in a.values), "gave back a generator (yield, where return is expected)"),
        (lambda a: {"b": later()}, "column 'b': a coroutine (await it)"),
    ],
)
async def test_a_wrong_result_is_explained_with_where_the_function_stands(given: Any, message: str) -> None:
    def wrong(batch: Batch) -> Any:
        return given(batch["a"])

    wrong.__wrapped__ = given  # type: ignore[attr-defined]  # its texts are those of `given`
    said = await failure_of(wrong, SECRET, SECRET + 1, SECRET + 2, most_rejected=10)
    said, _, place = said.partition("; it stands at ")
    assert message in said and place.startswith(f"{shown_file(HERE)}:")
    assert str(SECRET) not in said and str(SECRET + 1) not in said


async def later() -> dict[str, Any]:
    return {}


async def test_a_coroutine_that_nobody_awaits_is_closed_and_told() -> None:
    async def forgets(batch: Batch) -> Any:
        return later()

    def runs(batch: Batch) -> Any:
        return asyncio.run(later())  # a loop runs there already

    said = await failure_of(forgets, 1)  # a warning of a coroutine that was never awaited would fail the test
    assert "gave back a coroutine (await it), where a dict with 'b' is expected; it stands at" in said
    said = await failure_of(runs, 1)
    assert f"raised RuntimeError at {line_of('a loop runs there already')} runs: return asyncio.run(later())" in said
    gc.collect()


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda batch: batch["amuont"], "no such column is read; it reads a"),
        (lambda batch: batch.drop(0), "drop: the transform is not declared with drops=True"),
        (
            lambda batch: batch.reject(np.zeros(7, bool), "x"),
            "reject: a mask of bool of shape (3,) or numbers of rows, not bool of shape (7,)",
        ),
    ],
)
async def test_misuse_of_the_batch_is_the_functions_fault_and_no_rows(misuse: Any, message: str) -> None:
    calls = 0

    def misuses(batch: Batch) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        misuse(batch)
        return double(batch)

    said = await failure_of(misuses, most_rejected=10)
    said, _, place = said.partition("; at ")
    assert said == f"transform {__name__}:misuses: {message}" and place.startswith(f"{shown_file(HERE)}:")
    assert calls == 1


async def test_no_value_is_in_any_message() -> None:
    def raises(batch: Batch) -> dict[str, Any]:
        raise ValueError(f"bad rows: {batch['a'].values.tolist()}")

    for most in (0, 5):
        assert str(SECRET) not in await failure_of(raises, *[SECRET] * 100, most_rejected=most)


# Text, to see that objects go the same way


async def test_objects_go_the_same_way() -> None:
    def upper(batch: Batch) -> dict[str, Any]:
        a = batch["a"]
        return {"b": np.array([None if null else value.upper() for value, null in zip(a.values, a.null, strict=True)])}

    runner = Runner(transform_of(upper), [(0, text("a"))], [text("b")], [-1, 0])
    await runner.start()
    applied: Applied = await runner.apply(rows_of([("é",), (None,)]))
    assert applied.piece == (
        b"\x00\x02\x00\x00\x00\x02\xc3\x89\x00\x00\x00\x02\xc3\xa9" + b"\x00\x02\xff\xff\xff\xff\xff\xff\xff\xff"
    )
    await runner.close()
