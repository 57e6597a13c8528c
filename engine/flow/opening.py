"""Opening a job: creating it in the ledger, or finding it there and making sure that it is still this one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from engine.db import Connection
from engine.db.fingerprint import differences as schema_differences
from engine.db.fingerprint import fingerprint
from engine.errors import LedgerDamaged, SchemaDrift, SpecChanged, UnknownJob
from engine.flow import barrier, dual_write, phases
from engine.flow.answer import answer
from engine.flow.prepare import Prepared
from engine.flow.shared import Sides, of_side
from engine.ledger.records import JobRecord, SpanRecord
from engine.ledger.requests import Request
from engine.ledger.store import Ledger
from engine.model import JobState, Key, KeyValue, Mode, Phase, Side, SpanBounds, Table
from engine.plan.keyspace import KeySpace
from engine.plan.questions import LastKey, Steps
from engine.spec import differences
from engine.sql.statements import disordered, key_list

_MEANINGLESS: Final = frozenset({"source_database", "target_database"})
"""Parts of the identity that are there for people: a database may be renamed."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A job of the ledger, and whether it was there before."""

    job: JobRecord
    resumed: bool


async def open_job(
    ledger: Ledger, prepared: Prepared, sides: Sides, *, request: Request | None = None, known: int | None = None
) -> Opened:
    """Create the job, or find it and check it.  Raises ``SpecChanged``, ``SchemaDrift``, ``LedgerDamaged``.

    ``request``: what asks for it, noted with the job that it creates.  ``known``: the number of the job that is meant;
    none is created then, and one that was removed meanwhile raises ``UnknownJob``.
    """
    spec = prepared.spec
    found = await ledger.find(spec.name)
    if known is not None and (found is None or found.id != known):
        raise UnknownJob(f"job {spec.name} was removed meanwhile")
    resumed = found is not None
    if found is None:
        print_now = await take_fingerprint(prepared, sides)
        # Before anybody is noted down who has to end: what our triggers did not see then, ends before the first chunk.
        triggers = await dual_write.look(of_side(sides, Side.SOURCE), prepared)
        created = await ledger.create(
            name=spec.name,
            mode=prepared.mode,
            source=prepared.source_label,
            target=prepared.target_label,
            identity=prepared.identity,
            spec=spec.for_ledger(),
            fingerprint=print_now,
            key_types=[c.type_name for c in prepared.key.columns],
            rows_estimated=prepared.plan.rows,
            # Frozen after the bounds were read: whoever could still write behind them is among these.
            barrier_snapshot=await barrier.freeze(sides),
            spans=prepared.plan.spans,
            heap_bytes=prepared.source_table.heap_bytes if prepared.mode is Mode.UPDATE else None,
            dual_write=triggers.evidence if triggers.intact else None,
            target_mark=sides[Side.TARGET].server.mark,
            request=request,
        )
        resumed = not created
        found = await ledger.job(spec.name)
    check_identity(found, prepared)
    if found.state.is_final:
        return Opened(found, resumed)
    if found.phase is None or found.phase.state is not JobState.VERIFYING:
        await check_schema(ledger, found, prepared, sides)
    await check_spans(ledger, found, prepared, sides)
    await ledger.apply_settings(found.id, spec.for_ledger())
    return Opened(await ledger.job(spec.name), resumed)


def check_identity(job: JobRecord, prepared: Prepared) -> None:
    """Refuse a spec that means another job than the one of the same name."""
    before = {k: v for k, v in job.identity.items() if k not in _MEANINGLESS}
    after = {k: v for k, v in prepared.identity.items() if k not in _MEANINGLESS}
    changed = differences(before, json.loads(json.dumps(after)))
    if changed:
        raise SpecChanged(job.name, changed)


async def mark_of(prepared: Prepared, sides: Sides) -> dict[str, Any]:
    """What a verification is about: the target's server as it runs now, and the files of the table that it compares."""
    files = (await _fingerprint(sides[Side.TARGET], prepared.written_table))["relfilenodes"]
    return {**sides[Side.TARGET].server.mark, "files": files}


# -- schema ---------------------------------------------------------------------------------------------------------


