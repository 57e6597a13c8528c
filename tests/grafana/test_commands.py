"""What panels, alerts and their page tell a person to type is what the program takes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from engine.cli.main import cli

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"`(backfill [^`]+)`")

STANDS_FOR = {
    "{{ $labels.job }}": "orders",
    "HOST:PORT": "127.0.0.1:9477",
    "SIGNAL=VALUE": "queue=7",
    "SIZE": "1MiB",
    "N": "7",
}
"""Words that a person replaces, and by what.  Others may stay as they are."""


def panels(board: Path) -> Iterator[dict[str, Any]]:
    for panel in json.loads(board.read_text())["panels"]:
        yield panel
        yield from panel.get("panels", ())


def texts() -> Iterator[tuple[str, str]]:
    """Where -> what is written there."""
    for board in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        for panel in panels(board):
            yield f"{board.stem}/{panel['title']}", panel.get("description", "")
    for group in yaml.safe_load((ROOT / "grafana" / "alerts" / "backfill.rules.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            for name, note in rule.get("annotations", {}).items():
                yield f"{rule['alert']}/{name}", note
    for page in ("docs/operations/alerts.md", "docs/alerts.md", "docs/dashboards.md", "grafana/README.md"):
        yield page, (ROOT / page).read_text()


COMMANDS = [(where, " ".join(found.split())) for where, text in texts() for found in COMMAND.findall(text)]


def test_commands_are_told_of_in_each_kind_of_place() -> None:
    places = {where.split("/")[0] for where, _ in COMMANDS}
    assert {"overview", "job", "database", "BackfillJobFailed", "docs"} <= places


@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS}))
def test_a_command_that_is_shown_is_taken(command: str) -> None:
    where = sorted({where for where, one in COMMANDS if one == command})
    for word, value in STANDS_FOR.items():
        command = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", value, command)
    _, *words = shlex.split(command)
    group: click.Command = cli
    context = click.Context(cli, info_name="backfill")
    while isinstance(group, click.Group):
        found = group.get_command(context, words[0]) if words else None
        assert found is not None, f"{where}: {command}: no such command"
        group, name, *words = found, *words
        context = click.Context(group, info_name=name, parent=context)
    try:
        group.make_context(context.info_name, words, parent=context.parent)
    except click.UsageError as wrong:
        pytest.fail(f"{where}: {command}: {wrong.format_message()}")
