"""``backfill quarantine``: the rows that a job has set aside, and what becomes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from engine.cli.jobs import open_daemon, open_jobs
from engine.cli.known_spec import spec_of
from engine.cli.loop import run_async
from engine.cli.places import (
    SLOW_PATIENCE_S,
    Place,
    Remote,
    Where,
    job_argument,
    ledger_option,
    open_job,
    operator,
    place_of,
    refuse_beside_daemon,
)
from engine.cli.terminal import Terminal, confirm, output_options
from engine.cli.transform_option import transform_option
from engine.cli.words import moment
from engine.errors import Stopped, UsageError
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import inspect
from engine.flow.quarantine import Outcome, Retried, Retry, check_ids
from engine.flow.transforming import require_allowed
from engine.ledger.records import Quarantined
from engine.model import JobState
from engine.spec import JobSpec
from engine.telemetry import numbers

Command = TypeVar("Command", bound=Callable[..., Any])

SHOWN_ROWS: Final = 100
_NO: Final = 8
"""The exit code when the person says no: nothing was done."""

_WORDS: Final = {
    Outcome.WRITTEN: "written",
    Outcome.NOT_NEEDED: "not needed any more",
    Outcome.GONE: "gone from the source",
    Outcome.FAILED: "bad still",
    Outcome.BUSY: "held by others",
    Outcome.TAKEN: "dealt with by somebody else",
}


def _rows_option(command: Command) -> Command:
    """Adds ``--id`` and ``--all``: which rows."""
    ids = click.option("--id", "ids", multiple=True, type=click.IntRange(min=1), metavar="N", help="Only this row.")
    return ids(click.option("--all", "everything", is_flag=True, help="All rows that are set aside.")(command))


def _chosen(ids: Sequence[int], *, everything: bool) -> tuple[int, ...] | None:
    """The numbers that were given; None for all."""
    if bool(ids) == everything:
        raise UsageError("give either --id (several times) or --all", hint="backfill quarantine list shows the numbers")
    return None if everything else tuple(dict.fromkeys(ids))


@click.group()
def quarantine() -> None:
    """Rows that could not be written and were set aside: list them, try them again, drop them."""


# -- list -------------------------------------------------------------------------------------------------------------


@quarantine.command("list")
@job_argument
@ledger_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=SHOWN_ROWS, metavar="N", help="Rows to show, oldest first."
)
@click.option("--show-rows", is_flag=True, help="Show the keys of the rows, too.")
@output_options
def list_rows(terminal: Terminal, job: str, where: Where, limit: int, show_rows: bool) -> int:
    """Show what is set aside, and why: by SQLSTATE, then row by row."""
    return run_async(_list(terminal, place_of(job, where), limit, show_rows=show_rows))


async def _list(terminal: Terminal, place: Place, limit: int, *, show_rows: bool) -> int:
    async with open_jobs(place) as jobs:
        counts, rows = await jobs.quarantine(place.job, limit, show_rows=show_rows)
    total = sum(counts.values())
    if terminal.as_json:
        shown = [_row_json(row, show_rows=show_rows) for row in rows]
        terminal.json({"job": place.job, "quarantined": total, "by_sqlstate": counts, "rows": shown})
        return 0
    terminal.heading(f"{place.job}: {numbers.counted(total, 'row')} set aside")
    terminal.details([(sqlstate, f"{count:,}") for sqlstate, count in counts.items()])
    for row in rows:
        terminal.data(_row(row, show_rows=show_rows))
    if len(rows) < total:
        terminal.say(f"  … and {total - len(rows):,} more: --limit", "dim")
    if total:
        terminal.say(f"  backfill quarantine retry {place.job} --all tries them again", "dim")
    return 0


def _row(row: Quarantined, *, show_rows: bool) -> str:
    tries = f"{numbers.counted(row.attempts, 'attempt')}, first {moment(row.first_at)}, last {moment(row.last_at)}"
    key = f"  ({', '.join(row.key)})" if show_rows else ""
    return f"{row.id}  {row.sqlstate}  {row.error_class}; {tries}{key}"


def _row_json(row: Quarantined, *, show_rows: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": row.id,
        "sqlstate": row.sqlstate,
        "error": row.error_class,
        "attempts": row.attempts,
        "first_at": row.first_at.isoformat(),
        "last_at": row.last_at.isoformat(),
    }
    return shown | ({"key": list(row.key)} if show_rows else {})


# -- retry ------------------------------------------------------------------------------------------------------------


@quarantine.command()
@job_argument
@ledger_option
@click.option("--source-dsn", metavar="DSN", help="The source's database, where a job is given by its name.")
@transform_option
@_rows_option
@output_options
def retry(
    terminal: Terminal,
    job: str,
    where: Where,
    source_dsn: str | None,
    transforms: tuple[str, ...],
    ids: tuple[int, ...],
    everything: bool,
) -> int:
    """Try rows again, each by itself, as the job would write them.

    A row that can be written now, or that the source no longer holds, leaves the quarantine. May be done while the job
    runs. A transform runs again too: where the job is given by its name, --allow-transform has to allow it. Exits with
    7 when rows cannot be written now either.
    """
    chosen = _chosen(ids, everything=everything)
    place = place_of(job, where)
    if isinstance(place.where, Remote):
        refuse_beside_daemon(source_dsn=source_dsn, allow_transform=transforms)
        return run_async(_retry_there(terminal, place, chosen))
    spec = spec_of(job, where, source_dsn, transforms=transforms, listens=False)
    require_allowed(spec)
    return run_async(_retry(terminal, place, spec, chosen))


async def _retry_there(terminal: Terminal, place: Place, ids: tuple[int, ...] | None) -> int:
    async with open_daemon(place, patience_s=SLOW_PATIENCE_S) as (client, connection):
        found = (await client.retry_quarantine(place.job, ids, connection=connection)).model_dump(mode="json")
        state = (await client.job(place.job, connection=connection)).state
    tried = Retried(
        Counter({outcome: found.get(outcome.value, 0) for outcome in Outcome}),
        Counter(found.get("by_sqlstate", {})),
        found.get("taken_back", 0),
    )
    return _tell_retried(terminal, place.job, tried, left=found["quarantined"], is_done=state is JobState.DONE)


async def _retry(terminal: Terminal, place: Place, spec: JobSpec, ids: tuple[int, ...] | None) -> int:
    async with open_job(place) as ledger:
        await check_ids(ledger, place.job, ids)
    prepared = (await inspect(spec, endpoints_of(spec))).prepared()
    tried = await Retry(prepared, say=lambda reason: terminal.say(f"waiting for: {reason}"), by=operator()).run(ids)
    async with open_job(place) as ledger:
        record = await ledger.job(place.job)
        left = await ledger.quarantined_count(record.id)
    return _tell_retried(terminal, place.job, tried, left=left, is_done=record.state is JobState.DONE)


def _tell_retried(terminal: Terminal, job: str, tried: Retried, *, left: int, is_done: bool) -> int:
    if terminal.as_json:
        terminal.json({"event": "quarantine.retried", "job": job, **tried.as_json(), "quarantined": left})
    terminal.say(f"{job}: {_said(tried)}; {numbers.counted(left, 'row')} set aside now")
    if tried.outcomes[Outcome.WRITTEN] and is_done:
        terminal.say(f"  rows were written after the job's end: backfill verify {job} proves them", "dim")
    return Stopped.exit_code if tried.left else 0


def _said(tried: Retried) -> str:
    words = dict(_WORDS)
    if tried.failed:
        why = ", ".join(f"{count:,} of {sqlstate}" for sqlstate, count in tried.failed.most_common())
        words[Outcome.FAILED] += f" ({why})"
    said = [f"{tried.outcomes[outcome]:,} {text}" for outcome, text in words.items() if tried.outcomes[outcome]]
    if tried.taken_back:
        said.append(f"{tried.taken_back:,} taken out again, deleted at the source meanwhile")
    return ", ".join(said) or "nothing to try"


# -- drop -------------------------------------------------------------------------------------------------------------


@quarantine.command()
@job_argument
@ledger_option
@_rows_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_options
def drop(terminal: Terminal, job: str, where: Where, ids: tuple[int, ...], everything: bool, yes: bool) -> int:
    """Forget rows that are set aside: the job will not write them, and nobody is reminded of them any more."""
    chosen = _chosen(ids, everything=everything)
    place = place_of(job, where)
    if isinstance(place.where, Remote):
        return run_async(_drop_there(terminal, place, chosen, yes=yes))
    return run_async(_drop(terminal, place, chosen, yes=yes))


async def _drop_there(terminal: Terminal, place: Place, ids: tuple[int, ...] | None, *, yes: bool) -> int:
    async with open_daemon(place) as (client, connection):
        there = (await client.quarantine(place.job, limit=1, connection=connection)).quarantined
        count = there if ids is None else len(ids)
        dropped, left = 0, there
        if count:
            terminal.say(f"{place.job}: forgets {numbers.counted(count, 'row')} that could not be written")
            if not confirm("drop them?", yes=yes):
                return _NO
            found = await client.drop_quarantine(place.job, ids, connection=connection)
            dropped, left = found.dropped, found.quarantined
    _tell_dropped(terminal, place.job, dropped, left)
    return 0


async def _drop(terminal: Terminal, place: Place, ids: tuple[int, ...] | None, *, yes: bool) -> int:
    async with open_job(place) as ledger:
        job_id = (await ledger.job(place.job)).id
        chosen = await check_ids(ledger, place.job, ids)
        dropped = 0
        if chosen:
            terminal.say(f"{place.job}: forgets {numbers.counted(len(chosen), 'row')} that could not be written")
            if not confirm("drop them?", yes=yes):
                return _NO
            dropped = await ledger.let_go(job_id, chosen)
            await ledger.record(place.job, "quarantine", {"dropped": dropped})
        left = await ledger.quarantined_count(job_id)
    _tell_dropped(terminal, place.job, dropped, left)
    return 0


def _tell_dropped(terminal: Terminal, job: str, dropped: int, left: int) -> None:
    if terminal.as_json:
        terminal.json({"job": job, "dropped": dropped, "quarantined": left})
    terminal.say(f"{job}: {numbers.counted(dropped, 'row')} dropped; {numbers.counted(left, 'row')} set aside now")
