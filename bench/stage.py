"""The server of a benchmark and the tables on it: put back to the same state, byte for byte, before every timed run."""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import Any, Self

from bench.report import say
from engine.embedded import EmbeddedServer

SETTINGS: dict[str, str | int] = {
    "shared_buffers": "2GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",  # checkpoints happen between the timed runs, where we ask for them
    "checkpoint_completion_target": "0.9",
    "max_connections": 50,
    "synchronous_commit": "on",
    "wal_level": "replica",  # what production runs: no short cut past the WAL for new tables
    "max_parallel_workers_per_gather": 0,  # two processors: a second one is for a second worker, not for half a query
    # Whatever a vacuum happens to run beside would be slower by a third, and nobody could tell why.
    "autovacuum": "off",
}
SMALL = {"shared_buffers": "256MB", "max_wal_size": "1GB"}

ORDERS_COLUMNS = ("id", "customer_id", "status", "amount", "note", "created_at", "flag")

_ORDERS = """
CREATE TABLE {table} (
    id bigint PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL, amount numeric(12,2) NOT NULL,
    note text, created_at timestamptz NOT NULL, flag boolean NOT NULL
);
"""
_FILL = """
SELECT setseed(0.5);
INSERT INTO {table}
SELECT g, (random() * 1e6)::int, (ARRAY['new', 'paid', 'shipped', 'done'])[1 + g % 4],
       (random() * 10000)::numeric(12,2),
       CASE WHEN g % 5 = 0 THEN NULL ELSE 'note ' || md5(g::text) END,
       timestamptz '2020-01-01' + g * interval '1 second', g % 2 = 0
  FROM generate_series(1, {rows}) AS g;
VACUUM (FREEZE, ANALYZE) {table};
"""


class Stage:
    """A durable server of the benchmark's own, and its databases.  A context manager; leaves nothing behind."""

    def __init__(self, major: int, *, smoke: bool) -> None:
        self.settings = {**SETTINGS, **(SMALL if smoke else {})}
        self.server = EmbeddedServer(major, settings=self.settings, durable=not smoke)
        if "lz4" in _configured_with(self.server.bin("pg_config")):
            self.server.configure({"wal_compression": "lz4"})
            self.settings["wal_compression"] = "lz4"
        else:
            self.settings["wal_compression"] = "off"  # pglz costs more processor time than it saves

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.server.discard()

    @property
    def versions(self) -> dict[str, Any]:
        """What runs on this server's side."""
        return {"postgresql": self.server.sql("SHOW server_version")}

    def dsn(self, database: str) -> str:
        """Through the socket: no contender gains by the way it connects."""
        return self.server.socket_dsn(database)

    def sql(self, database: str, text: str) -> str:
        """Run SQL through psql; rows as lines."""
        return self.server.sql(text, database)

    # -- databases --------------------------------------------------------------------------------------------------

    def create(self, database: str, template: str = "template0") -> None:
        """A new database, made by copying the files of another one (which nobody may be connected to)."""
        self.drop(database)
        strategy = "STRATEGY file_copy" if self.server.major >= 15 else ""
        self.server.sql(f'CREATE DATABASE "{database}" TEMPLATE "{template}" {strategy}')

    def drop(self, database: str) -> None:
        """Remove a database, and whoever is still connected to it."""
        self.server.sql(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def settle(self, database: str = "postgres", *warm: str) -> None:
        """The same start for every timed run: the tables named in memory, and everything else on disk."""
        for table in warm:
            self.sql(
                database,
                f"SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off;"
                f"SELECT count(*) FROM {table};"
                f"RESET ALL; SET enable_seqscan = off; SELECT count(id) FROM {table};",
            )
        self.server.sql("CHECKPOINT")

    # -- tables -----------------------------------------------------------------------------------------------------

    def make_orders(self, database: str, rows: int, table: str = "orders") -> None:
        """The table of all benchmarks: seven columns of six types, one of them often null, dense keys."""
        say(f"making {table} with {rows:,} rows")
        self.sql(database, _ORDERS.format(table=table) + _FILL.format(table=table, rows=rows))

    def make_empty_orders(self, database: str, table: str = "orders") -> None:
        """The same table without rows."""
        self.sql(database, _ORDERS.format(table=table))

    def digest(self, database: str, table: str, columns: str = "*") -> str:
        """Count, xor and sum of a 64-bit hash of every row: equal tables, equal text.  ``columns`` may hold
        expressions, for what a table should look like afterwards.
        """
        return self.sql(
            database,
            "SELECT count(*), bit_xor(h), sum(h) FROM "
            f"(SELECT hash_record_extended(r, 0) AS h FROM (SELECT {columns} FROM {table}) AS r) AS hashed",
        )


class NotEqual(AssertionError):
    """A timed run left other rows than it should have: its time means nothing."""


def check_equal(what: str, expected: str, found: str) -> None:
    """Compare two digests; raises ``NotEqual``."""
    if expected != found:
        raise NotEqual(f"{what}: expected (count|xor|sum) {expected}, found {found}")


def _configured_with(pg_config: str) -> str:
    try:
        return subprocess.run([pg_config, "--configure"], capture_output=True, text=True, check=True).stdout
    except OSError:
        return ""
