"""How many connections there are, and whose: nobody takes all, and whoever asks whether we live finds a place.

A place is a user of a Unix socket, an address, or a network of IPv6 addresses.  One place has at most half of all
connections.  Where there is no room for a newcomer, the connection that has asked for nothing for the longest goes: of
the same place when that one is full, else of the place with most of such connections.  So a thousand clients that only
connect push each other out, and not one that asks.  When every connection is busy, newcomers come in by the few in
reserve, where only ``/livez`` and ``/readyz`` are answered.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Final, Protocol

from engine.service.access import Peer

RESERVE: Final = 8


class Guest(Protocol):
    """A connection."""

    def evict(self) -> None:
        """Close at once: another needs the place."""


class Ticket:
    """A place that was given to a connection, from when it is accepted until it is lost."""

    __slots__ = ("_crowd", "guest", "is_reserve", "place")

    def __init__(self, crowd: Crowd, place: str, *, is_reserve: bool) -> None:
        self._crowd = crowd
        self.place = place
        self.is_reserve = is_reserve
        self.guest: Guest | None = None

    def begins(self) -> None:
        """A request is there: nobody takes the place away before it is answered."""
        self._crowd.begins(self)

    def rests(self) -> None:
        """Nothing is asked for now."""
        self._crowd.rests(self)

    def leave(self) -> None:
        """The connection is gone.  May be called twice."""
        self._crowd.leave(self)


class Crowd:
    """All connections of a daemon."""

    def __init__(self, most: int, reserve: int = RESERVE) -> None:
        self._most = most
        self._most_of_one = max(1, most // 2)
        self._reserve = reserve
        self._inside: set[Ticket] = set()
        self._count: Counter[str] = Counter()  # of those that are not in reserve
        self._idle: dict[str, dict[Ticket, None]] = {}  # of a place, the longest idle first
        self._idle_reserve: dict[Ticket, None] = {}

    def enter(self, place: str) -> Ticket | None:
        """A place for a connection that was just accepted; None when there is not even one in reserve."""
        if self._makes_room(place):
            ticket = Ticket(self, place, is_reserve=False)
            self._count[place] += 1
        else:
            if len(self._inside) - self._count.total() >= self._reserve and not _evict_first(self._idle_reserve):
                return None
            ticket = Ticket(self, place, is_reserve=True)
        self._inside.add(ticket)
        self.rests(ticket)
        return ticket

    def begins(self, ticket: Ticket) -> None:
        """It is idle no longer."""
        if ticket.is_reserve:
            self._idle_reserve.pop(ticket, None)
            return
        idle = self._idle.get(ticket.place, {})
        idle.pop(ticket, None)
        if not idle:
            self._idle.pop(ticket.place, None)

    def rests(self, ticket: Ticket) -> None:
        """It is idle from now on."""
        if ticket not in self._inside:
            return
        self.begins(ticket)
        idle = self._idle_reserve if ticket.is_reserve else self._idle.setdefault(ticket.place, {})
        idle[ticket] = None

    def leave(self, ticket: Ticket) -> None:
        """It is gone."""
        if ticket not in self._inside:
            return
        self._inside.discard(ticket)
        self.begins(ticket)
        if not ticket.is_reserve:
            self._count[ticket.place] -= 1
            if not self._count[ticket.place]:
                del self._count[ticket.place]

    def __len__(self) -> int:
        return len(self._inside)

    def _makes_room(self, place: str) -> bool:
        if self._count[place] >= self._most_of_one:
            return _evict_first(self._idle.get(place, {}))
        if self._count.total() < self._most:
            return True
        fullest = max(self._idle.values(), key=len, default=None)
        return fullest is not None and _evict_first(fullest)


def _evict_first(idle: dict[Ticket, None]) -> bool:
    for ticket in idle:
        ticket.leave()
        if ticket.guest is not None:
            ticket.guest.evict()
        return True
    return False


def place_of(peer: Peer) -> str:
    """Where somebody sits: a user, an address, or a network of IPv6 addresses, of which one client has very many."""
    if peer.uid is not None:
        return f"uid {peer.uid}"
    try:
        address = ipaddress.ip_address((peer.address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
