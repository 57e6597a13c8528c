"""A table's fingerprint: what a job relies on, kept in the ledger and compared at every claim.

A dict of JSON values by section, so that who compares may say which sections matter to him: a new index is nothing to
stop for, a column of another type is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from engine.db import catalogue
from engine.db.connection import Connection
from engine.db.inspect import read_collations
from engine.model import Table

SECTIONS: Final = ("table", "columns", "indexes", "triggers", "collations", "relfilenodes")

_NOUNS: Final = {
    "table": "property",
    "columns": "column",
    "indexes": "index",
    "triggers": "trigger",
    "collations": "collation",
    "relfilenodes": "file of",
}


async def fingerprint(connection: Connection, table: Table) -> dict[str, dict[str, Any]]:
    """The fingerprint of ``table`` as it is now: section -> name -> value.

    Found by OID, so a renamed table shows as renamed.  Raises ``LookupError`` when it is gone.
    """
    name = await connection.fetchrow(
        "SELECT n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::oid",
        table.oid,
    )
    if name is None:
        raise LookupError(f"table {table.name} is gone")
    columns = await connection.fetch(catalogue.COLUMNS, table.oid)
    collations = await read_collations(connection, {row["collation"] for row in columns if row["collation"]})
    indexes = await connection.fetch(catalogue.INDEX_DEFINITIONS, table.oid)
    triggers = await connection.fetch(catalogue.TRIGGERS, table.oid)
    files = await connection.fetch(catalogue.RELFILENODES, table.oid)
    return {
        "table": {"oid": table.oid, "name": f"{name['schema']}.{name['name']}", "kind": name["kind"]},
        "columns": {
            row["name"]: {
                "number": row["number"],
                "type": row["type_name"],
                "type_oid": row["type_oid"],
                "not_null": row["not_null"],
                "identity": row["identity"],
                "generated": row["generated"],
                "collation": collations[row["collation"]].name if row["collation"] else None,
            }
            for row in columns
        },
        "indexes": {row["name"]: row["definition"] for row in indexes},
        "triggers": {row["name"]: {"definition": row["definition"], "enabled": row["enabled"]} for row in triggers},
        "collations": {collation.name: collation.identity for collation in collations.values()},
        "relfilenodes": {row["name"]: row["relfilenode"] for row in files},
    }


def differences(
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
    *,
    sections: Iterable[str] = SECTIONS,
) -> list[str]:
    """What changed, in words, in the order of ``sections``; empty when nothing did."""
    found: list[str] = []
    for section in sections:
        noun = _NOUNS[section]
        old, new = before.get(section, {}), after.get(section, {})
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in new:
                found.append(f"{noun} {name} is gone")
            elif name not in old:
                found.append(f"{noun} {name} is new")
            elif old[name] != new[name]:
                found.append(f"{noun} {name} changed: {_change(old[name], new[name])}")
    return found


def _change(old: Any, new: Any) -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(f"{key} {_word(old.get(key))} -> {_word(new.get(key))}" for key in changed)
    return f"{_word(old)} -> {_word(new)}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in ("", None) else str(value)
