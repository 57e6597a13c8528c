"""``backfill doctor``: can the databases be reached, what are they, what may we do there, and who said so."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from engine.cli.loop import run_async
from engine.cli.places import SLOW_PATIENCE_S, Remote, Where, daemon_options, dsn_of
from engine.cli.terminal import Terminal, output_options
from engine.db import Database
from engine.errors import CannotConnect, UsageError
from engine.fleet.examination import examine
from engine.flow.endpoints import endpoints_of
from engine.model import Side
from engine.spec import Dsn, JobSpec, Purpose, load_spec
from engine.spec.dsn import FALLBACK_VARIABLE
from engine.spec.fields import CONNECTION_PATTERN
from engine.telemetry import numbers


@click.command()
@click.argument("file", required=False, metavar="[FILE]")
@click.option("--dsn", metavar="DSN", help="One database, instead of a spec's. Default: BACKFILL_DSN, else PG*.")
@daemon_options
@output_options
def doctor(terminal: Terminal, file: str | None, where: Where) -> int:
    """Look at the databases of a spec, or at one: connection, version, capabilities, rights, ledger, signals.

    Every setting is shown with where it comes from: connection string, service file, environment, default. Exits with
    5 when a database cannot be reached. With --daemon the daemon looks, at the connections of the spec, at the one that
    --connection names, or at all of its own.
    """
    remote = where.remote()
    reports = _here(file, where.dsn) if remote is None else run_async(_there(file, remote))
    if terminal.as_json:
        terminal.json(reports)
    else:
        for name, report in reports.items():
            _show(terminal, name, report)
    return CannotConnect.exit_code if any(report.get("error") for report in reports.values()) else 0


async def _there(file: str | None, remote: Remote) -> dict[str, Any]:
    names = _named(file, remote)
    async with remote.client(patience_s=SLOW_PATIENCE_S) as client:
        if not names:
            names = [connection.name for connection in (await client.connections()).connections]
        found = {name: await client.doctor(name) for name in dict.fromkeys(names)}
    return {name: report.model_dump(mode="json", exclude_unset=True) for name, report in found.items()}


def _named(file: str | None, remote: Remote) -> list[str]:
    """The connections that were asked for; empty for all."""
    if remote.connection is not None:
        return [remote.connection]
    if file is None:
        return []
    if not Path(file).exists() and re.fullmatch(CONNECTION_PATTERN, file):
        raise UsageError(f"cannot read the spec {file}", hint=f"of a connection of the daemon: --connection {file}")
    spec = load_spec(file, os.environ, purpose=Purpose.DAEMON)
    return [endpoint.connection for endpoint in (spec.source, spec.target) if endpoint and endpoint.connection]


def _here(file: str | None, dsn: str | None) -> dict[str, Any]:
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
    return {name: run_async(examine(database, said[name], spec)) for name, database in named.items()}


def _dsn_of(spec: Any, name: str) -> Dsn | None:
    endpoint = spec.target if name == "target" else spec.source
    found: Dsn | None = endpoint.dsn
    return found


def _origin(dsn: Dsn | None, flag: str) -> str:
    """Where the connection string itself came from."""
    if dsn is None or not dsn.secret():
        return "environment and defaults"
    return f"{flag}, variable {dsn.reference}" if dsn.reference and flag != FALLBACK_VARIABLE else flag


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
    if lines:  # a daemon keeps the addresses of its connections to itself
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
