"""``backfill rehearse``: some chunks of a job in transactions that roll back, and what the whole job would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import click
from rich.text import Text

from engine.cli.loop import run_async
from engine.cli.places import SLOW_PATIENCE_S, Remote
from engine.cli.plan import MODE_WORDS, finding_of, finding_text
from engine.cli.spec_options import spec_options
from engine.cli.terminal import STYLES, Terminal, output_options
from engine.errors import PreflightRefused, Stopped
from engine.flow.planned import rehearsal_json, rehearse_spec
from engine.flow.rehearse import Consequence
from engine.model import Mode, Severity
from engine.plan.preflight import refusals
from engine.spec import JobSpec
from engine.telemetry import numbers

CHUNKS: Final = 3
MOST_CHUNKS: Final = 100


@click.command()
@spec_options
@click.option(
    "--chunks",
    type=click.IntRange(1, MOST_CHUNKS),
    default=CHUNKS,
    show_default=True,
    metavar="N",
    help="Chunks to rehearse in each of up to eight places.",
)
@output_options
def rehearse(terminal: Terminal, spec: JobSpec, remote: Remote | None, chunks: int) -> int:
    """Run a few chunks, roll them back, and forecast the job.

    The job's own statements run on real rows, as its role, in transactions that all end in ROLLBACK; time, WAL, growth
    and lock times of the whole job follow from what they cost. No row changes and nothing is created. What a rollback
    leaves all the same is said with its number: dead row versions for VACUUM (of a large table at most a twentieth of
    its rows), and values taken from sequences. Whatever triggers or functions do outside the transaction is done.

    Exits with 4 when the job would be refused, and with 7 when a chunk failed in a way that would stop it.
    """
    shown = run_async(_play(spec, chunks) if remote is None else _ask(spec, chunks, remote))
    if terminal.as_json:
        terminal.json(shown)
    else:
        show(terminal, shown)
    if shown["refused"]:
        return PreflightRefused.exit_code
    return Stopped.exit_code if shown["rehearsal"]["stops"] else 0


async def _play(spec: JobSpec, chunks: int) -> dict[str, Any]:
    return rehearsal_json(*await rehearse_spec(spec, chunks))


async def _ask(spec: JobSpec, chunks: int, remote: Remote) -> dict[str, Any]:
    async with remote.client(patience_s=SLOW_PATIENCE_S) as client:
        return (await client.rehearse(spec.for_ledger(), chunks=chunks)).model_dump(mode="json")


# -- for people -------------------------------------------------------------------------------------------------------


def show(terminal: Terminal, shown: Mapping[str, Any]) -> None:
    """The object of ``rehearse --json`` for people."""
    terminal.out.print(Text.assemble((shown["job"], "bold"), f": {MODE_WORDS[Mode(shown['mode'])]}"))
    rehearsal = shown["rehearsal"]
    if rehearsal is not None:
        terminal.details([*_seen(rehearsal), *_expected(shown), ("left behind", _left_behind(rehearsal))])
        failures = Counter((_failure(failed), failed["consequence"]) for failed in rehearsal["failed"])
        for (text, consequence), count in failures.items():
            style = STYLES[Severity.REFUSE if consequence == Consequence.STOP else Severity.WARN]
            terminal.out.print(Text(f"  {numbers.counted(count, 'chunk')} failed: {text}", style=style))
    findings = [finding_of(found) for found in shown["findings"]]
    for finding in findings:
        terminal.out.print(finding_text(finding))
    if rehearsal is None:
        refused = numbers.counted(len(refusals(findings)), "finding")
        verdict, style = f"refused: {refused} must be dealt with first", STYLES[Severity.REFUSE]
    elif rehearsal["stops"]:
        verdict, style = "the job would stop at such a chunk; everything was rolled back", STYLES[Severity.REFUSE]
    else:
        verdict, style = "everything was rolled back; backfill run starts the job", "green"
    terminal.out.print(Text(verdict, style=style))


def _seen(rehearsal: Mapping[str, Any]) -> list[tuple[str, str]]:
    samples = rehearsal["chunks"]
    if not samples:
        return [("rehearsed", "nothing" if rehearsal["failed"] else "nothing: there are no rows")]
    scanned, rows = sum(s["scanned"] for s in samples), sum(s["rows"] for s in samples)
    where = f"{numbers.counted(len(samples), 'chunk')} in {numbers.counted(rehearsal['spans'], 'place')}"
    lines = [
        ("rehearsed", f"{where}, {numbers.count(scanned)} rows looked at, {numbers.count(rows)} written"),
        ("chunks took", _extent([s["elapsed_s"] for s in samples], _brief)),
        ("locks held", _extent([s["held_s"] for s in samples], _brief)),
    ]
    if any(s["waited_s"] for s in samples):
        lines.append(("waited", f"{_brief(sum(s['waited_s'] for s in samples))} for locks of others"))
    if rehearsal["kept_waiting_s"]:
        lines.append(("in the way", f"somebody waited {_brief(rehearsal['kept_waiting_s'])} for a chunk"))
    hot = [(s["hot_rows"], s["rows"]) for s in samples if s["hot_rows"] is not None]
    if hot:
        share = sum(stayed for stayed, _ in hot) / sum(count for _, count in hot)
        lines.append(("heap-only", f"{numbers.percent(share)} of the new row versions stayed on their page"))
    images = [s["page_images"] for s in samples if s["page_images"] is not None]
    if images:
        lines.append(("page images", f"{numbers.count(sum(images))} in the WAL; more follow each checkpoint"))
    return lines


def _brief(seconds: float) -> str:
    """A time that may be far below a second."""
    if seconds >= 1:
        return numbers.duration(seconds)
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2g} ms"


def _extent(values: list[float], show: Callable[[float], str]) -> str:
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"


def _expected(shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    outlook = shown["forecast"]
    if outlook is None or shown["rows_estimated"] is None:
        return []
    written = numbers.count(outlook["rows_written"]["expected"])
    rows = f"about {numbers.count(shown['rows_estimated'])} rows, {written} of them written"
    basis = f"{outlook['level']:.0%} intervals over {numbers.counted(outlook['chunks'], 'chunk')}"
    if outlook["chunks"] == 1:
        basis = "a single chunk, which cannot say how sure this is"
    others = ", with what others wrote meanwhile" if shown["rehearsal"]["wal_is_shared"] else ""
    workers = numbers.counted(shown["workers"], "worker")
    return [
        ("the job", f"{rows}, in chunks of {numbers.count(outlook['chunk_rows'])}"),
        ("time", f"{_estimate(outlook['seconds'], numbers.duration)}, {workers}"),
        ("WAL", _estimate(outlook["wal_bytes"], numbers.size) + others),
        ("table grows", _estimate(outlook["heap_growth_bytes"], numbers.size)),
        ("indexes grow", _estimate(outlook["index_growth_bytes"], numbers.size)),
        ("longest lock", _estimate(outlook["longest_lock_s"], _brief)),
        ("basis", f"{basis}; nobody holds the job back"),
    ]


def _estimate(figure: Mapping[str, float], show: Callable[[float], str]) -> str:
    low, expected, high = show(figure["low"]), show(figure["expected"]), show(figure["high"])
    return expected if low == high else f"{expected} ({low} to {high})"


def _left_behind(rehearsal: Mapping[str, Any]) -> str:
    dead = f"up to {numbers.count(rehearsal['dead_rows'])} dead row versions for VACUUM"
    if not rehearsal["sequence_values"]:
        return dead
    return f"{dead}, about {numbers.count(rehearsal['sequence_values'])} values taken from sequences"


def _failure(failed: Mapping[str, Any]) -> str:
    hint = f" ({failed['hint']})" if failed["hint"] else ""
    would = _CONSEQUENCES[Consequence(failed["consequence"])]
    return f"{failed['sqlstate']} {failed['message']}{hint}; the job would {would}"


_CONSEQUENCES: Final = {
    Consequence.RETRY: "try again",
    Consequence.SPLIT: "cut it smaller",
    Consequence.SET_ASIDE: "find the row and set it aside",
    Consequence.STOP: "stop",
}
