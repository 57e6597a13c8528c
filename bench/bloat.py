"""An in-place job with ``bloat.max_growth`` against one UPDATE: ``python -m bench.bloat``.

Time, and what is left of the heap: one UPDATE of all rows doubles the table; the job keeps it within its budget by
VACUUMs beside its workers.  Every round runs every contender once, in another order each time, on the same table, put
back, warmed and checkpointed; the rows are compared afterwards.  Autovacuum is off, for all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import yardsticks
from bench.ours import run_command
from bench.report import AT_MOST, Contender, Figure, Report, Sample, Target, arguments_for, say, settle
from bench.stage import ORDERS_COLUMNS, Stage, check_equal

ROWS = 3_000_000
SMOKE_ROWS = 150_000
REPEAT = 5
MAX_GROWTH = 0.2

WORK = "in place"
KEPT = f"ours, max_growth {MAX_GROWTH:.0%}"
FREE = "ours, no limit"
ONE_UPDATE = "one UPDATE"

SECOND_INDEX = "CREATE INDEX ON orders (customer_id)"

FASTER = 1.3
"""Times faster than one UPDATE that the job with a limit must be (the figures' table)."""


@dataclass(frozen=True, slots=True)
class Way:
    """A contender and how it does the work."""

    contender: Contender
    run: Callable[[], Sample]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds and report."""
    parser = arguments_for(str(__doc__), rows=ROWS, smoke_rows=SMOKE_ROWS, repeat=REPEAT)
    parser.add_argument("--second-index", action="store_true", help="with an index on another column, too")
    options = settle(parser, arguments)
    with Stage(options.server, smoke=options.smoke) as stage:
        report = Report(
            "bloat",
            f"Filling a column of {options.rows:,} rows, and the heap afterwards",
            options.smoke,
            {
                "rows": options.rows,
                "repeat": options.repeat,
                "second_index": options.second_index,
                "server": stage.settings,
                "ours": "the whole process of `backfill run --json`, at default settings",
                "order": "every round runs each way once, in rotating order",
            },
            stage.versions,
        )
        _rounds(stage, report, options.rows, options.repeat, second_index=options.second_index)
    report.compare(WORK, KEPT, ONE_UPDATE, FASTER)
    report.compare(WORK, FREE, ONE_UPDATE, None)
    report.compare(WORK, KEPT, FREE, None, "what the VACUUMs cost")
    for name in (KEPT, FREE, ONE_UPDATE):
        _heap_figure(report, name)
    report.finish(options)


def _rounds(stage: Stage, report: Report, rows: int, repeat: int, *, second_index: bool) -> None:
    stage.create("unfilled")
    stage.make_orders("unfilled", rows)
    if second_index:
        stage.sql("unfilled", SECOND_INDEX)
    stage.sql("unfilled", "ALTER TABLE orders ADD COLUMN new_c int; VACUUM (ANALYZE) orders")
    filled = ", ".join((*ORDERS_COLUMNS, "customer_id * 2 AS new_c"))
    expected = stage.digest("unfilled", "orders", filled)
    before = _sizes(stage, "unfilled")
    ways = _ways(stage, report, rows)
    for number in range(repeat):
        start = number % len(ways)
        for way in ways[start:] + ways[:start]:
            say(f"round {number + 1} of {repeat}: {way.contender.name}")
            stage.create("work", "unfilled")
            stage.settle("work", "orders")
            sample = way.run()
            check_equal("the filled table", expected, stage.digest("work", "orders"))
            heap, indexes = (now / then for now, then in zip(_sizes(stage, "work"), before, strict=True))
            sample = replace(sample, notes={**sample.notes, "heap_ratio": heap, "index_ratio": indexes})
            way.contender.samples.append(sample)
            say(f"    {sample.seconds:.2f} s, heap {heap:.3f} x, indexes {indexes:.2f} x {sample.notes}")


def _ways(stage: Stage, report: Report, rows: int) -> list[Way]:
    spec = {
        "name": "bench-bloat",
        "source": {"dsn": stage.dsn("work"), "table": "orders"},
        "set": {"new_c": "customer_id * 2"},
    }
    limited = {**spec, "bloat": {"max_growth": f"{MAX_GROWTH:.0%}"}}
    return [
        Way(
            report.contender(WORK, KEPT, f"backfill run with bloat.max_growth: {MAX_GROWTH:.0%} (2 workers)"),
            lambda: _ours(stage, limited, rows),
        ),
        Way(
            report.contender(WORK, FREE, "backfill run, default settings (2 workers)"),
            lambda: _ours(stage, spec, rows),
        ),
        Way(
            report.contender(WORK, ONE_UPDATE, "one statement, one transaction, no VACUUM"),
            lambda: yardsticks.one_statement(stage, "work", "UPDATE orders SET new_c = customer_id * 2", rows),
        ),
    ]


def _ours(stage: Stage, spec: dict[str, Any], rows: int) -> Sample:
    sample = run_command(spec).sample
    # The template of this database was vacuumed by hand before; its counters are not copied with its files.
    vacuums = stage.sql("work", "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = 'orders'")
    return replace(sample, rows=rows, notes={"vacuums": int(vacuums or 0)})


def _sizes(stage: Stage, database: str) -> tuple[int, int]:
    """Bytes of the heap, and of all its indexes."""
    heap, indexes = stage.sql(database, "SELECT pg_relation_size('orders'), pg_indexes_size('orders')").split("|")
    return int(heap), int(indexes)


def _heap_figure(report: Report, name: str) -> None:
    contender = report.find(WORK, name)
    if contender is None:
        return
    per_round = [sample.notes["heap_ratio"] for sample in contender.samples]
    vacuums = [str(sample.notes["vacuums"]) for sample in contender.samples if "vacuums" in sample.notes]
    note = "rounds " + ", ".join(f"{ratio:.3f}" for ratio in per_round)
    if name == KEPT:
        report.figures.append(
            Figure(
                f"heap after {name}, the largest of the rounds",
                max(per_round),
                "x before",
                Target(1 + MAX_GROWTH, AT_MOST),
                f"{note}; VACUUMs {', '.join(vacuums)}",
            )
        )
    else:
        report.figures.append(Figure(f"heap after {name}", statistics.median(per_round), "x before", note=note))


if __name__ == "__main__":
    main()
