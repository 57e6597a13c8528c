"""Products and versions are told apart in one place; everything above asks capabilities."""

from __future__ import annotations

import pytest

from engine.db.server import capabilities_of, product_of


@pytest.mark.parametrize(
    ("version", "product"),
    [
        ("PostgreSQL 16.4 (Debian 16.4-1) on x86_64-pc-linux-gnu", "PostgreSQL"),
        ("CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu)", "CockroachDB"),
        ("PostgreSQL 11.2-YB-2.21.0.0-b0 on x86_64-pc-linux-gnu", "YugabyteDB"),
        ("PostgreSQL 8.0.2 on i686-pc-linux-gnu, Redshift 1.0", "Redshift"),
        ("PostgreSQL 12.12 (Greenplum Database 7.0.0)", "Greenplum"),
        ("something else", "unknown"),
    ],
)
def test_a_server_that_imitates_postgresql_is_recognised(version: str, product: str) -> None:
    assert product_of(version) == product


def test_only_what_the_suite_can_start_is_worked_with() -> None:
    assert capabilities_of("PostgreSQL", 130012) is None
    assert capabilities_of("CockroachDB", 160000) is None
    assert capabilities_of("PostgreSQL", 140000) is not None


def test_capabilities_grow_with_the_version() -> None:
    old, new = capabilities_of("PostgreSQL", 140000), capabilities_of("PostgreSQL", 180000)
    assert old is not None
    assert new is not None
    assert (old.own_wal_exact, old.virtual_columns, old.maintain_privilege) == (False, False, False)
    assert (new.own_wal_exact, new.virtual_columns, new.maintain_privilege) == (True, True, True)
    assert (old.io_statistics, old.io_statistics_in_bytes, old.checkpointer_statistics) == (False, False, False)
    assert (new.io_statistics, new.io_statistics_in_bytes, new.checkpointer_statistics) == (True, True, True)
    assert old.terminate_with_timeout
    assert old.tid_ranges
