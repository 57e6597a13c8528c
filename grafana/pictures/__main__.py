"""``python -m grafana.pictures [FOLDER]``: record the scene for some minutes, and draw each dashboard as a PNG.

Needs the extras ``bench`` (matplotlib) and ``embedded``, and Debian's ``prometheus``.  ``--keep FOLDER`` keeps logs and
the recorded data; ``--recorded FOLDER`` draws those again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from grafana.boards import FOLDER as DASHBOARDS
from grafana.pictures.ask import Prometheus, Span
from grafana.pictures.draw import draw
from grafana.pictures.stage import Stage, prometheus, set_up, specs

PICTURES: Final = Path(__file__).parents[2] / "docs" / "pictures"
RECORD_S: Final = 210
STEP_S: Final = 1
RATE_INTERVAL_S: Final = 20
BOARDS: Final = {"overview": ".+", "job": "running", "database": "running"}

# Seconds after the first job began.
AT: Final = {
    "done": 4,
    "stalled": 8,
    "failing": 12,
    "held": 16,
    "failed": 20,
    "busy hour": 70,
    "a locked order": 95,
    "rows are locked": 100,
    "the queue fills": 110,
    "freeze": 112,
}


def main() -> None:
    """Record, or take what was recorded, and draw."""
    parser = argparse.ArgumentParser(prog="python -m grafana.pictures", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=PICTURES, help="where the pictures go")
    parser.add_argument("--keep", type=Path, help="keep what was recorded there")
    parser.add_argument("--recorded", type=Path, help="draw what was kept there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.recorded is not None:
        recorded = json.loads((options.recorded / "span.json").read_text())
        with prometheus(options.recorded, []) as url:
            paint(url, recorded["start"], recorded["end"], options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="backfill-pictures-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with set_up(folder) as stage:
            start = perform(stage)
            end = time.time()
            (folder / "span.json").write_text(json.dumps({"start": start, "end": end}))
            paint(stage.prometheus, start, end, options.folder)


def perform(stage: Stage) -> float:
    """The scene; gives the moment when it began."""
    start = time.time()
    application = [stage.application(60, RECORD_S)]
    done: set[str] = set()
    stage.run("running")
    while (passed := time.time() - start) < RECORD_S:
        for what, at in AT.items():
            if passed >= at and what not in done:
                done.add(what)
                sys.stderr.write(f"{passed:4.0f} s: {what}\n")
                application += _happens(stage, what)
        time.sleep(0.2)
    for process in application:
        process.kill()
        process.wait()
    return start


def _happens(stage: Stage, what: str) -> list[Any]:
    if what in stage.ports:
        stage.run(what)
    elif what == "busy hour":
        return [stage.application(1500, 40, clients=20)]
    elif what == "a locked order":
        rows = "SELECT count(*) FROM (SELECT FROM orders WHERE amount_cents IS NULL FOR UPDATE) locked"
        return [stage.session("BEGIN", rows, "SELECT pg_sleep(5)", "ROLLBACK")]
    elif what == "rows are locked":
        return [stage.session("BEGIN", "LOCK TABLE customers IN SHARE MODE")]
    elif what == "the queue fills":
        return [stage.session("INSERT INTO mail_queue SELECT generate_series(1, 1480)")]
    elif what == "freeze":
        stage.freeze("stalled")
    return []


def paint(url: str, start: float, end: float, folder: Path) -> None:
    """Draw every dashboard over that time."""
    source = Prometheus(url)
    for name, kind in BOARDS.items():
        dashboard = json.loads((DASHBOARDS / f"{name}.json").read_text())
        job = specs()[kind]["name"] if kind in specs() else kind
        span = Span(start, end, STEP_S, RATE_INTERVAL_S, {"job": job, "side": ".+"})
        path = folder / f"dashboard-{name}.png"
        draw(path, dashboard, lambda panel, span=span: source.series(panel, span), span)  # type: ignore[misc]
        sys.stderr.write(f"wrote {path}\n")


main()
