"""One server and one nursery for all pages; each situation gets databases and a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.embedded import EmbeddedServer
from tests.operations.nursery import Nursery
from tests.operations.stage import Stage
from tests.support.databases import QUIET

SETTINGS = QUIET | {"archive_mode": "on", "archive_command": "/bin/true", "wal_receiver_status_interval": "1s"}


@pytest.fixture(scope="module")
def shop_server() -> Iterator[EmbeddedServer]:
    """A server that pages may crash, and whose archiver they may break."""
    with EmbeddedServer(16, settings=SETTINGS, tcp=True) as server:
        yield server


@pytest.fixture(scope="module")
def nursery(shop_server: EmbeddedServer) -> Iterator[Nursery]:
    """Where the pages' ``backfill`` comes from; ``psql`` is the server's own."""
    with Nursery() as started:
        started.install("psql", f'#!/bin/sh\nexec {shop_server.bin("psql")} "$@"\n')
        started.install("pg_dump", f'#!/bin/sh\nexec {shop_server.bin("pg_dump")} "$@"\n')
        yield started


@pytest.fixture
def stage(nursery: Nursery, shop_server: EmbeddedServer, tmp_path: Path) -> Iterator[Callable[[], Stage]]:
    """``stage()``: a fresh one; the one before is cleared."""
    stages: list[Stage] = []

    def make() -> Stage:
        if stages:
            stages.pop().close()
        shop_server.start()
        folder = tmp_path / f"stage{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        stages.append(Stage(nursery, shop_server, folder))
        return stages[-1]

    yield make
    if stages:
        stages[-1].close()
