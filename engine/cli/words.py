"""A job's status in words, for the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from engine.ledger.records import JobStatus
from engine.model import JobState
from engine.telemetry import numbers

STYLES = {
    JobState.RUNNING: "green",
    JobState.DONE: "bold green",
    JobState.PAUSED: "yellow",
    JobState.FAILED: "bold red",
    JobState.CANCELLED: "red",
}


def one_line(status: JobStatus) -> str:
    """All that an operator wants to know first: state, how far, how fast, how long, who works, what holds it up."""
    parts = [f"{status.state.value} {numbers.percent(status.progress)} {rows(status)}"]
    if status.state is JobState.RUNNING:
        parts.append(numbers.per_second(status.rows_per_s))
        if status.eta_s is not None:
            parts.append(f"{numbers.duration(status.eta_s)} left")
        parts.append(numbers.counted(status.workers, "worker") if status.workers else "nobody works on it")
        if status.phase == "sweep":
            parts.append("taking out rows deleted meanwhile")
    text = ", ".join(parts)
    return f"{text}; {why}" if (why := reason(status)) else text


def rows(status: JobStatus) -> str:
    """``12.4 M of 19.7 M rows``; the estimate is left out where it says nothing any more."""
    if status.state is JobState.DONE or status.rows_done >= status.rows_estimated:
        return f"{numbers.count(status.rows_done)} rows"
    return f"{numbers.count(status.rows_done)} of {numbers.count(status.rows_estimated)} rows"


def reason(status: JobStatus) -> str:
    """Why it does not move, or why it ended so; empty while all is well."""
    if status.state is JobState.FAILED:
        return status.error_message or "for an unknown reason"
    if not status.waiting:
        return ""
    return (
        f"waiting for: {status.waiting}"
        if not status.state.is_final and status.state is not JobState.PAUSED
        else (status.waiting)
    )


def what_next(status: JobStatus) -> str:
    """What a person may do about the state it is in; empty when there is nothing to do."""
    match status.state:
        case JobState.FAILED if status.error_hint:
            return status.error_hint
        case JobState.FAILED if status.resumable:
            return "mend the cause, then: backfill resume"
        case JobState.FAILED | JobState.CANCELLED:
            return "backfill restart begins it anew"
        case JobState.PAUSED:
            return "backfill resume lets it go on"
        case JobState.PLANNED | JobState.RUNNING if not status.workers:
            return "start workers by backfill run or backfill worker"
        case _:
            return ""


def block(status: JobStatus) -> list[tuple[str, str]]:
    """The details under the one line: label and text."""
    limit = numbers.per_second(status.limit_rows_per_s) if status.limit_rows_per_s else "as the spec says"
    done = f"{status.spans_done} of {status.spans_total} done, {status.spans_running} running"
    details = [
        ("mode", status.mode.value),
        ("source", status.source),
        ("target", status.target),
        ("spans", done),
        ("moved", f"{numbers.size(status.bytes_done)} in {numbers.counted(status.chunks, 'chunk')}"),
        ("limit", limit),
        ("retries", f"{status.retries:,}"),
    ]
    if status.source == status.target:
        details[1:3] = [("table", status.source)]
    if status.waits:
        longest = sorted(status.waits.items(), key=lambda item: -item[1])
        details.append(("waited", ", ".join(f"{numbers.duration(s)} {why}" for why, s in longest)))
    details.append(("started", moment(status.started_at)))
    if status.finished_at is not None:
        details.append(("ended", moment(status.finished_at)))
    if status.error_code:
        details.append(("error", f"{status.error_message} ({status.error_code})"))
    if next_step := what_next(status):
        details.append(("next", next_step))
    return details


def moment(when: datetime | None) -> str:
    """A time in UTC to the second, and how long ago it was."""
    if when is None:
        return "not yet"
    ago = (datetime.now(UTC) - when).total_seconds()
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({numbers.duration(max(0.0, ago))} ago)"
