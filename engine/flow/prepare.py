"""From a spec to everything a run needs: what the catalogue says, what preflight finds, how rows will move.

Only asks; nothing here writes.  Each process does it for itself and compares the outcome with the ledger's: a worker on
another host believes the catalogue, not what somebody wrote into a control table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from engine.db import Connection, Database
from engine.db.inspect import inspect_table
from engine.errors import PreflightRefused, UsageError
from engine.flow import dual_write
from engine.flow.answer import answer
from engine.flow.endpoints import Endpoints
from engine.flow.expressions import describe_expressions
from engine.flow.sampled import Sample, sample
from engine.flow.transforming import PreparedTransform, load_transform, prepare_transform
from engine.model import Column, ConflictPolicy, Deletes, Finding, Index, Key, KeyColumn, Mode, Side, Table
from engine.plan.keyspace import kind_of
from engine.plan.preflight import (
    ColumnMap,
    DualWriteFacts,
    PacingFacts,
    PlanCheck,
    PreflightFacts,
    ServerPacing,
    ServerState,
    choose_arbiter,
    choose_key,
    filled_by,
    map_columns,
    passes_through,
    preflight,
    ranges_agree,
    refusals,
    unrepeatable,
)
from engine.plan.preflight import MappedColumn as ColumnOfTarget
from engine.plan.spans import SpanPlan, plan_spans
from engine.spec import JobSpec
from engine.sql import ident, qualified, read_expression
from engine.sql.predicates import parameter, within
from engine.sql.statements import MappedColumn, SourceShape, TargetShape, default_done
from engine.watch.rights import look_at_rights, look_at_server

SMALL_TABLE_ROWS: Final = 50_000
"""Below this a scan of the whole table is what the planner should choose; above, it means a chunk reads everything."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was seen of a job before it starts; ``findings`` may refuse it."""

    spec: JobSpec
    mode: Mode
    endpoints: Endpoints
    source: Table
    target: Table | None
    key: Key | None
    columns: ColumnMap | None
    arbiter: Index | None
    plan: SpanPlan | None
    checks: tuple[PlanCheck, ...]
    findings: tuple[Finding, ...]
    identity: dict[str, Any]
    arbiters: frozenset[str]
    unrepeatable: frozenset[str]
    transform: PreparedTransform | None = None
    sample: Sample | None = None  # what became of some rows that the transform was tried on

    @property
    def streams(self) -> bool:
        """True when rows pass through this process, over a session for reading and one for writing."""
        return passes_through(self.mode, transformed=self.transform is not None)

    @property
    def filled(self) -> tuple[str, ...]:
        """In place: the columns that the job writes, by SQL or by its transform."""
        return _filled(self.spec, self.transform)

    def prepared(self) -> Prepared:
        """The job as it can be run.  Raises ``PreflightRefused`` with every refusal."""
        refused = refusals(self.findings)
        if refused:
            raise PreflightRefused(refused)
        assert self.key is not None, "preflight refuses a table without a key"
        assert self.plan is not None
        return _prepared(self, self.key, self.plan)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job ready to run: shapes for the movers, the plan, and what makes the job this job."""

    spec: JobSpec
    mode: Mode
    endpoints: Endpoints
    source_table: Table
    target_table: Table | None
    source: SourceShape
    target: TargetShape | None
    sweep_source: SourceShape | None
    sweep_target: TargetShape | None
    sweep_key: Key | None
    arbiters: frozenset[str]
    binary: bool
    row_bytes: float
    plan: SpanPlan
    identity: dict[str, Any]
    findings: tuple[Finding, ...]
    unrepeatable: frozenset[str]  # written columns whose expression would give something else if computed again
    transform: PreparedTransform | None = None

    @property
    def streams(self) -> bool:
        """True when rows pass through this process, over a session for reading and one for writing."""
        return passes_through(self.mode, transformed=self.transform is not None)

    @property
    def filled(self) -> tuple[str, ...]:
        """In place: the columns that the job writes, by SQL or by its transform."""
        return _filled(self.spec, self.transform)

    @property
    def done(self) -> str:
        """In place: true for a finished row, as SQL.  By default: every column that the job writes holds a value."""
        return done_of(self.spec, self.filled)

    @property
    def not_compared(self) -> tuple[str, ...]:
        """Columns of the target that no verification can compare."""
        return tuple(sorted(self.unrepeatable)) if self.target is not None else ()

    @property
    def key(self) -> Key:
        """The key the job pages its source by."""
        return self.source.key

    @property
    def written_table(self) -> Table:
        """The table that the job writes."""
        return self.target_table or self.source_table

    @property
    def asks_ahead(self) -> bool:
        """True when it can be known, and is worth knowing, before a chunk moves whether its range is empty yet."""
        target = self.target
        return (
            self.mode is Mode.INSERT
            and self.transform is None
            and target is not None
            and target.policy is ConflictPolicy.KEEP
            and target.same_order
        )

    @property
    def sweeps(self) -> bool:
        """True when rows deleted at the source meanwhile are to be taken out of the target again."""
        return self.target is not None and self.spec.deletes is Deletes.GUARDED

    @property
    def source_label(self) -> str:
        """For people: where from."""
        return f"{self.endpoints.source.label} {self.source_table.name}"

    @property
    def target_label(self) -> str:
        """For people: where to."""
        return f"{self.endpoints.target.label} {self.written_table.name}"


def done_of(spec: JobSpec, filled: Sequence[str]) -> str:
    """In place: true for a finished row, as SQL.  ``filled``: the columns that the job writes."""
    return read_expression(spec.done).sql if spec.done else default_done(filled)


def _filled(spec: JobSpec, transform: PreparedTransform | None) -> tuple[str, ...]:
    return filled_by(spec, transform.declaration.writes if transform is not None else ())


async def inspect(
    spec: JobSpec,
    databases: tuple[Database, Database],
    *,
    runs: bool = True,
    tries: bool = False,
    show_rows: int = 0,
    check: Callable[[Inspection], None] | None = None,
) -> Inspection:
    """Ask both databases everything that preflight and the planner want to know.  Touches nothing.

    ``runs`` False: somebody only looks at the job, so its transform is not loaded where it is known what it declares.
    ``tries``: the job is to be started, or somebody wants to know what would come of it, so its transform is tried on a
    sample of rows.  ``show_rows``: of so many of them what became of their values.  ``check`` hears of the tables that
    were found before a row of them is read; what it raises passes through.

    Raises ``CannotConnect``, and ``UsageError`` when the source table does not exist.
    """
    source_db, target_db = databases
    # As the role that will do the work, so that rights and row security are judged as they will apply.
    there = await source_db.connect("plan", data=True)
    here = there if source_db is target_db else await target_db.connect("plan", data=True)
    try:
        if here is not there and _same_database(here, there):
            source_db = target_db
        seen, facts = await _inspect(spec, Endpoints(source_db, target_db), there, here, runs=runs)
        if check is not None:
            check(seen)
        return await _try(seen, facts, there, show_rows) if tries else seen
    finally:
        await there.close()
        if here is not there:
            await here.close()


def _same_database(one: Connection, other: Connection) -> bool:
    """One database behind two DSNs.  A promoted clone has the same identifiers, but started at another moment."""
    a, b = one.server, other.server
    return bool(a.system_identifier) and (a.system_identifier, a.started, a.database_oid) == (
        b.system_identifier,
        b.started,
        b.database_oid,
    )


async def _inspect(
    spec: JobSpec, endpoints: Endpoints, there: Connection, here: Connection, *, runs: bool
) -> tuple[Inspection, PreflightFacts]:
    loaded = await load_transform(spec, runs=runs)
    source = await inspect_table(there, spec.source.table)
    target = await _inspect_target(spec, here)
    transform, judged = prepare_transform(loaded, source, source if spec.target is None else target)
    mode = Mode.UPDATE if spec.target is None else Mode.INSERT if endpoints.is_one else Mode.COPY
    key = choose_key(spec, source).key
    computed = transform.declaration.writes if transform is not None else ()
    columns = map_columns(spec, source, target, computed) if target is not None else None
    places = columns.key_columns(key, target) if columns and key and target else None
    arbiter = choose_arbiter([c.name for c in places], target) if places and target else None
    plan = None
    if key and _may_read(source):
        plan = await answer(plan_spans(key, workers=spec.workers), there, source.name, key)
    checks = await _check_plans(there, source, key, plan) if key and plan else ()
    streams = passes_through(mode, transformed=transform is not None)
    pacing, states = await _look_at_servers(spec, endpoints, there, here, plan, target or source, stages=streams)
    facts = PreflightFacts(
        spec=spec,
        mode=mode,
        source=source,
        source_server=there.server,
        target=target,
        target_server=here.server,
        expressions=await describe_expressions(spec, there, source) if _may_read(source) else (),
        plans=checks,
        target_has_rows=await _has_rows(here, target) if target else None,
        pacing=pacing,
        rows=plan.rows if plan else None,
        states=states,
        transform=judged,
    )
    identity = spec.meaning() | {
        "source": str(source.name),
        "target": str(target.name) if target else None,
        "key": list(key.names) if key else [],
        "source_system": there.server.system_identifier,
        "source_database": there.server.database,
        "source_oid": source.oid,
        "target_system": here.server.system_identifier,
        "target_database": here.server.database,
        "target_oid": target.oid if target else None,
    }
    if transform is not None:
        identity |= transform.identity
    seen = Inspection(
        spec=spec,
        mode=mode,
        endpoints=endpoints,
        source=source,
        target=target,
        key=key,
        columns=columns,
        arbiter=arbiter,
        plan=plan,
        checks=checks,
        findings=preflight(facts),
        identity=identity,
        arbiters=await _index_names(here, arbiter),
        unrepeatable=unrepeatable(facts.expressions, set(facts.filled) if target is None else (), source)
        | frozenset(computed),
        transform=transform,
    )
    triggers = await _look_at_dual_write(seen, facts, there)
    if triggers is not None:
        facts = replace(facts, dual_write=triggers)
        seen = replace(seen, findings=preflight(facts))
    return seen, facts


async def _try(seen: Inspection, facts: PreflightFacts, there: Connection, show_rows: int) -> Inspection:
    """Try the transform on some rows, unless something else is in the way already, or it may not be loaded here."""
    transform, key, plan = seen.transform, seen.key, seen.plan
    if transform is None or transform.transform is None or key is None or plan is None or refusals(seen.findings):
        return seen
    assert facts.transform is not None
    conditions = [read_expression(seen.spec.where).sql] if seen.spec.where else []
    if seen.target is None:
        conditions.append(f"({done_of(seen.spec, seen.filled)}) IS NOT TRUE")
    each = _row_bytes(seen.source, plan)
    tried = await sample(there, transform, seen.source.name, key, plan, conditions, row_bytes=each, show=show_rows)
    if tried is None:
        return seen
    judged = replace(facts, transform=replace(facts.transform, sample=tried.facts))
    return replace(seen, findings=preflight(judged), sample=tried)


async def _look_at_dual_write(seen: Inspection, facts: PreflightFacts, there: Connection) -> DualWriteFacts | None:
    """Our own triggers on the source; None where they cannot be, or the job is not clear enough to say what they do."""
    places = seen.columns.key_columns(seen.key, seen.target) if seen.columns and seen.key and seen.target else None
    is_clear = seen.target is None or (seen.arbiter is not None and places is not None)
    if seen.key is None or seen.plan is None or not is_clear or any(e.error for e in facts.expressions):
        return None
    found = await dual_write.look(there, _prepared(seen, seen.key, seen.plan))
    return DualWriteFacts(installed=found.installed, intact=found.intact, problems=found.problems)


async def _inspect_target(spec: JobSpec, here: Connection) -> Table | None:
    """The target table; None in place, and where there is no such table (preflight says so)."""
    if spec.target is None:
        return None
    try:
        return await inspect_table(here, spec.target.table)
    except UsageError:
        return None


def _may_read(table: Table) -> bool:
    """Whether a query of the table would be answered; preflight says what is in the way."""
    return table.schema_usage and "SELECT" in table.privileges and not table.row_security


async def _has_rows(connection: Connection, table: Table) -> bool | None:
    if table.kind not in ("r", "p") or not _may_read(table):
        return None
    return bool(await connection.fetchval(f"SELECT EXISTS (SELECT FROM {qualified(table.name)})"))


async def _look_at_servers(
    spec: JobSpec,
    endpoints: Endpoints,
    there: Connection,
    here: Connection,
    plan: SpanPlan | None,
    written: Table,
    *,
    stages: bool,
) -> tuple[PacingFacts, dict[Side, ServerState]]:
    """What signals, windows and VACUUM will meet, and what there is room for.  Signals are watched as the role that
    logs in, VACUUM runs as the one that moves rows.
    """
    servers: dict[Side, ServerPacing] = {}
    states: dict[Side, ServerState] = {}
    for side, database, worker in ((Side.SOURCE, endpoints.source, there), (Side.TARGET, endpoints.target, here)):
        if side is Side.TARGET and endpoints.is_one:
            continue
        watcher = await database.connect("plan")
        try:
            seen = await look_at_rights(watcher, written.name)
            if spec.role is not None:
                seen = replace(seen, can_vacuum=(await look_at_rights(worker, written.name)).can_vacuum)
            is_written = side is Side.TARGET or endpoints.is_one
            state = await look_at_server(watcher, worker, is_written=is_written, stages=is_written and stages)
            states[side] = state
        finally:
            await watcher.close()
        servers[side] = seen
    rows = plan.rows if plan is not None else None
    return PacingFacts(servers=servers, now=datetime.now(UTC), rows=rows), states


async def _index_names(connection: Connection, index: Index | None) -> frozenset[str]:
    """The arbiter's name and those of its parts on partitions: what a unique violation may be reported on."""
    if index is None:
        return frozenset()
    rows = await connection.fetch(
        "SELECT c.relname FROM pg_catalog.pg_partition_tree($1::oid::regclass) t"
        " JOIN pg_catalog.pg_class c ON c.oid = t.relid",
        index.oid,
    )
    return frozenset(row["relname"] for row in rows) | {index.name}


