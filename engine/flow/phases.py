"""A job's phases: what each pages through, how its spans are planned, and which one comes next.

::

    move ──▶ sweep ──▶ (done)                        sweep: only with deletes: guarded
    (done) ──▶ verify ──▶ extra ──▶ confirm ──▶ recheck ──▶ (done)
                          only where the target      only after repairs, and for
                          sorts in another order     rows that never stood still

Between two phases stands a barrier: a list of transactions that must have ended before the next one is planned.  The
phases that clear up (``sweep`` by tombstones, ``confirm``, ``recheck``) page through numbered rows of a table of the
ledger, under the same leases, bounds and fence as any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.db import Connection
from engine.flow import barrier, dual_write
from engine.flow.answer import answer
from engine.flow.prepare import Prepared
from engine.flow.shared import Sides, of_side
from engine.ledger.records import JobRecord, Tombstones
from engine.ledger.store import NOBODY, Ledger
from engine.model import JobState, Key, KeyColumn, KeyValue, Phase, Side, SpanBounds, TableName
from engine.plan.questions import LastKey, Steps
from engine.plan.spans import plan_spans
from engine.spec import ChunkLimits, JobSpec
from engine.sql.statements import disordered, key_list

SPANS_PER_WORKER: Final = 4
"""Few, because phases after the move mostly look; the last ones are shared out by stealing."""

START_ROWS: Final = {Phase.SWEEP: 20_000, Phase.VERIFY: 20_000, Phase.EXTRA: 20_000}
"""Of a first chunk in the phases that only look, at some millions of rows a second."""

ROWS_ONE_BY_ONE: Final = 500
"""Rows that are looked at one by one, and written perhaps, in one transaction."""

CHUNK_OF_GROWTH: Final = 0.1
"""Chunks in hand are at most this part of what ``bloat.max_growth`` allows: they are written whatever is decided."""

LOOKED_AT: Final = {Phase.CONFIRM: ("suspect",), Phase.RECHECK: ("repaired", "unsettled")}
"""In which states the rows are that these phases look at."""

TOMBSTONES: Final = "tombstones"
KEYS: Final = "keys"


@dataclass(frozen=True, slots=True)
class Paged:
    """A table and the key by which a phase pages through it."""

    side: Side
    table: TableName
    key: Key


def _numbered(table: str) -> Paged:
    """A table of the ledger whose rows have numbers."""
    column = KeyColumn(name="id", type_name="bigint", type_oid=20, kind="int")
    return Paged(Side.TARGET, TableName("backfill", table), Key((column,), f"{table}_pkey"))


def paged(prepared: Prepared, job: JobRecord, phase: Phase) -> Paged:
    """What ``phase`` of ``job`` pages through."""
    match phase:
        case Phase.MOVE | Phase.VERIFY:
            return Paged(Side.SOURCE, prepared.source.table, prepared.key)
        case Phase.SWEEP if job.sweep_by == TOMBSTONES:
            return _numbered("tombstone")
        case Phase.SWEEP | Phase.EXTRA:
            assert prepared.sweep_key is not None
            return Paged(Side.TARGET, prepared.written_table.name, prepared.sweep_key)
        case Phase.CONFIRM | Phase.RECHECK:
            return _numbered("difference")


def chunk_limits(spec: JobSpec, job: JobRecord, phase: Phase, *, workers: int) -> ChunkLimits:
    """The spec's; where a table must not grow much, chunks are small against what it may grow by."""
    if phase in (Phase.CONFIRM, Phase.RECHECK):
        most = min(ROWS_ONE_BY_ONE, spec.chunk.max_rows)
        return spec.chunk.model_copy(update={"min_rows": min(most, spec.chunk.min_rows), "max_rows": most})
    if spec.bloat.max_growth is None or phase.state is not JobState.RUNNING:
        return spec.chunk
    room_rows = int(job.rows_estimated * spec.bloat.max_growth * CHUNK_OF_GROWTH / max(1, workers))
    most = max(spec.chunk.min_rows, min(spec.chunk.max_rows, room_rows))
    return spec.chunk.model_copy(update={"max_rows": most})


async def following(prepared: Prepared, ledger: Ledger, job: JobRecord, phase: Phase) -> Phase | None:
    """The phase after ``phase``; None when the move, or the verification, ends with it."""
    match phase:
        case Phase.MOVE if prepared.sweeps:
            return Phase.SWEEP
        case Phase.VERIFY if seeks_extras(prepared):
            return Phase.EXTRA
        case Phase.VERIFY | Phase.EXTRA | Phase.CONFIRM:
            after = Phase.RECHECK if phase is Phase.CONFIRM else Phase.CONFIRM
            assert job.verification_id is not None
            left = await ledger.suspects(job.verification_id, LOOKED_AT[after])
            return after if left.rows else None
        case _:
            return None


