"""Which mover a job's phase needs, made for one worker."""

from __future__ import annotations

from engine.clock import Clock
from engine.flow.movers import Mover
from engine.flow.movers.server_side import StatementMover
from engine.flow.movers.streamed import CopyMover
from engine.flow.movers.sweep import SweepMover
from engine.flow.prepare import Prepared
from engine.model import Mode, Phase
from engine.sql import read_expression
from engine.sql.statements import SourceShape, TargetShape, default_done, insert_chunk, update_chunk


def build_mover(prepared: Prepared, job_id: int, phase: Phase, purpose: str, clock: Clock) -> Mover:
    """A mover with sessions of its own, called ``purpose`` in the server's list of sessions."""
    endpoints = prepared.endpoints
    if phase is Phase.SWEEP:
        assert prepared.sweep_source is not None
        assert prepared.sweep_target is not None
        return SweepMover(
            None if endpoints.is_one else endpoints.source,
            endpoints.target,
            purpose,
            job_id,
            clock,
            source=prepared.sweep_source,
            target=prepared.sweep_target,
        )
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


def _update(prepared: Prepared) -> tuple[str, str]:
    """The chunk statement for a span's first chunk, and for the others."""
    spec = prepared.spec
    done = read_expression(spec.done).sql if spec.done else default_done(spec.set)
    sets = {name: read_expression(text).sql for name, text in spec.set.items()}
    return (
        update_chunk(prepared.source, sets, done, first=True),
        update_chunk(prepared.source, sets, done, first=False),
    )


def _insert(
    source: SourceShape, target: TargetShape, *, occupied: bool = True, collided: bool = False
) -> tuple[str, str]:
    return (
        insert_chunk(source, target, first=True, occupied=occupied, collided=collided),
        insert_chunk(source, target, first=False, occupied=occupied, collided=collided),
    )
