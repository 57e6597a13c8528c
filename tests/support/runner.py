"""Runner processes that may be killed, stopped and woken: the product's own supervisor in a process of its own.

Importing the product takes longer than most faults last, so runners are forked from a **nursery**, a process that has
imported everything and does nothing else::

    async with Nursery() as nursery:
        runner = await nursery.run(spec, environment={"BACKFILL_CRASH_AT": "commit.after#3"})
        runner.signal(signal.SIGKILL)
        assert await runner.ended() == -signal.SIGKILL

A runner drains on SIGTERM.  It ends with 0 when the job is done, with the error's exit code when it stopped, and with 1
and a traceback (``runner.complaint()``) when it fell over.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvloop

import engine.crashpoint
from engine.events import Event, JobFinished
from engine.fleet import LocalVerification
from engine.flow import Leases, Supervisor, endpoints_of, inspect
from engine.model import JobState
from engine.spec import Dsn, JobSpec, by_operator

PATIENCE_S = 60.0
LEASE_S = 2.0
UNFINISHED = 75
CODES = {JobState.DONE: 0, JobState.FAILED: 7, JobState.PAUSED: 8, JobState.CANCELLED: 8}


# -- the tests' side ------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Process:
    """One forked process.  ``pid`` may be signalled until it has ended."""

    pid: int
    log: Path
    _ended: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def is_running(self) -> bool:
        """False once it has ended, by whatever cause."""
        return not self._ended.done()

    @property
    def code(self) -> int | None:
        """As ``ended``, or None while it runs."""
        return self._ended.result() if self._ended.done() else None

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.is_running:
            with suppress(ProcessLookupError):  # it has just ended, and we have not been told yet
                os.kill(self.pid, number)

    async def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end: the exit code, or minus the signal's number."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._ended), timeout_s)
        except TimeoutError:
            raise AssertionError(f"process {self.pid} is still running\n{self.complaint()}") from None

    async def stopped(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it stands still (SIGSTOP)."""
        async with asyncio.timeout(timeout_s):
            while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                await asyncio.sleep(0.01)

    async def speaks(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it has told of its first event, by when it listens to signals; or has ended."""
        async with asyncio.timeout(timeout_s):
            while self.is_running and not self.lines():
                await asyncio.sleep(0.01)

    def lines(self) -> list[dict[str, Any]]:
        """What it wrote: one JSON object a line."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def complaint(self) -> str:
        """What it wrote that is no JSON: a traceback, if anything."""
        return "\n".join(line for line in self.log.read_text().splitlines() if not line.startswith("{"))


class Nursery:
    """Forks processes quickly; at its end none is left."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._children: dict[int, Process] = {}
        self._born: asyncio.Queue[int] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="backfill-nursery-")
        self._count = 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.runner",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None and self._process.stdin is not None and self._reading is not None
        self._process.stdin.close()  # it ends its children, and itself
        await self._process.wait()
        await self._reading
        self._folder.cleanup()

    async def run(
        self,
        spec: JobSpec,
        *,
        workers: int = 2,
        lease_s: float = LEASE_S,
        seed: int = 1,
        wait: bool = True,
        verify: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a runner of that job.  ``verify``: begin to verify it, as ``LocalVerification`` is told to; or join
        those who do.
        """
        order = {
            "kind": "runner",
            "spec": spec.for_ledger(),
            "source_dsn": spec.source.dsn.secret() if spec.source.dsn else None,
            "target_dsn": spec.target.dsn.secret() if spec.target and spec.target.dsn else None,
            "workers": workers,
            "lease_s": lease_s,
            "seed": seed,
            "wait": wait,
            "verify": None if verify is None else dict(verify),
        }
        return await self.fork(order, environment)

    async def fork(self, order: dict[str, Any], environment: Mapping[str, str] | None = None) -> Process:
        """Start a process for an order; ``kind`` says which of ``KINDS``."""
        assert self._process is not None and self._process.stdin is not None
        async with self._turn:
            self._count += 1
            log = Path(self._folder.name) / f"{self._count}.log"
            log.touch()
            line = json.dumps({"order": order, "environment": dict(environment or {}), "log": str(log)})
            self._process.stdin.write(line.encode() + b"\n")
            child = Process(await self._born.get(), log)
            self._children[child.pid] = child
            return child

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "born" in said:
                self._born.put_nowait(said["born"])
                await asyncio.sleep(0)  # so that the child is known before it may end
            else:
                await self._note_end(said["ended"], said["code"])

    async def _note_end(self, pid: int, code: int) -> None:
        while pid not in self._children:
            await asyncio.sleep(0.001)
        child = self._children.pop(pid)
        if not child._ended.done():
            child._ended.set_result(code)


# -- the nursery's side ---------------------------------------------------------------------------------------------


def nurse() -> None:
    """Fork a child for each line of standard input; tell of births and deaths on standard output."""
    children: set[int] = set()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rest = b""
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(children)
        if 0 in ready:
            data = os.read(0, 1 << 20)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    _child(json.loads(line))
                children.add(pid)
                _tell(born=pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)
        _tell(ended=pid, code=-signal.SIGKILL)


def _reap(children: set[int]) -> None:
    for pid in list(children):
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            children.discard(pid)
            _tell(ended=pid, code=os.waitstatus_to_exitcode(status))


def _tell(**said: int) -> None:
    os.write(1, json.dumps(said).encode() + b"\n")


def _child(born: dict[str, Any]) -> None:
    """What the fork does; never returns."""
    code = 1
    try:
        log = os.open(born["log"], os.O_WRONLY | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.update(born["environment"])
        importlib.reload(engine.crashpoint)  # it reads the environment once, when imported
        module, name = KINDS[born["order"]["kind"]]
        routine = getattr(importlib.import_module(module), name)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            code = loop.run(routine(born["order"]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


KINDS = {
    "runner": (__name__ if __name__ != "__main__" else "tests.support.runner", "work"),
    "writer": ("tests.support.writers", "write"),
}
"""Kind of process -> module and coroutine function that takes the order and gives the exit code."""


async def work(order: Mapping[str, Any]) -> int:
    """One runner: the job's supervisor, until the job ends or SIGTERM drains it."""
    dsns = {side: Dsn(order[side]) if order[side] else None for side in ("source_dsn", "target_dsn")}
    rights = by_operator([order["spec"]["transform"]]) if order["spec"].get("transform") else None
    spec = JobSpec.from_ledger(
        order["spec"], source_dsn=dsns["source_dsn"], target_dsn=dsns["target_dsn"], transforms=rights
    )
    inspection = await inspect(spec, endpoints_of(spec))
    prepared = inspection.prepared()
    if order["verify"] is not None:
        await LocalVerification(spec, **order["verify"])._begin(prepared)
    supervisor = Supervisor(
        prepared,
        workers=order["workers"],
        emit=_print,
        wait=order["wait"],
        leases=Leases(lease_s=order["lease_s"]),
        seed=order["seed"],
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, supervisor.drain, "told to")
    result = await supervisor.run()
    _print(
        JobFinished(
            job=result.job,
            state=result.state,
            rows=result.rows,
            bytes=result.bytes,
            chunks=result.chunks,
            seconds=result.seconds,
            rows_per_s=result.rows_per_s,
            retries=result.retries,
            quarantined=result.quarantined,
            resumed=result.resumed,
            verified=None,
        )
    )
    if result.error is not None:
        print(json.dumps({"event": "error", "code": result.error.code, "message": result.error.message}), flush=True)
        return result.error.exit_code
    return CODES.get(result.state, UNFINISHED)


def _print(event: Event) -> None:
    print(json.dumps(event.as_json(), default=str), flush=True)


if __name__ == "__main__":
    import tests.support.writers  # noqa: F401 - so that forks need not import it

    nurse()
