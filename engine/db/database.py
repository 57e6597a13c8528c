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
from engine.errors import CannotConnect, SuperuserRefused
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

# Whatever a role, a database or a connection string sets, our statements mean the same.  Every server from 14 on takes
# these from everybody; docs/correctness.md says what is left alone, and why.
PINNED: Final = {
    # What makes a value's text, and a comparison, mean the same in every session.  Keys travel as such text.
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "timezone_abbreviations": "Default",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "xmloption": "content",
    "lc_numeric": "C",
    "lc_time": "C",
    # How the text of a statement is read: our literals, and the user's expressions.
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # The fingerprint of a schema holds definitions as the server writes them.
    "quote_all_identifiers": "off",
    "default_transaction_isolation": "read committed",
    # Row security then fails a query that it would filter: better no row than an unknown half of them.
    "row_security": "off",
    # The one setting that makes an index forget rows.
    "gin_fuzzy_search_limit": "0",
    # Our tables go where the database puts tables: to leave rights and storage to chance helps nobody.
    "default_table_access_method": "heap",
    "default_tablespace": "",
    # A worker waits for its next span as long as pace says, and lives through errors that it repeats.
    "idle_session_timeout": "0",
    "exit_on_error": "off",
    # A chunk's bounds are parameters; only a custom plan sees what range they span.
    "plan_cache_mode": "force_custom_plan",
    # Ways to reach rows that somebody took away, perhaps for reports.  Costs and memory stay as they are: they describe
    # the machine, and the plan that they lead to is checked.
    **dict.fromkeys(
        (
            "enable_bitmapscan",
            "enable_hashagg",
            "enable_hashjoin",
            "enable_incremental_sort",
            "enable_indexonlyscan",
            "enable_indexscan",
            "enable_material",
            "enable_memoize",
            "enable_mergejoin",
            "enable_nestloop",
            "enable_partition_pruning",
            "enable_seqscan",
            "enable_sort",
            "enable_tidscan",
        ),
        "on",
    ),
    "jit": "off",
    # One worker is one server process: pace and worker count stay honest.
    "max_parallel_workers_per_gather": "0",
}

# What a start-up packet cannot carry: it would be refused by some servers or to some users, even at its default.
# - transaction_timeout came with PostgreSQL 17.
# - Without triggers and foreign keys (replica), or with damaged pages read as empty, rows would be lost in silence.
#   Only a superuser's order brings these about; whoever may not undo it is refused.
# - Amounts of money are read with as many decimals as lc_monetary has: only one that has the usual two is exchanged.
PIN_THE_REST: Final = f"""
{PIN_SEARCH_PATH};
SELECT set_config(name, value, false)
  FROM (VALUES ('transaction_timeout', '0'), ('session_replication_role', 'origin'), ('zero_damaged_pages', 'off'))
       AS pinned (name, value)
 WHERE current_setting(name, true) <> value;
SELECT set_config('lc_monetary', 'C', false) WHERE cash_send(1::int8::money) = int8send(100);
"""


def _superuser_refused(side: Side, user: str) -> SuperuserRefused:
    """Whoever logged in counts as well as the role: an expression can say ``set_config('role', 'none', …)``."""
    return SuperuserRefused(
        f"the {side.value} connection is superuser {user}, and a job's SQL could do anything there",
        hint="connect as an account that has only what jobs need; or the daemon's operator writes superuser = true",
    )


class Secret(Protocol):
    """A connection string that does not show itself (``engine.spec.Dsn``)."""

    @property
    def refuses_superusers(self) -> bool:
        """Whether a session that moves rows may not be a superuser's."""
        ...

    def secret(self) -> str:
        """The connection string."""
        ...


class Database:
    """How to open sessions with one database.

    ``role`` is set (``SET ROLE``) and ``lock_timeout_s`` holds in data sessions only; a connection string may refuse
    superusers there.  Raises ``UsageError`` when the connection string makes no sense.
    """

    def __init__(
        self, dsn: Secret | str, *, side: Side, job: str = "", role: str | None = None, lock_timeout_s: float = 2.0
    ) -> None:
        self.options: Options = read_dsn(dsn if isinstance(dsn, str) else dsn.secret())
        self.side = side
        self.job = job
        self.role = role
        self.lock_timeout_s = lock_timeout_s
        self._refuses_superusers = not isinstance(dsn, str) and dsn.refuses_superusers

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
        await self._pin_the_rest(raw, label)
        user, is_superuser = row["user"], row["is_superuser"]
        if data and is_superuser and self._refuses_superusers:
            raise _superuser_refused(self.side, user)
        if data and self.role:
            await raw.execute(f"SET ROLE {ident(self.role)}")
            acting = await raw.fetchrow(
                "SELECT current_user::text AS name, current_setting('is_superuser') = 'on' AS is_superuser"
            )
            assert acting is not None
            user, is_superuser = acting["name"], acting["is_superuser"]
            if is_superuser and self._refuses_superusers:
                raise _superuser_refused(self.side, user)
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

    async def _pin_the_rest(self, raw: asyncpg.Connection[asyncpg.Record], label: str) -> None:
        try:
            await raw.execute(PIN_THE_REST)
        except asyncpg.InsufficientPrivilegeError as error:
            raise CannotConnect(
                f"{label}: a setting of this session loses rows, and may not be undone by us: {error.args[0]}",
                hint="ALTER ROLE … RESET or ALTER DATABASE … RESET it, or take it out of the connection string",
                sqlstate=error.sqlstate,
            ) from error

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
