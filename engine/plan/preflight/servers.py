"""What about servers and rights stands in the way, and what the application must do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engine.model import ConflictPolicy, Deletes, Finding, Mode, Side, Table
from engine.plan.preflight.catalogue import Code, finding
from engine.plan.preflight.columns import ColumnMap
from engine.plan.preflight.facts import PreflightFacts, ServerFacts, ServerState
from engine.spec import JobSpec

UNTESTED_VERSION_NUM: Final = 190000
"""As server_version_num: the first major version that the test suite does not run against.  Connecting has refused
those that are too old."""

# Beside the workers: the control session, two latency probes, two watchers, one for VACUUM or for ending old sessions,
# and for metrics the reporter's and the one that reads the server's vitals.
_OTHER_SESSIONS: Final = 8
_WORKERS_PER_WALKER: Final = 2  # who looks for the bounds of chunks, on the source
_SHOWN: Final = 3


_GRANTS: Final = "`backfill grants` prints the GRANT script for this job"
_INSTALL: Final = "`backfill dualwrite FILE --install` makes triggers that do it; or "


def required_privileges(spec: JobSpec, mode: Mode, *, repairs: bool = False) -> tuple[frozenset[str], frozenset[str]]:
    """The table privileges that a job needs: on its source, and on its target (none in place).

    ``repairs``: with those that ``verify --repair`` needs besides; a verification that only looks needs no more than
    the job.
    """
    if mode is Mode.UPDATE:
        return frozenset({"SELECT", "UPDATE"}), frozenset()
    target = {"SELECT", "INSERT"}
    if spec.on_conflict.policy in (ConflictPolicy.REPLACE, ConflictPolicy.NEWEST):
        target.add("UPDATE")
    if spec.deletes is Deletes.GUARDED or repairs:
        # Both lock a suspect row before they look at the source again, and SELECT … FOR UPDATE needs UPDATE.
        target |= {"UPDATE", "DELETE"}
    return frozenset({"SELECT"}), frozenset(target)


def check_servers(facts: PreflightFacts, columns: ColumnMap | None) -> Iterator[Finding]:
    """Versions, recovery, what the role may do, who is in the way there, and whether there is room for our sessions."""
    sides = [("source", facts.source_server)]
    if facts.target_server is not None and facts.target_server is not facts.source_server:
        sides.append(("target", facts.target_server))
    for side, server in sides:
        yield from _server(side, server, facts.spec)
    on_source, on_target = required_privileges(facts.spec, facts.mode)
    yield from _privileges(on_source, facts.source, facts)
    if facts.target is not None:
        yield from _privileges(on_target, facts.target, facts)
        if columns is not None:
            yield from _sequences(facts.target, columns, facts)
    for side, state in facts.states.items():
        yield from _state(facts, side, state)


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
    if server.version_num >= UNTESTED_VERSION_NUM:
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
            _GRANTS,
        )
    if needed and not table.schema_usage:
        server = facts.source_server if table is facts.source else facts.target_server or facts.source_server
        yield finding(
            Code.PRIVILEGES,
            f"role {facts.spec.role or server.user} lacks USAGE on the schema of {table.name}",
            _GRANTS,
        )


def _sequences(target: Table, columns: ColumnMap, facts: PreflightFacts) -> Iterator[Finding]:
    """Defaults that our role may not ask for."""
    server = facts.target_server or facts.source_server
    role = facts.spec.role or server.user
    for sequence in target.closed_sequences:
        numbered = [name for name in sequence.columns if name not in columns.names]
        if numbered:
            yield finding(
                Code.PRIVILEGES,
                f"role {role} lacks USAGE on sequence {sequence.name}, which numbers {', '.join(numbered)} of"
                f" {target.name}",
                f"GRANT USAGE ON SEQUENCE {sequence.name} TO {role}, or map the column in columns",
            )


def _state(facts: PreflightFacts, side: Side, state: ServerState) -> Iterator[Finding]:
    for missing in state.rights_missing:
        yield finding(Code.PRIVILEGES, f"role {missing}", _GRANTS)
    if state.long_transactions:
        shown = ", ".join(state.long_transactions[:_SHOWN])
        more = len(state.long_transactions) - _SHOWN
        yield finding(
            Code.LONG_TRANSACTION,
            f"somebody has been in a transaction of the {side} database for long: {shown}"
            f"{f' and {more} more' if more > 0 else ''}; the job moves nothing before that has ended",
            "let it end, or end it (pg_terminate_backend, ROLLBACK PREPARED)",
        )
    needed = _sessions(facts, side)
    if state.sessions_free is not None and needed > state.sessions_free:
        yield finding(
            Code.CONNECTIONS_SHORT,
            f"the job opens up to {needed} sessions on the {side} server, and {state.sessions_free} are left of"
            f" {state.sessions_limit}",
            "lower workers, raise the limit, or have others disconnect",
        )


def _sessions(facts: PreflightFacts, side: Side) -> int:
    """How many sessions one process of the job may have at once on that side."""
    workers = facts.spec.workers
    walkers = -(-workers // _WORKERS_PER_WALKER)
    alone = facts.mode is not Mode.COPY
    readers = workers if alone and facts.streams else 0
    return workers + readers + _OTHER_SESSIONS + (walkers if alone or side is Side.SOURCE else 0)


def _dual_write(facts: PreflightFacts) -> Iterator[Finding]:
    source, found = facts.source, facts.dual_write
    if facts.is_dual_written:
        return
    if found is not None and found.installed:
        yield finding(
            Code.DUAL_WRITE_OUTDATED,
            f"the dual-write triggers of {source.name} are not those that this spec asks for:"
            f" {'; '.join(found.problems) or 'they differ'}",
            "`backfill dualwrite FILE --install` brings them up to date",
        )
        return
    # Those of another job carry rows to another place.
    writers = [t for t in facts.strangers if t.enabled and t.row_level]
    if facts.in_place:
        if not any(t.before and t.on_insert for t in writers):
            yield finding(
                Code.DUAL_WRITE_MISSING,
                f"no trigger of {source.name} fills {', '.join(facts.filled)} in rows that are inserted meanwhile,"
                " and the job does not look past the last key of its beginning",
                "let the application fill them before the job starts: a trigger cannot run the transform's Python"
                if facts.transform is not None
                else f"{_INSTALL}let the application or a trigger of your own fill them before the job starts",
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
    by_triggers = facts.mode is Mode.INSERT and facts.transform is None
    if unheard:
        yield finding(
            Code.DUAL_WRITE_MISSING,
            f"no trigger of {source.name} hears {', '.join(unheard)}: changes made behind the job's cursor do not reach"
            " the target",
            f"{_INSTALL if by_triggers else ''}let the application write both tables (dual-write) before"
            " the job starts, unless nobody writes the source",
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
