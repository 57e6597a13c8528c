"""One throw-away PostgreSQL server: its folder, its process, every way to stop it."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from engine.clock import SystemClock
from engine.embedded.account import QUICK_S, Account
from engine.embedded.binaries import find_binaries, within_reach

SUPERUSER = "postgres"
SOCKET_PORT = 5432
"""The number in the name of the socket, where there is no TCP port: each server has a folder of its own."""

TCP_PORTS = range(15_000, 32_000)
"""Below the range from which Linux takes the local ends of connections: a port stays ours over a restart."""

SOCKET_PATH_BYTES = 107
"""``sockaddr_un`` holds no longer path."""

START_S = 60.0
STOP_S = 30.0
COMMAND_S = 300.0
POLL_S = 0.02
ATTEMPTS = 20
LOG_LINES = 30

SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
"""How the postmaster wants to be told (``man postgres``)."""

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C", "LC_ALL": "C", "TZ": "UTC"}
"""All that servers and their programs see: no PG* variable and no locale of ours decides how they behave."""

FAST_AND_LOOSE = {"fsync": "off", "full_page_writes": "off"}
"""Survives every death of the server, though not the machine's: right for data that nobody keeps."""

COMMON = {
    "cluster_name": "backfill-embedded",
    "huge_pages": "off",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] %a ",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "unix_socket_permissions": "0700",
    "wal_level": "replica",
}

WATCH = r"""
exec 3<&0
log=$1 folder=$2
shift 2
"$@" 3<&- </dev/null >>"$log" 2>&1 &
server=$!
echo "$server"
exec >/dev/null 2>&1
(
    read -r _ <&3
    trap '' TERM
    kill -QUIT "$server"
    while kill -0 "$server"; do sleep 0.1; done
    test -z "$folder" || rm -rf "$folder"
) &
guard=$!
wait "$server"
ended=$?
kill "$guard"
exit "$ended"
"""
"""Runs the server and ends it when standard input closes, which the kernel does for us however we die.

A death signal (``PR_SET_PDEATHSIG``) would be shorter, and wrong: it comes when the *thread* that started the server
ends.  Both shells read from their own copy of the pipe, so the guard outlives even the shell that made it.
"""


class EmbeddedError(RuntimeError):
    """A server, or one of its programs, did not do what it was told.  Ends with the last lines of its log."""


