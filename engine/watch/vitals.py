"""How a server beside a job is doing, for people: numbers that steer nothing and hold nothing back."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One look at one server, and at the job's table there.  None: that server, or our role, does not tell.

    Counts of the whole server or database only grow, unless somebody resets the statistics.
    """

    wal_bytes: float | None = None  # the position in the WAL: bytes written since the server was made
    read_bytes: float | None = None
    written_bytes: float | None = None
    checkpoints: dict[str, float] = field(default_factory=dict)  # timed, requested
    transactions: dict[str, float] = field(default_factory=dict)  # committed, rolled_back
    sessions: dict[str, float] = field(default_factory=dict)  # others': active, idle, idle_in_transaction
    oldest_transaction_s: float | None = None
    lock_waiters: float | None = None
    longest_lock_wait_s: float | None = None
    standbys: float | None = None
    replication_lag_s: float | None = None
    replication_lag_bytes: float | None = None
    table_bytes: float | None = None
    index_bytes: float | None = None
    dead_rows: float | None = None
    live_rows: float | None = None
    vacuums_running: float | None = None
