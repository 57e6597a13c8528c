"""``docs/cli.md`` and the commands say the same."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from engine.cli.main import COMMANDS
from engine.cli.spec_options import _NAMES as SPEC_FLAGS

TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL))
EVERYWHERE = {"--json", "--quiet", "--verbose", "--dsn", "--daemon", "--connection", "--token-file", "--help"}


def command(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name].partition(":")
    found: click.Command = getattr(import_module(module), attribute)
    return found


def test_every_command_has_its_section_and_no_section_is_stale() -> None:
    assert set(SECTIONS) == set(COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_option_is_described(name: str) -> None:
    section = SECTIONS[name]
    common = (
        section + TEXT[TEXT.index("## Removing") : TEXT.index("### restart")]
        if name in ("restart", "cleanup")
        else section
    )
    for parameter in parameters(command(name)):
        if not isinstance(parameter, click.Option) or (name in ("plan", "rehearse") and parameter.name in SPEC_FLAGS):
            continue
        if not EVERYWHERE & set(parameter.opts):
            assert any(option in common for option in parameter.opts), f"{name} {parameter.opts}"


def parameters(of: click.Command) -> list[click.Parameter]:
    """Its own, and those of its subcommands."""
    below = of.commands.values() if isinstance(of, click.Group) else ()
    return [*of.params, *(parameter for one in below for parameter in one.params)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_in_a_section_exists(name: str) -> None:
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", SECTIONS[name]))
    known = {option for parameter in parameters(command(name)) for option in parameter.opts}
    assert shown <= known | EVERYWHERE, shown - known
