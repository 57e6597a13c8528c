"""From a peer and what it shows to an identity.

Whoever is at a Unix socket is known by the kernel, whoever shows a certificate of our CA by its common name, and
anybody else by a token.  A token that is shown decides alone: a caller who may more than it says has chosen to be less.
"""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import os
import pwd
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from engine.service.access import ALL_SCOPES, Identity, Peer, Scope, TooManyTries, Unauthenticated
from engine.service.config import Config
from engine.service.crowd import place_of
from engine.service.tokens import Entry, TokensFile

_SEND_TOKEN: Final = "send a token: Authorization: Bearer …"  # noqa: S105 - the words, not a token
_GROUP_MARK: Final = "@"


class Doorkeeper:
    """Knows who may come in.  ``tell`` hears when the tokens file breaks, and when it is whole again."""

    def __init__(self, config: Config, tell: Callable[[str], None] = lambda _: None) -> None:
        """Raises ``SpecError`` when the tokens file cannot be used."""
        self._auth = config.auth
        self._tokens = (
            TokensFile(config.auth.tokens_file, config.connections, tell)
            if config.auth.tokens_file is not None
            else None
        )
        self._users = Users(config.auth.users)
        self._tries = Tries()

    @property
    def trouble(self) -> str | None:
        """What is wrong with the tokens file as it is now, for /readyz; None when it is in force."""
        if self._tokens is None:
            return None
        self._tokens.refresh()
        return self._tokens.trouble

    def admits(self, peer: Peer) -> bool:
        """Whether that peer may speak at all: at a Unix socket only users that are listed get an answer."""
        return peer.uid is None or self._users.scopes(peer.uid, peer.gid) is not None

    def identify(self, peer: Peer, authorization: str | None) -> Identity:
        """Who is there.  Raises ``Unauthenticated``, and ``TooManyTries`` after many failures from one place."""
        if not self.admits(peer):
            raise Unauthenticated("this user may not", hint="the operator lists users under [auth.users]")
        if authorization is None:
            return self._by_place(peer)
        try:
            identity = self._by_token(authorization)
        except Unauthenticated:
            self._tries.failed(place_of(peer))
            raise
        self._tries.came_in(place_of(peer))
        return identity

    def still_knows(self, identity: Identity) -> bool:
        """False once what let that caller in is gone: long answers ask now and then, and end."""
        if identity.kind != "token":
            return True
        entry = self._tokens.get(identity.name) if self._tokens is not None else None
        if entry is None or identity.token not in entry.sha256 or _is_over(entry):
            return False
        return _identity(identity.name, entry, identity.token) == identity

    def _by_place(self, peer: Peer) -> Identity:
        auth = self._auth
        if peer.uid is not None:
            return Identity(self._users.name(peer.uid), "peer", self._users.scopes(peer.uid, peer.gid) or frozenset())
        for name in peer.certificate:
            if name in auth.certificates:
                return Identity(name, "certificate", auth.certificates[name])
        if auth.loopback is not None and peer.address is not None and _is_loopback(peer.address):
            return Identity("loopback", "loopback", auth.loopback)
        if peer.certificate:
            raise Unauthenticated(
                "this certificate is not listed", hint="the operator lists common names under [auth.certificates]"
            )
        raise Unauthenticated("who are you?", hint=_SEND_TOKEN)

    def _by_token(self, authorization: str) -> Identity:
        scheme, _, token = authorization.strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or " " in token:
            raise Unauthenticated("the Authorization header holds no bearer token", hint=_SEND_TOKEN)
        found = self._tokens.find(token) if self._tokens is not None else None
        if found is None:
            raise Unauthenticated("this token is not valid", hint="the operator issues tokens: backfill token NAME")
        if _is_over(found.entry):
            raise Unauthenticated("this token has expired", hint="the operator issues tokens: backfill token NAME")
        return _identity(found.name, found.entry, found.sha256)


def _identity(name: str, entry: Entry, sha256: str) -> Identity:
    connections = frozenset(entry.connections) if entry.connections is not None else None
    return Identity(name, "token", entry.scopes, connections, sha256)


def _is_over(entry: Entry) -> bool:
    return entry.expires is not None and entry.expires <= datetime.now(UTC)


class Users:
    """The users and groups of this machine that may speak at a Unix socket: ours and root, and who is listed.

    Keys are names, numbers, or ``@group``; a user who is in several groups has the scopes of all.
    """

    def __init__(self, listed: Mapping[str, frozenset[Scope]], keep_s: float = 30.0) -> None:
        self._listed = listed
        self._keep_s = keep_s
        self._known: dict[tuple[int, int | None], tuple[float, frozenset[Scope] | None]] = {}

    def scopes(self, uid: int, gid: int | None) -> frozenset[Scope] | None:
        """What that user may; None for one who is not listed."""
        if uid in (0, os.geteuid()):
            return ALL_SCOPES
        if not self._listed:
            return None
        now = time.monotonic()
        known = self._known.get((uid, gid))
        if known is None or now - known[0] > self._keep_s:
            if len(self._known) > 1000:
                self._known.clear()
            known = self._known[uid, gid] = (now, self._look_up(uid, gid))
        return known[1]

    def name(self, uid: int) -> str:
        """As audit and history call that user."""
        return _user_name(uid) or str(uid)

    def _look_up(self, uid: int, gid: int | None) -> frozenset[Scope] | None:
        name = _user_name(uid)
        keys = {str(uid)} | ({name} if name is not None else set())
        if any(key.startswith(_GROUP_MARK) for key in self._listed):
            keys |= {_GROUP_MARK + key for group in _groups(name, gid) for key in _group_names(group)}
        found = [self._listed[key] for key in keys if key in self._listed]
        return frozenset[Scope]().union(*found) if found else None


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _groups(name: str | None, gid: int | None) -> set[int]:
    """The group of the peer's process, and those that the user database gives its user."""
    groups = {gid} if gid is not None else set()
    if name is not None:
        with contextlib.suppress(KeyError, OSError):
            groups |= set(os.getgrouplist(name, pwd.getpwnam(name).pw_gid))
    return groups


def _group_names(gid: int) -> set[str]:
    try:
        return {str(gid), grp.getgrgid(gid).gr_name}
    except KeyError:
        return {str(gid)}


class Tries:
    """Failures by place: a bounded table, in which whoever fails most often crowds out nobody but himself.

    A valid token is never turned away, whatever else came from the same address: else any process of a machine, or
    anybody behind the same gateway, could lock its neighbours out.
    """

    def __init__(self, burst: int = 20, per_s: float = 0.5, places: int = 1024) -> None:
        self._burst = burst
        self._per_s = per_s
        self._places = places
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # place -> tries left, when that was so

    def failed(self, place: str) -> None:
        """One more failure there.  Raises ``TooManyTries`` when there were too many."""
        now = time.monotonic()
        left, since = self._left.pop(place, (float(self._burst), now))
        left = min(float(self._burst), left + (now - since) * self._per_s)
        self._left[place] = (max(0.0, left - 1), now)
        while len(self._left) > self._places:
            self._left.popitem(last=False)
        if left < 1:
            raise TooManyTries("too many wrong tokens came from there", hint="wait, then send a valid one")

    def came_in(self, place: str) -> None:
        """Somebody there is known."""
        self._left.pop(place, None)

    def __len__(self) -> int:
        return len(self._left)


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
