"""What a verification found, in words; and ``backfill verify --daemon``, which has a daemon do it."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from engine.cli.jobs import open_daemon, status_of
from engine.cli.places import LONG_PATIENCE_S, Place
from engine.cli.progress import Display
from engine.cli.terminal import Terminal
from engine.cli.watched_job import WatchedJob, followed
from engine.errors import Busy, HeldByOperator, VerificationMismatch
from engine.fleet.signals import TwoSignals, exit_code
from engine.fleet.verification import finished_verification
from engine.flow.gate import without_repair
from engine.flow.shared import SETTLE_S
from engine.ledger.records import Verification
from engine.model import Mode
from engine.telemetry import JsonLines, numbers


async def verify_by_daemon(
    terminal: Terminal, place: Place, *, repair: bool, delete_extra: bool, settle: str | None
) -> int:
    """Have the daemon verify, and follow it to the end; gives the exit code.  A signal ends only the watching."""
    lines = JsonLines(terminal.stdout) if terminal.as_json else None
    watched = WatchedJob()
    display = Display(terminal, lambda: watched)
    task = asyncio.current_task()
    assert task is not None

    def leave(_: signal.Signals) -> None:
        task.cancel()

    signals = TwoSignals(leave, lambda: None)
    try:
        with signals.watched():
            async with open_daemon(place) as (client, connection):
                shown = await client.verify(
                    place.job, repair=repair, delete_extra=delete_extra, settle=settle, connection=connection
                )
            watched.status = status_of(shown)
            async with open_daemon(place, patience_s=LONG_PATIENCE_S) as (client, connection):
                with display.shown():
                    async for status in followed(terminal, client, shown):
                        watched.status = status
    except asyncio.CancelledError:
        if signals.first is None:
            raise
        terminal.say(f"{place.job} is verified by the daemon, which goes on; backfill cancel ends it")
        return exit_code(signals.first)
    found = _found(watched.status.verification)
    if found is None or found.outcome is None:
        state = watched.status.state
        raise Busy(
            f"{place.job} is {state.value}, and not verified", hint=f"backfill verify {place.job} goes on with it"
        )
    status = watched.status
    how = How(
        by_daemon=True,
        transformed=place.spec is not None and place.spec.transform is not None,
        in_place=status.mode is Mode.UPDATE,
        quarantined=status.quarantined,
    )
    return tell_found(terminal, lines, place.job, found, how)


def _found(shown: dict[str, Any] | None) -> Verification | None:
    """A verification as the status of a job tells of it."""
    if shown is None:
        return None
    finished = shown.get("finished_at")
    return Verification(
        id=0,
        repair=bool(shown.get("repair")),
        delete_extra=bool(shown.get("delete_extra")),
        settle_s=SETTLE_S,
        who="",
        started_at=datetime.fromisoformat(shown["started_at"]),
        finished_at=None if finished is None else datetime.fromisoformat(finished),
        outcome=shown.get("outcome"),
        **{name: int(shown.get(name) or 0) for name in _COUNTS},
        columns=dict(shown.get("columns") or {}),
        not_compared=tuple(shown.get("not_compared") or ()),
        truncated=bool(shown.get("truncated")),
        target_mark=None,
    )


_COUNTS = ("rows", "suspects", "mismatched", "missing", "extra", "unsettled", "repaired")


@dataclass(frozen=True, slots=True)
class How:
    """What kind of job was verified, and by whom: it decides what there is to do."""

    by_daemon: bool = False  # which gives no keys of rows that differ
    transformed: bool = False  # by a transform, which no repair can run
    in_place: bool = False
    quarantined: int = 0  # rows that are set aside

    @property
    def counts_done(self) -> bool:
        """True where values were not compared: a row is done, or it is not."""
        return self.transformed and self.in_place


def tell_found(terminal: Terminal, lines: JsonLines | None, job: str, found: Verification, how: How) -> int:
    """Say how a verification ended; gives its exit code."""
    if lines is not None:
        lines(finished_verification(job, found))
    _say(terminal, job, found, how)
    if found.outcome == "cancelled":
        return HeldByOperator.exit_code
    return 0 if found.verified else VerificationMismatch.exit_code


def _say(terminal: Terminal, job: str, found: Verification, how: How) -> None:
    """What was found, in one line, and what to do about it."""
    size = f"{numbers.count(found.rows)} rows in {numbers.duration(found.seconds)}"
    if found.not_compared:
        size += f" (not compared: {', '.join(found.not_compared)})"
    changed = "with other values"
    if how.counts_done:
        changed = "row not done" if found.mismatched == 1 else "rows not done"
    kinds = (
        (changed, found.mismatched),
        ("missing in the target", found.missing),
        ("only in the target", found.extra),
        ("repaired", found.repaired),
        ("changing at every look", found.unsettled),
    )
    said = ", ".join(f"{number:,} {what}" for what, number in kinds if number)
    if found.outcome == "cancelled":
        terminal.say(f"{job}: the verification was cancelled", "yellow")
        return
    if found.verified:
        terminal.say(f"{job} is verified: {size}" + (f"; {said}" if said else ", no difference"), "bold green")
        if found.repaired:
            terminal.say("  before the gate opens, verify once more: it wants one that began after the repair", "dim")
        return
    more = "at least " if found.truncated else ""
    terminal.say(f"{job} differs: {more}{said or 'rows'}; {size}", "bold red")
    for column, number in sorted(found.columns.items(), key=lambda item: -item[1]):
        terminal.say(f"  {column}: {numbers.counted(number, 'row')}")
    left = found.mismatched + found.missing + found.extra - found.repaired
    if left and not found.repair:
        but = ", but for those only in the target" if found.extra else ""
        if how.transformed:
            steps = [without_repair(job, in_place=how.in_place, quarantined=how.quarantined)]
        else:
            steps = [f"backfill verify {job} --repair mends them{but}"] if left > found.extra else []
        steps += [] if how.by_daemon else ["--show-rows lists their keys"]
        if steps:
            terminal.say(f"  {'; '.join(steps)}", "dim")
    if found.extra and not found.delete_extra and not how.transformed:
        terminal.say(
            "  rows only in the target may be another job's, or older than this one, so a repair leaves them;"
            f" if they are nobody's: backfill verify {job} --repair --delete-extra deletes them",
            "dim",
        )
    if found.unsettled and not left:
        terminal.say("  verify again, with a longer --settle, when those rows are written less often", "dim")
