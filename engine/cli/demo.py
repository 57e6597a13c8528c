"""``backfill demo``: a shop that never closes moves to a new table, on a private server that is gone afterwards."""

from __future__ import annotations

import asyncio
import random
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import asyncpg
import click

from engine.cli import demo_shop
from engine.cli.demo_shop import Comparison, Customers, Latencies
from engine.cli.loop import run_async
from engine.cli.progress import Display
from engine.cli.terminal import Terminal, output_options
from engine.clock import Clock, SystemClock
from engine.embedded import BinariesMissing, EmbeddedError, EmbeddedServer
from engine.errors import BackfillError, VerificationMismatch
from engine.events import ChunkCommitted, Emit, Event, PhaseChanged, Waiting
from engine.fleet import LocalRun
from engine.fleet.evidence import look_at_gate
from engine.fleet.signals import TwoSignals, exit_code
from engine.flow import RunResult, endpoints_of, inspect
from engine.flow.dual_write_change import install
from engine.spec import JobSpec, parse_spec
from engine.telemetry import JsonLines, finished_event, message, numbers, tee

ROWS: Final = 500_000
MAJORS: Final = ("16", "18")
DATABASE: Final = "shop"
BEFORE_S: Final = 5.0
"""How long customers are watched before the backfill, for comparison."""

SETTINGS: Final[dict[str, str | int]] = {"shared_buffers": "256MB", "max_wal_size": "2GB"}


@click.command()
@click.option("--rows", type=click.IntRange(1, 100_000_000), default=ROWS, show_default=True, help="Rows of the table.")
@click.option("--major", type=click.Choice(MAJORS), default=MAJORS[0], show_default=True, help="PostgreSQL version.")
@click.option("--keep", is_flag=True, help="Leave the server running at the end, until Ctrl-C, to look around.")
@click.option("--serve", is_flag=True, help="Start a daemon beside the shop, to be tried by you, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=8471, show_default=True, help="Of that daemon.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default="backfill-demo",
    show_default=True,
    help="Where the daemon's backfill.toml and a job.yaml are written.",
)
@output_options
def demo(terminal: Terminal, rows: int, major: str, keep: bool, serve: bool, port: int, folder: Path) -> int:
    """See it work: a real job on a live table, on a private PostgreSQL.

    Starts a server in a temporary folder, fills a table, lets customers write to it all the while, moves it to a new
    table, compares every row, and removes everything. Exits 0 only when both tables are equal.

    With --serve it is you who submits the job, to a daemon, and watches it in a browser.
    """
    if serve:
        from engine.cli.demo_serve import ServedDemo  # only this wants the service

        served = ServedDemo(terminal, rows=rows, major=int(major), keep=False, port=port, folder=folder)
        return run_async(served.run())
    return run_async(Demo(terminal, rows=rows, major=int(major), keep=keep).run())


