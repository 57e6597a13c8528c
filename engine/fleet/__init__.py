"""Who starts workers: this process for one job (``local``) or its verification (``verification``), or for the
jobs of a ledger one after another (``pool``).  And who, beside them, reads for metrics: one process per ledger its jobs
(``reporter``), the process that paces a job its servers (``vitals``).

Owns signals, and which connection strings a worker host lends to a job of the ledger.  Refuses to know how rows move
(``engine.flow``) and how anything is shown (``engine.cli``).

Invariants:

* The first signal drains, the second aborts, and either way everything that was opened is closed.
* A ledger is untrusted input: of its connection strings only references to variables that this host's operator has
  named are resolved.
"""

from __future__ import annotations

from engine.fleet.local import LocalRun
from engine.fleet.pool import Lent, Pool
from engine.fleet.signals import Interrupted
from engine.fleet.verification import LocalVerification

__all__ = ["Interrupted", "Lent", "LocalRun", "LocalVerification", "Pool"]
