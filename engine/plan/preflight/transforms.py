"""What about the job's transform stands in the way: its columns, their types, and what it made of a sample of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from engine.model import Finding, Mode, Severity, Table
from engine.plan.preflight.catalogue import Code, did_you_mean, finding
from engine.plan.preflight.columns import ColumnMap
from engine.plan.preflight.facts import PreflightFacts, SampleFacts, TransformFacts
from engine.plan.preflight.keys import KeyChoice

SUPPORTED: Final = (
    "boolean, integers, floats, numeric, date, timestamp with and without time zone, uuid, text, bytea, json and jsonb,"
    " and one-dimensional arrays of these"
)


def check_transform(facts: PreflightFacts, choice: KeyChoice, columns: ColumnMap | None) -> Iterator[Finding]:
    """Everything about the transform; nothing for a job without one."""
    transform = facts.transform
    if transform is None:
        return
    yield from _unknown(facts, transform)
    yield from _twice(facts, transform)
    yield from _unsupported(facts, transform)
    if columns is not None:
        yield from _not_binary(facts, columns)
    yield from _key(facts, transform, choice, columns)
    if facts.in_place:
        yield from _generated(facts, transform)
    if transform.drops:
        what = "leaves rows as they are" if facts.in_place else "leaves rows out"
        left = "not done" if facts.in_place else "missing"
        yield finding(
            Code.TRANSFORM_DROPS,
            f"the transform {transform.reference} {what} where it says so (drops=True): a verification reports them as"
            f" {left}",
            "say by where which rows the job is about, if SQL can say it: then both agree",
        )
    if transform.sample is not None:
        yield from _sample(transform, transform.sample, facts.spec.errors.max_quarantined)


def _unknown(facts: PreflightFacts, transform: TransformFacts) -> Iterator[Finding]:
    wanted: list[tuple[str, Table | None, Sequence[str]]] = [
        ("reads", facts.source, [name for name, _ in transform.reads]),
        ("writes", facts.written, transform.writes),
    ]
    for does, table, names in wanted:
        if table is None:
            continue
        live = [c.name for c in table.columns]
        for name in dict.fromkeys(names):
            if name not in live:
                yield finding(
                    Code.TRANSFORM_COLUMN_UNKNOWN,
                    f"the transform {transform.reference} {does} {name}, which {table.name} does not have",
                    f"name existing columns in @transform({does}=…){did_you_mean(name, live)}",
                )


def _twice(facts: PreflightFacts, transform: TransformFacts) -> Iterator[Finding]:
    clause, by_sql = ("set", facts.spec.set) if facts.in_place else ("columns", facts.spec.columns)
    both = [name for name in transform.writes if name in by_sql]
    if both:
        yield finding(
            Code.TRANSFORM_WRITES_TWICE,
            f"{clause} and the transform {transform.reference} both fill {', '.join(both)}",
            f"leave it to one of them: take it out of {clause}, or out of @transform(writes=…)",
        )


def _unsupported(facts: PreflightFacts, transform: TransformFacts) -> Iterator[Finding]:
    for does, table, names in (
        ("reads", facts.source, transform.unreadable),
        ("writes", facts.written, transform.unwritable),
    ):
        for name in names:
            column = table.column(name) if table is not None else None
            form = dict(transform.reads).get(name, "") if does == "reads" else ""
            as_what = f" as {form}" if form else ""
            kind = column.type_name if column is not None else "of an unknown type"
            yield finding(
                Code.TRANSFORM_TYPE_UNSUPPORTED,
                f"the transform {transform.reference} {does} {name}{as_what}, which is {kind}: Python has no form for"
                " it here",
                f"supported are {SUPPORTED}; what a transform does not name passes untouched, whatever its type",
            )


def _not_binary(facts: PreflightFacts, columns: ColumnMap) -> Iterator[Finding]:
    """Rows of a transform travel in binary form only; within one database any type that has one will do."""
    apart = facts.mode is Mode.COPY
    for column in (c.target for c in columns.columns if not c.by_transform):
        if not column.binary_io or (apart and not column.binary_portable):
            where = "that another database could read" if column.binary_io else "at all"
            yield finding(
                Code.TRANSFORM_TYPE_UNSUPPORTED,
                f"{column.name} is {column.type_name}, which has no binary form {where}, and beside a transform rows"
                " travel in binary form",
                f"leave {column.name} out of columns and copy it by a job of its own",
            )


def _key(
    facts: PreflightFacts, transform: TransformFacts, choice: KeyChoice, columns: ColumnMap | None
) -> Iterator[Finding]:
    """What a row is found by again must not be computed."""
    names = set(choice.key.names) if choice.key is not None else set()
    if facts.target is not None and columns is not None:
        # Where the key goes: plain columns of that name, and whatever `columns` maps it to.
        mapped = {c.target.name for c in columns.columns if c.source is not None and c.source.name in names}
        names = mapped or names
        names |= {n for i in facts.target.indexes if i.primary for n in i.columns if n in transform.writes}
    moved = [name for name in transform.writes if name in names]
    if moved:
        yield finding(
            Code.TRANSFORM_WRITES_KEY,
            f"the transform {transform.reference} writes {', '.join(moved)}, which rows are found by again",
            "name another key, or let it fill a new column",
        )


def _generated(facts: PreflightFacts, transform: TransformFacts) -> Iterator[Finding]:
    for name in transform.writes:
        column = facts.source.column(name)
        if column is not None and (column.generated or column.identity == "always"):
            how = "generates itself" if column.generated else "numbers itself (GENERATED ALWAYS AS IDENTITY)"
            yield finding(
                Code.SET_GENERATED,
                f"the transform {transform.reference} writes {name}, which {facts.source.name} {how}",
                f"take {name} out of @transform(writes=…)",
            )


def _sample(transform: TransformFacts, sample: SampleFacts, may_reject: int) -> Iterator[Finding]:
    of_rows = "a sample of 1 row" if sample.rows == 1 else f"a sample of {sample.rows} rows"
    if sample.untried:
        said = finding(
            Code.TRANSFORM_FAILS,
            f"the transform {transform.reference} could not be tried: {sample.untried}",
            "nothing is known of it: rehearse a few chunks before the job (backfill rehearse)",
        )
        yield replace(said, severity=Severity.WARN)
    elif sample.failure:
        name = f"transform {transform.reference}"
        why = sample.failure.removeprefix(f"{name}: ")
        why = f"it{why.removeprefix(name)}" if why.startswith(f"{name} ") else why
        yield finding(
            Code.TRANSFORM_FAILS,
            f"the transform {transform.reference} fails on {of_rows}: {why}",
            "mend the function; `backfill plan --show-rows` shows what it is given",
        )
    elif sample.rejected:
        then = (
            f"up to {may_reject:,} such rows are set aside, and one more stops the job"
            if may_reject
            else "the first such row stops the job (errors.max_quarantined is 0)"
        )
        said = finding(
            Code.TRANSFORM_REJECTS,
            f"the transform {transform.reference} rejects {sample.rejected} of {of_rows} ({sample.reason}): {then}",
            "leave such rows out by where, mend them, or raise errors.max_quarantined",
        )
        yield said if may_reject else replace(said, severity=Severity.REFUSE)  # it would stop before long
