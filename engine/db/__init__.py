"""Databases: sessions, what each server can do, COPY and statements, the catalogue, and what its errors mean.

Owns asyncpg: no room above imports it.  Refuses to know jobs, spans, plans and when to try again.

Invariants:

* Every session has the same pinned settings, so that a key's text and a comparison mean the same everywhere.
* No wait is without a limit: connecting, closing, a lost peer, a COPY whose other end is gone.
* What differs between servers is a capability, found out once at connect.
* No error, label or representation holds a password, and no message a row value.
"""

from __future__ import annotations

from engine.db.connection import Connection, ConnectionLost
from engine.db.database import Database
from engine.db.failures import Action, Failure, classify
from engine.db.server import Capabilities, Server

__all__ = ["Action", "Capabilities", "Connection", "ConnectionLost", "Database", "Failure", "Server", "classify"]
