"""Connection strings: resolved here, shown nowhere.

A ``Dsn`` holds a secret.  Its ``repr`` and ``str`` show the reference it came from (``${SOURCE_DSN}``) or nothing, it
refuses to be pickled, and only ``secret()`` gives the text.  The grammar of connection strings is ``engine.db``'s
business; this module knows just enough of it to see a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NoReturn
from urllib.parse import unquote_plus

from engine.errors import UsageError
from engine.spec.misfit import Misfit

VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
FALLBACK_VARIABLE: Final = "BACKFILL_DSN"

_PASSWORD: Final = re.compile(r"password\s*=\s*('(?:[^'\\]|\\.)*'?|[^\s&;]*)", re.IGNORECASE | re.DOTALL)
_URL: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://(.*)", re.DOTALL)
_PAIR: Final = re.compile(r"\s*([A-Za-z_]+)\s*=\s*('(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)*)", re.DOTALL)
_HOST: Final = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?")
_KNOWN_SCHEMES: Final = ("postgresql://", "postgres://")
_STAND_IN: Final = "\ue000"  # a private-use character in a variable's place while looking for literal passwords

OUT_OF_SIGHT: Final = (
    "keep it out of sight: put the whole connection string into an environment variable and write "
    "dsn: ${SOURCE_DSN}, or use ~/.pgpass or a service file"
)


class Dsn:
    """A connection string and where it came from.

    ``reference`` is the text exactly as written when it was one variable (``${SOURCE_DSN}``), else None: it may be
    stored and resolved again on another host.  An empty connection string means libpq's environment (``PGHOST`` …).
    ``refuses_superusers``: whoever lends it out allows no session of a superuser to run what a job says.
    """

    __slots__ = ("_text", "reference", "refuses_superusers")

    reference: str | None
    refuses_superusers: bool

    def __init__(self, text: str, *, reference: str | None = None, refuses_superusers: bool = False) -> None:
        self._text = text
        self.reference = reference
        self.refuses_superusers = refuses_superusers

    @classmethod
    def resolve(cls, text: str, env: Mapping[str, str], *, may_hold_password: bool = False) -> Dsn:
        """The connection string that ``text`` means, with each ``${VAR}`` taken from ``env``.

        Raises ``Misfit`` when a variable is missing or empty, when a password stands in ``text`` itself (unless it
        may), or when the result is no connection string.  A variable's value is inserted as it is: inside a URL it
        must already be percent-encoded.
        """
        missing = sorted({name for name in VARIABLE.findall(text) if not env.get(name)})
        if missing:
            names = ", ".join(missing)
            raise Misfit(
                f"the environment variable {names} is not set or empty"
                if len(missing) == 1
                else f"the environment variables {names} are not set or empty",
                f"export {missing[0]}=postgresql://user@host/database",
            )
        if "${" in VARIABLE.sub("", text):
            raise Misfit("has a ${ that is not a variable", "write ${NAME} with letters, digits and _ only")
        if not may_hold_password and holds_password(text):
            raise Misfit("holds a password", OUT_OF_SIGHT)
        resolved = VARIABLE.sub(lambda match: env[match[1]], text)
        _check_form(resolved)
        return cls(resolved, reference=text if VARIABLE.fullmatch(text) else None)

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Dsn:
        """``BACKFILL_DSN`` when it is set, else the empty connection string: libpq's own variables and defaults."""
        if env.get(FALLBACK_VARIABLE):
            return cls.resolve(f"${{{FALLBACK_VARIABLE}}}", env)
        return cls("")

    def secret(self) -> str:
        """The connection string itself, for the one place that opens a connection."""
        return self._text

    def __repr__(self) -> str:
        return f"Dsn({self.reference or '***'})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dsn):
            return NotImplemented
        return (self._text, self.reference) == (other._text, other.reference)

    def __hash__(self) -> int:
        return hash((self._text, self.reference))

    def __copy__(self) -> Dsn:
        return self

    def __deepcopy__(self, memo: object) -> Dsn:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection string is not pickled: pass its reference and resolve it where it is used")


def holds_password(text: str) -> bool:
    """True when a password (or a part of one) stands literally in ``text``; one that is all ``${VAR}`` does not count.

    Malformed strings are given the worse reading: a password that breaks the URL it stands in is still a password.
    """
    masked = VARIABLE.sub(_STAND_IN, text)
    url = _URL.match(masked)
    passwords = [value.strip("'") for value in _PASSWORD.findall(unquote_plus(masked) if url else masked)]
    if url:
        passwords.append(_password_of_url(url[1]))
    return any(password.replace(_STAND_IN, "").strip() for password in passwords)


def refuse_password(text: str, flag: str = "--dsn") -> None:
    """Raise ``UsageError`` when the value of a DSN flag holds a password: every process of the host can read it."""
    if holds_password(text):
        raise UsageError(
            f"{flag} holds a password, which every user of this host can read in the process list",
            hint=f"set {FALLBACK_VARIABLE} instead, or leave the password to ~/.pgpass or a service file",
        )


def _password_of_url(rest: str) -> str:
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return authority.rpartition("@")[0].partition(":")[2]
    if "@" in rest and not all(_HOST.fullmatch(host) for host in authority.split(",")):
        # An unencoded / ? or # inside the password: what looks like a port is its beginning.
        return authority.partition(":")[2]
    return ""


def _check_form(resolved: str) -> None:
    hint = "write postgresql://user@host:5432/database, or host=… dbname=… user=…"
    if not resolved.strip():
        raise Misfit("is empty", f"{hint}; or leave the key out to use {FALLBACK_VARIABLE} or the PG* variables")
    if any(ord(character) < 0x20 or 0xD800 <= ord(character) < 0xE000 for character in resolved):
        raise Misfit("holds a control character", hint)
    if not resolved.lstrip().startswith(_KNOWN_SCHEMES) and not _PAIR.match(resolved):
        raise Misfit("is neither a postgresql:// URL nor key=value pairs", hint)
