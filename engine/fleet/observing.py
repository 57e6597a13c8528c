"""Beside whoever works the jobs of a ledger: what reads for metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

from engine.db import Database
from engine.events import Emit
from engine.fleet.reporter import LEASE_S, TRUST, Reporter
from engine.fleet.vitals import VitalsWatch
from engine.flow.supervisor import Supervisor
from engine.telemetry.metrics import Metrics


def observe(
    metrics: Metrics, ledger: Database, supervisors: Callable[[], Iterable[Supervisor]], emit: Emit, *, name: str = ""
) -> list[asyncio.Task[None]]:
    """Tasks that report on the ledger's jobs, if it is this process's turn, and look at the servers of those that it
    paces, until they are cancelled.  ``name`` tells apart the ledgers of a process that observes several.
    """
    # The reporter itself hides what it can no longer answer for, but not while the event loop stands still.
    show = partial(metrics.report, valid_s=TRUST * LEASE_S, ledger=name)
    return [
        asyncio.create_task(Reporter(ledger, show, emit=emit).run(), name=f"reporter {name}".strip()),
        asyncio.create_task(
            VitalsWatch(supervisors, metrics.vitals, metrics.forget_vitals).run(), name=f"vitals {name}".strip()
        ),
    ]
