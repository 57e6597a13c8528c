"""What happens beside the writing of rows: what fires, locks, checks or sends away what the job writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engine.model import ConflictPolicy, Deletes, Finding, ForeignKey, Index, Table, Trigger
from engine.plan.preflight.catalogue import Code, finding
from engine.plan.preflight.facts import OUR_TRIGGERS, PreflightFacts, in_sql


def check_writes(facts: PreflightFacts) -> Iterator[Finding]:
    """Everything about the table that the job writes; nothing where it does not exist."""
    written = facts.written
    if written is None:
        return
    if written.persistence == "u":
        yield finding(
            Code.UNLOGGED_TARGET,
            f"{written.name} is unlogged: a crash of the server empties it, and the ledger would still say that its"
            " rows were moved",
            f"ALTER TABLE {in_sql(written)} SET LOGGED before the job",
        )
    yield from _triggers(facts, written)
    yield from _foreign_keys(facts, written)
    if written.rules:
        yield finding(
            Code.RULES,
            f"{written.name} has rules ({', '.join(written.rules)}), which rewrite the job's statements,"
            " and which COPY ignores",
            "drop them, or use triggers instead",
        )
    yield from _constraints(facts, written)
    yield from _replication(facts, written)
    if facts.spec.on_conflict.policy is ConflictPolicy.REPLACE and not facts.in_place:
        yield finding(
            Code.OVERWRITES_DUAL_WRITE,
            f"on_conflict: replace lets the copy win in {written.name}: a row that the application changes while its"
            " chunk is under way may get its older values back",
            "write on_conflict: keep where dual-write fills the target, or newest(column) where a column tells which"
            " row is newer; replace is right where nobody else writes the target",
        )


def statements_of(facts: PreflightFacts) -> frozenset[str]:
    """The kinds of statement that the job runs on the table it writes: ``insert``, ``update``, ``delete``."""
    if facts.in_place:
        return frozenset({"update"})
    statements = {"insert"}
    if facts.spec.on_conflict.policy in (ConflictPolicy.REPLACE, ConflictPolicy.NEWEST):
        statements.add("update")
    if facts.spec.deletes is Deletes.GUARDED:
        statements.add("delete")
    return frozenset(statements)


def touches(index: Index, names: set[str]) -> bool:
    """True when one of these columns is part of the index: in its key, an expression, its predicate, or INCLUDE."""
    return not names.isdisjoint(index.columns) or not names.isdisjoint(index.reads)


def names_of(things: Iterable[Index | Trigger | ForeignKey]) -> str:
    """Their names, for a message."""
    return ", ".join(thing.name for thing in things)


# -- what fires ------------------------------------------------------------------------------------------------------


def _triggers(facts: PreflightFacts, written: Table) -> Iterator[Finding]:
    firing = [t for t in written.triggers if t.enabled and _fires(facts, t) and not _is_ours(facts, t)]
    if not firing:
        return
    each = "for each row" if any(t.row_level for t in firing) else "for each chunk"
    yield finding(
        Code.TRIGGERS_ON_SOURCE if facts.in_place else Code.TRIGGERS_ON_TARGET,
        f"triggers of {written.name} fire {each} that the job writes: {names_of(firing)}",
        "see that they may fire for every row again (no mails, no queues, no audit of every row),"
        " or let them pass over sessions whose application_name begins with backfill/",
    )


def _is_ours(facts: PreflightFacts, trigger: Trigger) -> bool:
    """Our own triggers pass over the job's sessions by themselves; that they are outdated is a finding of its own."""
    is_there = facts.dual_write is not None and facts.dual_write.installed
    return facts.in_place and is_there and trigger.name.startswith(OUR_TRIGGERS)


def _fires(facts: PreflightFacts, trigger: Trigger) -> bool:
    statements = statements_of(facts)
    # UPDATE OF fires where the statement sets one of its columns, whatever becomes of the value.
    listens = not facts.in_place or not trigger.of_columns or not set(trigger.of_columns).isdisjoint(facts.filled)
    return (
        (trigger.on_insert and "insert" in statements)
        or (trigger.on_update and "update" in statements and listens)
        or (trigger.on_delete and "delete" in statements)
    )


# -- what is checked -------------------------------------------------------------------------------------------------


