"""What travels between the daemon and its clients: requests, answers and problems as models (``shapes``), the names of
routes' scopes and problems' codes.

Owns the forms, and how a value of ours becomes one.  Refuses to know HTTP servers (``engine.service``) and how an
answer is shown (``engine.cli``).

Invariants:

* A request is refused for a key that nobody knows; an answer may grow keys, and a client reads past those it does not
  know.
* Nothing here holds a secret.  Keys of rows travel only where they were asked for.
"""

from __future__ import annotations
