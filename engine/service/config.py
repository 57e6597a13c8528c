"""What the operator's ``backfill.toml`` says, as values; every problem at once, before anything is opened.

The file is the operator's word: it names the databases, what submitters may ask of them, who may ask, and where to
listen.  Nothing that comes over HTTP changes it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from engine.errors import Problem, SpecError, UsageError
from engine.service.access import Scope
from engine.spec import Dsn
from engine.spec.base import SpecModel
from engine.spec.fields import Name
from engine.spec.misfit import Misfit
from engine.spec.models import MAX_WORKERS
from engine.spec.pacing import MAX_RATE_PER_S
from engine.spec.signals import check_signal_name
from engine.spec.units import parse_duration, parse_size

DEFAULT_LISTEN: Final = "unix:///run/backfill/backfill.sock"
CONNECTION_NAME: Final = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
MAX_BYTES: Final = 2**20

_ADDRESS: Final = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})\Z")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: ``path`` of a Unix socket, or ``host`` and ``port`` (0: any free one)."""

    path: str | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: object) -> Address:
        """The address that ``unix:///path`` or ``tcp://host:port`` means.  Raises ``Misfit``."""
        if isinstance(text, Address):
            return text
        hint = 'write "unix:///run/backfill/backfill.sock" or "tcp://127.0.0.1:8471"'
        if not isinstance(text, str):
            raise Misfit("must be text", hint)
        if text.startswith("unix:///") and "\0" not in text:
            return cls(path=text.removeprefix("unix://"))
        found = _ADDRESS.match(text)
        if found is None or int(found["port"]) > 65535:
            raise Misfit("is no address to listen on", hint)
        return cls(host=found["host"].strip("[]"), port=int(found["port"]))

    @property
    def is_loopback(self) -> bool:
        """True where only this machine can connect."""
        return self.path is not None or self.host in _LOOPBACK

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]
Listen = Annotated[Address, BeforeValidator(Address.parse)]
Scopes = Annotated[
    frozenset[Scope], BeforeValidator(lambda value: frozenset(value) if isinstance(value, list) else value)
]


class ConnectionConfig(SpecModel):
    """One database that requests may name."""

    dsn: str | None = None
    """Connection string."""
    dsn_file: str | None = None
    """A file that holds it, and nothing else."""
    service: str | None = None
    """A service of libpq's service file."""
    work: bool = False
    """Whether this daemon works the jobs of the ledger there."""
    tables: tuple[str, ...] = ()
    """What submitted jobs may read and write: patterns of schema.table, `*` for any part. Left out: nothing."""
    role: Name | None = None
    """The role that moves rows, of every job."""
    max_rows_per_s: Annotated[float, Field(gt=0, le=MAX_RATE_PER_S)] | None = None
    """The highest limit that a submitted job, or an order on its pace, may set; a job that sets none gets it."""
    jobs: Annotated[int, Field(ge=1, le=64)] = 4
    """How many jobs this daemon works at once."""
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | None = None
    """The most workers of one job here. Left out: as its spec says."""


class Allow(SpecModel):
    """What submitted specs may hold; all off by default."""

    expressions: bool = False
    """SQL expressions: set, columns that are more than a column's name, where, done."""
    transforms: tuple[str, ...] = ()
    """Python functions, as module:function; `*` for any function of a module."""
    dual_write: bool = False
    """Installing and removing our triggers through the API."""
    show_rows: bool = False
    """Keys of rows in answers, where a caller asks for them."""


class Tls(SpecModel):
    """For TCP."""

    certificate: str
    key: str
    client_ca: str | None = None
    """Client certificates that this CA signed are identities."""


class Auth(SpecModel):
    """Who is who."""

    tokens_file: str | None = None
    """Hashes and scopes of tokens; read again whenever it changes."""
    users: Mapping[str, Scopes] = {}
    """Unix socket: users besides our own and root, and their scopes."""
    certificates: Mapping[str, Scopes] = {}
    """Common names of client certificates, and their scopes."""
    loopback: Scopes | None = None
    """TCP on loopback without any token, and its scopes: every process of this machine is one of us then."""


class Limits(SpecModel):
    """What one client may cost."""

    body: Annotated[Size, Field(ge=1024, le=2**26)] = 2**20
    connections: Annotated[int, Field(ge=1, le=10_000)] = 200
    header_timeout: Annotated[Duration, Field(gt=0, le=300)] = 10.0
    body_timeout: Annotated[Duration, Field(gt=0, le=300)] = 20.0
    send_timeout: Annotated[Duration, Field(gt=0, le=300)] = 20.0
    idle_timeout: Annotated[Duration, Field(gt=0, le=3600)] = 60.0


class SignalConfig(SpecModel):
    """One signal of the operator: exactly one of the three, written as in a spec, without a name."""

    sql: Mapping[str, Any] | None = None
    prometheus: Mapping[str, Any] | None = None
    http: Mapping[str, Any] | None = None


class Config(SpecModel):
    """The whole file."""

    listen: Annotated[
        tuple[Listen, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
    ] = (Address.parse(DEFAULT_LISTEN),)
    """Where: a Unix socket, TCP, or a list of them."""
    hosts: tuple[str, ...] = ()
    """Values of the Host header that are us, besides the addresses listened on."""
    drain: Annotated[Duration, Field(gt=0, le=3600)] = 25.0
    """How long to finish what is in hand on SIGTERM."""
    connections: Mapping[Annotated[str, Field(pattern=CONNECTION_NAME)], ConnectionConfig]
    allow: Allow = Allow()
    signals: Mapping[Annotated[str, AfterValidator(check_signal_name)], SignalConfig] = {}
    auth: Auth = Auth()
    tls: Tls | None = None
    limits: Limits = Limits()

    def dsns(self, environment: Mapping[str, str]) -> dict[str, Dsn]:
        """The connection string of each connection.  Raises ``SpecError`` with every problem."""
        found: dict[str, Dsn] = {}
        problems: list[Problem] = []
        for name, one in self.connections.items():
            try:
                found[name] = _dsn(one, environment)
            except Misfit as error:
                problems.append(Problem(f"connections.{name}", error.message, error.hint))
        if problems:
            raise SpecError(problems)
        return found


def _dsn(one: ConnectionConfig, environment: Mapping[str, str]) -> Dsn:
    if one.dsn_file is not None:
        try:
            return Dsn(Path(one.dsn_file).read_text(encoding="utf-8").strip())
        except OSError as error:
            raise Misfit(f"dsn_file cannot be read: {error.strerror}", "check its path and its owner") from None
    if one.service is not None:
        return Dsn(f"service={one.service}")
    if one.dsn is not None:
        return Dsn.resolve(one.dsn, environment)
    raise Misfit("says no dsn, dsn_file or service", "give one of them")


def load_config(path: str | os.PathLike[str]) -> Config:
    """The configuration in that file.  Raises ``UsageError`` when it cannot be read, ``SpecError`` with its problems."""
    try:
        with Path(path).open("rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"cannot read {os.fspath(path)}: {error.strerror}", hint="give another --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError([Problem("", f"is not TOML: {error}")], file=os.fspath(path)) from None
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        found = [Problem(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        raise SpecError(found, file=os.fspath(path)) from None
