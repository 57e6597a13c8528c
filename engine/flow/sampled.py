"""A job's transform tried on a few rows of its source, before anything is written.

The rows come from all over the table, as chunks of the job would read them; what the function gives back is encoded for
the written columns' types, and forgotten.  A wrong name, type or shape shows here, with the function's own line, and
not in the middle of a job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from engine.db import Connection
from engine.db.failures import classify
from engine.errors import TooManyBadRows, TransformFailed
from engine.flow.transforming import PreparedTransform
from engine.model import Key, TableName
from engine.plan.preflight import SampleFacts
from engine.plan.spans import SpanPlan
from engine.sql import ident, qualified
from engine.sql.predicates import columns, compare, value

if TYPE_CHECKING:  # numpy is loaded by jobs that need it
    import numpy as np

    from engine._native.rows import Rows
    from engine.transform.columns import Column, ListColumn
    from engine.transform.passing import Rejected
    from engine.transform.running import Runner
    from engine.transform.types import ColumnType

SAMPLE_ROWS: Final = 100
PLACES: Final = 10
"""That rows are taken from: one end of a table is seldom like the other."""

SAMPLE_BYTES: Final = 1 << 20
"""What the rows may take in memory, as a batch of the job itself; a single larger row is still tried."""

PATIENCE_S: Final = 10.0
"""What reading them may take; a condition that next to no row fulfils is no reason to scan the table."""

TRIED_S: Final = 30.0
"""How long somebody waits to hear of it.  A function whose own limit is longer is not judged by a sample."""

SHOWN_ROWS: Final = 5


@dataclass(frozen=True, slots=True)
class ShownRow:
    """What the transform was given of one row, and what it made of it: name to text, None for NULL.

    ``output`` None: the row was dropped, or rejected for ``reason``.
    """

    input: dict[str, str | None]
    output: dict[str, str | None] | None
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The object of ``plan --show-rows --json``."""
        return {"input": self.input, "output": self.output, "reason": self.reason or None}


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of the sampled rows; ``shown``: some of them, where somebody asked to see rows."""

    facts: SampleFacts
    shown: tuple[ShownRow, ...] = ()


async def sample(
    connection: Connection,
    transform: PreparedTransform,
    table: TableName,
    key: Key,
    plan: SpanPlan,
    conditions: Sequence[str],
    *,
    row_bytes: float = 0.0,
    show: int = 0,
) -> Sample | None:
    """Try the transform on up to ``SAMPLE_ROWS`` rows; None where there are none.

    ``conditions``: SQL that a row of the job fulfils.  ``row_bytes``: what a row of the table takes, about; of large
    ones fewer are read.  ``show``: of so many rows, values and all.
    """
    from engine.transform.passing import REJECTED
    from engine.transform.running import Runner

    most = SAMPLE_ROWS if row_bytes <= 0 else max(PLACES, min(SAMPLE_ROWS, int(SAMPLE_BYTES / row_bytes)))
    query = _query(transform, table, key, plan, conditions, most)
    try:
        rows = await _read(connection, query, max(1, len(transform.reads)))
    except _OutOfTime:
        return Sample(SampleFacts(untried=f"no rows to try it on were found within {PATIENCE_S:g} s"))
    if rows is None:
        return None
    runner = Runner(
        transform.loaded,
        tuple(enumerate(transform.reads)),
        transform.writes,
        [-1 - place for place in range(len(transform.writes))],
        most_rejected=rows.count,
    )
    try:
        async with asyncio.timeout(TRIED_S):
            await runner.start()
            applied = await runner.apply(rows)
            shown = [await _shown(runner, rows, row, transform) for row in range(min(show, rows.count))]
    except TimeoutError:
        untried = f"it has not come back within {TRIED_S:g} s, and its own limit is longer"
        return Sample(SampleFacts(untried=untried), _given(rows, show, transform, "not tried to the end"))
    except (TransformFailed, TooManyBadRows) as error:
        failed = SampleFacts(rows=rows.count, failure=error.message)
        return Sample(failed, _given(rows, show, transform, "the transform fails"))
    finally:
        await runner.close()
    rejected = applied.rejected
    # Rows that the function itself rejects are another matter: it may be right.
    is_hopeless = len(rejected) == rows.count and REJECTED not in {one.sqlstate for one in rejected}
    reason = _reason(rejected[0], transform) if rejected else ""
    facts = SampleFacts(
        rows=rows.count,
        rejected=len(rejected),
        dropped=applied.dropped,
        reason=reason,
        failure=reason if is_hopeless else "",
    )
    return Sample(facts, tuple(shown))


def _reason(rejected: Rejected, transform: PreparedTransform) -> str:
    """With a value that cannot be encoded, where the function stands: it is a line of the author's."""
    from engine.transform.passing import BAD_VALUE, own_frames

    definition = own_frames(transform.loaded.function)[1] if rejected.sqlstate == BAD_VALUE else None
    return rejected.reason if definition is None else f"{rejected.reason}; it stands at {definition.shown}"


# -- reading ----------------------------------------------------------------------------------------------------------