class EmbeddedServer:
    """A PostgreSQL server in a folder of its own; a context manager that starts it and leaves nothing behind.

    ``major``: 16 or 18, or one that Debian's packages brought.  ``folder``: where it lives, kept afterwards and used
    again by the next server there; left out, a temporary one that goes with the server.  ``settings``: lines of
    postgresql.conf.  ``tcp``: listen on 127.0.0.1 as well (no password: see the room's docstring).  ``durable``: fsync.
    ``locale``: of the databases.

    Raises ``BinariesMissing`` at once when this machine has no such version, ``EmbeddedError`` when it will not run.
    """

    def __init__(
        self,
        major: int = 16,
        folder: Path | None = None,
        settings: Mapping[str, str | int] | None = None,
        *,
        tcp: bool = False,
        durable: bool = False,
        locale: str = "C",
    ) -> None:
        self.major = major
        self.settings: dict[str, str | int] = {**COMMON, **({} if durable else FAST_AND_LOOSE), **(settings or {})}
        self.tcp = tcp
        self.durable = durable
        self.port = _free_port() if tcp else SOCKET_PORT
        self._locale = locale
        self._account = Account.for_servers()
        self._clock = SystemClock()
        self._found = find_binaries(major)
        self._binaries = self._found
        self._given = folder
        self._folder: Path | None = None
        self._sockets: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._postmaster: int | None = None
        self._primary: EmbeddedServer | None = None
        self._has_run = False
        self._owner = os.getpid()

    # --- where it is -------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Everything of this server is below it (the socket may not be, when ``folder`` was given and is long)."""
        return _prepared(self._folder)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What the server writes to standard error."""
        return self.folder / "server.log"

    @property
    def socket_folder(self) -> Path:
        """What libpq calls ``host`` for the socket."""
        return _prepared(self._sockets)

    @property
    def host(self) -> str:
        """What to connect to: 127.0.0.1 with ``tcp``, else the socket's folder."""
        return "127.0.0.1" if self.tcp else str(self.socket_folder)

    @property
    def postmaster(self) -> int | None:
        """The process id of the running server, else None."""
        return self._postmaster if self.is_running else None

    @property
    def is_running(self) -> bool:
        """True from ``start`` until the server's main process has ended, by whatever cause."""
        return self._process is not None and self._process.poll() is None

    def dsn(self, database: str = "postgres", *, user: str = SUPERUSER) -> str:
        """A connection URI for libpq and asyncpg, without a password."""
        if self.tcp:
            return f"postgresql://{quote(user)}@127.0.0.1:{self.port}/{quote(database)}"
        return self.socket_dsn(database, user=user)

    def socket_dsn(self, database: str = "postgres", *, user: str = SUPERUSER) -> str:
        """The same through the socket, whether there is a TCP port or not."""
        return f"postgresql://{quote(user)}@/{quote(database)}?host={quote(str(self.socket_folder))}&port={self.port}"

    def bin(self, program: str) -> str:
        """The path of one of the programs of this server's version."""
        return str(self._binaries / program)

    # --- its life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    def prepare(self) -> None:
        """Make the folder and the empty cluster, unless they are there.  ``start`` does it too."""
        if self._folder is not None:
            return
        atexit.register(self.discard)
        self._folder = self._make_folder()
        self._binaries = within_reach(self._found, self._account, self._folder)
        self._sockets = self._folder / "socket"
        if len(os.fsencode(self._sockets / f".s.PGSQL.{self.port}")) > SOCKET_PATH_BYTES:
            self._sockets = self._temporary(Path("/tmp"))  # noqa: S108
        elif not self._sockets.exists():
            self._sockets.mkdir(mode=0o700)
            self._account.own(self._sockets)
        if (self.data / "PG_VERSION").exists():
            return
        if self._primary is not None:
            source = self._primary.socket_dsn()
            self.run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-X", "stream", "-c", "fast", "-N")
        else:
            options = ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", f"--locale={self._locale}", "--no-sync"]
            self.run("initdb", "-D", str(self.data), *options)

    def configure(self, settings: Mapping[str, str | int]) -> None:
        """Change settings: written now, in force from the next start or ``reload``."""
        self.settings.update(settings)
        if self._folder is not None:
            self._write_settings()

    def reload(self) -> None:
        """Have the running server read its settings again."""
        os.kill(self._running(), signal.SIGHUP)

    def start(self) -> None:
        """Start, and return when the server accepts connections.  Raises ``EmbeddedError`` with the end of its log."""
        if self.is_running:
            return
        self._forget()
        self.prepare()
        for attempt in range(ATTEMPTS):
            self._write_settings()
            before = self.log.stat().st_size if self.log.exists() else 0
            if self._launch():
                self._has_run = True
                return
            complaint = self._complaint(before)
            if "Address already in use" in complaint and self.tcp and not self._has_run:
                self.port = _free_port()  # somebody was quicker
            elif "shared memory block" not in complaint and "Address already in use" not in complaint:
                break  # the two things that time heals: processes of the last life, and a port given back late
            self._pause(attempt)
        raise EmbeddedError(f"PostgreSQL {self.major} does not start in {self.folder}\n{self._complaint(0)}")

    def stop(self, mode: str = "fast") -> None:
        """Stop and wait: ``smart`` (when clients leave), ``fast`` (ends them), ``immediate`` (as a crash would)."""
        process, postmaster = self._process, self._postmaster
        if process is None or postmaster is None:
            return
        if process.poll() is None:
            os.kill(postmaster, SIGNALS[mode])
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired as late:
            self.kill()
            raise EmbeddedError(f"PostgreSQL {self.major} did not stop ({mode})\n{self._complaint(0)}") from late
        self._forget()

    def kill(self) -> None:
        """SIGKILL the main process, as the kernel does when memory runs out.  Its children see it and leave."""
        process, postmaster = self._process, self._postmaster
        if process is None or postmaster is None:
            return
        if process.poll() is None:
            os.kill(postmaster, signal.SIGKILL)
        process.wait(STOP_S)
        self._forget()

    def restart(self, mode: str = "fast") -> None:
        """``stop`` and ``start``, at the same port."""
        self.stop(mode)
        self.start()

    def discard(self) -> None:
        """Stop, and remove the folder unless it was given to us.  Doing it twice does no harm."""
        if os.getpid() != self._owner:
            return  # a fork of ours is leaving: the server is not its own
        self.stop("immediate")
        atexit.unregister(self.discard)
        if self._folder is None:
            return
        if self._sockets is not None and self._sockets.parent != self._folder:
            shutil.rmtree(self._sockets, ignore_errors=True)
        if self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._sockets = None

    # --- standbys ----------------------------------------------------------------------------------------------------

    def make_standby(self) -> EmbeddedServer:
        """A hot standby of this running server, made by pg_basebackup and started.  The caller discards it."""
        standby = EmbeddedServer(self.major, None, self.settings, tcp=self.tcp, durable=self.durable)
        standby._primary = self
        try:
            standby.start()
        except BaseException:
            standby.discard()
            raise
        return standby

    def promote(self) -> None:
        """Make a standby a primary of its own; returns when it takes writes."""
        self.run("pg_ctl", "promote", "-D", str(self.data), "-w")

    # --- its programs ------------------------------------------------------------------------------------------------

    def run(self, program: str, *arguments: str, text: str = "") -> str:
        """Run one of PostgreSQL's programs as the server's account; its standard output.

        Raises ``EmbeddedError`` with its standard error when it fails.
        """
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            [self.bin(program), *arguments],
            input=text.encode(),
            capture_output=True,
            cwd=self.folder,
            env=ENVIRONMENT,
            timeout=COMMAND_S,
            check=False,
            start_new_session=True,  # the terminal's Ctrl-C reaches us alone: else its failure would come first
            **self._account.process_options(),
        )
        if done.returncode != 0:
            raise EmbeddedError(f"{program} failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run SQL through psql, stopping at the first error; rows as lines, columns separated by ``|``."""
        arguments = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.socket_dsn(database), "-f", "-"]
        return self.run("psql", *arguments, text=text).rstrip("\n")

    def install(self, name: str, content: bytes) -> Path:
        """Put a file (a certificate, a key) into the folder, readable by the server's account alone."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        self._account.own(path)
        return path

    # --- inside ------------------------------------------------------------------------------------------------------

    def _make_folder(self) -> Path:
        if self._given is not None:
            folder = self._given.resolve()
            if not folder.exists():
                folder.mkdir(mode=0o700, parents=True)
                self._account.own(folder)
            return folder
        for place in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):  # noqa: S108
            if self._account.can_run(["/usr/bin/env", "test", "-w", str(place), "-a", "-x", str(place)]):
                return self._temporary(place)
        raise EmbeddedError(f"account {self._account.name or self._account.uid} has no place for temporary files")

    def _temporary(self, place: Path) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="backfill-", dir=place))
        self._account.own(folder)
        return folder

    def _write_settings(self) -> None:
        settings = {
            **self.settings,
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": self.port,
            "unix_socket_directories": str(self.socket_folder),
        }
        lines = "".join(f"{name} = '{_escaped(value)}'\n" for name, value in sorted(settings.items()))
        self.install("settings.conf", lines.encode())
        main = self.data / "postgresql.conf"
        include = f"include '{_escaped(self.folder / 'settings.conf')}'\n"
        # Removed before it is added: a standby's copy of the file names its primary's settings.
        kept = re.sub(r"^include '.*/settings\.conf'\n", "", main.read_text(), flags=re.MULTILINE)
        main.write_text(kept + include)

    def _launch(self) -> bool:
        """Start once; True when the server accepts connections, False when it ended instead."""
        doomed = "" if self._given is not None else str(self.folder)
        command = [self.bin("postgres"), "-D", str(self.data)]
        process = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, "backfill-embedded", str(self.log), doomed, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,
            env=ENVIRONMENT,
            start_new_session=True,  # a Ctrl-C on our terminal is for us to act upon
            **self._account.process_options(),
        )
        assert process.stdout is not None
        self._process = process
        self._postmaster = int(process.stdout.readline() or 0) or None
        deadline = self._clock.now() + START_S
        while self._clock.now() < deadline:
            try:
                process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                if self._accepts_connections():
                    return True
            else:
                self._forget()
                return False
        self.kill()
        raise EmbeddedError(f"PostgreSQL {self.major} is not ready after {START_S:.0f} s\n{self._complaint(0)}")

    def _accepts_connections(self) -> bool:
        """What pg_ctl looks at: the status line of postmaster.pid, if that file is this process's."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        status_line = 7
        return len(lines) > status_line and lines[0] == str(self._postmaster) and lines[status_line].strip() == "ready"

    def _forget(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process = self._postmaster = None

    def _running(self) -> int:
        if self.postmaster is None:
            raise EmbeddedError(f"PostgreSQL {self.major} is not running")
        return self.postmaster

    def _complaint(self, since: int) -> str:
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(since)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_LINES:])

    def _pause(self, attempt: int) -> None:
        """Wait longer each time, up to half a second, without an event loop."""
        subprocess.run(["/bin/sleep", f"{min(0.5, POLL_S * 2**attempt):.2f}"], check=True, timeout=QUICK_S)


def _prepared(path: Path | None) -> Path:
    if path is None:
        raise EmbeddedError("the server has no folder: start it first, or it was discarded")
    return path


def _escaped(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("'", "''")


def _free_port() -> int:
    """A port nobody listens on now.  Should somebody be quicker than the server, ``start`` takes another."""
    for _ in range(100):
        port = TCP_PORTS.start + secrets.randbelow(len(TCP_PORTS))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EmbeddedError("no free TCP port on 127.0.0.1")
