"""Where the pages' commands are run: a shop on a real server, jobs at work on it, and a folder with their specs."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.embedded import EmbeddedServer
from tests.operations.nursery import ADDRESS, HASTE, Child, Nursery

PATIENCE_S = 40.0
JOB = "orders-cents"
OFF: dict[str, Any] = {"signals": "off"}
"""No signals: psql in a page is somebody else to the job."""

ENDED = (7, 8, 130, 137, 143)
"""Codes with which a job's process may end in a situation: the job failed, was cancelled, or a signal ended it."""

_END_OF_COMMAND = "\x1e"
_SHOP = """
CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(12,2) NOT NULL, cents bigint);
INSERT INTO orders SELECT g, g / 100.0 FROM generate_series(1, {rows}) g;
ANALYZE orders;
"""
SECOND = "CREATE TABLE orders_v2 (id bigint PRIMARY KEY, amount numeric(12,2), cents bigint)"


class Psql:
    """An open session of psql: somebody who stays."""

    def __init__(self, server: EmbeddedServer, database: str, *, name: str = "psql") -> None:
        self._process = subprocess.Popen(
            [server.bin("psql"), "-XAtq", "-d", server.dsn(database)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PGAPPNAME": name},
        )

    def __call__(self, sql: str) -> str:
        """Run SQL and wait for it; what it printed."""
        self.begin(f"{sql}\n\\echo @@@")
        assert self._process.stdout is not None
        said = []
        while (line := self._process.stdout.readline()) not in ("@@@\n", ""):
            said.append(line)
        return "".join(said)

    def begin(self, sql: str) -> None:
        """Send SQL, and do not wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{sql}\n")
        self._process.stdin.flush()

    @property
    def is_there(self) -> bool:
        """False when the server has ended it."""
        return self._process.poll() is None

    def close(self) -> None:
        """Leave."""
        self._process.kill()
        self._process.communicate()


@dataclass
class Stage:
    """One situation: its databases, its spec files, the processes that are at work."""

    nursery: Nursery
    server: EmbeddedServer
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    steps: dict[str, Callable[[], object]] = field(default_factory=dict)
    _databases: list[tuple[EmbeddedServer, str]] = field(default_factory=list)
    _children: list[Child] = field(default_factory=list)
    _sessions: list[Psql] = field(default_factory=list)
    _at_end: list[Callable[[], object]] = field(default_factory=list)
    _logs: int = 0
    _quiet: dict[str, Psql] = field(default_factory=dict)

    # -- what is there ----------------------------------------------------------------------------------------------

    def database(self, name: str, sql: str = "", *, on: EmbeddedServer | None = None) -> None:
        """A fresh database of that name."""
        server = on or self.server
        server.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        server.sql(f"CREATE DATABASE {name} TEMPLATE template0")
        self._databases.append((server, name))
        if sql:
            server.sql(sql, name)

    def shop(self, rows: int = 20_000, more: str = "") -> None:
        """The database ``shop`` with its orders; the commands' ledger is there."""
        self.database("shop", _SHOP.format(rows=rows) + more)
        self.leads_to("shop")

    def leads_to(self, database: str, *, on: EmbeddedServer | None = None) -> None:
        """BACKFILL_DSN and psql lead there."""
        server = on or self.server
        self.environment |= {
            "BACKFILL_DSN": server.dsn(database),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGUSER": "postgres",
            "PGDATABASE": database,
        }

    def sql(self, text: str, database: str = "shop") -> str:
        """Run SQL as the superuser."""
        return self.server.sql(text, database)

    def spec(self, file: str = "orders.yaml", **keys: Any) -> None:
        """A spec file; by default the job that fills ``orders.cents``."""
        content = {"name": JOB, "source": {"table": "orders"}, "set": {"cents": "(amount * 100)::bigint"}} | keys
        content = {key: value for key, value in content.items() if value is not None}
        (self.folder / file).write_text(yaml.safe_dump(content, sort_keys=False))

    def spec_into(self, **keys: Any) -> None:
        """The same for the job that fills ``orders_v2``."""
        columns = {"id": "id", "amount": "amount", "cents": "(amount * 100)::bigint"}
        self.spec(**{"name": JOB, "set": None, "target": {"table": "orders_v2"}, "columns": columns} | keys)

    # -- who is there -----------------------------------------------------------------------------------------------

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """One command, to its end; what it said."""
        child = self.start(*arguments, **environment)
        ended = child.wait(PATIENCE_S)
        self._children.remove(child)
        assert ended == code, f"{arguments} ended with {ended}: {child.log.read_text()}"
        return child.log.read_text()

    def start(self, *arguments: str, **environment: str) -> Child:
        """One command beside the others; ended with the situation."""
        self._logs += 1
        log = self.folder / f".{self._logs}.log"
        child = self.nursery.start(
            *arguments, environment=self._environment() | environment, folder=self.folder, log=log
        )
        self._children.append(child)
        return child

    def work(self, *arguments: str) -> Child:
        """A worker process, as a host of one's own would have it."""
        return self.start("worker", *arguments)

    def haste(self, **constants: float) -> None:
        """Let processes from here on be less patient: ``engine__flow__worker__PATIENCE_S=1``."""
        self.environment[HASTE] = json.dumps({name.replace("__", "."): value for name, value in constants.items()})

    def session(self, database: str = "shop", *, name: str = "psql") -> Psql:
        """Somebody in psql."""
        self._sessions.append(Psql(self.server, database, name=name))
        return self._sessions[-1]

    def at_end(self, undo: Callable[[], object]) -> None:
        """Do so when the situation is over."""
        self._at_end.append(undo)

    def until(
        self, condition: str, *, of: str = "backfill.status", database: str = "shop", aloud: bool = False
    ) -> None:
        """Wait until the ledger says so.  ``aloud``: ask as somebody else whom the job gives way to."""
        ask = self.sql if aloud else self._quietly
        deadline = time.monotonic() + PATIENCE_S
        while True:
            there = ask(f"SELECT to_regclass('{of}') IS NOT NULL;", database) == "t"
            if there and ask(f"SELECT EXISTS (SELECT FROM {of} WHERE {condition});", database) == "t":
                return
            for child in self._children:
                assert child.poll() in (None, 0, *ENDED), child.log.read_text()
            seen = ask("SELECT to_jsonb(s) FROM backfill.status s;", database) if there else ""
            assert time.monotonic() < deadline, f"waited in vain for {condition}: {seen}"
            time.sleep(0.03)

    def _quietly(self, sql: str, database: str) -> str:
        """Ask as one of our own sessions, which count as nobody."""
        session = self._quiet.get(database)
        if session is None or not session.is_there:
            session = self._quiet[database] = self.session(database, name=f"backfill/{JOB}/test")
        return session(sql).strip()

    def gone(self, database: str = "shop") -> None:
        """Fifteen seconds later: leases and signs of life of whoever has vanished have run out."""
        self.sql(
            "UPDATE backfill.span SET lease_until = clock_timestamp() - interval '1 s' WHERE lease_until IS NOT NULL;"
            "UPDATE backfill.worker SET seen_at = clock_timestamp() - interval '16 s';"
            "UPDATE backfill.pacer SET lease_until = clock_timestamp() - interval '1 s',"
            " valid_until = clock_timestamp() - interval '1 s'",
            database,
        )

    def close(self) -> None:
        """End everybody and drop everything."""
        for child in self._children:
            child.signal(signal.SIGKILL)
        for child in self._children:
            child.wait()
        self.nursery.end(self.folder)
        for session in self._sessions:
            session.close()
        for undo in reversed(self._at_end):
            undo()
        for server, name in self._databases:
            server.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    # -- the pages' commands ----------------------------------------------------------------------------------------

    def shell(self, commands: list[str]) -> list[tuple[int, str]]:
        """Run commands one after another in one shell: exit code and output of each."""
        ends = "__code=$?; printf '\\036%d\\036' $__code; (exit $__code)"
        script = "\n".join(["exec 2>&1 </dev/null", *(f"{command}\n{ends}" for command in commands)])
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        pieces = done.stdout.split(_END_OF_COMMAND)
        said = [(int(code), self.renamed(text)) for text, code in zip(pieces[::2], pieces[1::2], strict=False)]
        assert len(said) == len(commands), f"the shell ended early: {done.stdout}"
        return said

    def query(self, sql: str) -> str:
        """Run SQL as a person in psql would; what psql prints."""
        [(code, said)] = self.shell([f"psql -X -q -v ON_ERROR_STOP=1 -c {shlex.quote(sql)}"])
        assert code == 0, said
        return said.strip("\n")

    def renamed(self, text: str) -> str:
        """Hosts, users and ports as a page has them."""
        text = re.sub(r"127\.0\.0\.1(:\d+)?", "db1", text)
        text = text.replace(f"{getpass.getuser()}@{socket.gethostname()}", "ana@ops1")
        return text.replace(socket.gethostname(), "worker1")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "BACKFILL_DSN"))}
        ours: Mapping[str, str] = {
            "PATH": f"{self.nursery.programs}:{os.environ['PATH']}",
            ADDRESS: self.nursery.address,
            "NO_COLOR": "1",
            "BACKFILL_LOG_FORMAT": "human",
            "LC_ALL": "C.UTF-8",
            "PAGER": "cat",
        }
        return {**kept, **ours, **self.environment}
