"""``--allow-transform``: which Python functions jobs of a ledger may run in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from engine.transform.reference import is_allowable

Command = TypeVar("Command", bound=Callable[..., Any])


def _checked(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not is_allowable(value):
            raise click.BadParameter("write module.path:function, or module.path:* for all of a module")
    return values


def transform_option(command: Command) -> Command:
    """Adds ``--allow-transform``; the command gets what was allowed as ``transforms``."""
    option = click.option(
        "--allow-transform",
        "transforms",
        multiple=True,
        metavar="MODULE:FUNCTION",
        callback=_checked,
        help="A transform that jobs may run here; MODULE:* for all of a module.",
    )
    return option(command)
