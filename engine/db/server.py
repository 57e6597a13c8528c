"""Which server this is, and what it can do.

The only place that knows products and versions.  A planner or mover asks a capability; it never asks for a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MINIMUM_VERSION: Final = 140000

# Everything is qualified: at this moment the session still has the search_path of its role.  The one setting that not
# every platform accepts is made here: in the start-up packet an unsupported one costs the session.
PROBE: Final = """
SELECT pg_catalog.version() AS version,
       pg_catalog.current_setting('server_version_num')::pg_catalog.int4 AS version_num,
       CASE WHEN pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
            THEN (SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system())
            ELSE '' END AS system_identifier,
       pg_catalog.current_database()::pg_catalog.text AS database,
       (SELECT oid::pg_catalog.int8 FROM pg_catalog.pg_database
         WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) AS database_oid,
       pg_catalog.pg_is_in_recovery() AS in_recovery,
       CASE WHEN NOT pg_catalog.pg_is_in_recovery()
            THEN pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)
            END AS timeline,
       pg_catalog.pg_postmaster_start_time()::pg_catalog.text AS started,
       current_user::pg_catalog.text AS user,
       pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'on' AS is_superuser,
       pg_catalog.pg_backend_pid() AS backend_pid,
       (SELECT backend_start::pg_catalog.text FROM pg_catalog.pg_stat_activity
         WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()) AS backend_started,
       CASE WHEN pg_catalog.version() OPERATOR(pg_catalog.~) 'linux'
            THEN pg_catalog.set_config('client_connection_check_interval', $1, false) END AS connection_check,
       pg_catalog.current_setting('search_path') AS search_path
"""
PIN_SEARCH_PATH: Final = "SET search_path = pg_catalog"

_OTHER_PRODUCTS: Final = {
    "CockroachDB": re.compile(r"cockroach", re.IGNORECASE),
    "YugabyteDB": re.compile(r"-YB-|yugabyte", re.IGNORECASE),
    "Redshift": re.compile(r"redshift", re.IGNORECASE),
    "Greenplum": re.compile(r"greenplum", re.IGNORECASE),
    "Materialize": re.compile(r"materialize", re.IGNORECASE),
    "Spanner": re.compile(r"spanner", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server can do, as far as the engine cares.  One line of the table of ``backfill doctor`` each."""

    product: str
    binary_copy: bool  # COPY … (FORMAT binary) in both directions
    tid_ranges: bool  # WHERE ctid >= … AND ctid < … reads only those blocks
    skip_locked: bool
    row_lock_modes: tuple[str, ...]  # weakest first
    advisory_locks: bool
    data_modifying_cte: bool
    on_conflict: bool
    listen_notify: bool
    statistics: bool  # pg_stats with histograms and most common values
    terminate_with_timeout: bool  # pg_terminate_backend(pid, milliseconds)
    own_wal_exact: bool  # pg_stat_get_backend_wal
    virtual_columns: bool  # generated columns that are not stored
    maintain_privilege: bool  # VACUUM and ANALYZE can be granted
    io_statistics: bool  # pg_stat_io
    io_statistics_in_bytes: bool  # … with bytes, not operations of a fixed size
    checkpointer_statistics: bool  # pg_stat_checkpointer; before, they are in pg_stat_bgwriter
    max_transaction_rows: int | None  # None: no limit
    retryable_sqlstates: frozenset[str]


@dataclass(frozen=True, slots=True)
class Server:
    """The server behind one connection."""

    version_num: int  # 160004
    version: str  # "16.4"
    system_identifier: str  # empty where we may not read it
    database: str
    database_oid: int
    in_recovery: bool
    user: str  # whose rights statements run with: the role, where one was set
    is_superuser: bool
    timeline: int | None  # None in recovery
    started: str  # pg_postmaster_start_time as text: tells a restart from a session that somebody ended
    capabilities: Capabilities

    @property
    def major(self) -> int:
        """16 for 16.4."""
        return self.version_num // 10000

    @property
    def mark(self) -> dict[str, str | int | None]:
        """What changes when the server is restarted, recovers from a crash, or is another one by now."""
        return {"system": self.system_identifier, "timeline": self.timeline, "started": self.started}


def product_of(version: str) -> str:
    """The product that answered ``version()`` so: ``PostgreSQL``, or the name of something that imitates it."""
    for product, pattern in _OTHER_PRODUCTS.items():
        if pattern.search(version):
            return product
    return "PostgreSQL" if version.startswith("PostgreSQL") else "unknown"


def capabilities_of(product: str, version_num: int) -> Capabilities | None:
    """What that product can do in that version; None when we do not work with it."""
    if product != "PostgreSQL" or version_num < MINIMUM_VERSION:
        return None
    return Capabilities(
        product=product,
        binary_copy=True,
        tid_ranges=version_num >= 140000,
        skip_locked=True,
        row_lock_modes=("FOR KEY SHARE", "FOR SHARE", "FOR NO KEY UPDATE", "FOR UPDATE"),
        advisory_locks=True,
        data_modifying_cte=True,
        on_conflict=True,
        listen_notify=True,
        statistics=True,
        terminate_with_timeout=version_num >= 140000,
        own_wal_exact=version_num >= 180000,
        virtual_columns=version_num >= 180000,
        maintain_privilege=version_num >= 170000,
        io_statistics=version_num >= 160000,
        io_statistics_in_bytes=version_num >= 180000,
        checkpointer_statistics=version_num >= 170000,
        max_transaction_rows=None,
        retryable_sqlstates=frozenset(["40001", "40P01", "55P03"]),
    )
