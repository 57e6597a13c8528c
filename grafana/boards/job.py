"""*One job*: how far it is, how fast it goes and why not faster, what went wrong, and what it costs."""

from __future__ import annotations

from typing import Final

from grafana.boards.board import (
    BAD,
    BYTES_PER_S,
    COUNT,
    GOOD,
    PLAIN,
    QUIET,
    ROWS,
    ROWS_PER_S,
    SECONDS,
    SHARE,
    WARN,
    Board,
    Column,
    Query,
    grid,
    job_variable,
    lines,
    link,
    number,
    state_mapping,
    timeline,
    words,
)
from grafana.boards.overview import DATABASE_UID, JOB_UID, UID
from grafana.boards.queries import Scope
from grafana.boards.states import FAILING_AFTER_S, LOOKS, STALLED_AFTER_S, Shown, at_work, state, time_left

SCOPE: Final = Scope('job="$job"')
STALE_AFTER_S: Final = 5
"""The age from which a latency signal counts as not measured."""

PER_MINUTE: Final = "60 * "

WRITE: Final = 'phase="write"'
NOT_ADMIT: Final = 'phase!="admit"'
"""Waiting for admission is among the waits already, by reason."""


def board() -> Board:
    """The dashboard."""
    made = Board(
        uid=JOB_UID,
        title="Backfill / One job",
        description="How far one job is, how fast it goes and why not faster, what went wrong, and what it costs.",
        scope=SCOPE,
        variables=[job_variable(multi=False)],
        links=[link("Overview of jobs", UID, keep_job=False), link("The database beside it", DATABASE_UID)],
    )
    _now(made)
    made.row("Progress and pace")
    _progress(made)
    made.row("What holds it back")
    _signals(made)
    made.row("Chunks")
    _chunks(made)
    made.row("Workers, spans and leases")
    _workers(made)
    made.row("Growth, and proof")
    _costs(made)
    return made


def _now(made: Board) -> None:
    work = at_work(SCOPE)
    made.add(
        number(state(SCOPE, past=True), COUNT, mappings=[state_mapping()], steps=((None, QUIET),), filled=True),
        "State",
        "As on the overview. held: see held by. failing, stalled: see Chunks and Workers below. failed: "
        "`backfill status JOB` says why.",
        width=3,
        height=4,
    )
    made.add(
        number(
            f"topk(1, {SCOPE.gauge('job_held', 'job', 'reason')} == 1)",
            COUNT,
            legend="{{reason}}",
            none="nothing",
            steps=((None, LOOKS[Shown.HELD].colour),),
        ),
        "Held by",
        "What admits no chunk now: a signal beyond its maximum, a window, a budget. Mend its cause, or give it another "
        "`backfill pace JOB --max SIGNAL=VALUE`.",
        width=4,
        height=4,
    )
    made.add(
        number(
            f"topk(1, {SCOPE.found('job_info', 'mode', 'phase')})",
            COUNT,
            legend="{{mode}}: {{phase}}",
            none="unknown",
        ),
        "Mode and phase",
        "How rows move: update (in place), insert (another table), copy (another database). And what is being "
        "done: move, then sweep where deletes are guarded; verify to recheck: rows are compared.",
        width=3,
        height=4,
    )
    made.add(
        number(SCOPE.gauge("progress_ratio", "job"), SHARE, decimals=1, steps=((None, "blue"),)),
        "Progress",
        "Of the move, or of the verification that runs; by rows of the plan, so an estimate.",
        width=3,
        height=4,
    )
    made.add(
        number(time_left(SCOPE), SECONDS, decimals=1),
        "Time left",
        "At the present speed; nothing while the job does not move. Too long: see what leads under What holds it back.",
        width=3,
        height=4,
    )
    made.add(
        number(
            SCOPE.gauge("deadline_late_seconds", "job"),
            SECONDS,
            decimals=1,
            steps=((None, GOOD), (1, BAD)),
            mappings=[words(_0=("in time", GOOD))],
            none="no deadline",
        ),
        "Behind its deadline",
        "So long after finish_by it will end at the allowed pace. The job goes no faster for it: raise a target, "
        "or move the deadline.",
        width=3,
        height=4,
    )
    made.add(
        number(
            f"{SCOPE.gauge('since_progress_seconds', 'job')} and on (job) {work}",
            SECONDS,
            decimals=0,
            steps=((None, GOOD), (FAILING_AFTER_S, WARN), (STALLED_AFTER_S, BAD)),
        ),
        "Since progress",
        f"Since something was committed. Beyond {STALLED_AFTER_S} s, and not held: look whether its processes live, "
        "and who locks its rows.",
        width=3,
        height=4,
    )
    made.add(
        number(
            SCOPE.gauge("job_verified", "job"),
            COUNT,
            mappings=[words(_0=("differs", BAD), _1=("yes", GOOD))],
            steps=((None, BAD), (1, GOOD)),
            none="not yet",
        ),
        "Verified",
        "How the last verification ended. differs: see Rows that differ below, and `backfill verify JOB --repair`.",
        width=2,
        height=4,
    )