def _foreign_keys(facts: PreflightFacts, written: Table) -> Iterator[Finding]:
    touched = set(facts.filled) if facts.in_place else None
    outgoing = [f for f in written.foreign_keys if f.outgoing and (touched is None or touched & set(f.columns))]
    # Rows pointing here matter when ours are taken out again, or when a referenced column changes.
    incoming = [
        f
        for f in written.foreign_keys
        if not f.outgoing and ("delete" in statements_of(facts) if touched is None else touched & set(f.columns))
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
    yield from _unindexed(facts, written, outgoing, incoming)


def _unindexed(
    facts: PreflightFacts, written: Table, outgoing: Iterable[ForeignKey], incoming: Iterable[ForeignKey]
) -> Iterator[Finding]:
    slow = [f for f in incoming if not f.indexed]
    if slow:
        named = ", ".join(f"{f.name} from {f.other_table}" for f in slow)
        yield finding(
            Code.FOREIGN_KEYS_UNINDEXED,
            f"no index finds the rows that point at {written.name} by {named}: each row of it that is deleted, or"
            " whose referenced columns change, costs a scan of the other table",
            "CREATE INDEX CONCURRENTLY on the referencing columns",
        )
    # In place the rows were there before, and whoever deletes what they point at has long known.
    slow = [] if facts.in_place else [f for f in outgoing if not f.indexed]
    if slow:
        named = ", ".join(f"{f.name} ({', '.join(f.columns)}) to {f.other_table}" for f in slow)
        yield finding(
            Code.FOREIGN_KEYS_UNINDEXED,
            f"no index of {written.name} serves {named}: the more rows the job brings, the longer every delete there"
            " takes, since it looks here for rows that point at it",
            "CREATE INDEX CONCURRENTLY on these columns before the job, or add the foreign keys after it",
        )


def _constraints(facts: PreflightFacts, written: Table) -> Iterator[Finding]:
    touched = set(facts.filled)
    exclusions = [i for i in written.indexes if i.exclusion and (not facts.in_place or touches(i, touched))]
    if exclusions:
        yield finding(
            Code.EXCLUSION_CONSTRAINTS,
            f"{written.name} has exclusion constraints ({names_of(exclusions)}): a row that conflicts with another one"
            " stops the job, and no on_conflict decides about it",
            "make sure that the source's rows do not exclude each other, or add these constraints after the job",
        )
    # A constraint on a column that is being filled is usually what the job is to make true.
    broken = [c for c in written.checks_not_valid if touched.isdisjoint(c.columns)]
    if facts.in_place and broken:
        yield finding(
            Code.CONSTRAINTS_NOT_VALID,
            f"{written.name} has constraints that are not valid yet ({', '.join(c.name for c in broken)}): old rows may"
            " break them, and every update checks them whichever columns it writes: such a row stops the job",
            f"mend the rows and ALTER TABLE {in_sql(written)} VALIDATE CONSTRAINT … first",
        )


# -- where it goes ---------------------------------------------------------------------------------------------------


def _replication(facts: PreflightFacts, written: Table) -> Iterator[Finding]:
    statements = statements_of(facts)
    sent = [
        p
        for p in written.publications
        if ("insert" in statements and p.insert)
        or ("update" in statements and p.update)
        or ("delete" in statements and p.delete)
    ]
    if sent:
        how_many = "" if facts.rows is None else f" (about {facts.rows:,.0f})"
        yield finding(
            Code.PUBLISHED,
            f"{written.name} is published ({', '.join(p.name for p in sent)}): each row that the job writes{how_many}"
            " goes to every subscriber too",
            "see that subscribers (replicas, change data capture) may have all of these rows, and have room for them;"
            " watch slot_retention under pace.signals; or take the table out of the publication for the time",
        )
    needs_identity = [
        p
        for p in written.publications
        if ("update" in statements and p.update) or ("delete" in statements and p.delete)
    ]
    if needs_identity and written.without_identity:
        yield finding(
            Code.REPLICA_IDENTITY,
            f"{', '.join(written.without_identity)} has no replica identity, and {needs_identity[0].name} publishes"
            " updates and deletes: PostgreSQL refuses those of the job",
            f"give it a primary key, or ALTER TABLE {in_sql(written)} REPLICA IDENTITY USING INDEX …",
        )
    if written.subscriptions and not facts.in_place:
        yield finding(
            Code.SUBSCRIBED,
            f"{written.name} is filled by subscription too ({', '.join(written.subscriptions)}): a row that arrives"
            " after the job has written it is a conflict, which stops the subscription",
            "let one of the two fill the table: disable the subscription for it, or leave the copying to it",
        )
