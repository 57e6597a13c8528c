"""The oracle: all static settings of chunk, duty and workers beside the foreground, and the best polite one.

A setting is what a person would write down after a week of trying: so many rows a chunk, so many workers, and a limit
that leaves them a share of the time.  All settings of a round run one after the other on one job, which goes on where
the last one stopped.  That is a look of some seconds at each, and some stalls come every half minute: so the best are
then judged as the strategies are, for as long, by the same rule, and the first that keeps the target is the oracle.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from bench.beside import Beside, Scene, run_beside
from bench.judge import TAIL
from bench.openloop import together
from bench.report import say

CHUNK_ROWS: Final = (200, 1_000, 10_000)
WORKERS: Final = (1, 2)
DUTIES: Final = (1.0, 0.5, 0.25)
"""Shares of the time, the whole of it first: the others are made of the rate that it reaches."""

CANDIDATES: Final = 6
"""Settings that are judged in full, from the fastest downwards, until one of them keeps the target."""

LEAD_S: Final = 0.5
SETTLE_S: Final = 1.0
"""A static setting has nothing to find out: what is left out is its start."""

FASTEST_PER_S: Final = 450_000.0
"""Rows per second that no setting exceeds: a job is begun anew when its rows might not last for one more setting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One static setting."""

    chunk_rows: int
    workers: int
    duty: float

    def __str__(self) -> str:
        return f"{self.chunk_rows:,} rows x {self.workers}, duty {self.duty:g}"

    def spec(self, base: dict[str, Any], limit_per_s: float | None) -> dict[str, Any]:
        """A job's spec under this setting, with all signals off."""
        pace = {"signals": "off"} | ({} if limit_per_s is None else {"max_rows_per_s": limit_per_s})
        return {**base, "workers": self.workers, "chunk": fixed_chunks(self.chunk_rows), "pace": pace}


def fixed_chunks(rows: int) -> dict[str, Any]:
    """Chunks of one size, whatever the sizer would like."""
    return {"min_rows": rows, "max_rows": rows, "target": "60s", "max_bytes": "1GiB"}


def settings(*, smoke: bool) -> tuple[Setting, ...]:
    """All of them; the first duty of each pair comes first."""
    if smoke:
        return tuple(Setting(1_000, 1, duty) for duty in DUTIES[:2])
    return tuple(Setting(*one) for one in product(CHUNK_ROWS, WORKERS, DUTIES))


class Sweep:
    """All settings, some rounds of them, in one scene."""

    def __init__(self, scene: Scene, seconds: float, begin: Callable[[], dict[str, Any]], *, smoke: bool) -> None:
        """``begin`` puts the tables back and gives the spec of a job that has everything before it."""
        self._judged = replace(scene, lead_s=min(LEAD_S, scene.lead_s), settle_s=min(SETTLE_S, scene.settle_s))
        self._scene = replace(
            scene, lead_s=min(LEAD_S, scene.lead_s), settle_s=min(SETTLE_S, scene.settle_s), seconds=seconds
        )
        self._begin = begin
        self.runs: dict[Setting, list[Beside]] = {setting: [] for setting in settings(smoke=smoke)}

    def round(self) -> None:
        """Every setting once."""
        base, left = self._begin(), self._scene.orders
        for setting, runs in self.runs.items():
            full_per_s = None if setting.duty == 1 else self.runs[replace(setting, duty=1.0)][-1].rows_per_s
            if left < (setting.duty * (full_per_s or FASTEST_PER_S)) * self._scene.whole_s:
                base, left = self._begin(), self._scene.orders
            limit_per_s = None if full_per_s is None else max(1.0, setting.duty * full_per_s)
            run = run_beside(self._scene, setting.spec(base, limit_per_s))
            left -= run.moved.scanned if run.moved else 0
            runs.append(run)
            say(f"    {setting}: p99 {run.p99_s * 1e3:.1f} ms, {run.rows_per_s:,.0f} rows/s")

    def p99_s(self, setting: Setting) -> float:
        """The foreground's p99 beside a setting, over all rounds."""
        return together([run.judged for run in self.runs[setting]]).quantile_s(TAIL)

    def rate_per_s(self, setting: Setting) -> float:
        """The median of a setting's rates."""
        return statistics.median(run.rows_per_s for run in self.runs[setting])

    def best(self, limit_s: float, least_within: float) -> tuple[Setting, Beside] | None:
        """The fastest setting beside which the foreground keeps its target when it is judged in full, and that run;
        None when none of the candidates does.
        """
        polite = [setting for setting, runs in self.runs.items() if runs and self.p99_s(setting) <= limit_s]
        for setting in sorted(polite, key=self.rate_per_s, reverse=True)[:CANDIDATES]:
            full_per_s = self.rate_per_s(replace(setting, duty=1.0))
            limit_per_s = None if setting.duty == 1 else max(1.0, setting.duty * full_per_s)
            run = run_beside(self._judged, setting.spec(self._begin(), limit_per_s))
            within = run.within(limit_s)
            say(f"    {setting}, judged in full: {within:.0%} within the target, {run.rows_per_s:,.0f} rows/s")
            if within >= least_within:
                return setting, run
        return None

    def points(self) -> Sequence[tuple[Setting, float, float]]:
        """Every setting that ran, with its p99 in seconds and its rate."""
        return [(setting, self.p99_s(setting), self.rate_per_s(setting)) for setting, runs in self.runs.items() if runs]
