"""Our dual-write triggers in a database: what they must be, whether they are there, and have been all the while.

To look needs nothing but the catalogue, which every role may read.  Putting them there and taking them away is in
``engine.flow.dual_write_change``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.model import Mode, Table
from engine.spec import JobSpec
from engine.sql import dual_write as sql
from engine.sql import literal, read_expression
from engine.sql.statements import SourceShape, TargetShape, default_done

if TYPE_CHECKING:
    from engine.db import Connection
    from engine.flow.prepare import Prepared

Evidence = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DualWrite:
    """What there is of a job's triggers.  ``installed``: any of it.  ``intact``: all, just as the job needs them now.

    ``evidence`` identifies every part (None when nothing is there): see ``still_holds``.
    """

    installed: bool
    intact: bool
    problems: tuple[str, ...]
    evidence: Evidence | None


NOTHING: Final = DualWrite(installed=False, intact=False, problems=(), evidence=None)


def text_of(prepared: Prepared) -> sql.DualWriteText | None:
    """The triggers that the job needs; None between two databases, where no trigger reaches the target, and
    beside a transform, which none can run.
    """
    return text_for(
        prepared.spec,
        prepared.mode,
        prepared.source_table,
        prepared.target_table,
        prepared.source,
        prepared.target,
        prepared.unrepeatable,
    )


def text_for(
    spec: JobSpec,
    mode: Mode,
    source_table: Table,
    target_table: Table | None,
    source: SourceShape,
    target: TargetShape | None,
    unrepeatable: frozenset[str],
) -> sql.DualWriteText | None:
    """As ``text_of``, for a job that is not prepared yet."""
    if spec.transform is not None:
        return None
    if mode is Mode.UPDATE:
        done = read_expression(spec.done).sql if spec.done else default_done(spec.set)
        assignments = {name: read_expression(text).sql for name, text in spec.set.items()}
        return sql.fill(spec.name, source, assignments, done, once=unrepeatable)
    if mode is not Mode.INSERT or target is None or target_table is None:
        return None
    return sql.mirror(
        spec.name,
        source,
        target,
        always_identity=[c.name for c in target_table.columns if c.identity == "always"],
        keep=unrepeatable,
        sees_old=spec.where is None or _is_of_the_row_alone(spec.where, source_table),
        partitions=source_table.partitions,
    )


# fmt: off
_PLAIN: Final = frozenset([
    "all", "and", "any", "asymmetric", "between", "case", "coalesce", "distinct", "else", "end", "escape", "false",
    "from", "greatest", "ilike", "in", "is", "isnull", "least", "like", "not", "notnull", "null", "nullif", "or",
    "similar", "some", "symmetric", "then", "to", "true", "unknown", "when",
])
"""Words that only put together what stands beside them.  An opening bracket may follow: none of them can be a function
of a user's."""
_NEVER_PLAIN: Final = frozenset([
    "current_catalog", "current_date", "current_role", "current_schema", "current_time", "current_timestamp",
    "current_user", "localtime", "localtimestamp", "select", "session_user", "system_user", "table", "user", "values",
    "with",
])
"""Words that mean something else than a column of that name, unless they are quoted, which is not seen any more."""
# fmt: on
_OF_THE_SESSION: Final = re.compile(r"(?<![a-z_])(?:now|today|tomorrow|yesterday)(?![a-z_])|\\|@@", re.IGNORECASE)
"""Words in literals that mean the time; escapes, behind which they can stand; @@, which reads a text by a setting."""


def _is_of_the_row_alone(text: str, table: Table) -> bool:
    """True when an expression says of a trigger's OLD what it said when the job copied that row.

    So it reads the row's own columns and nothing else: no other table, no clock, no setting, no function or cast (which
    may read any of these, whatever it is declared to be), nor what OLD does not hold, as columns that are computed when
    they are read.  In doubt it is not.
    """
    read = read_expression(text)
    columns = {column.name for column in table.columns}
    if any(column.generated == "virtual" for column in table.columns) or _OF_THE_SESSION.search(text):
        return False
    allowed = (columns | {table.name.name} | _PLAIN) - _NEVER_PLAIN - {table.name.schema}  # the table by its schema
    return read.identifiers <= allowed and read.functions <= _PLAIN


