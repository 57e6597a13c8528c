"""Everything that preflight says of a job, from everything that it was told."""

from __future__ import annotations

from collections.abc import Iterator

from engine.model import Finding
from engine.plan.preflight.catalogue import Code, finding, settle
from engine.plan.preflight.columns import ColumnMap, map_columns
from engine.plan.preflight.cost import check_cost
from engine.plan.preflight.expressions import check_expressions, check_set
from engine.plan.preflight.facts import PreflightFacts, in_sql
from engine.plan.preflight.keys import KeyChoice, choose_key
from engine.plan.preflight.pacing import check_pacing
from engine.plan.preflight.servers import check_application, check_servers
from engine.plan.preflight.tables import check_arbiter, check_tables
from engine.plan.preflight.transforms import check_transform
from engine.plan.preflight.writes import check_writes


def preflight(facts: PreflightFacts) -> tuple[Finding, ...]:
    """Every finding of the job, refusals first; the spec's ``accept`` list is applied already.

    Pure and deterministic: the key and the column map are the ones that ``choose_key`` and ``map_columns`` give for the
    same spec and tables.
    """
    choice = choose_key(facts.spec, facts.source)
    columns = None
    if facts.target is not None:
        columns = map_columns(facts.spec, facts.source, facts.target, facts.computed)
    return settle(_findings(facts, choice, columns), facts.spec.accept)


def _findings(facts: PreflightFacts, choice: KeyChoice, columns: ColumnMap | None) -> Iterator[Finding]:
    yield from check_servers(facts, columns)
    yield from check_tables(facts)
    yield from check_writes(facts)
    yield from _key(facts, choice)
    if columns is not None:
        yield from columns.findings
        if choice.key is not None:
            yield from check_arbiter(facts, columns, choice.key)
    yield from check_expressions(facts)
    if facts.in_place:
        yield from check_set(facts, choice)
    yield from check_transform(facts, choice, columns)
    yield from check_cost(facts, columns)
    yield from check_application(facts)
    yield from check_pacing(facts)


def _key(facts: PreflightFacts, choice: KeyChoice) -> Iterator[Finding]:
    # A key that changes is no danger to rows that our triggers carry over.
    yield from (f for f in choice.findings if f.code != Code.KEY_UPDATABLE or not facts.is_dual_written)
    source = facts.source
    outdated = [n for n in choice.key.names if n in source.outdated_collations] if choice.key is not None else []
    if choice.key is not None and outdated:
        yield finding(
            Code.COLLATION_OUTDATED,
            f"index {choice.key.index} of {source.name} was built with another version of the collation of"
            f" {', '.join(outdated)} than the server has now: it may not be in the order that the server believes it to"
            " be, and rows that stand in the wrong place would be left out",
            f"REINDEX TABLE CONCURRENTLY {in_sql(source)}, then ALTER COLLATION … (or DATABASE …) REFRESH"
            " [COLLATION] VERSION",
        )
