"""``backfill plan``: what a job would do, what stands in its way, and roughly what it would cost.  Touches nothing."""

from __future__ import annotations

from typing import Any, Final

import click
from rich.text import Text

from engine.cli.loop import run_async
from engine.cli.spec_options import spec_options
from engine.cli.terminal import STYLES, Terminal, finding_json, output_options
from engine.errors import PreflightRefused
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import Inspection, inspect
from engine.model import Finding, Mode, Severity, Table
from engine.plan.forecast import Forecast, Range, forecast
from engine.plan.preflight import refusals
from engine.spec import JobSpec
from engine.telemetry import numbers

MODE_WORDS: Final = {
    Mode.UPDATE: "fill columns in place",
    Mode.INSERT: "copy into another table of the same database",
    Mode.COPY: "copy into another database",
}
_FULL_PAGE: Final = 100


@click.command()
@spec_options
@output_options
def plan(terminal: Terminal, spec: JobSpec) -> int:
    """Show what a job would do, and touch nothing.

    Key and index, the check of the chunk query's plan, spans, rows, a rough forecast, and findings with what to do
    about each. Exits with 4 when the job would be refused.
    """
    seen = run_async(inspect(spec, endpoints_of(spec)))
    guess = _forecast(seen)
    if terminal.as_json:
        terminal.json(_json(seen, guess))
    else:
        _show(terminal, seen, guess)
    return PreflightRefused.exit_code if refusals(seen.findings) else 0


def _forecast(seen: Inspection) -> Forecast | None:
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
    )


def _stays_on_page(seen: Inspection) -> bool:
    """Whether updates can be heap-only: no set column is indexed, and pages have room left."""
    indexed = {column for index in seen.source.indexes for column in (*index.columns, *index.reads)}
    return seen.mode is Mode.UPDATE and seen.source.fillfactor < _FULL_PAGE and not indexed & set(seen.spec.set)


# -- for people -------------------------------------------------------------------------------------------------------


def _show(terminal: Terminal, seen: Inspection, guess: Forecast | None) -> None:
    terminal.out.print(Text.assemble((seen.spec.name, "bold"), f": {MODE_WORDS[seen.mode]}"))
    terminal.details(_lines(seen, guess))
    for finding in seen.findings:
        terminal.out.print(finding_text(finding))
    refused = refusals(seen.findings)
    if refused:
        verdict = f"refused: {numbers.counted(len(refused), 'finding')} must be dealt with first"
        terminal.out.print(Text(verdict, style=STYLES[Severity.REFUSE]))
    else:
        terminal.out.print(Text("nothing was touched; backfill run starts it", style="green"))


def _lines(seen: Inspection, guess: Forecast | None) -> list[tuple[str, str]]:
    lines = [("source", _table(seen.endpoints.source.label, seen.source))]
    if seen.target is not None:
        lines.append(("target", _table(seen.endpoints.target.label, seen.target)))
    elif seen.spec.target is not None:
        lines.append(("target", f"{seen.endpoints.target.label} {seen.spec.target.table} (not there)"))
    if seen.key is not None:
        lines.append(("key", f"{', '.join(seen.key.names)} (index {seen.key.index})"))
    for check in seen.checks:
        way = "forced to the index" if check.forced else "by itself"
        index = f"index {check.index}, {way}" if check.index and not check.scans_table else "scans the whole table"
        lines.append(("plan check", f"{check.query}: {index}"))
    if not seen.checks and seen.key is not None:
        lines.append(("plan check", "not needed: the table is small"))
    if seen.plan is not None:
        count = numbers.counted(len(seen.plan.spans), "span")
        lines.append(("rows", f"about {numbers.count(seen.plan.rows)} in {count} (from {seen.plan.basis})"))
    lines.append(("workers", str(seen.spec.workers)))
    if guess is not None:
        lines += [
            ("time", f"{_range(guess.seconds, numbers.duration)} (rough)"),
            ("WAL", f"{_range(guess.wal_bytes, numbers.size)} (rough)"),
            ("growth", f"{_range(guess.growth_bytes, numbers.size)} of the written table (rough)"),
            ("basis", guess.basis),
        ]
    return lines


def _table(label: str, table: Table) -> str:
    rows = "never analysed" if table.rows < 0 else f"about {numbers.count(table.rows)} rows"
    sizes = f"{numbers.size(table.heap_bytes + table.toast_bytes)} and {numbers.size(table.index_bytes)} of indexes"
    return f"{label} {table.name}, {rows}, {sizes}"


def _range(values: Range, show: Any) -> str:
    low, high = show(values.low), show(values.high)
    return low if low == high else f"{low} to {high}"


def finding_text(finding: Finding) -> Text:
    """A finding as plan shows it."""
    return Text.assemble(
        (f"{finding.severity.value:>8}", STYLES[finding.severity]),
        "  ",
        (finding.code, "bold"),
        f": {finding.message}\n",
        (f"          {finding.remedy}", "dim"),
    )


# -- for programs -----------------------------------------------------------------------------------------------------


def _json(seen: Inspection, guess: Forecast | None) -> dict[str, Any]:
    return {
        "job": seen.spec.name,
        "mode": seen.mode.value,
        "source": _table_json(seen.endpoints.source.label, seen.source),
        "target": None if seen.target is None else _table_json(seen.endpoints.target.label, seen.target),
        "key": None if seen.key is None else {"columns": list(seen.key.names), "index": seen.key.index},
        "plan_checks": [
            {"query": c.query, "index": c.index, "scans_table": c.scans_table, "forced": c.forced} for c in seen.checks
        ],
        "rows_estimated": None if seen.plan is None else round(seen.plan.rows),
        "spans": None if seen.plan is None else len(seen.plan.spans),
        "basis": None if seen.plan is None else seen.plan.basis,
        "workers": seen.spec.workers,
        "forecast": None if guess is None else _forecast_json(guess),
        "findings": [finding_json(f) for f in seen.findings],
        "refused": bool(refusals(seen.findings)),
    }


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
