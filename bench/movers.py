"""The three movers against other ways of doing the same: ``python -m bench.movers --mode copy|insert|update|all``.

Every round runs every contender once, in another order each time.  Before each run the tables are put back, warmed and
checkpointed; after each run the rows are compared with what they should be.  Neither is part of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import yardsticks
from bench.ours import run_command, run_plain
from bench.report import Contender, Report, Sample, arguments_for, say, settle
from bench.stage import ORDERS_COLUMNS, Stage, check_equal

ROWS = 3_000_000
SMOKE_ROWS = 20_000
REPEAT = 5
DUAL_WRITTEN = 0.05

COPY = "copy"
COPY_MET = "copy, 5 % there"
INSERT = "insert"
UPDATE = "update"

OURS = "ours"
OURS_UNGUARDED = "ours, deletes: none"
OURS_TRIGGERS = "ours, guarded by our triggers"


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
    parser.add_argument("--mode", choices=("copy", "insert", "update", "all"), default="all")
    options = settle(parser, arguments)
    with Stage(options.server, smoke=options.smoke) as stage:
        report = Report(
            "movers",
            f"Moving {options.rows:,} rows",
            options.smoke,
            {
                "rows": options.rows,
                "repeat": options.repeat,
                "server": stage.settings,
                "ours": "the whole process of `backfill run --json`, at default settings",
                "order": "every round runs each way of one mode once, in rotating order",
            },
            {**stage.versions, "pgcopydb": yardsticks.pgcopydb_version()},
        )
        stages = {"copy": _copy_ways, "insert": _insert_ways, "update": _update_ways}
        for mode, ways in stages.items():
            if options.mode in (mode, "all"):
                _rounds(ways(stage, report, options.rows), options.repeat)
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
            say(f"    {sample.seconds:.2f} s, {sample.rows / sample.seconds:,.0f} rows/s")


# -- to another database --------------------------------------------------------------------------------------------


def _copy_ways(stage: Stage, report: Report, rows: int) -> list[Way]:
    stage.create("source")
    stage.make_orders("source", rows)
    stage.create("empty")
    stage.make_empty_orders("empty")
    expected = stage.digest("source", "orders")
    spec = _spec(stage, "bench-copy", "source", "orders", "target", "orders")

    # What dual-write leaves in the target while the job is being prepared: the newest rows.
    stage.create("met", "empty")
    newest = f"SELECT * FROM orders WHERE id > {round(rows * (1 - DUAL_WRITTEN))}"
    file = stage.server.folder / "newest.copy"
    stage.sql("source", f"COPY ({newest}) TO '{file}'")
    stage.sql("met", f"COPY orders FROM '{file}'; VACUUM (FREEZE, ANALYZE) orders")

    def fresh(template: str) -> Callable[[], None]:
        def prepare() -> None:
            stage.create("target", template)
            stage.settle("source", "orders")

        return prepare

    def check() -> None:
        check_equal("the copy", expected, stage.digest("target", "orders"))

    def way(work: str, name: str, detail: str, run: Callable[[], Sample], template: str = "empty") -> Way:
        return Way(report.contender(work, name, detail), fresh(template), run, check)

    bare = f"streamed COPY, chunks of {yardsticks.COPY_CHUNK_ROWS:,}, 2 workers, asynchronous commit"
    ways = [
        way(COPY, OURS, "backfill run, default settings (2 workers)", lambda: _ours(spec, rows)),
        way(
            COPY,
            "psql pipe",
            "psql COPY | psql COPY, binary, one stream",
            lambda: yardsticks.psql_pipe(stage, "source", "target", "orders", rows),
        ),
        way(COPY, "bare loop", bare, lambda: yardsticks.bare_copy(stage, "source", "target", "orders", rows)),
        way(
            COPY,
            "server limit",
            "(COPY OUT to /dev/null + COPY IN from a file) / 2: two processors, no client",
            lambda: yardsticks.server_limit(stage, "source", "target", "orders", rows),
        ),
        way(COPY_MET, OURS, "the newest 5 % are in the target already", lambda: _ours(spec, rows), "met"),
        way(
            COPY_MET,
            "ON CONFLICT always",
            f"{bare}, every chunk through a staging table with ON CONFLICT DO NOTHING",
            lambda: yardsticks.bare_copy(stage, "source", "target", "orders", rows, staged=True),
            "met",
        ),
    ]
    if yardsticks.pgcopydb_path() is None:
        report.skip("pgcopydb", "not on the PATH (apt-get install pgcopydb)")
    else:
        for name, flags in yardsticks.PGCOPYDB_SETTINGS.items():
            ways.append(_pgcopydb_way(stage, report, rows, name, flags, check))
    return ways


def _pgcopydb_way(
    stage: Stage, report: Report, rows: int, name: str, flags: list[str], check: Callable[[], None]
) -> Way:
    def prepare() -> None:
        stage.create("target")
        stage.settle("source", "orders")

    return Way(
        report.contender(COPY, f"pgcopydb, {name}", "pgcopydb clone " + " ".join(flags)),
        prepare,
        lambda: yardsticks.pgcopydb(stage, "source", "target", rows, flags),
        check,
    )


# -- within one database --------------------------------------------------------------------------------------------


def _insert_ways(stage: Stage, report: Report, rows: int) -> list[Way]:
    stage.create("one")
    stage.make_orders("one", rows)
    expected = stage.digest("one", "orders")
    guarded = _spec(stage, "bench-insert", "one", "orders", "one", "orders_v2")

    def prepare() -> None:
        stage.sql("one", "DROP SCHEMA IF EXISTS backfill CASCADE; DROP TABLE IF EXISTS orders_v2")
        stage.make_empty_orders("one", "orders_v2")
        stage.settle("one", "orders")

    def prepare_triggers() -> None:
        prepare()
        run_plain("dualwrite", guarded, "--install")

    def check() -> None:
        check_equal("the new table", expected, stage.digest("one", "orders_v2"))

    def way(name: str, detail: str, run: Callable[[], Sample], prepare: Callable[[], None] = prepare) -> Way:
        return Way(report.contender(INSERT, name, detail), prepare, run, check)

    bare = f"one statement per chunk of {yardsticks.INSERT_CHUNK_ROWS:,} with the bounded anti-join, 2 workers"
    return [
        way(OURS, "backfill run, default settings: deletes: guarded, 2 workers", lambda: _ours(guarded, rows)),
        way(OURS_UNGUARDED, "the same without the final sweep", lambda: _ours({**guarded, "deletes": "none"}, rows)),
        way(
            OURS_TRIGGERS,
            "the same with backfill dualwrite --install before it: the sweep looks at tombstones only",
            lambda: _ours(guarded, rows),
            prepare_triggers,
        ),
        way(
            "one INSERT … SELECT",
            "one statement, one transaction",
            lambda: yardsticks.one_statement(stage, "one", "INSERT INTO orders_v2 SELECT * FROM orders", rows),
        ),
        way(
            "bare loop",
            f"{bare}, asynchronous commit",
            lambda: yardsticks.bare_statement(stage, "one", yardsticks.BARE_INSERT, rows, yardsticks.INSERT_CHUNK_ROWS),
        ),
    ]


# -- in place -------------------------------------------------------------------------------------------------------


def _update_ways(stage: Stage, report: Report, rows: int) -> list[Way]:
    stage.create("unfilled")
    stage.make_orders("unfilled", rows)
    stage.sql("unfilled", "ALTER TABLE orders ADD COLUMN new_c int; VACUUM (ANALYZE) orders")
    filled = ", ".join((*ORDERS_COLUMNS, "customer_id * 2 AS new_c"))
    expected = stage.digest("unfilled", "orders", filled)
    spec = {
        "name": "bench-update",
        "source": {"dsn": stage.dsn("work"), "table": "orders"},
        "set": {"new_c": "customer_id * 2"},
    }

    def prepare() -> None:
        stage.create("work", "unfilled")
        stage.settle("work", "orders")

    def check() -> None:
        check_equal("the filled table", expected, stage.digest("work", "orders"))

    def way(name: str, detail: str, run: Callable[[], Sample]) -> Way:
        return Way(report.contender(UPDATE, name, detail), prepare, run, check)

    return [
        way(OURS, "backfill run, default settings (2 workers)", lambda: _ours(spec, rows)),
        way(
            "one UPDATE",
            "one statement, one transaction",
            lambda: yardsticks.one_statement(stage, "work", "UPDATE orders SET new_c = customer_id * 2", rows),
        ),
        way(
            "bare loop",
            f"one statement per chunk of {yardsticks.UPDATE_CHUNK_ROWS:,}, 2 workers, asynchronous commit",
            lambda: yardsticks.bare_statement(
                stage, "work", yardsticks.BARE_UPDATE, rows, yardsticks.UPDATE_CHUNK_ROWS
            ),
        ),
        way(
            "pgroll's statement shape",
            f"{yardsticks.PGROLL_CHUNK_ROWS:,} rows, CTE with row locks, one worker, synchronous commit; not pgroll",
            lambda: yardsticks.bare_statement(
                stage,
                "work",
                yardsticks.PGROLL_SHAPE,
                rows,
                yardsticks.PGROLL_CHUNK_ROWS,
                workers=1,
                synchronous=True,
            ),
        ),
    ]


# -- ours, and the verdict ------------------------------------------------------------------------------------------


def _spec(stage: Stage, name: str, source: str, table: str, target: str, into: str) -> dict[str, Any]:
    return {
        "name": name,
        "source": {"dsn": stage.dsn(source), "table": table},
        "target": {"dsn": stage.dsn(target), "table": into},
    }


def _ours(spec: dict[str, Any], rows: int) -> Sample:
    """Rates are of the table's rows: with some in the target already, fewer are written."""
    sample = run_command(spec).sample
    return replace(sample, rows=rows, notes={"rows_written": sample.rows})


