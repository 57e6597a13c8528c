"""Beside the workers of a phase: their leases are renewed, whoever cannot trust his any longer is stopped, and when
all of them are stuck it is known by what.

Neither loop waits for a chunk, so a lease never depends on how long a chunk or a hold takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from engine.events import LeasesRenewed
from engine.flow.control import Control
from engine.flow.shared import Shared
from engine.flow.worker import Worker


async def renew_leases(shared: Shared, workers: Sequence[Worker], control: Control) -> None:
    """Renew all leases of this process, until cancelled."""
    leases, clock = shared.leases, shared.clock
    while True:
        await clock.sleep(leases.renew_every_s)
        sent_at = clock.now()
        try:
            async with asyncio.timeout(leases.renew_every_s):
                held = [(w.span.id, w.id, w.span.epoch) for w in workers if w.span is not None]
                renewed = await control.ledger.renew(shared.job_id, held, leases.lease_s)
            for worker in workers:
                worker.confirm(renewed, sent_at)
            if renewed:
                shared.emit(LeasesRenewed(job=shared.job, spans=len(renewed)))
        except Exception as error:
            await control.mend(error)


async def watch_leases(shared: Shared, workers: Sequence[Worker]) -> None:
    """Make workers stop whose lease cannot be trusted any longer, until cancelled.  Waits for nothing but the clock."""
    while True:
        await shared.clock.sleep(shared.leases.renew_every_s / 2)
        for worker in workers:
            worker.abandon_if_expired()


def standstill(workers: Sequence[Worker]) -> str:
    """What keeps every worker that is needed from getting on, other than the pace; empty while one of them does."""
    troubles = [worker.trouble for worker in workers if not worker.is_parked]
    return troubles[0] if troubles and all(troubles) else ""
