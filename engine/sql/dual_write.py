"""The text of our dual-write triggers: what an application's write to the source does besides.

Into another table (``mirror``), one trigger after each row and one before TRUNCATE.  **They do not copy what they are
handed, they look the key up again**: whichever key a change has touched is read from the source as it is now and
written to the target, or, where the source does not hold it (any more), buried and taken out.  So the order in which
triggers fire does not matter, nor what other triggers do to the row meanwhile, nor a row that is moved to another
partition; and an expression sees the very row that a chunk of the job would see, virtual and system columns included.

In place (``fill``), one trigger before each row, which computes the job's columns from the row that is about to be
written.

Names follow from the job's name alone, so that they can be found when the spec is gone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from engine.model import TableName
from engine.sql.identifiers import ident, idents, qualified
from engine.sql.literals import literal
from engine.sql.statements import SourceShape, TargetShape

SCHEMA: Final = "backfill"
TRIGGER_PREFIX: Final = "zz_backfill_"
"""Triggers fire in the order of their names: ours see what others have made of a row."""
FUNCTION_PREFIX: Final = "dual_write_"
COMMENT_PREFIX: Final = "dual-write of backfill job "
"""A function's comment names the job, and behind ``INTO`` the table that the function writes besides."""
INTO: Final = " into "
_TRUNCATE: Final = "_truncate"
_SLUG_LENGTH: Final = 32  # prefix, hash and suffix included, a name stays below 63 bytes
_HASH_DIGITS: Final = 8

SETTINGS: Final = {
    "search_path": "pg_catalog, pg_temp",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "xmloption": "content",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "row_security": "off",
}
"""What every function sets, so that nothing depends on the application's session: what the engine's own sessions set
(``engine.db.database``), as far as it changes values, texts or how an expression is read."""

BY_INDEX: Final = {"enable_seqscan": "off"}
"""For lookups by key: a plan made while the table was small is kept by the session while the table grows."""

ROW, BEFORE, INSERT, DELETE, UPDATE, TRUNCATE = 1, 2, 4, 8, 16, 32
"""Bits of ``pg_trigger.tgtype``."""

SYSTEM_COLUMNS: Final = frozenset({"tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"})
"""What a row has in its table, and not in a trigger's hands."""


@dataclass(frozen=True, slots=True)
class TriggerFunction:
    """One function of schema ``backfill``."""

    name: str
    body: str
    settings: Mapping[str, str]
    about: str  # one line for reviewers
    into: TableName | None = None  # the table that it writes besides, which no other job's triggers may write

    @property
    def sql_name(self) -> str:
        """The function's name in SQL."""
        return f"{SCHEMA}.{ident(self.name)}"


@dataclass(frozen=True, slots=True)
class TriggerText:
    """One trigger on the source."""

    name: str
    function: TriggerFunction
    bits: int
    about: str
    skips: str | None = None  # the job for whose own sessions it does not fire

    @property
    def row_level(self) -> bool:
        """Fires for each row; such a trigger has a clone on every partition."""
        return bool(self.bits & ROW)


@dataclass(frozen=True, slots=True)
class DualWriteText:
    """All triggers of one job.  ``probes`` are statements that the server must be able to parse before it may be said
    that the triggers will work: a function's body is not looked at until it is called.
    """

    job: str
    table: TableName
    triggers: tuple[TriggerText, ...]
    probes: tuple[str, ...]
    notes: tuple[str, ...]  # what the reader of the script must know
    buries: bool  # writes tombstones into the ledger

    @property
    def functions(self) -> tuple[TriggerFunction, ...]:
        """Each trigger's function."""
        return tuple(trigger.function for trigger in self.triggers)


# -- names ------------------------------------------------------------------------------------------------------------


def trigger_names(job: str) -> tuple[str, str]:
    """The names of a job's triggers: for rows, and for TRUNCATE."""
    name = TRIGGER_PREFIX + _slug(job)
    return name, name + _TRUNCATE


