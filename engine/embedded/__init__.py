"""Throw-away PostgreSQL servers, for the demonstration, the tests and the benchmarks.

Owns: finding the binaries (those of the ``embedded`` extra: 16 and 18; or Debian's under ``/usr/lib/postgresql``),
a private folder for each server, and the server's whole life in it: initdb, configuration, start, every way to stop,
standbys.

Refuses to know: jobs, event loops, drivers.  It runs programs and reads files; what speaks SQL to the server is
``psql`` of the same binaries.  No other room imports it but ``cli``.

Invariants

- Everything is inside one folder of mode 0700; nothing else on the machine is touched, no user is added, nobody's
  permissions are loosened.
- PostgreSQL refuses to run as root, so root drops to an account that exists (``postgres``, else ``nobody``).  Where
  that account cannot reach the binaries, they are copied into the folder.
- The server dies with its owner, however the owner dies: a shell that holds the other end of a pipe of ours ends the
  server when that pipe closes, and then removes the folder.
- Without ``tcp`` the server is reachable through its socket alone, which only the folder's owner and root can open.
  With ``tcp`` it trusts every local user on 127.0.0.1: for tests, on machines of one's own.
"""

from engine.embedded.binaries import BinariesMissing, find_binaries
from engine.embedded.server import EmbeddedError, EmbeddedServer

__all__ = ["BinariesMissing", "EmbeddedError", "EmbeddedServer", "find_binaries"]
