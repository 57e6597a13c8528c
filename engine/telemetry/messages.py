"""Events as sentences for the person at the terminal."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from engine.events import (
    ChunkCancelled,
    ChunkCommitted,
    ChunkFound,
    ChunkRetried,
    DeadlineLate,
    Draining,
    Event,
    JobFinished,
    JobOpened,
    LeaseLost,
    PaceChanged,
    PhaseChanged,
    RowQuarantined,
    SpanClaimed,
    SpanReleased,
    StateChanged,
    Waiting,
    Warned,
)
from engine.model import JobState, Phase
from engine.pace.law import Stage
from engine.telemetry import numbers


class Level(IntEnum):
    """From which verbosity on a sentence is shown: always, with ``-v``, with ``-vv``."""

    NORMAL = 0
    VERBOSE = 1
    DEBUG = 2


STANDSTILLS: Final = (Stage.HELD, Stage.BASELINE)
"""Stages in which nothing is admitted."""

_PHASES: Final = {
    Phase.SWEEP: "all rows are moved; looking for rows that were deleted at the source meanwhile",
    Phase.EXTRA: "every row of the source is compared; looking for rows that only the target holds",
    Phase.CONFIRM: "all rows are compared; looking again at those that seemed to differ",
    Phase.RECHECK: "looking once more at rows that were repaired or did not stand still",
}
_REASONS: Final = {
    "BF010": "that the transform rejected",
    "BF011": "on which the transform raised",
    "BF012": "with values that do not fit their columns",
}
"""Why the job itself sets rows aside: no error of the server, as every other SQLSTATE is."""

_ENDS = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


def message(event: Event) -> tuple[Level, str] | None:
    """What to say of an event and from which level on; None where the progress display says it already."""
    match event:
        case JobOpened():
            where = event.source if event.source == event.target else f"{event.source} -> {event.target}"
            fresh = "" if event.resumed else "new, "
            rows = f"about {numbers.count(event.rows_estimated)} rows"
            return Level.NORMAL, f"{event.job} ({fresh}{event.mode.value}): {where}, {rows}"
        case StateChanged() if event.state in _ENDS:
            return None  # the end of the run has its own words
        case StateChanged():
            return Level.NORMAL, event.state.value + (f": {event.reason}" if event.reason else "")
        case PhaseChanged() if event.phase in _PHASES:
            return Level.NORMAL, _PHASES[event.phase]
        case Waiting() if event.reason.startswith(JobState.PAUSED):
            return None  # said by the change of state
        case Waiting():
            return Level.NORMAL, f"waiting for: {event.reason}" if event.reason else "moving again"
        case PaceChanged() if event.stage in STANDSTILLS:
            return Level.NORMAL, f"held: {event.reason}"
        case PaceChanged():
            limit = "no limit" if event.limit_rows_per_s is None else numbers.per_second(event.limit_rows_per_s)
            why = f" by {event.reason}" if event.reason else ""
            return Level.VERBOSE, f"pace: {event.stage}, {limit}{why}"
        case Warned():
            return Level.NORMAL, f"warning: {event.message}"
        case ChunkCancelled():
            return Level.NORMAL, f"cancelled a chunk, to be tried again: {event.reason}"
        case DeadlineLate():
            return Level.NORMAL, f"late: {event.reason}"
        case Draining():
            return Level.NORMAL, f"stopping ({event.reason}): the chunks in hand are finished; once more aborts them"
        case LeaseLost():
            return Level.NORMAL, f"{event.worker}: span {event.span} was taken over by another worker"
        case ChunkRetried():
            cause = event.sqlstate or "a lost connection"
            again = f"{event.worker}: {event.action} after {cause}, in {numbers.duration(event.delay_s)}"
            return Level.VERBOSE, again
        case RowQuarantined():
            rows = "a row" if event.rows == 1 else f"{event.rows:,} rows"
            if event.sqlstate in _REASONS:
                why = f"{_REASONS[event.sqlstate]} ({event.sqlstate})"
                return Level.NORMAL, f"{event.worker}: set aside {rows} of span {event.span} {why}"
            return Level.NORMAL, f"{event.worker}: set {rows} of span {event.span} aside after {event.sqlstate}"
        case SpanClaimed():
            how = "stole" if event.stolen else "claimed"
            return Level.VERBOSE, f"{event.worker}: {how} span {event.span} (epoch {event.epoch})"
        case SpanReleased():
            how = "finished" if event.finished else "released"
            return Level.VERBOSE, f"{event.worker}: {how} span {event.span}"
        case ChunkCommitted():
            seen = event.observation
            moved = f"{seen.rows:,} of {seen.scanned:,} rows in {numbers.duration(seen.server_s)}"
            if seen.changed:
                moved += f" ({seen.changed:,} had changed meanwhile and were read again)"
            return Level.DEBUG, f"{event.worker}: span {event.span}: {moved}, next {event.next_rows:,}"
        case ChunkFound():
            found = f"a chunk of {event.rows:,} rows was committed, though its answer was lost"
            return Level.VERBOSE, f"{event.worker}: span {event.span}: {found}"
        case JobFinished():
            return Level.NORMAL, finished(event)
        case _:
            return None


def finished(event: JobFinished) -> str:
    """The last sentence of a run."""
    if event.state is JobState.DONE and event.resumed and event.rows_per_s == 0:
        return f"{event.job} is done already ({numbers.count(event.rows)} rows): nothing was moved"
    moved = f"{numbers.count(event.rows)} rows, {numbers.size(event.bytes)}, {numbers.counted(event.chunks, 'chunk')}"
    pace = f"{numbers.duration(event.seconds)}, {numbers.per_second(event.rows_per_s)}"
    retries = f", {numbers.counted(event.retries, 'retry').replace('retrys', 'retries')}" if event.retries else ""
    aside = f", {numbers.counted(event.quarantined, 'row')} set aside" if event.quarantined else ""
    return f"{event.job} is {event.state.value}: {moved}{retries}{aside}; this run {pace}"
