"""Python transforms: ``python -m bench.transform``.  One numeric column of seven becomes cents, several ways.

To another database and in place; an asynchronous lookup with one and with sixteen batches in flight; and what remains
resident at chunks of 16 MiB.  Every round runs every way of one work once, in another order each time, and every result
is compared with the SQL expression's.  ``bench.anatomy`` says where the time goes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from bench import anatomy
from bench.functions import LOOKUP_ROWS, LOOKUP_S
from bench.ours import run_command
from bench.priced import CENTS, EXPRESSION, ORDERS, SALES, Priced
from bench.report import AT_MOST, Contender, Figure, Ratio, Report, Sample, Target, arguments_for, say, settle
from bench.rowwise import fetch_loop_copy
from bench.stage import Stage, check_equal

ROWS: Final = 3_000_000
SMOKE_ROWS: Final = 10_000
REPEAT: Final = 5
LOOKUP_SHARE: Final = 5
"""The lookups run over a fifth of the rows: one in flight waits for almost all of its time."""

MEMORY_ROWS: Final = 100_000
WIDE_TEXT_CHARACTERS: Final = 2_000
MOST_MB: Final = 120.0
LEAST_OF_PASSING: Final = 0.7
LEAST_OF_LOOPING: Final = 5.0

COPY: Final = "{table}, to another database"
PLACE: Final = "orders, in place"
LOOKUP: Final = "orders, asynchronous lookup"

PASSED: Final = "passed through"
TRANSFORMED: Final = "transformed"
BY_SQL: Final = "SQL expression"
LOOPED: Final = "fetch, loop, copy_records"
LOOPED_FAST: Final = "the same, at its fastest"
ONE, SIXTEEN = "1 in flight", "16 in flight"

TABLES: Final = (ORDERS, SALES)


@dataclass(frozen=True, slots=True)
class Way:
    """A contender, how the stage is set for it, and how its result is judged."""

    contender: Contender
    prepare: Callable[[], None]
    run: Callable[[], Sample]
    check: Callable[[], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds and report."""
    parser = arguments_for(str(__doc__), rows=ROWS, smoke_rows=SMOKE_ROWS, repeat=REPEAT)
    parser.add_argument("--only", nargs="+", choices=("copy", "place", "lookup", "memory", "anatomy"))
    options = settle(parser, arguments)
    chosen = options.only or ("copy", "place", "lookup", "memory", "anatomy")
    with Stage(options.server, smoke=options.smoke) as stage:
        report = Report(
            "transform",
            f"Transforming one numeric column of seven, {options.rows:,} rows",
            options.smoke,
            {
                "rows": options.rows,
                "repeat": options.repeat,
                "server": stage.settings,
                "ours": "the whole process of `backfill run --json`, 2 workers, deletes: none",
                "order": "every round runs each way of one work once, in rotating order",
                "lookup": f"{LOOKUP_S * 1e3:g} ms for each batch of {LOOKUP_ROWS} rows",
            },
            stage.versions,
        )
        _make_sources(stage, options.rows)
        if "copy" in chosen:
            for table in TABLES:
                _rounds(_copy_ways(stage, report, table, options.rows), options.repeat)
        if "place" in chosen:
            _rounds(_in_place_ways(stage, report, options.rows), options.repeat)
        if "lookup" in chosen:
            _rounds(_lookup_ways(stage, report, options.rows // LOOKUP_SHARE), min(3, options.repeat))
        if "memory" in chosen:
            _memory(stage, report, options.rows // 10 if options.smoke else MEMORY_ROWS)
        if "anatomy" in chosen:
            _anatomy(stage, report, options.rows, options.repeat)
    _compare(report)
    report.finish(options)


def _rounds(ways: list[Way], repeat: int) -> None:
    for number in range(repeat):
        start = number % len(ways)
        for way in ways[start:] + ways[:start]:
            say(f"round {number + 1} of {repeat}: {way.contender.work}: {way.contender.name}")
            way.prepare()
            sample = way.run()
            way.check()
            way.contender.samples.append(sample)
            own = f", {sample.own_seconds:.2f} s by its own clock" if sample.own_seconds else ""
            say(f"    {sample.seconds:.2f} s{own}, {sample.rows / sample.seconds:,.0f} rows/s")


# -- tables ---------------------------------------------------------------------------------------------------------


def _make_sources(stage: Stage, rows: int) -> None:
    """Databases: ``source`` with both tables; ``plain`` and ``counted`` with empty ones for targets."""
    stage.create("source")
    stage.make_orders("source", rows)
    stage.sql("source", SALES.create("amount numeric(12,2)") + SALES.fill.format(rows=rows))
    for name, amount in (("plain", "amount numeric(12,2)"), ("counted", f"{CENTS} bigint")):
        stage.create(name)
        stage.sql(name, "".join(table.create(amount) for table in TABLES))
    stage.create("unfilled")
    stage.make_orders("unfilled", rows)
    stage.sql("unfilled", f"ALTER TABLE orders ADD COLUMN {CENTS} bigint; VACUUM (ANALYZE) orders")


def _copied(stage: Stage, table: Priced, **keys: Any) -> dict[str, Any]:
    return {
        "name": "bench-transform",
        "source": {"dsn": stage.dsn("source"), "table": table.name},
        "target": {"dsn": stage.dsn("target"), "table": table.name},
        "deletes": "none",  # the sweep costs the same each way, and would hide what differs
        **keys,
    }


def _ours(spec: dict[str, Any], rows: int) -> Sample:
    return replace(run_command(spec).sample, rows=rows)


# -- the ways -------------------------------------------------------------------------------------------------------


def _copy_ways(stage: Stage, report: Report, table: Priced, rows: int) -> list[Way]:
    plain = stage.digest("source", table.name)
    counted = stage.digest("source", table.name, table.in_cents)
    by_sql = {"columns": {**{name: name for name in table.columns if name != "amount"}, CENTS: EXPRESSION}}
    by_python: dict[str, Any] = {"transform": "bench.functions:cents"}

    def way(name: str, detail: str, template: str, expected: str, run: Callable[[], Sample]) -> Way:
        def prepare() -> None:
            stage.create("target", template)
            stage.settle("source", table.name)

        def check() -> None:
            check_equal(name, expected, stage.digest("target", table.name))

        return Way(report.contender(COPY.format(table=table.name), name, detail), prepare, run, check)

    def ours(**keys: Any) -> Callable[[], Sample]:
        return lambda: _ours(_copied(stage, table, **keys), rows)

    def loop(tasks: int) -> Callable[[], Sample]:
        way = table.by_name if tasks == 1 else table.by_place
        return lambda: fetch_loop_copy(stage, "source", "target", table, rows, loop=way, tasks=tasks)

    looped = "asyncpg, chunks of 20,000: fetch, a loop over rows by name, copy_records_to_table; one after the other"
    fast = "a loop that unpacks rows by place; 2 tasks, so that one works while the other waits"
    return [
        way(PASSED, "backfill run, all seven columns as they are", "plain", plain, ours()),
        way(
            TRANSFORMED, "backfill run, a Python function for one numeric column", "counted", counted, ours(**by_python)
        ),
        way(BY_SQL, f"backfill run, columns: {EXPRESSION}", "counted", counted, ours(**by_sql)),
        way(LOOPED, looped, "counted", counted, loop(1)),
        way(LOOPED_FAST, fast, "counted", counted, loop(2)),
    ]


def _in_place_ways(stage: Stage, report: Report, rows: int) -> list[Way]:
    expected = stage.digest("unfilled", "orders", f"{', '.join(ORDERS.columns)}, {EXPRESSION} AS {CENTS}")

    def way(name: str, detail: str, **keys: Any) -> Way:
        def prepare() -> None:
            stage.create("work", "unfilled")
            stage.settle("work", "orders")

        def check() -> None:
            check_equal(name, expected, stage.digest("work", "orders"))

        spec = {"name": "bench-transform", "source": {"dsn": stage.dsn("work"), "table": "orders"}, **keys}
        return Way(report.contender(PLACE, name, detail), prepare, lambda: _ours(spec, rows), check)

    return [
        way(TRANSFORMED, "backfill run, transform; each row checked again", transform="bench.functions:cents"),
        way(BY_SQL, f"backfill run, set: {EXPRESSION}", set={CENTS: EXPRESSION}),
    ]


def _lookup_ways(stage: Stage, report: Report, rows: int) -> list[Way]:
    few = f"id <= {rows}"
    expected = stage.digest("source", f"(SELECT * FROM orders WHERE {few}) AS few", ORDERS.in_cents)

    def way(name: str, function: str) -> Way:
        def prepare() -> None:
            stage.create("target", "counted")
            stage.settle("source", "orders")

        def check() -> None:
            check_equal(name, expected, stage.digest("target", "orders"))

        spec = _copied(stage, ORDERS, transform=f"bench.functions:{function}", where=few, workers=1)
        detail = f"backfill run, one worker, {rows:,} rows"
        return Way(report.contender(LOOKUP, name, detail), prepare, lambda: _ours(spec, rows), check)

    return [way(ONE, "lookup_1"), way(SIXTEEN, "lookup_16")]


# -- memory ---------------------------------------------------------------------------------------------------------


def _memory(stage: Stage, report: Report, rows: int) -> None:
    """Rows of two kilobytes, chunks of 16 MiB, the same job passed through and transformed."""
    stage.create("source_wide")
    text = f"repeat(md5(g::text), {WIDE_TEXT_CHARACTERS // 32})"
    stage.sql(
        "source_wide",
        f"{SALES.create('amount numeric(12,2)')}"
        f"INSERT INTO sales SELECT g, g / 100.0, {text}, now(), true, md5(g::text)::uuid, '{{}}'"
        f" FROM generate_series(1, {rows}) g; VACUUM (ANALYZE) sales",
    )
    chunk = {"min_rows": 8_000, "max_rows": 8_000, "target": "10s", "max_bytes": "16MiB"}
    capitals = ", ".join("upper(note) AS note" if name == "note" else name for name in SALES.columns)
    for name, template, columns, keys in (
        (PASSED, "plain", "*", {}),
        (TRANSFORMED, "counted", SALES.in_cents, {"transform": "bench.functions:cents"}),
        ("the long text transformed", "plain", capitals, {"transform": "bench.functions:capitals"}),
    ):
        stage.create("target", template)
        stage.settle()
        say(f"memory: {name}")
        spec = _copied(stage, SALES, chunk=chunk, **keys) | {
            "source": {"dsn": stage.dsn("source_wide"), "table": "sales"}
        }
        sample = run_command(spec).sample
        check_equal(name, stage.digest("source_wide", "sales", columns), stage.digest("target", "sales"))
        peak_mb = (sample.client_peak_bytes or 0) / 2**20
        note = f"{rows:,} rows of {WIDE_TEXT_CHARACTERS:,} characters, 2 workers in the process"
        report.figures.append(
            Figure(f"peak memory, chunks of 16 MiB, {name}", peak_mb, "MB", Target(MOST_MB, AT_MOST), note)
        )
    stage.drop("source_wide")


# -- where the time goes, and the verdict ---------------------------------------------------------------------------


def _anatomy(stage: Stage, report: Report, rows: int, repeat: int) -> None:
    few = min(rows, anatomy.MOST_ROWS)
    for part in anatomy.parts(stage, ORDERS, few, repeat):
        report.figures.append(Figure(f"alone: {part.name}", part.ns_per_row, "ns/row", note=part.detail))
    stage.create("target", "counted")
    stage.settle("source", "orders")
    spec = _copied(stage, ORDERS, transform="bench.functions:cents", name="bench-transform-sampled")
    for name, share in anatomy.shares(spec):
        report.figures.append(Figure(f"sampled: {name}", share * 100, "% of the time"))


def _compare(report: Report) -> None:
    """The ratios that are promised, and the ones that say what a transform costs."""
    for table in TABLES:
        work = COPY.format(table=table.name)
        report.compare(work, TRANSFORMED, PASSED, LEAST_OF_PASSING)
        _compare_own(report, work, TRANSFORMED, PASSED, LEAST_OF_PASSING)
        report.compare(work, TRANSFORMED, LOOPED, LEAST_OF_LOOPING)
        report.compare(work, TRANSFORMED, LOOPED_FAST, LEAST_OF_LOOPING)
        report.compare(work, PASSED, LOOPED, None)
        report.compare(work, TRANSFORMED, BY_SQL, None)
        _compare_own(report, work, TRANSFORMED, BY_SQL, None)
        for name in (PASSED, TRANSFORMED, LOOPED, LOOPED_FAST):
            if (contender := report.find(work, name)) is not None:
                cpu_us = statistics.median((s.client_cpu_s or 0.0) / s.rows * 1e6 for s in contender.samples)
                note = "" if name in (LOOPED, LOOPED_FAST) else "start-up and preflight included"
                report.figures.append(Figure(f"{work}: {name}, client CPU", cpu_us, "µs/row", note=note))
    report.compare(PLACE, TRANSFORMED, BY_SQL, None)
    _compare_own(report, PLACE, TRANSFORMED, BY_SQL, None)
    report.compare(LOOKUP, SIXTEEN, ONE, None)


def _compare_own(report: Report, work: str, ours: str, other: str, target: float | None) -> None:
    """By the jobs' own clocks on both sides: without start-up and preflight, which hide what differs."""
    mine, theirs = report.find(work, ours), report.find(work, other)
    if mine is None or theirs is None:
        return
    pairs = [
        (a.own_seconds, b.own_seconds)
        for a, b in zip(mine.samples, theirs.samples, strict=True)
        if a.own_seconds and b.own_seconds
    ]
    spread = _spread([a for a, _ in pairs]), _spread([b for _, b in pairs])
    note = f"own clocks on both sides; spreads {spread[0]:.0%} and {spread[1]:.0%}"
    goal = None if target is None else Target(target)
    name = f"{work}: {ours} against {other}, own clocks"
    report.ratios.append(Ratio(name, tuple(b / a for a, b in pairs), goal, note))


def _spread(seconds: list[float]) -> float:
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


if __name__ == "__main__":
    main()