# -- looking ----------------------------------------------------------------------------------------------------------

_TREE: Final = """
WITH tree AS (
  SELECT $1::oid AS relid
  UNION SELECT p.relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass) p
)"""

_TRIGGERS: Final = f"""{_TREE}
SELECT t.oid::int8 AS oid, t.xmin::text AS xmin, t.tgname::text AS name, t.tgrelid::int8 AS relation,
       format('%s.%s', n.nspname, c.relname) AS relation_name,
       t.tgenabled::text AS enabled, t.tgtype::int4 AS bits, t.tgfoid::int8 AS function,
       t.tgnargs > 0 OR t.tgattr <> '' OR t.tgdeferrable OR t.tgconstraint <> 0
           OR t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL AS is_odd,
       CASE WHEN t.tgqual IS NOT NULL -- pg_get_expr does not know OLD and NEW
            THEN substring(pg_catalog.pg_get_triggerdef(t.oid) FROM ' WHEN \\((.*)\\) EXECUTE ') END AS condition
  FROM tree
  JOIN pg_catalog.pg_trigger t ON t.tgrelid = tree.relid
  JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE t.tgname = ANY ($2::text[])
 ORDER BY t.tgrelid <> $1::oid, t.tgrelid, t.tgname
"""

_FUNCTIONS: Final = """
SELECT p.oid::int8 AS oid, p.xmin::text AS xmin, p.proname::text AS name, p.prosrc AS body,
       coalesce(p.proconfig, '{}') AS settings,
       p.prosecdef AND l.lanname = 'plpgsql' AND p.provolatile = 'v' AND p.prorettype = 'trigger'::regtype AS is_ours
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
 WHERE n.nspname = 'backfill' AND p.proname = ANY ($1::text[]) AND p.pronargs = 0
 ORDER BY p.proname
"""

# Nothing fires when one partition is truncated, but it gets another file.
_FILES: Final = """
SELECT t.relid::oid::int8 AS relation, coalesce(pg_catalog.pg_relation_filenode(t.relid), 0)::int8 AS file
  FROM pg_catalog.pg_partition_tree($1::oid::regclass) t
 WHERE t.isleaf AND t.relid::oid <> $1::oid
 ORDER BY 1
"""

_PARTS: Final = f"{_TREE} SELECT relid::int8 AS relation FROM tree ORDER BY relid"


def _condition(job: str) -> str:
    """``skips_sessions_of`` as the server writes it back."""
    return f"(NOT starts_with(current_setting('application_name'::text), {literal(sql.sessions_of(job))}::text))"


async def look(connection: Connection, prepared: Prepared) -> DualWrite:
    """What there is of the job's triggers, in the source's database."""
    text = text_of(prepared)
    return NOTHING if text is None else await look_for(connection, text, prepared.source_table.oid)


async def look_for(connection: Connection, text: sql.DualWriteText, table_oid: int) -> DualWrite:
    """As ``look``, for a job that is not prepared yet.  One moment's picture: catalogue rows may change between the
    queries, and evidence that mixes two moments holds at neither.
    """
    names = [trigger.name for trigger in text.triggers]
    triggers = await connection.fetch(_TRIGGERS, table_oid, names)
    functions = await connection.fetch(_FUNCTIONS, [function.name for function in text.functions])
    if not triggers and not functions:
        return NOTHING
    parts = [row["relation"] for row in await connection.fetch(_PARTS, table_oid)]
    files = await connection.fetch(_FILES, table_oid)
    problems = [*_function_problems(text, functions), *_trigger_problems(text, table_oid, parts, triggers, functions)]
    evidence: Evidence = {
        "triggers": [
            {"oid": t["oid"], "xmin": t["xmin"], "name": t["name"], "relation": t["relation"]} for t in triggers
        ],
        "functions": [{"oid": f["oid"], "xmin": f["xmin"], "name": f["name"]} for f in functions],
        "files": [{"relation": f["relation"], "file": f["file"]} for f in files],
        "partitions": [{"relation": relation} for relation in parts],
        "table": table_oid,
    }
    return DualWrite(installed=True, intact=not problems, problems=tuple(problems), evidence=evidence)