def _progress(made: Board) -> None:
    made.add(
        lines(
            Query(SCOPE.gauge("progress_ratio", "job"), "progress"), unit=SHARE, most=1, colours={"progress": "blue"}
        ),
        "Progress over time",
        "A straight line is a job alone with its table; a bend is where something began to hold it.",
        width=6,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.gauge("rows_per_second", "job"), "looked at (ledger)"),
            Query(SCOPE.rate("rows_total", "job"), "written (processes)"),
            Query(SCOPE.gauge("limit_rows_per_second", "job"), "limit"),
            unit=ROWS_PER_S,
            dashed="^limit$",
            colours={"looked at (ledger)": "green", "written (processes)": "blue", "limit": BAD},
        ),
        "Rate against limit",
        "At the limit, the pace decides: see pressure. Below it, the servers or the workers do: see where the time "
        "goes. No limit line: nothing limits it. Processes that are not scraped are missing from the blue line.",
        width=10,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.gauge("rows_done", "job"), "done"),
            Query(SCOPE.gauge("rows_remaining", "job"), "left"),
            unit=ROWS,
            colours={"done": "green", "left": QUIET},
        ),
        "Rows done and left",
        "As the ledger has it, over all runs. Left is an estimate of rows to look at; a job with a where writes fewer.",
        width=8,
        height=8,
    )


def _signals(made: Board) -> None:
    ratio = "{} / on (signal) {}"
    value, target = SCOPE.gauge("signal_value", "signal"), SCOPE.gauge("signal_target", "signal")
    most, age = SCOPE.gauge("signal_max", "signal"), SCOPE.gauge("signal_age_seconds", "signal")
    made.add(
        lines(
            Query(ratio.format(value, target), "{{signal}}"),
            Query(ratio.format(value, f"({most} > 0)"), "{{signal}} of its maximum"),
            Query(SCOPE.gauge("pressure_ratio", "job"), "pressure"),
            unit=SHARE,
            line_at=((1, BAD),),
            dashed="of its maximum$",
            colours={"pressure": "text"},
        ),
        "Pressure by signal",
        "Each signal as a share of its target. At 100 % the job slows down until it is back; the highest leads. "
        "Dashed: of its maximum, beyond which nothing is admitted. Always far below: the job could bear a lower "
        "target; always at it: this signal is the pace.",
        width=12,
        height=9,
    )
    made.add(
        lines(
            Query(f"{SCOPE.rate('held_seconds_total', 'reason')} > 0", "waits: {{reason}}"),
            Query(f"{SCOPE.seconds('chunk_seconds', 'phase', where=NOT_ADMIT)} > 0", "chunk: {{phase}}"),
            unit=SHARE,
            stacked=True,
        ),
        "Where the time goes",
        "Seconds of all workers, per second: 200 % is two workers. Mostly waits: the pace decides, and the reason "
        "says what. Mostly write or commit: the server does; more workers may help. Mostly read: is the key's "
        "index the right one?",
        width=12,
        height=9,
    )
    made.add(
        lines(
            Query(SCOPE.gauge("signal_value", "signal", where='signal=~".*latency.*"'), "{{signal}}"),
            Query(SCOPE.gauge("signal_target", "signal", where='signal=~".*latency.*"'), "{{signal}} target"),
            unit=SECONDS,
            dashed=" target$",
        ),
        "Latency signals and their targets",
        "The 90th percentile of three seconds, as the law uses it. A target that was learnt is polite; if your "
        "application can bear more, say `backfill pace JOB --target SIGNAL=VALUE`.",
        width=8,
        height=8,
    )
    made.add(
        grid(
            "signal",
            [
                Column("value", value, PLAIN, decimals=2),
                Column("target", target, PLAIN, decimals=2),
                Column(
                    "of target",
                    ratio.format(value, target),
                    SHARE,
                    decimals=0,
                    cell="colour",
                    steps=((None, "text"), (0.9, WARN), (1.1, BAD)),
                ),
                Column("maximum", most, PLAIN, decimals=2),
                Column(
                    "age",
                    age,
                    SECONDS,
                    decimals=0,
                    cell="colour",
                    steps=((None, "text"), (STALE_AFTER_S, WARN), (30, BAD)),
                ),
            ],
            first=Column("signal", "", label="signal", width=170),
            sort="of target",
        ),
        "Signals now",
        "In the signal's own unit: seconds, bytes, a share or a count; 4.2 m is 0.0042. An age that grows: its "
        "probe fails, and the job is held or slows down until it answers.",
        width=10,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.gauge("signal_age_seconds", "signal"), "{{signal}}"),
            unit=SECONDS,
            line_at=((STALE_AFTER_S, WARN),),
        ),
        "Age of readings",
        "Since each signal's last good reading. Rising: look at failures of the probes, and at rights of the role "
        "(`backfill doctor`).",
        width=6,
        height=8,
    )
    made.add(
        timeline(
            Query(SCOPE.gauge("job_held", "reason"), "{{reason}}"),
            [words(_0=("", "transparent"), _1=("held", LOOKS[Shown.HELD].colour))],
        ),
        "Held, by reason",
        "When nothing was admitted, and what for. Long bands of one signal: mend its cause, or give it another "
        "maximum.",
        width=12,
        height=6,
    )
    made.add(
        lines(Query(PER_MINUTE + SCOPE.rate("probe_failures_total", "signal"), "{{signal}}"), unit=COUNT),
        "Failed readings per minute",
        "Probes that gave no usable number. `backfill pace JOB` shows the error of each; a signal of your own that "
        "cannot be read holds the job unless on_failure: ignore.",
        width=12,
        height=6,
    )


