"""The scene for the pictures: one database with an application on it, a Prometheus, and jobs of every kind.

One runs, one is held by a signal, one is stalled (its process is stopped), one is failing (somebody holds locks on its
rows), one has failed (a row that its expression cannot take), one is done and verified.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from engine.embedded import EmbeddedServer

MAJOR: Final = 18
DATABASE: Final = "shop"
SETTINGS: Final[dict[str, str | int]] = {
    "max_connections": 90,
    "shared_buffers": "256MB",
    "max_wal_size": "192MB",  # so that checkpoints are requested within a few minutes
    "track_io_timing": "on",
    "wal_receiver_status_interval": "1s",
}
SCRAPE_S: Final = 1
READY_S: Final = 30.0

TABLES: Final = """
CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric, note text, amount_cents bigint);
INSERT INTO orders SELECT g, round((random() * 1000)::numeric, 2), repeat(md5(g::text), 3), NULL
  FROM generate_series(1, 1500000) g;
-- Two rows that cannot be written: they are set aside.
UPDATE orders SET amount = 1e30 WHERE id IN (30011, 260017);
CREATE TABLE payments (id bigint PRIMARY KEY, region text, region_id int);
INSERT INTO payments SELECT g, (ARRAY['north', 'south', 'east', 'west'])[1 + g % 4], NULL
  FROM generate_series(1, 700000) g;
CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), body text);
INSERT INTO events SELECT g, now(), md5(g::text) FROM generate_series(1, 900000) g;
CREATE TABLE events_archive (id bigint PRIMARY KEY, at timestamptz NOT NULL, body text);
CREATE TABLE customers (id bigint PRIMARY KEY, email text, email_lower text);
INSERT INTO customers SELECT g, 'Customer' || g || '@Example.com', NULL FROM generate_series(1, 600000) g;
CREATE TABLE invoices (id bigint PRIMARY KEY, total int, lines int, per_line int);
INSERT INTO invoices SELECT g, g, CASE WHEN g = 90000 THEN 0 ELSE 1 + g % 7 END, NULL FROM generate_series(1, 200000) g;
CREATE TABLE regions (id bigint PRIMARY KEY, name text, code text);
INSERT INTO regions SELECT g, 'Region ' || g, NULL FROM generate_series(1, 60000) g;
CREATE TABLE mail_queue (id bigint PRIMARY KEY);
CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 70);
INSERT INTO accounts SELECT g, 0 FROM generate_series(1, 100000) g;
VACUUM ANALYZE;
"""

APPLICATION: Final = r"""
\set account random(1, 100000)
\set id random(1, 1500000)
BEGIN;
SELECT balance FROM accounts WHERE id = :account;
SELECT amount FROM orders WHERE id = :id;
UPDATE accounts SET balance = balance + 1 WHERE id = :account;
COMMIT;
"""

LATENCIES: Final = [{"read_latency": {"target": "25ms"}}, {"commit_latency": {"target": "40ms"}}]


def specs() -> dict[str, dict[str, Any]]:
    """The jobs by what they are to show."""
    queue = {"sql": {"name": "mail_queue", "query": "select count(*) from mail_queue", "target": 500, "max": 1000}}

    def job(name: str, table: str, sets: dict[str, str], rows_per_s: int, **more: Any) -> dict[str, Any]:
        pace = {"max_rows_per_s": rows_per_s, "signals": [*LATENCIES, *more.pop("signals", [])]}
        base = {"name": name, "source": {"dsn": "${SOURCE_DSN}", "table": table}, "set": sets, "pace": pace}
        return base | {"workers": 2, "lock_timeout": "1s"} | more

    cents = {"amount_cents": "(amount * 100)::bigint"}
    return {
        "running": job(
            "orders-amount-cents",
            "public.orders",
            cents,
            6000,
            signals=[{"replication_lag": {"target": "5s", "max": "30s"}}, {"active_sessions": {"max": 40}}],
            bloat={"max_growth": "60%"},
            errors={"max_quarantined": 10},
        ),
        "held": job("payments-region", "public.payments", {"region_id": "length(region)"}, 2500, signals=[queue]),
        "stalled": job("events-archive", "public.events", {}, 3000)
        | {
            "target": {"table": "public.events_archive"},
            "set": None,
            "columns": {"id": "id", "at": "at", "body": "body"},
        },
        "failing": job("customers-email", "public.customers", {"email_lower": "lower(email)"}, 3000),
        "failed": job("invoices-per-line", "public.invoices", {"per_line": "total / lines"}, 3000, workers=1),
        "done": job("regions-code", "public.regions", {"code": "upper(name)"}, 6000, verify="after"),
    }


@dataclass(slots=True)
class Stage:
    """What runs, and where.  Everything is in ``folder`` or in the servers' own."""

    folder: Path
    server: EmbeddedServer
    prometheus: str
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, kind: str) -> None:
        """Start a job's process."""
        spec = {key: value for key, value in specs()[kind].items() if value is not None}
        file = self.folder / f"{kind}.json"
        file.write_text(json.dumps(spec))
        command = [sys.executable, "-m", "engine", "run", str(file)]
        listen = f"127.0.0.1:{self.ports[kind]}"
        with (self.folder / f"{kind}.log").open("wb") as log:
            self.processes[kind] = subprocess.Popen(
                [*command, "--metrics-listen", listen, "--metrics-linger", "3s"],
                stdout=log,
                stderr=log,
                env=os.environ | {"SOURCE_DSN": self.server.socket_dsn(DATABASE), "BACKFILL_LOG_FORMAT": "human"},
            )

    def freeze(self, kind: str) -> None:
        """Stop a process as a debugger or a full swap would: it holds what it has, and does nothing."""
        self.processes[kind].send_signal(signal.SIGSTOP)

    def session(self, *statements: str) -> subprocess.Popen[bytes]:
        """Somebody's psql that has run these statements, and stays idle until it is killed."""
        process = subprocess.Popen(
            [self.server.bin("psql"), "-X", "-q", self.server.socket_dsn(DATABASE)],
            env={"PGAPPNAME": "report", "PATH": os.environ["PATH"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        process.stdin.write("".join(f"{statement};\n" for statement in statements).encode())
        process.stdin.flush()
        return process

    def application(self, per_second: int, seconds: int, clients: int = 3) -> subprocess.Popen[bytes]:
        """Somebody's application: pgbench at a rate of its own."""
        script = self.folder / "application.sql"
        script.write_text(APPLICATION)
        options = ["-n", "-f", str(script), "-T", str(seconds), "-R", str(per_second), "-c", str(clients)]
        where = ["-h", str(self.server.socket_folder), "-p", str(self.server.port), "-U", "postgres"]
        return subprocess.Popen(
            [self.server.bin("pgbench"), *options, *where, DATABASE],
            env={"PGAPPNAME": "shop", "PATH": os.environ["PATH"]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextmanager
def set_up(folder: Path) -> Iterator[Stage]:
    """Server with a standby, tables and Prometheus; everything ends with the block."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(MAJOR, settings=SETTINGS))
        server.sql(f"CREATE DATABASE {DATABASE}")
        server.sql(TABLES, DATABASE)
        standby = server.make_standby()
        stack.callback(standby.discard)
        ports = dict(zip(specs(), free_ports(len(specs())), strict=True))
        url = stack.enter_context(prometheus(folder, list(ports.values())))
        stage = Stage(folder, server, url, ports)
        stack.callback(_end, stage)
        yield stage


def _end(stage: Stage) -> None:
    for process in stage.processes.values():
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def prometheus(folder: Path, ports: Sequence[int]) -> Iterator[str]:
    """A Prometheus that scrapes these ports every second; gives its address."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("pictures need Prometheus: apt-get install prometheus")
    targets = [f"127.0.0.1:{port}" for port in ports]
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s"},
        "scrape_configs": [
            {"job_name": "backfill", "honor_labels": True, "static_configs": [{"targets": targets}]},
        ],
    }
    file = folder / "prometheus.json"
    file.write_text(json.dumps(config))  # JSON is YAML
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    options = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address={url[7:]}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *options],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + READY_S
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "prometheus.log").read_text()[-2000:])
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=1).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
