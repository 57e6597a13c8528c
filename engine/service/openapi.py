"""The OpenAPI document, made from the table of routes and the models: it cannot say what the daemon does not do.

Every operation says which scope it demands (``x-required-scope``), and lists the problems that it can answer with by
their stable codes, each with an example.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from engine._version import __version__
from engine.errors import BackfillError
from engine.service import problems
from engine.service.reading import EVENT_ID, IDEMPOTENCY_KEY, MAX_TEXT, MERGE_PATCH
from engine.service.routing import EVENT_STREAM, PATH_PATTERNS, SPEC, Parameter, Route
from engine.spec import json_schema
from engine.spec.units import DURATION_PATTERN, format_duration
from engine.wire.shapes import Answer, HistoryEntry, Job, ProblemDetails, Trouble

_JSON: Final = "application/json"
_SCHEMAS: Final = "#/components/schemas/"
_SPEC_NAME: Final = "JobSpec"

_DESCRIPTION: Final = """\
Jobs of the databases that the operator of this daemon configured: begin them, watch them, slow them down, stop them, \
and ask whether the old side may be given up.

**Who you are** is told by the Unix socket (the kernel says which user connects), by a token \
(`Authorization: Bearer …`), or by a client certificate. Each operation demands one scope: `read`, `control` or \
`submit`; none implies another. An identity that is bound to connections sees nothing of the others.

**Jobs** are named by their names, which are unique in a ledger. Where several connections hold a job of one name, \
`?connection=NAME` says which is meant; without it the answer is 409 `ambiguous_job`.

**Errors** are problem details (RFC 9457) with a stable `code`; texts may change. `errors` holds JSON pointers into \
the body, or names of parameters.

**Revisions**: a job's `ETag` changes with every change of its state, orders and settings. `If-Match` makes a change \
only if nobody else has changed the job meanwhile; else it is 412 `changed_meanwhile`.
"""

_TAGS: Final = {
    "jobs": "Begin jobs and look at them.",
    "orders": "Pause, resume, cancel, and set the pace.",
    "evidence": "Verification, the gate, history, and rows that were set aside.",
    "planning": "What a job would do, before it does it.",
    "daemon": "The daemon itself.",
}

_PAGES: Final = ("text/html", "*/*")
"""What people look at is no part of the interface."""

_EVENTS: Final[Mapping[str, type[Answer] | None]] = {
    "history": HistoryEntry,
    "status": Job,
    "trouble": Trouble,
    "end": None,
}
"""What a stream of a job carries."""

_WITH_ERRORS: Final = (
    "engine.ledger.requests",
    "engine.service.access",
    "engine.service.admission",
    "engine.service.hosts",
    "engine.service.refusals",
)
"""Modules whose errors must be known before all codes are: some are loaded only when they are needed."""

_EVERYWHERE: Final = (
    "bad_request",
    "too_large",
    "too_slow",
    "misdirected",
    "unexpected",
    "crowded",
    "malformed_request",
    "headers_too_large",
    "not_supported",
)
_WITH_SCOPE: Final = ("stranger", "unauthenticated", "forbidden", "cross_site", "too_many_tries", "took_too_long")
_WITH_JOB: Final = ("unknown_job", "ambiguous_job", "cannot_connect", "ledger_damaged")
_WITH_BODY: Final = ("invalid_body", "unsupported_media_type")
_WITH_SPEC: Final = (
    "spec_invalid",
    "spec_changed",
    "not_allowed",
    "superuser_refused",
    "transform_not_loaded",
    "preflight_refused",
    "cannot_connect",
    "schema_drift",
    "ledger_damaged",
)


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    shown = [route for route in routes if route.media_type not in _PAGES]
    paths: dict[str, dict[str, Any]] = {}
    for route in shown:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "backfill",
            "version": __version__,
            "summary": "Backfill live PostgreSQL tables, politely, resumable to the row",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(_schemas(shown).items())),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Of the operator's tokens file."},
                "certificate": {"type": "mutualTLS", "description": "A client certificate of the operator's CA."},
            },
        },
    }


def as_text(routes: Sequence[Route]) -> str:
    """The document as it is committed and served."""
    return json.dumps(document(routes), indent=1, ensure_ascii=False) + "\n"


def codes() -> dict[str, type[BackfillError]]:
    """Every stable code of an error, and the class that has it first."""
    for module in _WITH_ERRORS:
        import_module(module)
    found: dict[str, type[BackfillError]] = {}
    for error in _errors(BackfillError):
        found.setdefault(error.code, error)
    return found


def _errors(error: type[BackfillError]) -> Iterator[type[BackfillError]]:
    yield error
    for below in error.__subclasses__():
        yield from _errors(below)


def codes_of(route: Route) -> list[str]:
    """The problems that a route can answer with, its own last."""
    found = [*_EVERYWHERE]
    found += _WITH_SCOPE if route.scope is not None else ()
    found += ("overloaded",) if route.is_slow else ()
    found += _WITH_JOB if "job" in route.names else ()
    found += ("not_found",) if "name" in route.names else ()
    found += _WITH_BODY if route.request is not None else ()
    found += _WITH_SPEC if route.request == SPEC else ()
    found += ("changed_meanwhile",) if route.takes_if_match else ()
    found += ("idempotency_key_reused",) if route.takes_idempotency_key else ()
    known = codes()
    return [code for code in dict.fromkeys((*found, *route.problems)) if code in known]


def usual_codes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The problems of every route, and those of every route that demands a scope."""
    return _EVERYWHERE, _WITH_SCOPE


