"""A request's parts, read and checked against what its route says: path, headers, query and body.

What is read here is bounded before it is read: bytes and seconds of a body, the depth and the number of its values,
the length of a parameter.  What comes out holds no NUL and no half of a surrogate pair, which PostgreSQL could not
store and an answer could not repeat.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

from pydantic import ValidationError
from starlette.requests import Request as HttpRequest

from engine.errors import UnknownJob
from engine.service.problems import (
    BadRequest,
    NotFound,
    TooLarge,
    TooSlow,
    Unprocessable,
    UnsupportedMediaType,
)
from engine.service.routing import PATH_PATTERNS, SPEC, Parameter, Route
from engine.spec.misfit import Misfit
from engine.spec.units import parse_duration
from engine.wire.shapes import Detail

MAX_DEPTH: Final = 32
"""A spec is four deep."""

MAX_VALUES: Final = 20_000
"""Objects, lists, numbers and texts of one body: as many rows as one request may name, twice."""

MAX_FIELDS: Final = 50
MAX_TEXT: Final = 4_000
"""Characters of one parameter of the query."""

MAX_DURATION_S: Final = 3650 * 86_400.0
"""Where a parameter says no maximum: more would be beyond what a date can be."""

SHOWN: Final = 80
"""Characters of a name of the caller's that an error repeats."""

MERGE_PATCH: Final = "application/merge-patch+json"
ETAG: Final = r'\*|"[\x21\x23-\x7e]{1,64}"'
IDEMPOTENCY_KEY: Final = r"[\x21-\x7e]{1,200}"
EVENT_ID: Final = r"[0-9]{1,18}"

_SINGLE: Final = ("authorization", "content-type", "content-encoding", "if-match", "idempotency-key", "last-event-id")


def segments_of(raw: bytes) -> tuple[str, ...]:
    """The parts of a path; raises ``NotFound`` for what can be none.  ``%2F`` does not part."""
    try:
        parts = tuple(unquote_to_bytes(part).decode("utf-8") for part in raw.split(b"/"))
    except UnicodeDecodeError:
        raise NotFound("nothing is here", hint="the path is not UTF-8") from None
    if parts[0] or len(parts) == 1:
        raise NotFound("nothing is here", hint="a path begins with /")
    return parts[1:]


def names_of(route: Route, segments: Sequence[str]) -> dict[str, str]:
    """What the caller filled in, by name.  Raises ``UnknownJob`` or ``NotFound`` for what nothing can be called."""
    found = {}
    for template, segment in zip(route.path.split("/")[1:], segments, strict=True):
        if not template.startswith("{"):
            continue
        name = template[1:-1]
        if not re.fullmatch(PATH_PATTERNS[name].removesuffix("$"), segment):
            refusal = UnknownJob if name == "job" else NotFound
            raise refusal(f"no {name} can have that name", hint="names are lower-case letters, digits, _, . and -")
        found[name] = segment
    return found


def headers_of(route: Route, request: HttpRequest) -> dict[str, str]:
    """The headers by name; those that decide anything are there once, and have their form."""
    errors = [
        Detail(parameter=name, message="is there more than once")
        for name in _SINGLE
        if len(request.headers.getlist(name)) > 1
    ]
    headers = dict(request.headers)
    if route.takes_if_match and not re.fullmatch(ETAG, headers.get("if-match", "*").strip()):
        errors.append(
            Detail(parameter="if-match", message="is not one strong ETag", hint="send the ETag of the job as it came")
        )
    if route.takes_idempotency_key and not re.fullmatch(IDEMPOTENCY_KEY, headers.get("idempotency-key", "-")):
        errors.append(
            Detail(parameter="idempotency-key", message="is not 1 to 200 printable ASCII characters without a space")
        )
    if route.streams and not re.fullmatch(EVENT_ID, headers.get("last-event-id", "0")):
        errors.append(Detail(parameter="last-event-id", message="is no id of an event of this stream"))
    if errors:
        raise BadRequest("a header does not fit", errors=tuple(errors))
    return headers


def query_of(route: Route, raw: bytes) -> dict[str, Any]:
    """The parameters of the query by name, converted; the route's defaults for those that are not there."""
    try:
        given = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("the query is not UTF-8, percent-encoded") from None
    except ValueError:
        raise BadRequest(f"the query has more than {MAX_FIELDS} parameters") from None
    known = {parameter.name: parameter for parameter in route.parameters}
    values: dict[str, Any] = {parameter.name: parameter.default for parameter in route.parameters}
    errors, seen = [], set()
    for name, text in given:
        try:
            if name not in known:
                raise Misfit("is not a parameter of this route")
            if name in seen:
                raise Misfit("is there more than once")
            seen.add(name)
            values[name] = _value(known[name], text)
        except Misfit as error:
            errors.append(Detail(parameter=_shown(name), message=error.message, hint=error.hint))
    if errors:
        raise BadRequest("the query does not fit", errors=tuple(errors))
    return values


