"""``--log-format``: how a long-running command writes what it has to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from engine.cli.terminal import LogFormat, Terminal

Command = TypeVar("Command", bound=Callable[..., Any])

VARIABLE: Final = "BACKFILL_LOG_FORMAT"


def log_option(command: Command) -> Command:
    """Adds ``--log-format`` to a command whose stderr is a log: sentences on a terminal, else JSON lines."""
    return click.option(
        "--log-format",
        type=click.Choice([choice.value for choice in LogFormat]),
        default=LogFormat.AUTO.value,
        envvar=VARIABLE,
        expose_value=False,
        is_eager=True,  # before anything that may fail
        callback=_chosen,
        help=f"Messages on stderr. Default: {VARIABLE}, else auto: human on a terminal, json elsewhere.",
    )(command)


def _chosen(context: click.Context, _parameter: click.Parameter, value: str) -> None:
    context.ensure_object(Terminal).log_format = LogFormat(value)