def _operation(route: Route) -> dict[str, Any]:
    scope = route.scope
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [_tag(route)],
        "parameters": [*_path(route), *map(_parameter, route.parameters), *_headers(route)],
        "responses": _responses(route),
        "security": [] if scope is None else [{"token": [scope.value]}, {"certificate": [scope.value]}],
    }
    text = _prose(route.handler)
    if route.is_slow:
        text += " Reads the tables themselves: few of these are answered at once, and none for long."
    if text:
        operation["description"] = text.strip()
    if scope is not None:
        operation["x-required-scope"] = scope.value
    if route.request is not None:
        kinds = [_JSON, *([MERGE_PATCH] if route.method == "PATCH" else [])]
        name = _SPEC_NAME if route.request == SPEC else route.request.__name__
        operation["requestBody"] = {
            "required": route.body_required or route.request == SPEC,
            "content": {kind: {"schema": {"$ref": _SCHEMAS + name}} for kind in kinds},
        }
    return operation


def _tag(route: Route) -> str:
    if not route.path.startswith("/v1/") or route.path in ("/v1/me", "/v1/connections"):
        return "daemon"
    last = route.path.rsplit("/", 1)[1]
    if last in ("plans", "rehearsals", "doctor", "grants"):
        return "planning"
    if last in ("pause", "resume", "cancel", "pace"):
        return "orders"
    return "jobs" if last in ("jobs", "{job}", "restart", "events", "dualwrite") else "evidence"


def _path(route: Route) -> Iterator[dict[str, Any]]:
    for name in route.names:
        said = {"job": "The job's name.", "name": "The operator's name of a connection."}.get(name, "A file.")
        schema = {"type": "string", "pattern": PATH_PATTERNS[name]}
        yield {"name": name, "in": "path", "required": True, "description": said, "schema": schema}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any]
    text = parameter.description
    match parameter.kind:
        case "integer":
            schema = {"type": "integer"} | _bounds(parameter)
        case "boolean":
            schema = {"type": "boolean"}
        case "duration":
            schema = {"type": "string", "pattern": DURATION_PATTERN, "examples": ["30s"]}
            if parameter.maximum is not None:
                text += f" At most {format_duration(parameter.maximum)}."
        case _:
            schema = {"type": "string", "maxLength": MAX_TEXT}
            schema |= {"enum": list(parameter.choices)} if parameter.choices else {}
            schema |= {"pattern": parameter.pattern} if parameter.pattern is not None else {}
    if parameter.default is not None:
        is_duration = parameter.kind == "duration"
        schema["default"] = format_duration(parameter.default) if is_duration else parameter.default
    return {"name": parameter.name, "in": "query", "required": False, "description": text, "schema": schema}


def _bounds(parameter: Parameter) -> dict[str, Any]:
    bounds = {"minimum": parameter.minimum, "maximum": parameter.maximum}
    return {name: int(bound) for name, bound in bounds.items() if bound is not None}


def _headers(route: Route) -> Iterator[dict[str, Any]]:
    if route.takes_if_match:
        yield _header("If-Match", "The ETag of the job as the caller saw it.", r'^(\*|"[\x21\x23-\x7e]{1,64}")$')
    if route.takes_idempotency_key:
        yield _header("Idempotency-Key", "The same key with the same spec is the same request.", f"^{IDEMPOTENCY_KEY}$")
    if route.has_etag and route.method == "GET":
        yield _header("If-None-Match", "The ETag that the caller has: 304 when it is still that one.", None)
    if route.streams:
        yield _header(
            "Last-Event-ID",
            "The id of the last history entry that was seen: the stream goes on after it.",
            f"^{EVENT_ID}$",
        )


