"""Stealing: a worker with nothing left to claim halves the largest span that somebody else works on.

The cut is always an existing key of the table, found by a probe near the estimated middle, and is seen to lie inside
the span *by the server that orders the keys*.  The ledger is then changed in one statement, if the victim's cursor and
bound are still the ones that were looked at; no lock is ever held while another server is asked.  The holder's running
chunk finds another upper bound in the fence than the one it was cut from and rolls back; it reads the span again and
goes on with its half.
"""

from __future__ import annotations

from typing import Final

from engine.crashpoint import crashpoint
from engine.flow.bounds import Prober
from engine.flow.shared import Shared
from engine.ledger.store import Ledger
from engine.model import Backend, KeyValue, Span

WORTH_CHUNKS: Final = 2
"""A theft costs the holder what he has done of the chunk in hand, and halves what is left: with more than this many
chunks left it is a gain whatever he has done.
"""

ATTEMPTS: Final = 3
"""A victim with quick chunks moves on between our look and our cut."""


async def steal(
    shared: Shared,
    prober: Prober,
    ledger: Ledger,
    worker: str,
    backends: tuple[Backend, ...],
    *,
    worth_rows: int,
) -> Span | None:
    """Take the upper half of the largest running span; None when none is worth it or the victim was faster.

    ``worth_rows``: the chunk that a holder in another process is taken to have in hand.
    """
    for _ in range(ATTEMPTS):
        victim = await _worthiest(shared, ledger, worth_rows)
        if victim is None:
            return None
        cut = await _find_cut(shared, prober, victim)
        if cut is None:
            return None
        crashpoint("steal.before")
        stolen = await ledger.steal(
            shared.job_id,
            victim,
            cut,
            rows_kept=shared.space.rows_between(victim.lo, cut),
            rows_taken=shared.space.rows_between(cut, victim.hi),
            worker=worker,
            backends=backends,
            lease_s=shared.leases.lease_s,
        )
        if stolen is not None:
            crashpoint("steal.after")
            return stolen
    return None


async def _worthiest(shared: Shared, ledger: Ledger, worth_rows: int) -> Span | None:
    """The running span with the most rows left, if a theft from it gains anything.

    Two estimates, because each can be blind: positions of keys (a text under a collation may look like no distance at
    all), and the rows that the span was planned with less those it has moved.
    """
    best: tuple[float, Span] | None = None
    for span, planned_left in await ledger.running_spans(shared.job_id, shared.phase):
        left = max(planned_left, shared.space.rows_between(span.cursor, span.hi))
        in_hand = shared.in_flight.get(span.id, worth_rows)
        if left > WORTH_CHUNKS * in_hand and (best is None or left > best[0]):
            best = (left, span)
    return None if best is None else best[1]


async def _find_cut(shared: Shared, prober: Prober, victim: Span) -> KeyValue | None:
    """An existing key near the middle of what is left of the span; None when there is none inside it."""
    guess = shared.space.split(victim.cursor, victim.hi)
    found = await prober.first_from(guess, victim.hi)
    if found is not None and await prober.is_between(victim.cursor, found, victim.hi):
        return found
    # The estimate fell outside the span (a text key under a collation, stale statistics): walk from where it stands.
    rows = int(shared.space.rows_between(victim.cursor, victim.hi) / 2)
    found = await prober.walk(victim.cursor, victim.hi, max(2, min(rows, shared.limits.max_rows)))
    if found is not None and await prober.is_between(victim.cursor, found, victim.hi):
        return found
    return None
