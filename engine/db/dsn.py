"""What a connection string, the service file, the password file and the environment say, as one value.

asyncpg reads only a part of what libpq does: it turns unknown keys into server settings, ignores PGOPTIONS and
PGCONNECT_TIMEOUT, and cuts a password at its first ``@``.  So the reading is done here, after libpq's rules, and
asyncpg is told every answer.  Precedence: connection string, then service file, then environment, then default.  Each
answer remembers where it came from, for ``backfill doctor``.

No error of this module holds a piece of the connection string, except the names of keys.
"""

from __future__ import annotations

import configparser
import getpass
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from engine.errors import UsageError

CONNECT_TIMEOUT_S: Final = 10.0
DEFAULT_PORT: Final = 5432
SOCKET_FOLDERS: Final = ("/run/postgresql", "/var/run/postgresql", "/tmp")  # noqa: S108 - where servers put sockets
SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SESSION_ATTRIBUTES: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")

_ENVIRONMENT: Final = {
    "host": "PGHOST",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "service": "PGSERVICE",
    "servicefile": "PGSERVICEFILE",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "sslmode": "PGSSLMODE",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
}
_KEYS: Final = frozenset(_ENVIRONMENT) | {"sslpassword"}
_ALIASES: Final = {"database": "dbname", "hostaddr": "host"}
# Keys of libpq that change nothing here at these values; any other value is something we cannot do.
_WITHOUT_EFFECT: Final[Mapping[str, tuple[str, ...]]] = {
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "client_encoding": ("utf8", "utf-8", "unicode", "auto"),
    "load_balance_hosts": ("disable",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
    "keepalives": ("1",),
}
_UNSUPPORTED_HINT: Final = "leave it out, or open an issue that says what you need it for"
_PASSFILE_FIELDS: Final = 5


@dataclass(frozen=True, slots=True)
class Host:
    """One place where the server may be: a host name, an address, or the folder of a Unix socket."""

    name: str
    port: int

    @property
    def is_socket(self) -> bool:
        """True for a folder that holds a Unix socket."""
        return self.name.startswith("/")

    @property
    def is_local(self) -> bool:
        """True where nobody between us and the server could listen."""
        return self.is_socket or self.name in ("localhost", "::1") or self.name.startswith("127.")

    @property
    def label(self) -> str:
        """``host:port`` for people."""
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tls:
    """What was said about TLS; empty text where nothing was."""

    mode: str = ""
    root_cert: str = ""
    cert: str = ""
    key: str = ""
    key_password: str = field(default="", repr=False)
    crl: str = ""
    direct: bool = False
    min_version: str = ""
    max_version: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """Everything needed to reach a database."""

    hosts: tuple[Host, ...]
    user: str
    database: str
    passwords: tuple[str | None, ...] = field(repr=False)  # one for each host: the password file may differ by host
    tls: Tls
    session_options: str  # libpq's "options": command line switches for the server process
    connect_timeout_s: float
    session_attributes: str  # one of SESSION_ATTRIBUTES
    origins: Mapping[str, str]  # key -> "connection string", "service x", "PGUSER", "default"

    @property
    def label(self) -> str:
        """``host:port/database``, without secrets."""
        return f"{','.join(host.label for host in self.hosts)}/{self.database}"


def read_dsn(text: str, environment: Mapping[str, str] | None = None) -> Options:
    """Read a connection string in URL or ``key=value`` form; the empty text means the environment alone.

    Raises ``UsageError`` for anything malformed, unknown or contradictory.
    """
    environment = os.environ if environment is None else environment
    given: dict[str, str] = {}
    origins: dict[str, str] = {}

    def add(pairs: Mapping[str, str], origin: str) -> None:
        for key, value in pairs.items():
            if key not in given and value != "":
                given[key] = value
                origins[key] = origin

    add(_parse(text), "connection string")
    service = given.get("service") or environment.get("PGSERVICE", "")
    if service:
        add(_read_service(service, given.get("servicefile", ""), environment), f"service {service}")
    for key, variable in _ENVIRONMENT.items():
        add({key: environment.get(variable, "")}, variable)
    return _resolve(given, origins, environment)


def _resolve(given: Mapping[str, str], origins: Mapping[str, str], environment: Mapping[str, str]) -> Options:
    hosts = _hosts(given)
    user = given.get("user") or _system_user()
    database = given.get("dbname") or user
    known = {**origins}
    for key in ("host", "port", "user", "dbname", "sslmode", "connect_timeout"):
        known.setdefault(key, "default")
    if given.get("password"):
        passwords: tuple[str | None, ...] = (given["password"],) * len(hosts)
    else:
        entries = _read_passfile(given.get("passfile", ""), environment)
        passwords = tuple(_find_password(entries, host, database, user) for host in hosts)
        if any(passwords):
            known["password"] = "password file"  # noqa: S105 - where it came from
    return Options(
        hosts=hosts,
        user=user,
        database=database,
        passwords=passwords,
        tls=_tls(given),
        session_options=given.get("options", ""),
        connect_timeout_s=_connect_timeout(given.get("connect_timeout", "")),
        session_attributes=_choice(given, "target_session_attrs", SESSION_ATTRIBUTES) or "any",
        origins=known,
    )


# -- the two written forms -------------------------------------------------------------------------------------------


def _parse(text: str) -> dict[str, str]:
    text = text.strip()
    if "\0" in text:
        raise UsageError("the connection string holds a NUL character")
    for scheme in ("postgresql://", "postgres://"):
        if text.startswith(scheme):
            return _parse_url(text.removeprefix(scheme))
    if "://" in text.partition("=")[0]:
        raise UsageError(
            "the connection string is a URL of another kind", hint="it should begin with postgresql:// or postgres://"
        )
    return _parse_pairs(text)


def _parse_url(text: str) -> dict[str, str]:
    address, _, query = text.partition("?")
    authority, _, database = address.partition("/")
    # The last @: a password may hold one, although it should have been written %40.
    login, _, hosts = authority.rpartition("@")
    if "@" in database and "@" not in authority:
        # Not taken for a database: it would be shown, and is rather the end of a password.
        raise UsageError(
            "the connection string has an @ behind a /", hint="write / as %2F and @ as %40 in names and passwords"
        )
    user, _, password = login.partition(":")
    names, ports = [], []
    for part in hosts.split(",") if hosts else []:
        name, port = _split_host(part)
        names.append(unquote(name))
        ports.append(port)
    found = {
        "user": unquote(user),
        "password": unquote(password),
        "host": ",".join(names),
        "port": ",".join(ports) if any(ports) else "",
        "dbname": unquote(database),
    }
    result = {key: value for key, value in found.items() if value}
    secret = "password" in result or "@" in query
    for pair in query.split("&") if query else []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError("a part of the connection string after '?' is not key=value")
        _put(result, unquote(key), unquote(value), secret=secret)
    return result


def _split_host(text: str) -> tuple[str, str]:
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError("an address in the connection string has no closing bracket")
        return name, rest[1:]
    name, _, port = text.partition(":")
    return name, port


def _parse_pairs(text: str) -> dict[str, str]:
    """``key=value`` pairs; a value with spaces stands in single quotes, and a backslash escapes one character."""
    result: dict[str, str] = {}
    position, length = 0, len(text)
    secret = "password" in text

    while position < length:
        equals = text.find("=", position)
        if equals < 0:
            raise UsageError(
                "the connection string is neither a URL nor a list of key=value",
                hint="for example: postgresql://user@host:5432/database, or: host=db.example dbname=shop",
            )
        key = text[position:equals].strip()
        position = equals + 1
        while position < length and text[position].isspace():
            position += 1
        quoted = position < length and text[position] == "'"
        position += quoted
        value: list[str] = []
        while position < length:
            character = text[position]
            if (quoted and character == "'") or (not quoted and character.isspace()):
                break
            if character == "\\" and position + 1 < length:
                position += 1
                character = text[position]
            value.append(character)
            position += 1
        if quoted:
            if position >= length:
                raise UsageError("a quoted value in the connection string is never closed")
            position += 1
        while position < length and text[position].isspace():
            position += 1
        _put(result, key, "".join(value), secret=secret)
    return result


def _put(result: dict[str, str], key: str, value: str, *, secret: bool) -> None:
    key = _ALIASES.get(key, key)
    if key in _WITHOUT_EFFECT:
        if value.lower() not in _WITHOUT_EFFECT[key]:
            raise UsageError(f"{key} in the connection string is not supported", hint=_UNSUPPORTED_HINT)
        return
    if key not in _KEYS:
        close = get_close_matches(key, sorted(_KEYS), n=1)
        # Where a password stands, what looks like a key may be a part of it.
        named = f"key {key!r}" if key.isidentifier() and not secret else "an unknown key"
        raise UsageError(
            f"the connection string has {named}" + ("" if named == "an unknown key" else ", which is unknown"),
            hint=f"did you mean {close[0]}?" if close else f"known keys: {', '.join(sorted(_KEYS))}",
        )
    if key == "host" and result.get("host") and result["host"] != value:
        raise UsageError(
            "the connection string gives the host twice", hint="hostaddr beside host is not supported; give one of them"
        )
    result[key] = value


# -- files -----------------------------------------------------------------------------------------------------------


def _read_service(name: str, file: str, environment: Mapping[str, str]) -> dict[str, str]:
    file = file or environment.get("PGSERVICEFILE", "")
    folder = environment.get("PGSYSCONFDIR", "")
    candidates = [Path(file)] if file else [_home(environment) / ".pg_service.conf"]
    if folder:
        candidates.append(Path(folder) / "pg_service.conf")
    for path in candidates:
        parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
        try:
            with path.open(encoding="utf-8") as stream:
                parser.read_file(stream)
        except OSError:
            continue
        except (configparser.Error, UnicodeDecodeError):
            raise UsageError(f"the service file {path} cannot be read as one") from None
        if parser.has_section(name):
            result: dict[str, str] = {}
            for key, value in parser.items(name):
                _put(result, key, value, secret="password" in parser[name])
            return result
    raise UsageError(
        f"no service {name!r} in {' or '.join(str(path) for path in candidates)}",
        hint="PGSERVICEFILE names another file",
    )


def _read_passfile(file: str, environment: Mapping[str, str]) -> list[tuple[str, ...]]:
    path = Path(file) if file else _home(environment) / ".pgpass"
    try:
        status = path.stat()
        # As libpq does: a file that others can read is not used.  What is not a file may still be a pipe.
        if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    entries: list[tuple[str, ...]] = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            fields = _split_passfile_line(line)
            if len(fields) == _PASSFILE_FIELDS:
                entries.append(fields)
    return entries


def _split_passfile_line(line: str) -> tuple[str, ...]:
    fields = [""]
    characters = iter(line)
    for character in characters:
        if character == "\\":
            fields[-1] += next(characters, "")
        elif character == ":" and len(fields) < _PASSFILE_FIELDS:
            fields.append("")
        else:
            fields[-1] += character
    return tuple(fields)


def _find_password(entries: list[tuple[str, ...]], host: Host, database: str, user: str) -> str | None:
    name = "localhost" if host.name in SOCKET_FOLDERS else host.name
    wanted = (name, str(host.port), database, user)
    for entry in entries:
        if all(have in ("*", want) for have, want in zip(entry, wanted, strict=False)):
            return entry[-1]
    return None


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment["HOME"]) if environment.get("HOME") else Path.home()


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise UsageError("no database user is given, and this process has no user name", hint="set PGUSER") from None


