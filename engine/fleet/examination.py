"""What ``doctor`` knows of a database: can it be reached, what is it, what may we do there, and who said so."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from engine.clock import SystemClock
from engine.db import Connection, Database
from engine.db.dsn import Options
from engine.db.tls import mode_for
from engine.errors import BackfillError
from engine.ledger.queries import migrations
from engine.ledger.store import Ledger
from engine.model import TableName
from engine.plan.preflight import role_for
from engine.spec import JobSpec
from engine.telemetry import numbers
from engine.watch.rights import look_at_rights

_RIGHTS: Final = """
SELECT has_database_privilege(current_database(), 'CREATE') AS create_schema,
       has_database_privilege(current_database(), 'TEMPORARY') AS temporary,
       pg_has_role('pg_signal_backend', 'USAGE') AS signal_backend,
       pg_has_role('pg_read_all_stats', 'USAGE') AS read_all_stats
"""
_LEDGER_RIGHT: Final = "SELECT has_table_privilege('backfill.span', 'UPDATE')"
_DSN: Final = "connection string"
NO_TABLE: Final = TableName("pg_catalog", "pg_class")
"""Whether a table may be vacuumed is for `plan` to say; one that is always there is as good as any."""

_FIELDS: Final = ("host", "port", "dbname", "user", "sslmode", "connect_timeout")


async def examine(database: Database, origin: str, spec: JobSpec | None) -> dict[str, Any]:
    """What there is to know of a database before a job; ``origin``: where its connection string comes from."""
    report: dict[str, Any] = {"label": database.label, "settings": _settings(database.options, origin)}
    clock = SystemClock()
    began = clock.now()
    try:
        connection = await database.connect("doctor")
    except BackfillError as error:
        return report | {"error": _error(error)}
    try:
        report["connect_s"] = round(clock.now() - began, 4)
        return report | await _server(connection) | {"pacing": await _pacing(connection, spec)}
    finally:
        await connection.close()


def _settings(options: Options, origin: str) -> dict[str, dict[str, str]]:
    """Value and origin of everything that decides where and as whom we connect.  Never a password."""
    values = {
        "host": ",".join(host.name for host in options.hosts),
        "port": ",".join(str(host.port) for host in options.hosts),
        "dbname": options.database,
        "user": options.user,
        "sslmode": ",".join(dict.fromkeys(mode_for(host, options.tls) for host in options.hosts)),
        "connect_timeout": numbers.duration(options.connect_timeout_s),
    }
    shown = {name: {"value": values[name], "origin": options.origins.get(name, "default")} for name in _FIELDS}
    has_password = any(options.passwords)
    shown["password"] = {
        "value": "given" if has_password else "none",
        "origin": options.origins.get("password", "default") if has_password else "",
    }
    for entry in shown.values():
        if entry["origin"] == _DSN:
            entry["origin"] = origin
    return shown


async def _server(connection: Connection) -> dict[str, Any]:
    server = connection.server
    rights = dict((await connection.fetchrow(_RIGHTS)) or {})
    installed = await Ledger(connection).installed_version()
    ledger: dict[str, Any] = {"version": installed or None, "newest": migrations()[-1][0]}
    if installed:
        readable = await connection.fetchval("SELECT has_schema_privilege('backfill', 'USAGE')")
        rights["write_ledger"] = bool(readable and await connection.fetchval(_LEDGER_RIGHT))
        if readable:
            ledger["jobs"] = len(await Ledger(connection).list())
    capabilities = asdict(server.capabilities)
    capabilities["retryable_sqlstates"] = sorted(capabilities["retryable_sqlstates"])
    return {
        "server": {
            "product": capabilities.pop("product"),
            "version": server.version,
            "in_recovery": server.in_recovery,
            "timeline": server.timeline,
            "started": server.started,
        },
        "user": {"name": server.user, "superuser": server.is_superuser},
        "rights": rights,
        "ledger": ledger,
        "capabilities": capabilities,
    }


async def _pacing(connection: Connection, spec: JobSpec | None) -> dict[str, Any]:
    """What a job that paces itself would see there; with a spec, whether each of its signals can be read."""
    seen = await look_at_rights(connection, NO_TABLE)
    readable = {"pg_read_all_stats": seen.can_read_stats, "pg_monitor": seen.can_read_archive}
    signals = {
        signal.name: "yes" if role is None or readable[role] else f"no: GRANT {role} TO {connection.server.user}"
        for signal in (spec.pace.effective_signals() if spec is not None else ())
        for role in (role_for(signal.kind),)
    }
    return {
        "sees_other_sessions": seen.can_read_stats,
        "standbys": list(seen.standbys),
        "replication_slots": seen.slots,
        "archive_mode": seen.archive_mode,
        "autovacuum": seen.autovacuum,
        "oldest_snapshot": seen.oldest_xmin_holder or "none older than a minute",
    } | ({"signals": signals} if spec is not None else {})


def _error(error: BackfillError) -> dict[str, Any]:
    return {
        "event": "error",
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "sqlstate": error.sqlstate,
        "exit_code": error.exit_code,
    }
