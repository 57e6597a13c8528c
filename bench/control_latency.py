"""How long the daemon takes to answer while it works four jobs as fast as it can.  ``python -m bench.control_latency``.

The daemon is a process of its own, on as many cores as this machine has; one client asks over its Unix socket, one
request after another: a job's status, the list, a new limit, pause and resume.  What is measured is the answer, which
for orders is the committed change.  The jobs pace themselves by nothing (``signals: off``), so that they never rest.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvloop

from bench.report import AT_MOST, Figure, Report, Sample, Target, arguments_for, say, settle
from bench.stage import Stage

ROWS = 8_000_000
SMOKE_ROWS = 80_000
JOBS = 4
MOST_S = 1.0
START_S = 30.0
JUDGED_S = 45.0
SMOKE_JUDGED_S = 2.0

Times = dict[str, list[float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run once and report."""
    options = settle(arguments_for(str(__doc__), rows=ROWS, smoke_rows=SMOKE_ROWS), arguments)
    with Stage(options.server, smoke=options.smoke) as stage:
        report = Report(
            "control_latency",
            "Answers of a daemon that works four jobs at full load",
            options.smoke,
            {"rows": options.rows, "jobs": JOBS, "server": stage.settings},
            stage.versions,
        )
        say(f"making {JOBS} tables with {options.rows // JOBS:,} rows each")
        stage.create("shop")
        for number in range(JOBS):
            stage.make_orders("shop", options.rows // JOBS, f"orders_{number}")
            stage.sql("shop", f"ALTER TABLE orders_{number} ADD COLUMN filled bigint")
        stage.settle("shop")
        times, rows, seconds = uvloop.run(measured(stage.dsn("shop"), SMOKE_JUDGED_S if options.smoke else JUDGED_S))
        contender = report.contender("four jobs at once", "daemon", "while it is asked all the time")
        contender.samples.append(Sample(seconds, rows))
    for what, found in times.items():
        if not found:
            continue
        note = f"{len(found):,} requests"
        report.figures.append(Figure(f"{what}, p50", statistics.median(found), "s", None, note))
        worst = Target(MOST_S, AT_MOST)
        report.figures.append(Figure(f"{what}, p99", share_of(found, 0.99), "s", worst, note))
    report.finish(options)


def share_of(values: Sequence[float], share: float) -> float:
    """The value that this share of all is not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def measured(dsn: str, seconds: float) -> tuple[Times, int, float]:
    """Ask for so long, once all jobs run: seconds by kind of request, and the rows that were moved meanwhile."""
    async with served(dsn) as client:
        for number in range(JOBS):
            submitted = await client.post("/v1/jobs", json=job(number))
            submitted.raise_for_status()
        await running(client)
        before, began = await moved(client), time.monotonic()
        times = await asked(client, began + seconds)
        return times, await moved(client) - before, time.monotonic() - began


async def asked(client: httpx.AsyncClient, until: float) -> Times:
    """All kinds of requests in turn, about ten a second; an order is taken back at once."""
    times: Times = {"status": [], "list": [], "pace": [], "pause": [], "resume": [], "liveness": []}
    turn = 0
    while time.monotonic() < until:
        name = f"/v1/jobs/fill-{turn % JOBS}"
        rounds: list[tuple[str, str, str, Any]] = [
            ("status", "GET", name, None),
            ("list", "GET", "/v1/jobs", None),
            ("pace", "PATCH", f"{name}/pace", {"max_rows_per_s": 1_000_000 + turn}),
            ("liveness", "GET", "/livez", None),
        ]
        if turn % 10 == 0:
            rounds += [("pause", "POST", f"{name}/pause", {}), ("resume", "POST", f"{name}/resume", {})]
        for what, method, path, body in rounds:
            began = time.monotonic()
            answer = await client.request(method, path, json=body)
            times[what].append(time.monotonic() - began)
            if answer.status_code != 200 and "final" not in answer.text and answer.status_code != 409:
                raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
        turn += 1
        await asyncio.sleep(0.05)
    return times


async def running(client: httpx.AsyncClient) -> None:
    """Until each job has moved rows."""
    while True:
        if all(one["rows_done"] > 0 for one in await jobs(client)):
            return
        await asyncio.sleep(0.05)


async def moved(client: httpx.AsyncClient) -> int:
    """Rows of all jobs so far."""
    return sum(one["rows_done"] for one in await jobs(client))


async def jobs(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """All jobs."""
    answer = await client.get("/v1/jobs")
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["jobs"]
    return found


def job(number: int) -> Mapping[str, Any]:
    """One of the jobs."""
    return {
        "name": f"fill-{number}",
        "source": {"connection": "shop", "table": f"public.orders_{number}"},
        "set": {"filled": "id * 2"},
        "pace": {"signals": "off"},
    }


@asynccontextmanager
async def served(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """A daemon on that database, in a process of its own, while the block runs; and a client of it."""
    with tempfile.TemporaryDirectory(prefix="backfill-bench-daemon-") as folder:
        process = started(Path(folder), dsn)
        transport = httpx.AsyncHTTPTransport(uds=f"{folder}/daemon.sock")
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30.0) as client:
                await answering(client, process)
                yield client
        finally:
            process.kill()
            process.wait()


def started(folder: Path, dsn: str) -> subprocess.Popen[bytes]:
    """The daemon, as it is started by hand."""
    config = folder / "backfill.toml"
    config.write_text(
        f'listen = "unix://{folder}/daemon.sock"\n'
        f"[connections.shop]\ndsn = {json.dumps(dsn)}\nwork = true\nsuperuser = true\n"
        f'tables = ["public.*"]\njobs = {JOBS}\n'
        "[allow]\nexpressions = true\n",
        encoding="utf-8",
    )
    config.chmod(0o600)
    command = [sys.executable, "-m", "engine", "serve", "--quiet", "--config", str(config)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


async def answering(client: httpx.AsyncClient, process: subprocess.Popen[bytes]) -> None:
    """Until the daemon is ready."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the daemon did not start")
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    main()
