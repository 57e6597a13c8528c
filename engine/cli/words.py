"""A job's status in words, for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from engine.cli.signals import orders_text, unit_of
from engine.flow.gate import without_repair
from engine.ledger.orders import ROWS, WAL
from engine.ledger.records import JobStatus
from engine.model import JobState, Mode, Phase
from engine.pace.bucket import RATE_LIMIT
from engine.pace.law import Stage
from engine.spec.signals import without_side
from engine.telemetry import numbers

STYLES = {
    JobState.RUNNING: "green",
    JobState.VERIFYING: "green",
    JobState.DONE: "bold green",
    JobState.PAUSED: "yellow",
    JobState.FAILED: "bold red",
    JobState.CANCELLED: "red",
}

NOBODY: Final = "nobody works on it"

NEW_S: Final = 10.0
"""So long after it began, nobody wonders that no worker has it: daemons and workers look for work every few seconds."""

NO_PACER: Final = "no pacer"
"""How the ledger's view begins to tell that no decision is in force."""

_LIMITS: Final = (ROWS, WAL)
_PHASES: Final[dict[str, str]] = {
    Phase.SWEEP: "taking out rows deleted meanwhile",
    Phase.EXTRA: "looking for rows that only the target holds",
    Phase.CONFIRM: "looking again at rows that seemed to differ",
    Phase.RECHECK: "looking once more at rows that were repaired",
}
_RETRY: Final = "retry after "
_RETRIED: Final = {
    "25006": "the server is read only",
    "40001": "others changed the same rows",
    "40P01": "a deadlock with others",
    "53100": "the server's disk is full",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left",
    "55P03": "somebody else's lock",
    "57014": "cancelled, or too slow",
}
"""What a SQLSTATE that a chunk is tried again after means, for those who do not know it by heart."""

_BARRIER: Final = "older transactions"
_OF_THE_SPEC: Final = {
    "baseline": "it takes some five to fifteen seconds",
    "table_growth": "whoever keeps the dead rows has to end, or the spec has to allow more: bloat.max_growth",
    "window": "it goes on by itself; pace.windows of the spec say when",
}
_UNANSWERED: Final = "not answered yet"
"""What a latency's detail says while its probe hangs."""

_UNSAID_STAGES: Final = (None, Stage.STEADY, Stage.ALONE)


def one_line(status: JobStatus) -> str:
    """All that an operator wants to know first: state, how far, how fast and why not faster, how long, who works."""
    why = reason(status)
    parts = [f"{status.state.value} {numbers.percent(status.progress)} {rows(status)}"]
    if status.state.is_at_work:
        limit = limit_words(status)
        parts.append(numbers.per_second(status.rows_per_s) + (f" ({limit})" if limit else ""))
        if status.eta_s is not None:
            parts.append(f"{numbers.duration(status.eta_s)} left")
        if status.workers:
            parts.append(numbers.counted(status.workers, "worker"))
        elif why != NOBODY and not _is_new(status):
            parts.append(NOBODY)
        if doing := _PHASES.get(status.phase):
            parts.append(doing)
        if status.deadline is not None:
            parts.append(_lateness(status.deadline))
    if status.quarantined and status.state is not JobState.DONE:
        parts.append(_in_quarantine(status))
    if proved := proof(status):
        parts.append(proved)
    text = ", ".join(parts)
    return f"{text}; {why}" if why else text


def proof(status: JobStatus) -> str:
    """What is known of a job that is done: ``2 rows in quarantine, verified``, or how many rows differ; empty while
    nobody knows.
    """
    if status.state is not JobState.DONE:
        return ""
    parts = [_in_quarantine(status)] if status.quarantined else []
    if status.verified is not None:
        parts.append("verified" if status.verified else _differing(status))
    return ", ".join(parts)


def _in_quarantine(status: JobStatus) -> str:
    return f"{numbers.counted(status.quarantined, 'row')} in quarantine"


def _unequal(status: JobStatus) -> int:
    """Rows that the last verification found to differ for good, and left so."""
    found = status.verification or {}
    counts = {kind: int(found.get(kind) or 0) for kind in ("mismatched", "missing", "extra", "repaired")}
    return counts["mismatched"] + counts["missing"] + counts["extra"] - counts["repaired"]


def _differing(status: JobStatus) -> str:
    unsettled = int((status.verification or {}).get("unsettled") or 0)
    unequal = _unequal(status)
    parts = [(unequal, "differs" if unequal == 1 else "differ"), (unsettled, "never stood still")]
    return ", ".join(f"{numbers.counted(number, 'row')} {how}" for number, how in parts if number) or "it differs"


