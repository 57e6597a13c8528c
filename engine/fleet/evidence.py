"""Evidence about a job: its gate, and its dual-write triggers, over sessions of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from engine.flow import dual_write
from engine.flow import gate as gates
from engine.flow.dual_write import DualWrite
from engine.flow.dual_write_change import prepared_for_change, wanted
from engine.flow.endpoints import endpoints_of
from engine.flow.gate import Gate
from engine.flow.prepare import Prepared, inspect
from engine.flow.shared import Sides
from engine.flow.transforming import as_begun
from engine.ledger.store import Ledger
from engine.model import Side
from engine.spec import JobSpec


async def look_at_gate(spec: JobSpec) -> Gate:
    """The gate of the job of ``spec``, over sessions of its own."""
    databases = endpoints_of(spec)
    seen = await inspect(await as_begun(spec, databases[1]), databases, runs=False)
    endpoints = seen.endpoints
    async with AsyncExitStack() as stack:
        here = await endpoints.target.connect("gate")
        stack.push_async_callback(here.close)
        sides: Sides = {Side.TARGET: here}
        if not endpoints.is_one:
            there = await endpoints.source.connect("gate")
            stack.push_async_callback(there.close)
            sides[Side.SOURCE] = there
        ledger = Ledger(here)
        await ledger.require()
        return await gates.gate(seen, ledger, sides)


async def look_at_dual_write(spec: JobSpec) -> tuple[Prepared, DualWrite]:
    """The triggers of the job of ``spec`` as they are now.  Raises ``UsageError`` where triggers cannot do it."""
    databases = endpoints_of(spec)
    prepared = prepared_for_change(await inspect(await as_begun(spec, databases[1]), databases, runs=False))
    wanted(prepared)
    connection = await prepared.endpoints.source.connect("dualwrite")
    try:
        return prepared, await dual_write.look(connection, prepared)
    finally:
        await connection.close()


class Looked(Protocol):
    """What was found of our triggers, here or by a daemon."""

    @property
    def installed(self) -> bool:
        """Whether any is there."""
        ...

    @property
    def problems(self) -> Sequence[str]:
        """In what they are not as the job needs them."""
        ...


def differences(found: Looked) -> str:
    """What is wrong with the triggers, for people."""
    return "; ".join(found.problems) if found.installed else "no trigger of this job is installed"


def dual_write_json(prepared: Prepared, found: DualWrite) -> dict[str, Any]:
    """The object of ``dualwrite --check --json``."""
    return {
        "job": prepared.spec.name,
        "table": str(prepared.source_table.name),
        "installed": found.installed,
        "intact": found.intact,
        "problems": list(found.problems),
        "evidence": found.evidence,
    }
