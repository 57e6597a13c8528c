"""Stealing: a worker with nothing left to claim halves the largest span that somebody else works on.

The cut is always an existing key of the table, found by a probe near the estimated middle, and is checked to lie inside
the span *by the server that orders the keys*, while the span's row in the ledger is locked.  The holder's running chunk
then finds another upper bound in the fence than the one it was cut from and rolls back; it reads the span again and
goes on with its half.
"""

from __future__ import annotations

from typing import Final

from engine.crashpoint import crashpoint
from engine.flow.shared import Shared
from engine.ledger.store import Ledger
from engine.model import Backend, KeyValue, Span

WORTH_CHUNKS: Final = 2
"""A theft costs the holder what he has done of the chunk in hand, and halves what is left: with more than this many
chunks left it is a gain whatever he has done.
"""


async def steal(
    shared: Shared, ledger: Ledger, worker: str, backends: tuple[Backend, ...], *, worth_rows: int
) -> Span | None:
    """Take the upper half of the largest running span; None when none is worth it or the victim was faster.

    ``worth_rows``: the chunk that a holder in another process is taken to have in hand.
    """
    candidates = await ledger.running_spans(shared.job_id, shared.phase)
    sized = [(shared.space.rows_between(span.cursor, span.hi), span) for span in candidates]
    worthy = [pair for pair in sized if pair[0] > WORTH_CHUNKS * shared.in_flight.get(pair[1].id, worth_rows)]
    if not worthy:
        return None
    _, victim = max(worthy, key=lambda pair: pair[0])
    cut = await _find_cut(shared, victim)
    if cut is None:
        return None
    crashpoint("steal.before")
    async with ledger.splitting(shared.job_id, victim.id) as split:
        if split is None or not await shared.prober.is_between(split.cursor, cut, split.hi):
            return None
        stolen = await split.at(
            cut,
            phase=shared.phase,
            rows_kept=shared.space.rows_between(victim.lo, cut),
            rows_taken=shared.space.rows_between(cut, split.hi),
            worker=worker,
            backends=backends,
            lease_s=shared.leases.lease_s,
        )
    crashpoint("steal.after")
    return stolen


async def _find_cut(shared: Shared, victim: Span) -> KeyValue | None:
    """An existing key near the middle of what is left of the span; None when there is none inside it."""
    guess = shared.space.split(victim.cursor, victim.hi)
    found = await shared.prober.first_from(guess, victim.hi)
    if found is not None and await shared.prober.is_between(victim.cursor, found, victim.hi):
        return found
    # The estimate fell outside the span (a text key under a collation, stale statistics): walk from where it stands.
    rows = int(shared.space.rows_between(victim.cursor, victim.hi) / 2)
    found = await shared.prober.walk(victim.cursor, victim.hi, max(2, min(rows, shared.limits.max_rows)))
    if found is not None and await shared.prober.is_between(victim.cursor, found, victim.hi):
        return found
    return None
