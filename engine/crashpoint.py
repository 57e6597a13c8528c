"""Named places where a test may stop the process dead.

``crashpoint("name")`` costs one global read in production.  The fault tests start a worker with
``BACKFILL_CRASH_AT=name`` (or ``name#3``: the third time) and the process then kills itself there with SIGKILL, or,
with ``BACKFILL_CRASH_BY=stop``, stops itself with SIGSTOP until somebody sends SIGCONT.  ``POINTS`` lists every
declared name; the suite proves that each of them was reached.
"""

from __future__ import annotations

import os
import signal
from typing import Final

POINTS: Final = (
    "claim.before",
    "claim.after",
    "boundary.before",
    "boundary.after",
    "read.before",  # copy: before COPY OUT is asked for
    "read.first",  # copy: after its first piece
    "transform.before",  # a batch of rows is about to be given to the transform
    "transform.after",  # what came of it is here, and not yet on its way to the target
    "write.before",  # before the statement that changes rows
    "write.middle",  # copy: between two pieces of COPY IN
    "write.after",  # copy, sweep: rows are in (copy: in the staging table, where there is one), the ledger is not
    "commit.before",  # copy, sweep: next comes the fence together with COMMIT
    "commit.after",  # the server has acknowledged
    "quarantine.before",  # a row fails alone; next it is set aside
    "quarantine.after",
    "release.before",
    "release.after",
    "steal.before",
    "steal.after",
    "phase.before",
    "phase.after",
    "finish.before",
    "finish.after",
)

_armed: str | None = os.environ.get("BACKFILL_CRASH_AT") or None
_countdown = 1
if _armed and "#" in _armed:
    _armed, _, _count = _armed.partition("#")
    _countdown = int(_count)


def crashpoint(name: str) -> None:
    """Do nothing, unless a test has armed this very point."""
    if _armed is not None:
        _reached(name)


def _reached(name: str) -> None:
    global _countdown
    assert name in POINTS, f"crashpoint {name!r} is not declared"
    if name != _armed:
        return
    _countdown -= 1
    if _countdown == 0:
        how = signal.SIGSTOP if os.environ.get("BACKFILL_CRASH_BY") == "stop" else signal.SIGKILL
        os.kill(os.getpid(), how)
