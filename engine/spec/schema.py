"""The JSON Schema of a spec file, made from the models, so that the two cannot drift apart.

It holds only what works: keys whose feature is still to come are absent.  What a schema cannot say (an environment
variable that is not set, a literal password, which of two limits is larger) only the loader checks.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import TypeAdapter

from engine.spec.models import ChunkLimits, JobSpec
from engine.spec.names import MAX_NAME_BYTES
from engine.spec.signals import DEFAULT_LIMITS, NAME_PATTERN, NAMED, NEEDS_NUMBER, SignalKind
from engine.spec.units import format_duration, format_size

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema(*, for_daemon: bool = False) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what a spec file may hold; ``for_daemon``: of what may be submitted."""
    schema = _tidied(_with_signals(JobSpec.model_json_schema(by_alias=True, mode="validation")))
    properties = schema["properties"]
    chunk = schema["$defs"]["ChunkLimits"]["properties"]
    limits = ChunkLimits()
    chunk["target"]["default"] = format_duration(limits.target_s)
    chunk["max_bytes"]["default"] = format_size(limits.max_bytes)
    properties["lock_timeout"]["default"] = format_duration(JobSpec.model_fields["lock_timeout_s"].default)
    properties["on_conflict"]["default"] = str(JobSpec.model_fields["on_conflict"].default)
    for key in ("chunk", "pace", "bloat", "errors"):
        del properties[key]["default"]  # each key below has its own
    _signals(schema["$defs"])
    endpoint = schema["$defs"]["Endpoint"]
    if for_daemon:
        del endpoint["properties"]["dsn"]
        properties["source"] = {"required": ["connection"]} | properties["source"]
    else:
        endpoint["not"] = {"required": ["connection", "dsn"]}
    properties["order"] = properties["order"] | {"enum": ["key"]}
    for key in ("set", "columns"):
        properties[key] |= {"minProperties": 1, "propertyNames": {"minLength": 1, "maxLength": MAX_NAME_BYTES}}
    return {"$schema": DIALECT, "title": "Backfill job"} | schema | _RULES


_RULES: Final = {
    "if": {"required": ["target"]},
    "then": {"properties": {"set": False, "done": False, "bloat": False}},
    "else": {"required": ["set"], "properties": {"columns": False, "on_conflict": False, "deletes": False}},
}
"""What ``engine.spec.rules.contradictions`` refuses, as a schema says it."""


_OPERATORS_SIGNAL: Final = {
    "type": "string",
    "pattern": NAME_PATTERN,
    "not": {"enum": [kind.value for kind in SignalKind]},
}


def _with_signals(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` with the forms of ``pace.signals``, whose models the models of a job do not know."""
    from engine.spec.signal_forms import SignalEntry  # fifteen models that only this command needs at once

    signals = TypeAdapter(list[SignalEntry] | Literal["off"]).json_schema(ref_template="#/$defs/{model}")
    listed = next(option for option in signals["anyOf"] if option.get("type") == "array")
    listed["items"] = {"anyOf": [listed["items"], _OPERATORS_SIGNAL]}
    schema["$defs"] |= signals.pop("$defs")
    schema["$defs"]["Pace"]["properties"]["signals"] |= signals
    return schema


def _signals(definitions: dict[str, Any]) -> None:
    """What holds of entries of ``pace.signals`` besides their models."""
    definitions["LockWaits"]["properties"]["max"]["default"] = format_duration(DEFAULT_LIMITS[SignalKind.LOCK_WAITS][1])
    entry = definitions["SignalEntry"]
    entry |= {"minProperties": 1, "maxProperties": 1}
    for kind, value in entry["properties"].items():
        form = definitions[value["$ref"].rsplit("/", 1)[1]]
        value["description"] = form["description"]
        if kind not in NAMED:
            value["anyOf"] = [{"$ref": value.pop("$ref")}, {"const": "off"}]
        numbers = [{"required": [key]} for key in ("target", "max") if key in form["properties"]]
        if SignalKind(kind) in NEEDS_NUMBER:
            form["anyOf"] = numbers


_DROPPED: Final = ("title",)
_DEFINITIONS_IN_PLACE: Final = ("Order", "Deletes", "Side", "SignalUnit", "OnFailure")


def _tidied(schema: dict[str, Any]) -> dict[str, Any]:
    """Pydantic's schema without titles that repeat the key, without null (an empty key is refused), unwrapped."""
    definitions = schema.get("$defs", {})
    in_place = {f"#/$defs/{name}": definitions.pop(name) for name in _DEFINITIONS_IN_PLACE if name in definitions}

    def tidy(node: Any, *, names: bool = False) -> Any:
        if isinstance(node, list):
            return [tidy(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: value for key, value in node.items() if names or key not in _DROPPED}
        if not names:
            options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
            if len(options) == 1:
                node = options[0] | {key: value for key, value in node.items() if key != "anyOf"}
            if "$ref" in node and node["$ref"] in in_place:
                node = in_place[node["$ref"]] | {key: value for key, value in node.items() if key != "$ref"}
                node.pop("title", None)
            if node.get("default", ...) in (None, ""):
                del node["default"]
            if "description" in node:
                node["description"] = " ".join(node["description"].replace("``", "`").split())
        return {key: tidy(value, names=key in ("properties", "$defs")) for key, value in node.items()}

    tidied: dict[str, Any] = tidy(schema)
    return tidied
