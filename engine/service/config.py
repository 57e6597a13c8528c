"""What the operator's ``backfill.toml`` says, as values; every problem at once, before anything is opened.

The file is the operator's word: it names the databases, what submitters may ask of them, who may ask, and where to
listen.  Nothing that comes over HTTP changes it.  ``load_config`` reads the file and ``read_config`` plain data of the
same shape; a ``Config`` that is built directly has been checked in its types alone.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, Strict, ValidationError

from engine.errors import Problem, SpecError, UsageError
from engine.service.access import Scope
from engine.service.operator_signals import read_signals
from engine.service.tables import TablePattern
from engine.service.toml import read_toml
from engine.spec import Dsn, SignalSpec
from engine.spec.base import SpecModel
from engine.spec.document import Document
from engine.spec.fields import CONNECTION_PATTERN, Bytes, Name, Reading, Seconds, WholeNumber, distinct, within
from engine.spec.misfit import Misfit
from engine.spec.models import MAX_WORKERS
from engine.spec.pacing import MAX_RATE_PER_S
from engine.transform.reference import ALLOWED_PATTERN

DEFAULT_LISTEN: Final = "unix:///run/backfill/backfill.sock"
MAX_BYTES: Final = 2**20
MAX_JOBS: Final = 64
ENVIRONMENT_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"

_ADDRESS: Final = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})\Z")


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
        if text.startswith("unix:///") and text.isprintable() and not text.endswith("/"):
            return cls(path=text.removeprefix("unix://"))
        found = _ADDRESS.match(text)
        if found is None or int(found["port"]) > 65535:
            raise Misfit("is no address to listen on", hint)
        return cls(host=found["host"].strip("[]"), port=int(found["port"]))

    @property
    def is_loopback(self) -> bool:
        """True where only this machine can connect."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def _listed(value: object) -> object:
    return [value] if isinstance(value, (str, Address)) else value


def _scopes(value: object) -> object:
    if isinstance(value, frozenset):
        return value
    if not isinstance(value, list):
        raise Misfit("must be a list of scopes", 'write ["read", "control", "submit"], or fewer of them')
    if any(scope not in list(Scope) for scope in value):
        raise Misfit("holds what is no scope", f"scopes are {', '.join(Scope)}")
    return frozenset(value)


Listen = Annotated[Address, BeforeValidator(Address.parse)]
Scopes = Annotated[frozenset[Scope], BeforeValidator(_scopes)]
File = Annotated[str, Field(min_length=1)]
Flag = Annotated[bool, Strict()]
ConnectionName = Annotated[str, Field(pattern=CONNECTION_PATTERN)]
Rate = Annotated[float, Strict(), Field(gt=0, le=MAX_RATE_PER_S)]
Patterns = Annotated[
    tuple[Annotated[TablePattern, PlainValidator(TablePattern.parse)], ...],
    AfterValidator(distinct),
    PlainSerializer(lambda patterns: [str(pattern) for pattern in patterns]),
]


class ConnectionConfig(SpecModel):
    """One database that requests may name."""

    dsn: str | None = Field(default=None, repr=False, exclude=True)
    """Connection string: a postgresql:// URL or key=value pairs. `${VAR}` is taken from the daemon's environment. A
    password may stand here only if nobody but the owner can read the file."""
    dsn_file: File | None = None
    """A file that holds the connection string, and nothing else. One with a password must not be readable by
    everybody."""
    service: Annotated[str, Field(pattern=r"^[^\s'\\\x00]+$", max_length=200)] | None = None
    """A service of libpq's service file."""
    work: Flag = False
    """Whether this daemon works the jobs of the ledger there, whoever created them."""
    tables: Patterns = ()
    """What submitted jobs may read and write: `schema.table`, with `*` for any characters of a part that is not quoted.
    Left out: nothing. System schemas and the ledger's own never match."""
    role: Name | None = None
    """The role that moves rows (SET ROLE), of every job. A job of the ledger that has another role is not worked."""
    superuser: Flag = False
    """Whether jobs may run as a superuser here: their SQL could then do anything to the server and its machine."""
    max_rows_per_s: Rate | None = None
    """The highest limit that a submitted job, or an order on its pace, may set; a job that sets none gets it."""
    jobs: Annotated[WholeNumber, within(1, MAX_JOBS)] = 4
    """How many jobs of the ledger this daemon works at once."""
    workers: Annotated[WholeNumber, within(1, MAX_WORKERS)] | None = None
    """The most workers of one job in this daemon. Left out: as its spec says."""
    sources: Annotated[tuple[ConnectionName, ...], AfterValidator(distinct)] | None = None
    """Other connections that jobs of this ledger may read from. Left out: every one, as far as its own `tables`
    reach."""
    references: Annotated[tuple[Annotated[str, Field(pattern=ENVIRONMENT_NAME)], ...], AfterValidator(distinct)] = ()
    """Variables by which jobs that were made by hand name this database: with `["SOURCE_DSN"]`, a job whose source is
    `${SOURCE_DSN}` reads from here. The variable itself is not looked up."""


class Allow(SpecModel):
    """What submitted specs may hold; all off by default."""

    expressions: Flag = False
    """SQL expressions: in `set`, `columns`, `where` and `done`, whatever is more than a column's name."""
    transforms: Annotated[tuple[Annotated[str, Field(pattern=ALLOWED_PATTERN)], ...], AfterValidator(distinct)] = Field(
        default=(), examples=[["shop.transforms:*"]]
    )
    """Python functions that jobs may run in this daemon: `module:function`, or `module:*` for all of a module. Its
    module must be installed, or below PYTHONPATH. Jobs of the ledger that name another are not worked here."""
    dual_write: Flag = False
    """Installing and removing our triggers through the API."""
    show_rows: Flag = False
    """Keys of rows in answers, and rows before and after a transform, where a caller asks for them."""


