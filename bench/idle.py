"""How long workers have nothing to do on a key that is anything but even.  ``python -m bench.idle``.

Four workers fill a column of a table whose key is skewed and full of gaps: half of its rows within a thousandth of the
key space, gaps of 10¹² ids, and rows a hundred times as wide in one stretch.  A worker is idle while it looks for a
span, claims or steals included.
"""

from __future__ import annotations

from collections.abc import Sequence

import uvloop

from bench.ours import in_process
from bench.report import AT_MOST, Figure, Report, Sample, Target, arguments_for, say, settle
from bench.stage import Stage, check_equal
from engine.flow.worker import CLAIMING, NO_SPAN

ROWS = 3_000_000
SMOKE_ROWS = 60_000
REPEAT = 3
WORKERS = 4
MOST_IDLE = 0.02

TABLE = """
CREATE TABLE uneven (id bigint PRIMARY KEY, value int NOT NULL, padding text NOT NULL, filled int);
SELECT setseed(0.5);
INSERT INTO uneven
SELECT CASE WHEN g <= {rows} / 2 THEN 5 * 10::bigint ^ 15 + g          -- half of the rows side by side
            WHEN g <= {rows} * 3 / 4 THEN g::bigint ^ 2                -- ever sparser
            ELSE (g - {rows} * 3 / 4) * 10::bigint ^ 12 + 7 * 10::bigint ^ 15  -- a row every 10^12 ids
       END::bigint,
       (random() * 1e6)::int,
       CASE WHEN g BETWEEN {rows} / 4 AND {rows} / 4 + {rows} / 20 THEN repeat('wide ', 200) ELSE 'narrow' END
  FROM generate_series(1, {rows}) AS g;
VACUUM (FREEZE, ANALYZE) uneven;
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds and report."""
    options = settle(arguments_for(str(__doc__), rows=ROWS, smoke_rows=SMOKE_ROWS, repeat=REPEAT), arguments)
    with Stage(options.server, smoke=options.smoke) as stage:
        report = Report(
            "idle",
            "Idle workers on a skewed, gappy key",
            options.smoke,
            {"rows": options.rows, "repeat": options.repeat, "workers": WORKERS, "server": stage.settings},
            stage.versions,
        )
        say(f"making the table with {options.rows:,} rows")
        stage.create("unfilled")
        stage.sql("unfilled", TABLE.format(rows=options.rows))
        expected = stage.digest("unfilled", "uneven", "id, value, padding, value * 2 AS filled")
        spec = {
            "name": "bench-idle",
            "source": {"dsn": stage.dsn("work"), "table": "uneven"},
            "set": {"filled": "value * 2"},
            "workers": WORKERS,
        }
        contender = report.contender("update, uneven key", "ours", f"{WORKERS} workers, default chunks")
        shares: list[float] = []
        for number in range(options.repeat):
            say(f"round {number + 1} of {options.repeat}")
            stage.create("work", "unfilled")
            stage.settle("work", "uneven")
            done = in_process(spec, uvloop.run)
            check_equal("the filled table", expected, stage.digest("work", "uneven"))
            idle_s = done.waits.get(NO_SPAN, 0.0) + done.waits.get(CLAIMING, 0.0)
            share = idle_s / (WORKERS * done.running_s)
            shares.append(share)
            notes = {"idle_s": round(idle_s, 3), "idle_share": round(share, 4)}
            contender.samples.append(Sample(done.running_s, done.rows, chunks=done.chunks, notes=notes))
    worst = max(shares)
    report.figures.append(
        Figure("idle share of the workers' time", worst, "", Target(MOST_IDLE, AT_MOST), "the worst round")
    )
    report.finish(options)


if __name__ == "__main__":
    main()
