"""``backfill grants``: the GRANT script with which a role that is nobody special can run a job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import click

from engine.cli.loop import run_async
from engine.cli.places import Place, dsn_of, job_argument, ledger_option, open_job, place_of
from engine.cli.terminal import Terminal, output_options
from engine.db import Connection, Database
from engine.db.inspect import find_table
from engine.errors import CannotConnect, UsageError
from engine.flow.prepare import endpoints_of
from engine.ledger.queries import migrations
from engine.ledger.store import Ledger
from engine.model import Mode, Side, TableName
from engine.plan.preflight import MAINTAIN_VERSION_NUM, required_privileges, role_for
from engine.spec import JobSpec, SignalKind, TableRef
from engine.sql import ident, qualified

LEDGER_RIGHTS: Final = (
    "GRANT USAGE ON SCHEMA backfill TO {role};",
    "GRANT SELECT ON ALL TABLES IN SCHEMA backfill TO {role};",
    "GRANT INSERT, UPDATE, DELETE ON backfill.job, backfill.span, backfill.worker, backfill.written TO {role};",
    "GRANT INSERT, UPDATE, DELETE ON backfill.pacer, backfill.heartbeat TO {role};",
    "GRANT INSERT, UPDATE, DELETE ON backfill.verification, backfill.difference, backfill.quarantine TO {role};",
    "GRANT DELETE ON backfill.tombstone TO {role};  -- written by the dual-write triggers, with their owner's rights",
    "GRANT INSERT ON backfill.event TO {role};  -- history is only ever added to",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA backfill TO {role};",
)
"""What every runner of a job needs in the ledger."""

TAKEOVER_RIGHTS: Final = "GRANT pg_signal_backend, pg_read_all_stats TO {role};"
"""With these a successor may end the sessions that a frozen worker left behind, though another role opened them."""

OWNER_VACUUMS: Final = "-- bloat.max_growth: before PostgreSQL 17 only a member of the table's owner may vacuum it."


@dataclass(frozen=True, slots=True)
class Part:
    """Rights in one database."""

    label: str
    database: str
    tables: tuple[tuple[TableName, frozenset[str]], ...]
    ledger: str | None  # what creates or upgrades the ledger; empty: it is up to date; None: not in this database
    staging: bool
    watching: tuple[str, ...]  # what pacing needs besides, as lines with {role}


@click.command()
@job_argument
@ledger_option
@click.option("--to", "to", metavar="ROLE", help="Who moves the rows. Default: role of the spec.")
@click.option("--login", metavar="ROLE", help="Who connects and becomes that role. Default: the same one.")
@click.option("--source-dsn", metavar="DSN", help="The source's database, where a job is given by its name.")
@output_options
def grants(
    terminal: Terminal, job: str, dsn: str | None, to: str | None, login: str | None, source_dsn: str | None
) -> int:
    """Print the GRANT script that a job needs, for a superuser or the owner of the tables to run.

    Nothing is changed by this command. Where there is no ledger yet the script creates it, so that the role needs no
    right to create anything.
    """
    place = place_of(job, dsn)
    spec, parts = run_async(_collect(place, dsn, source_dsn))
    role = to or spec.role
    if role is None:
        raise UsageError("no role to grant to", hint="write role: into the spec, or give --to ROLE")
    script = "\n".join(_script(spec, parts, role, login))
    if terminal.as_json:
        terminal.json({"job": spec.name, "role": role, "login": login, "script": script})
    else:
        terminal.data(script)
    return 0


# -- looking ----------------------------------------------------------------------------------------------------------


async def _collect(place: Place, dsn: str | None, source_dsn: str | None) -> tuple[JobSpec, list[Part]]:
    spec = place.spec
    if spec is None:
        async with open_job(place) as ledger:
            spec = JobSpec.from_ledger((await ledger.job(place.job)).spec)
            is_copy = (await ledger.job(place.job)).mode is Mode.COPY
        target = place.database
        source = Database(dsn_of(source_dsn, "--source-dsn"), side=Side.SOURCE) if source_dsn else target
        if is_copy and not source_dsn:
            raise UsageError("its source is in another database", hint="give --source-dsn, or the spec file")
    else:
        source, target = endpoints_of(spec)
        if dsn is not None:
            target = place.database
            source = target if spec.target is None else source
    # Without the spec's role: it may not exist yet, or not be granted to whoever asks.
    here = await target.connect("grants")
    try:
        if source is target:
            return spec, [await _part(spec, here, here)]
        there = await source.connect("grants")
        try:
            if (there.server.system_identifier, there.server.database_oid) == (
                here.server.system_identifier,
                here.server.database_oid,
            ):
                return spec, [await _part(spec, here, here)]
            return spec, [await _part(spec, there, None), await _part(spec, None, here)]
        finally:
            await there.close()
    finally:
        await here.close()


async def _part(spec: JobSpec, source: Connection | None, target: Connection | None) -> Part:
    """The rights in one database: the source's, the target's, or those of both in one."""
    mode = Mode.UPDATE if spec.target is None else Mode.INSERT if source is target else Mode.COPY
    on_source, on_target = required_privileges(spec, mode)
    tables = []
    if source is not None:
        tables.append((await _table(source, spec.source.table), on_source))
    if target is not None and spec.target is not None:
        tables.append((await _table(target, spec.target.table), on_target))
    ledger: str | None = None
    if target is not None:
        installed = await Ledger(target).installed_version()
        ledger = "\n".join(script for version, script in migrations() if version > installed)
    connection = target or source
    assert connection is not None
    may_maintain = connection.server.version_num >= MAINTAIN_VERSION_NUM
    watching = list(_signal_rights(spec, is_written=target is not None))
    if spec.bloat.max_growth is not None and not may_maintain:
        watching.append(OWNER_VACUUMS)
    elif spec.bloat.max_growth is not None:
        tables = [(table, privileges | {"MAINTAIN"}) for table, privileges in tables]
    return Part(
        label=connection.label,
        database=connection.server.database,
        tables=tuple(tables),
        ledger=ledger,
        staging=mode is Mode.COPY and target is not None,
        watching=tuple(watching),
    )


def _signal_rights(spec: JobSpec, *, is_written: bool) -> Iterable[str]:
    """A line for each predefined role that the signals of the spec need in one database."""
    needed: dict[str, list[str]] = {}
    for signal in spec.pace.signals:
        role = role_for(signal.kind)
        if role is not None and not signal.off and (is_written or signal.kind is SignalKind.ACTIVE_SESSIONS):
            needed.setdefault(role, []).append(signal.name)
    for role, names in needed.items():
        yield f"GRANT {role} TO {{role}};  -- needs a superuser; for the signals {', '.join(names)}"


async def _table(connection: Connection, table: TableRef) -> TableName:
    try:
        return (await find_table(connection, table))[1]
    except UsageError:
        raise
    except OSError as error:
        raise CannotConnect(f"{connection.label} went away") from error


# -- writing ----------------------------------------------------------------------------------------------------------


def _script(spec: JobSpec, parts: list[Part], role: str, login: str | None) -> Iterable[str]:
    name = ident(role)
    yield f"-- Rights of role {role} for job {spec.name}."
    yield "-- To be run as the owner of the tables, or as a superuser."
    if login and login != role:
        yield f"-- {login} connects; for statements on rows it becomes {role}, whose rights it inherits."
        yield f"GRANT {name} TO {ident(login)};"
    for part in parts:
        yield ""
        yield f"-- In database {part.database} ({part.label}):"
        yield f"GRANT CONNECT ON DATABASE {ident(part.database)} TO {name};"
        if part.staging:
            yield f"GRANT TEMPORARY ON DATABASE {ident(part.database)} TO {name};  -- chunks that meet existing rows"
        for schema in dict.fromkeys(table.schema for table, _ in part.tables):
            yield f"GRANT USAGE ON SCHEMA {ident(schema)} TO {name};"
        for table, privileges in part.tables:
            yield f"GRANT {', '.join(sorted(privileges))} ON {qualified(table)} TO {name};"
        for line in part.watching:
            yield line.format(role=name)
        if part.ledger is None:
            continue
        if part.ledger:
            yield ""
            yield "-- The ledger, which is not there yet, or of an older release."
            yield part.ledger.strip()
            yield ""
        for right in LEDGER_RIGHTS:
            yield right.format(role=name)
    yield ""
    yield "-- Needs a superuser, and may be left out: ends the sessions of workers that froze, without waiting for the"
    yield "-- server to notice."
    yield TAKEOVER_RIGHTS.format(role=name)
