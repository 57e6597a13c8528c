"""The GRANT script with which a role that is nobody special can run a job: what it takes, and how it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from engine.db import Connection, Database
from engine.db.inspect import find_table
from engine.errors import CannotConnect, UsageError
from engine.ledger.queries import migrations
from engine.ledger.store import Ledger
from engine.model import Mode, TableName
from engine.plan.preflight import MAINTAIN_VERSION_NUM, required_privileges, role_for
from engine.spec import JobSpec, SignalKind, TableRef
from engine.sql import ident, qualified

LEDGER_RIGHTS: Final = (
    "GRANT USAGE ON SCHEMA backfill TO {both};",
    "GRANT SELECT ON ALL TABLES IN SCHEMA backfill TO {both};",
    "GRANT INSERT, UPDATE, DELETE ON backfill.job TO {both};",
    "GRANT INSERT, UPDATE, DELETE ON backfill.span TO {both};",
    "GRANT INSERT, UPDATE ON backfill.worker TO {both};",
    "GRANT INSERT, UPDATE ON backfill.pacer TO {both};",
    "GRANT INSERT, UPDATE ON backfill.heartbeat TO {both};",
    "GRANT INSERT, UPDATE ON backfill.reporter TO {both};",
    "GRANT INSERT, DELETE ON backfill.request TO {both};",
    "GRANT INSERT, DELETE ON backfill.written TO {both};",
    "GRANT DELETE ON backfill.tombstone TO {both};  -- written by the dual-write triggers, with their owner's rights",
    "GRANT INSERT, UPDATE ON backfill.verification TO {both};",
    "GRANT INSERT, UPDATE, DELETE ON backfill.difference TO {both};",
    "GRANT INSERT, UPDATE, DELETE ON backfill.quarantine TO {both};",
    "GRANT INSERT ON backfill.event TO {both};  -- history is only ever added to",
    "GRANT EXECUTE ON FUNCTION backfill.advance, backfill.flat_orders TO {both};",
    "GRANT EXECUTE ON FUNCTION backfill.set_aside, backfill.set_aside_all TO {both};",
    "GRANT EXECUTE ON FUNCTION backfill.pause, backfill.resume, backfill.cancel, backfill.pace TO {both};",
)
"""What the ledger asks of whoever works on jobs or gives orders: of the login too, which need not inherit anything."""

INHERIT_VERSION_NUM: Final = 160000
"""The first version where a membership itself says whether it is inherited."""

# Types and collations of columns are called by name; those of keys in the ledger's sessions too, which compare spans.
_SCHEMAS_NAMED: Final = """
SELECT named.nspname::text AS name,
       bool_or(EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique
                          AND a.attnum = ANY (i.indkey::int2[]))) AS of_key
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_collation o ON o.oid = a.attcollation
  JOIN pg_namespace named ON named.oid IN (t.typnamespace, o.collnamespace)
 WHERE n.nspname = $1 AND c.relname = $2 AND named.nspname <> 'pg_catalog'
 GROUP BY 1 ORDER BY 1
"""

# An INSERT that leaves a column out takes its default with the rights of whoever inserts; an identity's needs none.
_SEQUENCES_TAKEN: Final = """
SELECT DISTINCT sn.nspname::text AS schema, s.relname::text AS name
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
  JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid AND p.refclassid = 'pg_class'::regclass
  JOIN pg_class s ON s.oid = p.refobjid AND s.relkind = 'S'
  JOIN pg_namespace sn ON sn.oid = s.relnamespace
 WHERE n.nspname = $1 AND c.relname = $2 AND a.attname <> ALL ($3::text[])
 ORDER BY 1, 2
