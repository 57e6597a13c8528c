"""``backfill serve``: the daemon that orchestrators drive."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import click

from engine.cli.log_option import log_option
from engine.cli.loop import run_async
from engine.cli.metrics import listening
from engine.cli.terminal import Terminal, output_options
from engine.fleet.signals import NAMES, TwoSignals, exit_code
from engine.service.auth import Doorkeeper
from engine.service.config import Config, load_config
from engine.service.daemon import Daemon
from engine.service.sockets import tls_context
from engine.telemetry.entries import Entry

READY: Final = "daemon.ready"
"""What the daemon tells once clients can connect."""


@click.command()
@click.option("--config", "path", required=True, metavar="FILE", help="The operator's backfill.toml.")
@click.option(
    "--check",
    is_flag=True,
    help="Only read all files that the configuration names, and say what is wrong; no database is asked.",
)
@click.option("--metrics-listen", metavar="HOST:PORT", help="Serve metrics for Prometheus there, without any token.")
@log_option
@output_options
def serve(terminal: Terminal, path: str, check: bool, metrics_listen: str | None) -> int:
    """Answer the API, and work the jobs of the connections that the configuration lists.

    SIGTERM and Ctrl-C drain: nothing new is taken, chunks in hand are finished, jobs go on elsewhere or at the next
    start; a second one cuts off. SIGHUP reads certificates again; tokens are read whenever
    their file changes.
    """
    config = load_config(path)
    dsns = config.dsns(os.environ)
    if check:
        _read_what_serve_reads(config)
        return _checked(terminal, config, path)
    return run_async(_serve(terminal, Daemon(config, dsns, tell=partial(_tell, terminal, config)), metrics_listen))


async def _serve(terminal: Terminal, daemon: Daemon, metrics_listen: str | None) -> int:
    signals = TwoSignals(lambda number: daemon.drain(NAMES[number]), daemon.abort)
    terminal.tell(Entry(event="daemon.started", message="starting", fields={"pid": os.getpid()}))
    with signals.watched(), _reloads(daemon), listening(terminal, daemon.metrics, metrics_listen):
        await daemon.run()
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


def _tell(terminal: Terminal, config: Config, entry: Entry) -> None:
    terminal.tell(entry)
    if entry.event == READY:
        _next_steps(terminal, config, entry.fields["urls"])


def _next_steps(terminal: Terminal, config: Config, urls: list[str]) -> None:
    """For people: a log needs no advice."""
    if terminal.log is not None:
        return
    url = next((url for url in urls if url.startswith("unix:")), urls[0])
    needs_token = not url.startswith("unix:") and config.auth.loopback is None
    token = " --token-file FILE" if needs_token else ""
    terminal.say(f"the daemon is ready; try in another terminal:\n  backfill list --daemon {url}{token}")
    pages = [url for url in urls if url.startswith("http")]
    if pages:
        terminal.say(f"  open {pages[0]}/ in a browser")


def _read_what_serve_reads(config: Config) -> None:
    """Raises ``SpecError`` and ``UsageError`` for tokens and certificates that would keep the daemon from starting."""
    Doorkeeper(config)
    if config.tls is not None:
        tls_context(config.tls)


def _checked(terminal: Terminal, config: Config, path: str) -> int:
    """What the configuration comes to; nowhere was listened, and no database asked."""
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
