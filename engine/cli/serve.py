"""``backfill serve``: the daemon that orchestrators drive."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

from engine.cli.log_option import log_option
from engine.cli.loop import run_async
from engine.cli.metrics import listening
from engine.cli.terminal import Terminal, output_options
from engine.fleet.signals import NAMES, TwoSignals, exit_code
from engine.service.config import Config, load_config
from engine.service.daemon import Daemon
from engine.telemetry.entries import Entry


@click.command()
@click.option("--config", "path", required=True, metavar="FILE", help="The operator's backfill.toml.")
@click.option("--check", is_flag=True, help="Only read the configuration, and say what is wrong with it.")
@click.option("--metrics-listen", metavar="HOST:PORT", help="Serve metrics for Prometheus there, without any token.")
@log_option
@output_options
def serve(terminal: Terminal, path: str, check: bool, metrics_listen: str | None) -> int:
    """Answer the API, and work the jobs of the connections that the configuration lists.

    SIGTERM and Ctrl-C drain: nothing new is taken, chunks in hand are finished, jobs go on elsewhere or at the next
    start; a second one cuts off. SIGHUP reads tokens and certificates again.
    """
    config = load_config(path)
    dsns = config.dsns(os.environ)
    if check:
        return _checked(terminal, config, path)
    return run_async(_serve(terminal, Daemon(config, dsns, tell=terminal.tell), metrics_listen))


async def _serve(terminal: Terminal, daemon: Daemon, metrics_listen: str | None) -> int:
    signals = TwoSignals(lambda number: daemon.drain(NAMES[number]), daemon.abort)
    terminal.tell(Entry(event="daemon.started", message="starting", fields={"pid": os.getpid()}))
    with signals.watched(), _reloads(daemon), listening(terminal, daemon.metrics, metrics_listen):
        await daemon.run(lambda urls: _next_steps(terminal, urls))
    return exit_code(signals.first) if signals.first is not None else 0


@contextmanager
def _reloads(daemon: Daemon) -> Iterator[None]:
    """SIGHUP while the block runs."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _next_steps(terminal: Terminal, urls: list[str]) -> None:
    """For people: a log needs no advice."""
    if terminal.log is not None:
        return
    url = urls[0]
    terminal.say(f"the daemon is ready; try in another terminal:\n  backfill list --daemon {url}")
    pages = [url for url in urls if url.startswith("http")]
    if pages:
        terminal.say(f"  open {pages[0]}/ in a browser")


def _checked(terminal: Terminal, config: Config, path: str) -> int:
    """What the configuration comes to; nothing was opened, and no database asked."""
    listens = [str(address) for address in config.listen]
    works = [name for name, one in config.connections.items() if one.work]
    if terminal.as_json:
        terminal.json({"config": path, "valid": True, "listen": listens, "connections": [*config.connections]})
        return 0
    terminal.heading(f"{path} is valid")
    terminal.details(
        [
            ("listens on", ", ".join(listens)),
            ("connections", ", ".join(config.connections)),
            ("works jobs of", ", ".join(works) or "none of them"),
            ("signals", ", ".join(config.signals) or "none of its own"),
        ]
    )
    return 0
