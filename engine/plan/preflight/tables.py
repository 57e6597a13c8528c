"""What about the tables themselves stands in the way: their kind, their indexes, what fires or locks on a write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from engine.model import Column, ConflictPolicy, Deletes, Finding, Index, Key, Mode, Table, Trigger
from engine.plan.keyspace import kind_of
from engine.plan.preflight.catalogue import Code, finding
from engine.plan.preflight.columns import ColumnMap
from engine.plan.preflight.facts import PreflightFacts, in_sql
from engine.plan.preflight.fits import loses
from engine.plan.preflight.keys import choose_arbiter, ranges_agree

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
_MIB: Final = 1 << 20
# Growth below this is not worth a line.
_NOTABLE_GROWTH_BYTES: Final = 64 * _MIB
# A page has room for a second version of most of its rows only below this.
_ROOMY_FILLFACTOR: Final = 90


def check_tables(facts: PreflightFacts) -> Iterator[Finding]:
    """Kind, persistence and identity of the tables, and what happens on them when rows are written."""
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
    if facts.in_place and source.partitions:
        yield from _row_movement(source)
    if (written := facts.written) is not None:
        yield from _writes(facts, written)
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
    others = [i for i in target.indexes if i.unique and not _implied(i, arbiter)]
    if others:
        yield finding(
            Code.SEVERAL_UNIQUE,
            f"{target.name} has other unique indexes than the key's: {_names(others)};"
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


def check_growth(facts: PreflightFacts) -> Iterator[Finding]:
    """What an update in place does to the heap and its indexes."""
    source, names = facts.source, set(facts.spec.set)
    if not facts.in_place:
        return
    touched = [i for i in source.indexes if names & set(i.columns)]
    if touched:
        yield finding(
            Code.HOT_UPDATES,
            f"set writes columns that are indexed ({_names(touched)}): no update can be HOT, and each adds an entry to"
            f" all {len(source.indexes)} indexes of {source.name}",
            "create these indexes after the job (CREATE INDEX CONCURRENTLY)",
        )
    if source.heap_bytes < _NOTABLE_GROWTH_BYTES:
        return
    if not touched and not source.partitions and source.fillfactor > _ROOMY_FILLFACTOR:
        yield finding(
            Code.FILLFACTOR,
            f"{source.name} has fillfactor {source.fillfactor}: its pages have no room for new row versions, so most"
            " updates are not HOT and touch every index",
            "a lower fillfactor helps tables that are rewritten (VACUUM FULL, CLUSTER, pg_repack) before the job;"
            " otherwise let autovacuum make room while the job runs slowly",
        )
    yield finding(
        Code.GROWTH,
        f"the heap of {source.name} ({readable_bytes(source.heap_bytes)}) will grow by up to its own size, and its"
        f" indexes ({readable_bytes(source.index_bytes)}) likewise, since every updated row leaves its old version"
        " behind until vacuum takes it away",
        "see that there is room on disk and in the WAL archive; let autovacuum run on the table meanwhile",
    )


def readable_bytes(size: float) -> str:
    """``293 MiB``, ``1.2 TiB``: three digits are enough for an estimate."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f} {units[0]}" if value < 10 and units[0] != "B" else f"{value:.0f} {units[0]}"


def _names(things: Iterable[Index | Trigger]) -> str:
    return ", ".join(thing.name for thing in things)


def _kind(table: Table) -> Iterator[Finding]:
    if table.kind not in _TABLE_KINDS or table.persistence == "t":
        what = "a temporary table" if table.persistence == "t" else _KINDS.get(table.kind, f"of kind {table.kind}")
        yield finding(
            Code.TABLE_KIND,
            f"{table.name} is {what}, and only ordinary and partitioned tables can be backfilled",
            "name the table that holds the rows",
        )