async def take_fingerprint(prepared: Prepared, sides: Sides) -> dict[str, Any]:
    """The schema of both tables as far as the job depends on it."""
    source = await _fingerprint(of_side(sides, Side.SOURCE), prepared.source_table)
    # The source may be rewritten (VACUUM FULL, CLUSTER) without harm; a target whose file changed was emptied or
    # rewritten, and lost rows of ours perhaps.
    source.pop("relfilenodes")
    prints = {"source": _relevant(source)}
    if prepared.target_table is not None:
        prints["target"] = _relevant(await _fingerprint(sides[Side.TARGET], prepared.target_table))
    return prints


async def _fingerprint(connection: Connection, table: Table) -> dict[str, dict[str, Any]]:
    try:
        return await fingerprint(connection, table)
    except LookupError:
        raise SchemaDrift(
            f"table {table.name} is gone", hint="what was moved is where it went; backfill cancel ends the job"
        ) from None


def _relevant(whole: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Without indexes that only make things faster: building one in mid-run is nobody's mistake."""
    unique = {name: text for name, text in whole["indexes"].items() if text.startswith("CREATE UNIQUE")}
    return whole | {"indexes": unique}


async def check_schema(ledger: Ledger, job: JobRecord, prepared: Prepared, sides: Sides) -> None:
    """Stop when a table changed under the job; accept it when a person has resumed the job after that."""
    now = json.loads(json.dumps(await take_fingerprint(prepared, sides)))
    changed: list[str] = []
    for side in ("source", "target"):
        before, after = job.fingerprint.get(side), now.get(side)
        if before is not None and after is not None:
            table = prepared.source_table if side == "source" else prepared.written_table
            changed += [f"{table.name}: {what}" for what in schema_differences(before, after, sections=after)]
    if not changed:
        return
    if job.refreeze:
        if await ledger.apply_fingerprint(job.id, now):
            await ledger.record(job.name, "schema accepted", {"changes": changed})
        return
    raise SchemaDrift(
        "the schema changed since the job was planned: " + "; ".join(changed),
        hint="see that the job is still right; then backfill resume goes on with the tables as they are, and"
        " backfill restart begins anew",
    )


def check_unchanged(before: dict[str, Any], now: dict[str, Any], prepared: Prepared) -> None:
    """Stop a verification under which a table changed: what it compares by was read at its beginning.  It does not mind
    what else has changed since the job was planned (rewritten files, new triggers): the gate does.
    """
    changed: list[str] = []
    for side, table in (("source", prepared.source_table), ("target", prepared.written_table)):
        if side in before:
            differing = schema_differences(before[side], now[side], sections=("table", "columns", "collations"))
            changed += [f"{table.name}: {what}" for what in differing]
    if changed:
        raise SchemaDrift(
            "the schema changed during the verification: " + "; ".join(changed),
            hint="backfill resume goes on with the tables as they are",
        )


# -- spans ----------------------------------------------------------------------------------------------------------


async def check_spans(ledger: Ledger, job: JobRecord, prepared: Prepared, sides: Sides) -> None:
    """The ledger's spans must tile the key space: one starts at the beginning, each starts where another ends, cursors
    lie inside, and all of it in the source's order.  Anything else is damage, and is refused.

    Job and spans are read one after the other, and another process may have changed the phase in between: what looks
    like damage is looked at again for as long as the job is another one than was read.
    """
    while True:
        try:
            await _check_spans(ledger, job, prepared, sides)
        except LedgerDamaged:
            again = await ledger.job(job.name)
            if (again.phase, again.move_end, again.ends, again.barrier_snapshot) == (
                job.phase,
                job.move_end,
                job.ends,
                job.barrier_snapshot,
            ):
                raise
            job = again
        else:
            return


async def _check_spans(ledger: Ledger, job: JobRecord, prepared: Prepared, sides: Sides) -> None:
    if list(job.key_types) != [c.type_name for c in prepared.key.columns]:
        raise _damaged("its key has other types than the table's")
    for phase in dict.fromkeys((Phase.MOVE, Phase.SWEEP, job.phase or Phase.MOVE)):
        if phase is job.phase and job.barrier_snapshot is not None and phase is not Phase.MOVE:
            continue  # its spans are planned when its barrier has passed
        spans = await ledger.spans(job.id, phase)
        end = job.end_of(phase)
        if (end is None) != (not spans):
            raise _damaged(f"its spans of the phase {phase} are gone" if end else f"spans of {phase} come from nowhere")
        if spans:
            through = phases.paged(prepared, job, phase)
            await _check_tiling(spans, of_side(sides, through.side), through.key)
            if _chained(spans)[-1].hi != end:
                raise _damaged(f"its last span of the phase {phase} is gone")


async def _check_tiling(spans: tuple[SpanRecord, ...], connection: Connection, key: Key) -> None:
    width = len(key.columns)
    chain = _chained(spans)
    pairs: list[tuple[KeyValue, KeyValue, bool]] = []
    for span in chain:
        if any(len(bound) != width for bound in (span.lo, span.hi, span.cursor) if bound is not None):
            raise _damaged(f"span {span.id} has a bound of another width than the key")
        if span.lo is not None:
            pairs.append((span.lo, span.hi, False))
            if span.cursor is None:
                raise _damaged(f"span {span.id} has lost its cursor")
            pairs.append((span.lo, span.cursor, True))
        if span.cursor is not None:
            pairs.append((span.cursor, span.hi, True))
    if not pairs:
        return
    wrong = await connection.fetch(
        disordered(key.columns),
        key_list([left for left, _, _ in pairs]),
        key_list([right for _, right, _ in pairs]),
        [may_be_equal for _, _, may_be_equal in pairs],
    )
    if wrong:
        raise _damaged("its spans are not in the order of the table's key, or a cursor lies outside its span")


def _chained(spans: tuple[SpanRecord, ...]) -> list[SpanRecord]:
    """The spans in key order, by following each one's upper bound to the next one's lower."""
    by_lo: dict[KeyValue | None, SpanRecord] = {}
    for span in spans:
        if span.lo in by_lo:
            raise _damaged(f"spans {by_lo[span.lo].id} and {span.id} begin at the same key")
        by_lo[span.lo] = span
    chain: list[SpanRecord] = []
    at: KeyValue | None = None
    while at in by_lo and len(chain) < len(spans):
        chain.append(by_lo[at])
        at = chain[-1].hi
    if len(chain) != len(spans):
        raise _damaged("its spans leave a gap or overlap")
    return chain


def _damaged(what: str) -> LedgerDamaged:
    return LedgerDamaged(
        f"the ledger of this job contradicts itself: {what}",
        hint="nothing was moved; restore schema backfill from a backup, or begin anew with backfill restart",
    )


async def key_space(ledger: Ledger, job: JobRecord, prepared: Prepared, phase: Phase) -> KeySpace:
    """The key space that the phase's spans describe.  The plan just made is better where it covers the same spans."""
    spans = await ledger.spans(job.id, phase)
    if not spans or (phase is Phase.MOVE and prepared.plan.spans):
        return prepared.plan.space
    bounds = [SpanBounds(s.lo, s.hi, s.rows_estimated) for s in _chained(spans)]
    first = prepared.plan.first if phase in (Phase.MOVE, Phase.VERIFY) else None
    return KeySpace.from_spans(phases.paged(prepared, job, phase).key, bounds, first=first)


async def rows_behind(
    job: JobRecord, ledger: Ledger, prepared: Prepared, connection: Connection
) -> tuple[SpanBounds, ...]:
    """What the frozen upper bound would miss when the start barrier falls.

    A transaction that was running at the freeze may have inserted keys above the bound without dual-write.  All such
    have ended now, so one more span reaches to the last key there is; what comes after that was written by transactions
    that dual-write covers.
    """

    def ask() -> Steps[KeyValue | None]:
        found = yield LastKey()
        return found  # type: ignore[return-value]  # the answer to LastKey is a key or None

    last = await answer(ask(), connection, prepared.source.table, prepared.key)
    if last is None:
        return ()
    spans = await ledger.spans(job.id, Phase.MOVE)
    if not spans:
        return (SpanBounds(None, last, 1.0),)
    end = _chained(spans)[-1].hi
    beyond = not await connection.fetch(disordered(prepared.key.columns), key_list([end]), key_list([last]), [False])
    return (SpanBounds(end, last, max(1.0, prepared.plan.space.rows_between(end, last))),) if beyond else ()
