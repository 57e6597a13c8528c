"""What people write today: fetch rows, loop over them in Python, ``copy_records_to_table``.

Two connections, chunks by key range, a prepared query, asynchronous commit but for the last.  It can resume nothing,
sets nothing aside and knows nothing of live traffic.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import uvloop

from bench.report import Sample
from bench.stage import Stage

CHUNK_ROWS = 20_000
FETCH = "SELECT id, amount, note, created_at, flag, ref, payload FROM sales WHERE id > $1 AND id <= $2 ORDER BY id"
COLUMNS = ["id", "amount_cents", "note", "created_at", "flag", "ref", "payload"]

Loop = Callable[[Sequence[asyncpg.Record]], list[tuple[Any, ...]]]


def by_name(rows: Sequence[asyncpg.Record]) -> list[tuple[Any, ...]]:
    """As it is written mostly."""
    records = []
    for row in rows:
        cents = None if row["amount"] is None else int(row["amount"] * 100)
        records.append(
            (row["id"], cents, row["note"], row["created_at"], row["flag"], row["ref"], row["payload"]),
        )
    return records


def by_place(rows: Sequence[asyncpg.Record]) -> list[tuple[Any, ...]]:
    """As fast as a loop gets."""
    records = []
    for identifier, amount, note, created_at, flag, ref, payload in rows:
        cents = None if amount is None else int(amount * 100)
        records.append((identifier, cents, note, created_at, flag, ref, payload))
    return records


def fetch_loop_copy(stage: Stage, source: str, target: str, rows: int, *, loop: Loop, tasks: int) -> Sample:
    """Copy all rows; ``tasks`` chunks at once, in one thread."""
    chunk = max(1, min(CHUNK_ROWS, rows // (2 * tasks)))

    async def worker(starts: list[int]) -> None:
        reader = await asyncpg.connect(stage.dsn(source))
        writer = await asyncpg.connect(stage.dsn(target), server_settings={"synchronous_commit": "off"})
        statement = await reader.prepare(FETCH)
        while starts:
            lo = starts.pop()
            records = loop(await statement.fetch(lo, lo + chunk))
            await writer.copy_records_to_table("sales", records=records, columns=COLUMNS)
        await writer.execute("SET synchronous_commit = on")
        await writer.execute("SELECT pg_logical_emit_message(true, 'bench', 'end'::text)")
        await reader.close()
        await writer.close()

    async def run() -> tuple[float, float]:
        starts = list(range(0, rows, chunk))[::-1]  # popped from the end: in key order
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker(starts) for _ in range(tasks)))
        return time.perf_counter() - began, time.process_time() - cpu

    seconds, cpu_s = uvloop.run(run())
    return Sample(seconds, rows, client_cpu_s=cpu_s)
