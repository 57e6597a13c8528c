"""The transforms that ``bench.transform`` measures, named in its specs as ``bench.functions:…``."""

from __future__ import annotations

import asyncio

import numpy as np

from engine.transform import Batch, Column, transform

LOOKUP_S = 0.02
"""What a service in the same data centre takes to answer one question about many keys."""

LOOKUP_ROWS = 500


@transform(reads=["amount"], writes=["amount_cents"])
def cents(batch: Batch) -> dict[str, Column]:
    """One numeric column of seven: ``numeric(12,2)`` comes as a count of cents."""
    amount = batch["amount"]
    return {"amount_cents": Column(amount.values, amount.null)}


@transform(reads=["note"], writes=["note"])
def capitals(batch: Batch) -> dict[str, Column]:
    """Every text becomes an object of Python, and another one."""
    note = batch["note"]
    for row in np.flatnonzero(~note.null):
        note.values[row] = note.values[row].upper()
    return {"note": note}


async def _looked_up(batch: Batch) -> dict[str, Column]:
    await asyncio.sleep(LOOKUP_S)
    return cents(batch)


lookup_1 = transform(reads=["amount"], writes=["amount_cents"], batch_rows=LOOKUP_ROWS)(_looked_up)
lookup_16 = transform(reads=["amount"], writes=["amount_cents"], batch_rows=LOOKUP_ROWS, concurrency=16)(_looked_up)
