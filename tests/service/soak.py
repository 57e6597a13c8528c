"""``python -m tests.service.soak --jobs N --kills K --seed S``: hundreds of small jobs under orders and kills.

One daemon on one ledger.  Jobs are submitted all the while; each may be paused, resumed, paced, cancelled or begun anew
at any moment, and the daemon is killed and started again.  In its second half nobody kills it any more: then its
memory is looked at.  In the end every job is in the state that the orders say, every row of a job that is done was
written, and exactly once, and the daemon holds no session, file or thread more than before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from engine.embedded import EmbeddedServer
from tests.support.daemon import DaemonProcess, config_file, config_of, daemon_process
from tests.support.databases import QUIET, FreshDatabase, create_database

TABLES = 8
ROWS = 300
"""Of one job."""

AT_ONCE = 8
"""Jobs submitted and not yet ended: twice as many as the daemon has room for."""

PATIENCE_S = 120.0
MEMORY_SHARE = 0.10
SETTLED_BYTES = 8 * 2**20
"""What the allocator may take and give back between two looks, whatever the share."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much."""

    jobs: int
    kills: int
    seed: int = 1


@dataclass(slots=True)
class Report:
    """What came of it."""

    plan: Plan
    seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    orders: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    astray: list[str] = field(default_factory=list)  # jobs that are not in the state that the orders say
    wrong_rows: int = 0
    sessions_left: list[str] = field(default_factory=list)
    files: tuple[int, int] = (0, 0)  # before and after
    threads: tuple[int, int] = (0, 0)
    memory_bytes: tuple[int, int] = (0, 0)  # after the warm-up, and in the end

    @property
    def is_right(self) -> bool:
        """True when nothing is lost, left or grown."""
        before, after = self.memory_bytes
        return (
            not self.astray
            and not self.wrong_rows
            and not self.sessions_left
            and self.files[1] <= self.files[0]
            and self.threads[1] <= self.threads[0]
            and after <= max(before * (1 + MEMORY_SHARE), before + SETTLED_BYTES)
        )


