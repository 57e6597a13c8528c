"""A job as a daemon tells of it."""

from __future__ import annotations

from typing import Any

JOB: dict[str, Any] = {
    "job": "cents", "connection": "main", "revision": "7", "state": "running", "mode": "update", "phase": "move",
    "source": "a", "target": "a", "rows_done": 1, "rows_estimated": 10, "progress": 0.1, "rows_per_s": 1.0,
    "eta_s": None, "workers": 1, "spans": {"total": 1, "done": 0, "running": 1},
    "pace": {"limit_rows_per_s": None, "pressure": None, "held_by": None, "reason": None},
    "signals": [], "waits": {}, "retries": 0, "quarantined": 0, "verified": None, "verification": None,
    "started_at": None, "finished_at": None, "error": None,
}  # fmt: skip
