"""Memory of a worker process: flat, however large the table is.  ``python -m bench.memory``.

The same copy job over a table and over one four times as large, each in a process of its own; what counts is the
process's own high-water mark of resident memory.  Two workers share the process, so it is an upper bound for one.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.ours import run_command
from bench.report import AT_MOST, Figure, Report, Target, arguments_for, say, settle
from bench.stage import Stage, check_equal

ROWS = 3_000_000
SMOKE_ROWS = 100_000
FACTOR = 4
MOST_MB = 120.0
MOST_GROWTH = 1.1
"""Twice the noise between two runs of the same job."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both sizes and report."""
    options = settle(arguments_for(str(__doc__), rows=ROWS, smoke_rows=SMOKE_ROWS), arguments)
    sizes = (options.rows, options.rows * FACTOR)
    with Stage(options.server, smoke=options.smoke) as stage:
        report = Report(
            "memory",
            "Memory of a worker process",
            options.smoke,
            {"rows": list(sizes), "mode": "copy", "workers": 2, "server": stage.settings},
            stage.versions,
        )
        stage.create("source")
        peaks: list[int] = []
        for rows in sizes:
            stage.make_orders("source", rows)
            stage.create("target")
            stage.make_empty_orders("target")
            stage.settle()
            say(f"copying {rows:,} rows")
            spec = {
                "name": "bench-memory",
                "source": {"dsn": stage.dsn("source"), "table": "orders"},
                "target": {"dsn": stage.dsn("target"), "table": "orders"},
            }
            sample = run_command(spec).sample
            check_equal("the copy", stage.digest("source", "orders"), stage.digest("target", "orders"))
            report.contender(f"copy {rows:,} rows", "ours", "backfill run, default settings").samples.append(sample)
            peaks.append(sample.client_peak_bytes or 0)
            stage.sql("source", "DROP TABLE orders")
    for rows, peak in zip(sizes, peaks, strict=True):
        report.figures.append(Figure(f"peak memory, {rows:,} rows", peak / 2**20, "MB", Target(MOST_MB, AT_MOST)))
    growth = peaks[1] / max(1, peaks[0])
    note = "1 is flat"
    report.figures.append(
        Figure("peak memory, large against small", growth, "times", Target(MOST_GROWTH, AT_MOST), note)
    )
    report.finish(options)


if __name__ == "__main__":
    main()
