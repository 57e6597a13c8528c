"""``backfill verify``: compares source and target of a job that is done, and repairs what differs if asked to."""

from __future__ import annotations

from typing import Any, Final

import click

from engine.cli.known_spec import spec_of
from engine.cli.loop import run_async
from engine.cli.places import Remote, Where, job_argument, ledger_option, place_of, refuse_beside_daemon
from engine.cli.progress import Display
from engine.cli.terminal import Terminal, error_json, output_options
from engine.cli.verified import How, tell_found, verify_by_daemon
from engine.errors import UsageError
from engine.fleet import Interrupted, LocalVerification
from engine.fleet.signals import exit_code
from engine.flow.shared import SETTLE_S
from engine.ledger.records import Difference, Verification
from engine.spec import JobSpec
from engine.spec.misfit import Misfit
from engine.spec.models import MAX_WORKERS
from engine.spec.units import parse_duration
from engine.telemetry import JsonLines, tee

SHOWN_ROWS: Final = 100
_LONGEST_SETTLE_S: Final = 60.0


@click.command()
@job_argument
@ledger_option
@click.option("--source-dsn", metavar="DSN", help="The source's database, where a job is given by its name.")
@click.option("--repair", is_flag=True, help="Make the target equal to the source where they differ.")
@click.option("--delete-extra", is_flag=True, help="With --repair: delete rows that only the target holds.")
@click.option("--settle", metavar="DURATION", help=f"Between two looks at a row that differs. Default: {SETTLE_S:g}s.")
@click.option("--workers", type=click.IntRange(1, MAX_WORKERS), metavar="N", help="Default: as the job says.")
@click.option("--allow-url", "urls", multiple=True, metavar="URL", help="An address that the job's signals may ask.")
@click.option("--show-rows", is_flag=True, help=f"List keys of rows that differ, {SHOWN_ROWS} at most.")
@output_options
def verify(
    terminal: Terminal,
    job: str,
    where: Where,
    source_dsn: str | None,
    repair: bool,
    delete_extra: bool,
    settle: str | None,
    workers: int | None,
    urls: tuple[str, ...],
    show_rows: bool,
) -> int:
    """Compare source and target, row by row, while both are being written.

    Works in chunks under the job's pace, and goes on where it was when it is interrupted. A row counts as different
    only if neither side changed between two looks. With --repair the target's row is replaced by the source's, and
    looked at once more; rows that only the target holds are left, unless --delete-extra is given, too. Exits with 0
    when both sides agree and with 6 when they do not.
    """
    place = place_of(job, where)
    if isinstance(place.where, Remote):
        refuse_beside_daemon(source_dsn=source_dsn, workers=workers, allow_url=urls, show_rows=show_rows)
        _settle_s(settle)
        asked = verify_by_daemon(terminal, place, repair=repair, delete_extra=delete_extra, settle=settle)
        return run_async(asked)
    spec = spec_of(job, where, source_dsn, urls=urls)
    if workers is not None:
        spec = spec.model_copy(update={"workers": workers})
    show = SHOWN_ROWS if show_rows else 0
    settle_s = _settle_s(settle)
    return run_async(_verify(terminal, spec, repair=repair, delete_extra=delete_extra, settle_s=settle_s, show=show))


def _settle_s(text: str | None) -> float:
    if text is None:
        return SETTLE_S
    try:
        seconds = parse_duration(text)
    except Misfit as error:
        raise UsageError(f"--settle {error.message}", hint=error.hint) from None
    if seconds > _LONGEST_SETTLE_S:
        raise UsageError(f"--settle is longer than {_LONGEST_SETTLE_S:.0f}s", hint="a chunk waits as long")
    return seconds


async def _verify(
    terminal: Terminal, spec: JobSpec, *, repair: bool, delete_extra: bool, settle_s: float, show: int
) -> int:
    lines = JsonLines(terminal.stdout) if terminal.as_json else None
    display = Display(terminal, lambda: run.supervisor)
    run = LocalVerification(
        spec,
        repair=repair,
        delete_extra=delete_extra,
        settle_s=settle_s,
        show=show,
        emit=display if lines is None else tee(display, lines),
        signals=True,
        joined=lambda found: terminal.say(_joined(found)),
    )
    try:
        with display.shown():
            result = await run.run()
    except Interrupted as error:
        terminal.say(f"{error}; nothing was compared by this run")
        return error.exit_code
    if result.error is not None:
        if lines is not None:
            lines.write(error_json(result.error))
        terminal.error(result.error)
        return result.error.exit_code
    found = run.verification
    if found is None or found.outcome is None:
        terminal.say(f"stopped before the end: the next backfill verify {spec.name} goes on from there")
        return exit_code(run.interrupted) if run.interrupted is not None else 75
    how = How(transformed=spec.transform is not None, in_place=spec.target is None, quarantined=result.quarantined)
    for row in run.differences:
        if lines is not None:
            lines.write(_row_json(row))
        else:
            terminal.data(_row(row))
    return tell_found(terminal, lines, spec.name, found, how)


def _joined(found: Verification) -> str:
    """Whoever joins gets what was asked for then, not what he asks for."""
    how = "with --repair" if found.repair else "without --repair"
    if found.delete_extra:
        how += " --delete-extra"
    return f"going on with the verification that was begun {how} at {found.started_at:%Y-%m-%d %H:%M:%S} UTC"


def _row(row: Difference) -> str:
    columns = f" in {', '.join(row.columns)}" if row.columns else ""
    return f"{row.state:<9}  {row.kind}{columns}: ({', '.join(row.key)})"


def _row_json(row: Difference) -> dict[str, Any]:
    return {
        "event": "verify.row",
        "state": row.state,
        "kind": row.kind,
        "columns": list(row.columns),
        "key": list(row.key),
    }
