"""What to do about an error, and what may be said about it.

Two duties.  First, one table decides whether a failed statement is tried again, in halves, on a new session, later, or
never.  Second, redaction: DETAIL, CONTEXT and WHERE of a server's error hold row values, and so may its primary message
(``invalid input syntax for type integer: "secret"``).  What is kept is the SQLSTATE, names of the catalogue, and the
primary message only of those classes of errors in which the server itself never puts a value.

Beside what to do stands whose fault it is: a row's, which may be set aside (``errors.max_quarantined``), or somebody
else's.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import asyncpg

from engine.errors import BackfillError, CannotConnect


class Action(StrEnum):
    """What a worker does about a failure."""

    RETRY = "retry"  # the same again, on the same session, after a short jittered wait
    SPLIT = "split"  # the same in halves: it was too big or too slow
    RECONNECT = "reconnect"  # on a new session, after the ledger has said what was committed
    WAIT = "wait"  # on a new session too, after a longer wait: the server must recover first
    FENCED = "fenced"  # our own fence: the span is not ours any more, or not where we thought
    CONFLICT = "conflict"  # a unique or exclusion constraint of the target; ``constraint`` names it
    PAUSE = "pause"  # somebody ended the session; if the server has not restarted, an administrator: do not fight him
    STOP = "stop"  # repeating cannot mend it


class Fault(StrEnum):
    """Whether a row can be blamed, and set aside."""

    NONE = ""  # no row: the statement, the session, the server, or a bug
    ROW = "row"  # a value of some row: whatever else is in the chunk, that row fails
    LOAD = "load"  # too much at once: a row's fault only if it fails alone, and again


FENCE_SQLSTATE: Final = "BF001"
TOO_MANY_SQLSTATE: Final = "BF002"  # of backfill.set_aside: as many rows are set aside as the job allows
NOT_ALLOWED_SQLSTATE: Final = "42501"  # a privilege is missing, or a policy of row-level security forbids it
_NOT_SUPPORTED: Final = "0A000"
OUR_SQLSTATES: Final = "BF"  # what the ledger's own functions raise is never a row's fault
CONNECTION_FAILURE: Final = "08006"  # what we report for losses that have no SQLSTATE of the server's

_ACTIONS: Final[dict[str, Action]] = {
    FENCE_SQLSTATE: Action.FENCED,
    # Concurrency: the other one won this time.
    "40001": Action.RETRY,  # serialization failure
    "40P01": Action.RETRY,  # deadlock
    "40002": Action.RETRY,  # integrity constraint found violated only at commit, by a concurrent transaction
    "55P03": Action.RETRY,  # lock_timeout
    "72000": Action.RETRY,  # snapshot too old
    "XX000": Action.RETRY,  # "tuple concurrently updated", "cache lookup failed": DDL beside us
    # Too much at once.
    "57014": Action.SPLIT,  # statement_timeout, or pg_cancel_backend
    "25P04": Action.SPLIT,  # transaction_timeout
    "53200": Action.SPLIT,  # out of memory
    "53400": Action.SPLIT,  # temp_file_limit
    "54000": Action.SPLIT,  # program limit exceeded: one row of many, perhaps
    # The session is of no more use.
    "40003": Action.RECONNECT,  # statement completion unknown
    "25P02": Action.RECONNECT,  # in a failed transaction
    "25P03": Action.RECONNECT,  # idle_in_transaction_session_timeout
    "26000": Action.RECONNECT,  # a prepared statement is gone: somebody discarded it
    "57P02": Action.RECONNECT,  # another process crashed
    "57P05": Action.RECONNECT,  # idle_session_timeout
    "57P01": Action.PAUSE,  # pg_terminate_backend, and a fast shutdown
    # The server is not ready for us.
    "57P03": Action.WAIT,  # starting up, shutting down, recovering
    "53000": Action.WAIT,
    "53100": Action.WAIT,  # disk full
    "53300": Action.WAIT,  # too many connections
    "25006": Action.WAIT,  # read only: a standby that will be promoted, or the wrong end of a failover
    "58030": Action.WAIT,  # I/O error
    "08P01": Action.STOP,  # what we sent makes no sense to the server; nor will it the next time
    "23505": Action.CONFLICT,
    "23P01": Action.CONFLICT,
}
_CLASS_ACTIONS: Final = {"08": Action.RECONNECT}  # everything else stops

# By SQLSTATE, else by its class.  Syntax and names (42) are the statement's fault; sessions and locks are nobody's.
_FAULTS: Final = {
    "22P04": Fault.NONE,  # the COPY stream as such: ours
    "2F005": Fault.ROW,  # a function ended without RETURN: for some arguments
    "39004": Fault.ROW,  # null where a function takes none
    "54000": Fault.ROW,  # an index entry, or a value, beyond a limit of the server
    "54001": Fault.ROW,  # stack depth: a value nested too deeply
    "25P04": Fault.LOAD,
    "53200": Fault.LOAD,
    "53400": Fault.LOAD,
    "57014": Fault.LOAD,
}
_CLASS_FAULTS: Final = {
    "21": Fault.ROW,  # a subquery of an expression gave several rows
    "22": Fault.ROW,
    "23": Fault.ROW,
    "38": Fault.ROW,  # raised in a function of an outside language
    "44": Fault.ROW,
    "P0": Fault.ROW,  # raised in a trigger or function
}
_NOT_USERS: Final = frozenset(["backfill", "pg_catalog"])  # schemas whose constraints no row of a user's can violate

_NAMES: Final = {
    "21000": "a subquery gave more than one row",
    "22001": "a value is too long for its column",
    "22003": "a number is out of the range of its type",
    "22007": "a date or time cannot be read",
    "22008": "a date or time is out of range",
    "22012": "division by zero",
    "22021": "a text value is not valid in the encoding of its database",
    "22023": "an argument has an invalid value",
    "22P02": "a value cannot be read as its type",
    "22P03": "a value's binary form is not what the column's type expects",
    "22P04": "the COPY stream is not what the server expects",
    "22P05": "a character does not exist in the encoding of the database",
    "23001": "a restricting reference is violated",
    "23502": "null in a column that must not be null",
    "23503": "a foreign key has nothing to point at",
    "23505": "a unique constraint is violated",
    "23514": "a check constraint is violated",
    "23P01": "an exclusion constraint is violated",
    "428C9": "a generated column cannot be written",
    "P0001": "a trigger or function raised an error",
    FENCE_SQLSTATE: "the fence rejected the chunk: its span has another owner, epoch, cursor or end by now",
    TOO_MANY_SQLSTATE: "more rows are bad than errors.max_quarantined allows",
}
_CLASS_NAMES: Final = {
    "08": "the connection failed",
    "21": "a subquery gave too many rows or columns",
    "22": "a value is not acceptable",
    "23": "a constraint is violated",
    "25": "the transaction is in the wrong state",
    "2B": "a privilege still has dependents",
    "2F": "a function failed",
    "38": "an external routine failed",
    "39": "an external routine failed",
    "40": "the transaction was rolled back",
    "42": "the statement does not fit the table, or is not allowed",
    "44": "a view's check option is violated",
    "53": "the server is short of something",
    "54": "a limit of the server is exceeded",
    "55": "an object is not in the right state",
    "57": "an operator intervened",
    "58": "the server's system failed",
    "P0": "a trigger or function raised an error",
    "XX": "the server reports an internal error",
}
# Classes whose primary messages hold names, limits and states, never a value of a row.
_PLAIN_CLASSES: Final = frozenset(["08", "0A", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58"])
# … unless a function of a user raised it, with whatever SQLSTATE and text it liked.
_RAISED_BY_USERS: Final = frozenset(["exec_stmt_raise", "PLy_output", "plperl_util_elog", "do_util_elog", "pltcl_elog"])

_HINTS: Final = {
    "22001": "shorten it in the expression, or widen the column",
    "22003": "widen the column, or bound the value in the expression",
    "22012": "guard the division: nullif(…, 0)",
    "22P02": "clean the value in the expression, or leave such rows out by `where`",
    "22P05": "replace the character in the expression, or give the target an encoding that has it (UTF8)",
    "23502": "give the expression a default: coalesce(…)",
    "23503": "fill the referenced table first",
    "23505": "a unique index other than the arbiter is violated: mend the rows, or do without it meanwhile",
    "23514": "mend the rows, or the expression, or the constraint",
    "25P03": "the engine was frozen in the middle of a transaction",
    "3D000": "the database is gone",
    "42501": "grant it: backfill grants JOB prints the script",
    "42703": "the table has no such column (any more)",
    "42804": "add a cast to the expression",
    "42883": "a function outside pg_catalog is named with its schema: public.f(x)",
    "42P01": "the table is gone, or its name lacks the schema",
    "53100": "the server's disk is full: the job goes on by itself when there is room",
    "53300": "raise max_connections, or use fewer workers",
    "57P04": "the database was dropped",
    "25006": "the server is read only: is it a standby?",
    "P0001": "the table's trigger refuses the row: ask its owner",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error, classified and redacted."""

    action: Action
    sqlstate: str  # empty when no server spoke
    message: str  # safe to log: no values, no DETAIL
    constraint: str | None = None
    hint: str = ""
    lost: bool = False  # the session has ended, or cannot be trusted
    fault: Fault = Fault.NONE

    @property
    def is_of_row(self) -> bool:
        """True when some row of the chunk is to blame, and would fail alone."""
        return self.fault is Fault.ROW

    @property
    def is_missing_right(self) -> bool:
        """True when the role may not do it: whoever grants the right mends it, for all rows at once."""
        return self.sqlstate == NOT_ALLOWED_SQLSTATE


