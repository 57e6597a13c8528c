"""A story that a real Prometheus has seen: jobs of every kind beside an application, by processes of which some die.

Three jobs on one ledger.  ``orders`` is moved by two processes: they meet locks and a row that cannot be written, are
held, one of them is killed meanwhile, and the other goes on with its spans; the verification then finds one row that
differs.  ``stuck`` loses its only process.  ``held`` is held all the time.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx

from tests.support.databases import FreshDatabase, create_database
from tests.support.prometheus import Prometheus
from tests.support.standby import StandbyPair, standby_pair

MAJOR: Final = 18
PATIENCE_S: Final = 60.0
ROWS: Final = 6_000
BAD_ROW: Final = 2_345  # its value breaks a constraint
WRONG_ROW: Final = 77  # has a value already, and not the right one
APPLICATION_PAUSE_S: Final = 0.05
IDLE_TURNS: Final = 40
FASTER: Final = 60
"""An hour is a minute to the rules of the story."""

TABLES: Final = f"""
CREATE TABLE orders (id bigint PRIMARY KEY, amount bigint NOT NULL, note text, cents bigint CHECK (cents >= 0));
INSERT INTO orders SELECT g, g, 'fresh', NULL FROM generate_series(1, {ROWS}) g;
UPDATE orders SET amount = -1 WHERE id = {BAD_ROW};
UPDATE orders SET cents = 1 WHERE id = {WRONG_ROW};
CREATE TABLE stuck (id bigint PRIMARY KEY, amount bigint NOT NULL, cents bigint);
INSERT INTO stuck SELECT g, g, NULL FROM generate_series(1, 5000) g;
CREATE TABLE held (id bigint PRIMARY KEY, amount bigint NOT NULL, cents bigint);
INSERT INTO held SELECT g, g, NULL FROM generate_series(1, 5000) g;
CREATE TABLE gate (depth int NOT NULL);
INSERT INTO gate VALUES (0);
VACUUM ANALYZE;
"""

PATIENT: Final = {"target": "400ms"}
"""For latencies: a machine that is busy with other tests is no reason to slow down."""

FIRES: Final = (
    ("BackfillJobStalled", "stuck"),
    ("BackfillJobHeldTooLong", "held"),
    ("BackfillSpansTakenOver", "orders"),
    ("BackfillQuarantineGrows", "orders"),
    ("BackfillVerificationMismatch", "orders"),
)
"""Alerts for which the story is told, with their jobs."""

SPECS: Final[dict[str, dict[str, Any]]] = {
    "orders": {
        "chunk": {"max_rows": 100},
        "lock_timeout": "300ms",
        "errors": {"max_quarantined": 5},
        "bloat": {"max_growth": "300%"},
        "verify": "after",
        "pace": {
            "max_rows_per_s": 1200,
            "finish_by": "2099-01-01T00:00:00Z",
            "signals": [
                {"read_latency": PATIENT},
                {"commit_latency": PATIENT},
                {"replication_lag": {"target": "5s", "max": "30s"}},
                {"active_sessions": {"max": 90}},
                {"sql": {"name": "queue", "query": "select depth from gate", "max": 50, "every": "500ms"}},
                {"sql": {"name": "gone", "query": "select 1/0", "max": 1, "every": "1s", "on_failure": "ignore"}},
            ],
        },
    },
    "stuck": {
        "chunk": {"max_rows": 50},
        "pace": {"max_rows_per_s": 200, "finish_by": "2026-01-01T00:00:00Z", "signals": "off"},
    },
    "held": {
        "pace": {
            "signals": [
                {"read_latency": "off"},
                {"commit_latency": "off"},
                {"lock_waits": "off"},
                {"sql": {"name": "never", "query": "select 100", "max": 50}},
            ]
        }
    },
}


@dataclass
class Runner:
    """One ``backfill run`` process."""

    job: str
    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""

    def said(self, event: str) -> dict[str, Any] | None:
        """The first line of its log about that."""
        for line in self.log.read_text().splitlines():
            if line.startswith("{") and (entry := json.loads(line)).get("event") == event:
                return dict(entry)
        return None


@dataclass
class Story:
    """What was seen: ask ``prometheus``, or compare with what the ledger said in the end."""

    pair: StandbyPair
    database: FreshDatabase
    prometheus: Prometheus
    folder: Path
    runners: list[Runner] = field(default_factory=list)
    fired: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # (alert, job) -> as it was seen
    exposition: str = ""  # of a process at work
    began: float = 0.0
    ended: float = 0.0
    killed: list[Runner] = field(default_factory=list)
    code: int | None = None  # of the run that saw the end of ``orders``
    status: dict[str, dict[str, Any]] = field(default_factory=dict)  # job -> as the ledger had it in the end

    # --- processes ---------------------------------------------------------------------------------------------------

    def run(self, *jobs: str) -> list[Runner]:
        """Start a process on each of these jobs, and have them scraped."""
        new = [self._start(job) for job in jobs]
        for runner in new:
            self.until(lambda runner=runner: runner.said("job.opened") is not None, f"{runner.job} to begin")
            said = runner.said("metrics.listening")
            assert said is not None
            runner.address = httpx.URL(said["url"]).netloc.decode()
        self.prometheus.watch(*(one.address for one in self.runners))
        return new

    def _start(self, job: str) -> Runner:
        spec = {"name": job, "source": {"table": job}, "set": {"cents": "(amount * 100)::bigint"}, **SPECS[job]}
        number = len(self.runners)
        path, log = self.folder / f"{number}.json", self.folder / f"{number}.log"
        path.write_text(json.dumps(spec))
        with log.open("wb") as stderr, (self.folder / f"{number}.out").open("wb") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-m", "engine", "run", str(path), "--metrics-listen", "127.0.0.1:0", "--json"],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, "BACKFILL_DSN": self.database.dsn, "BACKFILL_LOG_FORMAT": "json"},
            )
        self.runners.append(Runner(job, process, log))
        return self.runners[-1]

    def kill(self, runner: Runner) -> None:
        """As the kernel does it."""
        runner.process.send_signal(signal.SIGKILL)
        runner.process.wait()
        self.killed.append(runner)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until it holds; meanwhile note the alerts that fire."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            for runner in self.runners:
                if runner not in self.killed and runner.process.poll() not in (None, 0, 6, 143):
                    raise AssertionError(f"{runner.job} ended: {runner.log.read_text()}")
            assert time.monotonic() < deadline, f"waited in vain for {what}; {self.fired.keys()}"
            self.note()
            time.sleep(0.1)

    def note(self) -> None:
        """Remember what fires now."""
        for alert in self.prometheus.alerts():
            if alert["state"] == "firing":
                self.fired.setdefault((alert["labels"]["alertname"], alert["labels"]["job"]), alert)

    def holds(self, expression: str) -> Callable[[], bool]:
        """True when Prometheus has a value for the expression."""
        return lambda: bool(self.prometheus.query(expression))

    def ledger(self, job: str, condition: str) -> Callable[[], bool]:
        """True when the ledger says so."""
        exists = "SELECT to_regclass('backfill.status') IS NOT NULL"
        asked = f"SELECT EXISTS (SELECT FROM backfill.status WHERE job = '{job}' AND {condition})"
        return lambda: self.database.sql(exists) == "t" and self.database.sql(asked) == "t"

    def see(self, runner: Runner) -> None:
        """Wait until the process has been scraped after this moment."""
        seen = f'timestamp(backfill_build_info{{instance="{runner.address}"}}) > {time.time() + 1}'
        self.until(self.holds(seen), "a scrape")


@contextmanager
def recorded(rules: str) -> Iterator[Story]:
    """Tell the story; what it leaves is there until the end of the block.  ``rules``: as committed."""
    with ExitStack() as stack:
        prometheus = stack.enter_context(Prometheus(rules=shrunk(rules)))  # first: it may be missing
        pair = stack.enter_context(standby_pair(MAJOR))
        database = create_database(pair.primary)
        database.sql(TABLES)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        story = Story(pair, database, prometheus, folder, began=time.time())
        stack.callback(_end, story)
        _tell(story)
        yield story


def _tell(story: Story) -> None:
    (second,) = story.run("orders")  # this one reports on the ledger, and will die
    story.until(story.holds("backfill_reporter == 1"), "somebody who reports")
    with _application(story.database.dsn):
        first, stuck, held = story.run("orders", "stuck", "held")
        story.until(story.holds(f'backfill_rows_total{{instance="{first.address}"}} > 0'), "both to move")
        story.until(story.ledger("stuck", "rows_done > 200"), "stuck to move")
        story.kill(stuck)
        story.pair.pause()
        story.database.sql("CHECKPOINT")  # before the next look at the server, for which is waited below
        with _locks(story.database, "SELECT FROM orders WHERE id % 20 = 0 FOR UPDATE"):
            story.until(story.ledger("orders", "retries >= 2"), "retries")
            story.until(story.holds("backfill_database_lock_waiters > 0"), "somebody to wait for a lock")
        story.pair.resume()
        story.exposition = httpx.get(f"http://{second.address}/metrics", trust_env=False).text

        story.database.sql("UPDATE gate SET depth = 100")
        story.until(story.holds('backfill_job_held{job="orders", reason="queue"} == 1'), "the hold")
        story.see(second)
        story.kill(second)
        story.database.sql("UPDATE gate SET depth = 3")

    # Nobody else is there now, not even one who looks into the ledger: the rest goes as fast as it may.
    story.until(lambda: first.process.poll() is not None, "the end of orders")
    story.code = first.process.returncode
    for wanted in FIRES:
        story.until(lambda wanted=wanted: wanted in story.fired, f"{wanted}")
    story.see(held)  # the last words are seen for a whole second at least
    held.process.send_signal(signal.SIGTERM)
    held.process.wait(PATIENCE_S)
    story.ended = time.time()
    story.status = {job: _status(story.database, job) for job in SPECS}


def _end(story: Story) -> None:
    for runner in story.runners:
        if runner.process.poll() is None:
            runner.process.kill()
        runner.process.wait()


def _status(database: FreshDatabase, job: str) -> dict[str, Any]:
    return dict(json.loads(database.sql(f"SELECT to_json(s) FROM backfill.status s WHERE job = '{job}'")))


@contextmanager
def _locks(database: FreshDatabase, statement: str) -> Iterator[None]:
    """Somebody holds locks while the block runs, and somebody else waits for them."""
    ready, stop = threading.Event(), threading.Event()

    async def hold() -> None:
        holder, waiter = await asyncpg.connect(database.dsn), await asyncpg.connect(database.dsn)
        async with holder.transaction():
            await holder.execute(statement)
            waiting = asyncio.create_task(waiter.execute(statement))
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(APPLICATION_PAUSE_S)
        await waiting
        await holder.close()
        await waiter.close()

    with _beside(hold(), stop):
        assert ready.wait(PATIENCE_S), "the locks were not had"
        yield


@contextmanager
def _application(dsn: str) -> Iterator[None]:
    """Somebody else reads and writes rows all the while, and leaves a transaction open."""
    stop = threading.Event()

    async def live() -> None:
        idle, busy = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        key = turn = 0
        while not stop.is_set():
            turn += 1
            if turn % IDLE_TURNS == 1:  # not for ever: a job begins when all older transactions have ended
                await idle.execute("COMMIT; BEGIN; SELECT count(*) FROM gate" if turn > 1 else "BEGIN")
            key = key % ROWS + 13
            with suppress(asyncpg.LockNotAvailableError):
                await busy.execute("SET lock_timeout = '100ms'")
                await busy.execute("UPDATE orders SET note = $2 WHERE id = $1", key, f"read {key}")
            await asyncio.sleep(APPLICATION_PAUSE_S)
        await idle.close()
        await busy.close()

    with _beside(live(), stop):
        yield


@contextmanager
def _beside(work: Coroutine[Any, Any, None], stop: threading.Event) -> Iterator[None]:
    """The work goes on in a thread until the end of the block, when ``stop`` is set."""
    thread = threading.Thread(target=asyncio.run, args=(work,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)


def shrunk(rules: str) -> str:
    """The rules with all their times ``FASTER`` times shorter: durations, and thresholds in seconds."""
    seconds = {"s": 1, "m": 60, "h": 3600}

    def shorter(number: str, unit: str) -> str:
        return f"{max(1, round(int(number) * seconds[unit] / FASTER))}s"

    def expression(text: str) -> str:
        text = re.sub(r"\[(\d+)([smh])\]", lambda m: f"[{max('2s', shorter(m[1], m[2]), key=_size)}]", text)
        text = re.sub(r"offset (\d+)([smh])", lambda m: f"offset {shorter(m[1], m[2])}", text)
        text = re.sub(r"time\(\) - (\d+)", lambda m: f"time() - {int(m[1]) / FASTER:g}", text)
        return re.sub(
            r"(_seconds\)) > (\d+)", lambda m: f"{m[1]} > {int(m[2]) / FASTER:g}" if int(m[2]) else m[0], text
        )

    lines = []
    for line in expression(rules).splitlines():
        found = re.match(r"(\s*(?:for|interval): )(\d+)([smh])", line)
        lines.append(f"{found[1]}{shorter(found[2], found[3])}" if found else line)
    return "\n".join(lines) + "\n"


def _size(duration: str) -> int:
    return int(duration.removesuffix("s"))
