"""All benchmarks, one after the other: ``python -m bench [--smoke] [--json FILE]``.

Each runs in a process of its own, so that none measures what another left in memory; their reports become one list.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.report import say, write

BENCHMARKS = (
    "plan",
    "bucket",
    "codec",
    "simulate",
    "overhead",
    "idle",
    "memory",
    "verification",
    "control_latency",
    "movers",
    "transform",
    "bloat",
    "foreground",
)
"""The quick ones first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all; 1 when one of them broke (a target that was not reached is a result, not a failure)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="once and small: that they run, not how fast")
    parser.add_argument("--json", metavar="FILE", help="write all reports there, as one list; - is standard output")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    options = parser.parse_args(arguments)
    reports: list[object] = []
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="backfill-bench-") as folder:
        for name in options.only:
            if importlib.util.find_spec(f"bench.{name}") is None:
                continue
            file = Path(folder, f"{name}.json")
            command = [sys.executable, "-m", f"bench.{name}", "--json", str(file)]
            done = subprocess.run([*command, *(["--smoke"] if options.smoke else [])], check=False)
            if done.returncode == 0:
                reports.append(json.loads(file.read_text()))
            else:
                broken.append(name)
    if options.json:
        write(reports, options.json)
    if broken:
        say(f"broken: {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