def still_holds(before: Mapping[str, Any], now: Mapping[str, Any] | None) -> bool:
    """For the sweep: True when every deleted row was buried since ``before``.

    Every part is still the same row of the catalogue: nobody has dropped, disabled, enabled or replaced it in between,
    not even for a moment.  And there are the same partitions with the same files: one that was truncated, detached or
    rewritten may have lost rows without a trigger, and one that came since may have been filled before it was attached,
    copied, and truncated after.
    """
    if now is None or not before.get("triggers") or not before.get("functions"):
        return False
    return all(_marks(before, kind) == _marks(now, kind) for kind in _MARKS)


def same_triggers(before: Mapping[str, Any], now: Mapping[str, Any] | None) -> bool:
    """For the gate: True when the table's own triggers and their functions are the very ones of ``before``.

    Partitions may have come and gone with their clones and files: what rows that did is the verification's business.
    """
    if now is None or not _of_the_table(before) or not before.get("functions"):
        return False
    return _of_the_table(before) == _of_the_table(now) and _marks(before, "functions") == _marks(now, "functions")


_MARKS: Final = {
    "triggers": ("oid", "xmin"),
    "functions": ("oid", "xmin"),
    "files": ("relation", "file"),
    "partitions": ("relation",),
}
"""What identifies each part of the evidence."""


def _marks(evidence: Mapping[str, Any], kind: str) -> set[tuple[Any, ...]]:
    return {tuple(item.get(name) for name in _MARKS[kind]) for item in evidence.get(kind, ())}


def _of_the_table(evidence: Mapping[str, Any]) -> set[tuple[Any, ...]]:
    """The triggers on the table itself, without their clones on its partitions."""
    table = evidence.get("table")
    return {(t.get("oid"), t.get("xmin")) for t in evidence.get("triggers", ()) if t.get("relation") == table}


def _function_problems(text: sql.DualWriteText, rows: Sequence[Any]) -> list[str]:
    found = {row["name"]: row for row in rows}
    problems: list[str] = []
    for function in text.functions:
        row = found.get(function.name)
        if row is None:
            problems.append(f"function {sql.SCHEMA}.{function.name} is missing")
            continue
        if row["body"] != function.body:
            problems.append(f"function {sql.SCHEMA}.{function.name} does something else than the job asks for now")
        if dict(setting.split("=", 1) for setting in row["settings"]) != dict(function.settings):
            problems.append(f"function {sql.SCHEMA}.{function.name} has other settings")
        if not row["is_ours"]:
            problems.append(f"function {sql.SCHEMA}.{function.name} does not run with its owner's rights any more")
    return problems


def _trigger_problems(
    text: sql.DualWriteText, table_oid: int, parts: Sequence[int], rows: Sequence[Any], functions: Sequence[Any]
) -> list[str]:
    found = {(row["name"], row["relation"]): row for row in rows}
    function_oids = {row["name"]: row["oid"] for row in functions}
    problems: list[str] = []
    for trigger in text.triggers:
        places = parts if trigger.row_level else [table_oid]
        missing = [place for place in places if (trigger.name, place) not in found]
        if table_oid in missing:
            problems.append(f"trigger {trigger.name} is missing")
            continue
        if missing:
            problems.append(f"trigger {trigger.name} is missing on {len(missing)} partitions")
        for place in places:
            row = found.get((trigger.name, place))
            if row is None:
                continue
            where = f"trigger {trigger.name} on {row['relation_name']}"
            if row["enabled"] != "A":
                problems.append(f"{where} {_FIRES.get(row['enabled'], 'does not fire always')}")
            if (
                row["bits"] != trigger.bits
                or row["is_odd"]
                or row["condition"] != (_condition(trigger.skips) if trigger.skips is not None else None)
                or row["function"] != function_oids.get(trigger.function.name, row["function"])
            ):
                problems.append(f"{where} is defined in another way than the job asks for now")
    return problems


_FIRES: Final = {
    "D": "is disabled",
    "O": "does not fire for replicated rows",
    "R": "fires for replicated rows only",
}