def seeks_extras(prepared: Prepared) -> bool:
    """True when rows that only the target holds cannot be found by ranges of the source's keys: the two sort
    differently, or a key of the target may not fit into the source's type.
    """
    target = prepared.target
    if target is None:
        return False
    same_types = [c.type_name for c in target.key] == [c.type_name for c in prepared.key.columns]
    return not (target.same_order and same_types)


async def freeze(ledger: Ledger, job: JobRecord, phase: Phase, sides: Sides) -> str:
    """The barrier before ``phase``: whom it has to wait for, as text for the ledger."""
    match phase:
        case Phase.SWEEP:
            # Whoever may not see a row that we wrote last may still delete at the source without deleting it.
            frozen = await barrier.freeze(sides)
        case Phase.RECHECK:
            # The same after repairs; rows that only never stood still are waited for like those of the first look.
            assert job.verification_id is not None
            repaired = await ledger.suspects(job.verification_id, ("repaired",))
            frozen = await barrier.freeze(sides, only_writers=not repaired.rows)
        case Phase.CONFIRM:
            # Whoever has written to one side may still be about to write the other.
            frozen = await barrier.freeze(sides, only_writers=True)
        case _:
            frozen = None
    return frozen or NOBODY


@dataclass(frozen=True, slots=True)
class Planned:
    """The spans of a phase; ``sweep_by`` is decided together with those of the sweep."""

    spans: tuple[SpanBounds, ...]
    sweep_by: str | None = None


async def plan(
    prepared: Prepared, ledger: Ledger, job: JobRecord, phase: Phase, sides: Sides, *, workers: int
) -> Planned:
    """Plan the spans of a phase whose barrier has passed.  ``sides``: sessions that may read the tables."""
    count = SPANS_PER_WORKER * max(1, workers)
    match phase:
        case Phase.SWEEP:
            return await _plan_sweep(prepared, ledger, job, sides, count)
        case Phase.VERIFY:
            return Planned(await _plan_verify(prepared, sides, count))
        case Phase.CONFIRM | Phase.RECHECK:
            assert job.verification_id is not None
            return Planned(_numbers(await ledger.suspects(job.verification_id, LOOKED_AT[phase]), count))
        case _:
            return Planned(await _plan_target(prepared, sides, count))


async def _plan_sweep(prepared: Prepared, ledger: Ledger, job: JobRecord, sides: Sides, count: int) -> Planned:
    """By tombstones, when our triggers have written one for every deleted key since before the first chunk."""
    if job.dual_write is not None:
        buried = await ledger.tombstones(job.name)
        now = await dual_write.look(of_side(sides, Side.SOURCE), prepared)
        if not buried.truncated and dual_write.still_holds(job.dual_write, now.evidence):
            return Planned(_numbers(buried, count), TOMBSTONES)
    return Planned(await _plan_target(prepared, sides, count), KEYS)


async def _plan_target(prepared: Prepared, sides: Sides, count: int) -> tuple[SpanBounds, ...]:
    key = prepared.sweep_key
    assert key is not None
    steps = plan_spans(key, spans=count)
    return (await answer(steps, sides[Side.TARGET], prepared.written_table.name, key)).spans


async def _plan_verify(prepared: Prepared, sides: Sides, count: int) -> tuple[SpanBounds, ...]:
    """The source's keys, and as far as the target's last one, where a range means the same on both."""
    source, key = of_side(sides, Side.SOURCE), prepared.key
    spans = (await answer(plan_spans(key, spans=count), source, prepared.source.table, key)).spans
    target = prepared.target
    if target is None or seeks_extras(prepared):
        return spans
    end = await _last_key(sides[Side.TARGET], target.table, Key(target.key, ""))
    if end is None:
        return spans
    if not spans:
        return (SpanBounds(None, end, 1.0),)
    last = spans[-1].hi
    if await source.fetch(disordered(key.columns), key_list([end]), key_list([last]), [True]):
        return (*spans, SpanBounds(last, end, 1.0))
    return spans


async def _last_key(connection: Connection, table: TableName, key: Key) -> KeyValue | None:
    def ask() -> Steps[KeyValue | None]:
        found = yield LastKey()
        return found  # type: ignore[return-value]  # the answer to LastKey is a key or None

    return await answer(ask(), connection, table, key)


def _numbers(there: Tombstones, count: int) -> tuple[SpanBounds, ...]:
    """Numbered rows in about ``count`` spans of equal width."""
    if there.first is None or there.last is None:
        return ()
    width = there.last - there.first + 1
    cuts = sorted({there.first - 1 + width * n // count for n in range(1, count)} - {there.first - 1, there.last})
    ends = [*cuts, there.last]
    starts: list[int | None] = [None, *cuts]
    return tuple(
        SpanBounds(
            None if start is None else (str(start),),
            (str(end),),
            there.rows * (end - (there.first - 1 if start is None else start)) / width,
        )
        for start, end in zip(starts, ends, strict=True)
    )
