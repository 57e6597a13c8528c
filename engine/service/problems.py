"""Errors as problem details (RFC 9457): each of our errors has a stable code and an HTTP status already."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

from engine.db.failures import Action, classify
from engine.errors import (
    BackfillError,
    CannotConnect,
    HeldByOperator,
    PreflightRefused,
    SpecChanged,
    SpecError,
)
from engine.model import Finding
from engine.service.routing import Reply
from engine.spec.document import pointer_text
from engine.wire.shapes import Detail, FindingShape, ProblemDetails

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:backfill:problem:"
MAX_DETAILS: Final = 50
MAX_MESSAGE: Final = 500
RETRY_AFTER_S: Final = 2

_TITLES: Final = {
    400: "Bad request",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Conflict",
    412: "Precondition failed",
    413: "Too large",
    415: "Unsupported media type",
    421: "Misdirected request",
    422: "Unprocessable",
    428: "Precondition required",
    429: "Too many requests",
    431: "Headers too large",
    500: "Unexpected error",
    501: "Not implemented",
    503: "Unavailable",
}


class BadRequest(BackfillError):
    """The request does not fit its route.  ``errors``: each thing that is wrong with it."""

    code = "bad_request"
    exit_code = 2
    http_status = 400

    def __init__(self, message: str, *, errors: tuple[Detail, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errors = errors


class Unprocessable(BadRequest):
    """The body is JSON, and not what the route takes."""

    code = "invalid_body"
    http_status = 422


class NotFound(BadRequest):
    """Nothing is at that path."""

    code = "not_found"
    http_status = 404


class MethodNotAllowed(BackfillError):
    """Something is at that path, for other methods."""

    code = "method_not_allowed"
    exit_code = 2
    http_status = 405

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{method} is not for this path", hint=f"allowed: {', '.join(allowed)}")
        self.allowed = tuple(allowed)


class UnsupportedMediaType(BadRequest):
    """A body that is no JSON."""

    code = "unsupported_media_type"
    http_status = 415


class TooLarge(BadRequest):
    """A body longer than the operator allows."""

    code = "too_large"
    http_status = 413


class TooSlow(BadRequest):
    """A body that did not arrive in time."""

    code = "too_slow"
    http_status = 408


class Misdirected(BadRequest):
    """A Host header that is not ours."""

    code = "misdirected"
    http_status = 421


class Draining(BackfillError):
    """The daemon is about to end and takes no new work."""

    code = "draining"
    exit_code = 75
    http_status = 503


class Overloaded(BackfillError):
    """As many requests of that kind are answered already as the daemon answers at once."""

    code = "overloaded"
    exit_code = 75
    http_status = 503

    def __init__(self, message: str, *, hint: str = "", retry_after_s: int) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class TookTooLong(BackfillError):
    """The answer was not there within the time that a request of that kind may take."""

    code = "took_too_long"
    exit_code = 75
    http_status = 503


class GivenUp(BackfillError):
    """The daemon ended, or the caller left, before the answer was there.  For audit: nobody is there to be told."""

    code = "given_up"
    exit_code = 75
    http_status = 503


def known(error: BaseException) -> BackfillError:
    """``error`` as one of ours.  The words of an unexpected one are not told: they might hold a value of a row."""
    if isinstance(error, BackfillError):
        return error
    if isinstance(error, TimeoutError):
        return CannotConnect("the database did not answer in time", hint="try again")
    failure = classify(error)
    if failure.action in (Action.RECONNECT, Action.WAIT, Action.PAUSE):
        return CannotConnect(failure.message, hint=failure.hint, sqlstate=failure.sqlstate)
    if failure.sqlstate:
        return BackfillError(failure.message, hint=failure.hint, sqlstate=failure.sqlstate)
    return BackfillError(f"unexpected {type(error).__name__}", hint="this is a bug: please report it")


def title_of(status: int) -> str:
    """A status in words."""
    return _TITLES.get(status, "Error")


def problem(error: BackfillError, instance: str) -> ProblemDetails:
    """What a client is told.  ``instance``: the request's number, which audit and log name, too."""
    status = error.http_status
    return ProblemDetails(
        type=f"{TYPE_PREFIX}{error.code}",
        title=title_of(status),
        status=status,
        detail=error.message[:MAX_MESSAGE],
        instance=f"urn:backfill:request:{instance}",
        code=error.code,
        hint=error.hint,
        sqlstate=error.sqlstate,
        errors=_details(error),
        job=error.job if isinstance(error, SpecChanged) else None,
        state=error.state.value if isinstance(error, HeldByOperator) else None,
        findings=[finding_shape(f) for f in error.findings] if isinstance(error, PreflightRefused) else [],
    )


def _details(error: BackfillError) -> list[Detail]:
    """The first of what is wrong, each in few words: an answer stays smaller than the request that it is about."""
    found = list(_all_details(error))
    if len(found) > MAX_DETAILS:
        more = len(found) - MAX_DETAILS
        found = [*found[:MAX_DETAILS], Detail(message=f"and {more:,} more")]
    return [one.model_copy(update={"message": one.message[:MAX_MESSAGE]}) for one in found]


def _all_details(error: BackfillError) -> Iterable[Detail]:
    match error:
        case SpecError():
            return (Detail(pointer=p.pointer, message=p.message, hint=p.hint) for p in error.problems)
        case SpecChanged():
            return (
                # A meaning is two deep: the rest of the path is the name of a column, whatever that holds.
                Detail(
                    pointer=pointer_text(tuple(path.split(".", 1))),
                    message=f"is {after}, was {before}",
                    before=before,
                    after=after,
                )
                for path, before, after in error.differences
            )
        case _:
            found: Iterable[Detail] = getattr(error, "errors", ())
            return found


def finding_shape(finding: Finding) -> FindingShape:
    """A finding as it travels."""
    return FindingShape(
        code=finding.code, severity=finding.severity.value, message=finding.message, remedy=finding.remedy or ""
    )


def reply(error: BackfillError, instance: str) -> Reply:
    """The whole answer."""
    shape = problem(error, instance)
    headers = {"www-authenticate": 'Bearer realm="backfill"'} if shape.status == 401 else {}
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    if shape.status in (429, 503):
        headers["retry-after"] = str(getattr(error, "retry_after_s", RETRY_AFTER_S))
    body = json.dumps(shape.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)
    return Reply(content=body, status=shape.status, headers=headers, media_type=MEDIA_TYPE)
