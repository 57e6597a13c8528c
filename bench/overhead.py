"""What ledger, lease, fence, pacing and events cost: the engine against a bare loop with the same chunks.

``python -m bench.overhead``.  Both run inside this process, on the same event loop, and both are timed from their
first commit to their last: start-up and planning do not count here (they do in ``bench.movers``).  The work is
``update``, one statement per chunk, so what remains of the client is the engine itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import uvloop

from bench import yardsticks
from bench.ours import in_process
from bench.report import AT_MOST, Figure, Report, Sample, Target, arguments_for, say, settle
from bench.stage import ORDERS_COLUMNS, Stage, check_equal

ROWS = 1_000_000
SMOKE_ROWS = 20_000
REPEAT = 5
CHUNK_ROWS = (200, 1_000, 10_000)
LEAST_RATIO = 0.97
MOST_CPU_US = 150.0


ENGINE = "engine"
BARE = "bare loop"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds and report."""
    parser = arguments_for(str(__doc__), rows=ROWS, smoke_rows=SMOKE_ROWS, repeat=REPEAT)
    parser.add_argument("--chunks", type=int, nargs="+", default=list(CHUNK_ROWS), help="rows per chunk")
    options = settle(parser, arguments)
    with Stage(options.server, smoke=options.smoke) as stage:
        report = Report(
            "overhead",
            "The engine's own cost",
            options.smoke,
            {"rows": options.rows, "repeat": options.repeat, "workers": yardsticks.WORKERS, "server": stage.settings},
            stage.versions,
        )
        stage.create("unfilled")
        stage.make_orders("unfilled", options.rows)
        stage.sql("unfilled", "ALTER TABLE orders ADD COLUMN new_c int; VACUUM (ANALYZE) orders")
        expected = stage.digest("unfilled", "orders", ", ".join((*ORDERS_COLUMNS, "customer_id * 2 AS new_c")))
        for chunk_rows in options.chunks:
            _measure(stage, report, expected, options.rows, chunk_rows, options.repeat)
    report.finish(options)


def _measure(stage: Stage, report: Report, expected: str, rows: int, chunk_rows: int, repeat: int) -> None:
    work = f"update, chunks of {chunk_rows:,}"
    ours = report.contender(work, ENGINE, "supervisor and workers in this process")
    bare = report.contender(work, BARE, "the same statement without the fence, in a loop")
    for number in range(repeat):
        runs = [(ours, _engine), (bare, _bare)]
        for contender, run in runs if number % 2 == 0 else runs[::-1]:
            say(f"round {number + 1} of {repeat}: {work}: {contender.name}")
            stage.create("work", "unfilled")
            stage.settle("work", "orders")
            contender.samples.append(run(stage, rows, chunk_rows))
            check_equal(work, expected, stage.digest("work", "orders"))
    report.compare(work, ENGINE, BARE, LEAST_RATIO)
    for contender in (ours, bare):
        target = Target(MOST_CPU_US, AT_MOST) if contender is ours else None
        cpu_us = statistics.median((s.client_cpu_s or 0.0) / (s.chunks or 1) * 1e6 for s in contender.samples)
        report.figures.append(Figure(f"{work}: {contender.name}, client CPU per chunk", cpu_us, "µs", target))


def _engine(stage: Stage, rows: int, chunk_rows: int) -> Sample:
    spec: dict[str, Any] = {
        "name": "bench-overhead",
        "source": {"dsn": stage.dsn("work"), "table": "orders"},
        "set": {"new_c": "customer_id * 2"},
        "workers": yardsticks.WORKERS,
        # One size for both, whatever the sizer would like.
        "chunk": {"min_rows": chunk_rows, "max_rows": chunk_rows, "target": "10s", "max_bytes": "1GiB"},
    }
    done = in_process(spec, uvloop.run)
    # The clock starts with the first chunk's commit: what came before it is not counted, its rows neither.
    counted = done.rows - done.first_chunk_rows
    per_row_s = done.moving_s / max(1, counted)
    return Sample(
        seconds=per_row_s * rows,
        rows=rows,
        client_cpu_s=done.moving_cpu_s,
        chunks=max(1, done.chunks - 1),
    )


def _bare(stage: Stage, rows: int, chunk_rows: int) -> Sample:
    return yardsticks.bare_statement(stage, "work", yardsticks.BARE_UPDATE, rows, chunk_rows, steady=True)


if __name__ == "__main__":
    main()
