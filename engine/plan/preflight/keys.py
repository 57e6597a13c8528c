"""The key a job pages through, and the index of the target that keeps a key from being written twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.model import Column, Finding, Index, Key, KeyColumn, Table
from engine.plan.keyspace import kind_of
from engine.plan.preflight.catalogue import Code, did_you_mean, finding
from engine.spec import JobSpec

_FIRST_USER_OID = 16384
_UNIQUE_INDEX_HINT = "CREATE UNIQUE INDEX CONCURRENTLY on not-null columns of it"


@dataclass(frozen=True, slots=True)
class KeyChoice:
    """The key, or None with the findings that say why there is none.  Findings may accompany a key, as advice."""

    key: Key | None
    findings: tuple[Finding, ...] = ()


def choose_key(spec: JobSpec, source: Table) -> KeyChoice:
    """Choose the columns that order ``source``, and the index that serves them.

    The spec's ``key`` where it names one, in that order; else the primary key; else the unique index on not-null
    columns that is cheapest to page through.
    """
    return _named_key(spec.key, source) if spec.key else _default_key(source)


def choose_arbiter(key_columns: Sequence[str], target: Table) -> Index | None:
    """The target's index that can arbitrate conflicts on exactly ``key_columns``, in any order; None without one.

    Partial, deferrable and expression indexes are no arbiters: the first lets keys through, the second decides too
    late, the third means something else.  Nor are those of exclusion constraints (WITHOUT OVERLAPS), which ON CONFLICT
    cannot name.
    """
    wanted = sorted(key_columns)
    fitting = [
        i for i in target.indexes if _arbitrates(i) and sorted(i.columns) == wanted and not _foreign(i.columns, target)
    ]
    return min(fitting, key=lambda i: (not i.primary, i.size_bytes, i.name), default=None)


def ranges_agree(key: Key, target_columns: Sequence[Column]) -> bool:
    """True when source and target put the values of ``key`` in the same order, so that a range means the same on both.

    ``target_columns`` are the columns that hold the key in the target, in key order.  Kinds, enum labels and collations
    (provider, locale and version) must be equal; a type that only the server understands must be the same one.
    """
    return all(
        kind_of(theirs) == ours.kind
        and theirs.collation_id == ours.collation_id
        and theirs.enum_labels == ours.enum_labels
        and (ours.kind != "opaque" or theirs.base_type == ours.type_name)
        for ours, theirs in zip(key.columns, target_columns, strict=True)
    )


def _arbitrates(index: Index) -> bool:
    return index.unique and index.immediate and index.valid and not index.partial and not index.exclusion


def _named_key(names: Sequence[str], source: Table) -> KeyChoice:
    live = [c.name for c in source.columns]
    missing = [name for name in names if name not in live]
    if missing:
        return KeyChoice(
            None,
            tuple(
                finding(
                    Code.COLUMN_MISSING,
                    f"key names the column {name}, which {source.name} does not have",
                    f"name existing columns{did_you_mean(name, live)}",
                )
                for name in missing
            ),
        )
    nullable = _nullable(names, source)
    if nullable:
        return KeyChoice(None, (_nullable_finding(f"key ({', '.join(names)})", nullable, source),))
    if foreign := _foreign(names, source):
        return KeyChoice(None, (_foreign_finding(f"key ({', '.join(names)})", foreign, source),))
    if not any(i.orders_rows and i.columns == tuple(names) for i in source.indexes):
        return KeyChoice(None, (_why_no_index_serves(names, source),))
    serving = [i for i in source.indexes if i.orders_rows and i.columns == tuple(names)]
    return _chosen(min(serving, key=lambda i: (i.size_bytes, i.name)), source)


def _why_no_index_serves(names: Sequence[str], source: Table) -> Finding:
    text = ", ".join(names)
    for index in source.indexes:
        if index.orders_rows and sorted(index.columns) == sorted(names):
            order = ", ".join(index.columns)
            return finding(
                Code.KEY_INDEX_UNUSABLE,
                f"index {index.name} of {source.name} has the columns of key ({text}) in another order: ({order})",
                f"write key: [{order}], the order that the index can page through",
            )
    for index in source.indexes:
        if index.unique and sorted(index.columns) == sorted(names):
            return _unusable_finding(index, source)
    return finding(
        Code.KEY_NOT_UNIQUE,
        f"no unique index of {source.name} has exactly the columns of key ({text})",
        "leave key out to use the default, name the columns of a unique index, or create one"
        " with CREATE UNIQUE INDEX CONCURRENTLY",
    )


def _default_key(source: Table) -> KeyChoice:
    serving = [
        i
        for i in source.indexes
        if i.orders_rows and not _nullable(i.columns, source) and not _foreign(i.columns, source)
    ]
    if serving:
        return _chosen(min(serving, key=lambda i: _cost(i, source)), source)
    unique = [i for i in source.indexes if i.unique]
    if not unique:
        return KeyChoice(
            None,
            (
                finding(
                    Code.NO_KEY,
                    f"{source.name} has neither a primary key nor a unique index: its rows cannot be told apart",
                    f"add a primary key, or {_UNIQUE_INDEX_HINT}",
                ),
            ),
        )
    return KeyChoice(None, tuple(_why_not(index, source) for index in unique))


def _cost(index: Index, source: Table) -> tuple[bool, bool, bool, int, int, str]:
    kinds = [kind_of(c) for c in _columns(index.columns, source)]
    return (
        not index.primary,
        "opaque" in kinds,  # cannot be estimated
        "text" in kinds,  # dear to compare, and estimated roughly
        len(kinds),
        index.size_bytes,
        index.name,
    )


def _chosen(index: Index, source: Table) -> KeyChoice:
    columns = _columns(index.columns, source)
    key = Key(tuple(_key_column(c) for c in columns), index.name)
    opaque = [c for c in columns if kind_of(c) == "opaque"]
    findings: list[Finding] = []
    if opaque:
        named = ", ".join(f"{c.name} ({c.type_name})" for c in opaque)
        findings.append(
            finding(
                Code.KEY_TYPE_OPAQUE,
                f"key column {named} of {source.name} has a type whose order only the server knows:"
                " spans come from probes, and progress within one is a guess",
                "nothing needs doing; a key of integers, uuid, text or timestamps would give better estimates",
            )
        )
    if not _looks_fixed(index, columns):
        findings.append(
            finding(
                Code.KEY_UPDATABLE,
                f"the application may be changing key ({', '.join(index.columns)}) of {source.name}:"
                " a row whose key moves behind the cursor meanwhile is missed",
                "make sure that nothing updates these columns during the job, or verify afterwards",
            )
        )
    return KeyChoice(key, tuple(findings))


def _looks_fixed(index: Index, columns: Iterable[Column]) -> bool:
    """True for surrogate keys: nobody has a reason to change an identity, a serial or a uuid that is primary."""
    return index.primary and all(kind_of(c) in ("int", "uuid") for c in columns)


def _key_column(column: Column) -> KeyColumn:
    return KeyColumn(
        name=column.name,
        type_name=column.base_type,
        type_oid=column.type_oid,
        kind=kind_of(column),
        collation=column.collation,
        collation_id=column.collation_id,
        enum_labels=column.enum_labels,
    )


def _columns(names: Iterable[str], table: Table) -> list[Column]:
    return [c for c in map(table.column, names) if c is not None]


def _nullable(names: Iterable[str], table: Table) -> list[str]:
    return [c.name for c in _columns(names, table) if not c.not_null]


def _why_not(index: Index, source: Table) -> Finding:
    if not index.orders_rows:
        return _unusable_finding(index, source)
    if foreign := _foreign(index.columns, source):
        return _foreign_finding(f"unique index {index.name}", foreign, source)
    return _nullable_finding(f"unique index {index.name}", _nullable(index.columns, source), source)


def _foreign(names: Iterable[str], table: Table) -> list[str]:
    """Columns whose base type is an extension's (citext): its operators are not in pg_catalog, so under our pinned
    search path ``>`` would silently be another type's, in another order than the index's.
    """
    return [
        c.name
        for c in _columns(names, table)
        if c.type_kind in "bd" and c.category_oid >= _FIRST_USER_OID and not c.enum_labels
    ]


def _foreign_finding(what: str, foreign: Sequence[str], source: Table) -> Finding:
    names = ", ".join(f"{c.name} ({c.type_name})" for c in _columns(foreign, source))
    return finding(
        Code.KEY_INDEX_UNUSABLE,
        f"{what} of {source.name} cannot serve as key: the type of {names} comes from an extension,"
        " and its order is not that of any built-in type",
        f"name another key, or {_UNIQUE_INDEX_HINT}",
    )


def _nullable_finding(what: str, nullable: Sequence[str], source: Table) -> Finding:
    names = ", ".join(nullable)
    return finding(
        Code.KEY_NULLABLE,
        f"{what} of {source.name} may hold NULL in {names}: such rows have no place in the key order",
        f"ALTER TABLE … ALTER COLUMN … SET NOT NULL on {names}, or name another key",
    )


def _unusable_finding(index: Index, source: Table) -> Finding:
    return finding(
        Code.KEY_INDEX_UNUSABLE,
        f"unique index {index.name} of {source.name} cannot serve as key: {'; '.join(_faults(index))}",
        f"name another key, or {_UNIQUE_INDEX_HINT}",
    )


def _faults(index: Index) -> list[str]:
    """Why the index does not give every row one place in an order (``Index.orders_rows`` in words)."""
    faults = {
        "it is partial, so it leaves rows out": index.partial,
        "it is deferrable, so keys may repeat inside a transaction": not index.immediate,
        "it is invalid, left over from a build that failed": not index.valid,
        "it indexes an expression": "" in index.columns,
        f"it is a {index.method} index, which has no order": index.method != "btree",
        "it mixes ascending and descending columns": len(set(index.descending)) > 1,
        "it uses an operator class or collation other than its columns' own": (
            not index.default_opclass and "" not in index.columns  # an expression has no column to agree with
        ),
    }
    return [words for words, holds in faults.items() if holds]
