"""What the catalogue says of a table, as ``engine.model.Table``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, Protocol

from engine.db import catalogue
from engine.db.connection import Connection
from engine.errors import UsageError
from engine.model import Check, Column, ForeignKey, Index, Publication, Table, TableName, Trigger
from engine.sql import ident

FIRST_USER_OID: Final = 16384  # what initdb makes is below, and the same on every server of that version
BYTE_ORDER: Final = "byte order"

_IDENTITY: Final = {"": "", "a": "always", "d": "default"}
_GENERATED: Final = {"": "", "s": "stored", "v": "virtual"}
_PROVIDERS: Final = {"b": "builtin", "c": "libc", "i": "icu"}

# pg_trigger.tgtype
_ROW, _BEFORE, _INSERT, _DELETE, _UPDATE, _TRUNCATE = 1, 2, 4, 8, 16, 32

# Their binary form is the OID of an object, their text its name.
# fmt: off
_OBJECT_REFERENCES: Final = frozenset([
    "regclass", "regcollation", "regconfig", "regdatabase", "regdictionary", "regnamespace", "regoper", "regoperator",
    "regproc", "regprocedure", "regrole", "regtype",
])
# fmt: on


class NamedTable(Protocol):
    """A table as a spec names it (``engine.spec.TableRef``)."""

    @property
    def schema(self) -> str | None:
        """None: to be found along the role's search path."""
        ...

    @property
    def name(self) -> str:
        """The name, as the catalogue spells it."""
        ...


@dataclass(frozen=True, slots=True)
class Collation:
    """A collation with the database's default resolved.  ``identity`` is ``Column.collation_id``."""

    name: str
    identity: str
    is_byte_order: bool
    version: str


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """One row of ``pg_type``, as far as binary COPY cares."""

    oid: int
    name: str
    full_name: str  # format_type without a modifier
    kind: str
    is_array: bool
    element: int
    base: int
    declared_base: str  # of a domain: its base type with the modifier it is declared with
    subtype: int
    attributes: tuple[int, ...]
    binary_io: bool
    labels: tuple[str, ...] = ()


async def find_table(connection: Connection, table: NamedTable) -> tuple[int, TableName]:
    """The OID and full name of a table; raises ``UsageError`` when there is none.

    A bare name is looked for as the role's own session would: along its search path, not our pinned one.
    """
    if table.schema is not None:
        row = await connection.fetchrow(catalogue.NAMED_TABLE, table.schema, table.name)
    else:
        async with connection.raw.transaction():
            await connection.fetchval("SELECT set_config('search_path', $1, true)", connection.user_search_path)
            oid = await connection.fetchval(catalogue.VISIBLE_TABLE, ident(table.name))
        row = None if oid is None else await connection.fetchrow(catalogue.TABLE_OF_OID, oid)
    if row is None:
        raise await _no_such_table(connection, table)
    return row["oid"], TableName(row["schema"], row["name"])


