"""What about the tables themselves stands in the way: their kind, their parts, and how the target tells rows apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from engine.model import Column, ConflictPolicy, Finding, Index, Key, Mode, Table
from engine.plan.keyspace import kind_of
from engine.plan.preflight.catalogue import Code, finding
from engine.plan.preflight.columns import ColumnMap
from engine.plan.preflight.facts import PreflightFacts, in_sql
from engine.plan.preflight.fits import loses
from engine.plan.preflight.keys import choose_arbiter, ranges_agree
from engine.plan.preflight.writes import names_of

_KINDS: Final = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "c": "a composite type",
    "i": "an index",
    "I": "an index",
    "t": "a TOAST table",
}
_TABLE_KINDS: Final = ("r", "p")
# A hash-partitioned table has a place for every row.
_WITH_GAPS: Final = frozenset({"list", "range"})


def check_tables(facts: PreflightFacts) -> Iterator[Finding]:
    """Kind and identity of the tables, their children and partitions, and whose rows are hidden."""
    source, target, spec = facts.source, facts.target, facts.spec
    yield from _kind(source)
    if not facts.in_place:
        if target is None:
            named = spec.target.table if spec.target is not None else "the target"
            yield finding(
                Code.TARGET_MISSING,
                f"the target table {named} does not exist, or is invisible to this role",
                "create it as it should be in the end (CREATE TABLE … (LIKE … INCLUDING ALL)), then start the job",
            )
        else:
            yield from _kind(target)
            if facts.mode is Mode.INSERT and target.oid == source.oid:
                yield finding(
                    Code.TARGET_IS_SOURCE,
                    f"source and target are the same table, {source.name}",
                    "name another target, or leave target out and use set to fill columns in place",
                )
    yield from _inheritance(source)
    if target is not None:
        yield from _inheritance(target)
    yield from _partitions(facts)
    if source.row_security:
        yield _row_security(source, "read")
    if target is not None and target.row_security:
        yield _row_security(target, "write or see")


def check_arbiter(facts: PreflightFacts, columns: ColumnMap, key: Key) -> Iterator[Finding]:
    """How the target tells rows apart: the arbiter, other unique indexes, and what is there already."""
    target, spec = facts.target, facts.spec
    if target is None:
        return
    places = columns.key_columns(key, target)
    if places is None:
        yield _key_not_mapped(columns, key, target)
        return
    yield from _changing_keys(facts, key, places)
    arbiter = choose_arbiter([c.name for c in places], target)
    names = ", ".join(c.name for c in places)
    if arbiter is None:
        yield finding(
            Code.NO_ARBITER,
            f"{target.name} has no unique index on exactly ({names}): a row written by the job and by the"
            " application at once would be there twice",
            f"CREATE UNIQUE INDEX CONCURRENTLY on {in_sql(target)} ({names}), neither partial nor deferrable",
        )
    others = [i for i in target.indexes if i.unique and not i.exclusion and not _implied(i, arbiter)]
    if others:
        yield finding(
            Code.SEVERAL_UNIQUE,
            f"{target.name} has other unique indexes than the key's: {names_of(others)};"
            " a source row that collides in one of them stops the job",
            "make sure that the source is unique in the same way, or create these indexes after the job",
        )
    if not ranges_agree(key, places):
        yield _collations_differ(key, places, target)
    if facts.target_has_rows:
        yield _target_has_rows(facts, target)
    if spec.on_conflict.policy is ConflictPolicy.NEWEST:
        yield from _newest(facts, columns, target)


# Kinds whose narrower types refuse a value that does not fit; the others round it, or cut off trailing blanks (text).
_REFUSING_KINDS: Final = frozenset({"int", "bytea", "uuid", "bool", "enum"})
_PADDED: Final = frozenset({"character", "bpchar"})  # char(n): trailing blanks mean nothing in it


def _changing_keys(facts: PreflightFacts, key: Key, places: Sequence[Column]) -> Iterator[Finding]:
    """Key columns whose values would not be the same in the target."""
    for ours, place in zip(key.columns, places, strict=True):
        column = facts.source.column(ours.name)
        assert column is not None
        same_kind = kind_of(place) == ours.kind and (ours.kind != "opaque" or place.base_type == column.base_type)
        padded = place.base_type in _PADDED and column.base_type not in _PADDED
        if same_kind and not padded and (ours.kind in _REFUSING_KINDS or loses(column, place) is None):
            continue
        yield finding(
            Code.KEY_CHANGES_VALUE,
            f"key column {ours.name} is {column.type_name} at the source and {place.type_name} in {place.name} of"
            " the target, which does not keep every value as it is",
            f"give {place.name} the type {column.type_name}",
        )


def _kind(table: Table) -> Iterator[Finding]:
    if table.kind not in _TABLE_KINDS or table.persistence == "t":
        what = "a temporary table" if table.persistence == "t" else _KINDS.get(table.kind, f"of kind {table.kind}")
        yield finding(
            Code.TABLE_KIND,
            f"{table.name} is {what}, and only ordinary and partitioned tables can be backfilled",
            "name the table that holds the rows",
        )
    if table.foreign_partitions:
        yield finding(
            Code.TABLE_KIND,
            f"{table.name} has partitions that are foreign tables ({', '.join(table.foreign_partitions)}): what is"
            " written there does not commit together with the cursor",
            "make a job for each of the other partitions, or detach these",
        )


def _inheritance(table: Table) -> Iterator[Finding]:
    if table.inheritance_children:
        yield finding(
            Code.INHERITANCE,
            f"{table.name} has children by inheritance ({table.inheritance_children}): its key is unique and indexed"
            " in each of them, and not over all",
            "make one job for each child",
        )


def _partitions(facts: PreflightFacts) -> Iterator[Finding]:
    source, target = facts.source, facts.target
    if facts.in_place and source.partitions and not facts.is_dual_written:
        yield finding(
            Code.PARTITION_ROW_MOVEMENT,
            f"{source.name} has {source.partitions} partitions: a row that the application moves to another one changes"
            " its key, and when it moves behind the cursor the job does not see it again",
            "make sure that nothing updates the partition key meanwhile, or verify afterwards",
        )
    if source.partitions:
        unheard = (
            "the rows of one that is attached meanwhile may lie behind the cursor"
            if facts.in_place
            else "what is attached, detached or truncated meanwhile is not carried over to the target"
        )
        yield finding(
            Code.PARTITIONS_UNHEARD,
            f"{source.name} has {source.partitions} partitions, and no row trigger hears what happens to a whole one:"
            f" {unheard}",
            "attach, detach and truncate partitions before or after the job, and verify it where that was not possible",
        )
    if target is not None and target.partitioned_by in _WITH_GAPS and not target.has_default_partition:
        yield finding(
            Code.NO_DEFAULT_PARTITION,
            f"{target.name} is partitioned by {target.partitioned_by} and has no default partition: a row that none of"
            f" its {target.partitions} partitions takes stops the job",
            "make sure that there is a partition for every row of the source, the oldest ones too",
        )


def _row_security(table: Table, verb: str) -> Finding:
    return finding(
        Code.ROW_SECURITY,
        f"row security of {table.name} applies to this role: the job may not {verb} every row",
        "run as the table's owner without FORCE ROW LEVEL SECURITY, or as a role with BYPASSRLS",
    )


def _key_not_mapped(columns: ColumnMap, key: Key, target: Table) -> Finding:
    plain = {c.source.name for c in columns.columns if c.source is not None}
    lost = ", ".join(name for name in key.names if name not in plain)
    return finding(
        Code.KEY_NOT_MAPPED,
        f"no column of {target.name} takes the key column {lost} as it is: rows of source and target could not be"
        " told to be the same",
        "map each key column to a target column by its bare name",
    )


def _implied(index: Index, arbiter: Index | None) -> bool:
    """True when being unique in ``arbiter`` implies being unique in ``index``."""
    return arbiter is not None and set(arbiter.columns) <= set(index.columns)


def _collations_differ(key: Key, places: Sequence[Column], target: Table) -> Finding:
    differing = ", ".join(
        f"{ours.name} ({ours.type_name}, {ours.collation_id or 'no collation'}) and"
        f" {theirs.name} ({theirs.type_name}, {theirs.collation_id or 'no collation'})"
        for ours, theirs in zip(key.columns, places, strict=True)
        if not ranges_agree(Key((ours,), key.index), (theirs,))
    )
    return finding(
        Code.COLLATIONS_DIFFER,
        f"source and {target.name} order the key differently: {differing}; the target is asked by lists of keys"
        " instead of ranges, which is slower",
        'use the same type, collation and library version on both sides (COLLATE "C" is the same everywhere)',
    )


def _target_has_rows(facts: PreflightFacts, target: Table) -> Finding:
    policy = facts.spec.on_conflict.policy
    fate = {
        ConflictPolicy.KEEP: "they stay as they are (on_conflict: keep)",
        ConflictPolicy.REPLACE: "those with a key of the source are overwritten (on_conflict: replace)",
        ConflictPolicy.NEWEST: "those with a key of the source are overwritten where the source's row is newer",
        ConflictPolicy.FAIL: "the first one with a key of the source stops the job (on_conflict: fail)",
    }[policy]
    return finding(
        Code.TARGET_HAS_ROWS,
        f"{target.name} has rows already: {fate}",
        "nothing needs doing when dual-write put them there; otherwise TRUNCATE first, or choose another on_conflict",
    )


def _newest(facts: PreflightFacts, columns: ColumnMap, target: Table) -> Iterator[Finding]:
    name = facts.spec.on_conflict.column
    if name is None or name not in columns.names:
        why = "does not exist there" if name is None or target.column(name) is None else "is not written by the job"
        yield finding(
            Code.NEWEST_COLUMN,
            f"on_conflict: newest({name}) compares a column of {target.name} that {why}",
            "name a column of the target that the job fills",
        )
        return
    column = target.column(name)
    if column is not None and not column.not_null:
        yield finding(
            Code.NEWEST_NULLABLE,
            f"on_conflict: newest({name}) compares a column of {target.name} that may be NULL:"
            " a NULL is never newer, so the target's row stays",
            f"make {name} NOT NULL, or see that this is what you want",
        )