class Judged(Exception):
    """Something that we have seen ourselves, before any server refused it, and know what to do about."""

    def __init__(self, action: Action, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(action, sqlstate, message)


def classify(error: BaseException, *, show_rows: bool = False) -> Failure:
    """What to do about ``error``, and what may be said about it.

    ``show_rows`` keeps the server's own message, values and all; for people who asked for it.
    """
    if isinstance(error, Judged):
        return error.failure
    if isinstance(error, CannotConnect):
        return _refused(error, show_rows=show_rows)
    server_error = _server_error(error)
    lost = _is_loss(error)
    if server_error is not None and (not lost or server_error is not error):
        return _spoken(server_error, lost=lost, show_rows=show_rows)
    if lost:
        return Failure(Action.RECONNECT, CONNECTION_FAILURE, _loss_message(error), lost=True)
    if isinstance(error, BackfillError):
        return Failure(Action.STOP, error.sqlstate or "", error.message, hint=error.hint)
    # A bug of ours or of the driver.  Its text may hold anything.
    return Failure(Action.STOP, "", str(error) if show_rows else f"unexpected {type(error).__name__}")


def _spoken(error: asyncpg.PostgresError, *, lost: bool, show_rows: bool) -> Failure:
    sqlstate = error.sqlstate or ""
    action = _ACTIONS.get(sqlstate) or _CLASS_ACTIONS.get(sqlstate[:2], Action.STOP)
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        action = Action.RETRY  # prepared before a schema change; asyncpg has thrown it away
    constraint = _text(error, "constraint_name")
    if action is Action.CONFLICT and constraint is None:
        action = Action.STOP
    fatal = _text(error, "severity_en") in ("FATAL", "PANIC")
    return Failure(
        action,
        sqlstate,
        _message(error, sqlstate, show_rows=show_rows),
        constraint,
        _HINTS.get(sqlstate, ""),
        lost=lost or fatal or action in (Action.RECONNECT, Action.WAIT, Action.PAUSE),
        fault=_fault(error, sqlstate, action),
    )


def _fault(error: asyncpg.PostgresError, sqlstate: str, action: Action) -> Fault:
    raised = _text(error, "server_source_function") in _RAISED_BY_USERS
    if sqlstate.startswith(OUR_SQLSTATES) or sqlstate == NOT_ALLOWED_SQLSTATE:
        return Fault.NONE  # whoever raised it, and for whichever row the role met it first
    if raised and action in (Action.STOP, Action.SPLIT):
        return Fault.ROW  # a user's code refuses the row, with whatever SQLSTATE it liked
    if not raised and _text(error, "schema_name") in _NOT_USERS:
        return Fault.NONE
    if sqlstate == _NOT_SUPPORTED and _text(error, "server_source_filename") == "numeric.c":
        return Fault.ROW  # NaN and infinity as an integer: a value, not a feature, is what is not supported
    return _FAULTS.get(sqlstate, _CLASS_FAULTS.get(sqlstate[:2], Fault.NONE))


def _message(error: asyncpg.PostgresError, sqlstate: str, *, show_rows: bool) -> str:
    primary = str(error.args[0]) if error.args else ""
    raised = _text(error, "server_source_function") in _RAISED_BY_USERS
    if show_rows or (sqlstate[:2] in _PLAIN_CLASSES and not raised):
        return primary
    text = _NAMES.get(sqlstate) or _CLASS_NAMES.get(sqlstate[:2]) or f"the server reports error {sqlstate}"
    named = [
        f"{kind} {name}"
        for kind, name in (
            ("table", ".".join(filter(None, (_text(error, "schema_name"), _text(error, "table_name"))))),
            ("column", _text(error, "column_name")),
            ("type", _text(error, "data_type_name")),
            ("constraint", _text(error, "constraint_name")),
        )
        if name
    ]
    # These fields are names only when the server fills them; RAISE … USING CONSTRAINT = … fills them with anything.
    return f"{text} ({', '.join(named)})" if named and not raised else text


def _refused(error: CannotConnect, *, show_rows: bool) -> Failure:
    """Nobody let us in: the server's reason decides; without one it may be there again later."""
    cause = _server_error(error)
    if cause is None:
        absent = isinstance(error.__cause__, OSError | asyncpg.exceptions.TargetServerAttributeNotMatched)
        hopeless = error.sqlstate is not None or isinstance(error.__cause__, ssl.SSLError)
        action = Action.WAIT if absent and not hopeless else Action.STOP
        return Failure(action, error.sqlstate or CONNECTION_FAILURE, error.message, hint=error.hint, lost=True)
    spoken = _spoken(cause, lost=True, show_rows=show_rows)
    # Shot down while being let in: a server that is going down, not a person.
    action = Action.WAIT if spoken.action in (Action.PAUSE, Action.RECONNECT) else spoken.action
    return Failure(action, spoken.sqlstate, error.message, hint=error.hint or spoken.hint, lost=True)


def _server_error(error: BaseException) -> asyncpg.PostgresError | None:
    """What the server said: the error itself, or what lies behind a connection that ended."""
    seen: BaseException | None = error
    fallback: asyncpg.PostgresError | None = None
    while seen is not None:
        if isinstance(seen, asyncpg.PostgresError):
            if not _is_loss(seen):
                return seen
            fallback = fallback or seen
        seen = seen.__cause__
    return fallback


def _is_loss(error: BaseException) -> bool:
    """True for the errors that mean the session is gone, or that nobody can say what it is doing."""
    if isinstance(error, asyncpg.PostgresConnectionError):
        return not isinstance(error, asyncpg.ProtocolViolationError)
    if isinstance(error, asyncpg.InternalClientError | asyncio.IncompleteReadError):
        return True
    if isinstance(error, asyncpg.InterfaceError):
        # DataError: a parameter of ours does not fit; that is a bug, not a loss.  So are two tasks on one session.
        return not isinstance(error, ValueError) and "another operation is in progress" not in str(error)
    return isinstance(error, OSError)  # TimeoutError and ConnectionError are among them


def _loss_message(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    return "the connection to the server was lost"


def _text(error: asyncpg.PostgresError, field: str) -> str | None:
    value = getattr(error, field, None)
    return str(value) if value else None