def _compare(report: Report) -> None:
    """The ratios that are promised, and the ones that say where the time goes."""
    report.compare(COPY, OURS, "psql pipe", 1.6)
    peers = [c for c in report.contenders if c.name.startswith("pgcopydb") and c.samples]
    if peers:
        best = min(peers, key=lambda c: c.median_s)
        report.compare(COPY, OURS, best.name, 1.5, "its best setting in this run")
    report.compare(COPY, OURS, "server limit", 0.85)
    report.compare(COPY, OURS, "bare loop", None)
    report.compare(COPY_MET, OURS, "ON CONFLICT always", 1.6)
    report.compare(INSERT, OURS_UNGUARDED, "one INSERT … SELECT", 1.5)
    report.compare(INSERT, OURS, "one INSERT … SELECT", 1.2)
    report.compare(INSERT, OURS_TRIGGERS, "one INSERT … SELECT", 1.2)
    report.compare(INSERT, OURS_TRIGGERS, OURS_UNGUARDED, None, "what the guard costs with our triggers")
    report.compare(INSERT, OURS_UNGUARDED, "bare loop", None)
    report.compare(UPDATE, OURS, "one UPDATE", 1.7)
    report.compare(UPDATE, OURS, "bare loop", None)
    report.compare(UPDATE, OURS, "pgroll's statement shape", None, "the target, 3 times, is for the real program")


if __name__ == "__main__":
    main()
