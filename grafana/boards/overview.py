"""*Overview of jobs*: from this page alone, which jobs run, and which need somebody."""

from __future__ import annotations

from typing import Any, Final

from grafana.boards.board import (
    BAD,
    BYTES_PER_S,
    COUNT,
    GOOD,
    QUIET,
    ROWS,
    ROWS_PER_S,
    SECONDS,
    SHARE,
    WARN,
    Board,
    Column,
    Query,
    Steps,
    cell_link,
    grid,
    job_variable,
    lines,
    link,
    number,
    state_mapping,
    timeline,
    words,
)
from grafana.boards.queries import Scope
from grafana.boards.states import (
    FAILED_WITHIN,
    FAILING_AFTER_S,
    LOOKS,
    STALLED_AFTER_S,
    Shown,
    at_work,
    count,
    state,
    time_left,
)

UID: Final = "backfill-overview"
JOB_UID: Final = "backfill-job"
DATABASE_UID: Final = "backfill-database"


def board() -> Board:
    """The dashboard."""
    scope = Scope('job=~"$job"')
    made = Board(
        uid=UID,
        title="Backfill / Overview of jobs",
        description="Every job that is reported on: which run, and which need somebody. A click on a job opens it.",
        scope=scope,
        variables=[job_variable(multi=True)],
        links=[
            link("One job", JOB_UID, keep_job=False),
            link("The database beside it", DATABASE_UID, keep_job=False),
        ],
    )
    _counts(made, scope)
    made.add(
        _table(scope),
        "Jobs",
        "One line for each job, what needs somebody on top. held: a signal or a limit keeps it from its work, and "
        "that is as it should be; look at the signal before you look at the job. failing: chunks fail, and none is "
        "committed; open the job, and look at its retries by SQLSTATE. stalled: nothing moves, nothing fails and "
        "nothing holds it: are its processes alive, and not stopped? waiting: for somebody whom "
        "`backfill status JOB` names. unreported: the processes that told of it are gone; `backfill run` goes on with "
        "it.",
        width=24,
        height=8,
    )
    made.add(
        timeline(Query(state(scope), "{{job}}"), [state_mapping()]),
        "State of each job",
        "The same states over time: since when a job is held, how often, and what came before a failure. A gap: nobody "
        "reported on the job then.",
        width=24,
        height=7,
    )
    _over_time(made, scope)
    return made


def _counts(made: Board, scope: Scope) -> None:
    def add(title: str, description: str, *which: Shown, colour: str) -> None:
        steps: Steps = ((None, QUIET), (1, colour))
        made.add(number(count(scope, *which), COUNT, steps=steps, decimals=0), title, description, width=3, height=3)

    add(
        "Running",
        "Jobs at work that move or compare rows. Nothing to do.",
        Shown.RUNNING,
        Shown.VERIFYING,
        colour=GOOD,
    )
    add(
        "Held",
        "Jobs that wait for a signal, a limit or a window. Politeness, no failure: held by in the table says for what.",
        Shown.HELD,
        colour=LOOKS[Shown.HELD].colour,
    )
    add(
        "Waiting, paused",
        "Jobs that wait for an operator's resume, for somebody's old transaction, or for workers. Pause is sticky: "
        "only `backfill resume JOB` ends it.",
        Shown.WAITING,
        Shown.PAUSED,
        Shown.PLANNED,
        colour=LOOKS[Shown.PAUSED].colour,
    )
    add(
        "Failing",
        f"Chunks failed within two minutes, and none was committed for {FAILING_AFTER_S} s. Look at the job's "
        "retries by SQLSTATE: a lock in its way, or a server that refuses.",
        Shown.FAILING,
        colour=WARN,
    )
    add(
        "Stalled",
        f"Nothing was committed for {STALLED_AFTER_S} s, and nothing holds the job or is waited for. Look whether its "
        "processes live.",
        Shown.STALLED,
        colour=BAD,
    )
    add(
        "Failed, unreported",
        "A guard stopped the job: `backfill status JOB` says why and what to do; `backfill resume JOB` once that is "
        "mended. Or the processes that told of it are gone, and it had not ended: `backfill run` goes on with it.",
        Shown.FAILED,
        Shown.UNREPORTED,
        colour=LOOKS[Shown.FAILED].colour,
    )
    add(
        "Ended",
        "Jobs that are done or cancelled, within the time that the dashboard shows.",
        Shown.DONE,
        Shown.CANCELLED,
        colour=LOOKS[Shown.DONE].colour,
    )
    reporter = scope.of("reporter")
    made.add(
        number(
            f"sum({reporter}) or vector(0)",
            COUNT,
            steps=((None, BAD), (1, GOOD)),
            decimals=0,
        ),
        "Reporters",
        "Processes that report on the jobs of a ledger: one for each ledger that somebody works on. 0: nothing on "
        "this page is fresh; start `backfill worker --metrics-listen HOST:PORT`, or look at the scrapes.",
        width=3,
        height=3,
    )


