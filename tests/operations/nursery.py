"""Runs ``backfill`` many times without starting Python as often: a process that has loaded the program forks for each
command.  What comes out of a command is the same; most of what it would cost is gone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
ADDRESS = "BACKFILL_NURSERY"
MESSAGE_BYTES = 1 << 18

HASTE = "BACKFILL_NURSERY_HASTE"
"""A variable with constants, as ``{"engine.flow.worker.PATIENCE_S": 1}``: what takes a quarter of an hour takes less."""

PROGRAM = f"""#!{sys.executable} -IS
import json, os, signal, socket, sys

nursery = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
nursery.connect(os.environ["{ADDRESS}"])
order = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(nursery, [json.dumps(order).encode()], [0, 1, 2])
child = json.loads(nursery.recv(1 << 10))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(child, number))
sys.exit(json.loads(nursery.recv(1 << 10)))
"""
"""``backfill`` on the PATH of the pages' commands."""


class Child:
    """A command that runs beside the test."""

    def __init__(self, nursery: socket.socket, log: Path) -> None:
        self._nursery = nursery
        self.log = log
        self.pid: int = json.loads(nursery.recv(1 << 10))
        self.code: int | None = None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.code is None and select.select([self._nursery], [], [], 0)[0]:
            self._end()
        return self.code

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for its end; its exit code."""
        if self.code is None:
            assert select.select([self._nursery], [], [], timeout_s)[0], f"still running: {self.log.read_text()}"
            self._end()
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """End it at once, whether it stands still or not."""
        self.signal(signal.SIGKILL)
        self.wait()

    def _end(self) -> None:
        self.code = json.loads(self._nursery.recv(1 << 10))
        self._nursery.close()


class Nursery:
    """The process that forks, and the folder with the ``backfill`` that asks it to."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="backfill-nursery-")
        self.programs = Path(self._folder.name)
        self.address = str(self.programs / "socket")
        self.install("backfill", PROGRAM)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.operations.nursery", self.address],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def install(self, name: str, text: str) -> None:
        """Put a program on the commands' PATH."""
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *arguments: str, environment: Mapping[str, str], folder: Path, log: Path) -> Child:
        """Run a command beside the test."""
        nursery = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        nursery.connect(self.address)
        order = {"arguments": arguments, "folder": str(folder), "environment": dict(environment)}
        with log.open("ab") as out, Path(os.devnull).open() as nothing:
            socket.send_fds(nursery, [json.dumps(order).encode()], [nothing.fileno(), out.fileno(), out.fileno()])
        return Child(nursery, log)

    def end(self, folder: Path) -> None:
        """End what was started in a folder and is still there: a page's ``nohup`` outlives its shell."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as nursery:
            nursery.connect(self.address)
            socket.send_fds(nursery, [json.dumps({"end": str(folder)}).encode()], [])
            nursery.recv(1 << 10)


# -- the nursery's side ---------------------------------------------------------------------------------------------


def nurse(address: str) -> None:
    """Fork for each connection; tell it the child's process id, then its exit code.  Ends with standard input."""
    import engine.cli.main as program  # loaded once, here: that is the whole point

    for module in program.COMMANDS.values():
        __import__(module.partition(":")[0])
    import engine.cli.loop  # noqa: F401

    children: dict[int, socket.socket] = {}
    folders: dict[int, str] = {}
    wake_read, wake_write = os.pipe()
    for end in (wake_read, wake_write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(address)
    door.listen(16)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([0, wake_read, door], [], [])
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
            _reap(children)
        if door in ready:
            client, _ = door.accept()
            message, streams, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 3)
            order = json.loads(message)
            if folder := order.get("end"):
                for pid in [pid for pid in children if folders[pid] == folder]:
                    os.kill(pid, signal.SIGKILL)
                    _let_go(children.pop(pid), os.waitpid(pid, 0)[1])
                _let_go(client, 0)
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                _child(order, streams)
            children[pid], folders[pid] = client, order["folder"]
            for stream in streams:
                os.close(stream)
            with contextlib.suppress(OSError):
                client.send(json.dumps(pid).encode())
        if 0 in ready:
            break
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _reap(children: dict[int, socket.socket]) -> None:
    for pid in list(children):
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            _let_go(children.pop(pid), status)


def _let_go(client: socket.socket, status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):  # whoever started it may be gone
        client.send(json.dumps(code if code >= 0 else 128 - code).encode())
    client.close()


def _child(order: Mapping[str, Any], streams: Sequence[int]) -> None:
    code = 1
    try:
        from engine.cli.main import main

        for place, stream in enumerate(streams):
            os.dup2(stream, place)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        _make_haste(order["environment"].get(HASTE, "{}"))
        code = main(order["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _make_haste(constants: str) -> None:
    for path, value in json.loads(constants).items():
        module, _, name = path.rpartition(".")
        owner = importlib.import_module(module)
        assert hasattr(owner, name), path
        setattr(owner, name, value)


if __name__ == "__main__":
    nurse(sys.argv[1])
