"""Transforms of jobs on the tables of ``tests.support.findings``: one that is right, and one for each mistake."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.transform import Batch, Column, transform


def named(function: str) -> str:
    """How a spec names it."""
    return f"{__name__}:{function}"


def _whole(batch: Batch) -> dict[str, Any]:
    return {"cents": np.array([int(amount * 100) for amount in batch["amount"].values], np.int64)}


@transform(reads=["amount"], writes=["cents"])
def good(batch: Batch) -> dict[str, Any]:
    """Cents of a numeric."""
    return _whole(batch)


@transform(reads=["amount"], writes=["cents"], drops=True)
def drops(batch: Batch) -> dict[str, Any]:
    """The same, for some."""
    batch.drop(0)
    return _whole(batch)


@transform(reads=["amount", "ammount"], writes=["cents"])
def reads_what_is_not_there(batch: Batch) -> dict[str, Any]:
    """A column that no table has."""
    return _whole(batch)


@transform(reads=["amount"], writes=["cent"])
def writes_what_is_not_there(batch: Batch) -> dict[str, Any]:
    """A column that no table has."""
    return {"cent": _whole(batch)["cents"]}


@transform(reads=["amount", "place"], writes=["cents"])
def reads_a_point(batch: Batch) -> dict[str, Any]:
    """A type that has no form in Python."""
    return _whole(batch)


@transform(reads=["id"], writes=["id"])
def writes_the_key(batch: Batch) -> dict[str, Any]:
    """What rows are found by."""
    return {"id": Column(batch["id"].values)}


@transform(reads=["amount"], writes=["cents"])
def raises(batch: Batch) -> dict[str, Any]:
    """A mistake of its author's."""
    raise KeyError(len(batch["amount"].values))


@transform(reads=["amount"], writes=["cents"])
def writes_floats(batch: Batch) -> dict[str, Any]:
    """A wrong type."""
    return {"cents": _whole(batch)["cents"].astype(np.float64)}


@transform(reads=["amount"], writes=["cents"])
def rejects_some(batch: Batch) -> dict[str, Any]:
    """Some rows cannot be done."""
    batch.reject([0, 1], "not today")
    return _whole(batch)


@transform(reads=["cents"], writes=["cents"])
def reads_its_own(batch: Batch) -> dict[str, Any]:
    """What it writes."""
    return {"cents": Column(batch["cents"].values + 1)}


@transform(reads=["v"], writes=["v"])
def whole_numbers(batch: Batch) -> dict[str, Any]:
    """Texts as integers; what is none is rejected."""
    texts = batch["v"].values
    bad = np.array([not text.isdigit() for text in texts], np.bool_)
    batch.reject(bad, "no number")
    return {"v": np.array([0 if wrong else int(text) for text, wrong in zip(texts, bad, strict=True)], np.int32)}
