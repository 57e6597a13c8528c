"""How a run ended, in words and as events."""

from __future__ import annotations

from engine.cli.terminal import Terminal, error_json
from engine.flow.result import RunResult
from engine.telemetry import JsonLines, finished_event, numbers
from engine.telemetry.entries import STOPPED, Entry, ended


def report(terminal: Terminal, lines: JsonLines | None, result: RunResult, *, rows_before: int) -> None:
    """Say how a run ended.  ``rows_before``: what the job had moved when it began."""
    finished = finished_event(result, rows_before=rows_before)
    if lines is not None:
        if result.error is not None:
            lines.write(error_json(result.error))
        lines(finished)
    terminal.tell(stopped(result) if result.drained and not result.state.is_final else ended(finished))
    if result.error is not None:
        terminal.error(result.error)


def stopped(result: RunResult) -> Entry:
    """The run ends, and the job does not."""
    moved = f"{numbers.count(result.rows)} rows of {result.job} are moved"
    return Entry(
        event=STOPPED,
        message=f"stopped before the end: {moved}; the next run goes on from there",
        fields={
            "job": result.job,
            "state": result.state.value,
            "rows": result.rows,
            "seconds": round(result.seconds, 3),
        },
    )
