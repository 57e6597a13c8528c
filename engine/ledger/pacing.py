"""The part of the ledger that is about pace: who decides it, what was decided, and what operators ordered."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from engine.errors import UnknownJob, UsageError
from engine.ledger.orders import ROWS, PaceOrders, PacerLook, merged, read_json
from engine.ledger.queries import queries
from engine.ledger.statements import Statements

_SINCE: Final = 2
"""The version of the ledger whose workers follow orders other than a limit."""


class Pacing(Statements):
    """The lease of a job's pacer, its published decisions, and orders on them."""

    async def pacer(self, job_id: int, process: str, host: str, os_pid: int, lease_s: float) -> PacerLook:
        """Take the pacer's lease if it is free, ran out, or reaches further ahead than two leases (somebody's clock
        jumped); renew it if it is ours; and look at what was published last.  One statement, by the database's clock.
        """
        row = await self._row("pacer", job_id, process, host, os_pid, lease_s)
        if row is None:  # another process took it between the statement's snapshot and its write, or the job is gone
            return PacerLook(is_mine=False, decision=None, valid_for_s=None, age_s=None)
        decision = None if row["decision"] is None else read_json(row["decision"])
        return PacerLook(
            is_mine=row["is_mine"],
            decision=decision if isinstance(decision, dict) else None,
            valid_for_s=row["valid_for_s"],
            age_s=row["age_s"],
        )

    async def publish_pace(self, job_id: int, process: str, decision: Mapping[str, Any], valid_s: float) -> bool:
        """Publish what was decided, for ``valid_s`` seconds from now.  False when the lease is not ours any more:
        nothing is published then.  Numbers that are not finite become null, because JSON has none.
        """
        return bool(await self._value("publish_pace", job_id, process, json.dumps(_finite(decision)), valid_s))

    async def leave_pacer(self, job_id: int, process: str) -> None:
        """Give the lease up at once.  What was published stays valid until its end, for the successor to take over."""
        await self._row("leave_pacer", job_id, process)

    async def order_pace(
        self, name: str, change: PaceOrders, reset: Sequence[str] = (), *, reason: str | None = None
    ) -> PaceOrders:
        """First forget the orders that ``reset`` names (of ``ALL_ORDERS``, or ``signals.NAME`` for one signal), then
        order what ``change`` names, and leave the rest as it is.  Returns what is ordered now.

        Validates nothing.  Two operators at once do not undo each other: the second one merges with the first one's.
        ``reason`` goes into the history.  Raises ``UnknownJob``, and ``UsageError`` in a ledger of an older release,
        whose workers would not follow such orders.
        """
        installed = await self._value("applied_version")
        if installed < _SINCE:
            raise UsageError(
                f"the ledger has version {installed}, and takes such orders from {_SINCE} on",
                hint="the next backfill run of this release upgrades it; "
                "until then: SELECT backfill.pace('job', rows_per_s)",
            )
        async with self._transaction():
            row = await self.connection.fetchrow(queries()["lock_orders"], name)
            if row is None:
                raise UnknownJob(f"no job named {name!r}", hint="backfill list shows the jobs of this ledger")
            wanted = merged(_stored(row["pace"], row["limit_rows_per_s"]), change, reset)
            limit = wanted.pop(ROWS, None)
            await self.connection.fetchrow(queries()["order_reason"], reason or "")
            await self.connection.fetchrow(queries()["order_pace"], row["id"], json.dumps(_finite(wanted)), limit)
        return PaceOrders.from_json({**wanted, ROWS: limit})


def orders_of(pace: str, limit_rows_per_s: float | None) -> PaceOrders:
    """The orders of a job from the two columns that hold them."""
    return PaceOrders.from_json(_stored(pace, limit_rows_per_s))


def _stored(pace: str, limit_rows_per_s: float | None) -> dict[str, Any]:
    stored = read_json(pace)
    return {**(stored if isinstance(stored, dict) else {}), ROWS: limit_rows_per_s}


def _finite(item: Any) -> Any:
    if isinstance(item, float):
        return item if math.isfinite(item) else None
    if isinstance(item, Mapping):
        return {key: _finite(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_finite(value) for value in item]
    return item
