"""``docs/daemon/openapi.json`` and ``docs/daemon/api.md``, made from the table of routes: ``make openapi`` writes them.

What the page says before its reference (with commands that a test runs) stands in ``api_page.md`` beside this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.service import openapi, problems
from engine.service.routes.table import ROUTES
from engine.service.routing import SPEC, Route

FOLDER = Path(__file__).parents[2] / "docs" / "daemon"
_TOPICS = {
    "jobs": "Jobs",
    "orders": "Orders",
    "evidence": "Evidence",
    "planning": "Before a job",
    "daemon": "The daemon",
}


def made() -> dict[str, str]:
    """Name of a file in ``docs/daemon`` -> what it holds."""
    return {"openapi.json": openapi.as_text(ROUTES), "api.md": page()}


def page() -> str:
    """The whole page."""
    document = openapi.document(ROUTES)
    operations = {
        (route.method, route.path): document["paths"][route.path][route.method.lower()]
        for route in ROUTES
        if route.path in document["paths"]
    }
    parts = [(Path(__file__).parent / "api_page.md").read_text().rstrip(), "", "## All routes", ""]
    parts += ["| route | scope | what it does |", "|---|---|---|"]
    shown = [route for route in ROUTES if (route.method, route.path) in operations]
    parts += [
        f"| [`{route.method} {route.path}`](#{_anchor(route)}) | {route.scope or 'public'} | {route.summary} |"
        for route in shown
    ]
    for tag, title in _TOPICS.items():
        parts += ["", f"## {title}"]
        for route in shown:
            operation = operations[route.method, route.path]
            if operation["tags"] == [tag]:
                parts += _route(route, operation)
    parts += ["", *_codes()]
    return "\n".join(parts) + "\n"


def _route(route: Route, operation: dict[str, Any]) -> Iterator[str]:
    yield f"\n### `{route.method} {route.path}`\n"
    yield f"{route.summary}. Scope: {f'`{route.scope}`' if route.scope else 'none, it is public'}."
    if operation.get("description"):
        yield "\n" + operation["description"]
    named = [parameter for parameter in operation["parameters"] if parameter["in"] != "path"]
    if named:
        yield "\n| parameter | where | form | what it says |\n|---|---|---|---|"
    for parameter in named:
        form = _form(parameter["schema"])
        yield f"| `{parameter['name']}` | {parameter['in']} | {form} | {parameter['description']} |"
    if route.request == SPEC:
        yield "\nBody: the spec of a job, as JSON (`JobSpec` in [openapi.json](openapi.json))."
    elif route.request is not None:
        yield f"\nBody: `{route.request.__name__}`" + ("." if route.body_required else ", or none.")
        yield from _fields(route.request.model_json_schema())
    statuses = ", ".join(str(status) for status in sorted({route.status, *route.also}))
    if route.answer is not None:
        yield f"\nAnswer: {statuses} with `{route.answer.__name__}`."
    else:
        yield f"\nAnswer: {statuses} with `{route.media_type}`."
    own = [f"`{code}`" for code in openapi.codes_of(route) if code not in set().union(*openapi.usual_codes())]
    if own:
        yield f"Problems of its own: {', '.join(own)}."


def _anchor(route: Route) -> str:
    """As a heading is linked to."""
    return re.sub(r"[^\w\- ]", "", f"{route.method} {route.path}".lower()).replace(" ", "-")


def _form(schema: dict[str, Any]) -> str:
    form = " or ".join(f"`{one}`" for one in schema["enum"]) if "enum" in schema else schema["type"]
    if "minimum" in schema or "maximum" in schema:
        form += f" {schema.get('minimum', '')}..{schema.get('maximum', '')}"
    return form + (f", default `{str(schema['default']).lower()}`" if "default" in schema else "")


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    yield "\n| key | form |\n|---|---|"
    for name, field in schema["properties"].items():
        kinds = [_kind(one) for one in field.get("anyOf", [field])]
        yield f"| `{name}` | {' or '.join(kinds)}{'; ' + field['description'] if 'description' in field else ''} |"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rsplit('/', 1)[1]}`"
    kind = str(schema.get("type", "any"))
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return f"{kind} {' and '.join(bounds)}".strip()


_BEFORE = ("method_not_allowed", "not_found", "stranger", "malformed_request", "headers_too_large", "not_supported")
"""What a request meets before it has a route."""

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "maxLength": "at most", "maxItems": "at most"}


def _codes() -> Iterator[str]:
    yield "## Codes of problems\n"
    yield "`code` is stable; `type` is `urn:backfill:problem:` and the code.\n"
    everywhere, scoped = (", ".join(f"`{code}`" for code in codes) for codes in openapi.usual_codes())
    yield f"Any route can answer with {everywhere}; any that demands a scope, with {scoped}, too.\n"
    yield "| status | code | what it means |\n|---|---|---|"
    used = {code for route in ROUTES for code in openapi.codes_of(route)} | set(_BEFORE)
    known = openapi.codes()
    for code in sorted(used, key=lambda code: (known[code].http_status, code)):
        error = known[code]
        yield f"| {error.http_status} {problems.title_of(error.http_status)} | `{code}` | {openapi.meaning_of(error)} |"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in made().items():
        (FOLDER / file).write_text(text)
