"""A rough forecast of a job from catalogue figures alone: how long, how much WAL, how much growth.

It knows neither the hardware nor the other load, so every answer is a range.  The lower end of the time comes from runs
on two cores with rows of a hundred bytes and everything in memory (3 million rows, PostgreSQL 15; ``docs/cli.md`` names
the basis); the upper end allows for a server that is ``SLOWEST`` times slower.  WAL and growth are counted from row and
index sizes; their upper ends add a full image of every page that is changed for the first time after a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.model import Mode, Table

ROW_S: Final = {Mode.UPDATE: 4.0e-6, Mode.INSERT: 2.4e-6, Mode.COPY: 2.2e-6}
"""Worker-seconds per row of ``REFERENCE_ROW_BYTES`` with one index, by mode (two workers: 357-424, 570-650 and
645-797 thousand rows a second)."""

BYTE_S: Final = {Mode.UPDATE: 6e-9, Mode.INSERT: 6e-9, Mode.COPY: 8e-9}
"""Worker-seconds per byte of a row above the reference."""

INDEX_ENTRY_S: Final = 1.0e-6
"""Worker-seconds per row for each index beyond the first."""

REFERENCE_ROW_BYTES: Final = 100.0
SLOWEST: Final = 5.0
PARALLEL_LIMIT: Final = 8
"""Workers beyond this are not expected to add speed."""

WAL_RECORD_BYTES: Final = 60
"""Header and block reference of one WAL record."""

INDEX_ENTRY_BYTES: Final = 24
"""Of an index on one bigint, item pointer included; used where the source's indexes have no size yet."""

PAGE_BYTES: Final = 8192
BASIS: Final = "sizes of the catalogue; speed from two cores with everything in memory to five times slower"


@dataclass(frozen=True, slots=True)
class Range:
    """From a hopeful to a cautious value."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the job is expected to cost.  ``growth_bytes``: of the written table and its indexes, before any vacuum."""

    rows: float
    seconds: Range
    wal_bytes: Range
    growth_bytes: Range
    basis: str


def forecast(
    mode: Mode,
    source: Table,
    target: Table | None,
    *,
    rows: float,
    workers: int,
    max_rows_per_s: float | None = None,
    hot: bool = False,
    streams: bool = False,
) -> Forecast:
    """The cost of moving ``rows`` rows of ``source``; ``hot``: updates may stay on their page and skip the indexes.
    ``streams``: rows pass through this process whatever the mode.
    """
    rows = max(0.0, rows)
    written = target or source
    row_bytes = (source.heap_bytes + source.toast_bytes) / rows if rows >= 1 else REFERENCE_ROW_BYTES
    entry_bytes = _entry_bytes(source, rows)
    indexes = 0 if hot and mode is Mode.UPDATE else len(written.indexes)

    per_row_s = sum(ROW_S[m] + BYTE_S[m] * max(0.0, row_bytes - REFERENCE_ROW_BYTES) for m in _ways(mode, streams))
    per_row_s += INDEX_ENTRY_S * max(0, indexes - 1)
    fastest_s = rows * per_row_s / max(1, min(workers, PARALLEL_LIMIT))
    limited_s = rows / max_rows_per_s if max_rows_per_s else 0.0

    new_bytes = rows * row_bytes + rows * indexes * entry_bytes
    records_bytes = rows * (1 + indexes) * WAL_RECORD_BYTES
    # An update changes the page it leaves as well as the page it writes; fresh pages of an insert need no image.
    imaged_pages = (source.heap_bytes if mode is Mode.UPDATE else 0.0) / PAGE_BYTES
    imaged_pages += rows * indexes * entry_bytes / PAGE_BYTES
    wal_low = new_bytes + records_bytes
    return Forecast(
        rows=rows,
        seconds=Range(max(fastest_s, limited_s), max(fastest_s * SLOWEST, limited_s)),
        wal_bytes=Range(wal_low, wal_low + imaged_pages * PAGE_BYTES),
        # An index grows by less than its entries where dead ones are reused, and by more where its pages split.
        growth_bytes=Range(0.0 if hot and mode is Mode.UPDATE else rows * row_bytes, new_bytes * 1.5),
        basis=BASIS,
    )


def _ways(mode: Mode, streams: bool) -> tuple[Mode, ...]:
    """Whose figures add up: in place a streamed row is copied into a staging table, and then updated from there."""
    if not streams:
        return (mode,)
    return (Mode.COPY, Mode.UPDATE) if mode is Mode.UPDATE else (Mode.COPY,)


def _entry_bytes(source: Table, rows: float) -> float:
    if rows < 1 or not source.indexes or not source.index_bytes:
        return INDEX_ENTRY_BYTES
    return source.index_bytes / len(source.indexes) / rows