class Soak:
    """One run."""

    def __init__(self, plan: Plan, database: FreshDatabase, folder: Path) -> None:
        self.report = Report(plan)
        self._plan = plan
        self._database = database
        self._folder = folder
        self._settings = config_of(database)
        self._rng = random.Random(plan.seed)
        self._timely_rng = random.Random(plan.seed)  # for what depends on time: which orders there are does not
        self._stack = AsyncExitStack()
        self._daemon: DaemonProcess | None = None
        self._up = asyncio.Event()
        self._cancelled: set[str] = set()  # the last order that counts: these are to be cancelled, all others done
        self._open: set[str] = set()
        self._orders: Counter[str] = Counter()

    async def run(self) -> Report:
        """From the first job to the last look."""
        began = time.monotonic()
        for number in range(TABLES):
            await self._sql(
                f"CREATE TABLE orders_{number} (id bigint PRIMARY KEY, amount numeric NOT NULL, cents bigint,"
                f" writes int NOT NULL DEFAULT 0); INSERT INTO orders_{number} SELECT g, g / 7.0"
                f" FROM generate_series(1, {ROWS * (self._plan.jobs // TABLES + 1)}) g; ANALYZE orders_{number}"
            )
        async with self._stack:
            await self._start()
            half = self._plan.jobs // 2
            await self._through(range(half), kills=self._plan.kills)
            await self._settle_down()
            before = self._look()
            middle = half + (self._plan.jobs - half) // 3
            await self._through(range(half, middle))
            warm = self._look()
            await self._through(range(middle, self._plan.jobs))
            await self._settle_down()
            after = self._look()
            self.report.files = (max(before[0], warm[0]), after[0])
            self.report.threads = (max(before[1], warm[1]), after[1])
            self.report.memory_bytes = (max(before[2], warm[2]), after[2])
            await self._judge()
        self.report.orders = dict(self._orders)
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    # -- the daemon ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._daemon = await self._stack.enter_async_context(daemon_process(self._settings, folder=self._folder))
        self._up.set()

    async def _kill(self) -> None:
        assert self._daemon is not None
        self._up.clear()
        self._daemon.kill()
        await self._daemon.ended()
        self.report.kills += 1
        await self._start()

    async def _ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> httpx.Response:
        """One request, again and again while the daemon is away: all of them may come twice."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            await self._up.wait()
            assert self._daemon is not None
            headers = {"idempotency-key": key} if key is not None else {}
            try:
                answer = await self._daemon.client.request(method, path, json=body, headers=headers)
            except (httpx.TransportError, RuntimeError):  # RuntimeError: the client was closed with its daemon
                pass
            else:
                if answer.status_code != 503:
                    return answer
            assert time.monotonic() < deadline, f"{method} {path} was never answered"
            await asyncio.sleep(0.05)

    def _look(self) -> tuple[int, int, int]:
        assert self._daemon is not None
        process = psutil.Process(self._daemon.pid)
        return process.num_fds(), process.num_threads(), process.memory_info().rss

    # -- jobs and orders ----------------------------------------------------------------------------------------------

    async def _through(self, numbers: range, kills: int = 0) -> None:
        """Submit those jobs, a few at a time, give orders meanwhile, and wait for the end of all."""
        at = {numbers[(n + 1) * len(numbers) // (kills + 1) - 1] for n in range(kills)}
        for number in numbers:
            await self._until_room(AT_ONCE)
            await self._submit(number)
            if self._rng.random() < 0.7:
                await self._order()
            if number in at:
                await self._kill()
        await self._until_room(1)

    async def _submit(self, number: int) -> None:
        name = f"soak-{number}"
        first = number // TABLES * ROWS
        answer = await self._ask("POST", "/v1/jobs", self._spec(name, number, first), key=name)
        assert answer.status_code in (200, 201), answer.text
        self._open.add(name)

    def _spec(self, name: str, number: int, first: int) -> dict[str, Any]:
        return {
            "name": name,
            "source": {"connection": "main", "table": f"public.orders_{number % TABLES}"},
            "set": {"cents": "(amount * 100)::bigint", "writes": "writes + 1"},
            "where": f"id > {first} AND id <= {first + ROWS}",
            "done": "cents is not null",
            "pace": {"signals": "off", "max_rows_per_s": self._rng.choice([500, 2000, 100_000])},
            "chunk": {"max_rows": 50},
            "workers": 1,
        }

    async def _order(self) -> None:
        """Some order to some job that has not ended, and perhaps has by now."""
        name = self._timely_rng.choice(sorted(self._open))
        what = self._rng.choices(["pause", "pace", "cancel", "restart"], [5, 3, 2, 2])[0]
        self._orders[what] += 1
        path = f"/v1/jobs/{name}"
        if what == "pace":
            await self._ask("PATCH", f"{path}/pace", {"max_rows_per_s": self._rng.choice([1000, 50_000])})
            return
        if what == "restart":
            if (await self._ask("POST", f"{path}/restart", {"force": True})).status_code < 300:
                self._cancelled.discard(name)
            return
        await self._ask("POST", f"{path}/{what}", {"reason": "soak"})
        if what == "cancel" and (await self._ask("GET", path)).json()["state"] == "cancelled":
            self._cancelled.add(name)

    async def _until_room(self, most: int) -> None:
        """Until fewer than so many jobs are open.  What is paused is resumed now and then: nobody else would."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for name in sorted(self._open):
                answer = await self._ask("GET", f"/v1/jobs/{name}")
                assert answer.status_code == 200, answer.text
                state = answer.json()["state"]
                if state in ("done", "cancelled", "failed"):
                    self._open.discard(name)
                elif state == "paused" and (most == 1 or self._timely_rng.random() < 0.3):
                    await self._ask("POST", f"/v1/jobs/{name}/resume", {})
            if len(self._open) < most:
                return
            assert time.monotonic() < deadline, f"still open: {sorted(self._open)}"
            await asyncio.sleep(0.1)

    # -- the last look ------------------------------------------------------------------------------------------------

    async def _settle_down(self) -> None:
        """Until the daemon holds only what it always does."""
        usual = ("backfill/pool", "backfill/report", "backfill/daemon", "backfill/watch")
        sessions = (
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND application_name <> ''"
        )
        deadline = time.monotonic() + 30
        while left := [one for one in (await self._sql(sessions)).splitlines() if one not in usual]:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        self.report.sessions_left = left

    async def _judge(self) -> None:
        states: Counter[str] = Counter()
        for number in range(self._plan.jobs):
            name = f"soak-{number}"
            state = (await self._ask("GET", f"/v1/jobs/{name}")).json()["state"]
            states[state] += 1
            if state != ("cancelled" if name in self._cancelled else "done"):
                self.report.astray.append(f"{name} is {state}")
            first = number // TABLES * ROWS
            right = "cents IS NOT DISTINCT FROM (amount * 100)::bigint AND writes = 1"
            may_be = f"({right})" if state == "done" else f"({right} OR (cents IS NULL AND writes = 0))"
            self.report.wrong_rows += int(
                await self._sql(
                    f"SELECT count(*) FROM orders_{number % TABLES}"
                    f" WHERE id > {first} AND id <= {first + ROWS} AND NOT {may_be}"
                )
            )
        self.report.states = dict(states)

    async def _sql(self, text: str) -> str:
        return await asyncio.to_thread(self._database.sql, text)


async def soak(plan: Plan, database: FreshDatabase) -> Report:
    """Run it on that database."""
    with config_file(config_of(database)) as file:
        return await Soak(plan, database, file.parent).run()


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with EmbeddedServer(16, settings=QUIET, tcp=True) as server:
        report = asyncio.run(soak(Plan(options.jobs, options.kills, options.seed), create_database(server)))
    print(json.dumps(asdict(report) | {"is_right": report.is_right}, indent=2))
    return 0 if report.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
