"""Why a server would not have us, in words, with what to do about it."""

from __future__ import annotations

import socket
import ssl
from typing import Final

import asyncpg

from engine.errors import BackfillError, CannotConnect

_HINTS: Final = {
    "28P01": "check the password: PGPASSWORD, ~/.pgpass (readable by you alone) or the service file",
    "28000": "the server's pg_hba.conf, or the role itself, does not allow this user from here",
    "3D000": "create the database, or name another one",
    "42501": "grant CONNECT on the database to this user",
    "53300": "the server has no connection left: raise max_connections, or use fewer workers",
    "57P03": "the server is starting up, shutting down or recovering: try again",
    "08P01": "a pooler refuses our session settings: connect to the server itself",
    "42704": "PostgreSQL 14 or newer is needed, without a pooler in between",
    "22023": "a setting or role of the session is not accepted by the server",
}
UNABLE_TO_CONNECT: Final = "08001"  # our own, where trying again cannot help
# Another host of the list may do better; anything else would be the same there.
_NEXT_HOST_SQLSTATES: Final = ("57P03", "57P01", "57P02", "53300")


class NotThisHost(Exception):
    """One host refused in a way that does not speak for the others.  ``refusal`` is what to raise after the last."""

    def __init__(self, refusal: CannotConnect) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refusal(error: Exception, *, label: str, user: str) -> BackfillError | NotThisHost:
    """The error to raise for ``error``, met while connecting.  Holds no secret: not even the server's DETAIL."""
    if isinstance(error, BackfillError):
        return error
    if isinstance(error, asyncpg.PostgresError):
        sqlstate = error.sqlstate or ""
        refused = CannotConnect(
            f"{label} refuses user {user!r}: {error.args[0] if error.args else sqlstate}",
            hint=_HINTS.get(sqlstate, ""),
            sqlstate=sqlstate or None,
        )
        return NotThisHost(refused) if sqlstate in _NEXT_HOST_SQLSTATES else refused
    if isinstance(error, ssl.SSLCertVerificationError):
        return CannotConnect(
            f"{label}: the server's certificate cannot be trusted: {error.verify_message}",
            hint="name the authority that signed it by sslrootcert=FILE (or sslrootcert=system)",
        )
    if isinstance(error, ssl.SSLError):
        return CannotConnect(f"{label}: TLS failed: {error.reason or 'no reason given'}")
    return NotThisHost(_unreachable(error, label))


def _unreachable(error: Exception, label: str) -> CannotConnect:
    if isinstance(error, TimeoutError):
        return CannotConnect(
            f"{label} does not answer", hint="check the address and the firewall; connect_timeout sets the patience"
        )
    if isinstance(error, ConnectionRefusedError):
        return CannotConnect(f"{label}: connection refused", hint="is the server running, and on this port?")
    if isinstance(error, FileNotFoundError):
        return CannotConnect(f"{label}: no such socket", hint="is the server running? host= may name another folder")
    if isinstance(error, socket.gaierror):
        return CannotConnect(f"{label}: the host name cannot be resolved")
    if isinstance(error, ConnectionError) and "SSL" in str(error):
        return CannotConnect(
            f"{label}: the server does not speak TLS",
            hint="hosts other than this machine are verified (sslmode=verify-full); sslmode=disable sends plain text",
            sqlstate=UNABLE_TO_CONNECT,
        )
    if isinstance(error, OSError):
        return CannotConnect(f"{label}: {error.strerror or type(error).__name__}")
    if isinstance(error, asyncpg.exceptions.TargetServerAttributeNotMatched):
        return CannotConnect(f"{label}: not the kind of server that target_session_attrs asks for")
    return CannotConnect(f"{label}: {type(error).__name__} while connecting")