# -- single values ---------------------------------------------------------------------------------------------------


def _hosts(given: Mapping[str, str]) -> tuple[Host, ...]:
    ports = [_port(text) for text in given.get("port", "").split(",")]
    names = [name.strip() for name in given["host"].split(",")] if given.get("host") else []
    if not names:
        if len(ports) > 1:
            raise UsageError("the connection has several ports and no host")
        names = [_default_host(ports[0])]
    if len(ports) == 1:
        ports = ports * len(names)
    if len(ports) != len(names):
        raise UsageError(f"the connection has {len(names)} hosts and {len(ports)} ports", hint="give one port, or each")
    return tuple(Host(name or _default_host(port), port) for name, port in zip(names, ports, strict=True))


def _default_host(port: int) -> str:
    for folder in SOCKET_FOLDERS:
        if Path(folder, f".s.PGSQL.{port}").exists():
            return folder
    return "localhost"


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    port = int(text) if text.isdecimal() and text.isascii() else 0
    if not 0 < port < 1 << 16:
        raise UsageError("the port of a connection is not a number between 1 and 65535")
    return port


def _connect_timeout(text: str) -> float:
    """Seconds; as in libpq, zero or less means no limit of the user's, and then ours holds."""
    if not text:
        return CONNECT_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        raise UsageError("connect_timeout of a connection is not a number of seconds") from None
    return seconds if seconds > 0 else CONNECT_TIMEOUT_S


def _choice(given: Mapping[str, str], key: str, choices: tuple[str, ...]) -> str:
    value = given.get(key, "")
    if value and value not in choices:
        raise UsageError(f"{key} of a connection is none of {', '.join(choices)}")
    return value


def _tls(given: Mapping[str, str]) -> Tls:
    return Tls(
        mode=_choice(given, "sslmode", SSL_MODES),
        root_cert=given.get("sslrootcert", ""),
        cert=given.get("sslcert", ""),
        key=given.get("sslkey", ""),
        key_password=given.get("sslpassword", ""),
        crl=given.get("sslcrl", ""),
        direct=_choice(given, "sslnegotiation", ("postgres", "direct")) == "direct",
        min_version=given.get("ssl_min_protocol_version", ""),
        max_version=given.get("ssl_max_protocol_version", ""),
    )