# -- plans ----------------------------------------------------------------------------------------------------------


async def _check_plans(connection: Connection, source: Table, key: Key, plan: SpanPlan) -> tuple[PlanCheck, ...]:
    """EXPLAIN of the chunk's range as the chunk statement will have it: parameters that fold into constants."""
    if len(plan.spans) == 0 or plan.rows < SMALL_TABLE_ROWS or "SELECT" not in source.privileges:
        return ()
    lo, hi = plan.first, plan.spans[0].hi
    middle = plan.space.split(lo, hi)
    if lo is None or len(middle) < len(key.columns):
        middle = hi
    sql = f"SELECT 1 FROM {qualified(source.name)} WHERE {within(key.columns, parameter(1), parameter(2))}"
    args = (list(lo or hi), list(middle))
    free = _nodes(await connection.explain(sql, *args))
    await connection.execute("SET enable_seqscan = off")
    try:
        forced = _nodes(await connection.explain(sql, *args))
    finally:
        await connection.execute("RESET enable_seqscan")
    index = next((name for _, name in forced if name), None)
    # The chunk runs with sequential scans off: what that plan does is what counts.
    return (
        PlanCheck(
            query="the chunk query",
            node_types=tuple(kind for kind, _ in forced),
            index=index,
            scans_table=_scans(forced),
            forced=_scans(free) and not _scans(forced),
        ),
    )


