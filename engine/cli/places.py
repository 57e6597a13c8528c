"""From arguments to databases: which ledger, which job, which connection string.

Precedence: ``--dsn``, then the spec's target where a spec file stands in the job's place, then BACKFILL_DSN, then
libpq's PG* variables.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from engine.db import Connection, Database
from engine.errors import UnknownJob, UsageError
from engine.flow.endpoints import endpoints_of
from engine.ledger.store import Ledger, LedgerMissing
from engine.model import Side
from engine.spec import Dsn, JobSpec, load_spec, refuse_password
from engine.spec.misfit import Misfit
from engine.spec.models import NAME_PATTERN

Command = TypeVar("Command", bound=Callable[..., Any])

_SPEC_SUFFIXES: Final = (".yaml", ".yml", ".json")


def dsn_of(text: str, flag: str) -> Dsn:
    """The connection string of a flag; ``${VAR}`` in it is taken from the environment.  Raises ``UsageError``."""
    refuse_password(text, flag)
    try:
        return Dsn.resolve(text, os.environ)
    except Misfit as error:
        raise UsageError(f"{flag} {error.message}", hint=error.hint) from None


def ledger_option(command: Command) -> Command:
    """Adds ``--dsn``: where the ledger is."""
    return click.option(
        "--dsn", metavar="DSN", help="The database that holds the ledger. Default: BACKFILL_DSN, else PG* variables."
    )(command)


def job_argument(command: Command) -> Command:
    """Adds ``JOB``: a job's name, or its spec file."""
    return click.argument("job", metavar="JOB|FILE")(command)


@dataclass(frozen=True, slots=True)
class Place:
    """A job's name and the database of its ledger; ``spec`` where a file stood in the job's place."""

    job: str
    database: Database
    spec: JobSpec | None = None


def place_of(job: str, dsn: str | None) -> Place:
    """The job that an argument means: a spec file if there is one of that path, else a name."""
    spec = None
    if Path(job).is_file():
        spec = load_spec(job, os.environ)
    elif not re.fullmatch(NAME_PATTERN, job):
        raise UsageError(f"{job!r} is neither a file nor a job's name", hint="backfill list shows the jobs of a ledger")
    name = spec.name if spec else job
    if dsn is None and spec is not None:
        return Place(name, endpoints_of(spec)[1], spec)
    return Place(name, ledger_database(dsn, name), spec)


def ledger_database(dsn: str | None, job: str = "") -> Database:
    """The ledger's database by ``--dsn`` or the environment."""
    resolved = Dsn.from_environment(os.environ) if dsn is None else dsn_of(dsn, "--dsn")
    return Database(resolved, side=Side.TARGET, job=job)


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