def function_names(job: str) -> tuple[str, str]:
    """The names of their functions."""
    name = FUNCTION_PREFIX + _slug(job)
    return name, name + _TRUNCATE


def job_of_comment(comment: str | None) -> str | None:
    """The job whose function carries that comment; None when it is none of ours."""
    if comment is None or not comment.startswith(COMMENT_PREFIX):
        return None
    return comment.removeprefix(COMMENT_PREFIX).partition(INTO)[0]  # no job's name holds a space


def target_of_comment(comment: str | None) -> str | None:
    """The table, as SQL writes it, that the function with that comment writes besides; None for all others."""
    if job_of_comment(comment) is None or comment is None:
        return None
    return comment.partition(INTO)[2] or None


def comment_on(function: TriggerFunction, job: str) -> str:
    """The comment of one function."""
    return COMMENT_PREFIX + job + (f"{INTO}{qualified(function.into)}" if function.into is not None else "")


def _slug(job: str) -> str:
    """What is left of the name in letters, and a hash that tells apart names of which the same is left."""
    digest = hashlib.sha256(job.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{re.sub(r'[^a-z0-9]+', '_', job.lower())[:_SLUG_LENGTH].strip('_')}_{digest}"


# -- into another table -----------------------------------------------------------------------------------------------

_EXACT_KINDS: Final = frozenset({"int", "uuid", "bytea", "date", "timestamp", "timestamptz", "enum", "bool"})
"""Kinds of keys of which two that are equal are the same.  Not so 1.0 and 1.00, 0 and -0, texts that a collation calls
equal."""


def mirror(
    job: str,
    source: SourceShape,
    target: TargetShape,
    *,
    always_identity: Collection[str] = (),
    keep: Collection[str] = (),
    sees_old: bool = True,
    partitions: int = 0,
) -> DualWriteText:
    """The triggers of a job into another table of the same database.

    ``always_identity``: columns of the target that are GENERATED ALWAYS AS IDENTITY, which no UPDATE may write.
    ``keep``: columns that hold what was written first (an expression that would give something else each time).
    ``sees_old``: the job's ``where`` is a matter of the row alone, so that it can be asked of a row as it was before,
    and says today what it said when the job copied the row; without, every row is taken to have been part of the job,
    which costs a tombstone and a lookup and leaves nothing behind.
    """
    row_name, truncate_name = function_names(job)
    row = TriggerFunction(
        row_name,
        _mirror_body(job, row_name, source, target, always_identity, keep, sees_old=sees_old),
        SETTINGS | BY_INDEX,
        "brings the target to what the source holds under every key that a change has touched",
        into=target.table,
    )
    emptied = source if sees_old else replace(source, where=None)
    truncate = TriggerFunction(
        truncate_name,
        _truncate_body(job, emptied, target),
        SETTINGS,
        "takes the rows that TRUNCATE removes out of the target",
        into=target.table,
    )
    names = trigger_names(job)
    every = INSERT | UPDATE | DELETE | ROW
    all_rows = f"FROM {qualified(source.table)} AS x"

    def parameter(n: int) -> str:
        return f"${n + 1}::{source.key.columns[n].type_name}"

    compared = [f"{parameter(n)} IS DISTINCT FROM {parameter(n)}" for n in range(len(source.key.columns))]
    notes = [
        f"What a constraint or trigger of {target.table} refuses, the application cannot write to {source.table}.",
        f"TRUNCATE of {source.table} deletes row by row in {target.table}, and is refused outside READ COMMITTED.",
    ]
    if partitions:
        notes.append(
            f"TRUNCATE of one partition of {source.table} is not seen by these triggers, nor is a partition that is"
            " attached or detached with rows in it: verify the job after such a thing."
        )
    return DualWriteText(
        job=job,
        table=source.table,
        triggers=(
            TriggerText(names[0], row, every, about="after each row that was written"),
            TriggerText(names[1], truncate, TRUNCATE | BEFORE, about="while the rows are still there"),
        ),
        probes=(
            f"SELECT {' OR '.join(compared)}",
            _upsert(source, target, always_identity, keep, parameter),
            _still_there(source, parameter),
            _take_out(target, parameter),
            _take_all_out(emptied, target),
            *([f"SELECT FROM {_row_of('x', source, all_rows)}"] if source.where and sees_old else []),
        ),
        notes=tuple(notes),
        buries=True,
    )


def _mirror_body(
    job: str,
    function: str,
    source: SourceShape,
    target: TargetShape,
    always_identity: Collection[str],
    keep: Collection[str],
    *,
    sees_old: bool,
) -> str:
    keys = source.key.columns

    def variable(n: int) -> str:
        # Behind the function's name, which no column and no table of a user's expression is called.
        return f"{ident(function)}.key_{n}"

    declared = "\n".join(f"    key_{n} {column.type_name};" for n, column in enumerate(keys))
    changed = " OR ".join(f"OLD.{ident(c.name)} IS DISTINCT FROM NEW.{ident(c.name)}" for c in keys)
    old, new = (
        "\n".join(f"            key_{n} := {row}.{ident(column.name)};" for n, column in enumerate(keys))
        for row in ("OLD", "NEW")
    )
    never_moved = ""
    if source.where is not None and sees_old:
        never_moved = (
            "\n        -- It was none of the job's rows before.\n"
            f"        CONTINUE WHEN NOT EXISTS (SELECT FROM {_row_of('OLD', source)});"
        )
    texts = ", ".join(f"key_{n}::text" for n in range(len(keys)))
    return f"""
#variable_conflict use_column
<<{ident(function)}>>
DECLARE
{declared}
BEGIN
    FOR turn IN 1..2 LOOP
        IF turn = 1 THEN -- the key that the row had, unless it has it still
            CONTINUE WHEN TG_OP = 'INSERT';
            IF TG_OP = 'UPDATE' THEN
                CONTINUE WHEN NOT ({changed});
            END IF;
{old}
        ELSE -- the key that it has now
            EXIT WHEN TG_OP = 'DELETE';
{new}
        END IF;

        -- Whatever the source holds under this key now.  An upsert even for an update: the job may not have brought the
        -- row yet.
        {_upsert(source, target, always_identity, keep, variable)};
        CONTINUE WHEN FOUND OR TG_OP = 'INSERT';
        CONTINUE WHEN EXISTS ({_still_there(source, variable)});{never_moved}

        -- It holds nothing there.  The job may be copying the row this very moment, by a snapshot that shows it still:
        -- the tombstone tells its sweep to look here again.
        PERFORM backfill.bury({literal(job)}, ARRAY[{texts}]);
        {_take_out(target, variable)};
    END LOOP;
    RETURN NULL;
END
"""


def _upsert(
    source: SourceShape,
    target: TargetShape,
    always_identity: Collection[str],
    keep: Collection[str],
    key: Callable[[int], str],
) -> str:
    overriding = " OVERRIDING SYSTEM VALUE" if target.overriding else ""
    values = [f"({c.expression})::{c.base_type}" if c.needs_cast else c.expression for c in target.columns]
    exact = {
        theirs.name
        for ours, theirs in zip(source.key.columns, target.key, strict=True)
        if theirs.name in always_identity or (ours.kind in _EXACT_KINDS and theirs.kind in _EXACT_KINDS)
    }
    # A key column that is set, even to what it holds, makes others wait who insert a row that refers to this one.
    sets = ", ".join(
        f"{ident(c.name)} = excluded.{ident(c.name)}"
        for c in target.columns
        if c.name not in exact and c.name not in keep
    )
    action = f"DO UPDATE SET {sets}" if sets else "DO NOTHING"
    return (
        f"INSERT INTO {qualified(target.table)} ({idents(c.name for c in target.columns)}){overriding} "
        f"SELECT {', '.join(values)} FROM {qualified(source.table)} WHERE {_at(source, key)} "
        f"ON CONFLICT ({idents(c.name for c in target.key)}) {action}"
    )


def _still_there(source: SourceShape, key: Callable[[int], str]) -> str:
    return f"SELECT FROM {qualified(source.table)} WHERE {_at(source, key)}"


def _at(source: SourceShape, key: Callable[[int], str]) -> str:
    """The source's row of that key, if the job is about it."""
    table = ident(source.table.name)
    same = " AND ".join(f"{table}.{ident(column.name)} = {key(n)}" for n, column in enumerate(source.key.columns))
    return same if source.where is None else f"{same} AND ({source.where})"


def _take_out(target: TargetShape, key: Callable[[int], str]) -> str:
    same = " AND ".join(f"mirrored.{ident(c.name)} = {key(n)}" for n, c in enumerate(target.key))
    return f"DELETE FROM {qualified(target.table)} AS mirrored WHERE {same}"


def _truncate_body(job: str, source: SourceShape, target: TargetShape) -> str:
    return f"""
BEGIN
    -- An older snapshot would not show all the rows that TRUNCATE removes.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'TRUNCATE of a table with dual-write needs READ COMMITTED'
              USING ERRCODE = '0A000', HINT = 'begin the transaction with ISOLATION LEVEL READ COMMITTED';
    END IF;
    PERFORM backfill.bury({literal(job)}, NULL);
    -- Only what this table holds: the target may hold rows of others, and to truncate it would be a deadlock with a
    -- chunk of the job, which has locked the target and waits for this table.
    {_take_all_out(source, target)};
    RETURN NULL;
END
"""


def _take_all_out(source: SourceShape, target: TargetShape) -> str:
    keys = source.key.columns
    picked = ", ".join(f"{ident(source.table.name)}.{ident(c.name)} AS key_{n}" for n, c in enumerate(keys))
    where = f" WHERE ({source.where})" if source.where else ""
    same = " AND ".join(f"mirrored.{ident(c.name)} = gone.key_{n}" for n, c in enumerate(target.key))
    return (
        f"DELETE FROM {qualified(target.table)} AS mirrored "
        f"USING (SELECT {picked} FROM {qualified(source.table)}{where}) AS gone WHERE {same}"
    )


def _row_of(record: str, source: SourceShape, tail: str = "") -> str:
    """A record as if it were the source's only row, and the job's ``where`` of it."""
    condition = f" WHERE ({source.where})" if source.where else ""
    return f"(SELECT {record}.*{' ' + tail if tail else ''}) AS {ident(source.table.name)}{condition}"


# -- in place ---------------------------------------------------------------------------------------------------------


def fill(
    job: str, source: SourceShape, assignments: Mapping[str, str], done: str, *, once: Collection[str] = ()
) -> DualWriteText:
    """The trigger of a job that fills columns of its source.

    ``once``: columns whose expression would give something else if computed again; they are computed only where
    ``done`` does not hold yet, and the others each time, since what they are computed from may have changed.
    """
    name = function_names(job)[0]
    function = TriggerFunction(
        name,
        _fill_body(source, assignments, done, once),
        SETTINGS,
        "computes the job's columns from the row that is about to be written",
    )
    row = _row_of("x", source, f"FROM {qualified(source.table)} AS x")
    expressions = ", ".join(f"({text})" for text in assignments.values())
    return DualWriteText(
        job=job,
        table=source.table,
        triggers=(
            TriggerText(
                trigger_names(job)[0],
                function,
                INSERT | UPDATE | BEFORE | ROW,
                about="before each row, after all other triggers; not for the job's own chunks, which compute for"
                " themselves",
                skips=job,
            ),
        ),
        probes=(f"SELECT {expressions} FROM {row}{' AND' if source.where else ' WHERE'} ({done}) IS NOT TRUE",),
        notes=("What the application itself writes into the job's columns is overwritten by what is computed.",),
        buries=False,
    )


def _fill_body(source: SourceShape, assignments: Mapping[str, str], done: str, once: Collection[str]) -> str:
    everything = _compute(source, assignments)
    again = {name: text for name, text in assignments.items() if name not in once}
    if len(again) == len(assignments):
        steps = [everything]
    else:
        unfinished = f"EXISTS (SELECT FROM (SELECT NEW.*) AS {ident(source.table.name)} WHERE ({done}) IS NOT TRUE)"
        steps = [f"IF {unfinished} THEN", f"    {everything}"]
        if again:
            steps += ["ELSE -- what may be computed again", f"    {_compute(source, again)}"]
        steps += ["END IF;"]
    if source.where is not None:
        steps = [
            f"IF EXISTS (SELECT FROM {_row_of('NEW', source)}) THEN -- else it is none of the job's rows",
            *(f"    {step}" for step in steps),
            "END IF;",
        ]
    body = "\n".join(f"    {step}" for step in steps)
    return f"""
#variable_conflict use_column
BEGIN
{body}
    RETURN NEW;
END
"""


def _compute(source: SourceShape, assignments: Mapping[str, str]) -> str:
    """All columns from one and the same row, as an UPDATE does it."""
    expressions = ", ".join(f"({text})" for text in assignments.values())
    places = ", ".join(f"NEW.{ident(name)}" for name in assignments)
    return f"SELECT {expressions} INTO {places} FROM (SELECT NEW.*) AS {ident(source.table.name)};"


# -- statements -------------------------------------------------------------------------------------------------------


def create_function(function: TriggerFunction, job: str, owner: str | None) -> list[str]:
    """The statements that create or replace one function; ``owner``: whose rights it runs with, None for the creator's.

    SECURITY DEFINER, since the application's roles need no right on the target; and nobody else may make a trigger of
    his own of it.
    """
    settings = "\n".join(f"    SET {ident(name)} = {_setting(name, text)}" for name, text in function.settings.items())
    quote = _dollar(function.body)
    create = (
        f"CREATE OR REPLACE FUNCTION {function.sql_name}() RETURNS trigger\n"
        f"    LANGUAGE plpgsql VOLATILE SECURITY DEFINER\n{settings}\nAS {quote}{function.body}{quote}"
    )
    statements = [
        create,
        f"REVOKE ALL ON FUNCTION {function.sql_name}() FROM PUBLIC",
        f"COMMENT ON FUNCTION {function.sql_name}() IS {literal(comment_on(function, job))}",
    ]
    if owner is not None:
        statements.append(f"ALTER FUNCTION {function.sql_name}() OWNER TO {ident(owner)}")
    return statements


def create_trigger(trigger: TriggerText, table: TableName) -> list[str]:
    """The statements that create or replace one trigger, and have it fire where replicated rows are applied, too."""
    when = f"\n    WHEN ({skips_sessions_of(trigger.skips)})" if trigger.skips is not None else ""
    events = [
        word
        for bit, word in ((INSERT, "INSERT"), (UPDATE, "UPDATE"), (DELETE, "DELETE"), (TRUNCATE, "TRUNCATE"))
        if trigger.bits & bit
    ]
    create = (
        f"CREATE OR REPLACE TRIGGER {ident(trigger.name)}\n"
        f"    {'BEFORE' if trigger.bits & BEFORE else 'AFTER'} {' OR '.join(events)} ON {qualified(table)}\n"
        f"    FOR EACH {'ROW' if trigger.row_level else 'STATEMENT'}{when}\n"
        f"    EXECUTE FUNCTION {trigger.function.sql_name}()"
    )
    return [
        create,
        f"ALTER TABLE {qualified(table)} ENABLE ALWAYS TRIGGER {ident(trigger.name)}",
    ]


def skips_sessions_of(job: str) -> str:
    """The condition under which a trigger fires for everybody but the sessions of one job.

    A long name is cut in ``application_name``, and what is left of it may be another job's: there the trigger fires
    for the job's own sessions, too, and computes the same again.  To pass over another job's rows would leave them
    unfilled.
    """
    return f"NOT pg_catalog.starts_with(pg_catalog.current_setting('application_name'), {literal(sessions_of(job))})"


def sessions_of(job: str) -> str:
    """How the application_name of a job's sessions begins: see ``engine.db.database.application_name``."""
    return f"backfill/{job}/"


def lock_table(table: TableName, *, exclusive: bool) -> str:
    """Lock a table for the change: SHARE ROW EXCLUSIVE lets readers through, which dropping a trigger cannot."""
    return f"LOCK TABLE {qualified(table)} IN {'ACCESS EXCLUSIVE' if exclusive else 'SHARE ROW EXCLUSIVE'} MODE"


def drop_trigger(name: str, table: TableName) -> str:
    """Drop one trigger, if it is there."""
    return f"DROP TRIGGER IF EXISTS {ident(name)} ON {qualified(table)}"


def drop_function(name: str) -> str:
    """Drop one function of schema ``backfill``, if it is there."""
    return f"DROP FUNCTION IF EXISTS {SCHEMA}.{ident(name)}()"


def ledger_rights(owner: str, *, schema: bool = True, bury: bool = True) -> list[str]:
    """What the role that the functions run as needs in the ledger."""
    rights = [
        (schema, f"GRANT USAGE ON SCHEMA {SCHEMA} TO {ident(owner)}"),
        (bury, f"GRANT EXECUTE ON FUNCTION {SCHEMA}.bury(text, text[]) TO {ident(owner)}"),
    ]
    return [statement for wanted, statement in rights if wanted]


def script(text: DualWriteText, *, owner: str | None, ledger: str = "", lock_timeout_ms: int = 150) -> str:
    """Everything that an installation does, for a person to review and to run with psql.

    ``ledger``: what creates or upgrades the ledger, where that is still to be done.
    """
    lines = [
        f"-- Dual-write of backfill job {text.job}: triggers on {text.table}.",
        "-- To be run in one piece by the table's owner or a superuser, before the job's first run.",
        *(f"-- {note}" for note in text.notes),
        "",
        "BEGIN;",
        "-- Names below mean what they say, and texts are read as written.",
        "SET LOCAL search_path = pg_catalog, pg_temp;",
        "SET LOCAL standard_conforming_strings = on;",
    ]
    if ledger.strip():
        lines += ["", "-- The ledger, which holds the tombstones of deleted keys.", ledger.strip()]
    if owner is not None and text.buries:
        lines += [
            "",
            "-- The functions run with the rights of the table's owner, who needs these two besides.",
            *(f"{right};" for right in ledger_rights(owner)),
        ]
    for function in text.functions:
        lines += ["", f"-- {function.about[0].upper()}{function.about[1:]}."]
        lines += [f"{statement};" for statement in create_function(function, text.job, owner)]
    lines += [
        "",
        "-- Writers wait while this lock is held, and behind it while it is waited for: rather give up and try again.",
        f"SET LOCAL lock_timeout = '{lock_timeout_ms}ms';",
        f"{lock_table(text.table, exclusive=False)};",
    ]
    for trigger in text.triggers:
        lines += ["", f"-- Fires {trigger.about}.  Always: rows that logical replication brings count, too."]
        lines += [f"{statement};" for statement in create_trigger(trigger, text.table)]
    return "\n".join([*lines, "COMMIT;", ""])


def _setting(name: str, value: str) -> str:
    """The value of a SET clause; a search path is a list of names, which quotes would turn into one."""
    return value if name == "search_path" else literal(value)


def _dollar(body: str) -> str:
    tag = "$dual_write$"
    number = 0
    while tag in body:
        number += 1
        tag = f"$dual_write_{number}$"
    return tag