def _nodes(plan: dict[str, Any]) -> list[tuple[str, str | None]]:
    found = [(str(plan["Node Type"]), plan.get("Index Name"))]
    for child in plan.get("Plans", ()):
        found += _nodes(child)
    return found


def _scans(nodes: list[tuple[str, str | None]]) -> bool:
    return any(kind == "Seq Scan" for kind, _ in nodes)


# -- shapes ---------------------------------------------------------------------------------------------------------


def _prepared(seen: Inspection, key: Key, plan: SpanPlan) -> Prepared:
    spec = seen.spec
    where = read_expression(spec.where).sql if spec.where else None
    source = SourceShape(seen.source.name, key, where)
    target = sweep_source = sweep_target = sweep_key = None
    binary = True
    if seen.target is not None:
        assert seen.columns is not None
        assert seen.arbiter is not None, "preflight refuses a target without an arbiter"
        places = seen.columns.key_columns(key, seen.target)
        assert places is not None
        target_key = tuple(_key_column(place) for place in places)
        in_order = seen.arbiter.orders_rows and seen.arbiter.columns == tuple(c.name for c in target_key)
        mapped = tuple(
            MappedColumn(
                name=c.target.name,
                expression=_expression(c),
                base_type=c.target.base_type,
                needs_cast=not c.by_transform and _needs_cast(seen, c.source, c.target),
                by_transform=c.by_transform,
            )
            for c in seen.columns.columns
        )
        target = TargetShape(
            table=seen.target.name,
            key=target_key,
            columns=mapped,
            overriding=seen.columns.overriding,
            policy=spec.on_conflict.policy,
            newest=spec.on_conflict.column,
            same_order=in_order and ranges_agree(key, places),
            remember=spec.deletes is Deletes.GUARDED,
        )
        binary = seen.transform is not None or not seen.columns.not_binary
        sweep_source, sweep_target, sweep_key = _sweep_shapes(source, target, seen.arbiter)
    return Prepared(
        spec=spec,
        mode=seen.mode,
        endpoints=seen.endpoints,
        source_table=seen.source,
        target_table=seen.target,
        source=source,
        target=target,
        sweep_source=sweep_source,
        sweep_target=sweep_target,
        sweep_key=sweep_key,
        arbiters=seen.arbiters,
        binary=binary,
        row_bytes=_row_bytes(seen.source, plan),
        plan=plan,
        identity=seen.identity,
        findings=seen.findings,
        unrepeatable=seen.unrepeatable,
        transform=seen.transform,
    )


