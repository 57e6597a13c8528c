"""Fixtures for every layer.  Servers start when a test first wants one; each test gets databases of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from engine.embedded import EmbeddedServer
from tests.support.databases import (
    FreshDatabase,
    Servers,
    TlsServer,
    TwoDatabases,
    create_database,
    drop_database,
    start_tls_server,
)

pytest_plugins = ["tests.support.house"]

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("thorough", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


ALONE = frozenset(
    f"test_{name}.py"
    for name in ("pacing_real", "pacing_faults", "pacing_fleet", "pacing", "vacuum", "watch_latency", "stress", "pace")
)
"""Files whose tests look at the clock."""

LONGEST = (
    "faults/test_verify_faults.py",
    "integration/test_flow_regressions.py",
    "integration/test_gate.py",
    "integration/test_verify.py",
    "cli/test_demo.py",
    "faults/test_crash_points.py",
    "faults/test_transforms.py",
    "cli/test_verify.py",
    "integration/test_quarantine.py",
    "integration/test_verify_compare.py",
    "integration/test_dual_write.py",
    "cli/test_canaries.py",
    "cli/test_grants.py",
    "faults/test_quarantine_faults.py",
    "faults/test_dual_write_races.py",
    "integration/test_tombstones.py",
    "cli/test_orders.py",
    "cli/test_run.py",
    "cli/test_transform_troubles.py",
    "faults/test_servers.py",
    "cli/test_worker.py",
    "operations/test_pages.py",
    "faults/test_frozen.py",
)
"""These files begin first, so that in the end none of them is waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what nothing may run beside; long files first, which ``--no-loadscope-reorder`` leaves as it is."""
    for item in items:
        if item.path.name in ALONE:
            item.add_marker("alone")
    folder = Path(__file__).parent
    turns = {folder / name: turn for turn, name in enumerate(LONGEST)}
    items.sort(key=lambda item: turns.get(item.path, len(turns)))


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """``servers.get(16)``: the session's shared server of that version, skipping where there is none."""
    shared = Servers()
    yield shared
    shared.discard()


@pytest.fixture
def server(request: pytest.FixtureRequest, servers: Servers) -> EmbeddedServer:
    """PostgreSQL 16, or what the test's parameter says (``on_each_major``)."""
    return servers.get(getattr(request, "param", 16))


@pytest.fixture(scope="session")
def tls_server() -> Iterator[TlsServer]:
    """Debian's PostgreSQL 15 with TLS on TCP, and ICU."""
    started = start_tls_server(15)
    yield started
    started.server.discard()


@pytest.fixture
async def make_database(server: EmbeddedServer) -> AsyncIterator[Callable[..., FreshDatabase]]:
    """``make_database(options)``: as many databases as a test wants, on ``server`` or another one."""
    made: list[FreshDatabase] = []

    def make(options: str = "", *, on: EmbeddedServer | None = None) -> FreshDatabase:
        made.append(create_database(on or server, options))
        return made[-1]

    yield make
    for database in made:
        await database.close()
        drop_database(database)


@pytest.fixture
def database(make_database: Callable[..., FreshDatabase]) -> FreshDatabase:
    """A fresh database."""
    return make_database()


@pytest.fixture
def databases(make_database: Callable[..., FreshDatabase]) -> TwoDatabases:
    """Two fresh databases on one server: ``.source`` and ``.target`` of a copy."""
    return TwoDatabases(make_database(), make_database())
