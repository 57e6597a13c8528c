"""What a job would do, as programs read it: plans and rehearsals."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import Inspection, inspect
from engine.flow.rehearse import Rehearsal
from engine.flow.rehearse import rehearse as play
from engine.flow.sampled import Sample
from engine.flow.transforming import PreparedTransform
from engine.model import Finding, Mode, Table
from engine.plan.forecast import Forecast, forecast
from engine.plan.preflight import refusals
from engine.plan.rehearsal import LEVEL, Estimate
from engine.spec import JobSpec

_FULL_PAGE: Final = 100


# -- plans ------------------------------------------------------------------------------------------------------------


def forecast_of(seen: Inspection) -> Forecast | None:
    """Roughly what the job would cost; None where it cannot be planned."""
    if seen.plan is None:
        return None
    return forecast(
        seen.mode,
        seen.source,
        seen.target,
        rows=seen.plan.rows,
        workers=seen.spec.workers,
        max_rows_per_s=seen.spec.pace.max_rows_per_s,
        hot=_stays_on_page(seen),
        streams=seen.streams,
    )


def _stays_on_page(seen: Inspection) -> bool:
    """Whether updates can be heap-only: no set column is indexed, and pages have room left."""
    indexed = {column for index in seen.source.indexes for column in (*index.columns, *index.reads)}
    return seen.mode is Mode.UPDATE and seen.source.fillfactor < _FULL_PAGE and not indexed & set(seen.filled)


def plan_json(seen: Inspection, guess: Forecast | None) -> dict[str, Any]:
    """The object of ``plan --json``."""
    return {
        "job": seen.spec.name,
        "mode": seen.mode.value,
        "source": _table_json(seen.endpoints.source.label, seen.source),
        "target": None if seen.target is None else _table_json(seen.endpoints.target.label, seen.target),
        "target_missing": _missing(seen),
        "key": None if seen.key is None else {"columns": list(seen.key.names), "index": seen.key.index},
        "plan_checks": [
            {"query": c.query, "index": c.index, "scans_table": c.scans_table, "forced": c.forced} for c in seen.checks
        ],
        "rows_estimated": None if seen.plan is None else round(seen.plan.rows),
        "spans": None if seen.plan is None else len(seen.plan.spans),
        "basis": None if seen.plan is None else seen.plan.basis,
        "workers": seen.spec.workers,
        "forecast": None if guess is None else _forecast_json(guess),
        "transform": None if seen.transform is None else _transform_json(seen.transform),
        "sample": None if seen.sample is None else _sample_json(seen.sample),
        "findings": [finding_json(f) for f in seen.findings],
        "refused": bool(refusals(seen.findings)),
    }


def _transform_json(transform: PreparedTransform) -> dict[str, Any]:
    declared = transform.declaration
    return {
        "reference": declared.reference,
        "reads": [name for name, _ in declared.reads],
        "writes": list(declared.writes),
        "drops": declared.drops,
    }


def _sample_json(sample: Sample) -> dict[str, Any]:
    """What became of the rows that the transform was tried on; values only where somebody asked to see rows."""
    return {
        "rows": sample.facts.rows,
        "rejected": sample.facts.rejected,
        "dropped": sample.facts.dropped,
        "shown": [row.as_json() for row in sample.shown],
    }


def _missing(seen: Inspection) -> str | None:
    if seen.target is not None or seen.spec.target is None:
        return None
    return f"{seen.endpoints.target.label} {seen.spec.target.table}"


def _table_json(label: str, table: Table) -> dict[str, Any]:
    return {
        "database": label,
        "table": str(table.name),
        "rows": None if table.rows < 0 else round(table.rows),
        "heap_bytes": table.heap_bytes,
        "toast_bytes": table.toast_bytes,
        "index_bytes": table.index_bytes,
    }


def _forecast_json(guess: Forecast) -> dict[str, Any]:
    return {
        "seconds": [round(guess.seconds.low, 3), round(guess.seconds.high, 3)],
        "wal_bytes": [round(guess.wal_bytes.low), round(guess.wal_bytes.high)],
        "growth_bytes": [round(guess.growth_bytes.low), round(guess.growth_bytes.high)],
        "basis": guess.basis,
    }


def finding_json(finding: Finding) -> dict[str, str]:
    """A finding as an object."""
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "message": finding.message,
        "remedy": finding.remedy,
    }


# -- rehearsals -------------------------------------------------------------------------------------------------------


async def rehearse_spec(spec: JobSpec, chunks: int) -> tuple[Inspection, Rehearsal | None]:
    """What preflight sees; and the rehearsal, unless it refuses."""
    seen = await inspect(spec, endpoints_of(spec), tries=True)
    if refusals(seen.findings):
        return seen, None
    return seen, await play(seen.prepared(), chunks=chunks)


def rehearsal_json(seen: Inspection, rehearsal: Rehearsal | None) -> dict[str, Any]:
    """The object of ``rehearse --json``; ``rehearsal`` None: preflight refused."""
    shown: dict[str, Any] = {
        "job": seen.spec.name,
        "mode": seen.mode.value,
        "rows_estimated": None if seen.plan is None else round(seen.plan.rows),
        "workers": seen.spec.workers,
        "findings": [finding_json(f) for f in seen.findings],
        "refused": rehearsal is None,
        "rehearsal": None,
        "forecast": None,
    }
    if rehearsal is None:
        return shown
    shown["rehearsal"] = {
        "spans": rehearsal.spans,
        "chunks": [asdict(sample) for sample in rehearsal.samples],
        "failed": [
            {
                "span": failed.span,
                "sqlstate": failed.failure.sqlstate,
                "message": failed.failure.message,
                "hint": failed.failure.hint,
                "consequence": failed.consequence.value,
            }
            for failed in rehearsal.failed
        ],
        "wal_is_shared": rehearsal.wal_is_shared,
        "dead_rows": rehearsal.dead_rows,
        "sequence_values": rehearsal.sequence_values,
        "kept_waiting_s": rehearsal.kept_waiting_s,
        "stops": rehearsal.stops,
    }
    outlook = rehearsal.outlook
    if outlook is not None:
        shown["forecast"] = {
            "level": LEVEL,
            "chunks": outlook.chunks,
            "chunk_rows": outlook.chunk_rows,
            "rows_written": _figures(outlook.rows_written),
            "seconds": _figures(outlook.seconds),
            "wal_bytes": _figures(outlook.wal_bytes),
            "heap_growth_bytes": _figures(outlook.heap_bytes),
            "index_growth_bytes": _figures(outlook.index_bytes),
            "longest_lock_s": _figures(outlook.longest_lock_s),
        }
    return shown


def _figures(figure: Estimate) -> dict[str, float]:
    return {"low": round(figure.low, 4), "expected": round(figure.expected, 4), "high": round(figure.high, 4)}
