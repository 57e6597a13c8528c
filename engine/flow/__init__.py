"""The flow: the only room where data is awaited.

Owns the life of a run: preparing a job from its spec and the catalogue (``prepare``), opening it in the ledger
(``opening``), the start barrier (``barrier``), this process's part in it (``supervisor``), its workers (``worker``,
``steal``), where chunks end (``bounds``), and how one chunk moves (``movers``).

Refuses to know people: no printing, no flags, no exit codes.  What happens is emitted as ``engine.events``.

Invariants

* A chunk's bound is fixed before anything of it is read; a span ends at its frozen upper bound and in no other way.
* Rows, cursor and fence commit in one transaction.
* After a lost connection the span is claimed again, with the next epoch, before its cursor is read.
* A worker begins no chunk under a lease it may have lost, and stops itself before the database would let others in.
* Whatever can go wrong is classified in one place (``engine.db.failures``); what no server said is a mistake of ours
  and ends the process, not the job.

Names are loaded when they are first used: the commands that only look at a ledger need none of the machinery.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.flow.endpoints import endpoints_of
    from engine.flow.prepare import Inspection, Prepared, inspect
    from engine.flow.result import RunResult
    from engine.flow.shared import Leases
    from engine.flow.supervisor import Supervisor

__all__ = ["Inspection", "Leases", "Prepared", "RunResult", "Supervisor", "endpoints_of", "inspect"]

_HOMES = {
    "Inspection": "engine.flow.prepare",
    "Leases": "engine.flow.shared",
    "Prepared": "engine.flow.prepare",
    "RunResult": "engine.flow.result",
    "Supervisor": "engine.flow.supervisor",
    "endpoints_of": "engine.flow.endpoints",
    "inspect": "engine.flow.prepare",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
