"""``backfill dashboards``: what Grafana and Prometheus need to show our metrics, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from engine.cli.terminal import Terminal, output_options
from engine.errors import UsageError
from engine.telemetry import boards, numbers

SHOWN_FILES: Final = 3


@click.group()
def dashboards() -> None:
    """Grafana dashboards, alert rules and provisioning for the metrics of jobs."""


@dashboards.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite files that are different.")
@output_options
def export(terminal: Terminal, folder: Path, force: bool) -> int:
    """Write dashboards, alert rules, what to do about alerts, and example provisioning into DIR.

    Files that are there and different are somebody's: nothing is written unless --force. DIR also holds a compose file
    that starts Grafana and Prometheus with all of it.
    """
    try:
        wanted = boards.files()
    except FileNotFoundError as missing:
        raise UsageError(str(missing), hint="install the wheel, or use a checkout") from None
    try:
        written, unchanged = _write(folder, {str(path): content for path, content in wanted.items()}, force=force)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from None
    if terminal.as_json:
        terminal.json({"folder": str(folder), "written": written, "unchanged": unchanged})
        return 0
    for name in written:
        terminal.data(str(folder / name))
    same = f", {numbers.counted(len(unchanged), 'file')} left as it was" if unchanged else ""
    terminal.say(f"{numbers.counted(len(written), 'file')} written{same}; README.md there says what to do with them")
    return 0


def _write(folder: Path, wanted: dict[str, bytes], *, force: bool) -> tuple[list[str], list[str]]:
    """Names of what was written, and of what was there already, byte for byte."""
    there = {name: (folder / name).read_bytes() for name in wanted if (folder / name).exists()}
    others = [name for name, content in there.items() if content != wanted[name]]
    if others and not force:
        named = ", ".join(others[:SHOWN_FILES]) + (", …" if len(others) > SHOWN_FILES else "")
        raise UsageError(
            f"{folder} has {numbers.counted(len(others), 'file')} of these names with other content: {named}",
            hint="nothing was written; choose another folder, or overwrite them with --force",
        )
    written = [name for name in wanted if there.get(name) != wanted[name]]
    for name in written:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wanted[name])
    return written, [name for name in wanted if name not in written]