async def inspect_table(connection: Connection, table: NamedTable) -> Table:
    """Everything ``engine.model.Table`` holds of one table.  Raises ``UsageError`` when there is no such table.

    Reads the catalogue alone, never a row.  Rights and row security are those of the session's current role.
    """
    oid, name = await find_table(connection, table)
    whole = await connection.fetchrow(catalogue.table_query(connection.server), oid)
    if whole is None:
        raise UsageError(f"table {name} was dropped while we looked at it")
    indexes = await connection.fetch(catalogue.INDEXES, oid)
    triggers = await connection.fetch(catalogue.TRIGGERS, oid)
    foreign_keys = await connection.fetch(catalogue.FOREIGN_KEYS, oid)
    server = connection.server
    checks = await connection.fetch(catalogue.checks_query(server), oid)
    publications = await connection.fetch(catalogue.publications_query(server), oid)
    sequences = await connection.fetch(catalogue.CLOSED_SEQUENCES, oid)
    subscriptions = await connection.fetch(catalogue.SUBSCRIPTIONS, oid)
    outdated = await connection.fetch(catalogue.outdated_collations_query(server), oid)
    return Table(
        oid=oid,
        name=name,
        kind=whole["kind"],
        persistence=whole["persistence"],
        relfilenode=whole["relfilenode"],
        rows=whole["rows"],
        heap_bytes=whole["heap"],
        toast_bytes=whole["toast"],
        index_bytes=whole["indexes"],
        fillfactor=whole["fillfactor"],
        columns=await _columns(connection, oid),
        indexes=tuple(_index(row) for row in indexes),
        triggers=tuple(_trigger(row) for row in triggers),
        foreign_keys=tuple(
            ForeignKey(
                row["name"],
                row["outgoing"],
                tuple(row["columns"]),
                TableName(row["other_schema"], row["other_name"]),
                indexed=row["indexed"],
            )
            for row in foreign_keys
        ),
        rules=tuple(whole["rules"]),
        row_security=whole["row_security"],
        inheritance_children=whole["children"],
        is_inheritance_child=whole["is_child"],
        partitions=whole["partitions"],
        owner=whole["owner"],
        privileges=frozenset(whole["privileges"]),
        closed_sequences=tuple(Check(row["name"], tuple(row["columns"])) for row in sequences),
        schema_usage=whole["schema_usage"],
        foreign_partitions=tuple(whole["foreign_partitions"]),
        partitioned_by=whole["partitioned_by"],
        has_default_partition=whole["has_default_partition"],
        checks_not_valid=tuple(Check(row["name"], tuple(row["columns"])) for row in checks),
        publications=tuple(
            Publication(row["name"], insert=row["insert"], update=row["update"], delete=row["delete"])
            for row in publications
        ),
        without_identity=tuple(whole["without_identity"]),
        subscriptions=tuple(row["name"] for row in subscriptions),
        autovacuum_off=tuple(whole["autovacuum_off"]),
        outdated_collations=tuple(row["name"] for row in outdated),
        tablespace=whole["tablespace"],
    )


async def _no_such_table(connection: Connection, table: NamedTable) -> UsageError:
    written = table.name if table.schema is None else f"{table.schema}.{table.name}"
    rows = await connection.fetch(catalogue.TABLE_NAMES)
    names = [f"{row['schema']}.{row['name']}" for row in rows]
    wanted = written if table.schema is not None else f"public.{written}"
    close = get_close_matches(wanted, names, n=3)
    return UsageError(
        f"there is no table {written} in {connection.label}",
        hint=f"did you mean {' or '.join(close)}?" if close else "names are as the catalogue spells them",
    )


async def _columns(connection: Connection, oid: int) -> tuple[Column, ...]:
    rows = await connection.fetch(catalogue.COLUMNS, oid)
    type_rows = await connection.fetch(catalogue.TYPES, sorted({row["type_oid"] for row in rows}))
    types = {
        row["oid"]: TypeFacts(
            oid=row["oid"],
            name=row["name"],
            full_name=row["full_name"],
            kind=row["kind"],
            is_array=row["is_array"],
            element=row["element"],
            base=row["base"],
            declared_base=row["declared_base"],
            subtype=row["subtype"],
            attributes=tuple(row["attributes"]),
            binary_io=row["binary_io"],
            labels=tuple(row["labels"]),
        )
        for row in type_rows
    }
    collations = await read_collations(connection, {row["collation"] for row in rows if row["collation"]})
    columns = []
    for row in rows:
        base = _without_domains(types, row["type_oid"])
        collation = collations.get(row["collation"])
        columns.append(
            Column(
                name=row["name"],
                number=row["number"],
                type_oid=row["type_oid"],
                type_name=row["type_name"],
                declared_base=_declared_base(types, row["type_oid"]),
                # A cast to a domain would truncate to the length its base type is declared with.
                base_type=base.full_name,
                type_kind=types[row["type_oid"]].kind,
                category_oid=base.oid,
                not_null=row["not_null"],
                identity=_IDENTITY[row["identity"]],
                generated=_GENERATED[row["generated"]],
                has_default=row["has_default"],
                collation=collation.name if collation else None,
                collation_id=collation.identity if collation else None,
                collation_is_c=collation.is_byte_order if collation else False,
                enum_labels=base.labels,
                binary_io=_has_binary_io(types, base.oid),
                binary_portable=is_portable(types, row["type_oid"]),
            )
        )
    return tuple(columns)


# -- types -----------------------------------------------------------------------------------------------------------


def _without_domains(types: Mapping[int, TypeFacts], oid: int) -> TypeFacts:
    found = types[oid]
    while found.kind == "d":
        found = types[found.base]
    return found


def _declared_base(types: Mapping[int, TypeFacts], oid: int) -> str:
    """What the innermost domain is declared over, such as ``numeric(12,2)``; empty where the type is no domain."""
    found, declared = types[oid], ""
    while found.kind == "d":
        found, declared = types[found.base], found.declared_base
    return declared


