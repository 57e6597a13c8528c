"""Where a daemon listens, and what a client shows it: addresses, tokens, certificates."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from engine.errors import UsageError

TOKEN_VARIABLE: Final = "BACKFILL_TOKEN"  # noqa: S105 - its name, not its value
CA_VARIABLE: Final = "BACKFILL_CA"
CERTIFICATE_VARIABLE: Final = "BACKFILL_CERTIFICATE"
KEY_VARIABLE: Final = "BACKFILL_KEY"
LONGEST_TOKEN: Final = 1000
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_FORMS: Final = "write unix:///path/to/socket, https://host:port, or http://127.0.0.1:port"
_OTHERS_MAY: Final = stat.S_IRWXO
"""The group may: so Kubernetes and systemd hand secrets to a service that is not root."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon is.  ``socket``: the path of a Unix socket; ``base``: what paths are put behind."""

    base: str
    socket: str | None = None

    def __str__(self) -> str:
        return f"unix://{self.socket}" if self.socket is not None else self.base

    @property
    def is_private(self) -> bool:
        """True where nobody on a network can listen in."""
        return self.socket is not None or self.base.startswith("https:") or urlsplit(self.base).hostname in _LOOPBACK

    @classmethod
    def parse(cls, text: str) -> Address:
        """``unix:///run/backfill/backfill.sock`` or ``https://host:8471``.  Raises ``UsageError``."""
        try:
            parts = urlsplit(text)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise UsageError("that is no address of a daemon", hint=_FORMS) from None
        if parts.username is not None or parts.password is not None:
            raise UsageError("a daemon's address holds no user and no password", hint=f"the token: {TOKEN_VARIABLE}")
        if parts.query or parts.fragment:
            raise UsageError("a daemon's address has no query", hint=f"the token: {TOKEN_VARIABLE}")
        if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
            return cls("http://localhost", parts.path)
        if parts.scheme in ("http", "https") and host and parts.path in ("", "/"):
            return cls(f"{parts.scheme}://{parts.netloc}")
        raise UsageError(f"{text!r} is no address of a daemon", hint=_FORMS)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows.  ``ca``: who vouches for the daemon, where the system's authorities do not.

    ``certificate`` and ``key``: files of a client certificate; without ``key`` one file holds both.
    """

    token: str | None = field(default=None, repr=False)
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    @classmethod
    def found(
        cls,
        *,
        token: str | None = None,
        token_file: str | None = None,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Credentials:
        """What was given, else what the environment says: BACKFILL_TOKEN, _CA, _CERTIFICATE and _KEY.

        Raises ``UsageError``.
        """
        if token is not None and token_file is not None:
            raise UsageError("a token and a token file were given", hint="give one of the two")
        if token is None and token_file is not None:
            token = read_token(token_file)
        if token is None:
            token = environment.get(TOKEN_VARIABLE) or None
        if token is not None:
            _check(token)
        return cls(
            token,
            ca or environment.get(CA_VARIABLE) or None,
            certificate or environment.get(CERTIFICATE_VARIABLE) or None,
            key or environment.get(KEY_VARIABLE) or None,
        )

    def headers(self, address: Address) -> dict[str, str]:
        """What every request carries.  Raises ``UsageError`` for a token that others could read on its way."""
        if self.token is None:
            return {}
        if not address.is_private:
            raise UsageError("a token is not sent over http to another host", hint="use https")
        return {"authorization": f"Bearer {self.token}"}

    def context(self) -> ssl.SSLContext:
        """How the daemon is checked, and what it is shown.  Raises ``UsageError`` for files that do not serve."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except OSError as error:  # ssl.SSLError is one
            reason = error.strerror or "it is not what it should be"
            raise UsageError(f"the certificate, its key or the authority cannot be read: {reason}") from None
        return context


def read_token(path: str) -> str:
    """The token that a file holds.  Raises ``UsageError`` where others may read it."""
    try:
        with Path(path).open(encoding="ascii", errors="replace") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(LONGEST_TOKEN + 2).strip()
    except OSError as error:
        raise UsageError(f"the token file {path} cannot be read: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & _OTHERS_MAY:
        raise UsageError(f"others may read or write the token file {path}", hint=f"chmod 600 {path}")
    if not text:
        raise UsageError(f"the token file {path} is empty")
    return text


def _check(token: str) -> None:
    """A token that would break its header is not told back."""
    if len(token) > LONGEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("that is no token", hint="backfill token makes one")