def _table(scope: Scope) -> Any:
    work = at_work(scope)

    def working(name: str) -> str:
        return f"{scope.gauge(name, 'job')} and on (job) {work}"

    progress = scope.gauge("progress_ratio", "job")
    progress += f" or max by (job) (last_over_time({scope.of('progress_ratio')}[$__range]))"
    columns = [
        Column("state", state(scope, past=True), cell="state", mappings=(state_mapping(),), width=105),
        Column(
            "held by",
            f"topk by (job) (1, {scope.gauge('job_held', 'job', 'reason')} == 1)",
            label="reason",
            width=135,
        ),
        Column("phase", scope.found("job_info", "job", "phase"), label="phase", width=75),
        Column("progress", progress, SHARE, cell="bar", decimals=1, steps=((None, "blue"),), width=170),
        Column("speed", working("rows_per_second"), ROWS_PER_S, decimals=0),
        Column("rows left", scope.gauge("rows_remaining", "job"), ROWS),
        Column("time left", time_left(scope), SECONDS, decimals=1),
        Column("since progress", working("since_progress_seconds"), SECONDS, decimals=1, width=120),
        Column("workers", working("workers"), decimals=0, width=80),
        Column(
            "retries / min",
            f"60 * {scope.rate('retries_total', 'job', window=FAILED_WITHIN)}",
            decimals=1,
            cell="colour",
            steps=((None, "text"), (0.1, WARN), (10, BAD)),
        ),
        Column(
            "quarantined",
            scope.gauge("rows_quarantined", "job"),
            COUNT,
            decimals=0,
            cell="colour",
            steps=((None, "text"), (1, BAD)),
        ),
        Column(
            "verified",
            scope.gauge("job_verified", "job"),
            cell="colour",
            mappings=(words(_0=("differs", BAD), _1=("yes", GOOD)),),
            width=80,
        ),
        Column(
            "late by",
            f"{scope.gauge('deadline_late_seconds', 'job')} > 0",
            SECONDS,
            decimals=1,
            cell="colour",
            steps=((None, "text"), (1, BAD)),
        ),
    ]
    panel = grid("job", columns, first=Column("job", "", label="job", width=190), sort="state")
    return panel.override_by_name("job", [cell_link("Open this job", JOB_UID)])


def _over_time(made: Board, scope: Scope) -> None:
    made.add(
        lines(Query(scope.gauge("rows_per_second", "job"), "{{job}}"), unit=ROWS_PER_S),
        "Rows per second",
        "How fast each job goes, all its processes together. Falling while nothing holds it: look at chunk time on the "
        "job's own page.",
        width=8,
        height=8,
    )
    made.add(
        lines(Query(scope.gauge("progress_ratio", "job"), "{{job}}"), unit=SHARE, most=1),
        "Progress",
        "Of the move, or of the verification that runs. A line that goes level says when it stopped; "
        "`backfill history JOB` says who or what stopped it.",
        width=8,
        height=8,
    )
    made.add(
        lines(Query(f"{scope.rate('held_seconds_total', 'reason')} > 0", "{{reason}}"), unit=SHARE, stacked=True),
        "Workers waiting, by reason",
        "Worker-seconds that pass in waiting, per second, over all jobs chosen above: 100 % is one worker that "
        "only waits. A reason that stays for hours is a target to talk about, or hours to choose otherwise; the "
        "job's page says which job.",
        width=8,
        height=8,
    )
    failed = scope.rate("chunks_total", "job", where='outcome=~"failed|lost"')
    made.add(
        lines(Query(f"60 * {failed}", "{{job}}"), unit=COUNT),
        "Chunks failed per minute",
        "Chunks that were rolled back, to be tried again or because the lease was lost. A few are the price of being "
        "polite; many, with progress standing still, are a job that fails.",
        width=8,
        height=8,
    )
    made.add(
        lines(Query(scope.rate("bytes_total", "job"), "{{job}}"), unit=BYTES_PER_S),
        "Bytes moved per second",
        "What passes through the processes, or is estimated to be written where the server moves the rows itself. "
        "What it costs the server is on the database's page.",
        width=8,
        height=8,
    )
    build = scope.of("build_info")
    made.add(
        grid(
            "instance",
            [
                Column("version", f"max by (instance, version) ({build})", label="version"),
                Column("Python", f"max by (instance, python) ({build})", label="python"),
                Column(
                    "reports",
                    scope.gauge("reporter", "instance"),
                    cell="colour",
                    mappings=(words(_0=("no", QUIET), _1=("yes", GOOD)),),
                ),
            ],
            first=Column("process", "", label="instance", width=220),
        ),
        "Processes",
        "Every process that is scraped. One of each ledger reports on its jobs. One that is missing here has ended, or "
        "cannot be scraped; two versions on one job are fine while you upgrade.",
        width=8,
        height=8,
    )
