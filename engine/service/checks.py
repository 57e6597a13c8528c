"""What is wrong with a configuration: values in the words of this project, contradictions, files, connection strings.

Problems are added to the document, so that all come at once, each with its key and line.  None quotes a value.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any, Final, get_args

from pydantic import ValidationError

from engine.db.dsn import read_dsn
from engine.errors import UsageError
from engine.service.config import Config, ConnectionConfig
from engine.spec import Dsn
from engine.spec.base import SpecModel
from engine.spec.document import Document, Path
from engine.spec.dsn import holds_password
from engine.spec.load import worded
from engine.spec.misfit import Misfit, nearest

DSN_MAX_BYTES: Final = 64 * 1024
_FILES: Final = (("auth", "tokens_file"), ("tls", "certificate"), ("tls", "key"), ("tls", "client_ca"))
_DSN_KEYS: Final = ("dsn", "dsn_file", "service")
_DESCRIBED: Final = "docs/daemon/configuration.md describes every key"


# -- before the models ------------------------------------------------------------------------------------------------


def with_folder(data: Mapping[str, Any], folder: FilePath) -> dict[str, Any]:
    """``data`` with paths of files that begin in the configuration's folder."""
    found = dict(data)
    for section, key in _FILES:
        found[section] = _with_path(found.get(section), key, folder)
    connections = found.get("connections")
    if isinstance(connections, Mapping):
        found["connections"] = {name: _with_path(one, "dsn_file", folder) for name, one in connections.items()}
    return {key: value for key, value in found.items() if value is not None}


def _with_path(table: Any, key: str, folder: FilePath) -> Any:
    path = table.get(key) if isinstance(table, Mapping) else None
    if not isinstance(path, str) or not path or path.startswith("/"):
        return table
    return {**table, key: str(folder / path)}


# -- values -----------------------------------------------------------------------------------------------------------


def report_values(document: Document, error: ValidationError) -> None:
    """What the models refused."""
    for detail in error.errors(include_url=False, include_input=False):
        path: Path = detail["loc"]
        is_key = path[-1:] == ("[key]",)
        path = path[:-1] if is_key else path
        if document.has_problem(path):
            continue
        message, hint = _worded(path, detail)
        document.report(path, message, hint, key=is_key or detail["type"] in ("extra_forbidden", "missing"))


def _worded(path: Path, detail: Any) -> tuple[str, str]:
    match detail["type"]:
        case "extra_forbidden":
            known = _keys_beside(path)
            guess = nearest(str(path[-1]), known)
            return "is not a key here", f"did you mean {guess}?" if guess else f"known here: {', '.join(known)}"
        case "missing":
            return "is missing", _DESCRIBED
        case "string_pattern_mismatch" if path[2:3] == ("references",):
            return "is not a variable's name", "write SOURCE_DSN, without $ and braces"
        case "string_pattern_mismatch" if path[:2] == ("allow", "transforms"):
            return "is no transform", "write module.path:function, or module.path:*"
        case "string_pattern_mismatch" if len(path) == 2 or path[2:3] == ("sources",):
            return "is not a connection's name", "up to 63 lower-case letters, digits, _ . and -"
        case "string_pattern_mismatch":
            return "is not a name", _DESCRIBED
        case "too_short":
            return "is empty", _DESCRIBED
        case "bool_type":
            return "must be true or false", "without quotes"
        case _:
            message, hint = worded(detail)
            return message, _DESCRIBED if "backfill schema" in hint else hint


def _keys_beside(path: Path) -> list[str]:
    model: type[SpecModel] | None = Config
    for part in path[:-1]:
        if model is None:
            break
        model = ConnectionConfig if model is Config and part == "connections" else _model_below(model, part)
    if path[0] == "signals" and len(path) == 4:
        from engine.spec.signal_forms import SignalEntry  # as in operator_signals

        model = _model_below(SignalEntry, path[2])
    keys = [str(info.validation_alias or name) for name, info in model.model_fields.items()] if model else []
    return [key for key in keys if not (path[0] == "signals" and key == "name")]


def _model_below(model: type[SpecModel], key: str | int) -> type[SpecModel] | None:
    if model is ConnectionConfig and isinstance(key, str) and key not in model.model_fields:
        return ConnectionConfig  # the connection's own name
    info = model.model_fields.get(str(key))
    kinds = [info.annotation, *get_args(info.annotation)] if info is not None else []
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, SpecModel)), None)


# -- the whole --------------------------------------------------------------------------------------------------------


def check(document: Document, config: Config, environment: Mapping[str, str], *, is_private: bool) -> None:
    """Contradictions, and files that cannot be used.  ``is_private``: not everybody can read the configuration."""
    _check_listeners(document, config)
    _check_tls(document, config)
    _check_connections(document, config)
    if not is_private:
        for name, one in config.connections.items():
            if one.dsn is not None and holds_password(one.dsn):
                hint = "chmod 600 this file; or put the connection string into a dsn_file, or ${VAR}"
                path = ("connections", name, "dsn")
                document.report(path, "holds a password, and everybody on this host can read it", hint, key=True)
    read_dsns(document, config, environment)


