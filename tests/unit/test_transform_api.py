"""What is declared, and what a function may do with its batch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from engine.model import Declaration
from engine.transform import Batch, Column, ListColumn, Transform, transform
from engine.transform.batch import Misused
from engine.transform.declare import DeclarationError


@transform(reads=["amount"], writes=["amount_cents"])
def cents(batch: Batch) -> dict[str, Any]:
    """Cents of it."""
    amount = batch["amount"]
    batch.reject(amount.values < 0, "a negative amount")
    return {"amount_cents": Column(amount.values, amount.null)}


def test_a_transform_is_tested_by_calling_it() -> None:
    batch = Batch.of({"amount": np.array([5, -1, 7])})
    written = cents(batch)
    assert written["amount_cents"].values.tolist() == [5, -1, 7]
    assert batch.rejected == {1: "a negative amount"}


def test_a_test_shows_the_function_what_a_job_would() -> None:
    @transform(reads=["a"], writes=["b"])
    def forgets(batch: Batch) -> dict[str, Any]:
        return {"b": batch["a"].values + batch["c"].values}

    @transform(reads=["a"], writes=["b"])
    def drops(batch: Batch) -> dict[str, Any]:
        batch.drop(0)
        return {}

    one = np.array([1])
    with pytest.raises(KeyError, match="does not read 'c'; it reads a"):
        forgets(Batch.of({"a": one, "c": one}))
    with pytest.raises(Misused, match="not declared with drops=True"):
        drops(Batch.of({"a": one}))
    with pytest.raises(ValueError, match="the batch lacks 'a', which the transform reads"):
        drops(Batch.of({"c": one}))
    dropping = transform(reads=["a"], writes=["b"], drops=True)(drops.function)
    batch = Batch.of({"a": one})
    dropping(batch)
    assert batch.dropped.tolist() == [True]


def test_transforms_may_call_each_other_with_the_batch() -> None:
    @transform(reads=["note"], writes=["note_length"])
    def note_length(batch: Batch) -> dict[str, Any]:
        batch.reject(1, "a long note")
        return {"note_length": np.array([len(text) for text in batch["note"].values])}

    @transform(reads=["amount", "note"], writes=["amount_cents", "note_length"], drops=True)
    def both(batch: Batch) -> dict[str, Any]:
        written = {**cents(batch), **note_length(batch)}
        batch.drop(2)  # the inner ones do not declare it
        assert batch.names == ("amount", "note")
        return written

    batch = Batch.of({"amount": np.array([5, 6, 7, -1]), "note": np.array(["a", "bb", "", "dddd"])})
    written = both(batch)
    assert written["amount_cents"].values.tolist() == [5, 6, 7, -1]
    assert written["note_length"].tolist() == [1, 2, 0, 4]
    assert batch.rejected == {1: "a long note", 3: "a negative amount"}
    assert batch.dropped.tolist() == [False, False, True, False]


def test_an_inner_transform_may_not_drop_what_the_outer_one_may() -> None:
    @transform(reads=["amount"], writes=["b"])
    def inner(batch: Batch) -> dict[str, Any]:
        batch.drop(0)
        return {}

    @transform(reads=["amount"], writes=["b"], drops=True)
    def outer(batch: Batch) -> dict[str, Any]:
        return inner(batch)  # type: ignore[no-any-return]

    with pytest.raises(Misused, match="not declared with drops=True"):
        outer(Batch.of({"amount": np.array([1])}))


def test_a_transform_keeps_what_the_function_is_called_and_says() -> None:
    assert isinstance(cents, Transform)
    assert cents.__name__ == "cents" and cents.__doc__ == "Cents of it."
    assert cents.declaration == Declaration(f"{__name__}:cents", (("amount", ""),), ("amount_cents",), drops=False)
    assert cents.called("other.place:cents").reference == "other.place:cents"
    assert cents.reference == f"{__name__}:cents"


def test_a_declaration_goes_through_json() -> None:
    declaration = Declaration("m:f", (("a", ""), ("b", "decimal")), ("c",), drops=True)
    assert Declaration.from_json(declaration.as_json()) == declaration


@pytest.mark.parametrize(
    "change",
    [
        {"reads": None},
        {"reads": "ab"},
        {"reads": [["a"]]},
        {"reads": [["a", 1]]},
        {"reads": [{"a": "", "b": ""}]},
        {"writes": "c"},
        {"writes": [1]},
        {"drops": "yes"},
        {"drops": None},
        {"reference": None},
    ],
)
def test_a_declaration_that_somebody_has_spoilt_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no declaration of a transform"):
        Declaration.from_json(Declaration("m:f", (("a", ""),), ("c",)).as_json() | change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": "amount"}, r"reads is a list of names of columns: reads=\['amount'\]"),
        ({"reads": ["a", "a"]}, "reads names 'a' twice"),
        ({"reads": [1]}, "reads: a column's name is a str, not int"),
        ({"reads": 7}, "reads is a list of names of columns, not int"),
        ({"reads": [""]}, "is no name of a column"),
        ({"reads": ["x" * 64]}, "is no name of a column"),
        ({"reads": {"a": "float"}}, "'a' can be read as '' or 'decimal', not as 'float'"),
        ({"writes": []}, "writes is empty"),
        ({"writes": {"a": ""}}, "writes is a list"),
        ({"writes": ["b", "c", "b", "c"]}, "writes names 'b', 'c' twice"),
        ({"setup": 5}, "setup is a function, not int"),
        ({"teardown": "x"}, "teardown is a function, not str"),
        ({"setup": lambda batch: None}, "setup takes nothing"),
        ({"teardown": lambda: None}, "teardown takes what setup returned"),
        ({"drops": 1}, "drops is True or False, not int"),
        ({"batch_rows": 0}, "batch_rows is a whole number from 1 to 1,000,000"),
        ({"batch_rows": 8192.0}, "batch_rows is a whole number"),
        ({"batch_rows": True}, "batch_rows is a whole number"),
        ({"time_limit_s": 0}, "time_limit_s is a number of seconds"),
        ({"time_limit_s": float("nan")}, "time_limit_s is a number of seconds"),
        ({"time_limit_s": "60"}, "time_limit_s is a number of seconds"),
        ({"time_limit_s": 1e9}, "time_limit_s is a number of seconds"),
        ({"time_limit_s": 50.0}, "at most 45: servers wait for one call"),
        ({"concurrency": 65}, "concurrency is a whole number from 1 to 64"),
        ({"concurrency": 2}, "concurrency is for `async def`"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_where_it_stands(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        transform(**({"reads": ["a"], "writes": ["b"]} | options))(lambda batch: {})


def test_a_function_takes_the_batch_and_nothing_else() -> None:
    for wrong in (lambda: None, lambda batch, more: {}, lambda *, batch: {}):
        with pytest.raises(DeclarationError, match="a transform takes the batch, and nothing else"):
            transform(reads=["a"], writes=["b"])(wrong)
    with pytest.raises(DeclarationError, match="stands before a function"):
        transform(reads=["a"], writes=["b"])("cents")  # type: ignore[arg-type]


def test_a_decorator_without_columns_says_how_it_is_written() -> None:
    with pytest.raises(DeclarationError, match=r"@transform alone says nothing of columns: @transform\(reads="):
        transform(lambda batch: {})
    for missing in ("reads", "writes"):
        given = {"reads": ["a"], "writes": ["b"]}
        del given[missing]
        with pytest.raises(DeclarationError, match=rf"{missing} is missing: @transform\(reads="):
            transform(**given)(lambda batch: {})


def test_a_transform_is_not_made_one_twice() -> None:
    with pytest.raises(DeclarationError, match="cents is a transform already"):
        transform(reads=["a"], writes=["b"])(cents)


def test_what_a_function_carries_does_not_become_what_is_declared() -> None:
    def function(batch: Batch) -> dict[str, Any]:
        return {}

    function.declaration = function.concurrency = "mine"  # type: ignore[attr-defined]
    declared = transform(reads=["a"], writes=["b"])(function)
    assert declared.declaration.writes == ("b",) and declared.concurrency == 1


def test_a_transform_may_read_nothing() -> None:
    declared = transform(reads=[], writes=["token"])(lambda batch: {"token": np.arange(batch.rows)})
    assert declared.declaration.reads == ()
    assert Batch.of({}, rows=3).rows == 3


def test_reads_may_say_a_form() -> None:
    declared = transform(reads={"a": "decimal", "b": ""}, writes=["c"])(lambda batch: {})
    assert declared.declaration.reads == (("a", "decimal"), ("b", ""))


async def test_an_async_transform_is_awaited_in_a_test() -> None:
    @transform(reads=["a"], writes=["b"], concurrency=16)
    async def looked_up(batch: Batch) -> dict[str, Any]:
        return {"b": batch["a"].values + batch.state}

    written = await looked_up(Batch.of({"a": np.array([1, 2])}, state=10))
    assert written["b"].tolist() == [11, 12]


def batch_of(rows: int = 5) -> Batch:
    return Batch.of({"a": np.arange(rows)})


def test_rows_are_chosen_by_mask_or_number() -> None:
    batch = batch_of()
    batch.reject(batch["a"].values == 0, "zero")
    batch.reject(np.array([1, 2]), "low")
    batch.reject(4, "last")
    batch.reject([], "none")
    batch.reject(np.flatnonzero(batch["a"].values > 100), "none")
    assert batch.rejected == {0: "zero", 1: "low", 2: "low", 4: "last"}


def test_of_several_reasons_the_first_is_kept() -> None:
    batch = batch_of()
    batch.reject([1, 2], "first")
    batch.reject([2, 3], "second")
    assert batch.rejected == {1: "first", 2: "first", 3: "second"}


def test_a_masked_entry_of_a_mask_chooses_nothing() -> None:
    batch = batch_of(3)
    batch.reject(np.ma.masked_array([True, True, False], [False, True, False]), "marked")
    assert batch.rejected == {0: "marked"}


def test_a_mask_that_is_changed_afterwards_changes_nothing() -> None:
    batch = batch_of(2)
    mask = np.array([True, False])
    batch.drop(mask)
    mask[:] = True
    assert batch.dropped.tolist() == [True, False]


def test_a_row_both_rejected_and_dropped_is_rejected() -> None:
    batch = batch_of(3)
    batch.drop([0, 1])
    batch.reject(1, "odd")
    assert batch.dropped.tolist() == [True, False, False] and batch.rejected == {1: "odd"}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (np.zeros(4, bool), "reject: a mask of bool of shape .5,. or numbers of rows, not bool of shape .4,."),
        (np.zeros((5, 1), bool), "reject: a mask of bool"),
        (np.zeros((2, 2), int), "numbers of rows have shape .n,., not .2, 2."),
        (np.array([0.0]), "not float64"),
        (np.array(["x"]), "reject: a mask"),
        (None, "reject: a mask"),
        (True, "reject: a mask"),
        (5, "rows count from 0 to 4"),
        (-1, "rows count from 0 to 4"),
        (2**63, "rows count from 0 to 4"),
    ],
)
def test_a_choice_of_rows_that_makes_no_sense_is_refused(where: Any, message: str) -> None:
    with pytest.raises(Misused, match=message):
        batch_of().reject(where, "why")


def test_a_reason_is_one_short_line() -> None:
    batch = batch_of()
    batch.reject(0, "two\nlines\x1b[31m and \x00 a colour")
    batch.reject(1, "x" * 500)
    batch.reject(2, " \n ")
    assert batch.rejected[0] == "two lines [31m and a colour"
    assert len(batch.rejected[1]) == 200 and batch.rejected[1].endswith("…")
    assert batch.rejected[2] == "rejected"
    with pytest.raises(Misused, match="the reason is a str, not ValueError"):
        batch.reject(3, ValueError("no"))  # type: ignore[arg-type]


def test_only_who_declares_it_drops_rows() -> None:
    batch = Batch({"a": Column(np.arange(3))}, 3)
    with pytest.raises(Misused, match="not declared with drops=True"):
        batch.drop(0)


def test_a_column_that_is_not_read_is_named_with_those_that_are() -> None:
    with pytest.raises(KeyError) as caught:
        batch_of()["amuont"]
    assert str(caught.value) == "the transform does not read 'amuont'; it reads a"


def test_columns_made_by_hand_look_like_those_of_a_table() -> None:
    batch = Batch.of(
        {
            "masked": np.ma.masked_array([1, 2], [False, True]),
            "text": np.array(["a", "b"]),
            "lists": ListColumn.of([[1], None], np.int32),
        }
    )
    assert batch["masked"].null.tolist() == [False, True]
    assert batch["text"].values.dtype == object
    assert len(batch["lists"]) == 2 and batch.names == ("masked", "text", "lists") and "text" in batch
    with pytest.raises(ValueError, match=r"one length, not \[1, 2\]"):
        Batch.of({"a": np.arange(1), "b": np.arange(2)})


def test_a_batch_shows_no_values() -> None:
    assert repr(Batch.of({"secret": np.array([123456])})) == "<batch of 1 rows: secret>"


def test_the_room_costs_nothing_until_something_of_it_is_used() -> None:
    code = "import sys, engine.transform, engine.transform.loading; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
