"""The tokens file: names, hashes and what each token allows; read again whenever it changes.

::

    [tokens.argo]
    sha256 = "9f86d081…"                  # or a list: while a token is exchanged, the old and the new one are valid
    scopes = ["read", "submit"]
    connections = ["main"]                # left out: every connection
    expires = 2027-01-31T00:00:00Z        # left out: never

A token is 32 random bytes, so its SHA-256 is enough at rest: nobody guesses it, and a slow hash would only slow us.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from datetime import time as clock_time
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from engine.errors import Problem, SpecError
from engine.service.access import Scope
from engine.service.watched import Watched
from engine.spec.base import SpecModel
from engine.spec.misfit import nearest

PREFIX: Final = "backfill_"
"""Begins every token, so that scanners for secrets that were committed by mistake can know one."""

NAME: Final = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
MAX_BYTES: Final = 2**20
MAX_TOKEN_LENGTH: Final = 512
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def make_token() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What stands in the tokens file for a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _as_moment(value: object) -> object:
    """TOML knows days and times without a zone: both are UTC here."""
    match value:
        case datetime():
            return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        case date():
            return datetime.combine(value, clock_time.min, UTC)
        case _:
            raise ValueError("must be a moment, such as 2027-01-31T00:00:00Z, without quotes")


class Entry(SpecModel):
    """One token as it stands in the file."""

    sha256: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$"), AfterValidator(str.lower)], ...],
        BeforeValidator(_as_tuple),
        Field(min_length=1, max_length=16),
    ]
    scopes: Annotated[frozenset[Scope], BeforeValidator(_as_tuple), Field(min_length=1)]
    connections: tuple[str, ...] | None = None
    expires: Annotated[datetime, BeforeValidator(_as_moment)] | None = None


class _Contents(SpecModel):
    tokens: Mapping[Annotated[str, Field(pattern=NAME)], Entry] = {}


@dataclass(frozen=True, slots=True)
class Found:
    """The entry that a token belongs to, and which of its hashes."""

    name: str
    entry: Entry
    sha256: str


class TokensFile:
    """Tokens by their hashes.  ``trouble`` says why the file as it is now is not in force, or None."""

    def __init__(
        self, path: str | os.PathLike[str], connections: Collection[str], tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """Raises ``SpecError`` when the file cannot be used."""
        self._path = Path(path)
        self._connections = frozenset(connections)
        self._tell = tell
        self._watched = Watched([path])
        self._watched.has_changed()
        self.trouble: str | None = None
        self._entries: Mapping[str, Entry] = self._read()

    def find(self, token: str) -> Found | None:
        """The entry of that token, expired or not.  As slow for a near miss as for a hit: all hashes are compared."""
        self.refresh()
        given, found = digest(token[:MAX_TOKEN_LENGTH]), None
        for name, entry in self._entries.items():
            for known in entry.sha256:
                if hmac.compare_digest(given, known):
                    found = Found(name, entry, known)
        return found

    def get(self, name: str) -> Entry | None:
        """The entry of that name as it is now."""
        self.refresh()
        return self._entries.get(name)

    def refresh(self) -> None:
        """Read the file when it is another than the one in force.  A broken one changes nothing but ``trouble``."""
        if not self._watched.has_changed():
            return
        try:
            self._entries = self._read()
        except SpecError as error:
            first = error.problems[0]
            self._complain(f"{self._path}: {first.path} {first.message}".replace("  ", " "))
        else:
            if self.trouble is not None:
                self.trouble = None
                self._tell(f"{self._path} is in force again")

    def _complain(self, words: str) -> None:
        if words != self.trouble:
            self.trouble = words
            self._tell(f"{words}; the tokens known before stay in force")

    def _read(self) -> Mapping[str, Entry]:
        try:
            # Opening a named pipe would wait for a writer; only `open` takes a descriptor.
            with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
                status = os.fstat(file.fileno())
                text = file.read(MAX_BYTES + 1) if stat.S_ISREG(status.st_mode) else None
        except OSError as error:
            raise self._error("", f"cannot be read: {error.strerror}") from None
        if text is None:
            raise self._error("", "is no file")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS_MAY_WRITE:
            raise self._error(
                "", "can be written by others", f"chown it to the daemon's user, and chmod go-w {self._path}"
            )
        if len(text) > MAX_BYTES:
            raise self._error("", f"is longer than {MAX_BYTES:,} bytes")
        return self._parsed(text)

    def _parsed(self, text: bytes) -> Mapping[str, Entry]:
        try:
            data = tomllib.loads(text.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
            raise self._error("", "is not TOML", 'write [tokens.NAME], sha256 = "…", scopes = ["read"]') from None
        try:
            entries = _Contents.model_validate(data).tokens
        except ValidationError as error:
            raise SpecError(
                [Problem(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()], file=str(self._path)
            ) from None
        problems = [
            Problem(f"tokens.{name}.connections", f"{one!r} is no connection", self._meant(one))
            for name, entry in entries.items()
            for one in entry.connections or ()
            if one not in self._connections
        ]
        problems += _twice(entries)
        if problems:
            raise SpecError(problems, file=str(self._path))
        return entries

    def _meant(self, name: str) -> str:
        close = nearest(name, self._connections)
        return f"did you mean {close}?" if close else f"there is: {', '.join(sorted(self._connections))}"

    def _error(self, path: str, message: str, hint: str = "") -> SpecError:
        return SpecError([Problem(path, message, hint)], file=str(self._path))


def _twice(entries: Mapping[str, Entry]) -> list[Problem]:
    """One token under two names would be whoever stands last."""
    owner: dict[str, str] = {}
    return [
        Problem(f"tokens.{name}.sha256", f"is the hash of {owner[one]} as well")
        for name, entry in entries.items()
        for one in entry.sha256
        if owner.setdefault(one, name) != name
    ]