def _chunks(made: Board) -> None:
    made.add(
        lines(
            Query(SCOPE.quantile(0.5, "chunk_seconds", "phase", where=WRITE), "{{phase}} p50"),
            Query(SCOPE.quantile(0.9, "chunk_seconds", "phase", where=WRITE), "{{phase}} p90"),
            Query(SCOPE.mean("chunk_seconds", "phase", where='phase=~"read|transform|commit"'), "{{phase}} mean"),
            unit=SECONDS,
            dashed="p90$",
        ),
        "Time of a chunk",
        "Its locks are held for write and commit. Chunks are cut so that they take chunk.target (250 ms by "
        "default): longer ones at the smallest size say that single rows are slow.",
        width=8,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.quantile(0.5, "chunk_rows", "job"), "p50"),
            Query(SCOPE.quantile(0.9, "chunk_rows", "job"), "p90"),
            unit=ROWS,
            dashed="p90$",
            colours={"p50": "blue", "p90": "blue"},
        ),
        "Rows of a chunk",
        "Small where rows are wide, locks are wanted by others, or the limit is low. At min_rows all the time, "
        "with long chunks: look at triggers and indexes of the table.",
        width=8,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.rate("chunks_total", "outcome"), "{{outcome}}"),
            Query(SCOPE.rate("chunks_cancelled_total", "job"), "cancelled"),
            unit="cps",
            colours={"committed": GOOD, "failed": WARN, "lost": BAD, "cancelled": "purple"},
        ),
        "Chunks per second, by outcome",
        "failed: rolled back and tried again. cancelled: others waited for their locks, so it gave way. lost: "
        "somebody else has the lease; see leases.",
        width=8,
        height=8,
    )
    made.add(
        lines(Query(PER_MINUTE + SCOPE.rate("retries_total", "sqlstate"), "{{sqlstate}}"), unit=COUNT),
        "Retries per minute, by SQLSTATE",
        "55P03: rows are locked by others. 40P01, 40001: deadlocks and serialisation. 57014: a time-out. 57P01 and "
        "lost_connection: the server restarts, or a pooler cuts them.",
        width=8,
        height=8,
    )
    added = SCOPE.increase("quarantined_rows_total", "job", window="$__range")
    made.add(
        lines(
            Query(SCOPE.gauge("rows_quarantined", "job"), "set aside now"),
            Query(f"round({added})", "added within the range shown"),
            unit=ROWS,
            colours={"set aside now": BAD},
        ),
        "Quarantine",
        "Rows that cannot be written as they are. `backfill quarantine list JOB` shows them; mend the rows or the "
        "expression, then `backfill quarantine retry JOB`.",
        width=8,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.rate("wal_bytes_total", "job"), "WAL of the job"),
            Query(SCOPE.rate("bytes_total", "job"), "rows moved"),
            unit=BYTES_PER_S,
            colours={"WAL of the job": WARN, "rows moved": "blue"},
        ),
        "Bytes per second",
        "WAL far above the rows moved: page images after checkpoints, or indexes. Too much for the archive or a "
        "standby: `backfill pace JOB --max-wal-bytes-per-s SIZE`.",
        width=8,
        height=8,
    )


