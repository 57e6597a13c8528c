"""``backfill serve``: the daemon that orchestrators drive."""

from __future__ import annotations

import os

import click

from engine.cli.loop import run_async
from engine.cli.terminal import Terminal, output_options
from engine.fleet.signals import NAMES, TwoSignals, exit_code
from engine.service.config import load_config
from engine.service.daemon import Daemon


@click.command()
@click.option("--config", "path", required=True, metavar="FILE", help="The operator's backfill.toml.")
@output_options
def serve(terminal: Terminal, path: str) -> int:
    """Answer the API, and work the jobs of the connections that the configuration lists."""
    config = load_config(path)
    return run_async(_serve(terminal, Daemon(config, config.dsns(os.environ))))


async def _serve(terminal: Terminal, daemon: Daemon) -> int:
    signals = TwoSignals(lambda number: daemon.drain(NAMES[number]), lambda: None)
    with signals.watched():
        await daemon.run(lambda urls: terminal.say(f"listening on {', '.join(urls)}"))
    return exit_code(signals.first) if signals.first is not None else 0
