"""``backfill demo --serve``: the same shop, and a daemon to try, by its page, its API and the commands for it."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import asyncpg

from engine.cli import demo_shop
from engine.cli.demo import DATABASE, Demo
from engine.cli.demo_shop import Customers
from engine.embedded import EmbeddedServer
from engine.errors import UsageError
from engine.service.config import load_config
from engine.service.daemon import Daemon
from engine.spec import parse_spec

JOB: Final = "orders-to-orders-v2"
LONGEST_SOCKET_PATH: Final = 100
"""The kernel takes 107 bytes."""

WRITTEN_BY: Final = "# Written by `backfill demo --serve`, and removed when it ends."

CONFIG: Final = """\
{written_by}
listen = [{listen}]
drain = "5s"

[connections.shop]
dsn = {dsn}
work = true                        # this daemon works the jobs of the ledger there
superuser = true                   # the demonstration's server knows nobody else
tables = ["public.*"]              # what submitted jobs may touch
max_rows_per_s = 100000            # what nobody may exceed

[allow]
expressions = true                 # SQL in `columns` and `set`

[auth]
loopback = ["read", "control", "submit"]   # without a token, for every process of this machine: a toy
"""

SPEC: Final = f"""\
{WRITTEN_BY}
name: {JOB}
source: {{connection: shop, table: public.orders}}      # connections are named by the operator, in backfill.toml
target: {{connection: shop, table: public.orders_v2}}
columns: {{id: id, customer_id: customer_id, status: status, note: note, created_at: created_at, flag: flag,
          amount_cents: "(amount * 100)::bigint"}}
pace: {{max_rows_per_s: 5000}}                          # slow enough to be watched
verify: after
"""


class ServedDemo(Demo):
    """The shop stays open and a daemon answers, until Ctrl-C.  Then everything is gone."""

    def __init__(self, *arguments: Any, port: int, folder: Path, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._port = port
        self._folder = folder

    async def run(self) -> int:
        """As that of ``Demo``; a port that is taken is told before anything starts."""
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self._port))
                probe.listen()
            except OSError as error:
                why = error.strerror or type(error).__name__
                raise UsageError(
                    f"cannot listen on 127.0.0.1:{self._port}: {why}", hint="give another --port"
                ) from error
        return await super().run()

    async def _story(self, server: EmbeddedServer) -> None:
        dsn = server.dsn(DATABASE)
        with self._files(dsn) as config:
            with self._step(f"A shop opens: table orders with {self._rows:,} rows, and an empty orders_v2"):
                await asyncio.to_thread(server.sql, f"CREATE DATABASE {DATABASE}")
                connection = await asyncpg.connect(dsn)
                try:
                    await demo_shop.open_shop(connection, self._rows)
                    await demo_shop.expand(connection)
                finally:
                    await connection.close()
            with self._step("Dual-write: triggers carry every change of orders over to orders_v2"):
                await self._dual_write(parse_spec(demo_shop.SPEC, {"SHOP_DSN": dsn}, file="the demonstration"))
            self._begin(
                f"Customers come: {demo_shop.CLIENTS} sessions write orders, "
                f"{demo_shop.TRANSACTIONS_PER_S:.0f} times a second"
            )
            async with (
                Customers(dsn, self._rows, self._clock, random.Random()),
                self._daemon(config) as (urls, running),
            ):
                self._tell_what_to_try(urls)
                await asyncio.shield(running)  # until Ctrl-C; a daemon that ends by itself says why

    # -- the daemon -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _daemon(self, config: Path) -> AsyncIterator[tuple[list[str], asyncio.Task[None]]]:
        """A daemon as ``backfill serve`` runs it, in this process.  Raises ``UsageError`` when its port is taken."""
        loaded = load_config(config)
        daemon = Daemon(loaded, loaded.dsns(os.environ), tell=self._terminal.tell)
        listening: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._begin(f"A daemon starts: backfill serve --config {config}")
        running = asyncio.create_task(daemon.run(listening.set_result), name="daemon")
        try:
            await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                listening.cancel()
                await running
            yield listening.result(), running
        finally:
            daemon.drain("the demonstration ends")
            await running

    def _tell_what_to_try(self, urls: list[str]) -> None:
        page = next(url for url in urls if url.startswith("http"))
        if self._lines is not None:
            self._lines.write({"event": "demo.serving", "urls": urls, "folder": str(self._folder), "job": JOB})
            return
        if self._terminal.quiet:
            return
        spec = self._folder / "job.yaml"
        steps = {
            f"run {spec} --no-wait": "submit the job",
            f"status {JOB}": "how far it is, and what holds it up",
            f"pace {JOB} --max-rows-per-s 500 --reason sale": "slow it down",
            f"pace {JOB} --max-rows-per-s 50000": "let it go",
            f"wait {JOB}": "until it is done and verified",
            f"history {JOB}": "what happened, and who gave which order",
            f"gate {JOB}": "may the old table be given up?",
        }
        self._terminal.say(
            f"""
Open {page}/ in a browser, and in another terminal:

  export BACKFILL_DAEMON={page}
{_aligned(steps)}

Ctrl-C here ends all of it, and removes it.
"""
        )

    # -- its files --------------------------------------------------------------------------------------------------

    @contextmanager
    def _files(self, dsn: str) -> Iterator[Path]:
        """``backfill.toml`` and ``job.yaml`` in the folder.  Raises ``UsageError`` when somebody else's are there."""
        config, spec = self._folder / "backfill.toml", self._folder / "job.yaml"
        where = self._folder.resolve() / "backfill.sock"
        for file in (config, spec):
            if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(WRITTEN_BY):
                raise UsageError(f"{file} is there, and not from a demonstration", hint="give another --folder")
        addresses = [f"tcp://127.0.0.1:{self._port}"]
        if len(os.fsencode(where)) <= LONGEST_SOCKET_PATH:
            addresses.append(f"unix://{where}")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            _write(
                config,
                CONFIG.format(written_by=WRITTEN_BY, listen=", ".join(map(_quoted, addresses)), dsn=_quoted(dsn)),
            )
            _write(spec, SPEC)
        except OSError as error:
            raise UsageError(
                f"cannot write to {self._folder}: {error.strerror}", hint="give another --folder"
            ) from error
        try:
            yield config
        finally:
            for file in (config, spec, where):
                file.unlink(missing_ok=True)
            with suppress(OSError):  # somebody keeps files of his own there
                self._folder.rmdir()


def _write(file: Path, text: str) -> None:
    """A file for us alone, from its first moment on."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(text)


def _aligned(steps: Mapping[str, str]) -> str:
    """Commands, and what they are for behind them."""
    width = max(map(len, steps))
    return "\n".join(f"  backfill {command:<{width}}  # {what_for}" for command, what_for in steps.items())


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
