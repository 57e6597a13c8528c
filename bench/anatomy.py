"""Where the time of a transformed copy goes, seen in two ways.

**Alone**: every step by itself over the same rows, nanoseconds a row.  Steps that run beside each other in a job (two
servers, the loop, the transform's thread) add up to more than the job takes.

**Sampled**: what the event loop and the threads of the transforms were at in a running job, looked at two hundred times
a second from beside them, as a share of all looks.  Native code counts for the line of Python that called it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import asyncpg
import uvloop

from bench.functions import cents
from bench.ours import in_process
from bench.priced import AMOUNT, Priced
from bench.stage import Stage
from engine._native.rows import HEADER, TRAILER, RowBatches, Rows, assemble
from engine.flow.movers.transformed import BATCH_BYTES
from engine.transform import Batch
from engine.transform.decoding import decode
from engine.transform.encoding import encode
from engine.transform.types import ColumnType, Kind

MOST_ROWS: Final = 300_000
"""All of a table's stream is held in memory here."""

LOOK_EVERY_S: Final = 0.005
NUMERIC_OID: Final = 1700
INT8_OID: Final = 20

AMOUNT_TYPE: Final = ColumnType("amount", Kind.SCALED, "numeric(12,2)", NUMERIC_OID, scale=2, precision=12)
CENTS_TYPE: Final = ColumnType("amount_cents", Kind.INT8, "bigint", INT8_OID)


@dataclass(frozen=True, slots=True)
class Part:
    """One step by itself: its best of some rounds."""

    name: str
    ns_per_row: float
    detail: str = ""


# -- each step alone ------------------------------------------------------------------------------------------------


def parts(stage: Stage, table: Priced, rows: int, repeat: int) -> list[Part]:
    """Every step of a transformed copy over the first ``rows`` rows of a table in ``source``."""
    pieces, out_s = uvloop.run(_copy_out(stage, table, rows, repeat))
    amount = table.columns.index(AMOUNT)
    layout = [-1 if place == amount else place for place in range(len(table.columns))]

    def timed(work: Callable[[], Any]) -> tuple[Any, float]:
        made, best_s = None, float("inf")
        for _ in range(repeat):
            began = time.perf_counter()
            made = work()
            best_s = min(best_s, time.perf_counter() - began)
        return made, best_s

    batches, batching_s = timed(lambda: _batches(pieces, len(table.columns)))
    columns, decode_s = timed(lambda: [decode(one, amount, AMOUNT_TYPE)[0] for one in batches])
    given = [Batch({"amount": column}, one.count) for one, column in zip(batches, columns, strict=True)]
    results, function_s = timed(lambda: [cents(one)["amount_cents"] for one in given])
    sized = list(zip(results, batches, strict=True))
    encoded, encode_s = timed(lambda: [encode(result, CENTS_TYPE, one.count)[0] for result, one in sized])
    made, assemble_s = timed(
        lambda: [assemble(one, layout, [cell]) for one, cell in zip(batches, encoded, strict=True)]
    )
    in_s, commit_s = uvloop.run(_copy_in(stage, table, [HEADER, *made, TRAILER], repeat))
    pieces_bytes = sum(map(len, pieces))
    found = [
        ("COPY OUT, received and thrown away", out_s, f"{pieces_bytes / rows:.0f} bytes a row"),
        ("batching", batching_s, f"{len(batches)} batches of the driver's {len(pieces)} pieces"),
        ("decode", decode_s, "numeric(12,2) to int64"),
        ("function", function_s, "no arithmetic: a count of cents is what comes"),
        ("encode", encode_s, "int64 to bigint"),
        ("assemble", assemble_s, "seven fields a row, six of them as they came"),
        ("COPY IN from memory", in_s, "one stream, primary key"),
        ("commit", commit_s, "one for all of it"),
    ]
    return [Part(name, seconds / rows * 1e9, detail) for name, seconds, detail in found]


def _batches(pieces: Sequence[bytes], fields: int) -> list[Rows]:
    stream = RowBatches(fields, max_bytes=BATCH_BYTES)
    batches = [batch for piece in pieces for batch in stream.feed(piece)]
    last = stream.finish()
    return batches if last is None else [*batches, last]


async def _copy_out(stage: Stage, table: Priced, rows: int, repeat: int) -> tuple[list[bytes], float]:
    connection = await asyncpg.connect(stage.dsn("source"))
    query = f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE id <= {rows} ORDER BY id"
    pieces: list[bytes] = []

    async def keep(piece: bytes) -> None:
        pieces.append(piece)

    async def forget(_piece: bytes) -> None:
        pass

    await connection.copy_from_query(query, output=keep, format="binary")
    best_s = float("inf")
    for _ in range(repeat):
        began = time.perf_counter()
        await connection.copy_from_query(query, output=forget, format="binary")
        best_s = min(best_s, time.perf_counter() - began)
    await connection.close()
    return pieces, best_s


async def _copy_in(stage: Stage, table: Priced, pieces: Sequence[bytes], repeat: int) -> tuple[float, float]:
    best = (float("inf"), 0.0)
    for _ in range(repeat):
        stage.create("target", "counted")
        stage.settle()
        connection = await asyncpg.connect(stage.dsn("target"))

        async def give() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        transaction = connection.transaction()
        await transaction.start()
        began = time.perf_counter()
        await connection.copy_to_table(table.name, source=give(), columns=table.counted, format="binary")
        copied = time.perf_counter()
        await transaction.commit()
        best = min(best, (copied - began, time.perf_counter() - copied))
        await connection.close()
    return best


# -- a running job, looked at from beside it ------------------------------------------------------------------------

PLACES: Final = (
    ("transform/decoding", "decode"),
    ("transform/encoding", "encode"),
    ("bench/functions", "function"),
    ("transform/passing", "assemble"),
    ("transform/", "handing over"),
    ("movers/", "the mover: batching, queues"),
    ("engine/db/", "sessions and the driver"),
    ("engine/", "the rest of the engine"),
)
"""The first that a frame of a thread's stack stands in, from the innermost outwards."""

WAITING: Final = "selectors.py"


def shares(spec: dict[str, Any]) -> list[tuple[str, float]]:
    """Run the job in this process; (thread: place, share of all looks), the largest first."""
    seen: Counter[str] = Counter()
    over = threading.Event()
    main, own = threading.get_ident(), []

    def look() -> None:
        own.append(threading.get_ident())
        while not over.wait(LOOK_EVERY_S):
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for number, frame in sys._current_frames().items():  # noqa: SLF001 - there is no other way to look
                if number in own:
                    continue
                if number == main or "transform" in names.get(number, ""):
                    seen[f"{'loop' if number == main else 'transform'}: {_place(frame)}"] += 1

    watcher = threading.Thread(target=look, name="watcher")
    watcher.start()
    try:
        in_process(spec, asyncio.run)  # asyncio's loop is Python, so that its waiting can be told from work
    finally:
        over.set()
        watcher.join()
    by_thread: Counter[str] = Counter()
    for place, looks in seen.items():
        by_thread[place.partition(":")[0]] += looks
    return [(place, looks / by_thread[place.partition(":")[0]]) for place, looks in seen.most_common()]


def _place(frame: FrameType | None) -> str:
    if frame is not None and frame.f_code.co_filename.endswith(WAITING):
        return "waiting"
    while frame is not None:
        for path, name in PLACES:
            if path in frame.f_code.co_filename:
                return name
        frame = frame.f_back
    return "asyncio"
