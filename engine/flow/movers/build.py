"""Which mover a job's phase needs, made for one worker."""

from __future__ import annotations

from engine.clock import Clock
from engine.flow.movers import Mover
from engine.flow.movers.confirm import ConfirmMover
from engine.flow.movers.filled import FillMover
from engine.flow.movers.server_side import StatementMover
from engine.flow.movers.streamed import CopyMover
from engine.flow.movers.sweep import SweepMover, TombstoneMover
from engine.flow.movers.transformed import TransformedCopyMover
from engine.flow.movers.verify import VerifyMover
from engine.flow.phases import TOMBSTONES
from engine.flow.prepare import Prepared
from engine.flow.shared import Stop
from engine.ledger.records import JobRecord
from engine.model import Mode, Phase
from engine.sql import read_expression
from engine.sql.statements import SourceShape, TargetShape, insert_chunk, update_chunk


def build_mover(prepared: Prepared, job: JobRecord, phase: Phase, purpose: str, clock: Clock, stop: Stop) -> Mover:
    """A mover with sessions of its own, called ``purpose`` in the server's list of them; ``stop`` ends its waits."""
    endpoints, job_id = prepared.endpoints, job.id
    if phase is Phase.SWEEP:
        return _sweep(prepared, job, purpose, clock)
    if phase in (Phase.VERIFY, Phase.EXTRA, Phase.CONFIRM, Phase.RECHECK):
        return _proof(prepared, job, phase, purpose, clock, stop)
    if prepared.transform is not None:
        through = FillMover if prepared.mode is Mode.UPDATE else TransformedCopyMover
        return through(prepared, job_id, purpose, clock, most_rejected=prepared.spec.errors.max_quarantined)
    if prepared.mode is Mode.UPDATE:
        first, following = _update(prepared)
        return StatementMover(
            endpoints.target, purpose, job_id, prepared.row_bytes, clock, first=first, following=following
        )
    assert prepared.target is not None
    if prepared.mode is Mode.INSERT:
        first, following = _insert(prepared.source, prepared.target)
        return StatementMover(
            endpoints.target,
            purpose,
            job_id,
            prepared.row_bytes,
            clock,
            first=first,
            following=following,
            direct=_insert(prepared.source, prepared.target, occupied=False),
            collided=_insert(prepared.source, prepared.target, collided=True),
            arbiters=prepared.arbiters,
        )
    return CopyMover(
        endpoints.source,
        endpoints.target,
        purpose,
        job_id,
        clock,
        source=prepared.source,
        target=prepared.target,
        arbiters=prepared.arbiters,
        binary=prepared.binary,
    )


def _proof(prepared: Prepared, job: JobRecord, phase: Phase, purpose: str, clock: Clock, stop: Stop) -> Mover:
    if phase in (Phase.VERIFY, Phase.EXTRA):
        return VerifyMover(prepared, job, phase, purpose, clock)
    return ConfirmMover(prepared, job, phase, purpose, clock, stop)


def _sweep(prepared: Prepared, job: JobRecord, purpose: str, clock: Clock) -> Mover:
    source, target, moved = prepared.sweep_source, prepared.sweep_target, prepared.target
    assert source is not None
    assert target is not None
    assert moved is not None
    there = None if prepared.endpoints.is_one else prepared.endpoints.source
    here = prepared.endpoints.target
    if job.sweep_by != TOMBSTONES:
        return SweepMover(there, here, purpose, job.id, clock, source=source, target=target)
    return TombstoneMover(
        there,
        here,
        purpose,
        job.id,
        clock,
        source=source,
        target=target,
        job=job.name,
        permutation=[moved.key.index(column) for column in target.key],
    )


def _update(prepared: Prepared) -> tuple[str, str]:
    """The chunk statement for a span's first chunk, and for the others."""
    spec = prepared.spec
    sets = {name: read_expression(text).sql for name, text in spec.set.items()}
    return (
        update_chunk(prepared.source, sets, prepared.done, first=True),
        update_chunk(prepared.source, sets, prepared.done, first=False),
    )


def _insert(
    source: SourceShape, target: TargetShape, *, occupied: bool = True, collided: bool = False
) -> tuple[str, str]:
    return (
        insert_chunk(source, target, first=True, occupied=occupied, collided=collided),
        insert_chunk(source, target, first=False, occupied=occupied, collided=collided),
    )
