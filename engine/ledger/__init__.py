"""The ledger: what each job is, how far it has come, and who may move the next chunk.

Owns schema ``backfill`` of the target database: its migrations, every statement on it (``queries.sql``), and their
results as values (``records``).  Refuses to know the user's tables: it stores keys as texts and never compares them.
``README.md`` beside this file explains states, leases and failures in prose.

Invariants

* A cursor moves only through ``backfill.advance``, inside the transaction that wrote the rows, behind the whole fence
  (epoch, cursor and upper bound).
* Epochs only grow; times are the database's own; history is append-only.
* Nothing stored here is a secret, and nothing read here is believed without a check (``engine.flow.opening``).
"""

from __future__ import annotations

from engine.ledger.orders import PaceOrders, PacerLook, SignalOrder
from engine.ledger.records import JobRecord, JobStatus
from engine.ledger.store import Ledger, LedgerMissing

__all__ = ["JobRecord", "JobStatus", "Ledger", "LedgerMissing", "PaceOrders", "PacerLook", "SignalOrder"]
