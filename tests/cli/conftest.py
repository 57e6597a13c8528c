"""The command line as a user has it: in this process where it ends by itself, as a process of its own where it must be
watched or interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.cli.main import main
from tests.support.daemon import RunningDaemon, running_daemon
from tests.support.databases import FreshDatabase, TwoDatabases

PATIENCE_S = 60.0
PIPE_BYTES = 1 << 20
"""Nobody reads while a process runs: what it says must fit into the pipe, or it would stand still."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        """The last line of stdout as JSON."""
        return self.lines[-1]

    def events(self, name: str) -> list[Any]:
        return [line for line in self.lines if line.get("event") == name]


@dataclass
class Started:
    """``backfill`` as a process of its own."""

    process: subprocess.Popen[str]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout_s: float = PATIENCE_S) -> Outcome:
        out, err = self.process.communicate(timeout=timeout_s)
        return Outcome(self.process.returncode, out, err)


@dataclass
class Cli:
    capsys: pytest.CaptureFixture[str]
    started: list[Started] = field(default_factory=list)

    def __call__(self, *arguments: str) -> Outcome:
        self.capsys.readouterr()
        code = main([*map(str, arguments)])
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def start(self, *arguments: str, **environment: str) -> Started:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pipesize=PIPE_BYTES,
            env={**os.environ, **environment},
        )
        self.started.append(Started(process))
        return self.started[-1]


@pytest.fixture
def backfill(capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    cli = Cli(capsys)
    yield cli
    for one in cli.started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.fixture(autouse=True)
def no_connection_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("PG") or name in ("BACKFILL_DSN", "BACKFILL_DAEMON", "BACKFILL_TOKEN"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PGHOST", "/nonexistent")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("BACKFILL_LOG_FORMAT", "human")  # most tests read sentences; test_log.py looks at the default


@pytest.fixture
def shop(database: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> FreshDatabase:
    """A table with 20,000 rows to fill in place; BACKFILL_DSN leads there."""
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(12,2) NOT NULL, cents bigint);"
        "INSERT INTO orders SELECT g, g / 100.0 FROM generate_series(1, 20000) g; ANALYZE orders"
    )
    monkeypatch.setenv("BACKFILL_DSN", database.dsn)
    return database


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., Path]:
    """``spec(name=…, …)`` writes a spec file; by default the job ``cents`` on the shop."""

    def write(file: str = "job.yaml", **keys: Any) -> Path:
        content = {"name": "cents", "source": {"table": "orders"}, "set": {"cents": "(amount * 100)::bigint"}} | keys
        path = tmp_path / file
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


@pytest.fixture
def slow_job(shop: FreshDatabase, spec: Callable[..., Path]) -> Path:
    """The job on the shop at a pace that leaves time to look at it: some ten seconds.  It listens to no signals: whoever
    looks at it by psql is somebody else on the database, for whom it would slow down.
    """
    return spec(pace={"max_rows_per_s": 2000, "signals": "off"}, chunk={"max_rows": 100})


@pytest.fixture
def two_shops(databases: TwoDatabases, monkeypatch: pytest.MonkeyPatch) -> TwoDatabases:
    """A table of 5,000 rows to copy into another database; SOURCE_DSN and TARGET_DSN lead there."""
    databases.source.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(12,2) NOT NULL);"
        "INSERT INTO orders SELECT g, g / 100.0 FROM generate_series(1, 5000) g; ANALYZE orders"
    )
    databases.target.sql("CREATE TABLE orders_v2 (id bigint PRIMARY KEY, amount numeric(12,2), cents bigint)")
    monkeypatch.setenv("SOURCE_DSN", databases.source.dsn)
    monkeypatch.setenv("TARGET_DSN", databases.target.dsn)
    return databases


@pytest.fixture
def copy_job(two_shops: TwoDatabases, spec: Callable[..., Path]) -> Path:
    return spec(
        name="copy",
        set=None,
        source={"dsn": "${SOURCE_DSN}", "table": "orders"},
        target={"dsn": "${TARGET_DSN}", "table": "orders_v2"},
        columns={"id": "id", "amount": "amount", "cents": "(amount * 100)::bigint"},
        workers=1,
    )


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition holds; it is a look at the database, which nobody can be told to signal."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@pytest.fixture
def until(backfill: Cli) -> Callable[..., None]:
    """``until(database, "SQL condition")``: waits until the ledger of the database says so."""

    def wait(database: FreshDatabase, condition: str) -> None:
        def holds() -> bool:
            for one in backfill.started:
                if one.process.poll() not in (None, 0):
                    pytest.fail(f"ended with {one.process.returncode}: {one.end().err}")
            if database.sql("SELECT to_regclass('backfill.status') IS NOT NULL").strip() != "t":
                return False
            return database.sql(f"SELECT EXISTS (SELECT FROM backfill.status WHERE {condition})").strip() == "t"

        eventually(holds, condition)

    return wait


@contextmanager
def in_a_thread(settings: Any, **options: Any) -> Iterator[RunningDaemon]:
    """A daemon beside the commands, which have event loops of their own."""
    started, box = threading.Event(), {}

    async def serve() -> None:
        box["loop"], box["over"] = asyncio.get_running_loop(), asyncio.Event()
        async with running_daemon(settings, **options) as daemon:
            box["daemon"] = daemon
            started.set()
            await box["over"].wait()

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            box["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(60)
    try:
        if "daemon" not in box:
            raise box.get("error") or AssertionError("the daemon did not start")
        yield box["daemon"]
    finally:
        if "over" in box:
            box["loop"].call_soon_threadsafe(box["over"].set)
        thread.join(60)


CENTS_WRONG = "SELECT count(*) FROM orders WHERE cents IS DISTINCT FROM (amount * 100)::bigint"


def wrong_rows(shop: FreshDatabase) -> int:
    return int(shop.sql(CENTS_WRONG))
