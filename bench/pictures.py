"""Pictures of a foreground and a backfill: over time, and one against the other.  Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.beside import Beside, Step
from bench.judge import tails

SIZE_INCHES: Final = (11, 7)
DPI: Final = 110
SHADE: Final = "#f3e3c3"
OURS: Final = "#1b6ca8"
ALONE: Final = "#7a7a7a"
TARGET: Final = "#b3261e"
OTHERS: Final = "#c98b2b"


class NoPictures(RuntimeError):
    """matplotlib is not there."""


def plotting() -> Any:
    """``matplotlib.pyplot``, drawing into files.  Raises ``NoPictures`` with what to install."""
    try:
        import matplotlib as mpl  # half a second, and only who asks for pictures needs it
    except ImportError as missing:
        raise NoPictures("pictures need matplotlib: pip install 'matplotlib>=3.9,<4'") from missing
    mpl.use("agg")
    from matplotlib import pyplot as plt

    return plt


@dataclass(frozen=True, slots=True)
class Line:
    """One run in the picture over time."""

    name: str
    run: Beside
    colour: str


def draw_step(path: Path, lines: Sequence[Line], step: Step, target_s: float, title: str) -> None:
    """The foreground's p99 and the backfill's rate over time, with the step shaded."""
    plt = plotting()
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=SIZE_INCHES, layout="constrained")
    for axes in (above, below):
        axes.axvspan(step.up_s, step.up_s + step.lasts_s, color=SHADE, zorder=0)
        axes.grid(alpha=0.3)
    for line in lines:
        run = line.run
        ends, found = tails(run.answers, run.start, run.end)
        above.plot(ends - run.start, found * 1e3, color=line.colour, label=line.name, linewidth=1.4)
        if run.moved is not None:
            rates = run.rates() / 1e3
            below.plot([second + 0.5 for second in range(len(rates))], rates, color=line.colour, label=line.name)
            _draw_limit(below, line)
    above.axhline(target_s * 1e3, color=TARGET, linestyle="--", linewidth=1, label=f"target {target_s * 1e3:.0f} ms")
    above.set_yscale("log")
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter("{x:g}")
    above.set_ylabel("foreground p99, ms\n(windows of 3 s)")
    above.set_title(title)
    above.legend(loc="upper right", framealpha=0.9)
    above.text(
        step.up_s + step.lasts_s / 2,
        0.02,
        f"+{step.rate_per_s:,.0f} transactions/s",
        transform=above.get_xaxis_transform(),
        ha="center",
    )
    below.set_ylabel("backfill, thousand rows/s")
    below.set_xlabel("seconds")
    below.set_ylim(bottom=0)
    below.legend(loc="upper right", framealpha=0.9)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _draw_limit(axes: Any, line: Line) -> None:
    """What the law allowed: nothing while it holds, and no line where there is no limit."""
    moved = line.run.moved
    decided = [] if moved is None else [one for one in moved.decisions if one[0] >= line.run.start]
    limits = [0.0 if d.held else math.nan if d.rate_per_s is None else d.rate_per_s / 1e3 for _, d in decided]
    if not limits:
        return
    axes.step(
        [at - line.run.start for at, _ in decided],
        limits,
        where="post",
        color=line.colour,
        linestyle=":",
        linewidth=1,
        label=f"{line.name}: the limit",
    )


def draw_map(
    path: Path, static: Sequence[tuple[str, float, float]], found: Mapping[str, Beside], target_s: float, title: str
) -> None:
    """Throughput against the foreground's p99: every static setting (name, p99 in seconds, rows/s), and the others."""
    plt = plotting()
    figure, axes = plt.subplots(figsize=SIZE_INCHES, layout="constrained")
    axes.grid(alpha=0.3)
    axes.axvline(target_s * 1e3, color=TARGET, linestyle="--", linewidth=1, label=f"target {target_s * 1e3:.0f} ms")
    if static:
        _, p99s, rates = zip(*static, strict=True)
        axes.scatter(
            [p99_s * 1e3 for p99_s in p99s],
            [rate / 1e3 for rate in rates],
            color=ALONE,
            s=18,
            label="static settings: chunk x duty x workers",
        )
    for name, run in found.items():
        p99_s = run.p99_s
        if math.isnan(p99_s):
            continue
        colour = ALONE if run.moved is None else OURS if name == "ours" else OTHERS
        axes.scatter([p99_s * 1e3], [run.rows_per_s / 1e3], color=colour, s=60, zorder=3)
        axes.annotate(name, (p99_s * 1e3, run.rows_per_s / 1e3), xytext=(6, 5), textcoords="offset points")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("foreground p99, ms")
    axes.set_ylabel("backfill, thousand rows/s")
    axes.margins(x=0.1)
    axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])  # the foreground alone is at zero, and to be seen
    axes.set_title(title)
    axes.legend(loc="best")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
