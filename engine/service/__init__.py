"""The sidecar daemon: an HTTP API over the jobs of the connections that its operator configured, and workers for them.

::

    bytes ─▶ transport ─▶ app ─▶ a route's handler ─▶ station (one per connection) ─▶ ledger, flow, fleet
             who is it,   may he,  what to do            sessions, watcher
             how long     is it
             may it take  well formed

    daemon ─▶ a pool (one per ledger to be worked) ─▶ lender ─▶ fleet
              its jobs, several at once                what a job may have of this host's

* ``config``     what the operator's TOML says, every problem at once: ``toml`` with lines, ``checks`` what contradicts
  itself, ``tables`` patterns of names, ``operator_signals`` signals by name; ``watched`` files that are read again
* ``transport``  listeners and what they accept; ``exchange`` HTTP on one connection; ``sockets`` where it listens,
  ``line`` how a connection ends, ``crowd`` how many there may be, ``refusals`` what is said before a request is read
* ``access``     identities and scopes; ``auth`` tokens, peers and certificates -> identities, ``tokens`` their file;
  ``hosts`` whose page asks
* ``routing``    what a route is; ``app`` checks a request against its route, ``reading`` its parts; ``problems`` what
  goes wrong, as an answer; ``openapi`` describes them
* ``routes``     the handlers by topic, and ``table``: all of them
* ``admission``  what a submitted spec may ask for, by the operator's rules; ``lender`` what a job of the ledger gets
* ``station``    one connection: sessions to its ledger, its ``watcher`` for all who follow a job
* ``daemon``     start, a pool for each ledger, health, drain; ``recent`` the last ten minutes of each job; ``audit``
  who asked for what; ``notify`` tells systemd
* ``page``       the status page: static files, with no build step

Owns who may do what, and what crosses HTTP.  Refuses to know how rows move, and how terminals look.

Invariants:

* A route without a scope is public because the table says so in so many words; anything else is denied by default.
* What a submitter sends names connections, signals and tables that the operator listed; it is never a DSN, a file, a
  module, an address, nor (unless allowed) SQL.
* ``/livez`` touches no database; no request waits for one without a deadline.
* Every change that is asked for is audited: by whom, what, of which job, and whether it was done.
"""

from __future__ import annotations
