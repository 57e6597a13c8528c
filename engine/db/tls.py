"""Which encryption a connection gets.

libpq's default, ``prefer``, falls back to plain text when somebody in between says so.  Ours: ``verify-full`` for every
host that is not this machine; for this machine ``allow``, which encrypts only where the server insists, since nobody
stands in between.  An explicit ``sslmode`` always wins.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from engine.db.dsn import Host, Tls
from engine.errors import UsageError

_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_SYSTEM_STORE = "system"  # libpq's word for the authorities that the operating system trusts


def mode_for(host: Host, tls: Tls) -> str:
    """The TLS mode used for ``host``: one of libpq's ``sslmode`` values.  A Unix socket is never encrypted."""
    if host.is_socket:
        return "disable"
    return tls.mode or ("allow" if host.is_local else "verify-full")


def argument_for(host: Host, tls: Tls) -> ssl.SSLContext | Literal["allow", "prefer", False]:
    """What asyncpg wants as ``ssl``.  Raises ``UsageError`` when a named file cannot be used."""
    mode = mode_for(host, tls)
    if mode == "disable":
        return False
    if mode in ("allow", "prefer"):
        if tls.mode and (tls.cert or tls.root_cert or tls.crl):
            raise UsageError(
                f"certificates are given, but sslmode={mode} would not insist on them",
                hint="use sslmode=verify-full, or at least require",
            )
        return "allow" if mode == "allow" else "prefer"
    return _context(mode, tls)


def _context(mode: str, tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    root = tls.root_cert or _own_file("root.crt")
    context.check_hostname = mode == "verify-full"
    crl = tls.crl or _own_file("root.crl")
    cert = tls.cert or _own_file("postgresql.crt")
    if root and root != _SYSTEM_STORE:
        with _using(root):
            context.load_verify_locations(cafile=root)
    elif mode == "require" and not root:
        # As libpq: "require" without an authority encrypts, and trusts whoever answers.
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_default_certs()
    if crl:
        with _using(crl):
            context.load_verify_locations(cafile=crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if cert:
        with _using(cert):
            key = tls.key or _own_file("postgresql.key") or None
            # A callable, so that a missing pass phrase fails instead of asking on the terminal.
            context.load_cert_chain(cert, key, password=lambda: tls.key_password)
    context.minimum_version = _version(tls.min_version, ssl.TLSVersion.TLSv1_2)
    context.maximum_version = _version(tls.max_version, ssl.TLSVersion.MAXIMUM_SUPPORTED)
    context.set_alpn_protocols(["postgresql"])
    return context


@contextmanager
def _using(file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(f"TLS: {file} cannot be used: {error.strerror or type(error).__name__}") from None


def _version(text: str, default: ssl.TLSVersion) -> ssl.TLSVersion:
    if not text:
        return default
    if text not in _VERSIONS:
        raise UsageError(f"a TLS version of a connection is none of {', '.join(_VERSIONS)}")
    return _VERSIONS[text]


def _own_file(name: str) -> str:
    """The path of one of libpq's files in the home folder, or empty text when there is none."""
    try:
        path = Path.home() / ".postgresql" / name
    except RuntimeError:
        return ""
    return str(path) if path.is_file() else ""
