"""One endpoint of a job: opens sessions with the settings that everything above relies on.

The settings travel in the start-up packet, where they outrank those of the role and the database and cost no round
trip.  A transaction pooler in between refuses unknown ones or forgets them: connect to the server itself.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final, Protocol, cast

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from engine.db import tls
from engine.db.connection import Connection
from engine.db.dsn import Host, Options, read_dsn
from engine.db.refusal import NotThisHost, refusal
from engine.db.server import PIN_SEARCH_PATH, PROBE, Server, capabilities_of, product_of
from engine.db.transport import TolerantLoop
from engine.errors import CannotConnect
from engine.model import Backend, Side
from engine.sql import ident

STATEMENT_TIMEOUT_S: Final = 60.0
CONTROL_LOCK_TIMEOUT_S: Final = 10.0  # ledger and catalogue: nobody should hold those for long
IDLE_IN_TRANSACTION_TIMEOUT_S: Final = 60.0
CLIENT_CHECK_S: Final = 1.0  # how often a busy server process looks whether we are still there
KEEPALIVE_IDLE_S: Final = 10
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 3
# Linux also counts a window that the peer keeps shut, so this must exceed the longest statement: a server that waits
# for a lock in the middle of COPY IN reads nothing.
USER_TIMEOUT_MARGIN_S: Final = 15.0
MAX_APPLICATION_NAME_BYTES: Final = 63

# What makes a value's text, and a comparison, mean the same in every session.  Keys travel as such text.
PINNED: Final = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "read committed",
    # Row security then fails a query that it would filter: better no row than an unknown half of them.
    "row_security": "off",
    # A chunk's bounds are parameters; only a custom plan sees what range they span.
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
    # One worker is one server process: pace and worker count stay honest.
    "max_parallel_workers_per_gather": "0",
}


class Secret(Protocol):
    """A connection string that does not show itself (``engine.spec.Dsn``)."""

    def secret(self) -> str:
        """The connection string."""
        ...


class Database:
    """How to open sessions with one database.

    ``role`` is set (``SET ROLE``) and ``lock_timeout_s`` holds in data sessions only.  Raises ``UsageError`` when the
    connection string makes no sense.
    """

    def __init__(
        self, dsn: Secret | str, *, side: Side, job: str = "", role: str | None = None, lock_timeout_s: float = 2.0
    ) -> None:
        self.options: Options = read_dsn(dsn if isinstance(dsn, str) else dsn.secret())
        self.side = side
        self.job = job
        self.role = role
        self.lock_timeout_s = lock_timeout_s

    @property
    def label(self) -> str:
        """``host:port/database`` for people; no secrets."""
        return self.options.label

    async def connect(
        self, purpose: str, *, data: bool = False, statement_timeout_s: float = STATEMENT_TIMEOUT_S
    ) -> Connection:
        """Open a session called ``backfill/<job>/<purpose>``.

        A ``data`` session moves rows: under the job's role, with its lock time-out, and without waiting for the disk at
        commit.  Raises ``CannotConnect``; trying again is the caller's decision.
        """
        settings = self._settings(purpose, data=data, statement_timeout_s=statement_timeout_s)
        wanted = self.options.session_attributes
        # As libpq: "prefer-standby" is a first round for a standby and a second for anybody.
        rounds = ("standby", "any") if wanted == "prefer-standby" else (wanted,)
        refused: NotThisHost | None = None
        for attributes in rounds:
            for place, host in enumerate(self.options.hosts):
                try:
                    return await self._open(host, self.options.passwords[place], attributes, settings, data=data)
                except NotThisHost as error:
                    refused = error
        assert refused is not None
        raise refused.refusal from refused.__cause__

    async def _open(
        self, host: Host, password: str | None, attributes: str, settings: dict[str, str], *, data: bool
    ) -> Connection:
        label = f"{host.label}/{self.options.database}"
        try:
            raw: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
                host=host.name,
                port=host.port,
                user=self.options.user,
                database=self.options.database,
                password=lambda: password or "",  # called, asyncpg does not look into files and variables of its own
                ssl=tls.argument_for(host, self.options.tls),
                direct_tls=self.options.tls.direct and not host.is_socket,
                timeout=self.options.connect_timeout_s,
                # Behind a proxy the kernel sees a peer that lives and never answers: no statement is awaited for ever.
                command_timeout=_user_timeout_s(settings),
                server_settings=settings,
                target_session_attrs=SessionAttribute(attributes),
                loop=cast(asyncio.AbstractEventLoop, TolerantLoop()),
            )
        except Exception as error:
            raise refusal(error, label=label, user=self.options.user) from error
        try:
            _watch_peer(raw, _user_timeout_s(settings))
            async with asyncio.timeout(self.options.connect_timeout_s):
                return await self._greet(raw, label, data=data)
        except BaseException as error:
            raw.terminate()
            if isinstance(error, Exception):
                raise refusal(error, label=label, user=self.options.user) from error
            raise

    async def _greet(self, raw: asyncpg.Connection[asyncpg.Record], label: str, *, data: bool) -> Connection:
        """Find out who answers, and finish the settings."""
        server_settings: Any = raw.get_settings()
        if getattr(server_settings, "crdb_version", None):
            raise _not_supported("CockroachDB")
        try:
            row = await raw.fetchrow(PROBE, f"{CLIENT_CHECK_S:g}s")
        except asyncpg.PostgresError:
            # A server that imitates PostgreSQL fails here; it may at least tell its name.
            product = product_of(str(await raw.fetchval("SELECT version()")))
            if product == "PostgreSQL":
                raise
            raise _not_supported(product) from None
        assert row is not None
        product, version_num = product_of(row["version"]), int(row["version_num"])
        capabilities = capabilities_of(product, version_num)
        if capabilities is None:
            raise _not_supported(product if product != "PostgreSQL" else f"PostgreSQL {version_num // 10000}")
        await raw.execute(PIN_SEARCH_PATH)
        user, is_superuser = row["user"], row["is_superuser"]
        if data and self.role:
            await raw.execute(f"SET ROLE {ident(self.role)}")
            acting = await raw.fetchrow(
                "SELECT current_user::text AS name, current_setting('is_superuser') = 'on' AS is_superuser"
            )
            assert acting is not None
            user, is_superuser = acting["name"], acting["is_superuser"]
        server = Server(
            version_num=version_num,
            version=str(row["version"]).split()[1],
            system_identifier=row["system_identifier"],
            database=row["database"],
            database_oid=row["database_oid"],
            in_recovery=row["in_recovery"],
            user=user,
            is_superuser=is_superuser,
            timeline=int(row["timeline"], 16) if row["timeline"] else None,
            started=row["started"],
            capabilities=capabilities,
        )
        backend = Backend(self.side, int(row["backend_pid"]), row["backend_started"] or "")
        return Connection(raw, server=server, backend=backend, search_path=row["search_path"], label=label)

    def _settings(self, purpose: str, *, data: bool, statement_timeout_s: float) -> dict[str, str]:
        lock_timeout_s = self.lock_timeout_s if data else CONTROL_LOCK_TIMEOUT_S
        settings = {
            **PINNED,
            # Ours even where PGAPPNAME is set: it is how an operator, and we, tell our sessions from others.
            "application_name": application_name(self.job, purpose),
            "statement_timeout": _milliseconds(statement_timeout_s),
            "lock_timeout": _milliseconds(lock_timeout_s),
            "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_TIMEOUT_S),
            "tcp_keepalives_idle": str(KEEPALIVE_IDLE_S),
            "tcp_keepalives_interval": str(KEEPALIVE_INTERVAL_S),
            "tcp_keepalives_count": str(KEEPALIVE_COUNT),
            "tcp_user_timeout": _milliseconds(statement_timeout_s + USER_TIMEOUT_MARGIN_S),
        }
        if data:
            settings["synchronous_commit"] = "off"
        if self.options.session_options:
            settings["options"] = self.options.session_options  # the server lets the settings above win
        return settings


def application_name(job: str, purpose: str) -> str:
    """``backfill/<job>/<purpose>``, cut in the job's part where the server would cut the end."""
    room = MAX_APPLICATION_NAME_BYTES - len(f"backfill//{purpose}")
    return f"backfill/{job[: max(room, 0)]}/{purpose}" if job else f"backfill/{purpose}"


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def _user_timeout_s(settings: dict[str, str]) -> float:
    return int(settings["tcp_user_timeout"]) / 1000


def _not_supported(product: str) -> CannotConnect:
    return CannotConnect(f"{product} is not supported yet", hint="the engine works with PostgreSQL 14 and newer")


def _watch_peer(raw: asyncpg.Connection[asyncpg.Record], user_timeout_s: float) -> None:
    """Have the kernel notice a peer that is gone: an idle one by keepalives, one that owes us an answer by time-out."""
    transport: Any = raw._transport  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way
    peer: socket.socket | None = transport.get_extra_info("socket")
    if peer is None or peer.family == socket.AF_UNIX:
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", round(user_timeout_s * 1000)),
    ):
        option = getattr(socket, name, None)  # absent on some systems
        if option is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, value)
