"""A spec's SQL expressions as the server understands them: parsed, never run."""

from __future__ import annotations

from engine.db import Connection
from engine.db.failures import classify
from engine.model import Table
from engine.plan.preflight import ExpressionFacts
from engine.spec import JobSpec
from engine.sql import ExpressionError, qualified, read_expression


async def describe_expressions(spec: JobSpec, connection: Connection, source: Table) -> tuple[ExpressionFacts, ...]:
    """Every expression of the spec, with what the server, or our lexer, says is wrong with it."""
    wanted: list[tuple[str, str | None, str]] = [("set", name, text) for name, text in spec.set.items()]
    wanted += [("columns", name, text) for name, text in spec.columns.items()]
    wanted += [(clause, None, text) for clause, text in (("where", spec.where), ("done", spec.done)) if text]
    return tuple([await _read_one(connection, source, *one) for one in wanted])


async def _read_one(
    connection: Connection, source: Table, clause: str, column: str | None, text: str
) -> ExpressionFacts:
    try:
        expression = read_expression(text)
    except ExpressionError as error:
        return ExpressionFacts(clause=clause, column=column, text=text, error=_with_hint(error.message, error.hint))
    if column is None:
        probe = f"SELECT ({expression.sql})::boolean FROM {qualified(source.name)} WHERE ({expression.sql})"
    else:
        probe = f"SELECT ({expression.sql}) FROM {qualified(source.name)}"
    try:
        (_, _, type_name), *_ = await connection.describe(probe)
    except Exception as error:
        failure = classify(error)
        if failure.lost or not failure.sqlstate:
            raise
        return ExpressionFacts(
            clause=clause,
            column=column,
            text=text,
            identifiers=expression.identifiers,
            functions=expression.functions,
            error=_with_hint(failure.message, failure.hint),
        )
    rows = await connection.fetch(
        "SELECT proname::text AS name, bool_or(provolatile = 'v') AS volatile,"
        " bool_or(prokind <> 'f' OR proretset) AS not_scalar"
        " FROM pg_catalog.pg_proc WHERE proname = ANY ($1::text[]) GROUP BY proname",
        sorted(expression.functions),
    )
    return ExpressionFacts(
        clause=clause,
        column=column,
        text=text,
        identifiers=expression.identifiers,
        functions=expression.functions,
        volatile=frozenset(row["name"] for row in rows if row["volatile"]),
        not_scalar=frozenset(row["name"] for row in rows if row["not_scalar"]),
        type_name=type_name,
    )


def _with_hint(message: str, hint: str) -> str:
    return f"{message} ({hint})" if hint else message
