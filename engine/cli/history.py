"""``backfill history``: what happened to a job, who did it, when and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from engine.cli.jobs import open_all_jobs, open_jobs
from engine.cli.loop import run_async
from engine.cli.places import Place, Where, job_argument, ledger_option, place_of
from engine.cli.signals import changes_text
from engine.cli.terminal import Terminal, output_options
from engine.errors import UsageError
from engine.ledger.records import HistoryEntry, discreet
from engine.spec.misfit import Misfit
from engine.spec.units import parse_duration
from engine.telemetry import numbers

_FIRST: Final = ("verified", "rows", "mismatched", "missing", "extra", "repaired", "unsettled")
_ALWAYS: Final = ("verified",)
_LAST: Final = ("message", "error", "reason")


@click.command()
@job_argument
@ledger_option
@click.option("--since", metavar="DURATION", help="Only what happened in so long, such as 2h.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the last N.")
@output_options
def history(terminal: Terminal, job: str, where: Where, since: str | None, limit: int | None) -> int:
    """Show what happened to a job: when (UTC), what, who and why.  It outlives restart and cleanup.

    Who is the database's role, and in brackets the program: cli for a command, control for a process that runs the job.
    """
    since_s = None if since is None else _seconds(since)
    entries = run_async(_history(place_of(job, where), since_s, limit))
    if terminal.as_json:
        terminal.json([_entry_json(entry) for entry in entries])
        return 0
    if not entries:
        terminal.say("nothing" + ("" if since_s is None else f" in the last {numbers.duration(since_s)}"))
    widths = [max((len(text) for text in column), default=0) for column in zip(*map(_head, entries), strict=True)]
    for entry in entries:
        head = "  ".join(text.ljust(width) for text, width in zip(_head(entry), widths, strict=True))
        terminal.data(f"{head}  {detail_text(entry)}".rstrip())
    return 0


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except Misfit as error:
        raise UsageError(f"--since {error.message}", hint=error.hint) from None


async def _history(place: Place, since_s: float | None, limit: int | None) -> tuple[HistoryEntry, ...]:
    async with open_all_jobs(place.where, required=True) as jobs:
        entries = await jobs.history(place.job, since_s=since_s, limit=limit)
        if entries or await jobs.history(place.job, since_s=None, limit=1):
            return entries
    async with open_jobs(place):  # neither history nor job: say so, with the nearest name
        return ()


def _head(entry: HistoryEntry) -> tuple[str, str, str]:
    return f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.what, entry.who


def _entry_json(entry: HistoryEntry) -> dict[str, Any]:
    return entry.as_json()


# -- in words ---------------------------------------------------------------------------------------------------------


def detail_text(entry: HistoryEntry) -> str:
    """``was running, reason: disk is filling``; of settings and orders what changed in them, and only that."""
    rest = dict(discreet(entry.detail))
    before, after = rest.pop("from", None), rest.pop("to", None)
    parts = [_change(entry.what, before, after)]
    ordered = [name for name in _FIRST if name in rest] + sorted(rest.keys() - {*_FIRST, *_LAST})
    ordered += [name for name in _LAST if name in rest]
    parts += [f"{name}: {_value(rest[name])}" for name in ordered if _tells(rest[name]) or name in _ALWAYS]
    return ", ".join(filter(None, parts))


def _change(what: str, before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        if what == "pace":
            return changes_text(before, after)
        from engine.spec import differences  # only a change of settings needs it

        return "; ".join(f"{path}: {old} -> {new}" for path, old, new in differences(before, after))
    if before is not None and after is not None:
        return f"{before} -> {after}"
    return "" if before is None else f"was {before}"


def _tells(value: Any) -> bool:
    """False for what is not there, and for counts of nothing."""
    if isinstance(value, Mapping):
        return any(map(_tells, value.values()))
    return value not in (None, False, 0, "", [])


def _value(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.10g}"
        case Mapping():
            return ", ".join(f"{name} {_value(item)}" for name, item in value.items() if _tells(item))
        case str():
            return value
        case Sequence():
            return ", ".join(map(_value, value))
        case _:
            return str(value)
