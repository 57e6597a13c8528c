"""What a benchmark found, as one JSON schema and as tables: machine, versions, settings, rounds, medians, ratios.

A **contender** is one way to do a piece of work, timed once per round.  A **ratio** compares two contenders round by
round, since two runs within a minute of each other see the same machine, and runs an hour apart may not.  A **figure**
is any other number.  Ratios and figures may have a target; whether it was reached is left open (null) in a smoke run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SCHEMA = "backfill-bench/1"

FILE_WIDTH = 160
"""Columns of the tables when they are written to a file."""

AT_LEAST = ">="
AT_MOST = "<="


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed run of one contender."""

    seconds: float
    rows: int
    client_cpu_s: float | None = None  # of the processes on the client's side, start-up included
    client_peak_bytes: int | None = None  # the largest resident set of any of them
    chunks: int | None = None
    own_seconds: float | None = None  # what the program itself reports, where that is something else
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do a piece of work."""

    work: str  # what is done: contenders of the same work can be compared
    name: str
    detail: str  # how exactly, in words
    samples: list[Sample] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """The median of the rounds, in seconds."""
        return statistics.median(s.seconds for s in self.samples)

    @property
    def spread(self) -> float:
        """Slowest minus fastest round, as a share of the median."""
        seconds = [s.seconds for s in self.samples]
        return (max(seconds) - min(seconds)) / self.median_s

    @property
    def rows_per_s(self) -> float:
        """Rows per second at the median."""
        return statistics.median(s.rows for s in self.samples) / self.median_s

    def as_json(self) -> dict[str, Any]:
        """The contender with its medians."""
        return {
            "work": self.work,
            "name": self.name,
            "detail": self.detail,
            "median_s": round(self.median_s, 4),
            "rows_per_s": round(self.rows_per_s),
            "spread": round(self.spread, 3),
            "rounds": [_rounded(asdict(s)) for s in self.samples],
        }


@dataclass(frozen=True, slots=True)
class Target:
    """What a number must reach, and where that is said."""

    value: float
    relation: str = AT_LEAST

    def is_reached_by(self, value: float) -> bool:
        """True when ``value`` is on the right side, the boundary included."""
        return value >= self.value if self.relation == AT_LEAST else value <= self.value


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster one contender is than another: the median over the rounds."""

    name: str
    per_round: tuple[float, ...]
    target: Target | None = None
    note: str = ""

    @property
    def value(self) -> float:
        """The median ratio."""
        return statistics.median(self.per_round)


@dataclass(frozen=True, slots=True)
class Figure:
    """Any other number."""

    name: str
    value: float
    unit: str
    target: Target | None = None
    note: str = ""


@dataclass(slots=True)
class Report:
    """Everything one benchmark found."""

    benchmark: str
    title: str
    smoke: bool
    settings: dict[str, Any]
    versions: dict[str, Any] = field(default_factory=dict)
    contenders: list[Contender] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def contender(self, work: str, name: str, detail: str) -> Contender:
        """Add a contender."""
        added = Contender(work, name, detail)
        self.contenders.append(added)
        return added

    def find(self, work: str, name: str) -> Contender | None:
        """The contender of that work and name, if it ran."""
        return next((c for c in self.contenders if (c.work, c.name) == (work, name) and c.samples), None)

    def compare(self, work: str, ours: str, other: str, target: float | None, note: str = "") -> None:
        """Add how many times faster ``ours`` is than ``other``, when both ran."""
        mine, theirs = self.find(work, ours), self.find(work, other)
        if mine is None or theirs is None:
            return
        pairs = list(zip(mine.samples, theirs.samples, strict=True))
        per_round = tuple(b.seconds / a.seconds for a, b in pairs)
        goal = None if target is None else Target(target)
        by_own_clock = [b.seconds / a.own_seconds for a, b in pairs if a.own_seconds]
        if by_own_clock:
            started = f"{statistics.median(by_own_clock):.2f} x by the job's own clock"
            note = "; ".join(text for text in (started, note) if text)
        self.ratios.append(Ratio(f"{work}: {ours} against {other}", per_round, goal, note))

    def skip(self, what: str, why: str) -> None:
        """Note that something was left out, and why."""
        self.skipped.append({"what": what, "why": why})

    def as_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "schema": SCHEMA,
            "benchmark": self.benchmark,
            "title": self.title,
            "started_at": self.started_at,
            "smoke": self.smoke,
            "machine": machine(),
            "versions": {**_client_versions(), **self.versions},
            "settings": self.settings,
            "contenders": [c.as_json() for c in self.contenders if c.samples],
            "ratios": [
                {
                    "name": r.name,
                    "value": round(r.value, 3),
                    "per_round": [round(v, 3) for v in r.per_round],
                    **self._judged(r.target, r.value),
                    "note": r.note,
                }
                for r in self.ratios
            ],
            "figures": [
                {
                    "name": f.name,
                    "value": round(f.value, 4),
                    "unit": f.unit,
                    **self._judged(f.target, f.value),
                    "note": f.note,
                }
                for f in self.figures
            ],
            "skipped": self.skipped,
        }

    def _judged(self, target: Target | None, value: float) -> dict[str, Any]:
        if target is None:
            return {"target": None, "reached": None}
        reached = None if self.smoke else target.is_reached_by(value)
        return {"target": f"{target.relation} {target.value:g}", "reached": reached}

    def finish(self, arguments: argparse.Namespace) -> None:
        """Print the tables, and write the JSON where the command line says."""
        data = self.as_json()
        show(data)
        if arguments.json:
            write(data, arguments.json)


