"""``backfill pace``: see what decides how fast a job goes, and change it while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import click
from rich.text import Text

from engine.cli.jobs import open_jobs
from engine.cli.loop import run_async
from engine.cli.places import Place, Where, job_argument, ledger_option, place_of
from engine.cli.signals import amount, orders_text, signal_lines, signal_name, threshold, unit_of
from engine.cli.terminal import Terminal, output_options
from engine.cli.words import pace_block, pace_line
from engine.errors import UsageError
from engine.flow.pace_orders import check_order, signal_named
from engine.ledger.orders import ALL_ORDERS, ROWS, WAL, PaceOrders, SignalOrder, merged
from engine.ledger.records import JobStatus
from engine.pace.law import Unit
from engine.spec import units
from engine.spec.misfit import Misfit
from engine.spec.pacing import MAX_RATE_PER_S, WAL_RATE_RANGE
from engine.spec.signals import SignalSpec

MOST_WORKERS: Final = 1024


@dataclass(frozen=True, slots=True)
class _Flags:
    """What was asked for, as it was written."""

    rows_per_s: float | None
    wal_bytes_per_s: float | None
    lift: bool
    workers: int | None
    targets: tuple[str, ...]
    maxima: tuple[str, ...]
    off: tuple[str, ...]
    on: tuple[str, ...]
    reset: bool

    @property
    def order_anything(self) -> bool:
        return self != _Flags(None, None, False, None, (), (), (), (), False)


@click.command()
@job_argument
@ledger_option
@click.option("--max-rows-per-s", "rows", type=float, metavar="N", help="For all workers.")
@click.option("--max-wal-bytes-per-s", "wal", metavar="SIZE", help="WAL of all workers, such as 50MiB.")
@click.option("--no-limit", "lift", is_flag=True, help="Lift these two: what the spec says counts again.")
@click.option("--workers", type=click.IntRange(1, MOST_WORKERS), metavar="N", help="At work at once, over all hosts.")
@click.option("--target", "targets", multiple=True, metavar="SIGNAL=VALUE", help="Slow down from here on.")
@click.option("--max", "maxima", multiple=True, metavar="SIGNAL=VALUE", help="Stop from here on.")
@click.option("--off", multiple=True, metavar="SIGNAL", help="Do not listen to this signal.")
@click.option("--on", multiple=True, metavar="SIGNAL", help="Listen to it again.")
@click.option("--reset", is_flag=True, help="Forget all orders: what the spec says counts again.")
@click.option("--reason", metavar="TEXT", help="Why: shown by history.")
@output_options
def pace(
    terminal: Terminal,
    job: str,
    where: Where,
    rows: float | None,
    wal: str | None,
    lift: bool,
    workers: int | None,
    targets: tuple[str, ...],
    maxima: tuple[str, ...],
    off: tuple[str, ...],
    on: tuple[str, ...],
    reset: bool,
    reason: str | None,
) -> int:
    """Show what decides how fast a job goes, or change it while the job runs.

    Orders count for all workers of the job, wherever they are, and reach them within two seconds. Values of signals
    carry their units: 5ms, 16MiB, 20%; plain numbers are for counts and for signals of your own.
    """
    if rows is not None and not 0 < rows <= MAX_RATE_PER_S:
        raise UsageError("--max-rows-per-s is out of range", hint="--no-limit lifts it, backfill pause stops the job")
    flags = _Flags(rows, _wal(wal), lift, workers, targets, maxima, off, on, reset)
    if lift and (rows is not None or wal is not None):
        raise UsageError("--no-limit lifts limits: it cannot stand beside one")
    place = place_of(job, where)
    if not flags.order_anything:
        if reason is not None:
            raise UsageError("--reason of what? Give an order with it", hint="backfill pace --help shows them")
        _show(terminal, *run_async(_look(place)))
        return 0
    status, known = run_async(_order(place, flags, reason))
    if terminal.as_json:
        terminal.json(status.as_json())
    ordered = orders_text(status.orders, unit_of(status, known))
    terminal.say(f"{status.job}: {f'ordered: {ordered}' if ordered else 'no orders: what the spec says counts'}")
    if status.state.is_final:
        terminal.say(f"  but it is {status.state.value}")
    elif not status.workers:
        terminal.say("  nobody works on it now: it counts as soon as somebody does")
    return 0


def _wal(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = units.parse_size(text.removesuffix("/s"))
    except Misfit as error:
        raise UsageError(f"--max-wal-bytes-per-s {error.message}", hint=error.hint) from None
    least, most = WAL_RATE_RANGE
    if not least <= value <= most:
        raise UsageError(
            "--max-wal-bytes-per-s is out of range",
            hint=f"{amount(least, Unit.BYTES)} to {amount(most, Unit.BYTES)}",
        )
    return float(value)


# -- ordering ---------------------------------------------------------------------------------------------------------


async def _order(place: Place, flags: _Flags, reason: str | None) -> tuple[JobStatus, dict[str, SignalSpec]]:
    async with open_jobs(place) as jobs:
        known = await jobs.signals(place.job)
        change, reset = _change(await jobs.orders(place.job), known, flags)
        return await jobs.order_pace(place.job, change, reset, reason=reason), known


def _change(ordered: PaceOrders, known: dict[str, SignalSpec], flags: _Flags) -> tuple[PaceOrders, Sequence[str]]:
    """What the flags change, checked against the job's own signals.  Raises ``UsageError``."""
    orders: dict[str, SignalOrder] = {}
    for flag, texts in (("--target", flags.targets), ("--max", flags.maxima)):
        for text in texts:
            named, equals, value = text.partition("=")
            if not equals or not value:
                raise UsageError(f"{flag} {text!r} is not SIGNAL=VALUE")
            name = signal_name(named, known, flag)
            number = threshold(value, signal_named(name, known), flag, is_target=flag == "--target")
            # By name, so mypy takes the number for a value of any field.
            part = {"target": number} if flag == "--target" else {"maximum": number}
            orders[name] = replace(orders.get(name, SignalOrder(off=False)), **part)  # type: ignore[arg-type]
    for flag, names, off in (("--off", flags.off, True), ("--on", flags.on, False)):
        for name in (signal_name(text, known, flag) for text in names):
            if name in orders and (off or orders[name].off):
                raise UsageError(f"--off {name} cannot stand beside another order on it")
            orders[name] = replace(orders.get(name, SignalOrder()), off=off)
    change = PaceOrders(flags.rows_per_s, flags.wal_bytes_per_s, flags.workers, orders)
    reset = ALL_ORDERS if flags.reset else (ROWS, WAL) if flags.lift else ()
    wanted = PaceOrders.from_json(merged(ordered.as_json(), change, reset))
    for name in orders:
        _check(signal_named(name, known), wanted.signals.get(name, SignalOrder()))
    return change, reset


def _check(signal: SignalSpec, order: SignalOrder) -> None:
    """As for a signal that stands in a spec.  Raises ``UsageError``."""
    try:
        check_order(signal, order)
    except Misfit as error:
        raise UsageError(f"{signal.name} {error.message}", hint=error.hint) from None


# -- showing ----------------------------------------------------------------------------------------------------------


async def _look(place: Place) -> tuple[JobStatus, dict[str, SignalSpec]]:
    async with open_jobs(place) as jobs:
        return await jobs.status(place.job), await jobs.signals(place.job)


def _show(terminal: Terminal, status: JobStatus, known: dict[str, SignalSpec]) -> None:
    if terminal.as_json:
        terminal.json(status.as_json())
        return
    terminal.out.print(Text.assemble((status.job, "bold"), ": ", pace_line(status)))
    terminal.details(pace_block(status, unit_of(status, known)))
    for line in signal_lines(status):
        terminal.out.print(Text(line))
