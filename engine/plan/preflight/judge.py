"""Everything that preflight says of a job, from everything that it was told."""

from __future__ import annotations

from collections.abc import Iterator

from engine.model import Finding
from engine.plan.preflight.catalogue import settle
from engine.plan.preflight.columns import ColumnMap, map_columns
from engine.plan.preflight.expressions import check_expressions, check_set
from engine.plan.preflight.facts import PreflightFacts
from engine.plan.preflight.keys import KeyChoice, choose_key
from engine.plan.preflight.pacing import check_pacing
from engine.plan.preflight.servers import check_application, check_cost, check_servers
from engine.plan.preflight.tables import check_arbiter, check_growth, check_tables


def preflight(facts: PreflightFacts) -> tuple[Finding, ...]:
    """Every finding of the job, refusals first; the spec's ``accept`` list is applied already.

    Pure and deterministic: the key and the column map are the ones that ``choose_key`` and ``map_columns`` give for the
    same spec and tables.
    """
    choice = choose_key(facts.spec, facts.source)
    columns = None
    if facts.target is not None:
        columns = map_columns(facts.spec, facts.source, facts.target)
    return settle(_findings(facts, choice, columns), facts.spec.accept)


def _findings(facts: PreflightFacts, choice: KeyChoice, columns: ColumnMap | None) -> Iterator[Finding]:
    yield from check_servers(facts)
    yield from check_tables(facts)
    yield from choice.findings
    if columns is not None:
        yield from columns.findings
        if choice.key is not None:
            yield from check_arbiter(facts, columns, choice.key)
    yield from check_expressions(facts)
    if facts.in_place:
        yield from check_set(facts, choice)
    yield from check_cost(facts, columns)
    yield from check_growth(facts)
    yield from check_application(facts)
    yield from check_pacing(facts)