def _workers(made: Board) -> None:
    made.add(
        lines(
            Query(SCOPE.gauge("workers", "job"), "workers"),
            Query(SCOPE.gauge("pacer_present", "job"), "pacer"),
            Query(SCOPE.counted("resumes_total", "job"), "resumed by"),
            unit=COUNT,
            colours={"workers": GOOD, "pacer": "purple", "resumed by": "blue"},
        ),
        "Workers",
        "Workers of all processes; pacer at 0 for more than some seconds: nobody decides the pace, and all go at the "
        "minimum. No workers while the job runs: start `backfill run` or a worker. resumed by: so many processes found "
        "it begun.",
        width=6,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.gauge("spans", "state"), "{{state}}"),
            unit=COUNT,
            stacked=True,
            colours={"done": "blue", "running": GOOD, "waiting": QUIET},
        ),
        "Spans",
        "Parts of the key space, of the present phase. Waiting with none running: no worker. Near the end idle "
        "workers cut running spans in two, so the sum may grow.",
        width=6,
        height=8,
    )
    made.add(
        lines(
            Query(PER_MINUTE + SCOPE.rate("spans_claimed_total", "outcome"), "{{outcome}}"),
            Query(PER_MINUTE + SCOPE.rate("leases_lost_total", "job"), "lost"),
            unit=COUNT,
            colours={"claimed": GOOD, "stolen": "blue", "taken_over": WARN, "lost": BAD},
        ),
        "Spans taken per minute",
        "taken_over: from a process that vanished without letting go. lost: a worker was away for longer than its "
        "lease. Both more than once: look for killed, frozen or swapping hosts. stolen is usual at the end.",
        width=6,
        height=8,
    )
    made.add(
        lines(Query(SCOPE.rate("lease_renewals_total", "job"), "renewals"), unit="ops", colours={"renewals": GOOD}),
        "Leases renewed per second",
        "Steady while workers hold spans. Falls to 0 with workers present: their control session is cut or frozen, and "
        "others will take over.",
        width=6,
        height=8,
    )


def _costs(made: Board) -> None:
    made.add(
        lines(
            Query(SCOPE.gauge("table_growth_ratio", "job"), "growth"),
            Query(SCOPE.gauge("table_growth_limit_ratio", "job"), "limit"),
            unit=SHARE,
            dashed="^limit$",
            colours={"growth": "blue", "limit": BAD},
        ),
        "Growth of the table",
        "Of a table filled in place, since the job began. At its limit the job vacuums and waits; staying there: "
        "an old transaction keeps dead rows alive (see the database's page).",
        width=8,
        height=8,
    )
    made.add(
        lines(Query(SCOPE.rate("verify_rows_total", "job"), "rows compared"), unit=ROWS_PER_S),
        "Rows compared per second",
        "Of a verification that runs, in all processes that are scraped. It keeps to the job's pace and limits.",
        width=8,
        height=8,
    )
    differing = SCOPE.increase("verify_mismatched_rows_total", "job", window="$__range")
    made.add(
        lines(
            Query(f"round({differing})", "found within the range shown"),
            unit=ROWS,
            colours={"found within the range shown": BAD},
        ),
        "Rows that differ",
        "Changed, missing or extra for good. Anything but 0: `backfill verify JOB --show-rows` names them, "
        "`--repair` mends them; first find who wrote past the dual-write.",
        width=8,
        height=8,
    )