class Tls(SpecModel):
    """For TCP."""

    certificate: File
    """The daemon's certificate, and what is between it and its CA (PEM)."""
    key: File
    """Its private key (PEM)."""
    client_ca: File | None = None
    """Clients that show a certificate of this CA are who its common name says (PEM)."""


class Auth(SpecModel):
    """Who is who."""

    tokens_file: File | None = None
    """Hashes and scopes of tokens; read again whenever it changes."""
    users: Mapping[str, Scopes] = {}
    """Unix socket: users besides our own and root (a name, a number, or `@group`), and their scopes."""
    certificates: Mapping[str, Scopes] = {}
    """Common names of client certificates, and their scopes."""
    loopback: Scopes | None = None
    """TCP on loopback without any token, and its scopes: every process of this machine is one of us then."""
    plaintext: Flag = False
    """TCP beyond loopback without TLS: tokens travel readable. Only where something else encrypts the way."""


class Limits(SpecModel):
    """What one client may cost."""

    body: Annotated[Bytes, within(1024, 2**26)] = 2**20
    """The largest body of a request, 1KiB to 64MiB."""
    connections: Annotated[WholeNumber, within(1, 10_000)] = 200
    """The most connections at once, of all clients together."""
    header_timeout: Annotated[Seconds, within(0.01, 300)] = 10.0
    """How long the head of a request may take."""
    body_timeout: Annotated[Seconds, within(0.01, 300)] = 20.0
    """How long its body may take."""
    send_timeout: Annotated[Seconds, within(0.01, 300)] = 20.0
    """How long a client may leave an answer unread."""
    idle_timeout: Annotated[Seconds, within(0.01, 3600)] = 60.0
    """How long a connection may stand idle between two requests."""


class Config(SpecModel):
    """The whole file."""

    listen: Annotated[tuple[Listen, ...], BeforeValidator(_listed), AfterValidator(distinct), Field(min_length=1)] = (
        Address.parse(DEFAULT_LISTEN),
    )
    """Where: `unix:///path` or `tcp://host:port`, or a list of them."""
    hosts: tuple[str, ...] = ()
    """Values of the Host header that are us, besides the addresses listened on."""
    drain: Annotated[Seconds, within(0.01, 3600)] = 25.0
    """How long to finish what is in hand on SIGTERM."""
    connections: Annotated[Mapping[ConnectionName, ConnectionConfig], Field(min_length=1)]
    """The databases, by the names that requests use."""
    allow: Allow = Allow()
    """What submitted specs may hold."""
    signals: Annotated[Mapping[str, SignalSpec], PlainValidator(read_signals), PlainSerializer(list)] = {}
    """Signals with SQL or a URL, by the names that specs use: exactly one of `sql`, `prometheus` and `http`, written as
    in a spec, without its `name`. `${VAR}` in a URL is taken from the daemon's environment."""
    auth: Auth = Auth()
    """Who is who."""
    tls: Tls | None = None
    """Certificates, for TCP."""
    limits: Limits = Limits()
    """What one client may cost."""

    def dsns(self, environment: Mapping[str, str]) -> dict[str, Dsn]:
        """The connection string of each connection, as its file says now.  Raises ``SpecError`` with every problem."""
        from engine.service.checks import read_dsns  # it takes the models of this module

        document = Document()
        found = read_dsns(document, self, environment)
        if document.problems:
            raise SpecError(document.problems)
        return found


def load_config(path: str | os.PathLike[str], environment: Mapping[str, str] | None = None) -> Config:
    """The configuration in that file.  Raises ``UsageError`` when it cannot be read, ``SpecError`` with every problem.

    Paths in it that do not begin with a slash begin where the file is.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}", hint="give another --config") from error
    if len(content) > MAX_BYTES:
        raise SpecError([Problem("", "is larger than 1 MiB", "is it the right file?")], file=name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SpecError([Problem("", "is not UTF-8 text", "save the file as UTF-8")], file=name) from None
    document = read_toml(text, name)
    if mode & stat.S_IWOTH:
        document.report((), "can be changed by everybody on this host", f"chmod o-w {name}")
    return _read(document, environment, name, Path(path).parent, is_private=not mode & stat.S_IROTH)


def read_config(data: Mapping[str, Any], environment: Mapping[str, str] | None = None, *, file: str = "") -> Config:
    """The same checks for plain data.  Raises ``SpecError`` with every problem."""
    return _read(Document(data=dict(data)), environment, file, Path(), is_private=True)


def _read(
    document: Document, environment: Mapping[str, str] | None, file: str, folder: Path, *, is_private: bool
) -> Config:
    from engine.service import checks  # it takes the models of this module

    environment = os.environ if environment is None else environment
    config: Config | None = None
    try:
        config = Config.model_validate(checks.with_folder(document.data, folder), context=Reading(environment))
    except ValidationError as error:
        checks.report_values(document, error)
    else:
        checks.check(document, config, environment, is_private=is_private)
    if document.problems or config is None:
        raise SpecError(sorted(document.problems, key=lambda problem: (problem.line, problem.column)), file=file)
    return config
