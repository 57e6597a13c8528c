"""Waiting for transactions that are older than a moment: the start barrier and the sweep's horizon.

A transaction that began before dual-write was in place may still commit a row behind the cursor; one whose snapshot is
older than our last commit may delete a row at the source without seeing our copy of it.  Both are harmless once they
have ended, so we note who is running and wait for exactly those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from engine.db import Connection
from engine.db.activity import running_transactions
from engine.model import Side

Waited = Mapping[str, tuple[str, ...]]


async def freeze(connections: Mapping[Side, Connection], *, only_writers: bool = False) -> str | None:
    """Everybody in a transaction now, on each of the given databases, as text for the ledger; None when nobody is.

    ``only_writers``: those that have written something already.
    """
    running = {
        side.value: sorted(await running_transactions(c, only_writers=only_writers)) for side, c in connections.items()
    }
    return json.dumps(running) if any(running.values()) else None


async def still_running(frozen: str | None, connections: Mapping[Side, Connection]) -> list[str]:
    """Those of the frozen that have not ended yet, as texts for people."""
    if frozen is None:
        return []
    waited: Waited = json.loads(frozen)
    names: list[str] = []
    for side, connection in connections.items():
        before = set(waited.get(side.value, ()))
        if before:
            now = await running_transactions(connection)
            names += [now[i] for i in sorted(before & now.keys())]
    return names