def _value(parameter: Parameter, text: str) -> Any:
    match parameter.kind:
        case "integer":
            if not re.fullmatch(r"-?[0-9]{1,18}", text):
                raise Misfit("is not a whole number")
            number: float = int(text)
        case "boolean":
            if text not in ("true", "false"):
                raise Misfit("is neither true nor false")
            return text == "true"
        case "duration":
            number = parse_duration(text[:MAX_TEXT])
            if number > MAX_DURATION_S:
                raise Misfit("is longer than ten years")
        case _:
            return _text(parameter, text)
    if parameter.minimum is not None and number < parameter.minimum:
        raise Misfit(f"is below {_bound(parameter, parameter.minimum)}")
    if parameter.maximum is not None and number > parameter.maximum:
        raise Misfit(f"is above {_bound(parameter, parameter.maximum)}")
    return number


def _bound(parameter: Parameter, number: float) -> str:
    return f"{number:g}{' s' if parameter.kind == 'duration' else ''}"


def _text(parameter: Parameter, text: str) -> str:
    if len(text) > MAX_TEXT or not text.isprintable():
        raise Misfit(f"has more than {MAX_TEXT} characters, or some that cannot be printed")
    if parameter.choices and text not in parameter.choices:
        raise Misfit(f"must be one of: {', '.join(parameter.choices)}")
    if parameter.pattern is not None and not re.fullmatch(parameter.pattern, text):
        raise Misfit("has another form than it should")
    return text


async def body_of(route: Route, request: HttpRequest, most: int, within_s: float) -> Any:
    """The body: an instance of the route's request, or JSON as it came for a spec.

    Raises ``BadRequest`` and its kin.  ``most`` bytes; a body that says itself that it is longer is not read at all.
    """
    said = request.headers.get("content-length", "0")
    if len(said) > len(str(most)) or int(said) > most:
        raise _too_large(most)
    if route.request is not None:
        _check_form(route, request)
    raw = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for piece in request.stream():
                raw += piece
                if len(raw) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {within_s:g} s") from None
    if route.request is None:
        if raw:
            raise BadRequest("this route takes no body")
        return None
    if not raw:
        if route.body_required or route.request == SPEC:
            raise Unprocessable("the body is missing", hint="send JSON, with Content-Type: application/json")
        return route.request()
    if "content-type" not in request.headers:
        raise _not_json()
    data = json_of(bytes(raw))
    if route.request == SPEC:
        if not isinstance(data, dict):
            raise Unprocessable("a spec is a JSON object")
        return data
    try:
        return route.request.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        errors = tuple(Detail(pointer=pointer(one["loc"]), message=one["msg"]) for one in found)
        raise Unprocessable("the body does not fit", errors=errors) from None


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"a body has at most {most:,} bytes here", hint="`limits.body` in backfill.toml says how many")


def _check_form(route: Route, request: HttpRequest) -> None:
    kind, _, rest = request.headers.get("content-type", "application/json").partition(";")
    kinds = ("application/json", MERGE_PATCH) if route.method == "PATCH" else ("application/json",)
    charset = rest.replace(" ", "").replace('"', "").lower()
    if kind.strip().lower() not in kinds or charset not in ("", "charset=utf-8"):
        raise _not_json()
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaType("a body is not compressed here")


def _not_json() -> UnsupportedMediaType:
    return UnsupportedMediaType("a body must be application/json, in UTF-8")


def json_of(raw: bytes) -> Any:
    """JSON as the standard means it: no key twice, no NaN, no number beyond a double, text that is text."""
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_refuse, parse_float=_number, object_pairs_hook=_distinct)
    except _Twice as error:
        raise BadRequest(f"the key {error.key!r} is there twice in one object") from None
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    _measure(data)
    return data


class _Twice(Exception):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = _shown(key)


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        # `add` gives None, and is here for just that: the first time a key is not seen yet.
        raise _Twice(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def _measure(data: Any) -> None:
    """Level by level, so that neither depth nor breadth costs more than what is allowed."""
    level, seen = [data], 0
    for _ in range(MAX_DEPTH):
        seen += len(level)
        if seen > MAX_VALUES:
            raise BadRequest(f"the body has more than {MAX_VALUES:,} values")
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, Mapping):
                for key in value:
                    _check_text(key)
                below += value.values()
            elif isinstance(value, list):
                below += value
        if not below:
            return
        level = below
    raise BadRequest(f"the body is nested more than {MAX_DEPTH} deep")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise BadRequest("a text of the body holds the character NUL, which no database can store")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRequest("a text of the body holds half of a surrogate pair") from None


def pointer(path: Sequence[str | int]) -> str:
    """A JSON pointer (RFC 6901); what a caller wrote himself is repeated only at its beginning."""
    return "".join("/" + _shown(str(part)).replace("~", "~0").replace("/", "~1") for part in path)


def _shown(name: str) -> str:
    text = name.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