def _expression(column: ColumnOfTarget) -> str:
    if column.by_transform:
        return "NULL"
    return ident(column.source.name) if column.source is not None else read_expression(column.expression).sql


FIRST_USER_OID: Final = 16384
"""Types below are the same on every server; above, equal OIDs in two databases mean nothing."""


def _needs_cast(seen: Inspection, source: Column | None, target: Column) -> bool:
    """INSERT converts a column by itself, and needs the cast only for what has no type of its own (``NULL``, ``'x'``).
    Binary COPY must be sent exactly the target's type; a user's type may not exist under that name at the source, and
    travels as what it is: an enum as its label, a domain as its base type.  Within one database it does exist.
    """
    if seen.mode is Mode.INSERT:
        if seen.transform is None:
            return source is None
        return source is None or source.type_oid != target.type_oid
    return target.type_oid < FIRST_USER_OID and (source is None or source.type_oid != target.type_oid)


def _key_column(place: Column) -> KeyColumn:
    return KeyColumn(
        name=place.name,
        type_name=place.base_type,
        type_oid=place.type_oid,
        kind=kind_of(place),
        collation=place.collation,
        collation_id=place.collation_id,
        enum_labels=place.enum_labels,
    )


def _sweep_shapes(source: SourceShape, target: TargetShape, arbiter: Index) -> tuple[SourceShape, TargetShape, Key]:
    """The sweep pages the target by its own unique index, whatever order that has its columns in."""
    order = [arbiter.columns.index(c.name) for c in target.key]
    places = sorted(range(len(order)), key=lambda i: order[i])
    key = Key(tuple(target.key[i] for i in places), arbiter.name)
    theirs = Key(tuple(source.key.columns[i] for i in places), source.key.index)
    return (
        SourceShape(source.table, theirs, source.where),
        TargetShape(
            table=target.table,
            key=key.columns,
            columns=target.columns,
            overriding=target.overriding,
            policy=target.policy,
            newest=target.newest,
            same_order=target.same_order,
            remember=target.remember,
        ),
        key,
    )


def _row_bytes(table: Table, plan: SpanPlan) -> float:
    """Bytes per row as stored, TOAST included: what chunks of server-side movers are sized by."""
    rows = max(plan.rows, 1.0)
    return max(1.0, (table.heap_bytes + table.toast_bytes) / rows)
