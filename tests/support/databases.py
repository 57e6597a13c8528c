"""Fresh databases on real servers."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from engine.embedded import BinariesMissing, EmbeddedServer
from tests.support.tls import Certificates, make_certificates

MAJORS = (16, 18)
"""The versions that come with the project: every test may ask for either."""

on_each_major = pytest.mark.parametrize("server", MAJORS, indirect=True, ids=[f"pg{major}" for major in MAJORS])
"""Runs a test that uses ``server``, ``database`` or ``databases`` on each of them."""

on_the_newest_and_long_on_others = pytest.mark.parametrize(
    "server",
    [pytest.param(major, marks=() if major == max(MAJORS) else pytest.mark.long) for major in MAJORS],
    indirect=True,
    ids=[f"pg{major}" for major in MAJORS],
)
"""As above; but only ``make faults`` asks for the older ones."""

QUIET = {
    "autovacuum_naptime": "1min",  # tests that want it lower the table's own settings, or call VACUUM
    "log_min_messages": "fatal",
    "max_connections": 200,
    "max_prepared_transactions": 10,
    "shared_buffers": "64MB",
    "wal_level": "logical",
}

_serial = itertools.count(1)


@dataclass(slots=True)
class FreshDatabase:
    """A database of one test, empty at first and dropped at the end."""

    server: EmbeddedServer
    name: str
    _connections: list[asyncpg.Connection[Any]] = field(default_factory=list)

    @property
    def dsn(self) -> str:
        """Over TCP, as the superuser, without a password."""
        return self.server.dsn(self.name)

    @property
    def socket_dsn(self) -> str:
        """The same through the server's socket."""
        return self.server.socket_dsn(self.name)

    def sql(self, text: str) -> str:
        """Run SQL through psql; rows as lines, columns separated by ``|``."""
        return self.server.sql(text, self.name)

    async def connect(self, **options: Any) -> asyncpg.Connection[Any]:
        """A plain driver connection, closed with the test."""
        connection = await asyncpg.connect(self.dsn, **options)
        self._connections.append(connection)
        return connection

    async def close(self) -> None:
        """End the connections that ``connect`` opened in this test's loop."""
        for connection in self._connections:
            connection.terminate()
        self._connections.clear()


@dataclass(frozen=True, slots=True)
class TwoDatabases:
    """Source and target of a copy."""

    source: FreshDatabase
    target: FreshDatabase


def create_database(server: EmbeddedServer, options: str = "") -> FreshDatabase:
    """A new empty database.  ``options`` are those of CREATE DATABASE, such as a locale."""
    name = f"test_{os.getpid()}_{next(_serial)}"
    server.sql(f'CREATE DATABASE "{name}" TEMPLATE template0 {options}')
    return FreshDatabase(server, name)


def drop_database(database: FreshDatabase) -> None:
    """Drop it, whoever is still connected; replication slots of it go first, as they would forbid it."""
    server = database.server
    if not server.is_running:
        server.start()
    server.sql(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
        f"WHERE database = '{database.name}' AND NOT active"
    )
    server.sql(f'DROP DATABASE IF EXISTS "{database.name}" WITH (FORCE)')


@dataclass(slots=True)
class Servers:
    """The servers of one test session, each started when a test first wants it."""

    _running: dict[int, EmbeddedServer] = field(default_factory=dict)

    def get(self, major: int) -> EmbeddedServer:
        """The shared server of that version; started again if a test left it stopped."""
        if major not in self._running:
            try:
                self._running[major] = EmbeddedServer(major, settings=QUIET, tcp=True)
            except BinariesMissing as missing:
                pytest.skip(str(missing))
        server = self._running[major]
        server.start()
        return server

    def discard(self) -> None:
        """Stop them all and remove their folders."""
        for server in self._running.values():
            server.discard()


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A server that speaks TLS on TCP, and the authority that signed its certificate."""

    server: EmbeddedServer
    certificates: Certificates

    def dsn(self, database: str = "postgres", *, mode: str = "verify-full") -> str:
        """A connection URI that insists on TLS."""
        return f"{self.server.dsn(database)}?sslmode={mode}&sslrootcert={self.certificates.authority}"


def start_tls_server(major: int) -> TlsServer:
    """A server of its own with ``ssl = on``; skips when this machine has no such version."""
    try:
        server = EmbeddedServer(major, settings=QUIET, tcp=True)
    except BinariesMissing as missing:
        pytest.skip(str(missing))
    server.prepare()
    certificates = make_certificates(server)
    server.configure(
        {
            "ssl": "on",
            "ssl_cert_file": str(certificates.certificate),
            "ssl_key_file": str(certificates.key),
        }
    )
    server.start()
    return TlsServer(server, certificates)