def _header(name: str, text: str, pattern: str | None) -> dict[str, Any]:
    schema = {"type": "string"} | ({"pattern": pattern} if pattern is not None else {})
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _responses(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status in sorted({route.status, *route.also}):
        found[str(status)] = {"description": _said(route, status), "headers": _answer_headers(route, status)}
        content = _content(route)
        if content:
            found[str(status)]["content"] = content
    if route.has_etag and route.method == "GET":
        found["304"] = {"description": "What the caller has is what it is."}
    known = codes()
    by_status: dict[int, list[type[BackfillError]]] = {}
    for code in codes_of(route):
        by_status.setdefault(known[code].http_status, []).append(known[code])
    for status, errors in sorted(by_status.items()):
        found[str(status)] = _problem_response(status, errors)
    return found


def _said(route: Route, status: int) -> str:
    if status == 201:
        return "It was created; Location says where it is."
    if route.streams:
        return "Server-sent events, until the job has ended or the caller leaves."
    return _prose(route.answer, paragraphs=1) if route.answer is not None else "Done."


def _answer_headers(route: Route, status: int) -> dict[str, Any]:
    text = {"type": "string"}
    headers = {"X-Request-Id": {"description": "Audit and log name the request so.", "schema": text}}
    if route.has_etag:
        headers["ETag"] = {"description": "The revision of the job, in quotes.", "schema": text}
    if status == 201:
        headers["Location"] = {"description": "The path of the job.", "schema": text}
    return headers


def _content(route: Route) -> dict[str, Any]:
    if route.streams:
        lines = [
            f"* `event: {name}`: {_first_line(model) if model is not None else 'no data.'}"
            for name, model in _EVENTS.items()
        ]
        text = "\n".join((*lines, "* a comment every 15 s, so that a caller knows that somebody is there."))
        carried = {name: {"$ref": _SCHEMAS + model.__name__} for name, model in _EVENTS.items() if model is not None}
        return {EVENT_STREAM: {"schema": {"type": "string", "description": text}, "x-events": carried}}
    if route.answer is None:
        return {route.media_type: {"schema": {"type": "object" if route.media_type == _JSON else "string"}}}
    return {route.media_type: {"schema": {"$ref": _SCHEMAS + route.answer.__name__}}}


def _first_line(model: type[BaseModel]) -> str:
    return _prose(model, paragraphs=1)


def _problem_response(status: int, errors: Iterable[type[BackfillError]]) -> dict[str, Any]:
    examples = {error.code: {"value": _example(error)} for error in errors}
    said = " ".join(f"`{code}`." for code in examples)
    content = {"schema": {"$ref": _SCHEMAS + ProblemDetails.__name__}, "examples": examples}
    return {"description": f"{problems.title_of(status)}: {said}", "content": {problems.MEDIA_TYPE: content}}


def _example(error: type[BackfillError]) -> Mapping[str, Any]:
    return {
        "type": problems.TYPE_PREFIX + error.code,
        "title": problems.title_of(error.http_status),
        "status": error.http_status,
        "detail": meaning_of(error),
        "instance": "urn:backfill:request:7f3c9a1e5b2d4086",
        "code": error.code,
    }


def meaning_of(error: type[BackfillError]) -> str:
    """What an error means, in a sentence."""
    if error is BackfillError:
        return "Nobody foresaw this: the daemon's log has it under the number of the request."
    return _prose(error, paragraphs=1)


def _prose(what: object, paragraphs: int | None = None) -> str:
    """A docstring as a line of text."""
    text = "\n\n".join((what.__doc__ or "").split("\n\n")[:paragraphs])
    return " ".join(text.split()).replace("``", "`")


def _schemas(routes: Iterable[Route]) -> dict[str, Any]:
    """Requests as they may be, answers as they are; and the spec's own schema, whose parts begin with its name."""
    wanted: dict[tuple[type[BaseModel], Any], None] = {(ProblemDetails, "validation"): None}
    for route in routes:
        for model in (route.answer, *(_EVENTS.values() if route.streams else ())):
            if model is not None:
                wanted[model, "serialization"] = None
        if route.request is not None and route.request != SPEC:
            wanted[route.request, "validation"] = None
    _, made = models_json_schema(list(wanted), ref_template=_SCHEMAS + "{model}")
    spec = json_schema(for_daemon=True)
    spec.pop("$schema", None)
    parts = {f"{_SPEC_NAME}.{name}": part for name, part in spec.pop("$defs", {}).items()}
    found: dict[str, Any] = made["$defs"] | _moved({_SPEC_NAME: spec} | parts)
    return found


def _moved(value: Any) -> Any:
    """With references to where the parts of the spec's schema are now."""
    match value:
        case dict():
            return {
                key: _SCHEMAS + f"{_SPEC_NAME}." + inner.removeprefix("#/$defs/")
                if key == "$ref" and isinstance(inner, str)
                else _moved(inner)
                for key, inner in value.items()
            }
        case list():
            return [_moved(one) for one in value]
        case _:
            return value