def _parts(types: Mapping[int, TypeFacts], oid: int) -> tuple[int, ...]:
    """The types whose values are inside a value of this type."""
    found = types[oid]
    if found.kind == "d":
        return (found.base,)
    if found.is_array:
        return (found.element,)
    if found.kind in ("r", "m"):
        return (found.subtype,)
    return found.attributes


def _has_binary_io(types: Mapping[int, TypeFacts], oid: int, seen: frozenset[int] = frozenset()) -> bool:
    """True when the type and everything inside it can be sent and received in binary form."""
    if oid in seen or oid not in types:
        return True
    return types[oid].binary_io and all(_has_binary_io(types, part, seen | {oid}) for part in _parts(types, oid))


def is_portable(types: Mapping[int, TypeFacts], oid: int, seen: frozenset[int] = frozenset()) -> bool:
    """True when a value's binary form means the same in another database.

    An array carries its element's type OID and a composite those of its columns, and the receiver compares them; a
    ``regclass`` and its like are nothing but an OID.  Enums travel as labels, ranges as their bounds.  Types of
    extensions are believed to be honest: their send functions exist for this purpose.
    """
    if oid in seen or oid not in types:
        return True
    found = types[oid]
    if found.name in _OBJECT_REFERENCES and oid < FIRST_USER_OID:
        return False
    parts = _parts(types, oid)
    carries_oids = found.is_array or found.kind == "c"
    if carries_oids and any(part >= FIRST_USER_OID for part in parts):
        return False
    return all(is_portable(types, part, seen | {oid}) for part in parts)


# -- collations ------------------------------------------------------------------------------------------------------


async def read_collations(connection: Connection, oids: set[int]) -> dict[int, Collation]:
    """The collations of those OIDs, the database's default resolved."""
    if not oids:
        return {}
    rows = await connection.fetch(catalogue.collations_query(connection.server), sorted(oids))
    return {row["oid"]: _collation(row, connection.server.system_identifier) for row in rows}


def _collation(row: Any, server_identity: str) -> Collation:
    """Two servers sort a text equally when, and as far as we can know only when, the identities are equal."""
    provider, locale, encoding = row["provider"], row["locale"] or "", row["encoding"]
    version = row["version"] or ""
    if provider == "b" or (provider == "c" and locale in ("C", "POSIX")):
        # By bytes, whatever the name.  Other encodings than UTF-8 put the same characters into another order.
        same_everywhere = encoding == "UTF8"
        return Collation(
            row["name"], BYTE_ORDER if same_everywhere else f"{BYTE_ORDER} of {encoding}", same_everywhere, version
        )
    if provider == "c":
        locale = _plain_locale(locale)
        if not version and not locale.startswith("C."):  # C.UTF-8 sorts by code point and has no version
            version = f"unknown, of server {server_identity}"
    parts = [_PROVIDERS.get(provider, provider), locale, version, row["rules"] or ""]
    if not row["deterministic"]:
        parts.append("nondeterministic")
    return Collation(row["name"], ":".join(parts), False, version)


def _plain_locale(locale: str) -> str:
    """``en_US.utf8`` and ``en_US.UTF-8`` are one locale of the C library."""
    name, dot, encoding = locale.partition(".")
    return f"{name}{dot}{encoding.lower().replace('-', '')}"


# -- indexes and triggers --------------------------------------------------------------------------------------------


def _index(row: Any) -> Index:
    return Index(
        name=row["name"],
        oid=row["oid"],
        columns=tuple(row["columns"]),
        unique=row["unique"],
        primary=row["primary"],
        immediate=row["immediate"],
        partial=row["partial"],
        valid=row["valid"],
        method=row["method"],
        descending=tuple(row["descending"]),
        default_opclass=row["default_opclass"],
        size_bytes=int(row["tree_size"] or row["size"]),
        reads=tuple(row["reads"]),
        exclusion=row["exclusion"],
    )


def _trigger(row: Any) -> Trigger:
    bits = row["bits"]
    return Trigger(
        name=row["name"],
        enabled=row["enabled"],
        row_level=bool(bits & _ROW),
        before=bool(bits & _BEFORE),
        on_insert=bool(bits & _INSERT),
        on_update=bool(bits & _UPDATE),
        on_delete=bool(bits & _DELETE),
        on_truncate=bool(bits & _TRUNCATE),
        of_columns=tuple(row["of_columns"]),
    )
