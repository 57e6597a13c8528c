"""Who somebody is to the daemon, and what that allows: identities, scopes, and the errors of being turned away."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from engine.errors import BackfillError


class Scope(StrEnum):
    """What a route demands.  None implies another: a token that submits and looks has both ``submit`` and ``read``."""

    READ = "read"  # look at jobs, their history, their evidence
    CONTROL = "control"  # pause, resume, cancel, pace, verify
    SUBMIT = "submit"  # begin jobs, begin them anew, remove them, have rows repaired


ALL_SCOPES: Final = frozenset(Scope)

Kind = Literal["peer", "token", "certificate", "loopback"]


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller.  ``connections`` None: every connection of the configuration.

    ``token``: the hash of what was shown, by which the doorkeeper sees later whether it is still valid.
    """

    name: str
    kind: Kind
    scopes: frozenset[Scope]
    connections: frozenset[str] | None = None
    token: str | None = field(default=None, repr=False, compare=False)

    def may_use(self, connection: str) -> bool:
        """True when the caller may name that connection, and see its jobs."""
        return self.connections is None or connection in self.connections

    @property
    def signature(self) -> str:
        """As history and audit name the caller: ``token argo``."""
        return self.name if self.name == self.kind else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a socket, as the kernel or TLS tells it, before anything was read.

    ``uid`` of a Unix socket, None elsewhere.  ``certificate``: the subject names of a client certificate that our CA
    signed.  ``address`` of a TCP peer.
    """

    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    certificate: tuple[str, ...] = ()
    address: str | None = None


class Unauthenticated(BackfillError):
    """The daemon does not know who is asking."""

    code = "unauthenticated"
    exit_code = 5
    http_status = 401


class TooManyTries(BackfillError):
    """So many wrong tokens came from one place that the next ones are not even looked into."""

    code = "too_many_tries"
    exit_code = 75
    http_status = 429


class Forbidden(BackfillError):
    """The daemon knows who is asking, and that he may not."""

    code = "forbidden"
    exit_code = 5
    http_status = 403