def _query(
    transform: PreparedTransform, table: TableName, key: Key, plan: SpanPlan, conditions: Sequence[str], most: int
) -> str:
    """Empty where there are no rows.  Guesses of the planner will do as bounds: nothing depends on where they lie."""
    if not plan.spans:
        return ""
    places = max(1, min(PLACES, round(plan.rows / most)))
    bounds = [*plan.space.boundaries(places), plan.spans[-1].hi]
    each = -(-most // len(bounds))
    read = ", ".join(ident(read.name) for read in transform.reads) or "NULL::integer"
    parts = []
    for lo, hi in pairwise((None, *bounds)):
        assert hi is not None
        # A guess may say no more than the leading columns.
        between = [compare(key.columns[: len(hi)], "<=", value(hi))]
        between += [] if lo is None else [compare(key.columns[: len(lo)], ">", value(lo))]
        where = " AND ".join([*between, *(f"({condition})" for condition in conditions)])
        parts.append(
            f"(SELECT {read} FROM {qualified(table)} WHERE {where} ORDER BY {columns(key.columns)} LIMIT {each})"
        )
    return " UNION ALL ".join(parts)


class _OutOfTime(Exception):
    """Reading took longer than anybody waits for it."""


class _Enough(Exception):
    """The sample is there, and more rows are on their way."""


async def _read(connection: Connection, query: str, fields: int) -> Rows | None:
    from engine._native.rows import RowBatches

    if not query:
        return None
    batches = RowBatches(fields, max_rows=SAMPLE_ROWS + PLACES, max_bytes=SAMPLE_BYTES)
    found: list[Rows] = []

    async def take(piece: bytes) -> None:
        found.extend(batches.feed(piece)[:1])
        if found:
            raise _Enough

    await connection.execute(
        f"BEGIN READ ONLY; SET LOCAL enable_seqscan = off; SET LOCAL statement_timeout = {round(PATIENCE_S * 1000)}"
    )
    try:
        await connection.copy_out(query, take)
        last = batches.finish()
    except _Enough:
        return found[0]
    except Exception as error:
        failure = classify(error)
        if failure.lost or not failure.sqlstate:
            raise
        if failure.sqlstate == _CANCELLED:
            raise _OutOfTime from None
        return None  # whatever is wrong with the query, other findings say it
    finally:
        if not connection.is_closed:
            await connection.execute("ROLLBACK")
    return last


_CANCELLED: Final = "57014"
"""By ``statement_timeout``."""

# -- showing ----------------------------------------------------------------------------------------------------------


def _given(rows: Rows, show: int, transform: PreparedTransform, reason: str) -> tuple[ShownRow, ...]:
    """Some rows of which nothing was made."""
    import numpy as np

    alone = (rows.take(np.array([row], np.int64)) for row in range(min(show, rows.count)))
    return tuple(ShownRow(_texts(one, transform.reads), None, reason) for one in alone)


async def _shown(runner: Runner, rows: Rows, row: int, transform: PreparedTransform) -> ShownRow:
    import numpy as np

    one = rows.take(np.array([row], np.int64))
    applied = await runner.apply(one)
    reason = applied.rejected[0].reason if applied.rejected else "dropped" if applied.dropped else ""
    output = None if not applied.rows else _texts(_unpacked(applied.piece, len(transform.writes)), transform.writes)
    return ShownRow(_texts(one, transform.reads), output, reason)


def _unpacked(piece: bytes, fields: int) -> Rows:
    from engine._native.rows import HEADER, TRAILER, RowBatches

    batches = RowBatches(fields)
    found = batches.feed(HEADER + piece + TRAILER)
    last = batches.finish()
    return [*found, *([] if last is None else [last])][0]


def _texts(rows: Rows, types: Sequence[ColumnType]) -> dict[str, str | None]:
    """The values of the only row there is."""
    from engine.transform.decoding import decode

    return {kind.name: _text(decode(rows, field, kind)[0], kind) for field, kind in enumerate(types)}


def _text(column: Column | ListColumn, kind: ColumnType) -> str | None:
    """The value for people: as Python sees it, in words that PostgreSQL would understand."""
    if bool(column.null[0]):
        return None
    if kind.element is None:
        return _scalar(column.values[0], kind)
    from engine.transform.columns import ListColumn

    assert isinstance(column, ListColumn)
    first, last = int(column.offsets[0]), int(column.offsets[1])
    items = (
        "NULL" if column.element_null[place] else _scalar(column.values[place], kind.element)
        for place in range(first, last)
    )
    return "{" + ",".join(items) + "}"


def _scalar(found: Any, kind: ColumnType) -> str:
    from engine.transform.types import Kind

    if kind.scale is not None and kind.kind is Kind.SCALED:
        return str(Decimal(int(found)).scaleb(-kind.scale)) if kind.scale else str(int(found))
    if isinstance(found, bytes):
        return "\\x" + found.hex()
    if kind.kind is Kind.UUID:
        import uuid

        return str(uuid.UUID(bytes=bytes(found)))
    if kind.kind in (Kind.DATE, Kind.TIMESTAMP):
        return _moment(found)
    if kind.kind is Kind.BOOL:
        return "true" if found else "false"
    return str(found)


def _moment(found: np.datetime64) -> str:
    from engine.transform.columns import INFINITY

    number = int(found.astype("int64"))
    if number in (INFINITY, -INFINITY):
        return "infinity" if number > 0 else "-infinity"
    return str(found).replace("T", " ")
