"""Transforms for tests of whole jobs, by kind of trouble.  ``named("hashed")`` is how a spec calls one.

What the well-behaved ones compute can be said in SQL as well (``HASHED_SQL``), so that a test can ask the server which
rows are wrong.
"""

from __future__ import annotations

import asyncio
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

CANARY: Final = "hunter2-row-value"
"""What no output may show."""


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


@transform(reads=["n", "v"], writes=["h"], batch_rows=64, concurrency=8)
async def hashed_beside_each_other(batch: Batch) -> dict[str, Any]:
    """Much longer than a chunk's statements take, and eight at a time."""
    await asyncio.sleep(0.1)
    return {"h": hash_of(batch)}


@transform(reads=["n", "v"], writes=["h"], batch_rows=64)
def hashed_slowly(batch: Batch) -> dict[str, Any]:
    """Leaves whoever writes meanwhile much time."""
    time.sleep(0.02)
    return {"h": hash_of(batch)}


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


def meanwhile(batch: Batch) -> None:
    """Called before anything else: a test puts in what others do at that moment."""


@transform(reads=["n", "v"], writes=["h"], batch_rows=1024)
def hashed_meanwhile(batch: Batch) -> dict[str, Any]:
    meanwhile(batch)
    return {"h": hash_of(batch)}


@transform(reads=["n"], writes=["n"], batch_rows=64)
def one_more(batch: Batch) -> dict[str, Any]:
    """Shows a row that passes twice."""
    meanwhile(batch)
    return {"n": Column(batch["n"].values + 1, batch["n"].null)}


@transform(reads=["n", "v"], writes=["h"], batch_rows=64, drops=True)
def hashed_but_thirteen(batch: Batch) -> dict[str, Any]:
    batch.drop(batch["n"].values % 1000 == MARK)
    return {"h": hash_of(batch)}


def _leave(_: object) -> None:
    raise RuntimeError(CANARY)


@transform(reads=["n", "v"], writes=["h"], teardown=_leave)
def hashed_but_untidy(batch: Batch) -> dict[str, Any]:
    return {"h": hash_of(batch)}