def rows(status: JobStatus) -> str:
    """``12.4 M of 19.7 M rows``; the estimate is left out where it says nothing any more."""
    if status.state is JobState.DONE or status.rows_done >= status.rows_estimated:
        return f"{numbers.count(status.rows_done)} rows"
    return f"{numbers.count(status.rows_done)} of {numbers.count(status.rows_estimated)} rows"


def limit_words(status: JobStatus) -> str:
    """``limit 3,200 by read_latency 6.1ms of 5ms``: what keeps it from going faster; empty when nothing does."""
    if status.limit_now_rows_per_s is None or status.held_by or status.state.is_final:
        return ""
    why = status.pace_reason or ""
    if status.leads and why.startswith(status.leads) and status.leads in _LIMITS:
        why = status.leads  # its number stands before it
    if not why and status.stage not in _UNSAID_STAGES:
        why = status.stage or ""
    return f"limit {_rate(status.limit_now_rows_per_s)}" + (f" by {why}" if why else "")


def reason(status: JobStatus) -> str:
    """Why it does not move, or why it ended so; empty while all is well."""
    if status.state is JobState.FAILED:
        return status.error_message or "for an unknown reason"
    if not status.waiting:
        return NOBODY if status.state.is_at_work and not status.workers and not _is_new(status) else ""
    if status.state.is_final or status.state is JobState.PAUSED or status.waiting.startswith(NO_PACER):
        return status.waiting
    if status.held_by:
        return f"held: {status.waiting}"
    limited_by = {RATE_LIMIT, *_LIMITS, status.leads, *(signal.get("name") for signal in status.signals)}
    if status.waiting in limited_by and limit_words(status):
        return ""  # the limit says it
    return f"waiting for: {status.waiting}{_meaning(status.waiting)}"


def _is_new(status: JobStatus) -> bool:
    """True while those who look for work now and then may not have seen it yet: nothing is done of it."""
    found = status.verification or {}
    if status.state is JobState.VERIFYING:
        began, done = found.get("started_at"), status.progress
        since = datetime.fromisoformat(began) if began else None
    else:
        since, done = status.started_at or status.created_at, status.chunks
    return since is not None and not done and abs((datetime.now(UTC) - since).total_seconds()) < NEW_S


def _meaning(waiting: str) -> str:
    meaning = _RETRIED.get(waiting.removeprefix(_RETRY)) if waiting.startswith(_RETRY) else None
    return f" ({meaning})" if meaning else ""


def what_next(status: JobStatus) -> str:
    """What a person may do about the state it is in; empty when there is nothing to do."""
    match status.state:
        case JobState.FAILED if status.error_hint:
            return status.error_hint
        case JobState.DONE if status.verified is False and _unequal(status) and status.transform is not None:
            in_place = status.mode is Mode.UPDATE
            return without_repair(status.job, in_place=in_place, quarantined=status.quarantined)
        case JobState.DONE if status.verified is False and _unequal(status):
            extra = (status.verification or {}).get("extra")
            also = "; --delete-extra deletes those that only the target holds" if extra else ""
            return f"backfill verify {status.job} --repair mends them{also}"
        case JobState.DONE if status.verified is False:
            return f"backfill verify {status.job} again, when the rows that never stood still are written less often"
        case JobState.FAILED if status.resumable:
            return "mend the cause, then: backfill resume"
        case JobState.FAILED | JobState.CANCELLED:
            return "backfill restart begins it anew"
        case JobState.PAUSED:
            return "backfill resume lets it go on"
        case JobState.VERIFYING if not status.workers and not _is_new(status):
            return f"backfill verify {status.job} goes on with it"
        case JobState.PLANNED | JobState.RUNNING if (status.waiting or "").startswith(_BARRIER):
            return "they have to commit, roll back or be ended; then whoever runs the job goes on by itself"
        case JobState.PLANNED | JobState.RUNNING if not status.workers:
            return "start workers by backfill run or backfill worker"
        case JobState.RUNNING | JobState.VERIFYING if status.held_by:
            return _when_held(status, status.held_by)
        case JobState.RUNNING | JobState.VERIFYING if (status.waiting or "").startswith(NO_PACER):
            return "another process takes over within seconds; if none does, end the one that is named as pacer"
        case JobState.RUNNING | JobState.VERIFYING if status.waiting == f"{_RETRY}55P03":
            return "it goes on by itself when the lock is free; pg_blocking_pids() tells who holds it"
        case _:
            return ""


def _when_held(status: JobStatus, held_by: str) -> str:
    seen = next((signal for signal in status.signals if signal.get("name") == held_by), None)
    if seen is None:
        return _OF_THE_SPEC.get(held_by, "")
    if seen.get("detail") == _UNANSWERED:  # without the signal the chunks would wait for the same lock
        return "the probe waits, most often for a lock: pg_blocking_pids() tells who holds it; it goes on by itself"
    signal = without_side(held_by)
    return f"it goes on by itself; backfill pace {status.job} --off {signal} lets it go on without that signal"


