"""``backfill plan``: what a job would do, what stands in its way, and roughly what it would cost.  Touches nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from engine.cli.loop import run_async
from engine.cli.places import SLOW_PATIENCE_S, Remote
from engine.cli.spec_options import spec_options
from engine.cli.terminal import STYLES, Terminal, output_options
from engine.errors import PreflightRefused, UsageError
from engine.flow.endpoints import endpoints_of
from engine.flow.planned import forecast_of, plan_json
from engine.flow.prepare import inspect
from engine.flow.sampled import SHOWN_ROWS
from engine.model import Finding, Mode, Severity
from engine.plan.preflight import refusals
from engine.spec import JobSpec
from engine.telemetry import numbers

MODE_WORDS: Final = {
    Mode.UPDATE: "fill columns in place",
    Mode.INSERT: "copy into another table of the same database",
    Mode.COPY: "copy into another database",
}
_WIDEST: Final = 200
"""Characters of one value."""

_SCANS: Final = "scans the whole table"


@click.command()
@spec_options
@click.option("--show-rows", is_flag=True, help="Show some rows before and after the transform.")
@output_options
def plan(terminal: Terminal, spec: JobSpec, remote: Remote | None, show_rows: bool) -> int:
    """Show what a job would do, and touch nothing.

    Key and index, the check of the chunk query's plan, spans, rows, a rough forecast, and findings with what to do
    about each; a transform is tried on some rows. Exits with 4 when the job would be refused.
    """
    if show_rows and spec.transform is None:
        raise UsageError("--show-rows without a transform", hint="SELECT shows what an SQL expression gives")
    shown = run_async(_look(spec, show_rows=show_rows) if remote is None else _ask(spec, remote, show_rows=show_rows))
    if terminal.as_json:
        terminal.json(shown)
    else:
        show(terminal, shown)
    return PreflightRefused.exit_code if shown["refused"] else 0


async def _look(spec: JobSpec, *, show_rows: bool) -> dict[str, Any]:
    seen = await inspect(spec, endpoints_of(spec), tries=True, show_rows=SHOWN_ROWS if show_rows else 0)
    return plan_json(seen, forecast_of(seen))


async def _ask(spec: JobSpec, remote: Remote, *, show_rows: bool) -> dict[str, Any]:
    async with remote.client(patience_s=SLOW_PATIENCE_S) as client:
        return (await client.plan(spec.for_ledger(), show_rows=show_rows)).model_dump(mode="json")


# -- for people -------------------------------------------------------------------------------------------------------


def show(terminal: Terminal, shown: Mapping[str, Any]) -> None:
    """The object of ``plan --json`` for people."""
    terminal.out.print(Text.assemble((shown["job"], "bold"), f": {MODE_WORDS[Mode(shown['mode'])]}"))
    terminal.details(_lines(shown))
    for number, row in enumerate((shown.get("sample") or {}).get("shown") or (), 1):
        terminal.out.print(_row_table(number, row))
    findings = [finding_of(found) for found in shown["findings"]]
    for finding in findings:
        terminal.out.print(finding_text(finding))
    if shown["refused"]:
        verdict = f"refused: {numbers.counted(len(refusals(findings)), 'finding')} must be dealt with first"
        terminal.out.print(Text(verdict, style=STYLES[Severity.REFUSE]))
    else:
        terminal.out.print(Text("nothing was touched; backfill run starts it", style="green"))


def _lines(shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("source", _table(shown["source"]))]
    if shown["target"] is not None:
        lines.append(("target", _table(shown["target"])))
    elif shown["target_missing"] is not None:
        lines.append(("target", f"{shown['target_missing']} (not there)"))
    key, checks, guess = shown["key"], shown["plan_checks"], shown["forecast"]
    if key is not None:
        lines.append(("key", f"{', '.join(key['columns'])} (index {key['index']})"))
    for check in checks:
        way = "forced to the index" if check["forced"] else "by itself"
        index = check["index"]
        by_index = index and not check["scans_table"]
        lines.append(("plan check", f"{check['query']}: {f'index {index}, {way}' if by_index else _SCANS}"))
    if not checks and key is not None:
        lines.append(("plan check", "not needed: the table is small"))
    if shown["rows_estimated"] is not None:
        count = numbers.counted(shown["spans"], "span")
        lines.append(("rows", f"about {numbers.count(shown['rows_estimated'])} in {count} (from {shown['basis']})"))
    lines.append(("workers", str(shown["workers"])))
    if shown.get("transform") is not None:
        lines += _transform_lines(shown["transform"], shown.get("sample"))
    if guess is not None:
        lines += [
            ("time", f"{_range(guess['seconds'], numbers.duration)} (rough)"),
            ("WAL", f"{_range(guess['wal_bytes'], numbers.size)} (rough)"),
            ("growth", f"{_range(guess['growth_bytes'], numbers.size)} of the written table (rough)"),
            ("basis", guess["basis"]),
        ]
    return lines


def _transform_lines(transform: Mapping[str, Any], tried: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    reads, writes = ", ".join(transform["reads"]) or "nothing", ", ".join(transform["writes"])
    lines = [("transform", f"{transform['reference']}: {reads} -> {writes}")]
    if tried is not None:
        words = [f"{tried[what]} {what}" for what in ("rejected", "dropped") if tried[what]]
        rows = numbers.counted(tried["rows"], "row") if tried["rows"] else "nothing: not in the time there was for it"
        lines.append(("tried on", ", ".join([rows, *words])))
    return lines


def _row_table(number: int, row: Mapping[str, Any]) -> Table:
    """What the transform was given of a row beside what it made of it."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in (f"  row {number}", "read", "", "written"):
        shown.add_column(title, overflow="fold")
    given = list(row["input"].items())
    made = list(row["output"].items()) if row["output"] is not None else [("", row["reason"] or "dropped")]
    for place in range(max(len(given), len(made))):
        name, value = given[place] if place < len(given) else ("", "")
        written, result = made[place] if place < len(made) else ("", "")
        shown.add_row(f"  {name}", _value(value), written, _value(result))
    return shown


def _value(value: str | None) -> Text:
    """One value in one line, as long as a terminal bears."""
    if value is None:
        return Text("NULL", style="dim")
    plain = value.encode("unicode_escape").decode() if not value.isprintable() else value
    return Text(plain if len(plain) <= _WIDEST else plain[: _WIDEST - 1] + "…")


def _table(table: Mapping[str, Any]) -> str:
    rows = "never analysed" if table["rows"] is None else f"about {numbers.count(table['rows'])} rows"
    heap_bytes = table["heap_bytes"] + table["toast_bytes"]
    sizes = f"{numbers.size(heap_bytes)} and {numbers.size(table['index_bytes'])} of indexes"
    return f"{table['database']} {table['table']}, {rows}, {sizes}"


def _range(values: Sequence[float], show: Callable[[float], str]) -> str:
    low, high = map(show, values)
    return low if low == high else f"{low} to {high}"


def finding_of(shown: Mapping[str, Any]) -> Finding:
    """The inverse of ``finding_json``."""
    return Finding(shown["code"], Severity(shown["severity"]), shown["message"], shown["remedy"])


def finding_text(finding: Finding) -> Text:
    """A finding as plan shows it."""
    return Text.assemble(
        (f"{finding.severity.value:>8}", STYLES[finding.severity]),
        "  ",
        (finding.code, "bold"),
        f": {finding.message}\n",
        (f"          {finding.remedy}", "dim"),
    )
