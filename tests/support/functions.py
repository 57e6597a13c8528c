"""Transforms for tests, by kind of trouble.  ``named("hashed")`` is how a spec calls one.

What the well-behaved ones compute can be said in SQL as well (``HASHED_SQL``), so that a test can ask the server which
rows are wrong.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, Final

import numpy as np

from engine.transform import Batch, Column, transform

HASHED_SQL: Final = "n::bigint * 31 + coalesce(length(v), -1)"
"""What ``hashed`` computes."""

MARK: Final = 13
"""A row of this remainder modulo 1,000 is no good to the transforms that are particular."""

POISON: Final = "poison"
"""A text that the transforms with this in their names cannot bear."""


def named(function: str) -> str:
    """The reference of a transform of this module."""
    return f"{__name__}:{function}"


def hash_of(batch: Batch) -> Column:
    """int64: depends on both columns that are read, and on nothing else."""
    lengths = np.array([-1 if text is None else len(text) for text in batch["v"].values], np.int64)
    return Column(batch["n"].values.astype(np.int64) * 31 + lengths, batch["n"].null)


@transform(reads=["n", "v"], writes=["h"], batch_rows=64)
def hashed(batch: Batch) -> dict[str, Any]:
    return {"h": hash_of(batch)}


@transform(reads=["n", "v"], writes=["h"], batch_rows=64, concurrency=3)
async def hashed_later(batch: Batch) -> dict[str, Any]:
    """Several at a time; those with fewer rows come back first."""
    await asyncio.sleep(0.001 * (batch.rows % 5))
    return {"h": hash_of(batch)}


@transform(reads=["n", "v"], writes=["h"], batch_rows=64)
def hashed_slowly(batch: Batch) -> dict[str, Any]:
    """Leaves whoever writes meanwhile much time."""
    time.sleep(0.02)
    return {"h": hash_of(batch)}


@transform(reads=["counter"], writes=["counter"], batch_rows=64)
def one_more(batch: Batch) -> dict[str, Any]:
    """Shows a row that is written twice."""
    return {"counter": Column(batch["counter"].values + 1, batch["counter"].null)}


@transform(reads=["id", "counter"], writes=["counter"], batch_rows=64)
def one_more_or_no(batch: Batch) -> dict[str, Any]:
    batch.reject(batch["id"].values % 1000 == MARK, "thirteen")
    return {"counter": batch["counter"].values + 1}


@transform(reads=["n", "v"], writes=["h"], batch_rows=64)
def hashed_or_no(batch: Batch) -> dict[str, Any]:
    batch.reject(batch["n"].values % 1000 == MARK, "thirteen")
    return {"h": hash_of(batch)}


@transform(reads=["n", "v"], writes=["h"], batch_rows=1024)
def raises_on_poison(batch: Batch) -> dict[str, Any]:
    for text in batch["v"].values:
        if text is not None and text.startswith(POISON):
            raise ValueError(f"cannot bear {text}")
    return {"h": hash_of(batch)}


@transform(reads=["n", "v"], writes=["h"], batch_rows=1024)
def rejects_poison(batch: Batch) -> dict[str, Any]:
    texts = batch["v"].values
    batch.reject(np.array([text is not None and text.startswith(POISON) for text in texts]), "poison")
    return {"h": hash_of(batch)}


@transform(reads=["n", "v"], writes=["h"], batch_rows=1024)
def refused_by_the_table(batch: Batch) -> dict[str, Any]:
    """Gives a poisoned row a value that a CHECK (h >= 0) refuses."""
    hashes = hash_of(batch)
    poisoned = np.array([text is not None and text.startswith(POISON) for text in batch["v"].values])
    return {"h": Column(np.where(poisoned, -1, hashes.values), hashes.null)}


LATE: Final = 3777
"""The functions below do well until they meet this number: not in the sample, but in the middle of a job."""


def fine(batch: Batch) -> dict[str, Any] | None:
    """What a row becomes; None where the number is among them."""
    numbers = batch["n"].values
    return None if (numbers == LATE).any() else {"h": numbers.astype(np.int64)}


@transform(reads=["n"], writes=["h"])
def raises(batch: Batch) -> dict[str, Any]:
    done = fine(batch)
    if done is None:
        raise LookupError(f"values: {batch['n'].values[:3]}")  # the line to show
    return done


@transform(reads=["n"], writes=["h"])
def raises_from_the_first_row(batch: Batch) -> dict[str, Any]:
    raise LookupError(f"values: {batch['n'].values[:3]}")  # the line to show


@transform(reads=["n"], writes=["h"], time_limit_s=1.0)
def hangs(batch: Batch) -> dict[str, Any]:
    done = fine(batch)
    while done is None:
        time.sleep(0.05)  # the line to show
    return done


@transform(reads=["n"], writes=["h"], time_limit_s=1.0)
async def hangs_in_await(batch: Batch) -> dict[str, Any]:
    done = fine(batch)
    if done is None:
        await asyncio.sleep(3600)  # the line to show
    return done or {}


@transform(reads=["n"], writes=["h"], time_limit_s=1.0)
def holds_the_interpreter(batch: Batch) -> dict[str, Any]:
    """Calls into C for some seconds, during which no other thread runs."""
    done = fine(batch)
    if done is None:
        _ = sum(range(80_000_000)), time.sleep(60)  # the line to show
    return done or {}


@transform(reads=["n"], writes=["h"], time_limit_s=1.0)
def holds_on(batch: Batch) -> dict[str, Any]:
    """Does not let itself be ended."""
    done = fine(batch)
    while done is None:
        try:
            time.sleep(0.05)  # the line to show
        except BaseException:
            continue
    return done


@transform(reads=["n"], writes=["h"])
def wrong_shape(batch: Batch) -> dict[str, Any]:
    return fine(batch) or {"h": np.zeros(batch.rows + 1, np.int64)}


@transform(reads=["n"], writes=["h"])
def wrong_type(batch: Batch) -> dict[str, Any]:
    return fine(batch) or {"h": np.full(batch.rows, 0.5)}


@transform(reads=["n"], writes=["h"])
def wrong_column(batch: Batch) -> dict[str, Any]:
    return fine(batch) or {"hash": np.zeros(batch.rows, np.int64)}


@transform(reads=["n"], writes=["h"])
def nothing(batch: Batch) -> dict[str, Any] | None:
    return fine(batch)


@transform(reads=["n"], writes=["h"])
def eats_memory(batch: Batch) -> dict[str, Any]:
    return fine(batch) or {"h": np.zeros(1 << 50, np.int64)}  # the line to show


@transform(reads=["n"], writes=["h"])
def exits(batch: Batch) -> dict[str, Any]:
    return fine(batch) or sys.exit(3)  # the line to show


@transform(reads=["n"], writes=["h"])
async def exits_later(batch: Batch) -> dict[str, Any]:
    """From a task that nobody awaits: it is the loop that hears of it."""
    done = fine(batch)
    if done is None:
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        await asyncio.sleep(3600)
    return done or {}


def set_up_badly() -> None:
    raise LookupError("no model here")  # the line to show


@transform(reads=["n"], writes=["h"], setup=set_up_badly)
def cannot_be_set_up(batch: Batch) -> dict[str, Any]:
    return {"h": batch["n"].values.astype(np.int64)}
