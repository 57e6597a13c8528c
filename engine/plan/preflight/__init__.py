"""May this job be started, and what will it cost?  Findings with a code, a severity and a remedy.

Owns the catalogue of findings (``docs/findings.md`` explains each), the choice of key and arbiter, and the mapping of
columns.  Refuses to know how facts are found out: it is told (``PreflightFacts``) and answers at once.

Invariants: the same facts give the same findings in the same order; a finding that refuses names what would make the
job's result wrong, not merely slow; nothing here raises for a table or a spec that is odd.
"""

from engine.plan.preflight.catalogue import CATALOGUE, Code, refusals
from engine.plan.preflight.columns import ColumnMap, MappedColumn, SkippedColumn, map_columns, plain_column
from engine.plan.preflight.cost import readable_bytes
from engine.plan.preflight.expressions import unrepeatable
from engine.plan.preflight.facts import (
    OUR_TRIGGERS,
    DualWriteFacts,
    ExpressionFacts,
    PacingFacts,
    PlanCheck,
    PreflightFacts,
    SampleFacts,
    ServerFacts,
    ServerPacing,
    ServerState,
    Slot,
    TransformFacts,
    filled_by,
    passes_through,
)
from engine.plan.preflight.judge import preflight
from engine.plan.preflight.keys import KeyChoice, choose_arbiter, choose_key, ranges_agree
from engine.plan.preflight.pacing import MAINTAIN_VERSION_NUM, role_for
from engine.plan.preflight.servers import required_privileges

__all__ = [
    "CATALOGUE",
    "MAINTAIN_VERSION_NUM",
    "OUR_TRIGGERS",
    "Code",
    "ColumnMap",
    "DualWriteFacts",
    "ExpressionFacts",
    "KeyChoice",
    "MappedColumn",
    "PacingFacts",
    "PlanCheck",
    "PreflightFacts",
    "SampleFacts",
    "ServerFacts",
    "ServerPacing",
    "ServerState",
    "SkippedColumn",
    "Slot",
    "TransformFacts",
    "choose_arbiter",
    "choose_key",
    "filled_by",
    "map_columns",
    "passes_through",
    "plain_column",
    "preflight",
    "ranges_agree",
    "readable_bytes",
    "refusals",
    "required_privileges",
    "role_for",
    "unrepeatable",
]
