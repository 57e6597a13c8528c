"""From arguments to databases and daemons: which ledger, which job, which connection string.

Precedence: ``--dsn`` or ``--daemon``, then BACKFILL_DAEMON, then the target of the spec file that stands in the job's
place, then BACKFILL_DSN, then libpq's PG* variables.
"""

from __future__ import annotations

import difflib
import getpass
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from engine.db import Connection, Database
from engine.errors import UnknownJob, UsageError
from engine.flow.endpoints import endpoints_of
from engine.ledger.store import Ledger, LedgerMissing
from engine.model import Side
from engine.spec import Dsn, JobSpec, Purpose, load_spec, refuse_password
from engine.spec.misfit import Misfit
from engine.spec.models import NAME_PATTERN

if TYPE_CHECKING:  # loaded when used: most commands speak to a database
    from engine.client import AsyncClient

Command = TypeVar("Command", bound=Callable[..., Any])

DAEMON_VARIABLE: Final = "BACKFILL_DAEMON"
PATIENCE_S: Final = 5.0
"""How long a command tries to reach a daemon: whoever sits before it wants to know."""

SLOW_PATIENCE_S: Final = 30.0
"""The same where the answer itself takes its time."""

LONG_PATIENCE_S: Final = 300.0
"""The same of a command that watches a job: a daemon that is restarted, or moved to another machine, comes back."""

_SPEC_SUFFIXES: Final = (".yaml", ".yml", ".json")


def dsn_of(text: str, flag: str) -> Dsn:
    """The connection string of a flag; ``${VAR}`` in it is taken from the environment.  Raises ``UsageError``."""
    refuse_password(text, flag)
    try:
        return Dsn.resolve(text, os.environ)
    except Misfit as error:
        raise UsageError(f"{flag} {error.message}", hint=error.hint) from None


@dataclass(frozen=True, slots=True)
class Remote:
    """A daemon, as the command line names it.  ``connection``: which of its databases, where that must be said."""

    url: str
    token_file: str | None = None
    connection: str | None = None

    @property
    def label(self) -> str:
        """For people, as a database has one."""
        return self.url

    def client(self, *, patience_s: float = PATIENCE_S) -> AsyncClient:
        """A client of that daemon.  Raises ``UsageError`` for an address or a token that cannot be one."""
        from engine.client import AsyncClient

        return AsyncClient(self.url, token_file=self.token_file, patience_s=patience_s)


@dataclass(frozen=True, slots=True)
class Where:
    """What a command was told of where its jobs are; read it by ``remote``, which finds the contradictions."""

    dsn: str | None = None
    daemon: str | None = None
    token_file: str | None = None
    connection: str | None = None

    def remote(self) -> Remote | None:
        """The daemon to speak to, or None: then it is a database.  Raises ``UsageError``."""
        if self.dsn is not None and self.daemon is not None:
            raise UsageError("--dsn and --daemon cannot stand together", hint="a daemon knows its databases itself")
        url = self.daemon or (os.environ.get(DAEMON_VARIABLE) if self.dsn is None else None)
        if url:
            return Remote(url, self.token_file, self.connection)
        for flag, value in (("--token-file", self.token_file), ("--connection", self.connection)):
            if value is not None:
                raise UsageError(
                    f"{flag} without --daemon", hint=f"name the daemon: --daemon URL, or {DAEMON_VARIABLE}"
                )
        return None


def refuse_beside_daemon(**flags: object) -> None:
    """Raise ``UsageError`` for flags that mean nothing to a daemon."""
    for name, value in flags.items():
        if value:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} beside --daemon", hint="the daemon goes by its own configuration")


_REMOTE_OPTIONS: Final = (
    click.option("--daemon", metavar="URL", help=f"Speak to this daemon instead. Default: {DAEMON_VARIABLE}."),
    click.option("--connection", metavar="NAME", help="With --daemon: which of its databases."),
    click.option("--token-file", metavar="FILE", help="With --daemon: holds the token. Default: BACKFILL_TOKEN."),
)


