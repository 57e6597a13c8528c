"""Errors as problem details (RFC 9457): each of our errors has a stable code and an HTTP status already."""

from __future__ import annotations

import json
from typing import Final

from engine.db.failures import Action, classify
from engine.errors import BackfillError, CannotConnect, PreflightRefused, SpecChanged, SpecError
from engine.model import Finding
from engine.service.routing import Reply
from engine.wire.shapes import Detail, FindingShape, ProblemDetails

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:backfill:problem:"
_TITLES: Final = {
    400: "Bad request",
    401: "Unauthenticated",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    412: "Precondition failed",
    413: "Too large",
    415: "Unsupported media type",
    421: "Misdirected request",
    422: "Unprocessable",
    428: "Precondition required",
    429: "Too many requests",
    500: "Unexpected error",
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


class MethodNotAllowed(BadRequest):
    """Something is at that path, for other methods."""

    code = "method_not_allowed"
    http_status = 405


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


def known(error: Exception) -> BackfillError:
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


def problem(error: BackfillError, instance: str) -> ProblemDetails:
    """What a client is told.  ``instance``: the request's number, which audit and log name, too."""
    status = error.http_status
    return ProblemDetails(
        type=f"{TYPE_PREFIX}{error.code}",
        title=_TITLES.get(status, "Error"),
        status=status,
        detail=error.message,
        instance=f"urn:backfill:request:{instance}",
        code=error.code,
        hint=error.hint,
        sqlstate=error.sqlstate,
        errors=_details(error),
        findings=[finding_shape(f) for f in error.findings] if isinstance(error, PreflightRefused) else [],
    )


def _details(error: BackfillError) -> list[Detail]:
    match error:
        case BadRequest():
            return list(error.errors)
        case SpecError():
            return [Detail(pointer=p.pointer, message=p.message, hint=p.hint) for p in error.problems]
        case SpecChanged():
            return [
                Detail(pointer=f"/{path}", message=f"is {after}, was {before}")
                for path, before, after in error.differences
            ]
        case _:
            return []


def finding_shape(finding: Finding) -> FindingShape:
    """A finding as it travels."""
    return FindingShape(
        code=finding.code, severity=finding.severity.value, message=finding.message, remedy=finding.remedy or ""
    )


def reply(error: BackfillError, instance: str) -> Reply:
    """The whole answer."""
    shape = problem(error, instance)
    headers = {"www-authenticate": 'Bearer realm="backfill"'} if shape.status == 401 else {}
    if shape.status in (429, 503):
        headers["retry-after"] = "2"
    body = json.dumps(shape.model_dump(mode="json", exclude_defaults=True) | {"status": shape.status})
    return Reply(content=body, status=shape.status, headers=headers, media_type=MEDIA_TYPE)
