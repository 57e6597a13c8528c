"""Our engine as a contender: the product's own command in a process of its own, from start-up to exit."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import Sample
from engine.events import ChunkCommitted, Event, StateChanged
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import inspect
from engine.flow.supervisor import Supervisor
from engine.ledger.records import JobStatus
from engine.model import JobState
from engine.spec import parse_spec

POLL_S = 0.02


class JobFailed(RuntimeError):
    """``backfill run`` did not end with a finished job."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A run of the command: what it said, and what it cost."""

    sample: Sample
    events: tuple[dict[str, Any], ...]


def command() -> list[str]:
    """How to call the product: the installed script, else the module behind it."""
    script = Path(sys.executable).with_name("backfill")
    return [str(script)] if script.exists() else [sys.executable, "-m", "engine"]


def environment() -> dict[str, str]:
    """As after an installation: modules are compiled once, whatever the shell of whoever measures says; and as on a
    terminal, so that a failure can be read.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"BACKFILL_LOG_FORMAT": "human"}


def run_command(spec: dict[str, Any]) -> Finished:
    """``backfill run spec.json --json``: its time, processor time, peak memory and events."""
    with tempfile.TemporaryDirectory(prefix="backfill-bench-") as folder:
        file = Path(folder, "job.json")
        file.write_text(json.dumps(spec))
        output, errors = Path(folder, "events"), Path(folder, "errors")
        with output.open("wb") as out, errors.open("wb") as err:
            began = time.perf_counter()
            process = subprocess.Popen(
                [*command(), "run", str(file), "--json"], stdout=out, stderr=err, env=environment()
            )
            status, peak_bytes, usage = _watch(process.pid)
            seconds = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)  # we have waited for it; Popen need not
        lines = output.read_text().splitlines()
        if process.returncode != 0 or not lines:
            raise JobFailed(f"exit code {process.returncode}\n{errors.read_text()[-2000:]}\n{lines[-1:]}")
        events = tuple(json.loads(line) for line in lines)
    last = events[-1]
    if last.get("event") != "job.finished" or last.get("state") != "done":
        raise JobFailed(f"ended with {last}")
    return Finished(
        Sample(
            seconds=seconds,
            rows=last["rows"],
            client_cpu_s=usage.ru_utime + usage.ru_stime,
            client_peak_bytes=peak_bytes,
            chunks=last["chunks"],
            own_seconds=last["seconds"],
        ),
        events,
    )


def run_plain(command_name: str, spec: dict[str, Any], *options: str) -> None:
    """Another command of the product on the same spec, to set the stage.  Raises ``JobFailed``."""
    with tempfile.TemporaryDirectory(prefix="backfill-bench-") as folder:
        file = Path(folder, "job.json")
        file.write_text(json.dumps(spec))
        done = subprocess.run(
            [*command(), command_name, str(file), *options], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise JobFailed(f"{command_name}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def _watch(pid: int) -> tuple[int, int, Any]:
    """Wait for a process: its status, its peak resident set in bytes, what it used.

    The peak is the process's own high-water mark; the one that the kernel hands out at the end would count what its
    parent held when it was forked.
    """
    status_file = Path(f"/proc/{pid}/status")
    peak_bytes = 0
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, peak_bytes, usage
        try:
            lines = status_file.read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("VmHWM:"):
                peak_bytes = max(peak_bytes, int(line.split()[1]) * 1024)
        time.sleep(POLL_S)


@dataclass(slots=True)
class InProcess:
    """A run of the engine inside this process, for costs that start-up would drown."""

    spec: dict[str, Any]
    waits: dict[str, float] = field(default_factory=dict)  # seconds, summed over the workers
    chunks: int = 0
    rows: int = 0
    moving_s: float = 0.0  # from the first chunk committed to the last
    moving_cpu_s: float = 0.0
    running_s: float = 0.0  # from `running` to `done`
    first_chunk_rows: int = 0  # committed when the moving clock started: not counted in it
    status: JobStatus | None = None
    _marks: dict[str, tuple[float, float]] = field(default_factory=dict)

    async def run(self) -> None:
        """Run the job to its end.  Raises what the engine raises, ``JobFailed`` when it is not done."""
        spec = parse_spec(json.dumps(self.spec), os.environ)
        prepared = (await inspect(spec, endpoints_of(spec))).prepared()
        supervisor = Supervisor(prepared, workers=spec.workers, emit=self._hear)
        result = await supervisor.run()
        if result.error is not None:
            raise result.error
        if result.state is not JobState.DONE:
            raise JobFailed(f"ended {result.state}")
        self.status = supervisor.status
        for worker in supervisor.workers:
            for reason, seconds in worker.heartbeat().waits.items():
                self.waits[reason] = self.waits.get(reason, 0.0) + seconds
        (first, first_cpu), (last, last_cpu) = self._marks["first chunk"], self._marks["last chunk"]
        self.moving_s, self.moving_cpu_s = last - first, last_cpu - first_cpu
        self.running_s = self._marks["done"][0] - self._marks["running"][0]

    def _hear(self, event: Event) -> None:
        if isinstance(event, ChunkCommitted):
            if self.chunks == 0:
                self._mark("first chunk")
                self.first_chunk_rows = event.observation.rows
            self.chunks += 1
            self.rows += event.observation.rows
            self._mark("last chunk")
        elif isinstance(event, StateChanged):
            self._mark(event.state.value)

    def _mark(self, name: str) -> None:
        self._marks[name] = (time.perf_counter(), time.process_time())


def in_process(spec: dict[str, Any], run: Callable[..., Any] = asyncio.run) -> InProcess:
    """Run one job in this process, on the event loop that the product uses."""
    done = InProcess(spec)
    run(done.run())
    return done
