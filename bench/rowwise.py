"""What people write today: fetch rows, loop over them in Python, ``copy_records_to_table``.

Two connections, chunks by key range, a prepared query, asynchronous commit but for the last.  It can resume nothing,
sets nothing aside and knows nothing of live traffic.
"""

from __future__ import annotations

import asyncio
import time

import asyncpg
import uvloop

from bench.priced import Loop, Priced
from bench.report import Sample
from bench.stage import Stage

CHUNK_ROWS = 20_000


def fetch_loop_copy(
    stage: Stage, source: str, target: str, table: Priced, rows: int, *, loop: Loop, tasks: int
) -> Sample:
    """Copy all rows; ``tasks`` chunks at once, in one thread."""
    chunk = max(1, min(CHUNK_ROWS, rows // (2 * tasks)))

    async def worker(starts: list[int]) -> None:
        reader = await asyncpg.connect(stage.dsn(source))
        writer = await asyncpg.connect(stage.dsn(target), server_settings={"synchronous_commit": "off"})
        statement = await reader.prepare(table.fetch)
        while starts:
            lo = starts.pop()
            records = loop(await statement.fetch(lo, lo + chunk))
            await writer.copy_records_to_table(table.name, records=records, columns=table.counted)
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
