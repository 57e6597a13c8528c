"""What ours is measured against: other programs, single statements, and bare loops without ledger, lease or fence.

The bare loops are the same mover with everything else taken away: two connections, chunks cut by arithmetic, prepared
statements, ``synchronous_commit=off`` until the last commit.  They can resume nothing and promise nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from bench.report import Sample
from bench.stage import Stage

WORKERS = 2
COPY_CHUNK_ROWS = 20_000
INSERT_CHUNK_ROWS = 20_000
UPDATE_CHUNK_ROWS = 10_000
PGROLL_CHUNK_ROWS = 1_000
QUEUE_PIECES = 8
NO_TIMEOUT_S = 3600.0

Connection = asyncpg.Connection


# -- single statements ----------------------------------------------------------------------------------------------


def one_statement(stage: Stage, database: str, sql: str, rows: int) -> Sample:
    """One statement in one transaction, committed synchronously."""

    async def run() -> float:
        connection = await asyncpg.connect(stage.dsn(database))
        began = time.perf_counter()
        await connection.execute(sql, timeout=NO_TIMEOUT_S)
        seconds = time.perf_counter() - began
        await connection.close()
        return seconds

    return Sample(uvloop.run(run()), rows)


# -- to another database --------------------------------------------------------------------------------------------


def psql_pipe(stage: Stage, source: str, target: str, table: str, rows: int) -> Sample:
    """``psql COPY TO STDOUT | psql COPY FROM STDIN``, binary, one transaction."""
    out = [*_psql(stage, source), "-c", f"COPY {table} TO STDOUT (FORMAT binary)"]
    into = [*_psql(stage, target), "-c", f"COPY {table} FROM STDIN (FORMAT binary)"]
    before = os.times()
    began = time.perf_counter()
    with subprocess.Popen(out, stdout=subprocess.PIPE) as reader:
        writer = subprocess.run(into, stdin=reader.stdout, check=True)
        assert reader.stdout is not None
        reader.stdout.close()
        if reader.wait() != 0 or writer.returncode != 0:
            raise RuntimeError("the pipe broke")
    seconds = time.perf_counter() - began
    return Sample(seconds, rows, client_cpu_s=_children_cpu_s(before))


def _psql(stage: Stage, database: str) -> list[str]:
    return [stage.server.bin("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", stage.dsn(database)]


def pgcopydb_path() -> str | None:
    """The program, where it is installed."""
    return shutil.which("pgcopydb")


def pgcopydb_version() -> str | None:
    """Its version, where it is installed."""
    program = pgcopydb_path()
    if program is None:
        return None
    first = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split("\n", 1)[0]
    return first.rpartition(" ")[2]


PGCOPYDB_SETTINGS = {
    "jobs 1": ["--table-jobs", "1", "--index-jobs", "1"],
    "jobs 2, split": ["--table-jobs", "2", "--index-jobs", "2", "--split-tables-larger-than", "50MB"],
    "jobs 4, split": ["--table-jobs", "4", "--index-jobs", "2", "--split-tables-larger-than", "50MB"],
}
"""Its settings that matter for one table; the best of them is what ours is compared with."""


def pgcopydb(stage: Stage, source: str, target: str, rows: int, options: list[str]) -> Sample:
    """``pgcopydb clone`` into a database without tables: it makes the table, copies, and builds the index."""
    program = pgcopydb_path()
    assert program is not None
    tools = str(Path(stage.server.bin("pg_dump")).parent)
    with tempfile.TemporaryDirectory(prefix="backfill-bench-") as folder:
        arguments = [program, "clone", "--dir", f"{folder}/work", *options]
        arguments += ["--source", stage.dsn(source), "--target", stage.dsn(target)]
        before = os.times()
        began = time.perf_counter()
        done = subprocess.run(
            arguments,
            env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(f"pgcopydb: {done.stderr[-2000:]}")
    return Sample(seconds, rows, client_cpu_s=_children_cpu_s(before))


def server_limit(stage: Stage, source: str, target: str, table: str, rows: int) -> Sample:
    """What the servers alone need: COPY OUT to nowhere plus COPY IN from a file, as if perfectly spread over two
    processors.
    """
    file = stage.server.folder / "limit.copy"
    file.unlink(missing_ok=True)
    stage.sql(source, f"COPY {table} TO '{file}' (FORMAT binary)")
    out = one_statement(stage, source, f"COPY {table} TO '/dev/null' (FORMAT binary)", rows)
    stage.settle()
    into = one_statement(stage, target, f"COPY {table} FROM '{file}' (FORMAT binary)", rows)
    file.unlink()
    notes = {"copy_out_s": round(out.seconds, 3), "copy_in_s": round(into.seconds, 3)}
    return Sample((out.seconds + into.seconds) / 2, rows, notes=notes)


def bare_copy(stage: Stage, source: str, target: str, table: str, rows: int, *, staged: bool = False) -> Sample:
    """Binary COPY streamed into COPY, chunk by chunk.  ``staged``: each through a temporary table with ON CONFLICT."""
    chunk = _at_most(COPY_CHUNK_ROWS, rows)

    async def worker(starts: list[int]) -> int:
        reader = await asyncpg.connect(stage.dsn(source))
        writer = await asyncpg.connect(stage.dsn(target), server_settings={"synchronous_commit": "off"})
        if staged:
            await writer.execute(
                f"CREATE TEMPORARY TABLE staging ON COMMIT DELETE ROWS AS SELECT * FROM {table} WITH NO DATA"
            )
        moved = 0
        while starts:
            lo = starts.pop()
            query = f"SELECT * FROM {table} WHERE id > {lo} AND id <= {lo + chunk} ORDER BY id"
            async with writer.transaction():
                await _stream(reader, writer, query, "staging" if staged else table)
                if staged:
                    await writer.execute(f"INSERT INTO {table} SELECT * FROM staging ON CONFLICT DO NOTHING")
            moved += 1
        await _commit_synchronously(writer)
        await reader.close()
        await writer.close()
        return moved

    return _timed_loop(worker, rows, chunk)


async def _stream(reader: Connection, writer: Connection, query: str, table: str) -> None:
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_PIECES)

    async def read() -> None:
        await reader.copy_from_query(query, output=pieces.put, format="binary")
        await pieces.put(None)

    async def give() -> AsyncIterator[bytes]:
        while (piece := await pieces.get()) is not None:
            yield piece

    reading = asyncio.ensure_future(read())
    await writer.copy_to_table(table, source=give(), format="binary")
    await reading


# -- within one database --------------------------------------------------------------------------------------------

BARE_INSERT = (
    "INSERT INTO orders_v2 SELECT s.* FROM orders AS s "
    "LEFT JOIN orders_v2 AS d ON d.id = s.id AND d.id > $1 AND d.id <= $2 "
    "WHERE s.id > $1 AND s.id <= $2 AND d.id IS NULL"
)
BARE_UPDATE = "UPDATE orders SET new_c = customer_id * 2 WHERE id > $1 AND id <= $2 AND new_c IS NULL"
PGROLL_SHAPE = (
    "WITH batch AS (SELECT id FROM orders WHERE id > $1 AND id <= $2 ORDER BY id FOR NO KEY UPDATE) "
    "UPDATE orders SET new_c = customer_id * 2 FROM batch WHERE orders.id = batch.id"
)


def bare_statement(
    stage: Stage,
    database: str,
    sql: str,
    rows: int,
    chunk_rows: int,
    *,
    workers: int = WORKERS,
    synchronous: bool = False,
    steady: bool = False,
) -> Sample:
    """One prepared statement per chunk, committed by itself; ``$1`` and ``$2`` are the chunk's bounds.

    ``steady``: the clocks run from the first commit to the last, and the time is scaled to all rows.
    """
    chunk = _at_most(chunk_rows, rows)
    commits: list[tuple[float, float]] = []

    async def worker(starts: list[int]) -> int:
        commit = "on" if synchronous else "off"
        settings = {"synchronous_commit": commit, "plan_cache_mode": "force_custom_plan"}
        connection = await asyncpg.connect(stage.dsn(database), server_settings=settings)
        statement = await connection.prepare(sql)
        moved = 0
        while starts:
            lo = starts.pop()
            await statement.fetch(lo, lo + chunk)
            commits.append((time.perf_counter(), time.process_time()))
            moved += 1
        await _commit_synchronously(connection)
        await connection.close()
        return moved

    sample = _timed_loop(worker, rows, chunk, workers)
    if not steady:
        return sample
    (first, first_cpu), (last, last_cpu) = commits[0], commits[-1]
    seconds = (last - first) * rows / (rows - chunk)
    return replace(sample, seconds=seconds, client_cpu_s=last_cpu - first_cpu, chunks=len(commits) - 1)


async def _commit_synchronously(connection: Connection) -> None:
    """The last commit waits for the disk, and everything before goes with it."""
    await connection.execute("SET synchronous_commit = on")
    await connection.execute("SELECT pg_logical_emit_message(true, 'bench', 'end'::text)")


def _timed_loop(worker: Callable[[list[int]], Awaitable[int]], rows: int, chunk: int, workers: int = WORKERS) -> Sample:
    async def run() -> tuple[float, float, int]:
        starts = list(range(0, rows, chunk))[::-1]  # popped from the end: in key order
        began, cpu = time.perf_counter(), time.process_time()
        moved = await asyncio.gather(*(worker(starts) for _ in range(workers)))
        return time.perf_counter() - began, time.process_time() - cpu, sum(moved)

    seconds, cpu_s, chunks = uvloop.run(run())
    return Sample(seconds, rows, client_cpu_s=cpu_s, chunks=chunks)


def _at_most(chunk: int, rows: int) -> int:
    """A smoke run's table is smaller than a chunk: let it have several chunks all the same."""
    return max(1, min(chunk, rows // (2 * WORKERS)))


def _children_cpu_s(before: Any) -> float:
    after = os.times()
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)