class Demo:
    """One run of the demonstration."""

    def __init__(self, terminal: Terminal, *, rows: int, major: int, keep: bool, clock: Clock | None = None) -> None:
        self._terminal = terminal
        self._rows = rows
        self._major = major
        self._keep = keep
        self._clock = clock or SystemClock()
        self._lines = JsonLines(terminal.stdout) if terminal.as_json else None
        self._signals = TwoSignals(self._interrupt, self._interrupt_again)
        self._task: asyncio.Task[Any] | None = None
        self._steps = 0

    async def run(self) -> int:
        """Tell the story; the exit code.  Raises ``BackfillError``, ``VerificationMismatch`` when rows differ."""
        self._task = asyncio.current_task()
        with self._signals.watched():
            try:
                async with self._server() as server:
                    await self._story(server)
            except asyncio.CancelledError:
                if self._signals.first is None:
                    raise
                self._terminal.say("interrupted: the server and its folder are gone")
                return exit_code(self._signals.first)
        return 0

    def _interrupt(self, _: object) -> None:
        if self._task is not None:
            self._task.cancel()

    def _interrupt_again(self) -> None:
        """Cleaning up takes a second, and leaving it half done would be worse."""

    # -- the story --------------------------------------------------------------------------------------------------

    async def _story(self, server: EmbeddedServer) -> None:
        dsn = server.dsn(DATABASE)
        with self._step(f"A shop opens: table orders with {self._rows:,} rows"):
            await asyncio.to_thread(server.sql, f"CREATE DATABASE {DATABASE}")
            connection = await asyncpg.connect(dsn)
            await demo_shop.open_shop(connection, self._rows)
        with self._step("Expand: a new table, orders_v2, keeps amounts in cents"):
            await demo_shop.expand(connection)
        spec = parse_spec(demo_shop.SPEC, {"SHOP_DSN": dsn}, file="the demonstration")
        with self._step("Dual-write: backfill dualwrite job.yaml --install; triggers carry every change over"):
            await self._dual_write(spec)
        async with Customers(dsn, self._rows, self._clock, random.Random()) as customers:
            with self._step(
                f"Customers come: {demo_shop.CLIENTS} sessions insert, update and delete orders, "
                f"{demo_shop.TRANSACTIONS_PER_S:.0f} times a second"
            ):
                await self._clock.sleep(BEFORE_S)
            before = customers.latencies()
            self._note(f"undisturbed, they wait {_waits(before)}")
            result, during = await self._backfill(spec, customers)
            with self._step("The gate: backfill gate job.yaml; may the old table be given up?"):
                checks = (await look_at_gate(spec)).checks
            for check in checks:
                self._note(f"{'yes' if check.ok else 'NO'}  {check.name}: {check.detail}")
            with self._step("The shop closes for a moment, so that both tables can be compared"):
                await customers.leave()
        with self._step("Compare every row in both directions: FULL OUTER JOIN of orders and orders_v2"):
            comparison = await demo_shop.compare(connection)
        await connection.close()
        self._summary(result, comparison, before, during, customers)
        if not comparison.is_equal:
            raise VerificationMismatch(
                f"orders_v2 is not what it should be: {comparison.missing:,} missing, {comparison.extra:,} extra, "
                f"{comparison.different:,} different rows",
                hint="please report this with the output of `backfill demo --json`",
            )
        if self._keep:
            await self._wait_for_visitors(server, dsn)

    async def _dual_write(self, spec: JobSpec) -> None:
        prepared = (await inspect(spec, endpoints_of(spec))).prepared()
        session = await prepared.endpoints.source.connect("dualwrite")
        try:
            await install(session, prepared)
        finally:
            await session.close()

    async def _backfill(self, spec: JobSpec, customers: Customers) -> tuple[RunResult, Latencies]:
        self._begin(f"Backfill: backfill run job.yaml, {spec.workers} workers, where job.yaml says")
        for line in demo_shop.SPEC.splitlines():
            self._note(line)
        first = len(customers.waited_s)
        result = await self._run_job(spec)
        during = customers.latencies(first)
        self._note(
            f"{numbers.count(result.rows)} rows in {numbers.duration(result.seconds)}, "
            f"{numbers.per_second(result.rows_per_s)}; customers' own rows were there already, and were left alone"
        )
        self._note(f"meanwhile customers waited {_waits(during)}")
        if not result.verified:
            raise VerificationMismatch(
                "verification found rows that differ", hint="please report this with the output of backfill demo --json"
            )
        self._note("verified while customers went on writing: both tables agree")
        return result, during

    async def _run_job(self, spec: JobSpec) -> RunResult:
        job: LocalRun
        display = Display(self._terminal, lambda: job.supervisor)
        emit: Emit = tee(self._retell(display), *([] if self._lines is None else [self._lines]))
        job = LocalRun(spec, emit=emit)
        with display.shown():
            result = await job.run()
        if self._lines is not None:
            self._lines(finished_event(result))
        if result.error is not None:
            raise result.error
        return result

    def _summary(
        self, result: RunResult, comparison: Comparison, before: Latencies, during: Latencies, customers: Customers
    ) -> None:
        if self._lines is not None:
            self._lines.write(
                {
                    "event": "demo.finished",
                    "rows": result.rows,
                    "seconds": round(result.seconds, 3),
                    "rows_per_s": round(result.rows_per_s, 1),
                    "customers": {**customers.done, "before": before.as_json(), "during": during.as_json()},
                    "comparison": asdict(comparison),
                    "verified": result.verified and comparison.is_equal,
                }
            )
            return
        done = ", ".join(f"{customers.done[kind]:,} {kind}s" for kind in demo_shop.MIX)
        verdict = "equal, row by row" if comparison.is_equal else "NOT equal"
        lines = {
            "moved": f"{result.rows:,} rows in {numbers.duration(result.seconds)} "
            f"({numbers.per_second(result.rows_per_s)}, {numbers.counted(result.chunks, 'chunk')})",
            "customers": f"{sum(customers.done.values()):,} transactions: {done}",
            "they waited": f"{_waits(before)} before, {_waits(during)} during the backfill",
            "compared": f"{comparison.rows:,} rows: {comparison.missing:,} missing, {comparison.extra:,} extra, "
            f"{comparison.different:,} different: {verdict}",
        }
        self._terminal.say("")
        for label, text in lines.items():
            self._terminal.data(f"{label:>12}  {text}")

    async def _wait_for_visitors(self, server: EmbeddedServer, dsn: str) -> None:
        self._begin("The server stays until you press Ctrl-C. Look around:")
        self._note(f"{server.bin('psql')} {shlex.quote(dsn)}")
        self._note(f"backfill status --dsn {shlex.quote(dsn)} orders-to-orders-v2")
        if self._lines is not None:
            self._lines.write({"event": "demo.kept", "dsn": dsn})
        await asyncio.Event().wait()

    # -- its server -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _server(self) -> AsyncIterator[EmbeddedServer]:
        """A durable server in a temporary folder, gone at the end however that comes about."""
        try:
            server = EmbeddedServer(self._major, settings=SETTINGS, durable=True)
            try:
                with self._step(f"A private PostgreSQL {self._major} starts, in a temporary folder"):
                    await self._start(server)
                yield server
            finally:
                server.discard()
        except (BinariesMissing, EmbeddedError) as error:
            raise BackfillError(str(error), hint="make demo installs what it needs") from error

    async def _start(self, server: EmbeddedServer) -> None:
        """In a thread, so that Ctrl-C is heard; a start that has begun is waited for, and then undone."""
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait((starting,))
            if not starting.cancelled():
                starting.exception()  # seen: the interruption is what counts
            raise

    def _retell(self, display: Display) -> Emit:
        """The live picture of ``run``, and of its sentences the one that belongs to the story."""

        def tell(event: Event) -> None:
            said = message(event) if isinstance(event, PhaseChanged) else None
            if said is not None:
                self._note(said[1])
            elif isinstance(event, (ChunkCommitted, Waiting)):
                display(event)

        return tell

    # -- words ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, text: str) -> Iterator[None]:
        """Say what happens, and behind it how long it took."""
        began = self._clock.now()
        self._begin(text, end=" ")
        took = ""
        try:
            yield
            seconds = self._clock.now() - began
            took = numbers.duration(seconds)
        finally:
            if self._tells:
                self._terminal.err.print(took, style="dim")
        if self._lines is not None:
            self._lines.write({"event": "demo.step", "step": self._steps, "text": text, "seconds": round(seconds, 3)})

    @property
    def _tells(self) -> bool:
        return self._lines is None and not self._terminal.quiet

    def _begin(self, text: str, end: str = "\n") -> None:
        self._steps += 1
        if self._tells:
            self._terminal.err.print(f"{self._steps}  {text}", style="bold", end=end)

    def _note(self, text: str) -> None:
        if self._tells:
            self._terminal.err.print(f"   {text}", style="dim")


def _waits(latencies: Latencies) -> str:
    return f"{latencies.p50_s * 1000:.1f} ms (p50), {latencies.p99_s * 1000:.1f} ms (p99)"