def _check_listeners(document: Document, config: Config) -> None:
    auth, tls = config.auth, config.tls
    by_certificate = bool(auth.certificates) and tls is not None and tls.client_ca is not None
    known = auth.tokens_file is not None or by_certificate
    for address in (each for each in config.listen if each.path is None):
        if not known and not (address.is_loopback and auth.loopback is not None):
            hint = "give [auth] tokens_file, or [tls] client_ca and [auth.certificates]"
            if address.is_loopback:
                hint += '; or let every process of this machine in: [auth] loopback = ["read"]'
            document.report(("listen",), "takes TCP from anybody: nothing says who may come in", hint)
            break
        if not address.is_loopback and tls is None and not auth.plaintext:
            hint = "give [tls]; or, where something else encrypts the way, [auth] plaintext = true"
            document.report(("listen",), "takes tokens over an open network: they would travel readable", hint)
            break
    if auth.certificates and not by_certificate:
        hint = "give [tls] client_ca: the CA that signed them"
        document.report(("auth", "certificates"), "names certificates that nothing can check", hint, key=True)


def _check_tls(document: Document, config: Config) -> None:
    tls = config.tls
    if tls is None:
        return
    if all(address.path is not None for address in config.listen):
        hint = "leave [tls] out, or listen on tcp://…"
        document.report(("tls",), "is for TCP, and nothing listens on TCP", hint, key=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    hint = "check the path, its owner, and that it is PEM"
    try:
        # A key with a pass phrase would be asked for on the terminal.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
        document.report(("tls", "certificate"), f"cannot be used with its key: {what or 'they do not fit'}", hint)
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
            document.report(("tls", "client_ca"), f"cannot be used: {what or 'it holds no certificate'}", hint)


def _check_connections(document: Document, config: Config) -> None:
    meant: dict[str, str] = {}
    for name, one in config.connections.items():
        for other in one.sources or ():
            if other not in config.connections:
                _unknown(document, ("connections", name, "sources"), other, config.connections)
        for variable in one.references:
            if variable in meant:
                hint = f"connection {meant[variable]} has it already: a variable means one database"
                document.report(("connections", name, "references"), "names a variable twice", hint)
            meant[variable] = name


def _unknown(document: Document, path: Path, word: str, known: Iterable[str]) -> None:
    guess = nearest(word, known)
    hint = f"did you mean {guess}?" if guess else f"connections are {', '.join(known)}"
    document.report(path, "names a connection that is not configured", hint)


# -- connection strings -----------------------------------------------------------------------------------------------


def read_dsns(document: Document, config: Config, environment: Mapping[str, str]) -> dict[str, Dsn]:
    """The connection strings by connection, without those that are reported."""
    found: dict[str, Dsn] = {}
    for name, one in config.connections.items():
        given = [key for key in _DSN_KEYS if getattr(one, key) is not None]
        path: Path = ("connections", name)
        if len(given) != 1:
            message = f"says {' and '.join(given)}" if given else "says no dsn, dsn_file or service"
            document.report(path, message, "give exactly one of dsn, dsn_file and service", key=True)
            continue
        try:
            dsn = _read_dsn(one, environment)
            read_dsn(dsn.secret(), environment)
        except Misfit as misfit:
            document.report((*path, given[0]), misfit.message, misfit.hint)
        except UsageError as error:
            document.report((*path, given[0]), f"cannot be used: {error.message}", error.hint)
        else:
            # References are for specs: what a configuration says is resolved here, and nowhere else.
            found[name] = Dsn(dsn.secret(), refuses_superusers=not one.superuser)
    return found


def _read_dsn(one: ConnectionConfig, environment: Mapping[str, str]) -> Dsn:
    if one.dsn_file is not None:
        return Dsn.resolve(_content(one.dsn_file), {}, may_hold_password=True)
    if one.service is not None:
        return Dsn(f"service={one.service}")
    assert one.dsn is not None, "the caller has counted"
    return Dsn.resolve(one.dsn, environment, may_hold_password=True)


def _content(path: str) -> str:
    try:
        # Not to wait for whoever writes into a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise Misfit("is no file", "name a file that holds the connection string, and nothing else")
            content = file.read(DSN_MAX_BYTES + 1)
    except OSError as error:
        raise Misfit(f"cannot be read: {error.strerror}", "check its path and its owner") from None
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise Misfit("is not UTF-8 text", "it holds the connection string, and nothing else") from None
    if len(content) > DSN_MAX_BYTES:
        raise Misfit("is too large", "it holds the connection string, and nothing else")
    if mode & stat.S_IWOTH:
        raise Misfit("can be changed by everybody on this host", f"chmod 600 {path}")
    if mode & stat.S_IROTH and holds_password(text):
        raise Misfit("holds a password, and everybody on this host can read it", f"chmod 600 {path}")
    return text
