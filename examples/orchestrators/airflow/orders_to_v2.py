"""Expand, dual-write, backfill, contract: the DAG of one migration."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import dag, task
from backfill_airflow import BackfillOperator

SPEC = {
    "name": "orders-to-v2",
    "source": {"connection": "main", "table": "public.orders"},
    "target": {"connection": "main", "table": "public.orders_v2"},
    "columns": {
        "id": "id",
        "customer_id": "customer_id",
        "status": "status",
        "created_at": "created_at",
        "amount_cents": "(amount * 100)::bigint",
    },
    "verify": "after",
}


@dag(schedule=None, catchup=False, tags=["backfill"])
def orders_to_v2() -> None:
    """Run by hand; run again after whatever went wrong, it goes on with the same job."""
    backfill = BackfillOperator(
        task_id="backfill",
        daemon=os.environ.get("BACKFILL_DAEMON", "unix:///run/backfill/backfill.sock"),
        spec=SPEC,
        retries=20,
        retry_delay=timedelta(seconds=30),
    )

    @task
    def contract() -> str:
        """Yours: what the gate allows."""
        return "the old table may go"

    backfill >> contract()


orders_to_v2()
