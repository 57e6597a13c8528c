"""``python -m tests.faults.stress --mode update|insert|copy --rows N --kills K --writers W --seed S [--ours] [--json]``

A server of its own, a job of N rows that verifies itself in the end, two runner processes killed K times with SIGKILL, W
application processes.  Prints where the kills fell and what came out; ends with 1 when a row is lost, doubled or wrong,
or when the job's own verification says so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from engine.embedded import EmbeddedServer
from engine.model import Deletes, Mode
from tests.support.databases import QUIET, TwoDatabases, create_database
from tests.support.stress import Plan, Report, stress

BAR = 40


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", type=Mode, choices=list(Mode), action="append")
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ours", action="store_true", help="dual-write by our own triggers (not between databases)")
    parser.add_argument("--deletes", type=Deletes, choices=list(Deletes), default=Deletes.GUARDED)
    parser.add_argument("--row-delay-us", type=float, default=0.0, help="make rows slow instead of many")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    right = True
    with EmbeddedServer(16, settings=QUIET | {"shared_buffers": "256MB"}, tcp=True) as server:
        for mode in options.mode or list(Mode):
            plan = Plan(
                mode,
                options.rows,
                options.kills,
                options.writers,
                options.seed,
                options.row_delay_us / 1e6,
                ours=options.ours and mode is not Mode.COPY,
                deletes=options.deletes,
            )
            report = asyncio.run(stress(plan, TwoDatabases(create_database(server), create_database(server))))
            print(json.dumps(report.as_json()) if options.json else text(report), flush=True)
            right = right and report.lost == report.ghosts == 0 and report.kills == plan.kills and bool(report.verified)
    return 0 if right else 1


def text(report: Report) -> str:
    """For people."""
    lines = [
        (
            f"{report.plan.mode.value}: {report.rows:,} rows in {report.seconds:.0f} s, lost {report.lost}, "
            f"wrong or too many {report.ghosts}, swept {report.swept} by {report.swept_by or 'nothing'}"
        ),
        f"  verified meanwhile: {report.verified}, {report.found}",
        f"  {report.kills} kills, {report.inside:.0%} of them inside an open transaction of a chunk:",
    ]
    for phase, count in report.phases.most_common():
        lines.append(f"    {phase:32} {'#' * max(1, round(BAR * count / report.kills))} {count}")
    said = report.application
    lines.append(
        f"  application: {said['committed']:,} transactions committed, {said['rolled back']:,} rolled back, "
        f"{said['beaten']:,} beaten; {report.near:.0%} of {said['keys']:,} keys within two chunks of a cursor"
    )
    lines.append(f"  races (a cursor passed the key while its transaction was open): {said['races']:,}")
    lines += [f"    {name.removeprefix('races: '):32} {count:,}" for name, count in said.items() if ": " in name]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
