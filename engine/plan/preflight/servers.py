"""What about servers, rights, statistics and plans stands in the way, and what the application must do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engine.model import ConflictPolicy, Deletes, Finding, Mode, Table
from engine.plan.preflight.catalogue import Code, finding
from engine.plan.preflight.columns import ColumnMap
from engine.plan.preflight.facts import PreflightFacts, ServerFacts, in_sql
from engine.spec import JobSpec

# As server_version_num: 14.0, and the first major version that the test suite does not run against.
OLDEST_VERSION_NUM: Final = 140000
UNTESTED_VERSION_NUM: Final = 190000


def required_privileges(spec: JobSpec, mode: Mode) -> tuple[frozenset[str], frozenset[str]]:
    """The table privileges that a job needs: on its source, and on its target (none in place)."""
    if mode is Mode.UPDATE:
        return frozenset({"SELECT", "UPDATE"}), frozenset()
    target = {"SELECT", "INSERT"}
    if spec.on_conflict.policy in (ConflictPolicy.REPLACE, ConflictPolicy.NEWEST):
        target.add("UPDATE")
    if spec.deletes is Deletes.GUARDED:
        # The sweep locks a suspect row before it looks at the source again, and SELECT … FOR UPDATE needs UPDATE.
        target |= {"UPDATE", "DELETE"}
    return frozenset({"SELECT"}), frozenset(target)


def check_servers(facts: PreflightFacts) -> Iterator[Finding]:
    """Versions, recovery, and what the role may do."""
    sides = [("source", facts.source_server)]
    if facts.target_server is not None and facts.target_server is not facts.source_server:
        sides.append(("target", facts.target_server))
    for side, server in sides:
        yield from _server(side, server, facts.spec)
    on_source, on_target = required_privileges(facts.spec, facts.mode)
    yield from _privileges(on_source, facts.source, facts)
    if facts.target is not None:
        yield from _privileges(on_target, facts.target, facts)


def check_cost(facts: PreflightFacts, columns: ColumnMap | None) -> Iterator[Finding]:
    """Statistics, plans, and whether rows can travel in binary."""
    source = facts.source
    if source.rows < 0:
        yield finding(
            Code.STATISTICS_MISSING,
            f"{source.name} was never analysed: spans, progress and plans are guesses",
            f"ANALYZE {in_sql(source)}",
        )
    for plan in facts.plans:
        read = f"; index {plan.index} is there" if plan.index else ""
        nodes = ", ".join(plan.node_types)
        if plan.forced:
            yield finding(
                Code.PLAN_FORCED,
                f"the planner would rather scan {source.name} for {plan.query}; the job forces it to the index"
                f" ({nodes}{f' on {plan.index}' if plan.index else ''})",
                f"ANALYZE {in_sql(source)}; a small table is scanned by right, and then this means nothing",
            )
        elif plan.scans_table:
            yield finding(
                Code.PLAN_SCANS_TABLE,
                f"{plan.query} would read all of {source.name} for each chunk ({nodes}){read}",
                f"ANALYZE {in_sql(source)}, and see that the key's index is valid and not hidden by enable_* settings",
            )
    if facts.mode is Mode.COPY and columns is not None and columns.not_binary:
        yield finding(
            Code.BINARY_COPY_IMPOSSIBLE,
            f"{', '.join(columns.not_binary)} of {facts.target.name if facts.target else 'the target'}"
            " cannot travel in binary between databases: rows are copied as text, which is slower",
            "nothing needs doing",
        )


def check_application(facts: PreflightFacts) -> Iterator[Finding]:
    """What the application must do while the job runs, and what would stay behind without anybody noticing."""
    yield from _dual_write(facts)
    if facts.in_place:
        return
    if facts.spec.deletes is Deletes.NONE:
        yield finding(
            Code.DELETES_UNGUARDED,
            f"deletes: none declares that nobody deletes from {facts.source.name} during the job;"
            " a row deleted meanwhile may stay in the target",
            "deletes: guarded looks for such rows in the end, for a few per cent of time",
        )
    yield from _left_behind(facts)


def _server(side: str, server: ServerFacts, spec: JobSpec) -> Iterator[Finding]:
    major = server.version_num // 10000
    if server.version_num < OLDEST_VERSION_NUM:
        yield finding(
            Code.SERVER_VERSION,
            f"the {side} server is PostgreSQL {major}, and {OLDEST_VERSION_NUM // 10000} is the oldest that works",
            "upgrade the server",
        )
    elif server.version_num >= UNTESTED_VERSION_NUM:
        yield finding(
            Code.SERVER_UNTESTED,
            f"the {side} server is PostgreSQL {major}, newer than any that this version was tested with",
            "look for a newer version of this program, and rehearse first",
        )
    if server.in_recovery:
        yield finding(
            Code.READ_ONLY_SERVER,
            f"the {side} server is a standby: it cannot be written, and what it shows lags behind the primary",
            "connect to the primary (target_session_attrs=read-write)",
        )
    if server.is_superuser and spec.role is None:
        yield finding(
            Code.SUPERUSER,
            f"the {side} connection is superuser {server.user}: expressions of the spec may do anything there",
            "write role: with a role that has only the privileges of this job (`backfill grants` prints them)",
        )


def _privileges(needed: frozenset[str], table: Table, facts: PreflightFacts) -> Iterator[Finding]:
    missing = sorted(needed - table.privileges)
    if missing:
        server = facts.source_server if table is facts.source else facts.target_server or facts.source_server
        yield finding(
            Code.PRIVILEGES,
            f"role {facts.spec.role or server.user} lacks {', '.join(missing)} on {table.name}",
            "`backfill grants` prints the GRANT script for this job",
        )


def _dual_write(facts: PreflightFacts) -> Iterator[Finding]:
    source = facts.source
    writers = [t for t in source.triggers if t.enabled and t.row_level]
    if facts.in_place:
        if not any(t.before and t.on_insert for t in writers):
            yield finding(
                Code.DUAL_WRITE_MISSING,
                f"no trigger of {source.name} fills {', '.join(facts.spec.set)} in rows that are inserted meanwhile,"
                " and the job does not look past the last key of its beginning",
                "let the application or a BEFORE INSERT OR UPDATE trigger fill them before the job starts",
            )
        return
    unheard = [
        event
        for event, heard in (
            ("INSERT", any(t.on_insert for t in writers)),
            ("UPDATE", any(t.on_update for t in writers)),
            ("DELETE", any(t.on_delete for t in writers)),
        )
        if not heard
    ]
    if unheard:
        yield finding(
            Code.DUAL_WRITE_MISSING,
            f"no trigger of {source.name} hears {', '.join(unheard)}: changes made behind the job's cursor do not reach"
            " the target",
            "let the application write both tables (dual-write) before the job starts, unless nobody writes the source",
        )


def _left_behind(facts: PreflightFacts) -> Iterator[Finding]:
    target = facts.target
    # When the spec lists the columns, leaving some out was its author's choice.
    if facts.spec.columns or target is None:
        return
    # By equal names, a column that the target generates itself is there all the same.
    there = {c.name for c in target.columns}
    behind = [c.name for c in facts.source.columns if c.name not in there]
    if behind:
        yield finding(
            Code.COLUMNS_LEFT_BEHIND,
            f"no column of {target.name} takes these of {facts.source.name}: {', '.join(behind)}",
            "add them to the target, or list the columns that are meant under columns",
        )
