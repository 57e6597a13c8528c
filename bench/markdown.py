"""Reports as Markdown, for ``docs/benchmarks.md``: ``python -m bench.markdown bench.json``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

VERDICTS = {True: "reached", False: "**not reached**", None: ""}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one section per report of the file, which holds one report or a list of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="what `python -m bench --json FILE` wrote")
    data = json.loads(parser.parse_args(arguments).file.read_text())
    for report in data if isinstance(data, list) else [data]:
        print("\n".join(section(report)))


def section(report: dict[str, Any]) -> Iterable[str]:
    """The lines of one report: what it ran on, the ways side by side, ratios and figures against their targets."""
    machine, versions = report["machine"], report["versions"]
    yield f"## {report['title']}"
    yield ""
    numbers = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    yield f"{machine['cpus']} cpus ({machine['cpu']}), {machine['memory_bytes'] / 2**30:.0f} GiB; {numbers}."
    yield f"Started {report['started_at']}." + (" A smoke run: the numbers mean nothing." if report["smoke"] else "")
    yield ""
    if report["contenders"]:
        yield from _table(("work", "way", "median", "spread", "rows/s", "how"), map(_contender, report["contenders"]))
    rows = [*map(_ratio, report["ratios"]), *map(_figure, report["figures"])]
    if rows:
        yield from _table(("what", "value", "target", "", "rounds, notes"), rows)
    for item in report["skipped"]:
        yield f"Left out: {item['what']} ({item['why']})."
        yield ""


def _contender(contender: dict[str, Any]) -> tuple[str, ...]:
    return (
        contender["work"],
        contender["name"],
        f"{contender['median_s']:.2f} s",
        f"{contender['spread']:.0%}",
        f"{contender['rows_per_s']:,}",
        contender["detail"],
    )


def _ratio(ratio: dict[str, Any]) -> tuple[str, ...]:
    rounds = ", ".join(f"{value:.2f}" for value in ratio["per_round"])
    notes = "; ".join(text for text in (rounds, ratio["note"]) if text)
    return (ratio["name"], f"{ratio['value']:.2f} ×", ratio["target"] or "", VERDICTS[ratio["reached"]], notes)  # noqa: RUF001


def _figure(figure: dict[str, Any]) -> tuple[str, ...]:
    value = f"{figure['value']:.4g} {figure['unit']}".strip()
    return (figure["name"], value, figure["target"] or "", VERDICTS[figure["reached"]], figure["note"])


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


if __name__ == "__main__":
    main()
