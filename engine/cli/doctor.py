"""``backfill doctor``: can the databases be reached, what are they, what may we do there, and who said so."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any, Final

import click

from engine.cli.loop import run_async
from engine.cli.places import dsn_of
from engine.cli.terminal import Terminal, error_json, output_options
from engine.clock import SystemClock
from engine.db import Connection, Database
from engine.db.dsn import Options
from engine.db.tls import mode_for
from engine.errors import BackfillError, CannotConnect
from engine.flow.endpoints import endpoints_of
from engine.ledger.queries import migrations
from engine.ledger.store import Ledger
from engine.model import Side, TableName
from engine.plan.preflight import role_for
from engine.spec import Dsn, JobSpec, load_spec
from engine.spec.dsn import FALLBACK_VARIABLE
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


@click.command()
@click.argument("file", required=False, metavar="[FILE]")
@click.option("--dsn", metavar="DSN", help="One database, instead of a spec's. Default: BACKFILL_DSN, else PG*.")
@output_options
def doctor(terminal: Terminal, file: str | None, dsn: str | None) -> int:
    """Look at the databases of a spec, or at one: connection, version, capabilities, rights, ledger, signals.

    Every setting is shown with where it comes from: connection string, service file, environment, default. Exits with
    5 when a database cannot be reached.
    """
    spec: JobSpec | None = None
    if file is not None:
        spec = load_spec(file, os.environ)
        source, target = endpoints_of(spec)
        named = {"database": target} if source is target else {"source": source, "target": target}
        said = {name: _origin(_dsn_of(spec, name), f"spec {file}") for name in named}
    else:
        resolved = dsn_of(dsn, "--dsn") if dsn else Dsn.from_environment(os.environ)
        named = {"database": Database(resolved, side=Side.TARGET)}
        said = {"database": _origin(resolved, "--dsn" if dsn else FALLBACK_VARIABLE)}
    reports = {name: run_async(_examine(database, said[name], spec)) for name, database in named.items()}
    if terminal.as_json:
        terminal.json(reports)
    else:
        for name, report in reports.items():
            _show(terminal, name, report)
    return CannotConnect.exit_code if any(report.get("error") for report in reports.values()) else 0


def _dsn_of(spec: Any, name: str) -> Dsn | None:
    endpoint = spec.target if name == "target" else spec.source
    found: Dsn | None = endpoint.dsn
    return found


def _origin(dsn: Dsn | None, flag: str) -> str:
    """Where the connection string itself came from."""
    if dsn is None or not dsn.secret():
        return "environment and defaults"
    return f"{flag}, variable {dsn.reference}" if dsn.reference and flag != FALLBACK_VARIABLE else flag


# -- looking ----------------------------------------------------------------------------------------------------------


async def _examine(database: Database, origin: str, spec: JobSpec | None) -> dict[str, Any]:
    report: dict[str, Any] = {"label": database.label, "settings": _settings(database.options, origin)}
    clock = SystemClock()
    began = clock.now()
    try:
        connection = await database.connect("doctor")
    except BackfillError as error:
        return report | {"error": error_json(error)}
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


# -- showing ----------------------------------------------------------------------------------------------------------


def _show(terminal: Terminal, name: str, report: dict[str, Any]) -> None:
    terminal.heading(f"{name}: {report['label']}")
    if error := report.get("error"):
        hint = f" ({error['hint']})" if error["hint"] else ""
        terminal.details([("connection", f"FAILED: {error['message']}{hint}")])
    else:
        terminal.details(_lines(report))
    settings = report["settings"].items()
    lines = [
        (f"  {key}", said["value"] + (f"  ({said['origin']})" if said["origin"] else "")) for key, said in settings
    ]
    terminal.details([("settings", ""), *lines])


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    server, user, ledger, pacing = report["server"], report["user"], report["ledger"], report["pacing"]
    standby = ", a standby: it cannot be written" if server["in_recovery"] else ""
    version = f"version {ledger['version']} of {ledger['newest']}" if ledger["version"] else "none yet"
    jobs = f", {numbers.counted(ledger['jobs'], 'job')}" if "jobs" in ledger else ""
    rights = ", ".join(f"{name.replace('_', ' ')} {_yes(value)}" for name, value in report["rights"].items())
    return [
        ("connection", f"ok, {report['connect_s'] * 1000:.0f} ms"),
        ("server", f"{server['product']} {server['version']}{standby}, up since {server['started']}"),
        ("user", user["name"] + (" (superuser)" if user["superuser"] else "")),
        ("rights", rights),
        ("ledger", f"{version}{jobs}"),
        ("pacing", ""),
        *((f"  {name.replace('_', ' ')}", _yes(value)) for name, value in pacing.items() if name != "signals"),
        *((f"  reads {name}", value) for name, value in pacing.get("signals", {}).items()),
        ("capabilities", ""),
        *((f"  {name.replace('_', ' ')}", _yes(value)) for name, value in report["capabilities"].items()),
    ]


def _yes(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "no limit"
    if value == []:
        return "none"
    return ", ".join(value) if isinstance(value, (list, tuple)) else str(value)
