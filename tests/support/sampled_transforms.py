"""Transforms that tell, by what they reject or write, which rows a sample gave them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from engine.transform import Batch, Column, ListColumn, transform

calls: list[str] = []
"""What was called beside the functions."""


def named(function: str) -> str:
    """How a spec names it."""
    return f"{__name__}:{function}"


@transform(reads=["id"], writes=["n"])
def rejects_late_rows(batch: Batch) -> dict[str, Any]:
    """Those of the table's second half."""
    batch.reject(batch["id"].values > 5000, "late")
    return {"n": batch["id"].values.astype(np.int32)}


@transform(reads=["id"], writes=["n"])
def raises_on_odd(batch: Batch) -> dict[str, Any]:
    """If there is any."""
    if (batch["id"].values % 2).any():
        raise ValueError("odd")
    return {"n": batch["id"].values.astype(np.int32)}


@transform(reads=["large"], writes=["n"])
def measures(batch: Batch) -> dict[str, Any]:
    """How large each value is."""
    return {"n": np.array([len(value) for value in batch["large"].values], np.int32)}


@transform(reads=[], writes=["n"])
def reads_nothing(batch: Batch) -> dict[str, Any]:
    """But how many rows there are."""
    return {"n": np.full(batch.rows, batch.rows, np.int32)}


@transform(reads=["id"], writes=["n"], time_limit_s=0.2)
def hangs(batch: Batch) -> dict[str, Any]:
    """Longer than it may."""
    time.sleep(2.0)
    return {"n": batch["id"].values.astype(np.int32)}


async def _begin() -> str:
    calls.append("setup")
    return "ready"


async def _end(state: str) -> None:
    calls.append(f"teardown of {state}")


@transform(reads=["id"], writes=["n"], setup=_begin, teardown=_end, concurrency=4)
async def with_state(batch: Batch) -> dict[str, Any]:
    """Awaits."""
    await asyncio.sleep(0)
    assert batch.state == "ready"
    return {"n": batch["id"].values.astype(np.int32)}


@transform(reads=["id"], writes=["n"], drops=True)
def some(batch: Batch) -> dict[str, Any]:
    """The first row is dropped, the second rejected."""
    batch.drop(batch["id"].values == 1)
    batch.reject(batch["id"].values == 2, "not two")
    return {"n": batch["id"].values.astype(np.int32)}


KINDS = ("b", "i", "f", "d", "at", "u", "t", "raw", "j", "scaled", "exact", "list", "none")


@transform(reads=KINDS, writes=KINDS)
def passes_all(batch: Batch) -> dict[str, Column | ListColumn]:
    """As it was."""
    return {name: batch[name] for name in KINDS}
