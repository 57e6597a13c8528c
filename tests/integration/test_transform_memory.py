"""Rows pass through Python in batches: how large a chunk is does not decide how much memory a process takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.databases import FreshDatabase, TwoDatabases
from tests.support.functions import named

ROWS: Final = 6_000
WIDE_BYTES: Final = 8_000
"""Of each of two columns: a chunk of 16 MiB has about a thousand rows, and the table six chunks."""

MOST_BYTES: Final = 120 * 2**20
TABLE: Final = "(id bigint PRIMARY KEY, v text, raw bytea, digest bytea)"


def fill(database: FreshDatabase) -> None:
    """Wide rows; on disk they are small, on the wire they are not."""
    database.sql(
        f"CREATE TABLE t {TABLE};"
        f"INSERT INTO t SELECT g, repeat(md5(g::text), {WIDE_BYTES // 32}), decode(repeat(md5(g || '/'), {WIDE_BYTES // 16}),"
        f" 'hex') FROM generate_series(1, {ROWS}) g; ANALYZE t"
    )


def peak_bytes(spec: dict[str, Any], folder: Path, environment: dict[str, str]) -> int:
    """Run the job as a process of its own; the most memory that it held."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", "run", str(file)],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
    peak = 0
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        time.sleep(0.01)
    assert process.returncode == 0, (folder / "said").read_text()
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("function", [pytest.param("digested", marks=pytest.mark.long), "turned"])
@pytest.mark.parametrize("way", ["copy", "in place"])
def test_chunks_of_sixteen_megabytes_take_no_more_than_this(
    databases: TwoDatabases, tmp_path: Path, way: str, function: str
) -> None:
    fill(databases.source)
    spec: dict[str, Any] = {
        "name": "job",
        "source": {"dsn": "${SOURCE_DSN}", "table": "t"},
        "transform": named(function),
        "chunk": {"max_bytes": "16MiB", "min_rows": 1000, "max_rows": 100_000},
        "pace": {"signals": "off"},
        "workers": 2,
    }
    if way == "copy":
        databases.target.sql(f"CREATE TABLE d {TABLE}")
        spec |= {"target": {"dsn": "${TARGET_DSN}", "table": "d"}}
    else:
        spec |= {"done": "false"}
    environment = {"SOURCE_DSN": databases.source.dsn, "TARGET_DSN": databases.target.dsn}
    peak = peak_bytes(spec, tmp_path, environment)
    written, table = (databases.target, "d") if way == "copy" else (databases.source, "t")
    right = {
        "digested": "digest = sha256(convert_to(v, 'UTF8') || raw)",
        "turned": f"v = reverse(repeat(md5(id::text), {WIDE_BYTES // 32})) AND length(raw) = {WIDE_BYTES}",
    }[function]
    assert written.sql(f"SELECT count(*) FROM {table} WHERE {right}") == str(ROWS)
    assert peak <= MOST_BYTES