def daemon_options(command: Command, keyword: str = "where") -> Command:
    """Adds ``--daemon`` and what belongs to it; the command gets all three, and its ``--dsn``, as a ``Where``."""

    @wraps(command)
    def wrapped(*args: Any, daemon: str | None, connection: str | None, token_file: str | None, **options: Any) -> Any:
        options[keyword] = Where(options.pop("dsn", None), daemon, token_file, connection)
        return command(*args, **options)

    decorated: Any = wrapped
    for option in reversed(_REMOTE_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]  # as the command itself


def ledger_option(command: Command) -> Command:
    """Adds ``--dsn`` and ``--daemon``: where the ledger is.  The command gets them as ``where``."""
    return click.option(
        "--dsn", metavar="DSN", help="The database that holds the ledger. Default: BACKFILL_DSN, else PG* variables."
    )(daemon_options(command))


def job_argument(command: Command) -> Command:
    """Adds ``JOB``: a job's name, or its spec file."""
    return click.argument("job", metavar="JOB|FILE")(command)


@dataclass(frozen=True, slots=True)
class Place:
    """A job's name and the database of its ledger, or the daemon that knows it; ``spec`` where a file stood in the
    job's place.
    """

    job: str
    where: Database | Remote
    spec: JobSpec | None = None

    @property
    def database(self) -> Database:
        """The ledger's database, for what only a database can be asked."""
        assert isinstance(self.where, Database)
        return self.where

    @property
    def label(self) -> str:
        """Where the job is looked for, for people."""
        return self.where.label


def place_of(job: str, where: Where) -> Place:
    """The job that an argument means: a spec file if there is one of that path, else a name."""
    remote = where.remote()
    spec = None
    if Path(job).is_file():
        spec = load_spec(job, os.environ, purpose=Purpose.HAND if remote is None else Purpose.DAEMON)
    elif not re.fullmatch(NAME_PATTERN, job):
        raise UsageError(f"{job!r} is neither a file nor a job's name", hint="backfill list shows the jobs of a ledger")
    name = spec.name if spec else job
    if remote is not None:
        return Place(name, remote, spec)
    if where.dsn is None and spec is not None:
        return Place(name, endpoints_of(spec)[1], spec)
    return Place(name, ledger_database(where.dsn, name), spec)


def ledger_database(dsn: str | None, job: str = "") -> Database:
    """The ledger's database by ``--dsn`` or the environment."""
    resolved = Dsn.from_environment(os.environ) if dsn is None else dsn_of(dsn, "--dsn")
    return Database(resolved, side=Side.TARGET, job=job)


def operator() -> str:
    """``user@host``: whose terminal this is, since a database's role is often one for all."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@asynccontextmanager
async def open_ledger(database: Database, *, required: bool = True) -> AsyncIterator[Ledger]:
    """The ledger over a connection of its own.  Raises ``LedgerMissing`` when it is required and not there."""
    connection: Connection = await database.connect("cli")
    try:
        ledger = Ledger(connection)
        if required:
            try:
                await ledger.require()
            except LedgerMissing as error:
                raise LedgerMissing(f"{database.label} holds no ledger", hint=error.hint) from None
        await ledger.act_as(operator())
        yield ledger
    finally:
        await connection.close()


@asynccontextmanager
async def open_job(place: Place) -> AsyncIterator[Ledger]:
    """The ledger of a job that is known to be in it.  Raises ``UnknownJob`` with the nearest name there is."""
    async with open_ledger(place.database) as ledger:
        if await ledger.find(place.job) is None:
            raise await _unknown(ledger, place)
        yield ledger


async def _unknown(ledger: Ledger, place: Place) -> UnknownJob:
    names = [status.job for status in await ledger.list()]
    close = difflib.get_close_matches(place.job, names, n=1)
    hint = f"did you mean {close[0]}?" if close else "backfill list shows the jobs of this ledger"
    if place.job.endswith(_SPEC_SUFFIXES):
        hint = f"there is no such file either; {hint}"
    return UnknownJob(f"no job named {place.job!r} in {place.database.label}", hint=hint)
