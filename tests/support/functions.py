"""Transforms for tests, by kind of trouble.  ``named("hangs")`` is how a spec calls one; those of ``hashing`` do well."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import time
from typing import Any, Final

import numpy as np

from engine.transform import Batch, Column, transform
from tests.support.hashing import MARK, POISON, hash_of


def named(function: str) -> str:
    """The reference of a transform of this module."""
    return f"{__name__}:{function}"


@transform(reads=["counter"], writes=["counter"], batch_rows=64)
def one_more(batch: Batch) -> dict[str, Any]:
    """Shows a row that is written twice."""
    return {"counter": Column(batch["counter"].values + 1, batch["counter"].null)}


@transform(reads=["id", "counter"], writes=["counter"], batch_rows=64)
def one_more_or_no(batch: Batch) -> dict[str, Any]:
    batch.reject(batch["id"].values % 1000 == MARK, "thirteen")
    return {"counter": batch["counter"].values + 1}


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
def fills(batch: Batch) -> dict[str, Any]:
    return {"h": batch["n"].values.astype(np.int64)}


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


@transform(reads=["n"], writes=["h"], time_limit_s=45.0)
def hangs_for_long(batch: Batch) -> dict[str, Any]:
    done = fine(batch)
    while done is None:
        time.sleep(0.05)
    return done


@transform(reads=["counter"], writes=["counter"], batch_rows=64, time_limit_s=1.5)
def stands_still(batch: Batch) -> dict[str, Any]:
    """With ``STANDS_STILL`` its whole process stands still in that call, counted from 1, until somebody wakes it."""
    turn = int(os.environ.get("STANDS_STILL", "0"))
    if turn:
        os.environ["STANDS_STILL"] = str(turn - 1)
    time.sleep(float(os.environ.get("SLOWLY_S", "0")))
    if turn == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
        if os.environ.get("RAISES_ON_WAKING"):
            raise ConnectionError
        time.sleep(0.5)  # whoever watches looks at it now
    return {"counter": Column(batch["counter"].values + 1, batch["counter"].null)}


def _needs_a_file() -> None:
    if os.environ.get("BROKEN_HOST"):
        raise FileNotFoundError("model.bin")  # the set-up's line


@transform(reads=["n"], writes=["h"], batch_rows=64, setup=_needs_a_file)
def needs_a_file(batch: Batch) -> dict[str, Any]:
    time.sleep(0.02)
    return fills(batch)


def meanwhile(rows: int) -> None:
    """What happens while ``looks_away`` has a batch; tests put their own here."""


@transform(reads=["n"], writes=["h"])
def looks_away(batch: Batch) -> dict[str, Any]:
    meanwhile(batch.rows)
    return fills(batch)


@transform(reads=["n"], writes=["h"], setup=lambda: time.sleep(20))
def slow_to_begin(batch: Batch) -> dict[str, Any]:
    return fills(batch)


@transform(reads=["n"], writes=["h"], batch_rows=32)
def has_an_outage(batch: Batch) -> dict[str, Any]:
    if (batch["n"].values > 500).any():
        raise ConnectionError("the service is away")
    return fills(batch)


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
def wrong_objects(batch: Batch) -> dict[str, Any]:
    return fine(batch) or {"h": np.array([str(number) for number in batch["n"].values], object)}


@transform(reads=["n"], writes=["h"])
def too_large_from_the_first_row(batch: Batch) -> dict[str, Any]:
    return {"h": np.full(batch.rows, 2**63, np.uint64)}


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


@transform(reads=["v", "raw"], writes=["digest"])
def digested(batch: Batch) -> dict[str, Any]:
    """sha256 of a text and some bytes: reads all of a wide row."""
    pairs = zip(batch["v"].values, batch["raw"].values, strict=True)
    digests = [hashlib.sha256(text.encode() + raw).digest() for text, raw in pairs]
    return {"digest": np.array(digests, object)}


@transform(reads=["v", "raw"], writes=["v", "raw"])
def turned(batch: Batch) -> dict[str, Any]:
    """Reads and writes all of a wide row."""
    texts = np.array([text[::-1] for text in batch["v"].values], object)
    return {"v": texts, "raw": np.array([raw[::-1] for raw in batch["raw"].values], object)}


async def slip(value: str) -> None:
    raise RuntimeError(value)


def lose(state: Any) -> None:
    raise RuntimeError(" ".join(state))


@transform(reads=["email", "n"], writes=["n"], setup=list, teardown=lose)
async def blurts(batch: Batch) -> dict[str, Any]:
    """Puts values wherever somebody might repeat them."""
    numbers = np.zeros(batch.rows, np.int64)
    for row, text in enumerate(batch["n"].values):
        email = batch["email"].values[row]
        try:
            numbers[row] = int(text)
        except ValueError as error:
            raise ExceptionGroup(email, [KeyError(email), ValueError(repr(batch["n"].values[row]))]) from error
    batch.state.append(batch["email"].values[0])
    batch.state[:] = batch.state[-3:]
    _ = asyncio.get_running_loop().create_task(slip(batch["email"].values[0]))
    return {"n": numbers}


@transform(reads=["email"], writes=["n"])
def names_columns_by_values(batch: Batch) -> dict[str, Any]:
    return {email: np.zeros(batch.rows, np.int64) for email in batch["email"].values[:3]}


@transform(reads=["email"], writes=["n"])
def gives_back_values(batch: Batch) -> Any:
    return {"n": batch["email"].values}


@transform(reads=["email"], writes=["n"])
def rejects_by_values(batch: Batch) -> dict[str, Any]:
    batch.reject(batch["email"].values, "every one of them")
    return {"n": np.zeros(batch.rows, np.int64)}


@transform(reads=["email"], writes=["n"])
def asks_for_values(batch: Batch) -> dict[str, Any]:
    return {"n": batch[batch["email"].values[0]]}


def set_up_with_values() -> None:
    raise RuntimeError(f"canary{0}value")  # as a value: it does not stand in this line


@transform(reads=["email"], writes=["n"], setup=set_up_with_values)
def is_set_up_with_values(batch: Batch) -> dict[str, Any]:
    return {"n": np.zeros(batch.rows, np.int64)}
