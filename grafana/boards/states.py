"""What an operator calls the state of a job: the ledger's states, told further apart by what the job feels and does.

One number per job, so that tables, counts and timelines agree, and so that sorting puts what needs somebody on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from grafana.boards.queries import Scope

STALLED_AFTER_S: Final = 60
"""Longer than the slowest chunk that is cut to size, and than a lease that has to run out first."""

FAILING_AFTER_S: Final = 15
"""A chunk that fails and comes again is nothing; that none is committed meanwhile is."""

FAILED_WITHIN: Final = "2m"
"""Four scrapes at twice the usual interval."""

LAST_WORD: Final = "20s"
"""What a process that ends says last is gone with its next scrape; it waits as long as this for the one before."""

LOOKS_BACK: Final = "15s"
"""Shorter than the last word lives."""


class Shown(IntEnum):
    """The number of each state."""

    DONE = 1
    CANCELLED = 2
    RUNNING = 3
    VERIFYING = 4
    PLANNED = 5
    WAITING = 6
    PAUSED = 7
    HELD = 8
    FAILING = 9
    STALLED = 10
    FAILED = 11
    UNREPORTED = 12


@dataclass(frozen=True, slots=True)
class Look:
    """How a state is shown."""

    text: str
    colour: str


LOOKS: Final = {
    Shown.DONE: Look("done", "blue"),
    Shown.CANCELLED: Look("cancelled", "#8e8e8e"),
    Shown.RUNNING: Look("running", "green"),
    Shown.VERIFYING: Look("verifying", "semi-dark-green"),
    Shown.PLANNED: Look("planned", "#b5b5b5"),
    Shown.WAITING: Look("waiting", "light-yellow"),
    Shown.PAUSED: Look("paused", "purple"),
    Shown.HELD: Look("held", "yellow"),
    Shown.FAILING: Look("failing", "orange"),
    Shown.STALLED: Look("stalled", "red"),
    Shown.FAILED: Look("failed", "dark-red"),
    Shown.UNREPORTED: Look("unreported", "dark-purple"),
}


def _in(scope: Scope, state: str) -> str:
    return scope.found("job_state", "job", where=f'state="{state}"')


def _held(scope: Scope) -> str:
    return scope.found("job_held", "job")


def _failing(scope: Scope) -> str:
    """Nothing is committed any more, and chunks fail."""
    failed = scope.increase("chunks_total", "job", where='outcome="failed"', window=FAILED_WITHIN)
    idle = scope.found("since_progress_seconds", "job", is_=f"> {FAILING_AFTER_S}")
    return f"({idle} and on (job) {failed} > 0)"


def _stalled(scope: Scope) -> str:
    return scope.found("since_progress_seconds", "job", is_=f"> {STALLED_AFTER_S}")


def _last(scope: Scope) -> str:
    """The number that a job got by what was last said of it within the dashboard's range, whoever said it: one process
    may have told of its failure, and another one, which resumed it, was killed.
    """
    ended = ((Shown.FAILED, "failed"), (Shown.DONE, "done"), (Shown.CANCELLED, "cancelled"))
    parts = [
        (shown, scope.found_last("job_state", "job", within=LAST_WORD, where=f'state="{one}"')) for shown, one in ended
    ]
    parts.append((Shown.UNREPORTED, scope.found_last("job_state", "job", within=LAST_WORD)))
    return f"last_over_time(({_first_of(parts)})[$__range:{LOOKS_BACK}])"


def _first_of(parts: Sequence[tuple[Shown, str]]) -> str:
    return "\nor ".join(f"{number.value} * {found}" for number, found in parts)


def state(scope: Scope, *, past: bool = False) -> str:
    """The number of each job's state.  ``past``: also of jobs that nobody reports on any more, as they were last seen
    within the dashboard's range: a job that has ended stays what it became, any other is unreported.
    """
    # The first that holds counts: the ledger's states without work in them, then what keeps a job from its work.
    parts = [
        (Shown.FAILED, _in(scope, "failed")),
        (Shown.DONE, _in(scope, "done")),
        (Shown.CANCELLED, _in(scope, "cancelled")),
        (Shown.PAUSED, _in(scope, "paused")),
        (Shown.PLANNED, _in(scope, "planned")),
        (Shown.HELD, _held(scope)),
        (Shown.FAILING, _failing(scope)),
        (Shown.WAITING, scope.found("job_waiting", "job")),
        (Shown.STALLED, _stalled(scope)),
        (Shown.VERIFYING, _in(scope, "verifying")),
        (Shown.RUNNING, _in(scope, "running")),
    ]
    return f"{_first_of(parts)}\nor {_last(scope)}" if past else _first_of(parts)


def at_work(scope: Scope) -> str:
    """1 for each job whose workers claim spans."""
    return scope.found("job_state", "job", where='state=~"running|verifying"')


def time_left(scope: Scope) -> str:
    """Until the end, of jobs that move: the speed of one that stands still is on its way to nothing."""
    moving = scope.found("since_progress_seconds", "job", is_=f"< {FAILING_AFTER_S}")
    eta = scope.gauge("eta_seconds", "job")
    return f"{eta} and on (job) {at_work(scope)} and on (job) {moving} unless on (job) {_held(scope)}"


def count(scope: Scope, *which: Shown) -> str:
    """How many jobs are in one of these states, whose numbers must follow one another; 0 where none is."""
    low, high = min(which), max(which)
    assert len(which) == high - low + 1, which
    limits = f"== {low.value}" if low is high else f">= {low.value} <= {high.value}"
    return f"count(({state(scope, past=True)}) {limits}) or vector(0)"
