"""What about the spec's SQL expressions stands in the way."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from engine.model import Column, Finding, Table
from engine.plan.preflight.catalogue import Code, did_you_mean, finding
from engine.plan.preflight.columns import plain_column
from engine.plan.preflight.facts import ExpressionFacts, PreflightFacts
from engine.plan.preflight.fits import sql_name, type_loses
from engine.plan.preflight.keys import KeyChoice


def check_expressions(facts: PreflightFacts) -> Iterator[Finding]:
    """Each expression for itself: is it valid, one value per row, of a type that fits, and stable."""
    for expression in facts.expressions:
        is_predicate = expression.clause in ("where", "done")
        if expression.error:
            yield _invalid(expression, expression.error)
            continue
        if expression.not_scalar:
            yield finding(
                Code.EXPRESSION_NOT_SCALAR,
                f"{expression.place} calls {_listed(expression.not_scalar)}, which does not give one value for each"
                " row",
                "write an expression over one row; aggregates belong in a subquery of their own",
            )
        if is_predicate:
            yield from _predicate(expression)
        else:
            yield from _value(facts, expression)


def check_set(facts: PreflightFacts, choice: KeyChoice) -> Iterator[Finding]:
    """In place: which columns are written, and how a finished row is told from an unfinished one."""
    source, written = facts.source, facts.spec.set
    live = [c.name for c in source.columns]
    for name in written:
        column = source.column(name)
        if column is None:
            yield finding(
                Code.COLUMN_MISSING,
                f"set writes {name}, which {source.name} does not have",
                f"ALTER TABLE … ADD COLUMN first (the expand step), or name an existing column"
                f"{did_you_mean(name, live)}",
            )
        elif column.generated or column.identity == "always":
            how = "generates itself" if column.generated else "numbers itself (GENERATED ALWAYS AS IDENTITY)"
            yield finding(
                Code.SET_GENERATED, f"set writes {name}, which {source.name} {how}", f"take {name} out of set"
            )
    if choice.key is not None and (moved := [n for n in written if n in choice.key.names]):
        yield finding(
            Code.SET_KEY_COLUMN,
            f"set writes {', '.join(moved)}, which the job pages by: rows would move past the cursor",
            "name another key, or fill a new column and swap the two",
        )
    yield from _done(facts, [c for c in map(source.column, facts.filled) if c is not None])


def _done(facts: PreflightFacts, written: Sequence[Column]) -> Iterator[Finding]:
    spec, source = facts.spec, facts.source
    if spec.done is not None or not written:
        return
    remedy = (
        "write done: a predicate that is true for exactly the finished rows, such as a marker column that set fills"
    )
    names = {c.name for c in written}
    reread = [name for name, _ in facts.transform.reads if name in names] if facts.transform is not None else []
    if facts.transform is not None and reread:
        yield finding(
            Code.DONE_REQUIRED,
            f"the transform {facts.transform.reference} reads {', '.join(reread)}, which the job writes: to compute it"
            " again would give something else",
            remedy,
        )
    for expression in facts.expressions:
        if expression.clause != "set":
            continue
        reads = sorted(names if _reads_whole_row(expression, source) else expression.identifiers & names)
        if reads:
            yield finding(
                Code.DONE_REQUIRED,
                f"{expression.place} reads {', '.join(reads)}, which the job writes: to compute it again would give"
                " something else",
                remedy,
            )
        elif expression.volatile:
            yield finding(
                Code.DONE_REQUIRED,
                f"{expression.place} calls {_listed(expression.volatile)}, which gives another value each time",
                remedy,
            )
    listed = ", ".join(c.name for c in written)
    if all(c.not_null for c in written):
        yield finding(
            Code.DONE_REQUIRED,
            f"every column that the job writes is NOT NULL ({listed}): by the default done (all of them not null) every"
            " row is finished already, and the job would change nothing",
            remedy,
        )
    elif all(c.not_null or c.has_default for c in written):
        yield finding(
            Code.DONE_SKIPS_DEFAULTS,
            f"every column that the job writes has a default ({listed}): rows that hold it are not null, and by the"
            " default done they are finished already",
            "drop the default until the job is done, or write done",
        )


def unrepeatable(expressions: Iterable[ExpressionFacts], written: Collection[str], source: Table) -> frozenset[str]:
    """The columns whose expression would give something else if it were computed again: it calls a volatile function,
    asks for the time, or reads one of the columns that the job itself writes (``written``; empty where that is another
    table).
    """
    return frozenset(
        e.column
        for e in expressions
        if e.column is not None
        and (e.passing or not e.identifiers.isdisjoint(written) or (written and _reads_whole_row(e, source)))
    )


def _reads_whole_row(expression: ExpressionFacts, source: Table) -> bool:
    """True when the table's own name stands in the expression for the row, as in ``to_jsonb(orders)``."""
    name = source.name.name
    if name not in expression.identifiers or source.column(name) is not None:
        return False
    # orders.amount is one column; orders and orders.* are the row.
    one_column = re.compile(rf'(?<![\w$]){re.escape(name)}"?\s*\.\s*[^*\s]', re.IGNORECASE)
    mentions = re.compile(rf"(?<![\w$]){re.escape(name)}(?![\w$])", re.IGNORECASE)
    return len(mentions.findall(expression.text)) > len(one_column.findall(expression.text))


def _predicate(expression: ExpressionFacts) -> Iterator[Finding]:
    if sql_name(expression.type_name) not in ("", "boolean"):
        yield _invalid(expression, f"it is {expression.type_name}, and must be true or false")
    if expression.volatile:
        yield finding(
            Code.PREDICATE_VOLATILE,
            f"{expression.place} calls {_listed(expression.volatile)}, which gives another value each time: which rows"
            " the job is about could not be said twice",
            "decide by columns; functions such as now() are the same throughout a statement, and allowed",
        )


def _value(facts: PreflightFacts, expression: ExpressionFacts) -> Iterator[Finding]:
    if expression.clause == "columns" and expression.passing:
        yield finding(
            Code.EXPRESSION_VOLATILE,
            f"{expression.place} calls {_listed(expression.passing)}, which gives another value each time:"
            " verification cannot compare this column",
            "let the target's default fill it, or accept that it stays unverified",
        )
    table = facts.written
    column = table.column(expression.column) if table is not None and expression.column is not None else None
    # Plain columns are judged with the column map; constants were tried by the server, when it prepared them.
    is_constant = not expression.identifiers and not expression.functions
    if column is None or is_constant or not expression.type_name or _is_plain(facts, expression):
        return
    lost = type_loses(expression.type_name, column.type_name)
    if lost:
        yield finding(
            Code.EXPRESSION_TYPE,
            f"{expression.place} gives {expression.type_name} for a column of type {column.type_name}: {lost}",
            f"end the expression with ::{column.type_name} where that conversion is meant;"
            " a row whose value does not fit stops the job",
        )


def _is_plain(facts: PreflightFacts, expression: ExpressionFacts) -> bool:
    return expression.clause == "columns" and plain_column(expression.text, facts.source) is not None


def _invalid(expression: ExpressionFacts, why: str) -> Finding:
    code = Code.DONE_INVALID if expression.clause == "done" else Code.EXPRESSION_INVALID
    return finding(code, f"{expression.place} is not a valid expression here: {why}", f"mend it: {expression.text}")


def _listed(names: frozenset[str]) -> str:
    return ", ".join(f"{name}()" for name in sorted(names))
