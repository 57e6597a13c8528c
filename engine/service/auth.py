"""From a peer and what it shows to an identity.

A token is 32 random bytes, so its SHA-256 is enough at rest: nobody guesses it, and a slow hash would only make us slow.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import pwd

from engine.service.access import ALL_SCOPES, Identity, Peer, Unauthenticated
from engine.service.config import Config


class Doorkeeper:
    """Knows who may come in."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def identify(self, peer: Peer, authorization: str | None) -> Identity:
        """Who is there.  Raises ``Unauthenticated``."""
        if peer.uid is not None:
            return self._by_user(peer.uid)
        if self._config.auth.loopback is not None and peer.address in ("127.0.0.1", "::1"):
            return Identity("loopback", "loopback", frozenset(self._config.auth.loopback))
        raise Unauthenticated("who are you?", hint="send a token: Authorization: Bearer …")

    def _by_user(self, uid: int) -> Identity:
        name = _user_name(uid)
        if uid in (0, os.geteuid()):
            return Identity(name, "peer", ALL_SCOPES)
        scopes = self._config.auth.users.get(name)
        if scopes is None:
            raise Unauthenticated(f"user {name} may not", hint="list the user under [auth.users] in backfill.toml")
        return Identity(name, "peer", scopes)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def digest(token: str) -> str:
    """What stands in the tokens file for a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_equal(one: str, other: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(one, other)