def block(status: JobStatus) -> list[tuple[str, str]]:
    """The details under the one line: label and text."""
    done = f"{status.spans_done} of {status.spans_total} done, {status.spans_running} running"
    details = [
        ("mode", status.mode.value),
        ("source", status.source),
        ("target", status.target),
        ("spans", done),
        ("moved", f"{numbers.size(status.bytes_done)} in {numbers.counted(status.chunks, 'chunk')}"),
        *pace_block(status, unit_of(status)),
        ("retries", f"{status.retries:,}"),
    ]
    if status.source == status.target:
        details[1:3] = [("table", status.source)]
    if waited := waits(status):
        details.append(("waited", waited))
    if status.verification is not None:
        details.append(("verified", _verification(status)))
    if status.quarantined:
        details.append(("set aside", numbers.counted(status.quarantined, "row")))
    details.append(("started", moment(status.started_at)))
    if status.finished_at is not None:
        details.append(("ended", moment(status.finished_at)))
    if status.error_code:
        details.append(("error", f"{status.error_message} ({status.error_code})"))
    if next_step := what_next(status):
        details.append(("next", next_step))
    return details


def _verification(status: JobStatus) -> str:
    """``no, 3 rows differ``: what the last verification found, or that one is running."""
    if status.verified is None:
        outcome = (status.verification or {}).get("outcome")
        return f"not known: the last verification was {outcome}" if outcome else "not known yet: it is running"
    return "yes" if status.verified else f"no, {_differing(status)}"


def waits(status: JobStatus) -> str:
    """``24 s read_latency, 3 s baseline``: what the workers have waited for so far, the longest first."""
    longest = sorted(((seconds, why) for why, seconds in status.waits.items() if seconds > 0), reverse=True)
    return ", ".join(f"{numbers.duration(seconds)} {why}" for seconds, why in longest)


def pace_line(status: JobStatus) -> str:
    """What decides the pace, in one line."""
    if not status.state.is_at_work:
        return status.state.value
    going = f"{status.state}, {numbers.per_second(status.rows_per_s)}"
    return f"{going}; {reason(status) or limit_words(status) or 'no limit'}"


def pace_block(status: JobStatus, unit: Callable[[str], str | None]) -> list[tuple[str, str]]:
    """What is ordered and what is in force: label and text.  ``unit``: that of a signal by its name."""
    if status.held_by:
        limit = "nothing is let through"
    elif status.state.is_at_work and status.pace_valid is False:
        limit = "the minimum"
    elif status.limit_now_rows_per_s is None:
        limit = "none"
    else:
        limit = numbers.per_second(status.limit_now_rows_per_s)
    details = [] if status.state.is_final else [("limit", limit)]
    if status.pace_reason:
        details.append(("because", status.pace_reason))
    if status.stage is not None:
        pressure = "" if status.pressure is None else f", pressure {status.pressure:.2f}"
        details.append(("stage", status.stage + pressure))
    allowed = []
    if status.chunk_target_s is not None:
        allowed.append(f"chunks of {numbers.duration(status.chunk_target_s)}")
    if status.workers_allowed is not None:
        allowed.append(f"{numbers.counted(status.workers_allowed, 'worker')} at work")
    if allowed:
        details.append(("allowed", ", ".join(allowed)))
    if ordered := orders_text(status.orders, unit):
        details.append(("ordered", ordered))
    if status.growth is not None:
        details.append(("growth", _growth(status.growth)))
    if status.deadline is not None:
        details.append(("deadline", _lateness(status.deadline)))
    if status.pacer:
        details.append(("pacer", status.pacer))
    return details


def _rate(rows_per_s: float) -> str:
    return numbers.per_second(rows_per_s).removesuffix(" rows/s")


def _lateness(deadline: Mapping[str, Any]) -> str:
    late_by_s = deadline.get("late_by_s")
    return f"late: finish_by is missed by {numbers.duration(late_by_s)}" if late_by_s else "late: finish_by is missed"


def _growth(growth: Mapping[str, Any]) -> str:
    ratio, most = growth.get("ratio"), growth.get("max")
    if ratio is None:
        return "not measured yet"
    return f"{ratio:.1%}" + ("" if most is None else f" of {most:.0%}")


def moment(when: datetime | None) -> str:
    """A time in UTC to the second, and how long ago it was."""
    if when is None:
        return "not yet"
    ago = (datetime.now(UTC) - when).total_seconds()
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({numbers.duration(max(0.0, ago))} ago)"
