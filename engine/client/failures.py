"""From a problem of the daemon back to one of our errors: callers catch the same classes as without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic import ValidationError

from engine import errors
from engine.errors import (
    BackfillError,
    CannotConnect,
    HeldByOperator,
    PreflightRefused,
    Problem,
    SpecChanged,
    SpecError,
)
from engine.model import Finding, JobState, Severity
from engine.wire.shapes import Detail, ProblemDetails

_EXIT_CODES: Final = {
    "draining": 75,
    "changed_meanwhile": 75,
    "idempotency_key_reused": 3,
    "ambiguous_job": 2,
}
"""Of codes that only a daemon has."""

_BY_STATUS: Final = {400: 2, 401: 5, 403: 5, 404: 2, 405: 2, 422: 2, 429: 75, 502: 5, 503: 75, 504: 5}


class DaemonError(BackfillError):
    """The daemon refused, or failed, with a code that has no class of its own.

    ``code``: the problem's; ``status``: of the answer, 0 where there was none; ``errors``: each thing that is wrong
    with the request; ``request``: its number, which the daemon's log and audit name, too.
    """

    code = "daemon"

    def __init__(
        self,
        message: str,
        *,
        code: str = "daemon",
        status: int = 0,
        hint: str = "",
        sqlstate: str | None = None,
        errors: tuple[Detail, ...] = (),
        request: str = "",
    ) -> None:
        super().__init__(message, hint=hint, sqlstate=sqlstate)
        # Of the class elsewhere; here each problem brings its own.
        self.__dict__["code"] = code
        self.__dict__["exit_code"] = _EXIT_CODES.get(code, _BY_STATUS.get(status, 1))
        self.__dict__["http_status"] = status or 502
        self.status = status
        self.errors = errors
        self.request = request

    def __str__(self) -> str:
        places = (f"{each.pointer or each.parameter or ''} {each.message}".strip() for each in self.errors)
        return "; ".join([self.message, *places])


class NotAllowed(SpecError):
    """What was asked for is well formed, and the operator does not allow it.  ``problems`` say what, and where."""

    code = "not_allowed"
    http_status = 403


class AnswerLost(CannotConnect):
    """The connection broke before the answer came, and the request may have been carried out: it is not repeated."""

    code = "answer_lost"


def error_of(status: int, body: bytes, daemon: str) -> BackfillError:
    """What an answer that is no success says.  ``daemon``: where it came from, for people."""
    try:
        problem = ProblemDetails.model_validate_json(body)
    except ValidationError:  # of a proxy in between, or of something else that listens there
        return DaemonError(
            f"{daemon} answered {status}, and did not say why",
            status=status,
            hint="is it a backfill daemon that listens there?",
        )
    match problem.code:
        case SpecError.code if problem.errors:
            return SpecError([_problem(each) for each in problem.errors])
        case NotAllowed.code if problem.errors:
            return NotAllowed([_problem(each) for each in problem.errors])
        case SpecChanged.code:
            return SpecChangedThere(problem)
        case PreflightRefused.code:
            return PreflightRefused(
                [Finding(f.code, Severity(f.severity), f.message, f.remedy) for f in problem.findings]
            )
        case HeldByOperator.code:
            state = problem.state if problem.state in list(JobState) else JobState.PAUSED
            return HeldByOperator(problem.detail, state=JobState(state), hint=problem.hint)
    if problem.code in _PLAIN:
        return named(problem.code, problem.detail, hint=problem.hint, sqlstate=problem.sqlstate)
    return DaemonError(
        problem.detail,
        code=problem.code,
        status=status,
        hint=problem.hint,
        sqlstate=problem.sqlstate,
        errors=tuple(problem.errors),
        request=problem.instance.rpartition(":")[2],
    )


def named(code: str, message: str, *, hint: str = "", sqlstate: str | None = None) -> BackfillError:
    """The error of that code; a ``DaemonError`` where no class of ours has it."""
    kind = _PLAIN.get(code)
    if kind is None:
        return DaemonError(message, code=code, hint=hint, sqlstate=sqlstate)
    return kind(message, hint=hint, sqlstate=sqlstate)


class SpecChangedThere(SpecChanged):
    """``SpecChanged`` in the daemon's words."""

    def __init__(self, problem: ProblemDetails) -> None:
        BackfillError.__init__(self, problem.detail, hint=problem.hint)
        self.job = problem.job or ""
        self.differences = tuple(
            ((each.pointer or "").removeprefix("/"), each.before or "", each.after or "") for each in problem.errors
        )


def _problem(each: Detail) -> Problem:
    path = each.pointer or each.parameter or ""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in path.removeprefix("/").split("/")]
    return Problem(path=".".join(parts), message=each.message, hint=each.hint, pointer=each.pointer or "")


def _all_of(kind: type[BackfillError]) -> Iterator[type[BackfillError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _all_of(below)


_PLAIN: Final[dict[str, type[BackfillError]]] = {
    kind.code: kind for kind in _all_of(BackfillError) if kind.__init__ is BackfillError.__init__
} | {"ledger_missing": errors.UnknownJob}
"""Code -> class, of errors that are made from a message alone."""
