"""What all parts of the foreground benchmark share: server, report, options and timetable."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import works
from bench.beside import Beside, Scene
from bench.report import Figure, Report, Target
from bench.stage import Stage


@dataclass(frozen=True, slots=True)
class Times:
    """The timetable, in seconds."""

    lead_s: float  # the foreground is there before the backfill
    settle_s: float  # of the backfill, not judged
    learn_s: float  # the same for ours, which has to find out what a person has tried before
    seconds: float  # judged
    sweep_s: float  # judged, of one static setting
    step_before_s: float
    step_s: float
    step_after_s: float


FULL: Final = Times(3.0, 5.0, 45.0, 40.0, 8.0, 30.0, 60.0, 70.0)
SMOKE: Final = Times(0.25, 0.25, 6.5, 1.0, 0.5, 1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Sitting:
    """One run of the benchmark."""

    stage: Stage
    report: Report
    options: Namespace
    times: Times

    def scene(self) -> Scene:
        """The usual timetable."""
        return Scene(
            stage=self.stage,
            database=works.SOURCE,
            orders=self.options.rows,
            rate_per_s=self.options.rate,
            lead_s=self.times.lead_s,
            settle_s=self.times.settle_s,
            seconds=self.times.seconds,
        )

    def figure(self, name: str, value: float, unit: str, target: Target | None = None, note: str = "") -> None:
        """Add a figure; one that could not be measured is said to be missing, never left out."""
        if math.isfinite(value):
            self.report.figures.append(Figure(name, value, unit, target, note))
        else:
            self.report.skip(name, "nothing was measured")

    def trace(self, run: Beside, what: str) -> None:
        """Append the law's decisions to the file that the command line names."""
        if self.options.trace and run.moved is not None:
            with self.options.trace.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"run": what, **line}) + "\n" for line in run.moved.trace())

    def picture(self, name: str) -> Path | None:
        """Where to draw it; None when nobody wants pictures."""
        folder: Path | None = self.options.picture
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return folder and folder / f"foreground-{name}.png"
