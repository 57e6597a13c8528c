"""What the user asked: the job spec, its file, its flags, its JSON Schema.

Owns the models of a spec, reading them from YAML, JSON or flags with every problem at once (line, column, path,
hint), connection strings as secrets, time windows, the JSON Schema and the commented template.

Refuses to know databases: it looks nothing up, parses no SQL beyond a table's name, and opens nothing but the spec
file it is given and the time zone database.

Invariants
    * A ``JobSpec`` that exists is complete: it has a name, defaults and units are applied, contradictions refused.
    * No key is silently ignored: unknown keys and keys whose feature is not there yet are problems.
    * Secrets stay inside ``Dsn``: no problem quotes a value, no ``repr``, no JSON and no ledger form holds one.
    * ``meaning()`` never depends on connection strings or on settings that may change under one identity.
"""

from __future__ import annotations

from engine.spec.dsn import Dsn, refuse_password
from engine.spec.fields import OnConflict
from engine.spec.flags import spec_from_flags
from engine.spec.identity import differences
from engine.spec.load import Purpose, load_spec, parse_spec
from engine.spec.models import ChunkLimits, Endpoint, Errors, JobSpec
from engine.spec.names import TableRef
from engine.spec.pacing import Bloat, Pace
from engine.spec.schema import json_schema
from engine.spec.signals import SignalKind, SignalSpec, SignalUnit
from engine.spec.submitted import read_submitted
from engine.spec.template import TemplateFacts, template
from engine.spec.transforms import TransformRights, by_operator
from engine.spec.windows import TimeWindow, Windows

__all__ = [
    "Bloat",
    "ChunkLimits",
    "Dsn",
    "Endpoint",
    "Errors",
    "JobSpec",
    "OnConflict",
    "Pace",
    "Purpose",
    "SignalKind",
    "SignalSpec",
    "SignalUnit",
    "TableRef",
    "TemplateFacts",
    "TimeWindow",
    "TransformRights",
    "Windows",
    "by_operator",
    "differences",
    "json_schema",
    "load_spec",
    "parse_spec",
    "read_submitted",
    "refuse_password",
    "spec_from_flags",
    "template",
]
