"""``backfill rehearse``: some chunks of a job in transactions that roll back, and what the whole job would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import click
from rich.text import Text

from engine.cli.loop import run_async
from engine.cli.plan import MODE_WORDS, finding_text
from engine.cli.spec_options import spec_options
from engine.cli.terminal import STYLES, Terminal, finding_json, output_options
from engine.errors import PreflightRefused, Stopped
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import Inspection, inspect
from engine.flow.rehearse import Consequence, FailedChunk, Rehearsal
from engine.flow.rehearse import rehearse as play
from engine.model import Severity
from engine.plan.preflight import refusals
from engine.plan.rehearsal import LEVEL, Estimate
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
def rehearse(terminal: Terminal, spec: JobSpec, chunks: int) -> int:
    """Run a few chunks, roll them back, and forecast the job.

    The job's own statements run on real rows, as its role, in transactions that all end in ROLLBACK; time, WAL, growth
    and lock times of the whole job follow from what they cost. No row changes and nothing is created. What a rollback
    leaves all the same is said with its number: dead row versions for VACUUM (of a large table at most a twentieth of
    its rows), and values taken from sequences. Whatever triggers or functions do outside the transaction is done.

    Exits with 4 when the job would be refused, and with 7 when a chunk failed in a way that would stop it.
    """
    seen, rehearsal = run_async(_rehearse(spec, chunks))
    if terminal.as_json:
        terminal.json(_json(seen, rehearsal))
    else:
        _show(terminal, seen, rehearsal)
    if rehearsal is None:
        return PreflightRefused.exit_code
    return Stopped.exit_code if rehearsal.stops else 0


async def _rehearse(spec: JobSpec, chunks: int) -> tuple[Inspection, Rehearsal | None]:
    """What preflight sees; and the rehearsal, unless it refuses."""
    seen = await inspect(spec, endpoints_of(spec))
    if refusals(seen.findings):
        return seen, None
    return seen, await play(seen.prepared(), chunks=chunks)


# -- for people -------------------------------------------------------------------------------------------------------


def _show(terminal: Terminal, seen: Inspection, rehearsal: Rehearsal | None) -> None:
    terminal.out.print(Text.assemble((seen.spec.name, "bold"), f": {MODE_WORDS[seen.mode]}"))
    if rehearsal is not None:
        terminal.details([*_seen(rehearsal), *_expected(seen, rehearsal), ("left behind", _left_behind(rehearsal))])
        for (text, stops), count in Counter((_failure(f), f.stops) for f in rehearsal.failed).items():
            style = STYLES[Severity.REFUSE if stops else Severity.WARN]
            terminal.out.print(Text(f"  {numbers.counted(count, 'chunk')} failed: {text}", style=style))
    for finding in seen.findings:
        terminal.out.print(finding_text(finding))
    if rehearsal is None:
        refused = numbers.counted(len(refusals(seen.findings)), "finding")
        verdict, style = f"refused: {refused} must be dealt with first", STYLES[Severity.REFUSE]
    elif rehearsal.stops:
        verdict, style = "the job would stop at such a chunk; everything was rolled back", STYLES[Severity.REFUSE]
    else:
        verdict, style = "everything was rolled back; backfill run starts the job", "green"
    terminal.out.print(Text(verdict, style=style))


def _seen(rehearsal: Rehearsal) -> list[tuple[str, str]]:
    samples = rehearsal.samples
    if not samples:
        return [("rehearsed", "nothing" if rehearsal.failed else "nothing: there are no rows")]
    scanned, rows = sum(s.scanned for s in samples), sum(s.rows for s in samples)
    where = f"{numbers.counted(len(samples), 'chunk')} in {numbers.counted(rehearsal.spans, 'place')}"
    lines = [
        ("rehearsed", f"{where}, {numbers.count(scanned)} rows looked at, {numbers.count(rows)} written"),
        ("chunks took", _extent([s.elapsed_s for s in samples], _brief)),
        ("locks held", _extent([s.held_s for s in samples], _brief)),
    ]
    if any(s.waited_s for s in samples):
        lines.append(("waited", f"{_brief(sum(s.waited_s for s in samples))} for locks of others"))
    if rehearsal.kept_waiting_s:
        lines.append(("in the way", f"somebody waited {_brief(rehearsal.kept_waiting_s)} for a chunk"))
    hot = [(s.hot_rows, s.rows) for s in samples if s.hot_rows is not None]
    if hot:
        share = sum(stayed for stayed, _ in hot) / sum(count for _, count in hot)
        lines.append(("heap-only", f"{numbers.percent(share)} of the new row versions stayed on their page"))
    images = [s.page_images for s in samples if s.page_images is not None]
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


def _expected(seen: Inspection, rehearsal: Rehearsal) -> list[tuple[str, str]]:
    outlook = rehearsal.outlook
    if outlook is None or seen.plan is None:
        return []
    written = numbers.count(outlook.rows_written.expected)
    rows = f"about {numbers.count(seen.plan.rows)} rows, {written} of them written"
    basis = f"{LEVEL:.0%} intervals over {numbers.counted(outlook.chunks, 'chunk')}"
    if outlook.chunks == 1:
        basis = "a single chunk, which cannot say how sure this is"
    others = ", with what others wrote meanwhile" if rehearsal.wal_is_shared else ""
    return [
        ("the job", f"{rows}, in chunks of {numbers.count(outlook.chunk_rows)}"),
        ("time", f"{_estimate(outlook.seconds, numbers.duration)}, {numbers.counted(seen.spec.workers, 'worker')}"),
        ("WAL", _estimate(outlook.wal_bytes, numbers.size) + others),
        ("table grows", _estimate(outlook.heap_bytes, numbers.size)),
        ("indexes grow", _estimate(outlook.index_bytes, numbers.size)),
        ("longest lock", _estimate(outlook.longest_lock_s, _brief)),
        ("basis", f"{basis}; nobody holds the job back"),
    ]


def _estimate(figure: Estimate, show: Callable[[float], str]) -> str:
    low, expected, high = show(figure.low), show(figure.expected), show(figure.high)
    return expected if low == high else f"{expected} ({low} to {high})"


def _left_behind(rehearsal: Rehearsal) -> str:
    dead = f"up to {numbers.count(rehearsal.dead_rows)} dead row versions for VACUUM"
    if not rehearsal.sequence_values:
        return dead
    return f"{dead}, about {numbers.count(rehearsal.sequence_values)} values taken from sequences"


def _failure(failed: FailedChunk) -> str:
    failure = failed.failure
    hint = f" ({failure.hint})" if failure.hint else ""
    return f"{failure.sqlstate} {failure.message}{hint}; the job would {_CONSEQUENCES[failed.consequence]}"


_CONSEQUENCES: Final = {
    Consequence.RETRY: "try again",
    Consequence.SPLIT: "cut it smaller",
    Consequence.SET_ASIDE: "find the row and set it aside",
    Consequence.STOP: "stop",
}


# -- for programs -----------------------------------------------------------------------------------------------------


def _json(seen: Inspection, rehearsal: Rehearsal | None) -> dict[str, Any]:
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
