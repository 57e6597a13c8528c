"""Every finding: where it appears, and where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from engine.model import (
    Check,
    ConflictPolicy,
    Deletes,
    Finding,
    ForeignKey,
    Mode,
    Publication,
    Severity,
    Side,
    TableName,
)
from engine.plan.preflight import (
    CATALOGUE,
    Code,
    DualWriteFacts,
    PacingFacts,
    PlanCheck,
    PreflightFacts,
    ServerPacing,
    Slot,
    preflight,
    refusals,
    required_privileges,
)
from engine.spec import Bloat, OnConflict, Pace, SignalKind, SignalSpec, TimeWindow
from tests.support.preflight import (
    NOON,
    AnyServer,
    column,
    copy_spec,
    expression,
    fill,
    index,
    move,
    paced,
    primary,
    required,
    seen,
    spec,
    table,
    trigger,
)

GIB = 1 << 30


def found(facts: PreflightFacts, code: str) -> Finding | None:
    return next((f for f in preflight(facts) if f.code == code), None)


def source_of(facts: PreflightFacts, **changes: Any) -> PreflightFacts:
    return replace(facts, source=replace(facts.source, **changes))


def target_of(facts: PreflightFacts, **changes: Any) -> PreflightFacts:
    assert facts.target is not None
    return replace(facts, target=replace(facts.target, **changes))


def filling(text: str, *, written: Any = None, done: str | None = None, **changes: Any) -> PreflightFacts:
    """A job in place that sets cents to ``text``."""
    facts = fill(
        spec=spec(set={"cents": text}, done=done), expressions=(expression(text, place="set.cents", **changes),)
    )
    if written is None:
        return facts
    return source_of(facts, columns=(*facts.source.columns[:2], written))


def where(text: str, **changes: Any) -> PreflightFacts:
    facts = fill()
    return replace(facts, expressions=(*facts.expressions, expression(text, place="where", **changes)))


def done(text: str, **changes: Any) -> PreflightFacts:
    given = expression(text, place="done", **changes)
    return replace(fill(spec=spec(set={"cents": "1"}, done=text)), expressions=(given,))


def conflict(policy: ConflictPolicy, name: str | None = None) -> OnConflict:
    return OnConflict(policy=policy, column=name)


def newest(updated: Any, *, columns: dict[str, str] | None = None) -> PreflightFacts:
    """A job with ``on_conflict: newest(updated)`` to a target that has the column ``updated``."""
    facts = move(
        spec=copy_spec(on_conflict=conflict(ConflictPolicy.NEWEST, "updated"), columns=columns or {}),
        source=replace(move().source, columns=(required("id"), column("updated"))),
    )
    return target_of(facts, columns=(required("id"), updated))


def keyed(*columns: Any, key: Any) -> PreflightFacts:
    facts = fill()
    return source_of(facts, columns=(*columns, column("cents", "numeric")), indexes=(key,))


def text_key(collation: str) -> PreflightFacts:
    ours, theirs = required("id", "text"), required("id", "text", collation_id=collation)
    return target_of(source_of(move(), columns=(ours,)), columns=(theirs,))


def plan(**changes: Any) -> PreflightFacts:
    given: dict[str, Any] = {
        "query": "the chunk query",
        "node_types": ("Index Scan",),
        "index": "pkey",
        "scans_table": False,
    }
    return fill(plans=(PlanCheck(**(given | changes)),))


def signalling(*kinds: SignalKind, **limits: Any) -> PreflightFacts:
    """A job in place that names these signals."""
    signals = tuple(SignalSpec(kind=kind, **limits) for kind in kinds)
    return fill(spec=spec(set={"cents": "amount * 100"}, pace=Pace(signals=signals)))


def growing() -> PreflightFacts:
    return fill(spec=spec(set={"cents": "amount * 100"}, bloat=Bloat(max_growth=0.2)))


def due(*, hours: float | None = None, **pace: Any) -> PreflightFacts:
    """A job in place that should be done so many hours after noon."""
    deadline = None if hours is None else NOON + timedelta(hours=hours)
    return fill(spec=spec(set={"cents": "amount * 100"}, pace=Pace(finish_by=deadline, **pace)))


def foreign_key(
    *, outgoing: bool, columns: tuple[str, ...] = ("amount",), indexed: bool = True
) -> tuple[ForeignKey, ...]:
    return (ForeignKey("other_fkey", outgoing, columns, TableName("public", "other"), indexed=indexed),)


def published(name: str = "cdc", *, insert: bool = True, update: bool = True, delete: bool = True) -> Any:
    return (Publication(name, insert=insert, update=update, delete=delete),)


def dual_written(facts: PreflightFacts, *, intact: bool = True, **changes: Any) -> PreflightFacts:
    """Our own triggers on the source, and no others."""
    ours = trigger("zz_backfill_job_1a2b3c4d", on="insert update delete")
    found = DualWriteFacts(installed=True, intact=intact, problems=() if intact else ("function f differs",))
    return source_of(replace(facts, dual_write=found), triggers=(ours,), **changes)


def worked_by(workers: int, **changes: Any) -> PreflightFacts:
    """A job in place with so many workers."""
    return seen(fill(spec=spec(set={"cents": "amount * 100"}, workers=workers)), **changes)


def keyed_by_text(*, accept: tuple[str, ...] = (), **changes: Any) -> PreflightFacts:
    facts = source_of(keyed(required("code", "text"), column("amount", "text"), key=primary("code")), **changes)
    return replace(facts, spec=spec(set={"cents": "amount * 100"}, accept=accept))


def natural() -> PreflightFacts:
    return keyed(required("email", "text"), key=primary("email"))


def texts() -> PreflightFacts:
    """A copy of a text column to another database."""
    columns = (required("id"), column("note", "text"))
    return target_of(source_of(move(Mode.COPY), columns=columns), columns=columns)


SAME = table()
WITH_SECONDARY = (
    primary("id"),
    index("by_amount", "amount", unique=False),
    index("by_both", "amount", "id", unique=False),
)
SUMMARY = index("summary", "cents", unique=False, method="brin")
BUSY = Slot(name="cdc", active=True, retained_bytes=0)
MIXED_UNIQUE = (primary("id"), index("by_amount", "amount"))


@dataclass(frozen=True)
class Case:
    """A job that has the finding, one that differs in the cause only and has it not, and words it must say."""

    code: Code
    guilty: PreflightFacts
    innocent: PreflightFacts
    words: tuple[str, ...] = ()


CASES = {
    "a table without a key": Case(
        Code.NO_KEY, source_of(fill(), indexes=()), source_of(fill(), indexes=(primary("id"),)), ("public.orders",)
    ),
    "a unique index on a nullable column": Case(
        Code.KEY_NULLABLE,
        keyed(column("id"), key=index("i", "id")),
        keyed(required("id"), key=index("i", "id")),
        ("id",),
    ),
    "a named key that is not unique": Case(
        Code.KEY_NOT_UNIQUE,
        fill(spec=spec(set={"cents": "1"}, key=("amount",))),
        fill(spec=spec(set={"cents": "1"}, key=("id",))),
        ("(amount)",),
    ),
    "a deferrable primary key": Case(
        Code.KEY_INDEX_UNUSABLE,
        source_of(fill(), indexes=(primary("id", immediate=False),)),
        source_of(fill(), indexes=(primary("id"),)),
        ("pkey", "deferrable"),
    ),
    "a key whose collation has changed since its index was built": Case(
        Code.COLLATION_OUTDATED,
        keyed_by_text(outdated_collations=("code",)),
        keyed_by_text(outdated_collations=("amount",)),
        ("index pkey", "code"),
    ),
    "a key that the target computes": Case(
        Code.KEY_NOT_MAPPED,
        move(spec=copy_spec(columns={"id": "id + 1"})),
        move(spec=copy_spec(columns={"id": "id"})),
        ("key column id",),
    ),
    "a key of another kind in the target": Case(
        Code.KEY_CHANGES_VALUE,
        target_of(move(), columns=(required("id", "numeric(12,2)"), *(move().target.columns[1:]))),
        target_of(move(), columns=(required("id", "bigint"), *(move().target.columns[1:]))),
        ("key column id", "numeric(12,2)"),
    ),
    "a key of a type that only the server can order": Case(
        Code.KEY_TYPE_OPAQUE,
        keyed(required("id", "inet"), key=primary("id")),
        keyed(required("id", "uuid"), key=primary("id")),
        ("inet",),
    ),
    "a natural key": Case(
        Code.KEY_UPDATABLE,
        keyed(required("email", "text"), key=primary("email")),
        keyed(required("id"), key=primary("id")),
        ("email",),
    ),
    "a surrogate that is not the primary key": Case(
        Code.KEY_UPDATABLE, keyed(required("id"), key=index("i", "id")), keyed(required("id"), key=primary("id"))
    ),
    "a view": Case(Code.TABLE_KIND, source_of(fill(), kind="v"), source_of(fill(), kind="p"), ("a view",)),
    "a materialized view as source": Case(Code.TABLE_KIND, source_of(move(), kind="m"), move()),
    "a foreign table as target": Case(Code.TABLE_KIND, target_of(move(), kind="f"), move(), ("a foreign table",)),
    "a temporary table": Case(Code.TABLE_KIND, source_of(fill(), persistence="t"), fill(), ("temporary",)),
    "an unlogged target": Case(
        Code.UNLOGGED_TARGET, target_of(move(), persistence="u"), source_of(move(), persistence="u"), ("orders_v2",)
    ),
    "an unlogged table in place": Case(Code.UNLOGGED_TARGET, source_of(fill(), persistence="u"), fill()),
    "a target that is not there": Case(Code.TARGET_MISSING, move(target=None), move(), ("public.orders_v2",)),
    "a target that is the source": Case(
        Code.TARGET_IS_SOURCE,
        move(source=SAME, target=SAME),
        move(Mode.COPY, source=SAME, target=SAME),  # the same OID in another database is another table
        ("public.orders",),
    ),
    "a target with rows": Case(
        Code.TARGET_HAS_ROWS, move(target_has_rows=True), move(target_has_rows=None), ("on_conflict: keep",)
    ),
    "a target without an index on the key": Case(
        Code.NO_ARBITER, target_of(move(), indexes=(index("i", "id", partial=True),)), move(), ("(id)",)
    ),
    "a target that is unique in another way as well": Case(
        Code.SEVERAL_UNIQUE, target_of(move(), indexes=MIXED_UNIQUE), move(), ("by_amount",)
    ),
    "a target with a wider unique index, which the key implies": Case(
        Code.SEVERAL_UNIQUE,
        target_of(move(), indexes=(primary("id"), index("wide", "amount"))),
        target_of(move(), indexes=(primary("id"), index("wide", "id", "amount"))),
    ),
    "an update trigger in place": Case(
        Code.TRIGGERS_ON_SOURCE,
        source_of(fill(), triggers=(trigger("audit", on="update"),)),
        source_of(fill(), triggers=(trigger("audit", on="insert delete truncate"),)),
        ("audit", "for each row"),
    ),
    "an update trigger in place that is enabled": Case(
        Code.TRIGGERS_ON_SOURCE,
        source_of(fill(), triggers=(trigger("audit", on="update", row_level=False),)),
        source_of(fill(), triggers=(trigger("audit", on="update", enabled=False),)),
        ("for each chunk",),
    ),
    "an insert trigger on the target": Case(
        Code.TRIGGERS_ON_TARGET,
        target_of(move(), triggers=(trigger("notify", on="insert"),)),
        source_of(move(), triggers=(trigger("notify", on="insert update delete"),)),
        ("notify",),
    ),
    "a delete trigger on the target of a guarded job": Case(
        Code.TRIGGERS_ON_TARGET,
        target_of(move(), triggers=(trigger("gone", on="delete"),)),
        target_of(move(spec=copy_spec(deletes=Deletes.NONE)), triggers=(trigger("gone", on="delete"),)),
    ),
    "an update trigger on the target of a job that replaces": Case(
        Code.TRIGGERS_ON_TARGET,
        target_of(
            move(spec=copy_spec(on_conflict=conflict(ConflictPolicy.REPLACE))), triggers=(trigger("t", on="update"),)
        ),
        target_of(move(), triggers=(trigger("t", on="update"),)),
    ),
    "a foreign key of the target": Case(
        Code.FOREIGN_KEYS,
        target_of(move(), foreign_keys=foreign_key(outgoing=True)),
        source_of(move(), foreign_keys=foreign_key(outgoing=True)),
        ("other_fkey to public.other",),
    ),
    "a foreign key that points at the target of a guarded job": Case(
        Code.FOREIGN_KEYS,
        target_of(move(), foreign_keys=foreign_key(outgoing=False)),
        target_of(move(spec=copy_spec(deletes=Deletes.NONE)), foreign_keys=foreign_key(outgoing=False)),
        ("other_fkey from public.other", "takes rows out"),
    ),
    "a foreign key of a column that set writes": Case(
        Code.FOREIGN_KEYS,
        source_of(fill(), foreign_keys=foreign_key(outgoing=True, columns=("cents",))),
        source_of(fill(), foreign_keys=foreign_key(outgoing=True, columns=("amount",))),
    ),
    "a foreign key that points at a column that set writes": Case(
        Code.FOREIGN_KEYS,
        source_of(fill(), foreign_keys=foreign_key(outgoing=False, columns=("cents",))),
        source_of(fill(), foreign_keys=foreign_key(outgoing=False, columns=("id",))),
        ("changes referenced columns",),
    ),
    "a foreign key of the target that no index serves": Case(
        Code.FOREIGN_KEYS_UNINDEXED,
        target_of(move(), foreign_keys=foreign_key(outgoing=True, indexed=False)),
        target_of(move(), foreign_keys=foreign_key(outgoing=True)),
        ("other_fkey (amount) to public.other",),
    ),
    "a foreign key without index that points at rows which the job may delete": Case(
        Code.FOREIGN_KEYS_UNINDEXED,
        target_of(move(), foreign_keys=foreign_key(outgoing=False, indexed=False)),
        target_of(move(spec=copy_spec(deletes=Deletes.NONE)), foreign_keys=foreign_key(outgoing=False, indexed=False)),
        ("other_fkey from public.other",),
    ),
    "an exclusion constraint of the target": Case(
        Code.EXCLUSION_CONSTRAINTS,
        target_of(move(), indexes=(primary("id"), index("no_overlap", "amount", exclusion=True, unique=False))),
        target_of(move(), indexes=(primary("id"), index("overlap", "amount", unique=False))),
        ("no_overlap",),
    ),
    "an exclusion constraint in place": Case(
        Code.EXCLUSION_CONSTRAINTS,
        source_of(fill(), indexes=(primary("id"), index("x", "", exclusion=True, unique=False, reads=("cents",)))),
        source_of(fill(), indexes=(primary("id"), index("x", "", exclusion=True, unique=False, reads=("amount",)))),
        ("x",),
    ),
    "a check that old rows may break": Case(
        Code.CONSTRAINTS_NOT_VALID,
        source_of(fill(), checks_not_valid=(Check("positive", ("amount",)),)),
        source_of(fill(), checks_not_valid=(Check("filled", ("cents",)),)),  # the job is to make it true
        ("positive", "VALIDATE"),
    ),
    "a target that is published": Case(
        Code.PUBLISHED,
        seen(target_of(move(), publications=published()), rows=1234),
        target_of(move(), publications=published(insert=False, delete=False)),
        ("cdc", "1,234"),
    ),
    "a table in place that is published": Case(
        Code.PUBLISHED,
        source_of(fill(), publications=published()),
        source_of(fill(), publications=published(update=False)),
    ),
    "a published table without a replica identity": Case(
        Code.REPLICA_IDENTITY,
        source_of(fill(), publications=published(), without_identity=("orders",)),
        source_of(fill(), publications=published(update=False), without_identity=("orders",)),
        ("orders has no replica identity", "cdc"),
    ),
    "a published target from which rows may be deleted": Case(
        Code.REPLICA_IDENTITY,
        target_of(move(), publications=published(), without_identity=("orders_v2",)),
        target_of(
            move(spec=copy_spec(deletes=Deletes.NONE)), publications=published(), without_identity=("orders_v2",)
        ),
    ),
    "a target that a subscription fills": Case(
        Code.SUBSCRIBED,
        target_of(move(), subscriptions=("from_shop",)),
        source_of(move(), subscriptions=("from_shop",)),
        ("from_shop",),
    ),
    "a copy that wins over dual-write": Case(
        Code.OVERWRITES_DUAL_WRITE,
        move(spec=copy_spec(on_conflict=conflict(ConflictPolicy.REPLACE))),
        move(spec=copy_spec(on_conflict=conflict(ConflictPolicy.KEEP))),
        ("public.orders_v2",),
    ),
    "partitions that may be attached meanwhile": Case(
        Code.PARTITIONS_UNHEARD,
        source_of(fill(), kind="p", partitions=3),
        source_of(fill()),
        ("3 partitions", "attached"),
    ),
    "partitions of a source, our triggers or not": Case(
        Code.PARTITIONS_UNHEARD,
        dual_written(move(), kind="p", partitions=3),
        dual_written(move()),
        ("truncated",),
    ),
    "a partitioned target without a default": Case(
        Code.NO_DEFAULT_PARTITION,
        target_of(move(), kind="p", partitions=4, partitioned_by="range"),
        target_of(move(), kind="p", partitions=4, partitioned_by="range", has_default_partition=True),
        ("by range", "4 partitions"),
    ),
    "a target partitioned by hash, which takes every row": Case(
        Code.NO_DEFAULT_PARTITION,
        target_of(move(), kind="p", partitions=4, partitioned_by="list"),
        target_of(move(), kind="p", partitions=4, partitioned_by="hash"),
    ),
    "a foreign partition": Case(
        Code.TABLE_KIND,
        source_of(fill(), kind="p", partitions=2, foreign_partitions=("old_orders",)),
        source_of(fill(), kind="p", partitions=2),
        ("old_orders",),
    ),
    "text that goes to a database of another encoding": Case(
        Code.ENCODINGS_DIFFER,
        seen(texts(), encoding="LATIN1", source={"encoding": "UTF8"}),
        seen(texts(), encoding="UTF8", source={"encoding": "LATIN1"}),
        ("UTF8", "LATIN1", "note"),
    ),
    "text of which nobody knows the encoding": Case(
        Code.ENCODINGS_DIFFER,
        seen(texts(), encoding="UTF8", source={"encoding": "SQL_ASCII"}),
        seen(texts(), encoding="SQL_ASCII", source={"encoding": "SQL_ASCII"}),
        ("SQL_ASCII",),
    ),
    "a table whose dead rows nobody takes away": Case(
        Code.AUTOVACUUM_OFF,
        source_of(fill(), autovacuum_off=("orders",)),
        source_of(growing(), autovacuum_off=("orders",)),
        ("for orders",),
    ),
    "a server that vacuums nothing": Case(
        Code.AUTOVACUUM_OFF, paced(fill(), autovacuum=False), paced(move(), autovacuum=False), ("the whole server",)
    ),
    "rows that are wider than a chunk should be": Case(
        Code.WIDE_ROWS,
        seen(source_of(fill(), heap_bytes=0, toast_bytes=GIB), rows=1024),
        seen(source_of(fill(), heap_bytes=0, toast_bytes=GIB), rows=8192),
        ("1.0 MiB", "16 of them", "(50)"),
    ),
    "an empty target with indexes that could wait": Case(
        Code.INDEXES_BEFORE_COPY,
        seen(target_of(move(), indexes=WITH_SECONDARY), rows=3e6),
        seen(target_of(replace(move(), target_has_rows=True), indexes=WITH_SECONDARY), rows=3e6),
        ("2 indexes", "by_amount, by_both", "3,000,000 rows", "6s"),
    ),
    "a large copy": Case(
        Code.DISK_ROOM,
        seen(target_of(source_of(move(), heap_bytes=GIB), tablespace="fast"), database_bytes=GIB, rows=1e6),
        seen(target_of(move(), tablespace="fast"), database_bytes=GIB, rows=1e4),
        ("1.0 GiB to", "tablespace fast", "estimate", "has 1.0 GiB now"),
    ),
    "more WAL than fits between two checkpoints": Case(
        Code.WAL_VOLUME,
        seen(source_of(fill(), heap_bytes=4 * GIB)),
        seen(source_of(fill(), heap_bytes=4 * GIB), max_wal_bytes=8 * GIB),
        ("estimate", "1.0 GiB (max_wal_size)"),
    ),
    "a slot that nobody reads": Case(
        Code.SLOTS_RETAIN_WAL,
        seen(source_of(fill(), heap_bytes=GIB // 4), slots=(Slot(name="old", active=False, retained_bytes=GIB),)),
        seen(source_of(fill(), heap_bytes=GIB // 4), slots=(Slot(name="old", active=True, retained_bytes=GIB),)),
        ("old (1.0 GiB now)", "disk is full"),
    ),
    "a slot that keeps less than the job writes": Case(
        Code.SLOTS_RETAIN_WAL,
        seen(source_of(fill(), heap_bytes=GIB // 4), slots=(BUSY,), slot_keep_bytes=GIB // 8),
        seen(source_of(fill(), heap_bytes=GIB // 4), slots=(BUSY,), slot_keep_bytes=GIB),
        ("cdc", "128 MiB"),
    ),
    "standbys that nobody watches": Case(
        Code.STANDBYS,
        seen(paced(source_of(fill(), heap_bytes=GIB // 4))),
        seen(
            paced(source_of(signalling(SignalKind.REPLICATION_LAG), heap_bytes=GIB // 4)),
        ),
        ("replica", "replication_lag"),
    ),
    "our own triggers of an older spec": Case(
        Code.DUAL_WRITE_OUTDATED,
        dual_written(fill(), intact=False),
        dual_written(fill()),
        ("function f differs", "backfill dualwrite"),
    ),
    "another job's triggers, which fill another column": Case(
        Code.DUAL_WRITE_MISSING,
        replace(dual_written(fill()), dual_write=DualWriteFacts(installed=False, intact=False)),
        dual_written(fill()),
        ("cents", "backfill dualwrite FILE --install"),
    ),
    "an update trigger of our own in place": Case(
        Code.TRIGGERS_ON_SOURCE, replace(dual_written(fill()), dual_write=None), dual_written(fill())
    ),
    "an update trigger on other columns than those that set writes": Case(
        Code.TRIGGERS_ON_SOURCE,
        source_of(fill(), triggers=(replace(trigger("t", on="update"), of_columns=("cents", "id")),)),
        source_of(fill(), triggers=(replace(trigger("t", on="update"), of_columns=("id",)),)),
    ),
    "a natural key that our own triggers follow": Case(
        Code.KEY_UPDATABLE,
        dual_written(natural(), intact=False),
        dual_written(natural()),
    ),
    "row movement that our own triggers follow": Case(
        Code.PARTITION_ROW_MOVEMENT,
        dual_written(fill(), intact=False, kind="p", partitions=3),
        dual_written(fill(), kind="p", partitions=3),
    ),
    "a set column that an index reads in an expression": Case(
        Code.HOT_UPDATES,
        source_of(fill(), indexes=(primary("id"), index("by_round", "", unique=False, reads=("cents",)))),
        source_of(fill(), indexes=(primary("id"), index("by_round", "", unique=False, reads=("amount",)))),
        ("by_round",),
    ),
    "a set column in an index that only summarises, before 16": Case(
        Code.HOT_UPDATES,
        source_of(fill(source_server=AnyServer(version_num=150000)), indexes=(primary("id"), SUMMARY)),
        source_of(fill(source_server=AnyServer(version_num=160000)), indexes=(primary("id"), SUMMARY)),
    ),
    "an arbiter that decides by more than equality": Case(
        Code.NO_ARBITER,
        target_of(move(), indexes=(primary("id", exclusion=True, method="gist"),)),
        target_of(move(), indexes=(primary("id"),)),
    ),
    "a copied column that is the time of day": Case(
        Code.EXPRESSION_VOLATILE,
        move(expressions=(expression("now()", place="columns.amount", functions=frozenset({"now"})),)),
        move(expressions=(expression("now", place="columns.amount", identifiers=frozenset({"now"})),)),
        ("now()",),
    ),
    "a copied column that is the day": Case(
        Code.EXPRESSION_VOLATILE,
        move(
            expressions=(expression("current_date", place="columns.amount", identifiers=frozenset({"current_date"})),)
        ),
        move(expressions=(expression("day", place="columns.amount", identifiers=frozenset({"day"})),)),
    ),
    "a rule on the written table": Case(
        Code.RULES, target_of(move(), rules=("redirect",)), source_of(move(), rules=("redirect",)), ("redirect",)
    ),
    "row security on the source": Case(Code.ROW_SECURITY, source_of(fill(), row_security=True), fill(), ("read",)),
    "row security on the target": Case(Code.ROW_SECURITY, target_of(move(), row_security=True), move()),
    "inheritance children of the source": Case(
        Code.INHERITANCE,
        source_of(fill(), inheritance_children=3),
        source_of(fill(), is_inheritance_child=True),
        ("3",),
    ),
    "inheritance children of the target": Case(Code.INHERITANCE, target_of(move(), inheritance_children=1), move()),
    "a partitioned table in place": Case(
        Code.PARTITION_ROW_MOVEMENT, source_of(fill(), kind="p", partitions=12), source_of(fill()), ("12",)
    ),
    "a set column that is not there": Case(
        Code.COLUMN_MISSING, fill(spec=spec(set={"Cents": "1"})), fill(), ("set writes Cents", "did you mean cents?")
    ),
    "a required target column that nothing fills": Case(
        Code.COLUMN_UNFILLED,
        target_of(move(), columns=(required("id"), required("region", "text"))),
        target_of(move(), columns=(required("id"), required("region", "text", has_default=True))),
        ("region",),
    ),
    "a target column that keeps its default": Case(
        Code.COLUMNS_DEFAULTED,
        target_of(move(), columns=(required("id"), column("amount"), column("region", "text"))),
        move(),
        ("region (NULL)",),
    ),
    "a source column that the target does not have": Case(
        Code.COLUMNS_LEFT_BEHIND,
        target_of(move(), columns=(required("id"),)),
        target_of(move(spec=copy_spec(columns={"id": "id"})), columns=(required("id"),)),
        ("amount",),
    ),
    "a source column that the target generates": Case(
        Code.COLUMNS_LEFT_BEHIND,
        target_of(move(), columns=(required("id"),)),
        target_of(move(), columns=(required("id"), column("amount", "numeric", generated="stored"))),
    ),
    "a set column that is part of the key": Case(
        Code.SET_KEY_COLUMN, fill(spec=spec(set={"id": "1"})), fill(spec=spec(set={"amount": "1"})), ("id",)
    ),
    "a set column that is generated": Case(
        Code.SET_GENERATED,
        filling("1", written=column("cents", generated="stored")),
        filling("1", written=column("cents")),
        ("cents",),
    ),
    "a set column that numbers itself": Case(
        Code.SET_GENERATED,
        filling("1", written=required("cents", identity="always")),
        filling("1", written=required("cents", identity="default")),
    ),
    "a target column that is narrower": Case(
        Code.TYPE_NARROWS,
        target_of(move(), columns=(required("id", "integer"), column("amount", "numeric"))),
        target_of(move(), columns=(required("id", "numeric"), column("amount", "numeric"))),
        ("id (bigint)", "(integer)"),
    ),
    "an identity that is always generated": Case(
        Code.IDENTITY_ALWAYS,
        target_of(move(), columns=(required("id", identity="always"), column("amount", "numeric"))),
        target_of(move(), columns=(required("id", identity="default"), column("amount", "numeric"))),
    ),
    "a key with a sequence": Case(
        Code.SEQUENCE_BEHIND,
        target_of(move(), columns=(required("id", has_default=True), column("amount", "numeric"))),
        target_of(move(), columns=(required("id"), column("amount", "numeric", has_default=True))),
        ("id",),
    ),
    "an identity with a sequence": Case(
        Code.SEQUENCE_BEHIND,
        target_of(move(), columns=(required("id", identity="default"), column("amount", "numeric"))),
        move(),
    ),
    "newest() of a column that is not there": Case(
        Code.NEWEST_COLUMN, newest(required("changed")), newest(required("updated")), ("does not exist",)
    ),
    "newest() of a column that the job does not write": Case(
        Code.NEWEST_COLUMN,
        newest(column("updated"), columns={"id": "id"}),
        newest(column("updated"), columns={"id": "id", "updated": "now()"}),
        ("not written",),
    ),
    "newest() of a nullable column": Case(
        Code.NEWEST_NULLABLE, newest(column("updated")), newest(required("updated")), ("updated",)
    ),
    "an expression that the server rejects": Case(
        Code.EXPRESSION_INVALID,
        filling("amuont", error='column "amuont" does not exist'),
        filling("amount"),
        ("set.cents", "amuont"),
    ),
    "a where that is no condition": Case(
        Code.EXPRESSION_INVALID,
        where("amount", type_name="numeric"),
        where("amount > 0", type_name="boolean"),
        ("where",),
    ),
    "a value that is wider than its column": Case(
        Code.EXPRESSION_TYPE,
        filling("amount", identifiers=frozenset({"amount"}), type_name="numeric", written=column("cents", "bigint")),
        filling("amount", identifiers=frozenset({"amount"}), type_name="integer", written=column("cents", "bigint")),
        ("numeric", "::bigint"),
    ),
    "a value that may be too long, and a constant that the server has tried": Case(
        Code.EXPRESSION_TYPE,
        filling(
            "f(x)", identifiers=frozenset({"x"}), type_name="text", written=column("cents", "character varying(3)")
        ),
        filling("'abc'", type_name="text", written=column("cents", "character varying(3)")),
    ),
    "a function that gives several rows": Case(
        Code.EXPRESSION_NOT_SCALAR,
        filling("unnest(tags)", not_scalar=frozenset({"unnest"})),
        filling("lower(tag)", functions=frozenset({"lower"})),
        ("unnest()",),
    ),
    "a copied column that is different each time": Case(
        Code.EXPRESSION_VOLATILE,
        move(expressions=(expression("random()", place="columns.amount", volatile=frozenset({"random"})),)),
        move(expressions=(expression("abs(amount)", place="columns.amount", functions=frozenset({"abs"})),)),
        ("random()", "columns.amount"),
    ),
    "a where that is different each time": Case(
        Code.PREDICATE_VOLATILE,
        where("random() < 0.1", volatile=frozenset({"random"})),
        where("created < now()", functions=frozenset({"now"})),
        ("random()",),
    ),
    "a set that reads what it writes": Case(
        Code.DONE_REQUIRED,
        filling("cents + 1", identifiers=frozenset({"cents"})),
        filling("cents + 1", identifiers=frozenset({"cents"}), done="marked"),
        ("set.cents reads cents",),
    ),
    "a set that reads its whole row": Case(
        Code.DONE_REQUIRED,
        filling("to_jsonb(orders)", identifiers=frozenset({"to_jsonb", "orders"})),
        filling("orders.amount + 1", identifiers=frozenset({"orders", "amount"})),
        ("cents",),
    ),
    "a set that is different each time": Case(
        Code.DONE_REQUIRED,
        filling("gen_random_uuid()", volatile=frozenset({"gen_random_uuid"})),
        filling("gen_random_uuid()", volatile=frozenset({"gen_random_uuid"}), done="cents is not null"),
        ("gen_random_uuid()",),
    ),
    "a set of columns that are never null": Case(
        Code.DONE_REQUIRED,
        filling("1", written=required("cents")),
        filling("1", written=required("cents"), done="cents > 0"),
        ("NOT NULL", "change nothing"),
    ),
    "a set of a column with a default": Case(
        Code.DONE_SKIPS_DEFAULTS,
        filling("1", written=column("cents", has_default=True)),
        filling("1", written=column("cents")),
        ("cents",),
    ),
    "a done that the server rejects": Case(
        Code.DONE_INVALID, done("x >", error="syntax error"), done("x", type_name="boolean"), ("syntax error",)
    ),
    "a done that is no condition": Case(
        Code.DONE_INVALID, done("cents", type_name="int8"), done("cents > 0", type_name="bool"), ("int8",)
    ),
    "a source that nobody listens to": Case(
        Code.DUAL_WRITE_MISSING,
        source_of(move(), triggers=(trigger("t", on="insert update"),)),
        move(),
        ("DELETE",),
    ),
    "a table in place whose new rows nobody fills": Case(
        Code.DUAL_WRITE_MISSING,
        source_of(fill(), triggers=(trigger("t", on="insert", before=False),)),
        fill(),
        ("cents",),
    ),
    "a dual-write trigger that is disabled": Case(
        Code.DUAL_WRITE_MISSING,
        source_of(fill(), triggers=(trigger("t", on="insert", enabled=False),)),
        fill(),
    ),
    "deletes that are declared not to happen": Case(
        Code.DELETES_UNGUARDED, move(spec=copy_spec(deletes=Deletes.NONE)), move(), ("public.orders",)
    ),
    "a role that may not update": Case(
        Code.PRIVILEGES,
        source_of(fill(), privileges=frozenset({"SELECT"})),
        source_of(fill(), privileges=frozenset({"SELECT", "UPDATE"})),
        ("worker lacks UPDATE on public.orders", "backfill grants"),
    ),
    "a role that may not insert into the target": Case(
        Code.PRIVILEGES,
        target_of(move(), privileges=frozenset({"SELECT", "UPDATE", "DELETE"})),
        source_of(move(), privileges=frozenset({"SELECT"})),
        ("INSERT",),
    ),
    "a role that may not delete, in a guarded job": Case(
        Code.PRIVILEGES,
        target_of(move(), privileges=frozenset({"SELECT", "INSERT"})),
        target_of(move(spec=copy_spec(deletes=Deletes.NONE)), privileges=frozenset({"SELECT", "INSERT"})),
        ("DELETE",),
    ),
    "a superuser": Case(
        Code.SUPERUSER,
        fill(source_server=AnyServer(is_superuser=True, user="postgres")),
        fill(source_server=AnyServer(is_superuser=True), spec=spec(set={"cents": "1"}, role="worker")),
        ("postgres",),
    ),
    "a target server that is a standby": Case(
        Code.READ_ONLY_SERVER, move(Mode.COPY, target_server=AnyServer(in_recovery=True)), move(Mode.COPY), ("target",)
    ),
    "a role that may not use the target's schema": Case(
        Code.PRIVILEGES, target_of(move(), schema_usage=False), move(), ("USAGE on the schema of public.orders_v2",)
    ),
    "a role that may not ask the sequence of a default": Case(
        Code.PRIVILEGES,
        target_of(
            move(),
            columns=(*move().source.columns, required("no", has_default=True)),
            closed_sequences=(Check("public.no_seq", ("no",)),),
        ),
        target_of(move(), closed_sequences=(Check("public.no_seq", ("id",)),)),
        ("role worker lacks USAGE on sequence public.no_seq", "numbers no of"),
    ),
    "a role that may not make the ledger": Case(
        Code.PRIVILEGES,
        seen(fill(), rights_missing=("worker lacks CREATE on database shop",)),
        seen(fill()),
        ("role worker lacks CREATE",),
    ),
    "a transaction that has been open for long": Case(
        Code.LONG_TRANSACTION,
        seen(fill(), long_transactions=("pid 1 psql since 10:00:00", "pid 2 etl since 10:01:00")),
        seen(fill()),
        ("pid 1 psql", "pid 2 etl", "source"),
    ),
    "fewer connections than sessions": Case(
        Code.CONNECTIONS_SHORT,
        worked_by(16, sessions_free=20),
        worked_by(2, sessions_free=20),
        ("32 sessions", "20 are left of max_connections (110)"),
    ),
    "a server that nobody has tried": Case(
        Code.SERVER_UNTESTED,
        fill(source_server=AnyServer(version_num=190000)),
        fill(source_server=AnyServer(version_num=180003)),
        ("PostgreSQL 19",),
    ),
    "a table that was never analysed": Case(
        Code.STATISTICS_MISSING, source_of(fill(), rows=-1.0), source_of(fill(), rows=0.0), ("ANALYZE public.orders",)
    ),
    "a chunk query that scans the table": Case(
        Code.PLAN_SCANS_TABLE, plan(scans_table=True, node_types=("Seq Scan",)), plan(), ("the chunk query", "Seq Scan")
    ),
    "a chunk query that is forced to the index": Case(
        Code.PLAN_FORCED, plan(scans_table=True, forced=True), plan(), ("pkey",)
    ),
    "keys that sort otherwise in the target": Case(
        Code.COLLATIONS_DIFFER, text_key("icu de 153.14"), text_key("libc en_US.UTF-8 2.36"), ("icu de 153.14",)
    ),
    "a column without a binary form": Case(
        Code.BINARY_COPY_IMPOSSIBLE,
        target_of(move(Mode.COPY), columns=(required("id"), column("amount", "numeric", binary_portable=False))),
        target_of(move(Mode.INSERT), columns=(required("id"), column("amount", "numeric", binary_portable=False))),
        ("amount",),
    ),
    "a set column that is indexed": Case(
        Code.HOT_UPDATES,
        source_of(fill(), indexes=(primary("id"), index("by_cents", "cents", unique=False))),
        source_of(fill(), indexes=(primary("id"), index("by_amount", "amount", unique=False))),
        ("by_cents", "2 indexes"),
    ),
    "a large table with full pages": Case(
        Code.FILLFACTOR, source_of(fill(), heap_bytes=GIB), source_of(fill(), heap_bytes=GIB, fillfactor=45), ("100",)
    ),
    "a large table that will grow": Case(
        Code.GROWTH, source_of(fill(), heap_bytes=GIB, index_bytes=GIB // 4), fill(), ("1.0 GiB", "256 MiB")
    ),
    "a named signal that the role may not read": Case(
        Code.SIGNAL_RIGHTS,
        paced(signalling(SignalKind.WAL_ARCHIVE), can_read_archive=False),
        paced(signalling(SignalKind.WAL_ARCHIVE)),
        ("wal_archive", "GRANT pg_monitor TO worker"),
    ),
    "a named signal of a standby that is not there": Case(
        Code.SIGNAL_WITHOUT_SUBJECT,
        paced(signalling(SignalKind.REPLICATION_LAG), standbys=()),
        paced(signalling(SignalKind.REPLICATION_LAG)),
        ("replication_lag", "no standby"),
    ),
    "a role that does not see the others": Case(
        Code.PRESENCE_UNSEEN,
        paced(fill(), can_read_stats=False),
        paced(fill()),
        ("GRANT pg_read_all_stats TO worker",),
    ),
    "a limit of growth without the right to vacuum": Case(
        Code.VACUUM_NOT_ALLOWED,
        paced(growing(), can_vacuum=False),
        paced(growing()),
        ("run as the owner of public.orders",),
    ),
    "a limit of growth under an old snapshot": Case(
        Code.VACUUM_HELD_BACK,
        paced(growing(), oldest_xmin_holder="pid 12 psql since 10:00:00"),
        paced(fill(), oldest_xmin_holder="pid 12 psql since 10:00:00"),
        ("pid 12 psql", "20%"),
    ),
    "a deadline that the limit cannot meet": Case(
        Code.DEADLINE_UNREACHABLE,
        paced(due(hours=1, max_rows_per_s=100.0)),
        paced(due(hours=3, max_rows_per_s=100.0)),
        ("1,000,000 rows", "2h 46m", "1h are left", "above 278"),
    ),
    "a job at noon that may work at night": Case(
        Code.WINDOW_CLOSED,
        paced(due(windows=(TimeWindow.parse("22:00-06:00 UTC"),))),
        paced(due(windows=(TimeWindow.parse("12:00-13:00 UTC"),))),
        ("opens in 10h",),
    ),
    "an accepted code that does not exist": Case(
        Code.ACCEPT_UNKNOWN,
        fill(spec=spec(set={"cents": "1"}, accept=("TRIGERS_ON_SOURCE",))),
        fill(spec=spec(set={"cents": "1"}, accept=("TRIGGERS_ON_SOURCE", "SUPERUSER"))),
        ("TRIGERS_ON_SOURCE", "did you mean TRIGGERS_ON_SOURCE?"),
    ),
    "an accepted code that cannot be accepted": Case(
        Code.ACCEPT_UNKNOWN, fill(spec=spec(set={"cents": "1"}, accept=("NO_KEY",))), fill(), ("cannot be accepted",)
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_finding_appears_with_its_cause_and_not_without(case: Case):
    seen = found(case.guilty, case.code)
    assert seen is not None, [f.code for f in preflight(case.guilty)]
    assert found(case.innocent, case.code) is None
    assert seen.severity is CATALOGUE[case.code].severity
    for word in case.words:
        assert word in f"{seen.message}\n{seen.remedy}"


def test_a_healthy_job_with_our_triggers_has_no_findings_whatever_else_is_known():
    for facts in (fill(), move()):
        assert preflight(seen(paced(dual_written(facts)), rows=1000)) == ()


def test_a_declaration_is_marked_and_stays_a_warning():
    facts = source_of(fill(), triggers=())
    said = found(facts, "DUAL_WRITE_MISSING")
    assert said is not None
    assert "accept: [DUAL_WRITE_MISSING]" in said.remedy
    declared = replace(facts, spec=spec(set={"cents": "amount * 100"}, accept=("DUAL_WRITE_MISSING",)))
    marked = found(declared, "DUAL_WRITE_MISSING")
    assert marked is not None
    assert (marked.severity, "accepted by the spec" in marked.message) == (Severity.WARN, True)
    assert found(declared, "ACCEPT_UNKNOWN") is None


def test_between_two_databases_nobody_is_sent_to_install_triggers():
    said = found(source_of(move(Mode.COPY), triggers=()), "DUAL_WRITE_MISSING")
    assert said is not None
    assert "dualwrite" not in said.remedy


def test_a_unique_index_that_also_excludes_is_said_once():
    temporal = index("temporal", "amount", exclusion=True, method="gist")
    assert codes(target_of(move(), indexes=(primary("id"), temporal))) == ["EXCLUSION_CONSTRAINTS"]


def test_both_servers_of_a_copy_are_looked_at():
    facts = seen(move(Mode.COPY), sessions_free=3, source={"sessions_free": 4, "long_transactions": ("pid 1",)})
    messages = [f.message for f in preflight(facts) if f.code == "CONNECTIONS_SHORT"]
    assert ["source" in m or "target" in m for m in messages] == [True, True]
    assert ("11 sessions on the source" in messages[0], "10 sessions on the target" in messages[1]) == (True, True)
    long = found(facts, "LONG_TRANSACTION")
    assert long is not None
    assert "source database" in long.message


def test_a_limit_on_wal_is_an_answer_to_its_volume():
    limited = spec(set={"cents": "amount * 100"}, pace=Pace(max_wal_bytes_per_s=1 << 20))
    assert found(seen(source_of(fill(spec=limited), heap_bytes=4 * GIB)), "WAL_VOLUME") is None


def test_what_nobody_looked_at_is_not_judged():
    assert preflight(source_of(fill(), heap_bytes=32 * (1 << 20))) == ()


def test_every_code_has_a_case():
    elsewhere = {code for code in Code if code.startswith("TRANSFORM_")}  # test_preflight_transforms
    assert {case.code for case in CASES.values()} | elsewhere == set(Code)


@pytest.mark.parametrize(
    "facts", [fill(), move(), move(Mode.COPY), paced(fill())], ids=["in place", "insert", "copy", "paced"]
)
def test_a_sound_job_has_no_findings(facts: PreflightFacts):
    assert preflight(facts) == ()


DECISIONS: dict[str, Callable[[tuple[str, ...]], PreflightFacts]] = {
    "TRIGGERS_ON_TARGET": lambda accept: target_of(
        move(spec=copy_spec(accept=accept)), triggers=(trigger("t", on="insert"),)
    ),
    "TRIGGERS_ON_SOURCE": lambda accept: source_of(
        fill(spec=spec(set={"cents": "1"}, accept=accept)), triggers=(trigger("t", on="update"),)
    ),
    "FOREIGN_KEYS": lambda accept: target_of(
        move(spec=copy_spec(accept=accept)), foreign_keys=foreign_key(outgoing=True)
    ),
    "COLLATION_OUTDATED": lambda accept: keyed_by_text(outdated_collations=("code",), accept=accept),
    "RULES": lambda accept: target_of(move(spec=copy_spec(accept=accept)), rules=("r",)),
    "INHERITANCE": lambda accept: source_of(move(spec=copy_spec(accept=accept)), inheritance_children=1),
}


@pytest.mark.parametrize("code", DECISIONS)
def test_a_decision_refuses_until_it_is_accepted(code: str):
    refused = found(DECISIONS[code](()), code)
    assert refused is not None
    assert refused.severity is Severity.REFUSE
    assert f"accept: [{code}]" in refused.remedy
    accepted = found(DECISIONS[code]((code,)), code)
    assert accepted is not None
    assert accepted.severity is Severity.WARN
    assert "accepted" in accepted.message
    assert refusals(preflight(DECISIONS[code]((code,)))) == ()


def test_the_decisions_are_the_acceptable_refusals():
    acceptable = {code: entry.severity for code, entry in CATALOGUE.items() if entry.acceptable}
    assert set(DECISIONS) == {code for code, severity in acceptable.items() if severity is Severity.REFUSE}
    assert {code for code, severity in acceptable.items() if severity is Severity.WARN} == {Code.DUAL_WRITE_MISSING}


def test_what_cannot_be_right_refuses_even_when_accepted():
    facts = source_of(fill(spec=spec(set={"cents": "1"}, accept=("NO_KEY",))), indexes=())
    assert [f.code for f in refusals(preflight(facts))] == ["NO_KEY"]


def test_refusals_come_first_and_advice_last():
    facts = source_of(fill(source_server=AnyServer(is_superuser=True)), indexes=(), rows=-1.0)
    assert [f.severity for f in preflight(facts)] == [Severity.REFUSE, Severity.WARN, Severity.ADVISE]


def test_findings_are_the_same_each_time_and_none_is_said_twice():
    facts = source_of(move(Mode.INSERT), inheritance_children=1)
    facts = replace(facts, target=facts.source)
    seen = preflight(facts)
    assert seen == preflight(facts)
    assert len(set(seen)) == len(seen)


def test_one_server_for_both_tables_is_judged_once_and_two_are_judged_each():
    same = AnyServer(is_superuser=True)
    assert [f.code for f in preflight(move(source_server=same, target_server=same))] == ["SUPERUSER"]
    each = move(Mode.COPY, source_server=same, target_server=AnyServer(is_superuser=True))
    assert [f.code for f in preflight(each)] == ["SUPERUSER", "SUPERUSER"]


def test_a_standby_is_refused_as_source_too():
    seen = found(move(Mode.COPY, source_server=AnyServer(in_recovery=True)), "READ_ONLY_SERVER")
    assert seen is not None
    assert "the source server" in seen.message


def test_a_column_of_the_tables_own_name_is_not_the_row():
    facts = fill(
        spec=spec(set={"cents": "orders"}),
        expressions=(expression("orders", place="set.cents", identifiers=frozenset({"orders"})),),
    )
    assert found(facts, "DONE_REQUIRED") is not None
    with_column = source_of(facts, columns=(*facts.source.columns, column("orders")))
    assert found(with_column, "DONE_REQUIRED") is None


def test_a_table_name_inside_a_string_is_not_the_row():
    assert found(filling("'orders'", identifiers=frozenset()), "DONE_REQUIRED") is None


def test_a_set_column_that_is_not_there_is_not_said_to_be_never_null():
    assert found(fill(spec=spec(set={"gone": "1"}), expressions=()), "DONE_REQUIRED") is None


def test_a_required_column_and_one_with_a_default_are_both_full_already():
    facts = fill(spec=spec(set={"amount": "1", "cents": "1"}), expressions=())
    full = source_of(facts, columns=(*facts.source.columns[:2], column("cents", has_default=True)))
    assert found(facts, "DONE_SKIPS_DEFAULTS") is None
    assert found(full, "DONE_SKIPS_DEFAULTS") is not None


def test_an_index_that_cannot_collide_is_not_reported():
    wider, plain = index("wider", "id", ""), index("plain", "amount", unique=False)
    assert found(target_of(move(), indexes=(primary("id"), wider, plain)), "SEVERAL_UNIQUE") is None


def test_foreign_keys_of_both_directions_are_told_apart():
    outgoing = target_of(move(), foreign_keys=foreign_key(outgoing=True))
    assert len([f for f in preflight(outgoing) if f.code == "FOREIGN_KEYS"]) == 1
    both = target_of(move(), foreign_keys=foreign_key(outgoing=True) + foreign_key(outgoing=False))
    assert len([f for f in preflight(both) if f.code == "FOREIGN_KEYS"]) == 2


def test_row_movement_between_partitions_concerns_jobs_in_place():
    assert found(source_of(move(), kind="p", partitions=3), "PARTITION_ROW_MOVEMENT") is None


def test_full_pages_are_not_blamed_where_no_update_could_be_hot_or_each_partition_has_its_own_setting():
    large = source_of(fill(), heap_bytes=GIB)
    assert found(large, "FILLFACTOR") is not None
    assert found(source_of(large, partitions=2), "FILLFACTOR") is None
    indexed = source_of(large, indexes=(primary("id"), index("by_cents", "cents", unique=False)))
    assert found(indexed, "FILLFACTOR") is None


def test_only_the_key_columns_that_sort_otherwise_are_named():
    ours = (required("tenant"), required("id", "text"))
    theirs = (required("tenant"), required("id", "text", collation_id="icu de 153.14"))
    facts = source_of(move(), columns=ours, indexes=(primary("tenant", "id"),))
    seen = found(target_of(facts, columns=theirs, indexes=(primary("tenant", "id"),)), "COLLATIONS_DIFFER")
    assert seen is not None
    assert "tenant" not in seen.message


def test_a_trigger_for_whole_statements_writes_no_rows_elsewhere():
    facts = source_of(move(), triggers=(trigger("t", on="insert update delete", row_level=False),))
    seen = found(facts, "DUAL_WRITE_MISSING")
    assert seen is not None
    assert "INSERT, UPDATE, DELETE" in seen.message


def test_a_before_update_trigger_does_not_fill_new_rows():
    assert found(source_of(fill(), triggers=(trigger("t", on="update"),)), "DUAL_WRITE_MISSING") is not None


def test_privileges_that_lack_in_the_target_are_those_of_its_own_login():
    facts = target_of(move(Mode.COPY, target_server=AnyServer(user="guest")), privileges=frozenset())
    seen = found(facts, "PRIVILEGES")
    assert seen is not None
    assert seen.message.startswith("role guest lacks")


def test_only_copied_columns_are_said_to_escape_verification():
    volatile = {"volatile": frozenset({"random"})}
    assert found(filling("random()", done="cents is not null", **volatile), "EXPRESSION_VOLATILE") is None


def test_a_call_without_columns_is_no_constant():
    facts = filling("now()", functions=frozenset({"now"}), type_name="timestamptz", written=column("cents", "date"))
    assert found(facts, "EXPRESSION_TYPE") is not None
    assert found(facts, "DONE_REQUIRED") is None


def test_an_expression_of_unknown_type_is_given_the_benefit_of_the_doubt():
    facts = filling("amount", identifiers=frozenset({"amount"}), written=column("cents", "bigint"))
    assert found(facts, "EXPRESSION_TYPE") is None


def test_a_plain_column_that_narrows_is_reported_once():
    plain = expression("id", place="columns.id", identifiers=frozenset({"id"}), type_name="bigint")
    facts = move(spec=copy_spec(columns={"id": "id"}), expressions=(plain,))
    narrow = target_of(facts, columns=(required("id", "integer"),))
    assert [f.code for f in preflight(narrow)] == ["TYPE_NARROWS"]
    computed = replace(narrow, expressions=(replace(plain, text="id + 1"),))
    assert found(computed, "EXPRESSION_TYPE") is not None


def test_the_role_of_the_spec_is_the_one_that_lacks_privileges():
    facts = source_of(fill(spec=spec(set={"cents": "1"}, role="mover")), privileges=frozenset())
    seen = found(facts, "PRIVILEGES")
    assert seen is not None
    assert seen.message == "role mover lacks SELECT, UPDATE on public.orders"


@pytest.mark.parametrize(
    ("policy", "words"),
    [("KEEP", "stay as they are"), ("REPLACE", "overwritten"), ("NEWEST", "newer"), ("FAIL", "stops the job")],
)
def test_rows_in_the_target_are_told_their_fate(policy: str, words: str):
    facts = move(spec=copy_spec(on_conflict=conflict(ConflictPolicy[policy], "amount")), target_has_rows=True)
    seen = found(facts, "TARGET_HAS_ROWS")
    assert seen is not None
    assert words in seen.message


def codes(facts: PreflightFacts) -> list[str]:
    return [f.code for f in preflight(facts)]


def test_signals_that_are_on_by_default_or_off_need_no_rights():
    blind = {"can_read_stats": False, "can_read_archive": False}
    assert codes(paced(fill(), **blind)) == ["PRESENCE_UNSEEN"]
    assert codes(paced(signalling(SignalKind.WAL_ARCHIVE, SignalKind.AUTOVACUUM, off=True), **blind)) == [
        "PRESENCE_UNSEEN"
    ]
    assert codes(paced(signalling(SignalKind.LOCK_WAITS), **blind)) == ["PRESENCE_UNSEEN"]


def test_one_finding_names_all_signals_that_lack_one_right():
    facts = paced(signalling(SignalKind.REPLICATION_LAG, SignalKind.AUTOVACUUM), can_read_stats=False, standbys=())
    assert codes(facts) == ["SIGNAL_RIGHTS", "PRESENCE_UNSEEN"], "whoever sees no standby cannot say there is none"
    seen = found(facts, "SIGNAL_RIGHTS")
    assert seen is not None
    assert "replication_lag, autovacuum need " in seen.message


def test_presence_matters_only_to_latencies():
    off = signalling(SignalKind.READ_LATENCY, SignalKind.COMMIT_LATENCY, off=True)
    assert codes(paced(off, can_read_stats=False)) == []


@pytest.mark.parametrize(
    ("kind", "absent"),
    [
        (SignalKind.SLOT_RETENTION, {"slots": 0}),
        (SignalKind.WAL_ARCHIVE, {"archive_mode": "off"}),
        (SignalKind.AUTOVACUUM, {"autovacuum": False}),
    ],
)
def test_each_signal_has_its_own_subject(kind: SignalKind, absent: dict[str, Any]):
    limits = {"maximum": 1e9} if kind is SignalKind.SLOT_RETENTION else {}
    code = "SIGNAL_WITHOUT_SUBJECT"
    assert codes(paced(signalling(kind, **limits), **absent)).count(code) == 1
    assert code not in codes(paced(signalling(kind, off=True), **absent))
    assert codes(paced(signalling(kind, **limits))) == []


def test_standbys_are_looked_for_where_the_job_writes_and_sessions_on_both_sides():
    signals = (SignalSpec(kind=SignalKind.REPLICATION_LAG), SignalSpec(kind=SignalKind.ACTIVE_SESSIONS, maximum=40.0))
    facts = move(Mode.COPY, spec=copy_spec(pace=Pace(signals=signals)), target_server=AnyServer(user="writer"))
    good = ServerPacing(can_read_stats=True, can_read_archive=True, standbys=("replica",))
    poor = ServerPacing(can_read_stats=False, can_read_archive=False)

    def on(source: ServerPacing, target: ServerPacing) -> PreflightFacts:
        servers = {Side.SOURCE: source, Side.TARGET: target}
        return replace(facts, pacing=PacingFacts(servers=servers, now=NOON))

    assert codes(on(good, good)) == []
    assert codes(on(replace(good, standbys=()), good)) == []
    reader = found(on(poor, good), "SIGNAL_RIGHTS")
    assert reader is not None
    assert ("active_sessions needs" in reader.message, "TO worker" in reader.remedy) == (True, True)
    writer = found(on(good, poor), "SIGNAL_RIGHTS")
    assert writer is not None
    assert ("replication_lag, active_sessions need" in writer.message, "TO writer" in writer.remedy) == (True, True)


def test_the_right_to_vacuum_has_a_name_from_17_on():
    facts = replace(paced(growing(), can_vacuum=False), source_server=AnyServer(version_num=180000))
    seen = found(facts, "VACUUM_NOT_ALLOWED")
    assert seen is not None
    assert "GRANT MAINTAIN ON public.orders TO worker" in seen.remedy


NIGHT = (TimeWindow.parse("22:00-06:00 UTC"),)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (paced(due(hours=-1)), "has passed"),
        (paced(due(hours=2, windows=NIGHT)), "no window opens before"),
        (paced(due(hours=2, windows=NIGHT), rows=None), "no window opens before"),
        (paced(due(hours=24, windows=NIGHT, max_rows_per_s=30.0)), "9h 15m, and 8h are left"),
        (paced(due(hours=24, windows=NIGHT, max_rows_per_s=40.0)), None),
        (paced(due(hours=48, windows=NIGHT, max_rows_per_s=30.0)), None),
        (paced(due(hours=1, max_rows_per_s=100.0), rows=None), None),
        (paced(due(hours=1)), None),
    ],
)
def test_a_deadline_is_held_against_the_limit_and_the_open_hours(facts: PreflightFacts, words: str | None):
    seen = found(facts, "DEADLINE_UNREACHABLE")
    assert (seen is None) if words is None else (seen is not None and words in seen.message)


def test_privileges_are_the_least_that_do():
    assert required_privileges(spec(set={"a": "1"}), Mode.UPDATE) == ({"SELECT", "UPDATE"}, set())
    plain = copy_spec(deletes=Deletes.NONE)
    assert required_privileges(plain, Mode.COPY) == ({"SELECT"}, {"SELECT", "INSERT"})
    replacing = copy_spec(deletes=Deletes.NONE, on_conflict=conflict(ConflictPolicy.REPLACE))
    assert required_privileges(replacing, Mode.INSERT) == ({"SELECT"}, {"SELECT", "INSERT", "UPDATE"})
    assert required_privileges(copy_spec(), Mode.INSERT)[1] == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    assert required_privileges(plain, Mode.COPY, repairs=True)[1] == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    in_place = spec(set={"a": "1"})
    assert required_privileges(in_place, Mode.UPDATE, repairs=True) == ({"SELECT", "UPDATE"}, set())