"""


_STAGED: Final[dict[Mode | None, str]] = {
    Mode.COPY: "chunks that meet existing rows",
    None: "rows on their way from the transform",
}


@dataclass(frozen=True, slots=True)
class Grantee:
    """Who moves the rows, and who connects to become that role; the same one, often."""

    rows: str
    login: str

    @property
    def both(self) -> str:
        """As a list in a GRANT."""
        return ", ".join(dict.fromkeys((ident(self.rows), ident(self.login))))


@dataclass(frozen=True, slots=True)
class Part:
    """Rights in one database."""

    label: str
    database: str
    version_num: int
    schemas: tuple[tuple[str, bool], ...]  # with tables, types and collations; True: with those of keys
    tables: tuple[tuple[TableName, frozenset[str]], ...]
    sequences: tuple[TableName, ...]  # of defaults that the job leaves to the target
    repair: tuple[TableName, frozenset[str]] | None  # what verify --repair takes besides, if anything
    ledger: str | None  # what creates or upgrades the ledger; empty: it is up to date; None: not in this database
    staging: str | None  # why the job needs a temporary table there
    stats: tuple[tuple[str, str], ...]  # predefined roles, and the signals that need them
    notes: tuple[str, ...]
    has_role: bool  # the spec names one, whom whoever prepares the job becomes
    dual_write: tuple[TableName, str, TableName | None] | None  # the source, its owner, and the target of the triggers


# -- looking ----------------------------------------------------------------------------------------------------------


async def collect(spec: JobSpec, source: Database, target: Database) -> list[Part]:
    """What the job takes, for each of its databases; looks at the catalogues alone."""
    # Without the spec's role: it may not exist yet, or not be granted to whoever asks.
    here = await target.connect("grants")
    try:
        if source is target:
            return [await _part(spec, here, here)]
        there = await source.connect("grants")
        try:
            if (there.server.system_identifier, there.server.database_oid) == (
                here.server.system_identifier,
                here.server.database_oid,
            ):
                return [await _part(spec, here, here)]
            written = await _written(spec, there)
            return [await _part(spec, there, None), await _part(spec, None, here, written=written)]
        finally:
            await there.close()
    finally:
        await here.close()


async def _part(
    spec: JobSpec, source: Connection | None, target: Connection | None, *, written: list[str] | None = None
) -> Part:
    """The rights in one database: the source's, the target's, or those of both in one."""
    mode = Mode.UPDATE if spec.target is None else Mode.INSERT if source is target else Mode.COPY
    on_source, on_target = required_privileges(spec, mode)
    tables: list[tuple[TableName, frozenset[str]]] = []
    repair, sequences = None, []
    if source is not None:
        tables.append((await _table(source, spec.source.table), on_source))
    if target is not None and spec.target is not None:
        tables.append((await _table(target, spec.target.table), on_target))
        if written is None:
            written = await _written(spec, target)
        taken = await target.fetch(_SEQUENCES_TAKEN, tables[-1][0].schema, tables[-1][0].name, written)
        sequences = [TableName(row["schema"], row["name"]) for row in taken]
        more = required_privileges(spec, mode, repairs=True)[1] - on_target
        repair = (tables[-1][0], more) if more else None
    ledger: str | None = None
    if target is not None:
        installed = await Ledger(target).installed_version()
        ledger = "\n".join(script for version, script in migrations() if version > installed)
    connection = target or source
    assert connection is not None
    notes = []
    if spec.bloat.max_growth is not None and mode is Mode.UPDATE:
        if connection.server.version_num >= MAINTAIN_VERSION_NUM:
            tables = [(table, privileges | {"MAINTAIN"}) for table, privileges in tables]
        else:
            notes.append("bloat.max_growth: before PostgreSQL 17 only a member of the table's owner may vacuum it.")
    asked = [s.name for s in spec.pace.signals if s.query is not None and s.kind is not SignalKind.PROMETHEUS]
    if asked:
        notes.append(f"Signals with a query of yours may need more, on what it reads: {', '.join(asked)}.")
    dual_write = None
    if source is not None and mode is not Mode.COPY and spec.transform is None:
        table = tables[0][0]
        dual_write = (table, await _owner(source, table), None if mode is Mode.UPDATE else tables[1][0])
    return Part(
        label=connection.label,
        database=connection.server.database,
        version_num=connection.server.version_num,
        schemas=await _schemas(connection, [table for table, _ in tables]),
        tables=tuple(tables),
        sequences=tuple(sequences),
        repair=repair,
        ledger=ledger,
        staging=_STAGED.get(mode if spec.transform is None else None) if target is not None else None,
        stats=tuple(_signal_rights(spec, is_written=target is not None)),
        notes=tuple(notes),
        has_role=spec.role is not None,
        dual_write=dual_write,
    )


def _signal_rights(spec: JobSpec, *, is_written: bool) -> Iterable[tuple[str, str]]:
    """The predefined roles that the signals of the spec need in one database, each with the signals."""
    needed: dict[str, list[str]] = {}
    for signal in spec.pace.signals:
        role = role_for(signal.kind)
        if role is not None and not signal.off and (is_written or signal.kind is SignalKind.ACTIVE_SESSIONS):
            needed.setdefault(role, []).append(signal.name)
    return ((role, ", ".join(names)) for role, names in needed.items())


async def _table(connection: Connection, table: TableRef) -> TableName:
    try:
        return (await find_table(connection, table))[1]
    except UsageError:
        raise
    except OSError as error:
        raise CannotConnect(f"{connection.label} went away") from error


async def _written(spec: JobSpec, source: Connection) -> list[str]:
    """The columns of the target that the job fills; by default those that the source has."""
    declared = spec.transforms.declared
    computed = declared.writes if declared is not None else ()
    if spec.columns:
        return [*spec.columns, *computed]
    oid, _ = await find_table(source, spec.source.table)
    rows = await source.fetch("SELECT attname::text AS name FROM pg_attribute WHERE attrelid = $1::oid", oid)
    return [*(row["name"] for row in rows), *computed]


async def _schemas(connection: Connection, tables: list[TableName]) -> tuple[tuple[str, bool], ...]:
    found = {table.schema: False for table in tables}
    for table in tables:
        for row in await connection.fetch(_SCHEMAS_NAMED, table.schema, table.name):
            found[row["name"]] = found.get(row["name"], False) or row["of_key"]
    return tuple(found.items())


async def _owner(connection: Connection, table: TableName) -> str:
    return str(
        await connection.fetchval(
            "SELECT pg_get_userbyid(c.relowner)::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 AND c.relname = $2",
            table.schema,
            table.name,
        )
    )


# -- writing ----------------------------------------------------------------------------------------------------------


def opening_of(spec: JobSpec, to: Grantee) -> Iterator[str]:
    """The lines before the first part."""
    yield f"-- Rights of role {to.rows} for job {spec.name}."
    yield "-- To be run as the owner of the tables and of the ledger, or as a superuser; each part in its database."
    yield "-- What expressions of the spec and triggers of the tables call besides (functions, sequences, other tables)"
    yield "-- is not in it."
    if to.login != to.rows:
        yield f"-- {to.login} connects and keeps the ledger; for statements on rows it becomes {to.rows}."


def script_of(part: Part, to: Grantee, *, repair: bool = False) -> Iterator[str]:
    """The lines of the script for one database."""
    rows, login = ident(to.rows), ident(to.login)
    yield f"-- In database {part.database} ({part.label}):"
    if to.login != to.rows:
        yield f"GRANT {rows} TO {login};"
    yield f"GRANT CONNECT ON DATABASE {ident(part.database)} TO {login};"
    if part.staging is not None:
        yield f"GRANT TEMPORARY ON DATABASE {ident(part.database)} TO {rows};  -- {part.staging}"
    for schema, has_key_types in part.schemas:
        yield f"GRANT USAGE ON SCHEMA {ident(schema)} TO {to.both if has_key_types else rows};"
    for table, privileges in part.tables:
        yield _on_table(privileges, table, to.rows)
    for sequence in part.sequences:
        yield f"GRANT USAGE ON SEQUENCE {qualified(sequence)} TO {rows};"
    if part.repair is not None:
        table, privileges = part.repair
        if repair:
            yield f"{_on_table(privileges, table, to.rows)}  -- verify --repair"
        else:
            yield "-- backfill verify --repair takes more than the job (backfill grants --repair):"
            yield f"--   {_on_table(privileges, table, to.rows)}"
    for role, signals in part.stats:
        yield f"GRANT {role} TO {login}{_inherited(part)};  -- needs a superuser; for the signals {signals}"
    yield from (f"-- {note}" for note in part.notes)
    if part.ledger is not None:
        yield from _ledger(part.ledger, to)
    if part.dual_write is not None:
        yield from _dual_write(*part.dual_write, role=to.rows if part.has_role else None)
    yield ""
    yield "-- Needs a superuser, and may be left out: ends the sessions of workers that froze, without waiting for the"
    yield "-- server to notice, though another role opened them."
    yield f"GRANT pg_signal_backend, pg_read_all_stats TO {login}{_inherited(part)};"


def _on_table(privileges: frozenset[str], table: TableName, role: str) -> str:
    return f"GRANT {', '.join(sorted(privileges))} ON {qualified(table)} TO {ident(role)};"


def _inherited(part: Part) -> str:
    """These roles are of use only to who inherits them, which a NOINHERIT login does from version 16 on."""
    return " WITH INHERIT TRUE" if part.version_num >= INHERIT_VERSION_NUM else ""


def _ledger(migration: str, to: Grantee) -> Iterator[str]:
    if migration:
        yield ""
        yield "-- The ledger, which is not there yet, or of an older release."
        yield migration.strip()
        yield ""
    for right in LEDGER_RIGHTS:
        yield right.format(both=to.both)
    yield "-- backfill cleanup --all takes the owner of schema backfill, who drops it."


def _dual_write(source: TableName, owner: str, target: TableName | None, *, role: str | None) -> Iterator[str]:
    """What triggers take, as comments: whoever moves rows must not be able to change the table that the application
    writes.
    """
    yield ""
    yield f"-- backfill dualwrite --install and --remove change {source} itself: by a superuser, or by a member of its"
    yield f"-- owner {owner} who may also do this (schema backfill has to be there):"
    name = ident(owner)
    yield f"--   GRANT CREATE, USAGE ON SCHEMA backfill TO {name};"
    yield f"--   GRANT SELECT ON backfill.version, backfill.job TO {name};"
    yield f"--   GRANT INSERT ON backfill.event TO {name};"
    if role is not None:
        yield f"--   GRANT {ident(role)} TO {name};"
    if target is None:
        return
    yield "-- The triggers' functions run as whoever owns them, the source's owner where a superuser installs them:"
    yield f"--   GRANT EXECUTE ON FUNCTION backfill.bury TO {name};"
    yield f"--   GRANT USAGE ON SCHEMA {ident(target.schema)} TO {name};"
    yield f"--   {_on_table(frozenset({'SELECT', 'INSERT', 'UPDATE', 'DELETE'}), target, owner)}"


def script(spec: JobSpec, parts: Iterable[Part], to: Grantee, *, repair: bool = False) -> str:
    """The whole of it."""
    lines = [*opening_of(spec, to)]
    for part in parts:
        lines += ["", *script_of(part, to, repair=repair)]
    return "\n".join(lines)