def _inheritance(source: Table) -> Iterator[Finding]:
    if source.inheritance_children:
        yield finding(
            Code.INHERITANCE,
            f"{source.name} has children by inheritance ({source.inheritance_children}): its key is unique and indexed"
            " in each of them, and not over all",
            "make one job for each child",
        )


def _row_movement(source: Table) -> Iterator[Finding]:
    yield finding(
        Code.PARTITION_ROW_MOVEMENT,
        f"{source.name} has {source.partitions} partitions: a row that the application moves to another one changes"
        " its key, and when it moves behind the cursor the job does not see it again",
        "make sure that nothing updates the partition key meanwhile, or verify afterwards",
    )


def _writes(facts: PreflightFacts, written: Table) -> Iterator[Finding]:
    """What happens on ``written`` when the job writes it."""
    if written.persistence == "u":
        yield finding(
            Code.UNLOGGED_TARGET,
            f"{written.name} is unlogged: a crash of the server empties it, and the ledger would still say that its"
            " rows were moved",
            f"ALTER TABLE {in_sql(written)} SET LOGGED before the job",
        )
    events = _events(facts)
    firing = [t for t in written.triggers if t.enabled and _fires(t, events)]
    if firing:
        code = Code.TRIGGERS_ON_SOURCE if facts.in_place else Code.TRIGGERS_ON_TARGET
        each = "for each row" if any(t.row_level for t in firing) else "for each chunk"
        yield finding(
            code,
            f"triggers of {written.name} fire {each} that the job writes: {_names(firing)}",
            "see that they may fire for every row again (no mails, no queues, no audit of every row),"
            " or let them pass over sessions whose application_name begins with backfill/",
        )
    if written.rules:
        yield finding(
            Code.RULES,
            f"{written.name} has rules ({', '.join(written.rules)}), which rewrite the job's statements,"
            " and which COPY ignores",
            "drop them, or use triggers instead",
        )
    if not facts.in_place:
        yield from _inheritance(written)
    yield from _foreign_keys(facts, written, events)


def _events(facts: PreflightFacts) -> frozenset[str]:
    """The kinds of statement that the job runs on the table it writes."""
    if facts.in_place:
        return frozenset({"update"})
    events = {"insert"}
    if facts.spec.on_conflict.policy in (ConflictPolicy.REPLACE, ConflictPolicy.NEWEST):
        events.add("update")
    if facts.spec.deletes is Deletes.GUARDED:
        events.add("delete")
    return frozenset(events)


def _fires(trigger: Trigger, events: frozenset[str]) -> bool:
    return (
        (trigger.on_insert and "insert" in events)
        or (trigger.on_update and "update" in events)
        or (trigger.on_delete and "delete" in events)
    )


def _foreign_keys(facts: PreflightFacts, written: Table, events: frozenset[str]) -> Iterator[Finding]:
    touched = set(facts.spec.set) if facts.in_place else None
    outgoing = [f for f in written.foreign_keys if f.outgoing and (touched is None or touched & set(f.columns))]
    # Rows pointing here matter when ours are taken out again, or when a referenced column changes.
    incoming = [
        f
        for f in written.foreign_keys
        if not f.outgoing and ("delete" in events if touched is None else touched & set(f.columns))
    ]
    if outgoing:
        named = ", ".join(f"{f.name} to {f.other_table}" for f in outgoing)
        yield finding(
            Code.FOREIGN_KEYS,
            f"foreign keys of {written.name} are checked for every row, and lock the row they point at: {named}",
            "see that the rows pointed at are there first, or add these foreign keys NOT VALID after the job"
            " and validate them then",
        )
    if incoming:
        named = ", ".join(f"{f.name} from {f.other_table}" for f in incoming)
        doing = "changes referenced columns" if facts.in_place else "takes rows out again that the source has deleted"
        yield finding(
            Code.FOREIGN_KEYS,
            f"rows of other tables point at {written.name} ({named}): where the job {doing}, they refuse it or cascade",
            "add these foreign keys after the job, or see that their actions are what you want",
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