def machine() -> dict[str, Any]:
    """What the numbers depend on and a reader cannot see."""
    return {
        "cpu": _first_line("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _client_versions() -> dict[str, str]:
    names = ("backfill-engine", "asyncpg", "uvloop")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _first_line(path: str, key: str) -> str:
    try:
        with Path(path).open(encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith(key)), "")
    except OSError:
        return ""


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if value not in (None, {})}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in kept.items()}


def arguments_for(
    description: str, *, rows: int, smoke_rows: int, repeat: int | None = None
) -> argparse.ArgumentParser:
    """The command line that all benchmarks share; ``settle`` replaces the sizes in a smoke run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", type=int, help=f"rows of the table (default {rows:,}; smoke {smoke_rows:,})")
    if repeat is not None:
        parser.add_argument("--repeat", type=int, help=f"rounds (default {repeat}; smoke 1)")
    parser.add_argument("--server", type=int, default=16, help="major version of PostgreSQL: 16 and 18 come along")
    parser.add_argument("--json", metavar="FILE", help="write the report there; - is standard output")
    parser.add_argument("--smoke", action="store_true", help="once and small: that it runs, not how fast")
    parser.set_defaults(_rows=rows, _smoke_rows=smoke_rows, _repeat=repeat)
    return parser


def settle(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse, with the sizes that fit the kind of run."""
    parsed = parser.parse_args(arguments)
    parsed.rows = parsed.rows or (parsed._smoke_rows if parsed.smoke else parsed._rows)  # noqa: SLF001 - our defaults
    if parsed._repeat is not None:  # noqa: SLF001
        parsed.repeat = parsed.repeat or (1 if parsed.smoke else parsed._repeat)  # noqa: SLF001
    return parsed


def write(data: dict[str, Any] | list[Any], path: str) -> None:
    """Write reports as JSON; ``-`` is standard output."""
    text = json.dumps(data, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def show(data: dict[str, Any]) -> None:
    """Print one report as tables, on standard error: standard output is for data."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH  # a log has no edge to wrap at
    smoke = "  [yellow](smoke run: the numbers mean nothing)[/]" if data["smoke"] else ""
    console.print(f"\n[bold]{data['title']}[/]{smoke}")
    host, versions = data["machine"], data["versions"]
    console.print(
        f"[dim]{host['cpus']} cpus, {host['cpu']}, {host['memory_bytes'] / 2**30:.0f} GiB; "
        + ", ".join(f"{name} {number}" for name, number in versions.items() if number)
        + "[/]"
    )
    if data["contenders"]:
        console.print(_contenders_table(data["contenders"]))
    if data["ratios"] or data["figures"]:
        console.print(_numbers_table(data))
    for item in data["skipped"]:
        console.print(f"[dim]left out: {item['what']}: {item['why']}[/]")


def _contenders_table(contenders: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("work")
    table.add_column("way")
    for heading in ("median s", "spread", "rows/s", "client CPU s", "µs/chunk", "peak MB"):
        table.add_column(heading, justify="right")
    for contender in contenders:
        rounds = contender["rounds"]
        cpu_s = _median(r.get("client_cpu_s") for r in rounds)
        peak = _median(r.get("client_peak_bytes") for r in rounds)
        chunks = _median(r.get("chunks") for r in rounds)
        table.add_row(
            contender["work"],
            contender["name"],
            f"{contender['median_s']:.2f}",
            f"{contender['spread']:.0%}",
            f"{contender['rows_per_s']:,}",
            "" if cpu_s is None else f"{cpu_s:.2f}",
            "" if cpu_s is None or not chunks else f"{cpu_s / chunks * 1e6:,.0f}",
            "" if peak is None else f"{peak / 2**20:.0f}",
        )
    return table


def _numbers_table(data: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("what")
    for heading in ("value", "target", "reached"):
        table.add_column(heading, justify="right")
    table.add_column("note", style="dim")
    for ratio in data["ratios"]:
        rounds = ", ".join(f"{value:.2f}" for value in ratio["per_round"])
        note = "; ".join(part for part in (f"rounds {rounds}", ratio["note"]) if part)
        table.add_row(ratio["name"], f"{ratio['value']:.2f} x", ratio["target"] or "", _verdict(ratio), note)
    for figure in data["figures"]:
        value = f"{figure['value']:,.3g}" if abs(figure["value"]) < 1000 else f"{figure['value']:,.0f}"
        table.add_row(
            figure["name"], f"{value} {figure['unit']}", figure["target"] or "", _verdict(figure), figure["note"]
        )
    return table


def _verdict(item: dict[str, Any]) -> str:
    return {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[item["reached"]]


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
